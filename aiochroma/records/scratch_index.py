"""A memory's searches on a server, where no full-text index is kept beside the database.

Candidates are what is nearest by meaning, and what is nearest among the records that contain a word of the question. Their
own texts go into a scratch index, which scores them as the index on disk would; how rare a word is, is judged among them.
Called from several connection threads at once.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from aiochroma.records.chunks import Parts
from aiochroma.records.memory_records import MemoryRecords
from aiochroma.records.record import POSITION, SCOPE, THREAD, Place, Record
from aiochroma.text.analysis import words_of_meaning
from aiochroma.text.index import IndexedText, TextIndex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiochroma.records.reading import Reader
    from aiochroma.records.top_k import TopK

__all__ = ["ScratchIndex"]

_WORDS = 8
"""So many words of a question are looked for; each costs the server a scan of its own index."""
_FEWEST_LETTERS = 3
_TURNS = 2000
"""So many memories of a thread are looked through for neighbours."""
_BELIEVED_SECONDS = 2.0
"""Other processes may write to the server: so long is it believed that a namespace has no long texts."""


class ScratchIndex(MemoryRecords):
    """The operations of a memory on a server."""

    def __init__(self, api: Any) -> None:
        super().__init__(api)
        self._parts = _DoubtedParts(api, self._reader)

    def search(  # type: ignore[override]  # called with these names
        self,
        collection_id: Any,
        query_embeddings: Sequence[Any],
        questions: Sequence[str],
        n_results: int,
        text_limit: int | None,  # noqa: ARG002 - all that were fetched are scored
        text_pool: int,
        where: Mapping[str, Any] | None,
        mode: str,
        window: int,  # noqa: ARG002 - what stands near a candidate is not known here
        parts: str,
        top_k: TopK | None,
        tenant: str,
        database: str,
    ) -> list[list[Record]]:
        """Search one collection; see ``LocalIndex.search``."""
        place = {"tenant": tenant, "database": database}
        found = self._search_vectors(collection_id, query_embeddings, n_results, where, parts, place)
        pairs = zip(questions, query_embeddings, found, strict=True)
        for question, vector, candidates in pairs if mode != "vector" else ():
            containing = _containing(question)
            if containing:
                near = self._search_vectors(
                    collection_id, [vector], text_pool, where, parts, place, where_document=containing
                )
                for id, record in near[0].items():
                    candidates.setdefault(id, record)
            self._score(question, candidates)
        if mode == "text":
            for candidates in found:
                for record in candidates.values():
                    record["distance"] = None
        wanted = [list(candidates.values()) for candidates in found]
        return wanted if top_k is None else [top_k.select(candidates) for candidates in wanted]

    def _score(self, question: str, candidates: dict[str, Record]) -> None:
        """Compare the texts of the candidates with a question."""
        if not candidates:
            return
        with closing(TextIndex(":memory:")) as index:
            index.upsert(
                "candidates", [IndexedText(id, record["document"]) for id, record in candidates.items()]
            )
            for hit in index.search("candidates", question, len(candidates), window=0):
                candidates[hit.id].update(text=hit.score, own=hit.own, place=hit.place)

    def neighbours(  # type: ignore[override]  # called with these names
        self, collection_id: Any, ids: list[str], window: int, tenant: str, database: str
    ) -> list[tuple[str, int, Record]]:
        """Return what stands near records in their threads: record, offset, and the neighbour itself."""
        place = {"tenant": tenant, "database": database}
        pairs: list[tuple[str, int, str]] = []
        records = self._reader.records(collection_id, ids, None, place)
        threads = {
            (record["metadata"].get(SCOPE), record["metadata"][THREAD])
            for record in records.values()
            if THREAD in record["metadata"]
        }
        for scope, thread in threads:
            turns = self._turns(collection_id, scope, thread, place)
            places = {id: number for number, id in enumerate(turns)}
            for id in ids:
                if id in places:
                    first, last = max(0, places[id] - window), places[id] + window + 1
                    pairs += [
                        (id, places[near] - places[id], near) for near in turns[first:last] if near != id
                    ]
        near = self._reader.records(
            collection_id, list(dict.fromkeys(pair[2] for pair in pairs)), None, place
        )
        return [(id, offset, near[neighbour]) for id, offset, neighbour in pairs if neighbour in near]

    def _turns(self, collection_id: Any, scope: str | None, thread: str, place: Place) -> list[str]:
        """Return the ids of a thread in order."""
        result: Any = self._api._get(  # noqa: SLF001 - Chroma's own name
            collection_id, where={THREAD: thread}, limit=_TURNS, include=["metadatas"], **place
        )
        order = sorted(
            (metadata.get(POSITION, 0.0), number)
            for number, metadata in enumerate(result["metadatas"])
            if metadata.get(SCOPE) == scope
        )
        return [result["ids"][number] for _, number in order]


class _DoubtedParts(Parts):
    """Parts on a server: other processes may make them at any time."""

    def __init__(self, api: Any, reader: Reader) -> None:
        super().__init__(api, reader)
        self._asked_at: dict[tuple[str, str, str], float] = {}

    def holder(self, name: str, place: Place) -> Any:
        """See ``Parts``."""
        key = (place["tenant"], place["database"], name)
        now = time.monotonic()
        if self._holders.get(key) is None and now - self._asked_at.get(key, 0.0) > _BELIEVED_SECONDS:
            self._holders.pop(key, None)
            self._asked_at[key] = now
        return super().holder(name, place)

    def forget_holders(self) -> None:
        """See ``Parts``."""
        super().forget_holders()
        self._asked_at.clear()


def _containing(question: str) -> dict[str, Any] | None:
    """Return a filter for records that contain a word of a question, as it is spelled, in lower case, or capitalised."""
    words = sorted(
        {word for word in words_of_meaning(question) if len(word) >= _FEWEST_LETTERS}, key=len, reverse=True
    )[:_WORDS]
    given = {word.casefold(): word for word in question.split()}
    spellings = dict.fromkeys(
        spelling for word in words for spelling in (given.get(word, word), word, word.capitalize())
    )
    conditions = [{"$contains": spelling} for spelling in spellings]
    if len(conditions) > 1:
        return {"$or": conditions}
    return conditions[0] if conditions else None
