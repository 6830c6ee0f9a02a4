"""A memory on a server finds what an embedded one finds, whoever else writes to the server."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import PATIENCE

import aiochroma
from aiochroma import sync
from aiochroma.embedding.words import HashedEmbedder
from aiochroma.memory.vectors import Splitter
from aiochroma.records import server_index
from aiochroma.records.record import UPDATED_AT, chunks_name, collection_name

PATIENT = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
CHANCE = random.Random(13)
WORDS = ["apple", "old", *("".join(CHANCE.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(60))]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
BEGUN = 1_700_000_000
_names = itertools.count()


@pytest.fixture
def namespace(name):
    return f"memories of {name}"


@pytest.fixture
async def memory(server):
    """A memory on the server."""
    async with (
        await aiochroma.AsyncHttpClient("127.0.0.1", server.port) as client,
        aiochroma.Memory(client=client, embedder=HashedEmbedder()) as opened,
    ):
        yield opened


@pytest.fixture
async def other(relay):
    """A memory on the same server that shares nothing with the first, as one of another process."""
    async with (
        await aiochroma.AsyncHttpClient("127.0.0.1", relay.port) as client,
        aiochroma.Memory(client=client, embedder=HashedEmbedder()) as opened,
    ):
        yield opened


@pytest.fixture
async def foreign(relay, namespace):
    """Return the namespace's collection as any program sees it."""
    async with await aiochroma.AsyncHttpClient("127.0.0.1", relay.port) as client:
        yield lambda: client.get_collection(collection_name(namespace), embedding_function=None)


def same(served, embedded):
    """Compare recalls: a server keeps numbers a little less exactly, so equally good memories may change places."""
    assert served.errors == {}
    assert served.indexing == {}
    scores = [hit.score for hit in embedded]
    assert [hit.score for hit in served] == pytest.approx(scores, abs=1e-4)
    # Of those that are as good as the last one, others may have been left out.
    sure = [
        {hit.id for hit in one if hit.score > min(scores, default=0) + 2e-4} for one in (served, embedded)
    ]
    assert sure[0] == sure[1]
    others = {hit.id: hit for hit in embedded}
    for hit in served:
        other = others.get(hit.id)
        if other is not None:
            assert (hit.text, hit.metadata, hit.thread) == (other.text, other.metadata, other.thread)
            assert hit.distance == (
                None if other.distance is None else pytest.approx(other.distance, abs=1e-4)
            )
            near = [[one.id for one in (*entry.before, *entry.after)] for entry in (hit, other)]
            assert near[0] == near[1]


async def texts(memory, query, namespace, **more):
    return sorted(hit.text for hit in await memory.recall(query, namespaces=namespace, k=300, **more))


async def until(check):
    """Return when something has become true."""
    end = time.monotonic() + PATIENCE
    while not await check():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


@contextmanager
def both(server):
    """A memory on the server and an embedded one with the same 300 memories."""
    items = [
        {
            # Of lengths of their own, so that hardly any two are equally good.
            "text": " ".join(CHANCE.choices(WORDS, k=CHANCE.randint(3, 16))),
            "id": f"m{n}",
            "created_at": BEGUN + n * 3600,
            "metadata": {"size": n % 6, **({"kind": "abc"[n % 3]} if n % 5 else {})},
            **({"thread": f"t{n % 4}"} if n % 3 else {}),
            **({"scope": ("acme", f"user-{n % 2}")} if n % 7 == 0 else {}),
        }
        for n in range(300)
    ]
    with (
        sync.HttpClient("127.0.0.1", server.port) as client,
        sync.Memory(client=client, embedder=HashedEmbedder()) as served,
        sync.Memory(None, embedder=HashedEmbedder()) as embedded,
    ):
        for memory in (served, embedded):
            memory.remember_many(items, namespace="both")
            memory.update("m7", namespace="both", expires_at=1)
            memory.pin("m8", namespace="both")
        yield served, embedded


QUESTIONS = st.fixed_dictionaries(
    {
        "query": TEXTS,
        "mode": st.sampled_from(["hybrid", "vector", "text"]),
        "k": st.integers(1, 20),
        "where": st.sampled_from([None, {"size": {"$lt": 3}}, {"kind": "a"}, {"kind": {"$ne": "b"}}]),
    },
    optional={
        "thread": st.just("t1"),
        "scope": st.just("acme"),
        "window": st.just(2),
        "diversity": st.just(0.5),
        "since": st.just(BEGUN + 400_000),
        "half_life": st.just(1e8),
        "min_score": st.just("auto"),
    },
)


