"""Remember, recall, get, forget: what a bot relies on, and what it is told when it asks for nonsense."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from datetime import datetime
from enum import Enum
from types import MappingProxyType

import pytest
from backends import failing_afterwards

import aiochroma
from aiochroma import InvalidInputError, NamespaceSearch, sync
from aiochroma.embedding.words import HashedEmbedder


async def test_a_fact_is_found_in_its_namespace(memory):
    """What was remembered is recalled with its namespace, id, metadata, times, score and timings."""
    id = await memory.remember(
        "Facebook: https://www.facebook.com/ada", namespace="personal", metadata={"kind": "link"}
    )
    await memory.remember("The thesis is due in May", namespace="academic")
    recall = await memory.recall(
        "give me your facebook id", namespaces={"personal": 5, "academic": 2, "style": 1}
    )
    first = recall[0]
    assert (first.id, first.namespace, first.metadata) == (id, "personal", {"kind": "link"})
    assert first.created_at == first.updated_at
    assert not recall.errors
    assert {"embedding", "queue", "total", "search:personal", "search:academic"} <= set(recall.timings)
    assert set(first.explain) == {"text", "own_text", "vector", "recency", "weight"}
    assert "facebook.com/ada" in recall.as_context(max_chars=200)


async def test_the_same_text_is_remembered_once(memory):
    """Remembering a text again refreshes it: same id, same birth, new metadata added to the old."""
    first = await memory.remember("The pin is 1234", metadata={"a": 1})
    before = await memory.get(first)
    second = await memory.remember("The pin is 1234", metadata={"b": 2})
    after = await memory.get(second)
    assert (first, await memory.count()) == (second, 1)
    assert after.created_at == before.created_at
    assert after.updated_at > before.updated_at
    assert after.metadata == {"a": 1, "b": 2}


async def test_opposite_facts_are_both_kept(memory):
    """Near-duplicates stay, and ``similar`` lists them without the memory itself."""
    one = await memory.remember("The cellar door is locked")
    other = await memory.remember("The cellar door is not locked")
    assert [hit.id for hit in await memory.similar(one)] == [other]
    assert not await memory.similar("nobody")


async def test_the_first_memories_of_a_namespace_may_come_at_once(memory, path):
    """Two tasks that make one namespace make one, and so do two memories and a plain collection on it."""
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as other:
        await asyncio.gather(
            *(
                each.remember(f"fact {number}", namespace="new one")
                for number in range(8)
                for each in (memory, other)
            )
        )
        assert await memory.count("new one") == await other.count("new one") == 8
        name = next(entry.name for entry in await memory.client.list_collections())
        plain = await memory.client.get_collection(name, embedding_function=None)
        vector = HashedEmbedder().embed(["zebra crossing"])[0]
        await plain.add(ids=["foreign"], documents=["zebra crossing"], embeddings=[vector])
        assert (await other.recall("zebra", namespaces="new one", k=1))[0].id == "foreign"
        await plain.delete(ids=["foreign"])
        assert "foreign" not in [hit.id for hit in await memory.recall("zebra", mode="text")]


@pytest.mark.this_process
async def test_a_write_that_failed_and_happened_all_the_same_is_found_by_its_words(memory):
    """The error says that nobody knows; whoever searches then finds what Chroma has, also by its words."""
    await memory.remember("the first lake")
    assert len(await memory.recall("lake", mode="text")) == 1
    fault = "Error in compaction: error returned from database: (code: 522) disk I/O error"
    with failing_afterwards(memory.client, "_upsert", fault), pytest.raises(aiochroma.AiochromaError):
        await memory.remember("the second lake")
    found = {hit.text for hit in await memory.recall("lake", mode="text")}
    assert found == {hit.text for hit in await memory.recall("lake", mode="vector")}
    assert "the first lake" in found


async def test_a_namespace_deleted_by_somebody_else_is_empty(memory, path):
    """A namespace that vanished is empty, may be made anew, and works although it was known before."""
    await memory.remember("old fact", namespace="shared")
    assert len(await memory.recall("fact", namespaces="shared")) == 1
    await memory.client.delete_collection("shared")
    assert await memory.get("x", namespace="shared") is None
    await memory.remember("one", namespace="shared")
    await memory.client.delete_collection("shared")
    recall = await memory.recall("fact", namespaces="shared")
    assert (list(recall), recall.errors) == ([], {})
    await memory.remember("new fact", namespace="shared")
    await memory.client.delete_collection("shared")
    await memory.remember("newer fact", namespace="shared")
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as other:
        await other.forget_namespace("shared")
        await other.remember("newest fact", namespace="shared")
    assert [hit.text for hit in await memory.recall("fact", namespaces="shared")] == ["newest fact"]
    assert await memory.count() == 1


async def test_what_does_not_exist_is_empty(memory):
    """A namespace that nobody has written to is no error in any call."""
    assert not await memory.recall("anything", namespaces=["nowhere", "not here"])
    assert not await memory.recall("anything")
    assert await memory.get("x", namespace="nowhere") is None
    assert await memory.update("x", text="new", namespace="nowhere") is None
    assert await memory.pin("x", namespace="nowhere") is None
    assert await memory.forget("x", namespace="nowhere") == 0
    assert await memory.forget_namespace("nowhere") == 0
    assert await memory.sweep() == await memory.count() == await memory.count("nowhere") == 0
    assert await memory.namespaces() == await memory.history() == []


async def test_one_failing_namespace_loses_nothing_of_the_others(memory, path, letters):
    """A namespace that cannot be searched is among the errors, and the others' hits are there."""
    await memory.remember("alpha fact", namespace="good")
    async with aiochroma.Memory(path, embedder=letters()) as other:
        await other.remember("beta fact", namespace="strange")
    recall = await memory.recall("fact", namespaces={"good": 3, "strange": 3})
    assert [hit.text for hit in recall] == ["alpha fact"]
    assert isinstance(recall.errors["strange"], aiochroma.EmbedderMismatchError)


