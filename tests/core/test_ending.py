"""The end of a serving thread: closing with and without draining, and what becomes of those who wait."""

from __future__ import annotations

import asyncio
import signal
import threading
import traceback

import pytest
from programs import PATIENCE

from aiochroma import ClosedError, PartialWriteError, StoreUnavailableError
from aiochroma._waiting import drive
from aiochroma.core.calls import TicketState, call, call_many
from aiochroma.core.request import Request


async def test_close_drains_then_closes(engine, until):
    """What was submitted before the close is served, what comes after is refused, then the resource is closed."""
    holder, gate = await engine.hold()
    tasks = [engine.task(number) for number in range(10)]
    await asyncio.sleep(0)
    engine.serving.close()
    with pytest.raises(ClosedError, match="closed"):
        await engine.call("too late")
    gate.open()
    await holder
    assert await asyncio.gather(*tasks) == list(range(10))
    await until(lambda: not engine.serving.thread.is_alive())
    assert engine.resource.closed
    assert "too late" not in engine.resource.calls


async def test_close_without_drain_fails_waiters(engine, until):
    """Without draining everybody who waits is refused, and the call that runs completes."""
    holder, gate = await engine.hold()
    tasks = [engine.task(number) for number in range(10)]
    await asyncio.sleep(0)
    engine.serving.close(drain=False)
    gate.open()
    assert await holder is None
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, ClosedError)
    await until(lambda: not engine.serving.thread.is_alive())
    assert engine.resource.calls == ["holder"]
    assert engine.resource.closed
    assert engine.counts()["pending"] == 0


def test_what_is_collected_with_its_loop_takes_no_lock(engines):
    """The collection runs in the middle of anything, also where the queue's lock is held by the thread that it runs on."""
    engine = engines()
    gate = engine.gate()
    loop = asyncio.new_event_loop()

    async def ask():
        requests = [Request("custom", {"do": gate}), Request("custom", {"tag": "asked"})]
        return await call_many(engine.queue, requests)

    asking = ask()
    task = loop.create_task(asking)
    loop.run_until_complete(asyncio.sleep(0))
    with engine.queue.lock:
        collecting = threading.Thread(target=asking.close)
        collecting.start()
        collecting.join(5)
        stands_still = collecting.is_alive()
    gate.open()
    collecting.join(PATIENCE)
    assert not stands_still
    with pytest.raises(RuntimeError, match="already awaited"):
        loop.run_until_complete(task)
    loop.close()


class Interrupt(BaseException):
    """What a signal raises, as Ctrl-C does."""


def test_a_join_that_is_interrupted_does_not_take_the_thread_for_one_that_has_ended(engines):
    """Python's own does until 3.12; whoever opens the database next would find it in use by its own process."""
    engine = engines()
    gate = engine.gate()
    ticket = engine.queue.submit(Request("custom", {"do": gate}))

    def interrupt(_number, _frame):
        raise Interrupt

    def interrupted_join():
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        engine.serving.join(PATIENCE)

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        engine.serving.close()
        with pytest.raises(Interrupt):
            interrupted_join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert not engine.serving.join(0)
    gate.open()
    assert engine.serving.join(PATIENCE)
    assert ticket.state is TicketState.DONE


async def test_draining_can_be_given_up(engine, until):
    """A close without draining overrides one that drains."""
    holder, gate = await engine.hold()
    waiting = engine.task("waiting")
    await asyncio.sleep(0)
    engine.serving.close()
    engine.serving.close(drain=False)
    engine.serving.close()
    gate.open()
    await holder
    with pytest.raises(ClosedError):
        await waiting


async def test_close_without_drain_stops_a_long_write_midway(engines, until, fake_resource):
    """A write that is cut stops after its present piece, and says which records are in the database."""
    entered, go_on = threading.Event(), threading.Event()
    written = []

    class Store(fake_resource):
        def execute(self, request, deadline=None):
            written.extend(request.arguments["ids"])
            entered.set()
            assert go_on.wait(PATIENCE)

    engine = engines(Store)
    ids = [f"id{number}" for number in range(1000)]
    task = engine.task(operation="_add", collection_id="c", ids=ids, embeddings=None)
    await until(entered.is_set)
    engine.serving.close(drain=False)
    go_on.set()
    with pytest.raises(PartialWriteError, match="stopped after") as caught:
        await task
    assert list(caught.value.applied) == written
    assert list(caught.value.applied + caught.value.remaining) == ids
    assert 0 < len(written) < len(ids)
    assert isinstance(caught.value.__cause__, ClosedError)


