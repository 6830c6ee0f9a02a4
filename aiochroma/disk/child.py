"""What a process that has a database open cannot do to its files itself: copy them, and ask the SQLite file.

Run as a script, with the standard library alone at hand and the arguments ``copy SOURCE TARGET [PATTERN...]``,
``positions SQLITE_FILE``, ``indexes SQLITE_FILE``, ``ids SQLITE_FILE COLLECTION`` or ``drop SQLITE_FILE COLLECTION``.

In a child, because closing a file drops every POSIX lock that the process holds on it, and two SQLite
libraries in one process lose each other's locks: both would drop Chroma's own. It starts in 20 ms: writing waits for it.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["copy"]

_BUSY_SECONDS = 1.0
_CHUNK_BYTES = 64 * 2**20
_CERTAIN_NANOSECONDS = 2_000_000_000
"""A file that was changed so shortly before it was copied may have been changed once more at the same moment of its clock."""


def copy(source: Path, target: Path, patterns: Sequence[str] = ()) -> None:
    """Copy what is in a directory into another one, which is empty or holds an earlier copy, modes and times included.

    Of an earlier copy stays what has not changed since, and what is gone since goes. Entries of the top directory with a name
    like one of the patterns stay behind, and so does whatever is neither a file nor a directory, or vanishes meanwhile. Links
    are followed.
    """
    _copy(source, target, frozenset(), lambda name: any(fnmatch.fnmatchcase(name, one) for one in patterns))


def _copy(
    source: Path, target: Path, above: frozenset[tuple[int, int]], is_skipped: Callable[[str], bool]
) -> None:
    status = source.stat()
    above |= {(status.st_dev, status.st_ino)}
    copied: set[str] = set()
    for entry in source.iterdir():
        if is_skipped(entry.name):
            continue
        try:
            found = entry.stat()
        except FileNotFoundError:
            # A link to nothing; or a log, say, that has just got another name. What opens the copy misses what is needed.
            continue
        if stat.S_ISDIR(found.st_mode):
            if (found.st_dev, found.st_ino) not in above:  # Else a link to a directory that it lies in.
                (target / entry.name).mkdir(0o700, exist_ok=True)
                _copy(entry, target / entry.name, above, lambda _: False)
                copied.add(entry.name)
        elif stat.S_ISREG(found.st_mode):
            with suppress(FileNotFoundError):
                _copy_file(entry, target / entry.name)
                copied.add(entry.name)
    for entry in target.iterdir():
        if entry.name not in copied and not is_skipped(entry.name):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if sys.platform != "win32":
        target.chmod(stat.S_IMODE(status.st_mode))


def _copy_file(source: Path, target: Path) -> None:
    """Copy one file inside the kernel; where the file system can, its blocks are shared and not copied at all."""
    with source.open("rb") as old:
        found = os.fstat(old.fileno())
        if not _is_copied(found, target):
            target.unlink(missing_ok=True)
            _copy_opened(old, found, target)


def _is_copied(found: os.stat_result, target: Path) -> bool:
    """Tell whether a file has not changed since it was copied."""
    try:
        copied = target.stat()
    except FileNotFoundError:
        return False
    return (copied.st_size, copied.st_mtime_ns) == (
        found.st_size,
        found.st_mtime_ns,
    ) and copied.st_ctime_ns - found.st_mtime_ns > _CERTAIN_NANOSECONDS


def _copy_opened(old: BinaryIO, found: os.stat_result, target: Path) -> None:
    with open(target, "xb", opener=_open_privately) as new:
        if not _copied_by_the_kernel(old.fileno(), new.fileno()):
            old.seek(0)
            new.seek(0)
            new.truncate()
            shutil.copyfileobj(old, new, 2**20)
        if sys.platform != "win32":
            os.fchmod(new.fileno(), stat.S_IMODE(found.st_mode))
    # As it was before it was read: what changed it meanwhile is noticed later.
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _open_privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _copied_by_the_kernel(old: int, new: int) -> bool:
    if not hasattr(os, "copy_file_range"):
        return False
    try:
        while os.copy_file_range(old, new, _CHUNK_BYTES):
            pass
    except OSError:
        return False  # Not between these two file systems, or there is no room: the next attempt says which.
    return os.fstat(new).st_size == os.fstat(old).st_size


_POSITIONS = (
    "SELECT s.collection, m.seq_id FROM segments AS s JOIN max_seq_id AS m ON m.segment_id = s.id"
    " WHERE s.scope = 'METADATA' AND typeof(m.seq_id) = 'integer'"
)
"""By collection id, up to which entry of Chroma's log its records go."""

