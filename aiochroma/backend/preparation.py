"""What makes a database directory fit for use: before Chroma opens it, and right afterwards; all on the DB thread.

The order matters: first the lock that keeps other processes out, then a look that changes nothing, then the repair of what
is broken, then the settings that make Chroma fast and durable. From then on it is known which records have lost their vectors,
and :class:`MissingVectors` gives them vectors again.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aiochroma._clock import monotonic
from aiochroma._errors import DatabaseCorruptError, DatabaseInUseError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import CollectionId, JsonObject, Vector
from aiochroma.backend.chroma import start_chroma
from aiochroma.backend.chroma_records import ChromaRecords, Database
from aiochroma.backend.importing import import_chromadb
from aiochroma.core.operations import Effect
from aiochroma.core.request import Request
from aiochroma.disk.backup import recorded_backup
from aiochroma.disk.catalog import make_listable
from aiochroma.disk.copying import survives_rebuilding
from aiochroma.disk.findings import (
    RecoveryReport,
    begin_rebuild,
    end_rebuild,
    note_crash,
    note_look,
    unfinished,
)
from aiochroma.disk.layout import SQLITE_FILE
from aiochroma.disk.log_upkeep import tend_log
from aiochroma.disk.ownership import foreign_users, refuse_foreign_users
from aiochroma.disk.preflight import preflight
from aiochroma.disk.recovery import complete_retained_log, recover, refuse_damaged_sqlite
from aiochroma.disk.retained_log import LogState, log_state
from aiochroma.disk.salvage import vectors_in_backup
from aiochroma.disk.schema import log_positions
from aiochroma.disk.sqlite_file import LockProbe, prepare, wait_until_closed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from chromadb.api import ServerAPI

    from aiochroma.backend.protocol import WriteHook
    from aiochroma.core.config import EngineOptions, Location
    from aiochroma.disk.findings import CollectionRecovery, PreflightReport

__all__ = ["MissingVectors", "OwnFile", "Prepared", "drop_unfollowed", "prepare_directory"]

log: EventLogger = get_logger("aiochroma.backend")


class OwnFile(Protocol):
    """Our own file that follows Chroma's writes and keeps each memory's vector; read while Chroma is closed."""

    def noted(self) -> Mapping[str, int]:
        """Return, by collection id, up to which entry of Chroma's log it has everything."""

    def distrust(self, collections: Collection[str]) -> None:
        """Take back what it has noted of collections."""

    def keep_only(self, collections: Collection[str]) -> None:
        """Forget all other collections."""

    def vectors(self, collection: str) -> Iterable[tuple[Sequence[str], Iterable[Any]]]:
        """Return ids and vectors of a collection, a page at a time."""


@dataclass(frozen=True)
class Prepared:
    """A directory that Chroma may open.

    Attributes:
        preflight: What the files looked like.
        recovery: What had to be repaired, and which vectors are missing; none unless the caller accepts that.
        log: How far its log goes.
        found: By collection id, vectors that only our own index or the newest backup has.
    """

    preflight: PreflightReport
    recovery: RecoveryReport
    log: LogState
    found: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)


