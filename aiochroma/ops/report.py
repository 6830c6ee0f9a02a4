"""What the doctor found, and what was done about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from aiochroma._types import JsonObject
from aiochroma.client.maintenance import FillReport  # noqa: TC001 - frameworks read the annotations

__all__ = ["DAMAGED", "HEALTHY", "UNAVAILABLE", "UNHEALTHY", "CollectionState", "DoctorReport"]

HEALTHY, UNHEALTHY, _BAD_INPUT, UNAVAILABLE, DAMAGED = range(5)


@dataclass(frozen=True)
class CollectionState:
    """One collection.

    Attributes:
        name: Its name, with tenant and database where they are not Chroma's defaults.
        records: Records in it.
        dimension: Length of its vectors; None before the first write.
        indexed: Vectors in its index on disk.
        pending: Writes in the log that the index on disk does not hold yet; normal, Chroma applies them when it opens.
        missing: Records without a vector. For an index that is damaged it is known only after the repair.
        problems: One sentence for each thing that is wrong.
    """

    name: str
    records: int
    dimension: int | None
    indexed: int
    pending: int
    missing: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class DoctorReport:
    """The state of a database directory.

    Attributes:
        path: The directory.
        owner: Who has it open: ``pid``, ``host``, ``since``, ``command``; None where no program has.
        versions: Of aiochroma, of chromadb, and of the database's own tables.
        collections: One entry for each; empty while somebody has the database open, or where SQLite cannot read it.
        journal_mode: SQLite's journal mode: ``"wal"`` or ``"delete"``.
        durable: Whether the log keeps every vector, so that a lost index can be rebuilt; None where that is not known.
        log_entries: Writes in the log.
        log_bytes: Bytes of vectors and metadata in it.
        size_bytes: Size of the SQLite file.
        free_bytes: How much of it a vacuum would give back.
        orphaned_directories: Index directories that belong to no collection.
        orphaned_bytes: Their size.
        quarantines: Directories with files that an earlier repair set aside.
        quarantined_bytes: Their size.
        unfinished: Directories, beside the database or its newest backup, that a killed backup, restore or repair has left.
        unfinished_bytes: Their size.
        backup: The newest verified backup, where it still is; else None.
        problems: What is wrong, one sentence each, the SQLite file first.
        notes: What was not looked at completely, and why.
        advice: What would help, one sentence each.
        actions: What was done, one sentence each.
        saved_to: The copy that was made before the repair, or None.
        filled: What became of records without vectors; None where that was not asked for.
        seconds: How long all took.
    """

    path: str
    owner: JsonObject | None = None
    versions: dict[str, str] = field(default_factory=dict)
    collections: tuple[CollectionState, ...] = ()
    journal_mode: str = ""
    durable: bool | None = None
    log_entries: int = 0
    log_bytes: int = 0
    size_bytes: int = 0
    free_bytes: int = 0
    orphaned_directories: tuple[str, ...] = ()
    orphaned_bytes: int = 0
    quarantines: tuple[str, ...] = ()
    quarantined_bytes: int = 0
    unfinished: tuple[str, ...] = ()
    unfinished_bytes: int = 0
    backup: str | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    saved_to: str | None = None
    filled: FillReport | None = None
    seconds: float = 0.0
    sqlite_is_damaged: bool = False

    @property
    def records(self) -> int:
        """Records in all collections."""
        return sum(entry.records for entry in self.collections)

    @property
    def missing(self) -> int:
        """Records without a vector in all collections."""
        return sum(entry.missing for entry in self.collections)

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong; a directory that somebody has open was not looked at."""
        return self.exit_code == HEALTHY

    @property
    def exit_code(self) -> int:
        """0: nothing is wrong (any more); 1: something is, and can be repaired; 3: somebody has it open; 4: restore a backup."""
        if self.owner is not None:
            return UNAVAILABLE
        if self.sqlite_is_damaged:
            return DAMAGED
        return UNHEALTHY if self.problems else HEALTHY

    def as_dict(self) -> JsonObject:
        """Return plain data, for JSON."""
        return {
            **asdict(self),
            "records": self.records,
            "missing": self.missing,
            "is_healthy": self.is_healthy,
        }
