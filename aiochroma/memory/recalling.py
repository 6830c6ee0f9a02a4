"""How a question is answered: checked, embedded once, searched everywhere at the same time, merged."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from aiochroma._errors import EmbedderError, InvalidInputError, RerankFailedError, StoreUnavailableError
from aiochroma._logging import get_logger
from aiochroma._types import Vector, Where
from aiochroma.memory.items import (
    check_id,
    check_k,
    check_text,
    check_thread,
    checked_scope,
    is_number,
    seconds_of,
)
from aiochroma.memory.namespaces import collection_name
from aiochroma.memory.opening import Call
from aiochroma.memory.recall import Hit, NamespaceSearch, Recall, hit_from, searches_from
from aiochroma.memory.reranking import CANDIDATES, Rerank, check_rerank, reranked, within_limits
from aiochroma.memory.store import Namespace
from aiochroma.records.spec import VECTOR_WEIGHT, Mode, SearchSpec, encoded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiochroma.memory.store import Store
    from aiochroma.records.spec import Neighbour, SearchHit, SearchResult

__all__ = ["Question", "question_from", "recall", "similar_to"]

log = get_logger("aiochroma.memory")


def recall(query: str, *, limit: int | None, **asked: Any) -> Call[Recall]:
    """Find what was remembered about something; see ``Memory.recall``."""
    question = question_from(query, **asked)
    if limit is not None:
        check_k(limit, "`limit`")

    async def work(store: Store) -> Recall:
        with store.limit():
            return (await _answer(store, question)).cut(limit)

    details = {"query": query, "namespaces": None if question.searches is None else list(question.searches)}
    return Call("recall", work, Recall.failed, details=details)


def similar_to(id: str, *, namespace: str, k: int) -> Call[Recall]:
    """Find the memories nearest to one of them; see ``Memory.similar``."""
    check_id(id)
    collection_name(namespace)
    check_k(k)

    async def work(store: Store) -> Recall:
        with store.limit():
            return await _similar(store, namespace, id, k)

    return Call("similar", work, Recall.failed, details={"id": id, "namespaces": [namespace]})


async def _answer(store: Store, question: Question) -> Recall:
    """Answer a question.

    Raises:
        AiochromaError: Every namespace failed, or the question could not be embedded.
    """
    begun = time.perf_counter()
    timings: dict[str, float] = {}
    searches = question.searches
    if searches is None:
        searches = dict.fromkeys(await store.names(), question.common)
    asked = searches
    if question.rerank is not None:
        asked = {name: replace(search, k=max(search.k, CANDIDATES)) for name, search in searches.items()}
    vector, failure = await _vector(store, question)
    timings["embedding"] = _milliseconds(begun)
    results, errors = await _search(store, question, asked, vector, timings)
    if errors and len(errors) == len(searches):
        raise next(iter(errors.values()))
    for name, error in errors.items():
        log.warning("recall.namespace_failed", namespace=name, error=repr(error))
    hits = [hit for name, result in results.items() for hit in _hits(name, result)]
    if len(results) > 1:
        hits.sort(
            key=lambda hit: (-hit.score, hit.namespace)
        )  # Of equal ones those of a namespace keep their order.
    for name, result in results.items():
        if result.problem is not None:
            errors[name] = StoreUnavailableError(result.problem)
    if question.rerank is not None and hits:
        hits = await _rerank(question, question.rerank, hits, searches, errors, timings)
    if failure is not None:
        errors[""] = failure
        log.warning("recall.by_words_only", error=repr(failure))
    timings["total"] = _milliseconds(begun)
    indexing = {name: result.indexed for name, result in results.items() if result.indexed < 1.0}
    return Recall(tuple(hits), errors, timings, indexing)


async def _rerank(
    question: Question,
    rerank: Rerank,
    hits: list[Hit],
    searches: Mapping[str, NamespaceSearch],
    errors: dict[str, BaseException],
    timings: dict[str, float],
) -> list[Hit]:
    """Order hits again; where that fails, in the order of their scores, and note why."""
    begun = time.perf_counter()
    try:
        return await reranked(rerank, question.text, hits, searches)
    except RerankFailedError as error:
        errors[""] = error
        log.warning("recall.not_reranked", error=repr(error))
        return within_limits(hits, searches)
    finally:
        timings["rerank"] = _milliseconds(begun)


async def _similar(store: Store, namespace: str, id: str, k: int) -> Recall:
    """Find the memories nearest to one of them, by its stored vector."""
    spec = SearchSpec(k, mode="vector", embedder_max_distance=store.embedder.max_distance or 1.0)

    async def search(entry: Namespace) -> SearchResult | None:
        found: SearchResult = await store.submit(
            "similar_memories", **entry.place, id=id, spec=spec, chunks=entry.parts
        )
        return found

    result = await store.on(namespace, search, absent=None)
    return Recall() if result is None else Recall(tuple(_hits(namespace, result)))


def spec_of(
    question: Question, search: NamespaceSearch, embedder_max_distance: float, *, by_words: bool
) -> SearchSpec:
    """Return how one namespace is searched for a question.

    Args:
        question: The question.
        search: What it says of the namespace.
        embedder_max_distance: The distance up to which the embedder calls two texts related.
        by_words: Whether there is no vector to search with.
    """
    return SearchSpec(
        k=search.k,
        mode="text" if by_words else question.mode,
        vector_weight=question.vector_weight,
        weight=search.weight,
        max_distance=embedder_max_distance if search.max_distance == "auto" else search.max_distance,
        embedder_max_distance=embedder_max_distance,
        min_score=search.min_score,
        where=encoded(search.where),
        scope=question.scope,
        thread=question.thread,
        since=question.since,
        until=question.until,
        half_life=question.half_life,
        diversity=question.diversity,
        window=question.window,
    )


async def _search(
    store: Store,
    question: Question,
    searches: Mapping[str, NamespaceSearch],
    vector: Vector,
    timings: dict[str, float],
) -> tuple[dict[str, SearchResult], dict[str, BaseException]]:
    """Search all namespaces at the same time; return what each found, and what failed."""
    from chromadb.errors import NotFoundError

    results: dict[str, SearchResult] = {}
    errors: dict[str, BaseException] = {}
    missing = list(searches)
    for _ in range(2):
        found = await store.find(missing)
        errors.update({name: entry for name, entry in found.items() if isinstance(entry, BaseException)})
        names = [name for name, entry in found.items() if isinstance(entry, Namespace)]
        operations = [
            ("search_memories", _arguments(store, question, searches[name], found[name], vector))
            for name in names
        ]
        answers = await store.submit_many(operations) if operations else []
        missing = []
        for name, got in zip(names, answers, strict=True):
            timings[f"search:{name}"] = round(got.total_ms, 3)
            timings["queue"] = round(max(timings.get("queue", 0.0), got.wait_ms), 3)
            if got.error is None:
                results[name] = got.result[0]
                continue
            store.drop(name)
            if isinstance(got.error, NotFoundError):
                missing.append(name)  # Deleted, and perhaps made again.
            else:
                errors[name] = got.error
        if not missing:
            break
    return results, errors


def _arguments(
    store: Store, question: Question, search: NamespaceSearch, namespace: Any, vector: Vector
) -> dict[str, Any]:
    return {
        **namespace.place,
        "query_embeddings": [vector],
        "queries": [question.text],
        "spec": spec_of(question, search, store.embedder.max_distance or 1.0, by_words=vector is None),
        "chunks": namespace.parts,
    }


async def _vector(store: Store, question: Question) -> tuple[Any, EmbedderError | None]:
    """Embed a question.

    Returns:
        Its vector, or None where its words are enough, because it is asked by them or has nothing else; and why it could
        not be embedded, where it is asked by its words for that reason.

    Raises:
        InvalidInputError: It embeds to nothing, and is asked by meaning.
        EmbedderError: It could not be embedded, and is asked by meaning.
    """
    by_words = question.mode == "text" and store.capabilities.full_text
    if by_words:
        return None, None
    try:
        return (await store.embed([question.text], is_query=True))[0].vector, None
    except (InvalidInputError, EmbedderError) as error:
        if question.mode != "hybrid" or not store.capabilities.full_text:
            raise
        return None, error if isinstance(error, EmbedderError) else None


def _hits(namespace: str, result: SearchResult) -> list[Hit]:
    return [_hit(namespace, found) for found in result.hits]


def _hit(namespace: str, found: SearchHit) -> Hit:
    parts = found.score

    def near(neighbours: tuple[Neighbour, ...]) -> tuple[Hit, ...]:
        return tuple(hit_from(namespace, one.id, one.document, one.metadata) for one in neighbours)

    return hit_from(
        namespace,
        found.id,
        found.document,
        found.metadata,
        distance=found.distance,
        score=parts.score,
        passage=found.passage,
        explain={
            "text": parts.text,
            "own_text": parts.own_text,
            "vector": parts.vector,
            "recency": parts.recency,
            "weight": parts.weight,
        },
        before=near(found.before),
        after=near(found.after),
    )


def _milliseconds(begun: float) -> float:
    return round((time.perf_counter() - begun) * 1000, 3)


_MOST_NEIGHBOURS = 50
"""On either side; each is a query of its own inside SQLite, on the thread that everybody waits for."""


@dataclass(frozen=True)
class Question:
    """A question, and how all its searches are done.

    Attributes:
        text: The question.
        searches: How each namespace is searched; None for all namespaces alike, as ``common`` says.
        common: How a namespace that says nothing itself is searched.
        scope: The path of a scope: only its memories and those below it; empty for all.
        thread: Only memories of this thread, or None for all.
        rerank: What orders the best hits again, or None.
        mode: By meaning, by text, or both.
        vector_weight: What the vectors count beside the text.
        since: Only memories first remembered at this moment (seconds since 1970) or later, or None.
        until: Only memories first remembered before this moment, or None.
        half_life: Seconds after which half of what age may take from a score is gone, or None.
        diversity: 0 for the best, towards 1 for the most different.
        window: How many neighbours before and after each hit come with it.
    """

    text: str
    searches: dict[str, NamespaceSearch] | None
    common: NamespaceSearch
    scope: str
    thread: str | None
    rerank: Rerank | None
    mode: Mode
    vector_weight: float
    since: float | None
    until: float | None
    half_life: float | None
    diversity: float
    window: int


def question_from(
    query: Any,
    *,
    namespaces: Any = None,
    scope: Any = None,
    thread: Any = None,
    k: int = 5,
    max_distance: float | Literal["auto"] | None = None,
    min_score: float | Literal["auto"] | None = None,
    where: Where | None = None,
    mode: Mode = "hybrid",
    vector_weight: float = VECTOR_WEIGHT,
    since: Any = None,
    until: Any = None,
    half_life: Any = None,
    diversity: float = 0.0,
    window: int = 0,
    rerank: Any = None,
) -> Question:
    """Check what ``Memory.recall`` is asked for.

    Raises:
        InvalidInputError: Something of it is wrong.
    """
    check_text(query, "`query`")
    if mode not in {"hybrid", "vector", "text"}:
        raise InvalidInputError(f"`mode` must be 'hybrid', 'vector' or 'text', got {mode!r}.")
    if not (is_number(diversity) and 0 <= diversity <= 1):
        raise InvalidInputError(f"`diversity` must be from 0 to 1, got {diversity!r}.")
    if not (is_number(vector_weight) and 0 <= vector_weight < math.inf):
        raise InvalidInputError(f"`vector_weight` must be at least 0, got {vector_weight!r}.")
    if not isinstance(window, int) or isinstance(window, bool) or not 0 <= window <= _MOST_NEIGHBOURS:
        raise InvalidInputError(f"`window` must be an integer from 0 to {_MOST_NEIGHBOURS}, got {window!r}.")
    searches, common = searches_from(namespaces, k, max_distance, where, min_score)
    for name in searches or ():
        collection_name(name)
    seconds = half_life.total_seconds() if hasattr(half_life, "total_seconds") else half_life
    if seconds is not None and not (is_number(seconds) and 0 < seconds < math.inf):
        raise InvalidInputError(f"`half_life` must be more than 0 seconds, got {half_life!r}.")
    return Question(
        text=query,
        searches=searches,
        common=common,
        scope="" if scope is None else checked_scope(scope),
        thread=None if thread is None else check_thread(thread),
        rerank=check_rerank(rerank),
        mode=mode,
        vector_weight=vector_weight,
        since=None if since is None else seconds_of(since, "`since`"),
        until=None if until is None else seconds_of(until, "`until`"),
        half_life=seconds,
        diversity=diversity,
        window=window,
    )
