"""The serving thread: order, ownership, errors, and what it keeps."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import itertools
import logging
import random
import threading
import time
import weakref

import pytest
import uvloop
from programs import PATIENCE

from aiochroma import (
    BlockingCallError,
    ClosedError,
    DeadlineExceededError,
    OutcomeUnknownError,
    QueueFullError,
    StoreUnavailableError,
)
from aiochroma._waiting import drive
from aiochroma.core.calls import Ticket, call, call_many
from aiochroma.core.connection import Aside
from aiochroma.core.plan import RecordPlanner
from aiochroma.core.request import Request


class Panic(BaseException):
    """As pyo3's PanicException: not an Exception."""


def raising(error):
    def do():
        raise error

    return do


# -- order and ownership -----------------------------------------------------------------------------------------------


async def test_requests_run_in_submission_order(engine):
    """Requests that may not overtake each other run one at a time, first in first out, on one thread."""
    running = 0
    overlaps = []

    def do():
        nonlocal running
        running += 1
        overlaps.append(running)
        time.sleep(0)
        running -= 1

    holder, gate = await engine.hold()
    tasks = [engine.task(number, do) for number in range(200)]
    await asyncio.sleep(0)
    gate.open()
    await asyncio.gather(holder, *tasks)
    assert engine.resource.calls == ["holder", *range(200)]
    assert set(overlaps) == {1}
    assert engine.resource.threads == {engine.serving.thread.ident}


async def test_the_resource_is_opened_used_and_closed_on_the_thread(engine, until):
    """No thread but the serving one ever touches the resource."""
    await engine.call("used")
    engine.serving.close()
    await until(lambda: not engine.serving.thread.is_alive())
    assert engine.resource.closed
    assert engine.resource.threads == {engine.serving.thread.ident}
    assert engine.serving.thread.ident != threading.get_ident()


async def test_result_belongs_to_its_request_after_cancellation(engine):
    """A cancelled call never shifts the results of the others."""
    chance = random.Random(7)
    holder, gate = await engine.hold()
    tasks = {number: engine.task(number) for number in range(300)}
    await asyncio.sleep(0)
    cancelled = set(chance.sample(range(300), 100))
    for number in cancelled:
        tasks[number].cancel()
    gate.open()
    results = await asyncio.gather(*tasks.values(), return_exceptions=True)
    await holder
    for number, result in enumerate(results):
        if number in cancelled:
            assert isinstance(result, asyncio.CancelledError)
        else:
            assert result == number


async def test_reads_pass_queued_writes(engine):
    """A read that waits runs before writes that wait, and bulk writing leaves room for it."""
    holder, gate = await engine.hold()
    write = {"operation": "_add", "collection_id": "c", "ids": ["a"], "embeddings": None}
    tasks = [engine.task(f"write{n}", lambda: None, **{**write, "ids": [f"{n}"]}) for n in range(3)]
    tasks.append(engine.task("read", lambda: None, operation="heartbeat"))
    await asyncio.sleep(0)
    gate.open()
    await asyncio.gather(holder, *tasks)
    assert engine.resource.calls == ["holder", "read", "write0", "write1", "write2"]


# -- cancellation ------------------------------------------------------------------------------------------------------


async def test_cancelled_while_queued_never_runs(engine):
    """A request whose caller leaves while it is queued is never carried out."""
    holder, gate = await engine.hold()
    kept, dropped = engine.task("kept"), engine.task("dropped")
    await asyncio.sleep(0)
    dropped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dropped
    gate.open()
    await asyncio.gather(holder, kept)
    assert engine.resource.calls == ["holder", "kept"]
    assert engine.counts() == {
        "submitted": 3,
        "done": 2,
        "failed": 0,
        "cancelled": 1,
        "expired": 0,
        "abandoned": 0,
        "refused": 0,
        "pending": 0,
    }


async def test_cancelled_within_its_round_never_runs(engine):
    """The same where its round has begun already, but not its own call."""
    gate = engine.gate()
    holder, first_gate = await engine.hold()
    first = engine.task("first", gate, operation="heartbeat")
    second = engine.task("second", lambda: None, operation="heartbeat")
    await asyncio.sleep(0)
    first_gate.open()
    await holder
    while not gate.entered.is_set():
        await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.open()
    await first
    assert await engine.call("next") == "next"
    assert engine.resource.calls == ["holder", "first", "next"]
    assert engine.counts()["cancelled"] == 1


