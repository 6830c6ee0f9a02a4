"""One owner per database directory, enforced by the operating system; and other programs that have it open without asking.

The lock is ``flock`` (``LockFileEx`` on Windows) on ``.aiochroma.lock`` inside the canonical directory, through the filelock
library. The kernel drops it when the process ends, however it ends, so there is nothing to clean up after ``kill -9``. The file
itself stays: deleting a lock file lets two waiters lock two different files.

Who owns it is written beside it for people to read. The record is consulted only when the lock is taken, so a stale one is never
believed.

``flock`` belongs to an open file that ``fork()`` shares: a child that keeps the descriptor would keep the lock after its
parent's death, and a child that unlocks it would unlock the parent. filelock (from 4.0 on) closes the descriptor in the child,
which does neither, and a forked copy of an `Ownership` refuses to do anything. Not covered: a child made by native code that
calls ``fork()`` without ``exec`` behind Python's back.

Plain chromadb clients and database browsers do not know of this lock, and a second Chroma on one directory destroys vectors
without an error. On Linux they are found by the files that they have open.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from aiochroma._clock import lock_within
from aiochroma._distribution import version
from aiochroma._errors import DatabaseInUseError, DatabasePathError
from aiochroma._files import FILE_MODE, identity, read_json, write_atomically
from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk.layout import LOCK_FILE, OWNER_FILE, SQLITE_FILE, check_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

__all__ = [
    "Owner",
    "Ownership",
    "acquire",
    "foreign_users",
    "is_alive",
    "lock_warning",
    "read_owner",
    "refuse_foreign_users",
]

log: EventLogger = get_logger("aiochroma.disk")

# Between taking the lock and writing the record lie microseconds; a reader that finds no living owner looks again.
_RECORD_ATTEMPTS = 5
_RECORD_PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Owner:
    """Who holds a database, as written by the holder.

    Attributes:
        pid: Process id.
        host: Host name.
        since: When it was opened, ISO 8601 in UTC.
        version: Version of this library.
        command: Name of the program.
        role: ``"program"``, which does not share it, or ``"host"``, which serves other processes.
        socket: Where a host listens; else empty.
        lock_file: Device and inode of the lock file. A record that was copied together with its directory does not fit.
    """

    pid: int
    host: str
    since: str
    version: str
    command: str
    role: str = "program"
    socket: str = ""
    lock_file: str = ""


class Ownership:
    """The exclusive right to a directory.

    Made by `acquire`; given up by `release`, or by the end of the process.

    Attributes:
        directory: The canonical directory.
        owner: The record others see.
        warning: Why locks may not protect this directory, or None.
    """

    def __init__(
        self, directory: Path, lock: filelock.BaseFileLock, owner: Owner, warning: str | None
    ) -> None:
        self.directory = directory
        self.owner: Owner = owner
        self.warning = warning
        self._lock = lock
        self._lock_file = directory / LOCK_FILE
        self._identity = identity(self._lock_file)
        self._guard = threading.Lock()
        self._released = False

    @property
    def is_held(self) -> bool:
        """Whether this process still owns what is now at this path.

        False after `release`, in a forked child, and when the directory was deleted, replaced or moved away:
        then the lock protects a file that no other process can see. `release` it and `acquire` again before
        touching the new one.
        """
        return (
            not self._released
            and os.getpid() == self.owner.pid
            and self._lock.is_locked
            and self._identity is not None
            and self._identity == identity(self._lock_file)
        )

    def renew(self) -> None:
        """Lock the directory again after its lock file was deleted, by a cleaner of temporary files for example.

        Raises:
            DatabaseInUseError: Another process has locked the directory meanwhile.
            DatabasePathError: The directory is gone, or cannot be written.
        """
        with self._guard:
            # The old lock is one on a file that no other process can see any more.
            self._lock.release()
            self._lock, self.owner = acquire(self.directory, create=False).hand_over()
            self._identity = identity(self._lock_file)
        log.warning("lock.renewed", directory=str(self.directory), hint="it was locked again")

    def hand_over(self) -> tuple[filelock.BaseFileLock, Owner]:
        """Return the lock and its record, which this object then no longer releases."""
        self._released = True
        return self._lock, self.owner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the directory up; does nothing the second time, and nothing in a forked child."""
        with self._guard:
            if self._released or os.getpid() != self.owner.pid:
                return
            self._released = True
            if self._identity == identity(self._lock_file):
                # Ours to remove only while the lock is ours; in a directory that was replaced it is another process's.
                with contextlib.suppress(OSError):
                    (self.directory / OWNER_FILE).unlink(missing_ok=True)
            self._lock.release()


