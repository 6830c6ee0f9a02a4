"""The file of the index: its tables, and how it is opened, checked and deleted."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from aiochroma._files import touch_private

__all__ = ["connect", "create_terms", "delete_files", "full_text_available"]

# Raise it whenever the tables or the form in which text is indexed change: a file of another number is
# rebuilt.
_FORMAT = 4
_SCHEMA = """
CREATE TABLE namespaces (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, watermark TEXT,
    memories INTEGER NOT NULL DEFAULT 0, words INTEGER NOT NULL DEFAULT 0);
CREATE TABLE memories (
    number INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, id TEXT NOT NULL, thread TEXT,
    position REAL NOT NULL, created REAL NOT NULL, expires REAL, words INTEGER NOT NULL, indexed TEXT NOT NULL,
    document TEXT, metadata TEXT, UNIQUE (namespace, id));
CREATE INDEX memories_by_thread ON memories (namespace, thread, position) WHERE thread IS NOT NULL;
CREATE INDEX memories_by_creation ON memories (namespace, created, id);
CREATE INDEX memories_by_expiry ON memories (namespace, expires) WHERE expires IS NOT NULL;
CREATE TABLE vectors (number INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE metadata_keys (
    number INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, name TEXT NOT NULL, UNIQUE (namespace, name));
CREATE TABLE metadata_values (
    key INTEGER NOT NULL, kind TEXT NOT NULL, value NOT NULL, memory INTEGER NOT NULL,
    PRIMARY KEY (key, kind, value, memory)) WITHOUT ROWID;
"""
# M*: vowel signs are parts of words in the scripts of India. Porter leaves anything but ASCII alone.
_TOKENIZER = "porter unicode61 remove_diacritics 2 categories ''L* N* Co M*''"


def full_text_available() -> bool:
    """Tell whether the SQLite library of this Python has FTS5."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute("CREATE VIRTUAL TABLE probe USING fts5(text)")
        except sqlite3.OperationalError:
            return False
    return True


def create_terms(connection: sqlite3.Connection, namespace: int) -> None:
    """Make the FTS5 table of a namespace."""
    connection.execute(
        f"CREATE VIRTUAL TABLE terms_{namespace} USING fts5(text, content='', tokenize='{_TOKENIZER}')"
    )


def connect(path: str, *, any_thread: bool = False) -> sqlite3.Connection:
    """Open the file, or make an empty one; see ``TextIndex`` for the errors."""
    # SQLite removes this file when the last connection closes; one that is there was left by a process that
    # died.
    left_behind = path != ":memory:" and Path(f"{path}-wal").exists()
    if path != ":memory:":
        touch_private(Path(path))
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=0.1, cached_statements=512, check_same_thread=not any_thread
    )
    try:
        # What is deleted is overwritten; it may have been forgotten for a reason.
        connection.execute("PRAGMA secure_delete = ON")
        # One connection owns the file, so there is no need for shared memory, which not every file system
        # offers.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA temp_store = MEMORY")
        _prepare(connection, check=left_behind)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, *, check: bool) -> None:
    """Make the tables of a new file; raise ``sqlite3.DatabaseError`` for one that is not ours or damaged."""
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if tables == 0:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";")[:-1]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
        connection.execute("COMMIT")
        return
    if found != _FORMAT:
        raise sqlite3.DatabaseError(f"the full-text index has format {found}, not {_FORMAT}")
    if check:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"the full-text index is damaged: {verdict}")


def delete_files(path: str) -> None:
    """Delete the file with what SQLite keeps beside it; none of them has to be there."""
    if path != ":memory:":
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(path + suffix).unlink(missing_ok=True)
