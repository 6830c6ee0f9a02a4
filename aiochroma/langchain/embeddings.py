"""An embedder of ours where LangChain wants ``Embeddings``; a memory takes LangChain's as they are."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from langchain_core.embeddings import Embeddings

if TYPE_CHECKING:
    from aiochroma.embedding.choice import EmbedderFunction

__all__ = ["AiochromaEmbeddings"]


class AiochromaEmbeddings(Embeddings):
    """Gives an embedder the interface of LangChain's.

    Args:
        embedder: An :class:`aiochroma.Embedder`, or the name of one of ours. Default: the one that a memory uses for a new
            database, which needs no network.
    """

    def __init__(self, embedder: Any = None) -> None:
        self._given = embedder

    @cached_property
    def embedder(self) -> EmbedderFunction:
        """What a memory makes of the embedder; loaded when first used."""
        from aiochroma.embedding.choice import chosen

        return chosen(self._given)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text."""
        return [[float(value) for value in vector] for vector in self.embedder.function(texts)]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question."""
        function = self.embedder.function
        (vector,) = function.embed_query([text]) if hasattr(function, "embed_query") else function([text])
        return [float(value) for value in vector]
