"""The plan, which is pure: what it may merge, cut and reorder, over a small model of what Chroma does."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiochroma import PartialWriteError
from aiochroma.core.operations import Lane
from aiochroma.core.plan import BULK_ROUND, Limits, RecordPlanner, Step
from aiochroma.core.request import Request
from aiochroma.records.spec import CollectionSearch, SearchSpec

IDS = [f"id{number}" for number in range(8)]
FIELDS = ("ids", "embeddings", "metadatas", "documents", "uris", "data")


class Store:
    """Collections as Chroma's local server keeps them, with its results; a call either happens or raises."""

    def __init__(self):
        self.collections = {}
        self.asked = Counter()

    def execute(self, request, deadline=None):
        operation = getattr(self, f"do{request.operation}", None)
        return "done" if operation is None else operation(**request.arguments)

    def _records(self, collection_id):
        return self.collections.setdefault(str(collection_id), {})

    def _write(self, collection_id, ids, embeddings, metadatas, documents, *, add, change):
        records = self._records(collection_id)
        known = {len(record["embedding"]) for record in records.values()}
        if embeddings is not None and len(known | {len(vector) for vector in embeddings}) > 1:
            raise ValueError("dimensions")
        for position, id in enumerate(ids):
            if id in records and not change:
                continue
            if id not in records:
                if not add:
                    continue
                records[id] = {"embedding": (0.0, 0.0), "metadata": None, "document": None}
            for name, values in (("embedding", embeddings), ("metadata", metadatas), ("document", documents)):
                if values is not None:
                    records[id][name] = values[position]

    def do_add(self, collection_id, ids, embeddings, metadatas=None, documents=None, uris=None, **_):
        self._write(collection_id, ids, embeddings, metadatas, documents, add=True, change=False)
        return True

    def do_update(self, collection_id, ids, embeddings=None, metadatas=None, documents=None, uris=None, **_):
        self._write(collection_id, ids, embeddings, metadatas, documents, add=False, change=True)

    def do_upsert(self, collection_id, ids, embeddings, metadatas=None, documents=None, uris=None, **_):
        self._write(collection_id, ids, embeddings, metadatas, documents, add=True, change=True)

    def do_delete(self, collection_id, ids=None, where=None, limit=None, **_):
        records = self._records(collection_id)
        if where is None:
            doomed = ids
        else:
            doomed = [id for id in records if (ids is None or id in ids) and _matches(records[id], where)][
                :limit
            ]
        for id in doomed:
            records.pop(id, None)
        return {"deleted": len(doomed)}

    def do_count(self, collection_id, **_):
        return len(self._records(collection_id))

    def do_get(self, collection_id, ids=None, where=None, limit=None, offset=None, include=(), **_):
        records = self._records(collection_id)
        found = [
            id
            for id in records
            if (ids is None or id in ids) and (where is None or _matches(records[id], where))
        ][offset or 0 :]
        found = found if limit is None else found[:limit]
        result = dict.fromkeys(FIELDS)
        result["ids"] = found
        if "embeddings" in include:
            result["embeddings"] = np.array([records[id]["embedding"] for id in found])
        if "metadatas" in include:
            result["metadatas"] = [copy.copy(records[id]["metadata"]) for id in found]
        if "documents" in include:
            result["documents"] = [records[id]["document"] for id in found]
        result["included"] = list(include)
        return result

    def dolist_ids(self, collection_id, listing, limit=None, offset=None):
        self.asked[listing] += 1
        if self.asked[listing] <= list(self.asked).index(listing) % 3:
            return {"ids": None}  # They are listed beside the thread.
        found = list(self._records(collection_id))[offset or 0 :]
        return {"ids": found if limit is None else found[:limit]}

    def do_query(self, collection_id, query_embeddings, n_results, where=None, include=(), **_):
        records = self._records(collection_id)
        result = dict.fromkeys((*FIELDS, "distances"))
        result["ids"] = []
        distances = []
        for vector in query_embeddings:
            if any(len(record["embedding"]) != len(vector) for record in records.values()):
                raise ValueError("dimensions")
            near = sorted(
                (sum((a - b) ** 2 for a, b in zip(record["embedding"], vector, strict=True)), id)
                for id, record in records.items()
                if where is None or _matches(record, where)
            )[:n_results]
            result["ids"].append([id for _, id in near])
            distances.append([distance for distance, _ in near])
        if "distances" in include:
            result["distances"] = distances
        result["included"] = list(include)
        return result


