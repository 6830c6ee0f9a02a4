"""The index of a namespace is made again without what is dead in it, beside whoever uses the namespace."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import aiochroma
import aiochroma.sync
from aiochroma.disk import findings, recovery
from aiochroma.memory import compacting, copies, forgetting, reembedding

_MANY = 1200
"""Chroma writes an index to the disk after a thousand records."""


@pytest.fixture
def few_are_worth_it(monkeypatch):
    """Let an index be worn with few dead vectors, so that few have to be written."""
    monkeypatch.setattr(findings, "WORTH_REBUILDING", 100)


async def _vectors(memory, namespace):
    collection = await memory.client.get_collection(namespace, embedding_function=None)
    found = await collection.get(include=["embeddings"])
    return dict(zip(found["ids"], np.asarray(found["embeddings"]), strict=True))


async def _worn(memory):
    """Write a namespace, then forget most of it."""
    ids = await memory.remember_many([f"note {n} about the harbour" for n in range(_MANY)], namespace="notes")
    await memory.forget_many(ids[300:], namespace="notes")
    await memory.remember("written once", namespace="others")
    return ids[:300]


@pytest.mark.this_process
async def test_a_worn_index_is_made_again_without_what_is_dead(path, few_are_worth_it, monkeypatch):
    """The memories, their vectors and their order stay; a namespace that is not worn is not touched."""
    async with aiochroma.Memory(path) as memory:
        alive = await _worn(memory)
        before = [hit async for hit in memory.list("notes")]
        vectors = await _vectors(memory, "notes")
        others = (await memory.client.get_collection("others", embedding_function=None)).id
        seen = []
        with monkeypatch.context() as patched:
            patched.setattr(recovery, "free_bytes", lambda _: 0)
            with pytest.raises(aiochroma.StoreUnavailableError, match="too little room"):
                await memory.compact()
        assert await memory.compact(progress=lambda *step: seen.append(step)) == {"notes": 300}
        assert ("notes", 300, 300) in seen
        after = [hit async for hit in memory.list("notes")]
        assert after == before
        assert {hit.id for hit in after} == set(alive)
        renewed = await _vectors(memory, "notes")
        assert renewed.keys() == vectors.keys()
        for id, vector in vectors.items():
            np.testing.assert_allclose(renewed[id], vector, atol=1e-6)
        found = await memory.recall("note 7 about the harbour", namespaces="notes", mode="vector", k=1)
        assert found[0].text == "note 7 about the harbour"
        assert (await memory.client.get_collection("others", embedding_function=None)).id == others
        assert len(await memory.client.list_collections()) == 2
        assert await memory.compact() == {}
    report = await aiochroma.doctor(path)
    assert {collection.name: collection.dead for collection in report.collections}["notes"] == 0


async def test_memories_are_found_and_written_while_it_goes_on(path):
    """Nothing that is remembered, changed or forgotten meanwhile is lost, or comes back; whoever does it."""
    async with aiochroma.Memory(path) as memory, aiochroma.Memory(path) as compacting:
        ids = await memory.remember_many(
            [f"note {n} about the harbour" for n in range(400)], namespace="notes"
        )
        written, forgotten = [], []

        async def use():
            for number in range(10**6):
                written.append(await memory.remember(f"written meanwhile {number}", namespace="notes"))
                id = ids.pop()
                await memory.forget(id, namespace="notes")
                forgotten.append(id)
                await memory.update(ids[0], namespace="notes", metadata={"seen": number})
                found = await memory.recall("note 3 about the harbour", namespaces="notes", k=1)
                assert found[0].text == "note 3 about the harbour"

        using = asyncio.ensure_future(use())
        assert "notes" in await compacting.compact("notes")
        before = len(written)
        assert before
        while len(written) < before + 3 and not using.done():
            await asyncio.sleep(0.01)
        assert not using.done()
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
        kept = {hit.id async for hit in memory.list("notes")}
        assert kept >= {*ids, *written}
        assert not kept & set(forgotten)
        assert len(await memory.client.list_collections()) == 1


async def test_what_is_remembered_last_can_be_forgotten_at_once(path, monkeypatch):
    """No write comes between the last look at the original and the moment from which the copy is the namespace."""
    real = reembedding.take_over
    async with aiochroma.Memory(path) as memory, aiochroma.Memory(path) as compacting:
        await memory.remember_many([f"note {n}" for n in range(10)], namespace="notes")
        remembering = []

        async def take_over(*arguments):
            remembering.append(asyncio.ensure_future(memory.remember("written last", namespace="notes")))
            done, _ = await asyncio.wait(remembering, timeout=1.0)
            assert not done, "the original was written to after the last look at it"
            await real(*arguments)

        monkeypatch.setattr(reembedding, "take_over", take_over)
        compacted = asyncio.ensure_future(compacting.compact("notes"))
        while not remembering:
            await asyncio.sleep(0.01)
        assert await memory.forget(await remembering[0], namespace="notes") == 1
        await compacted
        assert await memory.count("notes") == 10


async def _dies_after_the_takeover(memory, monkeypatch, namespace):
    """Compact a namespace in a run that ends as soon as its copy has taken over; the original is left."""
    real = reembedding.take_over

    async def take_over(*arguments):
        await real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(reembedding, "take_over", take_over)
        with pytest.raises(KeyboardInterrupt):
            await memory.compact(namespace)


async def test_everybody_reads_what_has_taken_over(path, monkeypatch):
    """Nobody goes on reading the original, however long a run that died has left it there."""
    async with aiochroma.Memory(path) as memory, aiochroma.Memory(path) as reading:
        ids = await memory.remember_many([f"note {n} about the harbour" for n in range(10)])
        assert await reading.count("default") == 10
        await _dies_after_the_takeover(memory, monkeypatch, "default")
        new = await memory.remember("the kraken came in the night")
        await memory.forget_many(ids[:3])
        assert (await reading.recall("kraken", namespaces="default", k=1))[0].id == new
        assert (await reading.similar(new, k=10)).hits
        assert await reading.get(ids[0]) is None
        assert {hit.id for hit in await reading.list()} == {*ids[3:], new}
        assert await reading.count("default") == 8


async def test_what_is_forgotten_after_a_run_died_does_not_come_back(path, monkeypatch):
    """The next run takes from the original what was written there last, and not what was forgotten since."""
    async with aiochroma.Memory(path) as memory:
        ids = await memory.remember_many(["Penicillin gives me hives.", "I live in Vienna.", "I like tea."])
        await _dies_after_the_takeover(memory, monkeypatch, "default")
        assert await memory.forget(ids[0]) == 1
        await memory.compact("default")
        assert {hit.id for hit in await memory.list()} == set(ids[1:])
        assert len(await memory.client.list_collections()) == 1


async def test_a_namespace_that_is_forgotten_and_made_again_meanwhile_is_not_replaced(path, monkeypatch):
    """What was remembered since then is there, and what was forgotten is not, however late it happens."""
    async with aiochroma.Memory(path) as memory, aiochroma.Memory(path) as compacting:
        await memory.remember_many([f"note {n}" for n in range(10)], namespace="notes")
        real = copies.ExclusiveRun.check
        happened = []

        async def check(run):
            await real(run)
            models = await memory.client.list_collections()
            if not happened and any((model.metadata or {}).get(copies.COMPLETE) for model in models):
                happened.append(await memory.forget_namespace("notes"))
                await memory.remember("a new beginning", namespace="notes")

        monkeypatch.setattr(copies.ExclusiveRun, "check", check)
        with pytest.raises(aiochroma.StoreUnavailableError, match="was deleted while it was copied"):
            await compacting.compact("notes")
        assert happened == [10]
        for _ in range(2):
            assert [hit.text for hit in await memory.list("notes")] == ["a new beginning"]
            await compacting.compact("notes")
        assert len(await memory.client.list_collections()) == 1


async def test_long_texts_keep_their_passages(path):
    """The chunks of a long text come along."""
    pytest.importorskip("semantic_text_splitter")
    long = (
        "The garden has apple trees. " * 30
        + "A violin was stolen in Prague. "
        + "Jam is made of oranges. " * 30
    )
    async with aiochroma.Memory(path, split_chars=200) as memory:
        await memory.remember(long, namespace="notes")
        await memory.compact(["notes", "there is none"])
        (hit,) = await memory.recall("stolen violin Prague", namespaces="notes")
        assert "violin was stolen" in hit.passage


async def test_what_it_cannot_look_at_is_to_be_named():
    """In memory there are no files that tell what is dead; a blocking memory says so, too."""
    async with aiochroma.Memory(None) as memory:
        await memory.remember("one", namespace="notes")
        with pytest.raises(aiochroma.InvalidInputError, match="name the `namespaces`"):
            await memory.compact()
        assert await memory.compact("notes") == {"notes": 1}
        assert await memory.count("notes") == 1


def test_a_blocking_memory_does_it_too(path):
    """Without an event loop."""
    with aiochroma.sync.Memory(path) as memory:
        memory.remember("one", namespace="notes")
        assert memory.compact("notes") == {"notes": 1}


@pytest.fixture
def soon(monkeypatch, few_are_worth_it):
    """Let a memory look at its indexes after it has forgotten anything, and at once."""
    monkeypatch.setattr(compacting, "_WORTH_BEGINNING", 0)
    monkeypatch.setattr(compacting, "_LOOK_EVERY", 1)
    monkeypatch.setattr(compacting, "_PAUSE_SECONDS", 0.0)


@pytest.fixture
def worn(soon, monkeypatch):
    """Let an index pass for worn that is not."""
    lacking = {"notes": 0}

    async def found(*_):
        return lacking

    monkeypatch.setattr(compacting, "_worn", found)
    return lacking


async def _is_compacted(memory, id):
    """Wait until the namespace has another collection, and nothing of a copy is left."""
    while True:
        models = {model.name: model.id for model in await memory.client.list_collections()}
        if models["notes"] != id and models.keys() == {"notes", "others"}:
            return
        await asyncio.sleep(0.01)


@pytest.mark.this_process
@pytest.mark.parametrize("form", ["asynchronous", "blocking"])
async def test_a_memory_does_it_by_itself(path, soon, form):
    """Beside its callers, who have an event loop or none: texts and vectors stay, also what is changed meanwhile."""
    async with aiochroma.Memory(path, auto_compact=False) as memory:
        ids = await memory.remember_many(
            [f"note {n} about the harbour" for n in range(_MANY)], namespace="notes"
        )
        await memory.remember("written once", namespace="others")
        before = (await memory.client.get_collection("notes", embedding_function=None)).id
        if form == "asynchronous":
            other = aiochroma.Memory(path)
            async with other:
                await other.forget_many(ids[300:], namespace="notes")
                await _is_compacted(memory, before)
        else:

            def forget():
                with aiochroma.sync.Memory(path) as other:
                    other.forget_many(ids[300:], namespace="notes")
                    asyncio.run(_is_compacted(memory, before))

            await asyncio.to_thread(forget)
        assert {hit.id async for hit in memory.list("notes")} == set(ids[:300])
        recall = await memory.recall("note 7 about the harbour", namespaces="notes", k=1)
        assert (recall[0].text, recall.indexing, recall.errors) == ("note 7 about the harbour", {}, {})


def _store(memory):
    return memory._life.store


def _thread(memory):
    return memory._life._compacting._thread


async def test_closing_does_not_wait_for_it_and_the_next_goes_on(path, worn, monkeypatch):
    """A memory is closed while a copy is made; the copy is used by whoever goes on, and nothing is lost."""
    begun, real = threading.Event(), reembedding.Copying._copy

    async def one_page(self, *values, **options):
        count = await real(self, *values, **options)
        begun.set()
        await asyncio.sleep(1000)
        return count

    async with aiochroma.Memory(path) as memory:
        with monkeypatch.context() as patched:
            patched.setattr(reembedding.Copying, "_copy", one_page)
            ids = await memory.remember_many([f"note {n}" for n in range(300)], namespace="notes")
            await memory.forget_many(ids[290:], namespace="notes")
            await asyncio.to_thread(begun.wait)
            await memory.close()
            await asyncio.to_thread(_thread(memory).join)
    async with aiochroma.Memory(path) as memory:
        assert await memory.compact() == {"notes": 290 - 256}
        assert {hit.id async for hit in memory.list("notes")} == set(ids[:290])
        assert [model.name for model in await memory.client.list_collections()] == ["notes"]


async def test_whoever_asks_for_it_has_the_way(path):
    """What is done in the background ends before its next change; in the background nobody waits for another."""

    async def at_work():
        while not asked.done():
            await background.check()

    async with aiochroma.Memory(path) as memory:
        await memory.remember("one", namespace="notes")
        async with copies.ExclusiveRun(_store(memory), gives_way=True) as background:
            await background.check()
            with pytest.raises(copies.OtherRunError):
                await copies.ExclusiveRun(_store(memory), gives_way=True).__aenter__()
            asked = asyncio.ensure_future(memory.compact("notes"))
            with pytest.raises(copies.OtherRunError):
                await at_work()
        assert await asked == {"notes": 1}
        async with copies.ExclusiveRun(_store(memory)):
            with pytest.raises(aiochroma.StoreUnavailableError, match="Wait until it is done"):
                await memory.compact("notes")


@pytest.mark.parametrize("reason", ["room", "fault"])
async def test_nobody_but_the_log_is_told_of_a_failure(path, worn, monkeypatch, caplog, reason):
    """Without room, or where it fails, it is left, which is said once; whoever asks for it is told why."""
    if reason == "room":
        worn["notes"] = 5_000_001
    else:
        monkeypatch.setattr(reembedding.Copying, "_copy", _fails)
    async with aiochroma.Memory(path) as memory:
        ids = await memory.remember_many([f"note {n}" for n in range(10)], namespace="notes")
        for some in (ids[:1], ids[1:4]):
            await memory.forget_many(some, namespace="notes")
            await asyncio.to_thread(_thread(memory).join)
        told = [
            record for record in caplog.records if "not made again in the background" in record.getMessage()
        ]
        assert len(told) == 1
        with pytest.raises((aiochroma.StoreUnavailableError, OSError), match=r"6 MB too little room|no luck"):
            await memory.compact()
        assert await memory.count("notes") == 6


async def _fails(*_, **__):
    raise OSError("no luck")


@pytest.mark.this_process
async def test_it_can_be_switched_off(path, soon):
    """Then nothing is begun."""
    async with aiochroma.Memory(path, auto_compact=False) as memory:
        await memory.remember("one", id="one")
        await memory.forget("one")
        assert memory._life._compacting is None
    with pytest.raises(aiochroma.InvalidInputError, match="auto_compact"):
        aiochroma.Memory(path, auto_compact="no")


async def test_what_is_copied_while_it_is_erased_is_erased(path, monkeypatch):
    """A copy that is begun between the first look and the deletion holds the text as well."""
    real, secret = forgetting._delete, "the secret is 4711 and nothing else"

    async def delete(store, namespace, *values, **options):
        model = await store.collection("notes")
        copying = reembedding.Copying(store, await run.__aenter__(), "notes", model, None)
        await copying._pass(await copying._made())
        return await real(store, namespace, *values, **options)

    async with aiochroma.Memory(path) as memory:
        await memory.remember_many(
            [{"id": "one", "text": secret}, {"id": "two", "text": "two"}], namespace="notes"
        )
        run = copies.ExclusiveRun(_store(memory))
        monkeypatch.setattr(forgetting, "_delete", delete)
        receipt = await memory.erase("one", namespace="notes")
        assert receipt.erased == 1
        assert receipt.is_complete
        await run.__aexit__(None, None, None)


async def test_what_is_forgotten_leaves_an_unfinished_copy(path):
    """One that nobody goes on with holds no forgotten text; what is remembered again just as it was is copied again."""
    async with aiochroma.Memory(path) as memory:
        await memory.remember_many(
            [{"id": "one", "text": "one"}, {"id": "two", "text": "two"}], namespace="notes"
        )
        original = await memory.client.get_collection("notes", embedding_function=None)
        everything = await original.get(ids=["one"], include=["documents", "embeddings", "metadatas"])
        async with copies.ExclusiveRun(_store(memory)) as run:
            model = await _store(memory).collection("notes")
            copying = reembedding.Copying(_store(memory), run, "notes", model, None)
            made = await copying._made()
            await copying._pass(made)
            copy = await memory.client.get_collection(made.name, embedding_function=None)
            await memory.forget("one", namespace="notes")
            assert (await copy.get(include=[]))["ids"] == ["two"]
            await original.upsert(
                **{name: everything[name] for name in ("ids", "documents", "embeddings", "metadatas")}
            )
            await copying._pass(made)
            assert sorted((await copy.get(include=[]))["ids"]) == ["one", "two"]
