"""LangGraph: the store, on both ways to wait, across restarts, with times to live; the oracle's test has the rest."""

from __future__ import annotations

import asyncio
import copy
import pickle
from datetime import datetime, timezone

import numpy as np
import pytest
from programs import error_without, python

import aiochroma
from aiochroma import sync

pytest.importorskip("langgraph.store", reason="langgraph-checkpoint is not installed (group `frameworks`)")

from langgraph.store.base import GetOp, InvalidNamespaceError, PutOp, SearchOp

from aiochroma.langgraph import AiochromaStore


class Clock:
    """The time, which goes on when it is told to."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def time(self):
        return self.now

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in ("store", "stored"):
        monkeypatch.setattr(f"aiochroma.langgraph.{module}.time", clock)
    monkeypatch.setattr("aiochroma.langgraph.store.monotonic", clock.monotonic)
    return clock


async def count(path, name):
    """Return how many records a collection has."""
    async with await aiochroma.AsyncPersistentClient(path) as client:
        return await (await client.get_collection(name, embedding_function=None)).count()


@pytest.fixture
async def store(tmp_path):
    async with AiochromaStore(tmp_path, index={"fields": ["text"]}) as store:
        yield store


def test_the_extra_is_named_where_langgraph_is_absent():
    """Without the package the error names it, and the extra that brings it."""
    shown = error_without("langgraph.store.base", "aiochroma.langgraph")
    assert "[langgraph]" in shown


async def test_a_relative_path_is_that_of_where_it_was_given(tmp_path, monkeypatch):
    """A daemon changes its working directory later; the store stays where it was named, also when it is opened again."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    store = AiochromaStore("graph")
    monkeypatch.chdir(tmp_path / "second")
    await store.aput(("a",), "k", {"n": 1})
    await store.aclose()
    monkeypatch.chdir(tmp_path)
    assert (await store.aget(("a",), "k")).value == {"n": 1}
    await store.aclose()
    assert [entry.name for entry in (tmp_path / "first").iterdir()] == ["graph"]
    assert list((tmp_path / "second").iterdir()) == []


async def test_both_ways_on_one_object(store):
    """What was put on the event loop is read on a plain thread and the other way round."""
    await store.aput(("users", "ada"), "cat", {"text": "Her cat is called Kestrel."})
    assert (await asyncio.to_thread(store.get, ("users", "ada"), "cat")).value["text"].endswith("Kestrel.")
    await asyncio.to_thread(store.put, ("users", "bob"), "dog", {"text": "His dog is called Rex."})
    found = await store.asearch(("users",), query="the name of the dog", limit=1)
    assert [(item.namespace, item.key) for item in found] == [(("users", "bob"), "dog")]
    assert 0 < found[0].score < 1
    with pytest.raises(aiochroma.BlockingCallError):
        store.batch([GetOp(("users", "ada"), "cat")])


async def test_across_restarts(tmp_path):
    """Another store on the same directory has everything, and says when the embedder is another one."""
    value = {
        "text": "Tea, no milk.",
        "nested": {"list": [1, None, {"deep": "ü"}], "none": None},
        "big": 2**70,
    }
    async with AiochromaStore(tmp_path, index={}) as store:
        await store.aput(("a", "ü/"), "key\0 with anything 🙂", value)
        before = await store.aget(("a", "ü/"), "key\0 with anything 🙂")
    async with AiochromaStore(tmp_path, index={}) as store:
        assert await store.aget(("a", "ü/"), "key\0 with anything 🙂") == before
        assert before.value == value
        assert (await store.asearch((), query="what does she drink?"))[0] == before
        assert await store.alist_namespaces() == [("a", "ü/")]

    def lengths(texts):
        return [[1.0, float(len(text))] for text in texts]

    async with AiochromaStore(tmp_path, index={"embed": lengths, "dims": 2}) as store:
        assert await store.aget(("a", "ü/"), "key\0 with anything 🙂") == before
        with pytest.raises(aiochroma.EmbedderMismatchError, match="lengths"):
            await store.asearch((), query="tea")
        with pytest.raises(aiochroma.EmbedderMismatchError, match="lengths"):
            await store.aput(("a",), "b", {"text": "c"})
    async with AiochromaStore(
        tmp_path, index={"embed": lengths, "dims": 3}, collection_name="other"
    ) as store:
        with pytest.raises(aiochroma.EmbeddingFailedError, match="3 `dims`"):
            await store.aput(("a",), "b", {"text": "c"})


