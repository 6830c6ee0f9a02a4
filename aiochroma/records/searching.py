"""The searches of one request, from candidates to hits: ranked, read, made diverse, and given their neighbours.

Everything happens where Chroma is called, in the one request that asked for it.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from aiochroma._types import CollectionId, Metadata, MetadataView, Vector, Where
from aiochroma.records.memory_records import MemoryRecords
from aiochroma.records.ranking import Candidates, diversify, rank
from aiochroma.records.record import CREATED_AT, UPDATED_AT, WRITING, has_expired, thread_position
from aiochroma.records.spec import CollectionSearch, Neighbour, SearchHit, SearchResult, SearchSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.backend.chroma_records import Database
    from aiochroma.records.ranking import ScoreParts
    from aiochroma.records.reading import Carried

__all__ = ["Found", "Pool", "Pools", "SearchingRecords", "most_covering", "most_near"]

# The least number of candidates that the vectors and the text each give to the ranking. With 100 and 40 the results changed
# less in our measurement than one conversation differs from another.
_NEAREST = 50
_COVERING = 20
_WIDER = 4
"""The factor on the number of candidates where memories that have expired hide others."""
_DIVERSE = 4
"""The factor on the number of hits that diversity chooses among."""
_MOST_NEIGHBOURS = 2000
"""The most memories that are returned as neighbours of the hits of one search; the best hits get theirs first."""


def most_near(spec: SearchSpec, reach: int = 1) -> int:
    """Return how many candidates the vectors give."""
    return max(_NEAREST, spec.k) * reach


def most_covering(spec: SearchSpec, reach: int = 1) -> int:
    """Return how many candidates the text gives."""
    return max(_COVERING, 2 * spec.k) * reach


@dataclass(slots=True)
class Found:
    """A candidate of a search: a memory, as far as it is known.

    Attributes:
        id: Its id; empty where it is not known yet.
        row: Its row in the index; 0 where it has none.
        distance: Its cosine distance from the query, or None where it is not known.
        text: The share of the query that it and its surroundings cover, 0 to 1.
        own: The share of the query that it covers itself, 0 to 1.
        document: Its text.
        metadata: What is stored with it; None where it was not read yet, or is gone.
        passage: Of a long text the chunk that is nearest to the query, or None.
    """

    id: str = ""
    row: int = 0
    distance: float | None = None
    text: float = 0.0
    own: float = 0.0
    document: str = ""
    metadata: Metadata | None = None
    passage: str | None = None


class Pool:
    """The candidates of one query.

    Args:
        columns: What they are ranked by.
        rows: The row of each in the index, or None where they do not come from the index.
        found: Candidates by position, where more is known than the columns say.

    Attributes:
        columns: What they are ranked by.
    """

    __slots__ = ("_found", "_rows", "columns")

    def __init__(self, columns: Candidates, rows: NDArray[np.int64] | None, found: dict[int, Found]) -> None:
        self.columns: Candidates = columns
        self._rows = rows
        self._found = found

    @classmethod
    def of(cls, found: Iterable[Found]) -> Pool:
        """Make a pool of candidates that were read, ordered by id: so equally good ones rank by id."""
        import numpy as np

        ordered = sorted(found, key=lambda one: one.id)
        values = [(one.text, one.own, np.nan if one.distance is None else one.distance) for one in ordered]
        columns = Candidates(*np.array(values, dtype=np.float64).reshape(-1, 3).T)
        return cls(columns, None, dict(enumerate(ordered)))

    def __len__(self) -> int:
        """Return how many candidates there are."""
        return len(self.columns.text)

    def __getitem__(self, position: int) -> Found:
        """Return a candidate; always the same object for a position."""
        found = self._found.get(position)
        if found is None:
            assert self._rows is not None
            distance = float(self.columns.distance[position])
            found = self._found[position] = Found(
                row=int(self._rows[position]), distance=distance if distance == distance else None
            )
        return found

    def all(self) -> list[Found]:
        """Return all candidates."""
        return [self[position] for position in range(len(self))]


Ranked = list[tuple[Found, "ScoreParts"]]


class Pools(NamedTuple):
    """The candidates of several queries in one collection.

    Attributes:
        pools: The candidates of each query.
        indexed: See ``SearchResult``.
        problem: See ``SearchResult``.
    """

    pools: list[Pool]
    indexed: float = 1.0
    problem: str | None = None


class SearchingRecords(MemoryRecords):
    """Memories that can be searched."""

    def carried_out(self) -> dict[str, Carried]:
        """See ``MemoryRecords``."""
        return {
            **super().carried_out(),
            "search_memories": self.search,
            "similar_memories": self.similar,
        }

    def search(
        self,
        collections: Sequence[CollectionSearch],
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        tenant: str,
        database: str,
        query_tokens: Sequence[Vector | None] | None = None,
    ) -> list[tuple[SearchResult, ...]]:
        """Search namespaces.

        Args:
            collections: Which ones, and how.
            query_embeddings: One vector for each query, or None for a query whose words are enough.
            queries: The texts of the queries.
            tenant: Chroma's tenant.
            database: Chroma's database.
            query_tokens: For each query the states of its tokens, one row of length 1 for each, or None; default: none.

        Returns:
            For each query what it found in each of the namespaces.
        """
        db: Database = {"tenant": tenant, "database": database}
        tokens = query_tokens or [None] * len(queries)
        pools = self._candidates(collections, query_embeddings, queries, tokens, 1, db)
        ranked = [self._ranked(one, of.pools, db) for one, of in zip(collections, pools, strict=True)]
        # Only hits have to be read, those of all namespaces at once.
        self._complete(
            [
                (one.collection_id, [found for hits in of_each for found, _ in hits])
                for one, of_each in zip(collections, ranked, strict=True)
            ],
            db,
        )
        results = []
        for one, of, hits in zip(collections, pools, ranked, strict=True):
            candidates, reach = of, 1
            while not self._is_enough(one, candidates.pools, hits, reach, db):
                reach *= _WIDER
                (candidates,) = self._candidates([one], query_embeddings, queries, tokens, reach, db)
                hits[:] = self._ranked(one, candidates.pools, db)
                self._complete([(one.collection_id, [found for some in hits for found, _ in some])], db)
            results.append(self._results(one, candidates, hits, db))
        return list(zip(*results, strict=True))

    def similar(
        self, collection_id: CollectionId, id: str, spec: SearchSpec, chunks: str, tenant: str, database: str
    ) -> SearchResult:
        """Search by the stored vector of a memory, which is not among its own hits.

        Args:
            collection_id: The namespace's collection.
            id: The id of the memory.
            spec: How to search.
            chunks: The name of the collection that holds the chunks of long texts.
            tenant: Chroma's tenant.
            database: Chroma's database.
        """
        db: Database = {"tenant": tenant, "database": database}
        known = self._known(collection_id, [id], db).get(id)
        vector = self._vectors(collection_id, [id], db).get(id)
        if known is None or has_expired(known["metadata"], time.time()) or vector is None:
            return SearchResult()
        wider = replace(spec, mode="vector", k=spec.k + 1)
        ((found,),) = self.search([CollectionSearch(collection_id, chunks, wider)], [vector], [""], **db)
        return replace(found, hits=tuple(hit for hit in found.hits if hit.id != id)[: spec.k])

    # -- what an index or a server gives --------------------------------------------------------------------------------

    @abstractmethod
    def _candidates(
        self,
        searches: Sequence[CollectionSearch],
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        query_tokens: Sequence[Vector | None],
        reach: int,
        db: Database,
    ) -> list[Pools]:
        """Return for each search the candidates of each query; ``reach`` is a factor on their usual number."""

    @abstractmethod
    def _complete(self, found: Sequence[tuple[CollectionId, Sequence[Found]]], db: Database) -> None:
        """Fill in id, document and metadata of candidates that have no metadata yet, where the memory still exists."""

    @abstractmethod
    def _neighbours(
        self, collection_id: CollectionId, ids: list[str], window: int, db: Database
    ) -> Iterable[tuple[str, int, Neighbour]]:
        """Return the neighbours of memories in their threads: the memory's id, the offset, and the neighbour."""

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
                id: Found(id, distance=distance, document=document, metadata=metadata)
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
                        chunk.memory, document=record["document"], metadata=record["metadata"]
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

    def _ranked(self, search: CollectionSearch, pools: Sequence[Pool], db: Database) -> list[Ranked]:
        """Rank the candidates of each query."""
        if search.spec.half_life is not None:
            self._complete([(search.collection_id, [found for pool in pools for found in pool.all()])], db)
        now = time.time()
        return [_best(pool, range(len(pool)), search.spec, now) for pool in pools]

    def _is_enough(
        self,
        search: CollectionSearch,
        pools: Sequence[Pool],
        ranked: list[Ranked],
        reach: int,
        db: Database,
    ) -> bool:
        """Rank again where a hit is gone or has expired. Return False where too many were: others may have been missed."""
        now, spec, enough = time.time(), search.spec, True
        for number, pool in enumerate(pools):
            if all(_is_valid(found, now) for found, _ in ranked[number]):
                continue
            self._complete([(search.collection_id, pool.all())], db)
            valid = [at for at, found in enumerate(pool.all()) if _is_valid(found, now)]
            ranked[number] = _best(pool, valid, spec, now)
            fetched, left = (
                sum(pool[at].distance is not None for at in group) for group in (range(len(pool)), valid)
            )
            enough = enough and (fetched < most_near(spec, reach) or left >= most_near(spec))
        return enough

    def _results(
        self, search: CollectionSearch, pools: Pools, ranked: list[Ranked], db: Database
    ) -> list[SearchResult]:
        """Return the result of each query, with diversity and neighbours as it asks for them."""
        spec, collection_id = search.spec, search.collection_id
        if spec.diversity > 0:
            ranked = [self._diverse(collection_id, one, spec, db) for one in ranked]
        near = self._near(collection_id, ranked, spec, db) if spec.window else {}
        return [
            SearchResult(
                tuple(_hit(found, parts, near.get(found.id, {})) for found, parts in one),
                pools.indexed,
                pools.problem,
            )
            for one in ranked
        ]

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
        """Return for each hit that stands in a thread its neighbours by offset; expired ones are left out."""
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


