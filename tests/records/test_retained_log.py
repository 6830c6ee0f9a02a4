"""Chroma's index and our file make each other again; the log has what one of them lacks, and names it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from programs import python

import aiochroma
from aiochroma.disk.hnsw_files import map_elements, read_header
from aiochroma.disk.retained_log import RetainedLog, cut_log, log_state
from aiochroma.records.local_index import IndexFile
from aiochroma.text.index import TextIndex
from aiochroma.text.namespaces import position_of

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


def _index_of_notes(directory):
    with contextlib.closing(sqlite3.connect(directory / "chroma.sqlite3")) as connection:
        (index,) = connection.execute(
            "SELECT s.id FROM segments AS s JOIN collections AS c ON c.id = s.collection"
            " WHERE c.name = 'notes' AND s.scope = 'VECTOR'"
        ).fetchone()
    return directory / index


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


async def test_vectors_from_a_backup_come_into_our_file(directory, ours, tmp_path):
    """What neither the log nor our file has the backup gives, and the memory is found by its vector again."""
    async with aiochroma.Memory(directory) as memory:
        ids = await memory.remember_many(["The harbour is old.", "My cat is called Miso."], namespace="notes")
        await memory.backup(tmp_path / "backups")
    async with aiochroma.Memory(directory) as memory:
        assert await _found(memory, "harbour")
    with contextlib.closing(sqlite3.connect(ours)) as file, file:
        file.execute(
            "DELETE FROM vectors WHERE number IN (SELECT number FROM memories WHERE id = ?)", (ids[0],)
        )
    _lose_log(directory)
    _delete_indexes(directory)
    async with aiochroma.Memory(directory) as memory:
        found = await memory.recall("The harbour is old.", namespaces="notes", mode="vector")
        assert {hit.id for hit in found} == set(ids)


async def _change_at_random(collection, ids, times):
    """Add, replace, change and delete records in any order; return the vectors of those that live."""
    random, alive = np.random.default_rng(3), {}
    for number in range(times):
        id, vector = ids[random.integers(len(ids))], random.random(8, dtype=np.float32)
        if id not in alive or number % 7 == 0:
            await collection.add(ids=[id], embeddings=[vector], documents=["an addition"])
            vector = alive.get(id, vector)
        elif number % 4 == 0:
            await collection.upsert(ids=[id], embeddings=[vector])
        elif number % 4 == 1:
            await collection.update(ids=[id], embeddings=[vector])
        elif number % 4 == 2:
            await collection.update(ids=[id], metadatas=[{"seen": number}])
            vector = alive[id]
        else:
            await collection.delete(ids=[id])
            vector = None
        alive[id] = vector
        if vector is None:
            del alive[id]
    return alive


async def test_the_log_keeps_what_living_records_need_alone(directory):
    """What later entries supersede leaves the log, whatever was done; and with or without an index it makes everything."""
    ids, settings = [f"id{n}" for n in range(30)], {"hnsw": {"sync_threshold": 50, "batch_size": 20}}
    twins = dict(zip(ids, np.random.default_rng(0).random((30, 8), dtype=np.float32), strict=True))
    async with aiochroma.Memory(directory) as memory:
        twin = await memory.client.create_collection("twin", embedding_function=None)
        await twin.upsert(ids=ids, embeddings=list(twins.values()))
        other = await memory.client.create_collection(
            "other", embedding_function=None, configuration=settings
        )
        alive = await _change_at_random(other, ids, 150)
        gone = [alive.popitem()[0] for _ in range(3)]
        await other.delete(ids=gone)
    with contextlib.closing(sqlite3.connect(directory / "chroma.sqlite3")) as connection:
        topic = f"%{other.id}"
        vectors = connection.execute(
            "SELECT id FROM embeddings_queue WHERE topic LIKE ? AND vector IS NOT NULL", (topic,)
        ).fetchall()
        assert {id for (id,) in vectors} == alive.keys()
        # Made by one entry, and changed by another: no third one is needed.
        assert max(Counter(vectors).values()) <= 2
    for index_is_lost in (False, True):
        assert not index_is_lost or _delete_indexes(directory) >= 1
        async with aiochroma.AsyncPersistentClient(directory) as client:
            for name, expected in (("other", alive), ("twin", twins)):
                found = await _vectors(await client.get_collection(name, embedding_function=None))
                assert found.keys() == expected.keys()
                for id, vector in expected.items():
                    np.testing.assert_allclose(found[id], vector, atol=1e-6)


async def test_what_is_added_again_stays_in_the_log_once(directory):
    """Who adds the same documents each day, which Chroma ignores, has one vector of each there, with an index or without."""
    ids, vectors = [f"id{n}" for n in range(50)], np.random.default_rng(7).random((50, 8), dtype=np.float32)
    async with aiochroma.AsyncPersistentClient(directory, durable=True) as client:
        notes = await client.create_collection("notes", embedding_function=None)
        for day in range(5):
            await notes.add(ids=ids, embeddings=vectors + day, documents=[f"of day {day}"] * 50)
        await notes.update(ids=ids[:10], metadatas=[{"n": 2}] * 10)
        await notes.add(ids=ids[:10], embeddings=vectors[:10] + 9)
    with contextlib.closing(sqlite3.connect(directory / "chroma.sqlite3")) as connection:
        entries = connection.execute("SELECT id, vector IS NOT NULL FROM embeddings_queue").fetchall()
    assert Counter(id for id, has_vector in entries if has_vector) == Counter(ids)
    assert max(Counter(id for id, has_vector in entries if not has_vector).values()) <= 2
    for index_is_lost in (False, True):
        assert not index_is_lost or _delete_indexes(directory) >= 1
        async with aiochroma.AsyncPersistentClient(directory, durable=True) as client:
            notes = await client.get_collection("notes", embedding_function=None)
            found = await _vectors(notes)
            for id, vector in zip(ids, vectors, strict=True):
                np.testing.assert_allclose(found[id], vector, atol=1e-6)
            assert set((await notes.get(include=["documents"]))["documents"]) == {"of day 0"}


async def test_false_numbers_in_the_list_of_entries_keep_nobody_from_writing(directory):
    """The table of the triggers has an entry twice, of another record, and of none: writes go on, and nothing is lost."""
    ids, vectors = ["a", "b", "c"], np.eye(3, dtype=np.float32)
    async with aiochroma.AsyncPersistentClient(directory, durable=True) as client:
        notes = await client.create_collection("notes", embedding_function=None)
        await notes.upsert(ids=ids, embeddings=vectors)
    with contextlib.closing(sqlite3.connect(directory / "chroma.sqlite3")) as connection, connection:
        connection.execute(
            "INSERT INTO aiochroma_log SELECT e.id, n.value FROM embeddings AS e, json_each('[1, 2, 3, 4, 5, 6, 99]') AS n"
        )
    async with aiochroma.AsyncPersistentClient(directory, durable=True) as client:
        notes = await client.get_collection("notes", embedding_function=None)
        await notes.upsert(ids=["a"], embeddings=vectors[1:2])
        await notes.add(ids=["b"], embeddings=vectors[2:])
        await notes.update(ids=["c"], metadatas=[{"n": 1}])
        await notes.delete(ids=["a"])
    assert _delete_indexes(directory) <= 1
    async with aiochroma.AsyncPersistentClient(directory, durable=True) as client:
        found = await _vectors(await client.get_collection("notes", embedding_function=None))
        assert {id: vector.tolist() for id, vector in found.items()} == {"b": [0, 1, 0], "c": [0, 0, 1]}


@pytest.mark.parametrize("durable", [True, False])
async def test_the_log_has_no_text_that_is_in_chromas_tables(directory, durable):
    """Chroma reads again for each write what its index on disk does not have yet, and needs nothing of it but the vectors."""
    ids, vectors = [f"id{n}" for n in range(20)], np.random.default_rng(5).random((20, 8), dtype=np.float32)
    async with aiochroma.AsyncPersistentClient(directory, durable=durable) as client:
        notes = await client.create_collection("notes", embedding_function=None)
        texts = {id: f"\N{GRINNING FACE} {id}" for id in ids}
        await notes.add(
            ids=ids, embeddings=vectors, documents=list(texts.values()), metadatas=[{"n": 1}] * 20
        )
        await notes.upsert(ids=ids[:5], embeddings=vectors[5:10], documents=["again"] * 5)
        await notes.update(ids=ids[5:10], embeddings=vectors[5:10], documents=["changed"] * 5)
        await notes.update(ids=ids[5:10], metadatas=[{"n": 2}] * 5)
        await notes.delete(ids=ids[-5:])
        texts.update(dict.fromkeys(ids[:5], "again") | dict.fromkeys(ids[5:10], "changed"))
    with contextlib.closing(sqlite3.connect(directory / "chroma.sqlite3")) as connection:
        assert connection.execute(
            "SELECT count(nullif(metadata, '{}')), count(vector) > 0 FROM embeddings_queue WHERE topic LIKE ?",
            (f"%{notes.id}",),
        ).fetchone() == (0, True)
    async with aiochroma.AsyncPersistentClient(directory) as client:
        notes = await client.get_collection("notes", embedding_function=None)
        found = await notes.get(include=["documents", "metadatas", "embeddings"])
        expected = dict(zip(ids[:15], np.concatenate([vectors[5:10], vectors[5:15]]), strict=True))
        assert dict(zip(found["ids"], found["documents"], strict=True)) == {id: texts[id] for id in expected}
        assert [metadata["n"] for metadata in found["metadatas"]] == [1] * 5 + [2] * 5 + [1] * 5
        for id, vector in zip(found["ids"], found["embeddings"], strict=True):
            np.testing.assert_allclose(vector, expected[id], atol=1e-6)


async def test_files_get_smaller_with_what_is_forgotten(directory):
    """Neither Chroma's file nor ours keeps the room of what was deleted."""
    files = [directory / "chroma.sqlite3", directory / "aiochroma-text.sqlite3"]
    async with aiochroma.Memory(directory) as memory:
        await memory.remember_many(
            [f"note {n}, of which nothing stays" for n in range(500)], namespace="notes"
        )
    full = [file.stat().st_size for file in files]
    async with aiochroma.Memory(directory) as memory:
        await memory.forget_namespace("notes")
    assert all(file.stat().st_size < size * 0.7 for file, size in zip(files, full, strict=True))


