"""Odd arguments, odd directories and an odd process: the error is ours and says what to do, or all goes on."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from programs import command

import aiochroma
from aiochroma.disk.layout import LOCK_FILE, SQLITE_FILE


@pytest.fixture
async def stored(tmp_path):
    """A memory and its backup, closed."""
    async with aiochroma.Memory(tmp_path / "db") as memory:
        await memory.remember("the key is under the mat")
        await memory.backup(tmp_path / "backup")
    return tmp_path / "db"


@pytest.mark.parametrize("odd", [None, 7, "", "a\0b", b"bytes", "\udcff"])
async def test_what_is_no_path_is_refused(stored, tmp_path, odd):
    """By everything that takes one, before anything is done."""
    for work in (
        lambda: aiochroma.doctor(odd),
        lambda: aiochroma.erase(odd),
        lambda: aiochroma.restore(odd, stored),
        lambda: aiochroma.restore(tmp_path / "backup", odd),
    ):
        with pytest.raises(aiochroma.InvalidInputError, match=r"`(path|backup)`"):
            await work()
    with pytest.raises(aiochroma.InvalidInputError, match="`path`"):
        await aiochroma.Memory("\udcff").open()


async def test_arguments_of_another_kind(stored, tmp_path):
    """A text in the place of a list of texts, and a way to verify that there is not."""
    for odd in ("a text", [7], [b"bytes"]):
        with pytest.raises(aiochroma.InvalidInputError, match="`texts`"):
            await aiochroma.erase(stored, texts=odd)
    for odd in ("fast", None, []):
        with pytest.raises(aiochroma.BackupError, match="`verify`"):
            await aiochroma.restore(tmp_path / "backup", tmp_path / "new", verify=odd)
    assert not (tmp_path / "new").exists()
    assert (await aiochroma.erase(stored, texts=["half a \ud83d emoji"])).is_complete


async def test_an_empty_file_of_sqlite_is_a_new_database(tmp_path):
    """As an opening leaves it that was killed at its first moment."""
    (tmp_path / SQLITE_FILE).touch()
    assert (await aiochroma.doctor(tmp_path)).exit_code == 0
    async with aiochroma.Memory(tmp_path) as memory:
        await memory.remember("the key is under the mat")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
@pytest.mark.parametrize("make", [os.mkdir, lambda file: file.symlink_to(file.parent / "nothing")])
async def test_a_lock_file_that_cannot_be_locked(stored, make):
    """The error names it; a link to nothing is not followed."""
    (stored / LOCK_FILE).unlink(missing_ok=True)
    make(stored / LOCK_FILE)
    for work in (lambda path: aiochroma.Memory(path).open(), aiochroma.doctor, aiochroma.erase):
        with pytest.raises(aiochroma.DatabasePathError, match=LOCK_FILE):
            await work(stored)
    assert not (stored / "nothing").exists()


async def test_a_backup_without_a_working_directory(stored, tmp_path, monkeypatch):
    """It was deleted, as after an update of the program: the child processes do not need it."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    async with aiochroma.Memory(stored) as memory:
        assert (await memory.backup(tmp_path / "second")).records == 1
    with pytest.raises(aiochroma.InvalidInputError, match="`path`"):
        await aiochroma.Memory("relative").open()


@pytest.mark.parametrize("executable", ["", None, "/nonexistent/python"])
async def test_a_backup_where_no_child_process_can_be_started(stored, tmp_path, monkeypatch, executable):
    """As inside of another program: the backup is refused, nothing is left, and the memory goes on."""
    monkeypatch.setattr(sys, "executable", executable)
    async with aiochroma.Memory(stored) as memory:
        with pytest.raises(aiochroma.BackupError, match="no child process"):
            await memory.backup(tmp_path / "second")
        assert await memory.count() == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["backup", "db"]


async def test_a_progress_that_raises_ends_no_visit(stored):
    """It is the caller's, and called on the caller's loop."""
    told = []

    def progress(stage, done, of):
        told.append(stage)
        raise RuntimeError("the terminal is gone")

    def noted(_loop, context):
        told.append(type(context["exception"]).__name__)

    asyncio.get_running_loop().set_exception_handler(noted)
    assert (await aiochroma.doctor(stored, progress=progress)).exit_code == 0
    assert "RuntimeError" in told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("doctor",), ("recall", "key", "--path"), ("erase",)])
def test_an_output_that_cannot_be_written(tmp_path, arguments):
    """One sentence and an exit code, no traceback; nothing that was closed before is needed either."""
    path = str(tmp_path / "db")
    assert command("remember", "the key is under the mat", "--path", path).returncode == 0
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "aiochroma", *arguments, path],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=100,
        )
    assert done.returncode == 3
    assert done.stderr.startswith("aiochroma: the output cannot be written")
    assert len(done.stderr.splitlines()) == 1


async def test_what_the_doctor_prints_is_shown_and_not_obeyed(tmp_path):
    """A path, or a name that another program has written, may hold escapes of a terminal."""
    path = tmp_path / "db\x1b[31m"
    async with aiochroma.Memory(path) as memory:
        await memory.remember("the key is under the mat")
    with closing(sqlite3.connect(path / SQLITE_FILE)) as connection, connection:
        connection.execute("UPDATE collections SET name = 'evil\x1b]0;owned\x07'")
    done = await asyncio.to_thread(command, "doctor", path)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert "evil\\x1b" in done.stdout
