"""Real databases for backup, restore, repair and the guarded open."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from ops_databases import fill


@pytest.fixture
async def database(tmp_path):
    """A durable database with an index, closed."""
    await fill(tmp_path / "db", durable=True)
    return tmp_path / "db"


@pytest.fixture
async def purged(tmp_path):
    """A database that keeps vectors in its index only, as Chroma's own do; closed."""
    await fill(tmp_path / "db")
    return tmp_path / "db"


@pytest.fixture
def unwritable():
    """Make directories unwritable, by mode or, for root, by a read-only mount."""
    mounted = []
    modes = {}

    def make(path):
        if os.geteuid() != 0:
            modes[path] = path.stat().st_mode
            path.chmod(0o500)
        elif sys.platform.startswith("linux"):
            subprocess.run(["mount", "--bind", path, path], check=True)
            mounted.append(path)
            subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        else:
            pytest.skip("root may write everywhere here")

    yield make
    for path in mounted:
        subprocess.run(["umount", path], check=True)
    for path, mode in modes.items():
        path.chmod(mode)