def _matches(record, where):
    return all((record["metadata"] or {}).get(key) == value for key, value in where.items())


def plain(value):
    """Arrays compare element by element; for `==` they have to become lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def attempt(store, request):
    try:
        return plain(store.execute(request))
    except ValueError as error:
        return str(error)


# -- what requests look like -------------------------------------------------------------------------------------------

vectors = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(lambda pair: tuple(map(float, pair)))
odd_vectors = st.just((1.0, 2.0, 3.0))
wheres = st.none() | st.sampled_from([{"k": 1}, {"k": True}, {"k": 1.0}, {"k": 2}])
includes = st.sampled_from([(), ("metadatas", "documents"), ("embeddings",), ("distances", "metadatas")]).map(
    list
)
collections = st.sampled_from(["a", "b"])


@st.composite
def writes(draw, most=7):
    operation = draw(st.sampled_from(["_add", "_update", "_upsert"]))
    ids = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=most, unique=True))
    kind = vectors if draw(st.integers(0, 9)) else odd_vectors
    arguments = {
        "collection_id": draw(collections),
        "ids": ids,
        "embeddings": [draw(kind) for _ in ids],
        "metadatas": draw(st.none() | st.just([{"k": draw(st.integers(1, 2))} for _ in ids])),
        "documents": draw(st.none() | st.just([draw(st.text(max_size=2)) for _ in ids])),
        "uris": None,
    }
    if operation == "_update" and draw(st.booleans()):
        arguments["embeddings"] = None
    return Request(operation, arguments, bulk=draw(st.booleans()), atomic=draw(st.integers(0, 9)) == 0)


@st.composite
def deletes(draw):
    where = draw(wheres)
    ids = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=7, unique=True))
    return Request(
        "_delete",
        {
            "collection_id": draw(collections),
            "ids": draw(st.sampled_from([ids, None])) if where else ids,
            "where": where,
            "limit": draw(st.none() | st.integers(1, 5)) if where else None,
        },
    )


@st.composite
def gets(draw):
    arguments = {
        "collection_id": draw(collections),
        "ids": draw(st.none() | st.lists(st.sampled_from(IDS), min_size=1, max_size=7, unique=True)),
        "where": draw(wheres),
        "limit": draw(st.none() | st.integers(0, 6)),
        "offset": draw(st.none() | st.integers(0, 3)),
        "include": draw(includes),
    }
    return Request("_get", arguments)


@st.composite
def queries(draw):
    kind = vectors if draw(st.integers(0, 9)) else odd_vectors
    arguments = {
        "collection_id": draw(collections),
        "query_embeddings": draw(st.lists(kind, min_size=1, max_size=9)),
        "n_results": draw(st.integers(1, 3)),
        "where": draw(wheres),
        "include": draw(includes),
    }
    return Request("_query", arguments)


counts = st.builds(lambda name: Request("_count", {"collection_id": name}), collections)
requests = st.one_of(writes(), deletes(), gets(), queries(), counts)
small = Limits(records_per_slice=3, vectors_per_call=4, ids_per_call=5, records_per_page=2, lookahead=6)


class Comparison:
    """Carries out plans on one store, and the same requests one by one on another."""

    def __init__(self, before):
        self.planner = RecordPlanner(copy.copy(small))
        self.merged, self.alone = Store(), Store()
        for request in before:
            attempt(self.merged, request)
            attempt(self.alone, request)
        self.parts = {}
        self.uncut = {}

    def together(self, members, step):
        """Carry out a step that cuts nothing; members of a failed call run again, as the thread has it."""
        expected = [attempt(self.alone, request) for request in members]
        try:
            result = self.merged.execute(self.planner.merge(members, step))
            results = [plain(own) for own in self.planner.split(members, result)]
        except ValueError:
            results = [attempt(self.merged, request) for request in members]
        assert results == expected

    def piece(self, request, step):
        """Carry out a piece; return how far the request is, and whether that is its end."""
        if id(request) not in self.uncut:
            store = copy.deepcopy(self.alone)
            self.uncut[id(request)] = (store, attempt(store, request))
        store, expected = self.uncut[id(request)]
        call = self.planner.merge([request], step)
        try:
            part = self.merged.execute(call)
        except ValueError as error:
            refused = str(error)
        else:
            refused = None
        if refused is not None:
            assert refused == expected
            return 0, True
        self.alone.execute(call)
        parts = self.parts.setdefault(id(request), [])
        parts.append(part)
        done, last = self.planner.advance(request, step, part)
        if last:
            assert plain(self.planner.join(request, parts)) == expected
            collection = request.arguments["collection_id"]
            assert self.merged.collections.get(collection, {}) == store.collections.get(collection, {})
        return done, last


@settings(max_examples=300, deadline=None)
@given(before=st.lists(writes(), max_size=3), waiting=st.lists(requests, min_size=1, max_size=10))
def test_merging_and_cutting_equal_one_by_one(before, waiting):
    """Whatever is merged or cut, every request gets the result it would have got alone, and the store ends the same."""
    comparison = Comparison(before)
    progress = [0] * len(waiting)
    turn = 0
    while waiting:
        turn += 1
        steps = comparison.planner.plan(waiting, progress, turn)
        assert steps, "the plan does nothing although requests wait"
        finished = set()
        for step in steps:
            if step.stop is None:
                comparison.together([waiting[member] for member in step.members], step)
                finished.update(step.members)
                continue
            (member,) = step.members
            progress[member], last = comparison.piece(waiting[member], step)
            if last:
                finished.add(member)
        left = [position for position in range(len(waiting)) if position not in finished]
        waiting, progress = (
            [waiting[position] for position in left],
            [progress[position] for position in left],
        )
    assert comparison.merged.collections == comparison.alone.collections


def test_equal_reads_become_one_call_and_results_are_separate():
    """Equal reads are one call, yet no caller can change another's result."""
    planner = RecordPlanner()
    store = Store()
    store.execute(_upsert("a", ["id0"], [{"k": {"deep": 1}}]))
    waiting = [
        Request("_get", {"collection_id": "a", "ids": ["id0"], "include": ["metadatas"]}) for _ in range(3)
    ]
    (step,) = planner.plan(waiting, [0] * 3, 1)
    first, second, third = planner.split(waiting, store.execute(planner.merge(waiting, step)))
    first["metadatas"][0]["k"]["deep"] = "changed"
    first["ids"].append("changed")
    assert second == third
    assert second["metadatas"] == [{"k": {"deep": 1}}]
    assert second["ids"] == ["id0"]


