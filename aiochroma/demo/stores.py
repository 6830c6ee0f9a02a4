"""The contenders behind one interface: a :class:`~aiochroma.Memory`, and plain chromadb in threads."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from aiochroma.demo.corpus import NAMESPACES
from aiochroma.embedding.choice import default_embedder
from aiochroma.memory.items import text_id
from aiochroma.memory.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.demo.corpus import Sentence

__all__ = ["Answer", "MemoryStore", "PlainStore", "Store"]


@dataclass(frozen=True)
class Answer:
    """A hit of a question; the score is comparable within one store only."""

    text: str
    namespace: str
    score: float


class Store(Protocol):
    """What the load needs."""

    name: str

    async def open(self, directory: str) -> None:
        """Open an empty store."""

    async def load(self, namespace: str, sentences: Sequence[Sentence]) -> None:
        """Write many sentences."""

    async def remember(self, namespace: str, sentence: Sentence) -> None:
        """Write one sentence."""

    async def ask(self, question: str) -> list[Answer]:
        """Search the four namespaces; best hit first."""

    async def close(self) -> None:
        """Close it, so that its directory may be removed."""


class MemoryStore:
    """aiochroma.

    Args:
        mode: ``"hybrid"``, as it is by default: by meaning and by words. ``"vector"``: by meaning alone, as plain chromadb
            searches, although with more candidates for the ranking than the hits asked for.
    """

    def __init__(self, mode: Literal["hybrid", "vector"]) -> None:
        self.name = f"aiochroma, {mode}"
        self.embedder = ""
        self._mode: Literal["hybrid", "vector"] = mode

    async def open(self, directory: str) -> None:
        """Open the memory."""
        self._memory = await Memory(directory).open()
        self.embedder = str(self._memory.stats().embedder)

    async def load(self, namespace: str, sentences: Sequence[Sentence]) -> None:
        """Write many sentences."""
        # Facts in no particular order: none lends relevance to the one that happens to stand beside it.
        items = [
            {"text": sentence.text, "metadata": sentence.metadata, "thread": False} for sentence in sentences
        ]
        await self._memory.remember_many(items, namespace=namespace)

    async def remember(self, namespace: str, sentence: Sentence) -> None:
        """Write one sentence."""
        await self._memory.remember(sentence.text, namespace=namespace, metadata=sentence.metadata)

    async def ask(self, question: str) -> list[Answer]:
        """Search the four namespaces.

        Raises:
            BaseException: A namespace failed: here that counts as a failed question.
        """
        recall = await self._memory.recall(question, namespaces=NAMESPACES, mode=self._mode)
        for error in recall.errors.values():
            raise error
        return [Answer(hit.text, hit.namespace, hit.score) for hit in recall]

    async def close(self) -> None:
        """Close the memory."""
        await self._memory.aclose()


class PlainStore:
    """What one writes without this library: chromadb's client, every call in ``asyncio.to_thread``.

    The same embedder, the same collections and the same searches, in the event loop's own executor; a question is embedded
    once and its searches run at the same time. What differs is the way to the database, what goes with it there (aiochroma
    keeps the vectors of texts it met lately, the moment at which a text was first remembered, and a full-text index).
    """

    name = "chromadb, to_thread"

    async def open(self, directory: str) -> None:
        """Open chromadb's client."""
        self._embed = (await asyncio.to_thread(default_embedder)).function
        self._client = await asyncio.to_thread(_plain_client, directory)
        self._collections: dict[str, Any] = {}

    async def load(self, namespace: str, sentences: Sequence[Sentence]) -> None:
        """Write many sentences in one call."""
        collection = await self._collection(namespace)
        await asyncio.to_thread(self._upsert, collection, sentences)

    async def remember(self, namespace: str, sentence: Sentence) -> None:
        """Write one sentence."""
        collection = await self._collection(namespace)
        await asyncio.to_thread(self._upsert, collection, [sentence])

    async def ask(self, question: str) -> list[Answer]:
        """Search the four namespaces."""
        vector = (await asyncio.to_thread(self._embed, [question]))[0]
        found = await asyncio.gather(
            *(self._search(namespace, vector, k) for namespace, k in NAMESPACES.items()),
        )
        return sorted((answer for answers in found for answer in answers), key=lambda answer: -answer.score)

    async def close(self) -> None:
        """Close chromadb's client."""
        await asyncio.to_thread(self._client.close)

    async def _search(self, namespace: str, vector: Any, k: int) -> list[Answer]:
        result = await asyncio.to_thread(
            self._collections[namespace].query,
            query_embeddings=[vector],
            n_results=k,
            include=["documents", "metadatas", "distances"],
        )
        pairs = zip(result["documents"][0], result["distances"][0], strict=True)
        return [Answer(text, namespace, 1.0 - distance) for text, distance in pairs]

    async def _collection(self, namespace: str) -> Any:
        if namespace not in self._collections:
            self._collections[namespace] = await asyncio.to_thread(
                self._client.get_or_create_collection,
                namespace,
                configuration={"hnsw": {"space": "cosine"}},
                embedding_function=None,
            )
        return self._collections[namespace]

    def _upsert(self, collection: Any, sentences: Sequence[Sentence]) -> None:
        texts = [sentence.text for sentence in sentences]
        collection.upsert(
            ids=[text_id(text) for text in texts],
            embeddings=list(self._embed(texts)),
            documents=texts,
            metadatas=[sentence.metadata or None for sentence in sentences],
        )


def _plain_client(directory: str) -> Any:
    import chromadb
    from chromadb.config import Settings

    return chromadb.PersistentClient(directory, Settings(anonymized_telemetry=False))
