"""LangGraph: a store for what graphs remember across threads.

Needs the extra ``langgraph`` (``langgraph-checkpoint``, which every installation of LangGraph has).
"""

from __future__ import annotations

try:
    import langgraph.store.base  # noqa: F401 - whether it is there
except ImportError as _error:
    from aiochroma._distribution import missing_extra

    raise missing_extra("aiochroma.langgraph", "langgraph", _error.name) from _error

from aiochroma.langgraph.store import AiochromaStore

__all__ = ["AiochromaStore"]
