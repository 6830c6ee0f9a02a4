"""Chroma's SQLite file as a whole: the settings that are ours to choose, its identity, and when it is closed.

Everything here opens the file with Python's own SQLite, so it is for the time before Chroma opens the
directory and after it has closed it. A process that has the file open with two SQLite libraries at once
loses locks: POSIX drops all locks of a process on a file as soon as it closes any descriptor of that file.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._errors import DatabaseCorruptError, DatabaseLockedError
from aiochroma._files import touch_private
from aiochroma.disk.layout import SQLITE_FILE, connect_read_only, connect_read_write, log_topic
from aiochroma.disk.schema import LOG_INDEX, columns_of, json_object, log_positions_in, tables_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from aiochroma.disk.preflight import PreflightReport

__all__ = [
    "databases_in",
    "file_identity",
    "log_positions",
    "prepare",
    "trim_retained_log",
    "vacuum",
    "wait_until_closed",
]

_CONFIGURATION_TYPE = "EmbeddingsQueueConfigurationInternal"
_POLL_SECONDS = 0.002


def prepare(directory: Path, *, keep_log: bool | None = None, write_ahead: bool = True) -> bool:
    """Write the settings that Chroma finds and keeps when it opens the file.

    ``journal_mode=wal`` halves the time of a small write. Switching purging off keeps every vector in the
    log, so that a broken index can be rebuilt completely; the price is about 4 bytes x dimensions for each
    record ever written.

    In a directory without a database an empty SQLite file is created, in which Chroma then builds its
    tables. The configuration of the log is such a table, and cannot be made early (Chroma's migration would
    stumble over it), so with ``keep_log`` a new database needs two rounds: `prepare`, open Chroma, close
    Chroma, `wait_until_closed`, `prepare`, open Chroma. That costs about 20 ms, once.

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
            _set_journal_mode(connection, "wal" if write_ahead else "delete")
            # What is deleted is overwritten, wherever this connection deletes something.
            connection.execute("PRAGMA secure_delete = ON")
            if "topic" in columns_of(connection, "embeddings_queue"):
                connection.execute(
                    f"CREATE INDEX IF NOT EXISTS {LOG_INDEX} ON embeddings_queue (topic, seq_id)"
                )
            return keep_log is None or _set_keep_log(connection, keep_log)
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise DatabaseLockedError(
                f"{directory / SQLITE_FILE} is locked by another process; close what has it open (a database browser, a backup, "
                "a plain chromadb client)"
            ) from error
        raise _unusable(directory, error) from error
    except sqlite3.DatabaseError as error:
        raise _unusable(directory, error) from error


def _unusable(directory: Path, error: Exception) -> DatabaseCorruptError:
    problem = f"{SQLITE_FILE}: {error}"
    return DatabaseCorruptError(f"{directory / SQLITE_FILE} cannot be used: {error}", problems=(problem,))


def _set_journal_mode(connection: sqlite3.Connection, mode: str) -> None:
    current = connection.execute("PRAGMA journal_mode").fetchone()[0]
    if current != mode:
        connection.execute(f"PRAGMA journal_mode={mode}").fetchone()


def _set_keep_log(connection: sqlite3.Connection, keep_log: bool) -> bool:
    if "embeddings_queue_config" not in tables_of(connection):
        return False
    row = connection.execute("SELECT id, config_json_str FROM embeddings_queue_config LIMIT 1").fetchone()
    configuration = json_object(row[1]) if row is not None else {}
    configuration.setdefault("_type", _CONFIGURATION_TYPE)
    if configuration.get("automatically_purge") is not (not keep_log):
        configuration["automatically_purge"] = not keep_log
        connection.execute(
            "INSERT OR REPLACE INTO embeddings_queue_config (id, config_json_str) VALUES (?, ?)",
            (row[0] if row is not None else 1, json.dumps(configuration, separators=(",", ":"))),
        )
    return True


def trim_retained_log(
    directory: Path, report: PreflightReport, *, up_to: Mapping[str, int] | None = None
) -> int:
    """Delete from the log what the verified indexes on disk hold as well; returns how many entries.

    This is what bounds a log that is kept. From then on a broken index can no longer be rebuilt from the log
    alone, so call it when the vectors exist elsewhere: after a backup that was verified. The newest entry of
    the whole log always stays, because SQLite numbers the next one after it and Chroma ignores entries with
    old numbers.

    Args:
        directory: The canonical directory; owned by this process, not open in Chroma.
        report: A `preflight` report made since Chroma closed the directory. Collections with problems are
            left alone.
        up_to: By collection id, the newest entry that exists elsewhere; what is newer stays, and so do
            collections that are not named. None: everything exists elsewhere.

    Raises:
        DatabaseCorruptError: The report names problems of the SQLite file.
        sqlite3.DatabaseError: Deleting failed; nothing was deleted.
    """
    if report.sqlite_problems:
        raise DatabaseCorruptError(
            f"the log of {directory} is not trimmed while the file is damaged",
            problems=report.sqlite_problems,
        )
    deleted = 0
    with connect_read_write(directory) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            newest = connection.execute("SELECT max(seq_id) FROM embeddings_queue").fetchone()[0]
            for collection in report.collections:
                held = min(collection.persisted_sequence, collection.applied_sequence)
                if up_to is not None:
                    held = min(held, up_to.get(collection.collection_id, 0))
                if collection.problems or newest is None:
                    continue
                deleted += connection.execute(
                    "DELETE FROM embeddings_queue WHERE topic = ? AND seq_id <= ? AND seq_id < ?",
                    (log_topic(collection.collection_id), held, newest),
                ).rowcount
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
    return deleted


def databases_in(directory: Path) -> list[tuple[str, str]]:
    """Return tenant and name of every database, sorted; none where an older Chroma, which knew neither, wrote the directory.

    Chroma itself lists no tenants.

    Args:
        directory: The directory; no other program may have it open.

    Raises:
        DatabaseCorruptError: SQLite cannot read its file.
    """
    try:
        with connect_read_only(directory) as connection:
            if "databases" not in tables_of(connection):
                return []
            return sorted(connection.execute("SELECT tenant_id, name FROM databases").fetchall())
    except (sqlite3.DatabaseError, TypeError) as error:
        raise DatabaseCorruptError(
            f"{directory / SQLITE_FILE} cannot be read: {error}. See `aiochroma doctor`.",
            problems=(str(error),),
        ) from error


def log_positions(directory: Path) -> dict[str, int]:
    """Return, by collection id, the number of the last write that Chroma has applied to its records.

    It tells whether something that follows Chroma has missed a write. Call it while Chroma does not have the database open.
    Empty where there is no database, or none that can be read.
    """
    if not (directory / SQLITE_FILE).exists():
        return {}
    try:
        with connect_read_only(directory) as connection:
            return log_positions_in(connection)
    except sqlite3.DatabaseError:
        return {}


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
        connection.execute("VACUUM")
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
        True when they are closed; True at once where the system does not tell (only Linux does).
    """
    deadline = time.monotonic() + timeout_seconds
    while _open_files_below(directory, but_for):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _open_files_below(directory: Path, but_for: Collection[int]) -> list[str]:
    if not sys.platform.startswith("linux"):
        return []
    prefix = str(directory / SQLITE_FILE)
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            # Closed between the listing and the look.
            continue
        if target.startswith(prefix) and int(descriptor.name) not in but_for:
            found.append(target)
    return found
