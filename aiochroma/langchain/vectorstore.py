"""LangChain's vector store over one collection, asynchronous and blocking on the same object."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore

from aiochroma._errors import InvalidInputError
from aiochroma._threads import drive, refuse_on_loop
from aiochroma.langchain.access import AsyncAccess, BlockingAccess
from aiochroma.langchain.documents import DocumentCollection
from aiochroma.langchain.embeddings import AiochromaEmbeddings

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings

    from aiochroma.langchain.access import Access

__all__ = ["AiochromaVectorStore"]

T = TypeVar("T")

_CLOSE_SECONDS = 30.0


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
            open. An asynchronous one serves the asynchronous methods only.

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
        client: Any = None,
    ) -> None:
        self._embeddings = AiochromaEmbeddings() if embedding is None else embedding
        self._documents = DocumentCollection(collection_name, self._embeddings)
        asynchronous = client is not None and inspect.iscoroutinefunction(client.get_collection)
        self._access = AsyncAccess(path, client) if client is None or asynchronous else None
        self._blocking = None if asynchronous else BlockingAccess(path, client)

    @property
    def embeddings(self) -> Embeddings:
        """The embedder."""
        return self._embeddings

    # -- adding, looking up, deleting ----------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
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
        return self._drive(lambda access: self._documents.add(access, texts, metadatas, ids, kwargs))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As :meth:`add_texts`."""
        return await self._await(lambda access: self._documents.add(access, texts, metadatas, ids, kwargs))

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents that have these ids, in this order; those that do not exist are left out."""
        return self._drive(lambda access: self._documents.get(access, ids))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """As :meth:`get_by_ids`."""
        return await self._await(lambda access: self._documents.get(access, ids))

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
        return self._drive(lambda access: self._documents.delete(access, ids, filter, kwargs))

    async def adelete(
        self, ids: list[str] | None = None, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> bool:
        """As :meth:`delete`."""
        return await self._await(lambda access: self._documents.delete(access, ids, filter, kwargs))

    # -- searching -----------------------------------------------------------------------------------------------------

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        *,
        filter: dict[str, Any] | None = None,
        mode: Literal["vector", "hybrid", "text"] = "vector",
        **kwargs: Any,
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
        return self._drive(lambda access: self._documents.search(access, query, k, filter, mode, kwargs))

    async def asimilarity_search(
        self,
        query: str,
        k: int = 4,
        *,
        filter: dict[str, Any] | None = None,
        mode: Literal["vector", "hybrid", "text"] = "vector",
        **kwargs: Any,
    ) -> list[Document]:
        """As :meth:`similarity_search`."""
        return await self._await(
            lambda access: self._documents.search(access, query, k, filter, mode, kwargs)
        )

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the nearest documents, each with its distance: smaller is nearer."""
        return self._drive(lambda access: self._documents.nearest(access, query, k, filter, kwargs))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As :meth:`similarity_search_with_score`."""
        return await self._await(lambda access: self._documents.nearest(access, query, k, filter, kwargs))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents nearest to a vector."""
        found = self._drive(lambda access: self._documents.query(access, embedding, k, filter, kwargs))
        return [document for document, _ in found]

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Document]:
        """As :meth:`similarity_search_by_vector`."""
        found = await self._await(lambda access: self._documents.query(access, embedding, k, filter, kwargs))
        return [document for document, _ in found]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents that are near to a question and different from each other.

        Args:
            query: The question.
            k: How many.
            fetch_k: Among so many of the nearest.
            lambda_mult: 1 for the nearest, 0 for the most different.
            filter: Chroma's filter over metadata.
            kwargs: ``where_document``, Chroma's filter over texts.
        """
        return self._drive(
            lambda access: self._documents.diverse(access, query, k, fetch_k, lambda_mult, filter, kwargs)
        )

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As :meth:`max_marginal_relevance_search`."""
        return await self._await(
            lambda access: self._documents.diverse(access, query, k, fetch_k, lambda_mult, filter, kwargs)
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As :meth:`max_marginal_relevance_search`, for a vector."""
        return self._drive(
            lambda access: self._documents.diverse(access, embedding, k, fetch_k, lambda_mult, filter, kwargs)
        )

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As :meth:`max_marginal_relevance_search`, for a vector."""
        return await self._await(
            lambda access: self._documents.diverse(access, embedding, k, fetch_k, lambda_mult, filter, kwargs)
        )

    # -- making and closing --------------------------------------------------------------------------------------------

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
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
        metadatas: list[dict[str, Any]] | None = None,
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
        refuse_on_loop()
        self._documents.forget()
        closing = self._access.release() if self._access is not None else None
        if self._blocking is not None:
            drive(self._blocking.close())
        if closing is not None:
            closing.wait(_CLOSE_SECONDS)

    async def aclose(self) -> None:
        """As :meth:`close`."""
        self._documents.forget()
        if self._blocking is not None:
            # While the asynchronous client is open, this waits for nothing.
            await run_in_executor(None, drive, self._blocking.close())
        if self._access is not None:
            await self._access.close()

    # -- what the methods do -------------------------------------------------------------------------------------------

    def _drive(self, work: Callable[[Access], Coroutine[Any, Any, T]]) -> T:
        if self._blocking is None:
            raise InvalidInputError(
                "This vector store has an asynchronous client: use the methods that begin with `a` (`aadd_documents`, "
                "`asimilarity_search`, ...), or give the store a `path`, which serves both."
            )
        refuse_on_loop()
        return drive(work(self._blocking))

    async def _await(self, work: Callable[[Access], Coroutine[Any, Any, T]]) -> T:
        if self._access is None:
            return await run_in_executor(None, self._drive, work)
        return await work(self._access)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return how LangChain's ``similarity_search_with_relevance_scores`` makes a relevance of a distance."""
        known = {
            "cosine": self._cosine_relevance_score_fn,
            "l2": self._euclidean_relevance_score_fn,
            "ip": self._max_inner_product_relevance_score_fn,
        }
        return known[self._documents.space]
