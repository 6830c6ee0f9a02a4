"""Real Chroma behind the asynchronous client."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
from programs import python

import aiochroma

PROGRAM = Path(__file__).with_name("program.py")


@pytest.fixture
async def client(tmp_path):
    """A client of an empty database on disk."""
    async with aiochroma.AsyncPersistentClient(tmp_path / "store") as client:
        yield client


class Recorder:
    """Notes the thread of every call into Chroma's native binding, its making and its dropping included."""

    def __init__(self):
        self.calls = []

    def note(self, name):
        self.calls.append((name, threading.get_ident()))

    @property
    def threads(self):
        return {thread for _, thread in self.calls}

    @property
    def names(self):
        return {name for name, _ in self.calls}


@pytest.fixture
def bindings(monkeypatch):
    """Put a recorder between Chroma's Python and its binding."""
    import chromadb_rust_bindings

    recorder = Recorder()
    real = chromadb_rust_bindings.Bindings

    class Recording:
        fail = None

        def __init__(self, *arguments, **named):
            recorder.note("open")
            self._real = real(*arguments, **named)

        def __getattr__(self, name):
            value = getattr(self._real, name)

            def recorded(*arguments, **named):
                recorder.note(name)
                if Recording.fail is not None:
                    Recording.fail(name, *arguments)
                return value(*arguments, **named)

            return recorded

        def __del__(self):
            recorder.note("close")

    recorder.proxy = Recording
    monkeypatch.setattr(chromadb_rust_bindings, "Bindings", Recording)
    return recorder


@pytest.fixture
def program():
    """Run a command of the test program in a process of its own; return its result."""
    return partial(python, PROGRAM)
