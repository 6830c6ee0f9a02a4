"""Embedding namespaces again with another embedder, beside whoever searches them.

Chroma's collections have vectors of one length, so the new vectors go into a copy, page by page; until the copy is complete the
namespace is what it was. Then the copy takes its name. What was changed meanwhile is copied again, and the copy is compared with
the original, record by record, before it takes over. From then on it is written to like any namespace, so of the original it
gets only what was changed there since that comparison, and only where nobody has changed the same memory in the copy. An
interrupted run goes on where it stopped: the copy is there, and says how far it came.

Where the embedder gives the states of tokens, memories that have no code of theirs get one: those written by a release that kept
none, and those of an index that was made again from Chroma's records.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiochroma._errors import InvalidInputError, StoreUnavailableError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import Metadata, MetadataView
from aiochroma.memory.remembering import CHUNKS_FOR, write_chunks_into
from aiochroma.memory.store import checked_names
from aiochroma.records.record import (
    CHUNKS,
    DIMENSIONS,
    EMBEDDER,
    FINGERPRINT,
    NAMESPACE,
    WRITING,
    Record,
    chunks_name,
    collection_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from chromadb.types import Collection

    from aiochroma.memory.opening import Life
    from aiochroma.memory.store import Store
    from aiochroma.memory.vectors import Embedded

__all__ = ["ReembedReport", "reembed", "restore_names"]

log: EventLogger = get_logger("aiochroma.memory")

COPY_OF = "aiochroma:copy_of"
"""In the metadata of a copy that is being made: the namespace."""
COPY_EMBEDDER = "aiochroma:copy_embedder"
COMPLETE = "aiochroma:copy_complete"
"""True from the moment when the copy is to take over: who finds it so finishes that."""
REPLACED = "aiochroma:replaced"
"""In the metadata of an original whose copy has taken over: the namespace."""

_PAGE = 256
_MOST_PASSES = 20


@dataclass(frozen=True)
class ReembedReport:
    """What was done with the namespaces that were to be embedded again.

    Attributes:
        embedded: How many memories of each namespace were embedded.
        unchanged: The namespaces whose vectors are this embedder's already.
        left: The namespaces that are as they were, because the embedder finds nothing in some of their texts; with the ids of
            these memories.
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
    names = checked_names(namespaces)

    async def work(store: Store) -> ReembedReport:
        await finish_interrupted(store)
        report = ReembedReport()
        unchanged = []
        for name in await store.names() if names is None else names:
            model = await store.collection(collection_name(name))
            if model is None or await store.is_mine(model.metadata or {}):
                coded = 0 if model is None else await _complete_codes(store, name)
                if coded:
                    report.embedded[name] = coded
                else:
                    unchanged.append(name)
                continue
            copying = _Copying(store, name, model, progress)
            if await copying.run():
                report.embedded[name] = copying.embedded
            else:
                report.left[name] = tuple(sorted(copying.left))
        return ReembedReport(report.embedded, tuple(unchanged), report.left)

    return life.run("reembed", work, None)


async def _complete_codes(store: Store, name: str) -> int:
    """Embed the tokens of the memories that have no code; return how many have one now.

    One whose vector is not that of its text, because another program gave it one, stays without.
    """
    namespace = await store.existing(name)
    if namespace is None or not (store.embedder.gives_tokens and store.capabilities.full_text):
        return 0
    while await store.submit("index_memories", **namespace.collection) < 1.0:
        pass
    ids: list[str] = await store.submit("memories_without_code", **namespace.collection)
    asked: list[str] = []
    for start in range(0, len(ids), _PAGE):
        page = ids[start : start + _PAGE]
        records: list[Record | None] = await store.submit("read_memories", **namespace.collection, ids=page)
        # A long text is found by its chunks, and has no code.
        texts = {
            record["id"]: record["document"]
            for record in records
            if record is not None and CHUNKS not in record["metadata"]
        }
        if texts:
            embedded = await store.embed(list(texts.values()), is_query=False)
            await _write_codes(
                store, namespace.collection["collection_id"], dict(zip(texts, embedded, strict=True))
            )
        asked += texts
    left = set(await store.submit("memories_without_code", **namespace.collection)) if asked else set()
    return sum(id not in left for id in asked)


async def _write_codes(store: Store, collection: object, embedded: Mapping[str, Embedded]) -> None:
    codes = {id: one.code for id, one in embedded.items() if one.code is not None}
    if codes:
        await store.submit(
            "code_memories",
            bulk=True,
            collection_id=collection,
            ids=list(codes),
            codes=list(codes.values()),
            **store.database,
        )


