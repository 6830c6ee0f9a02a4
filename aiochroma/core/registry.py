"""One engine per database: found by location, counted by leases, closed with the last.

Everything that opens or releases goes through the two functions :func:`acquire` and :meth:`Lease.release`, under one lock
that is never held while Chroma runs.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from aiochroma._errors import SettingsConflictError
from aiochroma._logging import get_logger
from aiochroma.core.config import DEFAULTS, EngineOptions, Location
from aiochroma.core.executors import ConnectionPool
from aiochroma.core.queue import forked_error
from aiochroma.core.schedule import ConnectionPlanner
from aiochroma.core.stats import Stats
from aiochroma.core.worker import Planner, Resource, Worker

__all__ = ["Engine", "Lease", "acquire", "close_all"]

log = get_logger("aiochroma.engine")

Opener = Callable[[Location, EngineOptions], Resource]

_CONNECTIONS = 4
_EXIT_DRAIN_SECONDS = 5.0
_EXIT_JOIN_SECONDS = 30.0
_COMPANION_JOIN_SECONDS = 5.0

_lock = threading.Lock()
_engines: dict[Location, Engine] = {}
_opened_in_pid: int | None = None
"""The process in which Chroma's native threads were started; a fork of it cannot use Chroma at all."""


class Engine:
    """A database that is open, or opening: its DB thread and the threads that work for it.

    Args:
        location: Where the database is.
        options: How it is served.
        opener: Opens it; called on the DB thread.
        previous: An engine of the same database that is still closing; the new one waits for its end.
    """

    def __init__(
        self, location: Location, options: EngineOptions, opener: Opener, previous: Engine | None = None
    ) -> None:
        self.location = location
        self.options = options
        self.leases = 0
        self.lost_leases: list[None] = []
        self.closing = False
        self.details: dict[str, Any] = {}
        self.resource: Resource | None = None
        self._companions: dict[object, Worker] = {}
        self._opener = opener
        self._previous = previous
        connections = int(options.connections or _CONNECTIONS) if location.kind == "http" else 0
        self.serving = Worker(
            location.name,
            self._open,
            planner=ConnectionPlanner(connections=connections) if connections else None,
            server=partial(ConnectionPool, connections=connections) if connections else None,
            max_pending=int(options.max_pending or DEFAULTS["max_pending"]),
            max_write_slice_ms=options.max_write_slice_ms or DEFAULTS["max_write_slice_ms"],
            slow_request_ms=options.slow_request_ms or DEFAULTS["slow_request_ms"],
            on_idle=self._release_lost,
            on_end=self._ended,
        )
        self.serving.thread.name = f"aiochroma-db:{location.short_name}"

    def _open(self) -> Resource:
        if self._previous is not None:
            self._previous.serving.join()
            self._previous = None
        self.resource = self._opener(self.location, self.options)
        _hook_exit(after_chroma=True)
        return self.resource

    def companion(
        self, key: object, name: str, open_resource: Callable[[], Resource], planner: Planner
    ) -> Worker:
        """Return a further thread that works for this database, such as the one that embeds; it ends with the engine."""
        with _lock:
            serving = self._companions.get(key)
            if serving is None:
                serving = Worker(f"{name} of {self.location.name}", open_resource, planner=planner)
                serving.thread.name = f"aiochroma-{name}:{self.location.short_name}"
                if self.closing:
                    serving.queue.close(drain=False)
                self._companions[key] = serving
                serving.start()
        return serving

    def stats(self) -> Stats:
        """Return counters and times since the database was opened."""
        queue, recorder = self.serving.queue, self.serving.recorder
        wait, run = recorder.times()
        return Stats(
            name=self.location.name,
            **queue.counts,
            pending=queue.unfinished,
            calls=recorder.calls,
            batches=recorder.batches,
            wait_ms=wait,
            run_ms=run,
            details=dict(self.details),
        )

    def begin_close(self, *, drain: bool) -> None:
        """Accept nothing more; the caller holds the registry's lock."""
        self.closing = True
        self.serving.close(drain=drain)
        for companion in self._companions.values():
            companion.close(drain=False)

    def mark_forked(self) -> None:
        """In a forked child: refuse everything."""
        for serving in (self.serving, *self._companions.values()):
            serving.queue.mark_forked()

    def _release_lost(self) -> None:
        while self.lost_leases:
            self.lost_leases.pop()
            _release(self)

    def _ended(self) -> None:
        with _lock:
            companions = list(self._companions.values())
            for companion in companions:
                companion.close(drain=False)
            if _engines.get(self.location) is self:
                del _engines[self.location]
        for companion in companions:
            if not companion.join(_COMPANION_JOIN_SECONDS):
                log.warning(
                    "companion.still_running",
                    thread=companion.thread.name,
                    hint="an embedding function has not returned; its thread ends when it does",
                )


class Lease:
    """One client's share in an engine; the last to be released closes it.

    A lease that is collected without having been released warns, and is released by the DB thread: a destructor may run
    in the middle of anything, so it takes no lock.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.released = False
        self._pid = os.getpid()

    def release(self, *, drain: bool = True) -> bool:
        """Give the share back; return whether the engine is closing now. Idempotent."""
        if self.released:
            return self.engine.closing
        self.released = True
        return _release(self.engine, drain=drain)

    def __del__(self) -> None:
        if self.released or self._pid != os.getpid():
            return
        self.released = True
        self.engine.lost_leases.append(None)
        self.engine.serving.queue.wakeup.put(None)
        warnings.warn(
            f"A client of {self.engine.location.name} was not closed; use `async with` or `await client.aclose()`.",
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
        ForkedProcessError: This process was forked from one that had Chroma open.
    """
    global _opened_in_pid  # noqa: PLW0603 - one fact about the process
    with _lock:
        # A client of a server is no matter of native threads: a forked child may open its own.
        embedded = location.kind != "http"
        if embedded and _opened_in_pid not in {None, os.getpid()}:
            raise forked_error("A database")
        engine = _engines.get(location)
        if engine is not None and not engine.closing and engine.serving.queue.failure is None:
            conflicts = options.conflicts_with(engine.options)
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
            engine = _engines[location] = Engine(location, options, opener, previous=engine)
            if embedded:
                _opened_in_pid = os.getpid()
            _hook_exit(after_chroma=False)
            engine.serving.start()
        engine.leases += 1
        return Lease(engine)


def close_all(*, drain: bool = True) -> None:
    """Begin to close every database of this process."""
    with _lock:
        for engine in _engines.values():
            engine.begin_close(drain=drain)


def _release(engine: Engine, *, drain: bool = True) -> bool:
    with _lock:
        engine.leases -= 1
        if engine.leases <= 0:
            engine.begin_close(drain=drain)
        return engine.closing


def _close_at_exit() -> None:
    """Stop and join every DB thread: one that is inside Chroma while the interpreter ends would crash it."""
    with _lock:
        engines = list(_engines.values())
    close_all()
    for seconds, drain in ((_EXIT_DRAIN_SECONDS, True), (_EXIT_JOIN_SECONDS, False)):
        if not drain:
            close_all(drain=False)
        until = time.monotonic() + seconds
        engines = [
            engine for engine in engines if not engine.serving.join(max(0.0, until - time.monotonic()))
        ]
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
