"""Opening a client for callers without an event loop; light to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiochroma._deadline import deadline_at
from aiochroma._threads import refuse_on_loop
from aiochroma.client.opening import AsyncEphemeralClient, AsyncHttpClient, AsyncPersistentClient
from aiochroma.client.opening import connect as connecting
from aiochroma.client.target import DEFAULT_DATABASE, DEFAULT_TENANT
from aiochroma.core.calls import call_blocking
from aiochroma.core.request import Request

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from chromadb.config import Settings

    from aiochroma.backend.address import AuthHeader
    from aiochroma.client.blocking_client import BlockingClient
    from aiochroma.client.target import ConnectTarget

__all__ = ["EphemeralClient", "HttpClient", "PersistentClient", "connect", "opened"]


def PersistentClient(  # noqa: N802 - named and called as Chroma's own
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
) -> BlockingClient:
    """Open a database on disk for blocking use; arguments as :func:`aiochroma.AsyncPersistentClient`.

    Returns:
        The client. It is of Chroma's own class, so other libraries take it. Use it with ``with``, or ``close`` it.

    Raises:
        BlockingCallError: An event loop runs on this thread.
        InvalidInputError: An argument is wrong.
        StoreUnavailableError: It cannot be opened; see the error tree.
        chromadb.errors.NotFoundError: There is no such tenant or database.

    Example:
        >>> with PersistentClient("./chroma") as client:  # doctest: +SKIP
        ...     collection = client.get_or_create_collection("notes", embedding_function=None)
    """
    return opened(
        AsyncPersistentClient(
            path,
            settings,
            tenant,
            database,
            timeout=timeout,
            wait=wait,
            max_pending=max_pending,
            max_write_slice_ms=max_write_slice_ms,
            slow_request_ms=slow_request_ms,
            lock_timeout=lock_timeout,
            durable=durable,
            allow_missing_vectors=allow_missing_vectors,
        ).settle
    )


def EphemeralClient(  # noqa: N802 - named and called as Chroma's own
    settings: Settings | None = None,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
    *,
    timeout: float | None = None,
    wait: bool = True,
    max_pending: int | None = None,
    max_write_slice_ms: float | None = None,
    slow_request_ms: float | None = None,
) -> BlockingClient:
    """Open the database in memory that all ephemeral clients of this process share; see :func:`PersistentClient`."""
    return opened(
        AsyncEphemeralClient(
            settings,
            tenant,
            database,
            timeout=timeout,
            wait=wait,
            max_pending=max_pending,
            max_write_slice_ms=max_write_slice_ms,
            slow_request_ms=slow_request_ms,
        ).settle
    )


def HttpClient(  # noqa: N802 - named and called as Chroma's own
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
) -> BlockingClient:
    """Connect to a Chroma server; arguments as :func:`aiochroma.AsyncHttpClient`, else as :func:`PersistentClient`.

    Raises:
        AccessDeniedError: The token was not accepted, or there should have been one.
    """
    return opened(
        AsyncHttpClient(
            host,
            port,
            ssl,
            headers,
            settings,
            tenant,
            database,
            timeout=timeout,
            wait=wait,
            max_pending=max_pending,
            slow_request_ms=slow_request_ms,
            connections=connections,
            auth_token=auth_token,
            auth_header=auth_header,
            ca_file=ca_file,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            attempts=attempts,
        ).settle
    )


def connect(**overrides: Any) -> BlockingClient:
    """Open what the environment says; see :func:`aiochroma.connect` for the variables and the arguments."""
    return opened(connecting(**overrides).settle)


def opened(settle: Callable[[], ConnectTarget]) -> BlockingClient:
    """Open what is settled by a callable, and block meanwhile; errors as :func:`PersistentClient`."""
    refuse_on_loop()
    target = settle()
    connection = target.acquire()
    try:
        call_blocking(connection, Request("get_version", {}), deadline_at(target.timeout))
        from aiochroma.client.blocking_client import BlockingClient

        client = BlockingClient(
            connection,
            target.tenant,
            target.database,
            timeout=target.timeout,
            when_full="wait" if target.wait else "raise",
        )
        client.set_tenant(target.tenant, target.database)
    except BaseException:
        connection.close()
        raise
    return client
