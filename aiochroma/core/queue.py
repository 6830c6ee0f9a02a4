"""The bounded queue between any number of callers and the one thread that serves them."""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from enum import Enum, auto
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from aiochroma._deadline import set_deadline
from aiochroma._errors import ClosedError, DeadlineExceededError, ForkedProcessError, QueueFullError

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from collections.abc import Iterable

    from aiochroma.core.request import Request

__all__ = ["QueueState", "RequestQueue", "Ticket", "TicketState"]


class TicketState(Enum):
    """Where a request is; every change happens under the queue's lock."""

    QUEUED = auto()
    RUNNING = auto()
    DONE = auto()
    CANCELLED = auto()
    """Its caller left, or its deadline passed, before it began: it never runs."""
    ABANDONED = auto()
    """Its caller left after it began: it runs to its end and the outcome is dropped."""


class QueueState(Enum):
    """The life of a queue; it only moves forward."""

    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()
    FORKED = auto()


class Ticket:
    """A request on its way, with the place its outcome goes to.

    Attributes:
        loop: The event loop that ``future`` belongs to, or None where a plain thread waits.
        future: Where the outcome goes. It belongs to this request alone.
        database: The name of the queue it was put into, for messages.
        deadline: The moment (``time.monotonic()``) after which the outcome is of no use, or None.
        progress: How many records of a request that was cut are done.
        parts: The results of the pieces done so far.
    """

    __slots__ = (
        "context",
        "database",
        "deadline",
        "future",
        "loop",
        "parts",
        "progress",
        "queued_at",
        "request",
        "started_at",
        "state",
    )

    def __init__(
        self,
        request: Request,
        loop: asyncio.AbstractEventLoop | None,
        future: asyncio.Future[Any] | concurrent.futures.Future[Any],
        deadline: float | None,
    ) -> None:
        self.request = request
        self.loop = loop
        self.future = future
        self.deadline = deadline
        self.context = contextvars.copy_context()
        if deadline is not None:
            # A client's own limit as well: what waits on the DB thread, such as for a lock, looks here.
            self.context.run(set_deadline, deadline)
        self.queued_at = time.monotonic()
        self.started_at = 0.0
        self.state = TicketState.QUEUED
        self.progress = 0
        self.parts: list[Any] | None = None
        self.database = ""


