"""Opening a client: awaitable, usable with ``async with``, light to import."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from aiochroma._deadline import deadline_at
from aiochroma._threads import off_loop
from aiochroma.client.target import (
    DEFAULT_DATABASE,
    DEFAULT_TENANT,
    ConnectTarget,
    embedded_target,
    http_target,
)
from aiochroma.core.calls import call
from aiochroma.core.config import EngineOptions, Location
from aiochroma.core.request import Request

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Mapping
    from types import TracebackType

    from chromadb.config import Settings

    from aiochroma.backend.address import AuthHeader
    from aiochroma.client.client import AsyncClient

__all__ = ["AsyncEphemeralClient", "AsyncHttpClient", "AsyncPersistentClient", "ClientOpening", "connect"]


class ClientOpening:
    """A client that is about to be opened: ``await`` it, or use it with ``async with``.

    Args:
        settle: Says what is to be opened. Called on a worker thread: it may ask the file system, or import much.
    """

    def __init__(self, settle: Callable[[], ConnectTarget]) -> None:
        self.settle = settle
        self._clients: list[AsyncClient] = []

    def __await__(self) -> Generator[object, None, AsyncClient]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncClient:
        client = await self._open()
        self._clients.append(client)
        return client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._clients.pop().aclose()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"This client is not open yet, so it has no attribute {name!r}: `await` it, or use it with `async with`."
        )

    async def _open(self) -> AsyncClient:
        target = await off_loop(self.settle)
        connection = target.acquire()
        try:
            await call(connection, Request("get_version", {}), deadline_at(target.timeout))
            # Not before the DB thread has imported chromadb: on this thread it would stop the loop for half a second.
            from aiochroma.client.client import AsyncClient

            client = AsyncClient(
                connection,
                target.tenant,
                target.database,
                timeout=target.timeout,
                when_full="wait" if target.wait else "raise",
            )
            await client.set_tenant(target.tenant, target.database)
        except BaseException:
            connection.close()
            raise
        return client


def AsyncPersistentClient(  # noqa: N802 - named and called as Chroma's own
    path: str | os.PathLike[str] = "./chroma",
    settings: Settings | None = None,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
    *,
    timeout: float | None = None,
    wait: bool = True,
    max_pending: int | None = None,
    max_write_slice_ms: float | None = None,
    slow_request_ms: float | None = None,
    lock_timeout: float | None = None,
    durable: bool | None = None,
    allow_missing_vectors: bool | None = None,
) -> ClientOpening:
    """Open a database on disk.

    All clients of one directory in one process share one DB thread, however the path is spelled. The last one that is
    closed ends it.

    Args:
        path: The directory; made if it does not exist.
        settings: Chroma's own settings; not changed.
        tenant: Chroma's tenant.
        database: Chroma's database within the tenant.
        timeout: Limit for each call, in seconds, waiting and embedding included; None for none. A
            :class:`~aiochroma.deadline` block overrides it.
        wait: Stand in line when the queue is full; False raises :class:`~aiochroma.QueueFullError` instead.
        max_pending: How many requests may wait before a line forms; default 10,000.
        max_write_slice_ms: How long one piece of writing may hold the interpreter, in milliseconds; default 10.
        slow_request_ms: Requests slower than this are logged, in milliseconds; default 1000.
        lock_timeout: How long to wait for another process to let go of the directory, in seconds; default 0.
        durable: Keep every vector in Chroma's log as well, so that a broken index can be rebuilt completely; about 4 bytes x
            dimensions for each record ever written, bounded by ``client.backup``. Default: as the directory was.
        allow_missing_vectors: Open even though records have lost their vectors; see ``client.recovery``.

    Returns:
        Something to ``await``, or to use with ``async with``, for an :class:`aiochroma.AsyncClient`.

    Raises:
        InvalidInputError: An argument is wrong.
        DatabasePathError: When awaited: the path is a file, or there is no permission.
        DatabaseInUseError: When awaited: somebody else has it open.
        SettingsConflictError: When awaited: it is open in this process with other settings.
        chromadb.errors.NotFoundError: When awaited: there is no such tenant or database.

    Example:
        >>> async with AsyncPersistentClient("./chroma") as client:  # doctest: +SKIP
        ...     collection = await client.get_or_create_collection("notes", embedding_function=None)
    """
    options = EngineOptions(
        settings,
        max_pending,
        max_write_slice_ms,
        slow_request_ms,
        lock_timeout,
        durable,
        allow_missing_vectors,
    )
    return _opening_of(path, options, tenant=tenant, database=database, timeout=timeout, wait=wait)


def AsyncEphemeralClient(  # noqa: N802 - named and called as Chroma's own
    settings: Settings | None = None,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
    *,
    timeout: float | None = None,
    wait: bool = True,
    max_pending: int | None = None,
    max_write_slice_ms: float | None = None,
    slow_request_ms: float | None = None,
) -> ClientOpening:
    """Open the database in memory that all ephemeral clients of this process share; the last to be closed forgets it.

    Arguments, result and errors as :func:`AsyncPersistentClient`.
    """
    options = EngineOptions(settings, max_pending, max_write_slice_ms, slow_request_ms)
    return _opening_of(None, options, tenant=tenant, database=database, timeout=timeout, wait=wait)


def AsyncHttpClient(  # noqa: N802 - named and called as Chroma's own
    host: str = "localhost",
    port: int = 8000,
    ssl: bool = False,
    headers: Mapping[str, str] | None = None,
    settings: Settings | None = None,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
    *,
    timeout: float | None = None,
    wait: bool = True,
    max_pending: int | None = None,
    slow_request_ms: float | None = None,
    connections: int | None = None,
    auth_token: Any = None,
    auth_header: AuthHeader = "authorization",
    ca_file: str | os.PathLike[str] | None = None,
    connect_timeout: float | None = None,
    read_timeout: float | None = None,
    attempts: int | None = None,
) -> ClientOpening:
    """Connect to a Chroma server.

    Clients of one server that send the same headers share the connections; others never do. Requests that wait at the same
    moment are merged as for a database on disk, and up to ``connections`` calls are under way at once; writes to one
    collection still take effect in the order in which they were submitted.

    What fails on the way (no connection, a dropped one, HTTP 429, 502, 503, 504) is tried again with growing pauses, within
    the deadline of the call. Not repeated is a call that may have been carried out and would have another effect, or another
    result, the second time: creating (unless ``get_or_create``), renaming or deleting a collection, deleting by a filter.

    Args:
        host: Name or address of the server, or a whole URL, which then says port and path, too.
        port: Its port.
        ssl: Speak TLS; the server's certificate is verified.
        headers: Sent with every request.
        settings: Chroma's own settings; not changed.
        tenant: Chroma's tenant.
        database: Chroma's database within the tenant.
        timeout: Limit for each call, in seconds, waiting, embedding and repeating included; None for none. A
            :class:`~aiochroma.deadline` block overrides it.
        wait: Stand in line when the queue is full; False raises :class:`~aiochroma.QueueFullError` instead.
        max_pending: How many requests may wait before a line forms; default 10,000.
        slow_request_ms: Requests slower than this are logged, in milliseconds; default 1000.
        connections: How many calls may be under way at once; default 4.
        auth_token: A token for the proxy before the server (Chroma servers check none themselves), a string or a
            ``pydantic.SecretStr``. It appears in no message, log or representation.
        auth_header: How it is sent: ``"authorization"`` (``Authorization: Bearer``), ``"x-chroma-token"``, or ``"both"``.
        ca_file: Certificates (PEM) of the authorities to trust instead of the system's.
        connect_timeout: How long making a connection may take, in seconds; default 5.
        read_timeout: How long the server may take to answer, in seconds; default 60.
        attempts: How often a call is tried; default 6.

    Returns:
        Something to ``await``, or to use with ``async with``, for an :class:`aiochroma.AsyncClient`.

    Raises:
        InvalidInputError: An argument is wrong.
        StoreUnavailableError: When awaited: the server cannot be reached, or its certificate is not trusted.
        AccessDeniedError: When awaited: the token was not accepted, or there should have been one.
        SettingsConflictError: When awaited: it is in use in this process with other options.
        chromadb.errors.NotFoundError: When awaited: there is no such tenant or database.

    Calls on the client may raise the last but two of these as well, and :class:`~aiochroma.OutcomeUnknownError` where a write was
    sent and no answer came.

    Example:
        >>> async with AsyncHttpClient("chroma.internal", 8443, ssl=True, auth_token=token) as client:  # doctest: +SKIP
        ...     collection = await client.get_or_create_collection("notes", embedding_function=None)
    """
    target = http_target(
        host,
        port,
        ssl,
        headers,
        settings,
        auth_token=auth_token,
        auth_header=auth_header,
        ca_file=ca_file,
        options={
            "max_pending": max_pending,
            "slow_request_ms": slow_request_ms,
            "connections": connections,
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            "attempts": attempts,
        },
        tenant=str(tenant),
        database=str(database),
        timeout=timeout,
        wait=wait,
    )
    return ClientOpening(lambda: target)


def connect(**overrides: Any) -> ClientOpening:
    """Open what the environment says: a directory, a server, or a database in memory.

    ============================  ==================================================================================
    ``CHROMA_MODE``               ``persistent`` (default), ``http`` or ``ephemeral``
    ``CHROMA_DB_PATH``            the directory; default ``./chroma``
    ``CHROMA_HOST``               the server's name, address or URL; required for ``http``
    ``CHROMA_PORT``               its port; default 8000
    ``CHROMA_SSL``                ``true`` for TLS; default ``false``
    ``CHROMA_AUTH_TOKEN``         the token for the proxy before the server
    ``CHROMA_AUTH_HEADER``        ``authorization`` (default), ``x-chroma-token`` or ``both``
    ``CHROMA_CA_FILE``            certificates of the authorities to trust
    ``CHROMA_TENANT``             default ``default_tenant``
    ``CHROMA_DATABASE``           default ``default_database``
    ``CHROMA_TIMEOUT``            limit for each call, in seconds; default none
    ============================  ==================================================================================

    Args:
        overrides: ``mode``, ``path``, ``host``, ``port``, ``ssl``, ``auth_token``, ``auth_header``, ``ca_file``, ``tenant``,
            ``database``, ``timeout``, in place of the variables; and any further argument of the client that is chosen
            (``durable=True``, ``connections=8``, ...), which is passed on.

    Returns:
        As :func:`AsyncPersistentClient`, :func:`AsyncHttpClient` or :func:`AsyncEphemeralClient`.

    Raises:
        InvalidInputError: When awaited: values are wrong or missing; one error lists them all, secrets hidden.
    """

    def settle() -> ConnectTarget:
        from aiochroma.client.settings import ConnectionSettings

        return ConnectionSettings.settled(overrides)

    return ClientOpening(settle)


def _opening_of(path: str | os.PathLike[str] | None, options: EngineOptions, **use: Any) -> ClientOpening:
    # What is wrong with the arguments is said at once; only the file system is asked later.
    ConnectTarget(Location("ephemeral"), options, **use)
    return ClientOpening(partial(embedded_target, path, options, **use))
