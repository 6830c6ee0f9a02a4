"""Backups: made under a temporary name, verified by opening them, and only then named; and what they say of themselves.

A backup is a database directory with a manifest. So whatever has the right name and a manifest is a backup that worked. The
database notes its newest one.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._errors import BackupError, shown
from aiochroma._files import canonical_path, make_directory, read_json, write_atomically
from aiochroma._logging import EventLogger, get_logger
from aiochroma._partial import PARTIAL_MARKER, PartialDirectory, remove_abandoned, remove_marked
from aiochroma._types import JsonObject
from aiochroma.disk.copying import Verification, check_verification, refuse_lack_of_room, size_of, verify_copy
from aiochroma.disk.layout import BACKUP_NOTE, MANIFEST, SQLITE_FILE, refuse_without_descriptors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BackupReport",
    "UnfinishedBackup",
    "begin_backup",
    "finish_backup",
    "kept_copies",
    "read_manifest",
    "record_backup",
    "record_origin",
    "recorded_backup",
    "recorded_sequences",
]

log: EventLogger = get_logger("aiochroma.backup")


@dataclass(frozen=True)
class BackupReport:
    """A backup that was verified.

    Attributes:
        path: Where it is.
        created: When it was made, ISO 8601 in UTC.
        source: The database directory.
        collections: For each collection's id its ``name``, ``records`` and ``sequence``.
        bytes: Its size.
        paused_ms: For how long writing waited for the copy, in milliseconds.
        verified_ms: How long the verification took, with the database in use again, in milliseconds.
        verified: How it was verified: ``"full"``, every vector was read; or ``"quick"``.
        removed: Older backups that the rotation deleted, and what killed backups had left in the folder.
    """

    path: str
    created: str
    source: str
    collections: dict[str, JsonObject] = field(default_factory=dict)
    bytes: int = 0
    paused_ms: float = 0.0
    verified_ms: float = 0.0
    verified: str = "full"
    removed: tuple[str, ...] = ()

    @property
    def records(self) -> int:
        """Records in all collections."""
        return sum(int(entry["records"]) for entry in self.collections.values())


def read_manifest(backup: Path) -> JsonObject:
    """Return what a backup says of itself.

    Raises:
        BackupError: It is not a backup.
    """
    manifest = read_json(backup / MANIFEST)
    if manifest is None:
        raise BackupError(
            f"{str(backup)!r} is not a backup: it has no readable {MANIFEST}. Backups are made with `await memory.backup(...)` "
            "or `aiochroma backup`."
        )
    if not (backup / SQLITE_FILE).is_file():
        raise BackupError(f"{str(backup)!r} has a manifest but no {SQLITE_FILE}.")
    return manifest


def record_backup(directory: Path, report: BackupReport) -> None:
    """Write down in the database how far the newest verified backup goes, for cutting the retained log at the next open."""
    _record(directory, report.path, report.created, report.collections)


def record_origin(directory: Path, backup: Path) -> None:
    """Write down in a copy of a backup that this is its newest one, if every vector of it was read when it was made.

    Raises:
        OSError: It cannot be written.
    """
    manifest = read_manifest(backup)
    if manifest.get("verified") == "full":
        with contextlib.suppress(
            KeyError, TypeError, AttributeError
        ):  # Another program's manifest may lack a value.
            _record(directory, str(backup), manifest["created"], manifest["collections"])


def _record(directory: Path, path: str, created: str, collections: Mapping[str, JsonObject]) -> None:
    sequences = {id: entry["sequence"] for id, entry in collections.items()}
    write_atomically(
        directory / BACKUP_NOTE, json.dumps({"path": path, "created": created, "sequences": sequences})
    )


def recorded_sequences(directory: Path) -> dict[str, int]:
    """Return, by collection id, up to which write of the log the newest verified backup goes; empty without one."""
    return _read_note(directory)[1]


def recorded_backup(directory: Path) -> Path | None:
    """Return the newest verified backup of a database, or None where there is none any more."""
    return _read_note(directory)[0]


def _read_note(directory: Path) -> tuple[Path | None, dict[str, int]]:
    note = read_json(directory / BACKUP_NOTE)
    if note is None:
        return None, {}
    try:
        backup = Path(note["path"])
        sequences = {str(id): int(sequence) for id, sequence in note["sequences"].items()}
        # A backup that was deleted, or replaced by another one, is no reason to forget anything.
        if read_manifest(backup)["created"] != note["created"]:
            return None, {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, BackupError):
        return None, {}
    return backup, sequences


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
        raise BackupError(f"`keep` must be an integer of at least 1, or None, got {shown(keep)}.")
    check_verification(verify)
    refuse_without_descriptors(directory)
    final = Path(canonical_path(target, "target"))
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
        report = replace(report, removed=_rotate(backup.final, backup.keep, backup.source))
    if backup.verify == "full":
        # Only then may the log forget what is in it.
        try:
            record_backup(backup.source, report)
        except OSError as error:
            log.warning(
                "backup.not_noted", path=str(backup.final), source=str(backup.source), error=str(error)
            )
    return report


def _rotate(newest: Path, keep: int, source: Path) -> tuple[str, ...]:
    """Delete the oldest backups of a database in the folder of its newest, so that ``keep`` remain; returns what was deleted.

    Only what has a manifest counts as a backup, and only those of this database are touched. One that cannot be deleted stays:
    the new one is complete all the same. The newest stays whatever the clock says.
    """
    found = newest.parent.glob("backup-*")
    backups = [*sorted(entry for entry in found if entry != newest and _is_backup_of(entry, source)), newest]
    return tuple(str(backup) for backup in backups[:-keep] if _is_deleted(backup))


def _is_deleted(backup: Path) -> bool:
    try:
        # From here on it is taken for the leftover of a killed process, should this one be killed now.
        write_atomically(backup / PARTIAL_MARKER, json.dumps({"for": "removal"}))
        doomed = backup.with_name(f"{backup.name}.partial-removed")
        backup.rename(doomed)
        remove_marked(doomed)
    except OSError as error:
        log.warning("backup.not_deleted", path=str(backup), error=str(error))
        return False
    return True


def _is_backup_of(path: Path, source: Path) -> bool:
    try:
        return bool(read_manifest(path).get("source") == str(source)) and not path.is_symlink()
    except BackupError:
        return False


def kept_copies(directory: Path) -> list[str]:
    """Return the copies of a database that are known: its last backup, and what restores and repairs have kept beside it."""
    copies = [
        str(path)
        for infix in ("before-restore", "before-repair")
        for path in sorted(directory.parent.glob(f"{glob.escape(directory.name)}.{infix}-*"))
    ]
    backup = recorded_backup(directory) if (directory / BACKUP_NOTE).exists() else None
    return [*copies, *([] if backup is None else [str(backup)])]
