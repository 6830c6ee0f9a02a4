"""Where somebody who observes is told what happens; nothing is computed without an observer.

:mod:`aiochroma.telemetry` sets an observer. The places that tell it anything look here first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from aiochroma._types import JsonObject

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context


__all__ = ["Observer", "observer", "set_observer"]


class Observer(Protocol):
    """What is told to whoever observes. Must neither block nor raise."""

    async def memory_call(
        self,
        name: str,
        details: JsonObject,
        work: Callable[[], Awaitable[Any]],
        database: Callable[[], str],
    ) -> Any:
        """Carry out a call of a memory, and return what it returns.

        Args:
            name: Of the call, such as ``"recall"``.
            details: What it was asked for: ``query``, ``namespaces``, ``id``, ``texts``, where it has these.
            work: What to await.
            database: Returns the name of the database; known when the call has ended.
        """

    def request(
        self,
        database: str,
        operation: str,
        context: Context,
        waited: float,
        ran: float,
        merged: int,
        error: BaseException | None,
    ) -> None:
        """Take note of a request that was carried out; on the thread that did it, before its caller goes on.

        Args:
            database: Its name.
            operation: What was done.
            context: The caller's.
            waited: Seconds in the queue.
            ran: Seconds in the database.
            merged: How many requests one call into the database has answered; 1 for a request of its own.
            error: What it raised, or None.
        """

    def embedding(self, seconds: float, texts: int) -> None:
        """Take note of an embedding, in the caller's context."""


class _Seat:
    """Holds the observer, so that importing its name gives the one that is set later."""

    def __init__(self) -> None:
        self.taken: Observer | None = None


_seat = _Seat()


def observer() -> Observer | None:
    """Return the observer, or None."""
    return _seat.taken


def set_observer(chosen: Observer | None) -> None:
    """Set the observer of this process, or take it away."""
    _seat.taken = chosen
