"""Forgetting: by id, by filter, a whole namespace, and what has expired."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from aiochroma._errors import InvalidInputError
from aiochroma.memory.filters import checked_where
from aiochroma.memory.items import (
    EXPIRES_AT,
    THREAD,
    check_id,
    check_thread,
    checked_ids,
    checked_scope,
)
from aiochroma.memory.listing import count_records, matching_ids
from aiochroma.memory.namespaces import collection_name
from aiochroma.memory.opening import Call
from aiochroma.memory.results import Count
from aiochroma.records.filters import joined
from aiochroma.records.record import scope_filter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiochroma.memory.store import Namespace, Store

__all__ = ["expired", "many", "some", "sweep_expired", "whole_namespace"]

_DELETED_AT_ONCE = 64
_MOST_AT_ONCE = 1000


def some(
    id: str | None,
    *,
    namespace: str | None,
    where: Mapping[str, Any] | None,
    thread: str | None,
    scope: Any,
) -> Call[Count]:
    """Forget one memory, or all that pass; see ``Memory.forget``."""
    if (id is None) == (where is None and thread is None and scope is None):
        raise InvalidInputError(
            "`forget` needs either an `id`, or a `where`, `thread` or `scope`; see `forget_namespace` for everything."
        )
    home = "default" if namespace is None else namespace
    if id is not None:
        return many([check_id(id)], namespace=home, name="forget")
    collection_name(home)
    filters = joined(
        checked_where(where),
        None if thread is None else {THREAD: check_thread(thread)},
        None if scope is None else scope_filter(checked_scope(scope)),
    )

    async def work(store: Store) -> Count:
        everywhere = namespace is None and scope is not None
        names = await store.names() if everywhere else [home]
        return Count(await _forget(store, names, filters, action="forget"))

    return Call("forget", work, Count.failed)


def many(ids: Iterable[str], *, namespace: str, name: str = "forget_many") -> Call[Count]:
    """Forget memories by id; see ``Memory.forget_many``."""
    unwanted = checked_ids(ids)
    collection_name(namespace)

    async def work(store: Store) -> Count:
        return await store.on(
            namespace,
            lambda place: _delete(store, place, unwanted, action="forget"),
            absent=Count(),
            any_embedder=True,
        )

    return Call(name, work, Count.failed)


def whole_namespace(name: str) -> Call[Count]:
    """Forget a namespace and all that belongs to it; see ``Memory.forget_namespace``."""
    collection_name(name)

    async def work(store: Store) -> Count:
        return Count(await store.on(name, lambda place: _drop(store, place), absent=0, any_embedder=True))

    return Call("forget_namespace", work, Count.failed)


def expired(namespace: str | None) -> Call[Count]:
    """Delete what has expired; see ``Memory.sweep``."""
    if namespace is not None:
        collection_name(namespace)

    async def work(store: Store) -> Count:
        return Count(await sweep_expired(store, namespace))

    return Call("sweep", work, Count.failed)


async def sweep_expired(store: Store, namespace: str | None) -> int:
    """Delete what has expired, from one namespace or from all, and return how many there were."""
    names = await store.names() if namespace is None else [namespace]
    return await _forget(store, names, {EXPIRES_AT: {"$lte": time.time()}}, action="sweep", expired_only=True)


async def _forget(
    store: Store, names: Iterable[str], where: Mapping[str, Any] | None, **deletion: Any
) -> int:
    """Delete what passes a filter from namespaces, and return how many there were."""

    async def work(place: Namespace) -> int:
        return await _delete(store, place, await matching_ids(store, place, where), **deletion)

    return sum([await store.on(name, work, absent=0, any_embedder=True) for name in names])


async def _drop(store: Store, namespace: Namespace) -> int:
    """Delete a namespace and what belongs to it, and return how many memories it held."""
    from chromadb.errors import NotFoundError

    forgotten = 0
    # Chroma deletes a collection in one piece, during which everybody stands still. So what is large is emptied first.
    if store.keeps_history or await count_records(store, namespace) > _MOST_AT_ONCE:
        ids = await matching_ids(store, namespace, None)
        forgotten = await _delete(store, namespace, ids, action="forget")
    forgotten += await count_records(store, namespace)
    store.drop(namespace.name)
    await store.submit("delete_collection", name=collection_name(namespace.name), **store.database)
    with contextlib.suppress(NotFoundError):  # It had no long texts.
        await store.submit("delete_collection", name=namespace.parts, **store.database)
    return forgotten


async def _delete(
    store: Store, namespace: Namespace, ids: Sequence[str], *, action: str, expired_only: bool = False
) -> Count:
    """Delete memories by id, or those of them that have expired, and return how many there were."""
    forgotten = 0
    for start in range(0, len(ids), _DELETED_AT_ONCE):
        gone = await store.submit(
            "forget_memories",
            atomic=True,
            **namespace.place,
            ids=list(ids[start : start + _DELETED_AT_ONCE]),
            parts=namespace.parts,
            action=action,
            expired_only=expired_only,
            history_namespace=namespace.name if store.keeps_history else None,
        )
        forgotten += len(gone)
    return Count(forgotten)
