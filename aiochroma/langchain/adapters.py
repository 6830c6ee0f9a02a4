"""A memory as LangChain's retriever, an embedder as its ``Embeddings``; its embedders called by ours, and the mark they leave."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, Field, InstanceOf

from aiochroma._errors import EmbedderMismatchError, InvalidInputError, shown
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject
from aiochroma._waiting import deadline_at, waits_by_blocking
from aiochroma.backend.limits import check_storable_text, is_number
from aiochroma.embedding.choice import chosen
from aiochroma.embedding.functions import (
    PROBE,
    await_function,
    blamed,
    fingerprint_of,
    is_alike,
    is_same_name,
    vectors_from,
)
from aiochroma.memory.arguments import check_id, check_k
from aiochroma.memory.memory import Memory
from aiochroma.sync import Memory as BlockingMemory

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun

    from aiochroma._types import Metadata, Vector
    from aiochroma.client.collection import Collection
    from aiochroma.embedding.choice import EmbedderFunction
    from aiochroma.memory.results import Hit, Recall

__all__ = [
    "AiochromaEmbeddings",
    "AiochromaRetriever",
    "EmbedderMark",
    "check_diversity",
    "checked_embeddings",
    "checked_rows",
    "embed_documents",
    "embed_query",
    "listed",
    "refuse_options",
]


T = TypeVar("T")


class AiochromaEmbeddings(Embeddings):
    """Gives an embedder the interface of LangChain's; a memory takes LangChain's as they are.

    What the embedder raises, or returns that is no vector for each text, is an :class:`aiochroma.EmbeddingFailedError`.

    Args:
        embedder: An :class:`aiochroma.Embedder`, or the name of a built-in one. Default: the one that a memory uses for a new
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
        given, function = listed(texts, "`texts`"), self.embedder.function
        for position, text in enumerate(given):
            if not isinstance(text, str):
                raise InvalidInputError(f"texts[{position}] must be a string, got {shown(text)}.")
        with blamed(function):
            rows = function(given)
        return [vector.tolist() for vector in vectors_from(rows, given, function)]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question."""
        if not isinstance(text, str):
            raise InvalidInputError(f"`text` must be a string, got {shown(text)}.")
        function = self.embedder.function
        with blamed(function):
            rows = function.embed_query([text]) if hasattr(function, "embed_query") else function([text])
        (vector,) = vectors_from(rows, [text], function)
        return [float(value) for value in vector]


async def embed_documents(embeddings: Embeddings, texts: list[str]) -> list[Vector]:
    """Return a vector for each text: awaited on an event loop, and blocking without one.

    Raises:
        EmbeddingFailedError: The embedder raised, or did not return one finite vector for each text.
    """
    if waits_by_blocking():
        with blamed(embeddings):
            rows = embeddings.embed_documents([*texts])
        return vectors_from(rows, texts, _Awaited(embeddings))
    return await await_function(_Awaited(embeddings), texts, is_query=False, deadline=deadline_at(None))


async def embed_query(embeddings: Embeddings, text: str) -> Vector:
    """Return the vector of a question: awaited on an event loop, and blocking without one.

    Raises:
        InvalidInputError: The question is no text.
        EmbeddingFailedError: As :func:`embed_documents`.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"`query` must be a string, got {shown(text)}.")
    check_storable_text(text.replace("\0", " "), "`query`", math.inf)
    if waits_by_blocking():
        with blamed(embeddings):
            row = embeddings.embed_query(text)
        (vector,) = vectors_from([row], [text], _Awaited(embeddings))
    else:
        (vector,) = await await_function(
            _Awaited(embeddings), [text], is_query=True, deadline=deadline_at(None)
        )
    return vector


def checked_embeddings(embedding: object) -> Embeddings:
    """Return LangChain's embedder that was given, or the offline one for None.

    Raises:
        InvalidInputError: It is none of LangChain's.
    """
    if embedding is None:
        return AiochromaEmbeddings()
    if not isinstance(embedding, Embeddings):
        raise InvalidInputError(
            f"`embedding` must be LangChain's `Embeddings` or None, got {shown(embedding)}."
        )
    return embedding


def check_diversity(k: int, fetch_k: int, lambda_mult: float) -> int:
    """Check what chooses documents that are different from each other, and return how many are looked at.

    Raises:
        InvalidInputError: One of the numbers is none.
    """
    if not is_number(lambda_mult) or not math.isfinite(lambda_mult):
        raise InvalidInputError(f"`lambda_mult` must be a number, got {shown(lambda_mult)}.")
    return max(check_k(k), check_k(fetch_k, "`fetch_k`"))


def refuse_options(unknown: Mapping[str, object]) -> None:
    """Refuse options that a call does not have.

    Raises:
        InvalidInputError: There are some.
    """
    if unknown:
        raise InvalidInputError(f"This call of the vector store has no argument {shown(min(unknown))}.")


def checked_rows(texts: Iterable[str], metadatas: object, ids: object) -> list[str]:
    """Check what is to be stored, before it is embedded, and return the texts.

    Args:
        texts: The texts.
        metadatas: What goes with each, or None.
        ids: The id of each, or None.

    Raises:
        InvalidInputError: Something of it is wrong.
    """
    documents = listed(texts, "`texts`")
    for position, text in enumerate(documents):
        if not isinstance(text, str):
            raise InvalidInputError(f"texts[{position}] must be a string, got {shown(text)}.")
        check_storable_text(text, f"texts[{position}]")
    for name, values in (("metadatas", metadatas), ("ids", ids)):
        if not isinstance(values, (list, tuple)):
            if values is not None:
                raise InvalidInputError(
                    f"`{name}` must be a list with one for each text, got {shown(values)}."
                )
            continue
        if len(values) != len(documents):
            raise InvalidInputError(
                f"There are {len(documents)} texts and {len(values)} `{name}`; give one for each."
            )
        for position, value in enumerate(values):
            if name == "ids" and value not in (None, ""):
                check_id(value, f"ids[{position}]")
            if name == "metadatas" and not isinstance(value, Mapping | None):
                raise InvalidInputError(f"metadatas[{position}] must be a mapping, got {shown(value)}.")
    return documents


