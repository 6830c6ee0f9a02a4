"""The copies of namespaces that are embedded again: their names, their marks, and how they take over.

A copy stands beside its original under a name that no namespace has. When it takes over, the original steps aside, under another
such name, until it is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from aiochroma._types import Metadata, MetadataView
from aiochroma.memory.chunks import CHUNKS_FOR
from aiochroma.records.record import (
    DIMENSIONS,
    EMBEDDER,
    FINGERPRINT,
    NAMESPACE,
    REPLACED,
    chunks_name,
    collection_name,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chromadb.types import Collection

    from aiochroma.memory.store import Store

__all__ = [
    "COMPLETE",
    "COPY_EMBEDDER",
    "COPY_OF",
    "SINCE",
    "copy_name",
    "delete_collection",
    "delete_replaced",
    "drop_copies",
    "restore_names",
    "take_over",
]

COPY_OF = "aiochroma:copy_of"
"""In the metadata of a copy that is being made: the namespace."""
COPY_EMBEDDER = "aiochroma:copy_embedder"
COMPLETE = "aiochroma:copy_complete"
"""True from the moment when the copy is to take over."""
SINCE = "aiochroma:copied_until"
"""The moment at which the last comparison of all records began, in seconds since 1970."""


async def restore_names(store: Store, models: Sequence[Collection]) -> None:
    """Let a copy take over whose run was interrupted between its changes of names; for opening.

    A running job is never seen in this state: no other request comes between its changes of names. A complete copy whose
    original has its name still is left alone: the original may have been written to, or forgotten, since.
    """
    names = {model.name for model in models}
    for model in models:
        name = (model.metadata or {}).get(COPY_OF)
        begun = not names.isdisjoint(_aside_name(str(name), what) for what in ("", "chunks"))
        if begun and (model.metadata or {}).get(COMPLETE):
            await take_over(store, str(name), model, models)


async def drop_copies(store: Store, name: str) -> None:
    """Delete all that a run that was interrupted has left of a namespace, but not the namespace."""
    for what in ("", "chunks"):
        await delete_collection(store, copy_name(name, what))
        await delete_collection(store, _aside_name(name, what))


async def delete_replaced(store: Store) -> None:
    """Delete the originals whose copies have taken over."""
    for model in await store.collections():
        if REPLACED in (model.metadata or {}):
            await delete_collection(store, model.name)


async def delete_collection(store: Store, name: str) -> None:
    """Delete a collection, if there is one, its records first.

    Chroma deletes one in one piece, in which everybody waits. It leaves the lists in the metadata of its records, and shows them
    in later records, of any collection, that get the same rows.
    """
    from chromadb.errors import NotFoundError

    found = await store.collection(name)
    if found is None:
        return
    records = {"collection_id": found.id, **store.database}
    with contextlib.suppress(NotFoundError):  # Somebody else has deleted it meanwhile.
        ids = (await store.submit("_get", **records, include=[]))["ids"]
        if ids:
            await store.submit("_delete", bulk=True, **records, ids=ids)
        await store.submit("delete_collection", name=name, **store.database)


async def take_over(store: Store, name: str, copy: Collection, models: Sequence[Collection]) -> None:
    """Give a copy the name of its namespace, and its original another."""
    by_name = {model.name: model for model in models}
    known = copy.metadata or {}
    steps: list[Metadata] = []
    for present, replacement, what, since, metadata in (
        (chunks_name(name), copy_name(name, "chunks"), "chunks", {}, {CHUNKS_FOR: name}),
        (
            collection_name(name),
            copy.name,
            "",
            {SINCE: known[SINCE]} if SINCE in known else {},
            {
                NAMESPACE: name,
                EMBEDDER: known[COPY_EMBEDDER],
                DIMENSIONS: known[DIMENSIONS],
                FINGERPRINT: known[FINGERPRINT],
            },
        ),
    ):
        aside = _aside_name(name, what)
        if present in by_name and aside not in by_name:
            steps.append(_renamed(by_name[present], aside, {REPLACED: name, **since}))
        if replacement in by_name:
            steps.append(_renamed(by_name[replacement], present, metadata))
    # Submitted together they stand next to each other in the queue: no caller finds the namespace missing in between.
    for outcome in await store.submit_many([("_modify", {**step, **store.database}) for step in steps]):
        if outcome.error is not None:
            raise outcome.error
    store.drop(name)


def _renamed(model: Collection, name: str, metadata: MetadataView) -> Metadata:
    return {"id": model.id, "new_name": name, "new_metadata": metadata}


def copy_name(namespace: str, what: str) -> str:
    """Return the name of a copy of a namespace (``what`` is empty) or of its chunks (``"chunks"``)."""
    return f"ns.reembed{what}-{hashlib.sha256(namespace.encode()).hexdigest()}.x"


def _aside_name(namespace: str, what: str) -> str:
    return f"ns.replaced{what}-{hashlib.sha256(namespace.encode()).hexdigest()}.x"
