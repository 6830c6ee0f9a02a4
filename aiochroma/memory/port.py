"""How a memory reaches its store; its coroutines are awaited on an event loop, or driven without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from aiochroma._threads import drive, off_loop, start

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from aiochroma._threads import Started
    from aiochroma.core.calls import CallOutcome

__all__ = ["Port", "drive"]

T = TypeVar("T")


class Port:
    """The steps a memory waits for."""

    async def submit(self, client: Any, operation: str, **arguments: Any) -> Any:
        """Carry out one operation on the DB thread."""
        return await client.session.submit(operation, **arguments)

    async def submit_many(
        self, client: Any, operations: list[tuple[str, dict[str, Any]]]
    ) -> list[CallOutcome]:
        """Carry out several at the same time; an error is part of the outcome."""
        outcomes: list[CallOutcome] = await client.session.submit_many(operations)
        return outcomes

    async def embed(self, client: Any, function: Any, texts: list[str], *, is_query: bool) -> list[Any]:
        """Embed texts."""
        vectors: list[Any] = await client.session.embed(function, texts, is_query=is_query)
        return vectors

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Do something that takes long."""
        return await off_loop(work)

    def start(self, work: Coroutine[Any, Any, T]) -> Started[T]:
        """Begin something that goes on meanwhile, where that is possible."""
        return start(work)

    async def finish(self, started: Started[T]) -> T:
        """Return its outcome."""
        return await started.result()

    async def settle(self, started: Started[Any], *, cancel: bool) -> BaseException | None:
        """Let it end, or end it, and return its error."""
        return await started.settle(cancel=cancel)

    async def open(self, opening: Awaitable[Any]) -> Any:
        """Open a client."""
        return await opening

    async def close(self, client: Any) -> None:
        """Close a client."""
        await client.close()
