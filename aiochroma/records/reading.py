"""Reading records from Chroma, where Chroma is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiochroma._types import CollectionId, Metadata, Vector, Where
from aiochroma.backend.chroma_records import ChromaRecords, Database
from aiochroma.records.record import Record, record_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chromadb.api import ServerAPI


__all__ = ["Reader"]


class Reader:
    """Reads records.

    Args:
        api: Chroma.
    """

    def __init__(self, api: ServerAPI) -> None:
        self._api = ChromaRecords(api)

    def nearest(
        self,
        collection_id: CollectionId,
        vectors: Sequence[Vector],
        n_results: int,
        place: Database,
        where: Where | None = None,
    ) -> list[dict[str, float]]:
        """Return the distances of the nearest by id, nearest first.

        Fifty distances come with one look at the index, fifty documents with two hundred look-ups in SQLite: for 32 queries
        it is 7 ms instead of 73.
        """
        result = self._api.query(
            collection_id,
            list(vectors),
            n_results=n_results,
            where=where,
            include=["distances"],
            **place,
        )
        return [
            dict(zip(ids, map(float, distances), strict=True))
            for ids, distances in zip(result["ids"], result["distances"], strict=True)
        ]

    def query(
        self,
        collection_id: CollectionId,
        vectors: Sequence[Vector],
        n_results: int,
        where: Where | None,
        where_document: Where | None,
        place: Database,
    ) -> list[list[tuple[str, float, str, Metadata]]]:
        """Return for each vector the nearest records: id, distance, document and metadata."""
        result = self._api.query(
            collection_id,
            list(vectors),
            n_results=n_results,
            where=where,
            where_document=where_document,
            include=["documents", "metadatas", "distances"],
            **place,
        )
        return [
            [
                (id, float(distance), document, metadata or {})
                for id, distance, document, metadata in zip(*row, strict=True)
            ]
            for row in zip(
                *(result[name] for name in ("ids", "distances", "documents", "metadatas")), strict=True
            )
        ]

    def records(
        self, collection_id: CollectionId, ids: list[str], where: Where | None, place: Database
    ) -> dict[str, Record]:
        """Return the records that are there, of ids."""
        if not ids:
            return {}
        result = self._api.get(
            collection_id,
            ids=ids,
            where=where,
            include=["documents", "metadatas"],
            **place,
        )
        return {
            id: record_of(id, document, metadata)
            for id, document, metadata in zip(
                *(result[name] for name in ("ids", "documents", "metadatas")), strict=True
            )
        }

    def vectors(self, collection_id: CollectionId, ids: list[str], place: Database) -> dict[str, Vector]:
        """Return the vectors of the records that are there, of ids."""
        if not ids:
            return {}
        result = self._api.get(collection_id, ids=ids, include=["embeddings"], **place)
        return dict(zip(result["ids"], result["embeddings"], strict=True))
