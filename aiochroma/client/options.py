"""The options of clients, with their defaults, and what they open: the only module that tells kinds of databases apart.

The openers take the options as keywords of the same names.

Plain data and light to import. What is wrong with an option is said when it is given; only the file system is asked later, by
``resolve``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from aiochroma._errors import InvalidInputError, is_one_of, shown
from aiochroma._files import canonical_path, expand, fixed_path, make_directory, touch_private
from aiochroma._waiting import LONGEST_SECONDS, checked_seconds
from aiochroma.core.config import EngineOptions, Location

if TYPE_CHECKING:
    import os

    from chromadb.api import ServerAPI
    from chromadb.config import Settings
    from pydantic import SecretStr

    from aiochroma.backend.server import Access, AuthHeader
    from aiochroma.core.connection import WhenFull
    from aiochroma.core.registry import Lease, Opener

__all__ = [
    "DEFAULT_DATABASE",
    "DEFAULT_TENANT",
    "AnyOptions",
    "ClientOptions",
    "ConnectMode",
    "ConnectOverrides",
    "ConnectTarget",
    "EphemeralOptions",
    "HttpOptions",
    "PersistentOptions",
    "Process",
    "check_flag",
    "check_function",
    "check_name",
    "check_progress",
]

DEFAULT_TENANT = "default_tenant"

DEFAULT_DATABASE = "default_database"


@dataclass(frozen=True)
class ConnectTarget:
    """A database, and how a client is going to use it.

    Attributes:
        location: Where it is.
        options: How it is served.
        tenant: Chroma's tenant.
        database: Chroma's database within the tenant.
        timeout: Limit for each call, in seconds, or None.
        when_full: What a call does when the queue is full: wait in line, or raise.
        opener: How it is opened; default: as its kind is in this process.
    """

    location: Location
    options: EngineOptions
    tenant: str = DEFAULT_TENANT
    database: str = DEFAULT_DATABASE
    timeout: float | None = None
    when_full: WhenFull = "wait"
    opener: Opener | None = None

    def acquire(self) -> Lease:
        """Return a share in the database's engine; errors as :func:`aiochroma.core.registry.acquire`."""
        # Late, as all that opens: half of what importing this package would take.
        from aiochroma.core.registry import acquire

        return acquire(self.location, self.options, self.opener or _opener_of(self.location.kind))


def _opener_of(kind: str) -> Opener:
    """Return what opens a database of a kind in this process."""
    if kind == "http":
        from aiochroma.backend.http import HttpBackend
        from aiochroma.core.registry import Opener
        from aiochroma.records.server_index import ServerIndex

        # A forked child may make its own connections to a server.
        def server_index(api: ServerAPI, options: EngineOptions) -> ServerIndex:
            file = None if options.cache is None else Path(options.cache)
            return ServerIndex(api, file, cache_bytes=options.vector_cache_bytes)

        return Opener(partial(HttpBackend, make_operations=server_index), parallel=True, native=False)
    from aiochroma.host.opening import EMBEDDED

    return EMBEDDED


ConnectMode = Literal["persistent", "http", "ephemeral"]

Process = Literal["shared", "this"]

_MOST_MEGABYTES = 2**24
_LONGEST_SOCKET_SECONDS = 86_400.0
"""Sockets take no longer time limit than some weeks."""


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """What all clients can be told; see :func:`aiochroma.AsyncPersistentClient` for each."""

    settings: Settings | None = field(default=None, repr=False)
    tenant: str = DEFAULT_TENANT
    database: str = DEFAULT_DATABASE
    timeout: float | None = None
    when_full: WhenFull = "wait"
    max_pending: int = 10_000
    slow_request_ms: float = 1000.0
    vector_cache_mb: float = 64.0

    def __post_init__(self) -> None:
        check_name("tenant", self.tenant)
        check_name("database", self.database)
        checked_seconds("timeout", self.timeout)
        if self.settings is not None and not hasattr(self.settings, "model_copy"):
            raise InvalidInputError(
                f"`settings` must be chromadb.config.Settings, or None, got {shown(self.settings)}."
            )
        if not is_one_of(self.when_full, "wait", "raise"):
            raise InvalidInputError(f"`when_full` must be 'wait' or 'raise', got {shown(self.when_full)}.")
        _check_whole("max_pending", self.max_pending)
        _check_milliseconds("slow_request_ms", self.slow_request_ms)
        _check_megabytes("vector_cache_mb", self.vector_cache_mb)

    def resolve(self) -> ConnectTarget:
        """Return what is to be opened; may ask the file system, so it is not for an event loop's thread."""
        raise NotImplementedError

    def _target(self, location: Location, **options: Any) -> ConnectTarget:
        return ConnectTarget(
            location,
            EngineOptions(
                self.settings,
                max_pending=self._wish("max_pending"),
                slow_request_ms=self._wish("slow_request_ms"),
                vector_cache_mb=self._wish("vector_cache_mb"),
                **options,
            ),
            tenant=self.tenant,
            database=self.database,
            timeout=checked_seconds("timeout", self.timeout),
            when_full=self.when_full,
        )

    def _wish(self, name: str) -> Any:
        """Return an option, or None where it is the default: a second client without wishes shares what is open."""
        value = getattr(self, name)
        return None if value == next(each.default for each in fields(self) if each.name == name) else value


