"""One search in the index: what passes the filter, the nearest by vectors and by chunks, and what covers the words.

A search first knows by row what passes its filter, has not expired and belongs to its scope. A small set of rows is compared
exactly; of a large one Chroma's index gives the nearest. Every candidate gets its exact distance. Runs on the DB thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aiochroma._types import CollectionId, Vector
from aiochroma.records.ranking import TOKEN_WEIGHT, Candidates, nearness
from aiochroma.records.record import WRITING
from aiochroma.records.searching import Found, Pool, most_covering, most_near
from aiochroma.records.spec import filter_of
from aiochroma.text.vectors import directions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.backend.chroma_records import Database
    from aiochroma.records.reading import Chunks, NearChunk
    from aiochroma.records.spec import CollectionSearch
    from aiochroma.text.index import TextIndex
    from aiochroma.text.rows import RowFilter

__all__ = ["IndexSearch"]

_POOL = 2
"""A factor on the candidates that the text gives: rows that are not looked at lend their neighbours nothing."""
_SPARE = 1.5
"""Of what Chroma finds a filter keeps now more, now less than its share of all."""
_MORE = 4
_SURROUNDED = 30
"""How many candidates, but at least three for each hit, are compared with the tokens of their neighbours. On five LoCoMo
conversations 30 of them found as much as all."""
_SURROUNDED_OF_EACH = 3
_FARTHEST = 2.0
_MOST_FETCHED = 4096
"""Beyond this many records Chroma's search takes longer than comparing every row."""


