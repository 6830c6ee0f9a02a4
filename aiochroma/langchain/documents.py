"""The documents of one collection: what a vector store's methods do, as coroutines for either way to wait."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from aiochroma._errors import InvalidInputError
from aiochroma._threads import waits_by_blocking
from aiochroma._types import JsonObject, MetadataView, Where
from aiochroma.embedding.choice import adapted
from aiochroma.langchain.marks import EmbedderMark
from aiochroma.memory.items import RESERVED, user_metadata
from aiochroma.memory.memory import Memory
from aiochroma.memory.store import DIMENSIONS, EMBEDDER, FINGERPRINT, NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from langchain_core.embeddings import Embeddings

    from aiochroma.client.opening import LazyClient
    from aiochroma.memory.recall import Recall

__all__ = ["DocumentCollection"]

T = TypeVar("T")

_FOUND = ("documents", "metadatas", "distances")


class DocumentCollection:
    """A collection that need not exist yet; see :class:`~aiochroma.langchain.AiochromaVectorStore` for the arguments.

    Args:
        client: The client.
        name: The collection.
        embeddings: The embedder.
    """

    def __init__(self, client: LazyClient, name: str, embeddings: Embeddings) -> None:
        self.client = client
        self._name = name
        self._embeddings = embeddings
        self._mark = EmbedderMark(
            embeddings, adapted(embeddings).identity, identity_key=EMBEDDER, fingerprint_key=FINGERPRINT
        )

    @property
    def space(self) -> str:
        """Its distance: ``"cosine"``, ``"l2"`` or ``"ip"``; known once it was used."""
        collection = self.client.known_collection(self._name)
        configuration = collection.configuration.get("hnsw") if collection is not None else None
        space: str = (configuration or {}).get("space", "cosine")
        return space

    async def _embed_documents(self, texts: list[str]) -> list[list[float]]:
        embeddings = self._embeddings
        return (
            embeddings.embed_documents(texts)
            if waits_by_blocking()
            else await embeddings.aembed_documents(texts)
        )

    async def _embed_query(self, text: str) -> list[float]:
        embeddings = self._embeddings
        return embeddings.embed_query(text) if waits_by_blocking() else await embeddings.aembed_query(text)

    async def _recall(self, query: str, **arguments: Any) -> Recall:
        memory = Memory(client=await self.client.open(), embedder=self._embeddings)
        return await (await memory.open()).recall(query, **arguments)

    async def _on_collection(self, work: Callable[[Any], Coroutine[Any, Any, T]], *, absent: T) -> T:
        return await self.client.on_collection(self._name, work, absent=absent, check=self._mark.check)

    async def _make(self, dimensions: int) -> None:
        marks = {NAMESPACE: self._name, DIMENSIONS: dimensions, **await self._mark.metadata()}
        await self.client.make_collection(self._name, marks)

    async def add(
        self,
        texts: Iterable[str],
        metadatas: Sequence[MetadataView] | None,
        ids: Sequence[str | None] | None,
        unknown: Mapping[str, Any],
    ) -> list[str]:
        """Embed and store texts."""
        _refuse(unknown)
        documents = list(texts)
        for name, values in (("metadatas", metadatas), ("ids", ids)):
            if values is not None and len(values) != len(documents):
                raise InvalidInputError(
                    f"There are {len(documents)} texts and {len(values)} `{name}`; give one for each."
                )
        if not documents:
            return []
        given = [id for id in ids or () if id is not None]
        all_ids = [id or str(uuid.uuid4()) for id in ids or [None] * len(documents)]
        vectors = await self._embed_documents(documents)
        own = [
            {key: value for key, value in one.items() if not key.startswith(RESERVED)}
            for one in metadatas or [{}] * len(documents)
        ]

        async def write(collection: Any) -> bool:
            known = await collection.get(ids=given, include=["metadatas"]) if given else None
            before = dict(zip(known["ids"], known["metadatas"], strict=True)) if known else {}
            await collection.upsert(
                ids=all_ids,
                embeddings=vectors,
                documents=documents,
                metadatas=[
                    # Chroma merges metadata; None takes a value away.
                    {**dict.fromkeys(before.get(id) or ()), **values} or None
                    for id, values in zip(all_ids, own, strict=True)
                ],
            )
            return True

        if not await self._on_collection(write, absent=False):
            await self._make(len(vectors[0]))
            await self._on_collection(write, absent=False)
        return all_ids

    async def get(self, ids: Sequence[str]) -> list[Document]:
        """Return documents by id."""
        if not ids:
            return []

        async def read(collection: Any) -> list[Document]:
            found = await collection.get(ids=list(dict.fromkeys(ids)), include=["documents", "metadatas"])
            by_id = {
                id: _document(id, text, metadata)
                for id, text, metadata in zip(
                    found["ids"], found["documents"], found["metadatas"], strict=True
                )
            }
            return [by_id[id] for id in dict.fromkeys(ids) if id in by_id]

        return await self._on_collection(read, absent=[])

    async def delete(
        self,
        ids: Sequence[str] | None,
        filter: Where | None,
        unknown: Mapping[str, Any],
    ) -> bool:
        """Delete documents."""
        _refuse(unknown)

        async def remove(collection: Any) -> bool:
            chosen = list(dict.fromkeys(ids)) if ids is not None else None
            if chosen is None and filter is None:
                chosen = (await collection.get(include=[]))["ids"]
            if chosen is None or chosen:
                await collection.delete(ids=chosen, where=filter)
            return True

        return await self._on_collection(remove, absent=True)

    async def search(
        self,
        query: str,
        k: int,
        filter: Where | None,
        mode: Literal["vector", "hybrid", "text"],
        options: Mapping[str, Any],
    ) -> list[Document]:
        """Return the documents that are found by a question."""
        if mode == "vector":
            return [document for document, _ in await self.nearest(query, k, filter, options)]
        _refuse(options)
        found = await self._recall(query, namespaces=self._name, k=k, where=filter, mode=mode)
        return [Document(hit.text, id=hit.id, metadata=hit.metadata) for hit in found]

    async def nearest(
        self,
        query: str,
        k: int,
        filter: Where | None,
        options: Mapping[str, Any],
    ) -> list[tuple[Document, float]]:
        """Return the documents nearest to a question, with their distances."""
        vector = await self._embed_query(query)
        return await self.query(vector, k, filter, options)

    async def query(
        self,
        vector: Sequence[float],
        k: int,
        filter: Where | None,
        options: Mapping[str, Any],
    ) -> list[tuple[Document, float]]:
        """Return the documents nearest to a vector, with their distances."""
        result = await self._rows(vector, k, filter, options, include=_FOUND)
        return [
            # Rounding makes the distance of equal directions slightly negative, which LangChain warns of.
            (_document(id, text, metadata), max(0.0, distance) if self.space == "cosine" else distance)
            for id, text, metadata, distance in zip(
                result["ids"][0],
                result["documents"][0],
                result["metadatas"][0],
                result["distances"][0],
                strict=True,
            )
        ]

    async def diverse(
        self,
        query: str | Sequence[float],
        k: int,
        fetch_k: int,
        lambda_mult: float,
        filter: Where | None,
        options: Mapping[str, Any],
    ) -> list[Document]:
        """Return documents near to a question or a vector that differ from each other."""
        vector = await self._embed_query(query) if isinstance(query, str) else query
        include = ("documents", "metadatas", "embeddings")
        result = await self._rows(vector, max(k, fetch_k), filter, options, include=include)
        documents = [
            _document(id, text, metadata)
            for id, text, metadata in zip(
                result["ids"][0], result["documents"][0], result["metadatas"][0], strict=True
            )
        ]
        if not documents:
            return []
        chosen = maximal_marginal_relevance(
            np.asarray(vector, dtype=np.float32), result["embeddings"][0], lambda_mult, k
        )
        return [documents[index] for index in chosen]

    async def _rows(
        self,
        vector: Sequence[float],
        k: int,
        filter: Where | None,
        options: Mapping[str, Any],
        *,
        include: Sequence[str],
    ) -> dict[str, Any]:
        where_document = options.get("where_document")
        _refuse({name: value for name, value in options.items() if name != "where_document"})

        async def query(collection: Any) -> dict[str, Any]:
            result: JsonObject = await collection.query(
                query_embeddings=[list(vector)],
                n_results=k,
                where=filter,
                where_document=where_document,
                include=list(include),
            )
            return result

        return await self._on_collection(query, absent={name: [[]] for name in ("ids", *include)})


def _document(id: str, text: str | None, metadata: MetadataView | None) -> Document:
    return Document(text or "", id=id, metadata=user_metadata(metadata))


def _refuse(unknown: Mapping[str, Any]) -> None:
    if unknown:
        raise InvalidInputError(f"The vector store has no argument {sorted(unknown)}.")
