"""Making the index of a namespace again without what is dead in it, beside whoever uses the namespace.

Chroma never takes the vector of a deleted or replaced record out of an index. A copy of the collection has only what is alive; it
is made, compared, and takes over as one for another embedder does, but its vectors are those that are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import secrets
import threading
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._errors import ClosedError, EmbeddingFailedError, InvalidInputError, StoreUnavailableError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import Metadata
from aiochroma._waiting import deadline, rest
from aiochroma.client.options import check_progress
from aiochroma.memory.arguments import checked_names
from aiochroma.memory.codes import complete_codes
from aiochroma.memory.copies import COPY_EMBEDDER, ExclusiveRun, OtherRunError, copy_name, lacks_sparse
from aiochroma.memory.reembedding import Copying, finish_interrupted
from aiochroma.memory.store import Namespace
from aiochroma.memory.vectors import Embedded
from aiochroma.records.record import CHUNKS, collection_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from aiochroma.memory.opening import Life
    from aiochroma.memory.store import Store

__all__ = ["BackgroundCompacting", "compact"]

log: EventLogger = get_logger("aiochroma.memory")

_WORTH_BEGINNING = 5000
"""With fewer dead vectors an index is not made again unasked: each takes 1.3 kB (256 dimensions), on the disk and in memory.

