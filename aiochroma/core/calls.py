"""Making calls from an event loop or from a plain thread, and waiting for their outcomes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from aiochroma._threads import waits_by_blocking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.core.connection import WhenFull
    from aiochroma.core.queue import Ticket
    from aiochroma.core.request import Request

__all__ = [
    "CallOutcome",
    "Submitter",
    "call",
    "call_many",
]


class Submitter(Protocol):
    """The half of a connection that takes requests; see :class:`aiochroma.core.connection.Connection`."""

    def submit(
        self, request: Request, deadline: float | None = None, *, when_full: WhenFull = "wait"
    ) -> Ticket:
        """Submit one request."""

    def submit_many(
        self, requests: Sequence[Request], deadline: float | None = None, *, when_full: WhenFull = "wait"
    ) -> list[Ticket]:
        """Submit several requests in one step."""


class CallOutcome(NamedTuple):
    """One of several outcomes that were waited for together.

    Attributes:
        result: What the call returned, or None.
        error: What it raised, or None.
        wait_ms: How long the request waited in the queue, in milliseconds.
        total_ms: From its submission to its outcome, in milliseconds.
    """

    result: Any
    error: BaseException | None
    wait_ms: float
    total_ms: float


async def call(
    connection: Submitter, request: Request, deadline: float | None = None, *, when_full: WhenFull = "wait"
) -> Any:
    """Submit a request and await its outcome, from any event loop; driven, block this thread until it is there.

    Cancelling the caller releases it at once. A request that was still queued then never runs; one that had begun runs to
    its end and its outcome is dropped.

    Args:
        connection: Where to.
        request: What.
        deadline: By when (``time.monotonic()``), or None.
        when_full: Wait in line when the queue is full, or raise.

    Raises:
        DeadlineExceededError: The deadline passed first; ``.started`` tells whether the call had begun.
        ClosedError, ForkedProcessError, QueueFullError: See :meth:`Connection.submit`.
    """
    waits_by_blocking()
    return await connection.submit(request, deadline, when_full=when_full)


async def call_many(
    connection: Submitter,
    requests: Sequence[Request],
    deadline: float | None = None,
    *,
    when_full: WhenFull = "wait",
) -> list[CallOutcome]:
    """Submit several requests at once and await all outcomes; errors are part of them.

    One task waits for all: a task for each would cost more than the requests themselves.

    Raises:
        ClosedError, ForkedProcessError, QueueFullError: As :func:`call`; then none of them runs.
    """
    blocking = waits_by_blocking()
    tickets = connection.submit_many(requests, deadline, when_full=when_full)
    timer = None
    if deadline is not None and not blocking:
        seconds = max(0.0, deadline - time.monotonic())
        timer = asyncio.get_running_loop().call_later(seconds, _expire_all, tickets)
    try:
        return [await _outcome(ticket) for ticket in tickets]
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise
    finally:
        if timer is not None:
            timer.cancel()


async def _outcome(ticket: Ticket) -> CallOutcome:
    try:
        # The deadline is looked after for all together.
        future = ticket.future
        result = await future if isinstance(future, asyncio.Future) else ticket.result()
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - part of the outcome
        return _timed(ticket, None, error)
    return _timed(ticket, result, None)


def _timed(ticket: Ticket, result: object, error: BaseException | None) -> CallOutcome:
    started = ticket.started_at or ticket.queued_at
    waited, total = started - ticket.queued_at, time.monotonic() - ticket.queued_at
    return CallOutcome(result, error, waited * 1000, total * 1000)


def _expire_all(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.expire()
