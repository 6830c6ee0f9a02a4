"""The data that every contender has: made from a seed, built once per run, copied to a directory for each contender."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

DIMENSIONS = 384
PLACES = 4
"""How many collections (or namespaces) one question is asked of."""

_CLUSTERS = 64
_QUESTIONS = 8192
_BATCH = 5000
_SUBJECTS = (
    "invoice",
    "router",
    "garden",
    "orchestra",
    "passport",
    "engine",
    "recipe",
    "marathon",
    "telescope",
    "mortgage",
    "kitten",
    "server",
)
_VERBS = (
    "arrived",
    "failed",
    "started",
    "moved",
    "stopped",
    "returned",
    "improved",
    "vanished",
    "changed",
    "waited",
)
_PLACES = (
    "Lisbon",
    "Kyoto",
    "Oslo",
    "Nairobi",
    "Toronto",
    "Cusco",
    "Dublin",
    "Jaipur",
    "Tallinn",
    "Perth",
    "Quito",
    "Hanoi",
)
_WORDS = (
    "quiet",
    "broken",
    "yellow",
    "early",
    "expensive",
    "heavy",
    "famous",
    "empty",
    "local",
    "careful",
    "modern",
    "gentle",
    "narrow",
    "wooden",
)


@dataclass(frozen=True)
class Data:
    """Clustered vectors, texts, and questions about both.

    Attributes:
        records: Records in each of the collections.
        seed: Equal seeds give equal data, in whichever process.
    """

    records: int
    seed: int = 20_240_607

    @cached_property
    def centres(self) -> np.ndarray:
        return np.random.default_rng(self.seed).normal(size=(_CLUSTERS, DIMENSIONS)).astype(np.float32)

    def vectors(self, count: int, stream: int) -> np.ndarray:
        """Return vectors that lie around the centres; ``stream`` numbers the independent sets of them."""
        generator = np.random.default_rng([self.seed, stream])
        noise = generator.normal(scale=0.4, size=(count, DIMENSIONS)).astype(np.float32)
        return self.centres[generator.integers(_CLUSTERS, size=count)] + noise

    @cached_property
    def questions(self) -> np.ndarray:
        """Query vectors, more than there are ever requests outstanding: no two of those are equal."""
        return self.vectors(_QUESTIONS, 1000)

    @cached_property
    def fresh(self) -> np.ndarray:
        """Vectors to write."""
        return self.vectors(_BATCH, 2000)

    def text(self, number: int, stream: int) -> str:
        """Return a text to remember; different numbers give different texts."""
        chosen = random.Random(f"{self.seed} {stream} {number}")
        words = [chosen.choice(kind) for kind in (_WORDS, _SUBJECTS, _VERBS, _PLACES, _WORDS, _SUBJECTS)]
        return "The {} {} {} in {} because of the {} {}, note {}.".format(*words, number)

    def question_text(self, number: int) -> str:
        """Return a question; no two numbers give the same one, so no cache of embedded texts can help."""
        chosen = random.Random(f"{self.seed} question {number}")
        words = [chosen.choice(kind) for kind in (_WORDS, _SUBJECTS, _PLACES)]
        return "What about the {} {} in {}, case {}?".format(*words, number)


def place_name(place: int) -> str:
    """Return the name of a collection."""
    return f"place-{place}"


def record_id(place: int, number: int) -> str:
    return f"{place}-{number}"


def build(directory: Path, data: Data, kind: str) -> None:
    """Make a database in a process of its own, so that nothing of it stays open.

    Args:
        directory: Where.
        data: What is in it.
        kind: ``"vectors"`` (by plain chromadb) or ``"texts"`` (by ``aiochroma.Memory``: one embedder for all contenders).
    """
    process = multiprocessing.get_context("spawn").Process(
        target={"vectors": _build_vectors, "texts": _build_texts}[kind], args=(str(directory), data)
    )
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"building the {kind} in {directory} failed with exit code {process.exitcode}")


def copy(source: Path, target: Path) -> Path:
    """Give a contender a directory of its own with the same bytes."""
    return Path(shutil.copytree(source, target))


def _build_vectors(directory: str, data: Data) -> None:
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(directory, Settings(anonymized_telemetry=False))
    for place in range(PLACES):
        collection = client.create_collection(place_name(place), embedding_function=None)
        vectors = data.vectors(data.records, place)
        for start in range(0, data.records, _BATCH):
            numbers = range(start, min(data.records, start + _BATCH))
            collection.add(
                ids=[record_id(place, number) for number in numbers],
                embeddings=vectors[start : start + _BATCH],
                documents=[
                    f"record {number} of place {place}, as long as a short remark in a chat"
                    for number in numbers
                ],
            )


def _build_texts(directory: str, data: Data) -> None:
    import aiochroma

    async def remember() -> None:
        async with (
            aiochroma.AsyncPersistentClient(directory, max_write_slice_ms=1000) as client,
            aiochroma.Memory(None, client=client) as memory,
        ):
            for place in range(PLACES):
                texts = (data.text(number, 100 + place) for number in range(data.records))
                await memory.remember_many(texts, namespace=place_name(place))

    asyncio.run(remember())
