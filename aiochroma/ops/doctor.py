"""A check of a database directory, like that of a file system, and its repair.

Everything here needs the database closed: it becomes the directory's owner for as long as it works.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aiochroma._clock import monotonic
from aiochroma._errors import DatabaseInUseError, DatabasePathError, InvalidInputError, StoreUnavailableError
from aiochroma._files import canonical_path
from aiochroma._partial import remove_abandoned
from aiochroma._waiting import at_length, on_callers_loop
from aiochroma.client.maintenance import FillReport  # noqa: TC001 - frameworks read the annotations
from aiochroma.disk.copying import refuse_lack_of_room, size_of, survives_rebuilding
from aiochroma.disk.findings import crashing, end_rebuild, forget_seen
from aiochroma.disk.layout import TEXT_INDEX_FILE, has_database
from aiochroma.disk.ownership import acquire, refuse_foreign_users
from aiochroma.disk.preflight import inspect_own_files, preflight
from aiochroma.disk.recovery import quarantine_orphans, quarantine_text_index, rebuild_worn
from aiochroma.disk.sqlite_file import vacuum
from aiochroma.host.opening import ask_to_leave
from aiochroma.ops.repair import fill_and_rebuild, mend, save_copy, scrub_files
from aiochroma.ops.report import DoctorReport, folders_of_copies, is_mendable, report_in_use, report_on

if TYPE_CHECKING:
    import os

    from aiochroma.disk.findings import PreflightReport

__all__ = ["Progress", "doctor"]

T = TypeVar("T")
Progress = Callable[[str, int, int], None]


async def doctor(
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

    Without ``repair``, ``vacuum``, ``erase`` and ``reembed_missing`` nothing is changed. With one of them, ``erase`` apart, the
    directory is copied first. A repair sets files of a broken index aside (it deletes nothing) and has Chroma rebuild the index
    from its log, from what can be read of the broken files, and from the newest backup. A damaged SQLite file is not repaired:
    restore a backup. A caller that is cancelled is released at once; what was begun on the files goes on to its end.

    Args:
        path: The database directory.
        repair: Rebuild damaged indexes, set aside index directories that belong to no collection and a full-text index that
            cannot be used, and remove what a backup, restore or repair that was killed has left incomplete.
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
        DatabasePathError: There is no database, or no permission.
        DatabaseInUseError: Something is to be changed and another process has the database open.
        DatabaseFormatError: A newer Chroma wrote it; nothing was touched.
        BackupError: The copy could not be made; nothing was changed.
        StoreUnavailableError: A file cannot be read or written.
    """
    if embedder is not None and not reembed_missing:
        raise InvalidInputError("`embedder` is of use with `reembed_missing=True` only.")
    changes = repair or vacuum or erase or reembed_missing
    if backup_to is not None and not changes:
        raise InvalidInputError("`backup_to` is of use with `repair`, `vacuum` or `reembed_missing` only.")
    begun, directory = monotonic(), Path(canonical_path(path))
    visit = _Visit(
        directory,
        on_callers_loop(progress or (lambda _stage, _done, _of: None)),
        repair=repair,
        vacuum=vacuum,
        erase=erase,
        fill=reembed_missing,
    )
    try:
        found = await at_length(lambda: _explained(directory, lambda: visit.begin(backup_to)))
    except DatabaseInUseError as error:
        if changes:
            raise
        in_use = error
        seconds = monotonic() - begun
        return await at_length(
            lambda: _explained(directory, lambda: report_in_use(directory, in_use, seconds))
        )
    filled = None
    if not isinstance(found, DoctorReport):
        if visit.worn is not None or (found.damaged and (repair or reembed_missing or erase)):
            filled = await visit.rebuild(embedder)
        found = await at_length(lambda: _explained(directory, visit.finish))
    return replace(found, filled=filled, seconds=round(monotonic() - begun, 3))


def _explained(directory: Path, work: Callable[[], T]) -> T:
    try:
        return work()
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailableError(
            f"{str(directory)!r} could not be looked after to the end: {error}. What lives was not touched; mend that, and run "
            "the doctor again."
        ) from error