def listed(values: Iterable[T], where: str) -> list[T]:
    """Return what was given as a list.

    Raises:
        InvalidInputError: It is one text, or nothing that has several.
    """
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidInputError(
            f"{where} must be a list, or something else to go through, got {shown(values)}."
        )
    return list(values)


class _Awaited:
    """LangChain's embeddings in the form of an asynchronous embedding function, under the name of their class."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings
        kind = type(embeddings)
        self.__module__, self.__qualname__, self.__name__ = kind.__module__, kind.__qualname__, kind.__name__

    async def __call__(self, input: list[str]) -> list[list[float]]:
        return await self._embeddings.aembed_documents(input)

    async def embed_query(self, input: list[str]) -> list[list[float]]:
        return [await self._embeddings.aembed_query(text) for text in input]


class EmbedderMark:
    """What a collection's metadata says about the embedder of its vectors: its name, and what it makes of one fixed text.

    Args:
        embeddings: The embedder.
        identity: The name of the embedder.
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
            # LangChain's embedders are named by their class where they do not say which model they have.
            ours = "another one of that name" if stored == self._identity else repr(self._identity)
            raise EmbedderMismatchError(
                f"The collection {collection.name!r} holds vectors of {stored!r} and this store embeds with {ours}. Vectors of "
                "different embedders cannot be compared: open the store with the first one, or use another `collection_name`."
            )

    async def _made_fingerprint(self) -> str:
        if self._fingerprint is None:
            (vector,) = await embed_documents(self._embeddings, [PROBE])
            self._fingerprint = fingerprint_of(vector)
        return self._fingerprint


log: EventLogger = get_logger("aiochroma.langchain")

_OF_RECALL = frozenset(inspect.signature(Memory.recall).parameters)


class AiochromaRetriever(BaseRetriever):
    """Retrieves what a memory recalls about a question, best first.

    A document's ``page_content`` is the memory's text, its ``id`` the memory's id within its namespace. Its ``metadata`` is the
    memory's own; ``aiochroma:namespace``, ``aiochroma:score`` and ``aiochroma:distance`` (None when it was found by its words
    alone) are added. No metadata of yours can have a key with that prefix. A namespace that fails loses none of the others'
    documents; it is logged.

    With an :class:`aiochroma.Memory` use ``ainvoke``, ``abatch`` and so on; with an :class:`aiochroma.sync.Memory` either, the
    asynchronous ones on LangChain's threads. Each takes ``k``, ``namespaces`` and the options for one question as well:
    ``retriever.invoke("...", k=2)``.

    Attributes:
        memory: An open :class:`aiochroma.Memory` or :class:`aiochroma.sync.Memory`; stays open.
        namespaces: As for :meth:`aiochroma.Memory.recall`; None for all.
        k: Documents for each namespace that says nothing itself.
        options: Further arguments of :meth:`aiochroma.Memory.recall`: ``max_distance``, ``where``, ``mode``, ``window``, ...

    Example:
        >>> async with aiochroma.Memory("./memory") as memory:  # doctest: +SKIP
        ...     retriever = AiochromaRetriever(memory=memory, namespaces={"personal": 5, "projects": 2})
        ...     documents = await retriever.ainvoke("what is my cat called?")
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    memory: InstanceOf[Memory] | InstanceOf[BlockingMemory]
    namespaces: Any = None
    k: int = 5
    options: Mapping[str, Any] = Field(default_factory=dict)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **changes: object
    ) -> list[Document]:
        if isinstance(self.memory, BlockingMemory):
            # LangChain's own method would lose the changes.
            return await run_in_executor(
                None, self._get_relevant_documents, query, run_manager=run_manager.get_sync(), **changes
            )
        return _documents(await self.memory.recall(query, **self._arguments(changes)))

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain's signature
        **changes: object,
    ) -> list[Document]:
        if not isinstance(self.memory, BlockingMemory):
            raise InvalidInputError(
                "This retriever's memory is an asynchronous one: use `ainvoke`, or give it an `aiochroma.sync.Memory`."
            )
        return _documents(self.memory.recall(query, **self._arguments(changes)))

    def _arguments(self, changes: Mapping[str, object]) -> JsonObject:
        given = {"namespaces": self.namespaces, "k": self.k, **self.options, **changes}
        unknown = sorted(map(str, given.keys() - _OF_RECALL))
        if unknown:
            raise InvalidInputError(
                f"`Memory.recall` has no argument {shown(unknown[0])}: the retriever's `options` are its own."
            )
        return given


def _documents(recall: Recall) -> list[Document]:
    for namespace, error in recall.errors.items():
        log.warning("retriever.namespace_failed", namespace=namespace, error=error)
    return [_document(hit) for hit in recall]


def _document(hit: Hit) -> Document:
    added = {
        "aiochroma:namespace": hit.namespace,
        "aiochroma:score": hit.score,
        "aiochroma:distance": hit.distance,
    }
    return Document(hit.text, id=hit.id, metadata={**hit.metadata, **added})
