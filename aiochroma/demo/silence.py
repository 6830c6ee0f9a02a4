"""Act one: a bot answers while records are written. How long is the event loop silent?"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from aiochroma._types import JsonObject
from aiochroma.client.opening import AsyncPersistentClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from chromadb.api.client import Client

    from aiochroma._types import Vector
    from aiochroma.client.options import Process

__all__ = ["RECORDS", "Silence", "measure_here", "measure_threads", "plain_client", "watch_loop"]

RECORDS = 2_000
"""The most records that are written in each way; on a busy machine the time ends before."""
_SECONDS = 1.5
DIMENSIONS = 256
_QUESTION_EVERY = 0.05
_TICK = 0.001
_SEED = 20_240_601


@dataclass
class Silence:
    """What the event loop and the bot noticed while the records were written; times in seconds.

    Attributes:
        name: How the records were written.
        written: The number of records that were written.
        seconds: How long writing them took.
        longest: The longest time for which the event loop was blocked.
        answers: How long each question waited for its answer.
    """

    name: str
    written: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    answers: list[float] = field(default_factory=list)

    def note(self, seconds: float) -> None:
        """Note for how long the event loop was blocked just now."""
        self.longest = max(self.longest, seconds)


class _Contender(Protocol):
    async def write(self, start: int, stop: int) -> None:
        """Write these records."""

    async def ask(self, vector: Vector) -> None:
        """Ask one question."""


async def measure_here(
    directory: str, progress: Callable[[int], None], *, process: Process | None = None
) -> Silence:
    """Write with :class:`aiochroma.AsyncPersistentClient`, as one call.

    Args:
        directory: An empty directory.
        progress: Called with the number of records that were handed over.
        process: ``"shared"`` to write through the owner process of the directory; None for this process.
    """
    vectors = _vectors()
    async with AsyncPersistentClient(directory, process=process) as client:
        collection = await client.get_or_create_collection("notes", embedding_function=None)

        class Here:
            async def write(self, start: int, stop: int) -> None:
                await collection.upsert(**_records(vectors, start, stop))

            async def ask(self, vector: Vector) -> None:
                await collection.query(query_embeddings=vector[None], n_results=5)

        name = "aiochroma" if process is None else "aiochroma, owner process"
        return await _measure(name, Here(), vectors, progress)


async def measure_threads(directory: str, progress: Callable[[int], None]) -> Silence:
    """Write as one does without this library: plain chromadb, every call in ``asyncio.to_thread``."""
    vectors = _vectors()
    client = await asyncio.to_thread(plain_client, directory)
    try:
        collection = await asyncio.to_thread(
            client.get_or_create_collection, "notes", embedding_function=None
        )

        class Threads:
            async def write(self, start: int, stop: int) -> None:
                await asyncio.to_thread(collection.upsert, **_records(vectors, start, stop))

            async def ask(self, vector: Vector) -> None:
                await asyncio.to_thread(collection.query, query_embeddings=vector[None], n_results=5)

        return await _measure("chromadb in asyncio.to_thread", Threads(), vectors, progress)
    finally:
        await asyncio.to_thread(client.close)


async def _measure(
    name: str, contender: _Contender, vectors: Vector, progress: Callable[[int], None]
) -> Silence:
    silence = Silence(name)
    # What the first write and the first question cost anywhere is not what this is about.
    await contender.write(0, 100)
    await contender.ask(vectors[0])
    watch = asyncio.create_task(watch_loop(silence.note))
    bot = asyncio.create_task(_answer(silence, contender, vectors))
    begun = time.perf_counter()
    try:
        # All get the records in batches of the same size, as a program would read them from a file.
        for start in range(100, RECORDS, 500):
            stop = min(start + 500, RECORDS)
            await contender.write(start, stop)
            silence.written, silence.seconds = stop - 100, time.perf_counter() - begun
            progress(stop)
            if silence.seconds > _SECONDS:
                break
    finally:
        bot.cancel()
        watch.cancel()
        await asyncio.gather(bot, watch, return_exceptions=True)
    return silence


async def _answer(silence: Silence, contender: _Contender, vectors: Vector) -> None:
    """Ask a question twenty times a second, each when it is due, whether or not the one before was answered."""
    running: set[asyncio.Task[None]] = set()

    async def ask(number: int, due: float) -> None:
        await contender.ask(vectors[number % len(vectors)])
        silence.answers.append(time.perf_counter() - due)

    number, due = 0, time.perf_counter()
    try:
        while True:
            task = asyncio.create_task(ask(number, due))
            running.add(task)
            task.add_done_callback(running.discard)
            number, due = number + 1, due + _QUESTION_EVERY
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
    finally:
        await asyncio.gather(*running, return_exceptions=True)


async def watch_loop(note: Callable[[float], None]) -> None:
    """Note by how much each short sleep lasts longer than it should, in seconds: for that long the loop was blocked."""
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(_TICK)
        note(max(0.0, time.perf_counter() - begun - _TICK))


def plain_client(directory: str) -> Client:
    """Open chromadb's own client."""
    import chromadb
    from chromadb.config import Settings

    return cast("Client", chromadb.PersistentClient(directory, Settings(anonymized_telemetry=False)))


def _vectors() -> Vector:
    import numpy as np

    return np.random.default_rng(_SEED).standard_normal((RECORDS, DIMENSIONS)).astype(np.float32)


def _records(vectors: Vector, start: int, stop: int) -> JsonObject:
    return {
        "ids": [f"note-{number}" for number in range(start, stop)],
        "embeddings": vectors[start:stop],
        "documents": [f"This is note number {number}." for number in range(start, stop)],
    }
