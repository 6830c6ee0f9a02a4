"""Remembering: one text, many, or the messages of a conversation; and how items and their vectors become records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aiochroma._callbacks import ask
from aiochroma._errors import ExtractFailedError, InvalidInputError, shown
from aiochroma._types import JsonObject
from aiochroma._waiting import Started
from aiochroma.client.options import check_flag, check_progress
from aiochroma.memory.arguments import Item, check_id, checked_item, checked_scope, item_from, now_in_seconds
from aiochroma.memory.results import Id, Items
from aiochroma.memory.vectors import chunks_written
from aiochroma.records.record import CREATED_AT, THREAD, UPDATED_AT, collection_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

    from aiochroma.memory.opening import Life
    from aiochroma.memory.store import Namespace, Store
    from aiochroma.memory.vectors import Embedded

__all__ = ["Extract", "remember", "remember_batches", "remember_many", "remember_messages"]

Extracted: TypeAlias = "Iterable[str | Mapping[str, Any]]"
Extract: TypeAlias = "Callable[[list[JsonObject]], Extracted | Awaitable[Extracted]]"

_EXTRACT_SECONDS = 120.0
"""How long the caller's function may take, which may ask a language model, where no deadline is nearer."""

_BATCH = 256
_BATCH_CHARACTERS = 1_000_000
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "created_at", "id", "metadata"})
_TOOL_FIELDS = frozenset({"tool_calls", "tool_call_id", "function_call", "refusal", "annotations", "audio"})
"""What messages of chat APIs have besides; none of it was said."""


def remember(
    life: Life, text: str, *, namespace: str, dedupe: bool, **arguments: object
) -> Coroutine[object, object, Id]:
    """Remember a text; see ``Memory.remember``."""
    item = checked_item(text, where="`text`", **arguments)
    collection_name(namespace)
    check_flag("dedupe", dedupe)

    async def work(store: Store) -> Id:
        with store.limit():
            embedded = await store.embed([item.text], is_query=False)
            items = _distinct([item], dedupe=dedupe)
            moved = await store.on_made(
                namespace, lambda made: _write_items(store, made, items, embedded, dedupe=dedupe)
            )
        return Id(moved.get(item.id, item.id))

    details = {"namespaces": [namespace], "texts": [item.text]}
    return life.run("remember", work, Id.failed, sweeps=True, details=details)


def remember_many(
    life: Life,
    items: Iterable[object] | AsyncIterable[object],
    progress: Callable[[int], None] | None = None,
    *,
    namespace: str,
    scope: object,
    thread: str | Literal[False] | None,
    dedupe: bool,
) -> Coroutine[object, object, Items[str]]:
    """Remember many texts; see ``Memory.remember_many``."""
    collection_name(namespace)
    check_flag("dedupe", dedupe)
    check_progress(progress)
    defaults: JsonObject = {}
    if thread is not None:
        defaults["thread"] = thread if thread is False else check_id(thread, "`thread`")
    if scope is not None:
        checked_scope(scope)
        defaults["scope"] = scope

    async def work(store: Store) -> Items[str]:
        ids = Items[str]()

        def written(batch: list[Item]) -> None:
            ids.extend(item.id for item in batch)
            if progress is not None:
                progress(len(ids))

        await remember_batches(store, _batches(items, namespace, defaults), written, dedupe=dedupe)
        return ids

    details = {"namespaces": [namespace]}
    return life.run("remember_many", work, Items[str].failed, sweeps=True, details=details)


