"""Memories that are stored already: looked up by id, listed in order, counted, changed; and the history of their changes."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from aiochroma._errors import InvalidInputError, shown
from aiochroma._types import MetadataView, Where
from aiochroma.client.options import check_flag
from aiochroma.memory.arguments import (
    check_id,
    check_k,
    check_text,
    checked_ids,
    checked_item,
    checked_metadata,
    checked_scope,
    checked_where,
    now_in_seconds,
    seconds_of,
)
from aiochroma.memory.results import (
    Count,
    Hit,
    Items,
    MemoryChange,
    Page,
    UnavailableHit,
    hit_from,
    user_metadata,
)
from aiochroma.memory.vectors import chunks_written
from aiochroma.records.record import PINNED, UPDATED_AT, collection_name, has_expired
from aiochroma.records.spec import ListSpec, cursor_of, plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Sequence

    from aiochroma.memory.opening import Life
    from aiochroma.memory.store import Namespace, Store
    from aiochroma.records.history import Entry
    from aiochroma.records.record import Record

__all__ = [
    "Listing",
    "count",
    "count_records",
    "get",
    "get_many",
    "history",
    "list_memories",
    "matching_ids",
    "names",
    "pin",
    "read_records",
    "update",
]

_AT_ONCE = 256
_IDS_AT_ONCE = 2000
"""Memories that one request reads."""


class Listing:
    """The memories of a namespace in order.

    ``await`` it for a :class:`~aiochroma.Page` of at most ``limit`` memories; or go through all of them, up to ``limit``, with
    ``async for``, which reads them as it goes.
    """

    def __init__(
        self, fetch: Callable[[ListSpec], Awaitable[Page]], namespace: str, spec: ListSpec, limit: int | None
    ) -> None:
        self._fetch = fetch
        self._namespace = namespace
        self._spec = spec
        self._limit = limit

    def __await__(self) -> Generator[object, None, Page]:
        return self._page().__await__()

    async def _page(self) -> Page:
        gathered = Page()
        async for page in self._pages():
            if page.error is not None:
                return page
            gathered.extend(page)
            gathered.next = page.next
        return gathered

    async def __aiter__(self) -> AsyncIterator[Hit]:
        async for page in self._pages():
            if page.error is not None:
                raise page.error
            for hit in page:
                yield hit

    async def _pages(self) -> AsyncIterator[Page]:
        spec, left = self._spec, self._limit
        while left is None or left > 0:
            most = _AT_ONCE if left is None else min(_AT_ONCE, left)
            page = await self._fetch(replace(spec, limit=most))
            yield page
            if page.next is None:
                return
            spec = replace(spec, after=_cursor_from(page.next, self._namespace, spec))
            left = None if left is None else left - len(page)


def get(life: Life, id: str, *, namespace: str) -> Coroutine[object, object, Hit | None]:
    """Look a memory up; see ``Memory.get``."""
    check_id(id)
    collection_name(namespace)

    async def work(store: Store) -> Hit | None:
        return (await _valid_hits(store, namespace, [id])).get(id)

    return life.run("get", work, UnavailableHit.failed)


def get_many(life: Life, ids: Iterable[str], *, namespace: str) -> Coroutine[object, object, Items[Hit]]:
    """Look several memories up; see ``Memory.get_many``."""
    given = checked_ids(ids)
    collection_name(namespace)

    async def work(store: Store) -> Items[Hit]:
        found = await _valid_hits(store, namespace, given)
        return Items(found[id] for id in given if id in found)

    return life.run("get_many", work, Items[Hit].failed)


def list_memories(
    life: Life,
    namespace: str,
    *,
    scope: object,
    thread: str | None,
    where: Where | None,
    since: object,
    until: object,
    newest_first: bool,
    limit: int | None,
    after: str | None,
) -> Listing:
    """List memories in order; see ``Memory.list``."""
    collection_name(namespace)
    check_flag("newest_first", newest_first)
    if limit is not None:
        check_k(limit, "`limit`")
    spec = ListSpec(
        where=checked_where(where),
        scope="" if scope is None else checked_scope(scope),
        thread=None if thread is None else check_id(thread, "`thread`"),
        since=None if since is None else seconds_of(since, "`since`"),
        until=None if until is None else seconds_of(until, "`until`"),
        newest_first=newest_first,
    )
    if after is not None:
        spec = replace(spec, after=_cursor_from(after, namespace, spec))

    def fetch(spec: ListSpec) -> Coroutine[object, object, Page]:
        return life.run("list", lambda store: _page(store, namespace, spec), Page.failed)

    return Listing(fetch, namespace, spec, limit)


def count(life: Life, namespace: str | None) -> Coroutine[object, object, Count]:
    """Count memories; see ``Memory.count``."""
    if namespace is not None:
        collection_name(namespace)

    async def work(store: Store) -> Count:
        names = await store.names() if namespace is None else [namespace]

        async def of_one(found: Namespace) -> int:
            return await count_records(store, found)

        return Count(sum([await store.on(name, of_one, absent=0, any_embedder=True) for name in names]))

    return life.run("count", work, Count.failed)


def names(life: Life) -> Coroutine[object, object, Items[str]]:
    """Return the names of all namespaces; see ``Memory.namespaces``."""

    async def work(store: Store) -> Items[str]:
        return Items(await store.names())

    return life.run("namespaces", work, Items[str].failed)


async def _page(store: Store, namespace: str, spec: ListSpec) -> Page:
    """Return a page of a namespace; empty where there is none."""

    async def work(found: Namespace) -> Page:
        # One more than is returned tells whether there is more.
        asked = replace(spec, limit=spec.limit + 1)
        records: list[Record] = await store.submit("list_memories", **found.collection, spec=asked)
        page = Page(_hit(found, record) for record in records[: spec.limit])
        if len(records) > spec.limit:
            last = records[spec.limit - 1]
            page.next = _text_of_cursor(cursor_of(last["id"], last["metadata"], spec), found.name, spec)
        return page

    return await store.on(namespace, work, absent=Page(), any_embedder=True)


def _hit(namespace: Namespace, record: Record) -> Hit:
    return hit_from(namespace.name, record["id"], record["document"], record["metadata"])


def _text_of_cursor(cursor: tuple[float, str], namespace: str, spec: ListSpec) -> str:
    return json.dumps([*cursor, _list_key(namespace, spec)])


def _cursor_from(text: str, namespace: str, spec: ListSpec) -> tuple[float, str]:
    """Return the cursor that a page's ``next`` holds.

    Raises:
        InvalidInputError: No page has given it, or a page of another list.
    """
    try:
        number, id, key = json.loads(text)
        cursor = float(number), str(id)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise InvalidInputError(
            f"`after` must be the `next` of a page that `list` returned, got {shown(text)}."
        ) from None
    if key != _list_key(namespace, spec):
        raise InvalidInputError(
            "`after` is the `next` of a page of another list: go on with the same namespace, scope, thread, filter and "
            "`newest_first`, or begin without `after`."
        )
    return cursor


def _list_key(namespace: str, spec: ListSpec) -> str:
    """Return what tells one list from another; moments are not part of it, which may move on from page to page."""
    told = [namespace, spec.scope, spec.thread, spec.newest_first, plain(spec.where) if spec.where else None]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


async def read_records(
    store: Store, namespace: Namespace, ids: Sequence[str]
) -> list[tuple[Hit, MetadataView]]:
    """Return memories by id, each with all that is stored beside its text; those that are not there are left out."""
    records: list[Record | None] = await store.submit("read_memories", **namespace.collection, ids=list(ids))
    return [(_hit(namespace, record), record["metadata"]) for record in records if record is not None]


async def _valid_hits(store: Store, namespace: str, ids: Sequence[str]) -> dict[str, Hit]:
    """Return the memories that are there and have not expired, by id."""

    async def work(found: Namespace) -> dict[str, Hit]:
        now = time.time()
        return {
            hit.id: hit
            for start in range(0, len(ids), _AT_ONCE)
            for hit, metadata in await read_records(store, found, ids[start : start + _AT_ONCE])
            if not has_expired(metadata, now)
        }

    return await store.on(namespace, work, absent=dict[str, Hit](), any_embedder=True)


async def matching_ids(store: Store, namespace: Namespace, where: Where | None) -> list[str]:
    """Return the ids of all records, or of those that pass a filter; page by page, so that others need not wait for all."""
    ids: dict[str, None] = {}
    after, conditions = 0, plain(where) if where else None
    while True:
        page: tuple[list[str], int] | None = await store.submit(
            "memory_ids", **namespace.collection, where=conditions, after=after, limit=_IDS_AT_ONCE
        )
        if page is None:
            found = await store.submit("_get", **namespace.collection, where=conditions, include=[])
            page = (found["ids"], 0)
        ids.update(dict.fromkeys(page[0]))
        after = page[1]
        if not after:
            return list(ids)


async def count_records(store: Store, namespace: Namespace) -> int:
    """Return how many memories a namespace holds."""
    count: int = await store.submit("count_memories", **namespace.collection)
    return count


# -- changes ------------------------------------------------------------------------------------------------------------


def update(
    life: Life,
    id: str,
    *,
    namespace: str,
    text: str | None,
    metadata: MetadataView | None,
    ttl: object,
    expires_at: object,
) -> Coroutine[object, object, Hit | None]:
    """Change a memory; see ``Memory.update``."""
    check_id(id)
    collection_name(namespace)
    if text is not None:
        check_text(text, "`text`")
    values = {
        **checked_metadata(metadata, "`metadata`", removing=True),
        **checked_item("-", ttl=ttl, expires_at=expires_at).own,
        UPDATED_AT: now_in_seconds(),
    }
    return _changed(life, "update", id, namespace, values, action="update", text=text)


def pin(life: Life, id: str, *, namespace: str, pinned: bool) -> Coroutine[object, object, Hit | None]:
    """Pin a memory, or unpin it; see ``Memory.pin``."""
    check_id(id)
    collection_name(namespace)
    check_flag("pinned", pinned)
    action = "pin" if pinned else "unpin"
    values = {PINNED: pinned or None, UPDATED_AT: now_in_seconds()}
    return _changed(life, "pin", id, namespace, values, action=action)


def _changed(
    life: Life,
    call: str,
    id: str,
    namespace: str,
    values: MetadataView,
    *,
    action: str,
    text: str | None = None,
) -> Coroutine[object, object, Hit | None]:
    """Change a memory that is there, and return it as it is then; None where there is none.

    Args:
        life: The memory's life.
        call: What the log calls the call.
        id: The memory's id.
        namespace: The namespace of the memory.
        values: Metadata to set; None removes a key.
        action: What the history calls the change.
        text: Its new text, or None.
    """

    async def work(store: Store) -> Hit | None:
        with store.limit():
            embedded = None if text is None else (await store.embed([text], is_query=False))[0]

            async def change(found: Namespace) -> Hit | None:
                long = {} if embedded is None or not embedded.chunks else {id: embedded.chunks}
                sparse = {} if embedded is None else embedded.sparse_key(found.sparse_embedder)
                async with chunks_written(store, found, long) as written:
                    changed: list[Record] = await store.submit(
                        "change_memories",
                        atomic=True,
                        **found.collection,
                        ids=[id],
                        embeddings=None if embedded is None else [embedded.vector],
                        codes=None if embedded is None else [embedded.code],
                        metadatas=[{**values, **written.get(id, {}), **sparse}],
                        documents=None if text is None else [text],
                        uris=None,
                        chunks=found.chunks,
                        action=action,
                        history_namespace=found.name if store.keeps_history else None,
                    )
                return _hit(found, changed[0]) if changed else None

            # Whose vectors they are matters where one is written.
            return await store.on(namespace, change, absent=None, any_embedder=embedded is None)

    return life.run(call, work, UnavailableHit.failed, details={"id": id, "namespaces": [namespace]})


def history(
    life: Life, id: str | None, *, namespace: str | None, limit: int
) -> Coroutine[object, object, Items[MemoryChange]]:
    """Return what was changed; see ``Memory.history``."""
    if id is not None:
        check_id(id)
    if namespace is not None:
        collection_name(namespace)
    check_k(limit, "`limit`")

    async def work(store: Store) -> Items[MemoryChange]:
        entries: list[Entry] = await store.submit(
            "memory_history", namespace=namespace, id=id, limit=limit, **store.database
        )
        return Items(_change(entry) for entry in entries)

    return life.run("history", work, Items[MemoryChange].failed)


def _change(entry: Entry) -> MemoryChange:
    """Make a change of an entry of the history."""
    return MemoryChange(
        at=datetime.fromtimestamp(entry.at, timezone.utc),
        action=entry.action,
        namespace=entry.namespace,
        id=entry.id,
        text=entry.text,
        metadata=None if entry.metadata is None else user_metadata(entry.metadata),
    )
