"""A database directory: its canonical path, whether a database can live there, and what Chroma and this library keep in it."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import sqlite3
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._errors import DatabasePathError, StoreUnavailableError
from aiochroma._files import canonical_path, irregular, make_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "BACKUP_NOTE",
    "HEADER_FILE",
    "HISTORY_FILE",
    "ID_MAP_FILE",
    "INDEX_FILES",
    "LENGTH_FILE",
    "LEVEL0_FILE",
    "LINK_LISTS_FILE",
    "LOCK_FILE",
    "MANIFEST",
    "OWNER_FILE",
    "QUARANTINE_PREFIX",
    "REBUILD_NOTE",
    "SEEN_NOTE",
    "SQLITE_FILE",
    "TEXT_INDEX_FILE",
    "check_directory",
    "connect_read_only",
    "connect_read_write",
    "files_holding",
    "free_bytes",
    "has_database",
    "index_directories",
    "is_damage",
    "is_index_name",
    "log_topic",
    "no_descriptors",
    "prepare_history",
    "refuse_without_descriptors",
]

SQLITE_FILE = "chroma.sqlite3"
HEADER_FILE = "header.bin"
LEVEL0_FILE = "data_level0.bin"
LENGTH_FILE = "length.bin"
LINK_LISTS_FILE = "link_lists.bin"
ID_MAP_FILE = "index_metadata.pickle"
INDEX_FILES = (HEADER_FILE, LEVEL0_FILE, LENGTH_FILE, LINK_LISTS_FILE, ID_MAP_FILE)
HISTORY_FILE = "aiochroma-history.sqlite3"  # cannot be made again
TEXT_INDEX_FILE = "aiochroma-text.sqlite3"  # can be
LOCK_FILE = ".aiochroma.lock"
OWNER_FILE = ".aiochroma.owner.json"
BACKUP_NOTE = ".aiochroma.backup.json"  # in a database: its newest backup
MANIFEST = "aiochroma-backup.json"  # in a backup
SEEN_NOTE = ".aiochroma.seen.json"  # in a database: what was found sound, and how its files looked then
REBUILD_NOTE = ".aiochroma.rebuilding.json"  # in a database: indexes whose rebuild has not ended

# Chroma looks only into directories named after a segment, so it never sees this one.
QUARANTINE_PREFIX = "quarantine-"

_HISTORY_TABLES = """
CREATE TABLE IF NOT EXISTS changes (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, action TEXT NOT NULL, namespace TEXT NOT NULL, id TEXT NOT NULL,
    text TEXT, metadata TEXT, database TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS changes_of_memory ON changes (id);
CREATE INDEX IF NOT EXISTS changes_of_namespace ON changes (namespace);
"""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SQLITE_BUSY_SECONDS = 5.0


def prepare_history(connection: sqlite3.Connection) -> None:
    """Make the tables of the history, or add what they lacked in an earlier build.

    Args:
        connection: The history, open for writing.

    Raises:
        sqlite3.Error: It is damaged, or cannot be written.
    """
    connection.executescript(_HISTORY_TABLES)
    if not connection.execute(
        "SELECT 1 FROM pragma_table_info('changes') WHERE name = 'database'"
    ).fetchone():
        # What was noted before databases were told apart is taken for the default one's.
        connection.execute("ALTER TABLE changes ADD COLUMN database TEXT NOT NULL DEFAULT ''")


def index_directories(directory: Path) -> dict[str, Path]:
    """Return the directories named like a vector segment, by segment id."""
    return {
        entry.name: entry
        for entry in sorted(directory.iterdir())
        if is_index_name(entry.name) and entry.is_dir()
    }


def is_index_name(name: str) -> bool:
    """Tell whether a directory of this name is a vector segment's."""
    return _UUID.fullmatch(name) is not None


def log_topic(collection_id: str) -> str:
    """Return the name under which Chroma logs the writes of a collection.

    The two parts before the id are Chroma's settings ``tenant_id`` and ``topic_namespace``, which embedded
    Chroma leaves at "default" whatever tenant the collection belongs to.
    """
    return f"persistent://default/default/{collection_id}"


@contextmanager
def connect_read_only(directory: Path) -> Iterator[sqlite3.Connection]:
    """Open the SQLite file without changing a byte of it where SQLite allows that.

    A process that was killed in the middle of a transaction leaves a hot journal, which SQLite can only roll
    back with a connection that may write; Chroma would do exactly the same when it opens. Then, and only
    then, such a connection is used, limited to queries.

    Raises:
        sqlite3.DatabaseError: The file is damaged, or not a database.
    """
    connection = _connect(directory, "ro")
    try:
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            connection = _connect(directory, "rw")
            connection.execute("PRAGMA query_only=1")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield connection
    finally:
        connection.close()


@contextmanager
def connect_read_write(directory: Path) -> Iterator[sqlite3.Connection]:
    """Open the existing SQLite file for writing, in autocommit mode; transactions are the caller's.

    Only for a directory that this process owns and that Chroma does not have open: two SQLite libraries in
    one process do not see each other's locks.

    Raises:
        sqlite3.DatabaseError: The file is damaged, missing, not writable, or locked by another process.
    """
    connection = _connect(directory, "rw")
    try:
        yield connection
    finally:
        connection.close()


def _connect(directory: Path, mode: str) -> sqlite3.Connection:
    uri = f"{(directory / SQLITE_FILE).absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=_SQLITE_BUSY_SECONDS, isolation_level=None)
    # Another program may have written bytes that are no UTF-8: that is reported where they are used, and must not fail here.
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    return connection


_NOT_DAMAGED = ("locked", "readonly", "unable to open", "is full", "disk I/O")


def is_damage(error: Exception) -> bool:
    """Tell whether an error of SQLite is about what is in its file, and not about what keeps it from being used."""
    return not any(words in str(error) for words in _NOT_DAMAGED)


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
    directory = Path(canonical_path(path))
    try:
        _check(directory, create=create)
    except OSError as error:
        # What is asked of a path may be refused as well, as that of one whose name is too long.
        raise DatabasePathError(f"{directory} cannot be used: {error.strerror or error}") from error
    return directory


def _check(directory: Path, *, create: bool) -> None:
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
    special = irregular(sqlite_file)
    if special is not None:
        raise DatabasePathError(f"{special} is not a regular file; move it away")
    if sqlite_file.exists() and not os.access(sqlite_file, os.R_OK | os.W_OK):
        raise DatabasePathError(f"{sqlite_file} may not be read and written by this process (uid {_user()})")
    if create:
        try:
            make_directory(directory)
        except OSError as error:
            raise DatabasePathError(f"{directory} cannot be created: {error.strerror or error}") from error
    elif existing != directory:
        raise DatabasePathError(f"{directory} does not exist")


def has_database(directory: Path) -> bool:
    """Tell whether there is a database in a directory; nothing is made.

    Raises:
        DatabasePathError: There is no permission to look.
    """
    try:
        (directory / SQLITE_FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise DatabasePathError(
            f"{str(directory)!r} cannot be looked into: {getattr(error, 'strerror', None) or error}."
        ) from error
    return True


_DESCRIPTORS = 16
"""Met when a database is opened, or copied and the copy verified: 13."""


def refuse_without_descriptors(directory: str | Path) -> None:
    """Refuse to begin where this process may hardly open a file: Chroma would panic, and what cannot be read looks damaged.

    Raises:
        StoreUnavailableError: It has too many files open; nothing was touched.
    """
    opened: list[int] = []
    try:
        for _ in range(_DESCRIPTORS):
            opened.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401 - those before an error are closed
    except OSError as error:
        raise StoreUnavailableError(
            f"{str(directory)!r} cannot be opened: {error.strerror or error}. {_descriptor_limit()}, and it takes "
            f"{_DESCRIPTORS} more: close some, or raise the limit. Nothing was touched."
        ) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def no_descriptors() -> str | None:
    """Return a sentence, without its full stop, that says that this process can open no file any more; None where it can."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return f"{error.strerror or error}. {_descriptor_limit()}"
    return None


def _descriptor_limit() -> str:
    if sys.platform == "win32":
        return "This process has as many files open as it may"
    import resource

    return f"This process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} files open (`ulimit -n`)"


def free_bytes(directory: Path) -> int:
    """Return how many bytes this user may still write in a directory's file system, and this process to Chroma's file.

    A system call of a few microseconds. Chroma does not recover by itself from a disk that fills up in the
    middle of a write (see `Fault.reopen_first`), so ask before writing.

    Args:
        directory: An existing directory.

    Raises:
        OSError: The directory is gone.
    """
    return min(shutil.disk_usage(directory).free, _room_in_file(directory))


def _room_in_file(directory: Path) -> int:
    """Return how far Chroma's file may grow before it reaches the limit of this process, ``ulimit -f``."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    try:
        return max(0, limit - (directory / SQLITE_FILE).stat().st_size)
    except FileNotFoundError:
        return limit


def _user() -> str:
    return str(os.geteuid()) if hasattr(os, "geteuid") else "unknown"


def files_holding(directory: Path, patterns: Sequence[bytes]) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
    """Read every file below a directory; returns their names, their size, and those in which something was found."""
    names, size, found = [], 0, []
    for file in _files(directory):
        name = str(file.relative_to(directory))
        names.append(name)
        length = file.stat().st_size
        size += length
        if length and _holds(file, patterns):
            found.append(name)
    return tuple(names), size, tuple(found)


def _holds(file: Path, patterns: Sequence[bytes]) -> bool:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(pattern) >= 0 for pattern in patterns)


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file() and not path.is_symlink())
