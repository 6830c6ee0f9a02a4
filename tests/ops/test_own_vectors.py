"""Two sides: what Chroma's index has lost comes from the file that keeps each memory's vector."""

from __future__ import annotations

import shutil

import pytest

import aiochroma
from aiochroma.embedding.words import HashedEmbedder

MANY = 1100
"""So many that Chroma writes its index to the disk and purges its log."""


def lose_index(path):
    for index in list(path.glob("*-*-*-*-*")):
        if index.is_dir():
            shutil.rmtree(index)


@pytest.fixture
async def memory_directory(tmp_path):
    """A memory whose vectors are in Chroma's index and in our own file, and in no log."""
    async with aiochroma.Memory(tmp_path / "db", embedder=HashedEmbedder(), durable=False) as memory:
        await memory.remember_many([f"The shelf of number {n} holds {n * 7} jars." for n in range(MANY)])
    return tmp_path / "db"


async def test_a_lost_index_comes_from_our_own_file(memory_directory):
    """Without log and without index every memory is there, and found by its meaning."""
    lose_index(memory_directory)
    async with aiochroma.Memory(memory_directory, embedder=HashedEmbedder(), durable=False) as memory:
        assert await memory.count() == MANY
        hits = await memory.recall("The shelf of number 77 holds 539 jars.", k=1, mode="vector")
        assert [hit.text for hit in hits] == ["The shelf of number 77 holds 539 jars."]
        assert memory.client.recovery.is_complete


async def test_without_either_the_loss_is_named(memory_directory):
    """Where our file is gone as well, what is lost is refused by number, as ever."""
    lose_index(memory_directory)
    for file in memory_directory.glob("aiochroma-text.sqlite3*"):
        file.unlink()
    with pytest.raises(aiochroma.DatabaseCorruptError, match="lost"):
        async with aiochroma.AsyncPersistentClient(memory_directory):
            pass