async def test_cancelled_while_running_completes_and_is_dropped(engine):
    """The caller is released at once, the call runs to its end, its outcome is dropped and counted."""
    finished = []
    gate = engine.gate()

    def do():
        gate()
        finished.append(True)
        return "unseen"

    task = engine.task("slow", do)
    while not gate.entered.is_set():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished == []
    assert engine.counts()["pending"] == 1
    gate.open()
    assert await engine.call("next") == "next"
    assert finished == [True]
    counts = engine.counts()
    assert (counts["abandoned"], counts["done"], counts["cancelled"], counts["pending"]) == (1, 1, 0, 0)


async def _abandon(engine, error):
    gate = engine.gate()

    def do():
        gate()
        raise error

    task = engine.task("abandoned", do, operation="get_version")
    while not gate.entered.is_set():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open()
    assert await engine.call("next") == "next"


async def test_abandoned_failure_is_logged(engine, caplog, logged):
    """A failure that nobody awaits any more is logged, with the operation and the database."""
    with caplog.at_level(logging.WARNING, "aiochroma"):
        await _abandon(engine, ValueError("lost"))
    (line,) = logged("request.abandoned_failure")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    for what in ("get_version", "the test database", "lost"):
        assert what in line


async def test_cancelled_while_waiting_for_many(engine, until, logged, request_of):
    """What the others of them had come to is dropped with the first; a failure is logged once, and not by asyncio."""
    unretrieved = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(context))
    gate = engine.gate()
    first = request_of("first", gate, "_add")
    failing = request_of("failing", raising(ValueError("lost")), "heartbeat")
    task = asyncio.ensure_future(call_many(engine.queue, [first, failing]))
    await until(gate.entered.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open()
    assert await engine.call("next") == "next"
    del task
    gc.collect()
    await asyncio.sleep(0)
    assert unretrieved == []
    (line,) = logged("request.abandoned_failure")
    assert "lost" in line


async def test_abandoned_failure_reaches_structlog(engine, structlog_events):
    """Where the program has configured structlog, the same event goes there."""
    await _abandon(engine, ValueError("lost"))
    (event,) = [event for event in structlog_events if event["event"] == "request.abandoned_failure"]
    assert event["log_level"] == "warning"
    assert event["operation"] == "get_version"


async def test_a_log_processor_that_raises_ends_nothing(engine, monkeypatch, capsys):
    """A program's own logging may fail; requests and the thread go on."""
    import structlog

    def broken(*_):
        raise RuntimeError("the processor is broken")

    structlog.configure(processors=[broken])
    try:
        await _abandon(engine, ValueError("lost"))
    finally:
        structlog.reset_defaults()
    assert engine.serving.thread.is_alive()
    assert "the processor is broken" in capsys.readouterr().err


async def test_cancellation_is_never_swallowed(engine):
    """Cancelled at any of 1000 random moments, a task that has not returned ends cancelled, and the next call works."""
    chance = random.Random(20)
    ended = {"cancelled": 0, "returned": 0}
    for number in range(1000):
        task = engine.task(number, deadline=None if number % 2 else time.monotonic() + PATIENCE)
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(0)
        returned = task.done()
        asked = task.cancel()
        assert asked is not returned
        try:
            result = await task
        except asyncio.CancelledError:
            ended["cancelled"] += 1
            assert asked
        else:
            ended["returned"] += 1
            assert not asked
            assert result == number
    assert await engine.call("after") == "after"
    assert ended["cancelled"] > 0
    counts = engine.counts()
    assert counts["pending"] == 0
    assert counts["submitted"] == counts["done"] + counts["cancelled"] + counts["abandoned"]


# -- deadlines ---------------------------------------------------------------------------------------------------------


async def test_deadline_while_queued(engine):
    """Past its deadline while queued: the error says that it never ran, and it never does."""
    holder, gate = await engine.hold()
    with pytest.raises(DeadlineExceededError, match="never ran") as caught:
        await engine.call("late", deadline=time.monotonic() + 0.01)
    assert caught.value.started is False
    assert isinstance(caught.value, TimeoutError)
    gate.open()
    await holder
    assert await engine.call("next") == "next"
    assert "late" not in engine.resource.calls
    assert engine.counts()["expired"] == 1


async def test_deadline_while_running(engine):
    """Past its deadline while running: the error says that it had begun, and the call completes unseen."""
    gate = engine.gate()
    with pytest.raises(DeadlineExceededError, match="had begun") as caught:
        await engine.call("slow", gate, deadline=time.monotonic() + 0.5)
    assert gate.entered.is_set()
    assert caught.value.started is True
    gate.open()
    assert await engine.call("next") == "next"
    assert engine.counts()["abandoned"] == 1


async def test_deadline_that_has_passed_already(engine):
    """A request that is submitted too late does not run."""
    holder, gate = await engine.hold()
    late = engine.task("late", deadline=time.monotonic() - 1)
    await asyncio.sleep(0)
    gate.open()
    with pytest.raises(DeadlineExceededError) as caught:
        await late
    await holder
    assert caught.value.started is False
    assert "late" not in engine.resource.calls


@pytest.mark.parametrize("started", [False, True])
def test_deadline_of_a_plain_thread(engine, request_of, started):
    """A thread that blocks is released at its deadline too, and told apart the same way."""
    gate = engine.gate()
    holder = None
    if not started:
        holder = threading.Thread(target=lambda: drive(call(engine.queue, request_of("holder", gate))))
        holder.start()
        assert gate.entered.wait(PATIENCE)
    with pytest.raises(DeadlineExceededError) as caught:
        drive(call(engine.queue, request_of("late", gate), time.monotonic() + 0.5))
    assert caught.value.started is started
    gate.open()
    if holder is not None:
        holder.join(PATIENCE)
    assert drive(call(engine.queue, request_of("next"), None)) == "next"


def test_the_calls_own_time_out_is_not_a_deadline(engine, request_of):
    """A TimeoutError that the call itself raises comes back as it is."""
    with pytest.raises(TimeoutError, match="of its own") as caught:
        drive(
            call(
                engine.queue,
                request_of("x", raising(TimeoutError("of its own"))),
                time.monotonic() + PATIENCE,
            )
        )
    assert not isinstance(caught.value, DeadlineExceededError)


async def test_a_blocking_call_on_the_serving_thread_is_refused(engine, request_of):
    """It would wait for itself for ever: a log handler that uses the memory gets an error at once."""

    def within():
        return drive(call(engine.queue, request_of("never")))

    with pytest.raises(BlockingCallError, match="wait for itself"):
        await engine.call("x", within)
    assert await engine.call("next") == "next"
    assert engine.resource.calls == ["x", "next"]


# -- back-pressure -----------------------------------------------------------------------------------------------------


async def test_queue_full_raises_and_counts(engines):
    """A caller that would not stand in line is refused; the message names the limit and the statistics agree."""
    engine = engines(max_pending=2)
    holder, gate = await engine.hold()
    waiting = engine.task("waits")
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="limit is 2") as caught:
        await engine.call("refused", when_full="raise")
    assert caught.value.limit == 2
    in_line = engine.task("in line")
    await asyncio.sleep(0)
    gate.open()
    assert await asyncio.gather(waiting, in_line) == ["waits", "in line"]
    await holder
    assert engine.resource.calls == ["holder", "waits", "in line"]
    assert engine.counts()["refused"] == 1
    assert engine.counts()["submitted"] == 3
    assert await engine.call("room again", when_full="raise") == "room again"