def acquire(
    directory: str | os.PathLike[str],
    wait_seconds: float = 0.0,
    *,
    create: bool = True,
    role: str = "program",
    socket_path: str = "",
) -> Ownership:
    """Become the only owner of a database directory.

    Args:
        directory: The database directory, in any spelling; created if missing.
        wait_seconds: How long to wait for another owner to let go.
        create: Whether a missing directory is created.
        role: See :class:`Owner`.
        socket_path: Where a host is going to listen.

    Returns:
        The ownership; keep it until Chroma has closed the directory. Its `warning` is for the log.

    Raises:
        DatabaseInUseError: Another process owns it, after waiting; the message names the owner and what to do.
        DatabasePathError: The directory cannot be used; nothing was created.
    """
    canonical = check_directory(directory, create=create)
    warning = lock_warning(canonical)
    # One lock for all threads of this process: the DB thread takes it, another one may release it at exit.
    lock = filelock.FileLock(canonical / LOCK_FILE, mode=FILE_MODE, thread_local=False)
    _take(lock, canonical, wait_seconds)
    if isinstance(lock, filelock.SoftFileLock):
        warning = warning or (
            f"The file system of {canonical} has no file locks; a lock file without the kernel's help is used, which "
            "must be deleted by hand after a crash."
        )
    owner = Owner(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=version(),
        command=_command(),
        role=role,
        socket=socket_path,
        lock_file=_lock_file_of(canonical),
    )
    try:
        write_atomically(canonical / OWNER_FILE, json.dumps(asdict(owner)))
    except OSError as error:
        # The record only serves the message of a second process; a full disk must not keep anybody from reading.
        log.warning("owner.not_written", directory=str(canonical), error=str(error))
    except BaseException:
        lock.release()
        raise
    return Ownership(canonical, lock, owner, warning)


def read_owner(directory: str | os.PathLike[str]) -> Owner | None:
    """Return what the last owner wrote, or None.

    This says who it was, not whether it still is: only the lock itself says that. For messages and reports, and for where a host
    may listen. In a copy of a directory that was open the record is that of the original, whose host would serve other data.
    """
    # Missing, half gone with its directory, or written by another program: nothing is known.
    values = read_json(Path(directory) / OWNER_FILE) or {}
    kinds = {field.name: int if field.name == "pid" else str for field in fields(Owner)}
    known = {name: values[name] for name, kind in kinds.items() if type(values.get(name)) is kind}
    # Numbers below 1 stand for groups of processes, and for all of them.
    if known.keys() != kinds.keys() or known["pid"] <= 0:
        return None
    owner = Owner(**known)
    return owner if owner.lock_file == _lock_file_of(Path(directory)) else None


def _lock_file_of(directory: Path) -> str:
    """Return what tells the lock file of a directory from every other one."""
    return "{}:{}".format(*(identity(directory / LOCK_FILE) or ("", "")))


def _take(lock: filelock.BaseFileLock, directory: Path, wait_seconds: float) -> None:
    try:
        lock_within(lock, wait_seconds)
    except (filelock.Timeout, RuntimeError) as error:
        # A RuntimeError: filelock lets no thread wait for a lock which that same thread holds through another object.
        owner = _living_owner(directory)
        if owner is None:
            # An owner that lets go removes its record first, and the lock was asked for in between.
            with contextlib.suppress(OSError, RuntimeError):
                lock_within(lock, 0.0)
                return
            owner = _living_owner(directory)
        raise _in_use(directory, owner, wait_seconds) from error
    except OSError as error:
        raise DatabasePathError(
            f"{directory / LOCK_FILE} cannot be locked: {error.strerror or error}"
        ) from error


def _in_use(directory: Path, owner: Owner | None, wait_seconds: float) -> DatabaseInUseError:
    waited = f" (waited {wait_seconds:g} s)" if wait_seconds > 0 else ""
    advice = (
        ' Wait until the owner has closed, or open it with process="shared" in every program that uses it.'
    )
    if owner is None:
        return DatabaseInUseError(f"{directory} is in use by another process{waited}.{advice}")
    here = owner.host == socket.gethostname()
    # Containers count their processes from one, each.
    who = "this same process" if here and owner.pid == os.getpid() else f"process {owner.pid}"
    return DatabaseInUseError(
        f"{directory} is in use by {who} ({owner.command}) on {owner.host} since "
        f"{owner.since}{waited}.{advice}",
        pid=owner.pid,
        host=owner.host,
        since=owner.since,
    )


