"""The host: has a directory open and serves every process of this user that connects.

Two threads. The main thread accepts, reads and decodes, cancels, answers questions about the host, and ends it; so it answers
also while the database is being repaired or a long call runs. The DB thread is that of any engine: it plans, calls Chroma, and
sends the outcomes itself.

Life:

* The owner's lock comes first, on the DB thread. Whoever has it may remove a socket that was left over, and listens. Clients
  connect, and their requests wait, while the database is still being opened.
* Without a client for ``idle`` seconds it stops listening, looks once more, and ends.
* Asked to end (``SIGTERM``, ``SIGINT``, a stop request) it tells its clients, serves what it has received, for at most
  ten seconds, and ends. A second signal ends it at once.
* The socket's name is removed before the lock is released: afterwards it would be the successor's.
"""

from __future__ import annotations

import os
import selectors
import signal
import threading
import time
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._errors import DatabaseInUseError, StoreUnavailableError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject
from aiochroma.core.config import EngineOptions, Location
from aiochroma.core.registry import BackendWorker
from aiochroma.host.messages import error_to_wire, event_values, make_codec, options_from_json, versions
from aiochroma.host.peer import STUCK_SECONDS, Clients, Peer, current_request
from aiochroma.host.reaching import acquire_after_host
from aiochroma.host.scheduling import SharedWorkerState
from aiochroma.host.sockets import Listening, Waker
from aiochroma.host.wire import Codec, FrameKind, ProtocolError, frame, json_frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aiochroma.backend.protocol import Backend
    from aiochroma.disk.ownership import Ownership

__all__ = ["HostServer"]

log: EventLogger = get_logger("aiochroma.host")

_DRAIN_SECONDS = 10.0
_FIRST_CLIENT_SECONDS = 10.0
"""For at least so long a host waits for the client that has started it."""

_LOOK_SECONDS = 60.0
_LINGER_SECONDS = 2.0
"""For how long a host whose database cannot be opened tells clients why."""

_CATCH_UP_SECONDS = 0.01
"""For at most so long the DB thread waits after a slice of writing for what has come meanwhile to be read."""


