"""Remembering: one text, many, or the messages of a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aiochroma._errors import ExtractFailedError, InvalidInputError
from aiochroma._threads import Started, start
from aiochroma._types import JsonObject
from aiochroma.memory.hooks import ask
from aiochroma.memory.items import check_thread, checked_item, checked_scope, item_from
from aiochroma.memory.namespaces import collection_name
from aiochroma.memory.opening import Call
from aiochroma.memory.results import Id, Items
from aiochroma.memory.writing import distinct, write_items

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiochroma.memory.items import Item
    from aiochroma.memory.store import Namespace, Store
    from aiochroma.memory.vectors import Embedded

__all__ = ["Extract", "many", "messages", "one", "remember_batches"]

Extracted: TypeAlias = "Iterable[str | Mapping[str, Any]]"
Extract: TypeAlias = "Callable[[list[dict[str, Any]]], Extracted | Awaitable[Extracted]]"

_EXTRACT_SECONDS = 120.0
"""How long the caller's function may take, which may ask a language model, where no deadline is nearer."""

_BATCH = 256
_BATCH_CHARACTERS = 1_000_000
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "created_at", "id", "metadata"})


def one(text: str, *, namespace: str, dedupe: bool | None, **arguments: Any) -> Call[Id]:
    """Remember a text; see ``Memory.remember``."""
    item = checked_item(text, **arguments)
    collection_name(namespace)
    again = bool(dedupe)

    async def work(store: Store) -> Id:
        with store.limit():
            embedded = await store.embed([item.text], is_query=False)
            items = distinct([item], dedupe=again)
            moved = await store.on_made(
                namespace, lambda place: write_items(store, place, items, embedded, dedupe=again)
            )
        return Id(moved.get(item.id, item.id))

    details = {"namespaces": [namespace], "texts": [item.text]}
    return Call("remember", work, Id.failed, sweeps=True, details=details)


def many(
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    namespace: str,
    scope: object,
    thread: str | Literal[False] | None,
    dedupe: bool | None,
    progress: Callable[[int], None] | None,
) -> Call[Items[str]]:
    """Remember many texts; see ``Memory.remember_many``."""
    collection_name(namespace)
    defaults: JsonObject = {}
    if thread is not None:
        defaults["thread"] = thread if thread is False else check_thread(thread)
    if scope is not None:
        checked_scope(scope)
        defaults["scope"] = scope

    async def work(store: Store) -> Items[str]:
        ids = Items[str]()

        def written(batch: list[Item]) -> None:
            ids.extend(item.id for item in batch)
            if progress is not None:
                progress(len(ids))

        await remember_batches(store, _batches(items, namespace, defaults), written, dedupe=bool(dedupe))
        return ids

    details = {"namespaces": [namespace]}
    return Call("remember_many", work, Items[str].failed, sweeps=True, details=details)


def messages(
    messages: Iterable[Mapping[str, Any]],
    *,
    thread: str,
    scope: object,
    namespace: str,
    extract: Extract | None,
) -> Call[Items[str]]:
    """Remember the messages of a conversation, or what is extracted from them; see ``Memory.remember_messages``."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Iterable):
        raise InvalidInputError(f"`messages` must be several mappings, got {type(messages).__name__}.")
    messages = [*messages]
    items = [_item_of(message, f"messages[{number}]") for number, message in enumerate(messages)]
    if extract is not None:
        if not callable(extract):
            raise InvalidInputError(
                f"`extract` must be a callable of the messages, which returns texts or items, got {extract!r}."
            )
        check_thread(thread)
        # What is said of somebody is no turn of the conversation in which it was said.
        return many(
            _extracted(extract, [dict(message) for message in messages]),
            namespace=namespace,
            scope=scope,
            thread=False,
            dedupe=None,
            progress=None,
        )
    return many(
        items, namespace=namespace, scope=scope, thread=check_thread(thread), dedupe=None, progress=None
    )


async def _extracted(extract: Extract, messages: list[dict[str, Any]]) -> AsyncIterator[Any]:
    found = await ask("extract", extract, messages, seconds=_EXTRACT_SECONDS, failure=ExtractFailedError)
    if isinstance(found, (str, Mapping)) or not isinstance(found, Iterable):
        raise ExtractFailedError(f"`extract` returned {type(found).__name__} and no list of texts or items.")
    for number, item in enumerate(found):
        try:
            item_from(item, f"`extract`'s item {number}")
        except InvalidInputError as error:
            raise ExtractFailedError(str(error)) from error
        yield item


def _item_of(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message) <= _MESSAGE_FIELDS:
        raise InvalidInputError(
            f"{where} must be a mapping with `role` and `content`, and may have "
            f"{sorted(_MESSAGE_FIELDS - {'role', 'content'})}; got {message!r}."
        )
    own = {name: message[name] for name in ("id", "created_at") if message.get(name) is not None}
    speaker = {name: message[name] for name in ("role", "name") if message.get(name) is not None}
    item = {"text": message["content"], "metadata": {**(message.get("metadata") or {}), **speaker}, **own}
    item_from(item, where)
    return item


# -- many --------------------------------------------------------------------------------------------------------------


async def _batches(
    items: Iterable[Any] | AsyncIterable[Any], namespace: str, defaults: Mapping[str, Any]
) -> AsyncIterator[tuple[str, list[Item]]]:
    """Check items and gather them into batches, without holding more than one.

    Args:
        items: Texts, or mappings with ``Memory.remember``'s arguments.
        namespace: The namespace that goes with each batch.
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


async def remember_batches(
    store: Store,
    source: AsyncIterator[tuple[str, list[Item]]],
    written: Callable[[list[Item]], None],
    *,
    exact: bool = False,
    dedupe: bool = False,
) -> None:
    """Write batches in order, each while the next one is read and embedded; at most two are held.

    Args:
        store: The store that is written to.
        source: Namespaces and their items.
        written: Called with each batch as soon as it is in the database.
        exact: Whether nothing is left of the former memory under an id, as for an import.
        dedupe: Whether a text that is repeated in its thread is refreshed.

    Raises:
        BaseException: What the source, embedding or writing raised; what came before it was written.
    """
    under_way: Started[None] | None = None
    batch: list[Item] = []
    try:
        async for namespace, following in source:
            items = distinct(following, dedupe=dedupe)
            with store.limit():
                embedded = await store.embed([item.text for item in items], is_query=False)
            if under_way is not None:
                await under_way.result()
                under_way = None
                written(batch)
            work = _write_batch(store, namespace, items, embedded, following, exact=exact, dedupe=dedupe)
            under_way, batch = start(work), following
        if under_way is not None:
            await under_way.result()
            under_way = None
            written(batch)
    except BaseException as error:
        if under_way is not None:
            failure = await under_way.settle(cancel=isinstance(error, asyncio.CancelledError))
            if failure is None:
                written(batch)
            elif failure is not error and isinstance(error, Exception) and isinstance(failure, Exception):
                raise failure from error  # Of the two it came first.
        raise


async def _write_batch(
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
        moved = await write_items(store, place, items, embedded, bulk=True, exact=exact, dedupe=dedupe)
        for item in batch if moved else ():
            item.id = moved.get(item.id, item.id)

    with store.limit():
        await store.on_made(namespace, work)