def prepare_directory(
    directory: Path,
    location: Location,
    options: EngineOptions,
    *,
    write_ahead: bool,
    own_file: OwnFile,
) -> Prepared:
    """Look a directory over, repair it and set it up; this process owns it already.

    Args:
        directory: The canonical directory.
        location: The directory, as Chroma is given it.
        options: How it is to be opened.
        write_ahead: Whether SQLite's write-ahead journal works there.
        own_file: The file of this package's index, which follows Chroma's writes.

    Raises:
        DatabaseInUseError: Another process, or a plain chromadb client of this one, has it open.
        DatabaseLockedError: Another process holds SQLite's lock.
        DatabaseCorruptError: The SQLite file is damaged, or vectors are lost that were not to be made again.
        DatabaseFormatError: A newer Chroma wrote it.
    """
    _refuse_plain_client(directory)
    if not all(_is_fork_of_ours(process) for process in foreign_users(directory)):
        refuse_foreign_users(directory)
    _wait_for_lock(directory)
    looked = _looked(directory, location, options)
    refuse_damaged_sqlite(directory, looked)
    noted, state = _followed(directory, own_file, was_kept=bool(looked.keeps_log))

    def own_vectors(collection: str) -> Iterable[tuple[Sequence[str], Iterable[Any]]]:
        return own_file.vectors(collection) if collection in state.changed else ()

    def in_own_file(entry: CollectionRecovery) -> Mapping[str, Any]:
        missing = set(entry.missing)
        pairs = (zip(*page, strict=True) for page in own_vectors(entry.collection_id))
        vectors = {id: vector for id, vector in chain.from_iterable(pairs) if id in missing}
        if vectors:
            log.warning("index.from_own_file", collection=entry.label, vectors=len(vectors))
        return vectors

    recovery = recover(directory, looked, own_vectors)
    found: dict[str, JsonObject] = {}
    recovery = _search(recovery, in_own_file, found)
    # Once there is a backup the log is cut to what came after it, so the backup is part of the promise that no vector is lost.
    # A log that is not kept may have forgotten a newer vector of the same record, so then it is not asked.
    backup = recorded_backup(directory) if recovery.missing and looked.keeps_log else None
    if backup is not None:
        recovery = _search(recovery, partial(_in_backup, backup), found)
    if recovery.missing and not options.allow_missing_vectors:
        raise _lost_vectors(directory, looked, recovery)
    is_kept = _set_up(directory, location, options, looked, write_ahead=write_ahead)
    if looked.keeps_log and not looked.damaged:
        tend_log(directory, looked, noted, state.uncovered if is_kept else ())
    note_look(directory, looked)
    for entry in looked.collections:
        if entry.unusable:
            log.error(
                "collection.unusable", database=str(directory), collection=entry.label, reason=entry.unusable
            )
    return Prepared(looked, recovery, LogState(log_positions(directory), is_kept, state.changed), found)


def _followed(directory: Path, own_file: OwnFile, *, was_kept: bool) -> tuple[dict[str, int], LogState]:
    """Return those notes of this package's index that can be trusted, and how far the log goes beyond them.

    The other notes are taken back at once: with the log that is kept from now on they would look right.

    Args:
        directory: The canonical directory, not open in Chroma.
        own_file: The file of this package's index, which follows Chroma's writes.
        was_kept: Whether the log names all that has happened since the notes.
    """
    noted = own_file.noted()
    state = log_state(directory, noted, was_kept=was_kept)
    own_file.distrust(noted.keys() - state.changed.keys())
    return {collection: noted[collection] for collection in state.changed}, state


def drop_unfollowed(directory: Path, own_file: OwnFile) -> None:
    """Take out of our own file what it has not followed to the end of the log, before what is dead is erased; it is made again.

    It may hold what another program has deleted since. And what is dead leaves the log, which would not name it any more.

    Args:
        directory: The canonical directory, not open in Chroma.
        own_file: The file of this package's index, which follows Chroma's writes.
    """
    own_file.keep_only(log_state(directory, own_file.noted(), was_kept=False).changed.keys())


def _looked(directory: Path, location: Location, options: EngineOptions) -> PreflightReport:
    """Look a directory over; one that an older Chroma wrote after Chroma has migrated its tables."""
    for collection in unfinished(directory):
        # The process that rebuilt it ended. Was it a signal from outside, or the rebuild itself? A child process finds out.
        log.warning("index.rebuild_tried_in_child", database=str(directory), collection=collection)
        if survives_rebuilding(directory, collection):
            end_rebuild(directory, collection)
        else:
            note_crash(directory, collection)
    looked = preflight(directory)
    if looked.is_older and not looked.sqlite_problems:
        # Chroma migrates when it starts, and touches no index then.
        start_chroma(location, options).stop()
        wait_until_closed(directory)
        looked = preflight(directory)
    changes = make_listable(directory, looked) if not looked.sqlite_problems else []
    for change in changes:
        log.error("collection.contained", database=str(directory), change=change)
    return preflight(directory) if changes else looked


