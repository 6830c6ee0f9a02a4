"""What the doctor says of a database directory: its state, and what would help."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

from aiochroma._distribution import version as own_version
from aiochroma._partial import abandoned
from aiochroma._types import JsonObject
from aiochroma.client.maintenance import FillReport  # noqa: TC001 - frameworks read the annotations
from aiochroma.disk.backup import recorded_backup
from aiochroma.disk.copying import size_of
from aiochroma.disk.layout import (
    HISTORY_FILE,
    QUARANTINE_PREFIX,
    SQLITE_FILE,
    TEXT_INDEX_FILE,
    connect_read_only,
)
from aiochroma.disk.ownership import read_owner
from aiochroma.disk.schema import stored_embedders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aiochroma._errors import DatabaseInUseError
    from aiochroma.disk.findings import CollectionReport, PreflightReport

__all__ = [
    "CollectionState",
    "DoctorReport",
    "folders_of_copies",
    "is_mendable",
    "report_in_use",
    "report_on",
]

_WORTH_A_VACUUM = 0.2
_WORTH_CUTTING = 2**20
"""Bytes of a log below which a backup is not advised for its sake."""
HEALTHY, UNHEALTHY, _BAD_INPUT, UNAVAILABLE, DAMAGED = range(5)


@dataclass(frozen=True)
class CollectionState:
    """One collection.

    Attributes:
        name: Its name, with tenant and database where they are not Chroma's defaults.
        records: Records in it.
        dimension: Length of its vectors; None before the first write.
        indexed: Vectors in its index on disk.
        dead: Vectors there that belong to deleted and replaced records. Chroma never takes them out; ``vacuum`` does where there
            are more of them than of the others.
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
    dead: int = 0


@dataclass(frozen=True)
class DoctorReport:
    """The state of a database directory.

    Attributes:
        path: The directory.
        owner: Who has it open: ``pid``, ``host``, ``since``, ``command``; None where no program has.
        versions: Of aiochroma, of chromadb, and of the database's own tables.
        collections: One entry for each; empty while another process has the database open, or where SQLite cannot read it.
        journal_mode: SQLite's journal mode: ``"wal"`` or ``"delete"``.
        durable: Whether the log keeps every vector that our file has not, so that a lost index can be rebuilt; None where that is
            not known.
        log_entries: Writes in the log.
        log_bytes: Bytes of vectors and metadata in it.
        size_bytes: Size of the SQLite file.
        free_bytes: How much of it a vacuum would give back.
        orphaned_directories: Index directories that belong to no collection.
        orphaned_bytes: The size of those directories.
        quarantines: Directories with files that an earlier repair set aside.
        quarantined_bytes: The size of the quarantined directories.
        unfinished: Directories, beside the database or its newest backup, that a killed backup, restore or repair has left.
        unfinished_bytes: The size of the unfinished directories.
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
        """Whether nothing is wrong; a directory that another process has open was not looked at."""
        return self.exit_code == HEALTHY

    @property
    def exit_code(self) -> int:
        """0: nothing is wrong (any more); 1: it can be repaired; 3: another process has it open; 4: restore a backup."""
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


def report_on(
    directory: Path,
    found: PreflightReport,
    own_problems: Mapping[str, str],
    actions: Sequence[str] = (),
    saved_to: str | None = None,
) -> DoctorReport:
    """Return what is to be said of a directory after a visit.

    Args:
        directory: The canonical database directory.
        found: What the last thorough look has found.
        own_problems: What is wrong with the files that this library keeps beside Chroma's, by name.
        actions: What was done, one sentence each.
        saved_to: The copy that was made before, or None.
    """
    quarantines = sorted(entry for entry in directory.iterdir() if entry.name.startswith(QUARANTINE_PREFIX))
    backup = recorded_backup(directory)
    unfinished = [entry for folder in folders_of_copies(directory) for entry in abandoned(folder)]
    orphans = found.orphaned_directories
    return DoctorReport(
        path=str(directory),
        versions=_versions(found),
        collections=tuple(_state(entry) for entry in found.collections),
        journal_mode=found.journal_mode,
        durable=found.keeps_log,
        log_entries=found.log_rows,
        log_bytes=found.log_bytes,
        size_bytes=found.size_bytes,
        free_bytes=found.free_bytes,
        orphaned_directories=orphans,
        orphaned_bytes=sum(size_of(directory / name) for name in orphans),
        quarantines=tuple(entry.name for entry in quarantines),
        quarantined_bytes=sum(size_of(entry) for entry in quarantines),
        unfinished=tuple(str(entry) for entry in unfinished),
        unfinished_bytes=sum(size_of(entry) for entry in unfinished),
        backup=None if backup is None else str(backup),
        problems=(*found.problems, *own_problems.values()),
        notes=found.notes,
        advice=tuple(_advice_on(directory, found, own_problems, backup, quarantines, unfinished)),
        actions=tuple(actions),
        saved_to=saved_to,
        sqlite_is_damaged=bool(found.sqlite_problems),
    )


def report_in_use(directory: Path, error: DatabaseInUseError, seconds: float) -> DoctorReport:
    """Return what can be said of a database that another process has open: its files change while they are read."""
    owner = read_owner(directory)
    known = {"pid": error.pid, "host": error.host, "since": error.since}
    return DoctorReport(
        path=str(directory),
        owner=known if owner is None else asdict(owner),
        versions=_versions(None),
        size_bytes=(directory / SQLITE_FILE).stat().st_size,
        problems=(str(error),),
        advice=("Close it there, then run this again; a check from inside is `await client.health()`.",),
        seconds=seconds,
    )


def _state(entry: CollectionReport) -> CollectionState:
    return CollectionState(
        name=entry.label,
        records=entry.records,
        dimension=entry.dimension,
        indexed=entry.vectors,
        pending=entry.pending,
        missing=len(entry.missing),
        problems=entry.problems,
        dead=entry.dead,
    )


def _versions(found: PreflightReport | None) -> dict[str, str]:
    versions = {"aiochroma": own_version(), "chromadb": version("chromadb")}
    if found is not None and found.migrations:
        versions["tables"] = ", ".join(
            f"{kind} {number}" for kind, number in sorted(found.migrations.items())
        )
    return versions


def is_mendable(found: PreflightReport) -> bool:
    """Tell whether there is something that Chroma crashes or fails with."""
    return bool(found.odd_rows) or any(entry.unusable for entry in found.collections)


def folders_of_copies(directory: Path) -> list[Path]:
    """Return where directories are made that become a backup, or take the database's place."""
    backup = recorded_backup(directory)
    return sorted({directory.parent, *([] if backup is None else [backup.parent])})


