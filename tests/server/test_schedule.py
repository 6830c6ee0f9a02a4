"""What may be under way at the same time: the pure function, driven through every kind of history."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from aiochroma.core.executors import ConnectionPlanner
from aiochroma.core.operations import Lane
from aiochroma.core.plan import Limits
from aiochroma.core.request import Request

COLLECTIONS = ("one", "two", "three")


def request_of(kind, collection, size, bulk):
    place = {"collection_id": collection}
    ids = [f"{size}-{number}" for number in range(size)]
    if kind == "query":
        return Request(
            "_query", {**place, "query_embeddings": [[1.0, 2.0]], "n_results": 3, "include": ["distances"]}
        )
    if kind == "get":
        return Request("_get", {**place, "ids": None, "limit": None, "include": []})
    if kind == "upsert":
        return Request(
            "_upsert", {**place, "ids": ids, "embeddings": [[1.0, 2.0]] * size, "documents": None}, bulk=bulk
        )
    if kind == "delete":
        return Request("_delete", {**place, "ids": None, "where": {"a": size}})
    return Request(kind, {"name": collection})


requests = st.builds(
    request_of,
    st.sampled_from(
        ["query", "query", "get", "upsert", "upsert", "delete", "create_collection", "delete_collection"]
    ),
    st.sampled_from(COLLECTIONS),
    st.integers(1, 12),
    st.booleans(),
)


class Run:
    """Plays the dispatcher: begins what the plan says, finishes what it is told to, and checks the rules."""

    def __init__(self, connections, *, cut_reads):
        limits = Limits(records_per_slice=5, records_per_page=4, cut_reads=cut_reads)
        self.planner = ConnectionPlanner(limits, connections)
        self.connections = connections
        self.arrived = []
        self.waiting = []
        self.progress = {}
        self.flying = []
        self.finished = []
        self.turn = 0

    def arrive(self, request):
        self.arrived.append(request)
        self.waiting.append(request)
        self.progress[id(request)] = 0

    def begin(self):
        self.turn += 1
        steps = self.planner.schedule(
            self.waiting,
            [self.progress[id(request)] for request in self.waiting],
            self.turn,
            [description for _, _, description in self.flying],
            self.connections - len(self.flying),
        )
        assert len(steps) <= self.connections - len(self.flying)
        members = [member for step in steps for member in step.members]
        assert len(members) == len(set(members)), "a request is in two steps"
        assert steps or self.flying or not self.waiting, "nothing would ever happen"
        for step in steps:
            chosen = [self.waiting[member] for member in step.members]
            self.flying.append((chosen, step, self.planner.describe(chosen[0], step)))
        chosen = {id(self.waiting[member]) for member in members}
        self.waiting = [request for request in self.waiting if id(request) not in chosen]
        self.check()

    def check(self):
        lanes = [description.lane for _, _, description in self.flying]
        assert Lane.BARRIER not in lanes or len(lanes) == 1, "a barrier is not alone"
        assert lanes.count(Lane.CATALOG) <= 1
        written = [one.collection for _, _, one in self.flying if one.lane is Lane.WRITE]
        assert len(written) == len(set(written)), "two writes to one collection"
        assert not {one.collection for _, _, one in self.flying if one.paged} & set(written), (
            "a write between two pages"
        )
        begun = {id(request) for members, _, _ in self.flying for request in members} | set(
            map(id, self.finished)
        )
        for position, request in enumerate(self.arrived):
            if request.lane is Lane.BARRIER and id(request) in begun:
                assert all(id(earlier) in begun for earlier in self.arrived[:position]), (
                    "a barrier passed something"
                )
            if request.lane is Lane.BARRIER and id(request) not in begun:
                assert not begun & set(map(id, self.arrived[position + 1 :])), "something passed a barrier"

    def finish(self, which):
        members, step, _ = self.flying.pop(which % len(self.flying))
        for request in members:
            last = True
            if step.stop is not None:
                # A large read finds nine records.
                part = {
                    "ids": [f"{number}" for number in range(step.start, 9 if step.lists_ids else step.stop)]
                }
                self.progress[id(request)], last = self.planner.advance(request, step, part)
            if not last:
                order = {id(one): position for position, one in enumerate(self.arrived)}
                self.waiting = sorted([*self.waiting, request], key=lambda one: order[id(one)])
            else:
                self.finished.append(request)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(requests, st.integers(0, 7)), max_size=40),
    st.integers(1, 5),
    st.booleans(),
)
def test_the_rules_hold_in_every_history(events, connections, cut_reads):
    """Whatever arrives and finishes when: one write per collection, barriers alone and in order, and everything is served."""
    run = Run(connections, cut_reads=cut_reads)
    for event in events:
        if isinstance(event, Request):
            run.arrive(event)
        elif run.flying:
            run.finish(event)
        run.begin()
    for _ in itertools.takewhile(lambda _: run.flying or run.waiting, range(1000)):
        run.begin()
        run.finish(0)
    assert sorted(map(id, run.finished)) == sorted(map(id, run.arrived)), "something was never served"
    for collection in COLLECTIONS:
        line = [r for r in run.arrived if r.lane is Lane.WRITE and r.arguments["collection_id"] == collection]
        served = [r for r in run.finished if r in line]
        assert list(map(id, served)) == list(map(id, line)), "writes changed their order"


def test_bulk_writing_leaves_a_connection_to_others():
    """However many collections are being filled, one connection is left for what cannot wait."""
    run = Run(4, cut_reads=False)
    for number in range(8):
        run.arrive(request_of("upsert", f"bulk-{number}", 50, bulk=True))
    run.begin()
    assert len(run.flying) == 3
    run.arrive(request_of("query", "one", 1, bulk=False))
    run.begin()
    assert len(run.flying) == 4


def test_a_body_has_a_limit():
    """Records are counted by what they weigh: a piece of a write fits into one body, and one record always goes."""
    planner = ConnectionPlanner(connections=1)
    vectors = [[0.0] * 3000] * 200
    request = Request(
        "_upsert",
        {
            "collection_id": "c",
            "ids": [str(n) for n in range(200)],
            "embeddings": vectors,
            "metadatas": None,
            "documents": None,
        },
    )
    (step,) = planner.schedule([request], [0], 1, [], 1)
    assert (step.start, step.stop) == (0, 48)
    heavy = [
        Request(
            "_upsert",
            {"collection_id": "c", "ids": [str(n)], "embeddings": [[0.0]], "documents": ["x" * 500_000]},
        )
        for n in range(3)
    ]
    (step,) = planner.schedule(heavy, [0, 0, 0], 1, [], 1)
    assert (step.members, step.stop) == ([0], None)
