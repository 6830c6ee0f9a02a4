"""What one empty request costs: through the engine, through a plain thread with a queue, through ``asyncio.to_thread``.

Run: ``python tests/benchmarks/round_trip.py``. Prints microseconds per request, one at a time and with 64 in flight, as the
median of several rounds in which the contenders take turns, so that a change of the machine's speed meets all alike.
"""

from __future__ import annotations

import asyncio
import itertools
import platform
import statistics
import sys
import threading
import time
from queue import SimpleQueue

from aiochroma.core.calls import call
from aiochroma.core.request import Request
from aiochroma.core.worker import Worker

ROUNDS = 9
REQUESTS = 4000


class Nothing:
    """A resource that does nothing."""

    def execute(self, request, deadline=None):
        return None

    def close(self):
        return None


def plain_thread(queue):
    """Serve as the simplest dedicated thread does: one request, one wake-up."""
    while (item := queue.get()) is not None:
        future, loop = item
        loop.call_soon_threadsafe(_set, future)


def _set(future):
    if not future.done():
        future.set_result(None)


async def measure(one, in_flight):
    """Return microseconds per request with so many callers at once."""
    each = REQUESTS // in_flight

    async def caller():
        for _ in range(each):
            await one()

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return (time.perf_counter() - begun) / (each * in_flight) * 1e6


async def main():
    serving = Worker("benchmark", Nothing)
    serving.start()
    queue = SimpleQueue()
    thread = threading.Thread(target=plain_thread, args=(queue,), daemon=True)
    thread.start()
    loop = asyncio.get_running_loop()

    numbers = itertools.count()

    async def through_engine():
        # Every request is another one, so that none is merged away.
        await call(serving.queue, Request("get_tenant", {"name": next(numbers)}), None)

    async def through_plain_thread():
        future = loop.create_future()
        queue.put((future, loop))
        await future

    async def through_to_thread():
        await asyncio.to_thread(int)

    contenders = {
        "aiochroma's engine": through_engine,
        "plain thread and queue (as aiosqlite)": through_plain_thread,
        "asyncio.to_thread": through_to_thread,
    }
    results = {(name, n): [] for name in contenders for n in (1, 64)}
    for _ in range(ROUNDS):
        for name, one in contenders.items():
            for n in (1, 64):
                results[name, n].append(await measure(one, n))
    serving.close()
    serving.join()
    queue.put(None)
    thread.join()
    print(
        f"{platform.python_implementation()} {sys.version.split()[0]}, {platform.machine()}, microseconds per empty request"
    )
    print(f"| {'':40} | one at a time | 64 in flight |")
    print(f"|{'-' * 42}|--------------:|-------------:|")
    for name in contenders:
        one, many = (statistics.median(results[name, n]) for n in (1, 64))
        print(f"| {name:40} | {one:13.1f} | {many:12.1f} |")


if __name__ == "__main__":
    asyncio.run(main())