async def _filled(directory):
    """Make memories and other records; return the vectors of both."""
    ids, vectors = (
        [f"id{n}" for n in range(_MANY)],
        np.random.default_rng(0).random((_MANY, 16), dtype=np.float32),
    )
    async with aiochroma.Memory(directory) as memory:
        other = await memory.client.create_collection("other", embedding_function=None)
        await other.upsert(ids=ids, embeddings=vectors)
        await memory.remember_many([{"id": id, "text": f"note {id}"} for id in ids], namespace="notes")
        return await _vectors(await _collection(memory)), dict(zip(ids, vectors, strict=True))


def _in_log(directory):
    """Return of how many records of each collection the log has the vector."""
    with contextlib.closing(sqlite3.connect(directory / "chroma.sqlite3")) as connection:
        return dict(
            connection.execute(
                "SELECT c.name, count(DISTINCT q.id) FROM embeddings_queue AS q"
                " JOIN collections AS c ON q.topic LIKE '%' || c.id WHERE q.vector IS NOT NULL GROUP BY c.name"
            )
        )


async def _stored(directory):
    async with aiochroma.AsyncPersistentClient(directory) as client:
        for name in ("notes", "other"):
            yield await _vectors(await client.get_collection(name, embedding_function=None))


def _lose_own_file(directory):
    for file in directory.glob("aiochroma-text.sqlite3*"):
        file.unlink()


