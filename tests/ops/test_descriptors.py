"""A process that has no file descriptors left: it is told so, whatever it was about to do, and nothing passes for damage."""

from __future__ import annotations

import subprocess
import sys

import pytest
from programs import PATIENCE

LIMITED = """
import asyncio, os, resource, sys, aiochroma

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
held = []

def leave(number):
    while True:
        try:
            held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
    for _ in range(number):
        os.close(held.pop())

def give_back():
    while held:
        os.close(held.pop())

async def once(path):
    async with aiochroma.Memory(path, embedder="hashed") as memory:
        return await memory.count()

async def main(path):
    async with aiochroma.Memory(path, embedder="hashed") as memory:
        await memory.remember_many([f"note {number}" for number in range(30)])
    for number in (0, 1, 3, 4, 7, 10, 12):
        leave(number)
        for directory, name in ((path, "old"), (path + f"-{number}", "new")):
            try:
                await once(directory)
            except aiochroma.StoreUnavailableError as error:
                assert type(error) is aiochroma.StoreUnavailableError, error
                assert "Too many open files" in str(error), error
        give_back()
    async with aiochroma.Memory(path, embedder="hashed", history=True) as memory:
        await memory.count()
        leave(0)
        try:
            await memory.history()
        except aiochroma.StoreUnavailableError as error:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            assert "The history" in str(error), error
            assert f"Too many open files. This process may have {limit} files open" in str(error), error
            assert "begin a new one" not in str(error), error
        else:
            raise AssertionError("the history needs a descriptor")
        give_back()
        await memory.remember("one more note", id="one more")
        assert [change.action for change in await memory.history()] == ["remember"]
        await memory.forget("one more")
    async with aiochroma.Memory(path, embedder="hashed") as memory:
        assert await memory.count() == 30
        for number in (0, 8, 16):
            leave(number)
            try:
                await memory.backup(path + f"-backup-{number}")
            except (aiochroma.BackupError, aiochroma.StoreUnavailableError) as error:
                assert "oo many open files" in str(error), error
            give_back()
        assert await memory.count() == 30
    assert await once(path) == 30

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_too_many_open_files_are_no_damage(tmp_path):
    """Opening and backing up are refused by name; Chroma does not panic, and no restore is advised."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "memory")],
        check=False,
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
