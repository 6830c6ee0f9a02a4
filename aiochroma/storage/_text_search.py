"""The search of the full-text index: from terms to scored memories, over an open connection."""

from __future__ import annotations

import json
from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from aiochroma.storage._text_analysis import match_expression
from aiochroma.storage._text_coverage import (
    DECAY,
    Surroundings,
    best_rows,
    length_factor,
    term_weights,
    windowed_coverage,
)
from aiochroma.storage._text_rows import read_rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Postings", "Summary", "TextHit", "neighbour_columns", "search_namespace", "summary_of"]


_MOST_ROWS_KEPT = 1_000_000
"""Eight bytes each."""


class TextHit(NamedTuple):
    """A memory that covers something of the question, by itself or by what stands near it.

    Attributes:
        id: The memory's id.
        score: How much of the question the memory and its surroundings cover, 0 to 1; comparable between
            namespaces.
        own: How much of the question's weight is in the memory itself, 0 to 1; 0 when only its neighbours
            match.
    """

    id: str
    score: float
    own: float


class Summary(NamedTuple):
    """What a search has to know of a namespace as a whole.

    Attributes:
        memories: How many there are.
        words: How many words they have together.
        has_threads: Whether any of them belongs to one.
    """

    memories: int
    words: int
    has_threads: bool


class _Version(NamedTuple):
    """What a namespace was like when rows were looked up.

    Attributes:
        replaced: How often rows of it were taken out or changed.
        grown: How often rows were added behind all others.
    """

    replaced: int = 0
    grown: int = 0


