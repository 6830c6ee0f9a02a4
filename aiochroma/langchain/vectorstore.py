"""LangChain's vector store over one collection, asynchronous and blocking on the same object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from langchain_core.vectorstores import VectorStore

from aiochroma._threads import drive
from aiochroma._types import Metadata
from aiochroma.client.opening import LazyClient
from aiochroma.langchain.documents import DocumentCollection
from aiochroma.langchain.embeddings import AiochromaEmbeddings

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings


__all__ = ["AiochromaVectorStore"]

T = TypeVar("T")


class AiochromaVectorStore(VectorStore):
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
        self._embeddings = AiochromaEmbeddings() if embedding is None else embedding
        self._documents = DocumentCollection(LazyClient(path, client), collection_name, self._embeddings)

    @property
    def embeddings(self) -> Embeddings:
        """The embedder."""
        return self._embeddings

    # -- adding, looking up, deleting ----------------------------------------------------------------------------------

    def add_texts(
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
            metadatas: Of each.
            ids: Of each; a new one where there is None.
            kwargs: None are known.

        Returns:
            The ids, in order.

        Raises:
            InvalidInputError: There are not as many metadatas or ids as texts, or an unknown argument.
            EmbedderMismatchError: The collection was written with another embedder.
            AiochromaError: See the error tree.
        """
        return drive(self._documents.add(texts, metadatas, ids, kwargs))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[Metadata] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: object,
    ) -> list[str]:
        """As :meth:`add_texts`."""
        return await self._documents.add(texts, metadatas, ids, kwargs)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents that have these ids, in this order; those that do not exist are left out."""
        return drive(self._documents.get(ids))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """As :meth:`get_by_ids`."""
        return await self._documents.get(ids)

    def delete(
        self, ids: list[str] | None = None, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> bool:
        """Delete documents.

        Args:
            ids: By id; ids that do not exist are ignored.
            filter: By Chroma's filter over metadata. Neither: all of them, as LangChain has it.
            kwargs: None are known.

        Returns:
            True.
        """
        return drive(self._documents.delete(ids, filter, kwargs))

    async def adelete(
        self, ids: list[str] | None = None, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> bool:
        """As :meth:`delete`."""
        return await self._documents.delete(ids, filter, kwargs)

    # -- searching -----------------------------------------------------------------------------------------------------

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        *,
        filter: dict[str, Any] | None = None,
        mode: Literal["vector", "hybrid", "text"] = "vector",
        **kwargs: object,
    ) -> list[Document]:
        """Return the documents that are nearest to a question, best first.

        Args:
            query: The question.
            k: How many.
            filter: Chroma's filter over metadata.
            mode: ``"vector"``: by meaning; ``"hybrid"``: by meaning and by words, as :meth:`aiochroma.Memory.recall`; ``"text"``:
                by words. The last two need a collection that this class or a memory has made.
            kwargs: ``where_document``, Chroma's filter over texts, with ``mode="vector"``.

        Raises:
            EmbedderMismatchError: The collection was written with another embedder, or, with the other modes, by another
                program.
            AiochromaError: See the error tree.
        """
        return drive(self._documents.search(query, k, filter, mode, kwargs))

    async def asimilarity_search(
        self,
        query: str,
        k: int = 4,
        *,
        filter: dict[str, Any] | None = None,
        mode: Literal["vector", "hybrid", "text"] = "vector",
        **kwargs: object,
    ) -> list[Document]:
        """As :meth:`similarity_search`."""
        return await self._documents.search(query, k, filter, mode, kwargs)

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the nearest documents, each with its distance: smaller is nearer."""
        return drive(self._documents.nearest(query, k, filter, kwargs))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As :meth:`similarity_search_with_score`."""
        return await self._documents.nearest(query, k, filter, kwargs)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents nearest to a vector."""
        found = drive(self._documents.query(embedding, k, filter, kwargs))
        return [document for document, _ in found]

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Document]:
        """As :meth:`similarity_search_by_vector`."""
        found = await self._documents.query(embedding, k, filter, kwargs)
        return [document for document, _ in found]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> list[Document]:
        """Return documents that are near to a question and different from each other.

        Args:
            query: The question.
            k: How many.
            fetch_k: How many of the nearest are chosen among.
            lambda_mult: 1 for the nearest, 0 for the most different.
            filter: Chroma's filter over metadata.
            kwargs: ``where_document``, Chroma's filter over texts.
        """
        return drive(self._documents.diverse(query, k, fetch_k, lambda_mult, filter, kwargs))

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> list[Document]:
        """As :meth:`max_marginal_relevance_search`."""
        return await self._documents.diverse(query, k, fetch_k, lambda_mult, filter, kwargs)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> list[Document]:
        """As :meth:`max_marginal_relevance_search`, for a vector."""
        return drive(self._documents.diverse(embedding, k, fetch_k, lambda_mult, filter, kwargs))

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> list[Document]:
        """As :meth:`max_marginal_relevance_search`, for a vector."""
        return await self._documents.diverse(embedding, k, fetch_k, lambda_mult, filter, kwargs)

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
        """As :meth:`from_texts`."""
        store = cls(embedding=embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    def close(self) -> None:
        """Close the store's own clients and wait until the database's thread has ended; a later call opens them again."""
        drive(self._documents.client.close())

    async def aclose(self) -> None:
        """As :meth:`close`."""
        await self._documents.client.close()

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return how LangChain's ``similarity_search_with_relevance_scores`` makes a relevance of a distance."""
        known = {
            "cosine": self._cosine_relevance_score_fn,
            "l2": self._euclidean_relevance_score_fn,
            "ip": self._max_inner_product_relevance_score_fn,
        }
        return known[self._documents.space]
