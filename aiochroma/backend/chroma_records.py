"""Chroma's calls on records, with types: what ``ServerAPI`` gives as a dictionary of anything is rows here.

The names of these calls begin with an underscore, and nothing public does the same: they are called by name, as all operations.
What Chroma does not take in one call is asked in several: more ids or values than SQLite takes variables, ids that are gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict
from uuid import UUID
from weakref import WeakKeyDictionary

from aiochroma._errors import InvalidInputError
from aiochroma._types import JsonObject, Metadata, MetadataView, Where
from aiochroma.backend.limits import check_conditions
from aiochroma.core.operations import Result, operation_of
from aiochroma.core.request import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    from chromadb.api import ServerAPI
    from chromadb.config import System
    from chromadb.types import Collection
    from typing_extensions import Unpack

    from aiochroma.core.request import Request

__all__ = [
    "ChromaRecords",
    "Database",
    "Nearest",
    "Rows",
    "database_of",
    "read_records",
    "refuse_too_large",
    "server_api",
]


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


_LOADED: WeakKeyDictionary[ServerAPI, set[str]] = WeakKeyDictionary()
"""The collections that each Chroma of this process has loaded. A server's are none of ours: to read one takes a round trip."""


def in_this_process(api: ServerAPI) -> ServerAPI:
    """Note that Chroma runs in this process, which it stops while it loads a collection inside of anything but a read."""
    _LOADED[api] = set()
    return api


