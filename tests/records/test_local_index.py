"""The index beside Chroma: what it says while it is made, where it cannot be used, and that it lists what Chroma holds."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from chroma_filters import matches

import aiochroma
from aiochroma.backend.chroma_records import ChromaRecords
from aiochroma.disk.layout import TEXT_INDEX_FILE
from aiochroma.embedding.words import HashedEmbedder
from aiochroma.records.local_index import IndexFile
from aiochroma.records.spec import ListSpec, filter_of, page_ids
from aiochroma.text.index import TextIndex

_HOLD = (
    "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
    "c.execute('begin exclusive'); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def opened(tmp_path):
    """Return a memory on one directory, to be entered; as often as one likes."""
    return lambda **how: aiochroma.Memory(tmp_path / "memory", embedder=HashedEmbedder(), **how)


@pytest.fixture
def index_file(tmp_path):
    """The file of the index."""
    return tmp_path / "memory" / TEXT_INDEX_FILE


async def test_a_search_answers_while_the_index_is_made(opened, index_file):
    """It says which share of the namespace was there, others are served meanwhile, and in the end nothing is missing."""
    async with opened() as memory:
        await memory.remember_many([f"note {n} about locker {n % 7}" for n in range(1500)])
        await memory.remember("the harbour", namespace="small")
        whole = await memory.recall("note 1499 about locker", k=3, namespaces="default")
    index_file.unlink()
    async with opened() as memory:
        first = await memory.recall("note 1499 about locker", k=3, namespaces="default")
        assert 0.0 <= first.indexing["default"] < 1.0
        assert len(first) == 3
        assert first.errors == {}
        assert [hit.text for hit in await memory.recall("harbour", namespaces="small")] == ["the harbour"]
        shares = [first.indexing["default"]]
        while (found := await memory.recall("note 1499 about locker", k=3, namespaces="default")).indexing:
            shares.append(found.indexing["default"])
        assert shares == sorted(shares)
        assert [hit.text for hit in found] == [hit.text for hit in whole]
        assert await memory.count() == 1501


async def test_the_index_is_made_without_being_asked_again(opened, index_file):
    """After the first search the rest is copied while nothing waits, and outlives the process that copied it."""
    async with opened() as memory:
        await memory.remember_many([f"note {n}" for n in range(700)])
    index_file.unlink()
    async with opened() as memory:
        assert (await memory.recall("note")).indexing
        until = time.monotonic() + 60
        while time.monotonic() < until and (await memory.recall("note")).indexing:
            await asyncio.sleep(0.05)
    async with opened() as memory:
        assert not (await memory.recall("note")).indexing


async def test_what_changes_while_the_index_is_made_is_followed(opened, index_file):
    """Memories written, changed and forgotten meanwhile are found, found changed, and not found."""
    async with opened() as memory:
        ids = await memory.remember_many([f"note {n} about a boat" for n in range(900)])
    index_file.unlink()
    async with opened() as memory:
        assert (await memory.recall("boat")).indexing
        await memory.update(ids[0], text="the first one is a kayak now")
        await memory.update(ids[899], text="the last one is a kayak now")
        await memory.forget(ids[450])
        await memory.remember("a kayak of its own")
        while (found := await memory.recall("kayak", k=3, mode="text")).indexing:
            pass
        assert {hit.text for hit in found} == {
            "the first one is a kayak now",
            "the last one is a kayak now",
            "a kayak of its own",
        }
        assert await memory.get(ids[450]) is None
        assert ids[450] not in {hit.id for hit in await memory.recall("note 450 about a boat", k=900)}


async def test_nothing_reads_all_ids_of_a_large_namespace_in_one_piece(opened, index_file, monkeypatch):
    """Neither where the index has none of its records, nor where another program has changed some of them behind it."""
    most = []
    get = ChromaRecords.get

    def counted(*given, **how):
        rows = get(*given, **how)
        most.append(len(rows["ids"]))
        return rows

    async def found(memory, text):
        while (recalled := await memory.recall(text, k=1)).indexing:
            pass
        return [hit.text for hit in recalled]

    monkeypatch.setattr(ChromaRecords, "get", counted)
    async with opened() as memory:
        ids = await memory.remember_many([f"note {n} about a boat" for n in range(4500)])
    index_file.unlink()
    async with opened() as memory:
        assert (await memory.recall("note 17")).indexing
        # Closed before it is known which records there are.
    async with opened() as memory:
        assert (await memory.recall("note 17")).indexing
        await memory.remember("what came meanwhile: a lighthouse")
        assert await memory.forget(ids[0])
        assert await found(memory, "lighthouse") == ["what came meanwhile: a lighthouse"]
        assert await found(memory, "note 4499 about a boat") == ["note 4499 about a boat"]
        assert len([item async for item in memory.list()]) == 4500
    behind = f"""
