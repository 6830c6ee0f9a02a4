"""Several connections to one server: the serving thread plans, a few other threads carry out.

The guarantees of :mod:`aiochroma.core.worker` hold, with these differences: steps that do not concern each other are
carried out at the same time (:mod:`aiochroma.core.schedule` says which), nothing pauses between two slices of writing
(a thread that waits for the network does not hold the interpreter), and where the server cannot be reached the members of
a merged call are not run again one by one: they share the error.

The serving thread alone touches the state. A connection thread takes a job, carries it out and hands it back with a wakeup; it
knows nothing of Chroma either.
"""

from __future__ import annotations

import contextvars
import copy
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, cast

from aiochroma._errors import OutcomeUnknownError, StoreUnavailableError
from aiochroma._logging import get_logger
from aiochroma.core.plan import Step
from aiochroma.core.queue import QueueState, Ticket, TicketState
from aiochroma.core.worker import Resource, WorkerState, _without_frames, latest_deadline, unplannable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.core.request import Request
    from aiochroma.core.schedule import ConnectionPlanner, InFlight

__all__ = ["ConnectionPool", "Remote"]

log = get_logger("aiochroma.core")


class Remote(Protocol):
    """A server; its methods are called from several threads at once."""

    max_batch_size: int

    def execute(self, request: Request, deadline: float | None = None) -> Any:
        """Carry out one call, whose result is no longer awaited after ``deadline`` (``time.monotonic()``)."""

    def stop_retrying(self) -> None:
        """Repeat nothing any more: what is under way ends soon."""

    def close(self) -> None:
        """Give everything back."""


class _Job:
    """One step on its way through a connection thread."""

    __slots__ = ("answers", "calls", "description", "requests", "seconds", "step", "tickets")

    def __init__(self, step: Step, tickets: list[Ticket], description: InFlight) -> None:
        self.step = step
        self.tickets = tickets
        self.requests = [ticket.request for ticket in tickets]
        self.description = description
        self.answers: list[tuple[Any, BaseException | None]] = []
        self.calls = 0
        self.seconds = 0.0

    def carry_out(self, remote: Remote, planner: ConnectionPlanner) -> None:
        """Make the call; afterwards there is an answer for every ticket (for a slice or a page, that itself)."""
        started = time.monotonic()
        try:
            merged = planner.merge(self.requests, self.step)
            result = self._call(remote, self.tickets, merged)
            whole = self.step.stop is None
            self.answers = [
                (part, None) for part in (planner.split(self.requests, result) if whole else [result])
            ]
        except BaseException as caught:  # noqa: BLE001 - belongs to the caller, not to the thread
            error = _without_frames(caught, globals())
            if len(self.tickets) == 1:
                self.answers = [(None, error)]
            elif isinstance(error, (StoreUnavailableError, OutcomeUnknownError)):
                self.answers = [(None, _own_copy(error)) for _ in self.tickets]
            else:
                self.answers = [self._alone(remote, ticket) for ticket in self.tickets]
        self.seconds = time.monotonic() - started

    def _alone(self, remote: Remote, ticket: Ticket) -> tuple[Any, BaseException | None]:
        """Run one member of a merged call that failed, so that only the guilty one fails."""
        try:
            return self._call(remote, [ticket], ticket.request), None
        except BaseException as caught:  # noqa: BLE001 - see above
            return None, _without_frames(caught, globals())

    def _call(self, remote: Remote, tickets: list[Ticket], request: Request) -> Any:
        self.calls += 1
        return tickets[0].context.run(remote.execute, request, latest_deadline(tickets))


