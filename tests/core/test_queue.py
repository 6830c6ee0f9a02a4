"""The queue by itself: states, counters, and what happens at its end."""

from __future__ import annotations

import concurrent.futures
import threading
import time
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import PATIENCE

from aiochroma import ClosedError, ForkedProcessError, QueueFullError
from aiochroma.core.calls import Ticket, TicketState
from aiochroma.core.queue import QueueState, RequestQueue
from aiochroma.core.request import Request


def ticket(deadline=None):
    return Ticket(Request("custom", {}), None, concurrent.futures.Future(), deadline)


def test_taken_in_order_and_once():
    """What was submitted is taken in that order, once."""
    queue = RequestQueue("the queue", 10)
    tickets = [ticket() for _ in range(5)]
    for each in tickets:
        queue.put(each)
    assert queue.take(block=False) == tickets
    assert queue.take(block=False) == []


def test_a_sleeping_taker_is_woken_by_a_submit():
    """A thread that sleeps in `take` wakes for the first request, without polling."""
    queue = RequestQueue("the queue", 10)
    taken = []
    thread = threading.Thread(target=lambda: taken.extend(queue.take(block=True)))
    thread.start()
    one = ticket()
    queue.put(one)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert taken == [one]


def test_a_sleeping_taker_is_woken_by_close():
    """A thread that sleeps in `take` wakes when the queue is closed."""
    queue = RequestQueue("the queue", 10)
    thread = threading.Thread(target=lambda: queue.take(block=True))
    thread.start()
    queue.close(drain=True)
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_nothing_lands_behind_the_end():
    """After `shut` everything is refused with what ended the queue, and what was left is handed back."""
    queue = RequestQueue("the queue", 10)
    left = ticket()
    queue.put(left)
    assert queue.end(OSError("the disk is gone")) == [left]
    with pytest.raises(OSError, match="the disk is gone"):
        queue.put(ticket())
    assert queue.state is QueueState.CLOSED


def test_use_after_close():
    """The message names the database and says what to do."""
    queue = RequestQueue("the database 'x'", 10)
    queue.close(drain=True)
    with pytest.raises(ClosedError, match="the database 'x' is closed; open a new client"):
        queue.put(ticket())


def test_forked_queue_refuses_even_if_its_lock_was_held():
    """In a forked child the lock may be held for ever; refusing does not need it."""
    queue = RequestQueue("the database 'x'", 10)
    held = queue.lock
    held.acquire()
    try:
        queue.mark_forked()
        with pytest.raises(ForkedProcessError, match="forked"):
            queue.put(ticket())
    finally:
        held.release()


def test_claimed_requests_are_running_and_cannot_be_cancelled_away():
    """Once claimed a request counts as begun: leaving abandons it."""
    queue = RequestQueue("the queue", 10)
    one = ticket()
    queue.put(one)
    queue.take(block=False)
    assert queue.claim([one]) == ([one], [])
    queue.cancel(one)
    assert one.state is TicketState.ABANDONED
    assert queue.finish([one], failed=False) == [one]
    assert queue.pending == 0
    queue.cancel(one)
    assert queue.counts["abandoned"] == 1


def test_late_requests_are_not_claimed():
    """A request whose deadline has passed is sorted out when its turn comes."""
    queue = RequestQueue("the queue", 10)
    late, early = ticket(time.monotonic() - 1), ticket(time.monotonic() + 1000)
    queue.put(late)
    queue.put(early)
    assert queue.claim(queue.take(block=False)) == ([early], [late])
    assert queue.expired_error(late).started is False


def test_deadline_after_the_outcome_was_decided_changes_nothing():
    """A timer that fires late does not turn a finished call into a failure."""
    queue = RequestQueue("the queue", 10)
    one = ticket()
    queue.put(one)
    queue.claim(queue.take(block=False))
    queue.finish([one], failed=False)
    assert queue.expire(one) is None
    assert queue.counts["expired"] == queue.counts["abandoned"] == 0


