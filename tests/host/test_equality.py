"""Every operation through a host: the same result, or the same error, as in this process, in value and type."""

from __future__ import annotations

import os
import uuid

import numpy as np
import pytest
from chromadb.api import AsyncServerAPI
from chromadb.api.types import ReadLevel, Schema
from host_support import same

import aiochroma
from aiochroma.records.spec import CollectionSearch, SearchSpec

IDS = [f"id{number}" for number in range(300)]
VECTORS = np.random.default_rng(0).random((300, 4), dtype=np.float32)
METADATAS = [
    {"number": number, "half": number / 2, "even": number % 2 == 0, "text": f"wort {number} ü😀"}
    for number in range(300)
]
DOCUMENTS = [f"document {number} about topic {number % 7}" for number in range(300)]
ALL = ["documents", "embeddings", "metadatas", "uris"]
PLACE = {"tenant": "default_tenant", "database": "default_database"}


class Function:
    """An embedding function with a configuration, which stays in the client."""

    def __init__(self, width=4):
        self.width = width

    def __call__(self, input):
        return [np.zeros(self.width, dtype=np.float32) for _ in input]

    def embed_query(self, input):
        return self(input)

    @staticmethod
    def name():
        return "function-of-a-test"

    @staticmethod
    def is_legacy():
        return False

    def default_space(self):
        return "cosine"

    def supported_spaces(self):
        return ["cosine", "l2"]

    def get_config(self):
        return {"width": self.width}

    def validate_config(self, config):
        return None

    @staticmethod
    def build_from_config(config):
        return Function(config["width"])


async def fill(client):
    """Make what the calls are about; the same in every database but for the ids of collections."""
    things = await client.create_collection("things", embedding_function=None, metadata={"a": 1, "b": "x"})
    await things.add(ids=IDS, embeddings=VECTORS, metadatas=METADATAS, documents=DOCUMENTS)
    empty = await client.create_collection("empty", embedding_function=None)
    return things.id, empty.id


