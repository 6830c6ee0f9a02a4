"""The doctor: what it finds, what it repairs, and what it leaves alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import threading
import uuid
from dataclasses import replace

import numpy as np
import pytest
from damage import flip
from ops_databases import RECORDS, contents, index_of, lose_vectors, print_of, vectors
from programs import command, python

import aiochroma.sync
from aiochroma._partial import PartialDirectory
from aiochroma.disk.preflight import preflight
from aiochroma.ops import doctor


def embed(texts):
    """Embed the documents of the fixtures as they were embedded."""
    return [vectors()[int(text.split()[1])] for text in texts]


async def test_a_healthy_database(database):
    """Nothing to do is said as clearly as anything else, and nothing is changed."""
    before = print_of(database)
    report = await doctor(database)
    assert report.is_healthy
    assert (report.records, report.missing, report.problems, report.actions) == (RECORDS, 0, (), ())
    assert report.durable is True
    assert report.versions["chromadb"]
    assert print_of(database) == before


async def test_a_broken_index_is_found_and_repaired_after_a_copy(database, tmp_path):
    """Found: exit code 1 and no change. Repaired: exit code 0, a copy beside, every record with its vector."""
    lose_vectors(database)
    before = print_of(database)
    found = await doctor(database)
    assert found.exit_code == 1
    assert any("--repair" in line for line in found.advice)
    assert print_of(database) == before
    repaired = await doctor(database, repair=True, backup_to=tmp_path / "copy")
    assert repaired.exit_code == 0
    assert repaired.saved_to == str(tmp_path / "copy")
    assert print_of(tmp_path / "copy") == before
    assert len(repaired.quarantines) == 1
    assert len(await contents(database)) == RECORDS


async def test_what_was_sound_at_the_last_look_is_repaired(database):
    """An opening trusts what it found before where the files look the same; what the doctor finds is looked at again."""
    for file in index_of(database).iterdir():
        os.utime(file, (1_700_000_000, 1_700_000_000))
    whole = await contents(database)
    flip(index_of(database) / "data_level0.bin", 0)
    os.utime(index_of(database) / "data_level0.bin", (1_700_000_000, 1_700_000_000))
    assert preflight(database).problems == (), "an opening looks again by itself"
    assert (await doctor(database)).exit_code == 1
    assert (await doctor(database, repair=True)).exit_code == 0
    assert await contents(database) == whole


async def test_lost_vectors_are_embedded_again(purged):
    """Documents without a vector are embedded with the embedder that is given; then nothing is missing."""
    lose_vectors(purged)
    repaired = await doctor(purged, repair=True)
    assert repaired.exit_code == 1
    assert 0 < repaired.missing < RECORDS
    unknown = await doctor(purged, reembed_missing=True)
    (reasons,) = unknown.filled.left.values()
    assert "give the embedder" in next(iter(reasons))
    filled = await doctor(purged, reembed_missing=True, embedder=embed)
    assert (filled.exit_code, filled.missing) == (0, 0)
    assert filled.filled.filled == {"main": repaired.missing}
    found = await contents(purged)
    assert found["r9"] == (vectors()[9].tolist(), "document 9")


async def test_filling_goes_on_where_it_was_interrupted(purged):
    """What was embedded before an error stays embedded; the next run does the rest."""
    lose_vectors(purged)
    seen = []

    def interrupted(texts):
        if len(seen) >= 64:
            raise RuntimeError("no more today")
        seen.extend(texts)
        return embed(texts)

    with pytest.raises(aiochroma.EmbeddingFailedError, match="no more today"):
        await doctor(purged, reembed_missing=True, embedder=interrupted)
    report = await doctor(purged)
    assert 0 < report.missing <= RECORDS - 64
    assert (await doctor(purged, reembed_missing=True, embedder=embed)).missing == 0


async def test_a_document_that_cannot_be_embedded_is_named(purged):
    """What the embedder finds nothing in is left, and listed by id."""
    lose_vectors(purged)

    def blind(texts):
        return [
            row * 0 if text == "document 3" else row for text, row in zip(texts, embed(texts), strict=True)
        ]

    report = await doctor(purged, reembed_missing=True, embedder=blind)
    assert report.filled.left == {"main": {"the embedder finds nothing in its document": ("r3",)}}
    assert report.missing == 1


async def test_several_embedders_are_named(tmp_path):
    """Where one memory cannot recall all namespaces, the advice says so, and with which command that ends."""
    for namespace, embedder in (("a", "hashed"), ("b", "wordllama")):
        async with aiochroma.Memory(tmp_path, embedder=embedder) as memory:
            await memory.remember("the lake", namespace=namespace)
    (advice,) = [line for line in await _examined(tmp_path) if "reembed" in line]
    assert "1 by hashed-ngrams" in advice
    assert "1 by wordllama" in advice
    async with aiochroma.Memory(tmp_path, embedder="wordllama") as memory:
        await memory.reembed()
    assert not [line for line in await _examined(tmp_path) if "reembed" in line]


async def _examined(path):
    return (await aiochroma.doctor(path)).advice


async def test_orphans_and_free_pages_go_when_asked(database):
    """Index directories of no collection, as plain chromadb leaves them, are set aside and the SQLite file shrinks."""
    with contextlib.closing(sqlite3.connect(database / "chroma.sqlite3", isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.delete_collection("main")
    (database / str(uuid.uuid4())).mkdir()
    found = await doctor(database)
    assert found.is_healthy
    assert len(found.orphaned_directories) == 1
    assert found.free_bytes > 0
    done = await doctor(database, repair=True, vacuum=True)
    assert done.orphaned_directories == ()
    assert done.size_bytes < found.size_bytes
    assert done.free_bytes == 0
    assert done.durable is True


async def test_a_damaged_sqlite_file_is_not_repaired(database, tmp_path):
    """Even with --repair it is left alone; the newest backup is named."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.backup(tmp_path / "backup")
    os.truncate(database / "chroma.sqlite3", 5000)
    before = print_of(database)
    report = await doctor(database, repair=True)
    assert report.exit_code == 4
    assert any(str(tmp_path / "backup") in line for line in report.advice)
    assert print_of(database) == before


