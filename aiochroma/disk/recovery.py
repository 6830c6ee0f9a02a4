"""Repairs a database whose index is broken, and says exactly which vectors could not be brought back.

Chroma rebuilds an index from its log when it finds neither index files nor a note of how far they reached.
So recovery puts into the log what the log lacks and the broken files still hold, deletes the note, and
renames the files away; Chroma does the rest at its next open. Files are renamed, never deleted, and SQLite
is changed in one transaction before anything is renamed, so that a crash in between loses nothing: the next
`preflight` finds the same damage.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path  # noqa: TC003 - frameworks read the annotations
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._errors import DatabaseCorruptError, StoreUnavailableError
from aiochroma._files import DIRECTORY_MODE, SQLITE_SUFFIXES, transaction
from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk import child
from aiochroma.disk.copying import ChildError, run_script
from aiochroma.disk.findings import CollectionRecovery, RecoveryReport, is_worn
from aiochroma.disk.hnsw_files import read_header
from aiochroma.disk.id_map import IndexUnreadableError
from aiochroma.disk.layout import (
    QUARANTINE_PREFIX,
    SQLITE_FILE,
    TEXT_INDEX_FILE,
    connect_read_write,
    free_bytes,
    index_directories,
    log_topic,
)
from aiochroma.disk.salvage import Salvage, replay, salvage_vectors
from aiochroma.disk.schema import ADD, record_ids
from aiochroma.disk.sqlite_file import file_identity

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Mapping

    import numpy as np
    import numpy.typing as npt

    from aiochroma.disk.findings import CollectionReport, PreflightReport

__all__ = [
    "DroppedIndexes",
    "complete_retained_log",
    "quarantine_orphans",
    "quarantine_text_index",
    "rebuild_worn",
    "recover",
    "refuse_damaged_sqlite",
    "worn_collections",
]

log: EventLogger = get_logger("aiochroma.disk")

_ASKING_SECONDS = 30.0
_REMOVING_SECONDS = 60.0

_VECTORS_OF_A_COPY = 4
"""So often a copied record's vector is written: in Chroma's index, while that grows once more, in its log, and in our file."""
_BYTES_OF_A_COPY = 4096
"""What else is written of a copied record of usual length."""
_LEFT_FREE_BYTES = 16 * 2**20
"""What a copy leaves to others: writing stops where the disk is fuller than half of it."""

OwnVectors = Callable[[str], Iterable[tuple[Sequence[str], Iterable["npt.NDArray[np.float32]"]]]]
"""Returns ids and vectors of a collection, a page at a time."""


def recover(
    directory: Path, report: PreflightReport, own_vectors: OwnVectors | None = None
) -> RecoveryReport:
    """Recover every damaged collection of a database.

    Call it while this process owns the directory and Chroma does not have it open, with a report made in this state.
    Afterwards open Chroma and read from each collection once (that replays the log), then embed what is
    `missing`. It makes no difference whether the log was kept: what it lacks is taken from the broken files
    where that is sound.

    Args:
        directory: The canonical database directory.
        report: What `preflight` found.
        own_vectors: Returns the vectors of a collection that our own file has, a page at a time; none where the file may lag
            behind.

    Returns:
        What was done; empty when nothing was damaged.

    Raises:
        DatabaseCorruptError: The SQLite file itself is damaged; nothing was touched.
        sqlite3.DatabaseError: The SQLite file cannot be written; nothing was renamed.
    """
    refuse_damaged_sqlite(directory, report)
    if not report.damaged:
        return RecoveryReport(directory)
    quarantines = _new_quarantine(directory)
    with connect_read_write(directory) as connection:
        entries = tuple(
            _recover(directory, connection, quarantines, damaged, own_vectors) for damaged in report.damaged
        )
    for entry in entries:
        log.warning(
            "index.recovered",
            directory=str(directory),
            collection=entry.label,
            rebuilt=entry.rebuilt,
            from_log=entry.from_log,
            from_index=entry.from_index,
            missing=len(entry.missing),
            quarantine=str(entry.quarantine) if entry.quarantine else None,
        )
    return RecoveryReport(directory, entries)


def refuse_damaged_sqlite(directory: Path, report: PreflightReport) -> None:
    """Raise for a SQLite file that must not be opened by Chroma, let alone written.

    Raises:
        DatabaseCorruptError: With the problems and what to do.
    """
    if report.sqlite_problems:
        raise DatabaseCorruptError(
            f"{directory / SQLITE_FILE} is damaged and was not touched: {'; '.join(report.sqlite_problems)}."
            " Restore a backup into this path, or move the whole database aside and start with an empty one.",
            problems=report.sqlite_problems,
        )


def _recover(
    directory: Path,
    connection: sqlite3.Connection,
    quarantines: Path,
    damaged: CollectionReport,
    own_vectors: OwnVectors | None,
) -> CollectionRecovery:
    outcome = replay(connection, damaged.collection_id)
    records = record_ids(connection, damaged.metadata_segment_id)
    expected = (records | outcome.with_vector) - outcome.deleted
    lacking = expected - outcome.with_vector
    ours = _own(own_vectors, damaged, lacking)
    index_directory = directory / damaged.vector_segment_id
    # An index that lacks what was written is of another time, and its other vectors may be outdated.
    rebuild = bool(damaged.index_problems) or not (outcome.with_vector | ours.keys()).isdisjoint(
        damaged.missing
    )
    salvage = Salvage()
    if rebuild:
        salvage = _salvage(index_directory, damaged)
        needed = {record: vector for record, vector in salvage.vectors.items() if record in lacking}
        added = _rebuild_from_log(connection, damaged, {**needed, **ours})
        missing = expected - outcome.with_vector - added
    else:
        added, missing = frozenset(), set(damaged.missing)
    quarantine = None
    if rebuild and os.path.lexists(index_directory):
        quarantines.mkdir(DIRECTORY_MODE, exist_ok=True)
        quarantine = index_directory.rename(quarantines / index_directory.name)
    explanation = ""
    if missing:
        explanation = salvage.explanation or "neither the index nor the log holds their vectors"
    return CollectionRecovery(
        collection_id=damaged.collection_id,
        label=damaged.label,
        rebuilt=rebuild,
        from_log=len(expected & outcome.with_vector),
        from_index=len(added),
        missing=tuple(sorted(missing)),
        quarantine=quarantine,
        explanation=explanation,
    )


def _own(
    own_vectors: OwnVectors | None, collection: CollectionReport, lacking: Collection[str]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the vectors that our own file has of what the log lacks."""
    pages = own_vectors(collection.collection_id) if own_vectors is not None else ()
    return {
        id: vector
        for ids, vectors in pages
        for id, vector in zip(ids, vectors, strict=True)
        if id in lacking and len(vector) == (collection.dimension or len(vector))
    }


