"""What a look at a database finds, what a recovery did, and what is noted of both in the directory for the next opening.

**Seen.** An opening checks what has changed since an earlier look found it sound. A file whose size and time of change are the
same was not written. A few moments after a change that is not certain (clocks of file systems are coarse), so what was changed
just before the look is looked at again. `doctor` looks at everything.

**Rebuilds.** Chroma rebuilds an index in native code, which can end the whole process. So each rebuild is noted before it begins.
Where a note is left, the next opening tries that one in a child process; should the child die of it too, the collection is left
alone from then on, and all the others can be used.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - frameworks read the annotations
from typing import TYPE_CHECKING

from aiochroma._clock import file_clock_ns
from aiochroma._files import read_json, write_atomically
from aiochroma._types import JsonObject
from aiochroma.disk.layout import INDEX_FILES, REBUILD_NOTE, SEEN_NOTE, SQLITE_FILE
from aiochroma.disk.schema import IndexSettings

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = [
    "CollectionRecovery",
    "CollectionReport",
    "PreflightReport",
    "RecoveryReport",
    "Stamp",
    "begin_rebuild",
    "crashing",
    "end_rebuild",
    "forget_seen",
    "index_stamp",
    "is_worn",
    "note_clean_close",
    "note_crash",
    "note_look",
    "read_seen",
    "sqlite_is_unchanged",
    "unfinished",
    "write_seen",
]


WORTH_REBUILDING = 1000
"""With fewer dead vectors an index is left as it is."""


def is_worn(dead: int, alive: int) -> bool:
    """Whether enough vectors of an index belong to deleted or replaced records to make the index again."""
    return dead > max(alive, WORTH_REBUILDING)


@dataclass(frozen=True)
class CollectionReport:
    """One collection: what SQLite knows of it and what its index holds.

    Attributes:
        collection_id: Id of the collection.
        name: Name of the collection.
        database: Name of the Chroma database it is in.
        tenant: Name of the tenant.
        dimension: Length of its vectors; None before the first write.
        records: Records in SQLite.
        vectors: Vectors in the index on disk.
        dead: Vectors in the index on disk that belong to nothing any more: of deleted and replaced records. Chroma searches past
            them, and never takes them out.
        pending: Log entries that Chroma will replay at open.
        persisted_sequence: Sequence number up to which the index on disk is complete; 0 if never persisted.
        applied_sequence: Sequence number up to which SQLite's own tables are complete; 0 if nothing was applied.
        vector_segment_id: Name of the index directory.
        metadata_segment_id: Segment of the records in SQLite.
        settings: What its index is made with.
        index_problems: One sentence for each thing wrong with the index files.
        unusable: Why Chroma must not be let near this collection: it would crash the process, or cannot work; "" where nothing
            speaks against it. The other collections are not affected.
        unappliable: Entries of the log that can never be applied, by number: what is wrong with each.
        missing: Ids of records without a vector in the index or in the log entries to be replayed.
        surplus: Number of ids that have a vector in the index but no record.
        sampled: Whether only a sample of the index's links was followed.
    """

    collection_id: str
    name: str
    database: str
    tenant: str
    dimension: int | None
    records: int
    vectors: int
    pending: int
    persisted_sequence: int
    applied_sequence: int
    vector_segment_id: str
    metadata_segment_id: str
    settings: IndexSettings = field(default_factory=IndexSettings)
    dead: int = 0
    index_problems: tuple[str, ...] = ()
    unusable: str = ""
    unappliable: Mapping[int, str] = field(default_factory=dict)
    missing: tuple[str, ...] = field(default=(), repr=False)
    surplus: int = 0
    sampled: bool = False

    @property
    def label(self) -> str:
        """The name, with database and tenant where they are not Chroma's defaults."""
        if (self.tenant, self.database) == ("default_tenant", "default_database"):
            return self.name
        return f"{self.tenant}/{self.database}/{self.name}"

    @property
    def is_worn(self) -> bool:
        """Whether more is dead than alive in the index, and so much that making it again pays."""
        return is_worn(self.dead, self.vectors) and not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each thing that is wrong."""
        found = [f"{self.label}: {self.unusable}"] if self.unusable else []
        found += [f"{self.label}: {problem}" for problem in self.index_problems]
        found += [
            f"{self.label}: entry {number} of the log can never be applied: {what}"
            for number, what in self.unappliable.items()
        ]
        if self.missing:
            found.append(
                f"{self.label}: {len(self.missing)} of {self.records} records have no vector in the index"
            )
        return tuple(found)


@dataclass(frozen=True)
class PreflightReport:
    """The state of a database directory.

    Attributes:
        directory: The directory.
        is_new: There is no database yet; Chroma will create one.
        sqlite_problems: What is wrong with the SQLite file; never repaired without being asked.
        full_text_problems: What is wrong with Chroma's full-text tables alone. They are derived from other tables: nothing is
            lost, and a repair makes them again.
        odd_rows: What is odd of rows that tie collections together; opening and `doctor` mend it.
        collections: One report for each; empty when the SQLite file cannot be read.
        log_rows: Entries in the write-ahead log; counted by a thorough look alone.
        log_bytes: Bytes of vectors in it.
        keeps_log: Whether purging is switched off, so that the log holds what our file has not; None for a new
            database.
        journal_mode: SQLite's journal mode, "wal" or "delete"; "" for a new database.
        size_bytes: Size of the SQLite file.
        free_bytes: How much of it a vacuum would give back.
        orphaned_directories: Index directories that belong to no collection.
        migrations: Newest applied migration of each kind.
        is_older: Written by an older Chroma; collections are checked only after Chroma has migrated it.
        notes: What was not checked completely, and why.
        seconds: How long it took.
    """

    directory: Path
    is_new: bool = False
    sqlite_problems: tuple[str, ...] = ()
    full_text_problems: tuple[str, ...] = ()
    odd_rows: tuple[str, ...] = ()
    collections: tuple[CollectionReport, ...] = ()
    log_rows: int = 0
    log_bytes: int = 0
    keeps_log: bool | None = None
    journal_mode: str = ""
    size_bytes: int = 0
    free_bytes: int = 0
    orphaned_directories: tuple[str, ...] = ()
    migrations: Mapping[str, int] = field(default_factory=dict)
    is_older: bool = False
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each thing that is wrong, the SQLite file first."""
        found = [problem for report in self.collections for problem in report.problems]
        return (*self.sqlite_problems, *self.full_text_problems, *self.odd_rows, *found)

    @property
    def damaged(self) -> tuple[CollectionReport, ...]:
        """The collections that need `recover`."""
        return tuple(
            report
            for report in self.collections
            if (report.index_problems or report.missing) and not report.unusable
        )