@pytest.mark.parametrize(
    "lost", [_delete_indexes, _lose_own_file, None], ids=["indexes", "our file", "nothing"]
)
async def test_each_side_makes_the_other_again(directory, lost):
    """What both Chroma's index and our file have leaves the log; of records that are no memories the log keeps all."""
    notes, others = await _filled(directory)
    for _ in range(2):
        kept = _in_log(directory)
        assert kept["other"] == _MANY
        assert kept["notes"] < 256
        if lost is not None:
            lost(directory)
        async with aiochroma.Memory(directory) as memory:
            assert await _found(memory, "note id3") == ["note id3"]
        after = [found async for found in _stored(directory)]
        for found, expected in zip(after, (notes, others), strict=True):
            assert found.keys() == expected.keys()
            for id, vector in expected.items():
                np.testing.assert_allclose(found[id], vector, atol=1e-6)


async def test_without_both_sides_texts_are_embedded_again(directory):
    """Of what is no memory the log has every vector; a memory's text is embedded again."""
    notes, others = await _filled(directory)
    _delete_indexes(directory)
    _lose_own_file(directory)
    async with aiochroma.Memory(directory) as memory:
        assert len(memory.client.recovery.missing) == 1
        assert await _found(memory, "note id3") == ["note id3"]
    async for found in _stored(directory):
        expected = notes if len(found["id3"]) == len(notes["id3"]) else others
        assert found.keys() == expected.keys()
        for id, vector in expected.items():
            np.testing.assert_allclose(found[id], vector, atol=1e-6)