def calls(things, empty):
    """Return every kind of call: a name, the operation, its arguments."""
    query = {"collection_id": things, **PLACE}
    search = {"query_embeddings": [VECTORS[3]], "queries": ["topic 3"], **PLACE}

    def collections(**how):
        return {"collections": (CollectionSearch(things, "chunks", SearchSpec(**how)),)}

    yield "query", "_query", {**query, "query_embeddings": [VECTORS[0], VECTORS[1]], "n_results": 5}
    yield "query all", "_query", {**query, "query_embeddings": [VECTORS[0]], "include": [*ALL, "distances"]}
    yield "query lists", "_query", {**query, "query_embeddings": [[0.5, 0.25, 0.125, 1.0]], "n_results": 3}
    yield (
        "query where",
        "_query",
        {**query, "query_embeddings": [VECTORS[0]], "where": {"number": {"$in": [1, 2, 3]}}},
    )
    yield (
        "query document",
        "_query",
        {**query, "query_embeddings": [VECTORS[0]], "where_document": {"$contains": "topic 5"}},
    )
    yield "query ids", "_query", {**query, "query_embeddings": [VECTORS[0]], "ids": ["id3", "id9"]}
    yield "query nothing", "_query", {**query, "query_embeddings": [VECTORS[0]], "where": {"number": -1}}
    yield "query wrong width", "_query", {**query, "query_embeddings": [np.zeros(3, dtype=np.float32)]}
    yield "query wrong filter", "_query", {**query, "query_embeddings": [VECTORS[0]], "where": {"$wrong": 1}}
    yield "query empty", "_query", {**query, "collection_id": empty, "query_embeddings": [VECTORS[0]]}
    yield "get", "_get", {**query, "ids": ["id5", "id2", "nobody"]}
    yield "get all", "_get", {**query, "include": ALL}
    yield "get page", "_get", {**query, "limit": 7, "offset": 290}
    yield "get where", "_get", {**query, "where": {"$and": [{"even": True}, {"half": {"$gt": 140.5}}]}}
    yield "get nothing", "_get", {**query, "ids": ["nobody"], "include": ALL}
    yield "get from nowhere", "_get", {**query, "collection_id": uuid.UUID(int=1)}
    yield "peek", "_peek", {**query, "n": 3}
    yield "count", "_count", query
    yield "count level", "_count", {**query, "read_level": ReadLevel.INDEX_AND_WAL}
    yield "add", "_add", {**query, "ids": ["new"], "embeddings": [VECTORS[0]], "documents": ["neu \ud800"]}
    yield "add twice", "_add", {**query, "ids": ["id1"], "embeddings": [VECTORS[0]]}
    yield "update", "_update", {**query, "ids": ["id1"], "metadatas": [{"number": None, "more": 2**53 + 1}]}
    yield "upsert", "_upsert", {**query, "ids": ["id1", "x"], "embeddings": [VECTORS[0], VECTORS[1]]}
    yield (
        "upsert many",
        "_upsert",
        {**query, "ids": IDS, "embeddings": list(VECTORS), "metadatas": METADATAS, "documents": DOCUMENTS},
    )
    yield (
        "upsert wrong width",
        "_upsert",
        {**query, "ids": ["id1"], "embeddings": [np.zeros(3, dtype=np.float32)]},
    )
    yield (
        "upsert too large a number",
        "_upsert",
        {**query, "ids": ["y"], "embeddings": [VECTORS[0]], "metadatas": [{"n": 2**70}]},
    )
    yield "delete", "_delete", {**query, "ids": ["new", "nobody"]}
    yield "delete where", "_delete", {**query, "where": {"number": {"$gte": 250}}}
    yield "delete nothing", "_delete", {**query, "where": {"number": -1}}
    yield "search", "_search", {**query, "searches": []}
    yield "list", "list_collections", PLACE
    yield "list page", "list_collections", {"limit": 5, "offset": 0, **PLACE}
    yield "count collections", "count_collections", PLACE
    yield "count documents", "count_documents", PLACE
    yield "get collection", "get_collection", {"name": "things", **PLACE}
    yield "get no collection", "get_collection", {"name": "nothing", **PLACE}
    yield "get by id", "get_collection_by_id", {"collection_id": things, **PLACE}
    yield "create", "create_collection", {"name": "created", "metadata": {"k": 1.5}, **PLACE}
    yield "create again", "create_collection", {"name": "created", **PLACE}
    yield (
        "create configured",
        "create_collection",
        {"name": "configured", "configuration": {"hnsw": {"space": "cosine", "ef_search": 50}}, **PLACE},
    )
    yield (
        "create with function",
        "create_collection",
        {"name": "function", "configuration": {"embedding_function": Function(4)}, **PLACE},
    )
    yield (
        "create with function and space",
        "create_collection",
        {
            "name": "function2",
            "configuration": {"hnsw": {"ef_search": 7}, "embedding_function": Function(5)},
            "metadata": {"m": 1},
            **PLACE,
        },
    )
    yield (
        "create with both",
        "create_collection",
        {"name": "both", "configuration": {"hnsw": {}, "spann": {}}, **PLACE},
    )
    yield "create with schema", "create_collection", {"name": "schema", "schema": Schema(), **PLACE}
    yield "get function", "get_collection", {"name": "function", **PLACE}
    yield "create with bad name", "create_collection", {"name": "?", **PLACE}
    yield "get or create", "get_or_create_collection", {"name": "created", **PLACE}
    yield "modify", "_modify", {"id": empty, "new_name": "renamed", "new_metadata": {"z": True}, **PLACE}
    yield (
        "modify configuration",
        "_modify",
        {"id": empty, "new_configuration": {"hnsw": {"ef_search": 33}}, **PLACE},
    )
    yield "fork", "_fork", {**query, "new_name": "forked"}
    yield "fork count", "_fork_count", query
    yield "indexing", "_get_indexing_status", query
    yield "delete collection", "delete_collection", {"name": "renamed", **PLACE}
    yield "delete no collection", "delete_collection", {"name": "renamed", **PLACE}
    yield (
        "attach",
        "attach_function",
        {"function_id": "f", "name": "n", "input_collection_id": things, "output_collection": "o", **PLACE},
    )
    yield "detach", "detach_function", {"name": "n", "input_collection_id": things, **PLACE}
    yield "attached", "get_attached_function", {"name": "n", "input_collection_id": things, **PLACE}
    yield "tenant", "create_tenant", {"name": "tenant2"}
    yield "get tenant", "get_tenant", {"name": "tenant2"}
    yield "no tenant", "get_tenant", {"name": "nobody"}
    yield "database", "create_database", {"name": "database2", "tenant": "tenant2"}
    yield "get database", "get_database", {"name": "default_database", "tenant": "default_tenant"}
    yield "databases", "list_databases", {"tenant": "tenant2"}
    yield "delete database", "delete_database", {"name": "database2", "tenant": "tenant2"}
    yield "identity", "get_user_identity", {}
    yield "version", "get_version", {}
    yield "batch", "get_max_batch_size", {}
    yield "search memories", "search_memories", {**search, **collections(k=4, window=1)}
    yield "search by words", "search_memories", {**search, **collections(k=3, mode="text")}
    yield (
        "search by meaning",
        "search_memories",
        {**search, **collections(k=3, mode="vector", diversity=0.3)},
    )
    yield "missing vectors", "missing_vectors", {}
    yield "an argument too many", "_count", {**query, "wrong": 1}
    yield "what cannot travel", "get_tenant", {"name": {1, 2}}
    yield "reset", "reset", {}


