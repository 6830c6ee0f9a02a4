"""The search of the full-text index: from terms to scored memories, over an open connection."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from aiochroma.text.coverage import (
    AFTER,
    BEFORE,
    Surroundings,
    best_rows,
    length_factor,
    windowed_coverage,
)
from aiochroma.text.rows import read_rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.text.coverage import Term
    from aiochroma.text.terms import Summary

__all__ = ["POOLS_GROW", "TextHit", "neighbour_columns", "search_namespace"]


POOLS_GROW = 4
"""So many times as many rows are looked at where a filter leaves too few."""


class TextHit(NamedTuple):
    """A memory that covers something of the question, by itself or by what stands near it.

    Attributes:
        id: The memory's id.
        score: How much of the question the memory and its surroundings cover, 0 to 1; comparable between
            namespaces.
        own: How much of the question's weight is in the memory itself, 0 to 1; 0 when only its neighbours
            match.
        place: Its place among what covers most of the question, from 0; None for one that is there only because it
            was asked for.
    """

    id: str
    score: float
    own: float
    place: int | None


def search_namespace(
    connection: sqlite3.Connection,
    namespace: int,
    summary: Summary,
    terms: Sequence[Term],
    limit: int,
    *,
    pool: int,
    also: Sequence[str],
    ids_allowed: Collection[str] | None,
    window: int,
) -> list[TextHit]:
    """Do what ``TextIndex.search`` promises, for a namespace that exists and at least one term.

    Which rows are found, and how good they are, does not depend on what else is asked for: so a filter has the same
    result whether it is known here or applied to what is returned.
    """
    import numpy as np

    window = window if summary.has_threads else 0
    described = _found(connection, namespace, also)
    allowed = None
    if ids_allowed is not None:
        allowed = np.array(sorted(_found(connection, namespace, ids_allowed)), dtype=np.int64)
        described = {row: described[row] for row in np.intersect1d(sorted(described), allowed).tolist()}
    wanted = np.array(sorted(described), dtype=np.int64)
    for size in (pool, pool * POOLS_GROW):
        centres = best_rows(terms, size, None)
        looked_at = _look_at(connection, terms, centres, wanted, window)
        covering = looked_at.covering(allowed)
        if allowed is None or len(covering) >= limit or len(centres) < size:
            break
    else:
        looked_at = _look_at(connection, terms, best_rows(terms, pool, allowed), wanted, window)
        covering = looked_at.covering(allowed)
    covering = covering[:limit]
    own, coverage = looked_at.scores(connection, terms, np.union1d(covering, wanted))
    described |= _described(connection, [row for row in covering.tolist() if row not in described])
    places = {row: place for place, row in enumerate(covering.tolist())}
    mean_words = summary.words / max(1, summary.memories)
    hits = [
        (coverage[row] / length_factor(words, mean_words), row, id) for row, (id, words) in described.items()
    ]
    hits.sort(reverse=True)
    return [TextHit(id, score, own[row], places.get(row)) for score, row, id in hits]


class _LookedAt(NamedTuple):
    """The rows that hold most of a question, with what stands near them and what was asked for.

    Attributes:
        rows: All of them, ascending.
        own: Of each how much of the question it covers itself.
        coverage: And together with the centres near it.
        wanted_only: Of each whether it is there only because it was asked for.
        surroundings: Of the rows that hold most.
        window: How far what stands near lends its terms.
    """

    rows: NDArray[np.int64]
    own: NDArray[np.float64]
    coverage: NDArray[np.float64]
    wanted_only: NDArray[np.bool_]
    surroundings: Surroundings
    window: int

    def covering(self, allowed: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return the rows that cover something, best first; of equal ones the newest first."""
        import numpy as np

        chosen = (self.coverage > 0) & ~self.wanted_only
        if allowed is not None:
            chosen &= np.isin(self.rows, allowed)
        rows, coverage = self.rows[chosen][::-1], self.coverage[chosen][::-1]
        return rows[np.argsort(-coverage, kind="stable")]

    def scores(
        self, connection: sqlite3.Connection, terms: Sequence[Term], rows: NDArray[np.int64]
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Return ``own`` and ``coverage`` of some of the rows, by the whole window of each."""
        import numpy as np

        known, own, coverage = self.rows, self.own, self.coverage
        if self.window:
            surroundings = self._surroundings_of(connection, rows)
            known = np.union1d(rows, surroundings.neighbours[surroundings.neighbours >= 0])
            own, coverage = windowed_coverage(known, terms, surroundings, BEFORE, AFTER)
        at = np.searchsorted(known, rows)
        numbers = rows.tolist()
        return (
            dict(zip(numbers, own[at].tolist(), strict=True)),
            dict(zip(numbers, coverage[at].tolist(), strict=True)),
        )

    def _surroundings_of(self, connection: sqlite3.Connection, rows: NDArray[np.int64]) -> Surroundings:
        import numpy as np

        known = self.surroundings
        still = np.isin(known.centres, rows)
        more = _surroundings(connection, np.setdiff1d(rows, known.centres), self.window)
        return Surroundings(
            np.concatenate([known.centres[still], more.centres]),
            np.concatenate([known.neighbours[still], more.neighbours]),
            known.offsets,
        )


def _look_at(
    connection: sqlite3.Connection,
    terms: Sequence[Term],
    centres: NDArray[np.int64],
    wanted: NDArray[np.int64],
    window: int,
) -> _LookedAt:
    import numpy as np

    surroundings = _surroundings(connection, centres, window)
    near = np.union1d(centres, surroundings.neighbours[surroundings.neighbours >= 0])
    # With a window they are scored anew, when it is known which are wanted; see `scores`.
    rows = near if window else np.union1d(near, wanted)
    own, coverage = windowed_coverage(rows, terms, surroundings, BEFORE, AFTER)
    return _LookedAt(rows, own, coverage, ~np.isin(rows, near), surroundings, window)


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
        return Surroundings(centres, np.empty((len(centres), len(offsets)), dtype=np.int64), offsets)
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
