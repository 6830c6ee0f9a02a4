"""Several connections to one server: the serving thread plans, a few other threads carry out.

The guarantees of :mod:`aiochroma.core.worker` hold, with these differences: steps that do not concern each other are
carried out at the same time (:class:`ConnectionPlanner` says which), nothing pauses between two slices of writing
(a thread that waits for the network does not hold the interpreter), and where the server cannot be reached the members of
a merged call are not run again one by one: they share the error.

The serving thread alone touches the state. A connection thread carries out a job and hands it back. In flight together are:

* at most one write for each collection, so that writes to a collection take effect in the order of submission;
* at most one step that creates collections, for the same reason;
* no write to a collection while a large read of it is being paged, and no such read while a write is in flight;
* a barrier alone: after everything submitted before it, before everything submitted after it.

Steps are chosen in the order of their oldest request, so nothing is starved. Bulk writing comes after the others, except
every fourth time, and never occupies the last connection.
"""

from __future__ import annotations

import contextvars
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, cast

from aiochroma._clock import monotonic
from aiochroma._errors import OutcomeUnknownError, StoreUnavailableError, own_copy
from aiochroma.core.calls import Ticket, TicketState, latest_deadline
from aiochroma.core.operations import Lane
from aiochroma.core.plan import BULK_ROUND, Limits, RecordPlanner, Step
from aiochroma.core.queue import QueueState
from aiochroma.core.worker import WorkerState, without_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aiochroma.core.connection import Resource
    from aiochroma.core.request import CallResult, Request

__all__ = ["ConnectionPlanner", "ConnectionPool", "InFlight", "Remote"]

_BODY_BYTES = 768 * 1024
"""The most bytes that the records of one write may take. A reverse proxy with default settings refuses bodies above 1 MB;
larger bodies gain a few per cent of speed, and keep other writes waiting longer."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step that a connection is carrying out.

    Attributes:
        lane: How its requests are ordered against others.
        collection: The collection that it concerns, or empty.
        paged: Whether it is one page of a large read.
        bulk: Whether it is bulk writing.
    """

    lane: Lane
    collection: str = ""
    paged: bool = False
    bulk: bool = False


class ConnectionPlanner(RecordPlanner):
    """The plan for a server.

    Args:
        limits: How large one call may become. Reads are not cut: other clients of the server may write between two pages,
            so a read in pages might miss a record that was there all the time.
        connections: How many steps may be in flight.
    """

    def __init__(self, limits: Limits | None = None, connections: int = 4) -> None:
        # Vectors travel as base64.
        own = Limits(5000, bytes_per_slice=_BODY_BYTES, bytes_per_number=16 / 3, cut_reads=False)
        super().__init__(limits or own)
        self._most_bulk = max(1, connections - 1)

    def schedule(
        self,
        waiting: Sequence[Request],
        progress: Sequence[int],
        number: int,
        in_flight: Sequence[InFlight],
        free: int,
    ) -> list[Step]:
        """Choose the steps that are to begin now.

        Args:
            waiting: Requests in order of submission, without those in flight.
            progress: For each, how many records are done already.
            number: Counts the calls of this method; interactive and bulk writing take turns by it.
            in_flight: What the connections are doing.
            free: How many connections are idle.

        Returns:
            At most ``free`` steps, which may all be carried out at the same time. Not empty where something waits and
            nothing is in flight.
        """
        lanes = [request.lane for request in waiting]
        if any(step.lane is Lane.BARRIER for step in in_flight):
            return []
        barrier = lanes.index(Lane.BARRIER) if Lane.BARRIER in lanes else len(lanes)
        if barrier == 0:
            return [Step([0])] if waiting and not in_flight else []
        of_lane = {
            lane: [position for position in range(barrier) if lanes[position] is lane][
                : self.limits.lookahead
            ]
            for lane in Lane
        }
        written = {step.collection for step in in_flight if step.lane is Lane.WRITE}
        reads = self._plan_reads(waiting, progress, of_lane[Lane.READ])
        steps = [
            step for step in reads if step.stop is None or waiting[step.members[0]].collection not in written
        ]
        if not any(step.lane is Lane.CATALOG for step in in_flight):
            steps.extend(Step([position]) for position in of_lane[Lane.CATALOG][:1])
        held = written | {step.collection for step in in_flight if step.paged}
        held.update(waiting[step.members[0]].collection for step in steps if step.stop is not None)
        writes = [position for position in of_lane[Lane.WRITE] if waiting[position].collection not in held]
        bulk, interactive = self._plan_writes(waiting, progress, writes)
        steps.extend(interactive)
        steps.sort(key=lambda step: step.members[0])
        room = self._most_bulk - sum(step.bulk for step in in_flight)
        bulk = _rotated(bulk, number)[: max(0, room)]
        return [*bulk, *steps][:free] if number % BULK_ROUND == 0 else [*steps, *bulk][:free]

    def describe(self, request: Request, step: Step) -> InFlight:
        """Return what the plan has to know of a step while it is in flight; ``request`` is its first member."""
        cut = step.stop is not None
        return InFlight(
            request.lane,
            request.collection,
            paged=cut and request.lane is Lane.READ,
            bulk=request.lane is Lane.WRITE and (cut or request.bulk),
        )

    def _plan_writes(
        self, waiting: Sequence[Request], progress: Sequence[int], writes: Iterable[int]
    ) -> tuple[list[Step], list[Step]]:
        lines: dict[str, list[int]] = {}
        for position in writes:
            lines.setdefault(waiting[position].collection, []).append(position)
        bulk: list[Step] = []
        interactive: list[Step] = []
        for line in lines.values():
            step = self._write_step(waiting, progress, line)
            (bulk if self.describe(waiting[line[0]], step).bulk else interactive).append(step)
        return bulk, interactive


