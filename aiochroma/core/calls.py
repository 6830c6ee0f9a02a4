"""Making a call from an event loop or from a plain thread, and waiting for its outcome."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from aiochroma.core.queue import RequestQueue, Ticket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.core.request import Request

__all__ = ["Answer", "call", "call_blocking", "call_many", "call_many_blocking"]


async def call(queue: RequestQueue, request: Request, deadline: float | None, *, wait: bool = True) -> Any:
    """Submit a request and await its outcome, from any event loop.

    Cancelling the caller releases it at once. A request that was still queued then never runs; one that had begun runs to
    its end and its outcome is dropped.

    Args:
        queue: Where to.
        request: What.
        deadline: By when (``time.monotonic()``), or None.
        wait: Stand in line when the queue is full; else be refused.

    Raises:
        DeadlineExceededError: The deadline passed first; ``.started`` tells whether the call had begun.
        ClosedError, ForkedProcessError, QueueFullError: See :meth:`RequestQueue.submit`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    ticket = Ticket(request, loop, future, deadline)
    queue.submit(ticket, wait=wait)
    timer = (
        None
        if deadline is None
        else loop.call_later(max(0.0, deadline - time.monotonic()), _expire, queue, ticket)
    )
    try:
        return await future
    except asyncio.CancelledError:
        queue.leave(ticket)
        raise
    finally:
        if timer is not None:
            timer.cancel()


def call_blocking(queue: RequestQueue, request: Request, deadline: float | None, *, wait: bool = True) -> Any:
    """Submit a request and block this thread until its outcome is there; arguments and errors as :func:`call`.

    It is the caller's duty that no event loop runs on this thread.
    """
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    ticket = Ticket(request, None, future, deadline)
    queue.submit(ticket, wait=wait)
    return _wait(queue, ticket)


def _wait(queue: RequestQueue, ticket: Ticket) -> Any:
    """Block until a ticket's outcome is there, or its deadline has passed."""
    future, deadline = ticket.future, ticket.deadline
    assert isinstance(future, concurrent.futures.Future)
    try:
        return future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except concurrent.futures.TimeoutError:
        # On 3.11+ this is the builtin TimeoutError, which the call itself may have raised.
        error = None if future.done() else queue.expire(ticket)
        if error is None:
            return future.result()
        raise error from None
    except BaseException:
        queue.leave(ticket)
        raise


class Answer(NamedTuple):
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


async def call_many(
    queue: RequestQueue, requests: Sequence[Request], deadline: float | None, *, wait: bool = True
) -> list[Answer]:
    """Submit several requests at once and await all outcomes; errors are part of the answers.

    One task waits for all: a task for each would cost more than the requests themselves.

    Raises:
        ClosedError, ForkedProcessError: As :func:`call`; then none of them runs.
    """
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in requests]
    tickets = [
        Ticket(request, loop, future, deadline) for request, future in zip(requests, futures, strict=True)
    ]
    timer = None
    try:
        for ticket in tickets:
            queue.submit(ticket, wait=wait)
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - time.monotonic()), _expire_all, queue, tickets)
        return [await _outcome(ticket, future) for ticket, future in zip(tickets, futures, strict=True)]
    except BaseException:
        for ticket in tickets:
            queue.leave(ticket)
        raise
    finally:
        if timer is not None:
            timer.cancel()


def call_many_blocking(
    queue: RequestQueue, requests: Sequence[Request], deadline: float | None, *, wait: bool = True
) -> list[Answer]:
    """Submit several requests at once and block this thread until all outcomes are there; see :func:`call_many`."""
    tickets = [Ticket(request, None, concurrent.futures.Future(), deadline) for request in requests]
    try:
        for ticket in tickets:
            queue.submit(ticket, wait=wait)
    except BaseException:
        for ticket in tickets:
            queue.leave(ticket)
        raise
    return [_outcome_blocking(queue, ticket) for ticket in tickets]


async def _outcome(ticket: Ticket, future: asyncio.Future[Any]) -> Answer:
    try:
        return _answer(ticket, await future, None)
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - part of the answer
        return _answer(ticket, None, error)


def _outcome_blocking(queue: RequestQueue, ticket: Ticket) -> Answer:
    try:
        return _answer(ticket, _wait(queue, ticket), None)
    except Exception as error:  # noqa: BLE001 - part of the answer
        return _answer(ticket, None, error)


def _answer(ticket: Ticket, result: Any, error: BaseException | None) -> Answer:
    started = ticket.started_at or ticket.queued_at
    return Answer(
        result, error, (started - ticket.queued_at) * 1000, (time.monotonic() - ticket.queued_at) * 1000
    )


def _expire_all(queue: RequestQueue, tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        _expire(queue, ticket)


def _expire(queue: RequestQueue, ticket: Ticket) -> None:
    error = queue.expire(ticket)
    if error is not None and not ticket.future.done():
        ticket.future.set_exception(error)
