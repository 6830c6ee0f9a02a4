"""The codes of tokens, for memories that have none though the embedder gives the states of tokens.

Those are memories that were written by a release without codes, of a copy, and of an index that was made again from Chroma's
records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiochroma.records.record import CHUNKS, Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiochroma.memory.store import Store
    from aiochroma.memory.vectors import Embedded

__all__ = ["complete_codes", "write_codes"]

_PAGE = 256


async def complete_codes(store: Store, name: str) -> int:
    """Embed the tokens of the memories that have no code; return how many have one now.

    A memory to which another program gave a vector that is not that of its text gets none.
    """
    namespace = await store.existing(name)
    if namespace is None or not (store.embedder.gives_tokens and store.capabilities.full_text):
        return 0
    while await store.submit("index_memories", **namespace.collection) < 1.0:
        pass
    ids: list[str] = await store.submit("memories_without_code", **namespace.collection)
    asked: list[str] = []
    for start in range(0, len(ids), _PAGE):
        page = ids[start : start + _PAGE]
        records: list[Record | None] = await store.submit("read_memories", **namespace.collection, ids=page)
        # A long text is found by its chunks, and has no code.
        texts = {
            record["id"]: record["document"]
            for record in records
            if record is not None and CHUNKS not in record["metadata"]
        }
        if texts:
            embedded = await store.embed(list(texts.values()), is_query=False)
            await write_codes(
                store, namespace.collection["collection_id"], dict(zip(texts, embedded, strict=True))
            )
        asked += texts
    left = set(await store.submit("memories_without_code", **namespace.collection)) if asked else set()
    return sum(id not in left for id in asked)


async def write_codes(store: Store, collection: object, embedded: Mapping[str, Embedded]) -> None:
    """Keep the codes of what was embedded, where there are any."""
    codes = {id: one.code for id, one in embedded.items() if one.code is not None}
    if codes:
        await store.submit(
            "code_memories",
            bulk=True,
            collection_id=collection,
            ids=list(codes),
            codes=list(codes.values()),
            **store.database,
        )
