"""Keeps the index in step with Chroma: opens it, follows every write, fills it again in slices, and does without it if need be.

Chroma is the truth and the index follows it. Every write to a collection that is indexed goes to Chroma first and then to the
index, whoever makes it. A collection whose index may have missed something (the process died, or another program wrote to it)
is compared with Chroma and copied again, a few records at a time, between other requests; meanwhile a search answers from
the records that the index has.

Everything here runs on the DB thread.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._logging import EventLogger, get_logger
from aiochroma.backend.chroma_records import ChromaRecords, Database, database_of
from aiochroma.backend.id_listing import IdListing
from aiochroma.core.operations import Effect
from aiochroma.disk.layout import is_damage
from aiochroma.records.index_copying import Copying
from aiochroma.records.reading import Reader
from aiochroma.text.index import CACHE_BYTES, IndexedText, TextIndex
from aiochroma.text.memories import ListPage
from aiochroma.text.namespaces import position_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from chromadb.api import ServerAPI

    from aiochroma.core.request import Request
    from aiochroma.disk.retained_log import LogState

__all__ = ["IndexKeeper", "write_rows"]

log: EventLogger = get_logger("aiochroma.records")

_AT_ONCE = 256
"""The most records that are copied before a search is answered. With more, it is answered from those that the index has."""
_SLICE = 64
"""Records copied in one slice: 5 to 10 ms."""
_UNUSABLE_SECONDS = 5.0
"""The pause after a failure to open the file, in seconds: each attempt may wait for another's lock."""
_ALMOST = 0.999
"""The largest share that is reported of a collection that has records which the index cannot store."""
_NOT_NOTED = ""
"""In place of an entry of the log: it is not known how far the index follows a collection."""
_ODD = (sqlite3.ProgrammingError, sqlite3.InterfaceError, UnicodeError, OverflowError, ValueError, TypeError)
"""What one record that cannot be stored raises; nothing is wrong with the file."""


