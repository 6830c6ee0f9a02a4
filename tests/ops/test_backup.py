"""Backup and restore: complete, verified, swapped in whole; and refused without touching anything."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from pathlib import Path

import pytest
from ops_databases import contents, fill, print_of, vectors
from programs import printed_by

import aiochroma
from aiochroma.backend import embedded
from aiochroma.disk.backup import recorded_backup
from aiochroma.ops import restore


async def test_a_backup_holds_all_that_was_acknowledged_before_it(database, tmp_path):
    """A backup that was made between two writes has the first and not the second, and names its records."""
    stages = []
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        report = await client.backup(tmp_path / "backup", progress=lambda *seen: stages.append(seen))
        await collection.add(ids=["later"], embeddings=vectors(1, seed=9))
    assert report.records == 240
    assert report.paused_ms > 0
    assert report.path == str(tmp_path / "backup")
    assert stages[-1][0] == "done"
    assert await restore(tmp_path / "backup", tmp_path / "restored") is None
    restored = await contents(tmp_path / "restored")
    assert len(restored) == 240
    assert restored["r7"] == (vectors()[7].tolist(), "document 7")


class Gated:
    """Holds something up until it is opened, then does it."""

    def __init__(self, work):
        self.work = work
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, *arguments):
        self.entered.set()
        assert self.opened.wait(60)
        return self.work(*arguments)


@pytest.fixture
def gated(monkeypatch):
    """Hold the copying of backups up."""
    gate = Gated(embedded.copy_database)
    monkeypatch.setattr(embedded, "copy_database", gate)
    return gate


async def test_a_vector_of_which_chroma_keeps_no_number(database, tmp_path):
    """A cosine of what is too long has none: its record is in the backup like any other, and in what is restored."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.create_collection(
            "angles", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )
        await collection.add(ids=["a", "b"], embeddings=[[1e30] * 8, [1.0] * 8])
        report = await client.backup(tmp_path / "backup")
    assert report.records == 242
    await aiochroma.restore(tmp_path / "backup", tmp_path / "restored")
    async with aiochroma.AsyncPersistentClient(tmp_path / "restored") as client:
        restored = await client.get_collection("angles", embedding_function=None)
        assert (await restored.get())["ids"] == ["a", "b"]


async def test_reads_go_on_while_a_backup_copies(database, tmp_path, gated, caplog):
    """Only writing waits; what was written after the copy had begun is not in it."""
    caplog.set_level("INFO", "aiochroma")
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        assert await collection.count() == 240
        backup = asyncio.ensure_future(client.backup(tmp_path / "backup"))
        await asyncio.to_thread(gated.entered.wait, 60)
        writing = asyncio.ensure_future(collection.add(ids=["later"], embeddings=vectors(1, seed=9)))
        for n in range(20):
            hits = await collection.query(query_embeddings=vectors()[n : n + 1], n_results=1)
            assert hits["ids"] == [[f"r{n}"]]
        assert await collection.count() == 240
        assert not writing.done()
        gated.opened.set()
        report = await backup
        await writing
        assert await collection.count() == 241
    assert report.records == 240
    assert len(await contents(tmp_path / "backup")) == 240
    assert "backup.copied_again" not in {record.aiochroma_event for record in caplog.records}


async def test_a_copy_that_a_read_has_written_into_is_made_again(database, tmp_path, gated, caplog):
    """The files that were copied while something was written may not fit together."""
    with sqlite3.connect(database / "chroma.sqlite3") as file:
        file.execute("CREATE TABLE of_somebody (value)")
    file.close()
    caplog.set_level("INFO", "aiochroma")
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        await collection.count()
        backup = asyncio.ensure_future(client.backup(tmp_path / "backup"))
        await asyncio.to_thread(gated.entered.wait, 60)
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript('INSERT INTO of_somebody VALUES (1)')"
        await asyncio.to_thread(printed_by, "-c", code, database / "chroma.sqlite3")
        gated.opened.set()
        report = await backup
    assert "backup.copied_again" in {record.aiochroma_event for record in caplog.records}
    assert report.records == 240
    assert len(await contents(tmp_path / "backup")) == 240


async def test_the_database_that_was_there_is_kept(database, tmp_path):
    """A restore moves what it replaces aside, whole, and the backup stays as it is."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.backup(tmp_path / "backup")
        collection = await client.get_collection("main", embedding_function=None)
        await collection.delete(ids=["r0"])
    before = print_of(tmp_path / "backup")
    kept = await restore(tmp_path / "backup", database)
    assert len(await contents(database)) == 240
    assert len(await contents(kept)) == 239
    assert print_of(tmp_path / "backup") == before
    assert recorded_backup(database) == tmp_path / "backup"
    assert str(tmp_path / "backup") in (await aiochroma.erase(database)).not_reached


async def test_rotation_keeps_the_newest_of_this_database_only(database, tmp_path):
    """With `keep` the oldest backups go; those of another database in the same folder are left alone."""
    await fill(tmp_path / "other", count=10)
    folder = tmp_path / "backups"
    async with aiochroma.AsyncPersistentClient(tmp_path / "other") as client:
        foreign = (await client.backup(folder, keep=5)).path
    async with aiochroma.AsyncPersistentClient(database) as client:
        reports = [await client.backup(folder, keep=2, verify="quick") for _ in range(3)]
        assert reports[-1].removed == (reports[0].path,)
        assert sorted(str(entry) for entry in folder.iterdir()) == sorted(
            [foreign, *(report.path for report in reports[1:])]
        )
        # Made before the clock was set back: it has the later name, and is the older one all the same.
        later = Path(reports[2].path).rename(folder / "backup-29990101T000000.000000Z")
        last = await client.backup(folder, keep=1, verify="quick")
    assert last.removed == (reports[1].path, str(later))
    assert {str(entry) for entry in folder.iterdir()} == {foreign, last.path}


async def test_an_older_backup_that_cannot_be_deleted_spoils_no_new_one(
    database, tmp_path, unwritable, caplog
):
    """The new one is complete and noted; the other stays, and the log says why."""
    folder = tmp_path / "backups"
    async with aiochroma.AsyncPersistentClient(database) as client:
        old = await client.backup(folder, keep=1)
        unwritable(Path(old.path))
        new = await client.backup(folder, keep=1)
    assert new.removed == ()
    assert recorded_backup(database) == Path(new.path)
    assert f"{old.path} is one too many" in caplog.text
    assert sorted(str(entry) for entry in folder.iterdir()) == sorted([old.path, new.path])


async def test_a_cancelled_backup_leaves_nothing_behind(database, tmp_path):
    """Whoever stops waiting for a backup gets no half of one."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        task = asyncio.ensure_future(client.backup(tmp_path / "backups" / "one"))
        while not list(tmp_path.glob("backups/*")):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left = list((tmp_path / "backups").iterdir())
        assert left == [] or [entry.name for entry in left] == ["one"]
        assert (await client.health()).status == "ok"


