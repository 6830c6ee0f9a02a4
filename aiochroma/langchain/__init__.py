"""LangChain: a vector store, a retriever over a memory and its namespaces, and the offline embedders.

Needs the extra ``langchain`` (``langchain-core`` and nothing else). LangChain's own Chroma vector store works with a client of
ours as well: ``langchain_chroma.Chroma(client=aiochroma.sync.PersistentClient(...), ...)``.
"""

from __future__ import annotations

try:
    import langchain_core  # noqa: F401 - whether it is there
except ImportError as _error:
    from aiochroma._distribution import missing_extra

    raise missing_extra("aiochroma.langchain", "langchain", _error.name) from _error

from aiochroma.langchain.adapters import AiochromaEmbeddings, AiochromaRetriever
from aiochroma.langchain.vectorstore import AiochromaVectorStore

__all__ = ["AiochromaEmbeddings", "AiochromaRetriever", "AiochromaVectorStore"]
