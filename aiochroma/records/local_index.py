"""A memory's operations on a directory: with the index that is kept beside Chroma.

A search first knows by row what passes its filter, has not expired and belongs to its scope. A small set of rows is compared
exactly; of a large one Chroma's index gives the nearest. Every candidate gets its exact distance.

Everything here runs on the DB thread.
"""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING, TypeVar

from aiochroma._types import CollectionId, MetadataView, Vector, Where
from aiochroma.records.history import HISTORY_FILE, ChangeLog
from aiochroma.records.index_keeper import IndexKeeper, indexed_row
from aiochroma.records.record import WRITING, Record, record_of
from aiochroma.records.searching import Candidates, Found, SearchingRecords, most_covering, most_near
from aiochroma.records.spec import Neighbour, filter_of
from aiochroma.text.memories import ListPage
from aiochroma.text.vectors import EXACT_ROWS, directions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from chromadb.api import ServerAPI
    from numpy.typing import NDArray

    from aiochroma.backend.chroma_records import Database
    from aiochroma.core.request import Request
    from aiochroma.records.memory_records import Carried
    from aiochroma.records.reading import Chunks, NearChunk
    from aiochroma.records.spec import ListSpec, SearchSpec
    from aiochroma.text.index import TextIndex
    from aiochroma.text.rows import RowFilter

__all__ = ["LocalIndex"]

T = TypeVar("T")

_POOL = 2
"""A factor on the candidates that the text gives: rows that are not looked at lend their neighbours nothing."""
_SPARE = 1.5
"""Of what Chroma finds a filter keeps now more, now less than its share of all."""
_MORE = 4
_MOST_FETCHED = 4096
"""Beyond this many records Chroma's search takes longer than comparing every row."""