def remember_messages(
    life: Life,
    messages: Iterable[Mapping[str, Any]],
    *,
    thread: str,
    scope: object,
    namespace: str,
    extract: Extract | None,
) -> Coroutine[object, object, Items[str]]:
    """Remember the messages of a conversation, or what is extracted from them; see ``Memory.remember_messages``."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Iterable):
        raise InvalidInputError(f"`messages` must be several mappings, got {type(messages).__name__}.")
    messages = [*messages]
    checked = [_item_of(message, f"messages[{number}]") for number, message in enumerate(messages)]
    items = [item for item in checked if item is not None]
    check_id(thread, "`thread`")
    if extract is None:
        return remember_many(life, items, namespace=namespace, scope=scope, thread=thread, dedupe=False)
    if not callable(extract):
        raise InvalidInputError(
            f"`extract` must be a callable of the messages, which returns texts or items, got {shown(extract)}."
        )
    extracted = _extracted(extract, [dict(message) for message in messages])
    # A fact is not a message of the conversation in which it was mentioned.
    return remember_many(life, extracted, namespace=namespace, scope=scope, thread=False, dedupe=False)


async def _extracted(extract: Extract, messages: list[JsonObject]) -> AsyncIterator[object]:
    found = await ask("extract", extract, messages, seconds=_EXTRACT_SECONDS, failure=ExtractFailedError)
    if isinstance(found, (str, Mapping)) or not isinstance(found, Iterable):
        raise ExtractFailedError(f"`extract` returned {type(found).__name__} and no list of texts or items.")
    for number, item in enumerate(found):
        try:
            item_from(item, f"`extract`'s item {number}")
        except InvalidInputError as error:
            raise ExtractFailedError(str(error)) from error
        yield item


def _item_of(message: object, where: str) -> JsonObject | None:
    """Return the item of a message, or None for one in which nothing is said."""
    known = _MESSAGE_FIELDS | _TOOL_FIELDS
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message) <= known:
        raise InvalidInputError(
            f"{where} must be a mapping with `role` and `content`, and may have "
            f"{sorted(_MESSAGE_FIELDS - {'role', 'content'})}; got {shown(message)}."
        )
    own = {name: message[name] for name in ("id", "created_at") if message.get(name) is not None}
    speaker = {name: message[name] for name in ("role", "name") if message.get(name) is not None}
    content = message["content"]
    in_parts = isinstance(content, (list, tuple))
    text = _said_in(content) if in_parts else content
    if not text and (in_parts or not _TOOL_FIELDS.isdisjoint(message)):
        return None
    item = {"text": text, "metadata": {**(message.get("metadata") or {}), **speaker}, **own}
    item_from(item, where)
    return item


def _said_in(parts: Iterable[object]) -> str:
    """Return the texts of a content in parts; those of pictures and files have none."""
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str) and text.strip())


# -- many --------------------------------------------------------------------------------------------------------------


async def _batches(
    items: Iterable[object] | AsyncIterable[object], namespace: str, defaults: JsonObject
) -> AsyncIterator[tuple[str, list[Item], bool]]:
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
            yield namespace, batch, False
            batch, characters = [], 0
    if batch:
        yield namespace, batch, False


async def _each(items: Iterable[object] | AsyncIterable[object]) -> AsyncIterator[object]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def remember_batches(
    store: Store,
    source: AsyncIterator[tuple[str, list[Item], bool]],
    written: Callable[[list[Item]], None],
    *,
    dedupe: bool = False,
) -> None:
    """Write batches in order, each while the next one is read and embedded; at most two are held.

    Args:
        store: The store that is written to.
        source: Namespaces and their items, and whether these replace memories of the same ids as a whole, as by an import.
        written: Called with each batch as soon as it is in the database.
        dedupe: Whether a text that is repeated in its thread is refreshed.

    Raises:
        BaseException: What the source, embedding or writing raised; what came before it was written.
    """
    under_way: Started[None] | None = None
    batch: list[Item] = []
    try:
        async for namespace, following, replace in source:
            items = _distinct(following, dedupe=dedupe)
            with store.limit():
                embedded = await store.embed([item.text for item in items], is_query=False)
            if under_way is not None:
                await under_way.result()
                under_way = None
                written(batch)
            work = _write_batch(store, namespace, items, embedded, following, replace=replace, dedupe=dedupe)
            under_way, batch = Started(work), following
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
    replace: bool,
    dedupe: bool,
) -> None:
    """Write items, and note in the batch that they come from which ids they have been given."""

    async def work(made: Namespace) -> None:
        moved = await _write_items(store, made, items, embedded, bulk=True, replace=replace, dedupe=dedupe)
        for item in batch if moved else ():
            item.id = moved.get(item.id, item.id)

    with store.limit():
        await store.on_made(namespace, work)


# -- records ------------------------------------------------------------------------------------------------------------


def _distinct(items: list[Item], *, dedupe: bool) -> list[Item]:
    """Give every item the moment at which it is remembered, and return those to be written, no two with one id.

    One write cannot hold an id twice. In a thread the later item is another memory with an id of its own; elsewhere, with
    ``dedupe``, or of the same moment, the later item counts, as if they had been written one after the other.
    """
    now = now_in_seconds()
    found: dict[str, Item] = {}
    for number, item in enumerate(items):
        # Keeps the order in which they were given, also within one request.
        made = item.own.setdefault(CREATED_AT, round(now + number * 1e-6, 6))
        item.own.setdefault(UPDATED_AT, now)
        first = found.get(item.id)
        again = first is not None and THREAD in item.own and first.own[CREATED_AT] != made
        if again and not dedupe and item.id == item.derived_id():
            item.id = item.derived_id(1, made)
        found[item.id] = item
    return list(found.values())


async def _write_items(
    store: Store,
    namespace: Namespace,
    items: Sequence[Item],
    embedded: Sequence[Embedded],
    *,
    bulk: bool = False,
    replace: bool = False,
    dedupe: bool,
) -> dict[str, str]:
    """Write items whose ids are all different, as one request.

    Returns:
        Other ids, of texts whose own id belongs to another memory.
    """
    long = {item.id: entry.chunks for item, entry in zip(items, embedded, strict=True) if entry.chunks}
    async with chunks_written(store, namespace, long) as writings:
        moved: dict[str, str] = await store.submit(
            "remember",
            bulk=bulk,
            **namespace.collection,
            ids=[item.id for item in items],
            embeddings=[entry.vector for entry in embedded],
            codes=[entry.code for entry in embedded],
            documents=[item.text for item in items],
            metadatas=[
                {
                    **item.metadata,
                    **item.own,
                    **writings.get(item.id, {}),
                    **entry.sparse_key(namespace.sparse_embedder),
                }
                for item, entry in zip(items, embedded, strict=True)
            ],
            uris=None,
            chunks=namespace.chunks,
            exact=replace,
            dedupe=dedupe,
            history_namespace=namespace.name if store.keeps_history else None,
        )
    return moved
