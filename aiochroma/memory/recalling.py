"""How a question is answered: checked, embedded once, searched everywhere at the same time, merged, and judged.

A judge of the caller's (a cross-encoder, a service, a language model) may order the best hits again. It sees the question and the
texts of the best candidates, and gives each a number. What it does wrong costs its order alone: when it raises, takes too long or
returns something else, the order by score stands, and the recall says so.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from aiochroma._callbacks import ask
from aiochroma._clock import monotonic
from aiochroma._errors import (
    EmbedderError,
    InvalidInputError,
    RerankFailedError,
    StoreUnavailableError,
    is_one_of,
    shown,
)
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject, Where
from aiochroma.backend.limits import check_where, is_number
from aiochroma.memory.arguments import check_id, check_k, check_text, checked_names, checked_scope, seconds_of
from aiochroma.memory.results import Hit, Recall, hits_from
from aiochroma.memory.store import Namespace
from aiochroma.records.record import collection_name
from aiochroma.records.spec import CollectionSearch, SearchSpec, encoded

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from aiochroma.memory.opening import Life
    from aiochroma.memory.store import Store
    from aiochroma.memory.vectors import Embedded
    from aiochroma.records.spec import SearchMode, SearchResult

__all__ = ["NamespaceSearch", "Rerank", "recall", "similar"]

log: EventLogger = get_logger("aiochroma.memory")

Limit: TypeAlias = float | Literal["auto"] | None
Rerank: TypeAlias = Callable[[str, list[str]], "Sequence[float] | Awaitable[Sequence[float]]"]

CANDIDATES = 40
"""The number of hits that are judged: the best of all namespaces."""
_RERANK_SECONDS = 10.0
"""How long a judge may take, where no deadline is nearer."""
_MOST_NEIGHBOURS = 50
"""On either side; each is a query of its own inside SQLite, on the thread that serves every caller."""
_NAMESPACES_AT_ONCE = 32
"""The most namespaces that one request searches: 10 to 20 ms, in which others wait."""
_ATTEMPTS = 3


@dataclass(frozen=True)
class NamespaceSearch:
    """How one namespace is searched.

    Attributes:
        k: The most hits of this namespace; at least 1, default 5.
        max_distance: The largest cosine distance of a hit, 0 to 2; ``"auto"`` for the embedder's own; None (default) for no
            limit. It does not apply to a memory that holds a word of the question.
        where: Chroma's filter over metadata; None (default) for no filter.
        weight: A factor on the scores when namespaces are merged; above 0, default 1.
        min_score: The lowest score of a hit; ``"auto"`` for no hit at all where the best one says that nothing was
            remembered about it; None (default) for no limit.
    """

    k: int = 5
    max_distance: Limit = None
    where: Where | None = None
    weight: float = 1.0
    min_score: Limit = None

    def __post_init__(self) -> None:
        check_k(self.k)
        for name, limit, least, kind in (
            ("max_distance", self.max_distance, 0.0, "a distance of at least 0"),
            ("min_score", self.min_score, -sys.float_info.max, "a finite number"),
        ):
            number = is_number(limit) and least <= limit < math.inf
            if not (limit is None or number or is_one_of(limit, "auto")):
                raise InvalidInputError(f"`{name}` must be {kind}, 'auto', or None, got {shown(limit)}.")
        if not (is_number(self.weight) and 0 < self.weight < math.inf):
            raise InvalidInputError(f"`weight` must be a number above 0, got {shown(self.weight)}.")
        if self.where is not None:
            check_where(self.where)


@dataclass(frozen=True)
class _Question:
    """A question, and how its searches are done.

    Attributes:
        text: The question.
        searches: How each namespace is searched; None for all namespaces alike, as ``common`` says.
        common: How a namespace that says nothing itself is searched.
        spec: What all searches have in common.
        rerank: The judge that orders the best hits again, or None.
    """

    text: str
    searches: dict[str, NamespaceSearch] | None
    common: NamespaceSearch
    spec: SearchSpec
    rerank: Rerank | None


def recall(
    life: Life,
    query: str,
    *,
    namespaces: object,
    scope: object,
    thread: str | None,
    k: int,
    limit: int | None,
    max_distance: Limit,
    min_score: Limit,
    where: Where | None,
    mode: SearchMode,
    vector_weight: float,
    since: object,
    until: object,
    half_life: float | timedelta | None,
    diversity: float,
    window: int,
    rerank: Rerank | None,
) -> Coroutine[object, object, Recall]:
    """Find what was remembered about something; see ``Memory.recall``."""
    check_text(query, "`query`")
    searches, common = _searches(namespaces, NamespaceSearch(check_k(k), max_distance, where, 1.0, min_score))
    if limit is not None:
        check_k(limit, "`limit`")
    if not is_one_of(mode, "hybrid", "vector", "text"):
        raise InvalidInputError(f"`mode` must be 'hybrid', 'vector' or 'text', got {shown(mode)}.")
    if not (is_number(diversity) and 0 <= diversity <= 1):
        raise InvalidInputError(f"`diversity` must be from 0 to 1, got {shown(diversity)}.")
    if not (is_number(vector_weight) and 0 <= vector_weight < math.inf):
        raise InvalidInputError(f"`vector_weight` must be at least 0, got {shown(vector_weight)}.")
    if not isinstance(window, int) or isinstance(window, bool) or not 0 <= window <= _MOST_NEIGHBOURS:
        raise InvalidInputError(
            f"`window` must be an integer from 0 to {_MOST_NEIGHBOURS}, got {shown(window)}."
        )
    if rerank is not None and not callable(rerank):
        raise InvalidInputError(
            f"`rerank` must be a callable of a question and a list of texts that returns a number for each, got {shown(rerank)}."
        )
    spec = SearchSpec(
        mode=mode,
        vector_weight=vector_weight,
        scope="" if scope is None else checked_scope(scope),
        thread=None if thread is None else check_id(thread, "`thread`"),
        since=None if since is None else seconds_of(since, "`since`"),
        until=None if until is None else seconds_of(until, "`until`"),
        half_life=_checked_half_life(half_life),
        diversity=diversity,
        window=window,
    )
    question = _Question(query, searches, common, spec, rerank)

    async def work(store: Store) -> Recall:
        with store.limit():
            found = (await _answer(store, question)).cut(limit)
        life.codes.begin(store, {hit.namespace for hit in found})
        return found

    details = {"query": query, "namespaces": None if searches is None else list(searches)}
    return life.run("recall", work, Recall.failed, details=details)


def _searches(
    namespaces: object, common: NamespaceSearch
) -> tuple[dict[str, NamespaceSearch] | None, NamespaceSearch]:
    """Return how each namespace is searched (None for all alike), and how one is that says nothing itself."""
    if namespaces is None:
        return None, common
    if isinstance(namespaces, Mapping):
        searches = {
            name: value
            if isinstance(value, NamespaceSearch)
            else replace(common, k=check_k(value, f"`namespaces[{name!r}]`"))
            for name, value in namespaces.items()
        }
    elif isinstance(namespaces, str):
        searches = {namespaces: common}
    elif isinstance(namespaces, Iterable):
        searches = dict.fromkeys(checked_names(namespaces) or (), common)
    else:
        raise InvalidInputError(
            f"`namespaces` must be a name, several names, or a mapping to `k` or `NamespaceSearch`, got {shown(namespaces)}."
        )
    for name in searches:
        collection_name(name)
    return searches, common


def _checked_half_life(half_life: object) -> float | None:
    seconds = half_life.total_seconds() if isinstance(half_life, timedelta) else half_life
    if seconds is None:
        return None
    if not (is_number(seconds) and 0 < seconds < math.inf):
        raise InvalidInputError(f"`half_life` must be more than 0 seconds, got {shown(half_life)}.")
    return seconds


def similar(life: Life, id: str, *, namespace: str, k: int) -> Coroutine[object, object, Recall]:
    """Find the memories nearest to one of them, by its stored vector; see ``Memory.similar``."""
    check_id(id)
    collection_name(namespace)
    check_k(k)

    async def work(store: Store) -> Recall:
        spec = SearchSpec(k, mode="vector", embedder_max_distance=store.embedder.max_distance or 1.0)

        async def search(found: Namespace) -> SearchResult | None:
            result: SearchResult = await store.submit(
                "similar_memories", **found.collection, id=id, spec=spec, chunks=found.chunks
            )
            return result

        with store.limit():
            result = await store.on(namespace, search, absent=None)
        return Recall() if result is None else Recall(tuple(hits_from(namespace, result)))

    return life.run("similar", work, Recall.failed, details={"id": id, "namespaces": [namespace]})


async def _answer(store: Store, question: _Question) -> Recall:
    """Answer a question.

    Raises:
        AiochromaError: Every namespace failed, or the question could not be embedded.
    """
    begun = monotonic()
    timings: dict[str, float] = {}
    searches = question.searches
    if searches is None:
        searches = dict.fromkeys(await store.names(), question.common)
    asked = searches
    if question.rerank is not None:
        asked = {name: replace(search, k=max(search.k, CANDIDATES)) for name, search in searches.items()}
    embedded, failure = await _embedded(store, question)
    timings["embedding"] = _milliseconds(begun)
    results, errors = await _search(store, question, asked, embedded, timings)
    if errors and len(errors) == len(searches):
        raise next(iter(errors.values()))
    for name, error in errors.items():
        log.warning("recall.namespace_failed", namespace=name, error=error)
    hits = [hit for name, result in results.items() for hit in hits_from(name, result)]
    if len(results) > 1:
        # Of equal ones those of a namespace keep their order.
        hits.sort(key=lambda hit: (-hit.score, hit.namespace))
    problems = {name: result.problem for name, result in results.items() if result.problem is not None}
    errors.update({name: StoreUnavailableError(problem) for name, problem in problems.items()})
    if question.rerank is not None and hits:
        hits = await _rerank(question, question.rerank, hits, searches, errors, timings)
    if failure is not None:
        errors[""] = failure
        log.warning("recall.by_words_only", error=failure)
    timings["total"] = _milliseconds(begun)
    indexing = {name: result.indexed for name, result in results.items() if result.indexed < 1.0}
    return Recall(tuple(hits), errors, timings, indexing)


async def _rerank(
    question: _Question,
    rerank: Rerank,
    hits: list[Hit],
    searches: Mapping[str, NamespaceSearch],
    errors: dict[str, BaseException],
    timings: dict[str, float],
) -> list[Hit]:
    """Order hits again, of each namespace no more than it may give; where that fails, by their scores, and note why."""
    begun = monotonic()
    try:
        hits = await _reranked(rerank, question.text, hits, _within_limits(hits, searches))
    except RerankFailedError as error:
        errors[""] = error
        log.warning("recall.not_reranked", error=error)
    timings["rerank"] = _milliseconds(begun)
    return _within_limits(hits, searches)


def _within_limits(hits: Iterable[Hit], searches: Mapping[str, NamespaceSearch]) -> list[Hit]:
    """Return hits, of each namespace no more than it may give."""
    given: dict[str, int] = {}
    kept = []
    for hit in hits:
        given[hit.namespace] = given.get(hit.namespace, 0) + 1
        if given[hit.namespace] <= searches[hit.namespace].k:
            kept.append(hit)
    return kept


async def _search(
    store: Store,
    question: _Question,
    searches: Mapping[str, NamespaceSearch],
    embedded: Embedded | None,
    timings: dict[str, float],
) -> tuple[dict[str, SearchResult], dict[str, BaseException]]:
    """Search all namespaces at the same time; return what each found, and what failed."""
    from chromadb.errors import NotFoundError

    results: dict[str, SearchResult] = {}
    errors: dict[str, BaseException] = {}
    missing = list(searches)
    # A server answers several requests at the same time; for one thread fewer are less work.
    at_once = 1 if store.answers_in_parallel else _NAMESPACES_AT_ONCE
    for attempt in range(_ATTEMPTS):
        found = await store.find(missing)
        errors.update({name: entry for name, entry in found.items() if isinstance(entry, BaseException)})
        entries = [entry for entry in found.values() if isinstance(entry, Namespace)]
        if attempt == _ATTEMPTS - 1 or (attempt and len(entries) == len(missing)):
            at_once = 1  # Where none of them was deleted it is not known which one failed.
        groups = [entries[start : start + at_once] for start in range(0, len(entries), at_once)]
        answers = await store.submit_many(
            [("search_memories", _arguments(store, question, searches, group, embedded)) for group in groups]
        )
        missing = []
        for group, got in zip(groups, answers, strict=True):
            names = [entry.name for entry in group]
            timings.update({f"search:{name}": round(got.total_ms, 3) for name in names})
            timings["queue"] = round(max(timings.get("queue", 0.0), got.wait_ms), 3)
            if got.error is None:
                results.update(zip(names, got.result[0], strict=True))
                continue
            for name in names:
                store.drop(name)
            if len(group) > 1 or (attempt < _ATTEMPTS - 1 and isinstance(got.error, NotFoundError)):
                # Deleted, and perhaps made again.
                missing += names
            elif not isinstance(got.error, NotFoundError):
                errors[names[0]] = got.error
        if not missing:
            break
    return results, errors


def _arguments(
    store: Store,
    question: _Question,
    searches: Mapping[str, NamespaceSearch],
    namespaces: Sequence[Namespace],
    embedded: Embedded | None,
) -> JsonObject:
    """Return the arguments of one request that searches several namespaces."""
    related = store.embedder.max_distance or 1.0
    specs: dict[int, SearchSpec] = {}
    collections = []
    for namespace in namespaces:
        search = searches[namespace.name]
        # Most often all namespaces are searched alike.
        if id(search) not in specs:
            specs[id(search)] = replace(
                question.spec,
                k=search.k,
                mode="text" if embedded is None else question.spec.mode,
                weight=search.weight,
                max_distance=related if search.max_distance == "auto" else search.max_distance,
                embedder_max_distance=related,
                min_score=search.min_score,
                where=encoded(search.where),
            )
        sparse = None if embedded is None else embedded.sparse_query(namespace.sparse_embedder)
        collections.append(CollectionSearch(namespace.id, namespace.chunks, specs[id(search)], sparse))
    return {
        "collections": tuple(collections),
        "query_embeddings": [None if embedded is None else embedded.vector],
        "query_tokens": [None if embedded is None else embedded.question_tokens],
        "queries": [question.text],
        **store.database,
    }


async def _embedded(store: Store, question: _Question) -> tuple[Embedded | None, EmbedderError | None]:
    """Embed a question.

    Returns:
        It as a vector, or None where its words are enough, because it is asked by them or has nothing else; and why it could
        not be embedded, where it is asked by its words for that reason.

    Raises:
        InvalidInputError: It embeds to nothing, and is asked by meaning.
        EmbedderError: It could not be embedded, and is asked by meaning.
    """
    by_words = question.spec.mode == "text" and store.capabilities.full_text
    if by_words:
        return None, None
    try:
        return (await store.embed([question.text], is_query=True))[0], None
    except (InvalidInputError, EmbedderError) as error:
        if question.spec.mode != "hybrid" or not store.capabilities.full_text:
            raise
        return None, error if isinstance(error, EmbedderError) else None


def _milliseconds(begun: float) -> float:
    return round((monotonic() - begun) * 1000, 3)


async def _reranked(rerank: Rerank, query: str, hits: Sequence[Hit], unjudged: Sequence[Hit]) -> list[Hit]:
    """Return hits in the order of a judge.

    It judges those that would be returned without it (``unjudged``), and the best others; what is more than it is asked about
    comes behind, by score. The ``explain`` of those that were judged has its number as ``rerank``.

    Raises:
        RerankFailedError: The judge raised, took too long, or did not return a number for each text.
    """
    chosen = {id(hit): hit for hit in (*unjudged[:CANDIDATES], *hits)}
    judged = list(chosen.values())[:CANDIDATES]
    others = sorted(list(chosen.values())[CANDIDATES:], key=lambda hit: -hit.score)
    numbers = await ask(
        "rerank",
        rerank,
        query,
        [hit.text for hit in judged],
        seconds=_RERANK_SECONDS,
        failure=RerankFailedError,
    )
    try:
        values = [float(number) for number in cast("Iterable[float]", numbers)]
    except (TypeError, ValueError, OverflowError) as error:
        raise RerankFailedError(
            f"`rerank` returned {type(numbers).__name__} and no list of numbers."
        ) from error
    if len(values) != len(judged) or not all(map(math.isfinite, values)):
        raise RerankFailedError(
            f"`rerank` was given {len(judged)} texts and must return as many finite numbers; it returned {len(values)} numbers."
        )
    order = sorted(range(len(judged)), key=lambda number: -values[number])
    return [
        replace(judged[number], explain={**judged[number].explain, "rerank": values[number]})
        for number in order
    ] + others
