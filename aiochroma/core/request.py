"""What travels through the queue: plain data, no closures and no futures."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Lane", "Request", "lane_of"]


class Lane(IntEnum):
    """How a request is ordered against the others; see the guarantees in ``_thread.py``."""

    READ = 0
    """Looks, changes nothing: may pass queued writes."""
    CATALOG = 1
    """Creates a collection, tenant or database: in order among its kind, before record writes."""
    WRITE = 2
    """Changes records of one collection: in order within the collection."""
    BARRIER = 3
    """Changes what others may be looking at: after everything before it, before everything after it."""


_WRITES = frozenset(
    {"_add", "_update", "_upsert", "_delete", "remember", "change_memories", "forget_memories"}
)
_CATALOG = frozenset({"create_collection", "get_or_create_collection", "create_tenant", "create_database"})
_READS = frozenset(
    {
        "_count",
        "_fork_count",
        "_get",
        "_get_indexing_status",
        "_peek",
        "_query",
        "_search",
        "count_collections",
        "count_documents",
        "get_collection",
        "get_collection_by_id",
        "get_database",
        "get_max_batch_size",
        "get_tenant",
        "get_user_identity",
        "get_version",
        "heartbeat",
        "list_collections",
        "list_databases",
        "index_memories",
        "list_memories",
        "memory_history",
        "search_memories",
        "similar_memories",
    }
)


def lane_of(operation: str) -> Lane:
    """Return the lane of an operation; what is not known to be harmless is a barrier."""
    if operation in _READS:
        return Lane.READ
    if operation in _WRITES:
        return Lane.WRITE
    return Lane.CATALOG if operation in _CATALOG else Lane.BARRIER


@dataclass(slots=True, eq=False)
class Request:
    """One call, as data.

    Attributes:
        operation: The name of the call: a method of Chroma's ``ServerAPI``, or one of the backend's own.
        arguments: Its keyword arguments. The values belong to the request: nobody changes them afterwards.
        bulk: Yield to interactive requests.
        atomic: Keep a write in one piece, however long it holds the interpreter.
        lane: How it is ordered against the others; follows from the operation.
        collection: The id of the collection it is about, as text; empty where it is about none.
        merge_key: The plan's own note of what may be merged with it; worked out once, at the first look.
    """

    operation: str
    arguments: Mapping[str, Any]
    bulk: bool = False
    atomic: bool = False
    lane: Lane = field(init=False)
    collection: str = field(init=False)
    merge_key: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.lane = lane_of(self.operation)
        self.collection = str(self.arguments.get("collection_id", ""))
