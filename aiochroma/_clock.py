"""The clocks of time limits and of file times.

``time.monotonic`` is not one clock in every program: tools that freeze time for tests (freezegun) replace it wherever a module
has it, but not below the functions of :mod:`threading`. A limit that is set by one and looked at by the other passes at once,
or never. What is asked here is out of their reach. The time of day stays theirs: when a memory was made, and when it expires,
is :func:`time.time`.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import filelock

__all__ = ["file_clock_ns", "lock_within", "monotonic"]

_POLL_SECONDS = 0.05

monotonic: Callable[[], float]
"""Seconds from some beginning; it only goes forward."""

file_clock_ns: Callable[[], int]
"""The time of day in nanoseconds, as file systems note it for what changes now."""

if hasattr(time, "clock_gettime_ns"):
    monotonic = partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    file_clock_ns = partial(time.clock_gettime_ns, time.CLOCK_REALTIME)
else:  # Windows
    monotonic, file_clock_ns = time.monotonic, time.time_ns


def lock_within(lock: filelock.BaseFileLock, seconds: float) -> AbstractContextManager[object]:
    """Take a file's lock, which another process may have, within some seconds by this clock; a ``with`` block gives it back.

    Raises:
        filelock.Timeout: Another one had it all the time.
    """
    until = monotonic() + seconds
    while True:
        try:
            return lock.acquire(timeout=0)
        except TimeoutError:
            if monotonic() >= until:
                raise
        time.sleep(_POLL_SECONDS)
