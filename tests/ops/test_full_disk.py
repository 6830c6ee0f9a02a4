"""A disk without a free byte: what looks after a database says so, takes it for no damage, and loses nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from programs import PATIENCE

import aiochroma


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


async def count(path):
    """Open a memory and count."""
    async with aiochroma.Memory(path) as memory:
        return await memory.count()


async def refused(work):
    """Return what something returns, or what it is refused with: the lack of room, and no damage."""
    try:
        return await work
    except (aiochroma.BackupError, aiochroma.StoreUnavailableError) as error:
        if isinstance(error, aiochroma.DatabaseCorruptError):
            raise
        return str(error)


async def test_a_full_disk_is_no_damage(small_disk, tmp_path):
    """The doctor advises no restore, erasing is refused, and with room all is as before."""
    path, ballast = small_disk / "db", small_disk / "ballast"
    async with aiochroma.Memory(path, history=True) as memory:
        await memory.remember_many([f"note {number}" for number in range(50)])
    with ballast.open("wb") as file:
        file.write(b"x" * shutil.disk_usage(small_disk).free)
    found = await refused(aiochroma.doctor(path))
    assert "full" in found if isinstance(found, str) else found.exit_code == 0
    assert "full" in await refused(aiochroma.erase(path))
    assert "full" in str(await refused(count(path)))
    assert "full" in str(await refused(aiochroma.migrate(path, tmp_path / "elsewhere")))
    ballast.unlink()
    assert (await aiochroma.doctor(path)).exit_code == 0
    assert await count(path) == 50


LIMITED = """
import asyncio, resource, sys, aiochroma

async def main(path):
    async with aiochroma.Memory(path, embedder="hashed", history=True) as memory:
        kept = [await memory.remember(f"note {number}") for number in range(20)]
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, hard))
        for number in range(1000):
            try:
                kept.append(await memory.remember(f"text {number} " + "x" * 3000))
            except aiochroma.StoreUnavailableError as error:
                assert "ulimit -f" in str(error), error
                break
        else:
            raise AssertionError("the limit is never met")
        assert len(await memory.get_many(kept)) == await memory.count() == len(kept)
        assert await memory.recall("note 3", limit=1)
        assert await memory.forget(kept[0]) == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await memory.remember("there is room again")

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_a_limit_of_file_sizes_is_a_full_disk(tmp_path):
    """Below `ulimit -f` writing is refused before Chroma's file is cut off in the middle of a page, and reading goes on."""
    subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "memory")], check=True, timeout=PATIENCE)
