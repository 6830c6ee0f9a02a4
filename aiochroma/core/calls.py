"""Both ends of a call: making it and waiting for it, from an event loop or a plain thread; and handing its outcome back."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aiochroma._clock import monotonic
from aiochroma._errors import BlockingCallError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._waiting import waits_by_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from aiochroma.core.connection import WhenFull
    from aiochroma.core.queue import RequestQueue
    from aiochroma.core.request import CallResult, Request

__all__ = [
    "CallOutcome",
    "NotBegunError",
    "Outcome",
    "Receiver",
    "Submitter",
    "Ticket",
    "TicketState",
    "call",
    "call_many",
    "deliver",
    "latest_deadline",
    "report_unseen",
]

log: EventLogger = get_logger("aiochroma.core")


class TicketState(Enum):
    """Where a request is; every change happens under the queue's lock."""

    IN_LINE = auto()
    """The queue is full: it moves up as others finish."""
    QUEUED = auto()
    RUNNING = auto()
    DONE = auto()
    CANCELLED = auto()
    """Its caller left, or its deadline passed, before it began: it never runs."""
    ABANDONED = auto()
    """Its caller left after it began: it runs to its end and the outcome is dropped."""


class NotBegunError(Exception):
    """A request had not begun when its caller would wait no longer; never a user's."""


class Receiver(Protocol):
    """Where outcomes go, if neither to an event loop nor to a waiting thread: another process, for example."""

    def take(self, outcomes: Sequence[Outcome]) -> None:
        """Take a batch of outcomes, in order; called on the serving thread, must neither block nor raise."""


class Ticket:
    """A request on its way, and where its outcome goes.

    ``await`` it on the event loop that it was made on, or block a plain thread with :meth:`result`. A caller that is cancelled
    is released at once. A request that was still queued then never runs; one that had begun runs to its end and its outcome is
    dropped.

    Attributes:
        home: The event loop that ``future`` belongs to, None where a plain thread waits, or what takes outcomes itself.
        future: Where the outcome goes. It belongs to this request alone. None where ``home`` takes outcomes itself.
        queue: The queue it was submitted to.
        deadline: The moment (``monotonic()``) after which the outcome is of no use, or None.
        progress: How many records of a request that was cut are done.
        slices: The results of the slices or pages done so far.
        left: Why its caller has left: ``"cancelled"``, ``"expired"``, or empty.
    """

    __slots__ = (
        "context",
        "deadline",
        "future",
        "home",
        "left",
        "progress",
        "queue",
        "queued_at",
        "request",
        "slices",
        "started_at",
        "state",
    )

    queue: RequestQueue

    def __init__(
        self,
        request: Request,
        home: asyncio.AbstractEventLoop | Receiver | None,
        future: asyncio.Future[CallResult] | concurrent.futures.Future[CallResult] | None,
        deadline: float | None,
    ) -> None:
        self.request: Request = request
        self.home: asyncio.AbstractEventLoop | Receiver | None = home
        self.future: asyncio.Future[CallResult] | concurrent.futures.Future[CallResult] | None = future
        self.deadline: float | None = deadline
        self.context: contextvars.Context = contextvars.copy_context()
        self.queued_at: float = monotonic()
        self.started_at: float = 0.0
        self.state: TicketState = TicketState.IN_LINE
        self.progress: int = 0
        self.slices: list[CallResult] | None = None
        self.left: str = ""

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and self.deadline <= monotonic()

    @classmethod
    def here(cls, request: Request, deadline: float | None) -> Ticket:
        """Return a ticket for the event loop that runs on this thread, or for this thread where none does."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return cls(request, None, concurrent.futures.Future(), deadline)
        return cls(request, loop, loop.create_future(), deadline)

    def __await__(self) -> Generator[object, None, CallResult]:
        if self.home is None:
            waits_by_blocking()
            return self.result()
        future, timer = self.future, None
        assert isinstance(future, asyncio.Future), "made on a plain thread: use `result()`"
        if self.deadline is not None:
            seconds = max(0.0, self.deadline - monotonic())
            timer = future.get_loop().call_later(seconds, self.expire)
        try:
            return (yield from future)
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def result(self) -> CallResult:
        """Block this thread until the outcome is there, or the deadline has passed; return it, or raise it."""
        future = self.future
        assert isinstance(future, concurrent.futures.Future), "made on an event loop: `await` it"
        if self.queue.served_by == threading.get_ident():
            self.cancel()
            raise BlockingCallError(
                f"This thread serves {self.queue.name}, and would wait for itself for ever: a log handler, an embedding "
                "function or a callback that runs on it must not call the database."
            )
        seconds = None if self.deadline is None else max(0.0, self.deadline - monotonic())
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            # On 3.11+ this is the builtin TimeoutError, which the call itself may have raised.
            error = None if future.done() else self.queue.expire(self)
            if error is None:
                return future.result()
            raise error from None
        except BaseException:
            self.cancel()
            raise

    async def unless_stuck(self, is_stuck: Callable[[], bool], seconds: float) -> CallResult:
        """Await the outcome, but take the request back where it has not begun and its queue is stuck.

        Args:
            is_stuck: Tells whether the queue is not served at present.
            seconds: How often that is asked.

        Raises:
            NotBegunError: It was taken back; it never runs.
        """
        if isinstance(self.future, concurrent.futures.Future):
            return self._result_unless(is_stuck, seconds)
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            if self.state is TicketState.IN_LINE or self.state is TicketState.QUEUED:
                if not is_stuck():
                    timer = loop.call_later(seconds, look)
                elif self.queue.withdraw(self) and self.future is not None and not self.future.done():
                    self.future.set_exception(NotBegunError())

        timer = loop.call_later(seconds, look)
        try:
            return await self
        finally:
            timer.cancel()

    def _result_unless(self, is_stuck: Callable[[], bool], seconds: float) -> CallResult:
        future = self.future
        assert isinstance(future, concurrent.futures.Future)
        while not future.done() and (self.deadline is None or monotonic() + seconds < self.deadline):
            try:
                concurrent.futures.wait([future], seconds)
            except BaseException:
                self.cancel()
                raise
            if is_stuck() and self.queue.withdraw(self):
                raise NotBegunError
        return self.result()

    def cancel(self) -> None:
        """Note that the caller is gone: a queued request never runs, the outcome of a running one is dropped."""
        self.queue.cancel(self)
        future = self.future
        if not isinstance(future, asyncio.Future):
            return
        with contextlib.suppress(RuntimeError):  # Its loop is closed, and the caller with it.
            if not (future.cancel() or future.cancelled()):
                error = future.exception()
                if error is not None:
                    report_unseen(self, error)

    def expire(self) -> None:
        """Release the caller because the deadline has passed, unless the outcome is decided already."""
        error = self.queue.expire(self)
        if error is not None and self.future is not None and not self.future.done():
            self.future.set_exception(error)


def latest_deadline(tickets: Sequence[Ticket]) -> float | None:
    """Return the moment after which nothing waits for a merged call any more."""
    if len(tickets) == 1:
        return tickets[0].deadline
    moments = [ticket.deadline for ticket in tickets]
    return None if None in moments else max(moment for moment in moments if moment is not None)


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

    result: CallResult
    error: BaseException | None
    wait_ms: float
    total_ms: float


async def call(
    connection: Submitter, request: Request, deadline: float | None = None, *, when_full: WhenFull = "wait"
) -> CallResult:
    """Submit a request and await its outcome, from any event loop; driven, block this thread until it is there.

    Cancelling the caller releases it at once. A request that was still queued then never runs; one that had begun runs to
    its end and its outcome is dropped.

    Args:
        connection: The connection that carries the request out.
        request: The request to submit.
        deadline: By when (``monotonic()``), or None.
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
        seconds = max(0.0, deadline - monotonic())
        timer = asyncio.get_running_loop().call_later(seconds, _expire_all, tickets)
    try:
        return [await _outcome(ticket) for ticket in tickets]
    except GeneratorExit:
        # Garbage collection may run while this thread holds the queue's lock. So none is taken: the calls run, unheard.
        raise
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
    waited, total = started - ticket.queued_at, monotonic() - ticket.queued_at
    return CallOutcome(result, error, waited * 1000, total * 1000)


