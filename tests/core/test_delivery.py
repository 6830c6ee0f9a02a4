"""The one function that hands outcomes back, with stubs for event loops."""

from __future__ import annotations

import asyncio
import concurrent.futures

import pytest

from aiochroma.core.calls import Outcome, Ticket, deliver
from aiochroma.core.queue import RequestQueue
from aiochroma.core.request import Request


class Loop(asyncio.AbstractEventLoop):
    """An event loop of which only the wakeup is there."""

    def __init__(self, *, closed=False):
        self.closed = closed
        self.wakeups = 0

    def call_soon_threadsafe(self, callback, *arguments):
        self.wakeups += 1
        if self.closed:
            raise RuntimeError("Event loop is closed")
        callback(*arguments)


def ticket(home=None):
    made = Ticket(Request("custom", {}), home, concurrent.futures.Future(), None)
    made.queue = RequestQueue("the queue", 1)
    return made


def test_deliver_leaves_done_future_alone():
    """A future whose caller has left is not touched, and the others of its batch get their outcomes."""
    loop = Loop()
    left, failed_and_left, waiting = ticket(loop), ticket(loop), ticket(loop)
    left.future.cancel()
    failed_and_left.future.set_exception(TimeoutError("gone"))
    deliver([Outcome(left, "x"), Outcome(failed_and_left, "y"), Outcome(waiting, "z")])
    assert left.future.cancelled()
    assert isinstance(failed_and_left.future.exception(), TimeoutError)
    assert waiting.future.result() == "z"


def test_a_failure_that_arrives_after_its_caller_left_is_logged(logged):
    """Between the end of a call and its delivery a caller may leave; a failure is then still seen in the log."""
    loop = Loop()
    left, succeeded = ticket(loop), ticket(loop)
    left.future.cancel()
    succeeded.future.cancel()
    deliver([Outcome(left, error=ValueError("unseen")), Outcome(succeeded, "fine")])
    (line,) = logged("request.abandoned_failure")
    assert "unseen" in line


def test_deliver_wakes_each_loop_once():
    """Outcomes of one batch share one wake-up per event loop."""
    loops = [Loop(), Loop()]
    tickets = [ticket(loops[number % 2]) for number in range(100)]
    deliver([Outcome(ticket, number) for number, ticket in enumerate(tickets)])
    assert [loop.wakeups for loop in loops] == [1, 1]
    assert [ticket.future.result() for ticket in tickets] == list(range(100))


def test_a_home_that_is_no_event_loop_takes_its_outcomes_itself():
    """Outcomes for another process go to its home in one batch, in order; the others are resolved here."""
    batches = []

    class Home:
        def take(self, outcomes):
            batches.append([outcome.result for outcome in outcomes])

    home, loop = Home(), Loop()
    tickets = [ticket(home), ticket(loop), ticket(home)]
    deliver([Outcome(each, number) for number, each in enumerate(tickets)])
    assert batches == [[0, 2]]
    assert tickets[1].future.result() == 1


def test_deliver_ignores_closed_loop():
    """A loop that is closed costs its own outcomes only, wherever it stands in the batch."""
    closed, open_ = Loop(closed=True), Loop()
    tickets = [ticket(closed), ticket(open_), ticket(None), ticket(closed)]
    deliver([Outcome(ticket, number) for number, ticket in enumerate(tickets)])
    assert [ticket.future.done() for ticket in tickets] == [False, True, True, False]


def test_cancelling_needs_no_open_loop():
    """A task that is collected after its loop was closed leaves without a complaint, and its request does not run."""
    loop = asyncio.new_event_loop()
    left = ticket(loop)
    left.future = loop.create_future()
    left.future.add_done_callback(lambda _: None)
    loop.close()
    left.cancel()
    assert left.future.cancelled()


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit])
def test_errors_that_futures_refuse_are_wrapped(kind):
    """An asyncio future refuses StopIteration; the outcome carries a RuntimeError with the cause."""
    loop = asyncio.new_event_loop()
    try:
        future = loop.create_future()
        outcome = Outcome(Ticket(Request("custom", {}), loop, future, None), error=kind("over"))
        assert isinstance(outcome.error, RuntimeError)
        assert isinstance(outcome.error.__cause__, kind)
        deliver([outcome])
        loop.run_until_complete(asyncio.sleep(0))
        with pytest.raises(RuntimeError, match=kind.__name__):
            future.result()
    finally:
        loop.close()
