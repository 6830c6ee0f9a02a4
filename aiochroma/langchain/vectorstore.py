"""LangChain's vector store over one collection, asynchronous and blocking on the same object."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from aiochroma._types import JsonObject, Metadata, MetadataView, Vector, Where
from aiochroma._waiting import drive
from aiochroma.client.options import check_name
from aiochroma.client.session import LazyClient, Shared
from aiochroma.embedding.choice import adapted
from aiochroma.langchain.adapters import (
    EmbedderMark,
    check_diversity,
    checked_embeddings,
    checked_rows,
    embed_documents,
    embed_query,
    refuse_options,
)
from aiochroma.memory.arguments import RESERVED, check_k, checked_ids
from aiochroma.memory.memory import Memory
from aiochroma.memory.results import user_metadata
from aiochroma.records.record import DIMENSIONS, EMBEDDER, FINGERPRINT, NAMESPACE

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    import chromadb
    from chromadb.api.types import Include, WhereDocument
    from langchain_core.embeddings import Embeddings

    from aiochroma.client.collection import Collection
    from aiochroma.records.spec import SearchMode as Mode

__all__ = ["AiochromaVectorStore"]

T = TypeVar("T")


class AiochromaVectorStore(Shared, VectorStore):
    """Documents in one collection of a database.

    The asynchronous methods and the blocking ones work on the same database thread and may be mixed; nothing runs in
    LangChain's thread pool but a blocking embedder. The collection is opened at the first call and made at the first write. It
    is compatible both ways: with a collection that ``langchain_chroma`` wrote (give the same ``collection_name`` and
    embedder), and with :class:`aiochroma.Memory`, for which it is the namespace of the same name.

    Documents are replaced by id, their metadata too. Chroma stores strings, numbers, booleans and lists of one of these.

    Args:
        path: The database's directory; None for the database in memory that all ephemeral clients of the process share.
        embedding: LangChain's embedder. Default: the offline one of :class:`aiochroma.Memory`.
        collection_name: The collection.
        client: A client to use in place of one of its own, asynchronous or blocking, of a directory or of a server; it stays
            open.

    Example:
        >>> store = AiochromaVectorStore("./memory")  # doctest: +SKIP
        >>> await store.aadd_texts(["My cat is called Kestrel."], [{"kind": "pet"}])  # doctest: +SKIP
        >>> await store.asimilarity_search("my cat?", k=1, filter={"kind": "pet"})  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = "./memory",
        embedding: Embeddings | None = None,
        *,
        collection_name: str = "langchain",
        client: object = None,
    ) -> None:
        check_name("collection_name", collection_name)
        self._embeddings = checked_embeddings(embedding)
        self._client = LazyClient(path, client)
        self._name = collection_name
        self._mark = EmbedderMark(
            self._embeddings,
            adapted(self._embeddings).identity,
            identity_key=EMBEDDER,
            fingerprint_key=FINGERPRINT,
        )

    @property
    def embeddings(self) -> Embeddings:
        """The embedder."""
        return self._embeddings

    # -- adding, looking up, deleting ----------------------------------------------------------------------------------

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[Metadata] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: object,
    ) -> list[str]:
        """Embed texts and store them, replacing what has the same id.

        Args:
            texts: The texts.
            metadatas: The metadata of each text.
            ids: The id of each text; a new one where it is None.
            kwargs: Refused; LangChain's signature has them.

        Returns:
            The ids, in order.

        Raises:
            InvalidInputError: A text is no string, there are more or fewer metadatas or ids, or an unknown argument.
            EmbedderMismatchError: The collection was written with another embedder.
            AiochromaError: See the error tree.
        """
        refuse_options(kwargs)
        documents = checked_rows(texts, metadatas, ids)
        if not documents:
            return []
        given = [id for id in ids or () if id is not None]
        all_ids = [id or str(uuid.uuid4()) for id in ids or [None] * len(documents)]
        vectors = await embed_documents(self._embeddings, documents)
        own = [
            {key: value for key, value in (one or {}).items() if not str(key).startswith(RESERVED)}
            for one in metadatas or [{}] * len(documents)
        ]

        async def write(collection: Collection) -> bool:
            before: dict[str, MetadataView | None] = {}
            if given:
                known = await collection.get(ids=given, include=["metadatas"])
                before = dict(zip(known["ids"], known["metadatas"] or (), strict=True))
            await collection.upsert(
                ids=all_ids,
                embeddings=np.asarray(vectors, dtype=np.float32),
                documents=documents,
                # Chroma merges metadata; None takes a value away.
                metadatas=[
                    cast("chromadb.Metadata", {**dict.fromkeys(before.get(id) or ()), **values} or None)
                    for id, values in zip(all_ids, own, strict=True)
                ],
            )
            return True

        if not await self._on_collection(write, absent=False):
            marks = {NAMESPACE: self._name, DIMENSIONS: len(vectors[0]), **await self._mark.metadata()}
            await self._client.make_collection(self._name, marks)
            await self._on_collection(write, absent=False)
        return all_ids

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents that have these ids, in this order; those that do not exist are left out."""
        distinct = checked_ids(ids)
        if not distinct:
            return []

        async def read(collection: Collection) -> list[Document]:
            found = await collection.get(ids=distinct, include=["documents", "metadatas"])
            rows = _documents(found["ids"], found["documents"], found["metadatas"])
            by_id = {str(row.id): row for row in rows}
            return [by_id[id] for id in distinct if id in by_id]

        return await self._on_collection(read, absent=[])

    async def adelete(
        self, ids: list[str] | None = None, *, filter: Where | None = None, **kwargs: object
    ) -> bool:
        """Delete documents.

        Args:
            ids: The ids; those that do not exist are ignored.
            filter: Chroma's filter over metadata. Neither this nor ids: all documents, as LangChain has it.
            kwargs: Refused; LangChain's signature has them.

        Returns:
            True.
        """
        refuse_options(kwargs)
        given = None if ids is None else checked_ids(ids)

        async def remove(collection: Collection) -> bool:
            doomed = given
            if doomed is None and filter is None:
                doomed = (await collection.get(include=[]))["ids"]
            if doomed is None or doomed:
                await collection.delete(ids=doomed, where=cast("chromadb.Where | None", filter))
            return True

        return await self._on_collection(remove, absent=True)

    # -- searching -----------------------------------------------------------------------------------------------------

    async def asimilarity_search(
        self, query: str, k: int = 4, *, filter: Where | None = None, mode: Mode = "vector", **kwargs: object
    ) -> list[Document]:
        """Return the documents that are nearest to a question, best first.

        Args:
            query: The question.
            k: The number of documents.
            filter: Chroma's filter over metadata.
            mode: ``"vector"``: by meaning; ``"hybrid"``: by meaning and by words, as :meth:`aiochroma.Memory.recall`; ``"text"``:
                by words. The last two need a collection that this class or a memory has made.
            kwargs: ``where_document``, Chroma's filter over texts, with ``mode="vector"``.

        Raises:
            EmbedderMismatchError: The collection was written with another embedder, or, with the other modes, by another
                program.
            AiochromaError: See the error tree.
        """
        if mode == "vector":
            found = await self.asimilarity_search_with_score(query, k, filter=filter, **kwargs)
            return [document for document, _ in found]
        refuse_options(kwargs)
        memory = Memory(client=await self._client.open(), embedder=self._embeddings)
        hits = await (await memory.open()).recall(query, namespaces=self._name, k=k, where=filter, mode=mode)
        return [Document(hit.text, id=hit.id, metadata=hit.metadata) for hit in hits]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Where | None = None, **kwargs: object
    ) -> list[tuple[Document, float]]:
        """Return the nearest documents, each with its distance: smaller is nearer."""
        return await self._nearest(await embed_query(self._embeddings, query), k, filter, kwargs)

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Where | None = None, **kwargs: object
    ) -> list[Document]:
        """Return the documents nearest to a vector."""
        return [document for document, _ in await self._nearest(embedding, k, filter, kwargs)]

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Where | None = None,
        **kwargs: object,
    ) -> list[Document]:
        """Return documents that are near to a question and different from each other.

        Args:
            query: The question.
            k: The number of documents.
            fetch_k: The number of nearest documents among which these are chosen.
            lambda_mult: 1 for the nearest, 0 for the most different.
            filter: Chroma's filter over metadata.
            kwargs: ``where_document``, Chroma's filter over texts.
        """
        vector = await embed_query(self._embeddings, query)
        search = self.amax_marginal_relevance_search_by_vector
        return await search(vector.tolist(), k, fetch_k, lambda_mult, filter=filter, **kwargs)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Where | None = None,
        **kwargs: object,
    ) -> list[Document]:
        """Do the same as :meth:`amax_marginal_relevance_search`, for a vector."""
        include = ["documents", "metadatas", "embeddings"]
        fetched = check_diversity(k, fetch_k, lambda_mult)
        rows = await self._rows(embedding, fetched, filter, kwargs, include)
        documents = _documents(rows["ids"][0], rows["documents"][0], rows["metadatas"][0])
        if not documents:
            return []
        vector = np.asarray(embedding, dtype=np.float32)
        if not vector.any():  # Of an empty question; no document is nearer to it than another.
            return documents[:k]
        chosen = maximal_marginal_relevance(vector, rows["embeddings"][0], lambda_mult, k)
        return [documents[index] for index in chosen]

    # -- making and closing --------------------------------------------------------------------------------------------

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[Metadata] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> AiochromaVectorStore:
        """Make a store (``kwargs`` as for the class) and add texts."""
        store = cls(embedding=embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[Metadata] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> AiochromaVectorStore:
        """Do the same as :meth:`from_texts`."""
        store = cls(embedding=embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    async def aclose(self) -> None:
        """Close the store's own clients and wait until the database's thread has ended; a later call opens them again."""
        await self._client.close()

    # -- the same without an event loop --------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[Metadata] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: object,
    ) -> list[str]:
        """Do the same as :meth:`aadd_texts`, without an event loop."""
        return drive(self.aadd_texts(texts, metadatas, ids=ids, **kwargs))

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Do the same as :meth:`aget_by_ids`, without an event loop."""
        return drive(self.aget_by_ids(ids))

    def delete(self, ids: list[str] | None = None, *, filter: Where | None = None, **kwargs: object) -> bool:
        """Do the same as :meth:`adelete`, without an event loop."""
        return drive(self.adelete(ids, filter=filter, **kwargs))

    def similarity_search(
        self, query: str, k: int = 4, *, filter: Where | None = None, mode: Mode = "vector", **kwargs: object
    ) -> list[Document]:
        """Do the same as :meth:`asimilarity_search`, without an event loop."""
        return drive(self.asimilarity_search(query, k, filter=filter, mode=mode, **kwargs))

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Where | None = None, **kwargs: object
    ) -> list[tuple[Document, float]]:
        """Do the same as :meth:`asimilarity_search_with_score`, without an event loop."""
        return drive(self.asimilarity_search_with_score(query, k, filter=filter, **kwargs))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Where | None = None, **kwargs: object
    ) -> list[Document]:
        """Do the same as :meth:`asimilarity_search_by_vector`, without an event loop."""
        return drive(self.asimilarity_search_by_vector(embedding, k, filter=filter, **kwargs))

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Do the same as :meth:`amax_marginal_relevance_search`, without an event loop."""
        return drive(self.amax_marginal_relevance_search(query, k, fetch_k, lambda_mult, **kwargs))

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Do the same as :meth:`amax_marginal_relevance_search_by_vector`, without an event loop."""
        return drive(
            self.amax_marginal_relevance_search_by_vector(embedding, k, fetch_k, lambda_mult, **kwargs)
        )

    def close(self) -> None:
        """Do the same as :meth:`aclose`, without an event loop."""
        drive(self.aclose())

    # -- below ---------------------------------------------------------------------------------------------------------

    async def _on_collection(self, work: Callable[[Collection], Coroutine[Any, Any, T]], *, absent: T) -> T:
        return await self._client.on_collection(self._name, work, absent=absent, check=self._mark.check)

    async def _nearest(
        self, vector: Sequence[float] | Vector, k: int, filter: Where | None, options: Mapping[str, object]
    ) -> list[tuple[Document, float]]:
        rows = await self._rows(vector, k, filter, options, ["documents", "metadatas", "distances"])
        documents = _documents(rows["ids"][0], rows["documents"][0], rows["metadatas"][0])
        # Rounding makes the distance of equal directions slightly negative, which LangChain warns of.
        least = 0.0 if self._space() == "cosine" else -np.inf
        return [
            (document, max(least, distance))
            for document, distance in zip(documents, rows["distances"][0], strict=True)
        ]

    async def _rows(
        self,
        vector: Sequence[float] | Vector,
        k: int,
        filter: Where | None,
        options: Mapping[str, object],
        include: list[str],
    ) -> JsonObject:
        """Return the columns of the rows nearest to a vector, each as the only entry of a list."""
        check_k(k)
        refuse_options({name: value for name, value in options.items() if name != "where_document"})

        async def query(collection: Collection) -> JsonObject:
            return {
                **await collection.query(
                    query_embeddings=np.asarray([vector], dtype=np.float32),
                    n_results=k,
                    where=cast("chromadb.Where | None", filter),
                    where_document=cast("WhereDocument | None", options.get("where_document")),
                    include=cast("Include", include),
                )
            }

        return await self._on_collection(query, absent={name: [[]] for name in ("ids", *include)})

    def _space(self) -> str:
        """Return the collection's distance, ``"cosine"``, ``"l2"`` or ``"ip"``; known once it was used."""
        collection = self._client.known_collection(self._name)
        configuration = collection.configuration.get("hnsw") if collection is not None else None
        return str((configuration or {}).get("space", "cosine"))

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return how LangChain's ``similarity_search_with_relevance_scores`` makes a relevance of a distance."""
        known = {
            "cosine": self._cosine_relevance_score_fn,
            "l2": self._euclidean_relevance_score_fn,
            "ip": self._max_inner_product_relevance_score_fn,
        }

        def relevance(distance: float) -> float:
            # LangChain asks for this before it searches, when the collection may not be known yet.
            return known[self._space()](distance)

        return relevance


def _documents(
    ids: Sequence[str],
    texts: Sequence[str | None] | None,
    metadatas: Sequence[MetadataView | None] | None,
) -> list[Document]:
    assert texts is not None
    assert metadatas is not None
    return [
        Document(text or "", id=id, metadata=user_metadata(metadata))
        for id, text, metadata in zip(ids, texts, metadatas, strict=True)
    ]
