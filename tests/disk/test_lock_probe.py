"""A foreign process that holds SQLite's lock is seen without touching SQLite."""

from __future__ import annotations

import os
import shutil
import threading

import pytest
from programs import printed_by

from aiochroma.disk.sqlite_file import LockProbe, is_supported, prepare, wait_until_closed

pytestmark = pytest.mark.skipif(not is_supported, reason="F_GETLK is used on 64-bit Linux only")

# (write-ahead journal, statements of the other process, holds up a write, holds up a read)
HOLDERS = [
    (True, ["BEGIN IMMEDIATE"], True, False),
    (True, ["BEGIN EXCLUSIVE"], True, False),
    (True, ["BEGIN", "SELECT * FROM collections"], False, False),
    (True, ["SELECT * FROM collections"], False, False),
    (False, ["BEGIN IMMEDIATE"], True, False),
    (False, ["BEGIN EXCLUSIVE"], True, True),
    (False, ["BEGIN", "SELECT * FROM collections"], True, False),
    (False, ["SELECT * FROM collections"], False, False),
]


@pytest.fixture
def opened(request, tmp_path):
    """A database that Chroma has open in this process, in either journal mode."""
    import chromadb

    directory = tmp_path / "db"
    directory.mkdir()
    prepare(directory, write_ahead=getattr(request, "param", True))
    client = chromadb.PersistentClient(path=str(directory))
    collection = client.create_collection("main", embedding_function=None)
    collection.add(ids=["a"], embeddings=[[1.0, 2.0]])
    probe = LockProbe(directory)
    yield directory, collection, probe
    client.close()
    assert wait_until_closed_but_for(probe, directory)
    probe.close()


def wait_until_closed_but_for(probe, directory):
    """Chroma's descriptors go; the probe's own are still open."""
    wait_until_closed(directory, timeout_seconds=0.2)
    return all(os.fstat(descriptor) for descriptor in probe.descriptors)


@pytest.mark.parametrize(("opened", "statements", "writing", "reading"), HOLDERS, indirect=["opened"])
def test_a_foreign_lock_is_seen_in_both_journal_modes(opened, child, statements, writing, reading):
    """The process that would hold up Chroma is named, for writes and for reads, and nobody else is."""
    directory, _, probe = opened
    assert probe.foreign_holder() is None
    process = child.start("hold", directory, *statements)
    process.stdout.readline()
    try:
        assert probe.foreign_holder() == (process.pid if writing else None)
        assert probe.foreign_holder(writing=False) == (process.pid if reading else None)
        assert probe.wait_until_free(0.05) == (process.pid if writing else None)
    finally:
        child.finish(process)
    assert probe.foreign_holder() is None


def test_waiting_ends_when_the_lock_is_released(opened, child):
    """A wait returns None once the holder is gone."""
    directory, _, probe = opened
    process = child.start("hold", directory, "BEGIN IMMEDIATE")
    process.stdout.readline()
    assert probe.foreign_holder() == process.pid
    releaser = threading.Timer(0.1, process.stdin.close)
    releaser.start()
    assert probe.wait_until_free(60) is None
    releaser.join()
    child.finish(process)


LOCKED_OUT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN EXCLUSIVE")
except sqlite3.OperationalError as error:
    print(error)
"""


@pytest.mark.parametrize("opened", [True, False], indirect=True)
def test_asking_takes_and_drops_no_lock(opened):
    """Chroma's own write goes through while the probe is used, and others still see Chroma's locks afterwards."""
    directory, collection, probe = opened
    for number in range(20):
        assert probe.foreign_holder() is None
        collection.add(ids=[f"b{number}"], embeddings=[[1.0, float(number)]])
    assert collection.count() == 21
    # The probe's process is not locked out by its own questions, and neither is anybody else.
    assert printed_by("-c", LOCKED_OUT, directory / "chroma.sqlite3") == ""


def test_the_journal_goes_with_the_last_connection(tmp_path):
    """The probe's descriptors do not keep SQLite from removing its journal when Chroma closes."""
    import chromadb

    prepare(tmp_path, write_ahead=True)
    client = chromadb.PersistentClient(path=str(tmp_path))
    client.create_collection("main", embedding_function=None).add(ids=["a"], embeddings=[[1.0, 2.0]])
    probe = LockProbe(tmp_path)
    assert probe.foreign_holder() is None
    assert (tmp_path / "chroma.sqlite3-wal").exists()
    client.close()
    assert wait_until_closed_but_for(probe, tmp_path)
    assert not (tmp_path / "chroma.sqlite3-wal").exists()
    probe.close()


def test_a_replaced_file_is_followed(opened, child, tmp_path):
    """The probe looks at what is at the path now, and says so when nothing is."""
    directory, _, probe = opened
    assert probe.foreign_holder() is None
    moved = tmp_path / "moved"
    directory.rename(moved)
    with pytest.raises(FileNotFoundError):
        probe.foreign_holder()
    shutil.copytree(moved, directory, ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    process = child.start("hold", directory, "BEGIN IMMEDIATE")
    process.stdout.readline()
    assert probe.foreign_holder() == process.pid
    child.finish(process)