class ConnectionPool(WorkerState):
    """The state of the serving thread of a server; no other thread touches it, except for the jobs that are completed.

    Args:
        connections: How many threads carry out steps.
        arguments: See :class:`aiochroma.core.worker.WorkerState`.
    """

    planner: ConnectionPlanner

    def __init__(self, *arguments: Any, connections: int) -> None:
        super().__init__(*arguments)
        self._connections = connections
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._in_flight: list[_Job] = []
        self._completed: list[_Job] = []
        self._completed_lock = threading.Lock()

    def serve(self, resource: Resource) -> None:
        """Serve until the queue is closed and empty."""
        remote = cast("Remote", resource)
        limits = self.planner.limits
        if remote.max_batch_size > 0:
            limits.records_per_slice = min(limits.records_per_slice, remote.max_batch_size)
        threads = [self._connection_thread(remote, number) for number in range(self._connections)]
        try:
            for thread in threads:
                thread.start()
            self._serve(remote)
        finally:
            for _ in threads:
                self._jobs.put(None)
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            self._collect()

    def _connection_thread(self, remote: Remote, number: int) -> threading.Thread:
        return threading.Thread(
            target=contextvars.Context().run,
            args=(_carry_out_jobs, self._jobs, self._put, remote, self.planner),
            name=f"{threading.current_thread().name}:{number + 1}",
            daemon=True,
        )

    def _serve(self, remote: Remote) -> None:
        while True:
            self._await_news()
            self._collect()
            if not self.queue.drain:
                remote.stop_retrying()
                self.end(self.backlog, self.queue.closed_error())
                self.backlog = []
            self._dispatch()
            self._flush()
            if self.backlog or self._in_flight:
                continue
            if self.queue.state is not QueueState.OPEN:
                # Whoever came in the same moment as the closing has been seen: nothing is accepted after it.
                self.backlog.extend(self.queue.take(block=False))
                if not self.backlog:
                    return
            else:
                self.on_idle()

    def _await_news(self) -> None:
        """Return when a request has come, a job is completed, or the queue is being closed."""
        if self.queue.state is not QueueState.OPEN and self._in_flight:
            self.queue.wakeup.get()
        self.backlog.extend(self.queue.take(block=not self.backlog or bool(self._in_flight)))

    def _put(self, job: _Job) -> None:
        """Hand a job back; called on a connection thread. One wakeup is enough for all that have not been collected."""
        with self._completed_lock:
            self._completed.append(job)
            wake = len(self._completed) == 1
        if wake:
            self.queue.wakeup.put(None)

    def _collect(self) -> None:
        """Take the jobs that are completed, and hand the outcomes back."""
        with self._completed_lock:
            jobs, self._completed = self._completed, []
        for job in jobs:
            self._in_flight.remove(job)
            self.recorder.calls += job.calls
            if job.step.stop is not None:
                self._collect_slice(job)
                continue
            if all(error is None for _, error in job.answers):
                self._finish(job.tickets, [result for result, _ in job.answers], None, job.seconds)
                continue
            for ticket, (result, error) in zip(job.tickets, job.answers, strict=True):
                self._finish([ticket], [result], error, job.seconds)

    def _collect_slice(self, job: _Job) -> None:
        ticket = job.tickets[0]
        part, error = job.answers[0]
        self._slice(ticket, job.step, part, error, job.seconds)
        if ticket.state is not TicketState.DONE:
            # It was there before everything that came after it, and still is.
            position = sum(other.queued_at <= ticket.queued_at for other in self.backlog)
            self.backlog.insert(position, ticket)

    def _dispatch(self) -> None:
        """Begin what may begin now."""
        self.backlog = [ticket for ticket in self.backlog if ticket.state is not TicketState.CANCELLED]
        free = self._connections - len(self._in_flight)
        while free and self.backlog:
            number = self.recorder.batches = self.recorder.batches + 1
            steps = self._scheduled(number, free)
            waiting = self.backlog
            chosen: set[int] = set()
            for step in steps:
                chosen.update(step.members)
                self._begin(step, [waiting[member] for member in step.members])
            self.backlog = [ticket for position, ticket in enumerate(waiting) if position not in chosen]
            if not steps or len(self._in_flight) + free == self._connections + len(steps):
                return
            # Some of them had passed their deadline, so a connection is still idle.
            free = self._connections - len(self._in_flight)

    def _scheduled(self, number: int, free: int) -> list[Step]:
        """Ask the plan; should it stumble over somebody's arguments, those are answered alone and the others go on."""
        in_flight = [job.description for job in self._in_flight]

        def plan(positions: Sequence[int]) -> list[Step]:
            tickets = [self.backlog[position] for position in positions]
            steps = self.planner.schedule(
                [ticket.request for ticket in tickets],
                [ticket.progress for ticket in tickets],
                number,
                in_flight,
                free,
            )
            for step in steps:
                step.members = [positions[member] for member in step.members]
            return steps

        everything = range(len(self.backlog))
        try:
            return plan(everything)
        except Exception as error:  # noqa: BLE001 - one caller's arguments must not end everybody's thread
            log.warning("plan.failed", database=self.queue.name, error=repr(error))
        guilty = unplannable(everything, plan)[:free]
        return [Step([position]) for position in guilty] or plan([0])

    def _begin(self, step: Step, tickets: list[Ticket]) -> None:
        tickets, expired = self.queue.claim(tickets)
        self._refuse_expired(expired)
        if tickets:
            job = _Job(step, tickets, self.planner.describe(tickets[0].request, step))
            self._in_flight.append(job)
            self._jobs.put(job)


def _carry_out_jobs(
    jobs: SimpleQueue[_Job | None], hand_back: Any, remote: Remote, planner: ConnectionPlanner
) -> None:
    """Body of a connection thread."""
    while True:
        job = jobs.get()
        if job is None:
            return
        job.carry_out(remote, planner)
        hand_back(job)
        # Nothing may be held while there is nothing to do.
        del job


def _own_copy(error: BaseException) -> BaseException:
    """Every caller gets an error of its own: raising one adds to its traceback."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
