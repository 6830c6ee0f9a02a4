"""The ids of a large collection are listed beside the thread that calls Chroma, and are those that Chroma would give."""

from __future__ import annotations

import asyncio
import threading

import pytest
from backends import backend_of
from chromadb.api.rust import RustBindingsAPI

import aiochroma
from aiochroma.backend import id_listing
from aiochroma.disk.layout import TEXT_INDEX_FILE
from aiochroma.embedding.words import HashedEmbedder

pytestmark = pytest.mark.this_process

MANY = 4500


@pytest.fixture
async def client(tmp_path):
    """A client of a directory."""
    async with aiochroma.AsyncPersistentClient(tmp_path / "db") as client:
        yield client


@pytest.fixture
async def collection(client):
    """A large collection whose ids are in the order of nothing else, some of which came back after they were deleted."""
    made = await client.create_collection("large", embedding_function=None)
    ids = [f"id{number * 7919 % MANY}" for number in range(MANY)]
    await made.add(ids=ids, embeddings=[[1.0, float(number)] for number in range(MANY)])
    await made.delete(ids=ids[100:140])
    await made.upsert(ids=ids[90:130], embeddings=[[0.0, 1.0]] * 40)
    return made


@pytest.fixture
def largest(monkeypatch):
    """Return how many records each call of Chroma has returned; but for those with a filter, which is Chroma's to apply."""
    found = []
    real = RustBindingsAPI._get

    def get(self, *given, **how):
        rows = real(self, *given, **how)
        if not how.get("where"):
            found.append(len(rows["ids"]))
        return rows

    monkeypatch.setattr(RustBindingsAPI, "_get", get)
    return found


@pytest.fixture
def gate(monkeypatch):
    """Children that are not over before the gate is opened; return two events: one was started, and the gate."""
    started, opened = threading.Event(), threading.Event()

    class Held(id_listing.Script):
        def __init__(self, *given, **how):
            super().__init__(*given, **how)
            started.set()

        def is_over(self, seconds=0.0):
            return super().is_over(seconds) and opened.is_set()

    monkeypatch.setattr(id_listing, "Script", Held)
    return started, opened


@pytest.mark.parametrize(
    "how",
    [{"include": []}, {"include": ["embeddings"]}, {"include": [], "limit": 4300, "offset": 20}],
    ids=["ids", "records", "within limits"],
)
async def test_a_large_read_is_what_chroma_would_give(client, collection, largest, how):
    """The same records in the same order, and no call of Chroma returns more than a page of them."""
    start, stop = how.get("offset", 0), how.get("offset", 0) + how.get("limit", MANY)
    whole = backend_of(client).api._get(collection.id, include=["embeddings"])
    largest.clear()
    found = await collection.get(**how)
    assert found["ids"] == whole["ids"][start:stop]
    if found["embeddings"] is not None:
        assert found["embeddings"].tolist() == [list(vector) for vector in whole["embeddings"][start:stop]]
    assert max(largest) <= 256


async def test_the_first_ids_of_a_large_collection_are_chromas(client, collection, gate):
    """No child lists all for the sake of a few."""
    started, _ = gate
    found = await collection.get(include=[], limit=1000, offset=95)
    assert found["ids"] == backend_of(client).api._get(collection.id, include=[])["ids"][95:1095]
    assert not started.is_set()


async def test_others_are_served_while_ids_are_listed(client, collection, gate):
    """What is written to the collection meanwhile waits, and is not in the result; all else does not wait."""
    started, opened = gate
    other = await client.create_collection("other", embedding_function=None)
    whole = asyncio.create_task(collection.get(include=[]))
    await asyncio.to_thread(started.wait, 60)
    write = asyncio.create_task(collection.add(ids=["late"], embeddings=[[1.0, 0.0]]))
    await other.add(ids=["meanwhile"], embeddings=[[1.0, 0.0]])
    assert (await other.get(include=[]))["ids"] == ["meanwhile"]
    assert await collection.count() == MANY - 10
    assert not whole.done()
    assert not write.done()
    opened.set()
    assert len((await whole)["ids"]) == MANY - 10
    await write
    assert (await collection.get(include=[]))["ids"][-1] == "late"


async def test_a_caller_that_has_gone_leaves_no_ids_to_the_next(collection, gate):
    """The next one gets what is there then, and not what was listed before."""
    started, opened = gate
    gone = asyncio.create_task(collection.get(include=[]))
    await asyncio.to_thread(started.wait, 60)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    write = asyncio.create_task(collection.add(ids=["late"], embeddings=[[1.0, 0.0]]))
    opened.set()
    await write
    assert (await collection.get(include=[]))["ids"][-1] == "late"


async def test_ids_that_no_child_can_list_are_read_by_chroma(client, collection, tmp_path):
    """The child fails: the read takes longer, and nothing is missing."""
    backend_of(client)._listing._file = tmp_path / "nothing here"
    assert len((await collection.get(include=[]))["ids"]) == MANY - 10


class Another(HashedEmbedder):
    """Another embedder, by its name."""

    identity = "another"

    def embed(self, texts):
        return -super().embed(texts)


@pytest.mark.parametrize("call", ["export", "reembed"])
async def test_a_memory_lists_no_large_namespace_in_one_piece(tmp_path, largest, call):
    """Neither one whose index is missing, nor a copy of it and its original, which are compared."""
    async with aiochroma.Memory(tmp_path / "memory", embedder=HashedEmbedder()) as memory:
        await memory.remember_many([f"note {number}" for number in range(MANY)])
    (tmp_path / "memory" / TEXT_INDEX_FILE).unlink()
    largest.clear()
    embedder = HashedEmbedder() if call == "export" else Another()
    async with aiochroma.Memory(tmp_path / "memory", embedder=embedder) as memory:
        if call == "export":
            assert await memory.export(tmp_path / "notes.jsonl") == MANY
        else:
            assert (await memory.reembed()).embedded == {"default": MANY}
    # What was replaced is deleted by 2048.
    assert max(largest) <= 2048
