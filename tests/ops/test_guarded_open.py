"""What happens to a database that is open when its files change, and to one that lost vectors when it is opened."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys

import pytest
from backends import backend_of
from ops_databases import RECORDS, contents, fill, index_of, lose_vectors, print_of, vectors

import aiochroma
from aiochroma.backend.embedded import EmbeddedBackend
from aiochroma.client.maintenance import SingleEmbedder, reembed_missing
from aiochroma.core.config import EngineOptions, Location
from aiochroma.disk.ownership import acquire
from aiochroma.disk.sqlite_file import wait_until_closed
from aiochroma.records.local_index import IndexFile


def log_entries(path):
    """Return the numbers of the writes in the log of a closed database."""
    connection = sqlite3.connect(path / "chroma.sqlite3")
    try:
        return [row[0] for row in connection.execute("SELECT seq_id FROM embeddings_queue ORDER BY seq_id")]
    finally:
        connection.close()


# -- files that are moved or replaced ----------------------------------------------------------------------------------


async def test_files_that_are_gone_are_missed_and_found_again(database, tmp_path):
    """While the files are elsewhere requests fail clearly and make nothing in their place; when they are back all goes on."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        database.rename(tmp_path / "elsewhere")
        with pytest.raises(aiochroma.DatabaseMovedError):
            await collection.count()
        with pytest.raises(aiochroma.DatabaseMovedError):
            await collection.upsert(ids=["x"], embeddings=vectors(1))
        assert not database.exists()
        (tmp_path / "elsewhere").rename(database)
        await collection.upsert(ids=["x"], embeddings=vectors(1))
        assert await collection.count() == RECORDS + 1


async def test_replaced_files_are_followed(database, tmp_path):
    """Requests after a restore see what was restored, and write to it."""
    shutil.copytree(database, tmp_path / "copy")
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        await collection.delete(ids=["r0", "r1"])
        database.rename(tmp_path / "old")
        (tmp_path / "copy").rename(database)
        await collection.upsert(ids=["new"], embeddings=vectors(1))
        assert await collection.count() == RECORDS + 1
    assert "new" in await contents(database)


async def test_a_failed_reopening_is_tried_again(database, tmp_path):
    """When somebody else has the replaced files open requests say so, and the first one after that works."""
    shutil.copytree(database, tmp_path / "copy")
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        database.rename(tmp_path / "old")
        (tmp_path / "copy").rename(database)
        other = acquire(database)
        with pytest.raises(aiochroma.DatabaseInUseError):
            await collection.count()
        assert (await client.health()).status == "unavailable"
        other.release()
        assert await collection.count() == RECORDS
        assert (await client.health()).status == "ok"


async def test_a_reset_says_what_keeps_the_database_from_opening(database):
    """As often as it is asked for; when that is gone, it opens."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        file = database / "chroma.sqlite3"
        whole = file.read_bytes()
        os.truncate(file, 8192)
        for _ in range(3):
            with pytest.raises(aiochroma.DatabaseCorruptError):
                await client.reset_connection()
        file.write_bytes(whole)
        await client.reset_connection()
        assert [collection.name for collection in await client.list_collections()] == ["main"]


async def test_reset_connection_starts_anew_where_the_files_are_gone(database):
    """Asked for explicitly, a new database is made in the place of one that was deleted."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        shutil.rmtree(database)
        with pytest.raises(aiochroma.DatabaseMovedError):
            await client.list_collections()
        await client.reset_connection()
        assert await client.list_collections() == []


# -- vectors that were lost --------------------------------------------------------------------------------------------


async def test_a_durable_database_rebuilds_a_broken_index(database):
    """With the log kept, an index whose files are unreadable is rebuilt completely, and its files are set aside."""
    lose_vectors(database)
    found = await contents(database)
    assert {id: vector for id, (vector, _) in found.items()} == {
        f"r{n}": row.tolist() for n, row in enumerate(vectors())
    }
    assert len(list(database.glob("quarantine-*/*/header.bin"))) == 1


async def test_lost_vectors_are_reported_and_can_be_accepted(purged):
    """Without a kept log the loss is an error that counts the records; accepted, their ids are listed."""
    lose_vectors(purged)
    with pytest.raises(aiochroma.DatabaseCorruptError, match="reembed-missing"):
        await contents(purged)
    async with aiochroma.AsyncPersistentClient(purged, allow_missing_vectors=True) as client:
        (missing,) = client.recovery.missing.values()
        collection = await client.get_collection("main", embedding_function=None)
        assert await collection.count() == RECORDS
        assert 0 < len(missing) < RECORDS
        # Written again, they are not missing any more: the next open needs no permission.
        numbers = [int(id[1:]) for id in missing]
        await collection.upsert(ids=list(missing), embeddings=[vectors()[number] for number in numbers])
    found = await contents(purged)
    assert found["r3"] == (vectors()[3].tolist(), "document 3")


