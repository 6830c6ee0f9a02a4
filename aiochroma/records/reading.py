"""Reading records from Chroma, where Chroma is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiochroma.records.record import Place, Record, record_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chromadb.api import ServerAPI

__all__ = ["Reader"]


class Reader:
    """Reads records.

    Args:
        api: Chroma.
    """

    def __init__(self, api: ServerAPI) -> None:
        self._api: Any = api

    def nearest(
        self,
        collection_id: Any,
        vectors: Sequence[Any],
        n_results: int,
        place: Place,
        where: Mapping[str, Any] | None = None,
    ) -> list[dict[str, float]]:
        """Return the distances of the nearest by id, nearest first.

        Fifty distances come with one look at the index, fifty documents with two hundred look-ups in SQLite: for 32 queries
        it is 7 ms instead of 73.
        """
        result: Any = self._api._query(  # noqa: SLF001 - Chroma's own name
            collection_id,
            list(vectors),
            n_results=n_results,
            where=dict(where) if where else None,
            include=["distances"],
            **place,
        )
        return [
            dict(zip(ids, map(float, distances), strict=True))
            for ids, distances in zip(result["ids"], result["distances"], strict=True)
        ]

    def query(
        self,
        collection_id: Any,
        vectors: Sequence[Any],
        n_results: int,
        where: Mapping[str, Any] | None,
        where_document: Mapping[str, Any] | None,
        place: Place,
    ) -> list[list[tuple[str, float, str, dict[str, Any]]]]:
        """Return for each vector the nearest records: id, distance, document and metadata."""
        result: Any = self._api._query(  # noqa: SLF001 - Chroma's own name
            collection_id,
            list(vectors),
            n_results=n_results,
            where=dict(where) if where else None,
            where_document=dict(where_document) if where_document else None,
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
        self, collection_id: Any, ids: list[str], where: Mapping[str, Any] | None, place: Place
    ) -> dict[str, Record]:
        """Return the records that are there, of ids."""
        if not ids:
            return {}
        result: Any = self._api._get(  # noqa: SLF001 - Chroma's own name
            collection_id,
            ids=ids,
            where=dict(where) if where else None,
            include=["documents", "metadatas"],
            **place,
        )
        return {
            id: record_of(id, document, metadata)
            for id, document, metadata in zip(
                *(result[name] for name in ("ids", "documents", "metadatas")), strict=True
            )
        }

    def vectors(self, collection_id: Any, ids: list[str], place: Place) -> dict[str, Any]:
        """Return the vectors of the records that are there, of ids."""
        if not ids:
            return {}
        result: Any = self._api._get(collection_id, ids=ids, include=["embeddings"], **place)  # noqa: SLF001
        return dict(zip(result["ids"], result["embeddings"], strict=True))
