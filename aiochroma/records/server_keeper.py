"""A copy of a server's memories at the client, brought up to date before every search.

The first search of a namespace reads it whole; later ones ask, in one round trip, how many memories it has and which were
written since, and read those. The server is the truth and other clients write to it at any time. Whatever they add or delete
changes the number of memories, and the ids are then compared. Whatever they change carries the time of their clock: what was
stamped since the last question is asked for each time, and every two seconds what was stamped up to a minute before it, for a
clock that is behind ours. One that is further behind is noticed by what it adds, and followed from then on.

The copy may lie in a file, for the next start. There the mark of a namespace says up to when it follows the server, and what this
client has written since. Who opens the file compares the ids, and asks for what was stamped up to an hour before that moment. One
process at a time has the file; another one keeps its copy in memory, as does one whose file fails. After a week a namespace is
read again whole: what a program changed without a stamp, or with one of a wild clock, would else stay as it was. So it is at once
where the server has older versions of what was changed last: it was restored from a backup.
Used from several connection threads at once; questions to the server are asked outside of the lock.
"""

from __future__ import annotations

import contextvars
import math
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk.layout import is_damage
from aiochroma.disk.retained_log import LogState
from aiochroma.records.index_keeper import IndexKeeper, write_rows
from aiochroma.records.record import UPDATED_AT, without_sparse
from aiochroma.records.server_copy import (
    SKEW_SECONDS,
    Copy,
    FreshCodes,
    Mark,
    leaving,
    newest_stamps,
    note_changed,
    stamp_of,
)
from aiochroma.text.index import CACHE_BYTES
from aiochroma.text.memories import delete_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from chromadb.api import ServerAPI

    from aiochroma.backend.chroma_records import Database
    from aiochroma.text.index import IndexedText, TextIndex

__all__ = ["MOST_MEMORIES", "ServerKeeper"]

log: EventLogger = get_logger("aiochroma.records")

MOST_MEMORIES = 50_000
"""The most of a server that are kept. With 256 dimensions each takes 3 kB here, 3.8 with codes of tokens, and 5 on its way."""
_PAGE = 500
_COPYING_SECONDS = 1.0
"""How long a search copies, or waits for another to copy, before it is answered from candidates of the server."""
_MOST_SKEW_SECONDS = 3600.0
_LOOK_BACK_SECONDS = 2.0
_COMPARE_SECONDS = 300.0
"""How often the ids are compared although the numbers agree."""
_REFUSED_SECONDS = 30.0
_NOTED_SECONDS = 60.0
"""How often it is noted in the file how far a namespace follows the server."""


