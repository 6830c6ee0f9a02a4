"""Chroma's SQLite file as a whole: the settings that are ours to choose, its identity, its locks, and when it is closed.

POSIX drops all locks of a process on a file as soon as the process closes any descriptor of it. So what opens the file with
Python's own SQLite is for the time before Chroma opens the directory and after it has closed it. Asking who holds a lock is for
the time in between, and needs neither SQLite nor a lock.

Chroma waits up to 1000 s for SQLite's lock, with the interpreter's lock held: no other thread runs, no event loop turns. So
:class:`LockProbe` asks first. ``fcntl(F_GETLK)`` names the process that holds a conflicting lock, ignores the locks of our own
process, takes nothing, and costs a microsecond. What is asked, by SQLite's own file format:

- Rollback journal: byte ranges of the main file beginning at ``0x40000000``. Writing needs all of it to itself (even a reader
  holds up the commit), reading needs the exclusive lock to be free.
- Write-ahead journal: the bytes of the ``-shm`` file. Writing needs byte 120 (and 122, recovery). Readers never matter, and an
  idle connection of another process holds a shared lock on the main file for as long as it lives.

A process that takes the lock between the question and the call is still waited for. Only Linux is supported; elsewhere
`is_supported` is False and no process is ever reported.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from tenacity import RetryError, Retrying, retry_if_result, wait_exponential, wait_random

from aiochroma._clock import monotonic
from aiochroma._errors import DatabaseCorruptError, DatabaseLockedError, DatabaseMovedError
from aiochroma._files import SQLITE_SUFFIXES, identity, touch_private, transaction
from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk.layout import SQLITE_FILE, connect_read_write
from aiochroma.disk.log_triggers import empty_log, thin_log
from aiochroma.disk.schema import LOG_INDEX, columns_of, json_object, tables_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

__all__ = [
    "LockProbe",
    "delete_orphaned_lists",
    "delete_records",
    "file_identity",
    "is_supported",
    "prepare",
    "vacuum",
    "wait_until_closed",
]

log: EventLogger = get_logger("aiochroma.disk")

_CONFIGURATION_TYPE = "EmbeddingsQueueConfigurationInternal"
_POLL_SECONDS = 0.002


def prepare(directory: Path, *, keep_log: bool | None = None, write_ahead: bool = True) -> bool:
    """Write the settings that Chroma finds and keeps when it opens the file.

    ``journal_mode=wal`` halves the time of a small write. Switching purging off keeps every vector in the
    log, so that a broken index can be rebuilt completely; the price is about 4 bytes x dimensions for each
    record that lives, and some 200 bytes for one that is gone.

    In a directory without a database an empty SQLite file is created, in which Chroma then builds its
    tables. What we add to them cannot be made early (Chroma's migration would stumble over it), so a new
    database needs two rounds: `prepare`, open Chroma, close Chroma, `wait_until_closed`, `prepare`, open
    Chroma. That costs about 20 ms, once.

    Args:
        directory: The canonical directory; owned by this process, not open in Chroma.
        keep_log: True switches purging off, False on; None leaves it as it is.
        write_ahead: Use SQLite's write-ahead journal; pass False where shared memory does not work (network
            disks).

    Returns:
        True when all is set; False when Chroma has to create its tables first and `prepare` be called again.

    Raises:
        DatabaseLockedError: Another process is using the file.
        DatabaseCorruptError: The file is not a usable SQLite file; run `preflight` first for the details.
    """
    touch_private(directory / SQLITE_FILE)
    try:
        with connect_read_write(directory) as connection:
            connection.execute("PRAGMA auto_vacuum = FULL")  # Of a new file; it takes no time that shows.
            mode = "wal" if write_ahead else "delete"
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != mode:
                connection.execute(f"PRAGMA journal_mode={mode}").fetchone()
            # What is deleted is overwritten, wherever this connection deletes something.
            connection.execute("PRAGMA secure_delete = ON")
            if "topic" in columns_of(connection, "embeddings_queue"):
                connection.execute(
                    f"CREATE INDEX IF NOT EXISTS {LOG_INDEX} ON embeddings_queue (topic, seq_id)"
                )
            delete_orphaned_lists(connection)
            has_tables = _delete_lists_with_records(connection)
            if has_tables:
                empty_log(connection)
                if keep_log:
                    thin_log(connection)
            return has_tables and _set_keep_log(connection, keep_log)
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise DatabaseLockedError(
                f"{directory / SQLITE_FILE} is locked by another process; close what has it open (a database browser, a backup, "
                "a plain chromadb client)"
            ) from error
        raise _unusable(directory, error) from error
    except sqlite3.DatabaseError as error:
        raise _unusable(directory, error) from error


def delete_orphaned_lists(connection: sqlite3.Connection) -> None:
    """Delete the lists in the metadata of records that are gone.

    Chroma 1.5 leaves those of a collection that is deleted as a whole, and shows them in later records that get the same row.
    """
    if {"embedding_metadata_array", "embeddings"} <= tables_of(connection):
        connection.execute("DELETE FROM embedding_metadata_array WHERE id NOT IN (SELECT id FROM embeddings)")


def delete_records(connection: sqlite3.Connection, rows: Sequence[int]) -> None:
    """Delete records from the tables that searches read, by their rows; index and log are left as they are."""
    numbers = [(row,) for row in rows]
    with transaction(connection):
        for table, column in (
            ("embedding_fulltext_search", "rowid"),
            ("embedding_metadata", "id"),
            ("embeddings", "id"),
        ):
            connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", numbers)  # noqa: S608 - constants


def _delete_lists_with_records(connection: sqlite3.Connection) -> bool:
    """Have SQLite delete them itself from now on, in the transaction that deletes the record; return whether there are tables."""
    tables = tables_of(connection)
    if {"embedding_metadata_array", "embeddings"} <= tables:
        connection.execute(
            "CREATE TRIGGER IF NOT EXISTS aiochroma_lists_of_records AFTER DELETE ON embeddings"
            " BEGIN DELETE FROM embedding_metadata_array WHERE id = old.id; END"
        )
    return "embeddings" in tables


def _unusable(directory: Path, error: Exception) -> DatabaseCorruptError:
    problem = f"{SQLITE_FILE}: {error}"
    return DatabaseCorruptError(f"{directory / SQLITE_FILE} cannot be used: {error}", problems=(problem,))


def _set_keep_log(connection: sqlite3.Connection, keep_log: bool | None) -> bool:
    if "embeddings_queue_config" not in tables_of(connection):
        return keep_log is None
    row = connection.execute("SELECT id, config_json_str FROM embeddings_queue_config LIMIT 1").fetchone()
    configuration = json_object(row[1]) if row is not None else {}
    if keep_log is None and (row is None or configuration):
        return True  # What is no configuration, though, keeps Chroma from opening anything.
    configuration.setdefault("_type", _CONFIGURATION_TYPE)
    if configuration.get("automatically_purge") is not (not keep_log):
        configuration["automatically_purge"] = not keep_log
        connection.execute(
            "INSERT OR REPLACE INTO embeddings_queue_config (id, config_json_str) VALUES (?, ?)",
            (row[0] if row is not None else 1, json.dumps(configuration, separators=(",", ":"))),
        )
    return True


def vacuum(directory: Path) -> int:
    """Give unused pages of the SQLite file back to the file system.

    Args:
        directory: The canonical directory; owned by this process, not open in Chroma. Needs room for a
            second copy.

    Returns:
        By how many bytes the file shrank.

    Raises:
        sqlite3.DatabaseError: Damaged, locked, or no room; the file is as it was.
    """
    sqlite_file = directory / SQLITE_FILE
    before = sqlite_file.stat().st_size
    with connect_read_write(directory) as connection:
        connection.executescript("PRAGMA auto_vacuum = FULL; VACUUM")
    return before - sqlite_file.stat().st_size


def file_identity(directory: Path) -> tuple[int, int] | None:
    """Return device and inode of the SQLite file, or None if it is gone.

    One ``stat`` call, harmless while Chroma has the file open. When it changes, the file was moved, deleted
    or replaced, and Chroma's writes would fail with code 1032 or vanish.
    """
    try:
        # As text: asked before every call, and a path object takes three times as long.
        status = os.stat(f"{directory}/{SQLITE_FILE}")  # noqa: PTH116 - see above
    except OSError:
        return None
    return status.st_dev, status.st_ino


def wait_until_closed(
    directory: Path, timeout_seconds: float = 5.0, *, but_for: Collection[int] = ()
) -> bool:
    """Wait until this process has no descriptor of the database's files left.

    Chroma's ``close()`` returns before its native threads have closed the files (5 ms later, typically), and
    until then Python's SQLite must not touch them.

    Args:
        directory: The canonical directory.
        timeout_seconds: How long to wait at most.
        but_for: Descriptors that may stay open, such as a `LockProbe`'s.

    Returns:
        True when they are closed; True at once where the system does not tell, which has no ``/dev/fd``.
    """
    deadline = monotonic() + timeout_seconds
    while _has_open(directory, but_for):
        if monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _has_open(directory: Path, but_for: Collection[int]) -> bool:
    """Whether this process has one of the database's files open; False where the system does not tell."""
    files = {identity(directory / f"{SQLITE_FILE}{suffix}") for suffix in SQLITE_SUFFIXES}
    folder = "/proc/self/fd" if sys.platform.startswith("linux") else "/dev/fd"
    try:
        descriptors = {int(name) for name in os.listdir(folder)}  # noqa: PTH208 - names are all that is needed
    except OSError:
        return False
    for descriptor in descriptors.difference(but_for):
        try:
            status = os.fstat(descriptor)
        except OSError:
            continue  # Closed between the listing and the look.
        if (status.st_dev, status.st_ino) in files:
            return True
    return False