@dataclass(frozen=True, kw_only=True)
class EphemeralOptions(ClientOptions):
    """What a client of the database in memory can be told; see :func:`aiochroma.AsyncEphemeralClient`."""

    max_write_slice_ms: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_milliseconds("max_write_slice_ms", self.max_write_slice_ms)

    def resolve(self) -> ConnectTarget:
        """See :class:`ClientOptions`."""
        return self._target(Location("ephemeral"), max_write_slice_ms=self._wish("max_write_slice_ms"))


@dataclass(frozen=True, kw_only=True)
class PersistentOptions(ClientOptions):
    """What a client of a directory can be told; see :func:`aiochroma.AsyncPersistentClient`."""

    path: str | os.PathLike[str] = "./chroma"
    max_write_slice_ms: float = 10.0
    lock_timeout: float = 0.0
    durable: bool | None = None
    allow_missing_vectors: bool = False
    process: Process | None = None
    host_idle: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_milliseconds("max_write_slice_ms", self.max_write_slice_ms)
        checked_seconds("lock_timeout", self.lock_timeout, zero=True, none=False)
        if self.process is not None and not is_one_of(self.process, "shared", "this"):
            raise InvalidInputError(f"`process` must be 'shared', 'this' or None, got {shown(self.process)}.")
        checked_seconds("host_idle", self.host_idle, zero=True, none=False)
        if self.durable is not None:
            check_flag("durable", self.durable)
        check_flag("allow_missing_vectors", self.allow_missing_vectors)
        object.__setattr__(self, "path", fixed_path(self.path))

    def resolve(self) -> ConnectTarget:
        """See :class:`ClientOptions`.

        Raises:
            InvalidInputError: The path is empty or not a path.
            StoreUnavailableError: This process has too many files open.
            DatabaseInUseError: It is to be open in this process alone, and a host with clients serves it.
        """
        target = self._target(
            Location("persistent", canonical_path(self.path)),
            max_write_slice_ms=self._wish("max_write_slice_ms"),
            lock_timeout=min(self.lock_timeout, LONGEST_SECONDS),
            durable=self.durable,
            allow_missing_vectors=self.allow_missing_vectors,
            process=self.process,
            host_idle=min(self.host_idle, LONGEST_SECONDS),
        )
        from aiochroma.disk.layout import refuse_without_descriptors
        from aiochroma.host.opening import opener_for

        refuse_without_descriptors(target.location.path)
        return replace(target, opener=opener_for(target.location.path, target.options))


@dataclass(frozen=True, kw_only=True)
class HttpOptions(ClientOptions):
    """What a client of a Chroma server can be told; see :func:`aiochroma.AsyncHttpClient`."""

    host: str = "localhost"
    port: int = 8000
    ssl: bool = False
    headers: Mapping[str, str | SecretStr] | None = field(default=None, repr=False)
    connections: int = 4
    auth_token: str | SecretStr | None = field(default=None, repr=False)
    auth_header: AuthHeader = "authorization"
    ca_file: str | os.PathLike[str] | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 60.0
    attempts: int = 6
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_whole("connections", self.connections)
        _check_whole("attempts", self.attempts)
        _check_above_zero("connect_timeout", self.connect_timeout)
        _check_above_zero("read_timeout", self.read_timeout)
        if self.cache is not None:
            expand(self.cache, "cache")
        self._url_and_access()

    def resolve(self) -> ConnectTarget:
        """See :class:`ClientOptions`.

        Raises:
            InvalidInputError: The folder of `cache` cannot be made, or no file in it.
        """
        url, access = self._url_and_access()
        return self._target(
            Location("http", url=url, fingerprint=access.fingerprint),
            access=access,
            cache=None if self.cache is None else _cache_file(expand(self.cache, "cache"), url),
            connections=self._wish("connections"),
            attempts=self._wish("attempts"),
            connect_timeout=_socket_seconds(self._wish("connect_timeout")),
            read_timeout=_socket_seconds(self._wish("read_timeout")),
        )

    def _url_and_access(self) -> tuple[str, Access]:
        """Return the server's address, and what is sent along with every request.

        Raises:
            InvalidInputError: One of the options is wrong; no secret is repeated.
        """
        from aiochroma.backend.server import access_to, url_of

        url = url_of(self.host, self.port, ssl=self.ssl)
        if self.ca_file is not None and not url.startswith("https:"):
            raise InvalidInputError("`ca_file` is of no use without TLS: set `ssl=True`, or leave it out.")
        if not isinstance(self.headers, Mapping | None):
            raise InvalidInputError(
                f"`headers` must be a mapping or None, got {type(self.headers).__name__}."
            )
        headers, settings = dict(self.headers or {}), self.settings
        credentials: tuple[Any, ...] = ()
        if settings is not None:
            _refuse_other_address(settings, self.host, self.port, url)
            headers = {**(settings.chroma_server_headers or {}), **headers}
            credentials = (
                settings.chroma_client_auth_provider,
                settings.chroma_client_auth_credentials,
                settings.chroma_auth_token_transport_header,
                settings.chroma_server_ssl_verify,
            )
        ca_file = None if self.ca_file is None else Path(self.ca_file).expanduser()
        return url, access_to(headers, self.auth_token, self.auth_header, ca_file, self.tenant, *credentials)