async def test_put_again(store):
    """It keeps when it was made, is found by its new text alone, and by none when it shall not be."""
    await store.aput(("a",), "k", {"text": "The harbour is frozen."})
    made = (await store.aget(("a",), "k")).created_at
    await store.aput(("a",), "k", {"text": "A recipe for pancakes."})
    (item,) = await store.asearch(("a",), query="frozen harbour")
    assert item.value == {"text": "A recipe for pancakes."}
    assert item.score < 0.5
    assert item.created_at == made < item.updated_at <= datetime.now(timezone.utc)
    await store.aput(("a",), "k", {"text": "A recipe for pancakes."}, index=False)
    assert [item.score for item in await store.asearch(("a",), query="pancakes")] == [None]


async def test_one_batch(store):
    """Reading sees what was there before; of several puts of one key the last one counts, also for the order."""
    await store.aput(("a",), "one", {"n": 1})
    results = await store.abatch(
        [
            PutOp(("a",), "one", {"n": 2}),
            PutOp(("a",), "two", {"n": 3}),
            PutOp(("a",), "one", {"n": 4}),
            GetOp(("a",), "one"),
            GetOp(("a",), "two"),
            SearchOp(("a",)),
        ]
    )
    assert [None if result is None else str(result)[:5] for result in results[:3]] == [None] * 3
    assert (results[3].value, results[4], len(results[5])) == ({"n": 1}, None, 1)
    assert [item.value["n"] for item in await store.asearch(("a",))] == [4, 3]


async def test_at_the_same_time(store):
    """Many callers put, read and search at once; each gets its own."""

    async def one(number):
        await store.aput(("many", str(number % 4)), str(number), {"text": f"note {number}", "n": number})
        assert (await store.aget(("many", str(number % 4)), str(number))).value["n"] == number
        found = await store.asearch(("many",), query=f"note {number}", filter={"n": {"$eq": number}})
        assert [item.key for item in found] == [str(number)]

    await asyncio.gather(*[one(number) for number in range(40)])
    assert len(await store.asearch(("many",), limit=100)) == 40
    assert await store.alist_namespaces(max_depth=1) == [("many",)]


async def test_a_filter_that_lets_few_pass(store):
    """A question looks at as many texts as it takes; items of several texts count once."""
    await store.abatch(
        [PutOp(("a",), str(n), {"text": f"apple {n}", "n": n}, ["text", "n"]) for n in range(120)]
    )
    found = await store.asearch(("a",), query="apple", filter={"n": {"$gte": 117}}, limit=5)
    assert sorted(item.key for item in found) == ["117", "118", "119"]


async def test_time_to_live(tmp_path, clock):
    """An item is gone when its time has passed; reading lets it live longer, unless it shall not; sweeping deletes."""
    ttl = {"default_ttl": 10, "refresh_on_read": True}
    async with AiochromaStore(tmp_path, index={"fields": ["text"]}, ttl=ttl) as store:
        await store.aput(("a",), "read", {"text": "one"})
        await store.aput(("a",), "left", {"text": "two"})
        await store.aput(("a",), "kept", {"text": "three"}, ttl=None)
        clock.now += 9 * 60
        assert await store.aget(("a",), "read")
        assert await store.aget(("a",), "left", refresh_ttl=False)
        clock.now += 2 * 60
        assert await store.aget(("a",), "left") is None
        assert [item.key for item in await store.asearch(("a",), query="one", refresh_ttl=False)] == [
            "read",
            "kept",
        ]
        assert await store.asweep() == 1
        assert await store.asweep() == 0
        clock.now += 7 * 60
        assert {item.key for item in await store.asearch(("a",))} == {"read", "kept"}
        clock.now += 9 * 60
        assert await store.aget(("a",), "read", refresh_ttl=False)
        clock.now += 2 * 60
        assert [item.key for item in await store.asearch(())] == ["kept"]
        # Putting it without a time to live ends the former one.
        await store.aput(("a",), "read", {"text": "one"}, ttl=1)
        await store.aput(("a",), "read", {"text": "one"}, ttl=None)
        clock.now += 60 * 60
        assert await store.aget(("a",), "read")
        assert await store.asweep() == 0


