"""How the DB thread of a host serves many clients: slices, fairness, and when outcomes leave.

No event loop shares the interpreter, so a slice of a write is limited only by how long it may keep others waiting. After each the
thread that reads the sockets catches up: the slice held the interpreter, and what came meanwhile is not to wait for the next one,
too. What waits is dealt out one client after the other, and reads do not hold up a round for long, so that a client with hundreds
of requests does not keep the others waiting. While reads are left over, bulk writing gets a third of the time at most.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from aiochroma._clock import monotonic
from aiochroma.core.operations import Lane
from aiochroma.core.pacing import Pacing
from aiochroma.core.worker import WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiochroma.core.calls import Ticket
    from aiochroma.core.plan import Limits, Step

__all__ = ["SharedPacing", "SharedWorkerState", "dealt_out"]

_FEWEST_RECORDS = 64
"""On a busy machine the measured time of a slice shrinks it just when its fixed cost weighs most."""

_FEWEST_ALONE = 128
"""While no client reads. On a busy machine 64 take longer than the time below, and slices would never grow."""

_BESIDE_READS_SECONDS = 0.02
_ALONE_SECONDS = 0.1
_READS_RECENT_SECONDS = 2.0
_READS_OF_A_ROUND_SECONDS = 0.05
_READING_SHARE = 2.0
"""Reads get this many times the last slice's duration before the next slice, while reads are waiting."""

_DELIVERY_SECONDS = 0.01
"""Outcomes wait at most this long for others: each delivery wakes two threads of another process."""

_FEWEST_CUT = 8
_LEFT_SHARE = 4
_MOST_LEFT = 16
"""Of so many searches or more a quarter is left, and no more than this."""

_MANY_OUTCOMES = 8
_DELIVERY_OF_MANY_SECONDS = 0.002
"""Many are worth that at once: their callers go on while the rest of the round is carried out."""


class SharedPacing(Pacing):
    """Sizes the slices of writes, and lets the thread that reads the sockets catch up after each.

    Args:
        limits: The limits of the planner, whose ``records_per_slice`` is kept up to date here.
        max_write_slice_ms: The budget for one slice, in milliseconds. Default: 20 where a client has read within the last
            two seconds, 100 otherwise.
        catch_up: Returns when what has come is in the queue.

    Attributes:
        slice_seconds: How long the last slice took.
    """

    def __init__(
        self, limits: Limits, max_write_slice_ms: float | None, catch_up: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(limits, max_write_slice_ms or _ALONE_SECONDS * 1000)
        self.fewest_records: int = _FEWEST_RECORDS
        limits.records_per_slice = _FEWEST_RECORDS
        self._fixed = None if max_write_slice_ms is None else max_write_slice_ms / 1000
        self._read_at = float("-inf")
        self._catch_up = catch_up
        self.slice_seconds: float = 0.0

    def observe(self, records: int, seconds: float) -> None:
        """Learn from a slice that was written, and size the next."""
        self.slice_seconds = seconds
        super().observe(records, seconds)

    def served_read(self, now: float) -> None:
        """Note that a client reads."""
        first = now - self._read_at > _READS_RECENT_SECONDS
        self._read_at = now
        if first:
            self._size_slices(may_grow=False)

    def before_slice(self, *, telling: bool) -> None:
        """Look at no event loop: there is none."""

    def pause(self) -> None:
        """Have what came during the slice read."""
        self._catch_up()

    def _size_slices(self, *, may_grow: bool) -> None:
        alone = self._fixed is None and monotonic() - self._read_at > _READS_RECENT_SECONDS
        self.fewest_records = _FEWEST_ALONE if alone else _FEWEST_RECORDS
        self._limits.eases_rewrites = not alone
        budget = self._fixed or (_ALONE_SECONDS if alone else _BESIDE_READS_SECONDS)
        self._fit(budget, alone=alone, may_grow=may_grow)


class SharedWorkerState(WorkerState):
    """The state of a host's DB thread."""

    pacing: SharedPacing

    def __init__(
        self,
        *arguments: Any,
        max_write_slice_ms: float | None = None,
        catch_up: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(*arguments)
        self.pacing = SharedPacing(self.planner.limits, max_write_slice_ms, catch_up)
        self._left_over = self._ended = self._slept = False
        self._read_seconds = 0.0

    def may_wait(self) -> float:
        """See :meth:`WorkerState.may_wait`."""
        return _DELIVERY_SECONDS if len(self.outcomes) < _MANY_OUTCOMES else _DELIVERY_OF_MANY_SECONDS

    def arrange(self, backlog: list[Ticket]) -> list[Ticket]:
        """Deal the backlog out, for a new round."""
        self._left_over = self._ended = False
        return dealt_out(backlog)

    def _steps(self, waiting: list[Ticket], number: int) -> list[Step]:
        """Choose the steps of a round; the last of many searches are left to the next one where they all came together.

        What their callers do with the answers takes half as long as the search itself. Callers that all have their answers at
        the same moment ask again at the same moment, and then one of the two processes always waits for the other.
        """
        self._slept = self._slept or self.queue.slept
        several = len(waiting) >= _FEWEST_CUT and all(ticket.request.row.searched_field for ticket in waiting)
        if several and self._slept:
            self._slept = False
            waiting = waiting[: -min(len(waiting) // _LEFT_SHARE, _MOST_LEFT)]
        return super()._steps(waiting, number)

    def postpones(self, step: Step, tickets: Sequence[Ticket], seconds: float) -> bool:
        """Leave reads to the next round when this one has taken long enough.

        Bulk writing is then left out, too, until reads had their share; a write of a few records never is.
        """
        head = tickets[0].request
        if self._ended:
            return True
        if head.lane is Lane.READ:
            if not head.row.finds:
                self.pacing.served_read(monotonic())
            late = seconds > _READS_OF_A_ROUND_SECONDS and step.stop is None
            self._left_over = self._left_over or late
            return late
        if step.records and (head.bulk or step.stop is not None):
            self._read_seconds += seconds
            # What follows a slice in the plan follows it for a reason.
            self._ended = self._left_over and self._read_seconds < _READING_SHARE * self.pacing.slice_seconds
            if not self._ended:
                self._read_seconds = 0.0
        return self._ended


def dealt_out(backlog: list[Ticket]) -> list[Ticket]:
    """Return requests one client after the other, the client that waits longest first.

    The order of a client's own requests stays, and what has begun stays before everything else: nothing may overtake a write
    that is cut, and its client may be gone.
    """
    if len(backlog) < 2:
        return backlog
    begun = [ticket for ticket in backlog if ticket.slices is not None]
    lines: dict[object, deque[Ticket]] = {}
    for ticket in backlog:
        if ticket.slices is None:
            lines.setdefault(ticket.home, deque()).append(ticket)
    if len(lines) < 2:
        return [*begun, *(ticket for line in lines.values() for ticket in line)]
    waiting = sorted(lines.values(), key=lambda line: line[0].queued_at)
    dealt = begun
    while waiting:
        dealt.extend(line.popleft() for line in waiting)
        waiting = [line for line in waiting if line]
    return dealt
