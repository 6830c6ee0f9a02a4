"""Vectors that a broken index lost and no log held."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path

from programs import PATIENCE

import aiochroma


def _lose_the_index(path: Path):
    indexes = [entry for entry in path.iterdir() if (entry / "header.bin").exists()]
    assert indexes, "the index was never written to disk"
    for index in indexes:
        shutil.rmtree(index)


async def test_lost_vectors_are_made_again_from_their_texts(tmp_path):
    """A memory whose index files are gone, and whose log was purged, finds everything by meaning again."""
    texts = [
        f"note {number} about the {word}" for number in range(400) for word in ("lake", "tower", "train")
    ]
    async with aiochroma.Memory(tmp_path / "store", durable=False) as memory:
        await memory.remember_many(texts, namespace="notes")
    _lose_the_index(tmp_path / "store")
    async with aiochroma.Memory(tmp_path / "store", durable=False) as memory:
        assert await memory.count("notes") == len(texts)
        for text in texts[::100]:
            found = await memory.recall(text, namespaces="notes", mode="vector", k=20)
            assert text in [hit.text for hit in found]


async def test_vectors_that_are_lost_while_a_memory_is_open_are_made_again_each_time(tmp_path):
    """Each host that opens a damaged database gets the vectors, whatever was done for the one before it."""
    async with aiochroma.Memory(tmp_path, durable=False, process="shared", host_idle=0.5) as memory:
        for number in range(2):
            await memory.remember_many(f"note {number} {word} about the lake" for word in range(2500))
            killed = memory.client.session.describe().host["pid"]
            os.kill(killed, signal.SIGKILL)
            _lose_the_index(tmp_path)
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                assert await memory.recall(f"note {number} 7 about the lake", mode="vector")
                told = memory.client.session.describe()
                if told.host["pid"] != killed and not told.has_missing_vectors:
                    break
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("the vectors were never made again")
