"""The documents of one collection: what a vector store's methods do, as coroutines over an access."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from aiochroma._errors import EmbedderMismatchError, InvalidInputError
from aiochroma.embedding.choice import adapted
from aiochroma.memory.items import RESERVED, user_metadata
from aiochroma.memory.store import DIMENSIONS, EMBEDDER, NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from langchain_core.embeddings import Embeddings

    from aiochroma.langchain.access import Access

__all__ = ["DocumentCollection"]

T = TypeVar("T")

_FOUND = ("documents", "metadatas", "distances")


class DocumentCollection:
    """A collection that need not exist yet; see :class:`~aiochroma.langchain.AiochromaVectorStore` for the arguments.

    Args:
        name: The collection.
        embeddings: The embedder.
    """

    def __init__(self, name: str, embeddings: Embeddings) -> None:
        self._name = name
        self._embeddings = embeddings
        self._collections: dict[Access, Any] = {}

    def forget(self) -> None:
        """Forget the open collections: their clients are about to be closed."""
        self._collections.clear()

    @property
    def space(self) -> str:
        """Its distance: ``"cosine"``, ``"l2"`` or ``"ip"``; known once it was used."""
        collections = list(self._collections.values())
        configuration = collections[0].configuration.get("hnsw") if collections else None
        space: str = (configuration or {}).get("space", "cosine")
        return space

    async def _on_collection(
        self, access: Access, work: Callable[[Any], Coroutine[Any, Any, T]], *, absent: T
    ) -> T:
        """Do something with the collection; ``absent`` is the outcome where there is none."""
        from chromadb.errors import NotFoundError

        for attempt in (1, 2):
            try:
                collection = self._collections.get(access)
                if collection is None:
                    client = await access.client()
                    collection = await access.call(
                        client.get_collection, name=self._name, embedding_function=None
                    )
                    self._check(collection)
                    self._collections[access] = collection
                return await work(collection)
            except NotFoundError:  # noqa: PERF203 - there are two attempts
                # It does not exist, or somebody has deleted it, and perhaps made it again.
                if self._collections.pop(access, None) is None or attempt == 2:
                    break
        return absent

    def _check(self, collection: Any) -> None:
        stored = (collection.metadata or {}).get(EMBEDDER)
        identity = adapted(self._embeddings).identity
        if stored not in {None, identity}:
            raise EmbedderMismatchError(
                f"The collection {self._name!r} holds vectors of {stored!r} and this store embeds with {identity!r}. Vectors of "
                "different embedders cannot be compared: open the store with the first one, or use another collection."
            )

    async def _make(self, access: Access, dimensions: int) -> None:
        client = await access.client()
        await access.call(
            client.get_or_create_collection,
            name=self._name,
            configuration={"hnsw": {"space": "cosine"}},
            metadata={
                NAMESPACE: self._name,
                EMBEDDER: adapted(self._embeddings).identity,
                DIMENSIONS: dimensions,
            },
            embedding_function=None,
        )

    async def add(
        self,
        access: Access,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any]] | None,
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
        vectors = await access.embed_documents(self._embeddings, documents)
        own = [
            {key: value for key, value in one.items() if not key.startswith(RESERVED)}
            for one in metadatas or [{}] * len(documents)
        ]

        async def write(collection: Any) -> bool:
            known = await access.call(collection.get, ids=given, include=["metadatas"]) if given else None
            before = dict(zip(known["ids"], known["metadatas"], strict=True)) if known else {}
            await access.call(
                collection.upsert,
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

        if not await self._on_collection(access, write, absent=False):
            await self._make(access, len(vectors[0]))
            await self._on_collection(access, write, absent=False)
        return all_ids

    async def get(self, access: Access, ids: Sequence[str]) -> list[Document]:
        """Return documents by id."""
        if not ids:
            return []

        async def read(collection: Any) -> list[Document]:
            found = await access.call(
                collection.get, ids=list(dict.fromkeys(ids)), include=["documents", "metadatas"]
            )
            by_id = {
                id: _document(id, text, metadata)
                for id, text, metadata in zip(
                    found["ids"], found["documents"], found["metadatas"], strict=True
                )
            }
            return [by_id[id] for id in dict.fromkeys(ids) if id in by_id]

        return await self._on_collection(access, read, absent=[])

    async def delete(
        self,
        access: Access,
        ids: Sequence[str] | None,
        filter: Mapping[str, Any] | None,
        unknown: Mapping[str, Any],
    ) -> bool:
        """Delete documents."""
        _refuse(unknown)

        async def remove(collection: Any) -> bool:
            chosen = list(dict.fromkeys(ids)) if ids is not None else None
            if chosen is None and filter is None:
                chosen = (await access.call(collection.get, include=[]))["ids"]
            if chosen is None or chosen:
                await access.call(collection.delete, ids=chosen, where=filter)
            return True

        return await self._on_collection(access, remove, absent=True)

    async def search(
        self,
        access: Access,
        query: str,
        k: int,
        filter: Mapping[str, Any] | None,
        mode: Literal["vector", "hybrid", "text"],
        options: Mapping[str, Any],
    ) -> list[Document]:
        """Return the documents that are found by a question."""
        if mode == "vector":
            return [document for document, _ in await self.nearest(access, query, k, filter, options)]
        _refuse(options)
        found = await access.recall(
            self._embeddings, query, namespaces=self._name, k=k, where=filter, mode=mode
        )
        return [Document(hit.text, id=hit.id, metadata=hit.metadata) for hit in found]

    async def nearest(
        self,
        access: Access,
        query: str,
        k: int,
        filter: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> list[tuple[Document, float]]:
        """Return the documents nearest to a question, with their distances."""
        vector = await access.embed_query(self._embeddings, query)
        return await self.query(access, vector, k, filter, options)

    async def query(
        self,
        access: Access,
        vector: Sequence[float],
        k: int,
        filter: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> list[tuple[Document, float]]:
        """Return the documents nearest to a vector, with their distances."""
        result = await self._rows(access, vector, k, filter, options, include=_FOUND)
        return [
            (_document(id, text, metadata), distance)
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
        access: Access,
        query: str | Sequence[float],
        k: int,
        fetch_k: int,
        lambda_mult: float,
        filter: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> list[Document]:
        """Return documents near to a question or a vector that differ from each other."""
        vector = await access.embed_query(self._embeddings, query) if isinstance(query, str) else query
        include = ("documents", "metadatas", "embeddings")
        result = await self._rows(access, vector, max(k, fetch_k), filter, options, include=include)
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
        access: Access,
        vector: Sequence[float],
        k: int,
        filter: Mapping[str, Any] | None,
        options: Mapping[str, Any],
        *,
        include: Sequence[str],
    ) -> dict[str, Any]:
        where_document = options.get("where_document")
        _refuse({name: value for name, value in options.items() if name != "where_document"})

        async def query(collection: Any) -> dict[str, Any]:
            result: dict[str, Any] = await access.call(
                collection.query,
                query_embeddings=[list(vector)],
                n_results=k,
                where=filter,
                where_document=where_document,
                include=list(include),
            )
            return result

        return await self._on_collection(access, query, absent={name: [[]] for name in ("ids", *include)})


def _document(id: str, text: str | None, metadata: Mapping[str, Any] | None) -> Document:
    return Document(text or "", id=id, metadata=user_metadata(metadata))


def _refuse(unknown: Mapping[str, Any]) -> None:
    if unknown:
        raise InvalidInputError(f"The vector store has no argument {sorted(unknown)}.")