def _set_up(
    directory: Path,
    location: Location,
    options: EngineOptions,
    looked: PreflightReport,
    *,
    write_ahead: bool,
) -> bool:
    """Write the settings that Chroma finds when it opens the directory; return whether it keeps its log then."""
    keep_log = options.durable
    if keep_log and looked.keeps_log is False:
        # The log was purged until now: put back what only the index holds, so that the promise covers everything. This comes
        # before the purging is switched off, else after a crash in between it would look as if it had been done.
        incomplete = complete_retained_log(directory, looked)
        if incomplete:
            log.warning("log.incomplete", database=str(directory), collections=", ".join(incomplete))
            keep_log = None
    if not prepare(directory, keep_log=keep_log, write_ahead=write_ahead):
        # Chroma makes its tables itself, at its first open; 20 ms, once in a database's life.
        start_chroma(location, options).stop()
        wait_until_closed(directory)
        prepare(directory, keep_log=keep_log, write_ahead=write_ahead)
    return bool(looked.keeps_log if keep_log is None else keep_log)


def _wait_for_lock(directory: Path) -> None:
    """Wait for another process to let go of SQLite's lock; opening would wait for it with the interpreter held."""
    if (directory / SQLITE_FILE).exists():
        with closing(LockProbe(directory)) as probe:
            probe.wait()


def _search(
    recovery: RecoveryReport,
    look_up: Callable[[CollectionRecovery], Mapping[str, Any]],
    found: dict[str, JsonObject],
) -> RecoveryReport:
    """Look somewhere for vectors that recovery could not bring back.

    Args:
        recovery: What recovery has done.
        look_up: Returns, by id, vectors of a collection that are there.
        found: Vectors by collection id and record id; those that are found here are added.

    Returns:
        The report without those that were found among the missing.
    """
    entries = []
    for entry in recovery.collections:
        vectors = look_up(entry) if entry.missing else {}
        if vectors:
            found.setdefault(entry.collection_id, {}).update(vectors)
        entries.append(replace(entry, missing=tuple(id for id in entry.missing if id not in vectors)))
    return replace(recovery, collections=tuple(entries))


def _in_backup(backup: Path, entry: CollectionRecovery) -> Mapping[str, Any]:
    vectors = vectors_in_backup(backup, entry.collection_id, entry.missing)
    if vectors:
        log.warning("index.from_backup", collection=entry.label, vectors=len(vectors), backup=str(backup))
    return vectors


def _lost_vectors(
    directory: Path, preflight: PreflightReport, recovery: RecoveryReport
) -> DatabaseCorruptError:
    lost = {entry.label: len(entry.missing) for entry in recovery.collections if entry.missing}
    return DatabaseCorruptError(
        f"{str(directory)!r} has records whose vectors are lost, by collection: {lost}. Their ids, documents and metadata are "
        "safe. Embed the documents again with `aiochroma doctor --reembed-missing`, or open with "
        "`allow_missing_vectors=True` and write the vectors yourself (the ids are in `client.recovery.missing`), or restore a "
        "backup.",
        problems=preflight.problems,
    )


def _refuse_plain_client(directory: Path) -> None:
    """Two systems on one directory in one process destroy each other's vectors, like two processes."""
    import_chromadb()
    from chromadb.api.shared_system_client import SharedSystemClient

    for spelling, system in list(SharedSystemClient._identifier_to_system.items()):  # noqa: SLF001 - there is no public way
        if system.settings.is_persistent and os.path.realpath(spelling) == str(directory):
            raise DatabaseInUseError(
                f"A plain chromadb client of this process (pid {os.getpid()}) has {str(directory)!r} open. Close it first, or "
                "use one aiochroma client for both: two on one directory destroy each other's vectors.",
                pid=os.getpid(),
            )


