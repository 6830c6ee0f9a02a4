"""Forgetting: by id, by filter, a whole namespace, and what has expired."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiochroma._errors import InvalidInputError
from aiochroma._types import Where
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
from aiochroma.records.record import scope_filter
from aiochroma.records.spec import joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aiochroma.memory.store import Namespace, Store

__all__ = [
    "Selection",
    "delete",
    "drop",
    "expired",
    "many",
    "selection",
    "some",
    "sweep_expired",
    "whole_namespace",
]

_DELETED_AT_ONCE = 64
_MOST_AT_ONCE = 1000


@dataclass(frozen=True)
class Selection:
    """Which memories are meant: one by its id, or all that pass a filter, in one namespace or in all.

    Attributes:
        namespace: The namespace, or None for all.
        id: The id of one memory, or None.
        where: What the memories pass otherwise.
    """

    namespace: str | None
    id: str | None = None
    where: Where | None = None

    async def namespaces(self, store: Store) -> list[str]:
        """Return the names of the namespaces that are meant."""
        return await store.names() if self.namespace is None else [self.namespace]

    async def ids(self, store: Store, namespace: Namespace) -> list[str]:
        """Return the ids that are meant in a namespace."""
        return [self.id] if self.id is not None else await matching_ids(store, namespace, self.where)


def selection(
    call: str,
    id: str | None,
    *,
    namespace: str | None,
    where: Where | None,
    thread: str | None,
    scope: object,
) -> Selection:
    """Check what a call is to forget, or to erase.

    Raises:
        InvalidInputError: Neither an id nor anything else is given, or both, or something of it is wrong.
    """
    if (id is None) == (where is None and thread is None and scope is None):
        raise InvalidInputError(
            f"`{call}` needs either an `id`, or a `where`, `thread` or `scope`; see `forget_namespace` for everything."
        )
    home = "default" if namespace is None else namespace
    collection_name(home)
    if id is not None:
        return Selection(home, check_id(id))
    filters = joined(
        checked_where(where),
        None if thread is None else {THREAD: check_thread(thread)},
        None if scope is None else scope_filter(checked_scope(scope)),
    )
    return Selection(None if namespace is None and scope is not None else home, where=filters)


def some(
    id: str | None,
    *,
    namespace: str | None,
    where: Where | None,
    thread: str | None,
    scope: object,
) -> Call[Count]:
    """Forget one memory, or all that pass; see ``Memory.forget``."""
    chosen = selection("forget", id, namespace=namespace, where=where, thread=thread, scope=scope)

    async def work(store: Store) -> Count:
        async def of_one(place: Namespace) -> int:
            return await delete(store, place, await chosen.ids(store, place), action="forget")

        names = await chosen.namespaces(store)
        return Count(sum([await store.on(name, of_one, absent=0, any_embedder=True) for name in names]))

    names = None if chosen.namespace is None else [chosen.namespace]
    return Call("forget", work, Count.failed, details={"id": chosen.id, "namespaces": names})


def many(ids: Iterable[str], *, namespace: str) -> Call[Count]:
    """Forget memories by id; see ``Memory.forget_many``."""
    unwanted = checked_ids(ids)
    collection_name(namespace)

    async def work(store: Store) -> Count:
        return await store.on(
            namespace,
            lambda place: delete(store, place, unwanted, action="forget"),
            absent=Count(),
            any_embedder=True,
        )

    details = {"id": unwanted[0] if len(unwanted) == 1 else None, "namespaces": [namespace]}
    return Call("forget_many", work, Count.failed, details=details)


def whole_namespace(name: str) -> Call[Count]:
    """Forget a namespace and all that belongs to it; see ``Memory.forget_namespace``."""
    collection_name(name)

    async def work(store: Store) -> Count:
        return Count(await store.on(name, lambda place: drop(store, place), absent=0, any_embedder=True))

    return Call("forget_namespace", work, Count.failed, details={"namespaces": [name]})


def expired(namespace: str | None) -> Call[Count]:
    """Delete what has expired; see ``Memory.sweep``."""
    if namespace is not None:
        collection_name(namespace)

    async def work(store: Store) -> Count:
        return Count(await sweep_expired(store, namespace))

    return Call("sweep", work, Count.failed)


async def sweep_expired(store: Store, namespace: str | None) -> int:
    """Delete what has expired, from one namespace or from all, and return how many there were."""

    async def of_one(place: Namespace) -> int:
        ids = await matching_ids(store, place, {EXPIRES_AT: {"$lte": time.time()}})
        return await delete(store, place, ids, action="sweep", expired_only=True)

    names = await store.names() if namespace is None else [namespace]
    return sum([await store.on(name, of_one, absent=0, any_embedder=True) for name in names])


async def drop(store: Store, namespace: Namespace, *, noted: bool = True) -> int:
    """Delete a namespace and what belongs to it, and return how many memories it held.

    Args:
        store: The store.
        namespace: The namespace.
        noted: Whether the history, if there is one, has entries of it.
    """
    from chromadb.errors import NotFoundError

    forgotten = 0
    # Chroma deletes a collection in one piece, during which everybody stands still. So what is large is emptied first.
    if (noted and store.keeps_history) or await count_records(store, namespace) > _MOST_AT_ONCE:
        ids = await matching_ids(store, namespace, None)
        forgotten = await delete(store, namespace, ids, action="forget", noted=noted)
    forgotten += await count_records(store, namespace)
    store.drop(namespace.name)
    await store.submit("delete_collection", name=collection_name(namespace.name), **store.database)
    with contextlib.suppress(NotFoundError):  # It had no long texts.
        await store.submit("delete_collection", name=namespace.parts, **store.database)
    return forgotten


async def delete(
    store: Store,
    namespace: Namespace,
    ids: Sequence[str],
    *,
    action: str,
    expired_only: bool = False,
    noted: bool = True,
) -> Count:
    """Delete memories by id, and return how many there were.

    Args:
        store: The store.
        namespace: Their namespace.
        ids: Their ids.
        action: What the history calls it.
        expired_only: Whether those that have not expired stay.
        noted: Whether the history, if there is one, has entries of it.
    """
    forgotten = 0
    for start in range(0, len(ids), _DELETED_AT_ONCE):
        gone = await store.submit(
            "forget_memories",
            atomic=True,
            **namespace.place,
            ids=list(ids[start : start + _DELETED_AT_ONCE]),
            chunks=namespace.parts,
            action=action,
            expired_only=expired_only,
            history_namespace=namespace.name if noted and store.keeps_history else None,
        )
        forgotten += len(gone)
    return Count(forgotten)
