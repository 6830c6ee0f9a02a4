"""One owner per database directory, enforced by the operating system.

The lock is ``flock`` (``LockFileEx`` on Windows) on ``.aiochroma.lock`` inside the canonical directory,
through the filelock library. The kernel drops it when the process ends, however it ends, so there is nothing
to clean up after ``kill -9``. The file itself stays: deleting a lock file lets two waiters lock two
different files.

Who owns it is written beside it for people to read. The record is consulted only when the lock is taken, so
a stale one is never believed.

``flock`` belongs to an open file that ``fork()`` shares: a child that keeps the descriptor would keep the
lock after its parent's death, and a child that unlocks it would unlock the parent. filelock (from 4.0 on)
closes the descriptor in the child, which does neither, and a forked copy of an `Ownership` refuses to do
anything. Not covered: a child made by native code that calls ``fork()`` without ``exec`` behind Python's
back.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import filelock

from aiochroma._distribution import version
from aiochroma._errors import DatabaseInUseError, DatabasePathError
from aiochroma._files import FILE_MODE, identity, write_atomically
from aiochroma._logging import get_logger
from aiochroma.disk.filesystem import check_directory, lock_warning
from aiochroma.disk.layout import LOCK_FILE, OWNER_FILE

__all__ = ["Owner", "Ownership", "acquire", "read_owner"]

log = get_logger("aiochroma.disk")
# Between taking the lock and writing the record lie microseconds; a reader that finds no living owner looks
# again.
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
    """

    pid: int
    host: str
    since: str
    version: str
    command: str
    role: str = "program"
    socket: str = ""


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
        self.owner = owner
        self.warning = warning
        self._lock = lock
        self._identity = identity(directory / LOCK_FILE)
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
            and self._identity == identity(self.directory / LOCK_FILE)
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
            self._identity = identity(self.directory / LOCK_FILE)
        log.warning("lock.renewed", directory=str(self.directory), hint="it was locked again")

    def hand_over(self) -> tuple[filelock.BaseFileLock, Owner]:
        """Return the lock and its record, which this object then no longer releases."""
        self._released = True
        return self._lock, self.owner

    def release(self) -> None:
        """Give the directory up; does nothing the second time, and nothing in a forked child."""
        with self._guard:
            if self._released or os.getpid() != self.owner.pid:
                return
            self._released = True
            if self._identity == identity(self.directory / LOCK_FILE):
                # Ours to remove only while the lock is ours; in a directory that was replaced it is somebody
                # else's.
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
        DatabaseInUseError: Somebody else owns it, after waiting; the message names the owner and what to do.
        DatabasePathError: The directory cannot be used; nothing was created.
    """
    canonical = check_directory(directory, create=create)
    warning = lock_warning(canonical)
    # One lock for all threads of this process: the DB thread takes it, another one may release it at exit.
    lock = filelock.FileLock(canonical / LOCK_FILE, mode=FILE_MODE, thread_local=False)
    try:
        lock.acquire(timeout=max(0.0, wait_seconds), poll_interval=0.05)
    except filelock.Timeout as error:
        raise _in_use(canonical, wait_seconds) from error
    except RuntimeError as error:
        # filelock refuses to let a thread wait for a lock which that same thread holds through another
        # object.
        raise _in_use(canonical, wait_seconds) from error
    except OSError as error:
        raise DatabasePathError(
            f"{canonical / LOCK_FILE} cannot be locked: {error.strerror or error}"
        ) from error
    if isinstance(lock, filelock.SoftFileLock):
        warning = warning or (
            f"The file system of {canonical} has no file locks; a lock file without the kernel's help is"
            " used, which"
            " must be deleted by hand after a crash."
        )
    owner = Owner(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=version(),
        command=_command(),
        role=role,
        socket=socket_path,
    )
    try:
        write_atomically(canonical / OWNER_FILE, json.dumps(asdict(owner)))
    except OSError as error:
        # The record only serves the message of a second process; a full disk must not keep anybody from
        # reading.
        log.warning("owner.not_written", directory=str(canonical), error=str(error))
    except BaseException:
        lock.release()
        raise
    return Ownership(canonical, lock, owner, warning)


def read_owner(directory: str | os.PathLike[str]) -> Owner | None:
    """Return what the last owner wrote, or None.

    This says who it was, not whether it still is: only the lock itself says that. For messages and reports.
    """
    try:
        values = json.loads((Path(directory) / OWNER_FILE).read_text(encoding="utf-8"))
        # A record of an earlier version has no role.
        known = {name: values[name] for name in Owner.__dataclass_fields__ if name in values}
        return Owner(**known)
    except (OSError, ValueError, KeyError, TypeError):
        # Missing, half gone with its directory, or written by somebody else: nothing is known.
        return None


def _in_use(directory: Path, wait_seconds: float) -> DatabaseInUseError:
    owner = _living_owner(directory)
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
        f"{directory} is in use by {who} ({owner.command}) on {owner.host} since"
        f" {owner.since}{waited}.{advice}",
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
        if owner is not None and (owner.host != socket.gethostname() or _is_alive(owner.pid)):
            return owner
    return None


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _command() -> str:
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    return Path(program).name or Path(sys.executable or "python").name