async def test_another_embedder_is_refused_by_name(memory, path, letters):
    """Vectors of two embedders never meet; the message names both."""
    await memory.remember("a fact")
    async with aiochroma.Memory(path, embedder=letters()) as other:
        for call in (other.recall("fact", namespaces="default"), other.remember("more")):
            with pytest.raises(aiochroma.EmbedderMismatchError, match=r"hashed-ngrams.*letters"):
                await call


async def test_what_compares_no_vectors_works_with_another_embedder(memory, path, letters, tmp_path):
    """Another embedder's namespace is counted and exported, its memories are looked up, pinned and given other metadata;
    recalling it, and all that needs vectors, stays refused."""
    await memory.remember("a fact", id="x")
    file = tmp_path / "out.jsonl"
    async with aiochroma.Memory(path, embedder=letters()) as other:
        assert (await other.get("x")).text == "a fact"
        assert [hit.id for hit in await other.get_many(["x", "y"])] == ["x"]
        assert (await other.pin("x")).pinned
        assert (await other.update("x", metadata={"k": 1}, ttl=60)).metadata == {"k": 1}
        with pytest.raises(aiochroma.EmbedderMismatchError):
            await other.update("x", text="another fact")
        assert await other.count() == await other.count("default") == 1
        assert await other.export(file) == await other.export(file, namespaces="default") == 1
        for call in (other.remember("more"), other.similar("x"), other.recall("a", namespaces="default")):
            with pytest.raises(aiochroma.EmbedderMismatchError):
                await call
        await other.client.create_collection("foreign", metadata={"of": "another program"})
        with pytest.raises(aiochroma.EmbedderMismatchError, match="unknown embedder"):
            await other.count("foreign")


async def test_k_counts_for_each_namespace(memory):
    """Every namespace gives as many hits as it was asked for, and no more."""
    for name in ("one", "two"):
        await memory.remember_many((f"{name} fact number {n}" for n in range(80)), namespace=name)
    for k in (1, 7, 60, 80):
        recall = await memory.recall("number", namespaces={"one": k, "two": NamespaceSearch(k=2)})
        assert [hit.namespace for hit in recall].count("one") == k
        assert [hit.namespace for hit in recall].count("two") == 2


def _nested(levels):
    """Return a filter in that many others."""
    where = {"n": 1}
    for _ in range(levels):
        where = {"$and": [where, {"n": 1}]}
    return where


