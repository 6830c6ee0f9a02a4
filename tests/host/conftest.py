"""Hosts of directories of their own, none of which outlives its test."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from host_support import Hosts
from programs import is_alive

import aiochroma
from aiochroma.host import reaching


@pytest.fixture
def starting(host_nursery):
    """What starts hosts, as `subprocess` does; how they start without it is in the tests of their life."""
    return host_nursery


@pytest.fixture
def hosts(monkeypatch, tmp_path, starting):
    """The hosts of this test, in a folder of their own; whatever is left of them is ended."""
    with tempfile.TemporaryDirectory(prefix="aio-") as folder:
        monkeypatch.setenv("AIOCHROMA_RUNTIME_DIR", folder)
        monkeypatch.setattr(reaching, "subprocess", starting)
        hosts = Hosts(folder)
        yield hosts
        for directory in [
            *hosts.directories,
            *(str(path.parent) for path in tmp_path.rglob("aiochroma-host.log")),
        ]:
            hosts.pid(directory)
        for pid in hosts.seen:
            if is_alive(pid):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
                hosts.ended(pid)


@pytest.fixture
def path(tmp_path):
    """A directory for a database."""
    return tmp_path / "store"


@pytest.fixture
def opening(hosts, path):
    """Open the directory through its host."""

    def make(**options):
        hosts.directories.add(os.path.realpath(path))
        return aiochroma.AsyncPersistentClient(path, process="shared", **options)

    return make


@pytest.fixture
async def client(opening):
    """A client of an empty database that a host serves."""
    async with opening() as client:
        yield client


@pytest.fixture
def dying_host(monkeypatch, tmp_path):
    """Hosts that write down what they carry out, and die of some requests; return what they have written down."""
    script, journal = tmp_path / "python", tmp_path / "journal"
    program = Path(__file__).with_name("dying_host.py")
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" "$@"\n')
    script.chmod(0o700)
    monkeypatch.setenv("AIOCHROMA_HOST_PYTHON", str(script))
    monkeypatch.setenv("DYING_HOST_JOURNAL", str(journal))
    return lambda: journal.read_text().splitlines() if journal.exists() else []
