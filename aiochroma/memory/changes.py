"""What was changed in a memory, and when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from aiochroma.memory.items import check_id, check_k, user_metadata
from aiochroma.memory.namespaces import collection_name
from aiochroma.memory.opening import Call
from aiochroma.memory.results import Items

if TYPE_CHECKING:
    from aiochroma.memory.store import Store
    from aiochroma.records.history import Entry

__all__ = ["MemoryChange", "history"]


@dataclass(frozen=True)
class MemoryChange:
    """One change of one memory.

    Attributes:
        at: When (UTC).
        action: ``"remember"``, ``"refresh"``, ``"update"``, ``"pin"``, ``"unpin"``, ``"forget"`` or ``"sweep"``.
        namespace: Where.
        id: Which memory.
        text: Its text before the change; None where there was none.
        metadata: The user's metadata before the change; None where there was no memory.
    """

    at: datetime
    action: str
    namespace: str
    id: str
    text: str | None
    metadata: dict[str, Any] | None


def history(id: str | None, *, namespace: str | None, limit: int) -> Call[Items[MemoryChange]]:
    """Return what was changed; see ``Memory.history``."""
    if id is not None:
        check_id(id)
    if namespace is not None:
        collection_name(namespace)
    check_k(limit, "`limit`")

    async def work(store: Store) -> Items[MemoryChange]:
        entries = await store.submit(
            "memory_history", namespace=namespace, id=id, limit=limit, **store.database
        )
        return Items(_change(entry) for entry in entries)

    return Call("history", work, Items[MemoryChange].failed)


def _change(entry: Entry) -> MemoryChange:
    """Make a change of an entry of the history."""
    return MemoryChange(
        at=datetime.fromtimestamp(entry.at, timezone.utc),
        action=entry.action,
        namespace=entry.namespace,
        id=entry.id,
        text=entry.text,
        metadata=None if entry.metadata is None else user_metadata(entry.metadata),
    )
