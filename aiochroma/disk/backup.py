"""Backups: made under a temporary name, verified by opening them, and only then named.

A backup is a database directory with a manifest. So whatever has the right name and a manifest is a backup that worked.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from aiochroma._errors import BackupError
from aiochroma._files import make_directory, write_atomically
from aiochroma._logging import get_logger
from aiochroma.disk.copying import Verification, refuse_lack_of_room, size_of, verify_copy
from aiochroma.disk.filesystem import canonical_directory
from aiochroma.disk.layout import MANIFEST, PARTIAL_MARKER
from aiochroma.disk.manifest import BackupReport, read_manifest, record_backup
from aiochroma.disk.partial import PartialDirectory, remove_abandoned

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["UnfinishedBackup", "begin_backup", "finish_backup"]

log = get_logger("aiochroma.backup")


@dataclass(frozen=True)
class UnfinishedBackup:
    """A backup that is being made.

    Attributes:
        source: The database directory.
        final: Where the backup will be.
        partial: Where it is until it is verified.
        keep: How many backups its folder holds at most, or None.
        verify: How it will be verified.
    """

    source: Path
    final: Path
    partial: PartialDirectory
    keep: int | None
    verify: Verification


def begin_backup(
    directory: Path, target: str | os.PathLike[str], *, keep: int | None, verify: Verification
) -> UnfinishedBackup:
    """Check where a backup is to go, and make an empty directory there, before anything is copied.

    Args:
        directory: The canonical database directory.
        target: The backup's own path; with ``keep`` the folder that holds the backups of this database.
        keep: How many backups the folder holds at most, or None for no rotation.
        verify: How it is to be verified: ``"full"`` or ``"quick"``.

    Raises:
        BackupError: It is inside the database, or the other way round, or exists, or cannot be written.
    """
    if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
        raise BackupError(f"`keep` must be an integer of at least 1, or None, got {keep!r}.")
    if verify not in {"full", "quick"}:
        raise BackupError(f'`verify` must be "full" or "quick", got {verify!r}.')
    final = canonical_directory(target)
    if final == directory or directory in final.parents or final in directory.parents:
        raise BackupError(
            f"The backup {str(final)!r} must be outside of the database {str(directory)!r}, and not above it."
        )
    if keep is not None:
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        final = final / f"backup-{stamp}"
    if os.path.lexists(final):
        raise BackupError(f"{str(final)!r} exists already; a backup is never written over anything.")
    try:
        make_directory(final.parent)
    except OSError as error:
        raise BackupError(
            f"The folder {str(final.parent)!r} cannot be made: {error.strerror or error}."
        ) from error
    if not os.access(final.parent, os.W_OK | os.X_OK):
        raise BackupError(f"There is no permission to write in {str(final.parent)!r}.")
    for left in remove_abandoned(final.parent):
        log.warning("backup.leftover_removed", path=left, hint="left behind by a process that was killed")
    refuse_lack_of_room(directory, final.parent)
    try:
        partial = PartialDirectory(final)
    except OSError as error:
        raise BackupError(f"{str(final)!r} cannot be made: {error.strerror or error}.") from error
    return UnfinishedBackup(directory, final, partial, keep, verify)


def finish_backup(backup: UnfinishedBackup, *, paused_ms: float) -> BackupReport:
    """Verify a copy, write its manifest, give it its name, delete older ones, and note it in the database.

    Args:
        backup: What `begin_backup` returned; the files have been copied.
        paused_ms: For how long writing waited for the copy, in milliseconds.

    Raises:
        BackupError: It did not verify, or cannot be written; it is removed.
    """
    begun = datetime.now(timezone.utc)
    copy = backup.partial.path
    try:
        collections = verify_copy(copy, backup.verify)
        report = BackupReport(
            path=str(backup.final),
            created=begun.isoformat(timespec="milliseconds"),
            source=str(backup.source),
            collections=collections,
            bytes=size_of(copy),
            paused_ms=round(paused_ms, 1),
            verified_ms=round((datetime.now(timezone.utc) - begun).total_seconds() * 1000, 1),
            verified=backup.verify,
        )
        write_atomically(copy / MANIFEST, json.dumps(asdict(report), indent=1))
        backup.partial.finish()
    except OSError as error:
        backup.partial.discard()
        raise BackupError(
            f"The backup {str(backup.final)!r} cannot be written: {error.strerror or error}."
        ) from error
    except BaseException:
        backup.partial.discard()
        raise
    log.info(
        "backup.finished",
        source=str(backup.source),
        backup=str(backup.final),
        records=report.records,
        paused_ms=paused_ms,
    )
    if backup.keep is not None:
        report = replace(report, removed=_rotate(backup.final.parent, backup.keep, backup.source))
    if backup.verify == "full":
        # Only then may the log forget what is in it.
        record_backup(backup.source, report)
    return report


def _rotate(folder: Path, keep: int, source: Path) -> tuple[str, ...]:
    """Delete the oldest backups of a database in a folder, so that ``keep`` remain; returns what was deleted.

    Only what has a manifest counts as a backup, and only those of this database are touched.
    """
    backups = sorted(entry for entry in folder.glob("backup-*") if _is_backup_of(entry, source))
    surplus = backups[:-keep]
    for backup in surplus:
        # From here on it is taken for the leftover of a killed process, should this one be killed now.
        write_atomically(backup / PARTIAL_MARKER, json.dumps({"for": "removal"}))
        doomed = backup.with_name(f"{backup.name}.partial-removed")
        backup.rename(doomed)
        shutil.rmtree(doomed)
    return tuple(str(backup) for backup in surplus)


def _is_backup_of(path: Path, source: Path) -> bool:
    try:
        return bool(read_manifest(path).get("source") == str(source)) and not path.is_symlink()
    except BackupError:
        return False
