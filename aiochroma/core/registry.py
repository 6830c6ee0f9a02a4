"""One engine per database: found by location, counted by leases, closed with the last.

Everything that opens or releases goes through :func:`acquire` and :meth:`Lease.close`, under one lock that is never held while
Chroma runs.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aiochroma._clock import monotonic
from aiochroma._errors import ClosedError, SettingsConflictError, StoreUnavailableError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._waiting import start_thread
from aiochroma.core.config import DEFAULTS, EngineOptions, Location
from aiochroma.core.connection import BackendInfo, EngineInfo
from aiochroma.core.executors import ConnectionPlanner, ConnectionPool
from aiochroma.core.queue import forked_error
from aiochroma.core.stats import Stats
from aiochroma.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiochroma.backend.protocol import Backend
    from aiochroma.core.calls import Ticket
    from aiochroma.core.connection import Resource, Serving, WhenFull
    from aiochroma.core.plan import Planner
    from aiochroma.core.request import Request

__all__ = ["BackendWorker", "Engine", "Lease", "Opener", "acquire", "close_all", "open_databases"]

log: EventLogger = get_logger("aiochroma.core")

_CONNECTIONS = 4
_EXIT_DRAIN_SECONDS = 5.0
_EXIT_JOIN_SECONDS = 30.0
_WORKER_JOIN_SECONDS = 5.0

_lock = threading.Lock()
_engines: dict[Location, Engine] = {}
_opened_in_pid: int | None = None
"""The process in which Chroma's native threads were started; a fork of it cannot use Chroma at all."""


@dataclass(frozen=True)
class Opener:
    """How databases of one kind are opened and served.

    Attributes:
        open: Opens one; called on the DB thread.
        parallel: Several calls may be under way at once.
        native: Chroma's native threads run in this process, so a forked child cannot use what its parent opened.
        serve: Makes what serves it: ``serve(engine, on_idle=..., on_end=...)``. Default: a DB thread of this process.
    """

    open: Callable[[Location, EngineOptions], Backend]
    parallel: bool = False
    native: bool = True
    serve: Callable[..., Serving] | None = None


class BackendWorker(Worker):
    """The DB thread of this process, which can describe its backend to other threads."""

    def __init__(self, name: str, open_backend: Callable[[], Backend], **options: Any) -> None:
        self._opened: list[Backend] = []
        super().__init__(name, partial(_opened, open_backend, self._opened), **options)

    def describe(self) -> BackendInfo | None:
        """Return what the backend says of itself; None until it is open."""
        return self._opened[0].describe() if self._opened else None


def _opened(open_backend: Callable[[], Backend], opened: list[Backend]) -> Backend:
    opened.append(open_backend())
    return opened[0]


class Engine:
    """A database that is open, or opening: what serves it and the threads that work for it.

    Args:
        location: Where the database is.
        options: How it is served.
        opener: How it is opened.
        previous: An engine of the same database that is still closing; the new one waits for its end.
    """

    def __init__(
        self, location: Location, options: EngineOptions, opener: Opener, previous: Engine | None = None
    ) -> None:
        self.location = location
        self.options = options
        self.leases: int = 0
        self.lost_leases: list[None] = []
        self.closing: bool = False
        self.embedder: str | None = None
        self.opener = opener
        self._extra_workers: dict[object, Worker] = {}
        self._previous = previous
        self.serving: Serving = (opener.serve or _serve_here)(
            self, on_idle=self._release_lost, on_end=self._ended
        )

    def open(self) -> Backend:
        """Open the database; called on the DB thread."""
        self.await_previous()
        backend = self.opener.open(self.location, self.options)
        _hook_exit(after_chroma=True)
        return backend

    def await_previous(self) -> None:
        """Block until an engine of the same database that was closing has let go of it."""
        if self._previous is not None:
            self._previous.serving.join()
            self._previous = None

    def extra_worker(
        self, key: object, name: str, open_resource: Callable[[], Resource], planner: Planner
    ) -> Worker:
        """Return a further thread that works for this database, such as the one that embeds; it ends with the engine."""
        with _lock:
            worker = self._extra_workers.get(key)
            if worker is None:
                worker = Worker(f"{name} of {self.location.name}", open_resource, planner=planner)
                worker.thread.name = f"aiochroma-{name}:{self.location.short_name}"
                if self.closing:
                    worker.queue.close(drain=False)
                self._extra_workers[key] = worker
                try:
                    start_thread(worker.thread)
                except Exception:
                    del self._extra_workers[key]
                    raise
        return worker

    def describe(self) -> EngineInfo:
        """Return what is known of the database; never blocks."""
        backend, location = self.serving.describe(), self.location
        known = BackendInfo() if backend is None else backend
        return EngineInfo(
            mode=location.kind if known.host is None else "shared",
            name=location.name,
            path=location.path,
            url=location.url,
            is_open=backend is not None,
            **vars(known),
            embedder=self.embedder,
            stats=self.stats(),
            pending=self.serving.queue.pending,
            last_error=self.serving.recorder.last_error,
        )

    def stats(self) -> Stats:
        """Return counters and times since the database was opened."""
        queue, recorder = self.serving.queue, self.serving.recorder
        wait, run = recorder.times()
        return Stats(
            name=self.location.name,
            **queue.counts,
            pending=queue.pending,
            in_line=queue.in_line,
            calls=recorder.calls,
            batches=recorder.batches,
            wait_ms=wait,
            run_ms=run,
            embedder=self.embedder,
        )

    def begin_close(self, *, drain: bool) -> None:
        """Accept nothing more; the caller holds the registry's lock."""
        self.closing = True
        self.serving.close(drain=drain)
        for worker in self._extra_workers.values():
            worker.close(drain=False)

    def mark_forked(self) -> None:
        """In a forked child: refuse everything."""
        for queue in (self.serving.queue, *(worker.queue for worker in self._extra_workers.values())):
            queue.mark_forked()

    def _release_lost(self) -> None:
        while self.lost_leases:
            self.lost_leases.pop()
            with _lock:
                self.leases -= 1
                _close_unused(self)

    def _ended(self) -> None:
        with _lock:
            workers = list(self._extra_workers.values())
            for worker in workers:
                worker.close(drain=False)
            if _engines.get(self.location) is self:
                del _engines[self.location]
        for worker in workers:
            if not worker.join(_WORKER_JOIN_SECONDS):
                log.warning(
                    "worker.still_running",
                    thread=worker.thread.name,
                    hint="an embedding function has not returned; its thread ends when it does",
                )