@pytest.mark.parametrize(
    "different",
    [
        {"where": {"k": 1}},
        {"where": {"k": True}},
        {"where": {"k": 1.0}},
        {"n_results": 3},
        {"include": ["documents"]},
        {"collection_id": "b"},
        {"query_embeddings": [(1.0, 2.0, 3.0)]},
    ],
)
def test_queries_that_differ_in_anything_are_not_merged(different):
    """Only what a merged call leaves the same for everybody is merged; 1, 1.0 and True are not the same."""
    base = {
        "collection_id": "a",
        "query_embeddings": [(1.0, 2.0)],
        "n_results": 2,
        "where": {"k": 2},
        "include": [],
    }
    waiting = [Request("_query", base), Request("_query", {**base, **different})]
    assert [step.members for step in RecordPlanner().plan(waiting, [0, 0], 1)] == [[0], [1]]
    same = [Request("_query", base), Request("_query", dict(base))]
    assert [step.members for step in RecordPlanner().plan(same, [0, 0], 1)] == [[0, 1]]


def test_two_wheres_that_are_equal_but_not_the_same_stay_apart():
    """True == 1 == 1.0 in Python, but not in a filter."""
    base = {"collection_id": "a", "query_embeddings": [(1.0, 2.0)], "n_results": 2, "include": []}
    waiting = [Request("_query", {**base, "where": {"k": value}}) for value in (1, True, 1.0)]
    assert len(RecordPlanner().plan(waiting, [0] * 3, 1)) == 3


def test_searches_are_merged_that_say_the_same():
    """How a namespace is searched is compared by its value: searches with equal specs are one call, others are not."""

    def search(limit: int) -> Request:
        return Request(
            "search_memories",
            {
                "collections": (CollectionSearch("a", "chunks", SearchSpec(k=limit)),),
                "query_embeddings": [(1.0, 2.0)],
                "queries": ["?"],
            },
        )

    steps = RecordPlanner().plan([search(1), search(2), search(1)], [0] * 3, 1)
    assert [step.members for step in steps] == [[0, 2], [1]]


