"""What is done for a store as a whole: its health, its backup, and new vectors for records that lost theirs."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from uuid import UUID

from aiochroma._clock import monotonic
from aiochroma._errors import BackupError, StoreUnavailableError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject
from aiochroma._waiting import deadline, off_loop, waits_by_blocking
from aiochroma.disk.backup import begin_backup, finish_backup
from aiochroma.disk.copying import copy_database, size_of
from aiochroma.embedding.functions import is_same_name
from aiochroma.records.record import EMBEDDER

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

    from aiochroma.client.session import Session
    from aiochroma.disk.backup import BackupReport, UnfinishedBackup
    from aiochroma.disk.copying import Verification

__all__ = [
    "EmbeddingSource",
    "FillReport",
    "Health",
    "SingleEmbedder",
    "backup",
    "health",
    "reembed_missing",
    "unavailable",
]

log: EventLogger = get_logger("aiochroma.client")

T = TypeVar("T")

_HEALTH_SECONDS = 5.0
"""A store that has not answered after this time is unavailable."""
_PROGRESS_SECONDS = 0.05
_BATCH = 64


@dataclass(frozen=True)
class Health:
    """The state of a store.

    Attributes:
        status: ``"ok"``, or ``"unavailable"`` with the reason in ``error``.
        mode: ``"persistent"``, ``"ephemeral"``, ``"http"``, or ``"shared"`` where another process serves the directory.
        latency_ms: How long an empty request took just now, waiting included, in milliseconds; None when it failed.
        pending: Requests that wait or run.
        documents: Records in the database; may lag behind in a store with very many collections. None when it failed.
        error: What went wrong just now, or None.
        last_error: The last error that concerned the store and not a caller's arguments, or None.
        owner: Process id, host and time of opening of the process that owns the directory, where there is one.
        embedder: Identity of the embedder, where one is known.
        chroma_version: Version of Chroma.
        checked_at: When, in seconds since 1970.
    """

    status: Literal["ok", "unavailable"]
    mode: str
    latency_ms: float | None
    pending: int
    documents: int | None
    error: str | None
    last_error: str | None
    owner: JsonObject | None
    embedder: str | None
    chroma_version: str | None
    checked_at: float

    def as_dict(self) -> JsonObject:
        """Return plain data, for JSON."""
        return asdict(self)


def unavailable(error: BaseException) -> Health:
    """Return the state of a store that cannot be opened, and why."""
    text = f"{type(error).__name__}: {error}"
    return Health("unavailable", "unknown", None, 0, None, text, text, None, None, None, time.time())


async def health(session: Session, tenant: str, database: str) -> Health:
    """Ask a store how it is; never raises, except that a cancelled caller is released.

    Args:
        session: Whose store.
        tenant: Whose documents are counted: Chroma's tenant.
        database: Chroma's database within the tenant.
    """
    waits_by_blocking()
    begun = monotonic()
    latency: float | None = None
    documents: int | None = None
    version: str | None = None
    error: str | None = None
    try:
        with deadline(_HEALTH_SECONDS):
            version = await session.submit("get_version")
            latency = round((monotonic() - begun) * 1000, 3)
            documents = await session.submit("count_documents", tenant=tenant, database=database)
    except Exception as caught:  # noqa: BLE001 - a health check reports what is wrong, it does not raise it
        error = f"{type(caught).__name__}: {caught}"
    info = session.describe()
    return Health(
        status="ok" if error is None else "unavailable",
        mode=info.mode,
        latency_ms=latency,
        pending=info.pending,
        documents=documents,
        error=error,
        last_error=info.last_error,
        owner=None if info.owner is None else asdict(info.owner),
        embedder=info.embedder,
        chroma_version=version,
        checked_at=time.time(),
    )


async def backup(
    session: Session,
    target: str | os.PathLike[str],
    *,
    keep: int | None,
    verify: Verification,
    progress: Callable[[str, int, int], None] | None,
) -> BackupReport:
    """Copy a store between two writes, verify the copy in a child process, and give it its name."""
    waits_by_blocking()
    info = session.describe()
    if not info.capabilities.files:
        raise BackupError(f"{info.name} has no files to back up.")
    directory = Path(info.path)
    unfinished: list[UnfinishedBackup] = []

    def begin() -> None:
        unfinished.append(begin_backup(directory, target, keep=keep, verify=verify))

    try:
        await _to_its_end(off_loop(begin))
        (begun,) = unfinished
        async with _reported(progress, directory, begun.partial.path) as stage:
            # Most of it beside everything; what is changed meanwhile is copied again while writing waits.
            await _to_its_end(off_loop(partial(copy_database, directory, begun.partial.path)))
            with deadline(None):  # The client's own limit is for single requests.
                paused = await _to_its_end(session.submit("copy_files", target=str(begun.partial.path)))
            stage("verify")
            return await _to_its_end(off_loop(partial(finish_backup, begun, paused_ms=paused * 1000)))
    except BaseException:
        if unfinished:
            discard = unfinished[0].partial.discard
            try:
                await _to_its_end(off_loop(discard))
            except StoreUnavailableError:  # No thread can be started.
                discard()
        raise


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await something to its end even when cancelled, and be cancelled then: nothing would clean up after it later."""
    if waits_by_blocking():
        return await work
    task = asyncio.ensure_future(work)
    cancelled: BaseException | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:  # noqa: PERF203 - waiting goes on
            cancelled = error
    if cancelled is not None and not task.cancelled():
        # What it raised is of no interest to a caller that is gone.
        task.exception()
        raise cancelled
    return task.result()


