"""Forgetting: by id, by filter, a whole namespace, and what has expired; and erasing, after which no file holds the bytes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aiochroma._errors import InvalidInputError
from aiochroma._types import JsonObject, MetadataView, Vector, Where
from aiochroma.disk.erasing import ErasureReceipt
from aiochroma.memory.arguments import check_id, checked_ids, checked_scope, checked_where
from aiochroma.memory.copies import (
    copy_name,
    delete_collection,
    delete_replaced,
    drop_copies,
    step_aside,
)
from aiochroma.memory.results import Count
from aiochroma.memory.stored import count_records, matching_ids
from aiochroma.memory.vectors import drop_unowned_chunks
from aiochroma.records.history import ERASE, database_key
from aiochroma.records.record import (
    CHUNK_OF,
    EXPIRES_AT,
    THREAD,
    aside_name,
    collection_name,
    scope_filter,
)
from aiochroma.records.spec import joined

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from aiochroma.client.session import Session
    from aiochroma.disk.erasing_own import ErasedHistory
    from aiochroma.memory.opening import Life
    from aiochroma.memory.store import Namespace, Store

__all__ = [
    "erase",
    "erase_traces",
    "forget",
    "forget_many",
    "forget_namespace",
    "refuse_unerasable",
    "sweep",
    "sweep_expired",
]

_READ_AT_ONCE = 256
_DELETED_AT_ONCE = 64
_MANY = 512
"""A namespace with at least this many memories is deleted by a child, without Chroma's index. The child takes 50 ms to start."""


@dataclass(frozen=True)
class _Selection:
    """Which memories a call is for: one by its id, or all that pass a filter, in one namespace or in all.

    Attributes:
        namespace: The namespace, or None for all.
        id: The id of one memory, or None for all that pass the filter.
        where: The filter, where there is no id.
        noted: What entries of the history must have noted to be of such memories (see ``ErasedHistory``); None where that cannot
            be told.
    """

    namespace: str | None
    id: str | None = None
    where: Where | None = None
    noted: Sequence[Sequence[tuple[str, str]]] | None = None

    async def namespaces(self, store: Store) -> list[str]:
        """Return the names of the namespaces."""
        return await store.names() if self.namespace is None else [self.namespace]

    async def ids(self, store: Store, namespace: Namespace) -> list[str]:
        """Return the ids of the memories in a namespace."""
        return [self.id] if self.id is not None else await matching_ids(store, namespace, self.where)


def _selection(
    call: str,
    id: str | None,
    *,
    namespace: str | None,
    where: Where | None,
    thread: str | None,
    scope: object,
) -> _Selection:
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
        return _Selection(home, check_id(id))
    of_scope = None if scope is None else scope_filter(checked_scope(scope))
    of_thread = None if thread is None else {THREAD: check_id(thread, "`thread`")}
    noted: list[list[tuple[str, str]]] = []
    if of_scope is not None:
        noted.append([pair for one in of_scope["$or"] for pair in one.items()])
    if of_thread is not None:
        noted.append([*of_thread.items()])
    return _Selection(
        None if namespace is None and scope is not None else home,
        where=joined(checked_where(where), of_thread, of_scope),
        # A filter of the caller's own is Chroma's to carry out.
        noted=noted if where is None else None,
    )


def forget(
    life: Life,
    id: str | None,
    *,
    namespace: str | None,
    where: Where | None,
    thread: str | None,
    scope: object,
) -> Coroutine[object, object, Count]:
    """Forget one memory, or all that pass; see ``Memory.forget``."""
    chosen = _selection("forget", id, namespace=namespace, where=where, thread=thread, scope=scope)

    async def work(store: Store) -> Count:
        async def of_one(found: Namespace) -> int:
            return await _delete(store, found, await chosen.ids(store, found), action="forget")

        names = await chosen.namespaces(store)
        return Count(sum([await store.on(name, of_one, absent=0, any_embedder=True) for name in names]))

    names = None if chosen.namespace is None else [chosen.namespace]
    return life.run("forget", work, Count.failed, details={"id": chosen.id, "namespaces": names})


def forget_many(life: Life, ids: Iterable[str], *, namespace: str) -> Coroutine[object, object, Count]:
    """Forget memories by id; see ``Memory.forget_many``."""
    given = checked_ids(ids)
    collection_name(namespace)

    async def work(store: Store) -> Count:
        return await store.on(
            namespace,
            lambda found: _delete(store, found, given, action="forget"),
            absent=Count(),
            any_embedder=True,
        )

    details = {"id": given[0] if len(given) == 1 else None, "namespaces": [namespace]}
    return life.run("forget_many", work, Count.failed, details=details)