async def test_an_older_copy_of_our_file_is_not_believed(directory):
    """Since that was made, what it lacks has left the log: no text and no vector of then comes back."""
    async with aiochroma.Memory(directory) as memory:
        await memory.remember_many(
            [{"id": f"id{n}", "text": f"note {n}"} for n in range(_MANY)], namespace="notes"
        )
        collection = str((await _collection(memory)).id)
    ours, aside = directory / "aiochroma-text.sqlite3", directory.with_name("aside")
    shutil.copy(ours, aside)
    async with aiochroma.Memory(directory) as memory:
        for n in range(0, _MANY, 2):
            await memory.update(f"id{n}", namespace="notes", text=f"letter {n}")
        now = await _vectors(await _collection(memory))
    shutil.copy(aside, ours)
    assert collection not in log_state(directory, IndexFile(directory).noted(), was_kept=True).changed
    _delete_indexes(directory)
    async with aiochroma.Memory(directory) as memory:
        assert await _found(memory, "letter 6") == ["letter 6"]
        found = await _vectors(await _collection(memory))
    assert found.keys() == now.keys()
    for id, vector in now.items():
        np.testing.assert_allclose(found[id], vector, atol=1e-6)


@pytest.mark.parametrize("lacks", [False, True])
async def test_where_our_file_lacks_a_vector_the_log_keeps_all(directory, ours, monkeypatch, lacks):
    """Nothing of the collection leaves the log then; else what both sides have does."""
    monkeypatch.setattr("aiochroma.backend.embedded.cut_log", lambda *_: None)  # Closing does not.
    await _filled(directory)
    assert _in_log(directory) == {"notes": _MANY, "other": _MANY}
    with contextlib.closing(sqlite3.connect(ours)) as file, file:
        rows = file.execute("SELECT number FROM memories WHERE id = 'id3'").fetchall()
        file.executemany("DELETE FROM vectors WHERE number = ?", rows if lacks else [])
    cut_log(directory, IndexFile(directory).noted())
    kept = _in_log(directory)
    assert kept["other"] == _MANY
    assert (kept["notes"] == _MANY) is lacks


async def test_files_of_another_index_are_noticed_without_the_log(directory):
    """Our file tells whose vectors lie there; they are made again from it."""
    notes, _ = await _filled(directory)
    index = _index_of_notes(directory)
    elements = map_elements(index / "data_level0.bin", read_header(index, None), writable=True)
    elements["vector"][:] = np.roll(elements["vector"], 1, axis=0)
    elements.flush()
    async with aiochroma.Memory(directory) as memory:
        assert [entry.rebuilt for entry in memory.client.recovery.collections] == [True]
        found = await _vectors(await _collection(memory))
    for id, vector in notes.items():
        np.testing.assert_allclose(found[id], vector, atol=1e-6)


async def test_an_index_of_another_time_is_made_again_as_a_whole(directory):
    """It lacks what came later, so what was changed since is outdated in it, too; our file has both."""
    await _filled(directory)
    aside = directory.with_name("aside")
    shutil.copytree(directory, aside)
    async with aiochroma.Memory(directory) as memory:
        for n in range(0, 40, 2):
            await memory.update(f"id{n}", namespace="notes", text=f"letter {n}")
        await memory.remember_many([f"later {n}" for n in range(600)], namespace="notes")
        now = await _vectors(await _collection(memory))
    for index in directory.glob("*/header.bin"):
        shutil.rmtree(index.parent)
        shutil.copytree(aside / index.parent.name, index.parent)
    async with aiochroma.AsyncPersistentClient(directory) as client:
        found = await _vectors(await client.get_collection("notes", embedding_function=None))
    assert found.keys() == now.keys()
    for id, vector in now.items():
        np.testing.assert_allclose(found[id], vector, atol=1e-6)