class IndexKeeper:
    """Keeps collections of one database in an index.

    Args:
        api: Chroma.
        file: The index's own file, or None to keep it in memory.
        state: How far Chroma's log went when the database was opened, and which records it names that the index has missed.
        cache_bytes: How much of the vectors may stay in memory.
        any_thread: Whether several threads may use it, one at a time.
        source: Chroma's SQLite file, from which a child lists the ids of large collections; None where there is none.
    """

    def __init__(
        self,
        api: ServerAPI,
        file: Path | None,
        state: LogState,
        cache_bytes: int = CACHE_BYTES,
        *,
        any_thread: bool = False,
        source: Path | None = None,
    ) -> None:
        self._api = ChromaRecords(api)
        self._listing = IdListing(self._api, source)
        self._reader = Reader(api)
        self._file = file
        self._is_kept = state.is_kept
        self._changed = dict(state.changed)
        self._unnoted: set[str] = set()
        self._without_odd: set[str] = set()
        self._collections = set(state.positions)
        self._dropped: set[str] = set()
        self._cache_bytes = cache_bytes
        self._any_thread = any_thread
        self._index: TextIndex | None = None
        self._current: set[str] = set()
        self._copying: dict[str, Copying] = {}
        self._problem: tuple[float, str] | None = None

    # -- using it ------------------------------------------------------------------------------------------------------

    def usable(self, collection: str, db: Database) -> tuple[TextIndex | None, float, str | None]:
        """Return the index, the share of a collection that it has, and None; without an index None, 0 and the reason."""
        for again in (True, False):
            problem = self._present_problem()
            if problem is not None:
                return None, 0.0, problem
            try:
                share = self._prepare(collection, db)
                # Chroma has the records that the index had to leave out.
                return self._open(), min(share, _ALMOST) if collection in self._without_odd else share, None
            except sqlite3.DatabaseError as error:
                if again:
                    self.failed(error)
                else:
                    self._give_up(error)
        return None, 0.0, self._present_problem()

    def current(self, collection: str) -> TextIndex | None:
        """Return the index if it has all of a collection already; else None, and nothing is copied."""
        try:
            if self._present_problem() or collection in self._without_odd or not self._is_current(collection):
                return None
            return self._open()
        except sqlite3.DatabaseError as error:
            self.failed(error)
            return None

    def failed(self, error: sqlite3.Error) -> None:
        """Make the index again after an error; where that cannot help, do without it for a while."""
        log.warning("text_index.failed", error=str(error), hint="made again when it is used")
        self._begin_again()
        if self._index is not None and is_damage(error):
            self._changed.clear()
            try:
                self._index.recreate()
            except (sqlite3.DatabaseError, OSError) as again:
                self._give_up(again)
        else:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Do without the index for a while."""
        self._begin_again()
        problem = (
            f"The index {str(self._file or 'in memory')!r} cannot be used: {error}. Memories are found by meaning, those that "
            "only share words with it may be missing. The file may be deleted: it is made again from Chroma's records."
        )
        self._problem = (monotonic() + _UNUSABLE_SECONDS, problem)
        if self._index is not None:
            self._index.close()
            self._index = None

    def _begin_again(self) -> None:
        self._current.clear()
        self._copying.clear()
        self.stop()

    def stop(self) -> None:
        """End what reads Chroma's file beside this thread: the file is about to be closed."""
        self._listing.close()

    def _present_problem(self) -> str | None:
        if self._problem is not None and monotonic() >= self._problem[0]:
            self._problem = None
        return None if self._problem is None else self._problem[1]

    def work(self) -> bool:
        """Copy or drop one slice of a collection that waits for it; return whether there is more to do."""
        if self._present_problem() is not None:
            return False
        if self._dropped and not self._copying:
            self._drop_slice()
        for collection in list(self._copying):
            try:
                self._copy_slice(collection, _SLICE)
            except sqlite3.DatabaseError as error:
                self.failed(error)
            except Exception as error:  # noqa: BLE001 - whoever searches the collection gets it
                log.warning("text_index.not_followed", collection=collection, error=str(error))
                self._stop_copying(collection)
            break
        return bool(self._copying or self._dropped)

    def copy(self, collection: str, db: Database) -> float:
        """Copy one slice of a collection; return which share of it the index has.

        Raises:
            sqlite3.DatabaseError: The index cannot be used.
        """
        self._open()
        if self._prepare(collection, db) < 1.0:
            self._copy_slice(collection, _SLICE)
        copying = self._copying.get(collection)
        return 1.0 if copying is None else copying.share

    # -- following Chroma's writes -------------------------------------------------------------------------------------

    def after_write(self, request: Request) -> None:
        """Bring the index up to date after a write that Chroma has carried out."""
        collection = str(request.arguments["collection_id"])
        arguments, ids = request.arguments, request.arguments.get("ids")
        if request.row.effect is Effect.WRITES and ids:
            # What a record is now depends on the former one, so it is read from Chroma.
            db = database_of(arguments)
            self._follow(collection, ids, lambda index: self._copy_ids(index, collection, db, ids))
        elif (
            request.row.effect is Effect.DELETES
            and ids
            and not arguments.get("where")
            and not arguments.get("where_document")
        ):
            self.deleted(collection, ids)
        else:
            self.distrust(collection)

    def written(self, collection: str, rows: Sequence[IndexedText]) -> None:
        """Follow records that were written."""
        ids = [row.id for row in rows]
        self._follow(collection, ids, lambda index: self._write(index, collection, rows))

    def deleted(self, collection: str, ids: Sequence[str]) -> None:
        """Follow records that were deleted."""
        self._follow(collection, ids, lambda index: index.delete(collection, ids))

    def distrust(self, collection: str) -> None:
        """Take a collection for unknown: it is compared with Chroma before it is searched again."""
        self._current.discard(collection)
        self._stop_copying(collection)
        self._changed.pop(collection, None)

    def _stop_copying(self, collection: str) -> None:
        self._copying.pop(collection, None)
        self._listing.drop(collection)

    def forget(self, collection: str) -> None:
        """Drop a collection that is gone, slice by slice."""
        self.distrust(collection)
        if self._is_there:
            self._dropped.add(collection)

    def forget_everything(self) -> None:
        """Drop all collections."""
        self._begin_again()
        self._changed.clear()
        self._dropping(lambda index: index.clear())

    def note(self, positions: Mapping[str, int], *, is_newest: bool = True) -> None:
        """Note on the disk up to which entry of Chroma's log the index has everything, for collections that are current.

        Args:
            positions: For each collection an entry of its log that the index has, with all before it.
            is_newest: Whether nothing has been written since. Otherwise they are noted again the next time.
        """
        if self._index is None or self._present_problem() is not None:
            return
        noted = {
            collection: positions[collection]
            for collection in self._current & self._unnoted - self._without_odd
            if collection in positions
        }
        try:
            for collection, position in noted.items():
                self._index.set_watermark(collection, str(position))
            self._index.sync()
        except sqlite3.DatabaseError as error:
            self.failed(error)
            return
        self._unnoted -= noted.keys() if is_newest else set()

    def close(self, positions: Mapping[str, int]) -> None:
        """Note how far the index goes, and close its file.

        Args:
            positions: For each collection how far its log goes, read after Chroma has closed.
        """
        self.note(positions)
        if self._index is not None:
            try:
                gone = set(self._index.namespaces()) - set(positions) if positions else set()
                for collection in gone | self._dropped:
                    self._index.delete_namespace(collection)
            except sqlite3.DatabaseError as error:
                log.warning("text_index.watermark_failed", error=str(error))
            self._index.close()
            self._index = None

    @property
    def _is_there(self) -> bool:
        """Whether there is an index, which may not be open yet."""
        return self._index is not None or (self._file is not None and self._file.is_file())

    def _dropping(self, drop: Callable[[TextIndex], object]) -> None:
        if self._is_there and self._present_problem() is None:
            try:
                drop(self._open())
            except sqlite3.DatabaseError as error:
                self.failed(error)

    def _drop_slice(self) -> None:
        """Drop a slice of a collection that is gone, the oldest of its rows first."""
        collection, beginning = next(iter(self._dropped)), float("-inf")
        try:
            index = self._open()
            rows = index.page(
                collection, index.filter(collection, None, beginning), beginning, ListPage(limit=_SLICE)
            )
            index.delete(collection, index.ids_of(rows).values())
            if len(rows) < _SLICE:
                index.delete_namespace(collection)
                self._dropped.discard(collection)
        except sqlite3.DatabaseError as error:
            self.failed(error)

    def _follow(self, collection: str, ids: Iterable[str], change: Callable[[TextIndex], object]) -> None:
        if collection not in self._current and collection not in self._copying:
            if collection in self._changed:
                self._changed[collection] |= frozenset(ids)
            return
        self._unnoted.add(collection)
        try:
            if self._present_problem() is None:
                change(self._open())
        except sqlite3.DatabaseError as error:
            # The record is safe in Chroma. The collection is indexed again before it is searched.
            self.failed(error)
        except Exception as error:  # noqa: BLE001 - Chroma has written, so the caller's write has not failed
            log.warning("text_index.not_followed", collection=collection, error=error)
            self.distrust(collection)

    # -- keeping in step -----------------------------------------------------------------------------------------------

    def _open(self) -> TextIndex:
        problem = self._present_problem()
        if problem is not None:
            raise sqlite3.OperationalError(problem)
        if self._index is None:
            self._index = TextIndex.open_or_recreate(
                self._file if self._file is not None else ":memory:",
                cache_bytes=self._cache_bytes,
                any_thread=self._any_thread,
            )
            if self._collections:
                # Collections that were deleted while the file was not in use.
                self._dropped |= set(self._index.namespaces()) - self._collections
                self._collections.clear()
        return self._index

    def _is_current(self, collection: str) -> bool:
        """Tell whether the index has all of a collection."""
        if collection in self._current:
            return True
        if collection in self._copying or self._changed.get(collection, True):
            return False
        if self._followed_from(self._open(), collection) is None:
            return False
        self._current.add(collection)
        return True

    def _followed_from(self, index: TextIndex, collection: str) -> frozenset[str] | None:
        """Begin to follow a collection. Return the ids that have changed since the index's note, or None if unknown."""
        changed = self._changed.pop(collection, None)
        if position_of(index.watermark(collection)) is None:
            changed = None  # The file was replaced since the database was opened.
        if changed is None or not self._is_kept:
            # The log will not name what is missed from here on: after a death the index must not be believed.
            index.set_watermark(collection, _NOT_NOTED)
        self._unnoted.add(collection)
        return changed

    def _prepare(self, collection: str, db: Database) -> float:
        """Copy a collection if it is small, else begin to; return the share of it that the index has."""
        if self._is_current(collection):
            return 1.0
        if collection not in self._copying:
            self._begin(collection, db)
            if self._copying[collection].ids is None and self._api.count(collection, **db) > _AT_ONCE:
                # Comparing many ids takes as long as a search, which need not wait for it.
                return 0.0
            while self._copying[collection].ids is None:
                self._copy_slice(collection, _AT_ONCE)
            if len(self._copying[collection].ids or ()) <= _AT_ONCE:
                self._copy_slice(collection, _AT_ONCE)
        copying = self._copying.get(collection)
        return 1.0 if copying is None else copying.share

    def _begin(self, collection: str, db: Database) -> None:
        """Begin to follow a collection, and to find out which of its records are to be copied."""
        index = self._open()
        changed = self._followed_from(index, collection)
        self._copying[collection] = copying = Copying(db)
        if changed is not None:
            copying.ids, copying.records = sorted(changed), max(1, index.count(collection))

    def _copy_slice(self, collection: str, size: int) -> None:
        copying = self._copying[collection]
        if copying.there is None and copying.ids is None:
            copying.there, copying.is_past = self._listing.listed(collection, collection, copying.db)
            return
        if copying.ids is None:
            copying.compare(self._open(), collection)
            return
        ids = copying.ids[copying.done : copying.done + size]
        if ids:
            self._copy_ids(self._open(), collection, copying.db, ids)
            copying.done += len(ids)
        if copying.done >= len(copying.ids):
            del self._copying[collection]
            index = self._open()
            is_certain = not copying.records and (not copying.is_past or collection in self._without_odd)
            if not is_certain and index.count(collection) != self._api.count(collection, **copying.db):
                log.warning("text_index.not_followed", collection=collection, error="it has other records")
                self._begin(collection, copying.db)
                if copying.is_past:
                    self._copying[collection].there = self._listing.at_once(collection, **copying.db)
                return
            self._current.add(collection)
            if len(copying.ids) > _AT_ONCE:
                log.info("text_index.rebuilt", collection=collection, records=len(copying.ids))

    def _copy_ids(self, index: TextIndex, collection: str, db: Database, ids: Sequence[str]) -> None:
        """Copy records from Chroma; those that Chroma does not have are deleted from the index."""
        rows = self._reader.indexed(collection, ids, db)
        # An upsert would keep the former vector of a record that has none in Chroma any more.
        index.delete(collection, [row.id for row in rows if row.vector is None])
        self._write(index, collection, rows)
        if len(rows) < len(set(ids)):
            index.delete(collection, set(ids).difference(row.id for row in rows))

    def _write(self, index: TextIndex, collection: str, rows: Sequence[IndexedText]) -> None:
        if not write_rows(index, collection, rows):
            self._without_odd.add(collection)


def write_rows(index: TextIndex, collection: str, rows: Iterable[IndexedText]) -> bool:
    """Write rows. One that cannot be stored is left out, and the others are written. Return whether all were."""
    rows = list(rows)
    try:
        index.upsert(collection, rows)
    except _ODD as error:
        if len(rows) == 1:
            log.warning("text_index.not_followed", collection=collection, error=f"{rows[0].id!r}: {error}")
            index.delete(collection, [rows[0].id])
            return False
        left_out = [row.id for row in rows if not write_rows(index, collection, [row])]
        return not left_out
    return True