def forget_namespace(life: Life, name: str) -> Coroutine[object, object, Count]:
    """Forget a namespace and all that belongs to it; see ``Memory.forget_namespace``."""
    collection_name(name)

    async def work(store: Store) -> Count:
        return Count(await store.on(name, lambda found: _drop(store, found), absent=0, any_embedder=True))

    return life.run("forget_namespace", work, Count.failed, details={"namespaces": [name]})


def sweep(life: Life, namespace: str | None) -> Coroutine[object, object, Count]:
    """Delete what has expired; see ``Memory.sweep``."""
    if namespace is not None:
        collection_name(namespace)

    async def work(store: Store) -> Count:
        store.chunks_checked.clear()
        return Count(await sweep_expired(store, namespace))

    return life.run("sweep", work, Count.failed)


async def sweep_expired(store: Store, namespace: str | None) -> int:
    """Delete what has expired, from one namespace or from all, and return how many there were."""

    async def of_one(found: Namespace) -> int:
        ids = await matching_ids(store, found, {EXPIRES_AT: {"$lte": time.time()}})
        await drop_unowned_chunks(store, found)
        return await _delete(store, found, ids, action="sweep", expired_only=True)

    if namespace is None:
        await delete_replaced(store, forgotten_only=True)
    names = await store.names() if namespace is None else [namespace]
    return sum([await store.on(name, of_one, absent=0, any_embedder=True) for name in names])


async def _drop(store: Store, namespace: Namespace, *, noted: bool = True) -> int:
    """Delete a namespace and what belongs to it, and return how many memories it held.

    Args:
        store: The store.
        namespace: The namespace.
        noted: Whether the history, if there is one, has entries of it.
    """
    forgotten = 0
    if noted and store.keeps_history:
        ids = await matching_ids(store, namespace, None)
        forgotten = await _delete(store, namespace, ids, action="forget")
    forgotten += await count_records(store, namespace)
    store.drop(namespace.name)
    await drop_copies(store, namespace.name)
    if forgotten >= _MANY and store.info.capabilities.files:
        await step_aside(store, namespace.name)
        await delete_collection(store, aside_name(namespace.name, "chunks"), is_large=True)
        await delete_collection(store, aside_name(namespace.name), is_large=True)
        return forgotten
    # The namespace goes last: as long as it is there, what was left of it by an interruption can be forgotten.
    await delete_collection(store, namespace.chunks)
    await delete_collection(store, collection_name(namespace.name))
    return forgotten


async def _delete(
    store: Store,
    namespace: Namespace,
    ids: Sequence[str],
    *,
    action: str,
    expired_only: bool = False,
) -> Count:
    """Delete memories by id, and return how many there were.

    Args:
        store: The store.
        namespace: The namespace of the memories.
        ids: The ids of the memories.
        action: What the history calls it.
        expired_only: Whether those that have not expired stay.
    """
    forgotten = 0
    for start in range(0, len(ids), _DELETED_AT_ONCE):
        gone = await store.submit(
            "forget_memories",
            atomic=True,
            **namespace.collection,
            ids=list(ids[start : start + _DELETED_AT_ONCE]),
            chunks=namespace.chunks,
            others=[aside_name(namespace.name), copy_name(namespace.name, "")],
            action=action,
            expired_only=expired_only,
            history_namespace=namespace.name if store.keeps_history else None,
        )
        forgotten += len(gone)
    store.note_forgotten(forgotten)
    return Count(forgotten)


# -- erasing ------------------------------------------------------------------------------------------------------------


def erase(
    life: Life,
    id: str | None,
    *,
    namespace: str | None,
    where: Where | None,
    thread: str | None,
    scope: object,
) -> Coroutine[object, object, ErasureReceipt]:
    """Erase what is selected; see ``Memory.erase``."""
    whole = id is None and where is None and thread is None and scope is None
    if whole and namespace is None:
        raise InvalidInputError("`erase` needs an `id`, a `where`, `thread` or `scope`, or a `namespace`.")
    chosen = (
        None
        if whole
        else _selection("erase", id, namespace=namespace, where=where, thread=thread, scope=scope)
    )
    if whole:
        collection_name(namespace or "")

    async def work(store: Store) -> ErasureReceipt:
        session = store.client.session
        refuse_unerasable(session)
        traces = _Traces()
        if chosen is not None and chosen.id is not None:
            # The history may have entries of it although it was forgotten before, and its namespace with it.
            traces.ids[str(chosen.namespace)] = [chosen.id]
        for name in [str(namespace)] if chosen is None else await chosen.namespaces(store):

            async def of_one(found: Namespace) -> int:
                if chosen is None:
                    ids = await matching_ids(store, found, None)
                else:
                    ids = await chosen.ids(store, found)
                await traces.read(store, found, ids)
                if chosen is None:
                    return await _drop(store, found, noted=False)
                # With their entries in the history: killed after it, the same filter would not find them any more.
                erased = await _delete(store, found, ids, action=ERASE)
                await traces.drop_chunks(store, found)
                return erased

            # What is being copied holds the texts as well; it is begun again then. A copy that is begun meanwhile, too.
            await drop_copies(store, name)
            traces.erased += await store.on(name, of_one, absent=0, any_embedder=True)
            await drop_copies(store, name)
        return await erase_traces(
            session,
            erased=traces.erased,
            texts=traces.texts,
            vectors=traces.vectors,
            history=_history_of(store, traces, namespace, chosen),
        )

    return life.run("erase", work, None)