def test_a_search_of_many_collections_counts_for_each_of_them():
    """A merged call gets no longer because each of its searches looks in many collections."""
    arguments = {
        "collections": tuple(CollectionSearch(name, "chunks", SearchSpec(k=1)) for name in "ab"),
        "query_embeddings": [(1.0, 2.0)],
        "queries": ["?"],
    }
    waiting = [Request("search_memories", arguments) for _ in range(3)]
    assert [step.members for step in RecordPlanner(small).plan(waiting, [0] * 3, 1)] == [[0, 1], [2]]


def test_an_atomic_write_is_neither_cut_nor_merged():
    """A write that must be in one piece is."""
    planner = RecordPlanner(small)
    waiting = [_upsert("a", IDS, atomic=True), _upsert("a", ["other"])]
    assert planner.plan(waiting, [0, 0], 1) == [Step([0], records=len(IDS))]


def test_long_texts_make_short_slices():
    """A slice holds the interpreter for as long as its texts are; one text always goes, and short ones are not held up."""
    planner = RecordPlanner(Limits(records_per_slice=16, bytes_per_slice=1000))
    ids = [f"id{number}" for number in range(10)]
    texts = ["x" * length for length in (5000, 10, 10, 400, 400, 400, 10, 10, 10, 5000)]
    request, stops, progress = _upsert("a", ids, texts=texts), [], 0
    while progress < len(ids):
        (step,) = planner.plan([request], [progress], 1)
        assert step.start == progress
        progress = step.stop
        stops.append(step.stop)
    assert stops == [1, 4, 6, 9, 10]
    together = [_upsert("a", [f"other{number}"], texts=["x" * 400]) for number in range(5)]
    assert planner.plan(together, [0] * 5, 1)[-1].members == [0, 1]
    whole = Request("_upsert", request.arguments, atomic=True)
    assert planner.plan([whole], [0], 1) == [Step([0], records=10)]


def test_the_slice_that_rewrites_an_index_is_small():
    """What fits before goes first, so that those who wait for that slice wait for the rewriting and little else."""
    limits = Limits(records_per_slice=64, eases_rewrites=True)
    planner, written, stops, progress = RecordPlanner(limits), 0, [], 0
    limits.until_rewrite = lambda collection: 100 - written % 100 if collection == "a" else None
    ids = [str(number) for number in range(300)]
    while progress < 300:
        (step,) = planner.plan([_upsert("a", ids)], [progress], 1)
        written += step.records
        progress = step.stop
        stops.append(progress)
    assert stops == [64, 99, 107, 171, 199, 207, 271, 299, 300]
    written = 90
    assert planner.plan([_upsert("b", ids)], [0], 1) == [Step([0], 0, 64, records=64)]
    # What fits into a slice is written as a whole: in between others would see a part of it.
    assert planner.plan([_upsert("a", ids[:64])], [0], 1) == [Step([0], records=64)]
    limits.eases_rewrites = False
    assert planner.plan([_upsert("a", ids)], [0], 1) == [Step([0], 0, 64, records=64)]


def test_a_limited_delete_is_not_cut():
    """A limit counts over the whole call; cut in pieces it would count for each."""
    request = Request("_delete", {"collection_id": "a", "ids": IDS, "where": {"k": 1}, "limit": 2})
    (step,) = RecordPlanner(small).plan([request], [0], 1)
    assert step.stop is None


def test_a_write_that_stops_midway_says_what_is_written():
    """`.applied` and `.remaining` together are the ids, in order, and the cause is the store's own error."""
    planner = RecordPlanner(small)
    cause = OSError("disk full")
    error = planner.failure(_upsert("a", IDS), 3, cause)
    assert isinstance(error, PartialWriteError)
    assert (error.applied, error.remaining) == (tuple(IDS[:3]), tuple(IDS[3:]))
    assert error.__cause__ is cause
    assert planner.failure(_upsert("a", IDS), 0, cause) is cause


@pytest.mark.parametrize("limit", ["10", 1.5, -3, object()])
def test_a_senseless_limit_is_left_to_chroma(limit):
    """The plan does not stumble over what a caller passes; Chroma says what is wrong with it."""
    request = Request("_get", {"collection_id": "a", "limit": limit})
    assert RecordPlanner().plan([request], [0], 1) == [Step([0])]


# -- order -------------------------------------------------------------------------------------------------------------


