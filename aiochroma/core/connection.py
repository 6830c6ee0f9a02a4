"""The seam between what asks and what serves: a connection carries requests, whatever is at the other end.

Above this seam no code knows whether a database is open in this process, in another one, or on a server. Below it no code knows
who asks.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import os
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar, runtime_checkable

from aiochroma._clock import monotonic
from aiochroma._errors import AiochromaError, StoreUnavailableError
from aiochroma._waiting import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chromadb.config import Settings

    from aiochroma._types import JsonObject
    from aiochroma.core.calls import Ticket
    from aiochroma.core.plan import Planner
    from aiochroma.core.queue import RequestQueue
    from aiochroma.core.request import CallResult, Request
    from aiochroma.core.stats import Stats, StatsRecorder
    from aiochroma.core.worker import Worker
    from aiochroma.disk.findings import RecoveryReport
    from aiochroma.disk.ownership import Owner

__all__ = [
    "Aside",
    "BackendInfo",
    "Capabilities",
    "Connection",
    "EngineInfo",
    "EngineMode",
    "Resource",
    "Serving",
    "WhenFull",
    "Working",
    "thread_failure",
]

_START_SECONDS = 1.0

EngineMode = Literal["persistent", "ephemeral", "http", "shared"]

WhenFull = Literal["wait", "raise"]


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; asked instead of its kind.

    Attributes:
        parallel_calls: Several calls may be under way at the same time.
        full_text: A full-text index is kept beside the records and follows every write.
        history: Changes of memories can be noted and read.
        files: The database is a directory of this machine, which can be backed up.
    """

    parallel_calls: bool = False
    full_text: bool = False
    history: bool = False
    files: bool = False


@dataclass(frozen=True)
class BackendInfo:
    """What a backend says of itself; plain data.

    Attributes:
        capabilities: What it can do.
        settings: Chroma's settings as they are in force, without credentials.
        owner: Who owns the directory; None without one, and while it could not be opened again.
        recovery: What was repaired at opening; None for a database without files.
        has_missing_vectors: Some records have no vector.
        host: The process that serves the database for others (pid, clients, since, version); None where that is this process.
    """

    capabilities: Capabilities = Capabilities()
    settings: Settings | None = field(default=None, repr=False)
    owner: Owner | None = None
    recovery: RecoveryReport | None = None
    has_missing_vectors: bool = False
    host: JsonObject | None = None


@dataclass(frozen=True, kw_only=True)
class EngineInfo(BackendInfo):
    """What is known of a database and of what serves it; plain data, as of the moment of the question.

    Attributes:
        mode: ``"persistent"``, ``"ephemeral"``, ``"http"``, or ``"shared"`` where another process serves the directory.
        name: What messages call the database.
        path: The canonical directory, or empty.
        url: The address of a server, or empty.
        is_open: The database has been opened. Until then nothing is known of its backend.
        embedder: The identity of the embedder that a memory on this database uses, or None.
        stats: Counters and times since the database was opened.
        pending: How many requests are queued or running.
        last_error: The last error that concerned the store and not a caller's arguments, or None.
    """

    mode: EngineMode
    name: str
    path: str = ""
    url: str = ""
    is_open: bool = False
    embedder: str | None = None
    stats: Stats
    pending: int = 0
    last_error: str | None = None


class Connection(Protocol):
    """One client's share in what serves a database."""

    @property
    def closed(self) -> bool:
        """Whether this share was given back; others may still keep the database open."""

    def submit(
        self, request: Request, deadline: float | None = None, *, when_full: WhenFull = "wait"
    ) -> Ticket:
        """Submit a request from an event loop, or from a plain thread.

        Args:
            request: What is to be done.
            deadline: The moment (``monotonic()``) after which the outcome is of no use, or None.
            when_full: Wait in line when the queue is full, or raise.

        Returns:
            Something to ``await`` on that loop; on a plain thread its ``result()`` blocks.

        Raises:
            ClosedError: This share was given back, or the database is closed or closing.
            ForkedProcessError: This process was forked after the database was opened.
            QueueFullError: The queue is full and ``when_full`` is ``"raise"``.
        """

    def submit_many(
        self, requests: Sequence[Request], deadline: float | None = None, *, when_full: WhenFull = "wait"
    ) -> list[Ticket]:
        """Submit several requests in one step; all of them or none."""

    def require_open(self) -> None:
        """Raise what :meth:`submit` would: for callers with costly preparations, such as embedding."""

    def describe(self) -> EngineInfo:
        """Return what is known of the database; never blocks."""

    def note_embedder(self, identity: str) -> None:
        """Note which embedder a memory uses, for :meth:`describe`."""

    def extra_worker(
        self, key: object, name: str, open_resource: Callable[[], Resource], planner: Planner
    ) -> Worker:
        """Return a further thread that works for this database, such as the one that embeds; it ends with it."""

    def close(self, *, drain: bool = True) -> None:
        """Give the share back and return at once; the last one closes the database. Idempotent.

        Args:
            drain: Serve what was submitted before; else it is refused.
        """

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the closing database's thread is about to end; at once where there is nothing to wait for."""

    def join(self, timeout: float | None = None) -> bool:
        """Block until a closing database's thread has ended, at most ``timeout`` seconds; return whether nothing is left."""