async def test_a_memory_embeds_what_lost_its_vector(tmp_path):
    """With the collection's own embedder documents get their vectors back; a collection of another one is left alone."""
    await fill(tmp_path / "db", metadata={"aiochroma:embedder": "ours"})
    lose_vectors(tmp_path / "db")

    async def embed(texts):
        return [vectors()[int(text.split()[1])] for text in texts]

    async with aiochroma.AsyncPersistentClient(tmp_path / "db", allow_missing_vectors=True) as client:
        assert client.session.describe().has_missing_vectors
        refused = await reembed_missing(client.session.submit, SingleEmbedder("theirs", embed))
        assert not refused.is_complete
        assert refused.filled == {}
        done = await reembed_missing(client.session.submit, SingleEmbedder("ours", embed))
        assert done.is_complete
        assert not client.session.describe().has_missing_vectors
    found = await contents(tmp_path / "db")
    assert found["r2"] == (vectors()[2].tolist(), "document 2")


async def test_the_log_is_cut_to_what_came_after_the_backup(database, tmp_path):
    """What the newest backup holds leaves the log at the next open; what is newer stays."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.backup(tmp_path / "backup")
        collection = await client.get_collection("main", embedding_function=None)
        await collection.add(ids=[f"later{n}" for n in range(60)], embeddings=vectors(60, seed=5))
    before = log_entries(database)
    assert len(before) == RECORDS + 60
    assert len(await contents(database)) == RECORDS + 60
    after = log_entries(database)
    assert len(after) < len(before)
    assert set(after) >= set(before[RECORDS:])


async def test_a_log_without_a_backup_is_not_cut(database, tmp_path):
    """A backup that was deleted is no backup."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.backup(tmp_path / "backup")
    shutil.rmtree(tmp_path / "backup")
    await contents(database)
    assert len(log_entries(database)) == RECORDS


async def test_what_was_cut_from_the_log_comes_from_the_backup(database, tmp_path):
    """An index that breaks after the log was cut is rebuilt from the log and the backup."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.backup(tmp_path / "backup")
        collection = await client.get_collection("main", embedding_function=None)
        await collection.upsert(ids=["r5"], embeddings=vectors(1, seed=8))
    await contents(database)
    assert len(log_entries(database)) < RECORDS
    lose_vectors(database)
    found = await contents(database)
    assert len(found) == RECORDS
    assert found["r4"] == (vectors()[4].tolist(), "document 4")
    assert found["r5"] == (vectors(1, seed=8)[0].tolist(), "document 5")


# -- faults that Chroma reports ----------------------------------------------------------------------------------------


class Faulty:
    """Chroma's API, of which one method fails a few times."""

    def __init__(self, api, method, message, times):
        from chromadb.errors import InternalError

        self._api, self._method, self._times = api, method, times
        self._error = InternalError(message)
        self.calls = 0

    def __getattr__(self, name):
        real = getattr(self._api, name)
        if name != self._method:
            return real

        def call(*arguments, **named):
            self.calls += 1
            if self.calls <= self._times:
                raise self._error
            return real(*arguments, **named)

        return call


BUSY = "Query error: Database error: error returned from database: (code: 517) database is locked"
MOVED = "Query error: Database error: error returned from database: (code: 1032) attempt to write a readonly database"
FULL = "Query error: Database error: error returned from database: (code: 13) database or disk is full"
LOGGED = "Error in compaction: Failed to apply logs to the hnsw segment writer"


def faulty(client, method, message, times=1):
    """Let the next calls of a method fail as Chroma lets them fail."""
    backend = backend_of(client)
    backend.api = Faulty(backend.api, method, message, times)
    return backend.api


async def test_a_transient_fault_is_waited_out(database):
    """A lock that goes away is nobody's business."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        api = faulty(client, "_upsert", BUSY, times=2)
        await collection.upsert(ids=["x"], embeddings=vectors(1))
        assert api.calls == 3
        assert await collection.count() == RECORDS + 1


async def test_a_moved_database_is_reopened_and_the_write_repeated(database):
    """Code 1032 is cured by opening anew."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        api = faulty(client, "_upsert", MOVED, times=99)
        await collection.upsert(ids=["x"], embeddings=vectors(1))
        assert api.calls == 1
        assert await collection.count() == RECORDS + 1