def test_a_recall_on_a_server_equals_an_embedded_one(server):
    """The same hits in the same order, with the same scores, distances and neighbours."""
    with both(server) as (served, embedded):

        @given(QUESTIONS)
        @settings(max_examples=80, **PATIENT)
        def equals(asked):
            same(served.recall(namespaces="both", **asked), embedded.recall(namespaces="both", **asked))

        equals()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["remember", "update", "forget", "expire"]),
        st.integers(0, 1),
        st.integers(0, 7),
        TEXTS,
    ),
    max_size=12,
)


@given(STEPS, TEXTS)
@settings(max_examples=12, **PATIENT)
def test_whatever_two_clients_do_both_find_what_is_there(server, relay, steps, query):
    """After every step of either, both clients find what a memory finds that did all of it by itself."""
    namespace = f"steps {next(_names)}"
    with (
        sync.HttpClient("127.0.0.1", server.port) as one,
        sync.HttpClient("127.0.0.1", relay.port) as two,
        sync.Memory(client=one, embedder=HashedEmbedder()) as first,
        sync.Memory(client=two, embedder=HashedEmbedder()) as second,
        sync.Memory(None, embedder=HashedEmbedder()) as embedded,
    ):
        for number, (step, who, id, text) in enumerate(steps):
            for memory in ((first, second)[who], embedded):
                if step == "remember":
                    made = BEGUN + number
                    memory.remember(text, id=f"m{id}", namespace=namespace, created_at=made)
                elif step == "update":
                    memory.update(f"m{id}", namespace=namespace, text=text)
                elif step == "forget":
                    memory.forget(f"m{id}", namespace=namespace)
                else:
                    memory.update(f"m{id}", namespace=namespace, expires_at=1)
            wanted = embedded.recall(query, namespaces=namespace)
            same(first.recall(query, namespaces=namespace), wanted)
            same(second.recall(query, namespaces=namespace), wanted)


async def test_writers_at_the_same_time(memory, other, namespace):
    """While two clients write, change and forget, recalls answer; afterwards both find exactly what is there."""

    async def write(memory, mark):
        ids = await memory.remember_many([f"{mark} apple {n}" for n in range(40)], namespace=namespace)
        for n, id in enumerate(ids):
            if n % 4 == 0:
                await memory.forget(id, namespace=namespace)
            elif n % 4 == 1:
                await memory.update(id, text=f"{mark} changed apple {n}", namespace=namespace)
            assert (await memory.recall("apple", namespaces=namespace)).errors == {}

    await asyncio.gather(write(memory, "one"), write(other, "two"))
    wanted = sorted(
        f"{mark} {'changed ' if n % 4 == 1 else ''}apple {n}"
        for mark in ("one", "two")
        for n in range(40)
        if n % 4
    )
    for reader in (memory, other):
        assert await texts(reader, "apple", namespace, mode="text") == wanted


async def test_a_recall_asks_what_changed_and_nothing_else(other, relay, namespace):
    """Once a namespace was read, a recall counts and asks for changes: no vectors and no candidates travel."""
    await other.remember_many([f"apple {n}" for n in range(30)], namespace=namespace)
    await other.recall("apple", namespaces=namespace)
    await other.recall("apple", namespaces=namespace)
    relay.seen.clear()
    assert len(await other.recall("apple 7", namespaces=namespace)) == 5
    assert relay.count("query") == 0
    assert relay.count("count") == 1
    assert 1 <= relay.count("get") <= 2


async def test_what_others_delete_is_gone_although_the_number_is_the_same(memory, namespace, foreign):
    """One is deleted and another written by a program that stamps nothing, or stamps it long ago."""
    await memory.remember_many(["old apple", "apple tree"], namespace=namespace)
    assert await texts(memory, "apple", namespace) == ["apple tree", "old apple"]
    collection = await foreign()
    vector = HashedEmbedder().embed(["apple pie"])
    await collection.delete(where_document={"$contains": "old"})
    assert await texts(memory, "apple", namespace) == ["apple tree"]
    await collection.upsert("pie", embeddings=vector, documents="apple pie", metadatas={"a": 1})
    assert await texts(memory, "apple", namespace) == ["apple pie", "apple tree"]


