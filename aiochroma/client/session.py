"""What a client and everything made by it share: a connection, its limits, and embedding."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from aiochroma._deadline import deadline, deadline_at
from aiochroma.client.turns import Turns
from aiochroma.core.calls import call, call_many
from aiochroma.core.observing import observer
from aiochroma.core.request import Request
from aiochroma.embedding.runner import EmbeddingRunner

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from aiochroma.core.calls import CallOutcome
    from aiochroma.core.connection import Connection, EngineInfo, WhenFull

__all__ = ["Session"]


class Session:
    """One client's use of a database.

    Its coroutines are awaited on an event loop, or driven without one; see :func:`aiochroma._threads.drive`. Collections hold the
    session, and the session holds the connection: a database stays open as long as anything of the client that opened it is in
    use.

    Args:
        connection: The client's share in what serves the database.
        timeout: The client's limit for each call, in seconds; None for none.
        when_full: What a call does when the queue is full: wait in line, or raise.
    """

    def __init__(self, connection: Connection, *, timeout: float | None, when_full: WhenFull) -> None:
        self.connection = connection
        self.timeout = timeout
        self.when_full = when_full
        self.turns = Turns()
        self._runner = EmbeddingRunner(connection)

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        # There is one connection, whatever state of a program refers to it.
        return self

    def limit(self) -> AbstractContextManager[None]:
        """Put one deadline over the several steps of a call (embedding, then the database), where the client has one."""
        moment = deadline_at(self.timeout)
        return nullcontext() if moment is None else deadline(max(0.0, moment - time.monotonic()))

    def submit(
        self, operation: str, *, bulk: bool = False, atomic: bool = False, **arguments: Any
    ) -> Coroutine[Any, Any, Any]:
        """Carry out one operation and return its result.

        Not a coroutine function itself: where thousands of requests wait, every frame less is memory.
        """
        request = Request(operation, arguments, bulk, atomic)
        return call(self.connection, request, deadline_at(self.timeout), when_full=self.when_full)

    async def submit_many(self, operations: Sequence[tuple[str, dict[str, Any]]]) -> list[CallOutcome]:
        """Carry out several operations at the same time; an error is part of the outcome."""
        requests = [Request(operation, arguments) for operation, arguments in operations]
        return await call_many(self.connection, requests, deadline_at(self.timeout), when_full=self.when_full)

    async def embed(self, function: Any, inputs: Any, *, is_query: bool) -> list[Any]:
        """Embed off the event loop and off the DB thread."""
        self.connection.require_open()
        watching = observer()
        began = time.monotonic() if watching is not None else 0.0
        vectors = await self._runner.embed(
            function, inputs, is_query=is_query, deadline=deadline_at(self.timeout)
        )
        if watching is not None:
            watching.embedding(time.monotonic() - began, len(vectors))
        return vectors

    def describe(self) -> EngineInfo:
        """Return what is known of the database; never blocks."""
        return self.connection.describe()

    @property
    def closed(self) -> bool:
        """Whether the client was closed; others on the same database may still be open."""
        return self.connection.closed