def complete_retained_log(directory: Path, report: PreflightReport) -> tuple[str, ...]:
    """Put every vector that only a healthy index holds into the log as well.

    For a database that was filled with purging on and shall be durable from now on (or whose log was
    trimmed). Call it while this process owns the directory and Chroma does not have it open.

    Args:
        directory: The canonical database directory.
        report: What `preflight` found; damaged collections are left alone.

    Returns:
        The collections whose log is still not complete.

    Raises:
        DatabaseCorruptError: The SQLite file itself is damaged; nothing was touched.
        sqlite3.DatabaseError: The SQLite file cannot be written; nothing was changed for the collection at
        hand.
    """
    refuse_damaged_sqlite(directory, report)
    incomplete = []
    with connect_read_write(directory) as connection:
        for collection in report.collections:
            if collection.problems:
                continue  # Recovery has done what can be done.
            outcome = replay(connection, collection.collection_id)
            lacking = record_ids(connection, collection.metadata_segment_id) - outcome.with_vector
            if not lacking:
                continue
            salvage = _salvage(directory / collection.vector_segment_id, collection)
            absent = {
                record: vector
                for record, vector in salvage.vectors.items()
                if record not in outcome.with_vector and record not in outcome.deleted
            }
            with transaction(connection):
                lacking -= _add_log_entries(connection, collection, absent)
            if lacking:
                incomplete.append(collection.label)
    return tuple(incomplete)


