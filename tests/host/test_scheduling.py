"""How a host shares its one thread among clients: order, fairness, slices; pure, without Chroma and without a socket."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiochroma.core.calls import Outcome, Ticket
from aiochroma.core.plan import Limits, RecordPlanner, Step
from aiochroma.core.request import Request
from aiochroma.core.worker import Worker
from aiochroma.host.messages import Received
from aiochroma.host.peer import PeerTicket
from aiochroma.host.scheduling import SharedPacing, SharedWorkerState, dealt_out


class Client:
    """Where outcomes go, in order."""

    def __init__(self, name="client"):
        self.name = name
        self.results = []
        self.came = threading.Event()

    def take(self, outcomes):
        self.results += [outcome.ticket.request.arguments.get("n") for outcome in outcomes]
        self.came.set()

    def ticket(self, operation="_query", **arguments):
        return Ticket(Request(operation, arguments), self, None, None)


class Held:
    """What the arguments of a request may hold."""


def test_a_request_is_let_go_of_when_it_has_been_answered():
    """At once, and not when the garbage collector comes round: its arguments may be many megabytes."""
    held = Held()
    gone = weakref.ref(held)
    gc.disable()
    try:
        ticket = PeerTicket(Received(Request("heartbeat", {"held": held}), None, {}), Client(), 1)
        del held
        assert gone() is not None
        del ticket
        assert gone() is None
    finally:
        gc.enable()


@given(st.lists(st.integers(0, 3), max_size=40), st.sets(st.integers(0, 39), max_size=2))
def test_dealing_keeps_the_order_of_each_client(owners, begun):
    """Nobody's own requests change places, everybody has a turn in every round, what has begun stays first."""
    clients = [Client(str(number)) for number in range(4)]
    backlog = [clients[owner].ticket(n=number) for number, owner in enumerate(owners)]
    for position in begun:
        if position < len(backlog):
            backlog[position].slices = []
    dealt = dealt_out(list(backlog))
    assert sorted(map(id, dealt)) == sorted(map(id, backlog))
    first = [ticket for ticket in backlog if ticket.slices is not None]
    assert dealt[: len(first)] == first
    rest = dealt[len(first) :]
    for client in clients:
        mine = [ticket for ticket in rest if ticket.home is client]
        assert mine == [ticket for ticket in backlog if ticket.home is client and ticket.slices is None]
        # Between two of a client's requests nobody else has more than one.
        for one, other in itertools.pairwise(mine):
            between = rest[rest.index(one) + 1 : rest.index(other)]
            assert len({id(ticket.home) for ticket in between}) == len(between)


class Slow:
    """A backend whose calls are made when the test says so."""

    max_batch_size = 0

    def __init__(self):
        self.calls = []
        self.go = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def execute(self, request, deadline=None):
        queries = request.arguments.get("queries")
        self.calls.append(request.arguments.get("n") if queries is None else len(queries))
        self.begun.release()
        assert self.go.acquire(timeout=60)
        if queries is not None:
            return queries
        return {"ids": [["a"]], "included": [], "n": request.arguments.get("n")}

    def close(self):
        pass


@pytest.fixture
def slow():
    """A worker as hosts have it, over a backend that waits."""
    backend = Slow()
    worker = Worker("slow", lambda: backend, state=SharedWorkerState)
    worker.start()
    yield backend, worker
    for _ in range(1000):
        backend.go.release()
    worker.close(drain=False)
    assert worker.join(60)


def test_many_reads_of_one_client_do_not_hold_up_anothers(slow):
    """One that comes while 50 others wait is served after few of them, although they came before."""
    backend, worker = slow
    many, one = Client("many"), Client("one")
    worker.queue.put(*(many.ticket("_get", n=number, limit=number + 1) for number in range(50)))
    assert backend.begun.acquire(timeout=60)
    worker.queue.put(one.ticket("_get", n="mine", limit=1))
    # A round of reads ends when it has taken long enough.
    threading.Event().wait(0.06)
    for _ in range(51):
        backend.go.release()
    assert one.came.wait(60)
    assert backend.calls.index("mine") <= 3


def test_searches_that_come_together_are_not_all_answered_together(slow):
    """Else their callers and the host take turns; those that come while the host has something to do are kept together."""
    backend, worker = slow
    client = Client()

    def search(count):
        rest = {"collections": [], "query_tokens": None, "tenant": "t", "database": "d"}
        worker.queue.put(
            *(
                client.ticket("search_memories", queries=[n], query_embeddings=[None], **rest)
                for n in range(count)
            )
        )

    search(16)
    assert backend.begun.acquire(timeout=60)
    search(16)
    backend.go.release()
    assert backend.begun.acquire(timeout=60)
    assert backend.calls == [12, 20]


def test_many_outcomes_leave_before_few_do():
    """Each delivery wakes another process, which one outcome is not worth at once."""
    made = []
    Worker("unopened", Slow, state=lambda *given: made.append(SharedWorkerState(*given)) or made[0])
    (state,) = made
    outcome, most = Outcome(Client().ticket()), state.may_wait()
    state.outcomes = [outcome] * 2
    assert state.may_wait() == most
    state.outcomes = [outcome] * 16
    assert state.may_wait() < most


