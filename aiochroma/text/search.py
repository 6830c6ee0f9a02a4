"""The search of the full-text index: from terms to scored memories, over an open connection."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from aiochroma.text.coverage import (
    AFTER,
    BEFORE,
    Surroundings,
    best_rows,
    length_factor,
    windowed_coverage,
)
from aiochroma.text.memories import neighbour_columns
from aiochroma.text.rows import read_rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.text.coverage import Term
    from aiochroma.text.rows import RowFilter
    from aiochroma.text.terms import Summary

__all__ = ["TextHit", "search_namespace"]


_POOLS_GROW = 4
"""So many times as many rows are looked at at most where some may not be returned."""


class TextHit(NamedTuple):
    """A memory that covers something of the question, by itself or by what stands near it.

    Attributes:
        row: The memory's row.
        score: How much of the question the memory and its surroundings cover, 0 to 1; comparable between namespaces.
        own: How much of the question's weight is in the memory itself, 0 to 1; 0 when only its neighbours match.
        rank: Its rank among what covers most of the question, from 0; None for one that was asked for and is not among it.
    """

    row: int
    score: float
    own: float
    rank: int | None


def search_namespace(
    connection: sqlite3.Connection,
    summary: Summary,
    terms: Sequence[Term],
    limit: int,
    *,
    pool: int,
    also: NDArray[np.int64],
    keep: RowFilter,
    window: int,
) -> list[TextHit]:
    """Do what ``TextIndex.search`` promises, for a namespace that exists and at least one term."""
    import numpy as np

    window = window if summary.has_threads else 0
    wanted = np.unique(also)
    centres = best_rows(terms, pool, None)
    if keep.allowed is not None:
        # What may not be returned lends its terms to what may, and what may can be anywhere among what covers something.
        centres = np.union1d(centres, best_rows(terms, pool, keep.allowed))
    elif len(keep.excluded):
        centres = best_rows(terms, pool + min(len(keep.excluded), _POOLS_GROW * pool), None)
    looked_at = _look_at(connection, terms, centres, wanted, window)
    covering = looked_at.covering(keep)[:limit]
    scored = np.union1d(covering, wanted)
    own, coverage = looked_at.scores(connection, terms, scored)
    words = _words(connection, scored)
    ranks = {row: rank for rank, row in enumerate(covering.tolist())}
    mean_words = summary.words / max(1, summary.memories)
    hits = [(coverage[row] / length_factor(words[row], mean_words), row) for row in words]
    hits.sort(reverse=True)
    return [TextHit(row, score, own[row], ranks.get(row)) for score, row in hits]


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

    def covering(self, keep: RowFilter) -> NDArray[np.int64]:
        """Return the rows that cover something, best first; of equal ones the newest first."""
        import numpy as np

        chosen = (self.coverage > 0) & ~self.wanted_only & keep.keeps(self.rows)
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


def _words(connection: sqlite3.Connection, rows: NDArray[np.int64]) -> dict[int, int]:
    """Return how many words the rows have that are there."""
    source = "json_each(?) AS wanted CROSS JOIN memories AS m ON m.number = wanted.value"
    return dict(read_rows(connection, "m.number, m.words", source, (json.dumps(rows.tolist()),)))


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