def _is_fork_of_ours(process: int) -> bool:
    """Tell whether a process is a forked child of this one: it has inherited open files that it cannot use."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        parent = int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        theirs, ours = (Path(f"/proc/{name}/cmdline").read_bytes() for name in (str(process), "self"))
    except OSError:
        return False  # It has just ended.
    return parent == os.getpid() and theirs == ours


_SLICE = 16

_PAUSE_SECONDS = 0.005
"""Writing holds the interpreter; in this pause between two slices other threads get it."""


class MissingVectors:
    """Knows the records without a vector, and writes vectors for them.

    Args:
        api: Chroma, open.
        prepared: What was found before it was opened.
    """

    def __init__(self, api: ServerAPI, prepared: Prepared) -> None:
        self._api = ChromaRecords(api)
        self._directory = prepared.preflight.directory
        self._places: dict[str, Database] = {
            entry.collection_id: {"tenant": entry.tenant, "database": entry.database}
            for entry in prepared.preflight.collections
        }
        self._ids: dict[str, set[str]] = {
            collection: set(ids) for collection, ids in prepared.recovery.missing.items()
        }

    def __bool__(self) -> bool:
        return bool(self._ids)

    def listed(self) -> list[JsonObject]:
        """Return for each collection that lacks vectors its ``collection_id``, ``tenant``, ``database`` and ``ids``."""
        return [
            {"collection_id": collection, **self._places[collection], "ids": sorted(ids)}
            for collection, ids in list(self._ids.items())
        ]

    def forget(self, request: Request) -> None:
        """Take note of a write that succeeded: records that it deleted or gave vectors are not missing any more."""
        collection = str(request.arguments["collection_id"])
        ids = request.arguments.get("ids")
        if collection not in self._ids or ids is None:
            return
        deleted = request.row.effect is Effect.DELETES
        if deleted or (request.row.gives_vectors and request.arguments.get("embeddings") is not None):
            self._found(collection, ids)

    def finish_recovery(self, prepared: Prepared, hook: WriteHook) -> None:
        """Let Chroma rebuild the indexes that were quarantined, and write the vectors that came from elsewhere."""
        rebuilt = [entry for entry in prepared.recovery.collections if entry.rebuilt]
        for number, entry in enumerate(rebuilt, start=1):
            begun = monotonic()
            log.warning(
                "index.rebuilding",
                collection=entry.label,
                number=number,
                of=len(rebuilt),
                vectors=entry.from_log,
            )
            begin_rebuild(self._directory, entry.collection_id)
            self._api.get(entry.collection_id, limit=1, include=[], **self._places[entry.collection_id])
            end_rebuild(self._directory, entry.collection_id)
            log.warning("index.rebuilt", collection=entry.label, seconds=round(monotonic() - begun, 3))
        for collection, vectors in prepared.found.items():
            ids = list(vectors)
            self._write(collection, ids, list(vectors.values()))
            arguments = {"collection_id": collection, "ids": ids, **self._places[collection]}
            hook.after_write(Request("_upsert", arguments))

    def fill(
        self,
        collection_id: CollectionId,
        ids: Sequence[str],
        documents: Sequence[str],
        embeddings: Sequence[Vector],
        tenant: str,
        database: str,
    ) -> list[str]:
        """Give records vectors that were made from their documents.

        A record that was deleted meanwhile, whose document is another one now, or that has a vector again is left alone.

        Returns:
            The ids that were written.
        """
        collection = str(collection_id)
        missing = self._ids.get(collection, set())
        asked = [position for position, id in enumerate(ids) if id in missing]
        if not asked:
            return []
        found = self._api.get(
            collection_id,
            ids=[ids[position] for position in asked],
            include=["documents"],
            tenant=tenant,
            database=database,
        )
        present: Mapping[str, object] = dict(zip(found["ids"], found["documents"], strict=True))
        same = [position for position in asked if present.get(ids[position]) == documents[position]]
        written = [ids[position] for position in same]
        self._write(collection, written, [embeddings[position] for position in same])
        self._found(
            collection, [*written, *(ids[position] for position in asked if ids[position] not in present)]
        )
        return written

    def _write(self, collection: str, ids: list[str], embeddings: list[Vector]) -> None:
        # An upsert of nothing but a vector leaves document and metadata alone; an update would be ignored by the index,
        # which does not know these ids.
        for start in range(0, len(ids), _SLICE):
            end = start + _SLICE
            self._api.upsert(collection, ids[start:end], embeddings[start:end], **self._places[collection])
            time.sleep(_PAUSE_SECONDS)

    def _found(self, collection: str, ids: Sequence[str]) -> None:
        left = self._ids.get(collection)
        if left is not None:
            left.difference_update(ids)
            if not left:
                del self._ids[collection]