def _serve_here(engine: Engine, *, on_idle: Callable[[], None], on_end: Callable[[], None]) -> BackendWorker:
    """Make the DB thread of an engine."""
    location, options = engine.location, engine.options
    connections = int(options.connections or _CONNECTIONS) if engine.opener.parallel else 0
    worker = BackendWorker(
        location.name,
        engine.open,
        planner=ConnectionPlanner(connections=connections) if connections else None,
        state=partial(ConnectionPool, connections=connections) if connections else None,
        max_pending=int(options.max_pending or DEFAULTS["max_pending"]),
        max_write_slice_ms=options.max_write_slice_ms,
        slow_request_ms=options.slow_request_ms or DEFAULTS["slow_request_ms"],
        on_idle=on_idle,
        on_end=on_end,
    )
    worker.thread.name = f"aiochroma-db:{location.short_name}"
    return worker


class Lease:
    """One client's share in an engine; the last to be closed closes it. See :class:`aiochroma.core.connection.Connection`.

    A lease that is collected without having been closed warns, and is released by the DB thread: a destructor may run
    in the middle of anything, so it takes no lock.
    """

    closed: bool = True
    """Until it is counted, and since it was given back."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._pid = os.getpid()

    def submit(
        self, request: Request, deadline: float | None = None, *, when_full: WhenFull = "wait"
    ) -> Ticket:
        """See :class:`aiochroma.core.connection.Connection`."""
        if self.closed:
            raise self._closed_error()
        return self.engine.serving.queue.submit(request, deadline, when_full=when_full)

    def submit_many(
        self, requests: Sequence[Request], deadline: float | None = None, *, when_full: WhenFull = "wait"
    ) -> list[Ticket]:
        """See :class:`aiochroma.core.connection.Connection`."""
        if self.closed:
            raise self._closed_error()
        return self.engine.serving.queue.submit_many(requests, deadline, when_full=when_full)

    def require_open(self) -> None:
        """See :class:`aiochroma.core.connection.Connection`."""
        if self.closed:
            raise self._closed_error()
        self.engine.serving.queue.require_open()

    def describe(self) -> EngineInfo:
        """See :class:`aiochroma.core.connection.Connection`."""
        return self.engine.describe()

    def note_embedder(self, identity: str) -> None:
        """See :class:`aiochroma.core.connection.Connection`."""
        self.engine.embedder = identity

    def extra_worker(
        self, key: object, name: str, open_resource: Callable[[], Resource], planner: Planner
    ) -> Worker:
        """See :class:`aiochroma.core.connection.Connection`."""
        return self.engine.extra_worker(key, name, open_resource, planner)

    def close(self, *, drain: bool = True) -> None:
        """See :class:`aiochroma.core.connection.Connection`."""
        with _lock:
            if not self.closed:
                self.closed = True
                self.engine.leases -= 1
            # Also the second time: Ctrl-C may have kept the first from it.
            _close_unused(self.engine, drain=drain)

    def when_ended(self, callback: Callable[[], None]) -> None:
        """See :class:`aiochroma.core.connection.Connection`."""
        if self.engine.closing:
            self.engine.serving.when_ended(callback)
        else:
            callback()

    def join(self, timeout: float | None = None) -> bool:
        """See :class:`aiochroma.core.connection.Connection`."""
        return not self.engine.closing or self.engine.serving.join(timeout)

    def _closed_error(self) -> ClosedError:
        return ClosedError(
            f"This client of {self.engine.location.name} is closed; open a new one to go on, with "
            "`aiochroma.AsyncPersistentClient`, `AsyncEphemeralClient` or `AsyncHttpClient`."
        )

    def __del__(self) -> None:
        if self.closed or self._pid != os.getpid():
            return
        self.closed = True
        self.engine.lost_leases.append(None)
        self.engine.serving.queue.wakeup.put(None)
        warnings.warn(
            f"A client of {self.engine.location.name} was not closed; use `async with` or `await client.close()`.",
            ResourceWarning,
            stacklevel=1,
            source=self,
        )


def acquire(location: Location, options: EngineOptions, opener: Opener) -> Lease:
    """Return a share in the engine of a database, opening it if this is the first.

    Whatever number of tasks and threads ask at once, one engine is made. Does not wait for Chroma: requests can be
    submitted at once and are served when it is open, or get the error if it cannot be opened.

    Raises:
        SettingsConflictError: It is already open in this process with other settings.
        StoreUnavailableError: The system gives no further thread, or no further descriptor.
        ForkedProcessError: This process was forked from one that had Chroma open.
    """
    global _opened_in_pid  # noqa: PLW0603 - one fact about the process
    with _lock:
        # Without native threads a forked child may open its own.
        if opener.native and _opened_in_pid not in {None, os.getpid()}:
            raise forked_error("A database")
        engine = _engines.get(location)
        if engine is not None and not engine.closing and engine.serving.queue.failure is None:
            conflicts = options.conflicts_with(engine.options)
            if options.process is not None and opener.native != engine.opener.native:
                conflicts.append("process")
            if conflicts:
                names = ", ".join(f"`{name}`" for name in conflicts)
                raise SettingsConflictError(
                    f"{location.name} is already open in this process with different {names} (an instance of Chroma already "
                    "exists with different settings). Open it with the same ones, or leave them out to share what is open."
                )
            if options.durable and not engine.options.durable:
                log.warning(
                    "database.not_durable",
                    database=location.name,
                    hint="opened first by a client that did not ask for `durable=True`; it holds from the next opening on",
                )
        else:
            _hook_exit(after_chroma=False)
            try:
                engine = _started(Engine(location, options, opener, previous=engine))
            except (OSError, RuntimeError) as error:
                raise StoreUnavailableError(f"{location.name} cannot be opened: {error}.") from error
            if opener.native:
                _opened_in_pid = os.getpid()
        lease = Lease(engine)
        # No call stands between these two lines, and Ctrl-C arrives at calls: every lease that is counted can be closed.
        engine.leases += 1
        lease.closed = False
        return lease


def _started(engine: Engine) -> Engine:
    """Have an engine served, and found by its location; the caller holds the registry's lock."""
    before = _engines.get(engine.location)
    # Before its thread starts: Ctrl-C may come while that does, and then whoever opens it next has to wait for its end.
    _engines[engine.location] = engine
    try:
        engine.serving.start()
    except BaseException:
        engine.begin_close(drain=False)
        if engine.serving.thread.ident is None:
            del _engines[engine.location]
            if before is not None:
                _engines[engine.location] = before
        raise
    return engine