def worn_collections(directory: Path, least: int = 0) -> dict[str, int]:
    """Return the collections in whose index on disk more is dead than alive; Chroma may have the directory open.

    Args:
        directory: The database directory.
        least: How many are dead at least.

    Returns:
        By collection id, how many bytes are too few on the disk for a copy of it; 0 where there is room.

    Raises:
        StoreUnavailableError: The database cannot be asked.
    """
    worn = {}
    for collection, index, records in _indexes(directory):
        with suppress(IndexUnreadableError):  # None yet; or it is broken, and `doctor` says so.
            header = read_header(directory / index, None, complete=False)
            if is_worn(header.count - records, records) and header.count - records >= least:
                needed = records * (_VECTORS_OF_A_COPY * header.element_size + _BYTES_OF_A_COPY)
                worn[collection] = max(0, needed + _LEFT_FREE_BYTES - free_bytes(directory))
    return worn


def _indexes(directory: Path) -> list[tuple[str, str, int]]:
    """Return of each collection its id, the name of its index's directory, and how many records it has."""
    try:
        asked = run_script(child, ["indexes", directory / SQLITE_FILE], seconds=_ASKING_SECONDS)
    except ChildError as error:
        raise StoreUnavailableError(f"The indexes of {str(directory)!r} cannot be listed: {error}") from error
    return [(str(collection), str(index), int(records)) for collection, index, records in json.loads(asked)]


class DroppedIndexes:
    """Removes the index directories of collections that are deleted while a database is open; Chroma leaves them.

    What belonged to no collection before stays, for `doctor` to show: a file of SQLite that was put back may have lost it.
    Asking Chroma's file takes some 50 ms, so it happens once a minute at most, and when the database is closed.

    Args:
        directory: The database directory.
        afterwards: Called when it was done: a copy of a namespace leaves some 20 MB with the C library, which can return them.
    """

    def __init__(self, directory: Path, afterwards: Callable[[], object]) -> None:
        self._directory = directory
        self._afterwards = afterwards
        self._identity = file_identity(directory)
        self._before: set[str] | None = None
        self._removed_at = monotonic()
        self._is_due = False

    def expect(self) -> None:
        """Note what belongs to no collection; a collection is about to be deleted."""
        if self._before is None:
            with suppress(StoreUnavailableError, OSError):
                self._before = self._without_collection()
        self._is_due = self._before is not None

    def remove(self, *, now: bool = False) -> None:
        """Remove what has come to belong to no collection since, if it is time."""
        if not self._is_due or not (now or monotonic() - self._removed_at > _REMOVING_SECONDS):
            return
        self._is_due, self._removed_at = False, monotonic()
        if file_identity(self._directory) != self._identity:
            return  # Another file lies there now, which cannot tell what belongs to this one.
        with suppress(StoreUnavailableError, OSError):
            for name in self._without_collection() - (self._before or set()):
                shutil.rmtree(self._directory / name, ignore_errors=True)
        self._afterwards()

    def _without_collection(self) -> set[str]:
        # Listed before Chroma's file is asked: a new index has its row there before it has its directory.
        directories = set(index_directories(self._directory))
        return directories - {index for _, index, _ in _indexes(self._directory)}


def rebuild_worn(directory: Path, report: PreflightReport) -> Path | None:
    """Let Chroma rebuild, at its next open, every index that holds more deleted than living records, from the living ones.

    Call it while this process owns the directory and Chroma does not have it open.

    Args:
        directory: The canonical database directory.
        report: What a thorough `preflight` found.

    Returns:
        The directory that now holds the old indexes, or None where there was nothing to do.

    Raises:
        sqlite3.DatabaseError: The SQLite file cannot be written; nothing was changed for the collection at hand.
    """
    quarantines = _new_quarantine(directory)
    for worn in (entry for entry in report.collections if entry.is_worn):
        index_directory = directory / worn.vector_segment_id
        with connect_read_write(directory) as connection:
            outcome = replay(connection, worn.collection_id)
            living = record_ids(connection, worn.metadata_segment_id) - outcome.with_vector
            vectors = _salvage(index_directory, worn).vectors
            if not living <= vectors.keys():
                continue  # An index from which not every living vector can be read is kept.
            try:
                _rebuild_from_log(connection, worn, {id: vectors[id] for id in living}, whole=True)
            except _NotWholeError:
                continue
        quarantines.mkdir(DIRECTORY_MODE, exist_ok=True)
        index_directory.rename(quarantines / index_directory.name)
    return quarantines if quarantines.is_dir() else None