class ChromaRecords:
    """Chroma's calls on the records of its collections, for the thread that calls Chroma.

    Args:
        api: Chroma, open.
    """

    def __init__(self, api: ServerAPI) -> None:
        self._api: Any = api
        self._loaded = None if api is None else _LOADED.get(api)

    def _call(self, operation: str, collection: UUID | str, *values: Any, **arguments: Any) -> Any:
        row = operation_of(operation)
        if not row.reads_first:
            self.load(collection, **database_of(arguments))
        result = getattr(self._api, operation)(collection, *values, **arguments)
        if row.reads_first and self._loaded is not None:
            self._loaded.add(str(collection))
        return result

    def load(self, collection: UUID | str, **database: Unpack[Database]) -> None:
        """Read a collection before it is written or counted for the first time.

        Chroma loads its index and replays its log on first use. Inside of ``get`` it does so with the interpreter released (2 ms
        of stalled event loop against 260 ms inside of ``count``, for 100,000 records), and it avoids applying the log a second
        time at the next write.
        """
        if self._loaded is not None and str(collection) not in self._loaded:
            self.get(collection, limit=1, include=[], **database)

    def dropped(self, collection: UUID | str | None = None) -> None:
        """Note that a collection is gone, or that all are."""
        if self._loaded is not None:
            self._loaded.clear() if collection is None else self._loaded.discard(str(collection))

    def collection_id(self, name: str, **database: Unpack[Database]) -> UUID:
        """Return the id of a collection.

        Raises:
            chromadb.errors.NotFoundError: There is no such collection.
        """
        found: UUID = self._api.get_collection(name=name, **database).id
        return found

    def collections(self, **database: Unpack[Database]) -> Sequence[Collection]:
        """Return all collections of a database."""
        found: Sequence[Collection] = self._api.list_collections(**database)
        return found

    def metadata_of(self, collection: UUID | str, **database: Unpack[Database]) -> MetadataView:
        """Return the metadata of a collection.

        Raises:
            chromadb.errors.NotFoundError: There is no such collection.
        """
        found: MetadataView | None = self._api.get_collection_by_id(
            UUID(str(collection)), **database
        ).metadata
        return found or {}

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
        if where:
            refuse_too_large({"ids": ids, "where": where})
        rows: Rows = self._call(
            "_get",
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
        refuse_too_large({"where": where, "where_document": where_document})
        nearest: Nearest = self._call(
            "_query",
            collection,
            list(vectors),
            n_results=n_results,
            where=dict(where) if where else None,
            where_document=dict(where_document) if where_document else None,
            include=list(include),
            **database,
        )
        return nearest

    def ranked(
        self,
        collection: UUID | str,
        key: str,
        sparse: tuple[Sequence[int], Sequence[float]],
        *,
        limit: int,
        where: Where | None = None,
        **database: Unpack[Database],
    ) -> list[tuple[str, str | None, Metadata | None, npt.NDArray[np.float32]]]:
        """Return the records whose sparse vectors, under a key, are nearest to one: id, document, metadata and dense vector."""
        from chromadb import K, Knn, Search
        from chromadb.base_types import SparseVector

        refuse_too_large({"where": where})
        rank = Knn(query=SparseVector(list(sparse[0]), list(sparse[1])), key=key, limit=limit)
        search = Search(where=dict(where) if where else None, rank=rank, limit=limit)
        found = self._call(
            "_search", collection, [search.select(K.DOCUMENT, K.METADATA, K.EMBEDDING)], **database
        )
        columns = [found[name][0] for name in ("ids", "documents", "metadatas", "embeddings")]
        return list(zip(*columns, strict=True))

    def count(self, collection: UUID | str, **database: Unpack[Database]) -> int:
        """Return how many records a collection has."""
        counted: int = self._call("_count", collection, **database)
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
        self._call("_upsert", collection, ids, embeddings, metadatas, documents, uris, **database)

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
        self._call("_update", collection, ids, embeddings, metadatas, documents, uris, **database)

    def delete(self, collection: UUID | str, ids: list[str], **database: Unpack[Database]) -> None:
        """Delete records."""
        self._call("_delete", collection, ids=ids, **database)


_MOST_VARIABLES = 28_000
"""SQLite takes 32,766 variables in one statement: an id or a text is one, a number two; conditions have a few of their own."""

_ID_UNKNOWN = "Error finding id"


def read_records(api: ServerAPI, request: Request) -> Any:
    """Carry out a ``get`` or a ``query`` and return Chroma's result, with vectors as arrays.

    A ``get`` with very many ids, or with a filter that names very many values, is asked in several. A ``query`` within ids of
    which some do not exist searches within the others, where Chroma refuses it; if none exists, the error is like Chroma's. The
    records of very many hits are read by their ids.
    """
    method: Callable[..., Any] = getattr(api, request.operation)
    if request.row.result is Result.RECORDS:
        arguments = dict(request.arguments)
        parts = _pages(method, arguments) or [_called(method, part) for part in _takeable(arguments)]
        for part in parts:
            if part.get("embeddings") is not None:
                part["embeddings"] = _array(part["embeddings"])
        return joined(request, parts)
    result = None
    if len(request.arguments.get("ids") or ()) > _MOST_VARIABLES:
        result = _query_within(api, method, dict(request.arguments))
    try:
        result = result or _queried(api, method, dict(request.arguments))
    except Exception as error:
        if _ID_UNKNOWN not in str(error) or not request.arguments.get("ids"):
            raise
        result = _query_within(api, method, dict(request.arguments))
        if result is None:
            raise
    if result.get("embeddings") is not None:
        result["embeddings"] = [_array(rows) for rows in result["embeddings"]]
    return result


def refuse_too_large(arguments: Mapping[str, Any]) -> None:
    """Refuse a call whose filter and ids are more than SQLite takes in one statement.

    Raises:
        InvalidInputError: Says how many there are, and how many there may be.
    """
    filters = [arguments.get("where"), arguments.get("where_document")]
    check_conditions(*filters)
    values = sum(map(_variables_in, filters)) + len(arguments.get("ids") or ())
    if values > _MOST_VARIABLES:
        raise InvalidInputError(
            f"The filter and the ids name too many values: {values}, where a number counts twice, and Chroma takes "
            f"{_MOST_VARIABLES} here. Ask in several calls."
        )


def _variables_in(where: object) -> int:
    """Return how many variables the values of a filter are."""
    count, left = 0, [where]
    while left:
        found = left.pop()
        if isinstance(found, (dict, list)):
            left.extend(found.values() if isinstance(found, dict) else found)
        elif found is not None:
            count += 2 if type(found) in {int, float} else 1
    return count


def _takeable(arguments: JsonObject) -> Iterator[JsonObject]:
    """Return the arguments of the calls whose results together are those of one that is too large."""
    ids, where = list(arguments.get("ids") or ()), arguments.get("where")
    found = _long_list(where) if where else None
    fixed = _variables_in(arguments.get("where_document")) + _variables_in(where)
    if len(ids) + fixed <= _MOST_VARIABLES:
        yield arguments
        return
    parts = [where]
    if found is not None:
        fixed -= _variables_in(found[1])
        parts = list(_split(*found, (_MOST_VARIABLES - fixed) // (4 if ids else 2)))
        fixed = _MOST_VARIABLES // 2 if ids else 0
    step = max(1, _MOST_VARIABLES - fixed)
    for start in range(0, len(ids), step) if ids else (0,):
        for part in parts:
            some = {**arguments, "where": part}
            yield {**some, "ids": ids[start : start + step]} if ids else some


def _pages(method: Callable[..., Any], arguments: JsonObject) -> list[Any]:
    """Return what lies within limit and offset of a call that is too large; empty for any other call.

    The ids come first, part by part; then the records of those within the limits.
    """
    limit, offset = arguments.get("limit"), arguments.get("offset") or 0
    unlimited = {**arguments, "limit": None, "offset": None}
    parts = list(_takeable(unlimited))
    if len(parts) == 1 or (limit is None and not offset):
        return []
    ids = [id for part in parts for id in _called(method, {**part, "include": []})["ids"]]
    chosen = ids[offset : None if limit is None else offset + limit]
    if not chosen:
        return [_called(method, {**parts[0], "limit": 0})]
    found = {**unlimited, "ids": chosen, "where": None, "where_document": None}
    return [_called(method, part) for part in _takeable(found)]


def _called(method: Callable[..., Any], arguments: JsonObject) -> Any:
    refuse_too_large(arguments)
    return method(**arguments)


def _split(key: str, values: list[Any], rest: list[Any], step: int) -> Iterator[Where]:
    """Return filters that match one after the other what a filter with a very long ``$in`` matches."""
    values = list(dict.fromkeys(values))
    for start in range(0, len(values), max(1, step)):
        part = {key: {"$in": values[start : start + max(1, step)]}}
        yield {"$and": [*rest, part]} if rest else part


def _long_list(where: Where) -> tuple[str, list[Any], list[Any]] | None:
    """Return key and values of the condition that names most values, and the conditions beside it; None without an ``$in``."""
    if len(where) != 1:
        return None
    ((key, condition),) = where.items()
    if key != "$and":
        values = condition.get("$in") if isinstance(condition, dict) else None
        return None if values is None else (key, values, [])
    found = [(number, _long_list(entry)) for number, entry in enumerate(condition)]
    plain = [(number, one) for number, one in found if one is not None and not one[2]]
    if not plain:
        return None
    number, (key, values, _) = max(plain, key=lambda one: _variables_in(one[1][1]))
    return key, values, [*condition[:number], *condition[number + 1 :]]


def _query_within(api: ServerAPI, method: Callable[..., Any], arguments: JsonObject) -> Any:
    """Search within those of the ids that exist; None where all do, so that the error has another reason.

    Raises:
        chromadb.errors.InvalidArgumentError: None of them exists.
    """
    where = database_of(arguments)
    ids = list(arguments["ids"])
    known: set[str] = set()
    for start in range(0, len(ids), _MOST_VARIABLES):
        part = ids[start : start + _MOST_VARIABLES]
        known.update(ChromaRecords(api).get(arguments["collection_id"], ids=part, include=[], **where)["ids"])
    if known.issuperset(ids):
        return None
    arguments["ids"] = [id for id in ids if id in known]
    if not arguments["ids"]:
        from chromadb.errors import InvalidArgumentError

        # Chroma raises this for every id that is missing; with its own class it would pass for a damaged index.
        raise InvalidArgumentError(
            f"Error finding id {ids[0]}: the collection has none of the {len(ids)} ids that the query is limited to"
        )
    return _queried(api, method, arguments)


def _queried(api: ServerAPI, method: Callable[..., Any], arguments: JsonObject) -> Any:
    """Search; where there may be more hits than SQLite takes variables, the records are read by their ids after it.

    Chroma names all hits of a call in one statement, but for ids and distances, which it has already.
    """
    include = list(arguments["include"])
    fields = [name for name in include if name in {"documents", "metadatas", "embeddings", "uris"}]
    if len(arguments["query_embeddings"]) * arguments["n_results"] <= _MOST_VARIABLES or not fields:
        return _called(method, arguments)
    result = _called(method, {**arguments, "include": [name for name in include if name not in fields]})
    ids = list(dict.fromkeys(id for row in result["ids"] for id in row))
    found: dict[str, JsonObject] = {}
    for start in range(0, len(ids), _MOST_VARIABLES):
        part = ids[start : start + _MOST_VARIABLES]
        where = database_of(arguments)
        rows: Any = ChromaRecords(api).get(arguments["collection_id"], ids=part, include=fields, **where)
        columns = zip(*(rows[name] for name in fields), strict=True)
        found.update(
            zip(rows["ids"], (dict(zip(fields, values, strict=True)) for values in columns), strict=True)
        )
    for name in fields:
        # On a server another client may have deleted one meanwhile.
        result[name] = [[found.get(id, {}).get(name) for id in row] for row in result["ids"]]
    result["included"] = include
    return result


def _array(rows: object) -> Any:
    """Turn vectors into a float64 array, as Chroma's own conversion does: here, page by page, and not on the event loop."""
    import numpy as np

    return np.array(rows)
