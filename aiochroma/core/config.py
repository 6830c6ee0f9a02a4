"""What a database is and how it is to be opened: plain data, compared when a second client opens the same one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from aiochroma._errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chromadb.config import Settings

    from aiochroma.backend.server import Access

__all__ = ["DEFAULTS", "EngineOptions", "Location"]

_NUMBERS = (
    "max_pending",
    "max_write_slice_ms",
    "slow_request_ms",
    "vector_cache_mb",
    "connections",
    "attempts",
    "connect_timeout",
    "read_timeout",
)

_SETTLED_HERE = frozenset({"persist_directory", "is_persistent", "anonymized_telemetry", "chroma_api_impl"})
"""What of Chroma's settings is decided at opening, whatever they say."""


@dataclass(frozen=True)
class Location:
    """Where a database is; equal locations share one engine.

    Attributes:
        kind: ``"persistent"``, ``"ephemeral"`` or ``"http"``.
        path: The canonical directory of a persistent database, else empty.
        url: The address of a server, else empty.
        fingerprint: Tells clients of one server apart that send different headers, so that they never share a connection.
    """

    kind: Literal["persistent", "ephemeral", "http"]
    path: str = ""
    url: str = ""
    fingerprint: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.url:
            return f"the Chroma server at {self.url}"
        return f"the database {self.path!r}" if self.path else "the ephemeral database"

    @property
    def short_name(self) -> str:
        """What the thread is called."""
        if self.url:
            return urlsplit(self.url).netloc
        return Path(self.path).name or self.path if self.path else self.kind


DEFAULTS: Mapping[str, float] = {
    "max_pending": 10_000,
    "max_write_slice_ms": 10.0,
    "slow_request_ms": 1000.0,
    "vector_cache_mb": 64.0,
}


@dataclass(frozen=True)
class EngineOptions:
    """How a database is served. Clients that open one a second time either agree or leave an option unset (None).

    Attributes:
        settings: Chroma's own settings, or None for its defaults.
        max_pending: How many requests may wait before a line forms; default 10,000.
        max_write_slice_ms: Budget for one slice of writing, in milliseconds; default 10, and up to 100 where nothing else in the
            process has anything to do.
        slow_request_ms: Requests slower than this are logged, in milliseconds; default 1000.
        vector_cache_mb: The most memory that the vectors of memories take, in megabytes; default 64.
        lock_timeout: How long to wait for another process to let go of the directory, in seconds; default 0.
        durable: Keep in the log every vector that our file lacks, so that a broken index can be rebuilt; None leaves it as it is.
        allow_missing_vectors: Open even though records have lost their vectors; default False.
        access: What is sent along to a server; not shown. It is part of the location's fingerprint.
        connections: How many requests may be under way to a server at once; default 4.
        attempts: How often a request to a server is tried; default 6.
        connect_timeout: How long making a connection to a server may take, in seconds; default 5.
        read_timeout: How long a server may take to answer, in seconds; default 60.
        cache: The file in which what was read of a server's memories stays for the next start; default none.
        process: ``"shared"``: another process has the directory open and serves all; ``"this"``: this one has. None: whichever.
        host_idle: How long a process that serves all stays without clients, in seconds; default 60.
    """

    settings: Settings | None = field(default=None, repr=False)
    max_pending: int | None = None
    max_write_slice_ms: float | None = None
    slow_request_ms: float | None = None
    vector_cache_mb: float | None = None
    lock_timeout: float | None = None
    durable: bool | None = None
    allow_missing_vectors: bool | None = None
    access: Access | None = None
    connections: int | None = None
    attempts: int | None = None
    connect_timeout: float | None = None
    read_timeout: float | None = None
    cache: str | None = None
    process: str | None = None
    host_idle: float | None = None

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                raise InvalidInputError(f"`{name}` must be a number above 0, got {shown(value)}.")
        for name in ("connections", "attempts"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise InvalidInputError(f"`{name}` must be a whole number, got {shown(value)}.")

    @property
    def vector_cache_bytes(self) -> int:
        """The most bytes that the vectors of memories take."""
        megabytes = DEFAULTS["vector_cache_mb"] if self.vector_cache_mb is None else self.vector_cache_mb
        return int(megabytes * 2**20)

    def conflicts_with(self, first: EngineOptions) -> list[str]:
        """Return what these options ask for that the first opener decided otherwise."""
        conflicts = []
        for name in ("settings", "cache", *_NUMBERS):
            mine, theirs = getattr(self, name), getattr(first, name)
            if theirs is None:
                theirs = DEFAULTS.get(name)
            if mine is not None and _comparable(mine, theirs) != _comparable(theirs, mine):
                conflicts.append(name)
        return conflicts


def _comparable(value: Any, other: Any) -> object:
    """Return what counts of an option, so that a client's own ``get_settings()`` always agree with it.

    Chroma's settings name the directory in the caller's spelling, and say whether Chroma may report its use, which it never
    may here: those differences do not count. Settings that were left out are Chroma's defaults.
    """
    if value is None and hasattr(other, "model_dump"):
        value = type(other).model_construct()  # The constructor reads the environment.
    if not hasattr(value, "model_dump"):
        return value
    return {key: item for key, item in value.model_dump().items() if key not in _SETTLED_HERE}
