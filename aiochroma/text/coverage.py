"""How well a memory and its surroundings cover the terms of a question. Pure functions over row numbers.

For a question of terms ``t`` and a memory ``d``::

    held(t, d)  = 1 where d holds t; less where it holds a word akin to t, or where t is a date and d is of a day near it
    n(t)        = sum of held(t, d) over all memories
    weight(t)   = log(1 + (N - n(t) + 1/2) / (n(t) + 1/2))
    own(d)      = sum of weight(t) * held(t, d), divided by the sum of weight(t)
    reach(t, d) = the largest of lent(offset) * held(t, e) over the memories e at most WINDOW positions away from d
    coverage(d) = sum of weight(t) * reach(t, d), divided by the sum of weight(t), divided by length(d)
    lent(o)     = BEFORE ** -o for what stands before d (o < 0), AFTER ** o for what stands after, 1 for d itself
    length(d)   = 1 + b * (words of d) / (mean words of a memory)

``N`` memories. The weight is BM25's (Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond",
2009). How often a term occurs in a memory is not counted: memories are short, and a turn that repeats a name is not more
about it; with the counts, as ``bm25()`` takes them, recall is three points lower. ``length`` is a weak pivoted
normalisation (Singhal, Buckley & Mitra, "Pivoted Document Length Normalization", 1996); it need not be strong, because
``own`` does not grow by repetition.

``reach`` is what a conversation needs. "Where was it taken?" - "At the lake." - "Last June?": the turn that answers shares
few words with the question, and the turns around it share the others. What stands before lends more than what stands
after, because an answer follows its question. Taking each term where it is nearest, instead of adding a share of the
neighbours' scores, keeps a memory that repeats its neighbours' words from beating one that adds to them. What stands near a
memory is its conversation; for a memory without one, what was remembered before and after it in its scope.
"""

from __future__ import annotations

import math
import sqlite3
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from aiochroma.text.rows import among, distinct, found_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.text.namespaces import Summary
    from aiochroma.text.rows import Order, RowFilter

_Number = TypeVar("_Number", "np.int64", "np.float64")

__all__ = [
    "AFTER",
    "BEFORE",
    "WINDOW",
    "Term",
    "TextHits",
    "TextSearch",
    "best_rows",
    "length_factor",
    "search_together",
    "term_weight",
    "with_surroundings",
]

# Measured flat between 0.7 and 0.85, 0.4 and 0.6, and from 2 to 4 positions.
BEFORE = 0.8
AFTER = 0.5
WINDOW = 3
# Measured flat between 0 and 0.06 for turns of a conversation; longer texts are what it is for.
_LENGTH_SHARE = 0.03
# Adding up is quicker even at 145 row numbers for each one that is held; the bound is for what it allocates, eight bytes for
# each number.
_SPARSE = 16
_DENSE = 16
"""The most places that the table of a term has, for each candidate."""
_POOLS_GROW = 4
"""The most by which the number of rows that are looked at grows where some may not be returned."""


class Term(NamedTuple):
    """One term of a question, and which rows hold it.

    Attributes:
        rows: The rows that hold it, or something akin to it; ascending, each once.
        weight: What it counts in the question.
        shares: How much of it each row holds, above 0 and at most 1; None where all hold the whole.
    """

    rows: NDArray[np.int64]
    weight: float
    shares: NDArray[np.float64] | None = None


def term_weight(memories: int, with_term: float) -> float:
    """Weigh a term of a question.

    Args:
        memories: How many memories there are.
        with_term: How many of them hold it; shares count as such.

    Returns:
        A positive weight; the rarer, the greater.
    """
    return math.log1p(max(0.5, memories - with_term + 0.5) / (with_term + 0.5))


def length_factor(words: NDArray[np.int32], mean_words: float) -> NDArray[np.float64]:
    """Return what the coverage of texts of that many words is divided by: 1 or a little more."""
    return 1.0 + _LENGTH_SHARE / (mean_words or 1.0) * words.astype(float)


