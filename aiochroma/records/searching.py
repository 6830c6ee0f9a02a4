"""One search of one namespace, from candidates to hits: ranked, read, made diverse, and given their neighbours.

Everything happens where Chroma is called, in the one request that asked for it.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from aiochroma.records.memory_records import MemoryRecords
from aiochroma.records.ranking import Candidate, diversify, rank
from aiochroma.records.record import CREATED_AT, UPDATED_AT, has_expired, thread_position
from aiochroma.records.spec import Neighbour, SearchHit, SearchResult, SearchSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aiochroma.records.ranking import ScoreParts
    from aiochroma.records.record import Place, Record

__all__ = ["Candidates", "SearchingRecords", "most_covering", "most_near"]

# What the vectors and the text each give to the ranking, at least. More, of the nearest 100 and of the covering 40, changed
# less in our measurement than one conversation differs from another.
_NEAREST = 50
_COVERING = 20
_WIDER = 4
"""Where memories that have expired take the place of others, so many times as many are fetched."""
_DIVERSE = 4
"""Diversity chooses among so many times as many as are returned."""


def most_near(spec: SearchSpec, reach: int = 1) -> int:
    """Return how many candidates the vectors give."""
    return max(_NEAREST, spec.k) * reach


def most_covering(spec: SearchSpec, reach: int = 1) -> int:
    """Return how many candidates the text gives."""
    return max(_COVERING, 2 * spec.k) * reach


class Candidates(NamedTuple):
    """What may be ranked for each of several queries.

    Attributes:
        found: For each query the candidates; those that were not read yet have None as metadata.
        indexed: See ``SearchResult``.
        problem: See ``SearchResult``.
    """

    found: list[list[Record]]
    indexed: float = 1.0
    problem: str | None = None


class SearchingRecords(MemoryRecords):
    """Memories that can be searched."""

    def operations(self) -> dict[str, Callable[..., Any]]:
        """See ``MemoryRecords``."""
        return {
            **super().operations(),
            "search_memories": self.search,
            "similar_memories": self.similar,
        }

    def search(
        self,
        collection_id: Any,
        query_embeddings: Sequence[Any],
        queries: Sequence[str],
        spec: SearchSpec,
        chunks: str,
        tenant: str,
        database: str,
    ) -> list[SearchResult]:
        """Search one namespace.

        Args:
            collection_id: The namespace's collection.
            query_embeddings: One vector for each query, or None for a query whose words are enough.
            queries: The texts of the queries.
            spec: How to search.
            chunks: The name of the collection that holds the chunks of long texts.
            tenant: Chroma's tenant.
            database: Chroma's database.

        Returns:
            For each query what it found.
        """
        place = {"tenant": tenant, "database": database}
        reach = 1
        while True:
            candidates = self._candidates(
                collection_id, query_embeddings, queries, spec, reach, chunks, place
            )
            ranked, enough = self._ranked(collection_id, candidates.found, spec, reach, place)
            if enough:
                break
            reach *= _WIDER
        if spec.diversity > 0:
            ranked = [self._diverse(collection_id, one, spec, place) for one in ranked]
        near = self._near(collection_id, ranked, spec, place) if spec.window else {}
        return [
            SearchResult(
                tuple(_hit(record, parts, near.get(record["id"], {})) for record, parts in one),
                candidates.indexed,
                candidates.problem,
            )
            for one in ranked
        ]

    def similar(
        self, collection_id: Any, id: str, spec: SearchSpec, chunks: str, tenant: str, database: str
    ) -> SearchResult:
        """Search by the stored vector of a memory, which is not among its own hits; arguments as :meth:`search`."""
        place = {"tenant": tenant, "database": database}
        known = self._known(collection_id, [id], place).get(id)
        vector = self._vectors(collection_id, [id], place).get(id)
        if known is None or has_expired(known["metadata"], time.time()) or vector is None:
            return SearchResult()
        wider = replace(spec, mode="vector", k=spec.k + 1)
        found = self.search(collection_id, [vector], [""], wider, chunks, **place)[0]
        return replace(found, hits=tuple(hit for hit in found.hits if hit.id != id)[: spec.k])

    # -- what an index or a server knows -------------------------------------------------------------------------------

    @abstractmethod
    def _candidates(
        self,
        collection_id: Any,
        query_embeddings: Sequence[Any],
        queries: Sequence[str],
        spec: SearchSpec,
        reach: int,
        chunks: str,
        place: Place,
    ) -> Candidates:
        """Return what may be ranked; ``reach`` says how many times as many as usual."""

    @abstractmethod
    def _complete(self, collection_id: Any, found: Sequence[Sequence[Record]], place: Place) -> None:
        """Give document and metadata to what has no metadata yet, and is there."""

    @abstractmethod
    def _neighbours(
        self, collection_id: Any, ids: list[str], window: int, place: Place
    ) -> list[tuple[str, int, Record]]:
        """Return what stands near memories in their threads: the memory's id, the offset, and the neighbour."""

    def _vectors(self, collection_id: Any, ids: list[str], place: Place) -> dict[str, Any]:
        """Return the stored vectors of memories that are there."""
        return self._reader.vectors(collection_id, ids, place)

    # -- from candidates to hits ---------------------------------------------------------------------------------------

    def _ranked(
        self, collection_id: Any, found: Sequence[list[Record]], spec: SearchSpec, reach: int, place: Place
    ) -> tuple[list[list[tuple[Record, ScoreParts]]], bool]:
        """Rank candidates; tell whether that is enough, or others may have been hidden behind what is gone or expired."""
        now = time.time()
        if spec.half_life is not None:
            self._complete(collection_id, found, place)
        ranked = [_best(records, spec, now) for records in found]
        # Only what is returned has to be read.
        self._complete(collection_id, [[record for record, _ in one] for one in ranked], place)
        enough = True
        for number, records in enumerate(found):
            if all(_is_valid(record, now) for record, _ in ranked[number]):
                continue
            self._complete(collection_id, [records], place)
            valid = [record for record in records if _is_valid(record, now)]
            ranked[number] = _best(valid, spec, now)
            fetched, left = (
                sum(record["distance"] is not None for record in some) for some in (records, valid)
            )
            enough = enough and (fetched < most_near(spec, reach) or left >= most_near(spec))
        return ranked, enough

    def _diverse(
        self, collection_id: Any, ranked: list[tuple[Record, ScoreParts]], spec: SearchSpec, place: Place
    ) -> list[tuple[Record, ScoreParts]]:
        """Choose the hits that add most to those before them."""
        import numpy as np

        vectors = self._vectors(collection_id, [record["id"] for record, _ in ranked], place)
        ranked = [entry for entry in ranked if entry[0]["id"] in vectors]
        if not ranked:
            return []
        matrix = np.asarray([vectors[record["id"]] for record, _ in ranked], dtype=np.float32)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        chosen = diversify([parts.score for _, parts in ranked], matrix, spec.k, spec.diversity)
        return [ranked[index] for index in chosen]

    def _near(
        self,
        collection_id: Any,
        ranked: Sequence[Sequence[tuple[Record, ScoreParts]]],
        spec: SearchSpec,
        place: Place,
    ) -> dict[str, dict[int, Neighbour]]:
        """Return for each hit that stands in a thread its neighbours by offset; what has expired is left out."""
        now = time.time()
        ids = {
            record["id"]: None
            for one in ranked
            for record, _ in one
            if thread_position(record["metadata"])[0] is not None
        }
        near: dict[str, dict[int, Neighbour]] = {}
        for id, offset, record in (
            self._neighbours(collection_id, list(ids), spec.window, place) if ids else ()
        ):
            if not has_expired(record["metadata"], now):
                neighbour = Neighbour(record["id"], record["document"], record["metadata"])
                near.setdefault(id, {})[offset] = neighbour
        return near