async def test_a_clients_timeout_is_not_for_backups(database, tmp_path):
    """A limit for single requests does not cut a backup short."""
    async with aiochroma.AsyncPersistentClient(database, timeout=60) as client:
        client.session.timeout = 0.001  # As if it had been opened with that, which takes longer itself.
        assert (await client.backup(tmp_path / "backup")).records == 240


@pytest.mark.parametrize("target", ["db/backup", "db", ".", "occupied"])
async def test_a_bad_target_is_refused(database, tmp_path, target):
    """Inside the database, the database itself, above it, or something that exists: refused, nothing written."""
    (tmp_path / "occupied").mkdir()
    before = sorted(tmp_path.iterdir())
    async with aiochroma.AsyncPersistentClient(database) as client:
        with pytest.raises(aiochroma.BackupError):
            await client.backup(tmp_path / target)
    assert sorted(tmp_path.iterdir()) == before


async def test_a_bad_number_of_backups_is_refused(database, tmp_path):
    """`keep` counts from one."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        with pytest.raises(aiochroma.BackupError, match="at least 1"):
            await client.backup(tmp_path / "backups", keep=0)


async def test_a_target_without_permission_is_refused(database, tmp_path, unwritable):
    """Where nothing may be written the message says so."""
    (tmp_path / "closed").mkdir()
    unwritable(tmp_path / "closed")
    async with aiochroma.AsyncPersistentClient(database) as client:
        with pytest.raises(aiochroma.BackupError, match=r"permission|Read-only"):
            await client.backup(tmp_path / "closed" / "backup")


async def test_what_has_no_files_cannot_be_backed_up(tmp_path):
    """A database in memory says so."""
    async with aiochroma.AsyncEphemeralClient() as client:
        with pytest.raises(aiochroma.BackupError, match="no files"):
            await client.backup(tmp_path / "backup")


@pytest.mark.parametrize("source", ["nowhere", "empty", "database", "damaged"])
async def test_what_is_no_backup_is_not_restored(database, tmp_path, source):
    """A directory without a manifest, or a backup that is damaged, is refused; the target is not touched."""
    (tmp_path / "empty").mkdir()
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.backup(tmp_path / "damaged")
    (tmp_path / "damaged" / "chroma.sqlite3").write_bytes(b"no database at all" * 1000)
    await fill(tmp_path / "database", count=5)
    before, names = print_of(database), sorted(tmp_path.iterdir())
    with pytest.raises(aiochroma.BackupError):
        await restore(tmp_path / source, database)
    with pytest.raises(aiochroma.BackupError):
        await restore(tmp_path / source, tmp_path / "new")
    assert print_of(database) == before
    assert sorted(tmp_path.iterdir()) == names


async def test_a_database_in_use_is_not_replaced(database, tmp_path):
    """As long as somebody has the target open it stays."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.backup(tmp_path / "backup")
        with pytest.raises(aiochroma.DatabaseInUseError):
            await restore(tmp_path / "backup", database)
        assert (await client.health()).documents == 240


async def test_a_directory_of_other_things_is_not_replaced(database, tmp_path):
    """A misspelled target that is full of other files is refused, not moved aside."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.backup(tmp_path / "backup")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(aiochroma.BackupError, match="not empty"):
        await restore(tmp_path / "backup", tmp_path / "home")
    assert [entry.name for entry in (tmp_path / "home").iterdir()] == ["letter.txt"]


async def test_the_manifest_says_what_is_in_the_backup(database, tmp_path):
    """The manifest can be read without this library."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.backup(tmp_path / "backup")
    manifest = json.loads((tmp_path / "backup" / "aiochroma-backup.json").read_text())
    assert manifest["source"] == str(database)
    assert [entry["records"] for entry in manifest["collections"].values()] == [240]


async def test_a_quick_verification_is_enough_for_a_backup_and_not_for_cutting_the_log(database, tmp_path):
    """Every record is in the copy; nothing is forgotten because of one whose vectors were not all read."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        report = await client.backup(tmp_path / "backup", verify="quick")
        with pytest.raises(aiochroma.BackupError, match="verify"):
            await client.backup(tmp_path / "other", verify="hardly")
    assert (report.verified, report.records) == ("quick", 240)
    assert not (database / ".aiochroma.backup.json").exists()
    await restore(tmp_path / "backup", tmp_path / "restored", verify="quick")
    assert len(await contents(tmp_path / "restored")) == 240
