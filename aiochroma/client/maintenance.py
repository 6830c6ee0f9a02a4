"""What a client does for its store as a whole: health and backup."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from aiochroma._deadline import deadline
from aiochroma._errors import BackupError
from aiochroma._threads import off_loop, waits_by_blocking
from aiochroma._types import JsonObject
from aiochroma.disk.backup import begin_backup, finish_backup
from aiochroma.disk.copying import size_of

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Coroutine

    from aiochroma.client.session import Session
    from aiochroma.disk.backup import UnfinishedBackup
    from aiochroma.disk.copying import Verification
    from aiochroma.disk.manifest import BackupReport

__all__ = ["Health", "backup", "health", "unavailable"]

T = TypeVar("T")

_PROGRESS_SECONDS = 0.05


@dataclass(frozen=True)
class Health:
    """The state of a store.

    Attributes:
        status: ``"ok"``, or ``"unavailable"`` with the reason in ``error``.
        mode: ``"persistent"``, ``"ephemeral"`` or ``"http"``.
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


def unavailable(error: BaseException, mode: str = "unknown") -> Health:
    """Return the state of a store that cannot be opened.

    Args:
        error: Why.
        mode: Of what kind it is, where that is known.
    """
    text = f"{type(error).__name__}: {error}"
    return Health("unavailable", mode, None, 0, None, text, text, None, None, None, time.time())


async def health(session: Session, tenant: str, database: str, timeout: float = 5.0) -> Health:
    """Ask a store how it is; never raises, except that a cancelled caller is released.

    Args:
        session: Whose store.
        tenant: Whose documents are counted: Chroma's tenant.
        database: Chroma's database within the tenant.
        timeout: A store that has not answered after this many seconds is unavailable.
    """
    waits_by_blocking()
    begun = time.perf_counter()
    latency: float | None = None
    documents: int | None = None
    version: str | None = None
    error: str | None = None
    try:
        with deadline(timeout):
            version = await session.submit("get_version")
            latency = round((time.perf_counter() - begun) * 1000, 3)
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
            with deadline(None):  # The client's own limit is for single requests.
                paused = await _to_its_end(session.submit("copy_files", target=str(begun.partial.path)))
            stage("verify")
            return await _to_its_end(off_loop(partial(finish_backup, begun, paused_ms=paused * 1000)))
    except BaseException:
        for begun in unfinished:
            begun.partial.discard()
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
