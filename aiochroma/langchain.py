"""LangChain: a retriever over a memory and its namespaces.

Needs the extra ``langchain`` (``langchain-core`` and nothing else). Where LangChain's own Chroma vector store is wanted, give it
a client of ours: ``langchain_chroma.Chroma(client=aiochroma.sync.PersistentClient(...), ...)``.

Example:
    >>> async with aiochroma.Memory("./memory") as memory:  # doctest: +SKIP
    ...     retriever = AiochromaRetriever(memory=memory, namespaces={"personal": 5, "projects": 2})
    ...     documents = await retriever.ainvoke("what is my cat called?")
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotation
from typing import TYPE_CHECKING, Any

from aiochroma._distribution import missing_extra
from aiochroma._errors import InvalidInputError
from aiochroma._logging import get_logger
from aiochroma.memory.blocking import Memory as BlockingMemory
from aiochroma.memory.memory import Memory  # noqa: TC001 - pydantic reads the annotation

try:
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict, Field, InstanceOf
except ImportError as error:
    raise missing_extra("aiochroma.langchain", "langchain", error.name) from error

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun

    from aiochroma.memory.recall import Hit, Recall

__all__ = ["AiochromaRetriever"]

log = get_logger("aiochroma.langchain")


class AiochromaRetriever(BaseRetriever):
    """Retrieves what a memory recalls about a question, best first.

    A document's ``page_content`` is the memory's text, its ``id`` the memory's id within its namespace, and its ``metadata`` the
    memory's own with ``namespace``, ``score`` and ``distance`` (None when it was found by its words alone) added. A namespace
    that fails loses none of the others' documents; it is logged.

    With an :class:`aiochroma.Memory` use ``ainvoke``, ``abatch`` and so on; with an :class:`aiochroma.sync.Memory` either, the
    asynchronous ones on LangChain's threads.

    Attributes:
        memory: An open :class:`aiochroma.Memory` or :class:`aiochroma.sync.Memory`; stays open.
        namespaces: As for :meth:`aiochroma.Memory.recall`; None for all.
        k: Documents for each namespace that says nothing itself.
        options: Further arguments of :meth:`aiochroma.Memory.recall`: ``max_distance``, ``where``, ``mode``, ``window``, ...
    """

    model_config = ConfigDict(extra="forbid")

    memory: InstanceOf[Memory] | InstanceOf[BlockingMemory]
    namespaces: Any = None
    k: int = 5
    options: Mapping[str, Any] = Field(default_factory=dict)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        if isinstance(self.memory, BlockingMemory):
            return await super()._aget_relevant_documents(query, run_manager=run_manager)
        return _documents(
            await self.memory.recall(query, namespaces=self.namespaces, k=self.k, **self.options)
        )

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain's signature
    ) -> list[Document]:
        if not isinstance(self.memory, BlockingMemory):
            raise InvalidInputError(
                "This retriever's memory is an asynchronous one: use `ainvoke`, or give it an `aiochroma.sync.Memory`."
            )
        return _documents(self.memory.recall(query, namespaces=self.namespaces, k=self.k, **self.options))


def _documents(recall: Recall) -> list[Document]:
    for namespace, error in recall.errors.items():
        log.warning("retriever.namespace_failed", namespace=namespace, error=repr(error))
    return [_document(hit) for hit in recall]


def _document(hit: Hit) -> Document:
    added = {"namespace": hit.namespace, "score": hit.score, "distance": hit.distance}
    return Document(hit.text, id=hit.id, metadata={**hit.metadata, **added})
