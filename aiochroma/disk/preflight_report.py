"""What a look at a database finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiochroma.disk.schema import IndexSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["CollectionReport", "PreflightReport"]


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
        pending: Log entries that Chroma will replay at open.
        persisted_sequence: Sequence number up to which the index on disk is complete; 0 if never persisted.
        applied_sequence: The same for SQLite's own tables.
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
        collections: One report for each; empty when the SQLite file cannot be read.
        log_rows: Entries in the write-ahead log; counted by a thorough look alone.
        log_bytes: Bytes of vectors in it.
        keeps_log: Whether purging is switched off, so that the log holds every vector; None for a new
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
        return (*self.sqlite_problems, *self.full_text_problems, *found)

    @property
    def damaged(self) -> tuple[CollectionReport, ...]:
        """The collections that need `recover`."""
        return tuple(
            report
            for report in self.collections
            if (report.index_problems or report.missing) and not report.unusable
        )
