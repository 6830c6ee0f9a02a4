"""Making, reading and damaging real databases."""

from __future__ import annotations

import hashlib
import os

import numpy as np

import aiochroma

RECORDS = 240


def vectors(count=RECORDS, seed=0):
    """Return a number of different vectors."""
    return np.random.default_rng(seed).standard_normal((count, 16)).astype("float32")


async def fill(path, *, durable=None, count=RECORDS, metadata=None):
    """Make a database with an index on disk."""
    async with aiochroma.AsyncPersistentClient(path, durable=durable) as client:
        collection = await client.create_collection(
            "main",
            metadata=metadata,
            embedding_function=None,
            configuration={"hnsw": {"sync_threshold": 50, "batch_size": 50}},
        )
        await collection.add(
            ids=[f"r{n}" for n in range(count)],
            embeddings=vectors(count),
            documents=[f"document {n}" for n in range(count)],
        )


async def contents(path, **options):
    """Open a database and return its records: by id the vector and the document."""
    async with aiochroma.AsyncPersistentClient(path, **options) as client:
        collection = await client.get_collection("main", embedding_function=None)
        found = await collection.get(include=["embeddings", "documents"])
        return dict(
            zip(found["ids"], zip(found["embeddings"].tolist(), found["documents"], strict=True), strict=True)
        )


def print_of(path):
    """Return what is in the files below a directory, but for the lock that every look takes."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and not file.name.startswith(".aiochroma.")
        and not file.name.endswith(("-shm", "-wal"))
    }


def index_of(path):
    """Return the index directory of the only collection."""
    (index,) = [entry.parent for entry in path.glob("*-*-*-*-*/header.bin")]
    return index


def lose_vectors(path):
    """Make an index unreadable in a way in which its vectors cannot be told apart."""
    os.truncate(index_of(path) / "index_metadata.pickle", 0)
