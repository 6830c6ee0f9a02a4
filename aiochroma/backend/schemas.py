"""How collections are made: the settings of their indexes, as Chroma takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiochroma._types import JsonObject

if TYPE_CHECKING:
    from chromadb.api.types import Schema

__all__ = ["MEMORY_CONFIGURATION", "StoredSchema", "sparse_schema"]

MEMORY_CONFIGURATION: JsonObject = {"hnsw": {"space": "cosine", "sync_threshold": 250}}
"""Of a collection of memories. After so many writes Chroma brings its index on the disk up to date; until then every write, and
the first touch after opening, reads them from the log again. One `remember` took 7.2 ms of CPU at 250 and 9.4 at Chroma's own
1,000; bulk writing the same at both (1.1 ms a record, to 5,000), but beside 100,000 memories half more at 100."""


class StoredSchema:
    """A collection's schema as Chroma stores it. Chroma's class would build the embedding function, which may want keys."""

    def __init__(self, stored: JsonObject) -> None:
        self._stored = stored

    def serialize_to_json(self) -> JsonObject:
        """Return it as Chroma writes it down."""
        return self._stored


def sparse_schema(key: str) -> Schema:
    """Return the schema of a collection with cosine distance and an index of the sparse vectors that stand under a key."""
    from chromadb import Schema, SparseVectorIndexConfig, VectorIndexConfig

    schema = Schema().create_index(VectorIndexConfig(space="cosine", embedding_function=None))
    return schema.create_index(SparseVectorIndexConfig(), key=key)
