"""The order of calls that are prepared elsewhere, and not equally fast, before they are submitted."""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import TYPE_CHECKING

from aiochroma._deadline import deadline_at
from aiochroma._errors import DeadlineExceededError
from aiochroma._threads import waits_by_blocking

if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import TracebackType

__all__ = ["Turn", "Turns"]


class Turns:
    """Lets writes be submitted in the order in which they were called.

    A long write is validated on a worker thread, and texts are embedded, before there is a request that can be
    queued; a short write that is called later is ready at once. All are prepared at the same time, but each is
    submitted only after those that were called before it, on the same event loop, for the same collection.
    """

    def __init__(self) -> None:
        self._lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, Turn]] = (
            weakref.WeakKeyDictionary()
        )

    def take(self, key: Hashable) -> Turn:
        """Stand in line; the result is to be used with ``with`` around preparation and submission.

        A blocking call has nobody before it: its thread prepares and submits one thing after the other.
        """
        if waits_by_blocking():
            return Turn({}, key)
        return Turn(self._lines.setdefault(asyncio.get_running_loop(), {}), key)


class Turn:
    """A place in line. Leaving the block, however it ends, gives it up, but lets nobody pass those in front."""

    __slots__ = ("_before", "_end", "_key", "_line", "over")

    def __init__(self, line: dict[Hashable, Turn], key: Hashable) -> None:
        self._line = line
        self._key = key
        self._before = line.get(key)
        self.over = False
        self._end: asyncio.Future[None] | None = None
        line[key] = self

    async def come(self, timeout: float | None) -> None:
        """Wait until those in front have submitted, and let the next one come as soon as this task waits again.

        So what follows must submit before it first waits.

        Args:
            timeout: The client's own limit, in seconds, or None.

        Raises:
            DeadlineExceededError: The deadline passed first; nothing was submitted.
        """
        before = self._before
        if before is not None and not before.over:
            moment = deadline_at(timeout)
            seconds = None if moment is None else max(0.0, moment - time.monotonic())
            await asyncio.wait([before.ending()], timeout=seconds)
            if not before.over:
                raise DeadlineExceededError(
                    "The deadline passed while an earlier write to the same collection was being prepared; this one "
                    "never ran.",
                    started=False,
                )
        self._give()

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        before = self._before
        if before is None or before.over:
            self._give()
        else:
            before.ending().add_done_callback(lambda _: self._give())

    def ending(self) -> asyncio.Future[None]:
        """Return what is done when this place in line is given up."""
        if self._end is None:
            self._end = asyncio.get_running_loop().create_future()
        return self._end

    def _give(self) -> None:
        self.over = True
        self._before = None
        if self._end is not None and not self._end.done():
            self._end.set_result(None)
        if self._line.get(self._key) is self:
            del self._line[self._key]
