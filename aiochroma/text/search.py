"""The search of the full-text index: from terms to scored memories."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aiochroma.text.coverage import (
    AFTER,
    BEFORE,
    best_rows,
    length_factor,
    windowed_coverage,
)
from aiochroma.text.rows import among, distinct

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.text.coverage import Term
    from aiochroma.text.order import Order
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
) -> list[TextHit]:
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
    ordered = scored[best]
    ranks = {place: rank for rank, place in enumerate(covering.tolist())}
    columns = rows[ordered].tolist(), scores[best].tolist(), own[ordered].tolist(), ordered.tolist()
    return [
        TextHit(row, score, mine, ranks.get(place)) for row, score, mine, place in zip(*columns, strict=True)
    ]
