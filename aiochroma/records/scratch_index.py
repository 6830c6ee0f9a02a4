"""A memory's searches on a server whose memories are not kept here: they are too many, or not read yet.

Candidates are what is nearest by meaning, and what is nearest among the records that contain a word of the query. Their
own texts go into a scratch index, which scores them as the index on disk would; how rare a word is, is judged among them.
Called from several connection threads at once.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from aiochroma._types import CollectionId, JsonObject, Vector
from aiochroma.records.chunks import Parts
from aiochroma.records.filters import filter_of
from aiochroma.records.record import POSITION, SCOPE, THREAD
from aiochroma.records.searching import Candidates, Found, SearchingRecords, most_covering, most_near
from aiochroma.records.spec import Neighbour
from aiochroma.text.analysis import words_of_meaning
from aiochroma.text.index import IndexedText, TextIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiochroma.backend.chroma_records import Database
    from aiochroma.records.reading import Reader
    from aiochroma.records.spec import SearchSpec

__all__ = ["ScratchIndex"]

_WORDS = 8
"""So many words of a query are looked for; each costs the server a scan of its own index."""
_FEWEST_LETTERS = 3
_POOL = 2
"""So many times as many as the text gives are looked at."""
_TURNS = 2000
"""So many memories of a thread are looked through for neighbours."""
_BELIEVED_SECONDS = 2.0
"""Other processes may write to the server: so long is it believed that a namespace has no long texts."""


class ScratchIndex(SearchingRecords):
    """The operations of a memory on a server, without an index."""

    def __init__(self, api: Any) -> None:
        super().__init__(api)
        self._parts = _DoubtedParts(api, self._reader)

    def _candidates(
        self,
        collection_id: CollectionId,
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        spec: SearchSpec,
        reach: int,
        chunks: str,
        place: Database,
    ) -> Candidates:
        where = filter_of(spec)
        found = self._found_by_chroma(
            collection_id, query_embeddings, most_near(spec, reach), where, chunks, place
        )
        pairs = zip(queries, query_embeddings, found, strict=True)
        for query, vector, candidates in pairs if spec.mode != "vector" else ():
            containing = _containing(query)
            if containing:
                pool = _POOL * most_covering(spec, reach)
                near = self._found_by_chroma(
                    collection_id, [vector], pool, where, chunks, place, where_document=containing
                )
                for id, one in near[0].items():
                    candidates.setdefault(id, one)
            _score(query, candidates)
        if spec.mode == "text":
            for candidates in found:
                for one in candidates.values():
                    one.distance = None
        return Candidates([list(candidates.values()) for candidates in found])

    def _complete(self, collection_id: CollectionId, found: Sequence[Found], place: Database) -> None:
        """Everything was read when it was found."""

    def _neighbours(
        self, collection_id: CollectionId, ids: list[str], window: int, place: Database
    ) -> Iterable[tuple[str, int, Neighbour]]:
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
        return [
            (id, offset, Neighbour(other, near[other]["document"], near[other]["metadata"]))
            for id, offset, other in pairs
            if other in near
        ]

    def _turns(
        self, collection_id: CollectionId, scope: str | None, thread: str, place: Database
    ) -> list[str]:
        """Return the ids of a thread in order."""
        result = self._api.get(
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

    def holder(self, name: str, place: Database) -> Any:
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


def _score(query: str, candidates: Mapping[str, Found]) -> None:
    """Compare the texts of the candidates with a query."""
    if not candidates:
        return
    with closing(TextIndex(":memory:")) as index:
        index.upsert("candidates", [IndexedText(id, one.document) for id, one in candidates.items()])
        hits = index.search("candidates", query, len(candidates), window=0)
        ids = index.ids_of(hit.row for hit in hits)
        for hit in hits:
            one = candidates[ids[hit.row]]
            one.text, one.own = hit.score, hit.own


def _containing(query: str) -> JsonObject | None:
    """Return a filter for records that contain a word of a query, as it is spelled, in lower case, or capitalised."""
    words = sorted(
        {word for word in words_of_meaning(query) if len(word) >= _FEWEST_LETTERS}, key=len, reverse=True
    )[:_WORDS]
    given = {word.casefold(): word for word in query.split()}
    spellings = dict.fromkeys(
        spelling for word in words for spelling in (given.get(word, word), word, word.capitalize())
    )
    conditions = [{"$contains": spelling} for spelling in spellings]
    if len(conditions) > 1:
        return {"$or": conditions}
    return conditions[0] if conditions else None