# -- errors ------------------------------------------------------------------------------------------------------------


async def test_open_failure_reaches_every_caller(engines, until):
    """When opening fails every caller gets that error, nobody hangs, and the thread ends."""
    gate = threading.Event()

    def failing():
        assert gate.wait(PATIENCE)
        raise PermissionError("no entry")

    engine = engines(failing)
    tasks = [engine.task(number) for number in range(5)]
    await asyncio.sleep(0)
    gate.set()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, PermissionError)
    await until(lambda: not engine.serving.thread.is_alive())
    with pytest.raises(PermissionError, match="no entry"):
        await engine.call("later")
    assert engine.counts()["pending"] == 0


async def test_exception_keeps_type_traceback_and_cause(engine):
    """The caller sees the original error, where it was raised and what caused it."""

    def deep_inside():
        try:
            {}["missing"]
        except KeyError as error:
            raise LookupError("not there") from error

    with pytest.raises(LookupError, match="not there") as caught:
        await engine.call("x", deep_inside)
    assert type(caught.value) is LookupError
    assert isinstance(caught.value.__cause__, KeyError)
    assert "deep_inside" in [entry.name for entry in caught.traceback]


@pytest.mark.parametrize("error", [SystemExit(3), Panic("rust"), KeyboardInterrupt()])
async def test_base_exception_does_not_kill_the_worker(engine, error):
    """What native code or an exit raises is delivered to its caller, and the next call works."""
    future = asyncio.get_running_loop().create_future()

    async def caller():
        try:
            await engine.call("x", raising(error))
        except BaseException as caught:
            future.set_result(caught)

    await caller()
    assert future.result() is error
    assert await engine.call("next") == "next"
    assert engine.serving.thread.is_alive()