async def test_clocks_of_others(memory, namespace, foreign):
    """One clock is an hour ahead, one half a minute behind, one ten minutes: what each changes is found."""
    ids = await memory.remember_many([f"apple {n}" for n in range(20)], namespace=namespace)
    assert len(await texts(memory, "apple", namespace)) == 20
    collection = await foreign()

    async def write(id, text, clock):
        stamped = {UPDATED_AT: time.time() + clock}
        vector = np.asarray(HashedEmbedder().embed([text]))
        await collection.upsert(id, embeddings=vector, documents=text, metadatas=stamped)

    async def is_found(text):
        return text in await texts(memory, "apple", namespace)

    await write(ids[0], "apple ahead", 3600)
    assert await is_found("apple ahead")
    await write(ids[1], "apple half a minute", -30)
    await until(partial(is_found, "apple half a minute"))
    await write("late", "apple of a late clock", -600)
    assert await is_found("apple of a late clock")
    await write(ids[2], "apple changed by a late clock", -600)
    await until(partial(is_found, "apple changed by a late clock"))
    assert len(await texts(memory, "apple", namespace)) == 21


async def test_what_this_client_writes_past_the_memory_is_found(memory, namespace):
    """A write through the client's own collection carries no stamp, and is followed all the same."""
    id = await memory.remember("apple", namespace=namespace)
    assert await texts(memory, "apple", namespace) == ["apple"]
    collection = await memory.client.get_collection(collection_name(namespace), embedding_function=None)
    vector = HashedEmbedder().embed(["violin"])
    await collection.update(ids=[id], documents=["violin"], embeddings=vector)
    assert await texts(memory, "violin", namespace) == ["violin"]


async def test_a_namespace_that_another_client_makes_again(memory, other, namespace):
    """It was forgotten with all that it held; what is in its successor is found."""
    await memory.remember("apple tree", namespace=namespace)
    assert await texts(memory, "apple", namespace) == ["apple tree"]
    await other.forget_namespace(namespace)
    await other.remember("apple pie", namespace=namespace)
    assert await texts(memory, "apple", namespace) == ["apple pie"]


async def test_a_namespace_that_is_too_large_says_so(relay, namespace, monkeypatch):
    """It is answered from candidates of the server, and the recall says why; a small one beside it is not affected."""
    monkeypatch.setattr(server_index, "ServerIndex", partial(server_index.ServerIndex, most=20))
    async with (
        await aiochroma.AsyncHttpClient("127.0.0.1", relay.port) as client,
        aiochroma.Memory(client=client, embedder=HashedEmbedder()) as memory,
    ):
        await memory.remember_many([f"apple {n}" for n in range(30)], namespace=namespace)
        await memory.remember("apple pie", namespace=f"{namespace} small")
        recall = await memory.recall("apple 17", namespaces=namespace)
        assert recall[0].text == "apple 17"
        assert "30 memories" in str(recall.errors[namespace])
        assert (await memory.recall("apple", namespaces=f"{namespace} small")).errors == {}


async def test_a_namespace_that_another_client_makes_again_is_found(memory, other, namespace, monkeypatch):
    """Its long texts stand in another collection then, whose id nobody here knows yet."""
    pytest.importorskip("semantic_text_splitter")
    long = "The garden has apple trees. A violin was stolen in Vienna. Jam is made of oranges."
    for each in (memory, other):
        monkeypatch.setattr(each._life.store, "_split_chars", 40)
        each._life.store._texts._splitter = Splitter(each._life.store.embedder, 40)
    await memory.remember(long, namespace=namespace, id="first")
    assert (await memory.recall("violin in Vienna", namespaces=namespace))[0].passage
    await other.forget_namespace(namespace)
    await other.remember(f"{long} Again.", namespace=namespace, id="second")
    hit = (await memory.recall("violin in Vienna", namespaces=namespace))[0]
    assert (hit.id, hit.passage) == ("second", "A violin was stolen in Vienna.")
    await other.forget_namespace(namespace)
    await other.remember(long, namespace=namespace, id="third")
    assert await memory.remember("Now it is short.", namespace=namespace, id="third") == "third"
    chunks = await memory.client.get_collection(chunks_name(namespace), embedding_function=None)
    assert await chunks.count() == 0
    assert await memory.forget_namespace(namespace) == 1


async def test_what_another_client_pins_does_not_expire(memory, other, namespace, monkeypatch):
    """Pinning is a change like any other: who has a copy of the namespace hears of it."""
    item = {"text": "The key is under the mat.", "ttl": 3600.0, "updated_at": BEGUN}
    (id,) = await memory.remember_many([item], namespace=namespace)
    assert len(await memory.recall("key", namespaces=namespace)) == 1
    await other.pin(id, namespace=namespace)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 4000.0)
    assert [hit.id for hit in await memory.recall("key", namespaces=namespace)] == [id]
