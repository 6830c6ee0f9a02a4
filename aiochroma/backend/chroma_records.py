"""Chroma's calls on records, with types: what ``ServerAPI`` gives as a dictionary of anything is rows here.

Chroma names these calls with an underscore, and nothing public does the same: this is the one module that may call them so.
What Chroma does not take in one call is asked in several: more ids or values than SQLite takes variables, ids that are gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from aiochroma._types import Metadata, Where
from aiochroma.core.operations import Result
from aiochroma.core.request import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    import numpy as np
    import numpy.typing as npt
    from chromadb.api import ServerAPI
    from chromadb.config import System
    from typing_extensions import Unpack

    from aiochroma.core.request import Request

__all__ = ["ChromaRecords", "Database", "Nearest", "Rows", "database_of", "read_records", "server_api"]


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
        rows: Rows = self._api._get(  # noqa: SLF001 - see the module
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
        nearest: Nearest = self._api._query(  # noqa: SLF001 - see the module
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
        counted: int = self._api._count(collection, **database)  # noqa: SLF001 - see the module
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
        self._api._upsert(collection, ids, embeddings, metadatas, documents, uris, **database)  # noqa: SLF001 - see the module

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
        self._api._update(collection, ids, embeddings, metadatas, documents, uris, **database)  # noqa: SLF001 - see the module

    def delete(self, collection: UUID | str, ids: list[str], **database: Unpack[Database]) -> None:
        """Delete records."""
        self._api._delete(collection, ids=ids, **database)  # noqa: SLF001 - see the module


_MOST_VARIABLES = 30_000
"""SQLite takes 32,766 variables in one statement; Chroma's statement has a few of its own."""

_ID_UNKNOWN = "Error finding id"


def read_records(api: object, request: Request) -> Any:
    """Carry out a ``get`` or a ``query`` and return Chroma's result, with vectors as arrays.

    A ``get`` with very many ids, or with a filter that names very many values, is asked in several. A ``query`` within ids of
    which some do not exist searches within the others; Chroma refuses it.
    """
    method: Callable[..., Any] = getattr(api, request.operation)
    if request.row.result is Result.RECORDS:
        arguments = dict(request.arguments)
        parts = _pages(method, arguments) or [method(**part) for part in _takeable(arguments)]
        for part in parts:
            if part.get("embeddings") is not None:
                part["embeddings"] = _array(part["embeddings"])
        return joined(request, parts)
    try:
        result = method(**request.arguments)
    except Exception as error:
        if _ID_UNKNOWN not in str(error) or not request.arguments.get("ids"):
            raise
        result = _query_within(api, method, dict(request.arguments))
        if result is None:
            raise
    if result.get("embeddings") is not None:
        result["embeddings"] = [_array(rows) for rows in result["embeddings"]]
    return result


def _takeable(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the arguments of the calls whose results together are those of one that is too large."""
    ids, where = arguments.get("ids"), arguments.get("where")
    if ids is not None and len(ids) > _MOST_VARIABLES:
        for start in range(0, len(ids), _MOST_VARIABLES):
            yield {**arguments, "ids": ids[start : start + _MOST_VARIABLES]}
    else:
        for part in _takeable_filters(where):
            yield {**arguments, "where": part}


def _pages(method: Callable[..., Any], arguments: dict[str, Any]) -> list[Any]:
    """Return what lies within limit and offset of a call that is too large; empty for any other call.

    The ids come first, part by part; then the records of those within the limits.
    """
    limit, offset = arguments.get("limit"), arguments.get("offset") or 0
    unlimited = {**arguments, "limit": None, "offset": None}
    parts = list(_takeable(unlimited))
    if len(parts) == 1 or (limit is None and not offset):
        return []
    ids = [id for part in parts for id in method(**{**part, "include": []})["ids"]]
    chosen = ids[offset : None if limit is None else offset + limit]
    if not chosen:
        return [method(**{**parts[0], "limit": 0})]
    found = {**unlimited, "ids": chosen, "where": None, "where_document": None}
    return [method(**part) for part in _takeable(found)]


def _takeable_filters(where: Any) -> Iterator[Any]:
    """Return filters that match one after the other what a filter with a very long ``$in`` matches."""
    found = _long_list(where) if where else None
    if found is None:
        yield where
        return
    key, values, rest = found
    values = list(dict.fromkeys(values))
    for start in range(0, len(values), _MOST_VARIABLES):
        part = {key: {"$in": values[start : start + _MOST_VARIABLES]}}
        yield {"$and": [*rest, part]} if rest else part


def _long_list(where: Where) -> tuple[str, Any, list[Any]] | None:
    """Return key and values of a condition that names too many values, and the conditions beside it."""
    if len(where) != 1:
        return None
    ((key, condition),) = where.items()
    if key == "$and":
        for number, entry in enumerate(condition):
            found = _long_list(entry)
            if found is not None and not found[2]:
                return found[0], found[1], [*condition[:number], *condition[number + 1 :]]
        return None
    values = condition.get("$in") if isinstance(condition, dict) else None
    return (key, values, []) if values is not None and len(values) > _MOST_VARIABLES else None


def _query_within(api: Any, method: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Search within those of the ids that exist; None where all do, so that the error has another reason."""
    where = database_of(arguments)
    ids = list(arguments["ids"])
    known: set[str] = set()
    for start in range(0, len(ids), _MOST_VARIABLES):
        part = ids[start : start + _MOST_VARIABLES]
        known.update(ChromaRecords(api).get(arguments["collection_id"], ids=part, include=[], **where)["ids"])
    if known.issuperset(ids):
        return None
    arguments["ids"] = [id for id in ids if id in known]
    if arguments["ids"]:
        return method(**arguments)
    included = list(arguments.get("include") or ())
    fields = ("embeddings", "documents", "uris", "data", "metadatas", "distances")
    return {
        "ids": [[] for _ in arguments["query_embeddings"]],
        **{
            name: [[] for _ in arguments["query_embeddings"]] if name in included else None for name in fields
        },
        "included": included,
    }


def _array(rows: object) -> Any:
    """Turn vectors into a float64 array, as Chroma's own conversion does: here, page by page, and not on the event loop."""
    import numpy as np

    return np.array(rows)
