"""A memory's operations on a directory: with the index that is kept beside Chroma.

Everything here runs on the DB thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, Any

from aiochroma._types import CollectionId, MetadataView, Vector, Where
from aiochroma.records.filters import filter_of
from aiochroma.records.history import HISTORY_FILE, ChangeLog
from aiochroma.records.index_keeper import IndexKeeper, indexed_row
from aiochroma.records.index_search import IndexSearch
from aiochroma.records.listing import list_filter
from aiochroma.records.record import Record, record_of
from aiochroma.records.searching import Candidates, Found, SearchingRecords, most_near
from aiochroma.records.spec import Neighbour
from aiochroma.text.index import TextIndex
from aiochroma.text.vectors import EXACT_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from chromadb.api import ServerAPI
    from numpy.typing import NDArray

    from aiochroma.backend.chroma_records import Database
    from aiochroma.core.request import Request
    from aiochroma.records.listing import ListSpec
    from aiochroma.records.spec import SearchSpec

__all__ = ["TEXT_INDEX_FILE", "LocalIndex", "iter_vectors"]

TEXT_INDEX_FILE = "aiochroma-text.sqlite3"


def iter_vectors(
    directory: Path, collection: str, positions: Mapping[str, int] | None = None
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Read the vectors of a collection from the index's file, while Chroma is closed: to make a broken index of Chroma again.

    Args:
        directory: The database's directory.
        collection: The collection's id.
        positions: For each collection how far its log goes. With it, an index that has not noted that it goes as far gives
            nothing, since its vectors may be those of before; None to take what is there.

    Yields:
        Ids and vectors, a page at a time; nothing where there is no index that can be read.
    """
    file = directory / TEXT_INDEX_FILE
    if not file.is_file():
        return
    try:
        index = TextIndex(file)
    except sqlite3.DatabaseError:
        return
    with contextlib.closing(index):
        if positions is None or index.watermark(collection) == str(positions.get(collection)):
            yield from index.vector_pages(collection)


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

    def operations(self) -> dict[str, Callable[..., Any]]:
        """See ``MemoryRecords``."""
        return {**super().operations(), "index_memories": self.index}

    def index(self, collection_id: CollectionId, tenant: str, database: str) -> float:
        """Copy one slice of a collection into the index, if any is missing; return which share the index has."""
        return self.keeper.copy(str(collection_id), {"tenant": tenant, "database": database})

    def count(self, collection_id: CollectionId, tenant: str, database: str) -> int:
        """Return how many records a collection has; the index knows it without counting."""
        index = self.keeper.current(str(collection_id))
        if index is not None:
            return index.count(str(collection_id))
        return super().count(collection_id, tenant, database)

    def ids(self, collection_id: CollectionId, where: Where | None, tenant: str, database: str) -> list[str]:
        """See ``MemoryRecords``; a filter is answered by the index."""
        index = self.keeper.current(str(collection_id))
        if index is not None:
            try:
                rows = index.matching(str(collection_id), where).tolist()
                ids = index.ids_of(rows)
            except sqlite3.DatabaseError as error:
                self.keeper.failed(error)
            else:
                return [ids[row] for row in rows]
        return super().ids(collection_id, where, tenant, database)

    def page(
        self, collection_id: CollectionId, spec: ListSpec, tenant: str, database: str
    ) -> Sequence[Record]:
        """See ``MemoryRecords``; the index finds the page without looking at what stands before it."""
        place: Database = {"tenant": tenant, "database": database}
        collection = str(collection_id)
        index, share, _ = self.keeper.usable(collection, place)
        if index is not None and share == 1.0:
            now = time.time()
            try:
                rows = index.page(
                    collection,
                    index.filter(collection, list_filter(spec), now),
                    now,
                    by_position=spec.thread is not None,
                    after=spec.after,
                    limit=spec.limit,
                    newest_first=spec.newest_first,
                )
                read = index.read(rows)
            except sqlite3.DatabaseError as error:
                self.keeper.failed(error)
            else:
                if len(read) == len(rows):
                    return [record_of(*read[row]) for row in rows]
        return super().page(collection_id, spec, tenant, database)

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

    # -- memories ------------------------------------------------------------------------------------------------------

    def _log(self) -> ChangeLog:
        if self._history is None:
            self._history = ChangeLog(
                ":memory:" if self._file is None else self._file.with_name(HISTORY_FILE)
            )
        return self._history

    def _known(self, collection_id: CollectionId, ids: list[str], place: Database) -> dict[str, Record]:
        collection = str(collection_id)
        index, share, _ = self.keeper.usable(collection, place)
        if index is not None and share == 1.0:
            try:
                rows = index.rows(collection, ids)
                read = index.read(rows.values()) if rows else {}
                known = {id: record_of(id, *read[row][1:]) for id, row in rows.items() if row in read}
                if len(known) == len(rows):
                    return known
            except sqlite3.DatabaseError as error:
                self.keeper.failed(error)
        return super()._known(collection_id, ids, place)

    def _last_position(self, collection_id: CollectionId, thread: str, place: Database) -> float | None:
        collection = str(collection_id)
        index, share, _ = self.keeper.usable(collection, place)
        try:
            return None if index is None or share < 1.0 else index.last_position(collection, thread)
        except sqlite3.DatabaseError as error:
            self.keeper.failed(error)
            return None

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
        place: Database,
    ) -> Candidates:
        problem = None
        for _ in range(2):
            index, share, problem = self.keeper.usable(str(collection_id), place)
            if index is None:
                break
            try:
                search = IndexSearch(
                    index,
                    share,
                    self._reader,
                    self._parts,
                    collection_id,
                    query_embeddings,
                    spec,
                    reach,
                    place,
                    self._most_compared(query_embeddings),
                )
                return Candidates(search.run(queries, self._parts.holder(chunks, place)), share)
            except sqlite3.DatabaseError as error:
                self.keeper.failed(error)
        found = self._found_by_chroma(
            collection_id, query_embeddings, most_near(spec, reach), filter_of(spec), chunks, place
        )
        return Candidates([list(one.values()) for one in found], 1.0, problem)

    def _most_compared(self, query_embeddings: Sequence[Vector]) -> int:  # noqa: ARG002 - a server's vectors are far away
        """Return how many vectors are compared one by one before Chroma's index is asked."""
        return EXACT_ROWS

    def _complete(self, collection_id: CollectionId, found: Sequence[Found], place: Database) -> None:
        missing = [one for one in found if one.metadata is None]
        rows = {one.key: one for one in missing if isinstance(one.key, int) and one.key > 0}
        index = self.keeper.usable(str(collection_id), place)[0] if rows else None
        if index is not None:
            try:
                read, ids = index.read(rows), {}
                if len(read) < len(rows):
                    ids = index.ids_of(rows.keys() - read.keys())
            except sqlite3.DatabaseError as error:
                self.keeper.failed(error)
                read, ids = {}, {}
            for one in missing:
                row = one.key if isinstance(one.key, int) else 0
                if row in read:
                    one.id, one.document, one.metadata = read[row]
                one.id = one.id or ids.get(row, "")
        unread = [one for one in missing if one.metadata is None and one.id]
        records = self._reader.records(
            collection_id, list(dict.fromkeys(one.id for one in unread)), None, place
        )
        for one in unread:
            if one.id in records:
                one.document, one.metadata = records[one.id]["document"], records[one.id]["metadata"]

    def _neighbours(
        self, collection_id: CollectionId, ids: list[str], window: int, place: Database
    ) -> Iterable[tuple[str, int, Neighbour]]:
        collection = str(collection_id)
        index, _, _ = self.keeper.usable(collection, place)
        if index is None:
            return []
        try:
            rows = {row: id for id, row in index.rows(collection, ids).items()}
            near = index.neighbours(collection, rows, window)
            read = index.read({row for _, row, _ in near})
        except sqlite3.DatabaseError as error:
            self.keeper.failed(error)
            return []
        return [(rows[row], offset, Neighbour(*read[other])) for row, other, offset in near if other in read]

    def _vectors(self, collection_id: CollectionId, ids: list[str], place: Database) -> dict[str, Vector]:
        import numpy as np

        collection = str(collection_id)
        index, share, _ = self.keeper.usable(collection, place)
        vectors: dict[str, Vector] = {}
        if index is not None and share == 1.0:
            try:
                ids_by_row = {row: id for id, row in index.rows(collection, ids).items()}
                rows, matrix = index.vectors(np.array(list(ids_by_row), dtype=np.int64))
                vectors = {ids_by_row[row]: vector for row, vector in zip(rows.tolist(), matrix, strict=True)}
            except sqlite3.DatabaseError as error:
                self.keeper.failed(error)
        missing = [id for id in ids if id not in vectors]
        return {**vectors, **super()._vectors(collection_id, missing, place)} if missing else vectors
