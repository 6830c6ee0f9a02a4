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
from aiochroma.text.rows import TextQuery

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.backend.chroma_records import Database
    from aiochroma.records.reading import Chunks, NearChunk
    from aiochroma.records.spec import CollectionSearch
    from aiochroma.text.index import TextHits, TextIndex
    from aiochroma.text.rows import RowFilter
    from aiochroma.text.vectors import Compared

__all__ = ["IndexSearch", "pools_of"]

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
        query_vectors: The same as rows of length 1, or None.
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
        query_vectors: NDArray[np.float32] | None,
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
        self._queries = None if self._spec.mode == "text" else query_vectors
        self._compared: Compared | None = None
        self._unindexed: list[dict[str, float]] = []
        """What Chroma found and the index does not have yet."""

    def look_near(self) -> None:
        """Find the nearest of each query, by their vectors and by those of their chunks."""
        import numpy as np

        self._near = self._nearest()
        self._near_by_chunk: Sequence[Mapping[int, NearChunk]] = [{}] * len(self._near)
        if self._holder is not None and self._queries is not None:
            self._near_by_chunk = self._near_chunks(self._holder)
        self._also = [
            np.union1d(rows, np.array(list(chunks), dtype=np.int64)) if chunks else np.sort(rows)
            for (rows, _), chunks in zip(self._near, self._near_by_chunk, strict=True)
        ]

    def by_words(self, queries: Sequence[str]) -> list[TextQuery]:
        """Return what is to be asked of the text for each query, once :meth:`look_near` has been called."""
        if self._spec.mode == "vector":
            return []
        return [
            TextQuery(self._collection, query, self._covering, _POOL * self._covering, also, self._keep)
            for query, also in zip(queries, self._also, strict=True)
        ]

    def pools(self, hits: Sequence[TextHits], query_tokens: Sequence[Vector | None]) -> list[Pool]:
        """Return the candidates of each query, given what :meth:`by_words` has found."""
        found: Sequence[TextHits | None] = hits or [None] * len(self._also)
        return [
            self._pool(number, one, query_tokens[number], self._near_by_chunk[number])
            for number, one in enumerate(found)
        ]

    def _pool(
        self, number: int, hits: TextHits | None, states: Vector | None, chunks: Mapping[int, NearChunk]
    ) -> Pool:
        """Return the candidates of one query, ascending by row: those that are near, by themselves or by a chunk, and others."""
        import numpy as np

        also = self._also[number]
        if hits is not None and len(hits.rows):
            also, text, own = hits
        else:
            text, own = np.zeros(len(also)), np.zeros(len(also))
        distance = self._distances(number, also)
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

    def _distances(self, number: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the distances of candidates, which ascend, from a query; NaN where they are not known."""
        import numpy as np

        near, distances = self._near[number]
        if len(near) == len(rows):
            return distances[near.argsort()]  # All of them are among the nearest.
        if self._compared is not None:
            return self._compared.of(number, rows)
        distance = np.full(len(rows), np.nan)
        distance[np.searchsorted(rows, near)] = distances
        missing = np.flatnonzero(np.isnan(distance))
        if self._queries is not None and len(missing):
            query_vector = self._queries[number : number + 1]
            distance[missing] = self._index.distances(self._collection, query_vector, rows[missing])[0]
        return distance

    def _nearest(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return rows and distances of the nearest for each query."""
        import numpy as np

        if self._queries is None:
            return [(np.empty(0, dtype=np.int64), np.empty(0))] * len(self._embeddings)
        total = self._index.count(self._collection)
        usable = total - len(self._keep.excluded) if self._keep.allowed is None else len(self._keep.allowed)
        exact = None
        if self._is_complete and usable <= self._most_compared:
            exact = self._nearest_of_all(self._queries)
        return self._nearest_by_chroma(self._queries, total, usable) if exact is None else exact

    def _nearest_of_all(
        self, queries: NDArray[np.float32]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]] | None:
        """Compare every row that may be returned; None where the vectors are not as long as the queries."""
        self._compared = self._index.compared(self._collection, queries, self._keep)
        return None if self._compared is None else self._compared.nearest(self._limit)

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
                exact = self._nearest_of_all(queries)
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


def pools_of(
    index: TextIndex,
    searches: Sequence[IndexSearch],
    queries: Sequence[str],
    query_tokens: Sequence[Vector | None],
) -> list[list[Pool]]:
    """Return for each search the candidates of each query; the text of all is searched together."""
    asked: list[TextQuery] = []
    ends = []
    for one in searches:
        one.look_near()
        asked += one.by_words(queries)
        ends.append(len(asked))
    hits = index.search_together(asked)
    return [
        one.pools(hits[begin:end], query_tokens)
        for one, begin, end in zip(searches, [0, *ends[:-1]], ends, strict=True)
    ]