@asynccontextmanager
async def _reported(
    progress: Callable[[str, int, int], None] | None, directory: Path, temporary: Path
) -> AsyncIterator[Callable[[str], None]]:
    """Tell a callback the stage, and how many bytes of how many have been copied, by looking at the copy.

    Yields:
        A function that is told when another stage begins.
    """
    if progress is None:
        yield lambda _: None
        return
    total = await off_loop(partial(size_of, directory))
    stages = ["copy"]

    async def watch() -> None:
        told = None
        while True:
            done = await off_loop(partial(size_of, temporary))
            now = (stages[-1], min(done, total) if stages[-1] == "copy" else total)
            if now != told:
                progress(*now, total)
            told = now
            await asyncio.sleep(_PROGRESS_SECONDS)

    if waits_by_blocking():
        progress("copy", 0, total)
        yield lambda stage: progress(stage, total, total)
    else:
        watcher = asyncio.ensure_future(watch())
        try:
            yield stages.append
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])
        if not watcher.cancelled():
            watcher.result()  # What the callback raised.
    progress("done", total, total)


# -- vectors that were lost ----------------------------------------------------------------------------------------------


class EmbeddingSource(Protocol):
    """What makes vectors for collections."""

    def refusal(self, stored: str | None) -> str | None:
        """Say why the vectors of a collection cannot be made, or return None.

        Args:
            stored: The identity of the embedder that the collection was written with, where it is known.
        """

    async def embed(self, texts: list[str]) -> Sequence[Any]:
        """Return one vector per text."""


class SingleEmbedder:
    """One embedder, for the collections that were written with it and no others.

    Args:
        identity: The embedder's.
        embed: Returns one float32 array per text.
    """

    def __init__(self, identity: str, embed: Callable[[list[str]], Awaitable[Sequence[Any]]]) -> None:
        self._identity = identity
        self._embed = embed

    def refusal(self, stored: str | None) -> str | None:
        """See :class:`EmbeddingSource`."""
        if stored is not None and is_same_name(stored, self._identity):
            return None
        return f"it was embedded by {stored or 'another program'!r} and this is {self._identity!r}"

    async def embed(self, texts: list[str]) -> Sequence[Any]:
        """See :class:`EmbeddingSource`."""
        return await self._embed(texts)


@dataclass(frozen=True)
class FillReport:
    """What was done with the records that had no vector.

    Attributes:
        filled: How many have one again, by collection name.
        left: The ids of those that have none yet, by collection name and by reason.
    """

    filled: dict[str, int] = field(default_factory=dict)
    left: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every record has a vector."""
        return not self.left


async def reembed_missing(
    submit: Callable[..., Awaitable[Any]],
    source: EmbeddingSource,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> FillReport:
    """Embed the documents of all records that have no vector, and write the vectors.

    Args:
        submit: Carries out an operation on the DB thread: ``await submit(operation, **arguments)``.
        source: Makes the vectors.
        progress: Called after each batch with the collection's name, how many of its records are done, and of how many.

    Returns:
        What was done, and what could not be.

    Raises:
        AiochromaError: A request failed, or the embedder did; the batches before it are written.
    """
    report = FillReport()
    for entry in await submit("missing_vectors"):
        database = {name: entry[name] for name in ("tenant", "database")}
        model = await submit("get_collection_by_id", collection_id=UUID(entry["collection_id"]), **database)
        filling = _Filling(submit, source, {"collection_id": model.id, **database}, model)
        refusal = source.refusal((model.metadata or {}).get(EMBEDDER))
        if refusal is not None:
            filling.left[refusal] = list(entry["ids"])
        else:
            for start in range(0, len(entry["ids"]), _BATCH):
                await filling.batch(entry["ids"][start : start + _BATCH])
                if progress is not None:
                    progress(model.name, min(start + _BATCH, len(entry["ids"])), len(entry["ids"]))
        if filling.filled:
            report.filled[model.name] = filling.filled
        if filling.left:
            report.left[model.name] = {reason: tuple(ids) for reason, ids in filling.left.items()}
        log.warning(
            "index.filled",
            collection=model.name,
            filled=filling.filled,
            left={reason: len(ids) for reason, ids in filling.left.items()},
        )
    return report


class _Filling:
    """One collection whose records get new vectors."""

    def __init__(
        self,
        submit: Callable[..., Awaitable[Any]],
        source: EmbeddingSource,
        collection: JsonObject,
        model: Any,
    ) -> None:
        self.filled = 0
        self.left: dict[str, list[str]] = {}
        self._submit = submit
        self._source = source
        self._collection = collection
        self._dimension = model.dimension

    async def batch(self, ids: list[str]) -> None:
        found = await self._submit("_get", ids=ids, include=["documents"], **self._collection)
        texts = {id: text for id, text in zip(found["ids"], found["documents"], strict=True) if text}
        self._leave("it has no document", [id for id in found["ids"] if id not in texts])
        if not texts:
            return
        vectors = dict(zip(texts, await self._source.embed(list(texts.values())), strict=True))
        wrong = [id for id, vector in vectors.items() if self._dimension not in {None, len(vector)}]
        empty = [id for id, vector in vectors.items() if not 0 < float(vector @ vector) < float("inf")]
        self._leave(
            f"the embedder's vectors do not have the collection's {self._dimension} dimensions", wrong
        )
        self._leave("the embedder finds nothing in its document", empty)
        good = [id for id in texts if id not in {*wrong, *empty}]
        written = await self._submit(
            "fill_vectors",
            ids=good,
            documents=[texts[id] for id in good],
            embeddings=[vectors[id] for id in good],
            **self._collection,
        )
        self.filled += len(written)

    def _leave(self, reason: str, ids: list[str]) -> None:
        if ids:
            self.left.setdefault(reason, []).extend(ids)