@pytest.mark.parametrize("error", [StopIteration("over"), StopAsyncIteration("over"), GeneratorExit("over")])
async def test_stop_iteration_becomes_runtime_error(engine, request_of, error):
    """A StopIteration, which no future accepts, or its kin, comes back as a RuntimeError with its cause."""
    with pytest.raises(RuntimeError, match=type(error).__name__) as caught:
        await engine.call("x", raising(error))
    assert caught.value.__cause__ is error
    with pytest.raises(RuntimeError, match=type(error).__name__):
        await asyncio.to_thread(lambda: drive(call(engine.queue, request_of("x", raising(error)))))
    assert await engine.call("next") == "next"


async def test_only_the_guilty_member_of_a_merged_call_fails(engine, fake_resource):
    """When a merged call fails its members run again one by one."""
    execute = fake_resource.execute

    def picky(request, _deadline):
        ids = request.arguments.get("ids") or []
        if "bad" in ids:
            raise ValueError("bad id")
        return execute(engine.resource, request)

    await engine.call("open")
    engine.resource.execute = picky
    holder, gate = await engine.hold()
    write = {"operation": "_add", "collection_id": "c", "embeddings": None}
    tasks = [engine.task(**write, ids=[id]) for id in ("a", "bad", "c")]
    await asyncio.sleep(0)
    gate.open()
    await holder
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), ValueError, type(None)]
    counts = engine.counts()
    assert (counts["failed"], counts["done"]) == (1, 4)


async def test_members_of_a_merged_write_that_may_have_happened_are_not_told_that_it_did_not(
    engine, fake_resource
):
    """Run again one by one they are refused, which is true of the second time only; whoever succeeds has succeeded."""
    execute = fake_resource.execute

    def failing(request, _deadline):
        ids = request.arguments.get("ids")
        if ids is None:
            return execute(engine.resource, request)
        if len(ids) > 1:
            raise OutcomeUnknownError("the write may have happened")
        if ids == ["a"]:
            return "written"
        raise StoreUnavailableError("the disk is full, nothing was written")

    await engine.call("open")
    engine.resource.execute = failing
    holder, gate = await engine.hold()
    write = {"operation": "_upsert", "collection_id": "c", "embeddings": None}
    tasks = [engine.task(**write, ids=[id]) for id in ("a", "b", "c")]
    await asyncio.sleep(0)
    gate.open()
    await holder
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert first == "written"
    assert [type(error) for error in others] == [OutcomeUnknownError] * 2
    assert [type(error.__cause__) for error in others] == [StoreUnavailableError] * 2
    assert others[0] is not others[1]


async def test_arguments_that_confuse_the_plan_hurt_only_their_caller(engines):
    """What the plan cannot make sense of fails alone: everybody else, and the thread, go on."""

    class Stumbling(RecordPlanner):
        def plan(self, waiting, progress, turn):
            if any(request.arguments.get("tag") == "nonsense" for request in waiting):
                raise TypeError("what is this?")
            return super().plan(waiting, progress, turn)

    engine = engines(planner=Stumbling())
    holder, gate = await engine.hold()
    tasks = [engine.task("good"), engine.task("nonsense", raising(TypeError("guilty"))), engine.task("fine")]
    await asyncio.sleep(0)
    gate.open()
    await holder
    good, guilty, fine = await asyncio.gather(*tasks, return_exceptions=True)
    assert (good, fine) == ("good", "fine")
    assert isinstance(guilty, TypeError)
    assert await engine.call("next") == "next"