@dataclass(frozen=True)
class CollectionRecovery:
    """What became of one damaged collection.

    Attributes:
        collection_id: Id of the collection.
        label: Its name, with tenant and database where they are not Chroma's defaults.
        rebuilt: Whether Chroma will rebuild the index at its next open.
        from_log: Vectors that the log holds.
        from_index: Vectors that were read from the broken index files.
        missing: Ids of records whose vector is nowhere; embed their documents again, or delete them.
        quarantine: Where the broken files are, or None.
        explanation: What could not be read, and why; "" when nothing is missing.
    """

    collection_id: str
    label: str
    rebuilt: bool
    from_log: int
    from_index: int
    missing: tuple[str, ...] = field(default=(), repr=False)
    quarantine: Path | None = None
    explanation: str = ""


@dataclass(frozen=True)
class RecoveryReport:
    """What `recover` did.

    Attributes:
        directory: The database directory.
        collections: One entry for each collection that was damaged.
    """

    directory: Path
    collections: tuple[CollectionRecovery, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every record has its vector again."""
        return not any(collection.missing for collection in self.collections)

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """Ids without a vector, by collection id."""
        return {entry.collection_id: entry.missing for entry in self.collections if entry.missing}


_SETTLED_NANOSECONDS = 2 * 10**9
_FORMAT = 2  # To be raised when a look finds more than before.

Stamp = list[list[int]]
"""Size and time of change of each file; empty where that tells nothing."""


def index_stamp(directory: Path) -> Stamp:
    """Return how the files of an index look now."""
    stamp = []
    for name in INDEX_FILES:
        try:
            status = (directory / name).stat()
        except OSError:
            stamp.append([-1, 0])
            continue
        if file_clock_ns() - status.st_mtime_ns < _SETTLED_NANOSECONDS:
            return []
        stamp.append([status.st_size, status.st_mtime_ns])
    return stamp


def read_seen(directory: Path) -> JsonObject:
    """Return what was noted at the last look; nothing where that is not known."""
    found = read_json(directory / SEEN_NOTE) or {}
    return found if found.get("format") == _FORMAT else {}


def forget_seen(directory: Path) -> None:
    """Have the next look look at everything: a thorough one has found what was taken for sound."""
    (directory / SEEN_NOTE).unlink(missing_ok=True)


def write_seen(directory: Path, collections: JsonObject) -> None:
    """Note what was found sound; a disk that cannot be written does not keep any program from opening."""
    with contextlib.suppress(OSError):
        write_atomically(
            directory / SEEN_NOTE, json.dumps({"format": _FORMAT, "sqlite": [], "collections": collections})
        )


def note_clean_close(directory: Path) -> None:
    """Note how the SQLite file looks after Chroma has closed it; nothing where no look was noted before."""
    seen = read_seen(directory)
    if seen:
        seen["sqlite"] = _sqlite_stamp(directory)
        with contextlib.suppress(OSError):
            write_atomically(directory / SEEN_NOTE, json.dumps(seen))


def sqlite_is_unchanged(directory: Path, seen: JsonObject) -> bool:
    """Tell whether no program has written to the SQLite file since it was closed cleanly."""
    stamp = _sqlite_stamp(directory)
    return bool(stamp) and stamp == seen.get("sqlite")


def _sqlite_stamp(directory: Path) -> list[int]:
    """Return size, time of change and inode; nothing while there is a journal beside the file."""
    try:
        if any(
            (directory / f"{SQLITE_FILE}{suffix}").stat().st_size
            for suffix in ("-wal", "-journal")
            if (directory / f"{SQLITE_FILE}{suffix}").exists()
        ):
            return []
        status = (directory / SQLITE_FILE).stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ino]


_BEGUN, _CRASHES = "begun", "crashes"


def begin_rebuild(directory: Path, collection_id: str) -> None:
    """Note that a rebuild begins.

    Raises:
        OSError: It cannot be noted, so it must not begin.
    """
    _write(directory, {**_read(directory), collection_id: _BEGUN})


def end_rebuild(directory: Path, collection_id: str) -> None:
    """Note that a rebuild has ended, well or with an error; or that it may be tried again."""
    noted = _read(directory)
    if noted.pop(collection_id, None) is not None:
        _write(directory, noted)


def note_crash(directory: Path, collection_id: str) -> None:
    """Note that a rebuild ends the process that does it."""
    _write(directory, {**_read(directory), collection_id: _CRASHES})


def unfinished(directory: Path) -> list[str]:
    """Return the ids of collections whose rebuild did not end; why is not known yet."""
    return [id for id, state in _read(directory).items() if state == _BEGUN]


def crashing(directory: Path) -> frozenset[str]:
    """Return the ids of collections whose rebuild ends the process."""
    return frozenset(id for id, state in _read(directory).items() if state == _CRASHES)


def _read(directory: Path) -> dict[str, str]:
    return {str(id): str(state) for id, state in (read_json(directory / REBUILD_NOTE) or {}).items()}


def _write(directory: Path, noted: Mapping[str, str]) -> None:
    if noted:
        write_atomically(directory / REBUILD_NOTE, json.dumps(noted))
    else:
        with contextlib.suppress(OSError):
            (directory / REBUILD_NOTE).unlink()


def note_look(directory: Path, report: PreflightReport) -> None:
    """Note what a look has found sound, so that the next one need not look at it again while it does not change."""
    noted = {}
    for entry in report.collections:
        stamp = index_stamp(directory / entry.vector_segment_id)
        if stamp and not entry.problems and not entry.sampled:
            noted[entry.collection_id] = {
                "stamp": stamp,
                "persisted": entry.persisted_sequence,
                "applied": entry.applied_sequence,
                "dimension": entry.dimension,
                "records": entry.records,
                "vectors": entry.vectors,
                "pending": entry.pending,
                "surplus": entry.surplus,
            }
    write_seen(directory, noted)