class IndexSearch:
    """One search over an index that can be used.

    Args:
        index: The index.
        share: Which share of the collection it has, 0 to 1.
        chunks: Finds the chunks of long texts, and reads from Chroma.
        search: The collection, and how to search it.
        query_embeddings: One vector for each query, or None for each where words are enough.
        reach: The factor on the usual number of candidates, at least 1.
        db: The collection's tenant and database.
        most_compared: The most rows that are compared one by one; of more, Chroma's index gives the nearest.
    """

    def __init__(
        self,
        index: TextIndex,
        share: float,
        chunks: Chunks,
        search: CollectionSearch,
        query_embeddings: Sequence[Vector],
        reach: int,
        db: Database,
        most_compared: int,
    ) -> None:
        self._index, self._is_complete = index, share == 1.0
        self._reader, self._chunks, self._db = chunks.reader, chunks, db
        self._collection_id, self._collection = search.collection_id, str(search.collection_id)
        self._holder = chunks.holder(search.chunks, db)
        self._spec, self._where = search.spec, filter_of(search.spec)
        self._limit, self._covering = most_near(self._spec, reach), most_covering(self._spec, reach)
        self._most_compared = most_compared
        self._keep: RowFilter = index.filter(self._collection, self._where, time.time())
        self._embeddings = query_embeddings
        self._queries = None if self._spec.mode == "text" else directions(query_embeddings)
        self._unindexed: list[dict[str, float]] = []
        """What Chroma found and the index does not have yet."""

    def run(self, queries: Sequence[str], query_tokens: Sequence[Vector | None]) -> list[Pool]:
        """Return the candidates of each query."""
        near = self._nearest()
        chunks: Sequence[Mapping[int, NearChunk]] = [{}] * len(queries)
        if self._holder is not None and self._queries is not None:
            chunks = self._near_chunks(self._holder)
        return [
            self._pool(number, query, query_tokens[number], *near[number], chunks[number])
            for number, query in enumerate(queries)
        ]

    def _pool(
        self,
        number: int,
        query: str,
        states: Vector | None,
        rows: NDArray[np.int64],
        distances: NDArray[np.float64],
        chunks: Mapping[int, NearChunk],
    ) -> Pool:
        """Return the candidates of one query, ascending by row: those that are near, by themselves or by a chunk, and others."""
        import numpy as np

        also = np.union1d(rows, np.array(list(chunks), dtype=np.int64)) if chunks else np.sort(rows)
        text, own = np.zeros(len(also)), np.zeros(len(also))
        if self._spec.mode != "vector":
            hits = self._index.search(
                self._collection,
                query,
                self._covering,
                pool=_POOL * self._covering,
                also=also,
                keep=self._keep,
            )
            if len(hits.rows):
                order = np.argsort(hits.rows)
                also, text, own = hits.rows[order], hits.scores[order], hits.own[order]
        distance = np.full(len(also), np.nan)
        distance[np.searchsorted(also, rows)] = distances
        missing = np.flatnonzero(np.isnan(distance))
        if self._queries is not None and len(missing):
            query_vector = self._queries[number : number + 1]
            distance[missing] = self._index.distances(self._collection, query_vector, also[missing])[0]
        tokens = None
        if states is not None and self._queries is not None and len(also):
            near = nearness(np.nan_to_num(distance, nan=_FARTHEST), self._spec.embedder_max_distance)
            most = max(_SURROUNDED, _SURROUNDED_OF_EACH * self._spec.k)
            others = (text + near) / TOKEN_WEIGHT
            tokens = self._index.token_coverage(self._collection, states, also, others, most)
        found = {}
        for row, chunk in chunks.items():
            at = int(np.searchsorted(also, row))
            distance[at] = np.fmin(distance[at], chunk.distance)
            found[at] = Found(row=row, distance=float(distance[at]), passage=chunk.text)
        unindexed = self._unindexed[number] if self._unindexed else {}
        if unindexed:
            zeros = np.zeros(len(unindexed))
            text, own = np.concatenate([text, zeros]), np.concatenate([own, zeros])
            tokens = None if tokens is None else np.concatenate([tokens, zeros + np.nan])
            for at, id in enumerate(unindexed, len(also)):
                found[at] = Found(id, distance=unindexed[id])
            distance = np.concatenate([distance, list(unindexed.values())])
        return Pool(Candidates(text, own, distance, tokens), also, found)

    def _nearest(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return rows and distances of the nearest for each query."""
        import numpy as np

        if self._queries is None:
            return [(np.empty(0, dtype=np.int64), np.empty(0))] * len(self._embeddings)
        total = self._index.count(self._collection)
        usable = total - len(self._keep.excluded) if self._keep.allowed is None else len(self._keep.allowed)
        exact = None
        if self._is_complete and usable <= self._most_compared:
            exact = self._index.nearest(self._collection, self._queries, self._limit, self._keep)
        return self._nearest_by_chroma(self._queries, total, usable) if exact is None else exact

    def _nearest_by_chroma(
        self, queries: NDArray[np.float32], total: int, usable: int
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Ask Chroma's index, for more where a filter leaves some out; compare every row where that is not enough."""
        import numpy as np

        fetched = self._limit
        if self._is_complete and usable < total:
            fetched = min(_MOST_FETCHED, int(self._limit * total / max(1, usable) * _SPARE))
        while True:
            # An index that is not complete cannot tell what passes: Chroma filters then.
            where = None if self._is_complete else self._where
            near = self._reader.nearest(self._collection_id, self._embeddings, fetched, self._db, where)
            rows_of = self._index.rows(self._collection, {id: None for one in near for id in one})
            found: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
            for one in near:
                rows = np.array([rows_of[id] for id in one if id in rows_of], dtype=np.int64)
                distances = np.array([one[id] for id in one if id in rows_of])
                kept = self._keep.keeps(rows)
                found.append((rows[kept][: self._limit], distances[kept][: self._limit]))
            if not self._is_complete:
                self._unindexed = [{id: one[id] for id in one if id not in rows_of} for one in near]
            enough = fetched >= total or all(len(rows) >= min(self._limit, usable) for rows, _ in found)
            if enough or not self._is_complete:
                return found
            if fetched >= _MOST_FETCHED:
                exact = self._index.nearest(self._collection, queries, self._limit, self._keep)
                return found if exact is None else exact
            fetched *= _MORE

    def _near_chunks(self, chunk_collection: CollectionId) -> list[dict[int, NearChunk]]:
        """Return for each query the memories whose chunks are nearest, by row, with the nearest chunk of each."""
        import numpy as np

        fetched = self._limit
        while True:
            near = self._chunks.nearest(chunk_collection, self._embeddings, fetched, self._db)
            rows_of = self._index.rows(
                self._collection, {chunk.memory: None for one in near for chunk in one}
            )
            rows = np.unique(np.array(list(rows_of.values()), dtype=np.int64))
            read = self._index.read(rows[self._keep.keeps(rows)].tolist())
            found: list[dict[int, NearChunk]] = []
            for one in near:
                by_row: dict[int, NearChunk] = {}
                for chunk in one:
                    row = rows_of.get(chunk.memory, 0)
                    if row in read and read[row][2].get(WRITING) == chunk.writing:
                        by_row.setdefault(row, chunk)
                found.append(by_row)
            if fetched >= _MOST_FETCHED or all(
                len(by_row) >= self._limit or len(one) < fetched
                for by_row, one in zip(found, near, strict=True)
            ):
                return found
            fetched *= _MORE