async def test_a_plan_that_cannot_split_fails_its_members_not_the_thread(engines):
    """A result that does not come apart is an error of that call."""

    class Clumsy(RecordPlanner):
        def split(self, requests, result):
            raise AssertionError("cannot be split")

    engine = engines(planner=Clumsy())
    with pytest.raises(AssertionError, match="cannot be split"):
        await asyncio.wait_for(engine.call("x"), PATIENCE)
    assert engine.serving.thread.is_alive()
    assert engine.counts()["pending"] == 0


# -- many callers ------------------------------------------------------------------------------------------------------


async def test_closed_loop_does_not_kill_the_worker(engine, until):
    """An outcome for an event loop that was closed meanwhile is dropped; other loops are still served."""
    gate = engine.gate()
    loop = asyncio.new_event_loop()

    def doomed():
        task = loop.create_task(engine.call("doomed", gate))
        while not gate.entered.is_set():
            loop.run_until_complete(asyncio.sleep(0))
        task.add_done_callback(lambda _: None)
        task._log_destroy_pending = False
        loop.close()

    thread = threading.Thread(target=doomed)
    thread.start()
    await asyncio.to_thread(thread.join, PATIENCE)
    assert loop.is_closed()
    gate.open()
    assert await asyncio.wait_for(engine.call("served"), PATIENCE) == "served"
    assert engine.serving.thread.is_alive()


async def test_failure_for_a_closed_loop_is_logged(engine, caplog, logged):
    """A failure whose event loop is gone is not lost without a word."""
    gate = engine.gate()
    loop = asyncio.new_event_loop()

    def do():
        gate()
        raise ValueError("nobody listens")

    def doomed():
        task = loop.create_task(engine.call("doomed", do))
        while not gate.entered.is_set():
            loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False
        loop.close()

    thread = threading.Thread(target=doomed)
    thread.start()
    await asyncio.to_thread(thread.join, PATIENCE)
    with caplog.at_level(logging.WARNING, "aiochroma"):
        gate.open()
        await engine.call("next")
    (line,) = logged("request.abandoned_failure")
    assert "nobody listens" in line


async def test_two_loops_and_a_plain_thread_share_one_client(engine, elsewhere, request_of):
    """Event loops of both kinds and plain threads use one database at the same time; each gets its own results."""

    def mine(owner):
        async def body():
            return await asyncio.gather(*(engine.call((owner, number)) for number in range(50)))

        return body

    blocking = {}

    def plain():
        blocking["results"] = [drive(call(engine.queue, request_of(("plain", n)), None)) for n in range(50)]

    thread = threading.Thread(target=plain)
    thread.start()
    joins = {
        "asyncio": elsewhere(mine("asyncio")),
        "uvloop": elsewhere(mine("uvloop"), uvloop.new_event_loop),
    }
    assert await mine("here")() == [("here", number) for number in range(50)]
    for owner, join in joins.items():
        assert await asyncio.to_thread(join) == [(owner, number) for number in range(50)]
    await asyncio.to_thread(thread.join, PATIENCE)
    assert blocking["results"] == [("plain", number) for number in range(50)]
    assert engine.resource.threads == {engine.serving.thread.ident}


# -- what the thread keeps ---------------------------------------------------------------------------------------------


class Payload:
    """Something that can be weakly referred to, as a batch of vectors can."""


@pytest.mark.parametrize("fails", [False, True])
async def test_idle_worker_holds_no_request(engine, until, fails):
    """After the reply the idle thread refers to neither argument, nor result, nor request."""
    argument, seen = Payload(), []

    def do():
        result = Payload()
        seen.append(weakref.ref(result))
        if fails:
            raise ValueError("failed")
        return result

    seen.append(weakref.ref(argument))
    try:
        await engine.call("x", do, payload=argument)
    except ValueError:
        assert fails
    del argument, do

    def gone():
        gc.collect()
        return all(reference() is None for reference in seen)

    await until(gone)
    assert engine.serving.thread.is_alive()


variable = contextvars.ContextVar("variable", default="unset")


