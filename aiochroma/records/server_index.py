"""A memory's operations on a server: searched in the copy that is kept here, or, without one, among candidates of the server.

The server keeps no codes of tokens: those of what this client writes are kept for the copy, and a memory whose embedder gives
tokens makes the others beside its recalls (``memory.codes``).

A namespace that has too many memories, or that was not read yet, has no copy. Its candidates are what is nearest by meaning, and
what is nearest among the records that contain a word of the query. Their own texts go into a scratch index, which scores them as
the index on disk would; how rare a word is, is judged among them.

Chroma Cloud and distributed Chroma rank words themselves, by sparse vectors. Where the memories of a namespace have such, and the
question has one (``Memory(sparse_embedder=...)``), what they rank first comes in place of the records that contain a word, and
nothing is missing. Untested against these servers: a local one refuses the index, the record and the search, and tests put a
proxy in front of it that keeps the sparse vectors and searches them.

Called from several connection threads at once.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._types import CollectionId, JsonObject, Vector, Where
from aiochroma.backend.chroma_records import Database
from aiochroma.core.operations import Effect
from aiochroma.disk.retained_log import LogState
from aiochroma.records.local_index import LocalIndex
from aiochroma.records.reading import BELIEVED_SECONDS, Chunks
from aiochroma.records.record import POSITION, SCOPE, SPARSE, THREAD
from aiochroma.records.searching import Found, Pool, Pools, SearchingRecords, most_covering, most_near
from aiochroma.records.server_keeper import MOST_MEMORIES, ServerKeeper
from aiochroma.records.spec import Neighbour, SparseQuery, filter_of
from aiochroma.text.analysis import words_of_meaning
from aiochroma.text.index import CACHE_BYTES, IndexedText, TextIndex
from aiochroma.text.vectors import directions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from uuid import UUID

    from chromadb.api import ServerAPI

    from aiochroma.core.request import Request
    from aiochroma.records.reading import Reader
    from aiochroma.records.record import Record
    from aiochroma.records.spec import CollectionSearch, SearchResult

__all__ = ["ScratchIndex", "ServerIndex"]

_WORDS = 8
"""The most words of a query that are looked for; each costs the server a scan of its own index."""
_FEWEST_LETTERS = 3
_POOL = 2
"""The factor on the candidates that the text gives."""
_TURNS = 2000
"""The most memories of a thread that are looked through for neighbours."""
_BELIEVED_SECONDS = 2.0
"""How long it is believed that a namespace has no long texts, in seconds: other processes may write to the server."""


class ScratchIndex(SearchingRecords):
    """The operations of a memory on a server, without an index."""

    def __init__(self, api: ServerAPI) -> None:
        super().__init__(api)
        self._chunks = _DoubtedChunks(api, self._reader)

    def _candidates(
        self,
        searches: Sequence[CollectionSearch],
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        query_tokens: Sequence[Vector | None],  # noqa: ARG002 - there are no codes without a copy
        reach: int,
        db: Database,
    ) -> list[Pools]:
        return [self._found_in(one, query_embeddings, queries, reach, db) for one in searches]

    def _found_in(
        self,
        search: CollectionSearch,
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        reach: int,
        db: Database,
    ) -> Pools:
        """Return the candidates of each query in one namespace."""
        spec, where = search.spec, filter_of(search.spec)
        collection_id, chunks = search.collection_id, search.chunks
        found = self._found_by_chroma(
            collection_id, query_embeddings, most_near(spec, reach), where, chunks, db
        )
        pairs = zip(queries, query_embeddings, found, strict=True)
        problem = None
        for query, vector, candidates in pairs if spec.mode != "vector" else ():
            pool, by_words = _POOL * most_covering(spec, reach), dict[str, Found]()
            containing = _containing(query)
            if search.sparse is not None:
                by_words, problem = self._ranked_by_server(search, search.sparse, vector, pool, where, db)
            if containing and (search.sparse is None or problem is not None):
                (by_words,) = self._found_by_chroma(
                    collection_id, [vector], pool, where, chunks, db, where_document=containing
                )
            for id, one in by_words.items():
                candidates.setdefault(id, one)
            _score(query, candidates)
        if spec.mode == "text":
            for candidates in found:
                for one in candidates.values():
                    one.distance = None
        return Pools([Pool.of(candidates.values()) for candidates in found], problem=problem)

    def _ranked_by_server(
        self,
        search: CollectionSearch,
        sparse: SparseQuery,
        vector: Vector,
        limit: int,
        where: Where | None,
        db: Database,
    ) -> tuple[dict[str, Found], str | None]:
        """Return what the server ranks first by sparse vectors, by id; and why it does not, where it refuses."""
        from chromadb.errors import ChromaError, NotFoundError

        if not sparse[0]:
            return {}, None  # The question has no word.
        try:
            rows = self._api.ranked(search.collection_id, SPARSE, sparse, limit=limit, where=where, **db)
        except NotFoundError:
            raise
        except ChromaError as error:
            return {}, (
                f"The server did not rank words by sparse vectors ({error}). Words were compared with what it came up with "
                "otherwise: some hits may be missing."
            )
        if not rows:
            return {}, None
        near, asked = directions([row[3] for row in rows]), directions([vector])
        assert near is not None
        assert asked is not None
        distances = (1.0 - near @ asked[0]).tolist()
        return {
            id: Found(id, distance=distance, document=document or "", metadata=metadata or {})
            for (id, document, metadata, _), distance in zip(rows, distances, strict=True)
        }, None

    def _complete(self, found: Sequence[tuple[CollectionId, Sequence[Found]]], db: Database) -> None:
        """Everything was read when it was found."""

    def _neighbours(
        self, collection_id: CollectionId, ids: list[str], window: int, db: Database
    ) -> Iterable[tuple[str, int, Neighbour]]:
        pairs: list[tuple[str, int, str]] = []
        records = self._reader.records(collection_id, ids, None, db)
        threads = {
            (record["metadata"].get(SCOPE), record["metadata"][THREAD])
            for record in records.values()
            if THREAD in record["metadata"]
        }
        for scope, thread in threads:
            turns = self._turns(collection_id, scope, thread, db)
            positions = {id: number for number, id in enumerate(turns)}
            for id in ids:
                if id in positions:
                    first, last = max(0, positions[id] - window), positions[id] + window + 1
                    pairs += [
                        (id, positions[near] - positions[id], near)
                        for near in turns[first:last]
                        if near != id
                    ]
        near = self._reader.records(collection_id, list(dict.fromkeys(pair[2] for pair in pairs)), None, db)
        return [
            (id, offset, Neighbour(other, near[other]["document"], near[other]["metadata"]))
            for id, offset, other in pairs
            if other in near
        ]

    def _turns(self, collection_id: CollectionId, scope: str | None, thread: str, db: Database) -> list[str]:
        """Return the ids of a thread in order."""
        result = self._api.get(
            collection_id, where={THREAD: thread}, limit=_TURNS, include=["metadatas"], **db
        )
        order = sorted(
            (metadata.get(POSITION, 0.0), number)
            for number, metadata in enumerate(result["metadatas"])
            if metadata.get(SCOPE) == scope
        )
        return [result["ids"][number] for _, number in order]


class ServerIndex(ScratchIndex):
    """The operations of a memory on a server.

    Args:
        api: Chroma's client of the server.
        file: Where the copies stay for the next start, or None to keep them in memory.
        most: How many memories may be kept here.
        cache_bytes: The most bytes that their vectors take beside the index.
    """

    def __init__(
        self,
        api: ServerAPI,
        file: Path | None = None,
        most: int = MOST_MEMORIES,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        super().__init__(api)
        self._reader.believed_seconds = BELIEVED_SECONDS
        self._keeper = ServerKeeper(api, file, most, cache_bytes)
        self._copies = _Copies(api, self._keeper, self._chunks, cache_bytes)

    def search(
        self,
        collections: Sequence[CollectionSearch],
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        tenant: str,
        database: str,
        query_tokens: Sequence[Vector | None] | None = None,
    ) -> list[tuple[SearchResult, ...]]:
        """See ``SearchingRecords``."""
        db = Database(tenant=tenant, database=database)
        results = [self._search(one, query_embeddings, queries, query_tokens, db) for one in collections]
        return list(zip(*results, strict=True))

    def _search(
        self,
        search: CollectionSearch,
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        query_tokens: Sequence[Vector | None] | None,
        db: Database,
    ) -> list[SearchResult]:
        """Search one namespace, in its copy where there is one."""
        from chromadb.errors import NotFoundError

        try:
            return self._search_known(search, query_embeddings, queries, query_tokens, db)
        except NotFoundError:
            # The chunks may stand in another collection now: somebody has forgotten the namespace and made it again.
            self._chunks.forget_holders()
            return self._search_known(search, query_embeddings, queries, query_tokens, db)

    def _search_known(
        self,
        search: CollectionSearch,
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        query_tokens: Sequence[Vector | None] | None,
        db: Database,
    ) -> list[SearchResult]:
        share, problem = self._keeper.follow(str(search.collection_id), db)
        if share == 1.0 and problem is None:
            # Looked up here: under the lock below it would make others wait.
            self._chunks.holder(search.chunks, db)
            # Rows have numbers, which another's write may change.
            with self._keeper.lock:
                found = self._copies.search(
                    [search], query_embeddings, queries, **db, query_tokens=query_tokens
                )
            return [result for (result,) in found]
        results = [result for (result,) in super().search([search], query_embeddings, queries, **db)]
        refused = next((result.problem for result in results if result.problem is not None), None)
        if search.sparse is not None and refused is None:
            return results  # The server has compared the words of all memories.
        indexed = 1.0 if problem else share
        problem = " ".join(one for one in (problem, refused) if one is not None) or None
        return [replace(result, indexed=indexed, problem=problem) for result in results]

    def code(
        self, collection_id: CollectionId, ids: list[str], codes: list[bytes], tenant: str, database: str
    ) -> None:
        """Keep the codes of the tokens of memories that the copy has."""
        with self._keeper.lock:
            self._copies.code(collection_id, ids, codes, tenant, database)

    def without_code(self, collection_id: CollectionId, tenant: str, database: str) -> list[str]:
        """See ``MemoryRecords``; none without a copy."""
        with self._keeper.lock:
            return self._copies.without_code(collection_id, tenant, database)

    def after_write(self, request: Request) -> None:
        """Follow a write of Chroma's own by this client, which may have no stamp."""
        if request.row.effect in {Effect.DROPS_COLLECTION, Effect.DROPS_ALL}:
            self._keeper.dropped()
            return
        collection = str(request.arguments.get("collection_id"))
        writes = request.row.effect is Effect.WRITES
        self._keeper.noticed(collection, request.arguments.get("ids") or () if writes else ())

    def close(self) -> None:
        """Give the copies back."""
        self._keeper.stop()

    def _written(
        self,
        collection: str,
        records: Sequence[Record],
        vectors: Sequence[Vector] | None,  # noqa: ARG002 - the server is asked
        codes: Sequence[bytes | None] | None,
    ) -> None:
        self._keeper.noticed(collection, [record["id"] for record in records], codes)

    def _deleted(self, collection: str, ids: Sequence[str]) -> None:
        self._keeper.deleted(collection, ids)


