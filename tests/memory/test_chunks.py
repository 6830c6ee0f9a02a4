"""Chunks of long texts: a text that was not remembered leaves none, and deleting thousands keeps no caller waiting."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from chromadb.api.rust import RustBindingsAPI
from programs import until

import aiochroma
from aiochroma.backend.chroma_records import ChromaRecords
from aiochroma.disk.layout import TEXT_INDEX_FILE
from aiochroma.memory.copies import copy_name
from aiochroma.memory.vectors import CHUNKS_FOR
from aiochroma.records.record import CHUNK_MADE, CHUNK_OF, CHUNKS, WRITING, chunks_name

WORDS = ["kettle", "lamp", "window", "river", "stone"]


def long_text(words):
    """Return a text with that number of words, which is split into chunks of four."""
    return " ".join(f"{WORDS[number % 5]}{'x' * (number % 7)}" for number in range(words))


async def chunks_in(memory, namespace="default"):
    """Return the ids of the chunks that are stored, by the id of their memory."""
    collection = await memory.client.get_collection(chunks_name(namespace), embedding_function=None)
    found = await collection.get(include=["metadatas"])
    owners = {}
    for id, metadata in zip(found["ids"], found["metadatas"], strict=True):
        owners.setdefault(metadata[CHUNK_OF], []).append(id)
    return owners


@pytest.fixture
async def memory(path, letters):
    """A memory whose embedder reads four words."""
    async with aiochroma.Memory(path, embedder=letters(4)) as memory:
        yield memory


@pytest.mark.this_process
@pytest.mark.parametrize("change", ["remember", "update"])
async def test_a_text_that_could_not_be_written_leaves_no_chunks(memory, monkeypatch, caplog, change):
    """The chunks come first; where the memory does not come after them they go, and the log says whose they were."""
    kept = await memory.remember(long_text(40), id="kept")
    before = await chunks_in(memory)
    write = {"remember": "upsert", "update": "update"}[change]
    original = getattr(ChromaRecords, write)

    def failing(self, collection, ids, *arguments, **named):
        raise OSError("no room")

    monkeypatch.setattr(ChromaRecords, write, failing)
    with pytest.raises(OSError, match="no room"):
        await (
            memory.remember(long_text(60), id="lost")
            if change == "remember"
            else memory.update(kept, text=long_text(60))
        )
    monkeypatch.setattr(ChromaRecords, write, original)
    await memory.remember("after")  # Writes are in order.
    assert await chunks_in(memory) == before
    assert (await memory.get(kept)).text == long_text(40)
    assert "were not remembered, and their chunks were deleted again" in caplog.text


async def test_a_caller_that_leaves_leaves_no_chunks(memory):
    """Cancelled, or past its deadline, at any moment: what goes on without it is taken back afterwards."""
    await memory.remember(long_text(40), id="kept")
    for number in range(20):
        call = asyncio.ensure_future(memory.remember(long_text(400), id=f"left {number % 5}"))
        for _ in range(3 * number):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        with aiochroma.deadline(0.001 * number), contextlib.suppress(aiochroma.DeadlineExceededError):
            await memory.remember_many([long_text(400 + number), "a short one"])
    await memory.client.get_or_create_collection("last", embedding_function=None)
    await memory.client.delete_collection("last")  # After everything before it.
    collection = await memory.client.get_collection("default", embedding_function=None)
    found = await collection.get(include=["metadatas"])
    expected = {
        id: metadata[CHUNKS]
        for id, metadata in zip(found["ids"], found["metadatas"], strict=True)
        if CHUNKS in metadata
    }
    assert {owner: len(ids) for owner, ids in (await chunks_in(memory)).items()} == expected


@pytest.mark.this_process
async def test_chunks_of_a_memory_that_was_written_all_the_same_stay(memory, monkeypatch):
    """A write may have happened although it failed, and under another id than the one that follows from the text."""
    await memory.remember(long_text(40), thread="t")
    original = ChromaRecords.upsert

    def failing_afterwards(self, *arguments, **named):
        original(self, *arguments, **named)
        raise OSError("the answer was lost")

    monkeypatch.setattr(ChromaRecords, "upsert", failing_afterwards)
    with pytest.raises(OSError, match="lost"):
        await memory.remember(long_text(40), thread="t")
    monkeypatch.setattr(ChromaRecords, "upsert", original)
    await memory.remember("after")
    ids = [hit.id async for hit in memory.list(thread="t")]
    assert len(ids) == 2
    chunks = await chunks_in(memory)
    assert len(chunks[ids[0]]) == len(chunks[ids[1]]) > 5


async def test_the_chunks_of_a_process_that_died_go_with_a_sweep(memory, caplog):
    """Those that may still get their memory stay: another process may be about to write it."""
    await memory.remember(long_text(40), id="kept")
    before = await chunks_in(memory)
    collection = await memory.client.get_collection(chunks_name("default"), embedding_function=None)
    await collection.add(
        ids=["dead:0", "dead:1", "alive:0"],
        embeddings=[[1.0] * 27] * 3,
        documents=["one", "two", "three"],
        metadatas=[
            {CHUNK_OF: "lost", CHUNK_MADE: 1.0},
            {CHUNK_OF: "lost"},
            {CHUNK_OF: "coming", CHUNK_MADE: 4e9},
        ],
    )
    assert await memory.sweep() == 0
    assert await chunks_in(memory) == {**before, "coming": ["alive:0"]}
    assert "2 chunks in default belonged to no memory" in caplog.text
    assert (await memory.recall("window", k=1))[0].id == "kept"


async def test_chunks_are_let_alone_while_a_namespace_is_embedded_again(memory):
    """They may be those of the copy that takes over in this moment."""
    await memory.remember(long_text(40), id="kept")
    collection = await memory.client.get_collection(chunks_name("default"), embedding_function=None)
    await collection.add(
        ids=["new:0"], embeddings=[[1.0] * 27], documents=["one"], metadatas=[{CHUNK_OF: "kept"}]
    )
    copy = copy_name("default", "")
    await memory.client.create_collection(copy, embedding_function=None)
    await memory.sweep()
    assert "new:0" in (await chunks_in(memory))["kept"]
    await memory.client.delete_collection(copy)
    await memory.sweep()
    assert "new:0" not in (await chunks_in(memory))["kept"]


async def test_the_chunks_of_a_process_that_died_are_found_by_the_next_long_text(path, letters):
    """Where nobody sweeps, the first long text of an opening looks for them."""
    async with aiochroma.Memory(path, embedder=letters(4)) as memory:
        collection = await memory.client.get_or_create_collection(
            chunks_name("default"), metadata={CHUNKS_FOR: "default"}, embedding_function=None
        )
        await collection.add(
            ids=["dead:0"], embeddings=[[1.0] * 27], documents=["one"], metadatas=[{CHUNK_OF: "lost"}]
        )
        await memory.remember(long_text(40), id="kept")
        assert list(await chunks_in(memory)) == ["kept"]


@pytest.mark.this_process
@pytest.mark.parametrize("how", ["forget", "update", "erase", "close"])
async def test_thousands_of_chunks_go_in_slices(path, letters, monkeypatch, how):
    """No call deletes more than 64 at once: Chroma holds the interpreter meanwhile. In the end all are gone."""
    sizes = []
    async with aiochroma.Memory(path, embedder=letters(4)) as memory:
        await memory.remember(long_text(4000), id="long")
        assert len((await chunks_in(memory))["long"]) >= 1000
        native = RustBindingsAPI._delete

        def noted(self, collection_id, ids=None, *arguments, **named):
            sizes.append(len(ids or ()))
            return native(self, collection_id, ids, *arguments, **named)

        monkeypatch.setattr(RustBindingsAPI, "_delete", noted)
        if how == "update":
            await memory.update("long", text="short")
        elif how == "erase":
            receipt = await memory.erase("long")
            assert receipt.found == ()
        else:
            await memory.forget("long")
        if how != "close":
            left = asyncio.get_running_loop()
            await asyncio.to_thread(
                until,
                lambda: not asyncio.run_coroutine_threadsafe(chunks_in(memory), left).result(),
                "the end of the chunks",
            )
    assert sum(sizes) >= 1000
    assert max(sizes) <= 64
    async with aiochroma.Memory(path, embedder=letters(4)) as memory:
        assert await chunks_in(memory) == {}


@pytest.mark.parametrize(
    "odd",
    [
        {CHUNKS: 3},
        {CHUNKS: "many", WRITING: "w"},
        {CHUNKS: 2.5, WRITING: "w"},
        {CHUNKS: 10**15, WRITING: "w"},
    ],
    ids=["of no writing", "a text", "half a chunk", "a quadrillion"],
)
async def test_what_another_program_says_of_chunks_is_not_believed(memory, odd):
    """Its memory is changed and forgotten like any other, at once and in little memory."""
    id = await memory.remember("a kettle")
    collection = await memory.client.get_collection("default", embedding_function=None)
    await collection.update(ids=[id], metadatas=[odd])
    await memory.remember(long_text(40), id="long")
    assert (await memory.update(id, text="a lamp")).text == "a lamp"
    await collection.update(ids=[id], metadatas=[odd])
    assert await memory.forget(id) == 1
    assert await memory.forget("long") == 1
    assert await chunks_in(memory) == {}


@pytest.fixture
def first_calls(monkeypatch):
    """Return, by collection, the first call of Chroma on it; of collections that were made before it was asked for."""
    first = {}

    def noted(name):
        real = getattr(RustBindingsAPI, name)

        def called(self, *given, **how):
            first.setdefault(str(given[0] if given else how["collection_id"]), name)
            return real(self, *given, **how)

        monkeypatch.setattr(RustBindingsAPI, name, called)

    def begin():
        for name in ("_get", "_query", "_count", "_add", "_upsert", "_update", "_delete"):
            noted(name)
        return first

    return begin


@pytest.mark.this_process
@pytest.mark.parametrize("call", ["forget", "remember", "update", "count", "recall", "reembed", "delete"])
@pytest.mark.parametrize("is_indexed", [True, False], ids=["", "without an index"])
async def test_every_collection_is_read_before_anything_else_is_done_to_it(
    path, letters, first_calls, call, is_indexed
):
    """Chroma loads its index at the first call: for 100,000 records 0.3 s, with the interpreter held unless it reads."""
    async with aiochroma.Memory(path, embedder=letters(4)) as memory:
        for id in ("one", "two"):
            await memory.remember(long_text(40), id=id)
        model = await memory.client.create_collection("plain", embedding_function=None)
        await model.add(ids=["a"], embeddings=[[1.0, 0.0]])
        known = {str(one.id) for one in await memory.client.list_collections()}
    if not is_indexed:
        (path / TEXT_INDEX_FILE).unlink()
    embedder = letters(4) if call != "reembed" else letters(7)
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        first = first_calls()
        if call == "forget":
            assert await memory.forget("one")
        elif call == "remember":
            await memory.remember(long_text(48), id="one")
        elif call == "update":
            assert await memory.update("one", text=long_text(48))
        elif call == "count":
            assert await memory.count(namespace="default") == 2
        elif call == "recall":
            assert await memory.recall(long_text(8))
        elif call == "reembed":
            assert (await memory.reembed()).is_complete
        else:
            await (await memory.client.get_collection("plain", embedding_function=None)).delete(ids=["a"])
    assert {name for id, name in first.items() if id in known} <= {"_get", "_query"}
