"""What a search or a list says, and what a search gives back: frozen plain data that travels in a request.

Filters are Chroma's ``where``; they are joined and encoded here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from aiochroma._types import CollectionId, JsonObject, Metadata, MetadataView, Where
from aiochroma.records.record import CREATED_AT, THREAD, has_expired, made_at, scope_filter, thread_position

if TYPE_CHECKING:
    from aiochroma.records.ranking import ScoreParts

__all__ = [
    "VECTOR_WEIGHT",
    "CollectionSearch",
    "ListSpec",
    "Neighbour",
    "SearchHit",
    "SearchMode",
    "SearchResult",
    "SearchSpec",
    "SparseQuery",
    "cursor_of",
    "decoded",
    "encoded",
    "filter_of",
    "joined",
    "page_ids",
    "plain",
]

SearchMode = Literal["hybrid", "vector", "text"]
SparseQuery: TypeAlias = tuple[tuple[int, ...], tuple[float, ...]]

# Both sides alike. Measured flat between 0.5 and 1.4 with static word vectors.
VECTOR_WEIGHT = 1.0


@dataclass(frozen=True)
class SearchSpec:
    """How one namespace is searched.

    Searches of the same namespaces with equal specifications are carried out together.

    Attributes:
        k: The most hits to return for a query; at least 1.
        mode: ``"hybrid"`` ranks by meaning and by words, ``"vector"`` by meaning alone, ``"text"`` by words alone.
        vector_weight: What meaning counts beside the words in ``"hybrid"``; at least 0.
        weight: A factor on the scores, which makes namespaces comparable; above 0.
        max_distance: The largest cosine distance of a hit, or None. A memory that holds a word of the query is spared.
        min_score: The lowest score of a hit; ``"auto"`` for no hit at all where the best one says that there is nothing (see
            ``ranking.AUTO_MIN_SCORE``); None for no limit.
        embedder_max_distance: The distance up to which the embedder calls two texts related; above 0.
        where: A filter over metadata as JSON text (see ``encoded``), or None.
        scope: The path of a scope (see ``record.scope_path``): only its memories and those of scopes below it; empty for all.
        thread: Only memories of this conversation, or None for all.
        since: Only memories first remembered at this moment (seconds since 1970) or later, or None.
        until: Only memories first remembered before this moment, or None.
        half_life: Seconds after which half of what age may take from a score is gone, or None to ignore age.
        diversity: 0 returns the best hits; towards 1 hits differ more from those before them.
        window: How many neighbours before and after each hit come with it.
    """

    k: int = 5
    mode: SearchMode = "hybrid"
    vector_weight: float = VECTOR_WEIGHT
    weight: float = 1.0
    max_distance: float | None = None
    min_score: float | Literal["auto"] | None = None
    embedder_max_distance: float = 1.0
    where: str | None = None
    scope: str = ""
    thread: str | None = None
    since: float | None = None
    until: float | None = None
    half_life: float | None = None
    diversity: float = 0.0
    window: int = 0


@dataclass(frozen=True)
class CollectionSearch:
    """A search of one namespace among those that one request searches.

    Attributes:
        collection_id: The namespace's collection.
        chunks: The name of the collection that holds the chunks of its long texts.
        spec: How to search it.
        sparse: The question's sparse vector (the dimensions in which it is not 0, and its values) where the server ranks the
            namespace's words by such; else None.
    """

    collection_id: CollectionId
    chunks: str
    spec: SearchSpec
    sparse: SparseQuery | None = None


@dataclass(frozen=True)
class Neighbour:
    """A memory that stands near a hit in its thread.

    Attributes:
        id: Its id.
        document: Its text.
        metadata: What is stored with it.
    """

    id: str
    document: str
    metadata: Metadata


@dataclass(frozen=True)
class SearchHit:
    """A memory that a search found.

    Attributes:
        id: Its id.
        document: Its text.
        metadata: What is stored with it.
        distance: Its cosine distance from the query, or None where it is not known.
        score: Its score, and what that is made of.
        passage: Of a long text the chunk that is nearest to the query, or None.
        before: With ``window``: what stands before it in its thread, oldest first.
        after: With ``window``: what stands after it, oldest first.
    """

    id: str
    document: str
    metadata: Metadata
    distance: float | None
    score: ScoreParts
    passage: str | None = None
    before: tuple[Neighbour, ...] = ()
    after: tuple[Neighbour, ...] = ()


@dataclass(frozen=True)
class SearchResult:
    """What one query found in one namespace.

    Attributes:
        hits: Best first.
        indexed: Which share of the namespace the index held, 0 to 1. Below 1 the search answered from that share, and
            some hits may be missing.
        problem: Why some hits may be missing, or None: words could not be searched for in an index.
    """

    hits: tuple[SearchHit, ...] = field(default=())
    indexed: float = 1.0
    problem: str | None = None


@dataclass(frozen=True)
class ListSpec:
    """Which memories are listed, and in which order.

    Memories are ordered by when they were first remembered, and those of one thread by their position in it. Where that is equal,
    the smaller id comes first.

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
    """Return what a memory is ordered by in a list."""
    number = made_at(metadata) if spec.thread is None else round(thread_position(metadata)[1], 6)
    return number, id


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


def encoded(where: Where | None) -> str | None:
    """Write a filter as JSON text: a value that can be compared, and tells 1, 1.0 and true apart."""
    return json.dumps(plain(where)) if where else None


@lru_cache(maxsize=256)
def decoded(where: str) -> Where:
    """Read a filter that :func:`encoded` wrote; not to be changed."""
    found: Where = json.loads(where)
    return found


def filter_of(spec: SearchSpec | ListSpec) -> JsonObject | None:
    """Return all that a search or a list says about metadata as one filter that Chroma understands, or None."""
    return joined(
        decoded(spec.where) if isinstance(spec.where, str) else spec.where,
        scope_filter(spec.scope),
        None if spec.thread is None else {THREAD: spec.thread},
        None if spec.since is None else {CREATED_AT: {"$gte": spec.since}},
        None if spec.until is None else {CREATED_AT: {"$lt": spec.until}},
    )


def plain(where: Where) -> JsonObject:
    """Return a filter as Chroma takes it: in dictionaries, whatever mappings it has, and none around a single filter."""
    (key, condition), *_ = where.items()
    if key in {"$and", "$or"}:
        filters = [plain(one) for one in condition]
        return filters[0] if len(filters) == 1 else {key: filters}
    return {key: dict(condition) if isinstance(condition, Mapping) else condition}


def joined(*filters: Where | None) -> JsonObject | None:
    """Return a filter for what passes all filters; None among them lets everything pass."""
    given = [plain(one) for one in filters if one]
    if len(given) > 1:
        return {"$and": given}
    return given[0] if given else None