async def test_what_is_put_while_others_are_swept_stays(tmp_path, clock, monkeypatch):
    """Between looking for what has expired and deleting it: the new item lives, and is found by its meaning."""
    async with AiochromaStore(tmp_path, index={"fields": ["text"]}) as store:
        await store.aput(("a",), "again", {"text": "one"}, ttl=1)
        await store.aput(("a",), "gone", {"text": "two"}, ttl=1)
        clock.now += 60 * 60
        read, looked = store._items._get, []

        async def reading(*arguments, **options):
            found = await read(*arguments, **options)
            if not looked:
                looked.append(found)
                await store.aput(("a",), "again", {"text": "three"})
            return found

        monkeypatch.setattr(store._items, "_get", reading)
        assert await store.asweep() == 1
        assert len(looked[0]) == 2
        assert [item.value for item in await store.asearch(("a",), query="three")] == [{"text": "three"}]
    assert (await count(tmp_path, "langgraph"), await count(tmp_path, "langgraph.vectors")) == (1, 1)


async def test_a_write_sweeps(tmp_path, clock):
    """With an interval, a write that comes later deletes what has expired, and its vectors."""
    ttl = {"sweep_interval_minutes": 5}
    async with AiochromaStore(tmp_path, index={"fields": ["text"]}, ttl=ttl) as store:
        await store.aput(("a",), "gone", {"text": "one"}, ttl=1)
        clock.now += 6 * 60
        await store.aput(("a",), "here", {"text": "two"})
    for name in ("langgraph", "langgraph.vectors"):
        assert await count(tmp_path, name) == 1


_DIES = """
import os, sys
from aiochroma.langgraph import AiochromaStore

store = AiochromaStore(sys.argv[1], index={"fields": ["text"]})
store.put(("a",), "k", {"text": "one"})
store._items._write_items = lambda items: os.kill(os.getpid(), 9)
store.put(("a",), "k", {"text": "two"})
"""


async def test_the_vectors_of_a_put_that_died_are_swept(tmp_path, monkeypatch):
    """Killed between its two writes, it leaves vectors that no item names; they go after an hour, and the item's own stay."""
    assert python("-c", _DIES, tmp_path).returncode == -9
    assert await count(tmp_path, "langgraph.vectors") == 2
    async with AiochromaStore(tmp_path, index={"fields": ["text"]}) as store:
        await store.aput(("a",), "new", {"text": "three"})
        assert await store.asweep() == 0
        # The clock of this test begins long after the program's.
        clock = Clock()
        monkeypatch.setattr("aiochroma.langgraph.stored.time", clock)
        await store.aput(("a",), "newer", {"text": "four"})
        assert await store.asweep() == 0
        assert [item.value["text"] for item in await store.asearch((), query="one", limit=1)] == ["one"]
    assert await count(tmp_path, "langgraph.vectors") == 3


async def test_an_expired_item_takes_its_vectors_along(tmp_path, clock):
    """Deleting an item whose time has passed, or putting it again, leaves no vector of it; put again, it is a new one."""
    async with AiochromaStore(tmp_path, index={"fields": ["text"]}) as store:
        await store.aput(("a",), "deleted", {"text": "one"}, ttl=1)
        await store.aput(("a",), "again", {"text": "two"}, ttl=1)
        clock.now += 2 * 60
        await store.adelete(("a",), "deleted")
        await store.aput(("a",), "again", {"text": "three"})
        item = await store.aget(("a",), "again")
        assert item.created_at == item.updated_at
        assert await store.asweep() == 0
    assert await count(tmp_path, "langgraph.vectors") == 1


