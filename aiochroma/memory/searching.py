"""One question on its way through the namespaces: what each is asked for, and when that is enough."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from aiochroma.memory.best import RankedTopK
from aiochroma.memory.filters import both, matches
from aiochroma.memory.store import Namespace
from aiochroma.records.record import has_expired
from aiochroma.text.coverage import WINDOW
from aiochroma.text.search import POOLS_GROW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiochroma.core.calls import Answer
    from aiochroma.memory.question import Question
    from aiochroma.memory.ranking import ScoreParts
    from aiochroma.memory.recall import NamespaceSearch
    from aiochroma.memory.store import Store
    from aiochroma.records.record import Record

__all__ = ["Searching", "sift"]

# What the vectors and the text each give to the ranking, at least. More, of the nearest 100 and of the covering 40, changed
# less in our measurement than one conversation differs from another.
_NEAREST = 50
_COVERING = 20
# So many times as many as the text gives are looked at: what is not looked at lends its neighbours nothing.
_POOL = 2
# With a filter that is applied afterwards, or memories that have expired, so many times as many are fetched; and diversity
# chooses among so many times as many as are wanted.
_MORE = 4
# Stands where a question is searched by its words alone.
_NO_VECTOR = (0.0,)


class Searching:
    """One question on its way through the namespaces.

    Args:
        store: What is searched.
        question: The question.
        searches: How each namespace is searched.
        namespaces: Those that exist; one that turns out to be gone is taken out.
        vector: The question's vector, or None where its words are enough.

    Attributes:
        rankings: What each namespace gives, best first.
        errors: What failed, by namespace.
        timings: See ``Recall``.
    """

    def __init__(
        self,
        store: Store,
        question: Question,
        searches: dict[str, NamespaceSearch],
        namespaces: dict[str, Namespace],
        vector: Any,
    ) -> None:
        self.rankings: dict[str, list[tuple[Record, ScoreParts]]] = {}
        self.errors: dict[str, BaseException] = {}
        self.timings: dict[str, float] = {}
        self._store = store
        self._question = question
        self._namespaces = namespaces
        self._vector = vector
        self._best = {name: self._best_of(searches[name]) for name in namespaces}
        self._most = {name: searches[name].k for name in namespaces}
        self._wheres = {name: both(searches[name].where, question.period) for name in namespaces}
        # Ranked where they are found, and only then read; but a filter and an age have to be known before.
        self._ranked_there = {
            name for name in namespaces if self._wheres[name] is None and question.half_life is None
        }
        self._in_chroma: set[str] = set()
        self._gone: set[str] = set()

    def _best_of(self, search: NamespaceSearch) -> RankedTopK:
        question, own_max_distance = self._question, self._store.embedder.max_distance or 1.0
        return RankedTopK(
            limit=search.k * (_MORE if question.diversity > 0 else 1),
            mode=question.mode,
            vector_weight=question.vector_weight,
            weight=search.weight,
            max_distance=own_max_distance if search.max_distance == "auto" else search.max_distance,
            embedder_max_distance=own_max_distance,
            half_life=question.half_life,
        )

    async def run(self) -> None:
        """Search until every namespace has enough candidates, or has no more."""
        # With a filter more is fetched and left out here; Chroma filters where too little remains.
        reaches = {name: _Reach(near=_MORE if self._wheres[name] else 1) for name in self._namespaces}
        while reaches:
            names = list(reaches)
            operations = [("search_memories", self._arguments(name, reaches[name])) for name in names]
            answers = await self._store.port.submit_many(self._store.client, operations)
            again = {
                name: more
                for name, got in zip(names, answers, strict=True)
                if (more := self._take(name, got, reaches[name])) is not None
            }
            again.update(await self._look_again(reaches))
            reaches = again

    def _arguments(self, name: str, reach: _Reach) -> dict[str, Any]:
        best, there = self._best[name], name in self._ranked_there
        most_near, most_covering = most_wanted(self._most[name])
        in_chroma = name in self._in_chroma
        return {
            **self._namespaces[name].place,
            "query_embeddings": [_NO_VECTOR if self._vector is None else self._vector],
            "questions": [self._question.text],
            # Where distance alone decides, exactly what is wanted is asked for.
            "n_results": best.limit if there and best.mode == "vector" else most_near * reach.near,
            # What passes a filter that is applied here may be anywhere among what covers something.
            "text_limit": None if self._is_filtered_here(name) else most_covering * reach.pools,
            "text_pool": _POOL * most_covering * reach.pools,
            "where": self._wheres[name] if in_chroma else None,
            "mode": self._question.mode if self._vector is not None else "text",
            "window": WINDOW,
            "parts": self._namespaces[name].parts,
            "top_k": best if there else None,
        }

    def _is_filtered_here(self, name: str) -> bool:
        return self._wheres[name] is not None and name not in self._in_chroma

    def _take(self, name: str, got: Answer, reach: _Reach) -> _Reach | None:
        """Take an answer; return how far to reach next, or None when it is enough."""
        self.timings[f"search:{name}"] = round(self.timings.get(f"search:{name}", 0.0) + got.total_ms, 3)
        self.timings["queue"] = round(max(self.timings.get("queue", 0.0), got.wait_ms), 3)
        if got.error is not None:
            self._fail(name, got.error)
            return None
        candidates: list[Record] = got.result[0]
        if name in self._ranked_there:
            now = time.time()
            if any(
                record["metadata"] is None or has_expired(record["metadata"], now) for record in candidates
            ):
                self._ranked_there.discard(name)  # Look again, and pass it over before ranking.
                return reach
            self.rankings[name] = [(record, record["score"]) for record in candidates]
            return None
        filtered_here = self._is_filtered_here(name)
        sifted = sift(candidates, self._wheres[name], self._most[name], reach, all_covering=filtered_here)
        if sifted.near_enough and sifted.covering_enough:
            self.rankings[name] = [
                (record, record["score"]) for record in self._best[name].select(sifted.kept)
            ]
            return None
        if not filtered_here:
            return reach.further(near=not sifted.near_enough, pools=not sifted.covering_enough)
        if sifted.near_enough and reach.pools == 1:
            return reach.further(near=False, pools=True)
        self._in_chroma.add(name)
        return _Reach()

    def _fail(self, name: str, error: BaseException) -> None:
        from chromadb.errors import NotFoundError

        self._store.drop(name)
        if isinstance(error, NotFoundError) and name not in self._gone:
            self._gone.add(name)  # Deleted, and perhaps made anew.
        else:
            self.errors[name] = error

    async def _look_again(self, reaches: Mapping[str, _Reach]) -> dict[str, _Reach]:
        """Look for namespaces that were gone; return those that are there again."""
        again: dict[str, _Reach] = {}
        found = await self._store.find([name for name in self._gone if name not in self.rankings])
        for name, entry in found.items():
            if isinstance(entry, Namespace):
                self._namespaces[name], again[name] = entry, reaches[name]
            elif isinstance(entry, Exception):
                self.errors[name] = entry
            else:
                del self._namespaces[name]
            self.rankings.setdefault(name, [])
        return again


def most_wanted(k: int) -> tuple[int, int]:
    """Return how many candidates the vectors and how many the text give to a ranking of which ``k`` are wanted."""
    return max(_NEAREST, k), max(_COVERING, 2 * k)


class _Reach(NamedTuple):
    """How many times as many candidates are fetched, by vector, and looked at, by text."""

    near: int = 1
    pools: int = 1

    def further(self, *, near: bool, pools: bool) -> _Reach:
        """Reach further where it is not enough."""
        return _Reach(self.near * (_MORE if near else 1), self.pools * (POOLS_GROW if pools else 1))


class _Sifted(NamedTuple):
    """What is left of the candidates, and whether it is enough, or all there is."""

    kept: list[Record]
    near_enough: bool
    covering_enough: bool


def sift(
    candidates: Sequence[Record],
    where: Mapping[str, Any] | None,
    k: int,
    reach: _Reach,
    *,
    all_covering: bool,
) -> _Sifted:
    """Leave out what has expired and what does not pass the filter, and cut to what an unfiltered search would give.

    So the ranking sees the same candidates whether Chroma filtered or this did.

    Args:
        candidates: As they were found.
        where: The filter, or None.
        k: How many hits are wanted.
        reach: How far was reached.
        all_covering: Whether all are there that cover something among what was looked at, or only as many as are wanted.
    """
    now = time.time()
    valid = [
        record
        for record in candidates
        if matches(where, record["metadata"]) and not has_expired(record["metadata"], now)
    ]
    most_near, most_covering = most_wanted(k)
    near = sorted(
        (record for record in valid if record["distance"] is not None), key=lambda record: record["distance"]
    )
    covering = sorted(
        (record for record in valid if record["place"] is not None), key=lambda record: record["place"]
    )
    kept = {record["id"]: record for record in near[:most_near]}
    for record in covering[:most_covering]:
        # How far away one is that is not among the nearest would not be known without the filter.
        kept.setdefault(record["id"], {**record, "distance": None})
    if all_covering:
        all_looked_at = sum(record["own"] > 0 for record in candidates) < _POOL * most_covering * reach.pools
    else:
        all_looked_at = (
            sum(record["place"] is not None for record in candidates) < most_covering * reach.pools
        )
    all_fetched = sum(record["distance"] is not None for record in candidates) < most_near * reach.near
    complete = len(valid) == len(candidates)
    return _Sifted(
        list(kept.values()),
        complete or all_fetched or len(near) >= most_near,
        complete or all_looked_at or len(covering) >= most_covering,
    )