_BAD = [
    ("remember", [""], {}, "blank"),
    ("remember", [" \n"], {}, "blank"),
    ("remember", [7], {}, "`text` must be a string, got int"),
    ("remember", ["half \ud800 pair"], {}, "surrogate"),
    ("remember", ["a"], {"id": 3}, "`id`.*got 3"),
    ("remember", ["a"], {"id": ""}, "`id`"),
    ("remember", ["a\0b"], {}, "NUL character at position 1"),
    ("remember", ["a"], {"id": "a\0b"}, "`id`.*NUL character at position 1"),
    ("remember", ["a"], {"metadata": {"k": "ab\0"}}, "'k'.*NUL character at position 2"),
    ("remember", ["a"], {"metadata": {"\0": 1}}, "NUL character at position 0"),
    ("remember", ["a"], {"namespace": "a\0"}, "`namespace`.*NUL"),
    ("remember", ["a"], {"scope": ("a", "\0")}, "`scope`.*NUL"),
    ("remember", ["a"], {"thread": "\0"}, "`thread`.*NUL"),
    ("remember", ["a"], {"metadata": {f"k{n}": n for n in range(6000)}}, "6,000 values.*5,400"),
    ("remember", ["a"], {"namespace": " "}, "`namespace`"),
    ("remember", ["a"], {"namespace": "\udfff"}, "`namespace`.*surrogate"),
    ("remember", ["a"], {"metadata": {"k": {"deep": 1}}}, "'k'.*dict"),
    ("remember", ["a"], {"metadata": {"k": None}}, "'k'"),
    ("remember", ["a"], {"metadata": {"k": math.nan}}, "'k'.*finite"),
    ("remember", ["a"], {"metadata": {"k": 2**63}}, "64 bits"),
    ("remember", ["a"], {"metadata": {"aiochroma:x": 1}}, "aiochroma:x"),
    ("remember", ["a"], {"metadata": [1]}, "`metadata`"),
    ("remember", ["a"], {"ttl": 0}, "`ttl`"),
    ("remember", ["a"], {"dedupe": "no"}, "`dedupe`.*'no'"),
    ("remember_many", [["a"]], {"dedupe": 1}, "`dedupe`"),
    ("remember", ["a"], {"ttl": 1, "expires_at": 2}, "both"),
    ("remember", ["a"], {"ttl": 1e300}, r"`ttl`.*1e\+300"),
    ("remember", ["a"], {"pinned": "no"}, "`pinned`.*'no'"),
    ("remember", ["a"], {"expires_at": 1e300}, "no date"),
    ("remember", ["a"], {"created_at": datetime.min}, "created_at.*no date"),
    ("remember", ["a"], {"ttl": 10**400}, "ttl.*finite"),
    ("recall", ["a"], {"since": datetime.min}, "`since`.*no date"),
    ("recall", ["a"], {"vector_weight": 10**400}, "vector_weight"),
    ("recall", ["a"], {"half_life": 10**400}, "half_life"),
    ("recall", ["a"], {"max_distance": 10**400}, "max_distance"),
    ("recall", ["a"], {"where": _nested(500)}, "levels"),
    ("remember", ["a"], {"position": math.inf}, "`position`"),
    ("remember", ["a"], {"thread": 5}, "`thread`"),
    ("remember_many", ["one text"], {}, "several texts"),
    ("remember_many", [["fine", {"tekst": "a"}]], {}, r"items\[1\]"),
    ("remember_many", [["fine", ""]], {}, r"items\[1\].*blank"),
    ("remember_many", [["a"]], {"thread": ["x"]}, r"`thread`.*\['x'\]"),
    ("remember_many", [["a"]], {"thread": 5}, "`thread`.*5"),
    ("remember_many", [["a"]], {"thread": ""}, "`thread`"),
    ("remember_many", [["a"]], {"thread": "\ud800"}, "`thread`.*surrogate"),
    ("update", ["x"], {"text": " "}, "blank"),
    ("recall", [""], {}, "`query`"),
    ("recall", ["a"], {"k": 0}, "`k`.*0"),
    ("recall", ["a"], {"k": True}, "`k`"),
    ("recall", ["a"], {"k": 2**32}, "`k`.*1,000,000"),
    ("recall", ["a"], {"namespaces": {"n": 0}}, r"namespaces\['n'\]"),
    ("recall", ["a"], {"namespaces": 5}, "`namespaces`"),
    ("recall", ["a"], {"max_distance": -1}, "`max_distance`"),
    ("recall", ["a"], {"mode": "magic"}, "`mode`"),
    ("recall", ["a"], {"where": {"a": 1, "b": 2}}, "`where`"),
    ("recall", ["a"], {"where": {"a": {"$like": 1}}}, "`where`"),
    ("recall", ["a"], {"diversity": 2}, "`diversity`"),
    ("recall", ["a"], {"vector_weight": math.nan}, "`vector_weight`"),
    ("recall", ["a"], {"window": -1}, "`window`"),
    ("recall", ["a"], {"window": 51}, "`window`.*50"),
    ("recall", ["a"], {"half_life": 0}, "`half_life`"),
    ("recall", ["a"], {"since": "yesterday"}, "`since`"),
    ("forget", [], {}, "`forget` needs"),
    ("forget", ["x"], {"where": {"a": 1}}, "`forget` needs"),
    ("get", [None], {}, "`id`"),
    ("similar", ["x"], {"k": 0}, "`k`"),
    ("history", [], {"limit": 0}, "`limit`"),
    ("import_", ["no-such.jsonl"], {}, "no-such"),
    ("import_", ["no-such.docx"], {}, "docx"),
]