import chromadb
records = chromadb.PersistentClient({str(index_file.parent)!r}).list_collections()[0]
records.delete(ids={ids[4490:]!r})
records.add(ids=["odd"], documents=["a windmill"], embeddings=[records.peek(1)["embeddings"][0]])
"""
    subprocess.run([sys.executable, "-c", behind], check=True, timeout=60)
    async with opened() as memory:
        assert await found(memory, "windmill") == ["a windmill"]
        assert len([item async for item in memory.list()]) == 4491
        assert ids[4499] not in {hit.id for hit in await memory.recall("note 4499 about a boat", k=5)}
    assert max(most) <= 300


async def test_an_index_that_cannot_be_opened_costs_words_not_answers(opened, index_file):
    """Another program holds the file: recalls answer by meaning and say why, writing goes on, and the file is kept."""
    async with opened() as memory:
        await memory.remember("The key is under the mat.")
        await memory.remember("The key is under the rug.", expires_at=1.0)
    async with opened() as memory:
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(index_file)], stdout=subprocess.PIPE, text=True
        )
        holder.stdout.readline()
        try:
            found = await memory.recall("the key", window=1)
            assert [hit.text for hit in found] == ["The key is under the mat."]
            assert isinstance(found.errors["default"], aiochroma.StoreUnavailableError)
            assert TEXT_INDEX_FILE in str(found.errors["default"])
            id = await memory.remember("The boat is in the shed.")
            assert (await memory.get(id)).text == "The boat is in the shed."
            assert len(await memory.list()) == 2
        finally:
            holder.kill()
            holder.communicate()
    async with opened() as memory:
        found = await memory.recall("boat shed", k=1)
        assert (found[0].text, found.errors) == ("The boat is in the shed.", {})


async def test_an_index_that_is_damaged_while_open_is_made_again(opened, index_file):
    """A table that is gone fails one look, and the next has everything."""
    async with opened() as memory:
        await memory.remember_many(["apple one", "apple two"])
        await memory.recall("apple")
    with sqlite3.connect(index_file) as connection:
        connection.execute("DROP TABLE memories")
    connection.close()
    async with opened() as memory:
        found = await memory.recall("apple", mode="text")
        while found.errors or found.indexing:
            await asyncio.sleep(0.5)
            found = await memory.recall("apple", mode="text")
        assert {hit.text for hit in found} == {"apple one", "apple two"}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE namespaces SET memories = 'odd'",
        "UPDATE namespaces SET words = x'ff00'",
        "UPDATE memories SET number = 9223372036854775807 WHERE number = 2",
        "UPDATE memories SET created = 9e999",
        "UPDATE memories SET position = 'odd'",
    ],
)
async def test_an_odd_row_of_the_index_is_damage(opened, index_file, damage):
    """What was never written there is no error of a search or a write, and takes no memory: the index is made again."""
    async with opened() as memory:
        await memory.remember_many(["apple one", "apple two"], thread="t")
        await memory.recall("apple")
    with sqlite3.connect(index_file) as connection:
        assert connection.execute(damage).rowcount >= 1
    connection.close()
    async with opened() as memory:
        await memory.remember("apple three", thread="t")
        found = await memory.recall("apple", mode="text")
        while found.errors or found.indexing:
            await asyncio.sleep(0.5)
            found = await memory.recall("apple", mode="text")
        assert {hit.text for hit in found} == {"apple one", "apple two", "apple three"}


async def test_a_record_that_the_index_cannot_hold_is_there(opened, monkeypatch):
    """It is counted, listed, found by meaning and remembered again as what it is: Chroma knows it."""
    upsert = TextIndex.upsert

    def refuse(self, namespace, rows, **how):
        if any(row.id == "odd" for row in rows):
            raise OverflowError("too odd to store")
        return upsert(self, namespace, rows, **how)

    monkeypatch.setattr(TextIndex, "upsert", refuse)
    for _ in range(2):
        async with opened() as memory:
            await memory.remember("The key is under the mat.")
            await memory.remember("The other key hangs in the hall.", id="odd", metadata={"a": 1})
            await memory.remember("The other key hangs in the hall.", id="odd")
            assert await memory.count("default") == 2
            assert [hit.id async for hit in memory.list()][-1] == "odd"
            assert (await memory.get("odd")).metadata == {"a": 1}
            found = await memory.recall("The other key hangs in the hall.")
            assert found[0].id == "odd"
            assert found.indexing["default"] < 1.0
            assert await memory.forget(where={"a": 1}) == 1
            assert await memory.count("default") == 1


async def test_a_collection_that_is_deleted_leaves_the_file(opened, index_file, tmp_path):
    """Also where a client without a memory deletes it, and where that ends before the file was cleared."""
    async with opened() as memory:
        await memory.remember_many([f"The zanzibar number {n}." for n in range(300)], namespace="gone")
        await memory.remember("The harbour.", namespace="kept")
    left = index_file.read_bytes()
    async with aiochroma.AsyncPersistentClient(tmp_path / "memory") as client:
        await client.delete_collection("gone")
    assert b"zanzibar" not in index_file.read_bytes()
    index_file.write_bytes(left)
    async with opened() as memory:
        assert len(await memory.recall("harbour")) == 1
        assert await memory.namespaces() == ["kept"]
    assert b"zanzibar" not in index_file.read_bytes()


async def test_an_index_that_can_never_be_made_is_given_up(opened, monkeypatch):
    """Made again once, and then left alone for a while: a fault that stays does not hold everybody up."""
    tried = []

    def fails(self, *_):
        tried.append(1)
        raise sqlite3.DatabaseError("no such module")

    async with opened() as memory:
        await memory.remember("The key is under the mat.")
    async with opened() as memory:
        monkeypatch.setattr(TextIndex, "watermark", fails)
        found = await memory.recall("the key")
        assert [hit.text for hit in found] == ["The key is under the mat."]
        assert "no such module" in str(found.errors["default"])
        assert 0 < len(tried) < 10


@pytest.mark.parametrize("newest_first", [False, True])
async def test_a_list_is_what_chroma_holds_in_order(opened, newest_first):
    """In order, a page at a time, with filters, threads and scopes; what has expired is not listed."""
    async with opened() as memory:
        for n in range(24):
            await memory.remember(
                f"turn {n}",
                thread="a" if n % 2 else None,
                scope=("x", str(n % 3)) if n % 4 else None,
                metadata={"n": n},
                created_at=1_700_000_000 + n // 3,  # Some at the same moment.
                ttl=0.001 if n == 5 else None,
            )
        time.sleep(0.01)
        place = await memory.client.get_collection("default", embedding_function=None)
        held = await place.get(include=["documents", "metadatas"])
        texts = dict(zip(held["ids"], held["documents"], strict=True))
        asked = [
            ({}, ListSpec()),
            ({"thread": "a"}, ListSpec(thread="a")),
            ({"scope": "x"}, ListSpec(scope="x")),
            (
                {"scope": ("x", "1"), "where": {"n": {"$gt": 3}}},
                ListSpec(scope="x/1", where={"n": {"$gt": 3}}),
            ),
            (
                {"since": 1_700_000_002, "until": 1_700_000_006},
                ListSpec(since=1_700_000_002.0, until=1_700_000_006.0),
            ),
        ]
        for arguments, spec in asked:
            listed, after = [], None
            while True:
                page = await memory.list(**arguments, newest_first=newest_first, limit=4, after=after)
                listed += [hit.text for hit in page]
                after = page.next
                if after is None:
                    break
            passing = {
                id: metadata
                for id, metadata in zip(held["ids"], held["metadatas"], strict=True)
                if matches(filter_of(spec), metadata)
            }
            expected = page_ids(passing, replace(spec, newest_first=newest_first))
            assert listed == [texts[id] for id in expected]
            assert listed
            assert "turn 5" not in listed


async def test_the_file_gives_the_vectors_back_without_chroma(opened, index_file):
    """Every vector as it was written, for making Chroma's index again, and how far the file goes; nothing where it is none."""
    async with opened() as memory:
        await memory.remember_many([f"note {n}" for n in range(20)])
        place = await memory.client.get_collection("default", embedding_function=None)
        held = await place.get(include=["embeddings"])
    file = IndexFile(index_file.parent)
    ((ids, vectors),) = file.vectors(str(place.id))
    assert sorted(ids) == sorted(held["ids"])
    by_id = dict(zip(held["ids"], held["embeddings"], strict=True))
    for id, vector in zip(ids, vectors, strict=True):
        np.testing.assert_allclose(vector, by_id[id], atol=1e-6)
    assert file.noted()[str(place.id)] > 0
    file.distrust([str(place.id)])
    assert file.noted() == {}
    index_file.write_bytes(b"damaged" * 100)
    assert list(file.vectors(str(place.id))) == []
    assert file.noted() == {}
