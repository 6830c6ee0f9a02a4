"""One side of a migration: collections, made alike, and their records, read in pages and compared.

Importing this module imports chromadb and numpy; that happens after a client was opened.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from chromadb.base_types import SparseVector
from chromadb.errors import ChromaError, InternalError, InvalidArgumentError, NotFoundError
from chromadb.utils.embedding_functions import known_embedding_functions

from aiochroma._errors import MigrationError, shown
from aiochroma._types import JsonObject, Metadata, Vector
from aiochroma._waiting import off_loop
from aiochroma.backend.schemas import StoredSchema
from aiochroma.disk.schema import EMBEDDER_KEY
from aiochroma.records.record import SPARSE, SPARSE_EMBEDDER, without_sparse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from chromadb.types import Collection

    from aiochroma.client.client import AsyncClient

__all__ = [
    "PAGE",
    "FullRecord",
    "Model",
    "Side",
    "fields_that_differ",
    "make_like",
    "space_of",
    "unlike",
    "unlike_to_merge",
]

Model: TypeAlias = "Collection"
"""Chroma's description of a collection."""

T = TypeVar("T")

PAGE = 256
"""Records in one page; both sides of one page are all that is held in memory."""

_FIELDS = ["embeddings", "documents", "metadatas", "uris"]
_ROUNDING = 2e-6
"""With the cosine distance Chroma keeps direction and length apart; putting them together again rounds the last digit."""


class FullRecord(NamedTuple):
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
    """A database of one of the two sides.

    Args:
        client: An open client of that side.
        tenant: Chroma's tenant.
        database: Chroma's database.
        sparse: Whether sparse vectors are read. A directory has none; those of memories are made of the texts, so without them
            nothing is lost.

    Attributes:
        left_out: The collections whose sparse vectors are left out.
    """

    def __init__(self, client: AsyncClient, tenant: str, database: str, *, sparse: bool = True) -> None:
        self._sparse = sparse
        self.left_out: set[str] = set()
        self.tenant = tenant
        self.database = database
        # Below the client: its collections would embed, check again, and want embedding functions.
        self._session = client.session
        self._admin = client.admin

    @property
    def where(self) -> JsonObject:
        """The arguments that name the database."""
        return {"tenant": self.tenant, "database": self.database}

    async def submit(self, operation: str, **arguments: Any) -> Any:
        """Carry out one operation in this database."""
        return await self._session.submit(operation, **arguments, **self.where)

    async def models(self) -> dict[str, Model]:
        """Return Chroma's descriptions of the collections by name, sorted; Chroma's order says nothing."""
        found = await self.submit("list_collections", limit=None, offset=None)
        if not self._sparse:
            found = [self._without_sparse(model) for model in found]
        return {model.name: model for model in sorted(found, key=lambda model: str(model.name))}

    async def models_if_any(self) -> dict[str, Model]:
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

    async def count(self, model: Model) -> int:
        """Return how many records a collection has."""
        return int(await self.submit("_count", collection_id=model.id))

    async def pages(self, model: Model) -> AsyncIterator[dict[str, FullRecord]]:
        """Yield the records of a collection, a page at a time, in the order in which they were first written."""
        offset = 0
        while True:
            found = await self.submit(
                "_get", collection_id=model.id, include=_FIELDS, limit=PAGE, offset=offset
            )
            if not found["ids"]:
                return
            yield self._records(found)
            offset += len(found["ids"])

    async def records(self, model: Model, ids: Sequence[str]) -> dict[str, FullRecord]:
        """Return those of the records that exist."""
        found = await self.submit("_get", collection_id=model.id, ids=list(ids), include=_FIELDS)
        return self._records(found)

    async def add(self, model: Model, records: dict[str, FullRecord]) -> None:
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

    def _without_sparse(self, model: Model) -> Model:
        """Return a description of a memory's collection without the index of its sparse vectors."""
        schema, metadata = model.serialized_schema or {}, model.metadata or {}
        if SPARSE not in (schema.get("keys") or {}) and SPARSE_EMBEDDER not in metadata:
            return model
        self.left_out.add(model.name)
        keys = {name: entry for name, entry in (schema.get("keys") or {}).items() if name != SPARSE}
        return model.model_copy(
            update={
                "serialized_schema": {**schema, "keys": keys} if schema else None,
                "metadata": {name: value for name, value in metadata.items() if name != SPARSE_EMBEDDER},
            }
        )

    def _records(self, found: JsonObject) -> dict[str, FullRecord]:
        records = _records(found)
        if self._sparse:
            return records
        own = {
            id: one._replace(metadata={**(without_sparse(one.metadata) or {})} or None)
            for id, one in records.items()
        }
        for id, record in own.items():
            for key, value in (record.metadata or {}).items():
                if isinstance(value, SparseVector):
                    raise MigrationError(
                        f"The record {shown(id)} has a sparse vector under {shown(key)}, and a directory has none. Take it away "
                        "at the source, or copy to a server that has them; nothing of this record was copied."
                    )
        return own

    async def delete(self, model: Model, ids: Sequence[str]) -> None:
        """Delete records."""
        await self.submit("_delete", collection_id=model.id, ids=list(ids))


