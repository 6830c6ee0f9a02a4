"""Memories as records of Chroma: the operations of a memory that Chroma does not have, over a ``ServerAPI``.

A memory is one record. Of a text longer than the embedder reads, parts are kept beside it, in a collection of their own:
only their vectors are searched, and what is found is the memory. A part names its memory and the writing it belongs to;
the memory names its writing too, so parts that a crash has left behind are never taken for its own.

Everything here runs where Chroma is called.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from aiochroma.engine._records import (
    PART_OF,
    PARTS,
    WRITING,
    Place,
    Record,
    add_parts,
    bare,
    before,
    candidate,
    has_expired,
    part_id,
    stored_over,
    text_id,
    writing_of,
)
from aiochroma.storage._history import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from chromadb.api import ServerAPI

    from aiochroma.storage._history import ChangeLog

__all__ = ["Remembered"]

_PARTS_PER_CALL = 256
_MORE_PARTS = 4
_MOST_PARTS = 4096
"""Beyond so many fetched, others may stay hidden behind the parts of one text."""


class Remembered(ABC):
    """The operations of a memory.

    Args:
        api: Chroma.
    """

    def __init__(self, api: ServerAPI) -> None:
        self._api: Any = api
        self._parts: dict[tuple[str, str, str], Any] = {}

    def operations(self) -> dict[str, Callable[..., Any]]:
        """Return the operations by name."""
        return {
            "remember": self.remember,
            "change_memories": self.change,
            "forget_memories": self.forget,
            "search_memories": self.search,
            "memory_neighbours": self.neighbours,
            "memory_history": self.history,
        }

    # -- writing -------------------------------------------------------------------------------------------------------

    def remember(
        self,
        collection_id: Any,
        ids: list[str],
        embeddings: list[Any],
        metadatas: list[dict[str, Any]],
        documents: list[str],
        uris: Any,
        tenant: str,
        database: str,
        parts: str,
        exact: bool,
        audit: str | None,
    ) -> dict[str, str]:
        """Write memories.

        One that is there already keeps when it was made, what metadata is not given anew, and its place in its thread. One
        that has expired is not there.

        Args:
            collection_id: The collection.
            ids: All different.
            embeddings: A vector for each.
            metadatas: What is stored with each; without a position, when it was made is its place in its thread.
            documents: The texts.
            uris: None.
            tenant: Chroma's tenant.
            database: Chroma's database.
            parts: The name of the collection that holds parts.
            exact: Leave nothing of what was there, as for an import.
            audit: What the history calls the namespace, or None for no entry.

        Returns:
            The ids of those that were written under another id than the given one; see ``_moved``.
        """
        place = {"tenant": tenant, "database": database}
        now = time.time()
        old = self._known(collection_id, ids, place)
        moved = {} if exact else self._moved(collection_id, ids, documents, old, place)
        if moved:
            self._move_parts(moved, ids, metadatas, parts, place)
            ids = [moved.get(id, id) for id in ids]
            old = self._known(collection_id, ids, place)
        expired = [id for id, record in old.items() if has_expired(record["metadata"], now)]
        known = {id: record for id, record in old.items() if id not in expired}
        stored = [
            stored_over(metadata, known.get(id), exact=exact)
            for id, metadata in zip(ids, metadatas, strict=True)
        ]
        noted = self._note(
            audit,
            [
                Entry(now, "refresh" if id in known else "remember", audit or "", id, *before(old.get(id)))
                for id in ids
            ],
        )
        try:
            if expired:
                self._api._delete(collection_id, ids=expired, **place)  # noqa: SLF001 - Chroma's own name
                self._deleted(str(collection_id), expired)
            self._api._upsert(  # noqa: SLF001 - Chroma's own name
                collection_id, ids, embeddings, stored, documents, uris, tenant, database
            )
        except BaseException:
            self._withdraw(noted)
            raise
        self._written(str(collection_id), ids, documents, stored, known)
        self._drop_parts(parts, place, old.values(), keep={entry.get(WRITING) for entry in stored})
        return moved

    def _moved(
        self,
        collection_id: Any,
        ids: Sequence[str],
        documents: Sequence[str],
        old: Mapping[str, Record],
        place: Place,
    ) -> dict[str, str]:
        """Return other ids for texts whose own id belongs to a memory that was changed to another text since."""
        moved = {}
        now = time.time()
        for id, document in zip(ids, documents, strict=True):
            number, new, there = 0, id, old.get(id)
            while (
                there is not None
                and there["document"] != document
                and not has_expired(there["metadata"], now)
                and new == text_id(document, number)
            ):
                number += 1
                new = moved[id] = text_id(document, number)
                there = self._known(collection_id, [new], place).get(new)
        return moved

    def _move_parts(
        self,
        moved: Mapping[str, str],
        ids: Sequence[str],
        metadatas: Sequence[Mapping[str, Any]],
        parts: str,
        place: Place,
    ) -> None:
        """Tell the parts of long texts, which are written first, which memory they belong to."""
        owners = {
            part_id(metadata[WRITING], number): moved[id]
            for id, metadata in zip(ids, metadatas, strict=True)
            if id in moved
            for number in range(metadata.get(PARTS) or 0)
        }
        if owners:
            self._api._update(  # noqa: SLF001 - Chroma's own name
                self._holder(parts, place),
                list(owners),
                metadatas=[{PART_OF: owner} for owner in owners.values()],
                **place,
            )

    def change(
        self,
        collection_id: Any,
        ids: list[str],
        embeddings: list[Any] | None,
        metadatas: list[dict[str, Any]],
        documents: list[str] | None,
        uris: Any,
        tenant: str,
        database: str,
        parts: str,
        action: str,
        audit: str | None,
    ) -> list[Record]:
        """Change memories that are there, and return them as they are then; arguments as :meth:`remember`."""
        place = {"tenant": tenant, "database": database}
        now = time.time()
        old = {
            id: record
            for id, record in self._known(collection_id, ids, place).items()
            if not has_expired(record["metadata"], now)
        }
        rows = [row for row, id in enumerate(ids) if id in old]
        if not rows:
            return []
        texts = [documents[row] for row in rows] if documents is not None else None
        given = [metadatas[row] for row in rows]
        if texts is not None:
            # The parts are those of the new text, or none.
            given = [{PARTS: None, WRITING: None, **metadata} for metadata in given]
        noted = self._note(
            audit, [Entry(now, action, audit or "", ids[row], *before(old[ids[row]])) for row in rows]
        )
        try:
            self._api._update(  # noqa: SLF001 - Chroma's own name
                collection_id,
                [ids[row] for row in rows],
                [embeddings[row] for row in rows] if embeddings is not None else None,
                given,
                texts,
                uris,
                tenant,
                database,
            )
        except BaseException:
            self._withdraw(noted)
            raise
        changed = []
        for number, row in enumerate(rows):
            record = old[ids[row]]
            merged = {k: v for k, v in {**record["metadata"], **given[number]}.items() if v is not None}
            text = record["document"] if texts is None else texts[number]
            changed.append(candidate(ids[row], text, merged, None))
        self._written(
            str(collection_id),
            [record["id"] for record in changed],
            [record["document"] for record in changed],
            [record["metadata"] for record in changed],
            {},
        )
        if texts is not None:
            keep = {metadata.get(WRITING) for metadata in given}
            self._drop_parts(parts, place, old.values(), keep=keep)
        return changed

    def forget(
        self,
        collection_id: Any,
        ids: list[str],
        tenant: str,
        database: str,
        parts: str,
        action: str,
        expired_only: bool,
        audit: str | None,
    ) -> int:
        """Delete memories, or those of them that have expired, and return how many there were."""
        place = {"tenant": tenant, "database": database}
        now = time.time()
        old = self._known(collection_id, ids, place)
        if expired_only:
            # Somebody may have remembered or pinned one since it was looked up.
            old = {id: record for id, record in old.items() if has_expired(record["metadata"], now)}
        if not old:
            return 0
        gone = list(old)
        noted = self._note(audit, [Entry(now, action, audit or "", id, *before(old[id])) for id in gone])
        try:
            self._api._delete(collection_id, ids=gone, **place)  # noqa: SLF001 - Chroma's own name
        except BaseException:
            self._withdraw(noted)
            raise
        self._deleted(str(collection_id), gone)
        self._drop_parts(parts, place, old.values(), keep=set())
        return len(gone)

    # -- what an index and a history add -------------------------------------------------------------------------------

    @abstractmethod
    def search(self, **arguments: Any) -> list[list[Record]]:
        """Search one collection."""

    @abstractmethod
    def neighbours(self, **arguments: Any) -> list[tuple[str, int, Record]]:
        """Return what stands near records in their threads."""

    def history(self, namespace: str | None, id: str | None, limit: int) -> list[Entry]:
        """Return what changed, newest first."""
        log = self._log()
        return [] if log is None else log.read(namespace, id, limit)

    def _log(self) -> ChangeLog | None:
        return None

    def _known(self, collection_id: Any, ids: list[str], place: Place) -> dict[str, Record]:
        """Return the records that are there, of ids."""
        return self._records(collection_id, ids, None, place)

    def _written(  # noqa: B027 - without an index there is nothing to do
        self,
        collection: str,
        ids: Sequence[str],
        documents: Sequence[str],
        metadatas: Sequence[Mapping[str, Any]],
        known: Mapping[str, Record],
    ) -> None:
        """Follow a write; ``metadatas`` is what was written over that of ``known``."""

    def _deleted(self, collection: str, ids: Sequence[str]) -> None:  # noqa: B027 - likewise
        """Follow a deletion."""

    def _note(self, audit: str | None, entries: Iterable[Entry]) -> tuple[int, int] | None:
        log = None if audit is None else self._log()
        return None if log is None else log.note(entries)

    def _withdraw(self, noted: tuple[int, int] | None) -> None:
        log = self._log() if noted is not None else None
        if log is not None and noted is not None:
            log.withdraw(noted)

    # -- reading -------------------------------------------------------------------------------------------------------

    def _search_vectors(
        self,
        collection_id: Any,
        vectors: Sequence[Any],
        n_results: int,
        where: Mapping[str, Any] | None,
        parts: str,
        place: Place,
        where_document: Mapping[str, Any] | None = None,
        *,
        details: bool = True,
    ) -> list[dict[str, Record]]:
        """Return for each vector the nearest memories by id, whether they are near as a whole or by a part.

        Without ``details`` they have neither document nor metadata, and parts are not looked at.
        """
        if not details:
            return self._nearest(collection_id, vectors, n_results, place)
        holder = self._holder(parts, place) if where_document is None else None
        found: list[dict[str, Record]] = [{} for _ in vectors]
        for candidates, rows in zip(
            found, self._query(collection_id, vectors, n_results, where, where_document, place), strict=True
        ):
            for id, distance, document, metadata in rows:
                candidates[id] = candidate(id, document, metadata, distance)
        if holder is None:
            return found
        self._add_near_parts(found, collection_id, holder, vectors, n_results, where, place)
        return found

    def _add_near_parts(
        self,
        found: list[dict[str, Record]],
        collection_id: Any,
        holder: Any,
        vectors: Sequence[Any],
        n_results: int,
        where: Mapping[str, Any] | None,
        place: Place,
    ) -> None:
        """Add the nearest memories by their parts.

        As many writings as are wanted are looked for, however many parts of one are the nearest; numbers alone, so that
        only the nearest part of each has to be read.
        """
        fetched = n_results
        while True:
            near = self._nearest(holder, vectors, fetched, place)
            nearest = [_nearest_of_each(rows) for rows in near]
            if fetched >= _MOST_PARTS or all(
                len(rows) < fetched or len(writings) >= n_results
                for rows, writings in zip(near, nearest, strict=True)
            ):
                break
            fetched *= _MORE_PARTS
        read = self._records(holder, list({id: None for writings in nearest for id in writings}), None, place)
        rows = [
            [
                (id, distance, read[id]["document"], read[id]["metadata"])
                for id, distance in writings.items()
                if id in read
            ]
            for writings in nearest
        ]
        missing = {
            row[3][PART_OF]: None
            for own, known in zip(rows, found, strict=True)
            for row in own
            if row[3][PART_OF] not in known
        }
        records = self._records(collection_id, list(missing), where, place)
        for candidates, own in zip(found, rows, strict=True):
            add_parts(candidates, records, own)

    def _nearest(
        self, collection_id: Any, vectors: Sequence[Any], n_results: int, place: Place
    ) -> list[dict[str, Record]]:
        """Return ids and distances alone.

        Fifty distances come with one look at the index, fifty documents with two hundred look-ups in SQLite: for 32 questions
        it is 7 ms instead of 73.
        """
        result: Any = self._api._query(  # noqa: SLF001 - Chroma's own name
            collection_id, list(vectors), n_results=n_results, include=["distances"], **place
        )
        return [
            {id: bare(id, float(distance)) for id, distance in zip(ids, distances, strict=True)}
            for ids, distances in zip(result["ids"], result["distances"], strict=True)
        ]

    def _query(
        self,
        collection_id: Any,
        vectors: Sequence[Any],
        n_results: int,
        where: Mapping[str, Any] | None,
        where_document: Mapping[str, Any] | None,
        place: Place,
    ) -> list[list[tuple[str, float, str, dict[str, Any]]]]:
        result: Any = self._api._query(  # noqa: SLF001 - Chroma's own name
            collection_id,
            list(vectors),
            n_results=n_results,
            where=dict(where) if where else None,
            where_document=dict(where_document) if where_document else None,
            include=["documents", "metadatas", "distances"],
            **place,
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

    def _records(
        self, collection_id: Any, ids: list[str], where: Mapping[str, Any] | None, place: Place
    ) -> dict[str, Record]:
        if not ids:
            return {}
        result: Any = self._api._get(  # noqa: SLF001 - Chroma's own name
            collection_id,
            ids=ids,
            where=dict(where) if where else None,
            include=["documents", "metadatas"],
            **place,
        )
        return {
            id: candidate(id, document, metadata, None)
            for id, document, metadata in zip(
                *(result[name] for name in ("ids", "documents", "metadatas")), strict=True
            )
        }

    # -- parts ---------------------------------------------------------------------------------------------------------

    def forget_places(self) -> None:
        """Look up anew which collections hold parts: one may have been made or deleted."""
        self._parts.clear()

    def _holder(self, name: str, place: Place) -> Any:
        """Return the id of the collection that holds the parts, or None where there are none."""
        from chromadb.errors import NotFoundError

        key = (place["tenant"], place["database"], name)
        if key not in self._parts:
            try:
                self._parts[key] = self._api.get_collection(name=name, **place).id
            except NotFoundError:
                self._parts[key] = None
        return self._parts[key]

    def _drop_parts(self, name: str, place: Place, old: Iterable[Record], *, keep: set[Any]) -> None:
        """Delete the parts of former writings."""
        unwanted = [
            part_id(record["metadata"][WRITING], number)
            for record in old
            if record["metadata"].get(PARTS) and record["metadata"].get(WRITING) not in keep
            for number in range(record["metadata"][PARTS])
        ]
        holder = self._holder(name, place) if unwanted else None
        if holder is not None:
            for start in range(0, len(unwanted), _PARTS_PER_CALL):
                self._api._delete(holder, ids=unwanted[start : start + _PARTS_PER_CALL], **place)  # noqa: SLF001


def _nearest_of_each(parts: Mapping[str, Record]) -> dict[str, float]:
    """Return id and distance of the nearest part of each writing; the parts come nearest first."""
    nearest: dict[str, tuple[str, float]] = {}
    for id, record in parts.items():
        nearest.setdefault(writing_of(id), (id, record["distance"]))
    return dict(nearest.values())
