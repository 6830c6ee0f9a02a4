"""Reading from Chroma: records, and the chunks of long texts.

Chunks are records of their own, in a collection beside that of the memories. A chunk names its memory and, by its id, the writing
that it belongs to; the memory names its writing too. So chunks that a crash has left behind belong to no memory.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from aiochroma._clock import monotonic
from aiochroma._errors import NamespaceMovingError
from aiochroma._types import CollectionId, Metadata, MetadataView, Vector, Where
from aiochroma.backend.chroma_records import ChromaRecords, Database, database_of
from aiochroma.backend.faults import classify
from aiochroma.core.operations import Effect, Lane, operation_of
from aiochroma.core.request import Request
from aiochroma.records.record import (
    CHUNK_OF,
    CHUNKS,
    EMBEDDER,
    REPLACED,
    SETTLING,
    SETTLING_SECONDS,
    SPARSE,
    SPARSE_EMBEDDER,
    WRITING,
    Record,
    chunk_id,
    indexed_row,
    record_of,
    without_sparse,
    writing_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from uuid import UUID

    from chromadb.api import ServerAPI
    from chromadb.types import Collection as Model
    from typing_extensions import Unpack

    from aiochroma.text.index import IndexedText

__all__ = ["BELIEVED_SECONDS", "Carried", "Chunks", "NearChunk", "Reader", "is_aside", "sparse_embedder_of"]

Carried: TypeAlias = "Callable[..., object]"
"""An operation, called with its arguments by name."""

BELIEVED_SECONDS = 1.0
"""How long a client of a server believes that a collection is in its place: another client may rename it."""

_AT_ONCE = 256
_DELETED_AT_ONCE = 64  # They hold the interpreter for some 12 ms.
_MORE = 4
_MOST = 4096
"""Beyond this many fetched, others may stay hidden behind the chunks of one text."""


def is_aside(metadata: MetadataView) -> bool:
    """Tell whether another collection has taken the place of this one. A namespace that says so of itself has its place."""
    return REPLACED in metadata and EMBEDDER not in metadata


def sparse_embedder_of(model: Model) -> str | None:
    """Return the identity of the embedder of whose sparse vectors a collection has an index; None without an index."""
    indexes = (model.serialized_schema or {}).get("keys", {})
    return (model.metadata or {}).get(SPARSE_EMBEDDER) if SPARSE in indexes else None


class Reader:
    """Reads records.

    Args:
        api: Chroma.

    Attributes:
        in_place: The collections that were not replaced when this was asked last, and when that was (``monotonic()``).
        believed_seconds: How long that is believed.
    """

    def __init__(self, api: ServerAPI) -> None:
        self._api = ChromaRecords(api)
        self.in_place: dict[str, float] = {}
        self.believed_seconds: float = math.inf

    def guarded(self, name: str, carry_out: Carried) -> Carried:
        """Return an operation that refuses collections whose place another has taken, or is about to take where it writes.

        What cleans up is carried out whatever has become of the collection.
        """
        row = operation_of(name)
        if row.lane is Lane.BARRIER:
            return carry_out

        def guarded(**arguments: Any) -> object:
            searches = arguments.get("collections") or ()
            for collection_id in (arguments.get("collection_id"), *(one.collection_id for one in searches)):
                if collection_id is not None:
                    writing = row.effect is not Effect.NONE
                    self._refuse_replaced(collection_id, database_of(arguments), writing=writing)
            return carry_out(**arguments)

        return guarded

    def _refuse_replaced(self, collection_id: CollectionId, db: Database, *, writing: bool) -> None:
        """Refuse a collection whose place another has taken, and to write to one whose place another is about to take.

        Raises:
            chromadb.errors.NotFoundError: Another has; whoever knows it by its id looks its name up again.
            NamespaceMovingError: Another is about to.
        """
        from chromadb.errors import NotFoundError

        asked = monotonic()
        if asked - self.in_place.get(str(collection_id), -math.inf) < self.believed_seconds:
            return
        known = self._api.metadata_of(collection_id, **db)
        if is_aside(known):
            raise NotFoundError(f"Collection [{collection_id}] was copied; another has its place")
        until = known.get(SETTLING)
        if not (isinstance(until, float) and time.time() < until < time.time() + SETTLING_SECONDS):
            self.in_place[str(collection_id)] = asked
        elif writing:
            raise NamespaceMovingError(
                f"A copy of collection [{collection_id}] is about to take its place; write in a moment."
            )

    def nearest(
        self,
        collection_id: CollectionId,
        vectors: Sequence[Vector],
        n_results: int,
        db: Database,
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
            **db,
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
        db: Database,
    ) -> list[list[tuple[str, float, str, Metadata]]]:
        """Return for each vector the nearest records: id, distance, document and metadata."""
        result = self._api.query(
            collection_id,
            list(vectors),
            n_results=n_results,
            where=where,
            where_document=where_document,
            include=["documents", "metadatas", "distances"],
            **db,
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
        self, collection_id: CollectionId, ids: list[str], where: Where | None, db: Database
    ) -> dict[str, Record]:
        """Return the records that are there, of ids."""
        if not ids:
            return {}
        result = self._api.get(
            collection_id,
            ids=ids,
            where=where,
            include=["documents", "metadatas"],
            **db,
        )
        return {
            id: record_of(id, document, metadata)
            for id, document, metadata in zip(
                *(result[name] for name in ("ids", "documents", "metadatas")), strict=True
            )
        }

    def vectors(self, collection_id: CollectionId, ids: list[str], db: Database) -> dict[str, Vector]:
        """Return the vectors of the records that are there, of ids."""
        if not ids:
            return {}
        result = self._api.get(collection_id, ids=ids, include=["embeddings"], **db)
        return dict(zip(result["ids"], result["embeddings"], strict=True))

    def writings(self, collection_id: CollectionId, **db: Unpack[Database]) -> list[str]:
        """Return the writings of all memories that have chunks."""
        found = self._api.get(collection_id, where={CHUNKS: {"$gte": 1}}, include=["metadatas"], **db)
        return [str(metadata[WRITING]) for metadata in found["metadatas"] if WRITING in (metadata or {})]

    def indexed(self, collection_id: CollectionId, ids: Sequence[str], db: Database) -> list[IndexedText]:
        """Return what an index stores of the records that are there, of ids; without a vector those that have lost theirs."""
        include = ["documents", "metadatas", "embeddings"]
        try:
            result = self._api.get(collection_id, ids=list(ids), include=include, **db)
        except Exception as error:
            if classify(error).name != "index_incomplete":
                raise
            if len(ids) > 1:  # One record that has lost its vector fails all of them.
                half = len(ids) // 2
                return [
                    *self.indexed(collection_id, ids[:half], db),
                    *self.indexed(collection_id, ids[half:], db),
                ]
            result = self._api.get(collection_id, ids=list(ids), include=include[:2], **db)
        nothing = [None] * len(result["ids"])
        vectors = result.get("embeddings")
        columns = zip(
            result["ids"],
            result["documents"] or nothing,
            map(without_sparse, result["metadatas"] or nothing),
            nothing if vectors is None else vectors,
            strict=True,
        )
        return [indexed_row(*row) for row in columns]


class NearChunk(NamedTuple):
    """A chunk that is near a query.

    Attributes:
        memory: The id of the memory that it belongs to.
        writing: The writing of that memory.
        distance: Its cosine distance.
        text: Its text.
    """

    memory: str
    writing: str
    distance: float
    text: str


class Chunks:
    """Finds, moves and deletes chunks.

    Args:
        api: Chroma.
        reader: Reads from it.
        defers: Whether all but the first of many chunks are deleted by whoever asks for :meth:`next_deletion`: Chroma holds the
            interpreter, so that everybody would wait for the thousands of a long text.
    """

    def __init__(self, api: ServerAPI, reader: Reader, *, defers: bool = False) -> None:
        self._api = ChromaRecords(api)
        self.reader = reader
        self._defers = defers
        self._unwanted: deque[tuple[str, Database, list[str]]] = deque()
        self._holders: dict[tuple[str, str, str], UUID | None] = {}

    def forget_holders(self) -> None:
        """Look up again which collections hold chunks: one may have been made or deleted."""
        self._holders.clear()

    def holder(self, name: str, db: Database) -> UUID | None:
        """Return the id of the collection that holds the chunks, or None where there are none."""
        from chromadb.errors import NotFoundError

        key = (db["tenant"], db["database"], name)
        if key not in self._holders:
            try:
                self._holders[key] = self._api.collection_id(name, **db)
            except NotFoundError:
                self._holders[key] = None
        return self._holders[key]

    def nearest(
        self, holder: CollectionId, vectors: Sequence[Vector], n_results: int, db: Database
    ) -> list[list[NearChunk]]:
        """Return for each vector the nearest chunk of each memory, nearest first.

        ``n_results`` memories are looked for, even where many chunks of one are the nearest. First only ids and distances are
        read, then the nearest chunk of each memory.
        """
        fetched = n_results
        while True:
            near = self.reader.nearest(holder, vectors, fetched, db)
            nearest = [_nearest_of_each(distances) for distances in near]
            if fetched >= _MOST or all(
                len(distances) < fetched or len(writings) >= n_results
                for distances, writings in zip(near, nearest, strict=True)
            ):
                break
            fetched *= _MORE
        read = self.reader.records(
            holder, list({id: None for writings in nearest for id in writings}), None, db
        )
        return [
            [
                NearChunk(read[id]["metadata"][CHUNK_OF], writing_of(id), distance, read[id]["document"])
                for id, distance in writings.items()
                if id in read
            ]
            for writings in nearest
        ]

    def move(
        self,
        moved: Mapping[str, str],
        ids: Sequence[str],
        metadatas: Sequence[MetadataView],
        name: str,
        db: Database,
    ) -> None:
        """Tell chunks, which are written before their memories, which memory they belong to."""
        owners = {
            chunk: moved[id]
            for id, metadata in zip(ids, metadatas, strict=True)
            if id in moved
            for chunk in _chunk_ids(metadata)
        }
        holder = self.holder(name, db) if owners else None
        if holder is not None:
            self._api.update(
                holder,
                list(owners),
                metadatas=[{CHUNK_OF: owner} for owner in owners.values()],
                **db,
            )

    def require(self, name: str, db: Database, metadatas: Sequence[MetadataView]) -> None:
        """Refuse to write memories whose chunks, which were written before them, are not there any more.

        Raises:
            NamespaceMovingError: They were erased meanwhile as chunks of no memory; a memory writes both again.
        """
        ids = [chunk for metadata in metadatas for chunk in _chunk_ids(metadata)] if self._defers else []
        if not ids:
            return
        holder = self.holder(name, db)
        there = [] if holder is None else self._api.get(holder, ids=ids, include=[], **db)["ids"]
        if len(there) < len(ids):
            raise NamespaceMovingError(
                f"Chunks were erased in {name} before their memory was there; write both again."
            )

    def delete_from(self, name: str, ids: list[str], db: Database) -> UUID | None:
        """Delete records from a collection, if there is one of this name, and return its id."""
        from chromadb.errors import NotFoundError

        holder = self.holder(name, db) if ids else None
        if holder is not None:
            try:
                self._api.delete(holder, ids=ids, **db)
            except NotFoundError:  # Somebody has deleted it meanwhile.
                self.forget_holders()
        return holder

    def drop(self, name: str, db: Database, old: Iterable[Record], *, keep: set[object]) -> None:
        """Delete the chunks of former writings."""
        from chromadb.errors import NotFoundError

        unwanted = [
            chunk
            for record in old
            if record["metadata"].get(WRITING) not in keep
            for chunk in _chunk_ids(record["metadata"])
        ]
        at_once = _DELETED_AT_ONCE if self._defers else _AT_ONCE
        slices = [unwanted[start : start + at_once] for start in range(0, len(unwanted), at_once)]
        if self._defers:
            self._unwanted.extend((name, db, ids) for ids in slices[1:])
            slices = slices[:1]
        for _ in range(2):
            holder = self.holder(name, db) if slices else None
            if holder is None:
                return
            try:
                for ids in slices:
                    self._api.delete(holder, ids=ids, **db)
            except NotFoundError:
                # Another client of the server has deleted the collection, and perhaps made it again.
                self.forget_holders()
            else:
                return

    def drop_unwritten(
        self, name: str, db: Database, written: Mapping[str, MetadataView], keep: Collection[str]
    ) -> list[str]:
        """Delete chunks after which their memories were not written; return the ids of those memories.

        Args:
            name: The collection of the chunks.
            db: Chroma's tenant and database.
            written: By the id of the memory, its writing and the number of its chunks.
            keep: The writings of all memories that are there, under whatever id.
        """
        lost = [
            record_of(id, None, dict(entry)) for id, entry in written.items() if entry[WRITING] not in keep
        ]
        self.drop(name, db, lost, keep=set())
        return [record["id"] for record in lost]

    def next_deletion(self) -> Request | None:
        """Return the deletion of the next slice of chunks that belong to nothing any more; None where there is none."""
        while self._unwanted:
            name, db, ids = self._unwanted.popleft()
            holder = self.holder(name, db)
            if holder is not None:
                return Request("_delete", {"collection_id": holder, "ids": ids, **db})
        return None


def _nearest_of_each(distances: Mapping[str, float]) -> dict[str, float]:
    """Return id and distance of the nearest chunk of each writing; the chunks come nearest first."""
    nearest: dict[str, tuple[str, float]] = {}
    for id, distance in distances.items():
        nearest.setdefault(writing_of(id), (id, distance))
    return dict(nearest.values())


_MOST_CHUNKS = 2**18
"""More than any text that can be stored has."""


def _chunk_ids(metadata: MetadataView) -> list[str]:
    """Return the ids of a memory's chunks; none where another program has written what is no number of them."""
    writing, number = metadata.get(WRITING), metadata.get(CHUNKS)
    if not isinstance(writing, str) or not isinstance(number, int) or number > _MOST_CHUNKS:
        return []
    return [chunk_id(writing, chunk) for chunk in range(number)]