def _salvage(index_directory: Path, collection: CollectionReport) -> Salvage:
    settings = collection.settings
    return salvage_vectors(
        index_directory, collection.dimension, cosine=settings.is_cosine, neighbors=settings.neighbors
    )


class _NotWholeError(Exception):
    """The log has not enough free numbers for all vectors."""


def _rebuild_from_log(
    connection: sqlite3.Connection,
    collection: CollectionReport,
    needed: Mapping[str, npt.NDArray[np.float32]],
    *,
    whole: bool = False,
) -> frozenset[str]:
    """Let Chroma make an index from its log, to which vectors are added that it lacks; return the ids of those that were added.

    Raises:
        _NotWholeError: With ``whole``: not all could be added, and nothing was changed.
    """
    with transaction(connection):
        added = _add_log_entries(connection, collection, needed)
        if whole and len(added) < len(needed):
            raise _NotWholeError
        connection.execute("DELETE FROM max_seq_id WHERE segment_id = ?", (collection.vector_segment_id,))
    return added


def _add_log_entries(
    connection: sqlite3.Connection,
    collection: CollectionReport,
    vectors: Mapping[str, npt.NDArray[np.float32]],
) -> frozenset[str]:
    """Write vectors into the log as if their first writes had never been purged; returns their ids.

    The entries get numbers that purging has freed, none of them above the last entry that SQLite's tables and the index have
    applied. So the replay reads them before anything newer, and SQLite's side, which applied them long ago, does not read them
    at all. They get the highest free numbers, so that the lower ones are left for collections that have applied less: each
    collection has freed at least as many numbers as it needs.
    """
    seen = min(collection.applied_sequence, collection.persisted_sequence or collection.applied_sequence)
    taken = {
        row[0] for row in connection.execute("SELECT seq_id FROM embeddings_queue WHERE seq_id <= ?", (seen,))
    }
    free = (number for number in range(seen, 0, -1) if number not in taken)
    topic = log_topic(collection.collection_id)
    entries = [
        (number, ADD, topic, record, vector.astype("<f4").tobytes(), "FLOAT32", "{}")
        for number, (record, vector) in zip(free, vectors.items(), strict=False)
    ]
    connection.executemany(
        "INSERT INTO embeddings_queue (seq_id, operation, topic, id, vector, encoding, metadata)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        entries,
    )
    return frozenset(entry[3] for entry in entries)


def quarantine_orphans(directory: Path, report: PreflightReport) -> Path | None:
    """Move index directories that belong to no collection aside; returns where to, or None if there are none.

    Chroma leaves them behind when a collection is deleted.

    Args:
        directory: The canonical database directory; owned by this process, not open in Chroma.
        report: What `preflight` found.

    Raises:
        DatabaseCorruptError: The SQLite file is damaged, so it cannot be told what is an orphan.
    """
    refuse_damaged_sqlite(directory, report)
    if not report.orphaned_directories:
        return None
    quarantines = _new_quarantine(directory)
    quarantines.mkdir(DIRECTORY_MODE)
    for name in report.orphaned_directories:
        (directory / name).rename(quarantines / name)
    return quarantines


def quarantine_text_index(directory: Path) -> Path:
    """Move our own full-text index aside, whatever lies in its place; it is made again when it is used.

    Args:
        directory: The canonical database directory; owned by this process.

    Returns:
        The directory that holds it now.

    Raises:
        OSError: It cannot be moved.
    """
    quarantines = _new_quarantine(directory)
    quarantines.mkdir(DIRECTORY_MODE)
    for suffix in SQLITE_SUFFIXES:
        name = f"{TEXT_INDEX_FILE}{suffix}"
        if os.path.lexists(directory / name):
            (directory / name).rename(quarantines / name)
    return quarantines


def _new_quarantine(directory: Path) -> Path:
    """Return the path of a directory that does not exist yet, named after the present time."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    return directory / f"{QUARANTINE_PREFIX}{stamp}"
