"""The copies of namespaces that are embedded again: their names, their marks, and how they take over.

A copy stands beside its original under a name that no namespace has. When it takes over, the original steps aside, under another
such name, until it is deleted.

One program at a time makes copies in a database: of two, one would take what the other deletes for forgotten.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, TypeVar

from aiochroma._clock import monotonic
from aiochroma._errors import (
    AiochromaError,
    InvalidInputError,
    NamespaceMovingError,
    StoreUnavailableError,
)
from aiochroma._types import Metadata, MetadataView
from aiochroma._waiting import rest
from aiochroma.disk.ownership import is_alive
from aiochroma.memory.vectors import CHUNKS_FOR
from aiochroma.records.reading import is_aside, sparse_embedder_of
from aiochroma.records.record import (
    CHUNKS,
    DIMENSIONS,
    EMBEDDER,
    FINGERPRINT,
    NAMESPACE,
    REPLACED,
    SPARSE,
    SPARSE_EMBEDDER,
    WRITING,
    aside_name,
    chunks_name,
    collection_name,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from chromadb.types import Collection

    from aiochroma.memory.store import Store

__all__ = [
    "COMPLETE",
    "COPY_EMBEDDER",
    "COPY_OF",
    "SINCE",
    "ExclusiveRun",
    "OtherRunError",
    "copy_name",
    "delete_collection",
    "delete_replaced",
    "digest",
    "drop_copies",
    "lacks_sparse",
    "no_sparse_vectors",
    "restore_names",
    "settled",
    "sparse_mark",
    "step_aside",
    "take_over",
    "without_derived",
]

T = TypeVar("T")

_IDS_AT_ONCE = 2048

COPY_OF = "aiochroma:copy_of"
"""In the metadata of a copy that is being made: the namespace."""
COPY_EMBEDDER = "aiochroma:copy_embedder"
COMPLETE = "aiochroma:copy_complete"
"""True from the moment when the copy is to take over."""
SINCE = "aiochroma:copied_until"
"""The moment at which the last comparison of all records began, in seconds since 1970."""

FORGOTTEN = "aiochroma:forgotten"
"""In the metadata of a collection that was a namespace, and is being deleted."""

_RUN = "ns.reembedding.x"
_MARK, _PROCESS, _MACHINE, _SEEN, _GIVES_WAY, _WANTED = (
    f"aiochroma:run_{name}" for name in ("mark", "process", "machine", "seen", "gives_way", "wanted")
)
_SETTLING_PATIENCE_SECONDS = 30.0
_SETTLING_PAUSE_SECONDS = 0.02
_BUSY_SECONDS = 0.005
_SIGN_SECONDS = 10.0
_SILENT_SECONDS = 900.0
"""After this time without a sign a run is taken to be dead. Before each page it gives one."""


class OtherRunError(StoreUnavailableError):
    """Another program makes copies in the database."""


class ExclusiveRun:
    """The right to make copies in a database, for one program at a time: a collection without records says who has it.

    It works for all that use a database: tasks of one program, processes that share it, clients of a server.

    Args:
        store: The store.
        gives_way: Whether this run ends, before its next change, as soon as one that was asked for wants to begin.
    """

    _under_way: ClassVar[set[str]] = set()
    """The marks of the runs of this process."""

    def __init__(self, store: Store, *, gives_way: bool = False) -> None:
        self._store = store
        self._gives_way = gives_way
        self._mark = uuid.uuid4().hex
        self._signed_at = 0.0

    async def __aenter__(self) -> ExclusiveRun:
        self._under_way.add(self._mark)
        try:
            until = monotonic() + _SETTLING_PATIENCE_SECONDS
            while not await self._has_begun(may_wait=monotonic() < until):
                await rest(_SETTLING_PAUSE_SECONDS)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def _has_begun(self, *, may_wait: bool) -> bool:
        """Take the right if it is free; else ask whoever has it to give way."""
        made = await self._store.make_collection(_RUN, self._sign())
        known = made.metadata or {}
        if known.get(_MARK) == self._mark:
            return True
        if not self._is_at_work(known):
            await self._give_sign(made)
            await self.check()
            return True
        if self._gives_way or not known.get(_GIVES_WAY) or not may_wait:
            raise _refusal(known)
        await self._ask_for_way(made)
        return False

    async def _ask_for_way(self, other: Collection) -> None:
        """Have a run that gives way know that this one waits; again, where its sign of life has covered that."""
        from chromadb.errors import NotFoundError

        metadata = {**(other.metadata or {}), _WANTED: True}
        if metadata != other.metadata:
            with contextlib.suppress(NotFoundError):  # It has just ended.
                await self._store.submit(
                    "_modify", id=other.id, new_metadata=metadata, **self._store.database
                )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._under_way.discard(self._mark)
        # What cannot be taken back now is of a run that is not under way any more.
        with contextlib.suppress(AiochromaError):
            found = await self._store.collection(_RUN)
            if found is not None and (found.metadata or {}).get(_MARK) == self._mark:
                await delete_collection(self._store, _RUN)

    async def check(self) -> None:
        """Give a sign of life, before anything is changed that another run might rely on.

        Raises:
            OtherRunError: Another run has taken this one to be dead; or this one gives way to it.
        """
        found = await self._store.collection(_RUN)
        if found is not None and self._gives_way and (found.metadata or {}).get(_WANTED):
            raise OtherRunError("Another program, that was asked to, makes copies of namespaces now.")
        if found is None or (found.metadata or {}).get(_MARK) != self._mark:
            raise OtherRunError(
                "Another program embeds this database again by now: this one gave no sign of life for too long. Nothing is lost; "
                "it goes on where this one stopped."
            )
        if monotonic() - self._signed_at > _SIGN_SECONDS:
            await self._give_sign(found)

    def _sign(self) -> Metadata:
        return {
            _MARK: self._mark,
            _PROCESS: os.getpid(),
            _MACHINE: platform.node(),
            _SEEN: time.time(),
            _GIVES_WAY: self._gives_way,
        }

    async def _give_sign(self, found: Collection) -> None:
        self._signed_at = monotonic()
        await self._store.submit("_modify", id=found.id, new_metadata=self._sign(), **self._store.database)

    def _is_at_work(self, known: MetadataView) -> bool:
        """Tell whether the run that has the right may still be at work."""
        process, seen = known.get(_PROCESS), known.get(_SEEN)
        if not (isinstance(process, int) and isinstance(seen, float)):
            return False  # Another program wrote it.
        if abs(time.time() - seen) > _SILENT_SECONDS:
            return False  # A process of another program may have its number by now.
        if known.get(_MACHINE) != platform.node():
            return True
        return known.get(_MARK) in self._under_way if process == os.getpid() else is_alive(process)


def _refusal(known: MetadataView) -> OtherRunError:
    at = datetime.fromtimestamp(float(str(known[_SEEN]))).astimezone().isoformat(timespec="seconds")
    return OtherRunError(
        f"Namespaces of this database are being embedded again by process {known[_PROCESS]} on {known.get(_MACHINE)!r} (its last "
        f"sign of life: {at}). Wait until it is done, then ask again: what it has done is not done twice."
    )


async def settled(work: Callable[[], Awaitable[T]]) -> T:
    """Do something with a namespace; again, where a copy was about to take over."""
    until = monotonic() + _SETTLING_PATIENCE_SECONDS
    while True:
        try:
            return await work()
        except NamespaceMovingError:
            if monotonic() > until:
                raise
        await rest(_SETTLING_PAUSE_SECONDS)


async def restore_names(store: Store, models: Sequence[Collection]) -> None:
    """Let a copy take over whose run was interrupted between its changes of names; for opening.

    A running job is never seen in this state: no other request comes between its changes of names. A complete copy whose
    original has its name still is left alone: the original may have been written to, or forgotten, since.
    """
    names = {model.name for model in models}
    for model in models:
        name = (model.metadata or {}).get(COPY_OF)
        begun = not names.isdisjoint(aside_name(str(name), what) for what in ("", "chunks"))
        if begun and (model.metadata or {}).get(COMPLETE):
            await take_over(store, str(name), model, models)


async def drop_copies(store: Store, name: str) -> None:
    """Delete all that a run that was interrupted has left of a namespace, but not the namespace."""
    for what in ("", "chunks"):
        await delete_collection(store, copy_name(name, what))
        await delete_collection(store, aside_name(name, what))


async def delete_replaced(store: Store, *, forgotten_only: bool = False) -> None:
    """Delete the originals whose copies have taken over, and what is left of namespaces that were being forgotten.

    Args:
        store: The store.
        forgotten_only: Leave the originals, from which a run may still copy what was written last.
    """
    for model in await store.collections():
        metadata = model.metadata or {}
        # Under the name that only a run of ours gives: another program may have written the mark.
        names = {aside_name(str(metadata.get(REPLACED)), what) for what in ("", "chunks")}
        if is_aside(metadata) and model.name in names and not (forgotten_only and FORGOTTEN not in metadata):
            await delete_collection(store, model.name, is_large=FORGOTTEN in metadata)


async def step_aside(store: Store, name: str) -> None:
    """Take its name from a large namespace that is to be deleted: from now on no call writes to it, or finds anything in it."""
    steps = []
    for present, what in ((chunks_name(name), "chunks"), (collection_name(name), "")):
        model = await store.collection(present)
        if model is not None:
            steps.append(_renamed(model, aside_name(name, what), {REPLACED: name, FORGOTTEN: True}))
    await _modified(store, steps)


async def delete_collection(store: Store, name: str, *, is_large: bool = False) -> None:
    """Delete a collection, if there is one, its records first.

    Chroma deletes one in one piece, in which everybody waits. It leaves the lists in the metadata of its records, and shows them
    in later records, of any collection, that get the same rows.

    Args:
        store: The store.
        name: The name of the collection.
        is_large: Whether it is a large one of a directory, to which no writes come any more.
    """
    from chromadb.errors import NotFoundError

    found = await store.collection(name)
    if found is None:
        return
    records = {"collection_id": found.id, **store.database}
    with contextlib.suppress(NotFoundError):  # Somebody else has deleted it meanwhile.
        if not (is_large and await _dropped(store, records)):
            # The ids of all at once are read in one piece: 0.7 s for 100,000 records, half of it with the interpreter held.
            seen: list[str] = []
            while ids := (await store.submit("_get", **records, limit=_IDS_AT_ONCE, include=[]))["ids"]:
                if ids == seen:
                    break  # They cannot be deleted one by one.
                await store.submit("_delete", bulk=True, **records, ids=ids)
                seen = ids
        await store.submit("delete_collection", name=name, **store.database)


async def _dropped(store: Store, records: MetadataView) -> bool:
    """Have the records of a large collection that is to be deleted deleted by a child; return whether none is left."""
    while (dropped := await store.submit("drop_records", bulk=True, **records)) is not None:
        if dropped < 0:
            return True
        await rest(0.0 if dropped else _BUSY_SECONDS)
    return False


async def take_over(store: Store, name: str, copy: Collection, models: Sequence[Collection]) -> None:
    """Give a copy the name of its namespace, and its original another."""
    by_name = {model.name: model for model in models}
    known = copy.metadata or {}
    steps: list[Metadata] = []
    for present, replacement, what, since, metadata in (
        (chunks_name(name), copy_name(name, "chunks"), "chunks", {}, {CHUNKS_FOR: name}),
        (
            collection_name(name),
            copy.name,
            "",
            {SINCE: known[SINCE]} if SINCE in known else {},
            {
                NAMESPACE: name,
                EMBEDDER: known[COPY_EMBEDDER],
                DIMENSIONS: known[DIMENSIONS],
                FINGERPRINT: known[FINGERPRINT],
                **({SPARSE_EMBEDDER: known[SPARSE_EMBEDDER]} if SPARSE_EMBEDDER in known else {}),
            },
        ),
    ):
        aside = aside_name(name, what)
        if present in by_name and aside not in by_name:
            steps.append(_renamed(by_name[present], aside, {REPLACED: name, **since}))
        if replacement in by_name:
            steps.append(_renamed(by_name[replacement], present, metadata))
    # Submitted together they stand next to each other in the queue: no caller finds the namespace missing in between.
    await _modified(store, steps)
    store.drop(name)


async def _modified(store: Store, steps: Sequence[Metadata]) -> None:
    for outcome in await store.submit_many([("_modify", {**step, **store.database}) for step in steps]):
        if outcome.error is not None:
            raise outcome.error


def _renamed(model: Collection, name: str, metadata: MetadataView) -> Metadata:
    return {"id": model.id, "new_name": name, "new_metadata": metadata}


def copy_name(namespace: str, what: str) -> str:
    """Return the name of a copy of a namespace (``what`` is empty) or of its chunks (``"chunks"``)."""
    return f"ns.reembed{what}-{hashlib.sha256(namespace.encode()).hexdigest()}.x"


def no_sparse_vectors(where: str) -> InvalidInputError:
    """Return the error of a memory with a sparse embedder where there are no sparse vectors."""
    return InvalidInputError(
        "`sparse_embedder` is for servers that have sparse vectors, Chroma Cloud and distributed Chroma, and there are none "
        f"here: {where}. Open the memory without it; words are compared in this process then."
    )


def sparse_mark(store: Store, original: Collection | None = None) -> Metadata:
    """Return how a new collection, or a copy of one, says of which embedder it has sparse vectors; empty without any."""
    identity = None if original is None else sparse_embedder_of(original)
    identity = identity if store.sparse is None else store.sparse.identity
    return {} if identity is None else {SPARSE_EMBEDDER: identity}


def lacks_sparse(store: Store, model: Collection) -> bool:
    """Tell whether a copy by this memory would have sparse vectors that the collection has not."""
    return store.sparse is not None and store.sparse.identity != sparse_embedder_of(model)


def digest(record: tuple[str, Metadata]) -> bytes:
    """Return what two records are compared by: all but what is made of the text, and the last digits of fractions.

    Chroma does not always give back the last one.
    """
    values = sorted(
        (name, float(f"{value:.14g}") if isinstance(value, float) else value)
        for name, value in without_derived(record[1]).items()
    )
    return hashlib.sha256(repr((record[0], values)).encode()).digest()


def without_derived(metadata: Metadata) -> Metadata:
    """Return metadata without what is made of the text: it is made again, and may be another."""
    return {name: value for name, value in metadata.items() if name not in {CHUNKS, WRITING, SPARSE}}
