"""Embedding namespaces again with another embedder, beside whoever searches them.

A collection of Chroma has vectors of one length, so the new vectors go into a copy, page by page, and the namespace stays as it
is until the copy is complete. Before the copy takes over it is compared with the original, record by record, and what has
changed meanwhile is copied again. Then it takes the namespace's name, and writes go to it and not to the original any more (see
``MemoryRecords``). Changes that reached the original last are carried over afterwards, except to memories that have changed in
the copy. An interrupted run goes on with the copy that is there. Only one run is under way in a database (``ExclusiveRun``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiochroma._errors import InvalidInputError, StoreUnavailableError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject, Metadata
from aiochroma._waiting import rest
from aiochroma.client.options import check_progress
from aiochroma.memory.arguments import checked_names
from aiochroma.memory.codes import complete_codes, complete_index, write_codes
from aiochroma.memory.copies import (
    COMPLETE,
    COPY_EMBEDDER,
    COPY_OF,
    SINCE,
    ExclusiveRun,
    copy_name,
    delete_replaced,
    digest,
    drop_copies,
    lacks_sparse,
    restore_names,
    sparse_mark,
    take_over,
    without_derived,
)
from aiochroma.memory.vectors import CHUNKS_FOR, new_writings, write_chunks
from aiochroma.records.reading import BELIEVED_SECONDS, is_aside, sparse_embedder_of
from aiochroma.records.record import (
    CHUNKS,
    DIMENSIONS,
    FINGERPRINT,
    REPLACED,
    SETTLING,
    SETTLING_SECONDS,
    SPARSE,
    UPDATED_AT,
    WRITING,
    chunks_name,
    collection_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from chromadb.types import Collection

    from aiochroma.memory.opening import Life
    from aiochroma.memory.store import Store
    from aiochroma.memory.vectors import Embedded

__all__ = ["Copying", "ReembedReport", "finish_interrupted", "reembed"]

log: EventLogger = get_logger("aiochroma.memory")

_PAGE = 256
_MOST_PASSES = 20
_MOST_SETTLINGS = 3
_TAKING_OVER_SECONDS = 2.0
_ON_THE_WAY_SECONDS = 1.0
"""How long a write to a server may take from the moment when its client was sure of the collection."""
_LATE_SECONDS = 60.0
"""How much later than its moment a memory may be written: it is embedded in between."""


@dataclass(frozen=True)
class ReembedReport:
    """What was done with the namespaces that were to be embedded again.

    Attributes:
        embedded: How many memories of each namespace were embedded.
        unchanged: The namespaces whose vectors are this embedder's already.
        left: The namespaces that stay as they were, because the embedder finds nothing in some of their texts, with the ids of
            those memories.
    """

    embedded: dict[str, int] = field(default_factory=dict)
    unchanged: tuple[str, ...] = ()
    left: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether all namespaces have vectors of this embedder now."""
        return not self.left


def reembed(
    life: Life,
    namespaces: Iterable[str] | str | None,
    *,
    progress: Callable[[str, int, int], None] | None,
) -> Coroutine[object, object, ReembedReport]:
    """Embed namespaces again; see ``Memory.reembed``."""
    check_progress(progress)
    names = checked_names(namespaces)

    async def work(store: Store) -> ReembedReport:
        async with ExclusiveRun(store) as run:
            return await embed(store, run)

    async def embed(store: Store, run: ExclusiveRun) -> ReembedReport:
        await finish_interrupted(store, run)
        report = ReembedReport()
        unchanged = []
        for name in await store.names() if names is None else names:
            model = await store.collection(collection_name(name))
            if model is None or (await store.is_mine(model) and not lacks_sparse(store, model)):
                coded = 0 if model is None else await complete_codes(store, name, progress)
                if coded:
                    report.embedded[name] = coded
                else:
                    unchanged.append(name)
                continue
            copying = Copying(store, run, name, model, progress)
            if await copying.run():
                report.embedded[name] = copying.embedded
            else:
                report.left[name] = tuple(sorted(copying.left))
        return ReembedReport(report.embedded, tuple(unchanged), report.left)

    return life.run("reembed", work, None)