def fields_that_differ(left: FullRecord, right: FullRecord, *, space: str) -> list[str]:
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


def _records(found: JsonObject) -> dict[str, FullRecord]:
    if not found["ids"]:
        return {}
    count = len(found["ids"])
    # Chroma holds float32; in Python they come as float64.
    vectors = np.asarray(found["embeddings"], dtype=np.float32)
    columns = [found[name] or [None] * count for name in _FIELDS[1:]]
    return {
        id: FullRecord(vector, document, metadata or None, uri)
        for id, vector, document, metadata, uri in zip(found["ids"], vectors, *columns, strict=True)
    }


def _are_equal(left: Vector, right: Vector, space: str) -> bool:
    if left.shape != right.shape:
        return False
    if space != "cosine":
        return bool(np.array_equal(left, right))
    return bool(np.max(np.abs(left - right), initial=0.0) <= _ROUNDING * np.linalg.norm(left))


def _typed(metadata: Metadata | None) -> dict[str, tuple[type, object]] | None:
    """1, 1.0 and True are equal, but not the same to a filter."""
    return None if metadata is None else {key: (type(value), value) for key, value in metadata.items()}


def _unless_empty(values: list[T]) -> list[T] | None:
    return values if any(value is not None for value in values) else None


_MACHINES_OWN = frozenset({"num_threads"})
"""Set by Chroma to what the machine has."""


async def make_like(model: Model, target: Side) -> Model:
    """Make an empty collection with the name, metadata and configuration of another.

    Args:
        model: Chroma's description of the collection to imitate.
        target: The store in which it is made.

    Returns:
        Chroma's description of what was made. It may differ still: see :func:`unlike`.
    """
    if model.serialized_schema is not None:
        try:
            made = await _create(model, target, schema=StoredSchema(model.serialized_schema))
        except (InternalError, InvalidArgumentError):
            # Of another version than the source. If the schema was not the reason, the error comes again.
            made = None
        if made is not None:
            if not unlike(model, made):
                return made
            # Without a word, a server that knows no schemas leaves it out, and Chroma 1.5 the embedding function of a schema
            # that is the default otherwise.
            await target.submit("delete_collection", name=model.name)
    configuration = await off_loop(lambda: _configuration(model.configuration_json))
    return await _create(model, target, configuration=configuration)


def space_of(model: Model) -> str:
    """Return the distance of a collection."""
    configuration = model.configuration_json or {}
    return str(((configuration.get("hnsw") or configuration.get("spann")) or {}).get("space", "l2"))


