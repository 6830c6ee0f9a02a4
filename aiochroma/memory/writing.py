"""Items and their vectors become records, and records are changed."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from aiochroma._types import Metadata, MetadataView
from aiochroma.memory.items import CREATED_AT, THREAD, UPDATED_AT, Item, now_in_seconds
from aiochroma.memory.recall import hit_from
from aiochroma.records.record import CHUNK_OF, CHUNKS, WRITING, chunk_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.memory.recall import Hit
    from aiochroma.memory.store import Namespace, Store
    from aiochroma.memory.vectors import Embedded

__all__ = ["change_memory", "distinct", "write_items"]

PARTS_FOR = "aiochroma:parts_for"

_CHUNKS_AT_ONCE = 256


def distinct(items: list[Item], *, dedupe: bool) -> list[Item]:
    """Give every item its moment, and return those to be written, no two of one id.

    One write cannot hold an id twice. In a thread the later one is another memory with an id of its own; elsewhere, or with
    ``dedupe``, the later one counts, as if they had been written one after the other.
    """
    now = now_in_seconds()
    found: dict[str, Item] = {}
    for number, item in enumerate(items):
        # Keeps the order in which they were given, also within one request.
        made = item.own.setdefault(CREATED_AT, round(now + number * 1e-6, 6))
        item.own.setdefault(UPDATED_AT, now)
        if item.id in found and THREAD in item.own and not dedupe and item.id == item.derived_id():
            item.id = item.derived_id(1, made)
        found[item.id] = item
    return list(found.values())


async def write_items(
    store: Store,
    namespace: Namespace,
    items: Sequence[Item],
    embedded: Sequence[Embedded],
    *,
    bulk: bool = False,
    exact: bool = False,
    dedupe: bool,
) -> dict[str, str]:
    """Write items whose ids are all different, as one request.

    Returns:
        Other ids, of texts whose own id belongs to another memory.
    """
    writings = await _write_chunks(store, namespace, items, embedded)
    moved: dict[str, str] = await store.submit(
        "remember",
        bulk=bulk,
        **namespace.place,
        ids=[item.id for item in items],
        embeddings=[entry.vector for entry in embedded],
        documents=[item.text for item in items],
        metadatas=[{**item.metadata, **item.own, **writings.get(item.id, {})} for item in items],
        uris=None,
        chunks=namespace.parts,
        exact=exact,
        dedupe=dedupe,
        history_namespace=namespace.name if store.keeps_history else None,
    )
    return moved


async def _write_chunks(
    store: Store, namespace: Namespace, items: Sequence[Item], embedded: Sequence[Embedded]
) -> dict[str, dict[str, Any]]:
    """Write the chunks of long texts, and return what their memories are to say about them.

    The chunks come first: a memory that is there has all its chunks.
    """
    long = {item.id: entry.parts for item, entry in zip(items, embedded, strict=True) if entry.parts}
    if not long:
        return {}
    chunk_collection = await store.submit(
        "get_or_create_collection",
        name=namespace.parts,
        configuration={"hnsw": {"space": "cosine"}},
        metadata={PARTS_FOR: namespace.name},
        **store.database,
    )
    writings: dict[str, Metadata] = {
        id: {WRITING: uuid.uuid4().hex, CHUNKS: len(parts)} for id, parts in long.items()
    }
    rows = [
        (chunk_id(writings[id][WRITING], number), id, text, vector)
        for id, parts in long.items()
        for number, (text, vector) in enumerate(parts)
    ]
    for start in range(0, len(rows), _CHUNKS_AT_ONCE):
        page = rows[start : start + _CHUNKS_AT_ONCE]
        await store.submit(
            "_upsert",
            bulk=len(rows) > _CHUNKS_AT_ONCE,
            collection_id=chunk_collection.id,
            ids=[row[0] for row in page],
            embeddings=[row[3] for row in page],
            metadatas=[{CHUNK_OF: row[1]} for row in page],
            documents=[row[2] for row in page],
            uris=None,
            **store.database,
        )
    return writings


async def change_memory(
    store: Store,
    namespace: str,
    id: str,
    values: MetadataView,
    *,
    action: str,
    text: str | None = None,
) -> Hit | None:
    """Change a memory that is there, and return it as it is then; None where there is none.

    Args:
        store: The store.
        namespace: Its namespace.
        id: Its id.
        values: Metadata to set; None takes a value away.
        action: What the history calls the change.
        text: Its new text, or None.
    """

    async def change(place: Namespace) -> Hit | None:
        writing = {}
        if embedded is not None and text is not None:
            writing = (await _write_chunks(store, place, [Item(text, id)], embedded)).get(id, {})
        changed = await store.submit(
            "change_memories",
            atomic=True,
            **place.place,
            ids=[id],
            embeddings=None if embedded is None else [embedded[0].vector],
            metadatas=[{**values, **writing}],
            documents=None if text is None else [text],
            uris=None,
            chunks=place.parts,
            action=action,
            history_namespace=place.name if store.keeps_history else None,
        )
        return hit_from(place.name, id, changed[0]["document"], changed[0]["metadata"]) if changed else None

    with store.limit():
        embedded = None if text is None else await store.embed([text], is_query=False)
        return await store.on(namespace, change, absent=None)