async def test_a_permanent_fault_is_raised_at_once_with_its_cause(database):
    """Nothing is repeated on a full disk; Chroma's own error is the cause, and says nothing of what the commit left."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        api = faulty(client, "_upsert", FULL, times=99)
        with pytest.raises(aiochroma.OutcomeUnknownError, match="full") as caught:
            await collection.upsert(ids=["x"], embeddings=vectors(1))
        assert "code: 13" in str(caught.value.__cause__)
        assert api.calls == 1
        # It was opened anew before the next call.
        await collection.upsert(ids=["x"], embeddings=vectors(1))


async def test_a_write_that_may_have_happened_is_not_repeated_blindly(database):
    """A deletion by filter that failed after the log had it is of unknown outcome; an upsert is repeated."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        faulty(client, "_delete", LOGGED)
        with pytest.raises(aiochroma.OutcomeUnknownError, match="log"):
            await collection.delete(where={"number": 1})
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        api = faulty(client, "_upsert", LOGGED)
        await collection.upsert(ids=["x"], embeddings=vectors(1))
        assert api.calls == 1
        assert await collection.count() == RECORDS + 1


# -- locks of other processes ------------------------------------------------------------------------------------------

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def hold():
    """Hold SQLite's lock on a database in another process, until the returned function is called."""
    held = []

    def start(path):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path / "chroma.sqlite3")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        held.append(process)
        assert process.stdout.readline() == "held\n"

        def let_go():
            process.communicate("\n")

        return let_go

    yield start
    for process in held:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="locks of others are seen on Linux only")
async def test_a_foreign_lock_is_waited_for_until_the_deadline(database, hold):
    """Nothing is written while another process holds the lock; reading goes on; when it lets go so does writing."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("main", embedding_function=None)
        let_go = hold(database)
        with (
            aiochroma.deadline(2.0),
            pytest.raises(aiochroma.DatabaseLockedError, match="nothing was written"),
        ):
            await collection.upsert(ids=["x"], embeddings=vectors(1))
        assert len((await collection.get(ids=["r1", "x"]))["ids"]) == 1
        let_go()
        await collection.upsert(ids=["x"], embeddings=vectors(1))
        assert await collection.count() == RECORDS + 1


# -- bad input ---------------------------------------------------------------------------------------------------------


async def test_a_path_without_permission(database, unwritable):
    """A directory that may not be written is refused, with the path in the message, and nothing changes."""
    before = print_of(database)
    unwritable(database)
    with pytest.raises(aiochroma.DatabasePathError, match="db"):
        await contents(database)
    assert print_of(database) == before


async def test_a_newer_format(database):
    """A database of the future is refused and not touched."""
    connection = sqlite3.connect(database / "chroma.sqlite3")
    with connection:
        connection.execute(
            "INSERT INTO migrations VALUES ('metadb', 99, '00099-from-the-future.sqlite.sql', 'CREATE TABLE x (y)', 'hash')"
        )
    connection.close()
    before = print_of(database)
    with pytest.raises(aiochroma.DatabaseFormatError, match="newer"):
        await contents(database)
    assert print_of(database) == before


async def test_a_damaged_sqlite_file_is_left_alone(database):
    """It is neither repaired nor overwritten; the error says what to do."""
    file = database / "chroma.sqlite3"
    content = bytearray(file.read_bytes())
    content[:16] = bytes(16)
    file.write_bytes(content)
    with pytest.raises(aiochroma.DatabaseCorruptError, match="Restore"):
        await contents(database)
    assert file.read_bytes() == bytes(content)
    assert index_of(database).exists()


def test_what_fails_when_chroma_is_open_already_leaves_nothing_behind(tmp_path):
    """The error is ours, Chroma is closed again, and the directory may be opened by whoever comes next."""

    def fail(*_):
        raise sqlite3.OperationalError("a fault of its own")

    location, file = Location("persistent", str(tmp_path)), IndexFile(tmp_path)
    with pytest.raises(aiochroma.StoreUnavailableError, match="a fault of its own") as raised:
        EmbeddedBackend(location, EngineOptions(), fail, acquire, file)
    assert wait_until_closed(tmp_path, 0.0)
    acquire(tmp_path).release()
    del raised


async def test_a_second_database_beside_the_first_is_no_matter(tmp_path):
    """Ownership is of one directory, not of all."""
    await fill(tmp_path / "one", count=3)
    await fill(tmp_path / "two", count=3)
    async with aiochroma.AsyncPersistentClient(tmp_path / "one"):
        assert len(await contents(tmp_path / "two")) == 3