AnyOptions = PersistentOptions | EphemeralOptions | HttpOptions


class ConnectOverrides(TypedDict, total=False):
    """Keywords of :func:`aiochroma.connect`: in place of the environment's variables, and every other option of the client."""

    mode: ConnectMode
    path: str | os.PathLike[str]
    host: str
    port: int
    ssl: bool
    auth_token: str | SecretStr | None
    auth_header: AuthHeader
    ca_file: str | os.PathLike[str] | None
    tenant: str
    database: str
    timeout: float | None
    settings: Settings | None
    headers: Mapping[str, str | SecretStr] | None
    when_full: WhenFull
    max_pending: int
    slow_request_ms: float
    vector_cache_mb: float
    max_write_slice_ms: float
    lock_timeout: float
    durable: bool | None
    allow_missing_vectors: bool
    process: Process | None
    host_idle: float
    connections: int
    connect_timeout: float
    read_timeout: float
    attempts: int
    cache: str | os.PathLike[str] | None


def _cache_file(folder: Path, url: str) -> str:
    """Return the file in which the copy of a server's memories lies; made, closed to others, if it is not there."""
    file = (
        Path(canonical_path(folder))
        / f"aiochroma-server-{hashlib.sha256(url.encode()).hexdigest()[:16]}.sqlite3"
    )
    try:
        make_directory(file.parent)
        touch_private(file)
    except OSError as error:
        raise InvalidInputError(
            f"`cache` {str(folder)!r} cannot be used: {error}. It must be a folder in which this user may write, or None."
        ) from error
    return str(file)


def _refuse_other_address(settings: Settings, host: str, port: int, url: str) -> None:
    """Chroma's own client refuses settings that name another server than its arguments, and so does this one."""
    if settings.chroma_server_host == url:
        return  # As an open client's own settings name it.
    for name, mine, theirs in (
        ("host", host, settings.chroma_server_host),
        ("port", port, settings.chroma_server_http_port),
    ):
        if theirs is not None and theirs != mine:
            raise InvalidInputError(
                f"`settings` name another {name} ({theirs!r}) than the arguments ({mine!r})."
            )


def check_name(name: str, value: object) -> None:
    """Check that an option is a name.

    Raises:
        InvalidInputError: It is no text, or an empty one.
    """
    if not isinstance(value, str) or not value:
        raise InvalidInputError(f"`{name}` must be a non-empty string, got {shown(value)}.")


def _check_above_zero(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise InvalidInputError(f"`{name}` must be a number above 0, got {shown(value)}.")


def _check_milliseconds(name: str, value: object) -> None:
    _check_above_zero(name, value)
    if isinstance(value, (int, float)) and value > LONGEST_SECONDS * 1000:
        raise InvalidInputError(
            f"`{name}` must be at most {LONGEST_SECONDS * 1000:.0f} ms, got {shown(value)}."
        )


def _check_megabytes(name: str, value: object) -> None:
    _check_above_zero(name, value)
    if isinstance(value, (int, float)) and value > _MOST_MEGABYTES:
        raise InvalidInputError(f"`{name}` must be at most {_MOST_MEGABYTES} MB, got {shown(value)}.")


def check_flag(name: str, value: object) -> None:
    """Check that an option is true or false.

    Raises:
        InvalidInputError: It is neither.
    """
    if not isinstance(value, bool):
        raise InvalidInputError(f"`{name}` must be true or false, got {shown(value)}.")


def check_progress(progress: object) -> None:
    """Check that what is told of progress can be called: found in the middle, it would end what has begun.

    Raises:
        InvalidInputError: It cannot.
    """
    if progress is not None:
        check_function("progress", progress, "a function or None")


def check_function(name: str, value: object, what: str = "a function") -> None:
    """Check that an argument can be called.

    Raises:
        InvalidInputError: It cannot.
    """
    if not callable(value):
        raise InvalidInputError(f"`{name}` must be {what}, got {shown(value)}.")


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidInputError(f"`{name}` must be a whole number above 0, got {shown(value)}.")


def _socket_seconds(seconds: float | None) -> float | None:
    return None if seconds is None or math.isnan(seconds) else min(seconds, _LONGEST_SOCKET_SECONDS)