async def finish_interrupted(store: Store, run: ExclusiveRun) -> None:
    """Let copies take over whose run was interrupted in the middle of it, and delete what copies have replaced."""
    await restore_names(store, await store.collections())
    for model in await store.collections():
        metadata = model.metadata or {}
        if is_aside(metadata) and SINCE in metadata:
            present = await store.collection(collection_name(str(metadata[REPLACED])))
            if present is not None and await store.is_mine(present):
                await Copying(store, run, str(metadata[REPLACED]), model, None).rescue(
                    present, metadata[SINCE]
                )
    await delete_replaced(store)


class Copying:
    """Makes the copy of one namespace.

    Attributes:
        embedded: How many texts were embedded.
        left: The ids of memories in whose text the embedder finds nothing.
        store: Where the namespace is.
        original: Its collection.
    """

    def __init__(
        self,
        store: Store,
        run: ExclusiveRun,
        name: str,
        model: Collection,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self.embedded: int = 0
        self.left: set[str] = set()
        self.store: Store = store
        self._run = run
        self._name = name
        self.original: Collection = model
        self._progress = progress
        self._chunks: tuple[str, Metadata] = (copy_name(name, "chunks"), {COPY_OF: name})
        self._copied: dict[str, bytes] = {}  # The digests of what the copy has of the original.

    async def run(self) -> bool:
        """Make the copy and let it take over; return whether it did."""
        from chromadb.errors import NotFoundError

        try:
            return await self._copied_whole()
        except NotFoundError as error:
            raise self._deleted() from error

    def _deleted(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"The namespace {self._name!r} was deleted while it was copied, or erased from; what is there now stays as it is."
        )

    async def _copied_whole(self) -> bool:
        store = self.store
        copy = await self._made()
        compared = time.time()
        changed = await self._pass(copy)
        self._progress = None  # What follows looks for changes, mostly none.
        since: float | None = None
        for _ in range(_MOST_PASSES if changed else 0):
            if since is None:
                compared = time.time()
            changed = await self._pass(copy, since)
            if not changed:
                break
            if changed <= _PAGE:
                # Somebody writes all the time. From now on the changes are few, and are found by their moments.
                since = compared - _LATE_SECONDS
        if changed > _PAGE:
            raise StoreUnavailableError(
                f"The namespace {self._name!r} is written to faster than it can be embedded again; stop the writer for a while."
            )
        if self.left:
            return False
        await complete_index(store, copy.id)
        await self._settle(copy, compared - _LATE_SECONDS)
        copy.metadata = {**(copy.metadata or {}), COMPLETE: True, SINCE: compared - _LATE_SECONDS}
        await store.submit("_modify", id=copy.id, new_metadata=copy.metadata, **store.database)
        await self._run.check()
        models = await store.collections()
        self._unless_deleted(models, collection_name(self._name), self.original)
        self._unless_deleted(models, copy.name, copy)
        await take_over(store, self._name, copy, models)
        self._in_use()
        await self._until_known()
        for _ in range(_MOST_PASSES):
            if not await self._carry_over(copy):
                break
        await delete_replaced(store)
        log.info("reembed.done", namespace=self._name, memories=self.embedded)
        return True

    async def _settle(self, copy: Collection, since: float) -> None:
        """Have writers wait until the copy has taken over, and copy what they have written since a moment."""
        store = self.store
        for _ in range(_MOST_SETTLINGS):
            models = await store.collections()
            present = self._unless_deleted(models, collection_name(self._name), self.original)
            until = time.time() + SETTLING_SECONDS
            metadata = {**(present.metadata or {}), SETTLING: until}
            await store.submit("_modify", id=present.id, new_metadata=metadata, **store.database)
            await self._until_known()
            await self._pass(copy, since)
            if time.time() < until - _TAKING_OVER_SECONDS:
                return
        raise StoreUnavailableError(
            f"What is written to the namespace {self._name!r} meanwhile takes too long to embed; stop the writer for a while."
        )

    def _unless_deleted(self, models: Sequence[Collection], name: str, known: Collection) -> Collection:
        """Return the collection that has a name now, which is the one that is known."""
        present = next((model for model in models if model.name == name and model.id == known.id), None)
        if present is None:
            raise self._deleted()
        return present

    async def _until_known(self) -> None:
        """Wait until all clients of a server know what became of the original; in a directory everybody knows at once."""
        if self.store.capabilities.parallel_calls:
            await rest(BELIEVED_SECONDS + _ON_THE_WAY_SECONDS)

    async def rescue(self, present: Collection, since: float) -> None:
        """Copy what was written to the original after its copy took over, or just before; the copy is in use."""
        self._in_use()
        ids = await self._ids(self.original, {UPDATED_AT: {"$gte": since}})
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            here = await self._read(present, page)
            newer = {
                id: record
                for id, record in (await self._read(self.original, page)).items()
                if id not in here or here[id][1].get(UPDATED_AT, 0.0) < record[1][UPDATED_AT]
            }
            if newer:
                await self._copy(present, newer)

    def _in_use(self) -> None:
        """Note that the copy has taken over: from now on chunks go to the namespace's own collection of chunks."""
        self._chunks = (chunks_name(self._name), {CHUNKS_FOR: self._name})

    async def _made(self) -> Collection:
        """Return the copy, as far as an earlier run came; the copy of another embedder is deleted and begun again."""
        store, name = self.store, self._name
        metadata = {
            COPY_OF: name,
            COPY_EMBEDDER: store.embedder.identity,
            FINGERPRINT: await store.fingerprint(),
            DIMENSIONS: store.embedder.dimensions,
            **sparse_mark(store, self.original),
        }
        found = await store.collection(copy_name(name, ""))
        if found is not None and metadata == {
            key: value for key, value in (found.metadata or {}).items() if key not in {COMPLETE, SINCE}
        }:
            return found
        await drop_copies(store, name)
        return await store.make_collection(copy_name(name, ""), metadata)

    async def _pass(self, copy: Collection, since: float | None = None) -> int:
        """Compare the copy with the original, and copy records that are missing or different; return their number.

        Args:
            copy: The copy.
            since: Only records of this moment (seconds since 1970) or later are compared, and the ids of all; None for all.
        """
        store = self.store
        ids = await self._ids(self.original)
        gone = sorted(set(await self._ids(copy)) - set(ids))
        await self._run.check()
        for start in range(0, len(gone), _PAGE):
            await store.submit(
                "_delete", collection_id=copy.id, ids=gone[start : start + _PAGE], **store.database
            )
            for id in gone[start : start + _PAGE]:
                self._copied.pop(id, None)
        changed = len(gone)
        if since is not None:
            ids = await self._ids(self.original, {UPDATED_AT: {"$gte": since}})
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            await self._run.check()
            there = await self._read(self.original, page)
            here = await self._digests(copy, page)
            for id in page:
                # What was forgotten has left the copy, too; remembered again just as it was it is to be copied.
                self._copied.pop(id, None)
            self._copied |= here
            different = self._different(there)
            if different:
                changed += await self._copy(copy, different)
                self._copied |= {id: digest(record) for id, record in different.items()}
            if self._progress is not None:
                self._progress(self._name, min(start + _PAGE, len(ids)), len(ids))
        return changed

    async def _carry_over(self, copy: Collection) -> bool:
        """Copy changes of the original into the copy, which is in use; return whether there were any."""
        store = self.store
        ids = await self._ids(self.original)
        gone = sorted(set(self._copied) - set(ids))
        await self._run.check()
        for start in range(0, len(gone), _PAGE):
            page = gone[start : start + _PAGE]
            here = await self._digests(copy, page)
            unchanged = [id for id in page if self._copied.pop(id) == here.get(id)]
            if unchanged:
                await store.submit("_delete", collection_id=copy.id, ids=unchanged, **store.database)
        changed = bool(gone)
        for start in range(0, len(ids), _PAGE):
            different = self._different(await self._read(self.original, ids[start : start + _PAGE]))
            if different:
                await self._copy(copy, different, in_use=True)
                self._copied |= {id: digest(record) for id, record in different.items()}
                changed = True
        return changed

    def _different(self, there: dict[str, tuple[str, Metadata]]) -> dict[str, tuple[str, Metadata]]:
        return {
            id: record
            for id, record in there.items()
            if id not in self.left and self._copied.get(id) != digest(record)
        }

    async def _ids(self, model: Collection, where: JsonObject | None = None) -> list[str]:
        store = self.store
        found = await store.submit("_get", collection_id=model.id, where=where, include=[], **store.database)
        ids: list[str] = found["ids"]
        return ids

    async def _read(self, model: Collection, ids: list[str]) -> dict[str, tuple[str, Metadata]]:
        store = self.store
        found = await store.submit(
            "_get", collection_id=model.id, ids=ids, include=["documents", "metadatas"], **store.database
        )
        return {
            id: (document or "", metadata or {})
            for id, document, metadata in zip(
                found["ids"], found["documents"], found["metadatas"], strict=True
            )
        }

    async def _digests(self, model: Collection, ids: list[str]) -> dict[str, bytes]:
        return {id: digest(record) for id, record in (await self._read(model, ids)).items()}

    async def _copy(
        self, copy: Collection, records: dict[str, tuple[str, Metadata]], *, in_use: bool = False
    ) -> int:
        """Embed records and write them into the copy; return how many were written.

        Where the copy is ``in_use``, records that somebody has changed in it stay as they are.
        """
        store = self.store
        vectors = await self.vectors(records)
        await self._run.check()
        if in_use:
            here = await self._digests(copy, list(vectors))
            vectors = {id: one for id, one in vectors.items() if here.get(id) == self._copied.get(id)}
        if not vectors:
            return 0
        writings: dict[str, Metadata] = {}
        sparse = sparse_embedder_of(copy)
        long = {id: one.chunks for id, one in vectors.items() if one.chunks}
        if long:
            made, writings = await store.make_collection(*self._chunks), new_writings(long)
            await write_chunks(store, made.id, long, writings)
        await store.submit(
            "_upsert",
            bulk=True,
            collection_id=copy.id,
            ids=list(vectors),
            embeddings=[one.vector for one in vectors.values()],
            documents=[records[id][0] for id in vectors],
            # Chroma keeps what is not named; None takes it away.
            metadatas=[
                {
                    **dict.fromkeys((CHUNKS, WRITING, SPARSE)),
                    **without_derived(records[id][1]),
                    **writings.get(id, {}),
                    **one.sparse_key(sparse, records[id][1]),
                }
                for id, one in vectors.items()
            ],
            uris=None,
            **store.database,
        )
        await write_codes(store, copy.id, vectors)
        self.embedded += len(vectors)
        return len(vectors)

    async def vectors(self, records: Mapping[str, tuple[str, Metadata]]) -> dict[str, Embedded]:
        """Return the vectors of records; note in ``left`` those in whose text the embedder finds nothing."""
        texts = {id: text for id, (text, _) in records.items()}
        try:
            return dict(zip(texts, await self.store.embed(list(texts.values()), is_query=False), strict=True))
        except InvalidInputError:
            found = {}
            for id, text in texts.items():
                try:
                    (found[id],) = await self.store.embed([text], is_query=False)
                except InvalidInputError:  # noqa: PERF203 - one at a time, to know which
                    self.left.add(id)
            return found
