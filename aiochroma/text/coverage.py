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
from typing import TYPE_CHECKING, NamedTuple

from aiochroma.text.rows import among, distinct

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.text.namespaces import Summary
    from aiochroma.text.rows import Order, RowFilter

__all__ = [
    "AFTER",
    "BEFORE",
    "WINDOW",
    "Term",
    "TextHits",
    "best_rows",
    "length_factor",
    "search_namespace",
    "term_weight",
    "windowed_coverage",
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
    import numpy as np

    joined = np.concatenate([term.rows for term in terms])
    given = np.repeat([term.weight for term in terms], [len(term.rows) for term in terms])
    if any(term.shares is not None for term in terms):
        given *= np.concatenate(
            [np.ones(len(term.rows)) if term.shares is None else term.shares for term in terms]
        )
    lowest = min((int(term.rows[0]) for term in terms if len(term.rows)), default=0)
    highest = max((int(term.rows[-1]) for term in terms if len(term.rows)), default=0)
    if len(joined) * _SPARSE > highest - lowest:
        # Adding up instead of sorting: a tenth of the time for terms that thousands of rows hold.
        sums = np.bincount(joined - lowest, weights=given)
        # Every row of a term has at least its weight: with enough rows the best ones have no less.
        enough = [term.weight for term in terms if term.shares is None and len(term.rows) >= limit]
        least = max(enough, default=0.0) if allowed is None else 0.0
        held = np.flatnonzero(sums >= least if least > 0.0 else sums)
        sums = sums[held]
        held += lowest
    else:
        held, position = np.unique(joined, return_inverse=True)
        sums = np.bincount(position, weights=given, minlength=len(held))
    if allowed is not None:
        keep = np.isin(held, allowed, assume_unique=True)
        held, sums = held[keep], sums[keep]
    if len(held) > limit:
        # Of equal ones the newest rows, which stand last.
        least = np.partition(sums, -limit)[-limit]
        better = np.flatnonzero(sums > least)
        equal = np.flatnonzero(sums == least)[len(better) - limit :]
        held = held[np.union1d(better, equal)]
    return held


def windowed_coverage(
    rows: NDArray[np.int64],
    around: NDArray[np.int64],
    terms: Sequence[Term],
    before: float,
    after: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute ``own`` and ``coverage`` (before the division by ``length``).

    Args:
        rows: The rows to score, ascending, each once.
        around: For each row a line of what stands before and behind it, as ``Order.around`` has it; 0 for nothing.
        terms: The terms of the question, at least one.
        before: The factor for each step of distance to a term that stands before; 0 to 1.
        after: The factor for each step of distance to a term that stands after; 0 to 1.

    Returns:
        ``own`` and ``coverage`` of each row, 0 to 1.
    """
    import numpy as np

    looked_at = distinct(rows, around)
    held = np.stack([_held(looked_at, term) for term in terms])
    own, reach = with_surroundings(held, looked_at, rows, around, before, after)
    weights = np.array([term.weight for term in terms])
    shares = weights / weights.sum()
    return shares @ own, shares @ reach


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

    own = held[:, np.searchsorted(looked_at, rows)]
    reach = own
    window = around.shape[1] // 2
    lent = [before**distance for distance in range(window, 0, -1)]
    lent += [after**distance for distance in range(1, window + 1)]
    for factor, near in zip(lent, np.searchsorted(looked_at, around.T), strict=True):
        reach = np.maximum(reach, factor * held[:, near])
    return own, reach


def _held(candidates: NDArray[np.int64], term: Term) -> NDArray[np.float64]:
    """Return how much of a term each candidate holds; both ascend, so this is several times as fast as ``numpy.isin``."""
    import numpy as np

    if len(term.rows) == 0:
        return np.zeros(len(candidates))
    at = np.minimum(np.searchsorted(term.rows, candidates), len(term.rows) - 1)
    among = term.rows[at] == candidates
    shares: NDArray[np.float64] = among.astype(np.float64)
    return shares if term.shares is None else shares * term.shares[at]


class TextHits(NamedTuple):
    """Memories that cover something of the question, by themselves or by what stands near them; in columns, best first.

    Attributes:
        rows: The row of each memory.
        scores: The share of the question that the memory and its surroundings cover, 0 to 1; comparable between namespaces.
        own: The share of the question's weight that is in the memory itself, 0 to 1; 0 when only its neighbours match.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    own: NDArray[np.float64]


def search_namespace(
    order: Order,
    namespace: int,
    summary: Summary,
    terms: Sequence[Term],
    limit: int,
    *,
    pool: int,
    also: NDArray[np.int64],
    keep: RowFilter,
    window: int,
) -> TextHits:
    """Do what ``TextIndex.search`` promises, for a namespace that exists and at least one term."""
    import numpy as np

    centres = best_rows(terms, pool, None)
    if keep.allowed is not None:
        # What may not be returned lends its terms to what may, and what may can be anywhere among what covers something.
        centres = np.union1d(centres, best_rows(terms, pool, keep.allowed))
    elif len(keep.excluded):
        centres = best_rows(terms, pool + min(len(keep.excluded), _POOLS_GROW * pool), None)
    window = window if summary.has_threads else 0
    near = distinct(centres, order.around(namespace, centres, window))
    rows = distinct(near, also)
    # Nothing has the number 0.
    rows, near = rows[rows > 0], near[near > 0]
    own, coverage = windowed_coverage(rows, order.around(namespace, rows, window), terms, BEFORE, AFTER)
    covers = np.flatnonzero((coverage > 0) & among(rows, near) & keep.keeps(rows))[::-1]
    # Of equal ones the newest first.
    covering = covers[np.argsort(-coverage[covers], kind="stable")][:limit]
    scored = distinct(covering, np.searchsorted(rows, also))
    mean_words = summary.words / max(1, summary.memories)
    scores = coverage[scored] / length_factor(order.words(namespace, rows[scored]), mean_words)
    best = np.argsort(scores, kind="stable")[::-1]
    return TextHits(rows[scored[best]], scores[best], own[scored[best]])