class Resource(Protocol):
    """What a DB thread owns."""

    def execute(self, request: Request, deadline: float | None = None) -> CallResult:
        """Carry out one call; its result is no longer awaited after ``deadline`` (``monotonic()``)."""

    def close(self) -> None:
        """Give everything back."""


@runtime_checkable
class Working(Protocol):
    """A resource that has work of its own, which is done between the requests of others."""

    def work(self) -> bool:
        """Do a slice of it, of some milliseconds; return whether there is more."""


@runtime_checkable
class Rewriting(Protocol):
    """A resource that rewrites the index of a collection on the disk once a number of records were written to it."""

    def until_rewrite(self, collection: str) -> int | None:
        """Return how many records are left until then; None where that is not known."""


class Serving(ABC):
    """What an engine has its requests served by: a thread that owns the database, or one that asks another process.

    The thread is a daemon, so that a forgotten one cannot hang the interpreter; the registry stops and joins it at exit,
    because a daemon inside native code at that moment would crash it (9 of 20 exits in our measurement). It runs in an empty
    context: it must not inherit that of whoever happened to open the database first.

    Args:
        name: The thread's name.
        queue: What it serves.
        recorder: What is counted and measured.
        serve: Body of the thread: returns when the queue is closed and empty. It holds the queue, not this handle.
        on_end: Called on the thread when it ends.
    """

    def __init__(
        self,
        name: str,
        queue: RequestQueue,
        recorder: StatsRecorder,
        serve: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.recorder = recorder
        ended = self._ended = _Ended()
        self._pid = os.getpid()

        def run() -> None:
            try:
                serve()
            finally:
                try:
                    on_end()
                finally:
                    ended.announce()

        self.thread: threading.Thread = threading.Thread(
            target=contextvars.Context().run, args=(run,), name=name, daemon=True
        )

    @abstractmethod
    def describe(self) -> BackendInfo | None:
        """Return what the backend said of itself; None until the database is open."""

    def start(self) -> None:
        """Start the thread; opening the database is its first act."""
        try:
            self.thread.start()
        except KeyboardInterrupt:
            until = monotonic() + _START_SECONDS
            while self.thread.ident is None and monotonic() < until:
                time.sleep(_START_SECONDS / 1000)  # It starts all the same.
            raise

    def close(self, *, drain: bool = True) -> None:
        """Begin to close and return at once."""
        self.queue.close(drain=drain)

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the thread is about to end; at once if it has. It must neither block nor raise."""
        self._ended.call(callback)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end, at most ``timeout`` seconds; return whether it has."""
        if self.thread.ident is None or os.getpid() != self._pid:
            return True
        # Not by joining alone: a join that Ctrl-C interrupts has Python take the thread for one that has ended (until 3.12).
        if self.thread is threading.current_thread() or not self._ended.over.wait(timeout):
            return False
        self.thread.join()
        return True


def thread_failure(name: str, error: BaseException) -> AiochromaError:
    """Return what callers get when the thread that served them has failed.

    Args:
        name: What messages call the database.
        error: What ended the thread.
    """
    if isinstance(error, AiochromaError):
        return error
    failure = StoreUnavailableError(
        f"The thread of {name} has failed: {error!r}. Close the client and open it again."
    )
    failure.__cause__ = error
    return failure


class _Ended:
    """Calls those who wait for a thread's end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] | None = []
        self.over: threading.Event = threading.Event()

    def call(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if self._callbacks is not None:
                self._callbacks.append(callback)
                return
        callback()

    def announce(self) -> None:
        with self._lock:
            callbacks, self._callbacks = self._callbacks or (), None
        self.over.set()
        for callback in callbacks:
            callback()


T = TypeVar("T")


class Aside(Generic[T]):
    """What a barrier returns whose work goes on beside the DB thread, and needs no more than that nothing is written.

    Until it is over the DB thread carries out reads, and everything else waits.

    Args:
        work: The work; begins now, on a thread of its own.
        finish: Called on the DB thread when the work is over, with nothing else under way; gets what the work returned, and
            returns the result of the call. Not called when the work raised.
    """

    def __init__(self, work: Callable[[], T], finish: Callable[[T], CallResult]) -> None:
        self._work = work
        self._finish = finish
        self._future: concurrent.futures.Future[T] = concurrent.futures.Future()
        start_thread(
            threading.Thread(target=self._run, name=f"{threading.current_thread().name}:aside", daemon=True)
        )

    @property
    def is_over(self) -> bool:
        """Whether the work is done, or has failed."""
        return self._future.done()

    def when_over(self, callback: Callable[[], None]) -> None:
        """Call something when the work is over, on its thread; at once if it is."""
        self._future.add_done_callback(lambda _: callback())

    def result(self) -> CallResult:
        """Wait for the work, and return the result of the call.

        Raises:
            BaseException: Whatever the work raised, or its end.
        """
        return self._finish(self._future.result())

    def _run(self) -> None:
        try:
            self._future.set_result(self._work())
        except BaseException as error:  # noqa: BLE001 - belongs to the caller, not to the thread
            self._future.set_exception(error)
