"""Which candidates of a namespace a question wants: the best by the ranking, as many as it may give."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiochroma.memory.items import CREATED_AT, UPDATED_AT
from aiochroma.memory.ranking import Candidate, Mode, rank
from aiochroma.records.top_k import TopK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiochroma.records.record import Record

__all__ = ["RankedTopK"]


@dataclass(frozen=True)
class RankedTopK(TopK):
    """The best candidates; each is given its ``score``, a ``ScoreParts``.

    Attributes:
        limit: The most of them.
        mode: See ``rank``, as for what follows.
        vector_weight: What the vector counts beside the text.
        weight: The weight of the namespace.
        max_distance: The greatest cosine distance, or None.
        embedder_max_distance: The embedder's own.
        half_life: Seconds, or None. With one the candidates' metadata must be there.
    """

    limit: int
    mode: Mode
    vector_weight: float
    weight: float
    max_distance: float | None
    embedder_max_distance: float
    half_life: float | None

    def select(self, candidates: Iterable[Record]) -> list[Record]:
        """See ``TopK``."""
        records = {record["id"]: record for record in candidates}
        now = time.time()
        ranking = rank(
            [
                Candidate(
                    id,
                    record["text"],
                    record["own"],
                    record["distance"],
                    0.0 if self.half_life is None else _age(record["metadata"], now),
                )
                for id, record in records.items()
            ],
            embedder_max_distance=self.embedder_max_distance,
            mode=self.mode,
            vector_weight=self.vector_weight,
            weight=self.weight,
            half_life=self.half_life,
            max_distance=self.max_distance,
            limit=self.limit,
        )
        return [{**records[candidate.id], "score": parts} for candidate, parts in ranking]


def _age(metadata: Mapping[str, Any], now: float) -> float:
    return float(now - metadata.get(UPDATED_AT, metadata.get(CREATED_AT, now)))
