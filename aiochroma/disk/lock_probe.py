"""Tells whether another process holds SQLite's lock, before a call into Chroma would wait for it.

Chroma waits up to 1000 s for SQLite's lock, with the interpreter's lock held: no other thread runs, no event
loop turns. So the lock is asked for first. Opening the file with Python's SQLite for that would be wrong
while Chroma has it open: closing any descriptor of a file drops all POSIX locks that the process has on it,
Chroma's too. But *asking* needs neither SQLite nor a lock. ``fcntl(F_GETLK)`` names the process that holds a
conflicting lock, ignores the locks of our own process, takes nothing, and costs a microsecond. The
descriptors are opened once, after Chroma has opened the database, and closed after Chroma has closed it.

What is asked, by SQLite's own file format:

- Rollback journal: byte ranges of the main file beginning at ``0x40000000``. Writing needs all of it to
  itself (even a reader holds up the commit), reading needs the exclusive lock to be free.
- Write-ahead journal: the bytes of the ``-shm`` file. Writing needs byte 120 (and 122, recovery). Readers
  never matter, and an idle connection of another process holds a shared lock on the main file for as long as
  it lives.

The answer is of the moment: a process that takes the lock between the question and the call is still waited
for. Only Linux is supported; elsewhere `is_supported` is False and no process is ever reported.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_exponential, wait_random

from aiochroma.disk.layout import SQLITE_FILE

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LockProbe", "is_supported"]

is_supported: bool = sys.platform.startswith("linux") and struct.calcsize("l") == 8

_PENDING_BYTE = 0x40000000
_SHARED_FIRST = _PENDING_BYTE + 2
_SHARED_SIZE = 510
_LOCK_RANGE = 2 + _SHARED_SIZE
_SHM_WRITE, _SHM_RECOVER = 120, 122
_WRITE_VERSION_OFFSET = 18  # in the file header: 1 rollback journal, 2 write-ahead journal
_FLOCK = struct.Struct("hhlli4x")  # type, whence, start, length, pid

_FIRST_WAIT_SECONDS = 0.005
_LONGEST_WAIT_SECONDS = 0.25


class _Opened(NamedTuple):
    """A file that is open.

    Attributes:
        descriptor: Its descriptor.
        identity: Its device and inode, which tell whether it is the one at its path.
    """

    descriptor: int
    identity: tuple[int, int]


class LockProbe:
    """Asks who holds SQLite's locks on one database; used on the thread that calls Chroma.

    Make it after Chroma has opened the directory, and `close` it after Chroma has closed it: closing earlier
    would drop Chroma's own locks.
    """

    def __init__(self, directory: Path) -> None:
        # Asked before every call: with these as text it takes half the time.
        self._main_path = str(directory / SQLITE_FILE)
        self._shared_path = f"{self._main_path}-shm"
        self._main: _Opened | None = None
        self._shared: _Opened | None = None
        self._kept: list[int] = []

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What it has open."""
        opened = [file.descriptor for file in (self._main, self._shared) if file is not None]
        return (*opened, *self._kept)

    def foreign_holder(self, *, writing: bool = True) -> int | None:
        """Return the process id of another process whose lock would make Chroma wait, or None.

        Args:
            writing: Ask for a write; else for a read.

        Raises:
            OSError: The database file cannot be opened; it was moved or deleted.
        """
        if not is_supported:
            return None
        self._main = self._reopened(self._main, self._main_path)
        if self._main is None:
            raise FileNotFoundError(f"{self._main_path} is gone")
        main = self._main.descriptor
        if not self._is_write_ahead(main):
            if writing:
                return _holder(main, fcntl.F_WRLCK, _PENDING_BYTE, _LOCK_RANGE)
            return self._exclusive_holder(main)
        self._shared = self._reopened(self._shared, self._shared_path)
        if self._shared is None:
            # Nobody has the database open in this mode, or the holder took it for itself on the main file.
            return self._exclusive_holder(main)
        shared = self._shared.descriptor
        byte = _holder(shared, fcntl.F_WRLCK, _SHM_WRITE, 1) if writing else None
        return byte or _holder(shared, fcntl.F_WRLCK, _SHM_RECOVER, 1) or self._exclusive_holder(main)

    def wait_until_free(self, timeout_seconds: float, *, writing: bool = True) -> int | None:
        """Wait, with growing pauses, until no other process would make Chroma wait.

        Args:
            timeout_seconds: How long at most; 0 asks once.
            writing: Ask for a write; else for a read.

        Returns:
            None when it is free; the process id of the holder when the time has passed.

        Raises:
            OSError: The database file was moved or deleted.
        """
        lock_holder = self.foreign_holder(writing=writing)
        if lock_holder is None or timeout_seconds <= 0:
            return lock_holder
        deadline = time.monotonic() + timeout_seconds
        retrying = Retrying(
            retry=retry_if_result(lambda found: found is not None),
            stop=stop_after_delay(timeout_seconds),
            wait=wait_exponential(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)
            + wait_random(0, _FIRST_WAIT_SECONDS),
            sleep=lambda seconds: time.sleep(max(0.0, min(seconds, deadline - time.monotonic()))),
        )
        try:
            return retrying(self.foreign_holder, writing=writing)
        except RetryError as error:
            last: int | None = error.last_attempt.result()
            return last

    def close(self) -> None:
        """Close the descriptors; only after Chroma has closed the database."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self._main = self._shared = None
        self._kept = []

    def _reopened(self, file: _Opened | None, path: str) -> _Opened | None:
        """Return a descriptor of the file that is at the path now.

        SQLite deletes and recreates ``-shm`` as its last connection goes and the first comes: a deleted one
        may be closed. Of a file that was only moved away Chroma may still hold locks, so its descriptor is
        kept to the end.
        """
        try:
            status = os.stat(path)  # noqa: PTH116 - see above
        except FileNotFoundError:
            status = None
        if file is not None:
            if status is not None and (status.st_dev, status.st_ino) == file.identity:
                return file
            if path == self._shared_path and os.fstat(file.descriptor).st_nlink == 0:
                os.close(file.descriptor)
            else:
                self._kept.append(file.descriptor)
        if status is None:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        opened = os.fstat(descriptor)
        return _Opened(descriptor, (opened.st_dev, opened.st_ino))

    @staticmethod
    def _is_write_ahead(descriptor: int) -> bool:
        return os.pread(descriptor, 1, _WRITE_VERSION_OFFSET) == b"\x02"

    @staticmethod
    def _exclusive_holder(descriptor: int) -> int | None:
        pending = _holder(descriptor, fcntl.F_RDLCK, _PENDING_BYTE, 1)
        return pending or _holder(descriptor, fcntl.F_RDLCK, _SHARED_FIRST, _SHARED_SIZE)


def _holder(descriptor: int, kind: int, start: int, length: int) -> int | None:
    """Return who holds a lock that conflicts with one of this kind on this range, or None."""
    question = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    found, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    return None if found == fcntl.F_UNLCK else int(pid)
