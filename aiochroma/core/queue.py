"""The bounded queue between any number of callers and the one thread that serves them."""

from __future__ import annotations

import threading
from collections import deque
from enum import Enum, auto
from queue import SimpleQueue
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._errors import ClosedError, DeadlineExceededError, ForkedProcessError, QueueFullError, own_copy
from aiochroma._green import real_thread, refuse_another_thread
from aiochroma.core.calls import Ticket, TicketState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aiochroma.core.connection import WhenFull
    from aiochroma.core.request import Request

__all__ = ["QueueState", "RequestQueue", "forked_error"]


# Looking a member up in its enumeration takes longer than all that is done with it.
_QUEUED, _RUNNING, _ABANDONED, _DONE = (
    TicketState.QUEUED,
    TicketState.RUNNING,
    TicketState.ABANDONED,
    TicketState.DONE,
)
_NOT_BEGUN = (TicketState.IN_LINE, _QUEUED)

_FORGET_FROM = 64
"""Fewer requests that were cancelled are left where they are: looking for them takes time, too."""


class QueueState(Enum):
    """The life of a queue; it only moves forward."""

    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()
    FORKED = auto()


class RequestQueue:
    """First in, first out; bounded; closes once and for good.

    The state is checked and the request appended in one step under one lock, so no request can follow the end. At most
    ``limit`` requests are queued or running. A caller beyond that waits in line, outside of the queue, and moves up as others
    finish; or it is refused, if it asked for that.

    Args:
        name: What to call the database in messages.
        limit: How many requests may be queued or running.

    Attributes:
        served_by: The thread that serves it (``threading.get_ident()``), once it does.
        pending: How many requests are queued or running; never above ``limit``.
        in_line: How many requests wait in line because the queue is full.
        slept: Whether the serving thread had nothing to do when it last took what had come.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.lock: threading.Lock = threading.Lock()
        self.state: QueueState = QueueState.OPEN
        self.drain: bool = True
        self.served_by: int | None = None
        # SimpleQueue.put is re-entrant, so a destructor may wake the thread without risk of a deadlock.
        self.wakeup: SimpleQueue[None] = SimpleQueue()
        self.counts: dict[str, int] = {
            "submitted": 0,
            "done": 0,
            "failed": 0,
            "cancelled": 0,
            "expired": 0,
            "abandoned": 0,
            "refused": 0,
        }
        self.pending: int = 0
        self.in_line: int = 0
        self.slept: bool = False
        self.failure: BaseException | None = None
        self._queued: deque[Ticket] = deque()
        self._line: deque[Ticket] = deque()
        self._left = 0
        self._asleep = False
        self._real_thread = real_thread()

    # -- callers' side -------------------------------------------------------------------------------------------------

    def submit(
        self, request: Request, deadline: float | None = None, *, when_full: WhenFull = "wait"
    ) -> Ticket:
        """Submit a request from this thread; see :meth:`aiochroma.core.connection.Connection.submit`."""
        ticket = Ticket.here(request, deadline)
        self.put(ticket, when_full=when_full)
        return ticket

    def submit_many(
        self, requests: Sequence[Request], deadline: float | None = None, *, when_full: WhenFull = "wait"
    ) -> list[Ticket]:
        """Submit several requests from this thread, in one step and with one wakeup: all of them or none."""
        tickets = [Ticket.here(request, deadline) for request in requests]
        self.put(*tickets, when_full=when_full)
        return tickets

    def put(self, *tickets: Ticket, when_full: WhenFull = "wait") -> None:
        """Append requests, in one step: all of them or none.

        Args:
            tickets: The requests.
            when_full: Wait in line when the queue is full, or raise.

        Raises:
            ClosedError: The database is closed or closing.
            ForkedProcessError: This process was forked after the database was opened.
            BlockingCallError: gevent's greenlets serve it, and this is another real thread.
            QueueFullError: The queue is full and ``when_full`` is ``"raise"``.
        """
        if self.state is QueueState.FORKED:
            raise forked_error(self.name)
        if self._real_thread is not None and self._real_thread != real_thread():
            refuse_another_thread(self.name)
        with self.lock:
            if self.state is not QueueState.OPEN:
                raise self._closed_error()
            if when_full == "raise" and self.pending + len(tickets) > self.limit:
                self.counts["refused"] += len(tickets)
                raise QueueFullError(
                    f"The queue of {self.name} is full: {self.pending} requests are waiting or running and the limit is "
                    f"{self.limit}. Wait and try again, let callers wait in line, or raise `max_pending`.",
                    limit=self.limit,
                )
            self.counts["submitted"] += len(tickets)
            if self._line or self.pending + len(tickets) > self.limit:
                for ticket in tickets:
                    ticket.queue = self
                self._line.extend(tickets)
                self.in_line += len(tickets)
                wake = self._admit()
            else:
                for ticket in tickets:
                    ticket.queue, ticket.state = self, _QUEUED
                self._queued.extend(tickets)
                self.pending += len(tickets)
                wake = bool(tickets) and self._asleep
                self._asleep = self._asleep and not wake
        if wake:
            self.wakeup.put(None)

    def _admit(self) -> bool:
        """Move up those for whom there is room; return whether the serving thread has to be woken. The caller holds the lock."""
        came = False
        while self._line and self.pending < self.limit:
            ticket = self._line.popleft()
            if ticket.state is TicketState.IN_LINE:
                ticket.state = _QUEUED
                self._queued.append(ticket)
                self.pending += 1
                self.in_line -= 1
                came = True
        wake = came and self._asleep
        if wake:
            self._asleep = False
        return wake

    def require_open(self) -> None:
        """Raise what :meth:`submit` would: for callers with costly preparations, such as embedding."""
        if self.state is QueueState.FORKED:
            raise forked_error(self.name)
        if self.state is not QueueState.OPEN:
            raise self.closed_error()

    def cancel(self, ticket: Ticket) -> None:
        """Note that the caller is gone: a queued request is dropped, a running one completes unseen."""
        self._release_caller(ticket, "cancelled")

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a request back that has not begun, which then never runs; return whether it had not."""
        return self._release_caller(ticket, "cancelled", may_run=False) in _NOT_BEGUN

    def expire(self, ticket: Ticket) -> DeadlineExceededError | None:
        """Note that the deadline passed; return the caller's error, or None when the outcome was already decided."""
        before = self._release_caller(ticket, "expired")
        if before in _NOT_BEGUN:
            return self._deadline_error(ticket, started=False)
        return self._deadline_error(ticket, started=True) if before is _RUNNING else None

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

    def _release_caller(self, ticket: Ticket, why: str, *, may_run: bool = True) -> TicketState:
        wake = False
        with self.lock:
            before = ticket.state
            if before in _NOT_BEGUN:
                ticket.state, ticket.left = TicketState.CANCELLED, why
                self.counts[why] += 1
                if before is _QUEUED:
                    self.pending -= 1
                    wake = self._admit()
                else:
                    self.in_line -= 1
                self._forget_cancelled()
            elif before is _RUNNING and may_run:
                ticket.state, ticket.left = _ABANDONED, why
                self.counts["abandoned"] += 1
        if wake:
            self.wakeup.put(None)
        return before

    def _forget_cancelled(self) -> None:
        """Let go of requests whose callers have gone, now and then; the caller holds the lock.

        The thread may be in a call that does not return, and new callers come all the time.
        """
        self._left += 1
        if self._left < _FORGET_FROM or 2 * self._left < len(self._queued) + len(self._line):
            return
        self._left = 0
        self._queued, self._line = (
            deque(ticket for ticket in waiting if ticket.state in _NOT_BEGUN)
            for waiting in (self._queued, self._line)
        )

    # -- the serving thread's side -------------------------------------------------------------------------------------

    def take(self, *, block: bool) -> list[Ticket]:
        """Return all that came since the last look.

        Args:
            block: Sleep until there is something, until the queue is closed, or until a wakeup comes. No polling: a sleeping
                thread costs nothing.
        """
        with self.lock:
            taken = list(self._queued)
            self._queued.clear()
            self.slept = not taken and block and self.state is QueueState.OPEN
            if not self.slept:
                return taken
            self._asleep = True
        self.wakeup.get()
        with self.lock:
            self._asleep = False
            taken = list(self._queued)
            self._queued.clear()
        return taken

    def claim(self, tickets: Iterable[Ticket]) -> tuple[list[Ticket], list[Ticket]]:
        """Move requests from queued to running, in one step.

        Returns:
            Those that run now (or ran before and go on), and those whose deadline has passed and that never will. Requests
            whose caller has gone are in neither.
        """
        now = monotonic()
        alive: list[Ticket] = []
        expired: list[Ticket] = []
        with self.lock:
            for ticket in tickets:
                if ticket.state is not _QUEUED:
                    if ticket.slices is not None and ticket.state in {_RUNNING, _ABANDONED}:
                        alive.append(ticket)
                elif ticket.deadline is not None and ticket.deadline <= now:
                    ticket.state = TicketState.CANCELLED
                    self.counts["expired"] += 1
                    self.pending -= 1
                    expired.append(ticket)
                else:
                    ticket.state = _RUNNING
                    ticket.started_at = now
                    alive.append(ticket)
            if expired:
                self._admit()
        return alive, expired

    def finish(self, tickets: Iterable[Ticket], *, failed: bool) -> list[Ticket]:
        """Mark requests as done; return those whose caller is gone, whose outcome no caller will see."""
        abandoned: list[Ticket] = []
        with self.lock:
            for ticket in tickets:
                if ticket.state is _ABANDONED:
                    abandoned.append(ticket)
                else:
                    self.counts["failed" if failed else "done"] += 1
                ticket.state = _DONE
                self.pending -= 1
            if self._line:
                self._admit()
        return abandoned

    def end(self, failure: BaseException | None = None) -> list[Ticket]:
        """End for good and return what was still queued, so that no request stays unanswered."""
        with self.lock:
            self.state = QueueState.CLOSED
            self.failure = self.failure or failure
            for ticket in self._line:
                if ticket.state is TicketState.IN_LINE:
                    ticket.state = _QUEUED
                    self._queued.append(ticket)
                    self.pending += 1
            self._line.clear()
            self.in_line = 0
            left = [ticket for ticket in self._queued if ticket.state is _QUEUED]
            self._queued.clear()
        return left

    def expired_error(self, ticket: Ticket) -> DeadlineExceededError:
        """Return the error of a request that was still queued when its deadline passed."""
        return self._deadline_error(ticket, started=False)

    def closed_error(self) -> BaseException:
        """Return the error of a request that will not be served any more."""
        with self.lock:
            return self._closed_error()

    def _closed_error(self) -> BaseException:
        if self.failure is not None:
            return own_copy(self.failure)
        return ClosedError(f"{self.name} is closed; open a new client to go on.")

    def _deadline_error(self, ticket: Ticket, *, started: bool) -> DeadlineExceededError:
        waited = (monotonic() - ticket.queued_at) * 1000
        what = (
            "had begun: it runs to its end on the DB thread and its outcome is dropped"
            if started
            else "was still queued: it never ran"
        )
        return DeadlineExceededError(
            f"`{ticket.request.row.label}` on {self.name} passed its deadline after {waited:.0f} ms and {what}. "
            f"{self.pending} other requests were waiting or running.",
            started=started,
        )


def forked_error(name: str) -> ForkedProcessError:
    """Return the error for using a database in a forked child."""
    return ForkedProcessError(
        f"{name} was opened before this process was forked. Chroma's native threads do not exist in a forked child and "
        "every call would hang. Open the database after the fork, or start the child with the 'spawn' method."
    )
