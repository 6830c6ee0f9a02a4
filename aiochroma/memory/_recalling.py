"""How a question is answered: embedded once, searched everywhere at the same time, ranked, merged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiochroma._errors import InvalidInputError
from aiochroma._logging import get_logger
from aiochroma.engine._records import has_expired
from aiochroma.memory._filters import both, matches
from aiochroma.memory._items import CREATED_AT, UPDATED_AT
from aiochroma.memory._ranking import Candidate, ScoreParts, diversify, merge, passes, rank
from aiochroma.memory._recall import Hit, Recall, Search, hit_from
from aiochroma.memory._store import Namespace
from aiochroma.storage._text_coverage import WINDOW

if TYPE_CHECKING:
    from aiochroma.engine._calling import Answer
    from aiochroma.memory._question import Question
    from aiochroma.memory._store import Store

__all__ = ["answer", "sift"]

log = get_logger("aiochroma.memory")

# What the vectors and the text each give to the ranking. More changed nothing in our measurement.
_NEAREST = 50
_COVERING = 40
# With a filter that is applied afterwards, or memories that have expired, so many times as many are fetched.
_MORE = 4
# Stands where a question is searched by its words alone.
_NO_VECTOR = (0.0,)

Record = dict[str, Any]
Ranking = Sequence[tuple[Candidate, ScoreParts]]
Merged = Sequence[tuple[str, Candidate, ScoreParts]]


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
    # Numbers first, documents for what is left after ranking; a filter or an age has to be known before.
    bare = {
        name
        for name in namespaces
        if searches[name].where is None and question.period is None and question.half_life is None
    }
    while True:
        searching = _Searching(store, question, searches, namespaces, vector, bare)
        await searching.run()
        records = searching.records
        timings.update(searching.timings)
        errors.update(searching.errors)
        if errors and len(errors) == len(searches):
            raise next(iter(errors.values()))
        ranked = _ranked(store, question, searches, records)
        thin = await _fill(store, namespaces, records, ranked, errors)
        if not thin:
            break
        bare -= thin  # Something had expired: look again, and pass it over before ranking.
    hits = _hits(ranked, records, errors)
    for name, error in errors.items():
        log.warning("recall.namespace_failed", namespace=name, error=repr(error))
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


class _Searching:
    """One question on its way through the namespaces.

    Args:
        store: What is searched.
        question: The question.
        searches: How each namespace is searched.
        namespaces: Those that exist; one that turns out to be gone is taken out.
        vector: The question's vector, or None where its words are enough.
        bare: Namespaces whose candidates need no documents before they are ranked.

    Attributes:
        records: The candidates of each namespace by id.
        errors: What failed, by namespace.
        timings: See ``Recall``.
    """

    def __init__(
        self,
        store: Store,
        question: Question,
        searches: dict[str, Search],
        namespaces: dict[str, Namespace],
        vector: Any,
        bare: AbstractSet[str],
    ) -> None:
        self.records: dict[str, dict[str, Record]] = {}
        self.errors: dict[str, BaseException] = {}
        self.timings: dict[str, float] = {}
        self._store = store
        self._question = question
        self._searches = searches
        self._namespaces = namespaces
        self._vector = vector
        self._bare = bare
        # Where distance alone decides, exactly what is wanted is asked for, documents and all: nothing is left to rank.
        self._final = set(bare) if question.mode == "vector" and question.diversity == 0 else set()
        self._wheres = {name: both(searches[name].where, question.period) for name in namespaces}
        self._in_chroma: set[str] = set()
        self._gone: set[str] = set()

    async def run(self) -> None:
        """Search until every namespace has enough candidates, or has no more."""
        # With a filter more is fetched and left out here; Chroma filters where too little remains.
        factors = {name: _MORE if self._wheres[name] else 1 for name in self._namespaces}
        while factors:
            names = list(factors)
            operations = [("search_memories", self._arguments(name, factors[name])) for name in names]
            answers = await self._store.port.submit_many(self._store.client, operations)
            again = {
                name: more
                for name, got in zip(names, answers, strict=True)
                if (more := self._take(name, got, factors[name])) is not None
            }
            again.update(await self._look_again(factors))
            factors = again

    def _arguments(self, name: str, factor: int) -> dict[str, Any]:
        k = self._searches[name].k
        return {
            **self._namespaces[name].place,
            "query_embeddings": [_NO_VECTOR if self._vector is None else self._vector],
            "questions": [self._question.text],
            "n_results": k if name in self._final else max(_NEAREST, k) * factor,
            "text_limit": max(_COVERING, k) * factor,
            "where": self._wheres[name] if name in self._in_chroma else None,
            "mode": self._question.mode if self._vector is not None else "text",
            "window": WINDOW,
            "parts": self._namespaces[name].parts,
            "details": name in self._final or name not in self._bare,
        }

    def _take(self, name: str, got: Answer, factor: int) -> int | None:
        """Take an answer; return how many times as many to ask for next, or None when it is enough."""
        self.timings[f"search:{name}"] = round(self.timings.get(f"search:{name}", 0.0) + got.total_ms, 3)
        self.timings["queue"] = round(max(self.timings.get("queue", 0.0), got.wait_ms), 3)
        if got.error is not None:
            self._fail(name, got.error)
            return None
        candidates = got.result[0]
        if any(record["metadata"] is None for record in candidates):
            # Their age is not known before they have been read; see `_fill`.
            self.records[name] = {record["id"]: record for record in candidates}
            return None
        where = self._wheres[name]
        self.records[name], is_enough = sift(candidates, where, self._searches[name].k, factor)
        if name in self._final:
            if len(self.records[name]) == len(candidates):
                return None
            self._final.discard(name)  # Something had expired, and takes nobody's place.
            return factor
        if is_enough:
            return None
        if where is not None and name not in self._in_chroma:
            self._in_chroma.add(name)
            return 1
        return factor * _MORE

    def _fail(self, name: str, error: BaseException) -> None:
        from chromadb.errors import NotFoundError

        self._store.drop(name)
        if isinstance(error, NotFoundError) and name not in self._gone:
            self._gone.add(name)  # Deleted, and perhaps made anew.
        else:
            self.errors[name] = error

    async def _look_again(self, factors: dict[str, int]) -> dict[str, int]:
        """Look for namespaces that were gone; return those that are there again."""
        again: dict[str, int] = {}
        found = await self._store.find([name for name in self._gone if name not in self.records])
        for name, entry in found.items():
            if isinstance(entry, Namespace):
                self._namespaces[name], again[name] = entry, factors[name]
            elif isinstance(entry, Exception):
                self.errors[name] = entry
            else:
                del self._namespaces[name]
            self.records.setdefault(name, {})
        return again


def sift(
    candidates: Sequence[Record], where: Mapping[str, Any] | None, k: int, factor: int
) -> tuple[dict[str, Record], bool]:
    """Leave out what has expired and what does not pass the filter, and cut to what an unfiltered search would give.

    So the ranking sees the same candidates whether Chroma filtered or this did.

    Returns:
        The candidates by id, and whether there are enough of them, or no more to be had.
    """
    now = time.time()
    valid = [
        record
        for record in candidates
        if matches(where, record["metadata"]) and not has_expired(record["metadata"], now)
    ]
    near = sorted(
        (record for record in valid if record["distance"] is not None), key=lambda record: record["distance"]
    )
    covering = sorted((record for record in valid if record["text"] > 0), key=lambda record: -record["text"])
    most_near, most_covering = max(_NEAREST, k), max(_COVERING, k)
    kept = {record["id"]: record for record in (*near[:most_near], *covering[:most_covering])}
    fetched_near = sum(record["distance"] is not None for record in candidates)
    fetched_covering = sum(record["text"] > 0 for record in candidates)
    enough_near = len(near) >= most_near or fetched_near < most_near * factor
    enough_covering = len(covering) >= most_covering or fetched_covering < most_covering * factor
    nothing_left_out = len(valid) == len(candidates)
    return kept, nothing_left_out or (enough_near and enough_covering)


async def _fill(
    store: Store,
    namespaces: dict[str, Namespace],
    records: dict[str, dict[str, Record]],
    ranked: Merged,
    errors: dict[str, BaseException],
) -> set[str]:
    """Read documents and metadata of the hits that have none yet, all namespaces at the same time.

    Returns:
        The namespaces in which a hit turned out to have expired, or to be gone.
    """
    missing: dict[str, list[str]] = {}
    for name, candidate, _ in ranked:
        if records[name][candidate.id]["metadata"] is None:
            missing.setdefault(name, []).append(candidate.id)
    operations = [("read_memories", {**namespaces[name].place, "ids": ids}) for name, ids in missing.items()]
    for (name, _), got in zip(
        missing.items(), await store.port.submit_many(store.client, operations), strict=True
    ):
        if got.error is not None:
            store.drop(name)
            errors[name] = got.error
            continue
        for id, record in got.result.items():
            records[name][id].update(document=record["document"], metadata=record["metadata"])
    now = time.time()
    return {
        name
        for name, candidate, _ in ranked
        if name not in errors
        and ((metadata := records[name][candidate.id]["metadata"]) is None or has_expired(metadata, now))
    }


def _ranked(
    store: Store, question: Question, searches: dict[str, Search], records: dict[str, dict[str, Record]]
) -> Merged:
    """Rank the candidates of each namespace, cut them to what it may give, and merge them, best first."""
    now = time.time()
    own_threshold = store.embedder.threshold or 1.0
    rankings: dict[str, Ranking] = {}
    for name, found in records.items():
        search = searches[name]
        candidates = [
            Candidate(
                record["id"],
                record["text"],
                record["own"],
                record["distance"],
                0.0 if question.half_life is None else _age(record["metadata"] or {}, now),
            )
            for record in found.values()
        ]
        threshold = own_threshold if search.threshold == "auto" else search.threshold
        ranking = [
            (candidate, parts)
            for candidate, parts in rank(
                candidates,
                embedder_threshold=own_threshold,
                mode=question.mode,
                vector_weight=question.vector_weight,
                weight=search.weight,
                half_life=question.half_life,
            )
            if passes(candidate, threshold)
        ]
        # Diversity chooses among more than are wanted.
        rankings[name] = ranking[: search.k * (_MORE if question.diversity > 0 else 1)]
    return merge(rankings)


def _hits(ranked: Merged, records: dict[str, dict[str, Record]], errors: Mapping[str, object]) -> list[Hit]:
    return [
        hit_from(
            name,
            candidate.id,
            records[name][candidate.id]["document"],
            records[name][candidate.id]["metadata"] or {},
            distance=candidate.distance,
            score=parts.score,
            passage=records[name][candidate.id].get("passage"),
            explain={
                "text": parts.text,
                "own_text": parts.own_text,
                "vector": parts.vector,
                "recency": parts.recency,
                "weight": parts.weight,
            },
        )
        for name, candidate, parts in ranked
        if name not in errors
    ]


def _age(metadata: Mapping[str, Any], now: float) -> float:
    return float(now - metadata.get(UPDATED_AT, metadata.get(CREATED_AT, now)))


async def _diverse(
    store: Store,
    question: Question,
    namespaces: dict[str, Namespace],
    hits: list[Hit],
    searches: dict[str, Search],
    errors: dict[str, BaseException],
) -> list[Hit]:
    """Choose within each namespace the hits that add most to those before them."""
    import numpy as np

    chosen: list[Hit] = []
    for name, namespace in namespaces.items():
        own = [hit for hit in hits if hit.namespace == name]
        if not own:
            continue
        try:
            read = await store.read(namespace, [hit.id for hit in own], embeddings=True)
        except Exception as error:  # noqa: BLE001 - the others' hits are not lost for it
            errors[name] = error
            continue
        vectors = {hit.id: vector for hit, vector in read}
        own = [hit for hit in own if hit.id in vectors]
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
