"""Records whose vectors were lost: which they are, and how they get vectors again. Runs on the DB thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aiochroma._logging import get_logger
from aiochroma._types import CollectionId, JsonObject, Vector
from aiochroma.backend.chroma_records import ChromaRecords, Database
from aiochroma.core.operations import Effect
from aiochroma.disk.rebuilds import begin_rebuild, end_rebuild

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chromadb.api import ServerAPI

    from aiochroma.backend.preparation import Prepared
    from aiochroma.core.request import Request

__all__ = ["MissingVectors"]

log = get_logger("aiochroma.backend")

_SLICE = 16
_PAUSE_SECONDS = 0.005
"""Writing holds the interpreter; between two slices others get it."""


class MissingVectors:
    """Knows the records without a vector, and writes vectors for them.

    Args:
        api: Chroma, open.
        prepared: What was found before it was opened.
    """

    def __init__(self, api: ServerAPI, prepared: Prepared) -> None:
        self._api = ChromaRecords(api)
        self._directory = prepared.preflight.directory
        self._places: dict[str, Database] = {
            entry.collection_id: {"tenant": entry.tenant, "database": entry.database}
            for entry in prepared.preflight.collections
        }
        self._ids: dict[str, set[str]] = {
            collection: set(ids) for collection, ids in prepared.recovery.missing.items()
        }

    def __bool__(self) -> bool:
        return bool(self._ids)

    def listed(self) -> list[JsonObject]:
        """Return for each collection that lacks vectors its ``collection_id``, ``tenant``, ``database`` and ``ids``."""
        return [
            {"collection_id": collection, **self._places[collection], "ids": sorted(ids)}
            for collection, ids in list(self._ids.items())
        ]

    def forget(self, request: Request) -> None:
        """Take note of a write that succeeded: what it wrote, or deleted, is not missing any more."""
        collection = str(request.arguments["collection_id"])
        ids = request.arguments.get("ids")
        if collection not in self._ids or ids is None:
            return
        deleted = request.row.effect is Effect.DELETES
        if deleted or (request.row.gives_vectors and request.arguments.get("embeddings") is not None):
            self._found(collection, ids)

    def finish_recovery(self, prepared: Prepared) -> None:
        """Let Chroma rebuild the indexes that were quarantined, and write the vectors that came from elsewhere."""
        rebuilt = [entry for entry in prepared.recovery.collections if entry.rebuilt]
        for number, entry in enumerate(rebuilt, start=1):
            begun = time.monotonic()
            log.warning(
                "index.rebuilding",
                collection=entry.label,
                number=number,
                of=len(rebuilt),
                vectors=entry.from_log,
            )
            begin_rebuild(self._directory, entry.collection_id)
            self._api.get(entry.collection_id, limit=1, include=[], **self._places[entry.collection_id])
            end_rebuild(self._directory, entry.collection_id)
            log.warning("index.rebuilt", collection=entry.label, seconds=round(time.monotonic() - begun, 3))
        for collection, vectors in prepared.found.items():
            self._write(collection, list(vectors), list(vectors.values()))

    def fill(
        self,
        collection_id: CollectionId,
        ids: Sequence[str],
        documents: Sequence[str],
        embeddings: Sequence[Vector],
        tenant: str,
        database: str,
    ) -> list[str]:
        """Give records vectors that were made from their documents.

        A record that was deleted meanwhile, whose document is another one now, or that has a vector again is left alone.

        Returns:
            The ids that were written.
        """
        collection = str(collection_id)
        missing = self._ids.get(collection, set())
        asked = [position for position, id in enumerate(ids) if id in missing]
        if not asked:
            return []
        found = self._api.get(
            collection_id,
            ids=[ids[position] for position in asked],
            include=["documents"],
            tenant=tenant,
            database=database,
        )
        present: Mapping[str, Any] = dict(zip(found["ids"], found["documents"], strict=True))
        same = [position for position in asked if present.get(ids[position]) == documents[position]]
        written = [ids[position] for position in same]
        self._write(collection, written, [embeddings[position] for position in same])
        self._found(
            collection, [*written, *(ids[position] for position in asked if ids[position] not in present)]
        )
        return written

    def _write(self, collection: str, ids: list[str], embeddings: list[Vector]) -> None:
        # An upsert of nothing but a vector leaves document and metadata alone; an update would be ignored by the index,
        # which does not know these ids.
        for start in range(0, len(ids), _SLICE):
            end = start + _SLICE
            self._api.upsert(collection, ids[start:end], embeddings[start:end], **self._places[collection])
            time.sleep(_PAUSE_SECONDS)

    def _found(self, collection: str, ids: Sequence[str]) -> None:
        left = self._ids.get(collection)
        if left is not None:
            left.difference_update(ids)
            if not left:
                del self._ids[collection]
