"""The threads behind a server's queue, with something in the server's place that does as it is told."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from functools import partial

import pytest
from programs import PATIENCE

from aiochroma import ClosedError, DeadlineExceededError, PartialWriteError
from aiochroma.core.calls import call
from aiochroma.core.executors import ConnectionPlanner, ConnectionPool
from aiochroma.core.request import Request
from aiochroma.core.worker import Worker


class Fake:
    """Does what the request says: calls `do`, or else returns `tag`."""

    max_batch_size = 4

    def __init__(self):
        self.calls = []
        self.threads = set()
        self.closed = 0
        self.hurried = False
        self.condition = threading.Condition()
        self.running = 0
        self.opened = threading.Event()

    def execute(self, request, deadline=None):
        with self.condition:
            self.calls.append(request)
            self.threads.add(threading.current_thread().name)
            self.running += 1
            self.condition.notify_all()
        try:
            do = request.arguments.get("do")
            return do() if do is not None else request.arguments.get("tag")
        finally:
            with self.condition:
                self.running -= 1

    def gate(self):
        assert self.opened.wait(PATIENCE), "nobody opened the gate"
        return "passed"

    async def until_running(self, count):
        def wait():
            with self.condition:
                return self.condition.wait_for(lambda: self.running >= count, PATIENCE)

        assert await asyncio.to_thread(wait), "not so many at once"

    def stop_retrying(self):
        self.hurried = True

    def close(self):
        self.closed += 1


class Engine:
    def __init__(self, connections=3):
        self.remote = Fake()
        self.serving = Worker(
            "the test server",
            lambda: self.remote,
            planner=ConnectionPlanner(connections=connections),
            state=partial(ConnectionPool, connections=connections),
        )
        self.serving.thread.name = "test-server"
        self.serving.start()

    def ask(self, operation="get_tenant", *, deadline=None, **arguments):
        return asyncio.ensure_future(call(self.serving.queue, Request(operation, arguments), deadline))

    def stop(self):
        self.remote.opened.set()
        self.serving.close(drain=False)
        assert self.serving.join(PATIENCE)


@pytest.fixture
def engine():
    made = Engine()
    yield made
    made.stop()


async def test_calls_are_carried_out_at_the_same_time(engine):
    """As many calls are under way as there are connections; the others wait."""
    waiting = [engine.ask(do=engine.remote.gate, tag=number) for number in range(5)]
    await engine.remote.until_running(3)
    assert len(engine.remote.calls) == 3
    engine.remote.opened.set()
    assert [await one for one in waiting] == ["passed"] * 5
    assert engine.remote.threads == {f"test-server:{number}" for number in (1, 2, 3)}


async def test_whatever_is_raised_goes_to_its_caller(engine):
    """SystemExit, KeyboardInterrupt and StopIteration reach the caller, and the connections go on."""

    def raises(error):
        raise error

    for error, seen in (
        (SystemExit(3), SystemExit),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (StopIteration(), RuntimeError),
        (ValueError("x"), ValueError),
    ):
        request = Request("get_tenant", {"do": partial(raises, error)})
        with pytest.raises(seen):
            await call(engine.serving.queue, request, None)
    assert await engine.ask(tag="still here") == "still here"


async def test_closing_serves_what_waits(engine):
    """With draining, everything that was accepted is served before the end, and the threads are gone."""
    waiting = [engine.ask(do=engine.remote.gate, tag=number) for number in range(8)]
    await engine.remote.until_running(3)
    engine.serving.close(drain=True)
    with pytest.raises(ClosedError):
        await engine.ask(tag="too late")
    engine.remote.opened.set()
    assert [await one for one in waiting] == ["passed"] * 8
    assert await asyncio.to_thread(engine.serving.join, PATIENCE)
    assert engine.remote.closed == 1
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("test-server")] == []


async def test_closing_without_draining_refuses_what_waits(engine):
    """Without draining, what is under way completes, what waits is refused, and a write that was cut says how far it came."""
    cut = engine.ask(
        "_upsert", collection_id="c", ids=list("abcdefghij"), embeddings=None, do=engine.remote.gate
    )
    running = engine.ask(do=engine.remote.gate)
    await engine.remote.until_running(2)
    third = engine.ask(do=engine.remote.gate)
    await engine.remote.until_running(3)
    waiting = engine.ask(tag="waiting")
    await asyncio.sleep(0)
    engine.serving.close(drain=False)
    engine.remote.opened.set()
    assert await running == await third == "passed"
    with pytest.raises(ClosedError):
        await waiting
    with pytest.raises(PartialWriteError) as error:
        await cut
    assert error.value.applied == tuple("abcd")
    assert engine.remote.hurried


async def test_a_large_write_is_cut_by_the_servers_batch_size(engine):
    """No piece has more records than the server takes, and other calls run between the pieces."""
    await engine.ask("_upsert", collection_id="c", ids=list("abcdefghij"), embeddings=None)
    assert ["".join(request.arguments["ids"]) for request in engine.remote.calls] == ["abcd", "efgh", "ij"]


async def test_a_deadline_in_the_queue(engine):
    """What has passed its deadline before a connection was free never runs."""
    gates = [engine.ask(do=engine.remote.gate, tag=number) for number in range(3)]
    await engine.remote.until_running(3)
    late = engine.ask(tag="late", deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceededError) as error:
        await late
    assert not error.value.started
    engine.remote.opened.set()
    await asyncio.gather(*gates)
    assert await engine.ask(tag="later") == "later"
    assert "late" not in [request.arguments.get("tag") for request in engine.remote.calls]


async def test_idle_threads_hold_nothing(engine):
    """When a call is over, no thread keeps its arguments or its result alive."""

    class Thing:
        pass

    argument, result = Thing(), Thing()
    seen = [weakref.ref(argument), weakref.ref(result)]
    answer = await engine.ask(do=lambda thing=argument, out=[result]: out[0], tag=argument)
    assert answer is result
    await engine.ask(tag="something else")
    engine.remote.calls.clear()
    del argument, result, answer
    for _ in range(100):
        gc.collect()
        if all(reference() is None for reference in seen):
            break
        await asyncio.sleep(0.01)
    assert [reference() for reference in seen] == [None, None]


async def test_a_plan_that_stumbles_fails_only_the_guilty(engine):
    """Arguments that the plan cannot look at fail their own request, or are for the server to judge; others are served."""
    strange = engine.ask("_upsert", collection_id="c", ids=["a"], embeddings=5)
    good = [engine.ask(tag=number) for number in range(5)]
    assert [await one for one in good] == list(range(5))
    await asyncio.wait([strange])
    assert strange.done()


async def test_counters_add_up(engine):
    """Every request is counted once, by what became of it."""

    def fail():
        raise ValueError("no")

    outcomes = await asyncio.gather(
        *(engine.ask(tag=number) for number in range(20)), engine.ask(do=fail), return_exceptions=True
    )
    assert len(outcomes) == 21
    counts, queue = engine.serving.queue.counts, engine.serving.queue
    assert counts["submitted"] == 21
    assert (counts["done"], counts["failed"], queue.pending) == (20, 1, 0)