if sys.platform != "win32":
    import fcntl

is_supported: bool = sys.platform.startswith("linux") and struct.calcsize("l") == 8

_PENDING_BYTE = 0x40000000
_SHARED_FIRST = _PENDING_BYTE + 2
_SHARED_SIZE = 510
_LOCK_RANGE = 2 + _SHARED_SIZE
_SHM_WRITE, _SHM_RECOVER = 120, 122
_WRITE_VERSION_OFFSET = 18  # in the file header: 1 rollback journal, 2 write-ahead journal
_FLOCK = struct.Struct("hhlli4x")  # type, whence, start, length, pid
_LOCK_WAIT_SECONDS = 30.0
"""How long a call without a deadline waits for a lock that another process holds."""
_ANSWER_SECONDS = 0.05
"""A wait is given up this long before the caller's deadline, so that the reason arrives in time."""

_FIRST_WAIT_SECONDS = 0.005
_LONGEST_WAIT_SECONDS = 0.25


class _OpenFile(NamedTuple):
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
        self._directory = str(directory)
        self._main_path = str(directory / SQLITE_FILE)
        self._shared_path = f"{self._main_path}-shm"
        self._main: _OpenFile | None = None
        self._shared: _OpenFile | None = None
        self._kept: list[int] = []
        self._patience: float | None = None

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
            # No process has the database open in this mode, or the holder took it for itself on the main file.
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
        deadline = monotonic() + timeout_seconds
        retrying = Retrying(
            retry=retry_if_result(lambda found: found is not None),
            stop=lambda _: monotonic() >= deadline,
            wait=wait_exponential(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)
            + wait_random(0, _FIRST_WAIT_SECONDS),
            sleep=lambda seconds: time.sleep(max(0.0, min(seconds, deadline - monotonic()))),
        )
        try:
            return retrying(self.foreign_holder, writing=writing)
        except RetryError as error:
            last: int | None = error.last_attempt.result()
            return last

    def wait(self, deadline: float | None = None, *, writing: bool = True) -> None:
        """Wait until no other process would make Chroma wait with the interpreter held.

        Args:
            deadline: The moment (``monotonic()``) by which the caller needs an answer; None for 30 s, which callers that
                follow one another share.
            writing: Ask for a write; else for a read.

        Raises:
            DatabaseLockedError: It is still held; nothing was written.
            DatabaseMovedError: The database file was moved or deleted.
        """
        try:
            lock_holder = self.foreign_holder(writing=writing)
            if lock_holder is None:
                self._patience = None
                return
            begun = monotonic()
            seconds = self._seconds(deadline, begun)
            log.warning(
                "database.locked",
                database=self._directory,
                pid=lock_holder,
                waiting_seconds=round(seconds, 3),
            )
            lock_holder = self.wait_until_free(seconds, writing=writing)
        except OSError as error:
            raise DatabaseMovedError(
                f"The files of {self._directory!r} are being moved away or deleted: {error}"
            ) from error
        if lock_holder is not None:
            raise DatabaseLockedError(
                f"Process {lock_holder} holds SQLite's lock on {self._directory!r}; {monotonic() - begun:.1f} s were waited "
                "and nothing was written. End it (a database browser, a backup script, a plain chromadb client?) and try again."
            )
        self._patience = None

    def _seconds(self, deadline: float | None, now: float) -> float:
        """Return how long to wait: until the caller's deadline; callers without one share one wait, not one each."""
        if deadline is not None:
            return max(0.0, deadline - now - _ANSWER_SECONDS)
        if self._patience is None:
            self._patience = now + _LOCK_WAIT_SECONDS
        return max(0.0, self._patience - now)

    def close(self) -> None:
        """Close the descriptors; only after Chroma has closed the database."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self._main = self._shared = None
        self._kept = []

    def _reopened(self, file: _OpenFile | None, path: str) -> _OpenFile | None:
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
        return _OpenFile(descriptor, (opened.st_dev, opened.st_ino))

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