@pytest.mark.parametrize("deleted", [False, True])
async def test_puts_of_one_key_at_the_same_time(tmp_path, deleted):
    """Whichever of them wins, it is found by its own vector, and nothing is left of the others' ones."""
    async with AiochromaStore(tmp_path, index={"fields": ["text"]}) as store:
        await store.aput(("a",), "k", {"text": "before"})
        puts = [PutOp(("a",), "k", {"text": f"text {n}"}) for n in range(16)]
        if deleted:
            puts[3::4] = [PutOp(("a",), "k", None)] * 4
        await asyncio.gather(
            *[store.abatch([op]) for op in puts[::2]],
            *[asyncio.to_thread(store.batch, [op]) for op in puts[1::2]],
        )
        item = await store.aget(("a",), "k")
        found = await store.asearch(("a",), query="text")
        assert found == ([] if item is None else [item])
        assert all(one.score is not None for one in found)
    assert await count(tmp_path, "langgraph.vectors") == len(found)
    assert deleted or item is not None


@pytest.mark.parametrize("written", [False, True])
async def test_a_put_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch, written):
    """Whether its item was written or not when it failed: the next put, of whatever key, takes away the vectors of no item."""
    async with AiochromaStore(tmp_path, index={"fields": ["text"]}) as store:
        await store.aput(("a",), "k", {"text": "before"})
        write = store._items._write_items

        async def failing(items):
            if written:
                await write(items)
            raise aiochroma.OutcomeUnknownError("the connection is gone")

        with monkeypatch.context() as patch:
            patch.setattr(store._items, "_write_items", failing)
            with pytest.raises(aiochroma.OutcomeUnknownError):
                await store.aput(("a",), "k", {"text": "after"})
        await store.aput(("a",), "other", {"text": "something else"})
        value = "after" if written else "before"
        assert (await store.aget(("a",), "k")).value == {"text": value}
        assert {item.key: item.score is not None for item in await store.asearch(("a",), query=value)} == {
            "k": True,
            "other": True,
        }
    assert await count(tmp_path, "langgraph.vectors") == 2


async def test_wrong_arguments(store):
    """What is wrong is refused by name before anything of a batch is done."""
    first = PutOp(("a",), "first", {"n": 1})
    wrong = [
        (PutOp(("a",), "k", {"n": float("nan")}), "JSON"),
        (PutOp(("a",), "k", {"n": object()}), "'k' in"),
        (PutOp(("a",), "k", {"text": "x" * 2**20}), r"The value of 'k' in .* has 1,048,588 bytes"),
        (PutOp(("a",), "k", {"n": 1}, ttl=0), "minutes above 0"),
        (PutOp(("a",), "k", {"n": 1}, ttl="5"), "minutes above 0, or None, got '5'"),
        (PutOp(("a",), "k", {"n": 1}, ttl=True), "minutes above 0, or None, got True"),
        (PutOp(("a",), "k", {"n": 1}, ttl=10**400), "minutes above 0"),
        (SearchOp(("a",), limit="5"), "`limit`.* got '5'"),
        (SearchOp(("a",), offset=1.5), "`offset`.* got 1.5"),
        (SearchOp(("a",), {"n": {"$in": [1]}}), r"'\$in'"),
        (SearchOp(("a",), {"n": {"m": {"$gt": "x"}}}), "'n.m'"),
        (SearchOp(("a",), limit=-1), "at least 0"),
        ("get", "str"),
    ]
    for op, message in wrong:
        with pytest.raises(aiochroma.InvalidInputError, match=message):
            await store.abatch([first, op])
    with pytest.raises(InvalidNamespaceError):
        await store.abatch([first, GetOp(("a.b",), "k")])
    assert await store.aget(("a",), "first") is None
    await store.aput(("a",), "text", {"n": "many", "none": None})
    assert await store.asearch(("a",), filter={"none": {"$gt": 0}}) == []
    assert await store.asearch(("a",), filter={"n": {"$gt": 0}}) == []
    # An array says of no comparison whether it holds; a single number of numpy's is a number.
    await store.aput(("a",), "list", {"n": []})
    await store.aput(("a",), "three", {"n": 3})
    for condition in (np.zeros(3), {"$eq": np.zeros(3)}):
        assert await store.asearch(("a",), filter={"n": condition}) == []
    assert [item.key for item in await store.asearch(("a",), filter={"n": np.int64(3)})] == ["three"]


