"""A memory's operations on a server: searched in the copy that is kept here, or, without one, by candidates of the server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aiochroma.backend.chroma_records import Database
from aiochroma.core.operations import Effect
from aiochroma.records.local_index import LocalIndex
from aiochroma.records.scratch_index import ScratchIndex
from aiochroma.records.server_keeper import MOST_MEMORIES, ServerKeeper
from aiochroma.text.index import CACHE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chromadb.api import ServerAPI

    from aiochroma._types import CollectionId, MetadataView, Vector
    from aiochroma.core.request import Request
    from aiochroma.records.chunks import Parts
    from aiochroma.records.record import Record
    from aiochroma.records.spec import SearchResult, SearchSpec

__all__ = ["ServerIndex"]


class ServerIndex(ScratchIndex):
    """The operations of a memory on a server.

    Args:
        api: Chroma's client of the server.
        most: How many memories may be kept here.
    """

    def __init__(self, api: ServerAPI, most: int = MOST_MEMORIES) -> None:
        super().__init__(api)
        self._keeper = ServerKeeper(api, most)
        self._copies = _Copies(api, self._keeper, self._parts)

    def search(
        self,
        collection_id: CollectionId,
        query_embeddings: Sequence[Vector],
        queries: Sequence[str],
        spec: SearchSpec,
        chunks: str,
        tenant: str,
        database: str,
    ) -> list[SearchResult]:
        """See ``SearchingRecords``."""
        place = Database(tenant=tenant, database=database)
        asked = (collection_id, query_embeddings, queries, spec, chunks, tenant, database)
        share, problem = self._keeper.follow(str(collection_id), place)
        if share == 1.0 and problem is None:
            # Looked up here, so that nobody waits for it below.
            self._parts.holder(chunks, place)
            # Rows have numbers, which another's write may change.
            with self._keeper.lock:
                return self._copies.search(*asked)
        return [
            replace(result, indexed=1.0 if problem else share, problem=problem)
            for result in super().search(*asked)
        ]

    def after_write(self, request: Request) -> None:
        """Follow a write of Chroma's own by this client, which may have no stamp."""
        collection = str(request.arguments.get("collection_id"))
        writes = request.row.effect is Effect.WRITES
        self._keeper.noticed(collection, request.arguments.get("ids") or () if writes else ())

    def close(self) -> None:
        """Give the copies back."""
        self._keeper.stop()

    def _written(
        self,
        collection: str,
        ids: Sequence[str],
        documents: Sequence[str],  # noqa: ARG002 - the server is asked
        metadatas: Sequence[MetadataView],  # noqa: ARG002
        known: Mapping[str, Record],  # noqa: ARG002
        vectors: Sequence[Vector] | None,  # noqa: ARG002
    ) -> None:
        self._keeper.noticed(collection, ids)

    def _deleted(self, collection: str, ids: Sequence[str]) -> None:
        self._keeper.deleted(collection, ids)


class _Copies(LocalIndex):
    """Searches the copies; its caller holds their lock."""

    def __init__(self, api: ServerAPI, keeper: ServerKeeper, parts: Parts) -> None:
        super().__init__(api, None, {})
        self.keeper = keeper
        self._parts = parts

    def _most_compared(self, query_embeddings: Sequence[Vector]) -> int:
        """Return how many vectors are compared one by one: as many as stay in memory, for the server is far away."""
        first = query_embeddings[0]
        return CACHE_BYTES // (4 * max(1, 1 if first is None else len(first)))
