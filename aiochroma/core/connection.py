"""The seam between what asks and what serves: a connection carries requests, whatever is at the other end.

Above this seam no code knows whether a database is open in this process, in another one, or on a server. Below it no code knows
who asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chromadb.config import Settings

    from aiochroma.core.queue import RequestQueue, Ticket
    from aiochroma.core.request import Request
    from aiochroma.core.stats import Stats, StatsRecorder
    from aiochroma.core.worker import Planner, Resource, Worker
    from aiochroma.disk.ownership import Owner
    from aiochroma.disk.recovery import RecoveryReport

__all__ = ["BackendInfo", "Capabilities", "Connection", "EngineInfo", "Mode", "Serving", "WhenFull"]

Mode = Literal["persistent", "ephemeral", "http", "shared"]
WhenFull = Literal["wait", "raise"]


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; asked instead of its kind.

    Attributes:
        parallel_calls: Several calls may be under way at the same time.
        holds_gil: A write holds the interpreter, so it is cut into slices with pauses between them.
        full_text: A full-text index is kept beside the records and follows every write.
        history: Changes of memories can be noted and read.
        files: The database is a directory of this machine, which can be backed up.
    """

    parallel_calls: bool = False
    holds_gil: bool = True
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
    host: Mapping[str, Any] | None = None


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

    mode: Mode
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
            deadline: The moment (``time.monotonic()``) after which the outcome is of no use, or None.
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


class Serving(Protocol):
    """What an engine has its requests served by: a thread of this process, or a link to another process."""

    queue: RequestQueue
    recorder: StatsRecorder

    def start(self) -> None:
        """Begin to open the database."""

    def close(self, *, drain: bool = True) -> None:
        """Begin to close and return at once."""

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when serving is about to end; at once if it has. It must neither block nor raise."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end, at most ``timeout`` seconds; return whether it has come."""

    def describe(self) -> BackendInfo | None:
        """Return what the backend said of itself; None until the database is open."""