_NOT_EQUAL = {"what cannot travel"}
"""Its error speaks of the other process here, and of Chroma's binding there; both are a ``TypeError``."""


async def outcome(client, operation, arguments):
    try:
        return await client.session.submit(operation, **arguments), None
    except Exception as error:
        return None, error


def without_ids(value, ids):
    """Replace the ids of collections, which are drawn at random, by what they are of."""
    if isinstance(value, uuid.UUID):
        return ids.setdefault(value, uuid.UUID(int=len(ids)))
    if type(value).__name__ == "Collection":
        return {"type": type(value), **{name: without_ids(each, ids) for name, each in dict(value).items()}}
    if isinstance(value, list) and value and hasattr(value[0], "configuration_json"):
        value = sorted(value, key=lambda each: each.name)  # Chroma lists them by their ids.
    if isinstance(value, list):
        return [without_ids(each, ids) for each in value]
    if isinstance(value, dict):
        return {key: without_ids(each, ids) for key, each in value.items()}
    return value


def text_of(error, ids):
    text = str(error)
    for position, each in enumerate(ids):
        text = text.replace(str(each), f"<{position}>")
    return text


@pytest.mark.timeout(300)
async def test_every_operation_is_the_same_through_a_host(opening, tmp_path):
    """Values, types, writable arrays; of errors class, text, fields and the class of their cause."""
    async with aiochroma.AsyncPersistentClient(tmp_path / "here", process="this") as here, opening() as there:
        mine, theirs = await fill(here), await fill(there)
        ids_here, ids_there = {}, {}
        for each in mine:
            without_ids(each, ids_here)
        for each in theirs:
            without_ids(each, ids_there)
        seen = set()
        for one, other in zip(calls(*mine), calls(*theirs), strict=True):
            name, operation, arguments = one
            seen.add(operation)
            expected, error = await outcome(here, operation, arguments)
            result, raised = await outcome(there, operation, other[2])
            assert type(raised) is type(error), (name, raised, error)
            if name not in _NOT_EQUAL:
                assert text_of(raised, ids_there) == text_of(error, ids_here), name
            assert type(getattr(raised, "__cause__", None)) is type(getattr(error, "__cause__", None)), name
            assert same(without_ids(result, ids_there), without_ids(expected, ids_here)), (
                name,
                result,
                expected,
            )
        assert set(AsyncServerAPI.__abstractmethods__) - seen <= {"get_settings", "heartbeat"}


async def test_settings_and_health_are_the_hosts(opening, hosts, path):
    """What a client says of its database is what the host said of it; it names the host."""
    async with opening() as client:
        info = client.session.connection.describe()
        assert info.mode == "shared"
        assert info.host["pid"] == hosts.pid(path) != os.getpid()
        assert client.get_settings().is_persistent
        assert client.recovery is not None
        assert client.recovery.collections == ()
        health = await client.health()
        assert health.status == "ok"
        assert health.owner["pid"] == hosts.pid(path)