class ServerKeeper(IndexKeeper):
    """Keeps namespaces of a server in an index in memory, or in a file.

    Args:
        api: Chroma's client of the server.
        file: The file, or None.
        most: How many memories may be kept.
        cache_bytes: The most bytes that vectors take beside the index.

    Attributes:
        lock: To be held while the index is used.
    """

    def __init__(
        self,
        api: ServerAPI,
        file: Path | None = None,
        most: int = MOST_MEMORIES,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        super().__init__(api, file, LogState(), cache_bytes, any_thread=True)
        self.lock: threading.RLock = threading.RLock()
        self._most = most
        self._is_listed = file is None
        self._copies: dict[str, Copy] = {}
        self._fresh_codes = FreshCodes()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="aiochroma-follow")

    def follow(self, collection: str, db: Database) -> tuple[float, str | None]:
        """Bring a namespace up to date; return which share of it is here, and why it cannot be kept here, if it cannot."""
        from chromadb.errors import NotFoundError

        arrived = monotonic()
        with self.lock:
            problem = self._present_problem()
            if problem is not None:
                return 0.0, problem
            copy = self._copies.setdefault(collection, Copy(db))
            copy.used_at = arrived
        # A complete copy is soon up to date; one that is being made may take long.
        if not copy.lock.acquire(timeout=-1 if copy.is_complete else _COPYING_SECONDS):
            return copy.share, None
        try:
            if arrived < copy.refused_until:
                return 0.0, copy.refusal(self._most)
            if not self._is_listed:
                self._drop_gone()
            if copy.followed_at < arrived:
                self._update(copy, collection, db)
            return copy.share, copy.refusal(self._most) if arrived < copy.refused_until else None
        except sqlite3.DatabaseError as error:
            self.failed(error)
            return 0.0, None
        except NotFoundError:
            self.forget(collection)
            raise
        finally:
            copy.lock.release()

    def usable(self, collection: str, db: Database) -> tuple[TextIndex | None, float, str | None]:  # noqa: ARG002 - followed before
        """See ``IndexKeeper``."""
        problem = self._present_problem()
        copy = self._copies.get(collection)
        if problem is not None or copy is None or not copy.is_complete:
            return None, 0.0, problem
        return self._open(), 1.0, None

    def failed(self, error: sqlite3.Error) -> None:
        """See ``IndexKeeper``; without the file it goes on in memory."""
        with self.lock:
            self._copies.clear()
            if self._file is None:
                super().failed(error)
            else:
                self._leave_file(error)

    def _open(self) -> TextIndex:
        if self._index is None and self._file is not None:
            try:
                return super()._open()
            except sqlite3.DatabaseError as error:
                self._leave_file(error)
        return super()._open()

    def _leave_file(self, error: sqlite3.Error) -> None:
        """Go on in memory, until the next start."""
        file, self._file, self._is_listed = self._file, None, True
        if self._index is not None:
            self._index.close()
            self._index = None
        if is_damage(error):
            delete_files(str(file))
        log.warning(
            "server_index.not_kept",
            file=str(file),
            error=str(error),
            deleted=is_damage(error),
            hint="read from the server again at the next start",
        )

    # -- what this client does -----------------------------------------------------------------------------------------

    def noticed(
        self, collection: str, ids: Iterable[str], codes: Iterable[bytes | None] | None = None
    ) -> None:
        """Have the next search read what this client wrote: that may have taken long, or have no new stamp."""
        ids = list(ids)
        with self.lock:
            self._fresh_codes.put(collection, ids, codes or [None] * len(ids))
            copy = self._copies.get(collection)
            if copy is not None:
                copy.unread.update(ids)
            self._follow_in_file(lambda index: note_changed(index, collection, ids))

    def deleted(self, collection: str, ids: Sequence[str]) -> None:
        """Follow a deletion of this client."""
        with self.lock:
            copy = self._copies.get(collection)
            if self._file is not None:
                self._follow_in_file(lambda index: self._delete_in_file(index, collection, ids))
            elif copy is not None and copy.is_complete:
                self._open().delete(collection, ids)

    def dropped(self) -> None:
        """Follow the deletion of collections by this client."""
        self._follow_in_file(lambda _: self._drop_gone())

    def forget(self, collection: str) -> None:
        """See ``IndexKeeper``."""
        with self.lock:
            self._copies.pop(collection, None)
            self.distrust(collection)
            self._dropping(lambda index: index.delete_namespace(collection))

    def stop(self) -> None:
        """Give everything back."""
        self._threads.shutdown()
        with self.lock:
            self._follow_in_file(self._tidy)
            self._copies.clear()
            self.close({})

    # -- the file ------------------------------------------------------------------------------------------------------

    def _follow_in_file(self, change: Callable[[TextIndex], object]) -> None:
        """Note something in the file, where there is one; what this client did has not failed if that fails."""
        if self._file is None or not self._is_there:
            return
        try:
            change(self._open())
        except sqlite3.DatabaseError as error:
            self.failed(error)

    def _delete_in_file(self, index: TextIndex, collection: str, ids: Sequence[str]) -> None:
        if index.delete(collection, ids):
            note_changed(index, collection, ())

    def _note(self, copy: Copy, collection: str) -> None:
        """Note how far a namespace follows the server; not before what this client has written was read."""
        with self.lock:
            if self._file is not None and self._copies.get(collection) is copy and not copy.unread:
                mark = Mark(**copy.db, as_of=copy.asked_at, skew=copy.skew, read_at=copy.read_at)
                self._open().set_watermark(collection, str(mark))
                copy.noted_at = monotonic()

    def _tidy(self, index: TextIndex) -> None:
        """Leave nothing in the file of what was changed or taken out."""
        for name, copy in self._copies.items():
            if copy.is_complete:
                self._note(copy, name)
        for name, text in index.watermarks().items():
            mark = Mark.of(text)
            if mark is not None and not mark.is_tidy:
                index.tidy(name)
                index.set_watermark(name, str(replace(mark, is_tidy=True)))

    def _drop_gone(self) -> None:
        """Drop what the file has of collections that are gone from the server, and what another program wrote into it."""
        with self.lock:
            index = self._open()
            marks = {name: Mark.of(index.watermark(name)) for name in index.namespaces()}
        listed = cache(self._listed)
        for name, mark in marks.items():
            if mark is None:
                if name not in self._copies:
                    self.forget(name)
                continue
            found = listed(mark.tenant, mark.database)
            if found is not None and name not in found:
                self.forget(name)
        self._is_listed = True

    def _listed(self, tenant: str, database: str) -> set[str] | None:
        """Return the ids of the collections of a database; None where the server does not say."""
        from chromadb.errors import NotFoundError

        try:
            return {str(one.id) for one in self._api.collections(tenant=tenant, database=database)}
        except NotFoundError:
            return set()
        except Exception as error:  # noqa: BLE001 - another database is no reason to fail
            log.info("server_index.not_listed", tenant=tenant, database=database, error=str(error))
            return None

    # -- following the server ------------------------------------------------------------------------------------------

    def _update(self, copy: Copy, collection: str, db: Database) -> None:
        if not copy.is_complete and not self._copy(copy, collection, db):
            return
        begun, now = monotonic(), time.time()
        looks_back = copy.must_look_back or begun - copy.looked_back_at > _LOOK_BACK_SECONDS
        copy.must_look_back = False
        try:
            counting = self._threads.submit(
                contextvars.copy_context().run, partial(self._api.count, collection, **db)
            )
            self._read_changes(copy, collection, db, looks_back=looks_back)
            counted = counting.result()
            if not looks_back and counted != self._kept(collection):
                self._read_changes(copy, collection, db, looks_back=True)
                looks_back = True
            if counted != self._kept(collection) or begun - copy.compared_at > _COMPARE_SECONDS:
                self._compare(copy, collection, db)
                copy.compared_at = begun
                if self._was_put_back(copy, collection, db):
                    copy.ids, copy.copied, copy.is_complete = None, 0, False
                    self._update(copy, collection, db)
                    return
        except BaseException:
            copy.must_look_back = True
            raise
        copy.followed_at, copy.asked_at = begun, now
        if looks_back:
            copy.looked_back_at = begun
        if begun - copy.noted_at > _NOTED_SECONDS:
            self._note(copy, collection)

    def _copy(self, copy: Copy, collection: str, db: Database) -> bool:
        """Copy for a while; return whether everything is here."""
        until = monotonic() + _COPYING_SECONDS
        if copy.ids is None:
            copy.count = self._api.count(collection, **db)
            if not self._makes_room(collection, copy.count):
                copy.refused_until = monotonic() + _REFUSED_SECONDS
                return False
            now = time.time()
            there = self._ids(collection, db)
            with self.lock:
                known = self._believed(copy, collection, there, now)
            if self._was_put_back(copy, collection, db):
                known = set()
                copy.asked_at = copy.read_at = now
            with self.lock:
                copy.ids = [*known, *(id for id in there if id not in known)]
                copy.copied = len(known)
                self._note(copy, collection)
        while copy.copied < len(copy.ids):
            ids = copy.ids[copy.copied : copy.copied + _PAGE]
            self._take(collection, db, ids)
            copy.copied += len(ids)
            if monotonic() > until and copy.copied < len(copy.ids):
                return False
        copy.is_complete, copy.must_look_back, copy.compared_at = True, True, monotonic()
        log.debug("server_index.copied", collection=collection, records=copy.copied)
        return True

    def _believed(self, copy: Copy, collection: str, there: Sequence[str], now: float) -> set[str]:
        """Return the ids of what the file has of a namespace, and how old that is; nothing where it is not believed."""
        index = self._open()
        mark = Mark.of(index.watermark(collection))
        if mark is None:
            index.delete_namespace(collection)
            copy.asked_at = copy.read_at = now
            return set()
        if not mark.is_tidy:  # The process that had the file was killed.
            index.tidy(collection)
        index.delete(collection, index.ids(collection).difference(there))
        # While no search looked, clients whose clocks are further behind may have written.
        copy.asked_at, copy.read_at, copy.skew = mark.as_of - _MOST_SKEW_SECONDS, mark.read_at, mark.skew
        copy.unread.update(mark.unread)
        return index.ids(collection)

    def _was_put_back(self, copy: Copy, collection: str, db: Database) -> bool:
        """Empty a copy that is ahead of the server, whose database was restored from a backup; return whether it was.

        What has changed since the backup is among what was changed last: there it has an older stamp.
        """
        with self.lock:
            known = newest_stamps(self._open(), collection)
        if not known:
            return False
        found = self._api.get(collection, ids=list(known), include=["metadatas"], **db)
        # One that is older, and yet asked for, may be of a clock that is behind.
        since, stamps = copy.asked_since(looks_back=True), map(stamp_of, found["metadatas"])
        if not any(stamp < min(known[id], since) for id, stamp in zip(found["ids"], stamps, strict=True)):
            return False
        log.warning("server_index.put_back", collection=collection)
        with self.lock:
            self._open().delete_namespace(collection)
        return True

    def _makes_room(self, collection: str, count: int) -> bool:
        """Tell whether a namespace fits, after those that have not been used for long have left."""
        with self.lock:
            others = {name: self._kept(name) for name in self._open().namespaces() if name != collection}
            others |= {
                name: max(copy.copied, self._kept(name))
                for name, copy in self._copies.items()
                if name != collection
            }
            # What lies in the file and was not asked for since the start goes first.
            used_at = {
                name: self._copies[name].used_at if name in self._copies else -math.inf for name in others
            }
            for name in leaving(others, used_at, self._most - count):
                self.forget(name)
                del others[name]
            return count + sum(others.values()) <= self._most

    def _read_changes(self, copy: Copy, collection: str, db: Database, *, looks_back: bool) -> None:
        """Read what was written since the last question."""
        since = {UPDATED_AT: {"$gte": copy.asked_since(looks_back=looks_back)}}
        found = self._api.get(collection, where=since, include=["metadatas"], **db)
        recent = dict(zip(found["ids"], map(without_sparse, found["metadatas"]), strict=True))
        with self.lock:
            unread, copy.unread = copy.unread, set()
            index = self._open()
            known = {
                id: metadata
                for id, _, metadata in index.read(index.rows(collection, recent).values()).values()
            }
        try:
            self._take(
                collection,
                db,
                [id for id in recent.keys() | unread if id in unread or known.get(id) != recent[id]],
            )
        except BaseException:
            copy.unread |= unread
            raise

    def _compare(self, copy: Copy, collection: str, db: Database) -> None:
        """Compare the ids: what is gone leaves, and what is new comes."""
        there = self._ids(collection, db)
        with self.lock:
            known = self._open().ids(collection)
            self._open().delete(collection, known.difference(there))
        new = [id for id in there if id not in known]
        for row in self._take(collection, db, new):
            behind = copy.asked_at - stamp_of(row.metadata)
            if copy.skew < behind < _MOST_SKEW_SECONDS:
                log.info("server_index.clock_behind", collection=collection, seconds=round(behind))
                copy.skew, copy.must_look_back = behind + SKEW_SECONDS, True

    def _take(self, collection: str, db: Database, ids: Sequence[str]) -> list[IndexedText]:
        """Read memories from the server; those that are not there leave."""
        taken = []
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            rows = self._reader.indexed(collection, page, db)
            with self.lock:
                codes = self._fresh_codes.take(collection, page)
                write_rows(self._open(), collection, rows)
                if codes:
                    self._open().set_codes(collection, codes)
                if len(rows) < len(page):
                    self._open().delete(collection, set(page).difference(row.id for row in rows))
            taken += rows
        return taken

    def _kept(self, collection: str) -> int:
        with self.lock:
            return self._open().count(collection)

    def _ids(self, collection: str, db: Database) -> list[str]:
        return self._api.get(collection, include=[], **db)["ids"]
