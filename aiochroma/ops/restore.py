"""Puts a backup in the place of a database, in one step, and keeps the former one.

The backup is copied beside the target and verified there. The copy then gets the name under which the former database will
be kept, and the two directories change places. So whenever the process is interrupted, both are complete, and at no moment is
anything deleted that was there before.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path

from aiochroma._errors import BackupError, DatabasePathError
from aiochroma._files import canonical_path, flush, identity
from aiochroma._partial import PartialDirectory, remove_abandoned
from aiochroma._waiting import at_length
from aiochroma.disk.backup import read_manifest, record_origin
from aiochroma.disk.copying import (
    Verification,
    check_verification,
    copy_database,
    refuse_lack_of_room,
    verify_copy,
)
from aiochroma.disk.layout import LOCK_FILE, OWNER_FILE, QUARANTINE_PREFIX, has_database
from aiochroma.disk.ownership import acquire, refuse_foreign_users
from aiochroma.host.opening import ask_to_leave

__all__ = ["restore"]

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


async def restore(
    backup: str | os.PathLike[str], path: str | os.PathLike[str], *, verify: Verification = "full"
) -> Path | None:
    """Put a backup in the place of a database. A host that has no clients lets go of it.

    A caller that is cancelled is released at once; the restore goes on to its end.

    Args:
        backup: A directory made by a backup; it stays as it is.
        path: The database directory; need not exist.
        verify: How the copy is verified before it takes the place: ``"full"`` or ``"quick"``.

    Returns:
        Where the database that was there before is now, or None where there was none.

    Raises:
        BackupError: The source is not a backup, or does not verify; nothing was touched.
        DatabaseInUseError: A process has the target open; nothing was touched.
        DatabasePathError: The target is a file, or there is no permission.
    """
    return await at_length(lambda: _restore(backup, path, verify))


def _restore(
    backup: str | os.PathLike[str], path: str | os.PathLike[str], verify: Verification
) -> Path | None:
    check_verification(verify)
    source, target = (
        Path(canonical_path(given, name)) for given, name in ((backup, "backup"), (path, "path"))
    )
    read_manifest(source)
    if source == target or source in target.parents or target in source.parents:
        raise BackupError(f"The backup {str(source)!r} and the target {str(target)!r} must be apart.")
    existed = os.path.lexists(target)
    _refuse_other_contents(target)
    ask_to_leave(str(target))
    ownership = acquire(target)
    made = identity(target)
    try:
        refuse_foreign_users(target)
        remove_abandoned(target.parent)
        refuse_lack_of_room(source, target.parent)
        kept = _put_in_place(source, target, verify)
    finally:
        ownership.release()
        if not existed:
            _remove_if_empty(target, made)
    if existed:
        return kept
    _remove_if_empty(kept, made)
    return None


def _refuse_other_contents(target: Path) -> None:
    """Refuse to move aside a directory that is not a database: most likely the path is misspelled."""
    if has_database(target):
        return
    try:
        names = os.listdir(target)  # noqa: PTH208 - names are all that is needed
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise DatabasePathError(
            f"{str(target)!r} cannot be looked into: {error.strerror or error}."
        ) from error
    others = sorted(name for name in names if not name.startswith((".aiochroma", QUARANTINE_PREFIX)))
    if others:
        raise BackupError(
            f"{str(target)!r} is no database and not empty ({', '.join(others[:3])}, ...): it would be moved aside as a whole. "
            "Give the path of a database, of an empty directory, or of none."
        )


def _put_in_place(source: Path, target: Path, verify: Verification) -> Path:
    """Copy a backup, verify the copy, let it change places with the target; return where the target is now."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    kept = target.with_name(f"{target.name}.before-restore-{stamp}-{uuid.uuid4().hex[:8]}")
    try:
        partial = PartialDirectory(kept)
    except OSError as error:
        raise BackupError(
            f"There is no writing in {str(target.parent)!r}, where the copy would go: {error.strerror or error}."
        ) from error
    before = identity(target)
    try:
        copy_database(source, partial.path)
        verify_copy(partial.path, verify)
        record_origin(partial.path, source)
        partial.finish()
        _exchange(kept, target)
        flush(target.parent)
    except BaseException as error:
        partial.discard()
        exchanged = identity(target) != before
        if not exchanged:
            # What bears this name is a copy of the backup, which is still there.
            _discard_copy(kept)
        if isinstance(error, OSError) and not exchanged:
            raise BackupError(
                f"{str(target)!r} cannot be replaced: {error.strerror or error}. Nothing was changed. (A mount point "
                "cannot be: restore beside it, and move the files.)"
            ) from error
        raise
    return kept


def _discard_copy(copy: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(copy)


def _remove_if_empty(directory: Path, made: tuple[int, int] | None) -> None:
    """Remove a directory that was made for this restore alone and holds nothing but our lock."""
    if identity(directory) != made or made is None:
        return
    with contextlib.suppress(OSError):
        if {entry.name for entry in directory.iterdir()} <= {LOCK_FILE, OWNER_FILE}:
            for name in (LOCK_FILE, OWNER_FILE):
                (directory / name).unlink(missing_ok=True)
            directory.rmdir()


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
    copy = one.with_name(f"{one.name}.copy")
    one.rename(copy)
    try:
        other.rename(one)
        copy.rename(other)
    except BaseException:
        if not other.exists() and one.exists():
            one.rename(other)
        if copy.exists() and not one.exists():
            copy.rename(one)
        raise