@pytest.mark.parametrize(("method", "values", "arguments", "message"), _BAD)
async def test_bad_input_is_named_before_anything_is_written(memory, method, values, arguments, message):
    """Each wrong argument is named with the offending element, also where the memory degrades; nothing is written."""
    with pytest.raises(InvalidInputError, match=message):
        await getattr(memory, method)(*values, **arguments)
    assert await memory.namespaces() == []


_BAD_FILTERS = [
    ({"a": None}, "'a'.*NoneType"),
    ({"a": {"$ne": None}}, "'[$]ne' of 'a'.*NoneType"),
    ({"a": {"$in": ["x", None]}}, "'[$]in' of 'a'.*NoneType"),
    ({"a": math.inf}, "'a'.*finite"),
    ({"a": {"$gt": math.nan}}, "'[$]gt' of 'a'.*finite"),
    ({"a": {"$nin": [1.0, -math.inf]}}, "'[$]nin' of 'a'.*finite"),
    ({"a": 2**63}, "64 bits"),
    ({"a": {"$lte": -(2**63) - 1}}, "64 bits"),
    ({"a": "\ud800"}, "surrogate"),
    ({"\ud800": 1}, "surrogate"),
    ({"a": {"$in": ["\ud800"]}}, "surrogate"),
    ({"a": b"x"}, "bytes"),
    ({"a": [1]}, "list"),
    ({"a": {"$eq": {"b": 1}}}, "dict"),
    ({"a": {"$ne": [1]}}, "list"),
    ({"a": {"$in": []}}, "something in it"),
    ({"a": {"$nin": ("x",)}}, "list"),
    ({"a": {"$in": [1, 1.0]}}, "one type"),
    ({"a": {"$in": [1, True]}}, "one type"),
    ({"a": {"$in": ["x", 1]}}, "one type"),
    ({"a": {"$gt": True}}, "number"),
    ({"a": {"$gte": "x"}}, "number"),
    ({"$and": [{"a": 1}, {"b": None}]}, "'b'.*NoneType"),
    ({"$or": [{"b": b"x"}]}, "'b'.*bytes"),
    ({"$or": []}, "list of filters"),
    ({"#document": "x"}, "#document"),
]


@pytest.mark.parametrize(("where", "message"), _BAD_FILTERS)
async def test_a_filter_that_chroma_refuses_is_refused_at_once(memory, where, message):
    """Whoever would filter: recall, one namespace's search and forget say what is wrong, and nothing is forgotten."""
    await memory.remember("a fact", metadata={"a": 1})
    with pytest.raises(InvalidInputError, match=message):
        await memory.recall("fact", where=where)
    with pytest.raises(InvalidInputError, match=message):
        NamespaceSearch(where=where)
    with pytest.raises(InvalidInputError, match=message):
        await memory.forget(where=where)
    assert await memory.count() == 1


