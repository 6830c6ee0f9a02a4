"""A check of a database directory, like that of a file system, and its repair.

Everything here needs the database closed: it becomes the directory's owner for as long as it works.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from aiochroma._distribution import version as own_version
from aiochroma._errors import DatabaseInUseError, DatabasePathError, InvalidInputError
from aiochroma._threads import refuse_on_loop
from aiochroma.disk.backup import begin_backup
from aiochroma.disk.copying import copy_database, refuse_lack_of_room, size_of, survives_rebuilding
from aiochroma.disk.erasing import scrub
from aiochroma.disk.filesystem import canonical_directory
from aiochroma.disk.foreign import refuse_foreign_users
from aiochroma.disk.layout import QUARANTINE_PREFIX, SQLITE_FILE, connect_read_only
from aiochroma.disk.manifest import recorded_backup
from aiochroma.disk.ownership import acquire, read_owner
from aiochroma.disk.partial import PartialDirectory, abandoned, remove_abandoned
from aiochroma.disk.preflight import preflight
from aiochroma.disk.rebuilds import crashing, end_rebuild
from aiochroma.disk.recovery import quarantine_orphans
from aiochroma.disk.schema import stored_embedders
from aiochroma.disk.sqlite_file import vacuum
from aiochroma.host.opening import ask_to_leave
from aiochroma.ops.repair import fill_and_rebuild, mend
from aiochroma.ops.report import CollectionState, DoctorReport

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from aiochroma.disk.ownership import Ownership
    from aiochroma.disk.preflight_report import CollectionReport, PreflightReport

__all__ = ["Progress", "doctor"]

Progress = Callable[[str, int, int], None]

_WORTH_A_VACUUM = 0.2


def doctor(
    path: str | os.PathLike[str],
    *,
    repair: bool = False,
    vacuum: bool = False,
    erase: bool = False,
    reembed_missing: bool = False,
    embedder: object = None,
    backup_to: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> DoctorReport:
    """Check a database that no program has open, and repair it if asked to.

    Blocks; on an event loop use ``await asyncio.to_thread(aiochroma.doctor, path)``.

    Without ``repair``, ``vacuum``, ``erase`` and ``reembed_missing`` nothing is changed. With one of them, ``erase`` apart, the
    directory is copied first. A
    repair sets files of a broken index aside (it deletes nothing) and has Chroma rebuild the index from its log, from what
    can be read of the broken files, and from the newest backup. A damaged SQLite file is not repaired: restore a backup.

    Args:
        path: The database directory.
        repair: Rebuild damaged indexes, set aside index directories that belong to no collection, and remove what a backup,
            restore or repair that was killed has left incomplete.
        vacuum: Give the room of what is dead back to the file system: entries of deleted and replaced records in the log,
            and free pages. The history and what repairs have set aside stay.
        erase: Remove what is dead from every file, the history and quarantines included; see :func:`aiochroma.erase`. No copy is
            made for this, since it would hold what is to go.
        reembed_missing: Embed the documents of records that have lost their vectors. May be interrupted and run again.
        embedder: What embeds them: an :class:`~aiochroma.Embedder`, a Chroma embedding function, or a callable. Default: the
            one that the collection was written with, where that is one of aiochroma's own.
        backup_to: Where the copy goes that is made before anything is changed; a directory that does not exist. Default:
            beside the database.
        progress: Called with a stage, how much of it is done, and of how much.

    Returns:
        What was found, and what was done. ``exit_code`` sums it up.

    Raises:
        InvalidInputError: The arguments contradict each other.
        BlockingCallError: An event loop runs on this thread.
        DatabasePathError: There is no database, or no permission.
        DatabaseInUseError: Something is to be changed and somebody has the database open.
        DatabaseFormatError: A newer Chroma wrote it; nothing was touched.
        BackupError: The copy could not be made; nothing was changed.
    """
    refuse_on_loop()
    if embedder is not None and not reembed_missing:
        raise InvalidInputError("`embedder` is of use with `reembed_missing=True` only.")
    changes = repair or vacuum or erase or reembed_missing
    if backup_to is not None and not changes:
        raise InvalidInputError("`backup_to` is of use with `repair`, `vacuum` or `reembed_missing` only.")
    begun = time.monotonic()
    directory = canonical_directory(path)
    if not (directory / SQLITE_FILE).exists() and not (directory.is_dir() and _leftovers(directory)):
        raise DatabasePathError(f"There is no database in {str(directory)!r}.")
    examination = _Examination(directory, progress or (lambda _stage, _done, _of: None))
    try:
        ask_to_leave(str(directory))
        with_owner = acquire(directory, create=False)
    except DatabaseInUseError as error:
        if changes:
            raise
        return replace(_in_use(directory, error), seconds=time.monotonic() - begun)
    report = examination.run(
        with_owner,
        repair=repair,
        vacuum=vacuum,
        erase=erase,
        fill=reembed_missing,
        embedder=embedder,
        backup_to=backup_to,
    )
    return replace(report, seconds=round(time.monotonic() - begun, 3))


class _Examination:
    """One visit of the doctor."""

    def __init__(self, directory: Path, progress: Progress) -> None:
        self._directory = directory
        self._progress = progress
        self._actions: list[str] = []
        self._saved_to: str | None = None

    def run(
        self,
        ownership: Ownership,
        *,
        repair: bool,
        vacuum: bool,
        erase: bool,
        fill: bool,
        embedder: object,
        backup_to: str | os.PathLike[str] | None,
    ) -> DoctorReport:
        directory, filled = self._directory, None
        try:
            found = self._look(changes=repair or vacuum or erase or fill)
            if found.sqlite_problems or not (repair or vacuum or erase or fill):
                return self._report(found)
            dying = crashing(directory)
            broken = (
                found.damaged
                or found.full_text_problems
                or found.orphaned_directories
                or _mendable(found)
                or dying
            )
            if vacuum or (repair and broken) or (fill and found.damaged):
                self._save(backup_to)
            if repair:
                found = self._mend(found, dying)
        finally:
            ownership.release()
        if found.damaged and (repair or fill):
            # Takes the ownership itself, as any program that opens the database.
            self._progress("repair", 0, 1)
            actions, filled = fill_and_rebuild(directory, embedder, fill=fill, progress=self._progress)
            self._actions.extend(actions)
            self._progress("repair", 1, 1)
        ownership = acquire(directory, wait_seconds=5.0, create=False)
        try:
            if vacuum:
                self._vacuum()
            if erase:
                self._erase()
            return replace(self._report(self._look(changes=False)), filled=filled)
        finally:
            ownership.release()

    def _mend(self, found: PreflightReport, dying: frozenset[str]) -> PreflightReport:
        """Mend what is mended without Chroma; returns what is left."""
        directory = self._directory
        self._actions.extend(
            f"{path} was removed: it was incomplete"
            for folder in _folders(directory)
            for path in remove_abandoned(folder)
        )
        before = len(self._actions)
        if found.orphaned_directories:
            quarantine = quarantine_orphans(directory, found)
            self._actions.append(
                f"{len(found.orphaned_directories)} orphaned index directories were moved to {quarantine}"
            )
        self._actions.extend(mend(directory, found))
        for collection in dying:
            if survives_rebuilding(directory, collection):
                end_rebuild(directory, collection)
                self._actions.append(
                    f"the index of {collection} can be rebuilt again; a process of its own has tried it"
                )
        return preflight(directory, thorough=True) if len(self._actions) > before else found

    def _look(self, *, changes: bool) -> PreflightReport:
        self._progress("check", 0, 1)
        if changes:
            refuse_foreign_users(self._directory)
        found = preflight(self._directory, thorough=True)
        self._progress("check", 1, 1)
        return found

    def _save(self, backup_to: str | os.PathLike[str] | None) -> None:
        """Copy everything before anything is changed; not verified, since what is copied is not whole."""
        directory = self._directory
        if backup_to is not None:
            partial = begin_backup(directory, backup_to, keep=None, verify="quick").partial
        else:
            stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
            refuse_lack_of_room(directory, directory.parent)
            partial = PartialDirectory(
                directory.with_name(f"{directory.name}.before-repair-{stamp}-{uuid.uuid4().hex[:8]}")
            )
        self._progress("copy", 0, 1)
        try:
            copy_database(directory, partial.path)
            target = partial.finish()
        except BaseException:
            partial.discard()
            raise
        self._progress("copy", 1, 1)
        self._saved_to = str(target)
        self._actions.append(f"everything was copied to {target} first")

    def _vacuum(self) -> None:
        self._progress("vacuum", 0, 1)
        directory = self._directory
        refuse_lack_of_room(directory, directory)
        before = size_of(directory)
        if preflight(directory).problems:
            vacuum(directory)
        else:
            scrub(directory, history={}, set_aside=False)
        self._progress("vacuum", 1, 1)
        self._actions.append(f"the database is {before - size_of(directory)} bytes smaller")

    def _erase(self) -> None:
        found = preflight(self._directory)
        if found.problems:
            self._actions.append("nothing was erased, because the database is damaged: repair it first")
            return
        self._progress("erase", 0, 1)
        receipt = scrub(self._directory)
        self._progress("erase", 1, 1)
        self._actions.append(
            f"{receipt.log_entries} entries of the log and {receipt.vectors_replaced} vectors were erased, and "
            f"{len(receipt.removed)} directories removed; not reached: {', '.join(receipt.not_reached) or 'nothing known'}"
        )

    def _report(self, found: PreflightReport) -> DoctorReport:
        directory = self._directory
        quarantines = sorted(
            entry for entry in directory.iterdir() if entry.name.startswith(QUARANTINE_PREFIX)
        )
        backup, unfinished = recorded_backup(directory), _unfinished(directory)
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
            problems=found.problems,
            notes=found.notes,
            advice=(
                *_advice(found, backup, quarantines),
                *_advice_on_leftovers(unfinished),
                *_advice_on_embedders(directory, found),
            ),
            actions=tuple(self._actions),
            saved_to=self._saved_to,
            sqlite_is_damaged=bool(found.sqlite_problems),
        )


def _mendable(found: PreflightReport) -> bool:
    return any(entry.unusable for entry in found.collections)


def _advice(found: PreflightReport, backup: Path | None, quarantines: list[Path]) -> list[str]:
    """Say what would help, in the order of urgency."""
    advice = []
    if found.sqlite_problems:
        source = f" {backup}" if backup is not None else ", if there is one"
        advice.append(f"SQLite's file cannot be repaired here: restore the newest backup{source}.")
        return advice
    broken = [entry for entry in found.collections if entry.index_problems]
    if broken:
        names = ", ".join(entry.label for entry in broken)
        advice.append(
            f"--repair sets the broken index of {names} aside and rebuilds it (opening the database does that, too)."
        )
    if found.full_text_problems:
        advice.append(
            "--repair makes Chroma's full-text tables again from the documents; nothing is lost. Versions of SQLite read them "
            "differently."
        )
    if _mendable(found):
        advice.append(
            "--repair mends what makes Chroma crash or fail; the other collections can be used meanwhile."
        )
    missing = sum(len(entry.missing) for entry in found.collections)
    if missing:
        advice.append(
            f"--repair looks for the vectors of {missing} records in the log and in the newest backup; --fill-missing embeds the "
            "documents of those that are nowhere."
        )
    if found.orphaned_directories:
        advice.append(
            "--repair moves the orphaned indexes aside; Chroma leaves them when a collection is deleted."
        )
    if found.size_bytes and found.free_bytes > _WORTH_A_VACUUM * found.size_bytes:
        advice.append(f"--vacuum gives {found.free_bytes} bytes of {found.size_bytes} back.")
    if found.keeps_log and found.log_rows and backup is None:
        advice.append("A backup would allow the log to be cut: `aiochroma backup`.")
    if quarantines:
        advice.append("What is in quarantine may be deleted when you are sure that nothing is missing.")
    return advice


def _folders(directory: Path) -> list[Path]:
    """Return where directories are made that become a backup, or take the database's place."""
    backup = recorded_backup(directory)
    return sorted({directory.parent, *([] if backup is None else [backup.parent])})