async def test_a_database_in_use_is_not_examined(database):
    """While somebody has it open its owner is named, and nothing may be repaired."""
    async with aiochroma.AsyncPersistentClient(database):
        report = await doctor(database)
        assert report.exit_code == 3
        assert report.owner["pid"] == os.getpid()
        with pytest.raises(aiochroma.DatabaseInUseError):
            await doctor(database, repair=True)


async def test_the_blocking_form_refuses_to_stop_an_event_loop(database):
    """On an event loop's own thread it says how to call it; on another thread it does the same as the asynchronous one."""
    with pytest.raises(aiochroma.BlockingCallError, match="to_thread"):
        aiochroma.sync.doctor(database)
    blocking = await asyncio.to_thread(aiochroma.sync.doctor, database)
    assert replace(blocking, seconds=0) == replace(await doctor(database), seconds=0)


async def test_progress_is_shown_on_the_callers_loop(database):
    """Whichever thread does the work."""
    seen = []
    await doctor(database, progress=lambda *stage: seen.append((stage, threading.current_thread())))
    assert [stage for stage, _ in seen] == [("check", 0, 1), ("check", 1, 1)]
    assert {thread for _, thread in seen} == {threading.current_thread()}


async def test_bad_input(database, tmp_path):
    """Contradictory arguments and missing databases are refused before anything is done."""
    with pytest.raises(aiochroma.InvalidInputError):
        await doctor(database, embedder=embed)
    with pytest.raises(aiochroma.InvalidInputError):
        await doctor(database, backup_to=tmp_path / "copy")
    with pytest.raises(aiochroma.DatabasePathError):
        await doctor(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    lose_vectors(database)
    with pytest.raises(aiochroma.BackupError):
        await doctor(database, repair=True, backup_to=database / "inside")
    assert index_of(database).exists()


def test_the_command_ends_with_the_state(database, tmp_path):
    """0 healthy, 1 to be repaired, 3 not available, 4 beyond repair; JSON on request."""
    pytest.importorskip("typer")
    healthy = command("doctor", database)
    assert healthy.returncode == 0, healthy.stderr
    assert f"{RECORDS} records, each with its vector" in healthy.stdout
    saved = command("backup", database, tmp_path / "backup")
    assert saved.returncode == 0, saved.stderr
    assert saved.stdout.splitlines()[0] == str(tmp_path / "backup")
    lose_vectors(database)
    assert command("doctor", database).returncode == 1
    repaired = command("doctor", database, "--repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert json.loads(repaired.stdout)["is_healthy"] is True
    (database / "chroma.sqlite3").write_bytes(b"nothing")
    assert command("doctor", database).returncode == 4
    assert command("restore", tmp_path / "backup", database).returncode == 0
    assert command("doctor", database).returncode == 0
    assert command("doctor", tmp_path / "nowhere").returncode == 3
    refused = command("restore", tmp_path, database)
    assert refused.returncode == 3
    assert "is not a backup" in refused.stderr


async def test_what_a_killed_backup_has_left_is_found_and_removed(database, tmp_path):
    """Beside the database and beside its newest backup; one that is being made by a living process is left alone."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.backup(tmp_path / "backups" / "0")
    code = (
        "import os, pathlib, sys; from aiochroma._partial import PartialDirectory\n"
        "made = [PartialDirectory(pathlib.Path(final)) for final in sys.argv[1:]]\n"
        "[(one.path / 'data').write_bytes(bytes(1000)) for one in made]; os._exit(9)"
    )
    finals = [tmp_path / "backups" / "1", database.with_name("db.before-restore-x")]
    await asyncio.to_thread(python, "-c", code, *finals)
    living = PartialDirectory(tmp_path / "backups" / "2")
    found = await doctor(database)
    assert found.is_healthy
    assert len(found.unfinished) == 2
    assert found.unfinished_bytes >= 2000
    assert any("--repair" in line and found.unfinished[0] in line for line in found.advice)
    repaired = await doctor(database, repair=True)
    assert repaired.unfinished == ()
    assert all(any(path in line for line in repaired.actions) for path in found.unfinished)
    assert repaired.saved_to is None
    assert [entry.name for entry in (tmp_path / "backups").iterdir() if ".partial-" in entry.name] == [
        living.path.name
    ]
    living.discard()


async def write_mostly_dead(path):
    """Write a collection `things` whose index holds 100 living vectors among dead ones; return their ids and vectors."""
    vectors = np.random.default_rng(0).random((1500, 8), dtype=np.float32)
    ids = [f"id{n}" for n in range(1500)]
    async with aiochroma.AsyncPersistentClient(path, durable=True) as client:
        things = await client.create_collection("things", embedding_function=None)
        await things.upsert(ids=ids, embeddings=vectors, documents=ids)
        await things.delete(ids=ids[:1400])
        # Chroma writes its index to its files every thousand writes.
        for _ in range(12):
            await things.upsert(ids=ids[1400:], embeddings=vectors[1400:])
    return ids[1400:], vectors[1400:]


async def test_an_index_full_of_dead_vectors_is_made_again(tmp_path):
    """Chroma never takes a deleted or replaced vector out; the doctor says how many there are, and `vacuum` does."""
    path = tmp_path / "db"
    ids, vectors = await write_mostly_dead(path)
    (state,) = (await aiochroma.doctor(path)).collections
    assert state.dead > 1000
    report = await aiochroma.doctor(path, vacuum=True, backup_to=tmp_path / "before")
    assert any("made again" in action for action in report.actions)
    assert not report.problems
    (state,) = report.collections
    assert (state.dead, state.missing, state.records) == (0, 0, 100)
    assert not list(path.glob("quarantine-*"))
    async with aiochroma.AsyncPersistentClient(path) as client:
        things = await client.get_collection("things", embedding_function=None)
        found = await things.query(query_embeddings=vectors, n_results=1, include=[])
        assert [near for (near,) in found["ids"]] == ids


async def test_an_index_is_not_given_up_where_the_log_has_no_place_for_its_vectors(tmp_path):
    """An index that is made again is made from the log; one that would lose vectors on the way stays as it is."""
    path = tmp_path / "db"
    await write_mostly_dead(path)
    with contextlib.closing(sqlite3.connect(path / "chroma.sqlite3")) as connection, connection:
        connection.execute("DELETE FROM embeddings_queue")
        connection.execute("UPDATE max_seq_id SET seq_id = 50")
    report = await aiochroma.doctor(path, vacuum=True, backup_to=tmp_path / "before")
    assert not any("made again" in action for action in report.actions)
    (state,) = report.collections
    assert (state.missing, state.records) == (0, 100)
    async with aiochroma.AsyncPersistentClient(path) as client:
        things = await client.get_collection("things", embedding_function=None)
        found = await things.get(include=["embeddings"])
        assert len(found["embeddings"]) == 100
