"""How it is measured: load on an event loop, latencies, the loop's stalls, processor time and memory."""

from __future__ import annotations

import asyncio
import itertools
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

Request = Callable[[int], Awaitable[Any]]

TICK_SECONDS = 0.001
PATIENCE_SECONDS = 5.0
"""So long answers are waited for after the last request was sent."""

_NOTICED_SECONDS = 0.002
"""Stalls below this do not count as blocked: the event loop's timers are no finer than a millisecond."""


class Ticker:
    """Wakes every millisecond and notes by how much it was late: the stalls of the event loop.

    Two views of the same stalls are given. *By stall*: each wake-up counts once, so a stall of a second weighs as much as
    one of a millisecond. *By time* (open-loop): how long a callback waits that comes due at a random moment.
    """

    def __init__(self) -> None:
        self._stamps: list[float] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Ticker:
        self._stamps.append(time.perf_counter())
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *details: object) -> None:
        assert self._task is not None
        self._task.cancel()
        self._stamps.append(time.perf_counter())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._stamps.append(time.perf_counter())

    def summary(self, begun: float = 0.0, ended: float = float("inf")) -> dict[str, float]:
        """Return stalls in milliseconds, and the share of time blocked, between two moments (``time.perf_counter()``)."""
        stamps = np.array(self._stamps)
        inside = (stamps[1:] > begun) & (stamps[:-1] < ended)
        gaps = np.diff(stamps)[inside]
        stalls = np.maximum(0.0, gaps - TICK_SECONDS)
        if not len(stalls):
            stalls = gaps = np.zeros(1)
        due = np.concatenate(
            [np.zeros(len(stalls)), *(np.arange(stall, 0.0, -TICK_SECONDS) for stall in stalls)]
        )
        return {
            "stall_p50_ms": _percentile(stalls, 50) * 1e3,
            "stall_p99_ms": _percentile(stalls, 99) * 1e3,
            "stall_max_ms": float(stalls.max()) * 1e3,
            "wait_p99_ms": _percentile(due, 99) * 1e3,
            "blocked": float(stalls[stalls > _NOTICED_SECONDS].sum() / max(gaps.sum(), 1e-9)),
        }


class Usage:
    """Processor time and peak memory of this process and of a server that works for it.

    Args:
        server: The server's process id, or None.
    """

    def __init__(self, server: int | None) -> None:
        self._pids = [None] if server is None else [None, server]
        for pid in self._pids:
            _forget_peak(pid)
        self._begun = self._seconds()

    def summary(self) -> dict[str, float]:
        """Return what was used since this object was made: seconds, and megabytes at the peak."""
        return {
            "cpu_s": self._seconds() - self._begun,
            "peak_mb": sum(_peak(pid) for pid in self._pids) / 2**20,
        }

    def _seconds(self) -> float:
        times = [psutil.Process(pid).cpu_times() for pid in self._pids]
        return sum(item.user + item.system for item in times)


async def closed_loop(
    request: Request, callers: int, *, count: int | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """Keep so many callers busy: the next request of a caller starts when its last is done.

    Args:
        request: Called with the number of the request.
        callers: How many at once.
        count: How many requests in all, or
        seconds: for how long.
    """
    latencies: list[float] = []
    numbers = itertools.count()
    begun = time.perf_counter()
    until = begun + (float("inf") if seconds is None else seconds)

    async def caller() -> None:
        while True:
            number = next(numbers)
            sent = time.perf_counter()
            if sent >= until or (count is not None and number >= count):
                return
            await request(number)
            latencies.append(time.perf_counter() - sent)
            # A caller has other things to do between two requests; without this a blocking contender would run
            # all its requests before any other task had a turn.
            await asyncio.sleep(0)

    await asyncio.gather(*(caller() for _ in range(callers)))
    taken = time.perf_counter() - begun
    return {
        "requests": len(latencies),
        "seconds": taken,
        "rate": len(latencies) / taken,
        **latency_summary(latencies),
    }


class OpenLoop:
    """Sends requests when they are due, whether or not earlier ones are done; latencies count from when they were due.

    Who is overloaded may never catch up. So unanswered requests are given up in the end, and count with the time that they
    have waited until then.

    Args:
        request: Called with the number of the request.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._tasks: dict[asyncio.Task[None], float] = {}
        self.answered: list[tuple[float, float]] = []
        """Of each request: when it was due (``time.perf_counter()``), and its latency in seconds."""
        self.unanswered = 0

    async def send_at(self, due: float) -> None:
        """Wait until then and send one."""
        while (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        number = len(self._tasks)
        self._tasks[asyncio.create_task(self._one(number, due))] = due
        if number % 64 == 63:
            # Where very many are overdue, the first should not wait until the last has been sent.
            await asyncio.sleep(0)

    async def finish(self) -> None:
        """Wait for the answers, but not for ever."""
        if not self._tasks:
            return
        done, waiting = await asyncio.wait(self._tasks, timeout=PATIENCE_SECONDS)
        now = time.perf_counter()
        for task in waiting:
            task.cancel()
            self.answered.append((self._tasks[task], now - self._tasks[task]))
        self.unanswered = len(waiting)
        await asyncio.gather(*waiting, return_exceptions=True)
        for task in done:
            task.result()

    async def _one(self, number: int, due: float) -> None:
        await self._request(number)
        self.answered.append((due, time.perf_counter() - due))


async def open_loop(request: Request, moments: np.ndarray) -> dict[str, Any]:
    """Send requests at given moments, in seconds from the start, ascending; see :class:`OpenLoop`."""
    load = OpenLoop(request)
    begun = time.perf_counter()
    for moment in moments:
        await load.send_at(begun + float(moment))
    await load.finish()
    taken = time.perf_counter() - begun
    latencies = [latency for _, latency in load.answered]
    return {
        "requests": len(moments),
        "unanswered": load.unanswered,
        "seconds": taken,
        "rate": (len(moments) - load.unanswered) / taken,
        **latency_summary(latencies),
    }


def bursts(callers: int, rate: float, seconds: float) -> np.ndarray:
    """Return moments at which so many callers ask at once, at random intervals, ``rate`` requests per second on average."""
    groups = max(1, round(rate * seconds / callers))
    random = np.random.default_rng(groups)
    starts = np.sort(random.uniform(0.0, seconds, size=groups))
    return np.repeat(starts, callers)


def latency_summary(latencies: list[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    values = np.array(latencies or [0.0]) * 1e3
    return {
        "p50_ms": _percentile(values, 50),
        "p99_ms": _percentile(values, 99),
        "max_ms": float(values.max()),
    }


def _percentile(values: np.ndarray, share: float) -> float:
    return float(np.percentile(values, share, method="higher"))


def _forget_peak(pid: int | None) -> None:
    """Set the peak to what is in use now, where the system can do so (Linux)."""
    try:
        Path(f"/proc/{pid or 'self'}/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak(pid: int | None) -> int:
    try:
        for line in Path(f"/proc/{pid or 'self'}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if pid is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(psutil.Process(pid).memory_info().rss)