def _upsert(collection, ids, metadatas=None, texts=None, **more):
    arguments = {
        "collection_id": collection,
        "ids": ids,
        "embeddings": [(0.0, 0.0) for _ in ids],
        "metadatas": metadatas,
        "documents": texts,
        "uris": None,
    }
    return Request("_upsert", arguments, **more)


class Submitted:
    """A request and what was true when it was submitted."""

    def __init__(self, number, request, completed):
        self.number = number
        self.request = request
        self.completed_before = completed
        self.progress = 0
        self.parts = []
        self.snapshot = None
        self.begun = False


class Rounds(RuleBasedStateMachine):
    """Requests come at any moment, rounds are planned and carried out; every version written is noted."""

    def __init__(self):
        super().__init__()
        self.planner = RecordPlanner(copy.copy(small))
        self.store = Store()
        self.waiting = []
        self.turn = 0
        self.numbers = 0
        self.version = 0
        self.ended = []
        self.completed_version = {"a": 0, "b": 0}
        self.submitted_version = {"a": 0, "b": 0}

    def submit(self, request):
        self.waiting.append(Submitted(self.numbers, request, dict(self.completed_version)))
        self.numbers += 1

    @rule(collection=collections, size=st.integers(1, 7), bulk=st.booleans())
    def write(self, collection, size, bulk):
        self.version += 1
        self.submitted_version[collection] = self.version
        ids = ["watched", *(f"{self.version}-{number}" for number in range(size - 1))]
        self.submit(_upsert(collection, ids, [{"version": self.version}] * size, bulk=bulk))

    @rule(collection=collections)
    def read(self, collection):
        self.submit(
            Request("_get", {"collection_id": collection, "ids": ["watched"], "include": ["metadatas"]})
        )

    @rule(collection=collections)
    def read_everything(self, collection):
        self.submit(Request("_get", {"collection_id": collection, "include": ["metadatas"]}))

    @rule()
    def create(self):
        self.submit(Request("create_collection", {"name": "new"}))

    @rule()
    def barrier(self):
        self.submit(Request("delete_collection", {"name": "old"}))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data):
        """A caller leaves: what was queued is not planned any more."""
        one = data.draw(st.sampled_from(self.waiting))
        if not one.begun:
            self.waiting.remove(one)
            self.ended.append(one)

    @precondition(lambda self: self.waiting)
    @rule()
    def round(self):
        self.turn += 1
        waiting = list(self.waiting)
        steps = self.planner.plan(
            [one.request for one in waiting], [one.progress for one in waiting], self.turn
        )
        assert steps, "the plan does nothing although requests wait"
        members = [member for step in steps for member in step.members]
        assert len(members) == len(set(members)), "a request is in two steps"
        assert sum(bool(step.records) for step in steps) <= 1, "more than one piece of writing in a round"
        for step in steps:
            self.carry_out([waiting[member] for member in step.members], step)

    def carry_out(self, members, step):
        requests = [one.request for one in members]
        for one in members:
            self.check_order(one)
            one.begun = True
            if one.request.operation == "_get" and one.snapshot is None:
                one.snapshot = list(self.store.collections.get(one.request.arguments["collection_id"], {}))
        result = self.store.execute(self.planner.merge(requests, step))
        if step.stop is None:
            for one, own in zip(members, self.planner.split(requests, result), strict=True):
                self.end(one, own)
            return
        (one,) = members
        one.parts.append(result)
        one.progress, last = self.planner.advance(one.request, step, result)
        if last:
            self.end(one, self.planner.join(one.request, one.parts))

    def check_order(self, one):
        earlier = [other for other in self.waiting if other.number < one.number]
        assert not [other for other in earlier if other.request.lane is Lane.BARRIER], "overtook a barrier"
        if one.request.lane is Lane.BARRIER:
            assert earlier == [], "a barrier before what was submitted earlier"
        if one.request.lane is Lane.WRITE:
            collection = one.request.arguments["collection_id"]
            rivals = [
                other
                for other in self.waiting
                if other is not one and other.request.arguments.get("collection_id") == collection
            ]
            assert not [
                other for other in rivals if other.request.lane is Lane.WRITE and other.number < one.number
            ]
            assert not [other for other in rivals if other.request.lane is Lane.READ and other.progress], (
                "wrote mid-page"
            )
        if one.request.lane is Lane.CATALOG:
            assert not [other for other in earlier if other.request.lane is Lane.CATALOG]

    def end(self, one, result):
        self.waiting.remove(one)
        self.ended.append(one)
        collection = one.request.arguments.get("collection_id")
        if one.request.lane is Lane.WRITE:
            version = one.request.arguments["metadatas"][0]["version"]
            assert version > self.completed_version[collection], "writes out of order"
            self.completed_version[collection] = version
        elif one.request.operation == "_get":
            seen = [
                metadata["version"] for id, metadata in zip(result["ids"], result["metadatas"], strict=True)
            ]
            assert max(seen, default=0) >= one.completed_before[collection], (
                "missed a write that was finished before"
            )
            assert max(seen, default=0) <= self.submitted_version[collection]
            if "ids" not in one.request.arguments:
                assert result["ids"] == one.snapshot, "a read in pages is not a picture of one moment"

    @invariant()
    def nothing_is_lost_or_duplicated(self):
        numbers = sorted(one.number for one in [*self.waiting, *self.ended])
        assert numbers == list(range(self.numbers))

    def teardown(self):
        most = 20 * (
            sum(len(one.request.arguments.get("ids") or [0]) for one in self.waiting) + self.version * 7 + 1
        )
        for _ in range(most):
            if not self.waiting:
                break
            self.round()
        assert not self.waiting, "some requests never end"


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def rounds_until(done, planner, waiting, progress, arrive, most=2000):
    """Plan rounds, with new requests before each, until `done`; return how many it took, or fail."""
    waiting, progress = list(waiting), list(progress)
    served = []
    for turn in range(1, most):
        arrive(waiting, progress)
        steps = planner.plan(waiting, progress, turn)
        ended = set()
        for step in steps:
            for member in step.members:
                request = waiting[member]
                served.append(request)
                if step.stop is None:
                    ended.add(member)
                else:
                    # A large read finds six records.
                    stop = 6 if step.lists_ids else step.stop
                    part = {"ids": [f"{number}" for number in range(step.start, stop)]}
                    progress[member], last = planner.advance(request, step, part)
                    if last:
                        ended.add(member)
        waiting = [request for position, request in enumerate(waiting) if position not in ended]
        progress = [done for position, done in enumerate(progress) if position not in ended]
        if done(served, waiting):
            return turn
    return pytest.fail("starved")


