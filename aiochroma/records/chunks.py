"""The parts of long texts: records of their own, beside the memories, in a collection that holds nothing else.

A part names its memory and, by its id, the writing it belongs to; the memory names its writing too, so parts that a crash has
left behind are never taken for its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from aiochroma._types import CollectionId, MetadataView, Vector
from aiochroma.backend.chroma_records import ChromaRecords, Database
from aiochroma.records.record import PART_OF, PARTS, WRITING, Record, part_id, writing_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from chromadb.api import ServerAPI

    from aiochroma.records.reading import Reader

__all__ = ["NearChunk", "Parts"]

_AT_ONCE = 256
_MORE = 4
_MOST = 4096
"""Beyond this many fetched, others may stay hidden behind the parts of one text."""


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


class Parts:
    """Finds, moves and deletes parts.

    Args:
        api: Chroma.
        reader: Reads from it.
    """

    def __init__(self, api: ServerAPI, reader: Reader) -> None:
        self._api = ChromaRecords(api)
        self._reader = reader
        self._holders: dict[tuple[str, str, str], Any] = {}

    def forget_holders(self) -> None:
        """Look up again which collections hold parts: one may have been made or deleted."""
        self._holders.clear()

    def holder(self, name: str, place: Database) -> Any:
        """Return the id of the collection that holds the parts, or None where there are none."""
        from chromadb.errors import NotFoundError

        key = (place["tenant"], place["database"], name)
        if key not in self._holders:
            try:
                self._holders[key] = self._api.collection_id(name, **place)
            except NotFoundError:
                self._holders[key] = None
        return self._holders[key]

    def nearest(
        self, holder: CollectionId, vectors: Sequence[Vector], n_results: int, place: Database
    ) -> list[list[NearChunk]]:
        """Return for each vector the nearest chunk of each memory, nearest first.

        As many memories as ``n_results`` are looked for, however many chunks of one are the nearest; numbers alone, so that
        only the nearest chunk of each has to be read.
        """
        fetched = n_results
        while True:
            near = self._reader.nearest(holder, vectors, fetched, place)
            nearest = [_nearest_of_each(distances) for distances in near]
            if fetched >= _MOST or all(
                len(distances) < fetched or len(writings) >= n_results
                for distances, writings in zip(near, nearest, strict=True)
            ):
                break
            fetched *= _MORE
        read = self._reader.records(
            holder, list({id: None for writings in nearest for id in writings}), None, place
        )
        return [
            [
                NearChunk(read[id]["metadata"][PART_OF], writing_of(id), distance, read[id]["document"])
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
        place: Database,
    ) -> None:
        """Tell parts, which are written before their memories, which memory they belong to."""
        owners = {
            part_id(metadata[WRITING], number): moved[id]
            for id, metadata in zip(ids, metadatas, strict=True)
            if id in moved
            for number in range(metadata.get(PARTS) or 0)
        }
        if owners:
            self._api.update(
                self.holder(name, place),
                list(owners),
                metadatas=[{PART_OF: owner} for owner in owners.values()],
                **place,
            )

    def drop(self, name: str, place: Database, old: Iterable[Record], *, keep: set[Any]) -> None:
        """Delete the parts of former writings."""
        unwanted = [
            part_id(record["metadata"][WRITING], number)
            for record in old
            if record["metadata"].get(PARTS) and record["metadata"].get(WRITING) not in keep
            for number in range(record["metadata"][PARTS])
        ]
        holder = self.holder(name, place) if unwanted else None
        if holder is not None:
            for start in range(0, len(unwanted), _AT_ONCE):
                self._api.delete(holder, ids=unwanted[start : start + _AT_ONCE], **place)


def _nearest_of_each(distances: Mapping[str, float]) -> dict[str, float]:
    """Return id and distance of the nearest chunk of each writing; the chunks come nearest first."""
    nearest: dict[str, tuple[str, float]] = {}
    for id, distance in distances.items():
        nearest.setdefault(writing_of(id), (id, distance))
    return dict(nearest.values())