def _expire_all(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.expire()


class Outcome:
    """What became of a request: a result or an error."""

    __slots__ = ("error", "result", "ticket")

    def __init__(self, ticket: Ticket, result: object = None, error: BaseException | None = None) -> None:
        self.ticket: Ticket = ticket
        self.result: object = result
        if isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit)):
            # A future refuses StopIteration, and it would stay unresolved; GeneratorExit would close the awaiting coroutines.
            cause, error = error, RuntimeError(f"The call raised {type(error).__name__}.")
            error.__cause__ = cause
        self.error: BaseException | None = error


def deliver(outcomes: Iterable[Outcome]) -> None:
    """Resolve the futures of finished requests, with one wakeup for each event loop and one batch for every other home.

    Futures that are done already (their caller left) are let alone. A loop that has been closed has no callers any more;
    its outcomes are dropped.
    """
    by_home: dict[asyncio.AbstractEventLoop | Receiver | None, list[Outcome]] = {}
    for outcome in outcomes:
        by_home.setdefault(outcome.ticket.home, []).append(outcome)
    for home, batch in by_home.items():
        if home is None:
            _resolve(batch)
            continue
        if not isinstance(home, asyncio.AbstractEventLoop):
            home.take(batch)
            continue
        try:
            home.call_soon_threadsafe(_resolve, batch)
        except RuntimeError:
            # The loop is closed: whoever waited is gone.
            log.debug("outcomes.dropped", reason="event loop closed", count=len(batch))
            for outcome in batch:
                if outcome.error is not None:
                    report_unseen(outcome.ticket, outcome.error)


def _resolve(batch: Sequence[Outcome]) -> None:
    for outcome in batch:
        future = outcome.ticket.future
        if future is None or future.done():
            # The caller left between the end of the call and this moment.
            if outcome.error is not None:
                report_unseen(outcome.ticket, outcome.error)
            continue
        if outcome.error is not None:
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome.result)


def report_unseen(ticket: Ticket, error: BaseException) -> None:
    """Log a failure that no caller awaits any more: this is the only place where it can be seen."""
    ticket.context.run(
        log.warning,
        "request.abandoned_failure",
        database=ticket.queue.name,
        operation=ticket.request.operation,
        error=error,
    )