def _always_a_small_write(waiting, progress):
    waiting.append(_upsert("busy", ["x"]))
    progress.append(0)


@pytest.mark.parametrize("writers", [1, 2, 3, 4, 8])
def test_bulk_writing_is_never_starved(writers):
    """However many small writes come, every bulk writer gets its turn among every few rounds."""
    bulk = [_upsert(f"bulk{number}", [f"{n}" for n in range(10_000)]) for number in range(writers)]

    def all_served(served, _):
        return all(request in served for request in bulk)

    planner = RecordPlanner(Limits(records_per_slice=3))
    took = rounds_until(all_served, planner, bulk, [0] * writers, _always_a_small_write)
    assert took <= BULK_ROUND * (writers + 1)


def test_small_writes_go_before_bulk_writing():
    """A small write waits for at most one piece of somebody's bulk writing."""
    bulk = _upsert("bulk", [f"{n}" for n in range(10_000)])
    interactive = _upsert("other", ["x"])
    first, second = (
        RecordPlanner(copy.copy(small)).plan([bulk, interactive], [300, 0], turn)[-1].members
        for turn in (1, 2)
    )
    assert first == second == [1]


def test_small_writes_are_not_starved_by_bulk_writing():
    """Bulk writing gets one round in four while small writes wait, not more."""
    planner = RecordPlanner(copy.copy(small))
    bulk = _upsert("bulk", [f"{n}" for n in range(10_000)])
    heads = [
        planner.plan([bulk, _upsert("other", ["x"])], [3, 0], turn)[-1].members[0] for turn in range(1, 9)
    ]
    assert heads.count(1) == 6