@pytest.mark.parametrize("backed_up", [False, True])
async def test_one_loss_after_the_other_loses_nothing(directory, ours, tmp_path, backed_up):
    """Once our file is lost, the log gets back what has left it; later the index is lost, before a memory was used."""
    notes, _ = await _filled(directory)
    if backed_up:
        async with aiochroma.Memory(directory) as memory:
            await memory.backup(tmp_path / "backups")
    ours.unlink()
    for _ in range(2):
        async with aiochroma.AsyncPersistentClient(directory, durable=True):
            pass
    assert _in_log(directory)["notes"] >= _MANY
    shutil.rmtree(_index_of_notes(directory))
    shutil.rmtree(tmp_path / "backups", ignore_errors=True)
    async with aiochroma.AsyncPersistentClient(directory) as client:
        found = await _vectors(await client.get_collection("notes", embedding_function=None))
    assert found.keys() == notes.keys()
    for id, vector in notes.items():
        np.testing.assert_allclose(found[id], vector, atol=1e-6)


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
    killed = await asyncio.to_thread(python, "-c", _PROGRAM, directory)
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


@pytest.mark.skipif(sys.platform == "win32", reason="the interpreter of children is a shell script")
async def test_asking_how_far_the_log_goes_stops_nobody(directory, tmp_path, monkeypatch):
    """The child that asks is stuck: requests are answered meanwhile, closing ends it, and notes how far our file goes."""
    asked, python = tmp_path / "asked", tmp_path / "python"
    python.write_text(f"#!/bin/sh\ntouch {asked}\nexec sleep 1000\n")
    python.chmod(0o700)
    monkeypatch.setenv("AIOCHROMA_PYTHON", str(python))
    async with aiochroma.Memory(directory, process="this") as memory:
        items = [{"id": f"id{n}", "text": f"note {n}"} for n in range(1000)]
        await memory.remember_many(items, namespace="notes")
        while not asked.exists():
            await memory.count("notes")
        assert await _found(memory, "note 3") == ["note 3"]
        await memory.remember("something new", namespace="notes", id="new")
        collection = str((await _collection(memory)).id)
    noted = IndexFile(directory).noted()
    assert log_state(directory, noted, was_kept=True).changed[collection] == frozenset()


@pytest.mark.parametrize("later", [0, 1])
async def test_how_far_the_log_goes_is_noted_while_it_is_open(directory, later):
    """After a thousand writes, and again where something was written meanwhile."""
    collection = await _remembered(directory, *(f"note {n}" for n in range(5)))
    noted = []

    class File:
        def note(self, positions, *, is_newest=True):
            noted.append((positions[collection], is_newest))

    retained = RetainedLog(directory, File())
    retained.wrote(999)
    retained.work()
    retained.wrote(1)
    retained.work()
    retained.wrote(later)
    while not noted:
        retained.work()
    assert noted == [(5, not later)]
    retained.close()


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


@pytest.mark.parametrize("mark", [7, 7.5, b"7", None, "", "\u00b2", "-1", str(2**63), "9" * 5000])
def test_a_mark_that_names_no_entry_is_not_believed(mark):
    """A mark is the decimal number of an entry, as we write it, and nothing else."""
    assert position_of(mark) is None


async def _found(memory, question):
    while (recall := await memory.recall(question, namespaces="notes", k=1, mode="text")).indexing:
        await asyncio.sleep(0.01)
    return [hit.text for hit in recall]


@pytest.fixture
def ours(directory):
    return directory / "aiochroma-text.sqlite3"


async def _remembered(directory, *texts):
    async with aiochroma.Memory(directory) as memory:
        await memory.remember_many([{"id": text, "text": text} for text in texts], namespace="notes")
        return str((await _collection(memory)).id)


async def test_a_damaged_page_of_our_file_does_not_close_the_database(directory, ours):
    """It is moved aside when the database is opened, and made again."""
    await _remembered(directory, *(f"note {n}" for n in range(60)))
    with contextlib.closing(sqlite3.connect(ours)) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'namespaces'").fetchone()[
            0
        ]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with ours.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    async with aiochroma.Memory(directory) as memory:
        assert await _found(memory, "note 3") == ["note 3"]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE namespaces SET watermark = '\u00b2'",
        "UPDATE namespaces SET watermark = x'FF00'",
        "UPDATE namespaces SET watermark = CAST(x'FF37' AS TEXT)",
        f"UPDATE namespaces SET watermark = '{2**70}'",
        "UPDATE vectors SET vector = x'00' WHERE number = 7",
        "UPDATE vectors SET vector = substr(vector, 5) WHERE number = 7",
    ],
)
async def test_what_was_never_written_there_is_not_believed(directory, ours, damage):
    """Odd marks and vectors of other lengths: the index of Chroma is made from the log alone, and ours again."""
    await _remembered(directory, *(f"note {n}" for n in range(_MANY)))
    with contextlib.closing(sqlite3.connect(ours)) as connection, connection:
        assert connection.execute(damage).rowcount == 1
    assert _delete_indexes(directory) == 1
    async with aiochroma.Memory(directory) as memory:
        assert len(await _vectors(await _collection(memory))) == _MANY
        assert await _found(memory, "note 3") == ["note 3"]


