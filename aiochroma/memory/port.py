"""How a memory reaches its store: from an event loop, or from a plain thread.

A memory is written once, as coroutines. On an event loop they are awaited. Without one they are *driven*: every step they
wait for blocks the thread instead of suspending, so a coroutine runs from its beginning to its end in one go and no event
loop is needed (see :func:`drive`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aiochroma._deadline import deadline_at
from aiochroma._threads import off_loop
from aiochroma.core.calls import call_many, call_many_blocking
from aiochroma.core.request import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from aiochroma.core.calls import CallOutcome

__all__ = ["AsyncPort", "BlockingPort", "Port", "drive"]

T = TypeVar("T")


class Port(Protocol):
    """The steps a memory waits for."""

    async def submit(self, client: Any, operation: str, **arguments: Any) -> Any:
        """Carry out one operation on the DB thread."""

    async def submit_many(
        self, client: Any, operations: list[tuple[str, dict[str, Any]]]
    ) -> list[CallOutcome]:
        """Carry out several at the same time; an error is part of the answer."""

    async def embed(self, client: Any, function: Any, texts: list[str], *, is_query: bool) -> list[Any]:
        """Embed texts."""

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Do something that takes long."""

    def start(self, work: Coroutine[Any, Any, T]) -> Any:
        """Begin something that goes on meanwhile, where that is possible."""

    async def finish(self, started: Any) -> Any:
        """Return its outcome."""

    async def settle(self, started: Any, *, cancel: bool) -> BaseException | None:
        """Let it end, or end it, and return its error."""

    async def open(self, opening: Any) -> Any:
        """Open a client."""

    async def close(self, client: Any) -> None:
        """Close a client."""


class AsyncPort:
    """On an event loop."""

    async def submit(self, client: Any, operation: str, **arguments: Any) -> Any:
        """See :class:`Port`."""
        return await client._server.submit(operation, **arguments)  # noqa: SLF001 - one package

    async def submit_many(
        self, client: Any, operations: list[tuple[str, dict[str, Any]]]
    ) -> list[CallOutcome]:
        """See :class:`Port`."""
        server = client._server  # noqa: SLF001 - one package
        requests = [Request(operation, arguments) for operation, arguments in operations]
        return await call_many(
            server.connection, requests, deadline_at(server.timeout), when_full=server.when_full
        )

    async def embed(self, client: Any, function: Any, texts: list[str], *, is_query: bool) -> list[Any]:
        """See :class:`Port`."""
        vectors: list[Any] = await client._server.embed(function, texts, is_query=is_query)  # noqa: SLF001
        return vectors

    async def off_loop(self, work: Callable[[], T]) -> T:
        """See :class:`Port`."""
        return await off_loop(work)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """See :class:`Port`."""
        return asyncio.get_running_loop().create_task(work)

    async def finish(self, started: asyncio.Task[T]) -> T:
        """See :class:`Port`."""
        return await started

    async def settle(self, started: asyncio.Task[Any], *, cancel: bool) -> BaseException | None:
        """See :class:`Port`."""
        if cancel:
            started.cancel()
        await asyncio.wait({started})
        return asyncio.CancelledError() if started.cancelled() else started.exception()

    async def open(self, opening: Awaitable[Any]) -> Any:
        """See :class:`Port`."""
        return await opening

    async def close(self, client: Any) -> None:
        """See :class:`Port`."""
        await client.aclose()


class BlockingPort:
    """On a plain thread: nothing here ever suspends."""

    async def submit(self, client: Any, operation: str, **arguments: Any) -> Any:
        """See :class:`Port`."""
        return client._server.submit_blocking(operation, **arguments)  # noqa: SLF001 - one package

    async def submit_many(
        self, client: Any, operations: list[tuple[str, dict[str, Any]]]
    ) -> list[CallOutcome]:
        """See :class:`Port`."""
        server = client._server  # noqa: SLF001 - one package
        requests = [Request(operation, arguments) for operation, arguments in operations]
        return call_many_blocking(
            server.connection, requests, deadline_at(server.timeout), when_full=server.when_full
        )

    async def embed(self, client: Any, function: Any, texts: list[str], *, is_query: bool) -> list[Any]:
        """See :class:`Port`."""
        vectors: list[Any] = client._server.embed_blocking(function, texts, is_query=is_query)  # noqa: SLF001
        return vectors

    async def off_loop(self, work: Callable[[], T]) -> T:
        """See :class:`Port`."""
        return work()

    def start(self, work: Coroutine[Any, Any, T]) -> tuple[T | None, BaseException | None]:
        """Do it at once: this thread can do one thing at a time."""
        try:
            return drive(work), None
        except Exception as error:  # noqa: BLE001 - given to whoever asks for the outcome
            return None, error

    async def finish(self, started: tuple[T, BaseException | None]) -> T:
        """See :class:`Port`."""
        if started[1] is not None:
            raise started[1]
        return started[0]

    async def settle(
        self,
        started: tuple[Any, BaseException | None],
        *,
        cancel: bool,  # noqa: ARG002 - it has ended
    ) -> BaseException | None:
        """See :class:`Port`."""
        return started[1]

    async def open(self, opening: Callable[[], Any]) -> Any:
        """See :class:`Port`."""
        return opening()

    async def close(self, client: Any) -> None:
        """See :class:`Port`."""
        client.close()


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, without an event loop, and return its result.

    Raises:
        RuntimeError: It wanted to suspend: something in it needs an event loop (an asynchronous embedding function or
            iterable, for example).
    """
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError(
        "Something in this call needs an event loop (an asynchronous embedding function or iterable?): use `aiochroma.Memory`."
    )