def test_a_write_is_made_in_every_round_however_long_the_reads_are(slow):
    """Reads that take long are left to the next round; the write of this one is not."""
    backend, worker = slow
    readers, writer = Client("readers"), Client("writer")
    first = readers.ticket("_get", n="first", limit=1)
    worker.queue.put(first)
    assert backend.begun.acquire(timeout=60)
    worker.queue.put(
        *(readers.ticket("_get", n=number, limit=number + 2) for number in range(30)),
        writer.ticket("_add", n="write", ids=["a"], embeddings=[[1.0]], collection_id="c"),
    )
    backend.go.release()
    assert backend.begun.acquire(timeout=60)
    threading.Event().wait(0.06)
    for _ in range(31):
        backend.go.release()
    assert writer.came.wait(60)
    assert backend.calls.index("write") <= 3


def test_bulk_writing_waits_for_reads_that_are_left_over():
    """Until they had twice the time of its last slice; what follows it in the plan waits with it, a single write does not."""
    state = SharedWorkerState(None, RecordPlanner(), None, None, 0.0, None)
    client = Client()
    read, write = client.ticket("_query"), client.ticket("_add", ids=["a"])

    def bulk_is_left_out(seconds, *, reads_are_left_over=True):
        state.arrange([])
        assert state.postpones(Step([0]), [read], 0.06 if reads_are_left_over else 0.0) is reads_are_left_over
        assert not state.postpones(Step([0], records=1), [write], seconds)
        left_out = state.postpones(Step([0], 0, 64, records=64), [write], seconds)
        assert state.postpones(Step([0], 0, 256), [read], seconds) is left_out
        return left_out

    state.pacing.observe(64, 0.1)
    assert [bulk_is_left_out(0.06) for _ in range(8)] == [True, True, True, False] * 2
    assert not bulk_is_left_out(0.0, reads_are_left_over=False)


def test_single_records_do_not_make_slices_grow():
    """On a busy machine they cost as much as many, so a record more seems to cost nothing."""
    limits = Limits()
    pacing = SharedPacing(limits, None)
    for _ in range(100):
        pacing.observe(1, 0.08)
    assert limits.records_per_slice == 128


def test_what_came_during_a_slice_is_read_before_the_next():
    """The thread that reads the sockets is let in after each slice while more waits."""
    backend = Slow()
    reader, writer = Client("reader"), Client("writer")

    def catch_up():
        if len(backend.calls) == 1:
            worker.queue.put(reader.ticket("_get", n="read", limit=1))

    worker = Worker("slow", lambda: backend, state=partial(SharedWorkerState, catch_up=catch_up))
    worker.start()
    ids = [str(n) for n in range(200)]
    worker.queue.put(writer.ticket("_add", n="slice", ids=ids, embeddings=[[1.0]] * 200, collection_id="c"))
    for _ in range(10):
        backend.go.release()
    assert writer.came.wait(60)
    worker.close()
    assert worker.join(60)
    assert backend.calls[:3] == ["slice", "read", "slice"]


def test_what_is_asked_before_bulk_writing_is_nobody_elses_read():
    """Opening a memory asks for its database and collections; the bulk write that follows is alone all the same."""
    state = SharedWorkerState(None, RecordPlanner(), None, None, 0.0, None)
    limits, client = state.planner.limits, Client()

    def write_all():
        for _ in range(30):
            state.pacing.observe(limits.records_per_slice, 0.0002 * limits.records_per_slice)
        return limits.records_per_slice

    alone = write_all()
    for operation in ("get_tenant", "get_database", "list_collections", "get_collection"):
        state.postpones(Step([0]), [client.ticket(operation)], 0.0)
        assert limits.records_per_slice == alone
    state.postpones(Step([0]), [client.ticket("_query")], 0.0)
    assert limits.records_per_slice < alone


def test_slices_are_small_beside_reads_and_large_alone():
    """20 ms where somebody reads, 100 ms where nobody does; never fewer than 64 and 128 records; a client's own value holds."""
    limits = Limits()
    pacing = SharedPacing(limits, None)
    for _ in range(30):
        pacing.observe(limits.records_per_slice, 0.0002 * limits.records_per_slice)
    alone = limits.records_per_slice
    pacing.served_read(time.monotonic())
    beside = limits.records_per_slice
    assert beside < alone
    assert 0.01 < beside * 0.0002 <= 0.021
    assert alone * 0.0002 > 0.05
    for _ in range(30):
        pacing.observe(limits.records_per_slice, 0.01 * limits.records_per_slice)
    assert limits.records_per_slice == 64
    busy = Limits()
    pacing = SharedPacing(busy, None)
    for _ in range(30):
        pacing.observe(busy.records_per_slice, 0.01 * busy.records_per_slice)
    assert busy.records_per_slice == 128
    fixed = Limits()
    pacing = SharedPacing(fixed, 40)
    for _ in range(30):
        pacing.observe(fixed.records_per_slice, 0.0002 * fixed.records_per_slice)
    assert 0.02 < fixed.records_per_slice * 0.0002 <= 0.041
