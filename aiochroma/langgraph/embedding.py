"""Which texts of a value are embedded, and by what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from langgraph.store.base import ensure_embeddings, get_text_at_path, tokenize_path

from aiochroma._errors import EmbeddingFailedError
from aiochroma._threads import off_loop, waits_by_blocking
from aiochroma.embedding.choice import adapted, default_embedder
from aiochroma.langchain.embeddings import AiochromaEmbeddings, EmbedderMark

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from langgraph.store.base import Embeddings, IndexConfig

__all__ = ["TextIndex"]

# Not the keys of a memory's namespace: these vectors have no texts.
_IDENTITY = "aiochroma:langgraph_embedder"
_FINGERPRINT = "aiochroma:langgraph_embedder_fingerprint"


class TextIndex:
    """What a store's ``index`` says.

    Args:
        index: LangGraph's configuration.
    """

    def __init__(self, index: IndexConfig) -> None:
        self._dimensions = index.get("dims")
        self._fields = _tokenized(index.get("fields") or ["$"])
        self._given = index.get("embed")
        self._embeddings: Embeddings | None = None
        self._mark: EmbedderMark | None = None

    async def mark(self) -> EmbedderMark:
        """Return what is written down of the embedder with its vectors."""
        if self._mark is None:
            embeddings = await self._loaded()
            if isinstance(self._given, str):
                identity = f"langchain:{self._given}"
            else:
                identity = adapted(embeddings if self._given is None else self._given).identity
            self._mark = EmbedderMark(
                embeddings, identity, identity_key=_IDENTITY, fingerprint_key=_FINGERPRINT
            )
        return self._mark

    def texts(self, value: Mapping[str, Any], index: bool | Sequence[str] | None) -> list[str]:
        """Return the texts to embed of a value.

        Args:
            value: The value.
            index: What the put says: its own fields, False for none of them, None for the store's.
        """
        if index is False:
            return []
        fields = self._fields if index is None or index is True else _tokenized(index)
        return [text for field in fields for text in get_text_at_path(dict(value), field) if text.strip()]

    async def embed(self, texts: list[str]) -> list[Any]:
        """Return a vector for each text, None where the embedder finds nothing in it."""
        if not texts:
            return []
        embeddings = await self._loaded()
        rows = (
            embeddings.embed_documents(texts)
            if waits_by_blocking()
            else await embeddings.aembed_documents(texts)
        )
        return [self._checked(row) for row in rows]

    async def embed_queries(self, queries: Sequence[str]) -> dict[str, Any]:
        """Return the vector of each question, None where the embedder finds nothing in it."""
        vectors = {}
        for query in dict.fromkeys(queries):
            embeddings = await self._loaded()
            row = (
                embeddings.embed_query(query) if waits_by_blocking() else await embeddings.aembed_query(query)
            )
            vectors[query] = self._checked(row)
        return vectors

    async def _loaded(self) -> Embeddings:
        if self._embeddings is None:
            if self._given is None:
                self._embeddings = AiochromaEmbeddings(await off_loop(default_embedder))
            else:
                self._embeddings = ensure_embeddings(self._given)
        return self._embeddings

    def _checked(self, row: object) -> Any:
        vector = np.asarray(row, dtype=np.float32)
        if self._dimensions is not None and vector.shape != (self._dimensions,):
            raise EmbeddingFailedError(
                f"The embedder returned a vector of shape {vector.shape}, and the store's index says {self._dimensions} `dims`."
            )
        length = float(vector @ vector)
        return vector if 0 < length < float("inf") else None


def _tokenized(fields: Sequence[str]) -> list[str | list[str]]:
    return ["$" if field == "$" else tokenize_path(field) for field in fields]
