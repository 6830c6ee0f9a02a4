"""A memory and its namespaces as a LangChain retriever."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotation
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, Field, InstanceOf

from aiochroma._errors import InvalidInputError
from aiochroma._logging import EventLogger, get_logger
from aiochroma.memory.memory import Memory  # noqa: TC001 - pydantic reads the annotation
from aiochroma.sync import Memory as BlockingMemory

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun

    from aiochroma.memory.results import Hit, Recall

__all__ = ["AiochromaRetriever"]

log: EventLogger = get_logger("aiochroma.langchain")


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

    def _arguments(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        return {"namespaces": self.namespaces, "k": self.k, **self.options, **changes}


def _documents(recall: Recall) -> list[Document]:
    for namespace, error in recall.errors.items():
        log.warning("retriever.namespace_failed", namespace=namespace, error=repr(error))
    return [_document(hit) for hit in recall]


def _document(hit: Hit) -> Document:
    added = {
        "aiochroma:namespace": hit.namespace,
        "aiochroma:score": hit.score,
        "aiochroma:distance": hit.distance,
    }
    return Document(hit.text, id=hit.id, metadata={**hit.metadata, **added})