def open_databases() -> list[tuple[str, int]]:
    """Return the databases that this process has open: the name of each, and how many requests it has to do."""
    with _lock:
        engines = list(_engines.values())
    return [(stats.name, stats.pending) for stats in (engine.stats() for engine in engines)]


def close_all(*, drain: bool = True) -> None:
    """Begin to close every database of this process."""
    with _lock:
        for engine in _engines.values():
            engine.begin_close(drain=drain)


def _close_unused(engine: Engine, *, drain: bool = True) -> None:
    """Close an engine without leases; the caller holds the registry's lock."""
    if engine.leases <= 0 and not engine.closing:
        engine.begin_close(drain=drain)


def _close_at_exit() -> None:
    """Stop and join every DB thread: one that is inside Chroma while the interpreter ends would crash it."""
    with _lock:
        engines = list(_engines.values())
    close_all()
    for seconds, drain in ((_EXIT_DRAIN_SECONDS, True), (_EXIT_JOIN_SECONDS, False)):
        if not drain:
            close_all(drain=False)
        until = monotonic() + seconds
        engines = [engine for engine in engines if not engine.serving.join(max(0.0, until - monotonic()))]
    for engine in engines:
        log.error("database.exit_while_running", database=engine.location.name)
        with _lock:
            # This runs twice at exit: it is not waited for once more.
            _engines.pop(engine.location, None)


_exit_hooks: set[bool] = set()


def _hook_exit(*, after_chroma: bool) -> None:
    """Have every DB thread joined at exit: before the first one starts, and again when chromadb has been imported.

    Before, because a thread that is still importing or opening when the interpreter ends can hang it for ever. Again,
    because hooks run last in, first out, and ours has to run before chromadb's own.
    """
    if after_chroma not in _exit_hooks:
        _exit_hooks.add(after_chroma)
        atexit.register(_close_at_exit)


def _after_fork_in_child() -> None:
    """The parent's threads do not exist here and its locks may be held for ever."""
    global _lock  # noqa: PLW0603 - the parent's lock may be held
    _lock = threading.Lock()
    for engine in _engines.values():
        engine.mark_forked()
    _engines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
