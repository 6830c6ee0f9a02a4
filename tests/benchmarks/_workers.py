"""Each contender in a process of its own, so that processor time, memory and threads are its own; one works at a time."""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import signal
import time
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
from _contenders import CONTENDERS, Contender
from _measuring import OpenLoop, Request, Ticker, Usage, bursts, closed_loop, latency_summary, open_loop
from _outstanding import FEW, queued_bytes, requests_of

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from _data import Data

_WRITTEN_TO = 0
"""The collection that is written to."""

_PATIENCE_SECONDS = 300.0
_LEAD_SECONDS = 0.3
_SENDING_SECONDS = 15.0


class Worker:
    """The handle of a contender's process.

    Args:
        key: Its key in ``CONTENDERS``; with ``-alone`` at the end it is a second one of the same kind.
        directory: Its own database.
        data: What is in it.
    """

    def __init__(self, key: str, directory: Path, data: Data) -> None:
        self.key = key
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, key.removesuffix("-alone"), directory, data)
        )
        self._process.start()
        theirs.close()

    def run(self, command: str, **arguments: Any) -> Any:
        """Carry out a command there and return its result; raise what it raised."""
        self._connection.send((command, arguments))
        return self.wait()

    def wait(self) -> Any:
        """Wait for an answer; the first says that the contender is open."""
        if not self._connection.poll(_PATIENCE_SECONDS):
            raise TimeoutError(f"{self.key} did not answer within {_PATIENCE_SECONDS:.0f} s")
        error, result = self._connection.recv()
        if error is not None:
            raise RuntimeError(f"{self.key}: {error}")
        return result

    def close(self) -> None:
        """Let it close and end."""
        self._connection.close()
        self._process.join(30.0)
        if self._process.exitcode is None:
            self._process.terminate()
            self._process.join()


def _work(connection: Connection, contender: str, directory: Path, data: Data) -> None:
    # As an application with logging of its own: records are made, but not printed between the tables.
    logging.getLogger("aiochroma").addHandler(logging.NullHandler())
    # The parent decides when to end; Ctrl-C reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve(connection, CONTENDERS[contender](), directory, data))


async def _serve(connection: Connection, contender: Contender, directory: Path, data: Data) -> None:
    try:
        await contender.open(directory)
    except Exception:
        connection.send((traceback.format_exc(), None))
        return
    runner = _Runner(contender, data)
    connection.send((None, None))
    try:
        while True:
            # Blocks the loop on purpose: nothing of this contender is to run between two commands.
            command, arguments = connection.recv()
            try:
                answer = (None, await getattr(runner, command)(**arguments))
            except Exception:
                answer = (traceback.format_exc(), None)
            connection.send(answer)
    except (EOFError, ConnectionError):  # The parent has closed its end, or has ended itself.
        return
    finally:
        await contender.close()


