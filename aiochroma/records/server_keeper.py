"""A copy of a server's memories at the client, brought up to date before every search.

The first search of a namespace reads it whole; later ones ask, in one round trip, how many memories it has and which were
written since, and read those. The server is the truth and other clients write to it at any time. Whatever they add or delete
changes the number of memories, and the ids are then compared. Whatever they change carries the time of their clock: what was
stamped since the last question is asked for each time, and every two seconds what was stamped up to a minute before it, for a
clock that is behind ours. One that is further behind is noticed by what it adds, and followed from then on.

Used from several connection threads at once. Questions to the server are asked outside of the lock.
"""

from __future__ import annotations

import contextvars
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk.retained_log import LogState
from aiochroma.records.index_keeper import IndexKeeper, write_rows
from aiochroma.records.record import UPDATED_AT
from aiochroma.text.index import CACHE_BYTES

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from chromadb.api import ServerAPI

    from aiochroma._types import MetadataView
    from aiochroma.backend.chroma_records import Database
    from aiochroma.text.index import IndexedText, TextIndex

__all__ = ["MOST_MEMORIES", "ServerKeeper"]

log: EventLogger = get_logger("aiochroma.records")

MOST_MEMORIES = 50_000
"""The most memories of all namespaces of a server that are kept. With 256 dimensions each takes 3 kB here and 5 kB on its way."""
_PAGE = 500
_COPYING_SECONDS = 1.0
"""How long a search copies, or waits for another to copy, before it is answered from candidates of the server."""
_ON_THE_WAY_SECONDS = 1.0
"""How much later than it was stamped a write may come to the server."""
_SKEW_SECONDS = 60.0
_MOST_SKEW_SECONDS = 3600.0
_LOOK_BACK_SECONDS = 2.0
_COMPARE_SECONDS = 300.0
"""How often the ids are compared although the numbers agree."""
_REFUSED_SECONDS = 30.0
_UNUSED_SECONDS = 600.0
"""A namespace that was not searched for this time makes room for another."""
_THREADS = 4