async def restore_names(store: Store, models: Sequence[Collection]) -> None:
    """Let a copy take over whose run was interrupted when its namespace had no name any more; for opening.

    A running job is never seen in this state: no other request comes between its changes of names.
    """
    names = {model.name for model in models}
    for model in models:
        metadata = model.metadata or {}
        if metadata.get(COMPLETE) and collection_name(str(metadata[COPY_OF])) not in names:
            await _take_over(store, str(metadata[COPY_OF]), model, models)


async def finish_interrupted(store: Store) -> None:
    """Let copies that were complete when a run was interrupted take over, and delete what they have replaced."""
    models = await store.collections()
    for model in models:
        metadata = model.metadata or {}
        if metadata.get(COMPLETE):
            await _take_over(store, str(metadata[COPY_OF]), model, models)
    for model in await store.collections():
        if REPLACED in (model.metadata or {}):
            await store.submit("delete_collection", name=model.name, **store.database)


async def _take_over(store: Store, name: str, copy: Collection, models: Sequence[Collection]) -> None:
    """Give a copy the name of its namespace, and its original another."""
    by_name = {model.name: model for model in models}
    known = copy.metadata or {}
    steps: list[Metadata] = []
    for present, replacement, aside, metadata in (
        (chunks_name(name), _copy_name(name, "chunks"), _aside_name(name, "chunks"), {CHUNKS_FOR: name}),
        (
            collection_name(name),
            copy.name,
            _aside_name(name, ""),
            {
                NAMESPACE: name,
                EMBEDDER: known[COPY_EMBEDDER],
                DIMENSIONS: known[DIMENSIONS],
                FINGERPRINT: known[FINGERPRINT],
            },
        ),
    ):
        if present in by_name:
            steps.append(_renamed(by_name[present], aside, {REPLACED: name}))
        if replacement in by_name:
            steps.append(_renamed(by_name[replacement], present, metadata))
    # Submitted together they stand next to each other in the queue: no caller finds the namespace missing in between.
    for outcome in await store.submit_many([("_modify", {**step, **store.database}) for step in steps]):
        if outcome.error is not None:
            raise outcome.error
    store.drop(name)


def _renamed(model: Collection, name: str, metadata: MetadataView) -> Metadata:
    return {"id": model.id, "new_name": name, "new_metadata": metadata}


