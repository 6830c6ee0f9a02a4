"""Measure what the full-text index costs: ``python tests/benchmarks/memory_cost.py``.

Remembering in batches with the index and, on the same engine, the same records written to Chroma alone; then recalls over
all of them by meaning alone and by meaning and words. Pairs of both are measured in turn, and medians are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from aiochroma import Memory
from aiochroma.embedding.words import HashedEmbedder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.records.spec import SearchMode

BATCH = 256
WORDS_PER_TEXT = 18


def texts(count: int, seed: int) -> list[str]:
    """Make texts whose words are as unevenly frequent as those of a language."""
    generator = random.Random(seed)
    syllables = [(first, second) for first in ("ka", "lo", "mi") for second in ("ren", "tas", "vu")]
    words = [f"{first}{second}{number}" for number in range(40) for first, second in syllables]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return [
        f"{' '.join(generator.choices(words, weights, k=WORDS_PER_TEXT))} item {seed}-{number}"
        for number in range(count)
    ]


async def remember(memory: Memory, count: int) -> tuple[float, float]:
    """Write batches with and without the index in turn; return seconds for each, embedding left out."""
    embedder = HashedEmbedder()
    client = memory.client
    plain = await client.get_or_create_collection(
        "plain", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )
    namespace = await memory._life.store._made("default")
    with_index, without = [], []
    for number in range(count // BATCH):
        batch = texts(BATCH, number)
        vectors: list[Any] = list(embedder.embed(batch))
        ids = [f"{number}:{n}" for n in range(BATCH)]
        metadatas = [{"aiochroma:created_at": float(n), "aiochroma:updated_at": 0.0} for n in range(BATCH)]
        common = {"ids": ids, "embeddings": vectors, "documents": batch, "uris": None}
        for kind in ("with", "without") if number % 2 else ("without", "with"):
            given = {**common, "metadatas": [dict(metadata) for metadata in metadatas]}
            begun = time.perf_counter()
            if kind == "with":
                await memory._life.store.submit(
                    "remember",
                    bulk=True,
                    **namespace.collection,
                    **given,
                    chunks=namespace.chunks,
                    exact=False,
                    dedupe=False,
                    history_namespace=None,
                )
                with_index.append(time.perf_counter() - begun)
            else:
                # Chroma gets the same: the position, which a memory is given, included.
                stored = [{**metadata, "aiochroma:position": 0.0} for metadata in metadatas]
                await memory._life.store.submit(
                    "_upsert",
                    bulk=True,
                    **{**namespace.collection, "collection_id": plain.id},
                    **{**given, "metadatas": stored},
                )
                without.append(time.perf_counter() - begun)
    await client.delete_collection("plain")
    return statistics.median(with_index) / BATCH, statistics.median(without) / BATCH


async def recall(memory: Memory, questions: Sequence[str]) -> dict[SearchMode, float]:
    """Ask in both modes in turn; return median seconds for each."""
    modes: tuple[SearchMode, ...] = ("vector", "hybrid")
    seconds: dict[SearchMode, list[float]] = {mode: [] for mode in modes}
    for question in questions:
        for mode in modes:
            begun = time.perf_counter()
            await memory.recall(question, namespaces="default", mode=mode)
            seconds[mode].append(time.perf_counter() - begun)
    return {mode: statistics.median(values) for mode, values in seconds.items()}


async def measure(count: int) -> None:
    """Measure and print both."""
    with tempfile.TemporaryDirectory() as folder:
        async with Memory(folder, embedder=HashedEmbedder()) as memory:
            with_index, without = await remember(memory, count)
            more = 100 * (with_index / without - 1)
            print(
                f"remembering, per memory: {without * 1e6:.0f} us in Chroma alone, {with_index * 1e6:.0f} us with the index "
                f"({more:+.1f} %)"
            )
            questions = [" ".join(text.split()[:6]) for text in texts(200, 10**6)]
            medians = await recall(memory, questions)
            added = 1000 * (medians["hybrid"] - medians["vector"])
            print(
                f"recall over {await memory.count()} memories: {1000 * medians['vector']:.2f} ms by meaning, "
                f"{1000 * medians['hybrid']:.2f} ms by meaning and words ({added:+.2f} ms)"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(description="What the full-text index costs.")
    parser.add_argument("--memories", type=int, default=10_000)
    options = parser.parse_args(arguments)
    asyncio.run(measure(options.memories))
    return 0


if __name__ == "__main__":
    sys.exit(main())
