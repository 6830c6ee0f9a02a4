"""One side of a migration: collections and their records in pages, and how records are compared.

Importing this module imports chromadb and numpy; that happens after a client was opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from chromadb.errors import NotFoundError

from aiochroma._types import Metadata, Vector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


__all__ = ["PAGE", "Record", "Side", "fields_that_differ"]

PAGE = 256
"""Records in one page; both sides of one page are all that is held in memory."""

_FIELDS = ["embeddings", "documents", "metadatas", "uris"]
_ROUNDING = 2e-6
"""With the cosine distance Chroma keeps direction and length apart; putting them together again rounds the last digit."""


class Record(NamedTuple):
    """A record.

    Attributes:
        vector: A float32 array.
        document: Its document, or None.
        metadata: Its metadata, or None.
        uri: Its URI, or None.
    """

    vector: Vector
    document: str | None
    metadata: Metadata | None
    uri: str | None


class Side:
    """A database of one of the two places.

    Args:
        client: An open client of the place.
        tenant: Chroma's tenant.
        database: Chroma's database.
    """

    def __init__(self, client: Any, tenant: str, database: str) -> None:
        self.tenant = tenant
        self.database = database
        # Below the client: its collections would embed, check again, and want embedding functions.
        self._session = client.session
        self._admin = client.admin

    @property
    def where(self) -> dict[str, str]:
        """The arguments that name the database."""
        return {"tenant": self.tenant, "database": self.database}

    async def submit(self, operation: str, **arguments: object) -> Any:
        """Carry out one operation in this database."""
        return await self._session.submit(operation, **arguments, **self.where)

    async def models(self) -> dict[str, Any]:
        """Return Chroma's descriptions of the collections by name, sorted; Chroma's order says nothing."""
        found = await self.submit("list_collections", limit=None, offset=None)
        return {model.name: model for model in sorted(found, key=lambda model: str(model.name))}

    async def models_if_any(self) -> dict[str, Any]:
        """Return the same, or nothing where there is no such tenant or database."""
        try:
            await self._admin.get_tenant(name=self.tenant)
            await self._admin.get_database(name=self.database, tenant=self.tenant)
        except NotFoundError:
            return {}
        return await self.models()

    async def make_database(self) -> None:
        """Make tenant and database where they do not exist."""
        try:
            await self._admin.get_tenant(name=self.tenant)
        except NotFoundError:
            await self._admin.create_tenant(name=self.tenant)
        try:
            await self._admin.get_database(name=self.database, tenant=self.tenant)
        except NotFoundError:
            await self._admin.create_database(name=self.database, tenant=self.tenant)

    async def count(self, model: Any) -> int:
        """Return how many records a collection has."""
        return int(await self.submit("_count", collection_id=model.id))

    async def pages(self, model: Any) -> AsyncIterator[dict[str, Record]]:
        """Yield the records of a collection, a page at a time, in the order in which they were first written."""
        offset = 0
        while True:
            found = await self.submit(
                "_get", collection_id=model.id, include=_FIELDS, limit=PAGE, offset=offset
            )
            if not found["ids"]:
                return
            yield _records(found)
            offset += len(found["ids"])

    async def records(self, model: Any, ids: Sequence[str]) -> dict[str, Record]:
        """Return those of the records that exist."""
        return _records(await self.submit("_get", collection_id=model.id, ids=list(ids), include=_FIELDS))

    async def add(self, model: Any, records: dict[str, Record]) -> None:
        """Write records that do not exist yet."""
        values = list(records.values())
        await self.submit(
            "_add",
            bulk=True,
            collection_id=model.id,
            ids=list(records),
            embeddings=[record.vector for record in values],
            metadatas=_unless_empty([record.metadata for record in values]),
            documents=_unless_empty([record.document for record in values]),
            uris=_unless_empty([record.uri for record in values]),
        )

    async def delete(self, model: Any, ids: Sequence[str]) -> None:
        """Delete records."""
        await self.submit("_delete", collection_id=model.id, ids=list(ids))


def fields_that_differ(left: Record, right: Record, *, space: str) -> list[str]:
    """Return what is not the same of two records: ``"vector"``, ``"document"``, ``"metadata"``, ``"uri"``.

    Args:
        left: One record.
        right: The other.
        space: The collection's distance; with ``"cosine"`` vectors may differ by what Chroma rounds.
    """
    differing = [] if _are_equal(left.vector, right.vector, space) else ["vector"]
    if left.document != right.document:
        differing.append("document")
    if _typed(left.metadata) != _typed(right.metadata):
        differing.append("metadata")
    if left.uri != right.uri:
        differing.append("uri")
    return differing


def _records(found: Any) -> dict[str, Record]:
    if not found["ids"]:
        return {}
    count = len(found["ids"])
    # Chroma holds float32; in Python they come as float64.
    vectors = np.asarray(found["embeddings"], dtype=np.float32)
    columns = [found[name] or [None] * count for name in _FIELDS[1:]]
    return {
        id: Record(vector, document, metadata or None, uri)
        for id, vector, document, metadata, uri in zip(found["ids"], vectors, *columns, strict=True)
    }


def _are_equal(left: Any, right: Any, space: str) -> bool:
    if left.shape != right.shape:
        return False
    if space != "cosine":
        return bool(np.array_equal(left, right))
    return bool(np.max(np.abs(left - right), initial=0.0) <= _ROUNDING * np.linalg.norm(left))


def _typed(metadata: Metadata | None) -> Any:
    """1, 1.0 and True are equal, but not the same to a filter."""
    return None if metadata is None else {key: (type(value), value) for key, value in metadata.items()}


def _unless_empty(values: list[Any]) -> list[Any] | None:
    return values if any(value is not None for value in values) else None