def _history_of(
    store: Store, traces: _Traces, namespace: str | None, chosen: _Selection | None
) -> ErasedHistory:
    """Return which entries leave the history: of what was there, and of what was forgotten before."""
    history: ErasedHistory = {"database": database_key(**store.database), "ids": traces.ids}
    if chosen is None:
        history |= {"namespace": namespace, "passing": []}
    elif chosen.noted is not None:
        history |= {"namespace": chosen.namespace, "passing": chosen.noted}
    return history


class _Traces:
    """What no file may hold any more.

    Attributes:
        erased: How many memories are erased.
        texts: The texts of those memories, and of the chunks of long ones; empty where a record has none.
        vectors: The vector of each text.
        ids: The ids of those memories, by namespace.
        chunks: The ids of their chunks in the namespace that was read last.
    """

    def __init__(self) -> None:
        self.chunks: list[str] = []
        self.erased = 0
        self.texts: list[str] = []
        self.vectors: list[Vector] = []
        self.ids: dict[str, list[str]] = {}

    async def read(self, store: Store, namespace: Namespace, ids: list[str]) -> None:
        """Read what is to be erased."""
        self.ids[namespace.name] = ids
        self.chunks = []
        chunks = await store.collection(namespace.chunks)
        for start in range(0, len(ids), _READ_AT_ONCE):
            page = ids[start : start + _READ_AT_ONCE]
            await self._add(store, namespace.collection, ids=page, where=None)
            if chunks is not None:
                collection = {**namespace.collection, "collection_id": chunks.id}
                self.chunks += await self._add(store, collection, ids=None, where={CHUNK_OF: {"$in": page}})

    async def drop_chunks(self, store: Store, namespace: Namespace) -> None:
        """Delete the chunks that were read and are still there: another program has deleted or replaced their memories."""
        holder = await store.collection(namespace.chunks) if self.chunks else None
        if holder is not None:
            collection = {**namespace.collection, "collection_id": holder.id}
            for start in range(0, len(self.chunks), _DELETED_AT_ONCE):
                page = self.chunks[start : start + _DELETED_AT_ONCE]
                await store.submit("_delete", **collection, ids=page)

    async def _add(self, store: Store, collection: MetadataView, **which: object) -> list[str]:
        found = await store.submit(
            "_get",
            **collection,
            **which,
            where_document=None,
            limit=None,
            offset=None,
            include=["documents", "embeddings"],
        )
        self.texts += [text or "" for text in found["documents"]]
        self.vectors += list(found["embeddings"])
        ids: list[str] = found["ids"]
        return ids


def refuse_unerasable(session: Session) -> None:
    """Refuse before anything is forgotten where the files are out of reach.

    Raises:
        InvalidInputError: The database is a server's.
    """
    info = session.describe()
    if info.mode == "http":
        raise InvalidInputError(
            f"{info.name} keeps its files elsewhere: nothing can be erased from them here. `forget` deletes the records; erase "
            "the files with `aiochroma erase` where they are, with the server stopped."
        )


async def erase_traces(
    session: Session,
    *,
    erased: int,
    texts: Sequence[str],
    vectors: Sequence[Vector],
    history: ErasedHistory | None,
) -> ErasureReceipt:
    """Remove all that is dead from the files of a database, and look for what must not be there any more.

    Requests wait meanwhile: the database is closed and opened again.

    Args:
        session: A client's session.
        erased: How many memories were forgotten before.
        texts: The texts of the memories.
        vectors: The vectors of the memories, that of a text at its place.
        history: Which entries leave the history; None takes the texts out of all entries.

    Raises:
        InvalidInputError: The database is a server's.
        StoreUnavailableError: A file cannot be written, or an index is damaged.
    """
    refuse_unerasable(session)
    if not session.describe().capabilities.files:
        return ErasureReceipt(erased=erased, texts=sum(map(bool, texts)), vectors=len(vectors))
    found: JsonObject = await session.submit(
        "erase_traces",
        texts=list(texts),
        vectors=list(vectors),
        history=history,
    )
    found.pop("is_complete")
    return replace(ErasureReceipt(**found), erased=erased)