class _Copying:
    """The copy of one namespace, as far as it is made.

    Attributes:
        embedded: How many texts were embedded.
        left: The ids of memories in whose text the embedder finds nothing.
    """

    def __init__(
        self, store: Store, name: str, model: Collection, progress: Callable[[str, int, int], None] | None
    ) -> None:
        self.embedded = 0
        self.left: set[str] = set()
        self._store = store
        self._name = name
        self._original = model
        self._progress = progress
        self._chunks: tuple[str, Metadata] = (_copy_name(name, "chunks"), {COPY_OF: name})
        self._copied: dict[str, bytes] = {}  # The digests of what the copy has of the original.

    async def run(self) -> bool:
        """Make the copy and let it take over; return whether it did."""
        store = self._store
        copy = await self._made()
        for _ in range(_MOST_PASSES):
            if not await self._pass(copy):
                break
        else:
            raise StoreUnavailableError(
                f"The namespace {self._name!r} is written to faster than it can be embedded again; stop the writer for a while."
            )
        if self.left:
            return False
        await store.submit(
            "_modify", id=copy.id, new_metadata={**(copy.metadata or {}), COMPLETE: True}, **store.database
        )
        await _take_over(store, self._name, copy, await store.collections())
        self._chunks = (chunks_name(self._name), {CHUNKS_FOR: self._name})
        while await self._carry_over(copy):
            pass
        await finish_interrupted(store)
        log.info("reembed.done", namespace=self._name, memories=self.embedded)
        return True

    async def _made(self) -> Collection:
        """Return the copy, as far as it came before; one of another embedder is begun again."""
        store, name = self._store, self._name
        metadata = {
            COPY_OF: name,
            COPY_EMBEDDER: store.embedder.identity,
            FINGERPRINT: await store.fingerprint(),
            DIMENSIONS: store.embedder.dimensions,
        }
        found = await store.collection(_copy_name(name, ""))
        if found is not None and found.metadata == metadata:
            return found
        for copied in ("", "chunks"):
            left = await store.collection(_copy_name(name, copied))
            if left is not None:
                await store.submit("delete_collection", name=left.name, **store.database)
        return await store.make_collection(_copy_name(name, ""), metadata)

    async def _pass(self, copy: Collection) -> bool:
        """Compare the copy with the original and make what is missing or different; return whether there was any."""
        store = self._store
        ids = await self._ids(self._original)
        gone = sorted(set(await self._ids(copy)) - set(ids))
        for start in range(0, len(gone), _PAGE):
            await store.submit(
                "_delete", collection_id=copy.id, ids=gone[start : start + _PAGE], **store.database
            )
        changed = bool(gone)
        self._copied.clear()
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            there = await self._read(self._original, page)
            self._copied |= await self._digests(copy, page)
            different = self._different(there)
            if different:
                changed = await self._copy(copy, different) or changed
            if self._progress is not None:
                self._progress(self._name, min(start + _PAGE, len(ids)), len(ids))
        return changed

    async def _carry_over(self, copy: Collection) -> bool:
        """Bring what was changed in the original into the copy, which is in use; return whether there was any."""
        store = self._store
        ids = await self._ids(self._original)
        gone = sorted(set(self._copied) - set(ids))
        for start in range(0, len(gone), _PAGE):
            page = gone[start : start + _PAGE]
            here = await self._digests(copy, page)
            unchanged = [id for id in page if self._copied.pop(id) == here.get(id)]
            if unchanged:
                await store.submit("_delete", collection_id=copy.id, ids=unchanged, **store.database)
        changed = bool(gone)
        for start in range(0, len(ids), _PAGE):
            different = self._different(await self._read(self._original, ids[start : start + _PAGE]))
            if different:
                await self._copy(copy, different, in_use=True)
                self._copied |= {id: _digest(record) for id, record in different.items()}
                changed = True
        return changed

    def _different(self, there: dict[str, tuple[str, Metadata]]) -> dict[str, tuple[str, Metadata]]:
        return {
            id: record
            for id, record in there.items()
            if id not in self.left and self._copied.get(id) != _digest(record)
        }

    async def _ids(self, model: Collection) -> list[str]:
        store = self._store
        found = await store.submit("_get", collection_id=model.id, include=[], **store.database)
        ids: list[str] = found["ids"]
        return ids

    async def _read(self, model: Collection, ids: list[str]) -> dict[str, tuple[str, Metadata]]:
        store = self._store
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
        return {id: _digest(record) for id, record in (await self._read(model, ids)).items()}

    async def _copy(
        self, copy: Collection, records: dict[str, tuple[str, Metadata]], *, in_use: bool = False
    ) -> bool:
        """Embed records and write them into the copy; return whether there were any that can be embedded.

        If it is ``in_use``, those that somebody has changed in it are left as they are.
        """
        store = self._store
        vectors = await self._vectors({id: text for id, (text, _) in records.items()})
        if in_use:
            here = await self._digests(copy, list(vectors))
            vectors = {id: one for id, one in vectors.items() if here.get(id) == self._copied.get(id)}
        if not vectors:
            return False
        writings: dict[str, Metadata] = {}
        long = {id: one.chunks for id, one in vectors.items() if one.chunks}
        if long:
            made = await store.make_collection(*self._chunks)
            writings = await write_chunks_into(store, made.id, long)
        await store.submit(
            "_upsert",
            bulk=True,
            collection_id=copy.id,
            ids=list(vectors),
            embeddings=[one.vector for one in vectors.values()],
            documents=[records[id][0] for id in vectors],
            # Chroma keeps what is not named; None takes it away.
            metadatas=[
                {CHUNKS: None, WRITING: None, **_without_chunks(records[id][1]), **writings.get(id, {})}
                for id in vectors
            ],
            uris=None,
            **store.database,
        )
        await _write_codes(store, copy.id, vectors)
        self.embedded += len(vectors)
        return True

    async def _vectors(self, texts: dict[str, str]) -> dict[str, Embedded]:
        """Embed texts; note those in which the embedder finds nothing."""
        try:
            return dict(
                zip(texts, await self._store.embed(list(texts.values()), is_query=False), strict=True)
            )
        except InvalidInputError:
            found = {}
            for id, text in texts.items():
                one = await self._embedded(text)
                if one is None:
                    self.left.add(id)
                else:
                    found[id] = one
            return found

    async def _embedded(self, text: str) -> Embedded | None:
        try:
            return (await self._store.embed([text], is_query=False))[0]
        except InvalidInputError:
            return None


def _digest(record: tuple[str, Metadata]) -> bytes:
    """Return what two records are compared by: all but the number of their chunks, and the last digits of fractions.

    Chroma does not always give back the last one.
    """
    values = sorted(
        (name, float(f"{value:.14g}") if isinstance(value, float) else value)
        for name, value in _without_chunks(record[1]).items()
    )
    return hashlib.sha256(repr((record[0], values)).encode()).digest()


def _without_chunks(metadata: Metadata) -> Metadata:
    return {name: value for name, value in metadata.items() if name not in {CHUNKS, WRITING}}


def _copy_name(namespace: str, what: str) -> str:
    return f"ns.reembed{what}-{hashlib.sha256(namespace.encode()).hexdigest()}.x"


def _aside_name(namespace: str, what: str) -> str:
    return f"ns.replaced{what}-{hashlib.sha256(namespace.encode()).hexdigest()}.x"