def test_a_large_read_asks_for_the_rest_of_the_ids_once_and_then_by_id():
    """Pages by offset would cost the square: after the first page come all other ids in one call, and pages of those."""
    planner = RecordPlanner(copy.copy(small))
    request = Request("_get", {"collection_id": "a", "where": {"k": 1}, "include": ["documents"]})
    found = [f"id{number}" for number in range(5)]
    progress, calls = 0, []
    for turn in range(1, 10):
        (step,) = planner.plan([request], [progress], turn)
        call = planner.merge([request], step).arguments
        calls.append({name: call.get(name) for name in ("ids", "where", "limit", "offset", "include")})
        start = call.get("offset") or 0
        ids = call.get("ids") or found[start : None if call.get("limit") is None else start + call["limit"]]
        progress, last = planner.advance(request, step, {"ids": ids})
        if last:
            break
    where, documents, nothing = {"k": 1}, ["documents"], dict.fromkeys(("where", "limit", "offset"))
    assert calls == [
        {"ids": None, "where": where, "limit": 2, "offset": None, "include": documents},
        {"ids": None, "where": where, "limit": None, "offset": 2, "include": []},
        {**nothing, "ids": ["id2", "id3"], "include": documents},
        {**nothing, "ids": ["id4"], "include": documents},
    ]


def test_the_ids_of_a_whole_collection_are_asked_for_until_they_are_there():
    """Each listing has a number, so that no read gets the list of another; meanwhile others are served, but no write to it."""
    planner = RecordPlanner(copy.copy(small))
    requests = [Request("_get", {"collection_id": "a", "limit": 9, "include": []}) for _ in range(2)]
    other, write = Request("_count", {"collection_id": "a"}), _upsert("a", ["x"])
    asked = []
    for request in requests:
        progress, _ = planner.advance(request, Step([0], 0, 2), {"ids": ["id0", "id1"]})
        for part in (None, None, ["id2"]):
            steps = planner.plan([request, other, write], [progress, 0, 0], 1)
            assert [step.members for step in steps] == [[0], [1]]
            asked.append(planner.merge([request], steps[0]))
            progress, last = planner.advance(request, steps[0], {"ids": part})
            assert last is (part is not None)
    assert {call.operation for call in asked} == {"list_ids"}
    assert {(call.arguments["offset"], call.arguments["limit"]) for call in asked} == {(2, 7)}
    numbers = [call.arguments["listing"] for call in asked]
    assert len(set(numbers[:3])) == len(set(numbers[3:])) == 1
    assert numbers[0] != numbers[3]


def test_many_questions_are_asked_page_after_page():
    """So that others are served in between; each page is a call of its own with as many questions as are merged."""
    planner = RecordPlanner(copy.copy(small))
    questions = [(float(number), 1.0) for number in range(9)]
    request = Request("_query", {"collection_id": "a", "query_embeddings": questions, "n_results": 1})
    progress, last, pages = 0, False, []
    while not last:
        (step,) = planner.plan([request], [progress], 1)
        pages.append(planner.merge([request], step).arguments["query_embeddings"])
        progress, last = planner.advance(request, step, {})
    assert pages == [questions[:4], questions[4:8], questions[8:]]


def test_what_cannot_be_compared_is_not_merged():
    """Filters that are nested very deep, and objects of other kinds, are served alone; the plan goes on."""
    where = {"k": 1}
    for level in range(5000):
        where = {"$and": [where, {"k": level}]}
    deep = [Request("_get", {"collection_id": "a", "ids": ["x"], "where": where}) for _ in range(2)]
    odd = [Request("_count", {"collection_id": "a", "of": object}) for _ in range(2)]
    steps = RecordPlanner().plan([*deep, *odd], [0] * 4, 1)
    assert [step.members for step in steps] == [[0], [1], [2], [3]]


def test_overlapping_large_reads_do_not_starve_writing():
    """While large reads of a collection follow each other without a gap, a write to it still gets through."""
    write = _upsert("a", ["x"])
    turn = 0

    def always_a_large_read(waiting, progress):
        nonlocal turn
        turn += 1
        if turn % 2:
            waiting.append(Request("_get", {"collection_id": "a", "number": turn}))
            progress.append(0)

    def written(served, _):
        return write in served

    rounds_until(written, RecordPlanner(copy.copy(small)), [write], [0], always_a_large_read)


def test_overlapping_large_reads_do_not_starve_bulk_writing():
    """The same for a write in many pieces: it advances, and ends."""
    write = _upsert("a", [f"{n}" for n in range(30)])
    turn = 0

    def always_a_large_read(waiting, progress):
        nonlocal turn
        turn += 1
        if turn % 2:
            waiting.append(Request("_get", {"collection_id": "a", "number": turn}))
            progress.append(0)

    rounds_until(
        lambda _, waiting: write not in waiting,
        RecordPlanner(copy.copy(small)),
        [write],
        [0],
        always_a_large_read,
    )
