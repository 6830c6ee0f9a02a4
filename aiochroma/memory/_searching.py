"""One question on its way through the namespaces: what each is asked for, and when that is enough."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aiochroma.engine._records import has_expired
from aiochroma.memory._best import Best
from aiochroma.memory._filters import both, matches
from aiochroma.memory._store import Namespace
from aiochroma.storage._text_coverage import WINDOW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiochroma.engine._calling import Answer
    from aiochroma.engine._records import Record
    from aiochroma.memory._question import Question
    from aiochroma.memory._ranking import ScoreParts
    from aiochroma.memory._recall import Search
    from aiochroma.memory._store import Store

__all__ = ["Searching", "sift"]

# What the vectors and the text each give to the ranking, at least. More, of the nearest 100 and of the covering 40, changed
# less in our measurement than one conversation differs from another.
_NEAREST = 50
_COVERING = 20
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
        searches: dict[str, Search],
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

    def _best_of(self, search: Search) -> Best:
        question, own_threshold = self._question, self._store.embedder.threshold or 1.0
        return Best(
            limit=search.k * (_MORE if question.diversity > 0 else 1),
            mode=question.mode,
            vector_weight=question.vector_weight,
            weight=search.weight,
            threshold=own_threshold if search.threshold == "auto" else search.threshold,
            embedder_threshold=own_threshold,
            half_life=question.half_life,
        )

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
        best, there = self._best[name], name in self._ranked_there
        # Where distance alone decides, exactly what is wanted is asked for.
        most_near, most_covering = most_wanted(self._most[name])
        nearest = best.limit if there and best.mode == "vector" else most_near * factor
        return {
            **self._namespaces[name].place,
            "query_embeddings": [_NO_VECTOR if self._vector is None else self._vector],
            "questions": [self._question.text],
            "n_results": nearest,
            "text_limit": most_covering * factor,
            "where": self._wheres[name] if name in self._in_chroma else None,
            "mode": self._question.mode if self._vector is not None else "text",
            "window": WINDOW,
            "parts": self._namespaces[name].parts,
            "selection": best if there else None,
        }

    def _take(self, name: str, got: Answer, factor: int) -> int | None:
        """Take an answer; return how many times as many to ask for next, or None when it is enough."""
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
                return factor
            self.rankings[name] = [(record, record["score"]) for record in candidates]
            return None
        where = self._wheres[name]
        kept, is_enough = sift(candidates, where, self._most[name], factor)
        if not is_enough and where is not None and name not in self._in_chroma:
            self._in_chroma.add(name)
            return 1
        if not is_enough:
            return factor * _MORE
        self.rankings[name] = [(record, record["score"]) for record in self._best[name].select(kept)]
        return None

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
        found = await self._store.find([name for name in self._gone if name not in self.rankings])
        for name, entry in found.items():
            if isinstance(entry, Namespace):
                self._namespaces[name], again[name] = entry, factors[name]
            elif isinstance(entry, Exception):
                self.errors[name] = entry
            else:
                del self._namespaces[name]
            self.rankings.setdefault(name, [])
        return again


def most_wanted(k: int) -> tuple[int, int]:
    """Return how many candidates the vectors and how many the text give to a ranking of which ``k`` are wanted."""
    return max(_NEAREST, k), max(_COVERING, 2 * k)


def sift(
    candidates: Sequence[Record], where: Mapping[str, Any] | None, k: int, factor: int
) -> tuple[list[Record], bool]:
    """Leave out what has expired and what does not pass the filter, and cut to what an unfiltered search would give.

    So the ranking sees the same candidates whether Chroma filtered or this did.

    Returns:
        The candidates, and whether there are enough of them, or no more to be had.
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
    most_near, most_covering = most_wanted(k)
    kept = {record["id"]: record for record in (*near[:most_near], *covering[:most_covering])}
    fetched_near = sum(record["distance"] is not None for record in candidates)
    fetched_covering = sum(record["text"] > 0 for record in candidates)
    enough_near = len(near) >= most_near or fetched_near < most_near * factor
    enough_covering = len(covering) >= most_covering or fetched_covering < most_covering * factor
    nothing_left_out = len(valid) == len(candidates)
    return list(kept.values()), nothing_left_out or (enough_near and enough_covering)