Making one of 2,000 memories again writes 14 MB, and takes 8 MB of memory until the database is opened again: Chroma keeps the
index of a collection that is deleted.
"""
_LOOK_EVERY = 1000
"""After this many memories were forgotten the indexes are looked at: some 30 ms on the DB thread."""
_PAUSE_SECONDS = 5.0
"""So much later, so that a memory that is closed soon does not begin."""
_GIVING_BACK_SECONDS = 0.3
"""For so long closing waits for the end of what is under way, which takes some 10 ms."""


def compact(
    life: Life,
    namespaces: Iterable[str] | str | None,
    *,
    progress: Callable[[str, int, int], None] | None,
) -> Coroutine[object, object, dict[str, int]]:
    """Make the indexes of namespaces again; see ``Memory.compact``."""
    check_progress(progress)
    names = checked_names(namespaces)

    async def work(store: Store) -> dict[str, int]:
        done = {}
        lacking = await _worn(store) if names is None else dict.fromkeys(names, 0)
        async with ExclusiveRun(store) as run:
            await finish_interrupted(store, run)
            for name, bytes_lacking in lacking.items():
                if await store.existing(name) is None:  # That of another embedder is an error here.
                    continue
                if bytes_lacking:
                    raise StoreUnavailableError(
                        f"{_no_room(name, bytes_lacking)} Free some, or name the namespace to try all the same."
                    )
                copying = await _make_again(store, run, name, progress)
                if copying is not None and copying.left:
                    raise EmbeddingFailedError(
                        f"The namespace {name!r} stays as it was: its long texts cannot be embedded again, those of "
                        f"{', '.join(sorted(copying.left)[:5])}."
                    )
                if copying is not None:
                    done[name] = copying.embedded
        return done

    return life.run("compact", work, None)


def _no_room(name: str, bytes_lacking: int) -> str:
    return (
        f"The index of {name!r} is not made again: the disk has {-(-bytes_lacking // 10**6)} MB too little room for a copy of "
        "the namespace."
    )


async def _make_again(
    store: Store, run: ExclusiveRun, name: str, progress: Callable[[str, int, int], None] | None
) -> _Compacting | None:
    """Make the index of a namespace again, if there is one; return what was done."""
    model = await store.collection(collection_name(name))
    if model is None:
        return None
    copying = _Compacting(store, run, name, model, progress)
    if await copying.run():
        await complete_codes(store, name)
    return copying


async def _worn(store: Store, least: int = 0) -> dict[str, int]:
    """Return the namespaces in whose index more is dead than alive, and how many bytes are too few for a copy of each.

    Args:
        store: The memory's store.
        least: How many are dead at least.
    """
    if not store.capabilities.files:
        raise InvalidInputError(
            "This database has no files of its own to look at: name the `namespaces` whose index is to be made again."
        )
    worn: dict[str, int] = await store.submit("worn_collections", least=least)
    if not worn:
        return {}
    names = await store.names()
    by_name = {model.name: str(model.id) for model in await store.collections()}
    ids = {name: by_name.get(collection_name(name), "") for name in names}
    return {name: worn[id] for name, id in ids.items() if id in worn}


class BackgroundCompacting:
    """Makes the worn indexes of a memory's namespaces again, unasked.

    A thread of its own does it, with an event loop of its own: the memory's callers may have any number of loops, or none, and
    theirs end when they like. There is one only while there is something to do. Whoever asks for a copy of a namespace has the
    way: the copy goes on from where it was. A failure is logged and reaches no caller.

    Args:
        store: The memory's store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # Anywhere, so that many short lives look as often as a long one.
        self._forgotten = secrets.randbelow(_LOOK_EVERY)
        self._look_after = _LOOK_EVERY
        self._thread: threading.Thread | None = None
        self._has_ended = False
        self._has_told = False
        self._cancel: Callable[[], object] | None = None

    def note(self, forgotten: int) -> None:
        """Count memories that were forgotten; after enough of them, look at the indexes."""
        self._forgotten += forgotten
        busy = self._thread is not None and self._thread.is_alive()
        if (
            self._forgotten < self._look_after
            or busy
            or self._has_ended
            or not self._store.capabilities.files
        ):
            return
        thread = threading.Thread(
            target=contextvars.Context().run, args=(self._run,), name="aiochroma-compacting", daemon=True
        )
        with contextlib.suppress(RuntimeError):  # There are too many threads, or the interpreter ends.
            thread.start()
            self._thread = thread

    async def end(self) -> None:
        """Begin nothing more, and stop what is under way: it gives back the right to make copies, for which it has a moment."""
        self._has_ended = True
        if self._cancel is not None:
            with contextlib.suppress(RuntimeError):  # Its loop has just ended.
                self._cancel()
        until = monotonic() + _GIVING_BACK_SECONDS
        while self._thread is not None and self._thread.is_alive() and monotonic() < until:
            await rest(0.002)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._work())

    async def _work(self) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        while not self._has_ended and self._forgotten >= self._look_after:
            await asyncio.sleep(_PAUSE_SECONDS)
            self._forgotten = 0
            try:
                with deadline(None):
                    await self._compact()
            except (ClosedError, OtherRunError):
                return  # Whoever opens it next, or makes copies now, goes on.
            except Exception as error:  # noqa: BLE001 - no caller asked for it
                self._look_after *= 2
                self._tell(repr(error))

    async def _compact(self) -> None:
        store = self._store
        found = await _worn(store, _WORTH_BEGINNING)
        if not found:
            return
        async with ExclusiveRun(store, gives_way=True) as run:
            await finish_interrupted(store, run)
            for name, bytes_lacking in (await _worn(store, _WORTH_BEGINNING)).items():
                copy = await store.collection(copy_name(name, ""))
                stored = store.embedder.identity if copy is None else (copy.metadata or {}).get(COPY_EMBEDDER)
                if (
                    not isinstance((await store.find([name]))[name], Namespace)
                    or stored != store.embedder.identity
                ):
                    continue  # Of another embedder; or somebody has begun to embed it again with one.
                if bytes_lacking:
                    self._tell(_no_room(name, bytes_lacking))
                    continue
                copying = await _make_again(store, run, name, None)
                if copying is not None and copying.left:
                    self._tell(f"long texts of {name!r} cannot be embedded again")

    def _tell(self, reason: str) -> None:
        if not self._has_told and not self._has_ended:
            self._has_told = True
            log.warning("memory.not_compacted", reason=reason)


class _Compacting(Copying):
    """Makes a copy with the vectors that are there."""

    async def vectors(self, records: Mapping[str, tuple[str, Metadata]]) -> dict[str, Embedded]:
        """Return the vectors that records have. A long text is embedded again, for its chunks."""
        # Where the memory has another sparse embedder, it makes its vectors of the texts, as in the copies for another embedder.
        short = [id for id, (_, metadata) in records.items() if CHUNKS not in metadata]
        short = [] if lacks_sparse(self.store, self.original) else short
        known: dict[str, Embedded] = {}
        if short:
            found = await self.store.submit(
                "_get",
                collection_id=self.original.id,
                ids=short,
                include=["embeddings"],
                **self.store.database,
            )
            known = {
                id: Embedded(vector, [])
                for id, vector in zip(found["ids"], found["embeddings"], strict=True)
                if vector is not None
            }
        others = {id: record for id, record in records.items() if id not in known}
        return known | (await super().vectors(others) if others else {})
