"""A disk without a free byte: what looks after a database says so, takes it for no damage, and loses nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

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


async def test_a_full_disk_is_no_damage(small_disk):
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
    ballast.unlink()
    assert (await aiochroma.doctor(path)).exit_code == 0
    assert await count(path) == 50
