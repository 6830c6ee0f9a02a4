"""The DB thread: takes what waits, plans, calls, delivers. It knows nothing of Chroma.

Guarantees:

* One thread. The resource is opened, used and closed on one thread, and no other touches it.
* Order. Requests are served in rounds. In a round every waiting read runs first, then what creates collections, then one
  slice of writing. So a read may pass writes that are still queued, but never one that was finished before the read was
  submitted. Writes to one collection take effect in the order in which they were submitted. Bulk writing yields to
  interactive requests and gets every fourth round even when there are always some. A barrier (deleting or renaming a
  collection, a backup, a reset) runs after everything submitted before it and before everything submitted after it.
* Work beside the thread. A barrier may begin work that only needs that nothing is written meanwhile, such as the copy of a
  backup. Until that work is over reads are carried out, and everything else waits, as it does for any barrier.
* A write that is cut into slices is not atomic: reads in between see the slices written so far. While a large read is
  being paged, writes to its collection wait; so it begins after a slice of the writing that waited before it.
* Merging changes nothing but speed. If a merged call fails, its members are run again one by one.
* Results belong to requests. An outcome goes to the future of its own request, never to "the next one waiting".
* Cancellation. A request that is cancelled, or past its deadline, while queued never runs. One that has begun runs to its
  end, its caller is released at once, and its outcome is dropped (a failure is logged).
* Errors. Whatever a call raises, including ``SystemExit`` and the panics of native code, is delivered to its caller; the
  thread goes on. If opening fails, every caller gets that error and the thread ends.
* Closing. Nothing is accepted any more; what waits is served (or refused, and a write that is cut stops after its present
  slice); the resource is closed; the thread ends. No request stays unanswered, whatever ends the thread.
* Work of its own. A resource may have work of its own, such as filling an index again: one slice of it follows each round, and
  one slice follows the other while no request waits. It is given up when the database is closed.
* Idle. The thread sleeps without polling and holds no request, argument or result.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._errors import ClosedError, OutcomeUnknownError, own_copy
from aiochroma._logging import EventLogger, get_logger
from aiochroma.core.calls import Outcome, Ticket, TicketState, deliver, latest_deadline, report_unseen
from aiochroma.core.connection import Aside, Rewriting, Serving, Working, thread_failure
from aiochroma.core.operations import Lane
from aiochroma.core.pacing import Pacing
from aiochroma.core.plan import RecordPlanner, Step
from aiochroma.core.queue import QueueState, RequestQueue
from aiochroma.core.stats import SlowLog, StatsRecorder, observer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aiochroma.core.calls import Receiver
    from aiochroma.core.connection import BackendInfo, Resource
    from aiochroma.core.plan import Planner
    from aiochroma.core.request import CallResult, Request

__all__ = ["Worker", "WorkerState", "without_frames"]

log: EventLogger = get_logger("aiochroma.core")

_OPEN_STATES = (TicketState.QUEUED, TicketState.RUNNING, TicketState.ABANDONED)
_DELIVERY_SECONDS = 0.001
"""Outcomes wait at most this long for others to share a wake-up with; a wake-up costs some 20 microseconds."""


class Worker(Serving):
    """One long-lived thread that owns a resource and serves a queue.

    Args:
        name: The name of the database in messages and of the thread.
        open_resource: Opens the resource; called on the thread.
        planner: The plan; default that of Chroma's operations.
        max_pending: How many requests the queue takes; further callers wait in line.
        max_write_slice_ms: Budget of one slice of writing, in milliseconds; see :class:`aiochroma.core.pacing.Pacing`.
        slow_request_ms: Requests that take longer, waiting included, are logged; milliseconds.
        state: Makes what serves on the thread: :class:`WorkerState`, or a class derived from it.
        on_idle: Called on the thread when a wakeup came and nothing waits.
        on_end: Called on the thread when the resource is closed.
    """

    def __init__(
        self,
        name: str,
        open_resource: Callable[[], Resource],
        *,
        planner: Planner | None = None,
        max_pending: int = 10_000,
        max_write_slice_ms: float | None = None,
        slow_request_ms: float = 1000.0,
        state: Callable[..., WorkerState] | None = None,
        on_idle: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        planner = planner or RecordPlanner()
        recorder = StatsRecorder()
        made = (state or WorkerState)(
            RequestQueue(name, max_pending),
            planner,
            Pacing(planner.limits, max_write_slice_ms),
            recorder,
            SlowLog(name, slow_request_ms / 1000),
            on_idle,
        )
        super().__init__(
            f"aiochroma-db:{name}", made.queue, recorder, partial(_serve, made, [open_resource]), on_end
        )

    def describe(self) -> BackendInfo | None:
        """Return None: nothing is known of this resource."""

    @property
    def busy_since(self) -> float | None:
        """When the call began that the thread is in (``monotonic()``), or None."""
        return self.recorder.busy_since


class WorkerState:
    """The state of the serving thread; no other thread touches it."""

    def __init__(
        self,
        queue: RequestQueue,
        planner: Planner,
        pacing: Pacing,
        recorder: StatsRecorder,
        slow: SlowLog,
        on_idle: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.planner = planner
        self.pacing = pacing
        self.recorder = recorder
        self.slow = slow
        self.on_idle = on_idle
        self.backlog: list[Ticket] = []
        self.aside: tuple[Ticket, Aside[object]] | None = None
        self.outcomes: list[Outcome] = []
        self.delivered: bool = False
        self.delivered_at: float = 0.0

    def serve(self, resource: Resource) -> None:
        """Serve until the queue is closed and empty."""
        self.slow.opened_at = monotonic()
        held = more = False
        working = resource if isinstance(resource, Working) else None
        if isinstance(resource, Rewriting):
            self.planner.limits.until_rewrite = resource.until_rewrite
        while True:
            if held and self.backlog:
                self.pacing.pause()
            self._take_news(more=more)
            if self.aside is not None and (self.aside[1].is_over or not self.queue.drain):
                self._end_aside()
                more = working is not None
            self.backlog = self.arrange(self.backlog)
            if not self.backlog:
                if self.queue.state is not QueueState.OPEN:
                    return
                if more and working is not None:
                    more = working.work()
                else:
                    self.on_idle()
                continue
            if not self.queue.drain:
                self.end(self.backlog, self.queue.closed_error())
                self.backlog = []
                continue
            self.delivered = False
            held = self._round(resource)
            more = working is not None and self.aside is None and working.work()

    def _take_news(self, *, more: bool) -> None:
        """Take the requests that have come. Sleep until there are some, unless there is ``more`` of the resource's own work."""
        block = not more and not self._admitted(self.backlog)
        if block and self.aside is not None and self.queue.state is not QueueState.OPEN:
            # A queue that is being closed is not slept on; what goes on beside the thread wakes it.
            self.queue.wakeup.get()
        self.backlog.extend(self.queue.take(block=block))

    def _admitted(self, tickets: list[Ticket]) -> list[Ticket]:
        """Return the requests that may be carried out now: only reads while work goes on beside the thread."""
        if self.aside is None:
            return tickets
        return [ticket for ticket in tickets if ticket.request.lane is Lane.READ]

    def _begin_aside(self, ticket: Ticket, aside: Aside[object]) -> None:
        self.aside = (ticket, aside)
        aside.when_over(lambda: self.queue.wakeup.put(None))

    def _end_aside(self) -> None:
        """Answer the call whose work beside the thread is over."""
        assert self.aside is not None
        (ticket, aside), self.aside = self.aside, None
        result, error = None, None
        try:
            result = ticket.context.run(aside.result)
        except BaseException as caught:  # noqa: BLE001 - belongs to the caller, not the thread
            error = without_frames(caught)
        self._finish([ticket], [result], error, monotonic() - ticket.started_at)
        self.backlog.remove(ticket)
        self._flush()

    def _round(self, resource: Resource) -> bool:
        """Serve one round; return whether it held the interpreter for a slice of writing."""
        number = self.recorder.batches = self.recorder.batches + 1
        alive = [ticket for ticket in self.backlog if ticket.state is not TicketState.CANCELLED]
        waiting = self._admitted(alive)
        members: list[Ticket] = []
        held = False
        began = monotonic()
        for step in self._steps(waiting, number):
            members = [waiting[member] for member in step.members]
            if self.postpones(step, members, monotonic() - began):
                continue
            if step.records:
                # Writing holds the interpreter: what is ready goes out before.
                self._flush()
                bulk = step.stop is not None or members[0].request.bulk
                self.pacing.before_slice(telling=bulk and not self.delivered)
                held = True
            self._step(resource, members, step)
            if self.outcomes and monotonic() - self.delivered_at > self.may_wait():
                self._flush()
        self.backlog = [ticket for ticket in alive if ticket.state in _OPEN_STATES]
        del alive, waiting, members
        self._flush()
        return held

    def may_wait(self) -> float:
        """Return for how many seconds the outcomes that are there may wait for others to share a wakeup with."""
        return _DELIVERY_SECONDS

    def arrange(self, backlog: list[Ticket]) -> list[Ticket]:
        """Return what waits in the order in which it is to be looked at: that of submission."""
        return backlog

    def postpones(self, step: Step, tickets: Sequence[Ticket], seconds: float) -> bool:  # noqa: ARG002 - for those that do
        """Tell whether a step is left to the next round; this one has taken ``seconds`` so far."""
        return False

    def _steps(self, waiting: list[Ticket], number: int) -> list[Step]:
        return self.planned(waiting, lambda requests, progress: self.planner.plan(requests, progress, number))

    def planned(
        self,
        waiting: Sequence[Ticket],
        choose: Callable[[list[Request], list[int]], list[Step]],
        most: int | None = None,
    ) -> list[Step]:
        """Ask the plan; a request whose arguments make it fail is answered alone, and the others go on.

        Args:
            waiting: What waits.
            choose: Chooses steps: ``choose(requests, progress)``, where ``progress`` counts the records of each that are done.
            most: How many steps there may be, or None for any number.
        """
        requests, progress = [ticket.request for ticket in waiting], [ticket.progress for ticket in waiting]
        try:
            return choose(requests, progress)
        except Exception as error:  # noqa: BLE001 - one caller's arguments must not end everybody's thread
            log.warning("plan.failed", database=self.queue.name, error=error)
        # A request that the planner cannot handle goes to Chroma unchanged, and Chroma says what is wrong with it. The others
        # wait for the next round.
        guilty = []
        for position, request in enumerate(requests):
            try:
                choose([request], [progress[position]])
            except Exception:  # noqa: BLE001, PERF203 - whatever it is, it is this request's
                guilty.append(position)
        return [Step([position]) for position in guilty[:most]] or choose(requests[:1], progress[:1])

    def _step(self, resource: Resource, tickets: list[Ticket], step: Step) -> None:
        tickets, expired = self.queue.claim(tickets)
        self._refuse_expired(expired)
        if not tickets:
            return
        requests = [ticket.request for ticket in tickets]
        started = monotonic()
        try:
            result, error = self._call(resource, tickets, self.planner.merge(requests, step)), None
            if step.stop is None:
                result = self.planner.split(requests, result)
        except BaseException as caught:  # noqa: BLE001 - native panics and SystemExit belong to the caller, not the thread
            result, error = None, without_frames(caught)
        seconds = monotonic() - started
        if step.records:
            self.pacing.observe(step.records, seconds)
        if error is None and step.stop is None and result and isinstance(result[0], Aside):
            self._begin_aside(tickets[0], result[0])
        elif error is not None and len(tickets) > 1:
            for ticket in tickets:
                self._alone(resource, ticket, error)
        elif step.stop is not None:
            self._slice(tickets[0], step, result, error, seconds)
        elif error is not None:
            self._finish(tickets, [], error, seconds)
        else:
            self._finish(tickets, result, None, seconds)

    def _alone(self, resource: Resource, ticket: Ticket, merged: BaseException) -> None:
        """Run one member of a merged call that failed, so that only the guilty one fails."""
        started = monotonic()
        result, error = None, None
        try:
            result = self._call(resource, [ticket], ticket.request)
        except BaseException as caught:  # noqa: BLE001 - see above
            error = without_frames(caught)
            if isinstance(merged, OutcomeUnknownError) and not isinstance(error, OutcomeUnknownError):
                # This time nothing may have been written, the time before it may.
                error = OutcomeUnknownError(str(merged))
                error.__cause__ = without_frames(caught)
        self._finish([ticket], [result], error, monotonic() - started)

    def _slice(
        self, ticket: Ticket, step: Step, result: object, error: BaseException | None, seconds: float
    ) -> None:
        if error is not None:
            self._finish([ticket], [], self.planner.failure(ticket.request, step.start, error), seconds)
            return
        if ticket.slices is None:
            ticket.slices = []
        ticket.slices.append(result)
        # Its loop is used for as long as the write goes on.
        self._note_use(ticket.home)
        ticket.progress, last = self.planner.advance(ticket.request, step, result)
        if last:
            self._finish([ticket], [self.planner.join(ticket.request, ticket.slices)], None, seconds)

    def _call(self, resource: Resource, tickets: Sequence[Ticket], request: Request) -> CallResult:
        self.recorder.calls += 1
        self.recorder.busy_since = monotonic()
        try:
            return tickets[0].context.run(resource.execute, request, latest_deadline(tickets))
        finally:
            self.recorder.busy_since = None

    def _refuse_expired(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self.outcomes.append(Outcome(ticket, error=self.queue.expired_error(ticket)))

    def _finish(
        self, tickets: list[Ticket], results: list[CallResult], error: BaseException | None, seconds: float
    ) -> None:
        watching = observer()
        if watching is not None:
            for ticket in tickets:
                waited, label = ticket.started_at - ticket.queued_at, ticket.request.row.label
                watching.request(self.queue.name, label, ticket.context, waited, seconds, len(tickets), error)
        self._answer(tickets, results, error)
        if error is not None:
            self.recorder.record_error(tickets[0].request.row.label, error)
        now = monotonic()
        if not (_is_bulk(tickets[0]) or tickets[0].request.row.finds):
            self.pacing.served_other(now)
        record, slow_before = self.recorder.record, now - self.slow.seconds
        for ticket in tickets:
            record(ticket.started_at - ticket.queued_at, seconds)
            if ticket.queued_at < slow_before:
                self.slow.look(ticket, now, ticket.started_at - ticket.queued_at, now - ticket.started_at)

    def _answer(
        self, tickets: Sequence[Ticket], results: list[CallResult], error: BaseException | None
    ) -> None:
        abandoned = self.queue.finish(tickets, failed=error is not None)
        for position, ticket in enumerate(tickets):
            if ticket not in abandoned:
                self.outcomes.append(Outcome(ticket, results[position] if error is None else None, error))
            elif error is not None:
                report_unseen(ticket, error)

    def _flush(self) -> None:
        self.delivered_at = monotonic()
        if self.outcomes:
            self.delivered = True
            outcomes, self.outcomes = self.outcomes, []
            for home in {outcome.ticket.home for outcome in outcomes}:
                self._note_use(home)
            deliver(outcomes)

    def _note_use(self, home: asyncio.AbstractEventLoop | Receiver | None) -> None:
        if isinstance(home, asyncio.AbstractEventLoop):
            self.pacing.seen(home, monotonic())

    def end(self, tickets: Sequence[Ticket], error: BaseException) -> None:
        """Answer requests that will not be served any further; a write that was cut says how far it came."""
        begun = [ticket for ticket in tickets if ticket.state in {TicketState.RUNNING, TicketState.ABANDONED}]
        alive, expired = self.queue.claim(
            [ticket for ticket in tickets if ticket.state is TicketState.QUEUED]
        )
        for ticket in (*alive, *begun):
            own = self.planner.failure(ticket.request, ticket.progress, own_copy(error))
            self._answer([ticket], [], own)
        self._refuse_expired(expired)
        self._flush()


def _serve(state: WorkerState, to_open: list[Callable[[], Resource]]) -> None:
    """Body of the thread."""
    queue = state.queue
    failure: BaseException | None = None
    resource: Resource | None = None
    queue.served_by = threading.get_ident()
    try:
        started = monotonic()
        resource = to_open.pop()()
        log.info("database.opened", database=queue.name, seconds=round(monotonic() - started, 3))
        state.serve(resource)
    except BaseException as error:  # noqa: BLE001 - remembered and given to every caller
        failure = without_frames(error)
        if resource is None:  # Whoever opens it is told by the error.
            log.info("database.not_opened", database=queue.name, error=error)
        else:
            log.warning("database.failed", database=queue.name, error=error)
            failure = thread_failure(queue.name, without_frames(error))
    finally:
        _wind_up(state, resource, failure)


def _wind_up(state: WorkerState, resource: Resource | None, failure: BaseException | None) -> None:
    queue = state.queue
    if resource is not None:
        try:
            resource.close()
        except BaseException as error:  # noqa: BLE001 - closing goes on whatever happens
            log.error("database.close_failed", database=queue.name, error=error)  # noqa: TRY400 - an event
    left = queue.end(failure)
    refusal = failure or ClosedError(f"{queue.name} was closed before this request was served.")
    state.end([*state.backlog, *left], refusal)
    state.backlog.clear()
    log.info("database.closed", database=queue.name)


def _is_bulk(ticket: Ticket) -> bool:
    """Return whether a request writes in bulk, so that short slices are of no use to it."""
    request = ticket.request
    return request.lane is Lane.WRITE and (request.bulk or ticket.slices is not None)


def without_frames(error: BaseException, module: Mapping[str, object] | None = None) -> BaseException:
    """Take the frames of a module (default: this one) off an error, so that keeping the error does not keep a batch alive."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_globals is (module or globals()):
        traceback = traceback.tb_next
    return error.with_traceback(traceback)