def _best(pool: Pool, positions: Sequence[int], spec: SearchSpec, now: float) -> Ranked:
    """Rank some candidates of one query, and return the best."""
    import numpy as np

    columns, age = pool.columns, None
    if len(positions) < len(pool):
        columns = columns.only(positions)
    if spec.half_life is not None:
        age = np.array([_age(pool[at].metadata or {}, now) for at in positions], dtype=np.float64)
    limit = spec.k * (_DIVERSE if spec.diversity > 0 else 1)
    return [(pool[positions[at]], parts) for at, parts in rank(columns, spec, age=age, limit=limit)]


def _age(metadata: MetadataView, now: float) -> float:
    written = metadata.get(UPDATED_AT, metadata.get(CREATED_AT, now))
    return now - written if isinstance(written, (int, float)) else 0.0


def _is_valid(found: Found, now: float) -> bool:
    return found.metadata is not None and not has_expired(found.metadata, now)


def _hit(found: Found, score: ScoreParts, near: Mapping[int, Neighbour]) -> SearchHit:
    offsets = sorted(near) if near else ()
    return SearchHit(
        found.id,
        found.document,
        # A copy: two queries may have found it, and their callers may change what they get.
        dict(found.metadata or {}),
        found.distance,
        score,
        found.passage,
        tuple([near[offset] for offset in offsets if offset < 0]),
        tuple([near[offset] for offset in offsets if offset > 0]),
    )
