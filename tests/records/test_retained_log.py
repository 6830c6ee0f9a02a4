"""Chroma's log has every vector; where it has a gap our file fills it, and after a death it names what our file has not."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import aiochroma
from aiochroma.disk.retained_log import log_state
from aiochroma.records.index_file import IndexFile

_MANY = 1200
"""More than the thousand after which Chroma writes its index to its files."""


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "store"


async def _collection(memory, namespace="notes"):
    return await memory.client.get_collection(namespace, embedding_function=None)


async def _vectors(collection):
    result = await collection.get(include=["embeddings"])
    return dict(zip(result["ids"], result["embeddings"], strict=True))


def _lose_log(directory):
    """Delete all of Chroma's log but its newest entry."""
    with contextlib.closing(sqlite3.connect(directory / "chroma.sqlite3")) as connection, connection:
        connection.execute(
            "DELETE FROM embeddings_queue WHERE seq_id < (SELECT max(seq_id) FROM embeddings_queue)"
        )


def _delete_indexes(directory):
    indexes = [header.parent for header in directory.glob("*/header.bin")]
    for index in indexes:
        shutil.rmtree(index)
    return len(indexes)


async def test_an_index_that_is_lost_is_made_from_our_file(directory):
    """Where the log has a gap, every vector is there again, as it was."""
    async with aiochroma.Memory(directory) as memory:
        await memory.remember_many([f"note {n}" for n in range(_MANY)], namespace="notes")
        collection = await _collection(memory)
        before = await _vectors(collection)
    _lose_log(directory)
    assert _delete_indexes(directory) == 1
    async with aiochroma.Memory(directory) as memory:
        (recovered,) = memory.client.recovery.collections
        assert recovered.rebuilt
        assert recovered.from_index > _MANY / 2
        assert not recovered.missing
        after = await _vectors(await _collection(memory))
        assert after.keys() == before.keys()
        for id, vector in before.items():
            np.testing.assert_allclose(after[id], vector, atol=1e-6)


async def test_the_log_alone_makes_everything_again(directory):
    """Without our file and without indexes every vector is there, that of a memory and that of any other record."""
    vectors = np.random.default_rng(0).random((_MANY, 16), dtype=np.float32)
    ids = [f"id{n}" for n in range(_MANY)]
    async with aiochroma.Memory(directory) as memory:
        other = await memory.client.create_collection("other", embedding_function=None)
        await other.upsert(ids=ids, embeddings=vectors)
        await memory.remember_many([f"note {n}" for n in range(_MANY)], namespace="notes")
        before = await _vectors(await _collection(memory))
    for _ in range(2):  # Neither closing nor opening takes anything out of it.
        async with aiochroma.Memory(directory) as memory:
            await memory.recall("note 3", namespaces="notes")
    assert _delete_indexes(directory) == 2
    for file in directory.glob("aiochroma-text.sqlite3*"):
        file.unlink()
    async with aiochroma.AsyncPersistentClient(directory) as client:
        found = await _vectors(await client.get_collection("other", embedding_function=None))
        after = await _vectors(await client.get_collection("notes", embedding_function=None))
    np.testing.assert_array_equal([found[id] for id in ids], vectors)
    assert after.keys() == before.keys()


async def test_both_lost_is_said(directory):
    """Without log, index and our file vectors are gone; a client names them, a memory embeds its texts again."""
    async with aiochroma.Memory(directory) as memory:
        await memory.remember_many([f"note {n}" for n in range(_MANY)], namespace="notes")
    _lose_log(directory)
    _delete_indexes(directory)
    (directory / "aiochroma-text.sqlite3").unlink()
    with pytest.raises(aiochroma.DatabaseCorruptError, match=r"vectors are lost.*notes"):
        await aiochroma.AsyncPersistentClient(directory)
    async with aiochroma.Memory(directory) as memory:
        assert len(await _vectors(await _collection(memory))) == _MANY


_PROGRAM = """
import asyncio, os, signal, sys
import aiochroma

async def main():
    async with aiochroma.Memory(sys.argv[1]) as memory:
        await memory.remember("something new", namespace="notes", id="new")
        await memory.update("id7", namespace="notes", text="changed")
        await memory.forget("id8", namespace="notes")
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_after_a_death_the_log_names_what_has_changed(directory):
    """Of a thousand memories three are copied again; then our file has everything."""
    async with aiochroma.Memory(directory) as memory:
        items = [{"id": f"id{n}", "text": f"note {n}"} for n in range(1000)]
        await memory.remember_many(items, namespace="notes")
        collection = str((await _collection(memory)).id)
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", _PROGRAM, str(directory)], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    state = log_state(directory, IndexFile(directory).noted(), was_kept=True)
    assert state.changed[collection] == {"new", "id7", "id8"}
    async with aiochroma.Memory(directory) as memory:
        assert await memory.count("notes") == 1000
        for question, id in (("something new", "new"), ("changed", "id7")):
            recall = await memory.recall(question, namespaces="notes", k=1, mode="text")
            assert (recall[0].id, recall.indexing, recall.errors) == (id, {}, {})
        assert "id8" not in [hit.id for hit in await memory.recall("note 8", namespaces="notes", k=20)]
    assert (
        log_state(directory, IndexFile(directory).noted(), was_kept=True).changed[collection] == frozenset()
    )


async def test_a_file_that_has_missed_something_is_not_believed(directory):
    """Written while the log was not kept, by a program that does not know our file: no outdated vector comes back."""
    new = np.random.default_rng(1).random((_MANY, 256), dtype=np.float32)
    ids = [f"id{n}" for n in range(_MANY)]
    async with aiochroma.Memory(directory) as memory:
        await memory.remember_many([{"id": id, "text": f"note {id}"} for id in ids], namespace="notes")
        dimensions = len(next(iter((await _vectors(await _collection(memory))).values())))
        collection = str((await _collection(memory)).id)
    ours = directory / "aiochroma-text.sqlite3"
    aside = directory.with_name("aside")
    shutil.copy(ours, aside)
    async with aiochroma.AsyncPersistentClient(directory, durable=False) as client:
        notes = await client.get_collection("notes", embedding_function=None)
        await notes.upsert(ids=ids, embeddings=new[:, :dimensions], documents=["new words"] * _MANY)
    shutil.copy(aside, ours)
    for suffix in ("-wal", "-shm"):
        Path(f"{ours}{suffix}").unlink(missing_ok=True)
    async with aiochroma.AsyncPersistentClient(directory, durable=True) as client:
        found = await _vectors(await client.get_collection("notes", embedding_function=None))
        # Chroma gives a vector back with the length that it has in its index.
        wished, unit = new[3, :dimensions], found["id3"] / np.linalg.norm(found["id3"])
        np.testing.assert_allclose(unit, wished / np.linalg.norm(wished), atol=1e-6)
    assert collection not in IndexFile(directory).noted()
    async with aiochroma.Memory(directory) as memory:
        while (recall := await memory.recall("new words", namespaces="notes", k=1, mode="text")).indexing:
            await asyncio.sleep(0.01)
        assert recall[0].text == "new words"
