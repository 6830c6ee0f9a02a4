"""What can be said about a path before anything is created in it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from aiochroma._errors import DatabasePathError
from aiochroma._files import make_directory
from aiochroma.disk.layout import SQLITE_FILE

__all__ = ["canonical_directory", "check_directory", "free_bytes", "lock_warning"]

# Locks of these are kept by a server or not at all, and shared memory (SQLite's WAL index) is not shared
# between machines: neither our ownership lock nor SQLite's own locks protect a directory there.
_REMOTE_TYPES = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "davfs",
        "drvfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "prl_fs",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
    }
)
_LOCAL_FUSE_TYPES = frozenset({"fuseblk", "fuse.ntfs", "fuse.ntfs-3g", "fuse.mergerfs", "fuse.gocryptfs"})
_MOUNT_ESCAPE = re.compile(r"\\([0-7]{3})")


def canonical_directory(path: str | os.PathLike[str]) -> Path:
    """Return the one spelling of a directory: absolute, with symbolic links and ``~`` resolved.

    Args:
        path: The directory; it need not exist.

    Raises:
        DatabasePathError: The path cannot be a directory's name on this system.
    """
    try:
        return Path(os.path.realpath(Path(path).expanduser()))
    except (ValueError, OSError, RuntimeError, TypeError) as error:
        raise DatabasePathError(f"{path!r} is not a usable path: {error}") from error


def check_directory(path: str | os.PathLike[str], *, create: bool = True) -> Path:
    """Check that a database can live in a directory, and create it if it is missing.

    Everything is looked at before anything is created.

    Args:
        path: The database directory.
        create: Create the directory, and missing parents, when everything else is right.

    Returns:
        The canonical directory.

    Raises:
        DatabasePathError: It is a file, cannot be created, or may not be written; the message says which.
    """
    directory = canonical_directory(path)
    existing = directory
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        what = (
            "is a file, not a directory"
            if existing == directory
            else f"cannot be created: {existing} is a file"
        )
        raise DatabasePathError(f"{directory} {what}; give the path of a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        what = (
            "may not be written"
            if existing == directory
            else f"cannot be created: {existing} may not be written"
        )
        raise DatabasePathError(
            f"{directory} {what} by this process (uid {_user()}); check owner, mode and mount"
        )
    sqlite_file = directory / SQLITE_FILE
    for suffix in ("", "-wal", "-shm", "-journal"):
        # SQLite opens those beside it as well, and would wait for ever for somebody at the other end of a pipe.
        file = directory / f"{SQLITE_FILE}{suffix}"
        if os.path.lexists(file) and not file.is_file():
            raise DatabasePathError(f"{file} is not a regular file; move it away")
    if sqlite_file.exists() and not os.access(sqlite_file, os.R_OK | os.W_OK):
        raise DatabasePathError(f"{sqlite_file} may not be read and written by this process (uid {_user()})")
    if create:
        try:
            make_directory(directory)
        except OSError as error:
            raise DatabasePathError(f"{directory} cannot be created: {error.strerror or error}") from error
    elif existing != directory:
        raise DatabasePathError(f"{directory} does not exist")
    return directory


def free_bytes(directory: Path) -> int:
    """Return how many bytes this user may still write in a directory's file system.

    A system call of a few microseconds. Chroma does not recover by itself from a disk that fills up in the
    middle of a write (see `Fault.reopen_first`), so ask before writing.

    Args:
        directory: An existing directory.

    Raises:
        OSError: The directory is gone.
    """
    return shutil.disk_usage(directory).free


def lock_warning(directory: Path) -> str | None:
    """Say why locks cannot be relied upon in a directory, or return None.

    On Linux the mount table is read; elsewhere nothing is known and None is returned.

    Args:
        directory: An existing, canonical directory.

    Returns:
        A sentence for the log, naming the file system, or None when nothing speaks against locks.
    """
    kind = _filesystem_type(directory)
    if kind is None:
        return None
    remote_fuse = kind.startswith("fuse") and kind not in _LOCAL_FUSE_TYPES
    if kind not in _REMOTE_TYPES and not remote_fuse:
        return None
    return (
        f"{directory} is on a {kind} file system, where file locks may not reach other machines: a"
        " second process could"
        " open the same database unnoticed and destroy data. Use a local disk, or run a Chroma server"
        " beside the disk."
    )


def _filesystem_type(directory: Path, mount_table: str = "/proc/self/mountinfo") -> str | None:
    """Return the type of the file system that holds a directory, or None where that cannot be known."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        lines = Path(mount_table).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        # A sandbox without /proc; the caller then knows no more than on other systems.
        return None
    best, kind = -1, None
    for line in lines:
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = _MOUNT_ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        inside = directory == Path(point) or Path(point) in directory.parents
        # Of several mounts on one point the last one is the visible one.
        if inside and len(point) >= best:
            best, kind = len(point), after.split(" ", 1)[0]
    return kind


def _user() -> str:
    return str(os.geteuid()) if hasattr(os, "geteuid") else "unknown"
