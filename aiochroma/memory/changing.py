"""Changing a memory: its text, its metadata, when it expires, whether it is pinned; and the history of its changes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from aiochroma._types import Metadata, MetadataView
from aiochroma.memory.items import (
    PINNED,
    UPDATED_AT,
    check_id,
    check_k,
    check_text,
    checked_item,
    checked_metadata,
    now_in_seconds,
    user_metadata,
)
from aiochroma.memory.namespaces import collection_name
from aiochroma.memory.opening import Call
from aiochroma.memory.results import Items, UnavailableHit
from aiochroma.memory.writing import change_memory

if TYPE_CHECKING:
    from aiochroma.memory.recall import Hit
    from aiochroma.memory.store import Store
    from aiochroma.records.history import Entry

__all__ = ["MemoryChange", "history", "pin", "update"]


def update(
    id: str,
    *,
    namespace: str,
    text: str | None,
    metadata: MetadataView | None,
    ttl: object,
    expires_at: object,
) -> Call[Hit | None]:
    """Change a memory; see ``Memory.update``."""
    check_id(id)
    collection_name(namespace)
    if text is not None:
        check_text(text, "`text`")
    expiry = checked_item("-", ttl=ttl, expires_at=expires_at).own
    values = {
        **checked_metadata(metadata, "`metadata`", removing=True),
        **expiry,
        UPDATED_AT: now_in_seconds(),
    }

    async def work(store: Store) -> Hit | None:
        return await change_memory(store, namespace, id, values, action="update", text=text)

    return Call("update", work, UnavailableHit.failed, details={"id": id, "namespaces": [namespace]})


def pin(id: str, *, namespace: str, pinned: bool) -> Call[Hit | None]:
    """Pin a memory, or unpin it; see ``Memory.pin``."""
    check_id(id)
    collection_name(namespace)
    action, values = ("pin", {PINNED: True}) if pinned else ("unpin", {PINNED: None})

    async def work(store: Store) -> Hit | None:
        return await change_memory(store, namespace, id, values, action=action)

    return Call("pin", work, UnavailableHit.failed, details={"id": id, "namespaces": [namespace]})


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
    metadata: Metadata | None


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
