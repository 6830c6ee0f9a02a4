"""Memories as records of Chroma: the operations of a memory that Chroma does not have, over a ``ServerAPI``.

A memory is one record. Of a text that is longer than the embedder reads, chunks are kept beside it (``Chunks``): only
their vectors are searched, and what is found is the memory.

Everything here runs where Chroma is called.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiochroma._types import CollectionId, Metadata, MetadataView, Vector, Where
from aiochroma.backend.chroma_records import ChromaRecords, Database
from aiochroma.backend.faults import is_not_written
from aiochroma.records.history import Entry, database_key
from aiochroma.records.reading import Chunks, Reader
from aiochroma.records.record import (
    CHUNKS,
    CREATED_AT,
    POSITION,
    SPARSE,
    WRITING,
    Record,
    SaidText,
    before,
    has_expired,
    merged_metadata,
    namespace_in,
    record_of,
    thread_position,
    with_exact_floats,
    written_over,
)
from aiochroma.records.spec import filter_of, page_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from chromadb.api import ServerAPI
    from typing_extensions import Unpack

    from aiochroma.records.history import ChangeLog
    from aiochroma.records.reading import Carried
    from aiochroma.records.spec import ListSpec

__all__ = ["MemoryRecords"]


class MemoryRecords:
    """The operations of a memory.

    Args:
        api: Chroma.
    """

    def __init__(self, api: ServerAPI) -> None:
        self._api = ChromaRecords(api)
        self._reader = Reader(api)
        self._chunks = Chunks(api, self._reader)

    def operations(self) -> dict[str, Carried]:
        """Return the operations by name; each refuses a collection whose place another has taken."""
        return {name: self._reader.guarded(name, one) for name, one in self.carried_out().items()}

    def carried_out(self) -> dict[str, Carried]:
        """Return what carries the operations out, by name."""
        return {
            "remember": self.remember,
            "change_memories": self.change,
            "forget_memories": self.forget,
            "list_memories": self.page,
            "read_memories": self.read,
            "count_memories": self.count,
            "memory_ids": self.ids,
            "memory_history": self.history,
            "memory_namespaces": self.namespaces,
            "drop_chunks": self.drop_chunks,
            "memory_writings": self.writings,
            "code_memories": self.code,
            "memories_without_code": self.without_code,
        }

    # -- writing -------------------------------------------------------------------------------------------------------

    def remember(
        self,
        collection_id: CollectionId,
        ids: list[str],
        embeddings: list[Vector],
        metadatas: list[Metadata],
        documents: list[str],
        uris: None,
        tenant: str,
        database: str,
        chunks: str,
        exact: bool,
        dedupe: bool,
        history_namespace: str | None,
        codes: list[bytes | None] | None = None,
    ) -> dict[str, str]:
        """Write memories.

        One that is there already keeps when it was made, what metadata is not given again, and its position in its thread.
        One that has expired counts as gone.

        Args:
            collection_id: The collection.
            ids: All different.
            embeddings: A vector for each.
            metadatas: What is stored with each; without a position, when it was made is its position in its thread.
            documents: The texts.
            uris: None.
            tenant: Chroma's tenant.
            database: Chroma's database.
            chunks: The name of the collection that holds the chunks of long texts.
            exact: Leave nothing of the former memory, as for an import.
            dedupe: Refresh a text that was said before in its thread; else it is a new memory, unless it was made at the same
                moment.
            history_namespace: What the history calls the namespace, or None for no entry.
            codes: The code of the tokens of each (see :mod:`aiochroma.text.codes`), or None.

        Returns:
            The ids of those that were written under another id than the given one; see ``_moved``.
        """
        db: Database = {"tenant": tenant, "database": database}
        self._chunks.require(chunks, db, metadatas)
        now = time.time()
        old = self._known(collection_id, ids, db)
        moved = {} if exact else self._moved(collection_id, ids, documents, metadatas, old, db, dedupe=dedupe)
        if moved:
            self._chunks.move(moved, ids, metadatas, chunks, db)
            ids = [moved.get(id, id) for id in ids]
            old = self._known(collection_id, ids, db)
        expired = [id for id, record in old.items() if has_expired(record["metadata"], now)]
        known = {id: record for id, record in old.items() if id not in expired}
        positioned = self._positioned(collection_id, ids, metadatas, known, db)
        stored = [
            merged_metadata(metadata, known.get(id), exact=exact)
            for id, metadata in zip(ids, positioned, strict=True)
        ]
        actions = {id: "refresh" if id in known else "remember" for id in ids}
        with self._noted(history_namespace, db, actions, old, now):
            if expired:
                self._api.delete(collection_id, ids=expired, **db)
                self._deleted(str(collection_id), expired)
            self._api.upsert(collection_id, ids, embeddings, stored, documents, uris, **db)
        records = [
            written_over(known.get(id), id, document, metadata)
            for id, document, metadata in zip(ids, documents, stored, strict=True)
        ]
        self._written(str(collection_id), records, embeddings, codes)
        self._chunks.drop(chunks, db, old.values(), keep={entry.get(WRITING) for entry in stored})
        return moved

    def _moved(
        self,
        collection_id: CollectionId,
        ids: Sequence[str],
        documents: Sequence[str],
        metadatas: Sequence[MetadataView],
        old: Mapping[str, Record],
        db: Database,
        *,
        dedupe: bool,
    ) -> dict[str, str]:
        """Return other ids, for texts whose own id belongs to another memory, or that are there under another id.

        That is one which was changed to another text since, or, in a thread, one which was said before.
        """
        moved = {}
        texts = [
            SaidText(document, metadata, dedupe=dedupe)
            for document, metadata in zip(documents, metadatas, strict=True)
        ]
        own = {id: text for id, text in zip(ids, texts, strict=True) if id in text.own_ids}
        further = [id for text in own.values() for id in text.own_ids if id not in own]
        known = {**old, **(self._known(collection_id, further, db) if further else {})}
        for id, text in own.items():
            there = [one for one in text.own_ids if text.is_memory(known.get(one))]
            new, number = (there or [id])[0], 0
            while text.is_anothers(known.get(new)):
                number += 1
                new = text.id(number)
                if new not in known:
                    known.update(self._known(collection_id, [new], db))
            if new != id:
                moved[id] = new
        return moved

    def _positioned(
        self,
        collection_id: CollectionId,
        ids: Sequence[str],
        metadatas: Sequence[Metadata],
        known: Mapping[str, Record],
        db: Database,
    ) -> list[Metadata]:
        """Give memories that come into a thread without a position the positions behind its last one."""
        last: dict[str, float | None] = {}
        positioned = []
        for id, metadata in zip(ids, metadatas, strict=True):
            there = known[id]["metadata"] if id in known else {}
            thread = thread_position({**there, **metadata})[0]
            if thread is None or POSITION in metadata or thread == thread_position(there)[0]:
                positioned.append(metadata)
                continue
            if thread not in last:
                last[thread] = self._last_position(collection_id, thread, db)
            behind = last[thread]
            position = metadata[CREATED_AT] if behind is None else behind + 1
            positioned.append({**metadata, POSITION: position})
            last[thread] = None if behind is None else position
        return positioned

    def change(
        self,
        collection_id: CollectionId,
        ids: list[str],
        embeddings: list[Vector] | None,
        metadatas: list[Metadata],
        documents: list[str] | None,
        uris: None,
        tenant: str,
        database: str,
        chunks: str,
        action: str,
        history_namespace: str | None,
        codes: list[bytes | None] | None = None,
    ) -> list[Record]:
        """Change memories that are there, and return them as they are then; arguments as :meth:`remember`."""
        db: Database = {"tenant": tenant, "database": database}
        now = time.time()
        old = {
            id: record
            for id, record in self._known(collection_id, ids, db).items()
            if not has_expired(record["metadata"], now)
        }
        rows = [row for row, id in enumerate(ids) if id in old]
        # The chunks of a new text are written first; here there is no memory that they could belong to.
        absent = [record_of(id, None, metadatas[row]) for row, id in enumerate(ids) if id not in old]
        self._chunks.drop(chunks, db, absent, keep=set())
        if not rows:
            return []
        self._chunks.require(chunks, db, [metadatas[row] for row in rows])
        texts = [documents[row] for row in rows] if documents is not None else None
        given = [with_exact_floats(metadatas[row], old[ids[row]]["metadata"]) for row in rows]
        if texts is not None:
            # The chunks and the sparse vector are those of the new text, or none.
            given = [{CHUNKS: None, WRITING: None, SPARSE: None, **metadata} for metadata in given]
        with self._noted(history_namespace, db, {ids[row]: action for row in rows}, old, now):
            self._api.update(
                collection_id,
                [ids[row] for row in rows],
                [embeddings[row] for row in rows] if embeddings is not None else None,
                given,
                texts,
                uris,
                **db,
            )
        changed = []
        for number, row in enumerate(rows):
            record = old[ids[row]]
            text = record["document"] if texts is None else texts[number]
            changed.append(written_over(record, ids[row], text, given[number]))
        self._written(
            str(collection_id),
            changed,
            None if embeddings is None else [embeddings[row] for row in rows],
            None if codes is None else [codes[row] for row in rows],
        )
        if texts is not None:
            self._chunks.drop(chunks, db, old.values(), keep={metadata.get(WRITING) for metadata in given})
        return changed

    def forget(
        self,
        collection_id: CollectionId,
        ids: list[str],
        tenant: str,
        database: str,
        chunks: str,
        others: list[str],
        action: str,
        expired_only: bool,
        history_namespace: str | None,
    ) -> list[str]:
        """Delete memories, or those of them that have expired, and return the ids that were here.

        ``others`` are the names of collections that hold them too: the original whose place this one has taken, a copy of it.
        """
        db: Database = {"tenant": tenant, "database": database}
        now = time.time()
        old = self._known(collection_id, ids, db)
        if expired_only:
            # One may have been remembered again or pinned since it was looked up.
            old = {id: record for id, record in old.items() if has_expired(record["metadata"], now)}
        for other in others:
            holder = self._chunks.delete_from(other, list(old) if expired_only else ids, db)
            if holder is not None:
                self._deleted(str(holder), ids)
        if not old:
            return []
        gone = list(old)
        with self._noted(history_namespace, db, dict.fromkeys(gone, action), old, now):
            self._api.delete(collection_id, ids=gone, **db)
        self._deleted(str(collection_id), gone)
        self._chunks.drop(chunks, db, old.values(), keep=set())
        return gone

    def drop_chunks(
        self,
        collection_id: CollectionId,
        ids: list[str],
        metadatas: list[Metadata],
        chunks: str,
        **db: Unpack[Database],
    ) -> list[str]:
        """Delete the chunks that were written for memories which were not; see ``Chunks.drop_unwritten``."""
        keep = self.writings(collection_id, **db)
        return self._chunks.drop_unwritten(chunks, db, dict(zip(ids, metadatas, strict=True)), keep)

    def writings(self, collection_id: CollectionId, **db: Unpack[Database]) -> list[str]:
        """Return the writings of all memories that have chunks; see ``Reader``."""
        return self._reader.writings(collection_id, **db)

    # -- listing -------------------------------------------------------------------------------------------------------

    def page(
        self, collection_id: CollectionId, spec: ListSpec, tenant: str, database: str
    ) -> Sequence[Record]:
        """Return a page of the memories of a collection, in order."""
        db: Database = {"tenant": tenant, "database": database}
        found = self._api.get(collection_id, where=filter_of(spec), include=["metadatas"], **db)
        metadatas = {
            id: metadata or {} for id, metadata in zip(found["ids"], found["metadatas"], strict=True)
        }
        ids = page_ids(metadatas, spec)
        records = self._reader.records(collection_id, ids, None, db)
        return [records[id] for id in ids if id in records]

    def read(
        self, collection_id: CollectionId, ids: list[str], tenant: str, database: str
    ) -> list[Record | None]:
        """Return the record of each id, with the values that searches show; None where there is none."""
        known = self._known(collection_id, list(dict.fromkeys(ids)), {"tenant": tenant, "database": database})
        return [known.get(id) for id in ids]

    def ids(
        self, collection_id: CollectionId, where: Where | None, after: int, limit: int, **db: Unpack[Database]
    ) -> tuple[list[str], int] | None:
        """Return a page of the ids of the records that pass a filter, or of all; None where Chroma is to be asked for them.

        Args:
            collection_id: The collection.
            where: Chroma's filter over metadata, or None.
            after: What came with the page before; 0 for the first page.
            limit: The most ids of a page that an index gives; without an index all come at once.
            db: Chroma's tenant and database.

        Returns:
            The ids, and what the next page comes after; 0 for the last page.
        """
        del after, limit  # Chroma's pages cost more than one piece: it reads 100,000 ids in 0.2 s.
        return self._api.get(collection_id, where=where, include=[], **db)["ids"], 0

    def count(self, collection_id: CollectionId, tenant: str, database: str) -> int:
        """Return how many records a collection has."""
        return self._api.count(collection_id, tenant=tenant, database=database)

    # -- what an index and a history add -------------------------------------------------------------------------------

    def history(
        self, namespace: str | None, id: str | None, limit: int, tenant: str, database: str
    ) -> list[Entry]:
        """Return what changed in a database, newest first."""
        log = self._log()
        return [] if log is None else log.read(database_key(tenant, database), namespace, id, limit)

    def code(
        self, collection_id: CollectionId, ids: list[str], codes: list[bytes], tenant: str, database: str
    ) -> None:
        """Keep the codes of the tokens of memories; without an index there is nowhere to keep them."""

    def without_code(self, collection_id: CollectionId, tenant: str, database: str) -> list[str]:  # noqa: ARG002 - see above
        """Return the ids of the memories that lack the code of their tokens, where codes are kept."""
        return []

    def _log(self) -> ChangeLog | None:
        return None

    def _last_position(self, collection_id: CollectionId, thread: str, db: Database) -> float | None:  # noqa: ARG002 - no index here
        """Return the last position of a conversation, 0 for an empty one; None where only a clock can tell."""
        return None

    def _known(self, collection_id: CollectionId, ids: list[str], db: Database) -> dict[str, Record]:
        """Return the records that are there, of ids."""
        return self._reader.records(collection_id, ids, None, db)

    def _written(
        self,
        collection: str,
        records: Sequence[Record],
        vectors: Sequence[Vector] | None,
        codes: Sequence[bytes | None] | None,
    ) -> None:
        """Follow a write, after which the records are these."""

    def _deleted(self, collection: str, ids: Sequence[str]) -> None:
        """Follow a deletion."""

    @contextmanager
    def _noted(
        self,
        history_namespace: str | None,
        db: Database,
        actions: Mapping[str, str],
        old: Mapping[str, Record],
        now: float,
    ) -> Iterator[None]:
        """Note what is about to be done to memories, by their ids, and take it back where it is certain not to happen."""
        log = None if history_namespace is None else self._log()
        if log is None or history_namespace is None:
            yield
            return
        entries = [
            Entry(now, action, history_namespace, id, *before(old.get(id))) for id, action in actions.items()
        ]
        noted = log.note(database_key(**db), entries)
        try:
            yield
        except BaseException as error:
            if is_not_written(error):
                log.withdraw(noted)
            raise

    def namespaces(self, tenant: str, database: str) -> list[str]:
        """Return the names of the namespaces, sorted."""
        collections = self._api.collections(tenant=tenant, database=database)
        names = (namespace_in(one.name, one.metadata or {}) for one in collections)
        return sorted(name for name in names if name is not None)

    def collections_changed(self, *, renamed: bool) -> None:
        """Look up again which collections hold chunks, and which were replaced: one may have been made, renamed or deleted."""
        self._chunks.forget_holders()
        if renamed:
            self._reader.in_place.clear()