async def test_counting_with_a_damaged_file_asks_chroma(directory, ours):
    """What opening has not read of our file is found to be damaged by whoever needs it first, and is no error of theirs."""
    await _remembered(directory, *(f"note {n}" for n in range(60)))
    with contextlib.closing(sqlite3.connect(ours)) as connection:
        roots = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE tbl_name = 'memories'"
        ).fetchall()
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with ours.open("r+b") as file:
        for (root,) in roots:
            file.seek((root - 1) * size)
            file.write(b"\xff" * size)
    async with aiochroma.Memory(directory) as memory:
        assert await memory.count("notes") == 60
        assert await _found(memory, "note 3") == ["note 3"]


async def test_what_our_file_cannot_follow_is_copied_again(directory, monkeypatch):
    """Chroma has written, so the write succeeds, and what our file has missed is found, now and after the next opening."""
    async with aiochroma.Memory(directory) as memory:
        await memory.remember_many(["one", "two"], namespace="notes")
        collection = await _collection(memory)
        (vector, _) = (await _vectors(collection)).values()
        with monkeypatch.context() as patched:
            patched.setattr(TextIndex, "upsert", _no_memory)
            await collection.upsert(ids=["three"], embeddings=[vector], documents=["quite another"])
    async with aiochroma.Memory(directory) as memory:
        assert await _found(memory, "quite another") == ["quite another"]
        with monkeypatch.context() as patched:
            patched.setattr(TextIndex, "upsert", _no_memory)
            await memory.remember("a fourth thing", namespace="notes")
        assert await _found(memory, "a fourth thing") == ["a fourth thing"]


def _no_memory(*_, **__):
    raise MemoryError


async def test_notes_that_cannot_be_taken_back_are_not_believed_later(directory, ours):
    """Our file is locked by another program while its notes are outdated: it is another file at the next opening."""
    collection = await _remembered(directory, *(f"note {n}" for n in range(3)))
    async with aiochroma.AsyncPersistentClient(directory) as client:
        vectors = await _vectors(await client.get_collection("notes", embedding_function=None))
    with contextlib.closing(sqlite3.connect(ours, isolation_level=None)) as other:
        other.execute("UPDATE namespaces SET watermark = '999999'")
        other.execute("BEGIN IMMEDIATE")
        other.execute("SELECT * FROM namespaces").fetchall()
        async with aiochroma.AsyncPersistentClient(directory, durable=True) as client:
            notes = await client.get_collection("notes", embedding_function=None)
            await notes.upsert(
                ids=["z"], embeddings=[next(iter(vectors.values()))], documents=["something new"]
            )
    assert collection not in IndexFile(directory).noted()
    async with aiochroma.Memory(directory) as memory:
        assert await _found(memory, "something new") == ["something new"]


async def test_a_record_without_a_vector_leaves_the_others_theirs(directory):
    """Chroma fails the whole reading for one of them; the others are copied with vectors, and its outdated one goes."""
    async with aiochroma.Memory(directory) as memory:
        await memory.remember_many([f"note {n}" for n in range(200)], namespace="notes")
        notes = await _collection(memory)
        vectors = await _vectors(notes)
        await notes.upsert(ids=["bare"], embeddings=[next(iter(vectors.values()))])
        await memory.remember_many([f"more {n}" for n in range(1000)], namespace="notes")
        vectors = await _vectors(notes)
    _lose_log(directory)
    _delete_indexes(directory)
    file = IndexFile(directory)
    file.distrust([str(notes.id)])
    async with aiochroma.AsyncPersistentClient(directory, allow_missing_vectors=True) as client:
        lost = [id for ids in client.recovery.missing.values() for id in ids if id != "bare"]
        notes = await client.get_collection("notes", embedding_function=None)
        await notes.upsert(ids=lost, embeddings=[vectors[id] for id in lost])
    async with aiochroma.Memory(directory) as memory:
        await _found(memory, "note 3")
        assert [set(ids) for ids in memory.client.recovery.missing.values()] == [{"bare"}]
    held = {id for ids, _ in file.vectors(str(notes.id)) for id in ids}
    assert held == vectors.keys() - {"bare"}
