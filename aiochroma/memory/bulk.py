"""Many items: a batch at a time, the next one embedded while the one before is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aiochroma._errors import InvalidInputError
from aiochroma.memory.items import CREATED_AT, THREAD, UPDATED_AT, Item, item_from, now_in_seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiochroma.memory.opened import Embedded
    from aiochroma.memory.store import Namespace, Store

__all__ = ["batches", "distinct", "write_batches"]

_BATCH = 256
_BATCH_CHARACTERS = 1_000_000


async def batches(
    items: Iterable[Any] | AsyncIterable[Any], namespace: str, defaults: Mapping[str, Any] | None = None
) -> AsyncIterator[tuple[str, list[Item]]]:
    """Check items and gather them into batches, without holding more than one.

    Args:
        items: Texts, or mappings with ``Memory.remember``'s arguments.
        namespace: Where they belong; goes with each batch.
        defaults: Arguments for items that do not have them themselves.

    Raises:
        InvalidInputError: An item is wrong; the message names its position.
    """
    if isinstance(items, (str, Mapping)) or not isinstance(items, (Iterable, AsyncIterable)):
        raise InvalidInputError(f"`items` must be several texts or mappings, got {type(items).__name__}.")
    batch: list[Item] = []
    position = characters = 0
    async for value in _each(items):
        item = item_from(value, f"items[{position}]", defaults)
        batch.append(item)
        position += 1
        characters += len(item.text)
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield namespace, batch
            batch, characters = [], 0
    if batch:
        yield namespace, batch


async def _each(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def write_batches(
    store: Store,
    source: AsyncIterator[tuple[str, list[Item]]],
    written: Callable[[list[Item]], None],
    *,
    exact: bool,
    dedupe: bool,
) -> None:
    """Write batches in order, each while the next one is read and embedded; at most two are held.

    Args:
        store: Where to.
        source: Namespaces and their items.
        written: Called with each batch as soon as it is in the database.
        exact: See ``Store.write``, as for
        dedupe: this.

    Raises:
        BaseException: Of the source, of embedding or of writing; what came before it was written.
    """
    under_way: Any = None
    batch: list[Item] = []
    try:
        async for namespace, following in source:
            items = distinct(following, dedupe=dedupe)
            with store.limit():
                embedded = await store.embed([item.text for item in items], is_query=False)
            if under_way is not None:
                await store.port.finish(under_way)
                under_way = None
                written(batch)
            under_way, batch = (
                store.port.start(
                    _write(store, namespace, items, embedded, following, exact=exact, dedupe=dedupe)
                ),
                following,
            )
        if under_way is not None:
            await store.port.finish(under_way)
            under_way = None
            written(batch)
    except BaseException as error:
        if under_way is not None:
            failure = await store.port.settle(under_way, cancel=isinstance(error, asyncio.CancelledError))
            if failure is None:
                written(batch)
            elif failure is not error and isinstance(error, Exception) and isinstance(failure, Exception):
                raise failure from error  # Of the two it came first.
        raise


def distinct(items: list[Item], *, dedupe: bool) -> list[Item]:
    """Give every item its moment, and return those to be written, no two of one id.

    One write cannot hold an id twice. In a thread the later one is another memory with an id of its own; elsewhere, or to
    ``dedupe``, the later one counts, as if they had been written one after the other.
    """
    now = now_in_seconds()
    found: dict[str, Item] = {}
    for place, item in enumerate(items):
        # Keeps the order in which they were given, also within one request.
        made = item.own.setdefault(CREATED_AT, round(now + place * 1e-6, 6))
        item.own.setdefault(UPDATED_AT, now)
        if item.id in found and THREAD in item.own and not dedupe and item.id == item.derived_id():
            item.id = item.derived_id(1, made)
        found[item.id] = item
    return list(found.values())


async def _write(
    store: Store,
    namespace: str,
    items: list[Item],
    embedded: list[Embedded],
    batch: list[Item],
    *,
    exact: bool,
    dedupe: bool,
) -> None:
    """Write items, and note in the batch that they come from which ids they have been given."""

    async def work(place: Namespace) -> None:
        moved = await store.write(place, items, embedded, bulk=True, exact=exact, dedupe=dedupe)
        for item in batch if moved else ():
            item.id = moved.get(item.id, item.id)

    with store.limit():
        await store.on_made(namespace, work)