async def test_close_twice(engine, until):
    """Closing again changes nothing."""
    await engine.call("x")
    engine.serving.close()
    await until(lambda: not engine.serving.thread.is_alive())
    engine.serving.close()
    assert engine.serving.join(0)
    with pytest.raises(ClosedError):
        await engine.call("x")


async def test_concurrent_close(engine, until):
    """Closing from many threads at once ends the thread once."""
    await engine.call("x")
    threads = [threading.Thread(target=engine.serving.close) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    await until(lambda: not engine.serving.thread.is_alive())
    assert engine.resource.closed


async def test_close_racing_with_submits_leaves_nobody_waiting(engines):
    """Whoever submits while the database closes gets a result or an error, never silence."""
    for _ in range(20):
        engine = engines()
        answered = []

        def submit(engine=engine, answered=answered):
            for number in range(50):
                try:
                    drive(call(engine.queue, _request(number), None))
                except ClosedError:
                    answered.append("refused")
                    return
            answered.append("served")

        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        engine.serving.close()
        for thread in threads:
            await asyncio.to_thread(thread.join, PATIENCE)
        assert len(answered) == 4
        assert engine.serving.join(PATIENCE)
        assert engine.counts()["pending"] == 0


def _request(number):
    from aiochroma.core.request import Request

    return Request("custom", {"tag": number})


async def test_a_resource_that_fails_to_close_does_not_keep_the_thread(engines, until, logged):
    """The thread ends, and says what went wrong."""

    class Sticky:
        def execute(self, request, deadline=None):
            return "served"

        def close(self):
            raise OSError("device is gone")

    engine = engines(Sticky)
    assert await engine.call("x") == "served"
    engine.serving.close()
    await until(lambda: not engine.serving.thread.is_alive())
    (line,) = logged("database.close_failed")
    assert "device is gone" in line


async def test_end_is_announced_once_and_also_to_late_comers(engine, until):
    """Whoever asks to be told of the end is told, before it or after it."""
    told = []
    engine.serving.when_ended(lambda: told.append("before"))
    engine.serving.close()
    await until(lambda: not engine.serving.thread.is_alive())
    engine.serving.when_ended(lambda: told.append("after"))
    assert told == ["before", "after"]


async def test_a_failure_outside_of_any_call_says_what_to_do(engines, until, fake_resource):
    """Whoever waits when the thread itself fails, and whoever comes later, is told to open the database again, and why."""

    class Failing(fake_resource):
        def work(self):
            raise RuntimeError("a fault of its own")

    engine = engines(Failing)
    holder, gate = await engine.hold()
    waiting = engine.task("waiting")
    await asyncio.sleep(0)
    gate.open()
    assert await holder is None
    for refused in (waiting, engine.call("later")):
        with pytest.raises(StoreUnavailableError, match="open it again") as caught:
            await refused
        assert isinstance(caught.value.__cause__, RuntimeError)
    await until(lambda: not engine.serving.thread.is_alive())
    assert engine.resource.closed
    assert engine.counts()["pending"] == 0


async def test_every_caller_has_an_error_of_its_own(engines, until):
    """What a database could not be opened for is raised for ever; no caller's frames are kept by that."""

    def refuse():
        raise StoreUnavailableError("not today")

    engine = engines(refuse)
    errors = []
    for _ in range(50):
        with pytest.raises(StoreUnavailableError, match="not today") as caught:
            await engine.call("x")
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 50
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in errors[1:]}) == 1


async def test_pieces_of_a_long_write_that_change_nothing_end_no_thread(engines, fake_resource):
    """Where a write is cut and there is nothing to say of a piece, it goes on, and so does the thread."""

    class Empty(fake_resource):
        def execute(self, request, deadline=None):
            return [] if request.operation == "forget_memories" else super().execute(request, deadline)

    engine = engines(Empty)
    ids = [f"id{number}" for number in range(1000)]
    assert await engine.call(operation="forget_memories", collection_id="c", ids=ids) == []
    assert await engine.call("next") == "next"
