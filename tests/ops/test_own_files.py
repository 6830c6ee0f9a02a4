"""What lies in the place of our own files: the full-text index is made again, the history is never touched."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing

import pytest

import aiochroma
from aiochroma.disk.layout import HISTORY_FILE, TEXT_INDEX_FILE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")


def pipe(file):
    """A named pipe: whoever opens it to read waits for ever."""
    os.mkfifo(file)


def directory(file):
    """A directory with something in it."""
    file.mkdir()
    (file / "note").write_text("somebody's")


def link_to_nothing(file):
    """A link to what is not there; SQLite would make a file where it points to."""
    file.symlink_to(file.parent.parent / "elsewhere.sqlite3")


def no_database(file):
    """A file of another kind."""
    file.write_text("notes of somebody else, and certainly no database of SQLite\n" * 100)


def half_a_database(file):
    """A database of SQLite that lost its second half."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 200)
    os.truncate(file, file.stat().st_size // 2)


def pipe_as_journal(file):
    """A named pipe where SQLite looks for a journal."""
    file.touch()
    os.mkfifo(file.with_name(f"{file.name}-journal"))


ODD = [pipe, directory, link_to_nothing, no_database, half_a_database, pipe_as_journal]


@pytest.fixture
async def memory_path(tmp_path):
    """A memory with a full-text index and a history, closed."""
    async with aiochroma.Memory(tmp_path / "store" / "db", history=True) as memory:
        await memory.remember("the key is under the mat", id="key")
        await memory.remember("the key is under the stone", id="key")
    return tmp_path / "store" / "db"


def replaced(path, name, make):
    """Put something odd in the place of a file of ours."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.joinpath(name + suffix).unlink(missing_ok=True)
    make(path / name)
    return path / name


async def found(path):
    """Return the texts that a recall finds."""
    async with aiochroma.Memory(path) as memory:
        return [hit.text for hit in await memory.recall("where is the key?")]


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
async def test_the_doctor_finds_says_and_mends_a_full_text_index(memory_path, make):
    """Nothing waits; what lies there is moved aside, and the index is made again when it is used."""
    replaced(memory_path, TEXT_INDEX_FILE, make)
    asked = await aiochroma.doctor(memory_path)
    assert asked.exit_code == 1
    assert [problem for problem in asked.problems if problem.startswith(TEXT_INDEX_FILE)] == list(
        asked.problems
    )
    assert any("--repair" in line and "full-text index" in line for line in asked.advice)
    mended = await aiochroma.doctor(memory_path, repair=True)
    assert mended.exit_code == 0, mended.problems
    assert any(TEXT_INDEX_FILE in line and "quarantine-" in line for line in mended.actions)
    assert os.path.lexists(memory_path / mended.quarantines[0] / TEXT_INDEX_FILE)
    assert await found(memory_path) == ["the key is under the stone"]
    assert (await aiochroma.doctor(memory_path)).exit_code == 0
    assert not (memory_path.parent / "elsewhere.sqlite3").exists()


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
async def test_a_memory_opens_whatever_lies_there(memory_path, make):
    """Recall goes on, by meaning at least; nothing waits and nothing is written through a link to nothing."""
    replaced(memory_path, TEXT_INDEX_FILE, make)
    assert await found(memory_path) == ["the key is under the stone"]
    assert not (memory_path.parent / "elsewhere.sqlite3").exists()


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
async def test_a_history_is_told_of_and_never_touched(memory_path, make):
    """It cannot be made again: the doctor says what to do, and a memory without it opens."""
    file = replaced(memory_path, HISTORY_FILE, make)
    before = os.lstat(file)
    report = await aiochroma.doctor(memory_path, repair=True)
    assert report.exit_code == 1
    assert [problem for problem in report.problems if problem.startswith(HISTORY_FILE)] == list(
        report.problems
    )
    assert any(HISTORY_FILE in line and "move it away" in line for line in report.advice)
    after = os.lstat(file)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert await found(memory_path) == ["the key is under the stone"]
    if make is pipe_as_journal:
        return  # The file itself is an empty one, which a history may begin with once the pipe is gone.
    async with aiochroma.Memory(memory_path, history=True) as memory:
        with pytest.raises(aiochroma.StoreUnavailableError, match=HISTORY_FILE):
            await memory.history("key")
    assert not (memory_path.parent / "elsewhere.sqlite3").exists()


@pytest.mark.parametrize(
    "name", ["chroma.sqlite3-journal", "chroma.sqlite3-wal", "chroma.sqlite3-shm", "chroma.sqlite3"]
)
async def test_a_pipe_in_the_place_of_chromas_files_is_refused(memory_path, name):
    """SQLite would wait for its other end for ever, on opening, and on looking."""
    (memory_path / name).unlink(missing_ok=True)
    os.mkfifo(memory_path / name)
    for work in (found(memory_path), aiochroma.doctor(memory_path), aiochroma.erase(memory_path)):
        with pytest.raises(aiochroma.DatabasePathError, match="not a regular file"):
            await work


@pytest.mark.parametrize(
    "name",
    [
        ".aiochroma.owner.json",
        ".aiochroma.seen.json",
        ".aiochroma.backup.json",
        ".aiochroma.rebuilding.json",
        "aiochroma-backup.json",
    ],
)
@pytest.mark.parametrize("make", [pipe, directory, no_database])
async def test_a_note_of_ours_is_nothing_that_anyone_waits_for(memory_path, tmp_path, name, make):
    """Notes are as untrusted as the rest: the database opens, is looked after, and backed up."""
    replaced(memory_path, name, make)
    assert await found(memory_path) == ["the key is under the stone"]
    assert (await aiochroma.doctor(memory_path)).exit_code == 0
    async with aiochroma.Memory(memory_path) as memory:
        await memory.backup(tmp_path / "backup")