class Kind(str, Enum):
    """What people who list their values write filters with."""

    NOTE = "note"


@pytest.mark.parametrize(
    "where",
    [
        {"kind": "note"},
        {"kind": Kind.NOTE},
        {"kind": {"$in": [Kind.NOTE, "memo"]}},
        {"$and": [{"kind": "note"}]},
        {"$or": [{"$and": [{"size": {"$gte": 1}}]}]},
        {"$and": [{"$or": [{"kind": "note"}]}, {"size": 1}]},
        {"yes": {"$in": [True]}},
        {"size": {"$in": [1.0, 2.5]}},
        {"size": {"$lt": 1e300}},
        {"size": {"$nin": [-(2**63), 2**63 - 1]}},
        MappingProxyType({"size": MappingProxyType({"$gt": 0})}),
        {"$and": [MappingProxyType({"kind": "note"}), MappingProxyType({"size": 1})]},
    ],
)
async def test_a_filter_means_the_same_to_recall_and_forget(memory, where):
    """A recall filters here and ``forget`` lets Chroma filter: the memory that passes is found, then forgotten."""
    await memory.remember("one fact", id="passes", metadata={"kind": "note", "size": 1, "yes": True})
    assert [hit.id for hit in await memory.recall("fact", where=where)] == ["passes"]
    assert await memory.forget(where=where) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"on_failure": "ignore"},
        {"timeout": 0},
        {"embedder": 5},
        {"sweep_every": -1},
        {"sweep_every": True},
        {"history": "yes"},
        {"durable": 1},
        {"client": "./memory"},
        {"settings": {"anonymized_telemetry": False}},
    ],
)
def test_bad_options_are_refused(arguments):
    """A memory says at once which of its options is wrong."""
    with pytest.raises(InvalidInputError, match=f"`{next(iter(arguments))}`"):
        aiochroma.Memory(**arguments)


async def test_a_text_that_embeds_to_nothing_is_refused(path):
    """A zero or wrongly sized vector, or one that is no number, is an error before anything is written."""
    vectors = {"zero": [0.0, 0.0], "nan": [float("nan"), 1.0], "long": [1.0, 2.0, 3.0], "fine": [1.0, 0.0]}

    def embed(texts):
        return [vectors.get(text, [1.0, 1.0]) for text in texts]

    async with aiochroma.Memory(path, embedder=embed) as memory:
        await memory.remember("fine")
        for text, kind in (
            ("zero", InvalidInputError),
            ("nan", aiochroma.EmbeddingFailedError),
            ("long", aiochroma.EmbeddingFailedError),
        ):
            with pytest.raises(kind, match=text):
                await memory.remember_many(["fine too", text])
        assert await memory.count() == 1
        # A question without a direction is still asked by its words.
        assert [hit.text for hit in await memory.recall("zero fine")] == ["fine"]


async def test_asynchronous_embedders_work(path):
    """An asynchronous callable is awaited on its caller's loop."""

    async def embed(texts):
        await asyncio.sleep(0)
        return [[float(len(text)), 1.0] for text in texts]

    async with aiochroma.Memory(path, embedder=embed) as memory:
        await memory.remember_many(["one", "twenty-two"])
        assert (await memory.recall("six", k=1, mode="vector"))[0].text == "one"


async def test_degraded_results_are_empty_and_say_why(tmp_path):
    """Over a path that is a file every call gives something empty with the reason, and wrong arguments are still raised."""
    file = tmp_path / "file"
    file.write_text("not a directory")
    async with aiochroma.Memory(file, embedder=HashedEmbedder(), on_failure="degrade") as memory:
        for result in (
            await memory.recall("anything"),
            await memory.similar("x"),
            await memory.get("x"),
            await memory.get_many(["x"]),
            await memory.list(),
            await memory.update("x", text="y"),
            await memory.pin("x"),
            await memory.remember("fact"),
            await memory.remember_many(["fact"]),
            await memory.remember_messages([{"role": "user", "content": "hi"}], thread="t"),
            await memory.forget("x"),
            await memory.forget_many(["x"]),
            await memory.forget_namespace("x"),
            await memory.sweep(),
            await memory.namespaces(),
            await memory.count(),
            await memory.history(),
            await memory.export(tmp_path / "out.jsonl"),
            await memory.import_(tmp_path),
        ):
            assert not result
            assert isinstance(result.error, aiochroma.StoreUnavailableError)
        with pytest.raises(aiochroma.StoreUnavailableError):
            async for _ in memory.list():
                pass
        with pytest.raises(InvalidInputError):
            await memory.remember("")