class _Copies(LocalIndex):
    """Searches the copies; its caller holds their lock."""

    def __init__(self, api: ServerAPI, keeper: ServerKeeper, chunks: Chunks, cache_bytes: int) -> None:
        super().__init__(api, None, LogState(), cache_bytes)
        self._cache_bytes = cache_bytes
        self.keeper = keeper
        self._chunks = chunks

    def _most_compared(self, query_embeddings: Sequence[Vector]) -> int:
        """Return how many vectors are compared one by one: all that stay in memory, for the server is far away."""
        first = query_embeddings[0]
        return self._cache_bytes // (4 * max(1, 1 if first is None else len(first)))


class _DoubtedChunks(Chunks):
    """Chunks on a server: other processes may make them at any time."""

    def __init__(self, api: ServerAPI, reader: Reader) -> None:
        super().__init__(api, reader)
        self._asked_at: dict[tuple[str, str, str], float] = {}

    def holder(self, name: str, db: Database) -> UUID | None:
        """See ``Chunks``."""
        key = (db["tenant"], db["database"], name)
        now = monotonic()
        if self._holders.get(key) is None and now - self._asked_at.get(key, 0.0) > _BELIEVED_SECONDS:
            self._holders.pop(key, None)
            self._asked_at[key] = now
        return super().holder(name, db)

    def forget_holders(self) -> None:
        """See ``Chunks``."""
        super().forget_holders()
        self._asked_at.clear()


def _score(query: str, candidates: Mapping[str, Found]) -> None:
    """Compare the texts of the candidates with a query."""
    if not candidates:
        return
    with closing(TextIndex(":memory:")) as index:
        index.upsert("candidates", [IndexedText(id, one.document) for id, one in candidates.items()])
        hits = index.search("candidates", query, len(candidates), window=0)
        ids = index.ids_of(hits.rows.tolist())
        for row, score, own in zip(*(column.tolist() for column in hits), strict=True):
            one = candidates[ids[row]]
            one.text, one.own = score, own


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
