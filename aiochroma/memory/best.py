"""Which candidates of a namespace a question wants: the best by the ranking, as many as it may give."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiochroma.memory.items import CREATED_AT, UPDATED_AT
from aiochroma.memory.ranking import Candidate, Mode, rank
from aiochroma.records.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiochroma.records.record import Record

__all__ = ["Best"]


@dataclass(frozen=True)
class Best(Selection):
    """The best candidates; each is given its ``score``, a ``ScoreParts``.

    Attributes:
        limit: The most of them.
        mode: See ``rank``, as for what follows.
        vector_weight: What the vector counts beside the text.
        weight: The weight of the namespace.
        threshold: The greatest cosine distance, or None.
        embedder_threshold: The embedder's own.
        half_life: Seconds, or None. With one the candidates' metadata must be there.
    """

    limit: int
    mode: Mode
    vector_weight: float
    weight: float
    threshold: float | None
    embedder_threshold: float
    half_life: float | None

    def select(self, candidates: Iterable[Record]) -> list[Record]:
        """See ``Selection``."""
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
            embedder_threshold=self.embedder_threshold,
            mode=self.mode,
            vector_weight=self.vector_weight,
            weight=self.weight,
            half_life=self.half_life,
            threshold=self.threshold,
            limit=self.limit,
        )
        return [{**records[candidate.id], "score": parts} for candidate, parts in ranking]


def _age(metadata: Mapping[str, Any], now: float) -> float:
    return float(now - metadata.get(UPDATED_AT, metadata.get(CREATED_AT, now)))