_INDEXES = (
    "SELECT v.collection, v.id, (SELECT count(*) FROM embeddings AS e WHERE e.segment_id = m.id)"
    " FROM segments AS v JOIN segments AS m ON m.collection = v.collection AND m.scope = 'METADATA'"
    " WHERE v.scope = 'VECTOR'"
)
"""Of each collection its id, the name of its index's directory, and how many records it has."""

_IDS = (
    "SELECT e.embedding_id FROM segments AS s JOIN embeddings AS e ON e.segment_id = s.id"
    " WHERE s.collection = ? AND s.scope = 'METADATA' ORDER BY e.id"
)
"""The ids of a collection's records, in the order in which they came."""

_QUERIES = {"positions": _POSITIONS, "indexes": _INDEXES, "ids": _IDS}


def _print_rows(file: str, query: str, *parameters: str) -> None:
    # A copy, for which writing waits, starts without them.
    import json
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(file, isolation_level=None, timeout=_BUSY_SECONDS)) as connection:
        rows = connection.execute(query, parameters).fetchall()
        if query is _POSITIONS:
            _flush(file)
        print(json.dumps(rows if not rows or len(rows[0]) > 1 else [value for (value,) in rows]))


_DROPPED_AT_ONCE = 16
"""Records: 9 ms, most of it for SQLite's full-text index, and now and then some 60 while SQLite merges parts of that."""
_JOURNAL_BYTES = 2 * 2**20


def _drop(file: str, collection: str) -> None:
    """Delete records of a collection, some for each byte that is read; print how many, and "ready" for the next."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(file, isolation_level=None, timeout=_BUSY_SECONDS)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        # Written into the file between two slices, for which no request waits.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        print("ready", flush=True)
        while os.read(0, 1):
            connection.execute("BEGIN IMMEDIATE")
            rows = connection.execute(
                "SELECT id FROM embeddings WHERE segment_id ="
                " (SELECT id FROM segments WHERE collection = ? AND scope = 'METADATA') LIMIT ?",
                (collection, _DROPPED_AT_ONCE),
            ).fetchall()
            for statement in _DROP:
                connection.executemany(statement, rows)
            connection.execute("COMMIT")
            print(len(rows), flush=True)
            with suppress(FileNotFoundError):
                if Path(f"{file}-wal").stat().st_size > _JOURNAL_BYTES:
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            print("ready", flush=True)


_DROP = (
    "DELETE FROM embedding_fulltext_search WHERE rowid = ?",
    "DELETE FROM embedding_metadata WHERE id = ?",
    "DELETE FROM embeddings WHERE id = ?",
)


def _flush(file: str) -> None:
    """Have on the disk what has been read. Our file notes that it goes so far, and after a failure of power must not be ahead."""
    for name in (f"{file}-wal", file):
        with suppress(FileNotFoundError):
            descriptor = os.open(name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, which holds the other end of its input.

    What it copies into may be removed, or begun again, by whoever comes next.
    """
    import _thread

    _thread.start_new_thread(lambda: os._exit(len(os.read(0, 1)) or 1), ())


if __name__ == "__main__":
    if sys.argv[1] == "drop":
        _drop(sys.argv[2], sys.argv[3])  # Its input says what to do, too.
        sys.exit()
    end_with_parent()
    if sys.argv[1] == "copy":
        copy(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        _print_rows(sys.argv[2], _QUERIES[sys.argv[1]], *sys.argv[3:])
