"""A memory over a Chroma server: the same calls as on a directory."""

from __future__ import annotations

import asyncio

import pytest
from programs import ChromaServer

import aiochroma
from aiochroma import sync
from aiochroma.memory import reembedding
from aiochroma.records import server_index

SENTENCES = [
    "The garden has seventeen old apple trees.",
    "A violin was stolen in Vienna.",
    "Jazz quizzes fizz with pizzazz.",
]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The port of a server of this module's own."""
    folder = tmp_path_factory.mktemp("server")
    with ChromaServer(folder / "data", folder / "log") as server:
        yield server.port


@pytest.fixture
async def served(port, embedder):
    """A memory on the server; its namespaces are forgotten afterwards."""
    async with await aiochroma.AsyncHttpClient("127.0.0.1", port) as client:
        async with aiochroma.Memory(client=client, embedder=embedder, split_chars=50) as memory:
            yield memory
            for name in await memory.namespaces():
                await memory.forget_namespace(name)
        assert await client.list_collections() == []


async def test_remembering_and_recalling_on_a_server(served):
    """Codes are found among things alike, in every mode; filters, expiry and neighbours hold."""
    items = [{"text": f"The pin of room {n} is {n * 7919}", "metadata": {"n": n}} for n in range(300)]
    await served.remember_many(items, thread="t")
    for mode in ("hybrid", "text"):
        hit = (await served.recall("which room has pin 1005713", k=1, mode=mode, window=1))[0]
        assert hit.text == "The pin of room 127 is 1005713"
        assert [one.metadata["n"] for one in (*hit.before, *hit.after)] == [126, 128]
    assert len(await served.recall("pin", k=20, where={"n": {"$lt": 7}})) == 7
    await served.update(hit.id, expires_at=1)
    assert hit.id not in [one.id for one in await served.recall("pin 1005713", k=300)]
    assert await served.sweep() == 1
    assert await served.count() == 299


async def test_a_memory_on_a_server_changes_as_elsewhere(served):
    """Refreshing, updating, pinning and forgetting do what they do on a directory."""
    id = await served.remember("The office is in Vienna", metadata={"a": 1}, ttl=100)
    born = (await served.get(id)).created_at
    await served.remember("The office is in Vienna", metadata={"b": 2})
    hit = await served.get(id)
    assert (hit.metadata, hit.created_at, hit.expires_at) == ({"a": 1, "b": 2}, born, None)
    assert await served.pin(id)
    assert (await served.update(id, text="The office is in Graz")).pinned
    assert await served.pin(id, pinned=False)
    assert [hit.text for hit in await served.recall("office", mode="text")] == ["The office is in Graz"]
    assert await served.forget(id) == 1
    assert await served.get(id) is None


async def test_floats_on_a_server(served):
    """A number of which a server changes the last digit is shown as it was remembered, and found by that."""
    moments = {f"message {number}": 1764111111 + number / 7 for number in range(32)}
    await served.remember_many({"text": text, "metadata": {"ts": ts}} for text, ts in moments.items())
    hits = await served.recall("message", k=32)
    assert {hit.text: hit.metadata["ts"] for hit in hits} == moments
    for hit in hits[:8]:
        ts = hit.metadata["ts"]
        assert (await served.update(hit.id, metadata={"seen": True})).metadata["ts"] == ts
        assert [one.id for one in await served.recall("message", where={"ts": {"$eq": ts}})] == [hit.id]
        assert await served.forget(where={"ts": ts}) == 1


async def test_long_texts_on_a_server(served):
    """A long text is found by its parts, whole, and its parts go with it."""
    id = await served.remember(" ".join(SENTENCES))
    for sentence in SENTENCES:
        assert (await served.recall(sentence))[0].passage == sentence
    await served.update(id, text="short")
    assert (await served.recall("short"))[0].passage is None


def test_the_environment_may_name_a_server(port, embedder, monkeypatch, tmp_path):
    """``from_env`` in mode ``http`` gives a memory on the server; its history is refused with the reason."""
    for name, value in (("MODE", "http"), ("HOST", "127.0.0.1"), ("PORT", str(port))):
        monkeypatch.setenv(f"CHROMA_{name}", value)
    with sync.Memory.from_env(embedder=embedder) as memory:
        memory.remember_many(["one fact", "another fact"])
        assert len(memory.recall("fact", k=2)) == 2
        assert memory.export(tmp_path / "out.jsonl") == memory.forget_namespace("default") == 2
    with pytest.raises(aiochroma.InvalidInputError, match="history"):
        sync.Memory.from_env(embedder=embedder, history=True).open()


async def test_what_another_client_writes_while_a_copy_takes_over_is_kept(
    served, port, embedder, monkeypatch
):
    """One that writes all the time notices on its own that its collection has gone; nothing it was told of is lost."""
    for module in (reembedding, server_index):
        monkeypatch.setattr(module, "BELIEVED_SECONDS", 0.2)
    client = await aiochroma.AsyncHttpClient("127.0.0.1", port, headers={"x-who": "another"})
    async with client, aiochroma.Memory(client=client, embedder=embedder) as other:
        await served.remember_many([f"note {n} about the harbour" for n in range(30)])
        told = [await other.remember("written first")]

        async def write():
            while True:
                told.append(await other.remember(f"written meanwhile {len(told)}"))

        writing = asyncio.ensure_future(write())
        await served.compact("default")
        before = len(told)
        while len(told) < before + 3 and not writing.done():
            await asyncio.sleep(0.01)
        assert not writing.done()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert {hit.id for hit in await served.get_many(told)} == set(told)
