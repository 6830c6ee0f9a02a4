"""The chunks of long texts: written before their memories, taken back where these are not, looked for by every sweep."""

from __future__ import annotations

import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiochroma._errors import AiochromaError
from aiochroma._logging import EventLogger, get_logger
from aiochroma.core.request import Request
from aiochroma.memory.arguments import now_in_seconds
from aiochroma.records.record import (
    CHUNK_MADE,
    CHUNK_OF,
    CHUNKS,
    WRITING,
    chunk_id,
    collection_name,
    writing_of,
)

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from collections.abc import AsyncIterator, Mapping, Sequence

    from aiochroma._types import CollectionId, Metadata, Vector
    from aiochroma.memory.store import Namespace, Store

__all__ = ["CHUNKS_FOR", "chunks_written", "drop_unowned_chunks", "new_writings", "write_chunks"]

log: EventLogger = get_logger("aiochroma.memory")

CHUNKS_FOR = "aiochroma:chunks_for"
"""In the metadata of a collection of chunks: the namespace."""

_AT_ONCE = 256
_UNOWNED_SECONDS = 3600.0
"""So long after its chunks a memory may still be written."""


@asynccontextmanager
async def chunks_written(
    store: Store, namespace: Namespace, long: Mapping[str, Sequence[tuple[str, Vector]]]
) -> AsyncIterator[dict[str, Metadata]]:
    """Write the chunks of long texts, give the metadata by which their memories know them, and take them back on failure.

    The chunks come first: a memory that is there has all its chunks. Where it is not written after them nothing is left of
    them, unless the process dies meanwhile; then the next one finds them.

    Args:
        store: The store.
        namespace: The namespace of the memories.
        long: The chunks of each long text with their vectors, by the id of the memory.
    """
    if not long:
        yield {}
        return
    await drop_unowned_chunks(store, namespace)
    made = await store.make_collection(namespace.chunks, {CHUNKS_FOR: namespace.name})
    writings = new_writings(long)
    try:
        await write_chunks(store, made.id, long, writings)
        yield writings
    except BaseException:
        _take_back(store, namespace, writings)
        raise


def _take_back(store: Store, namespace: Namespace, writings: Mapping[str, Metadata]) -> None:
    """Have chunks deleted whose memories were not written; waits for nothing, since the caller's time may be up."""
    arguments = {"ids": list(writings), "metadatas": list(writings.values()), "chunks": namespace.chunks}

    def note(future: asyncio.Future[Any] | concurrent.futures.Future[Any]) -> None:
        failure = "cancelled" if future.cancelled() else future.exception()
        if failure is None:
            if future.result():
                log.warning("memory.taken_back", namespace=namespace.name, ids=future.result()[:3])
        else:
            log.warning("memory.not_taken_back", namespace=namespace.name, error=repr(failure))

    try:
        request = Request("drop_chunks", {**namespace.collection, **arguments}, bulk=True)
        future = store.session.connection.submit(request).future
    except AiochromaError as error:
        log.warning("memory.not_taken_back", namespace=namespace.name, error=repr(error))
    else:
        assert future is not None
        future.add_done_callback(note)


def new_writings(long: Mapping[str, Sequence[tuple[str, Vector]]]) -> dict[str, Metadata]:
    """Return the metadata by which memories know their chunks, which are not written yet."""
    return {id: {WRITING: uuid.uuid4().hex, CHUNKS: len(chunks)} for id, chunks in long.items()}


async def write_chunks(
    store: Store,
    collection: CollectionId,
    long: Mapping[str, Sequence[tuple[str, Vector]]],
    writings: Mapping[str, Metadata],
) -> None:
    """Write chunks into a collection.

    Args:
        store: The store.
        collection: The collection of the chunks.
        long: The chunks of each long text with their vectors, by the id of the memory.
        writings: See :func:`new_writings`.
    """
    rows = [
        (chunk_id(writings[id][WRITING], number), id, text, vector)
        for id, chunks in long.items()
        for number, (text, vector) in enumerate(chunks)
    ]
    for begin in range(0, len(rows), _AT_ONCE):
        page = rows[begin : begin + _AT_ONCE]
        await store.submit(
            "_upsert",
            bulk=len(rows) > _AT_ONCE,
            collection_id=collection,
            ids=[row[0] for row in page],
            embeddings=[row[3] for row in page],
            metadatas=[{CHUNK_OF: row[1], CHUNK_MADE: now_in_seconds()} for row in page],
            documents=[row[2] for row in page],
            uris=None,
            **store.database,
        )


async def drop_unowned_chunks(store: Store, namespace: Namespace) -> None:
    """Delete the chunks of texts whose memories were never written, because a process died; once in a store's life."""
    if namespace.name in store.chunks_checked:
        return
    store.chunks_checked.add(namespace.name)
    holder = await store.collection(namespace.chunks)
    if holder is None:
        return
    collection = {**namespace.collection, "collection_id": holder.id}
    # First the chunks: those of a memory that is written meanwhile are not among them.
    ids: list[str] = (await store.submit("_get", **collection, include=[]))["ids"]
    writings = set(await store.submit("memory_writings", **namespace.collection))
    suspects = [id for id in ids if writing_of(id) not in writings]
    # A memory comes after its chunks, by another process perhaps.
    latest, unowned, memories = time.time() - _UNOWNED_SECONDS, list[str](), set[str]()
    for start in range(0, len(suspects), _AT_ONCE):
        page = suspects[start : start + _AT_ONCE]
        found = await store.submit("_get", **collection, ids=page, include=["metadatas"])
        for id, metadata in zip(found["ids"], found["metadatas"], strict=True):
            if (metadata or {}).get(CHUNK_MADE, 0.0) < latest:
                unowned.append(id)
                memories.add(str((metadata or {}).get(CHUNK_OF)))
    if unowned and not await _is_embedded_again(store, namespace):
        await store.submit("_delete", bulk=True, **collection, ids=unowned)
        log.warning(
            "memory.unowned_chunks",
            namespace=namespace.name,
            deleted=len(unowned),
            of=sorted(memories)[:3],
        )


async def _is_embedded_again(store: Store, namespace: Namespace) -> bool:
    """Tell whether another collection takes the namespace's place, or has taken it: the chunks found may be of its memories."""
    from aiochroma.memory.copies import copy_name

    copy = await store.collection(copy_name(namespace.name, ""))
    present = await store.collection(collection_name(namespace.name))
    return copy is not None or present is None or present.id != namespace.id