def _advice_on(
    directory: Path,
    found: PreflightReport,
    own_problems: Mapping[str, str],
    backup: Path | None,
    quarantines: list[Path],
    unfinished: list[Path],
) -> list[str]:
    """Return what would help, one sentence each, in the order of urgency.

    Args:
        directory: The canonical database directory.
        found: What a thorough look has found.
        own_problems: What is wrong with the files that this library keeps beside Chroma's, by name.
        backup: The newest verified backup, or None.
        quarantines: Directories with files that earlier repairs have set aside.
        unfinished: Directories that a killed backup, restore or repair has left incomplete.
    """
    advice = []
    broken = ", ".join(entry.label for entry in found.collections if entry.index_problems)
    missing = sum(len(entry.missing) for entry in found.collections)
    if found.sqlite_problems:
        source = f" {backup}" if backup is not None else ", if there is one"
        advice.append(f"SQLite's file cannot be repaired here: restore the newest backup{source}.")
    else:
        advice += _advice_on_data(found, broken, missing)
        if TEXT_INDEX_FILE in own_problems:
            advice.append("--repair moves the full-text index aside; it is made again when it is used.")
        if HISTORY_FILE in own_problems:
            advice.append(
                f"{HISTORY_FILE} cannot be made again and is never touched: move it away to begin a new history, or take it "
                "from a backup. The memories do not need it."
            )
        advice += [
            f"{entry.dead} of the {entry.dead + entry.vectors} vectors in the index of {entry.label} are dead: --vacuum makes it "
            "again while no program has the database open, `aiochroma compact` beside others, for a memory."
            for entry in found.collections
            if entry.is_worn
        ]
        if found.keeps_log and found.log_bytes > _WORTH_CUTTING and backup is None:
            advice.append("A backup would allow the log to be cut: `aiochroma backup`.")
        if quarantines:
            advice.append("What is in quarantine may be deleted when you are sure that nothing is missing.")
    if unfinished:
        names = ", ".join(str(entry) for entry in unfinished)
        advice.append(
            f"--repair removes what a backup, restore or repair that was killed has left incomplete: {names}."
        )
    if not found.sqlite_problems:
        advice += _advice_on_embedders(directory)
    return advice


def _advice_on_data(found: PreflightReport, broken: str, missing: int) -> list[str]:
    advice = {
        f"--repair sets the broken index of {broken} aside and rebuilds it (opening the database does that, too).": broken,
        "--repair makes Chroma's full-text tables again from the documents; nothing is lost. Versions of SQLite read them "
        "differently.": found.full_text_problems,
        "--repair mends what makes Chroma crash or fail; the other collections can be used meanwhile.": is_mendable(
            found
        ),
        f"--repair looks for the vectors of {missing} records in the log and in the newest backup; --reembed-missing embeds the "
        "documents of those that are nowhere.": missing,
        "--repair moves the orphaned indexes aside; Chroma leaves them when a collection is deleted.": (
            found.orphaned_directories
        ),
        f"--vacuum gives {found.free_bytes} bytes of {found.size_bytes} back.": (
            found.size_bytes and found.free_bytes > _WORTH_A_VACUUM * found.size_bytes
        ),
    }
    return [sentence for sentence, applies in advice.items() if applies]


def _advice_on_embedders(directory: Path) -> list[str]:
    """Say it where one memory cannot recall all namespaces, because several embedders have written them."""
    with connect_read_only(directory) as connection:
        embedders = stored_embedders(connection)
    if len(embedders) < 2:
        return []
    written = ", ".join(f"{count} by {name}" for name, count in embedders.items())
    return [
        f"Several embedders have written namespaces ({written}); a memory recalls those of its own: see `aiochroma reembed`."
    ]