async def test_wrong_input_that_shows_late_is_raised_although_a_memory_degrades(path):
    """What only the embedder shows is the caller's mistake all the same, which an empty result would hide."""

    def embed(texts):
        return [[0.0, 0.0] if text == "zero" else [1.0, 1.0] for text in texts]

    async with aiochroma.Memory(path, embedder=embed, on_failure="degrade") as memory:
        await memory.remember("fine")
        with pytest.raises(InvalidInputError, match="zero"):
            await memory.remember("zero")
        with pytest.raises(InvalidInputError, match="zero"):
            await memory.recall("zero", mode="vector")


async def test_results_that_are_there_have_no_error(memory):
    """What tells an outage from "there is none" is None wherever there was no outage."""
    id = await memory.remember("a fact")
    for result in (id, await memory.count(), await memory.forget("x"), await memory.namespaces()):
        assert result.error is None
    assert (await memory.recall("fact")).error is None
    assert await memory.get("x") is None


async def test_a_closed_memory_says_so(path, embedder):
    """Not open yet and closed are different messages."""
    memory = aiochroma.Memory(path, embedder=embedder)
    with pytest.raises(aiochroma.ClosedError, match="not open yet"):
        await memory.remember("fact")
    await memory.aclose()
    with pytest.raises(aiochroma.ClosedError, match="is closed"):
        await memory.remember("fact")


