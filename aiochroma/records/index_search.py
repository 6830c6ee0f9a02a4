"""One search over the index: which rows may be returned, which are nearest, which cover the query, and how far each is.

What passes a filter, has not expired and belongs to a scope is known by row before anything is compared. A small set of rows
is searched exactly; of a large one Chroma's index gives the nearest. Every candidate gets its exact distance.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aiochroma._types import CollectionId, Vector
from aiochroma.records.filters import filter_of
from aiochroma.records.record import WRITING
from aiochroma.records.searching import Found, most_covering, most_near

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.backend.chroma_records import Database
    from aiochroma.records.chunks import NearChunk, Parts
    from aiochroma.records.reading import Reader
    from aiochroma.records.spec import SearchSpec
    from aiochroma.text.index import TextIndex
    from aiochroma.text.rows import RowFilter

__all__ = ["IndexSearch"]

_POOL = 2
"""So many times as many as the text gives are looked at: what is not looked at lends its neighbours nothing."""
_SPARE = 1.5
"""Of what Chroma finds a filter keeps now more, now less than its share of all."""
_MORE = 4
_MOST_FETCHED = 4096
"""Beyond this many records Chroma's search takes longer than comparing every row."""


class IndexSearch:
    """One search over an index that can be used.

    Args:
        index: The index.
        share: Which share of the collection it has.
        reader: Reads from Chroma.
        parts: Finds the chunks of long texts.
        collection_id: The collection.
        query_embeddings: One vector for each query, or None for each where words are enough.
        spec: How to search.
        reach: How many times as many candidates as usual to come up with.
        place: The collection's tenant and database.
        most_compared: Of more rows Chroma's index gives the nearest.
    """

    def __init__(
        self,
        index: TextIndex,
        share: float,
        reader: Reader,
        parts: Parts,
        collection_id: CollectionId,
        query_embeddings: Sequence[Vector],
        spec: SearchSpec,
        reach: int,
        place: Database,
        most_compared: int,
    ) -> None:
        import numpy as np

        self._index = index
        self._reader, self._parts = reader, parts
        self._collection_id, self._collection = collection_id, str(collection_id)
        self._embeddings = query_embeddings
        self._spec = spec
        self._limit, self._covering = most_near(spec, reach), most_covering(spec, reach)
        self._place = place
        self._most_compared = most_compared
        self._is_complete = share == 1.0
        self._where = filter_of(spec)
        self._keep: RowFilter = index.filter(self._collection, self._where, time.time())
        self._queries: NDArray[np.float32] | None = None
        self._unindexed: list[dict[str, float]] = []
        """What Chroma found and the index does not have yet."""
        if spec.mode != "text" and query_embeddings[0] is not None:
            matrix: NDArray[np.float32] = np.asarray(query_embeddings, dtype=np.float32)
            lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
            self._queries = (matrix / np.where(lengths > 0, lengths, 1.0)).astype(np.float32, copy=False)

    def run(self, queries: Sequence[str], chunk_collection: CollectionId) -> list[list[Found]]:
        """Return the candidates of each query."""
        import numpy as np

        near = self._nearest()
        chunks = (
            self._near_chunks(chunk_collection)
            if chunk_collection is not None and self._queries is not None
            else [{} for _ in queries]
        )
        found = []
        for number, query in enumerate(queries):
            rows, distances = near[number]
            known = dict(zip(rows.tolist(), distances.tolist(), strict=True))
            also = (
                np.union1d(rows, np.array(list(chunks[number]), dtype=np.int64)) if chunks[number] else rows
            )
            by_row = {row: Found(row, distance=known.get(row)) for row in also.tolist()}
            if self._spec.mode != "vector":
                for hit in self._index.search(
                    self._collection,
                    query,
                    self._covering,
                    pool=_POOL * self._covering,
                    also=also,
                    keep=self._keep,
                ):
                    one = by_row.get(hit.row)
                    if one is None:
                        one = by_row[hit.row] = Found(hit.row)
                    one.text, one.own = hit.score, hit.own
            self._add_distances(number, by_row)
            for row, chunk in chunks[number].items():
                one = by_row[row]
                one.passage = chunk.text
                one.distance = chunk.distance if one.distance is None else min(chunk.distance, one.distance)
            unindexed = self._unindexed[number] if self._unindexed else {}
            found.append(
                [*by_row.values(), *(Found(-at, id, unindexed[id]) for at, id in enumerate(unindexed, 1))]
            )
        return found

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
            near = self._reader.nearest(self._collection_id, self._embeddings, fetched, self._place, where)
            rows_of = self._index.rows(self._collection, {id: None for one in near for id in one})
            found: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
            for one in near:
                rows = np.array([rows_of[id] for id in one if id in rows_of], dtype=np.int64)
                distances = np.array([one[id] for id in one if id in rows_of])
                kept = self._keep.keeps(rows)
                found.append((rows[kept][: self._limit], distances[kept][: self._limit]))
            if not self._is_complete:
                self._unindexed = [{id: one[id] for id in one if id not in rows_of} for one in near]
                return found
            if all(len(rows) >= min(self._limit, usable) for rows, _ in found) or fetched >= total:
                return found
            if fetched >= _MOST_FETCHED:
                exact = self._index.nearest(self._collection, queries, self._limit, self._keep)
                return found if exact is None else exact
            fetched *= _MORE

    def _add_distances(self, number: int, by_row: Mapping[int, Found]) -> None:
        """Give every candidate its exact distance."""
        import numpy as np

        missing = [row for row, one in by_row.items() if one.distance is None]
        if self._queries is None or not missing:
            return
        distances = self._index.distances(
            self._collection, self._queries[number : number + 1], np.array(missing, dtype=np.int64)
        )
        if distances is not None:
            for row, distance in zip(missing, distances[0].tolist(), strict=True):
                if distance == distance:
                    by_row[row].distance = distance

    def _near_chunks(self, chunk_collection: CollectionId) -> list[dict[int, NearChunk]]:
        """Return for each query the memories whose chunks are nearest, by row, with the nearest chunk of each."""
        import numpy as np

        fetched = self._limit
        while True:
            near = self._parts.nearest(chunk_collection, self._embeddings, fetched, self._place)
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
