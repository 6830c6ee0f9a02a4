"""Memories on real Chroma, and an embedder whose every vector is known."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import aiochroma
from aiochroma import sync
from aiochroma.embedding.words import HashedEmbedder

PROGRAM = Path(__file__).with_name("program.py")


@pytest.fixture
def embedder():
    """The embedder of these tests: needs no extra, and knows words by their letters."""
    return HashedEmbedder()


@pytest.fixture
def path(tmp_path):
    """A directory for a memory."""
    return tmp_path / "memory"


@pytest.fixture
async def memory(path, embedder):
    """An open memory on disk."""
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        yield memory


@pytest.fixture
def shared():
    """A blocking memory in RAM for property tests; every example takes namespaces of its own."""
    with sync.Memory(None, embedder=HashedEmbedder()) as memory:
        yield memory


@pytest.fixture(scope="session")
def fresh():
    """Return a namespace that nobody has used yet."""
    numbers = itertools.count()
    return lambda: f"fresh {next(numbers)}"


class Letters:
    """Embeds a text by how often it has each letter; reads its first ``window`` words only, and says so."""

    dimensions = 27
    max_distance = 0.5

    def __init__(self, window=None, name="letters"):
        self.identity = name
        self.longest = 0
        if window is not None:
            self.window = window

    def count_tokens(self, text):
        return len(text.split())

    def embed(self, texts):
        rows = np.zeros((len(texts), 27), dtype=np.float32)
        for row, text in enumerate(texts):
            self.longest = max(self.longest, self.count_tokens(text))
            words = text.lower().split()[: getattr(self, "window", None)]
            for letter in "".join(words):
                rows[row, ord(letter) - 96 if "a" <= letter <= "z" else 0] += 1
        return rows


@pytest.fixture
def letters():
    """Return an embedder by letters."""
    return Letters


@pytest.fixture
def child(path):
    """Start the program of this folder on the memory; whatever still runs in the end is killed."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(path), *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.stdout.close()
        process.wait()
