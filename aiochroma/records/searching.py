"""One search of one namespace, from candidates to hits: ranked, read, made diverse, and given their neighbours.

Everything happens where Chroma is called, in the one request that asked for it.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from aiochroma._types import CollectionId, Metadata, MetadataView, Vector, Where
from aiochroma.records.memory_records import Carried, MemoryRecords
from aiochroma.records.ranking import Candidate, diversify, rank
from aiochroma.records.record import CREATED_AT, UPDATED_AT, WRITING, has_expired, thread_position
from aiochroma.records.spec import Neighbour, SearchHit, SearchResult, SearchSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiochroma.backend.chroma_records import Database
    from aiochroma.records.ranking import ScoreParts

__all__ = ["Candidates", "Found", "SearchingRecords", "most_covering", "most_near"]

# What the vectors and the text each give to the ranking, at least. More, of the nearest 100 and of the covering 40, changed
# less in our measurement than one conversation differs from another.
_NEAREST = 50
_COVERING = 20
_WIDER = 4
"""The factor on the number of candidates where memories that have expired hide others."""
_DIVERSE = 4
"""The factor on the number of hits that diversity chooses among."""
_MOST_NEIGHBOURS = 2000
"""The most memories that come along as neighbours of the hits of one search; the best hits have theirs."""


def most_near(spec: SearchSpec, reach: int = 1) -> int:
    """Return how many candidates the vectors give."""
    return max(_NEAREST, spec.k) * reach


def most_covering(spec: SearchSpec, reach: int = 1) -> int:
    """Return how many candidates the text gives."""
    return max(_COVERING, 2 * spec.k) * reach


@dataclass(slots=True)
class Found:
    """A memory that a search came up with.

    Attributes:
        key: Tells it from the others; of equally good ones the smaller key comes first.
        id: Its id; empty where it is not known yet.
        distance: Its cosine distance from the query, or None where it is not known.
        text: How much of the query it and its surroundings cover, 0 to 1.
        own: How much of the query it covers itself, 0 to 1.
        document: Its text.
        metadata: What is stored with it; None where it was not read yet, or is gone.
        passage: Of a long text the chunk that is nearest to the query, or None.
    """

    key: int | str
    id: str = ""
    distance: float | None = None
    text: float = 0.0
    own: float = 0.0
    document: str = ""
    metadata: Metadata | None = None
    passage: str | None = None


Ranked = list[tuple[Found, "ScoreParts"]]


class Candidates(NamedTuple):
    """What may be ranked for each of several queries.

    Attributes:
        found: For each query the candidates.
        indexed: See ``SearchResult``.
        problem: See ``SearchResult``.
    """

    found: list[list[Found]]
    indexed: float = 1.0
    problem: str | None = None


class SearchingRecords(MemoryRecords):
    """Memories that can be searched."""

    def operations(self) -> dict[str, Carried]:
        """See ``MemoryRecords``."""
        return {
            **super().operations(),
            "search_memories": self.search,
            "similar_memories": self.similar,
        }

    def search(
        self,
        collection_id: CollectionId,
        query_embeddings: Sequence[Vector],
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
        db: Database = {"tenant": tenant, "database": database}
        reach = 1
        while True:
            candidates = self._candidates(collection_id, query_embeddings, queries, spec, reach, chunks, db)
            ranked, enough = self._ranked(collection_id, candidates.found, spec, reach, db)
            if enough:
                break
            reach *= _WIDER
        if spec.diversity > 0:
            ranked = [self._diverse(collection_id, one, spec, db) for one in ranked]
        near = self._near(collection_id, ranked, spec, db) if spec.window else {}
        return [
            SearchResult(
                tuple(_hit(found, score, near.get(found.id, {})) for found, score in one),
                candidates.indexed,
                candidates.problem,
            )
            for one in ranked
        ]

    def similar(
        self, collection_id: CollectionId, id: str, spec: SearchSpec, chunks: str, tenant: str, database: str
    ) -> SearchResult:
        """Search by the stored vector of a memory, which is not among its own hits; arguments as :meth:`search`."""
        db: Database = {"tenant": tenant, "database": database}
        known = self._known(collection_id, [id], db).get(id)
        vector = self._vectors(collection_id, [id], db).get(id)
        if known is None or has_expired(known["metadata"], time.time()) or vector is None:
            return SearchResult()
        wider = replace(spec, mode="vector", k=spec.k + 1)
        found = self.search(collection_id, [vector], [""], wider, chunks, **db)[0]
        return replace(found, hits=tuple(hit for hit in found.hits if hit.id != id)[: spec.k])

    # -- what an index or a server knows -------------------------------------------------------------------------------

    @abstractmethod
    def _candidates(
        self,
        collection_id: CollectionId,
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        spec: SearchSpec,
        reach: int,
        chunks: str,
        db: Database,
    ) -> Candidates:
        """Return what may be ranked; ``reach`` is the factor on the usual number."""

    @abstractmethod
    def _complete(self, collection_id: CollectionId, found: Sequence[Found], db: Database) -> None:
        """Give id, document and metadata to what has no metadata yet, and is there."""

    @abstractmethod
    def _neighbours(
        self, collection_id: CollectionId, ids: list[str], window: int, db: Database
    ) -> Iterable[tuple[str, int, Neighbour]]:
        """Return what stands near memories in their threads: the memory's id, the offset, and the neighbour."""

    def _vectors(self, collection_id: CollectionId, ids: list[str], db: Database) -> dict[str, Vector]:
        """Return the stored vectors of memories that are there."""
        return self._reader.vectors(collection_id, ids, db)

    def _found_by_chroma(
        self,
        collection_id: CollectionId,
        vectors: Sequence[Vector],
        n_results: int,
        where: Where | None,
        chunks: str,
        db: Database,
        where_document: Where | None = None,
    ) -> list[dict[str, Found]]:
        """Return for each vector the nearest memories by id, whether they are near as a whole or by a chunk."""
        if vectors[0] is None:
            return [{} for _ in vectors]
        found = [
            {
                id: Found(id, id, distance, 0.0, 0.0, document, metadata)
                for id, distance, document, metadata in rows
            }
            for rows in self._reader.query(collection_id, vectors, n_results, where, where_document, db)
        ]
        holder = self._chunks.holder(chunks, db) if where_document is None else None
        if holder is None:
            return found
        near = self._chunks.nearest(holder, vectors, n_results, db)
        missing = {
            chunk.memory: None
            for known, some in zip(found, near, strict=True)
            for chunk in some
            if chunk.memory not in known
        }
        records = self._reader.records(collection_id, list(missing), where, db)
        for known, some in zip(found, near, strict=True):
            for chunk in some:
                if chunk.memory not in known and chunk.memory in records:
                    record = records[chunk.memory]
                    known[chunk.memory] = Found(
                        chunk.memory, chunk.memory, document=record["document"], metadata=record["metadata"]
                    )
                one = known.get(chunk.memory)
                if one is None or (one.metadata or {}).get(WRITING) != chunk.writing:
                    continue
                if one.passage is None:
                    one.passage = chunk.text
                    one.distance = (
                        chunk.distance if one.distance is None else min(one.distance, chunk.distance)
                    )
        return found

    # -- from candidates to hits ---------------------------------------------------------------------------------------

    def _ranked(
        self,
        collection_id: CollectionId,
        candidates: Sequence[list[Found]],
        spec: SearchSpec,
        reach: int,
        db: Database,
    ) -> tuple[list[Ranked], bool]:
        """Rank candidates; tell whether that is enough, or others may have been hidden behind what is gone or expired."""
        now = time.time()
        if spec.half_life is not None:
            self._complete(collection_id, [found for some in candidates for found in some], db)
        ranked = [_best(some, spec, now) for some in candidates]
        # Only what is returned has to be read.
        self._complete(collection_id, [found for one in ranked for found, _ in one], db)
        enough = True
        for number, some in enumerate(candidates):
            if all(_is_valid(found, now) for found, _ in ranked[number]):
                continue
            self._complete(collection_id, some, db)
            valid = [found for found in some if _is_valid(found, now)]
            ranked[number] = _best(valid, spec, now)
            fetched, left = (sum(found.distance is not None for found in group) for group in (some, valid))
            enough = enough and (fetched < most_near(spec, reach) or left >= most_near(spec))
        return ranked, enough

    def _diverse(self, collection_id: CollectionId, ranked: Ranked, spec: SearchSpec, db: Database) -> Ranked:
        """Choose the hits that add most to those before them."""
        import numpy as np

        vectors = self._vectors(collection_id, [found.id for found, _ in ranked], db)
        ranked = [entry for entry in ranked if entry[0].id in vectors]
        if not ranked:
            return []
        matrix = np.asarray([vectors[found.id] for found, _ in ranked], dtype=np.float32)
        lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
        matrix /= np.where(lengths > 0, lengths, 1.0)
        chosen = diversify([score.score for _, score in ranked], matrix, spec.k, spec.diversity)
        return [ranked[index] for index in chosen]

    def _near(
        self, collection_id: CollectionId, ranked: Sequence[Ranked], spec: SearchSpec, db: Database
    ) -> dict[str, dict[int, Neighbour]]:
        """Return for each hit that stands in a thread its neighbours by offset; what has expired is left out."""
        now = time.time()
        most = max(1, _MOST_NEIGHBOURS // (2 * spec.window))
        ids = {
            found.id: None
            for one in ranked
            for found, _ in one[:most]
            if thread_position(found.metadata or {})[0] is not None
        }
        near: dict[str, dict[int, Neighbour]] = {}
        for id, offset, neighbour in (
            self._neighbours(collection_id, list(ids), spec.window, db) if ids else ()
        ):
            if not has_expired(neighbour.metadata, now):
                near.setdefault(id, {})[offset] = neighbour
        return near


def _best(some: Sequence[Found], spec: SearchSpec, now: float) -> Ranked:
    """Rank the candidates of one query, and return the best."""
    by_key = {found.key: found for found in some}
    candidates = [
        Candidate(
            found.key,
            found.text,
            found.own,
            found.distance,
            0.0 if spec.half_life is None else _age(found.metadata or {}, now),
        )
        for found in by_key.values()
    ]
    limit = spec.k * (_DIVERSE if spec.diversity > 0 else 1)
    return [(by_key[candidate.id], score) for candidate, score in rank(candidates, spec, limit=limit)]


def _age(metadata: MetadataView, now: float) -> float:
    written = metadata.get(UPDATED_AT, metadata.get(CREATED_AT, now))
    return now - written if isinstance(written, (int, float)) else 0.0


def _is_valid(found: Found, now: float) -> bool:
    return found.metadata is not None and not has_expired(found.metadata, now)


def _hit(found: Found, score: ScoreParts, near: Mapping[int, Neighbour]) -> SearchHit:
    offsets = sorted(near)
    return SearchHit(
        found.id,
        found.document,
        # Two queries may have found it, and their callers may change what they get.
        dict(found.metadata or {}),
        found.distance,
        score,
        found.passage,
        tuple(near[offset] for offset in offsets if offset < 0),
        tuple(near[offset] for offset in offsets if offset > 0),
    )
