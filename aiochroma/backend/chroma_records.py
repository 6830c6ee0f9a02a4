"""Chroma's calls on records, with types: what ``ServerAPI`` gives as a dictionary of anything is rows here.

Chroma names these calls with an underscore, and nothing public does the same: this is the one module that may call them so.
"""
# ruff: noqa: SLF001 - see above

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from aiochroma._types import Metadata, Where

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any
    from uuid import UUID

    import numpy as np
    import numpy.typing as npt
    from chromadb.api import ServerAPI
    from chromadb.config import System
    from typing_extensions import Unpack


__all__ = ["ChromaRecords", "Database", "Nearest", "Rows", "database_of", "server_api"]


class Database(TypedDict, total=False):
    """Chroma's names of a database; Chroma's defaults where one is left out."""

    tenant: str
    database: str


class Rows(TypedDict):
    """Columns of records; only those that were asked for can be read."""

    ids: list[str]
    documents: list[str]
    metadatas: list[Metadata]
    embeddings: Sequence[npt.NDArray[np.float32]]


class Nearest(TypedDict):
    """The nearest records of each vector, in columns; only those that were asked for can be read."""

    ids: list[list[str]]
    distances: list[list[float]]
    documents: list[list[str]]
    metadatas: list[list[Metadata | None]]


def database_of(arguments: Mapping[str, Any]) -> Database:
    """Return what a call's arguments say of the database."""
    named: Database = {}
    if "tenant" in arguments:
        named["tenant"] = arguments["tenant"]
    if "database" in arguments:
        named["database"] = arguments["database"]
    return named


def server_api(system: System) -> ServerAPI:
    """Return Chroma's API on a system that was started; the class is abstract, which the type of ``instance`` does not allow."""
    from chromadb.api import ServerAPI

    return system.instance(ServerAPI)  # type: ignore[type-abstract]


class ChromaRecords:
    """Chroma's calls on the records of its collections, for the thread that calls Chroma.

    Args:
        api: Chroma, open.
    """

    def __init__(self, api: ServerAPI) -> None:
        self._api: Any = api

    def collection_id(self, name: str, **database: Unpack[Database]) -> UUID:
        """Return the id of a collection.

        Raises:
            chromadb.errors.NotFoundError: There is no such collection.
        """
        found: UUID = self._api.get_collection(name=name, **database).id
        return found

    def get(
        self,
        collection: UUID | str,
        *,
        include: Sequence[str],
        ids: list[str] | None = None,
        where: Where | None = None,
        limit: int | None = None,
        **database: Unpack[Database],
    ) -> Rows:
        """Return the records with these ids, or those that pass a filter, or all."""
        rows: Rows = self._api._get(
            collection,
            ids=ids,
            where=dict(where) if where else None,
            limit=limit,
            include=list(include),
            **database,
        )
        return rows

    def query(
        self,
        collection: UUID | str,
        vectors: Sequence[Any],
        *,
        n_results: int,
        include: Sequence[str],
        where: Where | None = None,
        where_document: Where | None = None,
        **database: Unpack[Database],
    ) -> Nearest:
        """Return the nearest records of each vector."""
        nearest: Nearest = self._api._query(
            collection,
            list(vectors),
            n_results=n_results,
            where=dict(where) if where else None,
            where_document=dict(where_document) if where_document else None,
            include=list(include),
            **database,
        )
        return nearest

    def count(self, collection: UUID | str, **database: Unpack[Database]) -> int:
        """Return how many records a collection has."""
        counted: int = self._api._count(collection, **database)
        return counted

    def upsert(
        self,
        collection: UUID | str,
        ids: list[str],
        embeddings: Sequence[Any],
        metadatas: Sequence[Any] | None = None,
        documents: Sequence[str] | None = None,
        uris: Sequence[str] | None = None,
        **database: Unpack[Database],
    ) -> None:
        """Add records, or change those that are there."""
        self._api._upsert(collection, ids, embeddings, metadatas, documents, uris, **database)

    def update(
        self,
        collection: UUID | str,
        ids: list[str],
        embeddings: Sequence[Any] | None = None,
        metadatas: Sequence[Any] | None = None,
        documents: Sequence[str] | None = None,
        uris: Sequence[str] | None = None,
        **database: Unpack[Database],
    ) -> None:
        """Change records that are there; the others are left out."""
        self._api._update(collection, ids, embeddings, metadatas, documents, uris, **database)

    def delete(self, collection: UUID | str, ids: list[str], **database: Unpack[Database]) -> None:
        """Delete records."""
        self._api._delete(collection, ids=ids, **database)
