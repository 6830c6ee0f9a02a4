"""Chroma's ``AsyncServerAPI`` and ``ServerAPI`` over an engine: what Chroma's own clients and collections talk to.

Importing this module imports chromadb; that happens after the DB thread has imported it.
"""

from __future__ import annotations

import inspect
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from chromadb.api import AsyncServerAPI, ServerAPI
from chromadb.api.types import IncludeMetadataDocumentsEmbeddings

from aiochroma._deadline import deadline, deadline_at
from aiochroma._threads import refuse_on_loop
from aiochroma.client.turns import Turns
from aiochroma.core.calls import call, call_blocking
from aiochroma.core.request import Request
from aiochroma.embedding.runner import EmbeddingRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from chromadb.config import Settings

    from aiochroma.core.connection import Connection, WhenFull

__all__ = ["BlockingServer", "ChromaApi"]


class _EngineServer:
    """The part of the server that is written out; the operations are added below, from Chroma's own list.

    Collections hold the server, and the server holds the client's connection: a database stays open as long as anything of
    the client that opened it is in use.

    Args:
        connection: The client's share in what serves the database.
        timeout: The client's limit for each call, in seconds, or None.
        when_full: What callers do when the queue is full: wait in line, or raise.
    """

    def __init__(self, connection: Connection, timeout: float | None, *, when_full: WhenFull) -> None:
        self.connection = connection
        self.timeout = timeout
        self.when_full = when_full
        self.runner = EmbeddingRunner(connection)
        self.turns = Turns()

    def limit(self) -> AbstractContextManager[None]:
        """Put one deadline over the several steps of a call (embedding, then the database), where the client has one."""
        moment = deadline_at(self.timeout)
        return nullcontext() if moment is None else deadline(max(0.0, moment - time.monotonic()))

    def submit(
        self, operation: str, *, bulk: bool = False, atomic: bool = False, **arguments: Any
    ) -> Coroutine[Any, Any, Any]:
        """Carry out an operation on the DB thread and await its outcome.

        Not a coroutine function itself: where thousands of requests wait, every frame less is memory.
        """
        request = Request(operation, arguments, bulk, atomic)
        return call(self.connection, request, deadline_at(self.timeout), when_full=self.when_full)

    def submit_blocking(
        self, operation: str, *, bulk: bool = False, atomic: bool = False, **arguments: Any
    ) -> Any:
        """Carry out an operation on the DB thread and block this thread until its outcome is there.

        Raises:
            BlockingCallError: An event loop runs on this thread and would stand still.
        """
        request = Request(operation, arguments, bulk, atomic)
        return call_blocking(self.connection, request, deadline_at(self.timeout), when_full=self.when_full)

    async def embed(self, function: Any, inputs: Any, *, is_query: bool) -> list[Any]:
        """Embed off the event loop and off the DB thread."""
        self.connection.require_open()
        return await self.runner.embed(
            function, inputs, is_query=is_query, deadline=deadline_at(self.timeout)
        )

    def embed_blocking(self, function: Any, inputs: Any, *, is_query: bool) -> list[Any]:
        """Embed on the embedding thread and block this one meanwhile."""
        refuse_on_loop()
        self.connection.require_open()
        return self.runner.embed_blocking(
            function, inputs, is_query=is_query, deadline=deadline_at(self.timeout)
        )

    def get_settings(self) -> Settings:
        """Return Chroma's settings as they are in force; known since the database was opened."""
        settings = self.connection.describe().settings
        assert settings is not None, "a client is made when the database is open"
        return settings


def _operations(interface: Any, *, blocking: bool) -> dict[str, Any]:
    """Make a method for each of the operations that Chroma's interface lists."""
    made = {name: _operation(interface, name, blocking=blocking) for name in interface.__abstractmethods__}
    made["_peek"] = _overriding(_peek_blocking if blocking else _peek)
    made["get_settings"] = _overriding(_EngineServer.get_settings)
    return {**made, "__doc__": _EngineServer.__doc__, "__module__": __name__}


def _operation(interface: Any, name: str, *, blocking: bool) -> Callable[..., Any]:
    template = getattr(interface, name)
    names = tuple(inspect.signature(template).parameters)[1:]

    def operation(self: _EngineServer, *values: Any, **arguments: Any) -> Coroutine[Any, Any, Any]:
        if values:
            arguments.update(zip(names, values, strict=False))
        request = Request(name, arguments)
        return call(self.connection, request, deadline_at(self.timeout), when_full=self.when_full)

    def blocking_operation(self: _EngineServer, *values: Any, **arguments: Any) -> Any:
        if values:
            arguments.update(zip(names, values, strict=False))
        return self.submit_blocking(name, **arguments)

    method: Any = blocking_operation if blocking else operation
    method.__name__ = name
    method.__doc__ = template.__doc__
    made: Callable[..., Any] = _overriding(method)
    return made


def _overriding(method: Any) -> Any:
    """Mark a method as Chroma's metaclass wants every overriding one to be marked."""
    method.__override__ = True
    return method


def _peek_arguments(collection_id: Any, n: int) -> dict[str, Any]:
    return {"collection_id": collection_id, "limit": n, "include": list(IncludeMetadataDocumentsEmbeddings)}


async def _peek(self: _EngineServer, collection_id: Any, n: int = 10, **place: Any) -> Any:
    """Return the first records: a ``get``, as in Chroma, so that a large one is paged."""
    return await self.submit("_get", **_peek_arguments(collection_id, n), **place)


def _peek_blocking(self: _EngineServer, collection_id: Any, n: int = 10, **place: Any) -> Any:
    """Return the first records; see ``_peek``."""
    return self.submit_blocking("_get", **_peek_arguments(collection_id, n), **place)


ChromaApi: Any = type(
    "ChromaApi", (_EngineServer, AsyncServerAPI), _operations(AsyncServerAPI, blocking=False)
)
"""What Chroma's asynchronous client and collections talk to."""

BlockingServer: Any = type(
    "BlockingServer", (_EngineServer, ServerAPI), _operations(ServerAPI, blocking=True)
)
"""What Chroma's synchronous client and collections talk to."""
