"""How large a slice of writing may be, and how long the event loops get between two slices.

Chroma's Python binding holds the interpreter (GIL) during every write. A slice that holds it for 10 ms stops every event
loop of the process for 10 ms, whichever thread it runs on. So slices are sized from their measured cost, and after each
the thread waits until the loops that use the database have gone round.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sized

    from aiochroma.core.plan import Limits

__all__ = ["CostModel", "Pacing"]

_FEWEST_RECORDS = 16
"""Below this a write is mostly its fixed cost: smaller slices would hold hardly less and write far less."""

_MOST_RECORDS = 5000
"""Chroma's own limit for one call."""

_SLICE_MS = 10.0
_ALONE_SECONDS = 0.1
"""So long a slice may hold the interpreter where nothing else wants it; Chroma's own rate is reached at about that length."""

_ALONE_FACTOR = 8
"""Where nothing else wants to run, the records of a slice take at least this multiple of what its call alone takes.

Chroma's CPU time for a record falls with the records of a call: 1.5 ms at 16, 0.75 at 64, 0.6 at 256. On a quiet machine this
asks for about what fits into the time above, on a busy one for more.
"""

_IDLE_SLICES = 4
"""After this many slices in which no loop had anything to do they grow."""

_BELIEVED_SLICES = 16
"""What a loop does after outcomes were delivered to it tells nothing; for this many slices its last answer is believed."""

_OTHERS_SECONDS = 2.0
"""So long after anybody else's request slices stay short."""

_RECENT_SECONDS = 1.0
"""A loop that has not asked for anything for this long is not waited for."""


class CostModel:
    """What a write of ``n`` records takes: ``fixed + per_record * n``, fitted by least squares to the recent ones.

    Older observations fade. Two observations from our measurements (384 dimensions, write-ahead journal) never fade: they
    keep the line sensible while all slices have had one size. An observation counts for at most three times what was
    expected, so that the rare slow one (Chroma persists its index every thousand records or so) does not undo what was
    learned.
    """

    _KNOWN = ((1.0, 0.0028), (64.0, 0.0148))
    _FADING = 0.9
    _OUTLIER = 3.0

    def __init__(self) -> None:
        self._weight = self._records = self._seconds = self._squares = self._products = 0.0
        self.fixed: float = 0.0
        self.per_record: float = 0.0
        self._fit()

    def observe(self, records: int, seconds: float) -> None:
        """Learn from one write."""
        expected = self.fixed + self.per_record * records
        seconds = min(seconds, expected * self._OUTLIER)
        self._weight = self._weight * self._FADING + 1.0
        self._records = self._records * self._FADING + records
        self._seconds = self._seconds * self._FADING + seconds
        self._squares = self._squares * self._FADING + records * records
        self._products = self._products * self._FADING + records * seconds
        self._fit()

    def records_within(self, seconds: float) -> int:
        """Return how many records can be written in that time."""
        return int((seconds - self.fixed) / self.per_record)

    def records_for_half(self) -> int:
        """Return how many records take as long as the fixed part does: smaller writes hold hardly less and write far less."""
        return int(self.fixed / self.per_record)

    def _fit(self) -> None:
        weight, records, seconds = self._weight, self._records, self._seconds
        squares, products = self._squares, self._products
        for known_records, known_seconds in self._KNOWN:
            weight += 1
            records += known_records
            seconds += known_seconds
            squares += known_records * known_records
            products += known_records * known_seconds
        slope = (weight * products - records * seconds) / (weight * squares - records * records)
        self.per_record = max(slope, 1e-6)
        self.fixed = max(0.0, (seconds - self.per_record * records) / weight)