class LocalIndex(SearchingRecords):
    """The operations of a memory on a directory, or in this process's memory.

    Args:
        api: Chroma.
        file: The index's own file, or None to keep it in memory.
        positions: See ``IndexKeeper``.
    """

    def __init__(self, api: ServerAPI, file: Path | None, positions: Mapping[str, int]) -> None:
        super().__init__(api)
        self._file = file
        self.keeper: IndexKeeper = IndexKeeper(api, file, positions)
        self._history: ChangeLog | None = None

    def operations(self) -> dict[str, Carried]:
        """See ``MemoryRecords``."""
        return {**super().operations(), "index_memories": self.index}

    def index(self, collection_id: CollectionId, tenant: str, database: str) -> float:
        """Copy one slice of a collection into the index, if any is missing; return which share the index has."""
        return self.keeper.copy(str(collection_id), {"tenant": tenant, "database": database})

    def count(self, collection_id: CollectionId, tenant: str, database: str) -> int:
        """Return how many records a collection has; the index knows it without counting."""
        index, collection = self.keeper.current(str(collection_id)), str(collection_id)
        return super().count(collection_id, tenant, database) if index is None else index.count(collection)

    def ids(self, collection_id: CollectionId, where: Where | None, tenant: str, database: str) -> list[str]:
        """See ``MemoryRecords``; a filter is answered by the index."""
        index, collection = self.keeper.current(str(collection_id)), str(collection_id)
        found = self._ask(index, lambda index: index.ids_of(index.matching(collection, where).tolist()))
        return super().ids(collection_id, where, tenant, database) if found is None else list(found.values())

    def page(
        self, collection_id: CollectionId, spec: ListSpec, tenant: str, database: str
    ) -> Sequence[Record]:
        """See ``MemoryRecords``; the index finds the page without looking at what stands before it."""
        collection, now = str(collection_id), time.time()

        def look_up(index: TextIndex) -> list[Record] | None:
            rows = index.page(
                collection,
                index.filter(collection, filter_of(spec), now),
                now,
                ListPage(spec.thread is not None, spec.after, spec.limit, spec.newest_first),
            )
            read = index.read(rows)
            return [record_of(*read[row]) for row in rows] if len(read) == len(rows) else None

        index = self._complete_index(collection, {"tenant": tenant, "database": database})
        found = self._ask(index, look_up)
        return super().page(collection_id, spec, tenant, database) if found is None else found

    def after_write(self, request: Request) -> None:
        """Bring the index up to date after a write that Chroma has carried out."""
        self.keeper.after_write(request)

    def work(self) -> bool:
        """Copy a slice of what the index lacks; return whether there is more."""
        return self.keeper.work()

    def distrust(self, collection: str) -> None:
        """Compare a collection with Chroma before it is searched: a write to it failed that may have happened."""
        self.keeper.distrust(collection)

    def forget_collection(self, collection: str) -> None:
        """Drop a collection that is gone."""
        self.collections_changed()
        self.keeper.forget(collection)

    def forget_everything(self) -> None:
        """Drop all collections."""
        self.collections_changed()
        self.keeper.forget_everything()

    def close(self, positions: Mapping[str, int]) -> None:
        """Note how far the index goes, and close what is open; see ``IndexKeeper.close``."""
        if self._history is not None:
            self._history.close()
            self._history = None
        self.keeper.close(positions)

    def _log(self) -> ChangeLog:
        if self._history is None:
            self._history = ChangeLog(
                ":memory:" if self._file is None else self._file.with_name(HISTORY_FILE)
            )
        return self._history

    def _complete_index(self, collection: str, db: Database) -> TextIndex | None:
        """Return the index if it has all of a collection."""
        index, share, _ = self.keeper.usable(collection, db)
        return index if share == 1.0 else None

    def _ask(self, index: TextIndex | None, look_up: Callable[[TextIndex], T]) -> T | None:
        """Return what is found in the index; None without one, or where it fails."""
        try:
            return None if index is None else look_up(index)
        except sqlite3.DatabaseError as error:
            self.keeper.failed(error)
        return None

    def _known(self, collection_id: CollectionId, ids: list[str], db: Database) -> dict[str, Record]:
        collection = str(collection_id)

        def look_up(index: TextIndex) -> dict[str, Record] | None:
            rows = index.rows(collection, ids)
            read = index.read(rows.values()) if rows else {}
            known = {id: record_of(id, *read[row][1:]) for id, row in rows.items() if row in read}
            return known if len(known) == len(rows) else None

        found = self._ask(self._complete_index(collection, db), look_up)
        return super()._known(collection_id, ids, db) if found is None else found

    def _last_position(self, collection_id: CollectionId, thread: str, db: Database) -> float | None:
        collection = str(collection_id)
        return self._ask(
            self._complete_index(collection, db), lambda index: index.last_position(collection, thread)
        )

    def _written(
        self,
        collection: str,
        ids: Sequence[str],
        documents: Sequence[str],
        metadatas: Sequence[MetadataView],
        known: Mapping[str, Record],
        vectors: Sequence[Vector] | None,
    ) -> None:
        rows = []
        for at, (id, document, metadata) in enumerate(zip(ids, documents, metadatas, strict=True)):
            old = known[id]["metadata"] if id in known else {}
            merged = {name: value for name, value in {**old, **metadata}.items() if value is not None}
            rows.append(indexed_row(id, document, merged, None if vectors is None else vectors[at]))
        self.keeper.written(collection, rows)

    def _deleted(self, collection: str, ids: Sequence[str]) -> None:
        self.keeper.deleted(collection, ids)

    # -- candidates ----------------------------------------------------------------------------------------------------

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
        problem = None
        for _ in range(2):
            index, share, problem = self.keeper.usable(str(collection_id), db)
            if index is None:
                break
            try:
                search = IndexSearch(
                    index,
                    share,
                    self._chunks,
                    collection_id,
                    query_embeddings,
                    spec,
                    reach,
                    db,
                    self._most_compared(query_embeddings),
                )
                return Candidates(search.run(queries, self._chunks.holder(chunks, db)), share)
            except sqlite3.DatabaseError as error:
                self.keeper.failed(error)
        found = self._found_by_chroma(
            collection_id, query_embeddings, most_near(spec, reach), filter_of(spec), chunks, db
        )
        return Candidates([list(one.values()) for one in found], 1.0, problem)

    def _most_compared(self, query_embeddings: Sequence[Vector]) -> int:  # noqa: ARG002 - a server's vectors are far away
        """Return how many vectors are compared one by one before Chroma's index is asked."""
        return EXACT_ROWS

    def _complete(self, collection_id: CollectionId, found: Sequence[Found], db: Database) -> None:
        missing = [one for one in found if one.metadata is None]
        rows = {one.key: one for one in missing if isinstance(one.key, int) and one.key > 0}

        def look_up(index: TextIndex) -> None:
            read = index.read(rows)
            ids = index.ids_of(rows.keys() - read.keys()) if len(read) < len(rows) else {}
            for row, one in rows.items():
                if row in read:
                    one.id, one.document, one.metadata = read[row]
                one.id = one.id or ids.get(row, "")

        if rows:
            self._ask(self.keeper.usable(str(collection_id), db)[0], look_up)
        unread = [one for one in missing if one.metadata is None and one.id]
        records = self._reader.records(collection_id, list(dict.fromkeys(one.id for one in unread)), None, db)
        for one in unread:
            if one.id in records:
                one.document, one.metadata = records[one.id]["document"], records[one.id]["metadata"]

    def _neighbours(
        self, collection_id: CollectionId, ids: list[str], window: int, db: Database
    ) -> Iterable[tuple[str, int, Neighbour]]:
        collection = str(collection_id)

        def look_up(index: TextIndex) -> list[tuple[str, int, Neighbour]]:
            rows = {row: id for id, row in index.rows(collection, ids).items()}
            near = index.neighbours(collection, rows, window)
            read = index.read({row for _, row, _ in near})
            return [
                (rows[row], offset, Neighbour(*read[other])) for row, other, offset in near if other in read
            ]

        return self._ask(self.keeper.usable(collection, db)[0], look_up) or []

    def _vectors(self, collection_id: CollectionId, ids: list[str], db: Database) -> dict[str, Vector]:
        import numpy as np

        collection = str(collection_id)

        def look_up(index: TextIndex) -> dict[str, Vector]:
            ids_by_row = {row: id for id, row in index.rows(collection, ids).items()}
            rows, matrix = index.vectors(np.array(list(ids_by_row), dtype=np.int64))
            return {ids_by_row[row]: vector for row, vector in zip(rows.tolist(), matrix, strict=True)}

        vectors = self._ask(self._complete_index(collection, db), look_up) or {}
        missing = [id for id in ids if id not in vectors]
        return {**vectors, **super()._vectors(collection_id, missing, db)} if missing else vectors