async def test_contextvars_reach_the_worker(engine):
    """A request sees its caller's context, as it was when it was submitted, and none sees another's."""

    def look():
        before = variable.get()
        variable.set("leaked")
        return before

    async def caller(value):
        variable.set(value)
        return await engine.call(value, look)

    values = [f"value{number}" for number in range(20)]
    assert await asyncio.gather(*(asyncio.create_task(caller(value)) for value in values)) == values
    assert await engine.call("fresh", look) == "unset"
    assert variable.get() == "unset"


async def test_the_thread_does_not_inherit_the_openers_context(engines):
    """Opening happens in an empty context, not in that of whoever came first."""
    seen = []
    variable.set("opener")
    engine = engines(lambda: seen.append(variable.get()) or _Empty())
    await engine.call("x")
    variable.set("unset")
    assert seen == ["unset"]


def _ticket():
    return Ticket(Request("custom", {}), None, concurrent.futures.Future(), None)


class _Empty:
    def execute(self, request, deadline=None):
        return None

    def close(self):
        pass


# -- one wake-up -------------------------------------------------------------------------------------------------------


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often another thread wakes it."""

    wake_ups = 0

    def call_soon_threadsafe(self, callback, *arguments, context=None):
        self.wake_ups += 1
        return super().call_soon_threadsafe(callback, *arguments, context=context)


def test_one_wake_up_per_event_loop_per_batch(engine, elsewhere):
    """However many requests a batch answers, each event loop is woken once."""

    async def body():
        loop = asyncio.get_running_loop()
        holder, gate = await engine.hold()
        tasks = [engine.task("same", operation="heartbeat") for _ in range(500)]
        await asyncio.sleep(0)
        before = loop.wake_ups
        gate.open()
        await holder
        assert await asyncio.gather(*tasks) == ["same"] * 500
        # One for the holder, whose round it was, and one for the 500.
        return loop.wake_ups - before

    assert elsewhere(body, CountingLoop)() == 2
    assert engine.resource.calls == ["holder", "same"]


def test_a_single_write_wakes_its_loop_for_its_outcome_alone(engine, elsewhere):
    """Whether a loop is idle is of interest to bulk writing: one write after the other does not ask it."""

    async def body():
        for number in range(3):
            await engine.call(number, operation="_add", collection_id="c", ids=[f"{number}"], embeddings=None)
        return asyncio.get_running_loop().wake_ups

    assert elsewhere(body, CountingLoop)() == 3


# -- logging -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [logging.DEBUG, logging.CRITICAL])
async def test_debug_logging_changes_nothing(engine, caplog, level):
    """With DEBUG on everything has the same results and the same counters."""
    with caplog.at_level(level, "aiochroma"):
        await _abandon(engine, ValueError("lost"))
        with pytest.raises(ValueError, match="seen"):
            await engine.call("x", raising(ValueError("seen")))
        assert await asyncio.gather(*(engine.call(number) for number in range(20))) == list(range(20))
    counts = engine.counts()
    assert (counts["done"], counts["failed"], counts["abandoned"]) == (21, 1, 1)


async def test_slow_requests_are_logged(engines, caplog, logged):
    """A request slower than the limit is logged with its wait and its run time in milliseconds."""
    engine = engines(slow_request_ms=1e-6)
    with caplog.at_level(logging.WARNING, "aiochroma"):
        await engine.call("x", operation="get_version")
    (line,) = logged("request.slow")
    for what in ("get_version", "ms in the queue", "ms at work"):
        assert what in line


async def test_waiting_for_the_database_to_open_is_not_slow(engines, caplog, logged):
    """Opening takes what it takes: the requests that wait for it are not reported."""
    gate = threading.Event()

    def slow_opening():
        assert gate.wait(PATIENCE)
        return _Empty()

    engine = engines(slow_opening, slow_request_ms=5000)
    engine.serving.queue.put(early := _ticket())
    early.queued_at -= 1000
    gate.set()
    with caplog.at_level(logging.WARNING, "aiochroma"):
        await engine.call("x")
    assert early.future.done()
    assert logged("request.slow") == []


async def test_nothing_is_logged_above_debug_on_the_hot_path(engine, caplog):
    """Requests that succeed leave no line above DEBUG."""
    await engine.call("opened")
    with caplog.at_level(logging.INFO, "aiochroma"):
        caplog.clear()
        await asyncio.gather(*(engine.call(number) for number in range(50)))
    assert caplog.records == []


# -- work beside the thread --------------------------------------------------------------------------------------------


async def beside(engine, until):
    """Begin a barrier whose work goes on beside the thread; return its task and the gate that its work is held at."""
    gate = engine.gate()

    def work():
        gate()
        return "worked"

    task = engine.task("barrier", lambda: Aside(work, lambda result: f"{result} and finished"))
    await until(gate.entered.is_set)
    return task, gate


async def test_the_loop_goes_round_between_two_slices(engines):
    """Between two slices of a long write the thread waits until the loop has run, however busy that is and short the slices."""
    rounds, seen, over = 0, [], False

    async def busy():
        nonlocal rounds
        while not over:
            rounds += 1
            await asyncio.sleep(0)

    # So long a pause ends when the loop has gone round, and not for want of patience.
    engine = engines(max_write_slice_ms=1000 * PATIENCE)
    await engine.call("the thread knows this loop")
    turning = asyncio.ensure_future(busy())
    ids = [str(number) for number in range(600)]
    await engine.call("slice", lambda: seen.append(rounds), operation="_upsert", collection_id="c", ids=ids)
    over = True
    await turning
    assert len(seen) > 4
    assert all(after > before for before, after in itertools.pairwise(seen)), seen


async def test_reads_go_on_beside_a_barriers_work(engine, until):
    """Reads are served, writes and barriers wait, and all go on in order when the work is over."""
    barrier, gate = await beside(engine, until)
    write = {"operation": "_add", "collection_id": "c", "ids": ["a"], "embeddings": None}
    held = [
        engine.task("write", lambda: None, **write),
        engine.task("catalog", lambda: None, operation="get_or_create_collection"),
        engine.task("custom"),
    ]
    for _ in range(3):
        assert await engine.call("read", lambda: "seen", operation="heartbeat") == "seen"
    assert engine.resource.calls == ["barrier", "read", "read", "read"]
    assert not barrier.done()
    assert not any(task.done() for task in held)
    gate.open()
    assert await barrier == "worked and finished"
    await asyncio.gather(*held)
    assert engine.resource.calls[4:] == ["catalog", "write", "custom"]


async def test_a_barriers_work_that_fails_fails_its_caller_alone(engine, until):
    """Whatever the work or its end raises is the caller's; the thread goes on with what was held back."""

    def nothing():
        return None

    for work, finish in ((raising(Panic("work")), nothing), (nothing, lambda _: raising(Panic("end"))())):
        task = engine.task(do=lambda work=work, finish=finish: Aside(work, finish))
        later = engine.task("later")
        with pytest.raises(Panic):
            await task
        assert await later == "later"
    assert engine.counts()["pending"] == 0


