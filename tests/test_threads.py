"""Coroutines are awaited on an event loop, and driven without one; nothing is written twice."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest
import trio

import aiochroma
from aiochroma._waiting import THREAD_NAME, Started, deadline_at, drive, driven, off_loop, waits_by_blocking


class Asynchronous:
    """What is written once."""

    async def thread(self, times: int = 1, *, name: str = "x") -> str:
        """Say on which thread work is done."""
        names = [await off_loop(lambda: threading.current_thread().name) for _ in range(times)]
        return f"{name}:{names[-1]}"


class Blocking:
    """Its blocking form."""

    def __init__(self):
        self.asynchronous = Asynchronous()

    thread = driven(Asynchronous.thread)


async def test_on_a_loop_work_leaves_its_thread():
    """The loop goes on."""
    assert (await Asynchronous().thread()).startswith(f"x:{THREAD_NAME}")
    assert waits_by_blocking() is False


def test_driven_it_is_done_here():
    """No event loop and no other thread is needed."""
    here = threading.current_thread().name
    assert drive(Asynchronous().thread(3, name="y")) == f"y:{here}"
    assert Blocking().thread(2, name="z") == f"z:{here}"


def test_the_blocking_form_shows_the_arguments():
    """`help()` and type checkers see the same signature."""
    assert inspect.signature(Blocking.thread) == inspect.signature(Asynchronous.thread)
    assert Blocking.thread.__doc__ == Asynchronous.thread.__doc__
    assert Blocking.thread.__name__ == "thread"


def test_a_call_leaves_nothing_in_the_context_of_its_thread():
    """Ctrl-C at the end of a `with deadline(...)` block, before the block is left, is over with its call."""

    async def interrupted():
        aiochroma.deadline(None).__enter__()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(interrupted())
    assert deadline_at(5) is not None


async def test_a_blocking_call_on_a_loop_is_refused():
    """And what it was given is not left unawaited."""
    with pytest.raises(aiochroma.BlockingCallError, match="to_thread"):
        drive(Asynchronous().thread())


def test_neither_driven_nor_on_a_loop():
    """As under trio: the error says at once what is needed."""
    with pytest.raises(aiochroma.EventLoopRequiredError, match="trio"):
        Asynchronous().thread().send(None)


def test_a_blocking_call_inside_of_trio_is_refused():
    """Its loop would stand still as well; on a worker thread the call is welcome."""

    async def main():
        with pytest.raises(aiochroma.BlockingCallError, match="trio"):
            drive(Asynchronous().thread())
        with pytest.raises(aiochroma.EventLoopRequiredError, match="trio"):
            await Asynchronous().thread()
        return await trio.to_thread.run_sync(lambda: drive(Asynchronous().thread()))

    assert trio.run(main).startswith("x:")


def test_something_asynchronous_in_a_blocking_call():
    """What really has to suspend cannot be driven, and its clean-up runs."""
    cleaned = []

    async def suspends():
        try:
            await asyncio.sleep(0)
        finally:
            cleaned.append(await off_loop(lambda: True))

    with pytest.raises(aiochroma.EventLoopRequiredError, match="asynchronous"):
        drive(suspends())
    assert cleaned == [True]


def test_an_event_loop_inside_of_a_driven_call():
    """A synchronous function that a driven call runs may have a loop of its own."""

    async def inner():
        assert waits_by_blocking() is False
        return await off_loop(lambda: threading.current_thread().name)

    async def outer():
        name = await off_loop(lambda: asyncio.run(inner()))
        assert waits_by_blocking() is True
        return name

    assert drive(outer()).startswith(THREAD_NAME)


async def _fails():
    raise ValueError("no")


async def _started():
    good, bad = Started(Asynchronous().thread()), Started(_fails())
    assert isinstance(await bad.settle(), ValueError)
    with pytest.raises(ValueError, match="no"):
        await bad.result()
    assert await good.settle(cancel=False) is None
    return await good.result()


async def test_what_was_started_goes_on_meanwhile():
    """On a loop it is a task."""
    assert (await _started()).startswith(f"x:{THREAD_NAME}")
    waiting = Started(asyncio.sleep(3600))
    assert isinstance(await waiting.settle(cancel=True), asyncio.CancelledError)


def test_driven_what_is_started_is_done_at_once():
    """Its outcome is kept for whoever asks."""
    assert drive(_started()) == f"x:{threading.current_thread().name}"


async def test_a_thread_that_cannot_be_started_is_an_error_of_ours(tmp_path):
    """Such as where memory is limited; nothing is left behind, and all goes on when there is room again."""
    async with aiochroma.Memory(tmp_path / "memory") as memory:
        await memory.remember("the key is under the mat")
        usual = threading.stack_size(2**47)  # More than any process may address.
        try:
            with pytest.raises(aiochroma.AiochromaError, match="thread"):
                await memory.backup(tmp_path / "backup")
        finally:
            threading.stack_size(usual)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["memory"]
        await memory.backup(tmp_path / "backup")
        assert await memory.count() == 1
