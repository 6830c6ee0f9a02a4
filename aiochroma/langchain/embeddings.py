"""Embedders of ours where LangChain wants ``Embeddings``, LangChain's where ours are called, and which of them made vectors."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings

from aiochroma._errors import EmbedderMismatchError
from aiochroma._threads import waits_by_blocking
from aiochroma.embedding.choice import chosen
from aiochroma.embedding.functions import PROBE, fingerprint_of, is_alike, is_same_name

if TYPE_CHECKING:
    from aiochroma._types import Metadata
    from aiochroma.client.collection import Collection
    from aiochroma.embedding.choice import EmbedderFunction

__all__ = ["AiochromaEmbeddings", "EmbedderMark", "embed_documents", "embed_query"]


class AiochromaEmbeddings(Embeddings):
    """Gives an embedder the interface of LangChain's; a memory takes LangChain's as they are.

    Args:
        embedder: An :class:`aiochroma.Embedder`, or the name of one of ours. Default: the one that a memory uses for a new
            database, which needs no network.
    """

    def __init__(self, embedder: object = None) -> None:
        self._given = embedder

    @cached_property
    def embedder(self) -> EmbedderFunction:
        """What a memory makes of the embedder; loaded when first used."""
        return chosen(self._given)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text."""
        return [[float(value) for value in vector] for vector in self.embedder.function(texts)]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question."""
        function = self.embedder.function
        (vector,) = function.embed_query([text]) if hasattr(function, "embed_query") else function([text])
        return [float(value) for value in vector]


async def embed_documents(embeddings: Embeddings, texts: list[str]) -> list[list[float]]:
    """Return a vector for each text: awaited on an event loop, and blocking without one."""
    if waits_by_blocking():
        return embeddings.embed_documents(texts)
    return await embeddings.aembed_documents(texts)


async def embed_query(embeddings: Embeddings, text: str) -> list[float]:
    """Return the vector of a question: awaited on an event loop, and blocking without one."""
    if waits_by_blocking():
        return embeddings.embed_query(text)
    return await embeddings.aembed_query(text)


class EmbedderMark:
    """What a collection's metadata says about the embedder of its vectors: its name, and what it makes of one fixed text.

    Args:
        embeddings: The embedder.
        identity: Its name.
        identity_key: The key of the name in the metadata.
        fingerprint_key: The key of what it makes of the text.
    """

    def __init__(
        self, embeddings: Embeddings, identity: str, *, identity_key: str, fingerprint_key: str
    ) -> None:
        self._embeddings = embeddings
        self._identity = identity
        self._identity_key = identity_key
        self._fingerprint_key = fingerprint_key
        self._fingerprint: str | None = None

    async def metadata(self) -> Metadata:
        """Return what to write down where a collection is made."""
        return {self._identity_key: self._identity, self._fingerprint_key: await self._made_fingerprint()}

    async def check(self, collection: Collection) -> None:
        """Refuse a collection of another embedder; one that says nothing of its embedder is taken.

        Raises:
            EmbedderMismatchError: Another embedder made its vectors.
        """
        metadata = collection.metadata or {}
        stored, fingerprint = metadata.get(self._identity_key), metadata.get(self._fingerprint_key)
        if stored is None:
            return
        if isinstance(fingerprint, str):
            same = is_alike(fingerprint, await self._made_fingerprint())
        else:
            same = is_same_name(str(stored), self._identity)
        if not same:
            raise EmbedderMismatchError(
                f"The collection {collection.name!r} holds vectors of {stored!r} and this store embeds with {self._identity!r}. "
                "Vectors of different embedders cannot be compared: open the store with the first one, or use another "
                "`collection_name`."
            )

    async def _made_fingerprint(self) -> str:
        if self._fingerprint is None:
            (vector,) = await embed_documents(self._embeddings, [PROBE])
            self._fingerprint = fingerprint_of(vector)
        return self._fingerprint
