"""What very many requests outstanding at once cost: time per request, and memory per request that is queued."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from _contenders import Contender
from _data import PLACES, record_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _contenders import Ours
    from _data import Data
    from _measuring import Request

FEW = 64


def requests_of(contender: Contender, data: Data) -> dict[str, Request]:
    """Return the two kinds of request, each about another record: the cheapest there is, and a search."""

    async def get(number: int) -> None:
        place = number % PLACES
        await contender.get(place, [record_id(place, number // PLACES % data.records)])

    async def query(number: int) -> None:
        await contender.query(number % PLACES, data.questions[number % len(data.questions)])

    return {"get": get, "query": query}


async def queued_bytes(contender: Ours, data: Data, count: int) -> dict[str, float]:
    """Return bytes per queued request, beyond its payload and beyond the task that waits for it.

    The thread is held at a gate, so that all requests are queued when the memory is read.
    """
    bare = _Bare()
    payloads = {
        "get": lambda number: [record_id(number % PLACES, number // PLACES)],
        "query": lambda number: [data.questions[number % len(data.questions)]],
    }
    found = {}
    for kind, request in requests_of(contender, data).items():
        least = await _bytes_each(requests_of(bare, data)[kind], count, bare.release)
        payload = _payload_bytes(payloads[kind], count)
        with _held(contender) as release:
            first = asyncio.create_task(request(0))
            await asyncio.sleep(0.05)
            found[kind] = await _bytes_each(request, count, release) - least - payload
            await first
    return found


class _Bare(Contender):
    """The least that can be awaited: a future for each request, and nothing behind it."""

    def __init__(self) -> None:
        super().__init__()
        self._futures: list[asyncio.Future[None]] = []
        self.places = [self] * PLACES

    async def query(self, place: int, vector: Any) -> Any:
        return await self._future()

    async def get(self, place: int, ids: list[str]) -> Any:
        return await self._future()

    def release(self) -> None:
        """Answer all."""
        for future in self._futures:
            future.set_result(None)
        self._futures.clear()

    def _future(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures.append(future)
        return future


def _payload_bytes(make: Callable[[int], Any], count: int) -> float:
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        payloads = [make(number) for number in range(count)]
        return (tracemalloc.get_traced_memory()[0] - before) / len(payloads)
    finally:
        tracemalloc.stop()


async def _bytes_each(request: Request, count: int, release: Callable[[], None]) -> float:
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tasks = [asyncio.create_task(request(number)) for number in range(count)]
        # Two rounds of the loop: in the first every task runs up to its wait.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        each = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
        release()
    await asyncio.gather(*tasks)
    return each


@contextmanager
def _held(contender: Ours) -> Iterator[Callable[[], None]]:
    database: Any = contender.client.session.connection.engine.serving._opened[0]
    execute, gate = database.execute, threading.Event()

    def wait_and_execute(*arguments: Any) -> Any:
        gate.wait()
        return execute(*arguments)

    database.execute = wait_and_execute
    try:
        yield gate.set
    finally:
        gate.set()
        del database.execute