class IndexSearch:
    """One search over an index that can be used.

    Args:
        index: The index.
        share: Which share of the collection it has, 0 to 1.
        chunks: Finds the chunks of long texts, and reads from Chroma.
        collection_id: The collection.
        query_embeddings: One vector for each query, or None for each where words are enough.
        spec: How to search.
        reach: The factor on the usual number of candidates, at least 1.
        db: The collection's tenant and database.
        most_compared: The most rows that are compared one by one; of more, Chroma's index gives the nearest.
    """

    def __init__(
        self,
        index: TextIndex,
        share: float,
        chunks: Chunks,
        collection_id: CollectionId,
        query_embeddings: Sequence[Vector],
        spec: SearchSpec,
        reach: int,
        db: Database,
        most_compared: int,
    ) -> None:
        self._index, self._is_complete = index, share == 1.0
        self._reader, self._chunks, self._db = chunks.reader, chunks, db
        self._collection_id, self._collection = collection_id, str(collection_id)
        self._spec, self._where = spec, filter_of(spec)
        self._limit, self._covering = most_near(spec, reach), most_covering(spec, reach)
        self._most_compared = most_compared
        self._keep: RowFilter = index.filter(self._collection, self._where, time.time())
        self._embeddings = query_embeddings
        self._queries = None if spec.mode == "text" else directions(query_embeddings)
        self._unindexed: list[dict[str, float]] = []
        """What Chroma found and the index does not have yet."""

    def run(self, queries: Sequence[str], chunk_collection: CollectionId | None) -> list[list[Found]]:
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

    def _add_distances(self, number: int, by_row: Mapping[int, Found]) -> None:
        """Give every candidate its exact distance."""
        import numpy as np

        missing = [row for row, one in by_row.items() if one.distance is None]
        if self._queries is None or not missing:
            return
        distances = self._index.distances(
            self._collection, self._queries[number : number + 1], np.array(missing, dtype=np.int64)
        )
        for row, distance in zip(missing, distances[0].tolist(), strict=True):
            if distance == distance:
                by_row[row].distance = distance

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