def _rotated(steps: list[Step], number: int) -> list[Step]:
    first = number % len(steps) if steps else 0
    return steps[first:] + steps[:first]


class Remote(Protocol):
    """A server; its methods are called from several threads at once."""

    max_batch_size: int

    def execute(self, request: Request, deadline: float | None = None) -> CallResult:
        """Carry out one call, whose result is no longer awaited after ``deadline`` (``monotonic()``)."""

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
        self.answers: list[tuple[CallResult, BaseException | None]] = []
        self.calls = 0
        self.seconds = 0.0

    def carry_out(self, remote: Remote, planner: ConnectionPlanner) -> None:
        """Make the call. Afterwards there is one answer for every ticket; for a slice or a page, its result."""
        started = monotonic()
        try:
            merged = planner.merge(self.requests, self.step)
            result = self._call(remote, self.tickets, merged)
            whole = self.step.stop is None
            self.answers = [
                (each, None) for each in (planner.split(self.requests, result) if whole else [result])
            ]
        except BaseException as caught:  # noqa: BLE001 - belongs to the caller, not to the thread
            error = without_frames(caught, globals())
            if len(self.tickets) == 1:
                self.answers = [(None, error)]
            elif isinstance(error, (StoreUnavailableError, OutcomeUnknownError)):
                self.answers = [(None, own_copy(error)) for _ in self.tickets]
            else:
                self.answers = [self._alone(remote, ticket) for ticket in self.tickets]
        self.seconds = monotonic() - started

    def _alone(self, remote: Remote, ticket: Ticket) -> tuple[CallResult, BaseException | None]:
        """Run one member of a merged call that failed, so that only the guilty one fails."""
        try:
            return self._call(remote, [ticket], ticket.request), None
        except BaseException as caught:  # noqa: BLE001 - see above
            return None, without_frames(caught, globals())

    def _call(self, remote: Remote, tickets: list[Ticket], request: Request) -> CallResult:
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
                self.backlog: list[Ticket] = []
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
        """Hand a job back; called on a connection thread. One wakeup serves all jobs that have not been collected yet."""
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
        result, error = job.answers[0]
        self._slice(ticket, job.step, result, error, job.seconds)
        if ticket.state is not TicketState.DONE:
            # It keeps its place in line: before everything that was submitted after it.
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
            # Some of the chosen requests had passed their deadline, so a connection is still idle.
            free = self._connections - len(self._in_flight)

    def _scheduled(self, number: int, free: int) -> list[Step]:
        in_flight = [job.description for job in self._in_flight]
        return self.planned(
            self.backlog,
            lambda requests, progress: self.planner.schedule(requests, progress, number, in_flight, free),
            most=free,
        )

    def _begin(self, step: Step, tickets: list[Ticket]) -> None:
        tickets, expired = self.queue.claim(tickets)
        self._refuse_expired(expired)
        if tickets:
            job = _Job(step, tickets, self.planner.describe(tickets[0].request, step))
            self._in_flight.append(job)
            self._jobs.put(job)


def _carry_out_jobs(
    jobs: SimpleQueue[_Job | None],
    hand_back: Callable[[_Job], None],
    remote: Remote,
    planner: ConnectionPlanner,
) -> None:
    """Body of a connection thread."""
    while True:
        job = jobs.get()
        if job is None:
            return
        job.carry_out(remote, planner)
        hand_back(job)
        # An idle thread must not keep a request alive.
        del job
