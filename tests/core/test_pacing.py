"""How large a piece of writing may be, and the pause after it."""

from __future__ import annotations

import asyncio
import threading
import time

from hypothesis import given
from hypothesis import strategies as st
from programs import PATIENCE

from aiochroma.core.pacing import Pacing
from aiochroma.core.plan import Limits


@given(
    pieces=st.lists(
        st.tuples(st.integers(1, 10_000), st.floats(0, 1000, allow_nan=False)), min_size=1, max_size=200
    ),
    budget=st.floats(0.1, 1000),
)
def test_the_size_stays_within_bounds(pieces, budget):
    """Whatever is measured, a piece has at least one record and at most Chroma's own limit."""
    limits = Limits()
    pacing = Pacing(limits, budget)
    for records, seconds in pieces:
        pacing.observe(records, seconds)
        assert 1 <= limits.records_per_slice <= 5000


def test_the_size_follows_the_cost():
    """Full pieces that cost too much shrink, cheap ones grow, until they fit the budget."""
    limits = Limits()
    pacing = Pacing(limits, 10.0)
    for _ in range(100):
        pacing.observe(limits.records_per_slice, limits.records_per_slice * 0.0001)
    assert 70 <= limits.records_per_slice <= 130
    for _ in range(100):
        pacing.observe(limits.records_per_slice, limits.records_per_slice * 0.0005)
    assert 15 <= limits.records_per_slice <= 26


def test_one_slow_piece_does_not_undo_what_was_learned():
    """A single outlier, as when Chroma persists its index, costs at most half of the size, and is soon forgotten."""
    limits = Limits()
    pacing = Pacing(limits, 10.0)

    def cheap(times):
        for _ in range(times):
            pacing.observe(limits.records_per_slice, 0.001 + limits.records_per_slice * 0.00005)

    cheap(100)
    learned = limits.records_per_slice
    pacing.observe(learned, 60.0)
    assert limits.records_per_slice >= learned / 2
    cheap(100)
    assert limits.records_per_slice >= learned * 0.9


def test_small_and_fast_says_little():
    """Single records, however quickly written, do not make the next long write one large piece."""
    limits = Limits()
    pacing = Pacing(limits, 10.0)
    for _ in range(100):
        pacing.observe(1, 0.0001)
    assert limits.records_per_slice <= 100


async def test_the_pause_lets_the_loop_go_round():
    """The pause ends when the loops that use the database have gone round, so their tasks have run."""
    pacing = Pacing(Limits(), 1000.0 * PATIENCE)
    pacing.seen(asyncio.get_running_loop(), time.monotonic())
    rounds = []
    thread = threading.Thread(target=lambda: (pacing.pause(), rounds.append("over")))
    thread.start()
    while not rounds:
        await asyncio.sleep(0)
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_pause_does_not_wait_for_a_closed_loop():
    """A loop that is gone costs nothing."""
    loop = asyncio.new_event_loop()
    pacing = Pacing(Limits(), 1000.0 * PATIENCE)
    pacing.seen(loop, time.monotonic())
    loop.close()
    thread = threading.Thread(target=pacing.pause)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_pause_does_not_wait_for_ever():
    """A loop that stands still is waited for no longer than the budget."""
    loop = asyncio.new_event_loop()
    try:
        pacing = Pacing(Limits(), 1.0)
        pacing.seen(loop, time.monotonic())
        thread = threading.Thread(target=pacing.pause)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    finally:
        loop.close()


async def _written(pacing, limits, slices):
    """Write slices that take a millisecond for each record, on another thread, as the DB thread does."""

    def write():
        for _ in range(slices):
            pacing.before_slice(telling=True)
            pacing.pause()
            pacing.observe(limits.records_per_slice, 0.001 * limits.records_per_slice)

    await asyncio.to_thread(write)
    return limits.records_per_slice


async def test_slices_grow_where_nothing_else_wants_to_run():
    """Beside an idle loop slices become long; a task that runs, or anybody else's request, makes them short again."""
    limits = Limits()
    pacing = Pacing(limits, None)
    loop = asyncio.get_running_loop()
    pacing.seen(loop, time.monotonic())
    assert await _written(pacing, limits, 30) > 50, "the loop had nothing to do"
    done = False

    async def busy():
        while not done:
            await asyncio.sleep(0)

    task = asyncio.create_task(busy())
    pacing.seen(loop, time.monotonic())
    assert await _written(pacing, limits, 3) <= 20, "the loop was busy"
    done = True
    await task
    pacing.seen(loop, time.monotonic())
    assert await _written(pacing, limits, 5) > 50, "the size that was found before holds again"
    pacing.served_other(time.monotonic())
    pacing.seen(loop, time.monotonic())
    assert await _written(pacing, limits, 3) <= 20, "somebody else asks"


async def test_a_budget_that_was_chosen_is_kept():
    """Whoever says how long a slice may be gets no longer ones, however idle the process is."""
    limits = Limits()
    pacing = Pacing(limits, 10.0)
    pacing.seen(asyncio.get_running_loop(), time.monotonic())
    assert await _written(pacing, limits, 30) <= 20