def _best(records: Sequence[Record], spec: SearchSpec, now: float) -> list[tuple[Record, ScoreParts]]:
    """Rank the candidates of one query, and return as many as are needed."""
    by_id = {record["id"]: record for record in records}
    candidates = [
        Candidate(
            id,
            record["text"],
            record["own"],
            record["distance"],
            0.0 if spec.half_life is None else _age(record["metadata"] or {}, now),
        )
        for id, record in by_id.items()
    ]
    limit = spec.k * (_DIVERSE if spec.diversity > 0 else 1)
    return [(by_id[candidate.id], parts) for candidate, parts in rank(candidates, spec, limit=limit)]


def _age(metadata: Mapping[str, Any], now: float) -> float:
    written = metadata.get(UPDATED_AT, metadata.get(CREATED_AT, now))
    return now - written if isinstance(written, (int, float)) else 0.0


def _is_valid(record: Record, now: float) -> bool:
    return record["metadata"] is not None and not has_expired(record["metadata"], now)


def _hit(record: Record, parts: ScoreParts, near: Mapping[int, Neighbour]) -> SearchHit:
    offsets = sorted(near)
    return SearchHit(
        record["id"],
        record["document"],
        # Two queries may have found it, and their callers may change what they get.
        dict(record["metadata"]),
        record["distance"],
        parts,
        record.get("passage"),
        tuple(near[offset] for offset in offsets if offset < 0),
        tuple(near[offset] for offset in offsets if offset > 0),
    )