def test_no_more_than_the_limit_is_queued_or_running():
    """Callers beyond the limit wait in line outside of the queue, and move up in order as others finish or leave."""
    queue = RequestQueue("the queue", 2)
    tickets = [ticket() for _ in range(5)]
    queue.put(*tickets)
    first = queue.take(block=False)
    assert first == tickets[:2]
    assert (queue.pending, queue.in_line) == (2, 3)
    queue.cancel(tickets[2])
    queue.claim(first)
    queue.finish(first[:1], failed=False)
    assert queue.take(block=False) == [tickets[3]]
    queue.cancel(tickets[3])
    assert queue.take(block=False) == [tickets[4]]
    assert (queue.pending, queue.in_line) == (2, 0)


def test_several_requests_are_put_in_one_step_or_not_at_all():
    """Where there is no room for all of them and the caller asked not to wait, none is accepted."""
    queue = RequestQueue("the queue", 2)
    with pytest.raises(QueueFullError):
        queue.put(ticket(), ticket(), ticket(), when_full="raise")
    assert queue.take(block=False) == []
    assert queue.counts["submitted"] == 0
    assert queue.counts["refused"] == 3


@pytest.mark.parametrize("limit", [5, 10_000], ids=["in line", "queued"])
def test_requests_of_callers_that_left_are_not_kept(limit):
    """However many come and go while the thread is in one call, no more of them than a bounded number are held."""
    queue = RequestQueue("the queue", limit)
    staying = [ticket() for _ in range(3)]
    queue.put(*staying)
    left = weakref.WeakSet()
    for _ in range(2000):
        one = Ticket(Request("custom", {}), None, concurrent.futures.Future(), None)
        left.add(one.request.arguments.setdefault("held", Held()))
        queue.put(one)
        queue.cancel(one)
    del one
    assert len(left) < 200
    assert [each for each in queue.take(block=False) if each.state is TicketState.QUEUED] == staying


class Held:
    """Something that a request holds."""


actions = st.lists(st.sampled_from(["submit", "take", "claim", "leave", "expire", "finish"]), max_size=60)


@settings(max_examples=200, deadline=None)
@given(actions=actions, limit=st.integers(1, 5), data=st.data())
def test_the_counters_always_add_up(actions, limit, data):
    """Whatever happens in whatever order, every request is counted once and none is lost."""
    queue = RequestQueue("the queue", limit)
    tickets, taken = [], []
    for action in actions:
        if action == "submit":
            one = ticket()
            try:
                queue.put(one, when_full=data.draw(st.sampled_from(["wait", "raise"])))
            except QueueFullError:
                assert queue.pending >= limit
            else:
                tickets.append(one)
        elif action == "take":
            taken.extend(queue.take(block=False))
        elif tickets:
            one = data.draw(st.sampled_from(tickets))
            running = one.state in {TicketState.RUNNING, TicketState.ABANDONED}
            {
                "claim": lambda one=one: queue.claim([one] if one in taken else []),
                "leave": lambda one=one: queue.cancel(one),
                "expire": lambda one=one: queue.expire(one),
                "finish": lambda one=one, running=running: queue.finish(
                    [one] if running else [], failed=data.draw(st.booleans())
                ),
            }[action]()
        _check_counts(queue, tickets)


def _check_counts(queue, tickets):
    counts = queue.counts
    running_unseen = sum(each.state is TicketState.ABANDONED for each in tickets)
    finished = sum(counts[name] for name in ("done", "failed", "cancelled", "expired", "abandoned"))
    in_line = sum(each.state is TicketState.IN_LINE for each in tickets)
    assert counts["submitted"] == len(tickets) == finished + queue.pending + in_line - running_unseen
    assert queue.pending <= queue.limit
    assert queue.in_line == in_line
    assert not in_line or queue.pending == queue.limit, "there is room, and somebody is kept in line"
    pending = {TicketState.QUEUED, TicketState.RUNNING, TicketState.ABANDONED}
    assert queue.pending == sum(each.state in pending for each in tickets)
