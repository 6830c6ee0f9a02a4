"""Memories as records of Chroma: the operations of a memory that Chroma does not have, over a ``ServerAPI``.

A memory is one record. Of a text longer than the embedder reads, parts are kept beside it (``_parts``): only their vectors are
searched, and what is found is the memory.

Everything here runs where Chroma is called.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aiochroma._types import CollectionId, Metadata, MetadataView, Vector, Where
from aiochroma.backend.chroma_records import ChromaRecords, Database
from aiochroma.backend.faults import is_not_written
from aiochroma.records.chunks import Parts
from aiochroma.records.history import Entry, database_key
from aiochroma.records.listing import list_filter, page_ids
from aiochroma.records.reading import Reader
from aiochroma.records.record import (
    CREATED_AT,
    PARTS,
    POSITION,
    SCOPE,
    THREAD,
    WRITING,
    Record,
    before,
    has_expired,
    merged_metadata,
    record_of,
    text_id,
    thread_position,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from chromadb.api import ServerAPI

    from aiochroma.records.history import ChangeLog
    from aiochroma.records.listing import ListSpec

__all__ = ["MemoryRecords"]

_MOMENT = 5e-7
"""Moments that are nearer to each other, in seconds, are one: Chroma may change the last digit of a float."""


class MemoryRecords:
    """The operations of a memory.

    Args:
        api: Chroma.
    """

    def __init__(self, api: ServerAPI) -> None:
        self._api = ChromaRecords(api)
        self._reader = Reader(api)
        self._parts = Parts(api, self._reader)

    def operations(self) -> dict[str, Callable[..., Any]]:
        """Return the operations by name."""
        return {
            "remember": self.remember,
            "change_memories": self.change,
            "forget_memories": self.forget,
            "list_memories": self.page,
            "read_memories": self.read,
            "count_memories": self.count,
            "memory_ids": self.ids,
            "memory_history": self.history,
        }

    # -- writing -------------------------------------------------------------------------------------------------------

    def remember(
        self,
        collection_id: CollectionId,
        ids: list[str],
        embeddings: list[Vector],
        metadatas: list[Metadata],
        documents: list[str],
        uris: Any,
        tenant: str,
        database: str,
        parts: str,
        exact: bool,
        dedupe: bool,
        history_namespace: str | None,
    ) -> dict[str, str]:
        """Write memories.

        One that is there already keeps when it was made, what metadata is not given again, and its place in its thread. One
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
            exact: Leave nothing of the former memory, as for an import.
            dedupe: Refresh a text that was said before in its thread; else it is a new memory, unless it was made at the same
                moment.
            history_namespace: What the history calls the namespace, or None for no entry.

        Returns:
            The ids of those that were written under another id than the given one; see ``_moved``.
        """
        place: Database = {"tenant": tenant, "database": database}
        now = time.time()
        old = self._known(collection_id, ids, place)
        moved = (
            {} if exact else self._moved(collection_id, ids, documents, metadatas, old, place, dedupe=dedupe)
        )
        if moved:
            self._parts.move(moved, ids, metadatas, parts, place)
            ids = [moved.get(id, id) for id in ids]
            old = self._known(collection_id, ids, place)
        expired = [id for id, record in old.items() if has_expired(record["metadata"], now)]
        known = {id: record for id, record in old.items() if id not in expired}
        placed = self._placed(collection_id, ids, metadatas, known, place)
        stored = [
            merged_metadata(metadata, known.get(id), exact=exact)
            for id, metadata in zip(ids, placed, strict=True)
        ]
        noted = self._note(
            history_namespace,
            place,
            [
                Entry(
                    now,
                    "refresh" if id in known else "remember",
                    history_namespace or "",
                    id,
                    *before(old.get(id)),
                )
                for id in ids
            ],
        )
        try:
            if expired:
                self._api.delete(collection_id, ids=expired, **place)
                self._deleted(str(collection_id), expired)
            self._api.upsert(collection_id, ids, embeddings, stored, documents, uris, **place)
        except BaseException as error:
            self._withdraw(noted, error)
            raise
        self._written(str(collection_id), ids, documents, stored, known, embeddings)
        self._parts.drop(parts, place, old.values(), keep={entry.get(WRITING) for entry in stored})
        return moved

    def _moved(
        self,
        collection_id: CollectionId,
        ids: Sequence[str],
        documents: Sequence[str],
        metadatas: Sequence[MetadataView],
        old: Mapping[str, Record],
        place: Database,
        *,
        dedupe: bool,
    ) -> dict[str, str]:
        """Return other ids, for texts whose own id belongs to another memory.

        That is one which was changed to another text since, or, in a thread, one which was said before.
        """
        moved = {}
        now = time.time()
        for id, document, metadata in zip(ids, documents, metadatas, strict=True):
            scope, thread = metadata.get(SCOPE, ""), metadata.get(THREAD, "")
            if id != text_id(document, scope=scope, thread=thread):
                continue  # Its caller has chosen it.
            made = metadata[CREATED_AT] if thread and not dedupe else None
            number, there = 0, old.get(id)
            while there is not None and not has_expired(there["metadata"], now):
                said_before = (
                    made is not None and abs(there["metadata"].get(CREATED_AT, 0.0) - made) > _MOMENT
                )
                if there["document"] == document and not said_before:
                    break
                number += 1
                new = moved[id] = text_id(document, number, scope=scope, thread=thread, made=made)
                there = self._known(collection_id, [new], place).get(new)
        return moved

    def _placed(
        self,
        collection_id: CollectionId,
        ids: Sequence[str],
        metadatas: Sequence[Metadata],
        known: Mapping[str, Record],
        place: Database,
    ) -> list[dict[str, Any]]:
        """Give those that come into a thread, without a place of their own, the places behind its last."""
        last: dict[str, float | None] = {}
        placed = []
        for id, metadata in zip(ids, metadatas, strict=True):
            there = known[id]["metadata"] if id in known else {}
            thread = thread_position({**there, **metadata})[0]
            if thread is None or POSITION in metadata or thread == thread_position(there)[0]:
                placed.append(metadata)
                continue
            if thread not in last:
                last[thread] = self._last_position(collection_id, thread, place)
            behind = last[thread]
            position = metadata[CREATED_AT] if behind is None else behind + 1
            placed.append({**metadata, POSITION: position})
            last[thread] = None if behind is None else position
        return placed

    def change(
        self,
        collection_id: CollectionId,
        ids: list[str],
        embeddings: list[Vector] | None,
        metadatas: list[Metadata],
        documents: list[str] | None,
        uris: Any,
        tenant: str,
        database: str,
        parts: str,
        action: str,
        history_namespace: str | None,
    ) -> list[Record]:
        """Change memories that are there, and return them as they are then; arguments as :meth:`remember`."""
        place: Database = {"tenant": tenant, "database": database}
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
            history_namespace,
            place,
            [Entry(now, action, history_namespace or "", ids[row], *before(old[ids[row]])) for row in rows],
        )
        try:
            self._api.update(
                collection_id,
                [ids[row] for row in rows],
                [embeddings[row] for row in rows] if embeddings is not None else None,
                given,
                texts,
                uris,
                **place,
            )
        except BaseException as error:
            self._withdraw(noted, error)
            raise
        changed = []
        for number, row in enumerate(rows):
            record = old[ids[row]]
            merged = {k: v for k, v in {**record["metadata"], **given[number]}.items() if v is not None}
            text = record["document"] if texts is None else texts[number]
            changed.append(record_of(ids[row], text, merged))
        self._written(
            str(collection_id),
            [record["id"] for record in changed],
            [record["document"] for record in changed],
            [record["metadata"] for record in changed],
            {},
            None if embeddings is None else [embeddings[row] for row in rows],
        )
        if texts is not None:
            keep = {metadata.get(WRITING) for metadata in given}
            self._parts.drop(parts, place, old.values(), keep=keep)
        return changed

    def forget(
        self,
        collection_id: CollectionId,
        ids: list[str],
        tenant: str,
        database: str,
        parts: str,
        action: str,
        expired_only: bool,
        history_namespace: str | None,
    ) -> list[str]:
        """Delete memories, or those of them that have expired, and return the ids of those that were there."""
        place: Database = {"tenant": tenant, "database": database}
        now = time.time()
        old = self._known(collection_id, ids, place)
        if expired_only:
            # Somebody may have remembered or pinned one since it was looked up.
            old = {id: record for id, record in old.items() if has_expired(record["metadata"], now)}
        if not old:
            return []
        gone = list(old)
        noted = self._note(
            history_namespace,
            place,
            [Entry(now, action, history_namespace or "", id, *before(old[id])) for id in gone],
        )
        try:
            self._api.delete(collection_id, ids=gone, **place)
        except BaseException as error:
            self._withdraw(noted, error)
            raise
        self._deleted(str(collection_id), gone)
        self._parts.drop(parts, place, old.values(), keep=set())
        return gone

    # -- listing -------------------------------------------------------------------------------------------------------

    def page(
        self, collection_id: CollectionId, spec: ListSpec, tenant: str, database: str
    ) -> Sequence[Record]:
        """Return a page of the memories of a collection, in order."""
        place: Database = {"tenant": tenant, "database": database}
        found = self._api.get(collection_id, where=list_filter(spec), include=["metadatas"], **place)
        metadatas = {
            id: metadata or {} for id, metadata in zip(found["ids"], found["metadatas"], strict=True)
        }
        ids = page_ids(metadatas, spec)
        records = self._reader.records(collection_id, ids, None, place)
        return [records[id] for id in ids if id in records]

    def read(
        self, collection_id: CollectionId, ids: list[str], tenant: str, database: str
    ) -> list[Record | None]:
        """Return the record of each id, with the values that searches show; None where there is none."""
        place: Database = {"tenant": tenant, "database": database}
        known = self._known(collection_id, list(dict.fromkeys(ids)), place)
        return [known.get(id) for id in ids]

    def ids(self, collection_id: CollectionId, where: Where | None, tenant: str, database: str) -> list[str]:
        """Return the ids of the records that pass a filter, or of all, in one piece: Chroma reads 100,000 in 0.2 s."""
        found = self._api.get(collection_id, where=where, include=[], tenant=tenant, database=database)
        ids: list[str] = found["ids"]
        return ids

    def count(self, collection_id: CollectionId, tenant: str, database: str) -> int:
        """Return how many records a collection has."""
        counted: int = self._api.count(collection_id, tenant=tenant, database=database)
        return counted

    # -- what an index and a history add -------------------------------------------------------------------------------

    def history(
        self, namespace: str | None, id: str | None, limit: int, tenant: str, database: str
    ) -> list[Entry]:
        """Return what changed in a database, newest first."""
        log = self._log()
        return [] if log is None else log.read(database_key(tenant, database), namespace, id, limit)

    def _log(self) -> ChangeLog | None:
        return None

    def _last_position(self, collection_id: CollectionId, thread: str, place: Database) -> float | None:  # noqa: ARG002 - no index here
        """Return the last place of a conversation, 0 where it has none yet; None where only a clock can tell."""
        return None

    def _known(self, collection_id: CollectionId, ids: list[str], place: Database) -> dict[str, Record]:
        """Return the records that are there, of ids."""
        return self._reader.records(collection_id, ids, None, place)

    def _written(
        self,
        collection: str,
        ids: Sequence[str],
        documents: Sequence[str],
        metadatas: Sequence[MetadataView],
        known: Mapping[str, Record],
        vectors: Sequence[Vector] | None,
    ) -> None:
        """Follow a write; ``metadatas`` is what was written over that of ``known``."""

    def _deleted(self, collection: str, ids: Sequence[str]) -> None:
        """Follow a deletion."""

    def _note(
        self, history_namespace: str | None, place: Database, entries: Iterable[Entry]
    ) -> tuple[int, int] | None:
        log = None if history_namespace is None else self._log()
        return None if log is None else log.note(database_key(**place), entries)

    def _withdraw(self, noted: tuple[int, int] | None, error: BaseException) -> None:
        """Take back what was noted of a change that did not happen. One that may have happened keeps its entry."""
        if not is_not_written(error):
            return
        log = self._log() if noted is not None else None
        if log is not None and noted is not None:
            log.withdraw(noted)

    def collections_changed(self) -> None:
        """Look up again which collections hold parts: one may have been made or deleted."""
        self._parts.forget_holders()
