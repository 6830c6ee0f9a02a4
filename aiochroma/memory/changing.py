"""Changing a memory that is there: its text, its metadata, when it expires, whether it is pinned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiochroma.memory.items import (
    PINNED,
    UPDATED_AT,
    check_id,
    check_text,
    checked_item,
    checked_metadata,
    now_in_seconds,
)
from aiochroma.memory.namespaces import collection_name
from aiochroma.memory.opening import Call
from aiochroma.memory.results import UnavailableHit
from aiochroma.memory.writing import change_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiochroma.memory.recall import Hit
    from aiochroma.memory.store import Store

__all__ = ["pin", "update"]


def update(
    id: str,
    *,
    namespace: str,
    text: str | None,
    metadata: Mapping[str, Any] | None,
    ttl: Any,
    expires_at: Any,
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
