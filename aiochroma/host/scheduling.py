"""How the DB thread of a host serves many clients: slices, fairness, and when outcomes leave.

No event loop shares the interpreter, so nothing pauses between two slices of a write; a slice is limited by how long it may keep
others waiting. What waits is dealt out one client after the other, and reads do not hold up a round for long, so that a
client with hundreds of requests does not keep the others waiting.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from aiochroma.core.operations import Lane
from aiochroma.core.pacing import Pacing
from aiochroma.core.worker import WorkerState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.core.plan import Limits, Step
    from aiochroma.core.queue import Ticket

__all__ = ["SharedPacing", "SharedWorkerState", "dealt_out"]

_FEWEST_RECORDS = 64
"""On a busy machine the measured time of a slice shrinks it just when its fixed cost weighs most."""

_BESIDE_READS_SECONDS = 0.02
_ALONE_SECONDS = 0.1
_READS_RECENT_SECONDS = 2.0
_READS_OF_A_ROUND_SECONDS = 0.05
_DELIVERY_SECONDS = 0.01
"""Outcomes wait at most this long for others: each delivery wakes two threads of another process."""


class SharedPacing(Pacing):
    """Sizes the slices of writes; makes no pauses.

    Args:
        limits: Its ``records_per_slice`` is kept up to date here.
        max_write_slice_ms: The budget for one slice, in milliseconds. Default: 20 where somebody has read within the last
            two seconds, 100 otherwise.
    """

    def __init__(self, limits: Limits, max_write_slice_ms: float | None) -> None:
        super().__init__(limits, max_write_slice_ms or _ALONE_SECONDS * 1000)
        limits.records_per_slice = _FEWEST_RECORDS
        self._fixed = None if max_write_slice_ms is None else max_write_slice_ms / 1000
        self._read_at = float("-inf")

    def observe(self, records: int, seconds: float) -> None:
        """Learn from a slice that was written, and size the next."""
        self._cost.observe(records, seconds)
        self._size(time.monotonic())

    def served_read(self, now: float) -> None:
        """Note that somebody reads."""
        first = now - self._read_at > _READS_RECENT_SECONDS
        self._read_at = now
        if first:
            self._size(now)

    def before_slice(self, *, delivered: bool) -> None:
        """Look at no event loop: there is none."""

    def pause(self) -> None:
        """Make no pause."""

    def _size(self, now: float) -> None:
        budget = self._fixed
        if budget is None:
            beside_reads = now - self._read_at <= _READS_RECENT_SECONDS
            budget = _BESIDE_READS_SECONDS if beside_reads else _ALONE_SECONDS
        size = self._limits.records_per_slice
        within = min(self._cost.records_within(budget), size + size // 2)
        self._limits.records_per_slice = max(_FEWEST_RECORDS, min(self._most, within))


class SharedWorkerState(WorkerState):
    """The state of a host's DB thread."""

    pacing: SharedPacing
    delivery_seconds = _DELIVERY_SECONDS

    def __init__(self, *arguments: Any, max_write_slice_ms: float | None = None) -> None:
        super().__init__(*arguments)
        self.pacing = SharedPacing(self.planner.limits, max_write_slice_ms)

    def arrange(self, backlog: list[Ticket]) -> list[Ticket]:
        """Deal the backlog out."""
        return dealt_out(backlog)

    def postpones(self, step: Step, tickets: Sequence[Ticket], seconds: float) -> bool:
        """Leave reads to the next round when this one has taken long enough; a write is never left out."""
        if tickets[0].request.lane is not Lane.READ:
            return False
        self.pacing.served_read(time.monotonic())
        return seconds > _READS_OF_A_ROUND_SECONDS and step.stop is None


def dealt_out(backlog: list[Ticket]) -> list[Ticket]:
    """Return requests one client after the other, the client that waits longest first.

    The order of a client's own requests stays, and what has begun stays before everything else: nothing may overtake a write
    that is cut, and its client may be gone.
    """
    begun = [ticket for ticket in backlog if ticket.slices is not None]
    lines: dict[Any, deque[Ticket]] = {}
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
