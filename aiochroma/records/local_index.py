"""A memory's operations on a directory: with the index that is kept beside Chroma, and that index's file while Chroma is closed.

Everything here runs on the DB thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import time
from typing import TYPE_CHECKING, TypeVar

from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import CollectionId, Vector, Where
from aiochroma.disk.layout import SQLITE_FILE, TEXT_INDEX_FILE
from aiochroma.disk.recovery import quarantine_text_index
from aiochroma.records.history import HISTORY_FILE, ChangeLog
from aiochroma.records.index_keeper import IndexKeeper
from aiochroma.records.index_search import IndexSearch, pools_of
from aiochroma.records.reading import Chunks
from aiochroma.records.record import WRITING, Record, indexed_row, record_of
from aiochroma.records.searching import Found, Pool, Pools, SearchingRecords, most_near
from aiochroma.records.spec import Neighbour, filter_of
from aiochroma.text.index import CACHE_BYTES, TextIndex
from aiochroma.text.memories import ListPage
from aiochroma.text.namespaces import position_of
from aiochroma.text.vectors import EXACT_ROWS, directions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from chromadb.api import ServerAPI
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from aiochroma.backend.chroma_records import Database
    from aiochroma.core.request import Request
    from aiochroma.disk.retained_log import LogState
    from aiochroma.records.reading import Carried
    from aiochroma.records.spec import CollectionSearch, ListSpec

__all__ = ["IndexFile", "LocalIndex"]

log: EventLogger = get_logger("aiochroma.records")

_UNREADABLE = (sqlite3.Error, OSError, ValueError, TypeError)
"""What comes up where a file is damaged, locked, or holds what was never written there."""

T = TypeVar("T")


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
        self._chunks = Chunks(api, self._reader, defers=True)
        self._file = file
        source = None if file is None else file.with_name(SQLITE_FILE)
        self.keeper: IndexKeeper = IndexKeeper(api, file, state, cache_bytes, source=source)
        self._history: ChangeLog | None = None
        self._namespaces: dict[tuple[str, str], list[str]] = {}

    def carried_out(self) -> dict[str, Carried]:
        """See ``MemoryRecords``."""
        return {
            **super().carried_out(),
            "index_memories": self.index,
        }

    def index(self, collection_id: CollectionId, tenant: str, database: str) -> float:
        """Copy one slice of a collection into the index, if any is missing; return which share the index has."""
        return self.keeper.copy(str(collection_id), {"tenant": tenant, "database": database})

    def namespaces(self, tenant: str, database: str) -> list[str]:
        """See ``MemoryRecords``; kept, since only this thread makes collections, and Chroma takes long to list them."""
        key = (tenant, database)
        if key not in self._namespaces:
            self._namespaces[key] = super().namespaces(tenant, database)
        return list(self._namespaces[key])

    def collections_changed(self, *, renamed: bool) -> None:
        """See ``MemoryRecords``."""
        super().collections_changed(renamed=renamed)
        self._namespaces.clear()

    def count(self, collection_id: CollectionId, tenant: str, database: str) -> int:
        """Return how many records a collection has; the index knows it without counting."""
        collection = str(collection_id)
        known = self._ask(self.keeper.current(collection), lambda index: index.count(collection))
        if known is not None:
            return known
        return super().count(collection_id, tenant, database)

    def writings(self, collection_id: CollectionId, **db: Unpack[Database]) -> list[str]:
        """See ``MemoryRecords``; the index knows them without reading the memories."""
        index = self._complete_index(str(collection_id), db)
        found = self._ask(index, lambda index: index.texts_under(str(collection_id), WRITING))
        return super().writings(collection_id, **db) if found is None else found

    def ids(
        self,
        collection_id: CollectionId,
        where: Where | None,
        after: int,
        limit: int,
        **db: Unpack[Database],  # noqa: ARG002 - the index goes by the collection alone
    ) -> tuple[list[str], int] | None:
        """See ``MemoryRecords``; the index finds what passes a filter, and gives pages by row. None where it cannot tell."""
        collection = str(collection_id)

        def look_up(index: TextIndex) -> tuple[list[str], int]:
            rows = index.matching(collection, where)
            rows = rows[rows.searchsorted(after, side="right") :]
            page = rows[:limit].tolist()
            return list(index.ids_of(page).values()), page[-1] if len(rows) > limit else 0

        return self._ask(self.keeper.current(collection), look_up)

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

    def next_deletion(self) -> Request | None:
        """See ``Chunks``."""
        return self._chunks.next_deletion()

    def work(self) -> bool:
        """Copy a slice of what the index lacks; return whether there is more."""
        return self.keeper.work()

    def distrust(self, collection: str) -> None:
        """Compare a collection with Chroma before it is searched: a write to it failed that may have happened."""
        self.keeper.distrust(collection)

    def forget_collection(self, collection: str) -> None:
        """Drop a collection that is gone."""
        self.collections_changed(renamed=False)
        self.keeper.forget(collection)

    def forget_everything(self) -> None:
        """Drop all collections."""
        self.collections_changed(renamed=False)
        self.keeper.forget_everything()

    def note(self, positions: Mapping[str, int], *, is_newest: bool = True) -> None:
        """Note how far the index goes; see ``IndexKeeper.note``."""
        self.keeper.note(positions, is_newest=is_newest)

    def stop(self) -> None:
        """See ``IndexKeeper.stop``."""
        self.keeper.stop()

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
        records: Sequence[Record],
        vectors: Sequence[Vector] | None,
        codes: Sequence[bytes | None] | None,
    ) -> None:
        rows = [
            indexed_row(
                record["id"],
                record["document"],
                record["metadata"],
                None if vectors is None else vectors[at],
                None if codes is None else codes[at],
            )
            for at, record in enumerate(records)
        ]
        self.keeper.written(collection, rows)

    def _deleted(self, collection: str, ids: Sequence[str]) -> None:
        self.keeper.deleted(collection, ids)

    # -- candidates ----------------------------------------------------------------------------------------------------

    def _candidates(
        self,
        searches: Sequence[CollectionSearch],
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        query_tokens: Sequence[Vector | None],
        reach: int,
        db: Database,
    ) -> list[Pools]:
        most = self._most_compared(query_embeddings)
        vectors = directions(query_embeddings)
        for _ in range(2):
            usable = [self.keeper.usable(str(one.collection_id), db) for one in searches]
            index = usable[0][0]
            if index is None or any(found is None for found, _, _ in usable):
                break
            try:
                begun = [
                    IndexSearch(index, share, self._chunks, one, query_embeddings, vectors, reach, db, most)
                    for one, (_, share, _) in zip(searches, usable, strict=True)
                ]
                pools = pools_of(index, begun, queries, query_tokens)
            except sqlite3.DatabaseError as error:
                self.keeper.failed(error)
            else:
                return [Pools(found, share) for found, (_, share, _) in zip(pools, usable, strict=True)]
        return [
            self._found_without_index(one, query_embeddings, reach, db, problem)
            for one, (_, _, problem) in zip(searches, usable, strict=True)
        ]

    def _found_without_index(
        self,
        search: CollectionSearch,
        query_embeddings: Sequence[Vector],
        reach: int,
        db: Database,
        problem: str | None,
    ) -> Pools:
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


class IndexFile:
    """The index's file while Chroma is closed: how far it follows Chroma's log, and the vectors that make a broken index again.

    A file that is not there is empty; one that cannot be used is moved aside.

    Args:
        directory: The database's directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / TEXT_INDEX_FILE

    def noted(self) -> dict[str, int]:
        """Return, by collection id, up to which entry of Chroma's log it has everything."""
        marks: dict[str, int] = {}
        try:
            with self._opened() as index:
                for collection, mark in (index.watermarks() if index is not None else {}).items():
                    position = position_of(mark)
                    if isinstance(collection, str) and position is not None:
                        marks[collection] = position
        except _UNREADABLE as error:
            self._set_aside(error)
            return {}
        return marks

    def distrust(self, collections: Collection[str]) -> None:
        """Take back what it has noted of collections: their log has gone on without it.

        Raises:
            OSError: It cannot be written, and cannot be moved aside either.
        """
        if not collections:
            return
        try:
            with self._opened() as index:
                if index is not None:
                    for collection in collections:
                        index.set_watermark(collection, "")
        except _UNREADABLE as error:
            self._set_aside(error)

    def keep_only(self, collections: Collection[str]) -> None:
        """Forget all other collections, with their texts and vectors.

        Raises:
            OSError: It cannot be written, and cannot be moved aside either.
        """
        try:
            with self._opened() as index:
                if index is not None:
                    for collection in set(index.namespaces()).difference(collections):
                        index.delete_namespace(collection)
        except _UNREADABLE as error:
            self._set_aside(error)

    def vectors(self, collection: str) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Return ids and vectors of a collection, a page at a time, up to one that is damaged."""
        with contextlib.suppress(*_UNREADABLE), self._opened() as index:
            if index is not None:
                yield from index.vector_pages(collection)

    def _set_aside(self, error: Exception) -> None:
        """Move it away, lest its notes are believed another time; it is made again from Chroma."""
        moved = quarantine_text_index(self._directory)
        log.warning("text_index.set_aside", file=str(self._file), error=str(error), quarantine=str(moved))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[TextIndex | None]:
        """Open it; None where there is none, or another thing in its place, which is never opened."""
        if not (self._file.is_file() and stat.S_ISREG(self._file.lstat().st_mode)):
            yield None
            return
        with contextlib.closing(TextIndex(self._file)) as index:
            yield index