def _living_owner(directory: Path) -> Owner | None:
    """Return the record of the present holder; one left behind by a dead process is not believed."""
    for attempt in range(_RECORD_ATTEMPTS):
        if attempt:
            time.sleep(_RECORD_PAUSE_SECONDS)
        owner = read_owner(directory)
        if owner is not None and (owner.host != socket.gethostname() or is_alive(owner.pid)):
            return owner
    return None


def is_alive(pid: int) -> bool:
    """Tell whether a process of this machine may still be running; one that has ended and is only a zombie is not."""
    if sys.platform == "win32":
        return True
    try:
        with contextlib.suppress(PermissionError, OverflowError):
            os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in {b"Z", b"X"}
    except ProcessLookupError:
        return False
    except (OSError, IndexError):
        return True  # Not Linux, or hidden from other users.


def _command() -> str:
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    return Path(program).name or Path(sys.executable or "python").name


# Locks of these are kept by a server or not at all, and shared memory (SQLite's WAL index) is not shared
# between machines: neither our ownership lock nor SQLite's own locks protect a directory there.
_REMOTE_TYPES = re.compile(
    "9p|afs|beegfs|ceph|cifs|davfs|drvfs|gfs2|glusterfs|gpfs|lustre|ncpfs|nfs4?|ocfs2|prl_fs|smb[23]?|smbfs|vboxsf|virtiofs|vmhgfs"
)

_LOCAL_FUSE_TYPES = frozenset({"fuseblk", "fuse.ntfs", "fuse.ntfs-3g", "fuse.mergerfs", "fuse.gocryptfs"})
_MOUNT_ESCAPE = re.compile(r"\\([0-7]{3})")


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
    if not _REMOTE_TYPES.fullmatch(kind) and not remote_fuse:
        return None
    return (
        f"{directory} is on a {kind} file system, where file locks may not reach other machines: a second process "
        "could open the same database unnoticed and destroy data. Use a local disk, or run a Chroma server beside the disk."
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


_SECOND_LOOK_SECONDS = 0.1


def foreign_users(directory: Path) -> tuple[int, ...]:
    """Return the ids of other processes that have the database's SQLite file open.

    Linux only, and only processes that this user may look into; elsewhere always empty. Costs a few
    milliseconds with hundreds of processes.

    Args:
        directory: The canonical database directory.
    """
    if not sys.platform.startswith("linux"):
        return ()
    try:
        status = (directory / SQLITE_FILE).stat()
    except FileNotFoundError:
        return ()
    file = (status.st_dev, status.st_ino)
    return tuple(sorted({pid for pid, identity in _open_files() if identity == file and pid != os.getpid()}))


def refuse_foreign_users(directory: Path) -> None:
    """Raise if another process has the database open; call it after `acquire` and before Chroma opens.

    A process that is just ending is given a moment.

    Raises:
        DatabaseInUseError: Naming the process.
    """
    if not foreign_users(directory):
        return
    time.sleep(_SECOND_LOOK_SECONDS)
    users = foreign_users(directory)
    if users:
        names = ", ".join(f"{pid} ({_program(pid)})" for pid in users)
        raise DatabaseInUseError(
            f"{directory / SQLITE_FILE} is open in process {names}, which did not ask for the directory: a plain "
            "chromadb client or a database browser. Close it there; two processes on one database destroy each other's data.",
            pid=users[0],
        )


def _open_files() -> Iterator[tuple[int, tuple[int, int]]]:
    for process in os.scandir("/proc"):
        if not process.name.isdecimal():
            continue
        try:
            descriptors = os.listdir(f"/proc/{process.name}/fd")  # noqa: PTH208 - names are all that is needed
        except OSError:
            continue  # It ended while being looked at, or belongs to another user.
        for descriptor in descriptors:
            try:
                status = os.stat(f"/proc/{process.name}/fd/{descriptor}")  # noqa: PTH116 - thousands of them
            except OSError:
                continue  # Closed since; the others are still open.
            yield int(process.name), (status.st_dev, status.st_ino)


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "ended"
