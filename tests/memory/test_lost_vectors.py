"""Vectors that a broken index lost and no log held."""

from __future__ import annotations

import shutil
from pathlib import Path

import aiochroma


async def test_lost_vectors_are_made_again_from_their_texts(tmp_path):
    """A memory whose index files are gone, and whose log was purged, finds everything by meaning again."""
    texts = [
        f"note {number} about the {word}" for number in range(400) for word in ("lake", "tower", "train")
    ]
    async with aiochroma.Memory(tmp_path / "store", durable=False) as memory:
        await memory.remember_many(texts, namespace="notes")
    indexes = [entry for entry in Path(tmp_path / "store").iterdir() if (entry / "header.bin").exists()]
    assert indexes, "the index was never written to disk"
    for index in indexes:
        shutil.rmtree(index)
    async with aiochroma.Memory(tmp_path / "store", durable=False) as memory:
        assert await memory.count("notes") == len(texts)
        for text in texts[::100]:
            found = await memory.recall(text, namespaces="notes", mode="vector", k=20)
            assert text in [hit.text for hit in found]