class RequestQueue:
    """First in, first out; bounded; closes once and for good.

    The state is checked and the request put down in one step under one lock, so nothing can land behind the end. Up to
    ``limit`` requests are looked at together; those beyond stand in line and move up as others finish. A caller that
    would rather not stand in line is refused.

    Args:
        name: What to call the database in messages.
        limit: How many requests may wait before a line forms.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.lock = threading.Lock()
        self.state = QueueState.OPEN
        self.drain = True
        # SimpleQueue.put is re-entrant, so a destructor may ring without risk of a deadlock.
        self.wakeup: SimpleQueue[None] = SimpleQueue()
        self.counts = {
            "submitted": 0,
            "done": 0,
            "failed": 0,
            "cancelled": 0,
            "expired": 0,
            "abandoned": 0,
            "refused": 0,
        }
        self.unfinished = 0
        self.failure: BaseException | None = None
        self._waiting: deque[Ticket] = deque()
        self._asleep = False

    # -- callers' side -------------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket, *, wait: bool = True) -> None:
        """Put a request down.

        Args:
            ticket: The request.
            wait: Stand in line when the queue is full; else be refused.

        Raises:
            ClosedError: The database is closed or closing.
            ForkedProcessError: This process was forked after the database was opened.
            QueueFullError: The queue is full and ``wait`` is False.
        """
        if self.state is QueueState.FORKED:
            raise forked_error(self.name)
        with self.lock:
            if self.state is not QueueState.OPEN:
                raise self._closed_error()
            if not wait and self.unfinished >= self.limit:
                self.counts["refused"] += 1
                raise QueueFullError(
                    f"The queue of {self.name} is full: {self.unfinished} requests are waiting or running and the limit is "
                    f"{self.limit}. Wait and try again, let callers wait in line, or raise `max_pending`.",
                    limit=self.limit,
                )
            ticket.database = self.name
            self.counts["submitted"] += 1
            self.unfinished += 1
            self._waiting.append(ticket)
            ring = self._asleep
            self._asleep = False
        if ring:
            self.wakeup.put(None)

    def require_open(self) -> None:
        """Raise what :meth:`submit` would: for callers with costly preparations, such as embedding."""
        if self.state is QueueState.FORKED:
            raise forked_error(self.name)
        if self.state is not QueueState.OPEN:
            raise self.closed_error()

    def leave(self, ticket: Ticket) -> None:
        """Note that the caller is gone: a queued request is dropped, a running one completes unseen."""
        self._part(ticket, "cancelled")

    def expire(self, ticket: Ticket) -> DeadlineExceededError | None:
        """Note that the deadline passed; return the caller's error, or None when the outcome was already decided."""
        before = self._part(ticket, "expired")
        if before is TicketState.QUEUED:
            return self._deadline_error(ticket, started=False)
        return self._deadline_error(ticket, started=True) if before is TicketState.RUNNING else None

    def close(self, *, drain: bool) -> None:
        """Accept nothing more. With ``drain`` what waits is still served, without it is refused. Idempotent."""
        with self.lock:
            if self.state is QueueState.OPEN:
                self.state = QueueState.CLOSING
            self.drain = self.drain and drain
        self.wakeup.put(None)

    def mark_forked(self) -> None:
        """In a forked child: refuse everything. The parent's lock may have been held at the fork, so it is not used."""
        self.state = QueueState.FORKED
        self.lock = threading.Lock()
        self.wakeup = SimpleQueue()

    def _part(self, ticket: Ticket, why: str) -> TicketState:
        with self.lock:
            before = ticket.state
            if before is TicketState.QUEUED:
                ticket.state = TicketState.CANCELLED
                self.counts[why] += 1
                self.unfinished -= 1
            elif before is TicketState.RUNNING:
                ticket.state = TicketState.ABANDONED
                self.counts["abandoned"] += 1
        return before

    # -- the serving thread's side -------------------------------------------------------------------------------------

    def take(self, *, block: bool) -> list[Ticket]:
        """Return all that came since the last look.

        Args:
            block: Sleep until there is something, or until the queue is closed or the wakeup rings. No polling: a
                sleeping thread costs nothing.
        """
        with self.lock:
            taken = list(self._waiting)
            self._waiting.clear()
            if taken or not block or self.state is not QueueState.OPEN:
                return taken
            self._asleep = True
        self.wakeup.get()
        with self.lock:
            self._asleep = False
            taken = list(self._waiting)
            self._waiting.clear()
        return taken

    def claim(self, tickets: Iterable[Ticket]) -> tuple[list[Ticket], list[Ticket]]:
        """Move requests from queued to running, in one step.

        Returns:
            Those that run now (or ran before and go on), and those whose deadline has passed and that never will. Requests
            whose caller has gone are in neither.
        """
        now = time.monotonic()
        alive: list[Ticket] = []
        late: list[Ticket] = []
        with self.lock:
            for ticket in tickets:
                if ticket.state is not TicketState.QUEUED:
                    if ticket.progress and ticket.state in {TicketState.RUNNING, TicketState.ABANDONED}:
                        alive.append(ticket)
                elif ticket.deadline is not None and ticket.deadline <= now:
                    ticket.state = TicketState.CANCELLED
                    self.counts["expired"] += 1
                    self.unfinished -= 1
                    late.append(ticket)
                else:
                    ticket.state = TicketState.RUNNING
                    ticket.started_at = now
                    alive.append(ticket)
        return alive, late

    def finish(self, tickets: Iterable[Ticket], *, failed: bool) -> list[Ticket]:
        """Mark requests as done; return those whose caller is gone, whose outcome nobody will see."""
        abandoned: list[Ticket] = []
        with self.lock:
            for ticket in tickets:
                if ticket.state is TicketState.ABANDONED:
                    abandoned.append(ticket)
                else:
                    self.counts["failed" if failed else "done"] += 1
                ticket.state = TicketState.DONE
                self.unfinished -= 1
        return abandoned

    def shut(self, failure: BaseException | None = None) -> list[Ticket]:
        """End for good and return what was still queued, so that no request stays unanswered."""
        with self.lock:
            self.state = QueueState.CLOSED
            self.failure = self.failure or failure
            left = [ticket for ticket in self._waiting if ticket.state is TicketState.QUEUED]
            self._waiting.clear()
        return left

    def late_error(self, ticket: Ticket) -> DeadlineExceededError:
        """Return the error of a request that was still queued when its deadline passed."""
        return self._deadline_error(ticket, started=False)

    def closed_error(self) -> BaseException:
        """Return the error of a request that will not be served any more."""
        with self.lock:
            return self._closed_error()

    def _closed_error(self) -> BaseException:
        if self.failure is not None:
            return self.failure
        return ClosedError(f"{self.name} is closed; open a new client to go on.")

    def _deadline_error(self, ticket: Ticket, *, started: bool) -> DeadlineExceededError:
        waited = (time.monotonic() - ticket.queued_at) * 1000
        what = (
            "had begun: it runs to its end on the DB thread and its outcome is dropped"
            if started
            else "was still queued: it never ran"
        )
        return DeadlineExceededError(
            f"`{ticket.request.operation}` on {self.name} passed its deadline after {waited:.0f} ms and {what}. "
            f"{self.unfinished} other requests were waiting or running.",
            started=started,
        )


def forked_error(name: str) -> ForkedProcessError:
    """Return the error for using a database in a forked child."""
    return ForkedProcessError(
        f"{name} was opened before this process was forked. Chroma's native threads do not exist in a forked child and "
        "every call would hang. Open the database after the fork, or start the child with the 'spawn' method."
    )