async def test_namespaces_are_scopes(store, tmp_path):
    """Hundreds of namespaces share one collection; a prefix finds what lies in it and below it, and nothing beside it."""
    users = [("users", f"user {number}", topic) for number in range(150) for topic in ("cats", "tea/milk")]
    await store.abatch([PutOp(user, "k", {"text": f"{user[1]} likes {user[2]}"}) for user in users])
    await store.aput(("users", "user"), "k", {"text": "user likes nothing"})
    found = await store.asearch(("users", "user 7"), query="cats", limit=10)
    assert [item.namespace[2] for item in found] == ["cats", "tea/milk"]
    assert [item.namespace for item in await store.asearch(("users", "user"))] == [("users", "user")]
    assert await store.alist_namespaces(prefix=("users", "user 7")) == users[14:16]
    assert len(await store.alist_namespaces(suffix=("*", "cats"), limit=1000)) == 150
    async with await aiochroma.AsyncPersistentClient(tmp_path) as client:
        assert {one.name for one in await client.list_collections()} == {"langgraph", "langgraph.vectors"}


@pytest.mark.parametrize("namespace", [tuple("abcdefghi"), ("\ud800",)])
async def test_a_namespace_that_cannot_be_a_scope(store, namespace):
    """One with too many labels, or with a label that cannot be stored, is refused by name before anything is done."""
    for op in (PutOp(namespace, "k", {"n": 1}), GetOp(namespace, "k")):
        with pytest.raises(aiochroma.InvalidInputError, match="namespace"):
            await store.abatch([PutOp(("a",), "first", {"n": 1}), op])
    assert await store.aget(("a",), "first") is None


async def test_what_cannot_exist_is_not_found(store):
    """A prefix longer than any namespace has nothing below it, and a limit may be larger than any number of items."""
    await store.aput(tuple("abcdefgh"), "k", {"text": "one"})
    deep = tuple("abcdefghi")
    assert await store.asearch(deep) == await store.asearch(deep, query="one") == []
    assert await store.alist_namespaces(prefix=deep) == await store.alist_namespaces(suffix=deep) == []
    assert len(await store.asearch((), query="one", limit=10**12)) == 1
    assert await store.asearch((), query="one", offset=10**12) == []
    with pytest.raises(aiochroma.InvalidInputError, match="namespace"):
        await store.asearch(("\ud800",))


async def test_items_in_another_layout(store):
    """A collection whose items no search would find is refused by name, for reading and for writing."""
    client = await store._client.open()
    collection = await client.create_collection("langgraph", embedding_function=None)
    metadata = {"namespace": "users/ada", "key": '"cat"', "version": "v", "indexed": False}
    await collection.add(["id"], [[1.0]], [metadata], ["{}"])
    for work in (
        store.aget(("users", "ada"), "cat"),
        store.asearch(("users",)),
        store.asearch(("users",), query="cat"),
        store.alist_namespaces(prefix=("users",)),
        store.aput(("a",), "k", {"text": "one"}),
        store.asweep(),
    ):
        with pytest.raises(aiochroma.InvalidInputError, match=r"'langgraph'.*`collection_name`"):
            await work
    assert await collection.count() == 1


async def test_copies_share_the_store(store):
    """A copy of a program's state has the same store, and another process is refused it in words."""
    assert copy.deepcopy({"store": store})["store"] is copy.copy(store) is store
    with pytest.raises(aiochroma.InvalidInputError, match=r"cannot be pickled.*in each process"):
        pickle.dumps(store)