def test_the_blocking_twin_has_the_same_methods_and_parameters():
    """Whatever the asynchronous memory offers, the blocking one offers with the same parameters."""

    def offered(kind):
        return {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}

    one, other = offered(aiochroma.Memory), offered(sync.Memory)
    assert set(one) - {"aclose"} == set(other) - {"asynchronous"}
    for name in set(one) & set(other) - {"client"}:
        mine, theirs = (inspect.signature(entry[name]).parameters for entry in (one, other))
        assert list(mine.values()) == list(theirs.values()), name
    mine, theirs = (inspect.signature(kind.__init__).parameters for kind in (aiochroma.Memory, sync.Memory))
    assert [(p.name, p.kind, p.default) for p in mine.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_the_blocking_twin_does_what_the_other_does(path, embedder, tmp_path):
    """Every call works without an event loop, with the same results."""
    with sync.Memory(path, embedder=embedder, history=True) as memory:
        id = memory.remember("The pin is 1234", thread="t")
        progress = []
        memory.remember_many((f"fact {n}" for n in range(300)), thread="t", progress=progress.append)
        assert progress == [256, 300]
        assert memory.recall("pin 1234", k=1, window=2)[0].id == id
        assert memory.update(id, text="The pin is 4321").text == "The pin is 4321"
        assert memory.pin(id)
        assert memory.similar(id, k=2)
        assert memory.export(tmp_path / "out.jsonl") == memory.count() == 301
        assert memory.forget(id) == 1
        assert memory.import_(tmp_path / "out.jsonl") == 301
        assert memory.get(id).pinned
        assert [change.action for change in memory.history(id)] == [
            "remember",
            "forget",
            "pin",
            "update",
            "remember",
        ]
        with pytest.raises(InvalidInputError, match=r"items\[1\]"):
            memory.remember_many(["fine", ""])
        assert memory.forget_namespace("default") == 301


async def test_the_blocking_twin_refuses_a_loop(path, embedder):
    """On a thread whose loop would stand still the blocking memory refuses."""
    memory = sync.Memory(path, embedder=embedder)
    with pytest.raises(aiochroma.BlockingCallError, match="event loop"):
        memory.count()
    await asyncio.to_thread(memory.close)


async def test_the_environment_says_where(path, embedder, monkeypatch):
    """``from_env`` opens what CHROMA_MODE and CHROMA_DB_PATH say, for both kinds of memory."""
    monkeypatch.setenv("CHROMA_MODE", "persistent")
    monkeypatch.setenv("CHROMA_DB_PATH", str(path))
    async with aiochroma.Memory.from_env(embedder=embedder) as memory:
        await memory.remember("fact")
    assert (path / "chroma.sqlite3").is_file()

    def blocking():
        with sync.Memory.from_env(embedder=embedder) as other:
            return other.count()

    assert await asyncio.to_thread(blocking) == 1
    monkeypatch.setenv("CHROMA_MODE", "oracle")
    with pytest.raises(InvalidInputError, match="CHROMA_MODE"):
        await aiochroma.Memory.from_env(embedder=embedder).open()


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
async def test_a_lowest_score_leaves_out_what_is_below(memory, mode):
    """A number cuts hits, "auto" gives none where the best one is not about the question; anything else is refused."""
    await memory.remember_many(["The boat is at the lake.", "Seven apples, and a violin."], namespace="n")
    every = await memory.recall("where is the boat?", namespaces="n", mode=mode)
    best = await memory.recall("where is the boat?", namespaces="n", mode=mode, min_score=every[0].score)
    assert [hit.id for hit in best] == [every[0].id]
    own = NamespaceSearch(k=5, min_score=every[0].score)
    assert len(await memory.recall("where is the boat?", namespaces={"n": own}, mode=mode)) == 1
    assert not await memory.recall("quantum chromodynamics", namespaces="n", mode=mode, min_score="auto")
    with pytest.raises(InvalidInputError, match="`min_score`"):
        await memory.recall("boat", min_score="high")


class Unspeakable:
    """A value that cannot be shown, compared, taken for true or false, or used as a key."""

    __hash__ = None

    def __repr__(self):
        raise RuntimeError("not to be shown")

    __eq__ = __bool__ = __repr__


@pytest.mark.parametrize(
    "value", [10**5000, Unspeakable(), " " * 1_000_000, [0] * 1_000_000], ids=["huge", "odd", "blank", "long"]
)
@pytest.mark.parametrize(
    "name",
    ["k", "mode", "max_distance", "where", "half_life", "since", "query"],
)
async def test_a_message_about_any_value_is_short(memory, name, value):
    """Python writes no integer of more than 4,300 digits, and an argument may be a million blanks, or anything at all."""
    with pytest.raises(InvalidInputError, match=f"`{name}`") as caught:
        await memory.recall(**{"query": "tea", name: {"$and": value} if name == "where" else value})
    assert len(str(caught.value)) < 600
    if name in {"k", "where"}:
        with pytest.raises(InvalidInputError, match="metadata") as caught:
            await memory.remember("tea", metadata={"key": value, "bad": math.nan})
        assert len(str(caught.value)) < 600


async def test_lists_in_metadata(memory, path, embedder):
    """A list of one kind is stored, found by what it holds, changed and taken away; anything else is refused by name."""
    await memory.remember("a kettle", id="k", metadata={"tags": ["red", "old"], "sizes": [1, 2]})
    await memory.remember("a lamp", id="l", metadata={"tags": ["new"], "sizes": [2.5], "on": [True]})
    await memory.remember("a chair", id="c", metadata={"tags": "red"})

    async def holding(where):
        return sorted(hit.id for hit in await memory.recall("things", where=where))

    assert await holding({"tags": {"$contains": "red"}}) == ["k"]
    assert await holding({"tags": {"$not_contains": "red"}}) == ["c", "l"]
    assert await holding({"tags": "red"}) == ["c"]
    assert await holding({"$and": [{"sizes": {"$contains": 2}}, {"tags": {"$contains": "old"}}]}) == ["k"]
    assert await holding({"on": {"$contains": True}}) == ["l"]
    # What callers get is their own, also where their questions were answered together.
    one, other = await asyncio.gather(memory.recall("kettle", k=1), memory.recall("a kettle", k=1))
    one[0].metadata["tags"].append("mine")
    assert other[0].metadata["tags"] == ["red", "old"]
    assert (await memory.update("k", metadata={"tags": ["blue"], "sizes": None})).metadata == {
        "tags": ["blue"]
    }
    assert (await memory.get("k")).metadata == {"tags": ["blue"]}
    assert await holding({"tags": {"$contains": "red"}}) == []
    for wrong in ([], [1, "a"], [True, 1], [1, 2.0], [None], [["a"]], ("a",), [float("nan")], ["\0"]):
        with pytest.raises(InvalidInputError, match="tags"):
            await memory.remember("a kettle", metadata={"tags": wrong})
    with pytest.raises(InvalidInputError, match=r"\$contains"):
        await memory.recall("things", where={"tags": {"$contains": ["a"]}})
    await memory.client.close()
    async with aiochroma.Memory(path, embedder=embedder) as again:
        assert (await again.get("k")).metadata == {"tags": ["blue"]}
        assert (await again.get("l")).metadata == {"tags": ["new"], "sizes": [2.5], "on": [True]}
        assert (await again.recall("things", where={"tags": {"$contains": "blue"}}))[0].id == "k"


async def test_lists_of_what_was_forgotten_are_not_shown_in_later_memories(memory):
    """Chroma leaves those of a collection that is deleted, and shows them in records that come later."""
    await memory.remember_many(
        [{"text": f"note {n}", "metadata": {"tags": ["secret"]}} for n in range(20)], namespace="gone"
    )
    await memory.forget_namespace("gone")
    await memory.remember_many([f"another {n}" for n in range(20)], namespace="new")
    collection = await memory.client.get_collection("new")
    assert all("tags" not in metadata for metadata in (await collection.get())["metadatas"])


BOUNDS = {
    "text": ({"text": "x" * 1_000_001}, "1,000,001 bytes"),
    "metadata": (
        {"text": "x", "metadata": {"a": "x" * 600_000, "b": ["x" * 300_000] * 2}},
        "1,200,002 bytes",
    ),
    "id": ({"text": "x", "id": "x" * 1_000_001}, "1,000,001 bytes"),
    "thread": ({"text": "x", "thread": "x" * 1_000_001}, "1,000,001 bytes"),
    "scope": ({"text": "x", "scope": ("a", "x" * 1_000_001)}, "1,000,001 bytes"),
}


@pytest.mark.parametrize("case", BOUNDS)
async def test_what_everybody_would_wait_for_is_refused(memory, tmp_path, case):
    """A text, and all metadata of a memory, have a bound, wherever they come in; nothing is written."""
    item, message = BOUNDS[case]
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps(item))
    calls = [
        lambda: memory.remember(**item),
        lambda: memory.remember_many([item]),
        lambda: memory.import_(file),
    ]
    if case == "text":
        message_item = {"role": "user", "content": item["text"]}
        calls += [
            lambda: memory.remember_messages([message_item], thread="t"),
            lambda: memory.update("x", text=item["text"]),
            lambda: memory.recall(item["text"]),
        ]
    if case == "metadata":
        calls.append(lambda: memory.update("x", metadata=item["metadata"]))
    for call in calls:
        with pytest.raises(InvalidInputError, match=message):
            await call()
    with pytest.raises(InvalidInputError, match="bytes"):
        await memory.remember("x", namespace="n" * 1_000_001)
    assert await memory.count() == 0


async def test_very_many_names_and_ids(memory):
    """Those that exist are found among thousands that do not, with a number of requests that does not follow theirs."""
    await memory.remember_many([{"text": f"note {n}", "id": f"id {n}"} for n in range(30)], namespace="here")
    await memory.remember("note 1", namespace="there")
    names = [f"nowhere {n}" for n in range(20_000)]
    before = memory.client.stats().submitted
    recall = await memory.recall("note 1", namespaces=["here", *names, "there"], k=1)
    assert {hit.namespace for hit in recall} == {"here", "there"}
    assert recall.errors == {}
    assert memory.client.stats().submitted - before < 10
    ids = [f"unknown {n}" for n in range(50_000)]
    assert [hit.id for hit in await memory.get_many([*ids, "id 7"], namespace="here")] == ["id 7"]
    assert await memory.forget_many([*ids, "id 7"], namespace="here") == 1
    assert await memory.count("here") == 29