def unlike(model: Model, made: Model) -> list[str]:
    """Say in what a collection differs from its source, records apart; one sentence each."""
    found = [
        f"its configuration {name!r} is {_shown(there)} and not {_shown(here)}"
        for name, here, there in _differing(model.configuration_json, made.configuration_json)
    ]
    here, there = _portable(model.serialized_schema), _portable(made.serialized_schema)
    if not found and here and there:
        # Chroma adds metadata keys as it meets them, so there may be more of them.
        there["keys"] = {name: entry for name, entry in there["keys"].items() if name in here["keys"]}
    if not found and here and there and here != there:
        found.append("its schema is another")
    if (model.metadata or {}) != (made.metadata or {}):
        found.append(f"its metadata is {_shown(made.metadata)} and not {_shown(model.metadata)}")
    return found


def unlike_to_merge(model: Model, there: Model) -> list[str]:
    """Say why the records of one collection do not belong into another; one sentence each."""
    found = []
    if space_of(model) != space_of(there):
        found.append(f"its distance is {space_of(there)!r} and not {space_of(model)!r}")
    if None not in (model.dimension, there.dimension) and model.dimension != there.dimension:
        found.append(f"its vectors have {there.dimension} dimensions and not {model.dimension}")
    for what, here, other in (
        ("embedding function", _function(model), _function(there)),
        ("embedder", (model.metadata or {}).get(EMBEDDER_KEY), (there.metadata or {}).get(EMBEDDER_KEY)),
    ):
        if here != other:
            found.append(f"its {what} is {_shown(other)} and not {_shown(here)}")
    return found


async def _create(
    model: Model,
    target: Side,
    *,
    schema: StoredSchema | None = None,
    configuration: JsonObject | None = None,
) -> Model:
    metadata = model.metadata or None
    # Chroma reads settings of the index from such metadata, and may prefer them to those that are in force at the source.
    late = metadata is not None and any(key.startswith("hnsw:") for key in metadata)
    made: Model = await target.submit(
        "create_collection",
        name=model.name,
        schema=schema,
        configuration=configuration,
        metadata=None if late else metadata,
        get_or_create=False,
    )
    if not late:
        return made
    await target.submit("_modify", id=made.id, new_metadata=metadata)
    found: Model = await target.submit("get_collection", name=model.name)
    return found


def _configuration(stored: Metadata) -> JsonObject:
    """Return a stored configuration as what Chroma makes collections with, for servers that know no schemas."""
    configuration: JsonObject = {
        name: {key: value for key, value in stored[name].items() if value is not None}
        for name in ("hnsw", "spann")
        if stored.get(name)
    }
    function = stored.get("embedding_function") or {}
    if function.get("name") in known_embedding_functions:
        try:
            configuration["embedding_function"] = known_embedding_functions[
                function["name"]
            ].build_from_config(function.get("config") or {})
        except (ChromaError, ValueError, ImportError):
            # Its package or key is not at hand here. The comparison afterwards says that the configuration is another.
            return configuration
    return configuration


def _differing(here: JsonObject | None, there: object, path: str = "") -> list[tuple[str, Any, Any]]:
    """Return what a configuration says otherwise than another; what only the other says is its version's default."""
    found: list[tuple[str, object, object]] = []
    other: JsonObject = there if isinstance(there, dict) else {}
    for name, value in (here or {}).items():
        full_name = f"{path}{name}"
        if isinstance(value, dict) and name != "embedding_function":
            found.extend(_differing(value, other.get(name), f"{full_name}."))
        elif name == "embedding_function":
            if _named(value) != _named(other.get(name)):
                found.append((full_name, value, other.get(name)))
        elif value is not None and value != other.get(name):
            found.append((full_name, value, other.get(name)))
    return found


def _portable(schema: object) -> Any:
    """Return of a schema what does not depend on the machine, nor on how it is said that there is no embedding function."""
    if not isinstance(schema, dict):
        return schema
    return {
        name: _portable(value)
        for name, value in schema.items()
        if name not in _MACHINES_OWN and (name != "embedding_function" or _named(value))
    }


def _function(model: Model) -> object:
    return _named((model.configuration_json or {}).get("embedding_function"))


def _named(function: object) -> object:
    """Chroma has three ways to say that it knows of no function: nothing, "legacy" and "unknown"."""
    return function if isinstance(function, dict) and function.get("name") else None


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