class _Runner:
    """What a worker can be told to do; the public methods are the commands."""

    def __init__(self, contender: Contender, data: Data) -> None:
        self._contender: Any = contender
        self._data = data
        self._asked = 0
        self._written = 0
        self._ingested = 0
        self._usage = Usage(contender.server)

    # -- comparing -----------------------------------------------------------------------------------------------------

    async def answers(self, work: str, count: int) -> list[Any]:
        """Return what it finds for the first questions, in a form that can be compared between contenders."""
        if work == "recall":
            found = [
                await self._contender.recall(self._data.question_text(-1 - number)) for number in range(count)
            ]
            # Without the distances: one is exact, the other that of Chroma's index, and they differ in the sixth digit.
            return [sorted((name, key) for name, key, _ in hits) for hits in found]
        found = [await self._contender.fan_out(self._data.questions[number]) for number in range(count)]
        return [
            [
                (result["ids"][0], result["documents"][0], np.round(result["distances"][0], 2).tolist())
                for result in results
            ]
            for results in found
        ]

    async def written(self) -> list[Any]:
        """Return what can be read of what was written: ids with documents, as a sample."""
        numbers = range(0, self._written, max(1, self._written // 50))
        ids = [_written_id(number) for number in numbers]
        ids += [
            _bulk_id(turn, number) for turn in range(min(1, self._ingested)) for number in range(0, 5000, 50)
        ]
        if not ids:
            return []
        result = await self._contender.get(_WRITTEN_TO, ids)
        return sorted(zip(result["ids"], result["documents"], strict=True))

    # -- load ----------------------------------------------------------------------------------------------------------

    async def closed(
        self, work: str, callers: int, count: int | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        """Keep callers busy."""
        return await self._measured(
            work, lambda request: closed_loop(request, callers, count=count, seconds=seconds)
        )

    async def open(self, work: str, callers: int, rate: float, seconds: float) -> dict[str, Any]:
        """Send bursts at given moments."""
        return await self._measured(work, lambda request: open_loop(request, bursts(callers, rate, seconds)))

    async def _measured(self, work: str, load: Any) -> dict[str, Any]:
        request = getattr(self, f"_request_{work}")()
        usage = Usage(self._contender.server)
        async with Ticker() as ticker:
            result = await load(request)
        result |= ticker.summary() | usage.summary()
        self._asked += result["requests"]
        if work == "upsert":
            self._written += result["requests"]
        return result

    def _request_fan_out(self) -> Request:
        questions, first = self._data.questions, self._asked

        async def request(number: int) -> None:
            await self._contender.fan_out(questions[(first + number) % len(questions)])

        return request

    def _request_recall(self) -> Request:
        first = self._asked
        texts = [self._data.question_text(first + number) for number in range(4096)]

        async def request(number: int) -> None:
            text = texts[number] if number < len(texts) else self._data.question_text(first + number)
            await self._contender.recall(text)

        return request

    def _request_upsert(self) -> Request:
        vectors, first = self._data.fresh, self._written

        async def request(number: int) -> None:
            number += first
            await self._contender.upsert(
                _WRITTEN_TO,
                [_written_id(number)],
                [vectors[number % len(vectors)]],
                [f"remark {number} of a chat"],
            )

        return request

    # -- ingest --------------------------------------------------------------------------------------------------------

    async def ingest(self, records: int, period: float | None) -> dict[str, Any]:
        """Write many records in one call, while a recall comes due every ``period`` seconds (None: no recalls)."""
        vectors = self._data.vectors(records, 4000 + self._ingested)
        ids = [_bulk_id(self._ingested, number) for number in range(records)]
        documents = [f"paragraph {number} of a document that is taken in" for number in range(records)]
        self._ingested += 1
        usage = Usage(self._contender.server)
        span = _Span()
        async with Ticker() as ticker:
            recalls = asyncio.create_task(self._recalls(period, span))
            await asyncio.sleep(_LEAD_SECONDS)
            span.begun = time.perf_counter()
            try:
                await self._contender.upsert(_WRITTEN_TO, ids, vectors, documents)
            finally:
                span.ended = time.perf_counter()
            load = await recalls
        latencies = [latency for due, latency in load.answered if span.begun <= due <= span.ended]
        return {
            "requests": records,
            "unanswered": load.unanswered,
            "seconds": span.ended - span.begun,
            "rate": records / (span.ended - span.begun),
            "recalls": len(latencies),
            **latency_summary(latencies),
            **ticker.summary(span.begun, span.ended),
            **usage.summary(),
        }

    async def _recalls(self, period: float | None, span: _Span) -> OpenLoop:
        load = OpenLoop(self._request_fan_out())
        if period is not None:
            begun = time.perf_counter()
            for number in itertools.count():
                due = begun + number * period
                # `ended` is set meanwhile. Who cannot do both at once is let off after a while.
                if due > min(span.ended, begun + _SENDING_SECONDS):
                    break
                await load.send_at(due)
        await load.finish()
        return load

    # -- very many requests --------------------------------------------------------------------------------------------

    async def outstanding(self, kind: str, count: int) -> dict[str, float]:
        """Return microseconds per request, with few and with ``count`` outstanding at once."""
        request = requests_of(self._contender, self._data)[kind]
        usage = Usage(self._contender.server)
        few = await closed_loop(request, FEW, count=count)
        cpu_few, usage = usage.summary()["cpu_s"], Usage(self._contender.server)
        async with Ticker() as ticker:
            many = await closed_loop(request, count, count=count)
        return {
            "few_us": few["seconds"] / count * 1e6,
            "many_us": many["seconds"] / count * 1e6,
            "few_cpu_us": cpu_few / count * 1e6,
            "many_cpu_us": usage.summary()["cpu_s"] / count * 1e6,
            "peak_mb": usage.summary()["peak_mb"],
            **ticker.summary(),
        }

    async def queued_bytes(self, count: int) -> dict[str, float]:
        """Return bytes of ours per queued request, by kind."""
        return await queued_bytes(self._contender, self._data, count)


class _Span:
    """From when to when something lasted (``time.perf_counter()``)."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.ended = float("inf")


def _written_id(number: int) -> str:
    return f"written-{number}"


def _bulk_id(turn: int, number: int) -> str:
    return f"bulk-{turn}-{number}"