async def test_who_waits_for_a_barriers_work_may_leave(engine, until):
    """The work goes on to its end, its result is dropped, and a queued request that is cancelled meanwhile never runs."""
    barrier, gate = await beside(engine, until)
    dropped = engine.task("dropped")
    await asyncio.sleep(0)
    for task in (barrier, dropped):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    last = engine.task("last")
    gate.open()
    assert await last == "last"
    assert engine.resource.calls == ["barrier", "last"]
    counts = engine.counts()
    assert (counts["abandoned"], counts["cancelled"], counts["pending"]) == (1, 1, 0)


@pytest.mark.parametrize("drain", [True, False])
async def test_closing_waits_for_a_barriers_work(engine, until, drain):
    """What has begun runs to its end, and the resource is not closed before; what was held back is served or refused."""
    barrier, gate = await beside(engine, until)
    held = engine.task("held")
    await asyncio.sleep(0)
    engine.serving.close(drain=drain)
    gate.open()
    assert await barrier == "worked and finished"
    if drain:
        assert await held == "held"
    else:
        with pytest.raises(ClosedError):
            await held
    await until(lambda: engine.resource.closed)


async def test_a_resources_own_work_waits_for_a_barriers_work(engines, fake_resource, until):
    """Nothing is written beside it, not by the resource itself either."""
    done = []

    class Busy(fake_resource):
        def work(self):
            done.append(True)
            return False

    engine = engines(Busy)
    barrier, gate = await beside(engine, until)
    before = len(done)
    for _ in range(5):
        await engine.call(do=lambda: None, operation="heartbeat")
    assert len(done) == before
    gate.open()
    await barrier
    await until(lambda: len(done) > before)
