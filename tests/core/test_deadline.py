"""`aiochroma.deadline`: one moment for everything inside."""

from __future__ import annotations

import asyncio
import time

import pytest

import aiochroma
from aiochroma._waiting import deadline_at


def test_without_a_block_the_clients_own_time_out_counts():
    """The client's limit, or none."""
    assert deadline_at(None) is None
    before = time.monotonic()
    assert before + 5 <= deadline_at(5) <= time.monotonic() + 5


def test_the_block_replaces_the_clients_time_out():
    """Inside a block its moment holds, longer or shorter, the same for every call."""
    with aiochroma.deadline(100):
        first, second = deadline_at(1), deadline_at(None)
    assert first == second
    assert first > time.monotonic() + 50
    assert deadline_at(None) is None


def test_none_lifts_the_clients_time_out():
    """`deadline(None)` means no limit inside."""
    with aiochroma.deadline(None):
        assert deadline_at(1) is None
    assert deadline_at(1) is not None


@pytest.mark.parametrize(("outer", "inner"), [(5, 100), (100, 5), (5, None)])
def test_the_earlier_of_nested_deadlines_holds(outer, inner):
    """An inner block can shorten, not lengthen."""
    with aiochroma.deadline(outer), aiochroma.deadline(inner):
        assert deadline_at(None) <= time.monotonic() + 5


def test_lifted_then_set():
    """Inside a block without a limit a limit can be set again."""
    with aiochroma.deadline(None), aiochroma.deadline(5):
        assert deadline_at(None) is not None


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5", True, -(10**400)])
def test_nonsense_is_refused(seconds):
    """A negative number of seconds, or none at all, is an error at once."""
    with pytest.raises(aiochroma.InvalidInputError, match="seconds"):
        aiochroma.deadline(seconds)


@pytest.mark.parametrize("seconds", [float("inf"), 1e12, 10**400])
def test_a_limit_beyond_all_clocks_is_none(seconds):
    """Infinity does not overflow a clock later on."""
    with aiochroma.deadline(seconds):
        assert deadline_at(1) is None


async def test_a_block_belongs_to_its_task():
    """Other tasks do not see it; tasks started inside do."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def with_block():
        with aiochroma.deadline(5):
            inside.set()
            await go_on.wait()
            return await asyncio.create_task(look())

    async def look():
        return deadline_at(None)

    task = asyncio.create_task(with_block())
    await inside.wait()
    assert deadline_at(None) is None
    go_on.set()
    assert await task is not None