def _unfinished(directory: Path) -> list[Path]:
    return [entry for folder in _folders(directory) for entry in abandoned(folder)]


def _advice_on_leftovers(unfinished: list[Path]) -> list[str]:
    if not unfinished:
        return []
    names = ", ".join(str(entry) for entry in unfinished)
    return [
        f"--repair removes what a backup, restore or repair that was killed has left incomplete: {names}."
    ]


def _advice_on_embedders(directory: Path, found: PreflightReport) -> list[str]:
    """Say it where one memory cannot recall all namespaces, because several embedders have written them."""
    if found.sqlite_problems:
        return []
    with connect_read_only(directory) as connection:
        embedders = stored_embedders(connection)
    if len(embedders) < 2:
        return []
    written = ", ".join(f"{count} by {name}" for name, count in embedders.items())
    return [
        f"Several embedders have written namespaces ({written}); a memory recalls those of its own: see `aiochroma reembed`."
    ]


def _state(entry: CollectionReport) -> CollectionState:
    return CollectionState(
        name=entry.label,
        records=entry.records,
        dimension=entry.dimension,
        indexed=entry.vectors,
        pending=entry.pending,
        missing=len(entry.missing),
        problems=entry.problems,
    )


def _in_use(directory: Path, error: DatabaseInUseError) -> DoctorReport:
    """Return what can be said of a database that somebody has open: its files change while one looks."""
    owner = read_owner(directory)
    known = {"pid": error.pid, "host": error.host, "since": error.since}
    return DoctorReport(
        path=str(directory),
        owner=known if owner is None else asdict(owner),
        versions=_versions(None),
        size_bytes=(directory / SQLITE_FILE).stat().st_size,
        problems=(str(error),),
        advice=("Close it there, then run this again; a check from inside is `await client.health()`.",),
    )


def _versions(found: PreflightReport | None) -> dict[str, str]:
    versions = {"aiochroma": own_version(), "chromadb": _version("chromadb")}
    if found is not None and found.migrations:
        versions["tables"] = ", ".join(
            f"{kind} {number}" for kind, number in sorted(found.migrations.items())
        )
    return versions


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _leftovers(directory: Path) -> bool:
    return any((entry / "header.bin").exists() for entry in directory.iterdir() if entry.is_dir())