@dataclass
class _Copy:
    """A namespace that is followed.

    Attributes:
        lock: Held by the search that brings it up to date.
        ids: Those that are to be copied, in the server's order; None before that has begun.
        copied: How many of them were.
        is_complete: Whether all were.
        followed_at: When the last question was asked that was answered (``time.monotonic()``).
        asked_at: The same on the clock that memories are stamped with.
        looked_back_at: The last question that went further back.
        compared_at: When the ids were compared last.
        skew: How far back that has to go, in seconds.
        must_look_back: Whether the next one has to, however long ago it was.
        seen: The metadata of what was written lately, by id.
        unread: What this client has written.
        used_at: When it was searched last.
        refused_until: Until when it is not asked again whether there is room for it.
        count: How many memories it had when it was refused.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    ids: list[str] | None = None
    copied: int = 0
    is_complete: bool = False
    followed_at: float = 0.0
    asked_at: float = 0.0
    looked_back_at: float = 0.0
    compared_at: float = 0.0
    skew: float = _SKEW_SECONDS
    must_look_back: bool = True
    seen: dict[str, MetadataView | None] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    used_at: float = field(default_factory=time.monotonic)
    refused_until: float = 0.0
    count: int = 0

    @property
    def share(self) -> float:
        """Which share of the namespace is here."""
        return 1.0 if self.is_complete else min(0.999, self.copied / len(self.ids)) if self.ids else 0.0


class ServerKeeper(IndexKeeper):
    """Keeps namespaces of a server in an index in memory.

    Args:
        api: Chroma's client of the server.
        most: How many memories may be kept.
        cache_bytes: The most bytes that vectors take beside the index.

    Attributes:
        lock: To be held while the index is used.
    """

    def __init__(self, api: ServerAPI, most: int = MOST_MEMORIES, cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__(api, None, LogState(), cache_bytes, any_thread=True)
        self.lock: threading.RLock = threading.RLock()
        self._most = most
        self._copies: dict[str, _Copy] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="aiochroma-follow")

    # -- using it ------------------------------------------------------------------------------------------------------

    def follow(self, collection: str, db: Database) -> tuple[float, str | None]:
        """Bring a namespace up to date; return which share of it is here, and why it cannot be kept here, if it cannot."""
        arrived = time.monotonic()
        with self.lock:
            problem = self._present_problem()
            if problem is not None:
                return 0.0, problem
            copy = self._copies.setdefault(collection, _Copy())
            copy.used_at = arrived
        # A complete copy is soon up to date; one that is being made may take long.
        if not copy.lock.acquire(timeout=-1 if copy.is_complete else _COPYING_SECONDS):
            return copy.share, None
        try:
            if arrived < copy.refused_until:
                return 0.0, self._refusal(copy)
            if copy.followed_at < arrived:
                self._update(copy, collection, db)
            return copy.share, self._refusal(copy) if arrived < copy.refused_until else None
        except Exception as error:
            if type(error).__name__ == "NotFoundError":
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
        """See ``IndexKeeper``."""
        with self.lock:
            self._copies.clear()
            super().failed(error)

    # -- what this client does -----------------------------------------------------------------------------------------

    def noticed(self, collection: str, ids: Iterable[str]) -> None:
        """Have the next search read what this client wrote: that may have taken long, or have no new stamp."""
        with self.lock:
            copy = self._copies.get(collection)
            if copy is not None:
                copy.unread.update(ids)

    def deleted(self, collection: str, ids: Sequence[str]) -> None:
        """Follow a deletion of this client."""
        with self.lock:
            copy = self._copies.get(collection)
            if copy is not None and copy.is_complete:
                self._remove(copy, collection, ids)

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
            self._copies.clear()
            self.close({})

    # -- following the server ------------------------------------------------------------------------------------------

    def _update(self, copy: _Copy, collection: str, db: Database) -> None:
        if not copy.is_complete and not self._copy(copy, collection, db):
            return
        begun, now = time.monotonic(), time.time()
        looks_back = copy.must_look_back or begun - copy.looked_back_at > _LOOK_BACK_SECONDS
        copy.must_look_back = False
        try:
            counting = self._threads.submit(
                contextvars.copy_context().run, lambda: self._count(collection, db)
            )
            self._read_changes(copy, collection, db, looks_back=looks_back)
            counted = counting.result()
            if not looks_back and counted != self._kept(collection):
                self._read_changes(copy, collection, db, looks_back=True)
                looks_back = True
            if counted != self._kept(collection) or begun - copy.compared_at > _COMPARE_SECONDS:
                self._compare(copy, collection, db)
                copy.compared_at = begun
        except BaseException:
            copy.must_look_back = True
            raise
        copy.followed_at, copy.asked_at = begun, now
        if looks_back:
            copy.looked_back_at = begun

    def _copy(self, copy: _Copy, collection: str, db: Database) -> bool:
        """Copy for a while; return whether everything is here."""
        until = time.monotonic() + _COPYING_SECONDS
        if copy.ids is None:
            copy.count = self._count(collection, db)
            if not self._makes_room(collection, copy.count):
                copy.refused_until = time.monotonic() + _REFUSED_SECONDS
                return False
            copy.asked_at = time.time()
            copy.ids = self._ids(collection, db)
            with self.lock:
                index = self._open()
                index.delete_namespace(collection)
                index.set_watermark(collection, "open")
        while copy.copied < len(copy.ids):
            ids = copy.ids[copy.copied : copy.copied + _PAGE]
            rows = self._take(copy, collection, db, ids)
            lately = copy.asked_at - copy.skew
            copy.seen.update((row.id, row.metadata) for row in rows if _stamp(row.metadata) >= lately)
            copy.copied += len(ids)
            if time.monotonic() > until and copy.copied < len(copy.ids):
                return False
        copy.is_complete, copy.must_look_back, copy.compared_at = True, True, time.monotonic()
        log.debug("server_index.copied", collection=collection, records=copy.copied)
        return True

    def _makes_room(self, collection: str, count: int) -> bool:
        """Tell whether a namespace fits, after those that have not been used for long have left."""
        now = time.monotonic()
        with self.lock:
            others = {
                name: max(copy.copied, self._kept(name))
                for name, copy in self._copies.items()
                if name != collection
            }
            for name in sorted(others, key=lambda name: self._copies[name].used_at):
                if count + sum(others.values()) <= self._most or count > self._most:
                    break
                if now - self._copies[name].used_at > _UNUSED_SECONDS:
                    self.forget(name)
                    del others[name]
            return count + sum(others.values()) <= self._most

    def _refusal(self, copy: _Copy) -> str:
        return (
            f"The namespace has {copy.count:,} memories, and {self._most:,} of a server are kept in this process at most. Words "
            "were compared with what the server came up with: some hits may be missing. A directory has no such limit."
        )

    def _read_changes(self, copy: _Copy, collection: str, db: Database, *, looks_back: bool) -> None:
        """Read what was written since the last question."""
        since = copy.asked_at - (copy.skew if looks_back else _ON_THE_WAY_SECONDS)
        found = self._api.get(collection, where={UPDATED_AT: {"$gte": since}}, include=["metadatas"], **db)
        recent = dict(zip(found["ids"], found["metadatas"], strict=True))
        with self.lock:
            unread, copy.unread = copy.unread, set()
        try:
            changed = {id: None for id in recent if copy.seen.get(id) != recent[id]} | dict.fromkeys(unread)
            rows = self._take(copy, collection, db, list(changed))
        except BaseException:
            copy.unread |= unread
            raise
        with self.lock:
            copy.seen = {
                **({} if looks_back else copy.seen),
                **recent,
                **{row.id: row.metadata for row in rows},
            }

    def _compare(self, copy: _Copy, collection: str, db: Database) -> None:
        """Compare the ids: what is gone leaves, and what is new comes."""
        there = self._ids(collection, db)
        with self.lock:
            known = self._open().ids(collection)
            self._remove(copy, collection, known.difference(there))
        new = [id for id in there if id not in known]
        for row in self._take(copy, collection, db, new):
            behind = copy.asked_at - _stamp(row.metadata)
            if copy.skew < behind < _MOST_SKEW_SECONDS:
                log.info("server_index.clock_behind", collection=collection, seconds=round(behind))
                copy.skew, copy.must_look_back = behind + _SKEW_SECONDS, True

    def _take(self, copy: _Copy, collection: str, db: Database, ids: Sequence[str]) -> list[IndexedText]:
        """Read memories from the server; those that are not there leave."""
        taken = []
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            rows = self._reader.indexed(collection, page, db)
            with self.lock:
                write_rows(self._open(), collection, rows)
                if len(rows) < len(page):
                    self._remove(copy, collection, set(page).difference(row.id for row in rows))
            taken += rows
        return taken

    def _remove(self, copy: _Copy, collection: str, ids: Iterable[str]) -> None:
        ids = list(ids)
        if ids:
            self._open().delete(collection, ids)
        for id in ids:
            copy.seen.pop(id, None)

    def _kept(self, collection: str) -> int:
        with self.lock:
            return self._open().count(collection)

    def _count(self, collection: str, db: Database) -> int:
        return self._api.count(collection, **db)

    def _ids(self, collection: str, db: Database) -> list[str]:
        return self._api.get(collection, include=[], **db)["ids"]


def _stamp(metadata: MetadataView | None) -> float:
    stamp = (metadata or {}).get(UPDATED_AT)
    return float(stamp) if isinstance(stamp, (int, float)) else 0.0
