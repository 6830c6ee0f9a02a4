"""How a question is answered: embedded once, searched everywhere at the same time, ranked, merged."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiochroma._errors import InvalidInputError
from aiochroma._logging import get_logger
from aiochroma.memory.ranking import diversify, merge
from aiochroma.memory.recall import Hit, NamespaceSearch, Recall, hit_from
from aiochroma.memory.searching import Searching
from aiochroma.memory.store import Namespace
from aiochroma.records.record import has_expired

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.memory.question import Question
    from aiochroma.memory.ranking import ScoreParts
    from aiochroma.memory.store import Store
    from aiochroma.records.record import Record

__all__ = ["answer"]

log = get_logger("aiochroma.memory")


async def answer(store: Store, question: Question) -> Recall:
    """Answer a question.

    Raises:
        AiochromaError: Every namespace failed, or the question could not be embedded.
    """
    begun = time.perf_counter()
    timings: dict[str, float] = {}
    searches = question.searches
    if searches is None:
        searches = dict.fromkeys(await store.names(), question.common)
    vector = await _vector(store, question)
    timings["embedding"] = _milliseconds(begun)
    found = await store.find(list(searches))
    errors: dict[str, BaseException] = {
        name: namespace for name, namespace in found.items() if isinstance(namespace, BaseException)
    }
    namespaces = {name: entry for name, entry in found.items() if isinstance(entry, Namespace)}
    searching = Searching(store, question, searches, namespaces, vector)
    await searching.run()
    timings.update(searching.timings)
    errors.update(searching.errors)
    if errors and len(errors) == len(searches):
        raise next(iter(errors.values()))
    for name, error in errors.items():
        log.warning("recall.namespace_failed", namespace=name, error=repr(error))
    hits = _hits(merge(searching.rankings))
    if question.diversity > 0:
        hits = await _diverse(store, question, namespaces, hits, searches, errors)
    if question.window:
        hits = await _with_neighbours(store, question, namespaces, hits, errors)
    timings["total"] = _milliseconds(begun)
    return Recall(tuple(hits), errors, timings)


async def _vector(store: Store, question: Question) -> Any:
    """Embed a question; None where its words are enough, because it is asked by them or has nothing else.

    Raises:
        InvalidInputError: It embeds to nothing, and is asked by meaning.
    """
    by_words = question.mode == "text" and not store.is_remote
    if by_words:
        return None
    try:
        return (await store.embed([question.text], is_query=True))[0].vector
    except InvalidInputError:
        if question.mode == "hybrid" and not store.is_remote:
            return None
        raise


def _hits(ranked: Sequence[tuple[str, Record, ScoreParts]]) -> list[Hit]:
    return [
        hit_from(
            name,
            record["id"],
            record["document"],
            record["metadata"],
            distance=record["distance"],
            score=parts.score,
            passage=record.get("passage"),
            explain={
                "text": parts.text,
                "own_text": parts.own_text,
                "vector": parts.vector,
                "recency": parts.recency,
                "weight": parts.weight,
            },
        )
        for name, record, parts in ranked
    ]


async def _diverse(
    store: Store,
    question: Question,
    namespaces: dict[str, Namespace],
    hits: list[Hit],
    searches: dict[str, NamespaceSearch],
    errors: dict[str, BaseException],
) -> list[Hit]:
    """Choose within each namespace the hits that add most to those before them."""
    import numpy as np
    from chromadb.errors import NotFoundError

    chosen: list[Hit] = []
    for name, namespace in namespaces.items():
        own = [hit for hit in hits if hit.namespace == name]
        if not own:
            continue
        try:
            read = await store.read(namespace, [hit.id for hit in own], embeddings=True)
        except NotFoundError:
            continue  # Forgotten meanwhile.
        except Exception as error:  # noqa: BLE001 - the others' hits are not lost for it
            errors[name] = error
            continue
        vectors = {hit.id: vector for hit, vector in read}
        own = [hit for hit in own if hit.id in vectors]
        if not own:
            continue
        matrix = np.asarray([vectors[hit.id] for hit in own], dtype=np.float32)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        places = diversify([hit.score for hit in own], matrix, searches[name].k, question.diversity)
        chosen.extend(own[place] for place in places)
    return chosen if len(namespaces) == 1 else sorted(chosen, key=lambda hit: -hit.score)


async def _with_neighbours(
    store: Store,
    question: Question,
    namespaces: dict[str, Namespace],
    hits: list[Hit],
    errors: dict[str, BaseException],
) -> list[Hit]:
    """Give each hit what stands before and after it in its thread."""
    from chromadb.errors import NotFoundError

    names = sorted({hit.namespace for hit in hits if hit.thread is not None})
    operations = [
        (
            "memory_neighbours",
            {
                **namespaces[name].place,
                "ids": [hit.id for hit in hits if hit.namespace == name and hit.thread is not None],
                "window": question.window,
            },
        )
        for name in names
    ]
    now = time.time()
    near: dict[tuple[str, str], dict[int, Hit]] = {}
    for name, got in zip(names, await store.port.submit_many(store.client, operations), strict=True):
        if isinstance(got.error, NotFoundError):
            continue  # Forgotten meanwhile, after the hits were found.
        if got.error is not None:
            errors[name] = got.error
            continue
        for id, offset, record in got.result:
            if not has_expired(record["metadata"], now):
                neighbour = hit_from(name, record["id"], record["document"], record["metadata"])
                near.setdefault((name, id), {})[offset] = neighbour
    return [_surrounded(hit, near.get((hit.namespace, hit.id), {})) for hit in hits]


def _surrounded(hit: Hit, neighbours: dict[int, Hit]) -> Hit:
    places = sorted(neighbours)
    return replace(
        hit,
        before=tuple(neighbours[place] for place in places if place < 0),
        after=tuple(neighbours[place] for place in places if place > 0),
    )


def _milliseconds(begun: float) -> float:
    return round((time.perf_counter() - begun) * 1000, 3)
