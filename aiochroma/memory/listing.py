"""Looking up without a question: by id, and in order, a page at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiochroma._errors import InvalidInputError
from aiochroma._types import MetadataView, Where
from aiochroma.memory.filters import checked_where
from aiochroma.memory.items import check_id, check_k, check_thread, checked_ids, checked_scope, seconds_of
from aiochroma.memory.namespaces import collection_name
from aiochroma.memory.opening import Call
from aiochroma.memory.recall import Hit, has_passed, hit_from
from aiochroma.memory.results import Count, Items, Page, UnavailableHit
from aiochroma.records.spec import ListSpec, cursor_of, plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Sequence

    from aiochroma.memory.store import Namespace, Store

__all__ = [
    "Listing",
    "count",
    "count_records",
    "many",
    "matching_ids",
    "names",
    "one",
    "page",
    "read_records",
    "spec_from",
]

_AT_ONCE = 256
"""Memories that one request reads."""


class Listing:
    """The memories of a namespace in order.

    ``await`` it for a :class:`~aiochroma.Page` of at most ``limit`` memories; or go through all of them, up to ``limit``, with
    ``async for``, which reads them as it goes.
    """

    def __init__(
        self, fetch: Callable[[ListSpec], Awaitable[Page]], spec: ListSpec, limit: int | None
    ) -> None:
        self._fetch = fetch
        self._spec = spec
        self._limit = limit

    def __await__(self) -> Generator[Any, None, Page]:
        return self._page().__await__()

    async def _page(self) -> Page:
        page = Page()
        async for part in self._parts():
            if part.error is not None:
                return part
            page.extend(part)
            page.next = part.next
        return page

    async def __aiter__(self) -> AsyncIterator[Hit]:
        async for part in self._parts():
            if part.error is not None:
                raise part.error
            for hit in part:
                yield hit

    async def _parts(self) -> AsyncIterator[Page]:
        spec, left = self._spec, self._limit
        while left is None or left > 0:
            most = _AT_ONCE if left is None else min(_AT_ONCE, left)
            part = await self._fetch(replace(spec, limit=most))
            yield part
            if part.next is None:
                return
            spec = replace(spec, after=_cursor_from(part.next))
            left = None if left is None else left - len(part)


def one(id: str, *, namespace: str) -> Call[Hit | None]:
    """Look a memory up; see ``Memory.get``."""
    check_id(id)
    collection_name(namespace)

    async def work(store: Store) -> Hit | None:
        return (await _valid_hits(store, namespace, [id])).get(id)

    return Call("get", work, UnavailableHit.failed)


def many(ids: Iterable[str], *, namespace: str) -> Call[Items[Hit]]:
    """Look several memories up; see ``Memory.get_many``."""
    given = checked_ids(ids)
    collection_name(namespace)

    async def work(store: Store) -> Items[Hit]:
        found = await _valid_hits(store, namespace, given)
        return Items(found[id] for id in given if id in found)

    return Call("get_many", work, Items[Hit].failed)


def spec_from(
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
) -> ListSpec:
    """Check what ``Memory.list`` is asked for."""
    collection_name(namespace)
    if limit is not None:
        check_k(limit, "`limit`")
    return ListSpec(
        where=checked_where(where),
        scope="" if scope is None else checked_scope(scope),
        thread=None if thread is None else check_thread(thread),
        since=None if since is None else seconds_of(since, "`since`"),
        until=None if until is None else seconds_of(until, "`until`"),
        newest_first=newest_first,
        after=None if after is None else _cursor_from(after),
    )


def page(namespace: str, spec: ListSpec) -> Call[Page]:
    """Return a page of a namespace."""
    return Call("list", lambda store: _page(store, namespace, spec), Page.failed)


def count(namespace: str | None) -> Call[Count]:
    """Count memories; see ``Memory.count``."""
    if namespace is not None:
        collection_name(namespace)

    async def work(store: Store) -> Count:
        names = await store.names() if namespace is None else [namespace]

        async def of_one(place: Namespace) -> int:
            return await count_records(store, place)

        return Count(sum([await store.on(name, of_one, absent=0, any_embedder=True) for name in names]))

    return Call("count", work, Count.failed)


def names() -> Call[Items[str]]:
    """Return the names of all namespaces; see ``Memory.namespaces``."""

    async def work(store: Store) -> Items[str]:
        return Items(await store.names())

    return Call("namespaces", work, Items[str].failed)


async def _page(store: Store, namespace: str, spec: ListSpec) -> Page:
    """Return a page of a namespace; empty where there is none."""

    async def work(place: Namespace) -> Page:
        # One more than is returned tells whether there is more.
        asked = replace(spec, limit=spec.limit + 1)
        records = await store.submit("list_memories", **place.place, spec=asked)
        page = Page(
            hit_from(place.name, record["id"], record["document"], record["metadata"])
            for record in records[: spec.limit]
        )
        if len(records) > spec.limit:
            last = records[spec.limit - 1]
            page.next = json.dumps(cursor_of(last["id"], last["metadata"], spec))
        return page

    return await store.on(namespace, work, absent=Page(), any_embedder=True)


def _cursor_from(text: Any) -> tuple[float, str]:
    """Return what a page's ``next`` says.

    Raises:
        InvalidInputError: No page has given it.
    """
    try:
        number, id = json.loads(text)
        return float(number), str(id)
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"`after` must be the `next` of a page that `list` returned, got {text!r}."
        ) from None


async def read_records(
    store: Store, namespace: Namespace, ids: Sequence[str]
) -> list[tuple[Hit, MetadataView]]:
    """Return memories by id, each with all that is stored beside its text; those that are not there are left out."""
    records = await store.submit("read_memories", **namespace.place, ids=list(ids))
    return [
        (hit_from(namespace.name, record["id"], record["document"], record["metadata"]), record["metadata"])
        for record in records
        if record is not None
    ]


async def _valid_hits(store: Store, namespace: str, ids: Sequence[str]) -> dict[str, Hit]:
    """Return the memories that are there and have not expired, by id."""

    async def work(place: Namespace) -> dict[str, Hit]:
        hits = [
            hit
            for start in range(0, len(ids), _AT_ONCE)
            for hit, _ in await read_records(store, place, ids[start : start + _AT_ONCE])
        ]
        return {hit.id: hit for hit in hits if not has_passed(hit)}

    return await store.on(namespace, work, absent=dict[str, Hit]())


async def matching_ids(store: Store, namespace: Namespace, where: Where | None) -> list[str]:
    """Return the ids of all records, or of those that pass a filter."""
    ids: list[str] = await store.submit(
        "memory_ids", **namespace.place, where=plain(where) if where else None
    )
    return ids


async def count_records(store: Store, namespace: Namespace) -> int:
    """Return how many memories a namespace holds."""
    count: int = await store.submit("count_memories", **namespace.place)
    return count
