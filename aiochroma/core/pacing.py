"""How large a piece of writing may be, and how long the event loops get between two pieces.

Chroma's Python binding holds the interpreter (GIL) during every write. A piece that holds it for 10 ms stops every event
loop of the process for 10 ms, whichever thread it runs on. So pieces are sized from their measured cost, and after each
the thread waits until the loops that use the database have gone round.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from aiochroma.core.plan import Limits

__all__ = ["CostModel", "Pacing"]

_FEWEST_RECORDS = 16
"""Below this a write is mostly its fixed cost: smaller pieces would hold hardly less and write far less."""

_RECENT_SECONDS = 1.0
"""A loop that has not asked for anything for this long is not waited for."""


class CostModel:
    """What a write of ``n`` records takes: ``fixed + per_record * n``, fitted by least squares to the recent ones.

    Older observations fade. Two observations from our measurements (384 dimensions, write-ahead journal) never fade: they
    keep the line sensible while all pieces have had one size. An observation counts for at most three times what was
    expected, so that the rare slow one (Chroma persists its index every thousand records or so) does not undo what was
    learned.
    """

    _KNOWN = ((1.0, 0.0028), (64.0, 0.0148))
    _FADING = 0.9
    _OUTLIER = 3.0

    def __init__(self) -> None:
        self._weight = self._records = self._seconds = self._squares = self._products = 0.0
        self.fixed = self.per_record = 0.0
        self._fit()

    def observe(self, records: int, seconds: float) -> None:
        """Learn from one write."""
        expected = self.fixed + self.per_record * records
        seconds = min(seconds, expected * self._OUTLIER)
        for name, value in (
            ("_weight", 1.0),
            ("_records", records),
            ("_seconds", seconds),
            ("_squares", records * records),
            ("_products", records * seconds),
        ):
            setattr(self, name, getattr(self, name) * self._FADING + value)
        self._fit()

    def records_within(self, seconds: float) -> int:
        """Return how many records can be written in that time."""
        return int((seconds - self.fixed) / self.per_record)

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
    """Sizes the pieces and makes the pauses.

    Args:
        limits: Its ``records_per_slice`` is kept up to date here.
        max_write_slice_ms: The budget for one piece, in milliseconds.
        most_records: Chroma's own limit for one call.
    """

    def __init__(self, limits: Limits, max_write_slice_ms: float, most_records: int = 5000) -> None:
        self._limits = limits
        self._budget = max_write_slice_ms / 1000
        self._most = most_records
        self._cost = CostModel()
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, float] = weakref.WeakKeyDictionary()

    def observe(self, records: int, seconds: float) -> None:
        """Learn from a piece that was written, and size the next."""
        self._cost.observe(records, seconds)
        size = self._limits.records_per_slice
        within = min(self._cost.records_within(self._budget), size + size // 2)
        self._limits.records_per_slice = max(_FEWEST_RECORDS, min(self._most, within))

    def seen(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        """Note that a loop uses the database."""
        self._loops[loop] = now

    def pause(self) -> None:
        """Return when every loop that used the database lately has gone round twice, or after the budget.

        Twice, because the first round only wakes the tasks whose outcome has just been delivered; the second lets what they
        started run. An idle loop takes some 50 microseconds, so a pause costs bulk writing about 1 %.
        """
        recent = time.monotonic() - _RECENT_SECONDS
        loops = [loop for loop, seen in list(self._loops.items()) if seen >= recent]
        rounds = [_round_trip(loop) for loop in loops]
        until = time.monotonic() + self._budget
        for done in rounds:
            done.wait(max(0.0, until - time.monotonic()))


def _round_trip(loop: asyncio.AbstractEventLoop) -> threading.Event:
    done = threading.Event()
    try:
        loop.call_soon_threadsafe(lambda: loop.call_soon(done.set))
    except RuntimeError:  # Closed: nothing runs there any more.
        done.set()
    return done