class HostServer:
    """One directory's host.

    Args:
        directory: The canonical directory.
        options: How the database is served.
        idle: Ends after this many seconds without a client; None for never.
        open_backend: Opens the database: ``open_backend(location, options, take_lock=...)``, on the DB thread.
        announce: Called once, when the host listens (with None), or with the error why it never will.
    """

    def __init__(
        self,
        directory: Path,
        options: EngineOptions,
        idle: float | None,
        open_backend: Callable[..., Backend],
        announce: Callable[[BaseException | None], None],
    ) -> None:
        self._directory = directory
        self._options = options
        self._idle = idle
        self._announce = announce
        self._since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._versions = versions()
        self._selector = selectors.DefaultSelector()
        self._listening = Listening(directory, self._selector)
        self._looked_at = monotonic()
        self._look_after_at = 0.0
        self._ends_at: float | None = None
        self._signal = 0
        self._had_client = False
        self._woken = False
        self._opened_told = False
        self._failed_at: float | None = None
        self._imported = threading.Event()
        self._caught_up = threading.Event()
        self._waker = Waker()
        self._has_ended = False
        location = Location("persistent", str(directory))
        self._worker = BackendWorker(
            location.name,
            partial(open_backend, location, options, take_lock=self._take_lock),
            state=partial(
                SharedWorkerState, max_write_slice_ms=options.max_write_slice_ms, catch_up=self._catch_up
            ),
            max_pending=2**31,
            slow_request_ms=float("inf"),
            on_end=self._note_end,
        )
        self._worker.thread.name = f"aiochroma-db:{location.short_name}"
        self._clients = Clients(
            self._worker.queue,
            self._selector,
            self._waker.wake,
            self._facts_for,
            self._worker.recorder,
            self._asked,
        )

    # -- the DB thread's side --------------------------------------------------------------------------------------------

    def _take_lock(self, directory: Path, wait_seconds: float) -> Ownership:
        """Become the owner, then listen; called at every opening."""
        ownership = acquire_after_host(
            directory, wait_seconds, role="host", socket_path=os.fspath(self._listening.address)
        )
        if self._listening.socket is None and self._ends_at is None:
            try:
                self._listening.open()
            except OSError as error:
                ownership.release()
                raise DatabaseInUseError(
                    f"The socket {os.fspath(self._listening.address)!r} cannot be made: {error}"
                ) from error
            self._announce(None)
            self._waker.wake()
        self._imported.wait()
        return ownership

    def _note_end(self) -> None:
        """Note that the DB thread has closed the database; it is still alive while it says so."""
        self._failed_at = monotonic()
        self._has_ended = True
        self._waker.wake()

    def _catch_up(self) -> None:
        """Return when the main thread has read what has come, or after a moment."""
        self._caught_up.clear()
        self._waker.wake()
        self._caught_up.wait(_CATCH_UP_SECONDS)

    def _facts_for(self, peer: Peer) -> bytes:
        """Return the frame that says what has changed since this client was last told; empty where nothing has."""
        last_error, info = self._worker.recorder.last_error, self._worker.describe()
        told = info and (info.recovery, info.owner, info.has_missing_vectors, last_error)
        if told == peer.told:
            return b""
        peer.told = told
        return frame(FrameKind.FACTS, 0, self._clients.codec.encode([last_error, info]))

    # -- the main thread ---------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until the end; return the exit code: 0, or 3 where the directory could not be had."""
        self._selector.register(self._waker.reader, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._waker.writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._worker.start()
        try:
            # Two threads that import chromadb at the same time get in each other's way, so the DB thread waits.
            self._clients.codec = make_codec()
            self._imported.set()
            while not self._is_over():
                self._turn()
        finally:
            self._imported.set()
            self._listening.close()
            self._worker.close(drain=False)
            self._clients.hand_over()  # Which is too late: their clients send them to the next host.
            over = self._worker.join(_DRAIN_SECONDS)
            self._say_goodbye()
        if not over:
            log.error("host.killed", database=str(self._directory))
            os._exit(1)
        failure = self._worker.queue.failure
        if failure is not None and not self._opened_told:
            self._announce(failure)
        return 3 if failure is not None else 0

    def _is_over(self) -> bool:
        if self._has_ended:
            if self._worker.queue.failure is None:
                return True
            return self._listening.socket is None or (
                self._ends_at is not None and monotonic() >= self._ends_at
            )
        return self._ends_at is not None and monotonic() >= self._ends_at

    def _turn(self) -> None:
        """Wait for what comes. Where that is requests alone, they are handed over, and there is nothing to look after."""
        self._clients.hand_over()
        if self._woken:
            self._woken = False
            self._caught_up.set()
        others = not self._opened_told
        for key, events in self._selector.select(max(0.0, self._look_after_at - monotonic())):
            if key.data is not None:
                others = not self._clients.serve(key.data, events) or others
                continue
            others = True
            if key.fileobj is self._waker.reader:
                self._woken = True
                self._waker.drain()
            elif key.fileobj is self._listening.socket:
                self._clients.accept(self._listening.waiting())
        if others or monotonic() >= self._look_after_at:
            self._look_after()

    def _look_after(self) -> None:
        self._clients.look_after()
        if self._signal:
            self._begin_end(f"signal {signal.Signals(self._signal).name}")
        self._tell_of_opening()
        self._look()
        self._listening.watch()
        self._look_after_at = self._next_moment() + 0.001

    def _next_moment(self) -> float:
        """Return when there is something to look after, whether or not something comes before (``monotonic()``)."""
        now = monotonic()
        moments = [self._looked_at + _LOOK_SECONDS]
        if self._listening.watched_from > now:
            moments.append(self._listening.watched_from)
        if self._idle_at is not None:
            moments.append(self._idle_at)
        if self._ends_at is not None:
            moments.append(self._ends_at)
        if self._clients.crowded:
            moments.append(now + STUCK_SECONDS)
        return min(moments)

    @property
    def _idle_at(self) -> float | None:
        """When it ends for want of clients (``monotonic()``); None while it does not, or is ending already."""
        since = self._clients.alone_since
        if self._idle is None or since is None or self._ends_at is not None:
            return None
        return since + (self._idle if self._had_client else max(self._idle, _FIRST_CLIENT_SECONDS))

    def _on_signal(self, number: int, _frame: object) -> None:
        """Take note of a signal, and no more: this thread may hold any lock in this moment. The waker has been told, too."""
        if self._signal:
            os._exit(128 + number)
        self._signal = number

    # -- what clients ask about the host -------------------------------------------------------------------------------------

    def _asked(self, peer: Peer, kind: FrameKind, value: object) -> None:
        """Answer what is about the host, and not about the database."""
        if kind is FrameKind.HELLO:
            self._greet(peer, value)
        elif kind is FrameKind.STATUS:
            peer.send(json_frame(FrameKind.STATUS, self.status()))
        elif kind is FrameKind.STOP:
            self._asked_to_stop(peer, force=bool(value))
        else:
            raise ProtocolError(f"A message of the kind {kind.name} came, which no client sends now.")

    def _greet(self, peer: Peer, hello: object) -> None:
        if not isinstance(hello, dict):
            raise ProtocolError("The greeting cannot be read.")
        began = hello.get("began")
        if self._failed_at is not None and isinstance(began, float) and began > self._failed_at:
            # What kept this host from opening the directory may be gone by now: whoever tries since then gets a host of its own.
            peer.send(json_frame(FrameKind.REFUSED, {"reason": "failed", "pid": os.getpid(), "going": True}))
            self._listening.close()
            return
        others = self._clients.served
        theirs = {name: hello.get(name) for name in self._versions}
        if theirs != self._versions:
            reason = {
                "reason": "versions",
                "mine": self._versions,
                "pid": os.getpid(),
                "clients": others,
                "going": not others,
            }
            peer.send(json_frame(FrameKind.REFUSED, reason))
            if not others:
                self._begin_end("a client of another version came")
            return
        conflicts = options_from_json(hello.get("options") or {}).conflicts_with(self._options)
        if conflicts:
            peer.send(
                json_frame(FrameKind.REFUSED, {"reason": "options", "names": conflicts, "pid": os.getpid()})
            )
            return
        peer.pid, peer.greeted = int(hello.get("pid") or 0), True
        self._had_client = True
        peer.going = self._ends_at is not None
        peer.send(
            json_frame(
                FrameKind.WELCOME,
                {
                    **self._versions,
                    "pid": os.getpid(),
                    "since": self._since,
                    "clients": others + 1,
                    "durable": self._options.durable,
                },
            )
        )
        if peer.going:
            peer.send(frame(FrameKind.GOING, 0))
        failure, info = self._worker.queue.failure, self._worker.describe()
        if failure is not None:
            peer.send(frame(FrameKind.FAILED, 0, self._clients.codec.encode(error_to_wire(failure))))
        elif info is not None:
            self._tell_opened(peer)

    def forward_event(self, level: str, event: str, values: JsonObject) -> None:
        """Have an event logged by the client whose request it is about, or by all where it is about none; any thread."""
        request = current_request.get()
        body = Codec().encode([level, event, event_values(values)])
        if request is not None:
            peer, number = request
            peer.send(frame(FrameKind.EVENT, number, body))
        else:
            self._clients.broadcast(frame(FrameKind.EVENT, 0, body))

    def status(self) -> JsonObject:
        """Return what ``aiochroma host --status`` shows."""
        queue, recorder = self._worker.queue, self._worker.recorder
        wait, run = recorder.times()
        return {
            **self._versions,
            "path": str(self._directory),
            "pid": os.getpid(),
            "since": self._since,
            "idle": self._idle,
            "state": "going"
            if self._ends_at is not None
            else "open"
            if self._worker.describe()
            else "opening",
            "clients": [
                {"pid": peer.pid, "requests": len(peer.tickets)} for peer in self._clients if peer.greeted
            ],
            "pending": queue.pending,
            "done": queue.counts["done"],
            "failed": queue.counts["failed"],
            "calls": recorder.calls,
            "wait_ms": asdict(wait),
            "run_ms": asdict(run),
            "last_error": recorder.last_error,
        }

    # -- beginning and end ---------------------------------------------------------------------------------------------------

    def _tell_of_opening(self) -> None:
        """Tell the clients when the database is open, or that it cannot be opened."""
        if self._opened_told:
            return
        failure, info = self._worker.queue.failure, self._worker.describe()
        if failure is not None and self._listening.socket is not None:
            self._opened_told = True
            self._clients.broadcast(
                frame(FrameKind.FAILED, 0, self._clients.codec.encode(error_to_wire(failure)))
            )
            self._ends_at = monotonic() + _LINGER_SECONDS
        elif info is not None:
            self._opened_told = True
            for peer in self._clients:
                if peer.greeted:
                    self._tell_opened(peer)

    def _tell_opened(self, peer: Peer) -> None:
        peer.send(frame(FrameKind.OPENED, 0))
        peer.send(self._facts_for(peer))

    def _asked_to_stop(self, peer: Peer, *, force: bool) -> None:
        others = self._clients.served
        if others and not force:
            peer.send(
                json_frame(FrameKind.REFUSED, {"reason": "clients", "clients": others, "pid": os.getpid()})
            )
            return
        peer.send(json_frame(FrameKind.STOP, {"pid": os.getpid(), "clients": others}))
        self._begin_end("it was asked to")

    def _begin_end(self, why: str) -> None:
        """Accept nothing more, serve what has come, and end."""
        if self._ends_at is not None:
            return
        log.info("host.ending", database=str(self._directory), reason=why)
        self._ends_at = monotonic() + _DRAIN_SECONDS
        self._listening.close()
        for peer in self._clients:
            peer.going = True
            if peer.greeted:
                peer.send(frame(FrameKind.GOING, 0))
        self._worker.close(drain=True)

    def _look(self) -> None:
        """End when there is no client, or nothing to serve; once a minute see whether socket and directory still are."""
        now = monotonic()
        if self._ends_at is not None or not self._listening.has_begun:
            return
        if self._worker.queue.failure is not None:
            # The DB thread has died. A new host may open the database again; clients find it by themselves.
            self._begin_end("the database cannot be served any more")
            return
        idle_at = self._idle_at
        if idle_at is not None and now >= idle_at and not self._clients.accept(self._listening.waiting()):
            self._begin_end("no client is connected")
            return
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        if not self._directory.is_dir():
            if self._clients.alone_since is not None:
                self._begin_end("the directory is gone")
            return
        if not self._listening.is_bound():
            self._listening.close()
            hint = "it was made again"
            try:
                self._listening.open()
            except (OSError, StoreUnavailableError) as error:
                hint = f"it cannot be made again now: {error}"
            log.warning("host.socket_was_deleted", database=str(self._directory), hint=hint)

    def _say_goodbye(self) -> None:
        """Give the clients a moment to read what they are owed."""
        until = monotonic() + _LINGER_SECONDS
        while monotonic() < until and not all(peer.send_unsent() for peer in self._clients):
            time.sleep(0.005)
        for peer in self._clients:
            peer.close()
