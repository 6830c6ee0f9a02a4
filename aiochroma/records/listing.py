"""Listing the memories of a namespace in order, a page at a time: what is asked for, and what belongs to a page."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiochroma._types import JsonObject, MetadataView, Where
from aiochroma.records.filters import joined
from aiochroma.records.record import CREATED_AT, THREAD, has_expired, made_at, scope_filter, thread_position

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["ListSpec", "cursor_of", "list_filter", "page_ids"]


@dataclass(frozen=True)
class ListSpec:
    """Which memories are listed, and in which order.

    Memories are ordered by when they were first remembered, those of one thread by their place in it, and where that is the
    same by id.

    Attributes:
        where: Chroma's filter over metadata, or None.
        scope: The path of a scope; only its memories and those below it. Empty for all.
        thread: Only memories of this thread, or None for all.
        since: Only memories first remembered at this moment (seconds since 1970) or later, or None.
        until: Only memories first remembered before this moment, or None.
        newest_first: Whether the order is turned round.
        limit: The most memories to return.
        after: The cursor of the memory behind which the list goes on, or None for its beginning; see :func:`cursor_of`.
    """

    where: Where | None = None
    scope: str = ""
    thread: str | None = None
    since: float | None = None
    until: float | None = None
    newest_first: bool = False
    limit: int = 100
    after: tuple[float, str] | None = None


def cursor_of(id: str, metadata: MetadataView, spec: ListSpec) -> tuple[float, str]:
    """Return what a memory is ordered by."""
    number = made_at(metadata) if spec.thread is None else round(thread_position(metadata)[1], 6)
    return number, id


def list_filter(spec: ListSpec) -> JsonObject | None:
    """Return all that a list says about metadata as one filter that Chroma understands, or None."""
    return joined(
        spec.where,
        scope_filter(spec.scope),
        None if spec.thread is None else {THREAD: spec.thread},
        None if spec.since is None else {CREATED_AT: {"$gte": spec.since}},
        None if spec.until is None else {CREATED_AT: {"$lt": spec.until}},
    )


def page_ids(records: Mapping[str, MetadataView], spec: ListSpec) -> list[str]:
    """Return the ids of a page, in order.

    Args:
        records: Ids and metadata of all that pass the filter.
        spec: What is listed.
    """
    now = time.time()
    order = sorted(
        (cursor_of(id, metadata, spec) for id, metadata in records.items() if not has_expired(metadata, now)),
        reverse=spec.newest_first,
    )
    after = spec.after
    if after is not None:
        order = [one for one in order if (one < after if spec.newest_first else one > after)]
    return [id for _, id in order[: spec.limit]]