def best_rows(terms: Sequence[Term], limit: int, allowed: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Find the rows whose own terms weigh most.

    Args:
        terms: The terms of the question, at least one.
        limit: How many to return at most.
        allowed: When given, only these may be returned; ascending.

    Returns:
        Row numbers, ascending.
    """
    ((held, sums),) = _weighed([terms], [limit if allowed is None else None])
    if allowed is not None:
        keep = among(held, allowed)
        held, sums = held[keep], sums[keep]
    return _heaviest(held, sums, limit)


def _heaviest(held: NDArray[np.int64], sums: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Return the rows of the largest sums, ascending; of equal ones the newest, which stand last."""
    import numpy as np

    if len(held) <= limit:
        return held
    least = np.partition(sums, -limit)[-limit]
    chosen = sums > least
    equal = np.flatnonzero(sums == least)
    chosen[equal[int(chosen.sum()) - limit :]] = True
    heaviest: NDArray[np.int64] = held[chosen]
    return heaviest


def _weighed(
    questions: Sequence[Sequence[Term]], limits: Sequence[int | None]
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Add up for the terms of each question what every row holds of them.

    Args:
        questions: Terms; at least one of each question.
        limits: How many of the heaviest rows are wanted of each; None for all rows.

    Returns:
        For each question its rows, ascending, with their sums; with a limit the lightest may be left out.
    """
    import numpy as np

    spans = [_span(terms) for terms in questions]
    lowest = [begin for begin, _ in spans]
    bases = np.cumsum([0, *(end - begin for begin, end in spans)])
    terms = [term for some in questions for term in some]
    lengths = [len(term.rows) for term in terms]
    joined = np.concatenate([term.rows for term in terms])
    if len(questions) > 1 and len(joined) * _SPARSE <= bases[-1]:
        return [_weighed([some], [limit])[0] for some, limit in zip(questions, limits, strict=True)]
    given = np.repeat([term.weight for term in terms], lengths)
    if any(term.shares is not None for term in terms):
        given *= np.concatenate(
            [np.ones(len(term.rows)) if term.shares is None else term.shares for term in terms]
        )
    if len(joined) * _SPARSE <= bases[-1]:
        held, position = np.unique(joined, return_inverse=True)
        return [(held, _sums(position, given, len(held)))]
    # Adding up instead of sorting: a tenth of the time for terms that thousands of rows hold.
    shifts = np.repeat(bases[:-1] - lowest, [len(some) for some in questions])
    sums = _sums(joined + np.repeat(shifts, lengths), given, int(bases[-1]))
    found: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for some, limit, begin, base, end in zip(questions, limits, lowest, bases[:-1], bases[1:], strict=True):
        own = sums[base:end]
        # Every row of a term has at least its weight: with enough rows the best ones have no less.
        enough = [
            term.weight for term in some if term.shares is None and len(term.rows) >= (limit or math.inf)
        ]
        held = np.flatnonzero(own >= max(enough) if enough else own)
        found.append((held + begin, own[held]))
    return found


def _sums(places: NDArray[np.int64], given: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Add up what is given at each of some places."""
    import numpy as np

    return np.bincount(places, weights=given, minlength=count).astype(np.float64, copy=False)


def _span(terms: Sequence[Term]) -> tuple[int, int]:
    """Return the lowest row of terms, and the number behind the highest; twice 0 where no row holds any."""
    held = [term.rows for term in terms if len(term.rows)]
    if not held:
        return 0, 0
    return min(int(rows[0]) for rows in held), max(int(rows[-1]) for rows in held) + 1


def with_surroundings(
    held: NDArray[np.float64],
    looked_at: NDArray[np.int64],
    rows: NDArray[np.int64],
    around: NDArray[np.int64],
    before: float,
    after: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how much of each term (row) each of ``rows`` (column) holds, and how much with what stands around it.

    Args:
        held: How much of each term the memories hold that were looked at.
        looked_at: Those memories, ascending: ``rows`` and all of ``around``.
        rows: The rows to score, ascending, each once.
        around: For each row a line of what stands before and behind it, as ``Order.around`` has it; 0 for nothing.
        before: The factor for each step of distance to a term that stands before; 0 to 1.
        after: The factor for each step of distance to a term that stands after; 0 to 1.
    """
    import numpy as np

    # `take` picks columns in half the time of an index.
    own = held.take(found_at(looked_at, rows), axis=1)
    reach = own.copy()
    window = around.shape[1] // 2
    lent = [before**distance for distance in range(window, 0, -1)]
    lent += [after**distance for distance in range(1, window + 1)]
    for factor, near in zip(lent, found_at(looked_at, around.T), strict=True):
        lends = held.take(near, axis=1)
        lends *= factor
        np.maximum(reach, lends, out=reach)
    return own, reach


def _held(candidates: NDArray[np.int64], term: Term) -> NDArray[np.float64]:
    """Return how much of a term each candidate holds; both ascend, and none is negative."""
    import numpy as np

    if len(term.rows) == 0 or len(candidates) == 0:
        return np.zeros(len(candidates))
    room = 1 + int(max(term.rows[-1], candidates[-1]))
    if room < _DENSE * len(candidates):
        # A look into a table: a tenth of the time of a search among the rows for the candidates of twenty namespaces.
        held = np.zeros(room)
        held[term.rows] = 1.0 if term.shares is None else term.shares
        return held.take(candidates)
    at = np.minimum(term.rows.searchsorted(candidates), len(term.rows) - 1)
    among = term.rows[at] == candidates
    shares: NDArray[np.float64] = among.astype(np.float64)
    return shares if term.shares is None else shares * term.shares[at]


class TextHits(NamedTuple):
    """Memories that cover something of the question, by themselves or by what stands near them; in columns.

    Attributes:
        rows: The row of each memory.
        scores: The share of the question that the memory and its surroundings cover, 0 to 1; comparable between namespaces.
        own: The share of the question's weight that is in the memory itself, 0 to 1; 0 when only its neighbours match.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    own: NDArray[np.float64]


class TextSearch(NamedTuple):
    """What is looked for in one namespace.

    Attributes:
        namespace: The namespace.
        summary: What it is like as a whole.
        terms: The terms of the question there; at least one.
        limit: The most hits to return, beside those of ``also``.
        pool: The number of memories, those that hold most of the question, that are looked at with their neighbours.
        also: Rows to score in any case.
        keep: Which rows may be returned.
    """

    namespace: int
    summary: Summary
    terms: Sequence[Term]
    limit: int
    pool: int
    also: NDArray[np.int64]
    keep: RowFilter


class _Keys:
    """Numbers for the rows of all searches: what one search looks at is never taken for another's.

    The keys of a search are the numbers of its namespace's rows, moved behind the keys of the search before it, so they lie as
    close as the rows do. 0 stands for nothing.

    Args:
        order: Has loaded the namespaces.
        searches: The searches.
    """

    def __init__(self, order: Order, searches: Sequence[TextSearch]) -> None:
        import numpy as np

        self._spans = [order.span(one.namespace) for one in searches]
        offsets: list[int] = []
        ends: list[int] = []
        end = 0
        for lowest, highest in self._spans:
            offsets.append(end - lowest if ends else 0)
            end = offsets[-1] + highest + 1
            ends.append(end)
        self._offsets = np.array(offsets, dtype=np.int64)
        self._ends = np.array(ends, dtype=np.int64)

    def of(self, rows: Sequence[NDArray[np.int64]], places: Sequence[int] | None = None) -> NDArray[np.int64]:
        """Return the keys of rows, ascending, given those of all searches or of those at some places; each ascending.

        Raises:
            sqlite3.DatabaseError: A row is not of its namespace.
        """
        import numpy as np

        if len(self._spans) == 1:
            return rows[0]
        offsets = self._offsets if places is None else self._offsets[places]
        for place, some in enumerate(rows):
            lowest, highest = self._spans[place if places is None else places[place]]
            if len(some) and not lowest <= some[0] <= some[-1] <= highest:
                raise sqlite3.DatabaseError(
                    "the full-text index is damaged: it has words of a memory that is not there"
                )
        return np.concatenate(rows) + np.repeat(offsets, [len(some) for some in rows])

    def parts(self, keys: NDArray[np.int64]) -> list[slice]:
        """Return where the keys of each search stand among keys that ascend."""
        ends = keys.searchsorted(self._ends).tolist()
        return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    def each(self, values: NDArray[_Number], keys: NDArray[np.int64]) -> NDArray[_Number]:
        """Return for each key, given that they ascend, what its search has of values (the last axis is the search)."""
        import numpy as np

        if len(self._spans) == 1:
            return values  # One for all.
        return np.repeat(values, [part.stop - part.start for part in self.parts(keys)], axis=-1)

    def rows(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of keys, which ascend."""
        return keys - self.each(self._offsets, keys)

    def around(self, order: Order, keys: NDArray[np.int64], window: int) -> NDArray[np.int64]:
        """Return the keys of what stands around rows, 0 for nothing; see ``Order.around``."""
        import numpy as np

        near = order.around(self.rows(keys), window)
        if len(self._spans) == 1:
            return near
        return np.where(near > 0, near + self.each(self._offsets, keys)[:, None], 0)


def search_together(order: Order, searches: Sequence[TextSearch], window: int) -> list[TextHits]:
    """Do what ``TextIndex.search_together`` promises, for namespaces that exist and questions with terms.

    All searches are worked out in one pass, by keys: numpy takes as long for the rows of twenty namespaces as for those of one.
    """
    window = window if any(one.summary.has_threads for one in searches) else 0
    order.load({one.namespace for one in searches})
    keys = _Keys(order, searches)
    near = keys.of(_centres(searches))
    near = _existing(distinct(near, keys.around(order, near, window)))
    rows = _existing(distinct(near, keys.of([one.also for one in searches])))
    around = keys.around(order, rows, window)
    looked_at = distinct(rows, around)
    held = _held_by_each(keys, searches, looked_at)
    own, reach = (
        of_terms.sum(axis=0) for of_terms in with_surroundings(held, looked_at, rows, around, BEFORE, AFTER)
    )
    covers, numbers = (reach > 0) & among(rows, near), keys.rows(rows)
    return [
        _hits(order, one, numbers[part], covers[part], reach[part], own[part])
        for one, part in zip(searches, keys.parts(rows), strict=True)
    ]


def _hits(
    order: Order,
    search: TextSearch,
    rows: NDArray[np.int64],
    covers: NDArray[np.bool_],
    coverage: NDArray[np.float64],
    own: NDArray[np.float64],
) -> TextHits:
    """Return the best of a search's rows, and those that it wants in any case."""
    keep = search.keep
    if keep.allowed is not None or len(keep.excluded):
        covers = covers & keep.keeps(rows)
    # Of equal ones the newest first.
    best = covers.nonzero()[0][::-1]
    best = best[(-coverage[best]).argsort(kind="stable")][: search.limit]
    scored = distinct(best, rows.searchsorted(search.also))
    found = rows[scored]
    mean_words = search.summary.words / max(1, search.summary.memories)
    return TextHits(found, coverage[scored] / length_factor(order.words(found), mean_words), own[scored])


def _centres(searches: Sequence[TextSearch]) -> list[NDArray[np.int64]]:
    """Return the rows that are looked at with their neighbours, for each search."""
    pools = [one.pool + min(len(one.keep.excluded), _POOLS_GROW * one.pool) for one in searches]
    weighed = _weighed([one.terms for one in searches], pools)
    centres = [_heaviest(*rows, pool) for rows, pool in zip(weighed, pools, strict=True)]
    for place, one in enumerate(searches):
        if one.keep.allowed is not None:
            # What may not be returned lends its terms to what may, and what may can be anywhere among what covers something.
            others = best_rows(one.terms, one.pool, one.keep.allowed)
            centres[place] = distinct(centres[place], others)
    return centres


def _existing(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Leave nothing (0) out of keys that ascend, each once."""
    return keys[1:] if len(keys) and keys[0] == 0 else keys


def _held_by_each(
    keys: _Keys, searches: Sequence[TextSearch], looked_at: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return how much of its search's terms (rows) each key (column) holds, times each term's share of the question."""
    import numpy as np

    most = max(len(one.terms) for one in searches)
    held, weights = np.empty((most, len(looked_at))), np.zeros((most, len(searches)))
    for at in range(most):
        places = [place for place, one in enumerate(searches) if len(one.terms) > at]
        terms = [searches[place].terms[at] for place in places]
        shares = None
        if any(term.shares is not None for term in terms):
            shares = np.concatenate(
                [np.ones(len(term.rows)) if term.shares is None else term.shares for term in terms]
            )
        held[at] = _held(looked_at, Term(keys.of([term.rows for term in terms], places), 0.0, shares))
        weights[at, places] = [term.weight for term in terms]
    held *= keys.each(weights / weights.sum(axis=0), looked_at)
    return held
