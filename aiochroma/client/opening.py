"""Opening a client: awaitable, usable with ``async with``, light to import."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, NoReturn

from typing_extensions import Unpack

from aiochroma._errors import DeadlineExceededError
from aiochroma._green import refuse_half_patched
from aiochroma._waiting import off_loop, waits_by_blocking
from aiochroma.client.options import (
    DEFAULT_DATABASE,
    DEFAULT_TENANT,
    ConnectOverrides,
    EphemeralOptions,
    HttpOptions,
    PersistentOptions,
)
from aiochroma.client.session import Closing, Session

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Mapping
    from types import TracebackType

    from chromadb.config import Settings
    from pydantic import SecretStr

    from aiochroma.backend.server import AuthHeader
    from aiochroma.client.client import AsyncClient
    from aiochroma.client.options import ConnectTarget, Process
    from aiochroma.core.connection import WhenFull

__all__ = ["AsyncEphemeralClient", "AsyncHttpClient", "AsyncPersistentClient", "ClientOpening", "connect"]


def _caller() -> asyncio.Task[object] | int | None:
    """Return what tells one caller from another: its task, or without an event loop its thread."""
    return threading.get_ident() if waits_by_blocking() else asyncio.current_task()


class ClientOpening:
    """A client that is about to be opened: ``await`` it, or use it with ``async with``.

    It may be used any number of times, also at the same time: each ``await`` and each block has a client of its own.

    Args:
        resolve: Says what is to be opened. It is called on a worker thread: it may ask the file system, or import much.
    """

    def __init__(self, resolve: Callable[[], ConnectTarget]) -> None:
        self.resolve = resolve
        self._entered: list[tuple[asyncio.Task[object] | int | None, AsyncClient]] = []

    def __await__(self) -> Generator[object, None, AsyncClient]:
        return self.open().__await__()

    async def __aenter__(self) -> AsyncClient:
        client = await self.open()
        self._entered.append((_caller(), client))
        return client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leaving().close()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"This client is not open yet, so it has no attribute {name!r}: `await` it, or use it with `async with`."
        )

    async def open(self) -> AsyncClient:
        """Open a client; the same as awaiting this object.

        Raises:
            InvalidInputError: An argument, or the environment's configuration, is wrong.
            StoreUnavailableError: It cannot be opened; see the error tree.
            BlockingCallError: gevent or eventlet replaced threads too late, or by halves.
            chromadb.errors.NotFoundError: There is no such tenant or database.
        """
        refuse_half_patched()
        target = await off_loop(self.resolve)
        session = Session(target.acquire(), timeout=target.timeout, when_full=target.when_full)
        try:
            with session.limit():
                await session.submit("get_tenant", name=target.tenant)
                await session.submit("get_database", name=target.database, tenant=target.tenant)
            # Not before the DB thread has imported chromadb: on this thread it would stop the loop for half a second.
            from aiochroma.client.client import AsyncClient
        except GeneratorExit:
            # Collected as garbage, in the middle of anything: its share in the database is, too, and is given back for that.
            raise
        except BaseException as error:
            session.connection.close()
            if isinstance(error, Exception) and not isinstance(error, DeadlineExceededError):
                # The error arrives once the files are closed: the caller may run the doctor, or start another process.
                await Closing(session.connection)
            raise
        return AsyncClient(session, target.tenant, target.database)

    def _leaving(self) -> AsyncClient:
        """Return the client of the block that ends: the last one that this task has entered.

        A block may end in another task than it began in, as those of test fixtures do; then it is one whose task has ended.
        """
        here = _caller()
        entered = list(enumerate(self._entered))
        own = [position for position, (caller, _) in entered if caller == here]
        orphaned = [
            position
            for position, (caller, _) in entered
            if caller is None or (isinstance(caller, asyncio.Task) and caller.done())
        ]
        return self._entered.pop((own or orphaned or [len(entered) - 1])[-1])[1]


def AsyncPersistentClient(  # noqa: N802 - named and called as Chroma's own
    path: str | os.PathLike[str] = "./chroma",
    settings: Settings | None = None,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
    *,
    timeout: float | None = None,
    when_full: WhenFull = "wait",
    max_pending: int = 10_000,
    slow_request_ms: float = 1000.0,
    vector_cache_mb: float = 64.0,
    max_write_slice_ms: float = 10.0,
    lock_timeout: float = 0.0,
    durable: bool | None = None,
    allow_missing_vectors: bool = False,
    process: Process | None = None,
    host_idle: float = 60.0,
) -> ClientOpening:
    """Open a database on disk.

    All clients of one directory in one process share one DB thread, however the path is spelled. The last one that is
    closed ends it.

    Args:
        path: The directory; made if it does not exist.
        settings: Chroma's own settings; not changed. Default: Chroma's defaults, whatever environment and ``.env`` say.
        tenant: Chroma's tenant.
        database: Chroma's database within the tenant.
        timeout: Limit for each call, in seconds, waiting and embedding included; None for none. A
            :class:`~aiochroma.deadline` block overrides it.
        when_full: What a call does when the queue is full: ``"wait"`` in line, or ``"raise"``
            :class:`~aiochroma.QueueFullError`.
        max_pending: How many requests may be queued or running.
        slow_request_ms: Requests slower than this are logged, in milliseconds.
        vector_cache_mb: The most memory that the vectors of memories take, in megabytes: 64 hold those of 65,000 memories with
            256 dimensions. The namespaces that were searched last stay; others are read again from the file beside Chroma's.
        max_write_slice_ms: How long one slice of a write may hold the interpreter, in milliseconds. By default up to 100 where
            nothing else in the process has anything to do.
        lock_timeout: How long to wait for another process to let go of the directory, in seconds.
        durable: Keep every vector in Chroma's log as well, so that a broken index can be rebuilt completely; about 4 bytes x
            dimensions for each record that lives, 200 bytes for one that is gone, bounded by ``client.backup``. Of memories it
            keeps what aiochroma's own file does not have. None leaves it as the directory was.
        allow_missing_vectors: Open even though records have lost their vectors; see ``client.recovery``.
        process: ``"shared"``: the directory's host serves it, a process that all programs of this user share and that the first
            of them starts. ``"this"``: this process alone opens it. None: through the host if there is one already, else in
            this process.
        host_idle: How long a host that this client starts stays when its last client has gone, in seconds.

    Returns:
        Something to ``await``, or to use with ``async with``, for an :class:`aiochroma.AsyncClient`.

    Raises:
        InvalidInputError: An argument is wrong.
        DatabasePathError: When awaited: the path is a file, or there is no permission.
        DatabaseInUseError: When awaited: another process has it open.
        SettingsConflictError: When awaited: it is open in this process with other settings.
        chromadb.errors.NotFoundError: When awaited: there is no such tenant or database.

    Example:
        >>> async with AsyncPersistentClient("./chroma") as client:  # doctest: +SKIP
        ...     collection = await client.get_or_create_collection("notes", embedding_function=None)
    """
    return ClientOpening(
        PersistentOptions(
            path=path,
            settings=settings,
            tenant=tenant,
            database=database,
            timeout=timeout,
            when_full=when_full,
            max_pending=max_pending,
            slow_request_ms=slow_request_ms,
            vector_cache_mb=vector_cache_mb,
            max_write_slice_ms=max_write_slice_ms,
            lock_timeout=lock_timeout,
            durable=durable,
            allow_missing_vectors=allow_missing_vectors,
            process=process,
            host_idle=host_idle,
        ).resolve
    )


def AsyncEphemeralClient(  # noqa: N802 - named and called as Chroma's own
    settings: Settings | None = None,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
    *,
    timeout: float | None = None,
    when_full: WhenFull = "wait",
    max_pending: int = 10_000,
    slow_request_ms: float = 1000.0,
    vector_cache_mb: float = 64.0,
    max_write_slice_ms: float = 10.0,
) -> ClientOpening:
    """Open the database in memory that all ephemeral clients of this process share; the last to be closed forgets it.

    Args:
        settings: Chroma's own settings; not changed.
        tenant: Chroma's tenant.
        database: Chroma's database within the tenant.
        timeout: Limit for each call, in seconds; None for none.
        when_full: What a call does when the queue is full: ``"wait"`` in line, or ``"raise"``.
        max_pending: How many requests may be queued or running.
        slow_request_ms: Requests slower than this are logged, in milliseconds.
        vector_cache_mb: How much memory the vectors of memories may take, in megabytes.
        max_write_slice_ms: How long one slice of a write may hold the interpreter, in milliseconds.

    Returns:
        Something to ``await``, or to use with ``async with``, for an :class:`aiochroma.AsyncClient`.

    Raises:
        InvalidInputError: An argument is wrong.
        chromadb.errors.NotFoundError: When awaited: there is no such tenant or database.
    """
    return ClientOpening(
        EphemeralOptions(
            settings=settings,
            tenant=tenant,
            database=database,
            timeout=timeout,
            when_full=when_full,
            max_pending=max_pending,
            slow_request_ms=slow_request_ms,
            vector_cache_mb=vector_cache_mb,
            max_write_slice_ms=max_write_slice_ms,
        ).resolve
    )


def AsyncHttpClient(  # noqa: N802 - named and called as Chroma's own
    host: str = "localhost",
    port: int = 8000,
    ssl: bool = False,
    headers: Mapping[str, str | SecretStr] | None = None,
    settings: Settings | None = None,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
    *,
    timeout: float | None = None,
    when_full: WhenFull = "wait",
    max_pending: int = 10_000,
    slow_request_ms: float = 1000.0,
    vector_cache_mb: float = 64.0,
    connections: int = 4,
    auth_token: str | SecretStr | None = None,
    auth_header: AuthHeader = "authorization",
    ca_file: str | os.PathLike[str] | None = None,
    connect_timeout: float = 5.0,
    read_timeout: float = 60.0,
    attempts: int = 6,
    cache: str | os.PathLike[str] | None = None,
) -> ClientOpening:
    """Connect to a Chroma server.

    Clients of one server that send the same headers share the connections; others never do. Requests that wait at the same
    moment are merged as for a database on disk, and up to ``connections`` calls are under way at once; writes to one
    collection still take effect in the order in which they were submitted.

    What fails on the way (no connection, a dropped one, HTTP 429, 502, 503, 504) is tried again with growing pauses, within
    the deadline of the call. Not repeated is a call that may have been carried out and would have another effect, or another
    result, the second time: creating (unless ``get_or_create``), renaming or deleting a collection, deleting by a filter.

    A :class:`~aiochroma.Memory` on a server (``client=``) finds what it finds on a directory. The first recall of a namespace
    reads it whole, with its vectors (about 5 kB a memory), into this process's memory, or with ``cache`` into a file for the next
    start; later ones ask in one round trip what changed since. A change that another client made before it is found; where that
    client's clock is more than a second behind, it is found after two seconds to a minute. Up to 50,000 memories of a server are
    kept. A larger namespace, and one that is being read (see ``Recall.indexing``), is answered from candidates of the server:
    those nearest by meaning, and the nearest that contain a word of the question as it is spelled; ``Recall.errors`` says so.

    Args:
        host: Name or address of the server, or a whole URL, which then says port and path, too.
        port: Its port.
        ssl: Speak TLS; the server's certificate is verified.
        headers: Sent with every request.
        settings: Chroma's own settings; not changed. Default: Chroma's defaults, whatever environment and ``.env`` say.
        tenant: Chroma's tenant.
        database: Chroma's database within the tenant.
        timeout: Limit for each call, in seconds, waiting, embedding and repeating included; None for none. A
            :class:`~aiochroma.deadline` block overrides it.
        when_full: What a call does when the queue is full: ``"wait"`` in line, or ``"raise"``
            :class:`~aiochroma.QueueFullError`.
        max_pending: How many requests may be queued or running.
        slow_request_ms: Requests slower than this are logged, in milliseconds.
        vector_cache_mb: The most memory that the vectors of memories take, in megabytes: 64 hold those of 65,000 memories with
            256 dimensions. The namespaces that were searched last stay; others are read again from the file beside Chroma's.
        connections: How many calls may be under way at once.
        auth_token: A token for the proxy before the server (Chroma servers check none themselves), a string or a
            ``pydantic.SecretStr``. It appears in no message, log or representation.
        auth_header: How it is sent: ``"authorization"`` (``Authorization: Bearer``), ``"x-chroma-token"``, or ``"both"``.
        ca_file: Certificates (PEM) of the authorities to trust instead of the system's.
        connect_timeout: How long making a connection may take, in seconds; at most a day.
        read_timeout: How long the server may take to answer, in seconds; at most a day.
        attempts: How often a call is tried.
        cache: A folder in which what was read of the server's memories stays for the next start, which then reads what changed
            meanwhile: texts and vectors, about 5 kB a memory, readable by this user alone. What this process forgets leaves the
            file at once, what others forget when it is recalled from next, and traces of both when it is closed. One process at
            a time has it, others read the server. It may be deleted when nothing uses it. Default: nothing is written.

    Returns:
        Something to ``await``, or to use with ``async with``, for an :class:`aiochroma.AsyncClient`.

    Raises:
        InvalidInputError: An argument is wrong.
        StoreUnavailableError: When awaited: the server cannot be reached, or its certificate is not trusted.
        AccessDeniedError: When awaited: the token was not accepted, or there should have been one.
        SettingsConflictError: When awaited: it is in use in this process with other options.
        chromadb.errors.NotFoundError: When awaited: there is no such tenant or database.

    Calls on the client may raise StoreUnavailableError and AccessDeniedError as well, and
    :class:`~aiochroma.OutcomeUnknownError` where a write was sent and no answer came.
    """
    return ClientOpening(
        HttpOptions(
            host=host,
            port=port,
            ssl=ssl,
            headers=headers,
            settings=settings,
            tenant=tenant,
            database=database,
            timeout=timeout,
            when_full=when_full,
            max_pending=max_pending,
            slow_request_ms=slow_request_ms,
            vector_cache_mb=vector_cache_mb,
            connections=connections,
            auth_token=auth_token,
            auth_header=auth_header,
            ca_file=ca_file,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            attempts=attempts,
            cache=cache,
        ).resolve
    )


def connect(**overrides: Unpack[ConnectOverrides]) -> ClientOpening:
    """Open what the environment says: a directory, a server, or a database in memory.

    ============================  ==================================================================================
    ``CHROMA_MODE``               ``persistent`` (default), ``http`` or ``ephemeral``
    ``CHROMA_DB_PATH``            the directory; default ``./chroma``
    ``CHROMA_PROCESS``            ``shared`` or ``this``; default: through a host if there is one
    ``CHROMA_HOST``               the server's name, address or URL; required for ``http``
    ``CHROMA_PORT``               its port; default 8000
    ``CHROMA_SSL``                ``true`` for TLS; default ``false``
    ``CHROMA_AUTH_TOKEN``         the token for the proxy before the server
    ``CHROMA_AUTH_HEADER``        ``authorization`` (default), ``x-chroma-token`` or ``both``
    ``CHROMA_CA_FILE``            certificates of the authorities to trust
    ``CHROMA_CACHE``              a folder for what was read of the server's memories; default none
    ``CHROMA_TENANT``             default ``default_tenant``
    ``CHROMA_DATABASE``           default ``default_database``
    ``CHROMA_TIMEOUT``            limit for each call, in seconds; default none
    ============================  ==================================================================================

    A variable that the mode does not use is not looked at, one that is empty counts as not set, and no file is read. A host
    that is a URL says the port itself; elsewhere a ``CHROMA_PORT`` that Kubernetes made for a service called ``chroma`` is
    refused by name.

    Args:
        overrides: ``mode``, ``path``, ``host``, ``port``, ``ssl``, ``auth_token``, ``auth_header``, ``ca_file``, ``process``,
            ``tenant``, ``database`` and ``timeout`` in place of the variables; and any further argument of the client that is
            chosen (``durable=True``, ``connections=8``, ...).

    Returns:
        As :func:`AsyncPersistentClient`, :func:`AsyncHttpClient` or :func:`AsyncEphemeralClient`.

    Raises:
        InvalidInputError: When awaited: values are wrong or missing; one error lists them all, secrets hidden.
    """

    def resolve() -> ConnectTarget:
        from aiochroma.client.environment import options_from_environment

        return options_from_environment(overrides).resolve()

    return ClientOpening(resolve)