class Pacing:
    """Sizes the slices and makes the pauses.

    A slice is short where anything else in the process may want to run. Where no other caller asks and the event loops have
    nothing to do, short slices are of no use and cost half of the rate, so they grow until something shows.

    Args:
        limits: The limits of the planner, whose ``records_per_slice`` is kept up to date here.
        max_write_slice_ms: The budget for one slice, in milliseconds. None: 10, and up to 100 where nothing else wants to run.

    Attributes:
        fewest_records: No slice is smaller.
    """

    fewest_records: int = _FEWEST_RECORDS

    def __init__(self, limits: Limits, max_write_slice_ms: float | None) -> None:
        self._limits = limits
        self._adapts = max_write_slice_ms is None
        self._budget = (_SLICE_MS if max_write_slice_ms is None else max_write_slice_ms) / 1000
        self._cost = CostModel()
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, float] = weakref.WeakKeyDictionary()
        self._others_at = float("-inf")
        self._idle_slices = 0
        self._alone_records = 0
        self._unmeasured = 0
        self._probes: list[_RoundTrip] = []

    def observe(self, records: int, seconds: float) -> None:
        """Learn from a slice that was written, and size the next."""
        full = records >= self._limits.records_per_slice
        self._cost.observe(records, seconds)
        self._size_slices(may_grow=full)

    def seen(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        """Note that a loop uses the database."""
        self._loops[loop] = now

    def served_other(self, now: float) -> None:
        """Note that a caller that does not write in bulk got an answer."""
        self._others_at = now
        if self._idle_slices:
            self._idle_slices = 0
            self._size_slices(may_grow=False)

    def before_slice(self, *, telling: bool) -> None:
        """Look, from now until after the slice, whether the loops have anything to do meanwhile.

        Args:
            telling: Whether that tells anything: not of a small write, and not where outcomes have just been delivered, so that
                the loops have something to do for that reason alone.
        """
        if not self._adapts:
            return
        self._probes = [_RoundTrip(loop) for loop in self._recent()] if telling else []
        self._unmeasured = 0 if telling else self._unmeasured + 1
        if self._unmeasured > _BELIEVED_SLICES:
            self._idle_slices = 0

    def pause(self) -> None:
        """Return when every loop that used the database lately has gone round twice, or after the budget.

        Twice, because the first round only wakes the tasks whose outcome has just been delivered; the second lets what they
        started run. An idle loop takes some 50 microseconds, so a pause costs bulk writing about 1 %.
        """
        until = monotonic() + self._budget
        # One after the other: a second visit would be something that is due when the first one looks.
        for probe in self._probes:
            probe.done.wait(max(0.0, until - monotonic()))
        if self._adapts and not self._unmeasured:
            idle = all(probe.found_idle for probe in self._probes)
            self._idle_slices = self._idle_slices + 1 if idle else 0
        for trip in [_RoundTrip(loop) for loop in self._recent()]:
            trip.done.wait(max(0.0, until - monotonic()))

    def _recent(self) -> list[asyncio.AbstractEventLoop]:
        oldest = monotonic() - _RECENT_SECONDS
        return [loop for loop, seen in list(self._loops.items()) if seen >= oldest]

    def _size_slices(self, *, may_grow: bool) -> None:
        alone = self._idle_slices >= _IDLE_SLICES and monotonic() - self._others_at > _OTHERS_SECONDS
        self._fit(_ALONE_SECONDS if alone else self._budget, alone=alone, may_grow=may_grow)

    def _fit(self, budget: float, *, alone: bool, may_grow: bool) -> None:
        """Size the slices for a budget, in seconds.

        They grow only after a full one, or to what they were when nothing else wanted to run the last time: the writer's own
        batches make its loop look busy now and then. What single records take says nothing of what a record more costs: on a
        busy machine it looks like nothing, and the next bulk write would go out in one piece.
        """
        size = max(self._limits.records_per_slice, self._alone_records if alone else 0)
        within = self._cost.records_within(budget)
        if alone:
            # On a busy machine, or a slow disk, even the smallest slice takes longer than that.
            within = max(within, _ALONE_FACTOR * self._cost.records_for_half())
        within = min(within, 2 * size if may_grow and alone else size + size // 2 if may_grow else size)
        self._limits.records_per_slice = max(self.fewest_records, min(_MOST_RECORDS, within))
        if alone:
            self._alone_records = self._limits.records_per_slice


class _RoundTrip:
    """A visit to an event loop: it is done when the loop has gone round twice.

    Attributes:
        found_idle: Nothing else was due there. Only asyncio's own loops can be asked; others count as busy.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.done = threading.Event()
        self.found_idle = False
        self._loop = loop
        # Private, and the same since Python 3.4: there is no other way to see what is due without waiting for it.
        self._ready: Sized | None = getattr(loop, "_ready", None)
        try:
            loop.call_soon_threadsafe(self._first)
        except RuntimeError:  # Closed: nothing runs there any more.
            self.found_idle = True
            self.done.set()

    def _first(self) -> None:
        # Beside this call the one that woke the loop for it may be due.
        self.found_idle = self._ready is not None and len(self._ready) <= 1
        self._loop.call_soon(self._second)

    def _second(self) -> None:
        self.found_idle = self.found_idle and not self._ready
        self.done.set()