async def test_clients_of_the_caller(tmp_path):
    """A client of either kind serves both kinds of methods, and is not closed with the store."""
    async with await aiochroma.AsyncPersistentClient(tmp_path) as client:
        store = AiochromaStore(client=client)
        await store.aput(("a",), "k", {"n": 1})
        assert (await asyncio.to_thread(store.get, ("a",), "k")).value == {"n": 1}
        await store.aclose()
        assert not client.closed
    blocking = await asyncio.to_thread(sync.PersistentClient, tmp_path)
    store = AiochromaStore(client=blocking)
    assert (await store.aget(("a",), "k")).value == {"n": 1}
    assert (await asyncio.to_thread(store.get, ("a",), "k")).value == {"n": 1}
    await store.aclose()
    assert not blocking.closed
    await asyncio.to_thread(blocking.close)


async def test_arguments_of_another_kind_are_refused(tmp_path):
    """One label in the place of a tuple would be one label for each letter, one path a path for each; both find nothing later."""
    deep = {}
    inner = deep
    for _ in range(5000):
        inner["a"] = inner = {}
    async with AiochromaStore(tmp_path, index={"fields": ["text"]}) as store:
        for call in (
            lambda: store.aput("users", "k", {"text": "a cat"}),
            lambda: store.aget("users", "k"),
            lambda: store.asearch("users"),
            lambda: store.aput(("users",), "k", {"text": "a cat"}, index="text"),
            lambda: store.aput(("users",), "k", ["a cat"]),
            lambda: store.aput(("users",), "k", deep),
            lambda: store.aput(("users",), "k", {"number": 10**5000}),
            lambda: store.asearch(("users",), query=7),
            lambda: store.asearch(("users",), query="half a \ud83d"),
            lambda: store.asearch(("users",), filter=["text"]),
        ):
            with pytest.raises(aiochroma.InvalidInputError):
                await call()
        assert await store.asearch(("users",)) == []
    with pytest.raises(aiochroma.InvalidInputError, match="list of paths"):
        AiochromaStore(tmp_path, index={"fields": "text"})


async def test_an_embedder_that_fails_is_an_error_of_the_tree(tmp_path):
    """The item that was to be put is not there."""

    def embed(texts):
        raise ConnectionError("connection refused")

    async with AiochromaStore(tmp_path, index={"embed": embed, "dims": 2}) as store:
        for call in (
            lambda: store.aput(("users",), "k", {"text": "a cat"}),
            lambda: store.asearch(("users",), query="cat"),
        ):
            with pytest.raises(aiochroma.EmbeddingFailedError, match="connection refused"):
                await call()
        assert await store.aget(("users",), "k") is None


_ODD_METADATA = [
    None,
    {"kind": "note of another program"},
    {"key": '"k"'},
    {"key": "no JSON", "version": "v", "indexed": False, "created_at": 1.0, "updated_at": 1.0},
    {"key": "7", "version": "v", "indexed": False, "created_at": 1.0, "updated_at": 1.0},
    {"key": '"k"', "version": 7, "indexed": False, "created_at": 1.0, "updated_at": 1.0},
    {"key": '"k"', "version": "v", "indexed": "no", "created_at": 1.0, "updated_at": 1.0},
    {"key": '"k"', "version": "v", "indexed": False, "created_at": 1e300, "updated_at": 1.0},
    {"key": '"k"', "version": "v", "indexed": False, "created_at": 1.0, "updated_at": "now"},
    {"key": '"k"', "version": "v", "indexed": False, "created_at": 1.0, "updated_at": 1.0, "ttl": "5"},
    {
        "key": '"k"',
        "version": "v",
        "indexed": False,
        "created_at": 1.0,
        "updated_at": 1.0,
        "aiochroma:scope": 7,
    },
]
_ITEM = {"key": '"k"', "version": "v", "indexed": False, "created_at": 1.0, "updated_at": 1.0}
_ODD_VALUES = [None, "no JSON", "[1]", "[" * 100_000, '{"n": ' + "1" * 5000 + "}"]


