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
from aiochroma.records.ranking import Candidates
from aiochroma.records.record import WRITING, Record, record_of
from aiochroma.records.searching import Found, Pool, Pools, SearchingRecords, most_covering, most_near
from aiochroma.records.spec import Neighbour, filter_of
from aiochroma.text.index import CACHE_BYTES
from aiochroma.text.memories import ListPage
from aiochroma.text.vectors import EXACT_ROWS, directions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from chromadb.api import ServerAPI
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from aiochroma.backend.chroma_records import Database
    from aiochroma.core.request import Request
    from aiochroma.disk.retained_log import LogState
    from aiochroma.records.memory_records import Carried
    from aiochroma.records.reading import Chunks, NearChunk
    from aiochroma.records.spec import CollectionSearch, ListSpec
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
        state: See ``IndexKeeper``.
        cache_bytes: The most bytes that vectors in memory take.
    """

    def __init__(
        self, api: ServerAPI, file: Path | None, state: LogState, cache_bytes: int = CACHE_BYTES
    ) -> None:
        super().__init__(api)
        self._file = file
        self.keeper: IndexKeeper = IndexKeeper(api, file, state, cache_bytes)
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

    def ids(
        self, collection_id: CollectionId, where: Where | None, after: int, limit: int, **db: Unpack[Database]
    ) -> tuple[list[str], int]:
        """See ``MemoryRecords``; the index finds what passes a filter, and gives pages by row."""
        collection = str(collection_id)

        def look_up(index: TextIndex) -> tuple[list[str], int]:
            rows = index.matching(collection, where)
            rows = rows[rows.searchsorted(after, side="right") :]
            page = rows[:limit].tolist()
            return list(index.ids_of(page).values()), page[-1] if len(rows) > limit else 0

        found = self._ask(self.keeper.current(collection), look_up)
        return super().ids(collection_id, where, after, limit, **db) if found is None else found

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

    def code(
        self,
        collection_id: CollectionId,
        ids: list[str],
        codes: list[bytes],
        tenant: str,
        database: str,
    ) -> None:
        """Keep the codes of the tokens of memories that the index has."""
        index = self._complete_index(str(collection_id), {"tenant": tenant, "database": database})
        self._ask(
            index, lambda index: index.set_codes(str(collection_id), dict(zip(ids, codes, strict=True)))
        )

    def without_code(self, collection_id: CollectionId, tenant: str, database: str) -> list[str]:
        """See ``MemoryRecords``."""
        index = self._complete_index(str(collection_id), {"tenant": tenant, "database": database})
        return self._ask(index, lambda index: index.without_code(str(collection_id))) or []

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

    def noted(self, collections: Iterable[str]) -> Mapping[str, int]:
        """Return how far the index goes; see ``IndexKeeper.noted``."""
        return self.keeper.noted(collections)

    def note(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Note how far the index goes; see ``IndexKeeper.note``."""
        return self.keeper.note(positions)

    def close(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Note how far the index goes, and close what is open; see ``IndexKeeper.close``."""
        if self._history is not None:
            self._history.close()
            self._history = None
        return self.keeper.close(positions)

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
        codes: Sequence[bytes | None] | None,
    ) -> None:
        rows = []
        for at, (id, document, metadata) in enumerate(zip(ids, documents, metadatas, strict=True)):
            old = known[id]["metadata"] if id in known else {}
            merged = {name: value for name, value in {**old, **metadata}.items() if value is not None}
            vector = None if vectors is None else vectors[at]
            code = None if codes is None else codes[at]
            rows.append(indexed_row(id, document, merged, vector, code))
        self.keeper.written(collection, rows)

    def _deleted(self, collection: str, ids: Sequence[str]) -> None:
        self.keeper.deleted(collection, ids)

    # -- candidates ----------------------------------------------------------------------------------------------------

    def _candidates(
        self,
        search: CollectionSearch,
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        query_tokens: Sequence[Vector | None],
        reach: int,
        db: Database,
    ) -> Pools:
        for _ in range(2):
            index, share, problem = self.keeper.usable(str(search.collection_id), db)
            if index is None:
                break
            most = self._most_compared(query_embeddings)
            try:
                found = IndexSearch(index, share, self._chunks, search, query_embeddings, reach, db, most)
                return Pools(found.run(queries, query_tokens), share)
            except sqlite3.DatabaseError as error:
                self.keeper.failed(error)
        near, where = most_near(search.spec, reach), filter_of(search.spec)
        by_id = self._found_by_chroma(search.collection_id, query_embeddings, near, where, search.chunks, db)
        return Pools([Pool.of(one.values()) for one in by_id], 1.0, problem)

    def _most_compared(self, query_embeddings: Sequence[Vector]) -> int:  # noqa: ARG002 - a server's vectors are far away
        """Return how many vectors are compared one by one before Chroma's index is asked."""
        return EXACT_ROWS

    def _complete(self, found: Sequence[tuple[CollectionId, Sequence[Found]]], db: Database) -> None:
        missing = [(id, one) for id, some in found for one in some if one.metadata is None]

        def look_up(index: TextIndex) -> None:
            # Row numbers are those of the file, so rows of several collections are read at once.
            read = index.read({one.row for _, one in missing if one.row})
            ids = index.ids_of([one.row for _, one in missing if one.row and one.row not in read])
            for _, one in missing:
                if one.row in read:
                    one.id, one.document, one.metadata = read[one.row]
                one.id = one.id or ids.get(one.row, "")

        if any(one.row for _, one in missing):
            self._ask(self.keeper.usable(str(missing[0][0]), db)[0], look_up)
        unread = [(id, one) for id, one in missing if one.metadata is None and one.id]
        for collection_id in {id for id, _ in unread}:
            some = [one for id, one in unread if id == collection_id]
            records = self._reader.records(collection_id, list({one.id: None for one in some}), None, db)
            for one in some:
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
            tokens = self._index.token_coverage(self._collection, states, also)
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