class Postings:
    """Which rows hold a term; those looked up last are kept, and completed when their namespace has grown.

    Questions that are asked together share most of their terms, and reading the rows of a common one is the larger part of a
    search (1 ms for one that 10,000 texts hold).

    Args:
        connection: The index's own.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._kept: OrderedDict[tuple[int, str], tuple[_Version, NDArray[np.int64]]] = OrderedDict()
        self._versions: dict[int, _Version] = {}
        self._rows = 0

    def rows(self, namespace: int, term: str) -> NDArray[np.int64]:
        """Return the rows that hold a term, ascending; not to be changed."""
        import numpy as np

        key, now = (namespace, term), self._versions.get(namespace, _Version())
        version, kept = self._kept.pop(key, (None, np.empty(0, dtype=np.int64)))
        self._rows -= len(kept)
        if version is None or version.replaced != now.replaced:
            kept = _rows_with(self._connection, namespace, term, behind=0)
        elif version != now:
            # SQLite gives a new row a number above all others, so what was added stands behind what is known.
            more = _rows_with(self._connection, namespace, term, behind=int(kept[-1]) if len(kept) else 0)
            kept = np.concatenate([kept, more]) if len(more) else kept
        self._kept[key] = (now, kept)
        self._rows += len(kept)
        while self._rows > _MOST_ROWS_KEPT and len(self._kept) > 1:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._rows -= len(dropped)
        return kept

    def replaced(self, namespace: int) -> None:
        """Note that rows of a namespace were taken out or hold other terms now."""
        version = self._versions.get(namespace, _Version())
        self._versions[namespace] = version._replace(replaced=version.replaced + 1)

    def grown(self, namespace: int) -> None:
        """Note that rows were added to a namespace."""
        version = self._versions.get(namespace, _Version())
        self._versions[namespace] = version._replace(grown=version.grown + 1)


def search_namespace(
    connection: sqlite3.Connection,
    postings: Postings,
    namespace: int,
    summary: Summary,
    terms: Sequence[str],
    limit: int,
    *,
    also: Sequence[str],
    ids_allowed: Collection[str] | None,
    window: int,
) -> list[TextHit]:
    """Do what ``TextIndex.search`` promises, for a namespace that exists and at least one term."""
    import numpy as np

    rows = [postings.rows(namespace, term) for term in terms]
    weights = term_weights(summary.memories, [len(found) for found in rows])
    allowed = None
    if ids_allowed is not None:
        allowed = np.array(sorted(_found(connection, namespace, ids_allowed)), dtype=np.int64)
    described = _found(connection, namespace, also)
    wanted = np.array(sorted(described), dtype=np.int64)
    if allowed is not None:
        wanted = np.intersect1d(wanted, allowed)
    centres = np.union1d(best_rows(rows, weights, limit, allowed), wanted)
    surroundings = _surroundings(connection, centres, window if summary.has_threads else 0)
    candidates = np.union1d(centres, surroundings.neighbours[surroundings.neighbours >= 0])
    own, coverage = windowed_coverage(candidates, rows, weights, surroundings, DECAY)
    covering = coverage > 0 if allowed is None else (coverage > 0) & np.isin(candidates, allowed)
    # The division by length changes little, so the texts' lengths are looked up for twice the limit only.
    best = np.flatnonzero(covering)
    best = best[np.argsort(-coverage[best], kind="stable")[: 2 * limit]]
    best = np.union1d(best, np.searchsorted(candidates, wanted))
    described |= _described(connection, [row for row in candidates[best].tolist() if row not in described])
    mean_words = summary.words / max(1, summary.memories)
    hits = [
        (covered / length_factor(described[row][1], mean_words), row, by_itself)
        for covered, row, by_itself in zip(
            coverage[best].tolist(), candidates[best].tolist(), own[best].tolist(), strict=True
        )
    ]
    hits.sort(reverse=True)
    asked_for = set(wanted.tolist())
    kept = hits[:limit] + [hit for hit in hits[limit:] if hit[1] in asked_for]
    return [TextHit(described[row][0], score, by_itself) for score, row, by_itself in kept]


def _rows_with(
    connection: sqlite3.Connection, namespace: int, term: str, *, behind: int
) -> NDArray[np.int64]:
    """Return the rows behind a row that hold a term, ascending."""
    import numpy as np

    # One string instead of thousands of tuples: a quarter of the time. FTS5 yields rows in ascending order.
    joined = connection.execute(
        f"SELECT group_concat(rowid) FROM terms_{namespace} WHERE terms_{namespace} MATCH ? AND rowid > ?",  # noqa: S608
        (match_expression([term]), behind),
    ).fetchone()[0]
    return np.fromstring(joined, dtype=np.int64, sep=",") if joined else np.empty(0, dtype=np.int64)


def summary_of(connection: sqlite3.Connection, namespace: int) -> Summary:
    """Sum up a namespace that exists."""
    found = connection.execute(
        "SELECT memories, words, EXISTS (SELECT 1 FROM memories AS m WHERE m.namespace = ?1 AND m.thread IS NOT NULL)"
        " FROM namespaces WHERE number = ?1",
        (namespace,),
    )
    memories, words, has_threads = found.fetchone()
    return Summary(memories, words, bool(has_threads))


def _found(
    connection: sqlite3.Connection, namespace: int, ids: Collection[str]
) -> dict[int, tuple[str, int]]:
    """Return id and number of words of the rows of ids; ids that are not there have none."""
    source = "json_each(?) AS wanted CROSS JOIN memories AS m ON m.namespace = ? AND m.id = wanted.value"
    found = read_rows(connection, "m.number, m.id, m.words", source, (json.dumps(list(ids)), namespace))
    return {number: (id, words) for number, id, words in found}


def _described(connection: sqlite3.Connection, rows: Sequence[int]) -> dict[int, tuple[str, int]]:
    """Return id and number of words of rows."""
    source = "json_each(?) AS wanted CROSS JOIN memories AS m ON m.number = wanted.value"
    found = read_rows(connection, "m.number, m.id, m.words", source, (json.dumps(rows),))
    return {number: (id, words) for number, id, words in found}


def _surroundings(connection: sqlite3.Connection, centres: NDArray[np.int64], window: int) -> Surroundings:
    import numpy as np

    offsets = (*range(-window, 0), *range(1, window + 1))
    if window == 0 or len(centres) == 0:
        return Surroundings(centres, np.empty((len(centres), 0), dtype=np.int64), ())
    found = read_rows(
        connection,
        f"m.number, {neighbour_columns('number', window)}",
        "json_each(?) AS wanted CROSS JOIN memories AS m ON m.number = wanted.value",
        (json.dumps(centres.tolist()),),
    )
    found.sort()
    return Surroundings(centres, np.array(found, dtype=np.int64)[:, 1:], offsets)


@lru_cache(maxsize=32)
def neighbour_columns(column: str, window: int) -> str:
    """Write the queries for what stands up to ``window`` places before and behind the row ``m``."""
    missing = "-1" if column == "number" else "NULL"
    subqueries = []
    for offset in (*range(-window, 0), *range(1, window + 1)):
        comparison, order = (">", "ASC") if offset > 0 else ("<", "DESC")
        subqueries.append(
            f"COALESCE((SELECT n.{column} FROM memories AS n WHERE n.namespace = m.namespace"  # noqa: S608
            f" AND n.thread = m.thread AND (n.position, n.number) {comparison} (m.position, m.number)"
            f" ORDER BY n.position {order}, n.number {order} LIMIT 1 OFFSET {abs(offset) - 1}), {missing})"
        )
    return ", ".join(subqueries)