async def test_records_of_other_programs_are_left_out(tmp_path, caplog, monkeypatch, request):
    """In the items or in the vectors, the first one there or the last one left: the store goes on, and says so once."""
    monkeypatch.setattr("aiochroma._logging._QUIET_SECONDS", 0.0)
    async with AiochromaStore(tmp_path, index={"fields": ["text"]}, ttl={"default_ttl": 5}) as store:
        await store.aput(("a",), "mine", {"text": "one"})
        client = await store._client.open()
        items = await client.get_collection("langgraph", embedding_function=None)
        (own,) = (await items.get(include=["metadatas"]))["metadatas"]
        await store.adelete(("a",), "mine")
        for number, metadata in enumerate(_ODD_METADATA):
            await items.add([f"odd-{number}"], [[1.0]], None if metadata is None else [metadata], ["{}"])
        for number, value in enumerate(_ODD_VALUES):
            await items.add([f"value-{number}"], [[1.0]], [_ITEM], None if value is None else [value])
        await store.aput(("a",), "mine", {"text": "one"})
        vectors = await client.get_collection("langgraph.vectors", embedding_function=None)
        (row,) = (await vectors.get(include=["embeddings"]))["embeddings"]
        old = {"made": 1.0}
        await vectors.add(["v0", "v1", "v2"], [row] * 3, [None, {"item": 7, **old}, {"version": "v", **old}])
    async with AiochromaStore(tmp_path, index={"fields": ["text"]}) as store:
        assert [item.key for item in await store.asearch(())] == ["mine"]
        assert [item.key for item in await store.asearch((), query="one")] == ["mine"]
        assert [item.key for item in await store.asearch((), filter={"text": "one"})] == ["mine"]
        assert await store.alist_namespaces(prefix=("a",)) == [("a",)]
        await store.aput(("a",), "other", {"text": "two"})
        assert await store.asweep() == 0
        await store.adelete(("a",), "mine")
        await store.adelete(("a",), "other")
        assert await store.asearch(()) == []
    assert any("of another program are no items" in record.getMessage() for record in caplog.records)
    # What a store wrote that did not mark its collection: one item among them is enough.
    async with await aiochroma.AsyncPersistentClient(tmp_path) as client:
        unmarked = await client.create_collection("unmarked", embedding_function=None)
        await unmarked.add(["odd"], [[1.0]], [{"kind": "note"}], ["{}"])
        await unmarked.add(["item"], [[1.0]], [own], ['{"text": "three"}'])
    async with AiochromaStore(tmp_path, collection_name="unmarked") as store:
        assert await store.aget(("a",), "nothing") is None


async def test_a_store_refuses_odd_options(tmp_path):
    """By name, before a directory is made; what is misspelt, too."""
    odd = [None, 7, -1, float("nan"), float("inf"), 10**400, "", b"x", "\ud800", [], {}, object(), 1.5, True]
    fine = {
        "path": [None],
        "index": [None, {}],
        "ttl": [None, {}],
        "collection_name": ["\ud800"],
        "client": [None],
        "ttl.default_ttl": [None, 7, 1.5],
        "ttl.refresh_on_read": [True],
        "ttl.sweep_interval_minutes": [None, 7, 1.5, float("inf")],
        "index.dims": [None, 7],
        "index.fields": [None, []],
        "index.embed": [None, "", "\ud800"],
        "ttl.default_tll": [],
        "index.embedder": [],
    }
    for name, allowed in fine.items():
        for value in odd:
            option, _, key = name.partition(".")
            options = {"path": tmp_path / "new", option: {key: value} if key else value}
            if any(value is one or (type(value) is type(one) and value == one) for one in allowed):
                AiochromaStore(**options)
                continue
            with pytest.raises(aiochroma.InvalidInputError, match=key or option):
                AiochromaStore(**options)
    assert not (tmp_path / "new").exists()
