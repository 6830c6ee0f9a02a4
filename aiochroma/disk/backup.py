"""Copies of a database that are complete, proven to be so, and swapped in and out whole.

A backup is a database directory with a manifest. It is written under a temporary name, verified by opening it in a child
process, and only then renamed; so whatever has the right name and a manifest is a backup that worked.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aiochroma._errors import BackupError
from aiochroma._logging import get_logger
from aiochroma._threads import refuse_on_loop
from aiochroma.disk import copy_child
from aiochroma.disk.filesystem import canonical_directory, free_bytes
from aiochroma.disk.foreign import refuse_foreign_users
from aiochroma.disk.layout import LOCK_FILE, OWNER_FILE, QUARANTINE_PREFIX, SQLITE_FILE
from aiochroma.disk.ownership import acquire

__all__ = [
    "BackupReport",
    "check_backup_target",
    "copy_database",
    "discard",
    "finish_backup",
    "read_manifest",
    "record_backup",
    "recorded_backup",
    "recorded_sequences",
    "refuse_lack_of_room",
    "restore",
    "rotate_backups",
    "size_of",
]

_logger = get_logger("aiochroma.backup")

MANIFEST = "aiochroma-backup.json"
BACKUP_NOTE = ".aiochroma.backup.json"
_LIVE_FILES = (LOCK_FILE, OWNER_FILE, BACKUP_NOTE, MANIFEST, f"{SQLITE_FILE}-shm")
_TEMPORARY = ".partial-"
_SPARE_BYTES = 16 * 2**20
"""What stays free on the disk of a copy: a full disk would stop the database that is being copied, too."""
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@dataclass(frozen=True)
class BackupReport:
    """A backup that was verified.

    Attributes:
        path: Where it is.
        created: When it was made, ISO 8601 in UTC.
        source: The database directory.
        collections: For each collection's id its ``name``, ``records`` and ``sequence``.
        bytes: Its size.
        paused_ms: For how long requests waited for the copy, in milliseconds.
        verified_ms: How long the verification took, with the database in use again, in milliseconds.
        removed: Older backups that the rotation deleted.
    """

    path: str
    created: str
    source: str
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    bytes: int = 0
    paused_ms: float = 0.0
    verified_ms: float = 0.0
    removed: tuple[str, ...] = ()

    @property
    def records(self) -> int:
        """Records in all collections."""
        return sum(int(entry["records"]) for entry in self.collections.values())


def check_backup_target(
    directory: Path, target: str | os.PathLike[str], *, keep: int | None
) -> tuple[Path, Path]:
    """Check where a backup is to go, before anything is copied.

    Args:
        directory: The canonical database directory.
        target: The backup's own path; with ``keep`` the folder that holds the backups of this database.
        keep: How many backups the folder holds at most, or None for no rotation.

    Returns:
        The final and the temporary path, both on the same file system.

    Raises:
        BackupError: It is inside the database, or the other way round, or exists, or cannot be written.
    """
    if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
        raise BackupError(f"`keep` must be an integer of at least 1, or None, got {keep!r}.")
    place = Path(canonical_directory(target))
    if place == directory or directory in place.parents or place in directory.parents:
        raise BackupError(
            f"The backup {str(place)!r} must be outside of the database {str(directory)!r}, and not above it."
        )
    if keep is not None:
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        place = place / f"backup-{stamp}"
    if place.exists():
        raise BackupError(f"{str(place)!r} exists already; a backup is never written over anything.")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackupError(
            f"The folder {str(place.parent)!r} cannot be made: {error.strerror or error}."
        ) from error
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise BackupError(f"There is no permission to write in {str(place.parent)!r}.")
    refuse_lack_of_room(directory, place.parent)
    return place, place.with_name(f"{place.name}{_TEMPORARY}{uuid.uuid4().hex[:8]}")


def refuse_lack_of_room(source: Path, folder: Path) -> None:
    """Refuse to copy a directory to where there is no room for it.

    Raises:
        BackupError: There is not.
    """
    needed, free = size_of(source) + _SPARE_BYTES, free_bytes(folder)
    if needed > free:
        raise BackupError(
            f"A copy of {str(source)!r} needs {needed // 2**20 + 1} MiB and {free // 2**20} MiB are free in {str(folder)!r}."
        )


def copy_database(directory: Path, target: Path) -> None:
    """Copy the files of a database that nobody writes to meanwhile, in a child process.

    Raises:
        BackupError: Copying failed (a full disk, for example); the half copy is removed.
    """
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-I", "-S", copy_child.__file__, str(directory), str(target), *_LIVE_FILES],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        discard(target, missing_ok=True)
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BackupError(f"Copying {str(directory)!r} to {str(target)!r} failed: {reason}")


def verify_copy(target: Path) -> dict[str, Any]:
    """Open a copy in a child process and check that every record has its vector; see ``_verify_child``.

    Raises:
        BackupError: It is not complete, or the child died of it.
    """
    done = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", "aiochroma.disk.verify_child", str(target)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise BackupError(f"{str(target)!r} could not be verified: {reason}")
    result: dict[str, Any] = json.loads(done.stdout)
    if result["problems"]:
        raise BackupError(f"{str(target)!r} is not a complete database: {'; '.join(result['problems'])}")
    return result


def finish_backup(directory: Path, temporary: Path, final: Path, *, paused_ms: float) -> BackupReport:
    """Verify a copy, write its manifest, and give it its name.

    Raises:
        BackupError: It did not verify; it is removed.
    """
    begun = datetime.now(timezone.utc)
    try:
        collections = verify_copy(temporary)["collections"]
        report = BackupReport(
            str(final),
            begun.isoformat(timespec="milliseconds"),
            str(directory),
            collections,
            size_of(temporary),
            round(paused_ms, 1),
            round((datetime.now(timezone.utc) - begun).total_seconds() * 1000, 1),
        )
        manifest = temporary / MANIFEST
        manifest.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
        copy_child.flush_tree(temporary)
        temporary.rename(final)
        copy_child.flush(final.parent)
    except BaseException:
        discard(temporary)
        raise
    _logger.info(
        "backup.finished",
        source=str(directory),
        backup=str(final),
        records=report.records,
        paused_ms=paused_ms,
    )
    return report


def record_backup(directory: Path, report: BackupReport) -> None:
    """Write down in the database how far the newest verified backup goes, for cutting the retained log at the next open."""
    note = {"path": report.path, "created": report.created}
    note["sequences"] = {id: entry["sequence"] for id, entry in report.collections.items()}  # type: ignore[assignment]
    temporary = directory / f"{BACKUP_NOTE}.tmp"
    temporary.write_text(json.dumps(note), encoding="utf-8")
    temporary.replace(directory / BACKUP_NOTE)


def recorded_sequences(directory: Path) -> dict[str, int]:
    """Return, by collection id, up to which write of the log the newest verified backup goes; empty without one."""
    return _read_note(directory)[1]


def recorded_backup(directory: Path) -> Path | None:
    """Return the newest verified backup of a database, or None where there is none any more."""
    return _read_note(directory)[0]


def _read_note(directory: Path) -> tuple[Path | None, dict[str, int]]:
    try:
        note = json.loads((directory / BACKUP_NOTE).read_text(encoding="utf-8"))
        backup = Path(note["path"])
        sequences = {str(id): int(sequence) for id, sequence in note["sequences"].items()}
        # A backup that was deleted, or replaced by another one, is no reason to forget anything.
        if read_manifest(backup)["created"] != note["created"]:
            return None, {}
    except (OSError, ValueError, KeyError, TypeError, BackupError):
        return None, {}
    return backup, sequences


def rotate_backups(folder: Path, keep: int, source: Path) -> tuple[str, ...]:
    """Delete the oldest backups of a database in a folder, so that ``keep`` remain; returns what was deleted.

    Only what has a manifest counts as a backup, and only those of this database are touched.
    """
    backups = sorted(entry for entry in folder.glob("backup-*") if _is_backup_of(entry, source))
    surplus = backups[:-keep]
    for backup in surplus:
        # Without its manifest a half-deleted backup is none.
        (backup / MANIFEST).unlink()
        shutil.rmtree(backup)
    return tuple(str(backup) for backup in surplus)


def _is_backup_of(path: Path, source: Path) -> bool:
    try:
        return bool(read_manifest(path)["source"] == str(source))
    except (BackupError, KeyError):
        return False


def read_manifest(backup: Path) -> dict[str, Any]:
    """Return what a backup says of itself.

    Raises:
        BackupError: It is not a backup.
    """
    try:
        manifest: dict[str, Any] = json.loads((backup / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackupError(
            f"{str(backup)!r} is not a backup: it has no readable {MANIFEST}. Backups are made with `await client.backup(...)` "
            "or `aiochroma backup`."
        ) from error
    if not (backup / SQLITE_FILE).is_file():
        raise BackupError(f"{str(backup)!r} has a manifest but no {SQLITE_FILE}.")
    return manifest


def restore(backup: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path | None:
    """Put a backup in the place of a database.

    The backup is copied beside the target and verified there; then the two directories change places in one step. What was
    there before is kept, renamed.

    Args:
        backup: A directory made by ``client.backup``; it stays as it is.
        path: The database directory; need not exist.

    Blocks; on an event loop use ``await asyncio.to_thread(aiochroma.restore, backup, path)``.

    Returns:
        Where the database that was there before is now, or None where there was none.

    Raises:
        BackupError: The source is not a backup, or does not verify; nothing was touched.
        DatabaseInUseError: Somebody has the target open; nothing was touched.
        DatabasePathError: The target is a file, or there is no permission.
        BlockingCallError: An event loop runs on this thread.
    """
    refuse_on_loop()
    source, target = Path(canonical_directory(backup)), Path(canonical_directory(path))
    read_manifest(source)
    if source == target or source in target.parents or target in source.parents:
        raise BackupError(f"The backup {str(source)!r} and the target {str(target)!r} must be apart.")
    existed = target.exists()
    _refuse_other_contents(target)
    ownership = acquire(target)
    try:
        refuse_foreign_users(target)
        refuse_lack_of_room(source, target.parent)
        before: Path | None = _put_in_place(source, target)
    except BaseException:
        if not existed:
            discard(target, missing_ok=True)
        raise
    finally:
        ownership.release()
    if not existed and before is not None:
        discard(before)
        before = None
    return before


def _refuse_other_contents(target: Path) -> None:
    """Refuse to move aside a directory that is not a database: most likely the path is misspelled."""
    if not target.is_dir() or (target / SQLITE_FILE).exists():
        return
    others = sorted(
        entry.name
        for entry in target.iterdir()
        if not entry.name.startswith((".aiochroma", QUARANTINE_PREFIX))
    )
    if others:
        raise BackupError(
            f"{str(target)!r} is no database and not empty ({', '.join(others[:3])}, ...): it would be moved aside as a whole. "
            "Give the path of a database, of an empty directory, or of none."
        )


def _put_in_place(source: Path, target: Path) -> Path:
    """Copy a backup, verify the copy, let it change places with the target; return where the target is now."""
    temporary = target.with_name(f"{target.name}{_TEMPORARY}{uuid.uuid4().hex[:8]}")
    copy_database(source, temporary)
    try:
        verify_copy(temporary)
        copy_child.flush_tree(temporary)
        _exchange(temporary, target)
    except BaseException:
        discard(temporary)
        raise
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    return temporary.rename(target.with_name(f"{target.name}.before-restore-{stamp}-{uuid.uuid4().hex[:4]}"))


def discard(path: Path, *, missing_ok: bool = False) -> None:
    """Remove a half-made copy of ours."""
    if missing_ok and not path.exists():
        return
    shutil.rmtree(path)


def size_of(directory: Path) -> int:
    """Return the bytes of all files below a directory, as far as they can be seen."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # Gone between the listing and the look.
                total += Path(folder, name).stat().st_size
    return total


def _exchange(one: Path, other: Path) -> None:
    """Let two directories change places: in one step where the system can (Linux), else in three renames."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            names = os.fsencode(one), os.fsencode(other)
            if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
                return
            if ctypes.get_errno() not in {errno.EINVAL, errno.ENOSYS}:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    aside = one.with_name(f"{one.name}.aside")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)