class _Visit:
    """One visit of the doctor."""

    def __init__(
        self, directory: Path, progress: Progress, *, repair: bool, vacuum: bool, erase: bool, fill: bool
    ) -> None:
        self._directory = directory
        self._progress = progress
        self._repairs, self._vacuums, self._erases, self._fills = repair, vacuum, erase, fill
        self._actions: list[str] = []
        self._saved_to: str | None = None
        self._own_problems: dict[str, str] = {}
        self.worn: Path | None = None
        """The indexes full of dead vectors that are made again, or None."""

    def begin(self, backup_to: str | os.PathLike[str] | None) -> PreflightReport | DoctorReport:
        """Look at everything, and mend what is mended without Chroma.

        Returns:
            The report where that is all; else what is left to be done.

        Raises:
            DatabasePathError: There is no database, or no permission.
            DatabaseInUseError: Somebody has it open.
        """
        directory = self._directory
        if not has_database(directory) and not any(directory.glob("*/header.bin")):
            raise DatabasePathError(f"There is no database in {str(directory)!r}.")
        ask_to_leave(str(directory))
        with acquire(directory, create=False):
            changes = self._repairs or self._vacuums or self._erases or self._fills
            found = self._look(changes=changes)
            if found.sqlite_problems or not changes:
                return self._report(found)
            if found.damaged:
                forget_seen(directory)
            dying = crashing(directory)
            broken = bool(found.damaged or found.full_text_problems or found.orphaned_directories or dying)
            broken = broken or is_mendable(found) or TEXT_INDEX_FILE in self._own_problems
            if self._vacuums or (self._repairs and broken) or (self._fills and found.damaged):
                self._progress("copy", 0, 1)
                self._saved_to = str(save_copy(directory, backup_to))
                self._progress("copy", 1, 1)
                self._actions.append(f"everything was copied to {self._saved_to} first")
            if self._repairs:
                found = self._mend(found, dying)
            if self._vacuums:
                self.worn = rebuild_worn(directory, found)
            return found

    async def rebuild(self, embedder: object) -> FillReport | None:
        """Open the database, which rebuilds its indexes, and embed what has no vector if that is asked for.

        It takes the ownership itself, as any program that opens the database.
        """
        progress = self._progress
        progress("repair", 0, 1)
        actions, filled = await fill_and_rebuild(
            self._directory, embedder, fill=self._fills, progress=progress
        )
        self._actions.extend(actions)
        progress("repair", 1, 1)
        return filled

    def finish(self) -> DoctorReport:
        """Do what remains to be done with the files, and look at them again."""
        with acquire(self._directory, wait_seconds=5.0, create=False):
            if self._vacuums:
                self._vacuum()
            if self._erases:
                self._erase()
            return self._report(self._look(changes=False))

    def _mend(self, found: PreflightReport, dying: frozenset[str]) -> PreflightReport:
        """Mend what is mended without Chroma; returns what is left."""
        directory = self._directory
        self._actions.extend(
            f"{path} was removed: it was incomplete"
            for folder in folders_of_copies(directory)
            for path in remove_abandoned(folder)
        )
        before = len(self._actions)
        if found.orphaned_directories:
            quarantine = quarantine_orphans(directory, found)
            self._actions.append(
                f"{len(found.orphaned_directories)} orphaned index directories were moved to {quarantine}"
            )
        if TEXT_INDEX_FILE in self._own_problems:
            quarantine = quarantine_text_index(directory)
            self._actions.append(
                f"{TEXT_INDEX_FILE} was moved to {quarantine}; it is made again when it is used"
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
        self._own_problems = inspect_own_files(self._directory)
        self._progress("check", 1, 1)
        return found

    def _vacuum(self) -> None:
        self._progress("vacuum", 0, 1)
        directory = self._directory
        refuse_lack_of_room(directory, directory)
        before = size_of(directory)
        looked = preflight(directory)
        if self.worn is not None:
            names = {entry.name for entry in self.worn.iterdir()}
            if any(entry.problems for entry in looked.collections if entry.vector_segment_id in names):
                self._actions.append(f"vectors are missing; the former indexes are kept in {self.worn}")
            else:
                shutil.rmtree(self.worn)
                self._actions.append(
                    f"{len(names)} indexes with more dead than living vectors were made again"
                )
        if looked.problems:
            vacuum(directory)
        else:
            scrub_files(directory, keep_history=True, set_aside=False)
        self._progress("vacuum", 1, 1)
        self._actions.append(f"the database is {before - size_of(directory)} bytes smaller")

    def _erase(self) -> None:
        found = preflight(self._directory)
        if found.problems:
            self._actions.append("nothing was erased, because the database is damaged: repair it first")
            return
        self._progress("erase", 0, 1)
        receipt = scrub_files(self._directory)
        self._progress("erase", 1, 1)
        self._actions.append(
            f"{receipt.log_entries} entries of the log and {receipt.vectors_replaced} vectors were erased, and "
            f"{len(receipt.removed)} directories removed; not reached: {', '.join(receipt.not_reached) or 'nothing known'}"
        )

    def _report(self, found: PreflightReport) -> DoctorReport:
        return report_on(self._directory, found, self._own_problems, self._actions, self._saved_to)
