"""The file of the index: how it is opened, checked and deleted, its tables, and the one of the memories."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, NamedTuple

from aiochroma._files import SQLITE_SUFFIXES, touch_private
from aiochroma._types import Metadata, MetadataView, Vector
from aiochroma.text.rows import read_numbers, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray


__all__ = ["IndexedText", "ListPage", "MemoryTable", "StoredMemory", "connect", "delete_files", "readable"]

# Raise it whenever the tables or the form in which something is indexed change: a file of another number is rebuilt.
_FORMAT = 7
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
CREATE TABLE codes (number INTEGER PRIMARY KEY, code BLOB NOT NULL);
CREATE TABLE metadata_keys (
    number INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, name TEXT NOT NULL, UNIQUE (namespace, name));
CREATE TABLE metadata_values (
    key INTEGER NOT NULL, kind TEXT NOT NULL, value NOT NULL, memory INTEGER NOT NULL,
    PRIMARY KEY (key, kind, value, memory)) WITHOUT ROWID;
"""

_FEW_ROWS = 5000
"""The most rows that pass a filter which are sorted by themselves; with more, the namespace is walked through in order."""
_WALKED = 1000


class IndexedText(NamedTuple):
    """What the index stores of a memory.

    Attributes:
        id: Unique in its namespace.
        text: Any text.
        thread: The conversation that the memory belongs to, if any: the texts of one thread are neighbours.
        position: Its position in the thread; memories with equal positions keep the order in which they were written.
        metadata: What else is stored of it, to be filtered by and read back with its text; None keeps neither.
        created: When it was made, in seconds since 1970; 0 where that is not known.
        expires: When it expires, in seconds since 1970, or None.
        vector: Its vector; None keeps the one that is stored.
        code: The code of its tokens (see ``codes``); None keeps the one that is stored, if it belongs to the vector.
    """

    id: str
    text: str
    thread: str | None = None
    position: float = 0.0
    metadata: MetadataView | None = None
    created: float = 0.0
    expires: float | None = None
    vector: Vector | None = None
    code: bytes | None = None


class ListPage(NamedTuple):
    """A page of a list of memories.

    Attributes:
        by_position: Whether the order is that of the positions in a thread, and not that of the times at which memories were
            made; then by id.
        after: That number and the id of the last memory before the page, or None for the first page.
        limit: The most rows of a page, or None.
        newest_first: Whether the list begins at the end.
    """

    by_position: bool = False
    after: tuple[float, str] | None = None
    limit: int | None = None
    newest_first: bool = False


class StoredMemory(NamedTuple):
    """What is known of a memory before it is written again.

    Attributes:
        number: Its row.
        indexed: The form in which its text was indexed.
        words: How many words that has.
        metadata: What was stored with it, or None.
    """

    number: int
    indexed: str
    words: int
    metadata: Metadata | None


class MemoryTable:
    """The memories of all namespaces.

    Args:
        connection: The index's own; the caller holds the transaction.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    # -- writing -------------------------------------------------------------------------------------------------------

    def stored(self, namespace: int, ids: Iterable[str]) -> dict[str, StoredMemory]:
        """Return the rows of some ids; an id without a row is left out."""
        source = "json_each(?) AS given CROSS JOIN memories AS m ON m.namespace = ? AND m.id = given.value"
        found = read_rows(
            self._connection,
            "m.id, m.number, m.indexed, m.words, m.metadata",
            source,
            (json.dumps(list(ids)), namespace),
        )
        return {
            id: StoredMemory(number, indexed, words, None if metadata is None else json.loads(metadata))
            for id, number, indexed, words, metadata in found
        }

    def next_number(self) -> int:
        """Return a row number above all that there are."""
        number: int = self._connection.execute(
            "SELECT COALESCE(MAX(number), 0) + 1 FROM memories"
        ).fetchone()[0]
        return number

    def write(
        self, namespace: int, rows: Sequence[tuple[int, IndexedText, str, int, str | None, str | None]]
    ) -> None:
        """Write memories: number, memory, indexed form, its words, and what ``readable`` says."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO memories (number, namespace, id, thread, position, created, expires, words, indexed,"
            " document, metadata) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    number,
                    namespace,
                    row.id,
                    row.thread,
                    row.position,
                    row.created,
                    row.expires,
                    words,
                    indexed,
                    document,
                    metadata,
                )
                for number, row, indexed, words, document, metadata in rows
            ],
        )

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove rows."""
        self._connection.execute(
            "DELETE FROM memories WHERE number IN (SELECT value FROM json_each(?))",
            (json.dumps(list(numbers)),),
        )

    # -- reading -------------------------------------------------------------------------------------------------------

    def numbers(self, namespace: int, ids: Iterable[str]) -> dict[str, int]:
        """Return the rows of ids; those that are not there are left out."""
        source = "json_each(?) AS given CROSS JOIN memories AS m ON m.namespace = ? AND m.id = given.value"
        found = read_rows(self._connection, "m.id, m.number", source, (json.dumps(list(ids)), namespace))
        return {id: number for id, number in found}  # noqa: C416 - the rows are lists

    def read(self, numbers: Iterable[int]) -> dict[int, tuple[str, str, Metadata]]:
        """Return id, text and metadata of rows; those kept without metadata are left out.

        Chroma takes a millisecond for ten records, whatever they are; this takes a tenth of it.
        """
        # Metadata is JSON already: that of all rows is taken apart at once, in half the time.
        found, metadatas = self._connection.execute(
            "SELECT json_group_array(json_array(m.number, m.id, COALESCE(m.document, m.indexed))),"
            " '[' || COALESCE(group_concat(m.metadata), '') || ']' FROM json_each(?) AS given"
            " CROSS JOIN memories AS m ON m.number = given.value WHERE m.metadata IS NOT NULL",
            (json.dumps(list(numbers)),),
        ).fetchone()
        rows = zip(json.loads(found), json.loads(metadatas), strict=True)
        return {number: (id, document, metadata) for (number, id, document), metadata in rows}

    def ids(self, numbers: Iterable[int]) -> dict[int, str]:
        """Return the ids of rows."""
        source = "json_each(?) AS given CROSS JOIN memories AS m ON m.number = given.value"
        found = read_rows(self._connection, "m.number, m.id", source, (json.dumps(list(numbers)),))
        return {number: id for number, id in found}  # noqa: C416 - the rows are lists

    def all_ids(self, namespace: int) -> set[str]:
        """Return the ids of all memories of a namespace."""
        return {
            id for (id,) in read_rows(self._connection, "id", "memories WHERE namespace = ?", (namespace,))
        }

    def last_position(self, namespace: int, thread: str) -> float:
        """Return the last position of a thread; 0 where it has no memory."""
        found = self._connection.execute(
            "SELECT MAX(position) FROM memories WHERE namespace = ? AND thread = ?", (namespace, thread)
        ).fetchone()
        if not isinstance(found[0], (float, NoneType)):
            raise sqlite3.DatabaseError("the full-text index is damaged: a position is no number")
        return found[0] or 0.0

    def expired(self, namespace: int, now: float) -> NDArray[np.int64]:
        """Return the rows that have expired, ascending."""
        found = read_numbers(
            self._connection,
            "number",
            "memories WHERE namespace = ? AND expires IS NOT NULL AND expires <= ?",
            (namespace, now),
        )
        found.sort()
        return found

    def page(
        self,
        namespace: int,
        passing: NDArray[np.int64] | None,
        now: float,
        page: ListPage,
    ) -> list[int]:
        """Return the rows of a page, without what has expired.

        Args:
            namespace: The namespace.
            passing: Only these rows, ascending; None for all.
            now: The time, in seconds since 1970.
            page: Which page.
        """
        by_position, after, limit, newest_first = page
        column = "position" if by_position else "created"
        step = -1 if limit is None else limit
        if passing is not None and (limit is None or by_position or len(passing) <= _FEW_ROWS):
            source, parameters = (
                "json_each(?) AS w CROSS JOIN memories AS m ON m.number = w.value WHERE TRUE",
                [json.dumps(passing.tolist())],
            )
            found = self._ordered(source, parameters, column, now, after, step, newest_first=newest_first)
            return [number for number, _, _ in found]
        rows: list[int] = []
        step = step if passing is None else max(step, _WALKED)
        while True:
            source = "memories AS m WHERE m.namespace = ?"
            found = self._ordered(source, [namespace], column, now, after, step, newest_first=newest_first)
            rows += [number for number, _, _ in found if passing is None or _holds(passing, number)]
            if passing is None or limit is None or len(rows) >= limit or len(found) < step:
                return rows[:limit]
            after = found[-1][1:]

    def _ordered(
        self,
        source: str,
        parameters: Sequence[object],
        column: str,
        now: float,
        after: tuple[float, str] | None,
        limit: int,
        *,
        newest_first: bool,
    ) -> list[tuple[int, float, str]]:
        compares, order = ("<", "DESC") if newest_first else (">", "ASC")
        beyond = f" AND (m.{column}, m.id) {compares} (?, ?)" if after is not None else ""
        # Not by read_rows: fractions would lose digits. A page is short.
        return self._connection.execute(
            f"SELECT m.number, m.{column}, m.id FROM {source}"  # noqa: S608 - of this module's own texts
            f" AND (m.expires IS NULL OR m.expires > ?){beyond}"
            f" ORDER BY m.{column} {order}, m.id {order} LIMIT ?",
            (*parameters, now, *(after or ()), limit),
        ).fetchall()


def _holds(rows: NDArray[np.int64], number: int) -> bool:
    at = int(rows.searchsorted(number))
    return at < len(rows) and int(rows[at]) == number


def readable(row: IndexedText, indexed: str) -> tuple[str | None, str | None]:
    """Return what is stored to read a memory back: its text where the indexed form is another, and its metadata.

    Neither where SQLite could not give back the same: a lone surrogate, or a value that JSON does not know.
    """
    if row.metadata is None:
        return None, None
    try:
        row.text.encode()
        metadata = json.dumps(row.metadata)
    except (UnicodeEncodeError, TypeError):
        return None, None
    return (None if row.text == indexed else row.text), metadata


def connect(path: str, *, any_thread: bool = False) -> sqlite3.Connection:
    """Open the file, or make an empty one; see ``TextIndex`` for the errors."""
    # SQLite removes this file when the last connection closes; one that is there was left by a process that died.
    left_behind = path != ":memory:" and Path(f"{path}-wal").exists()
    if path != ":memory:":
        try:
            touch_private(Path(path))
        except OSError as error:
            raise sqlite3.OperationalError(f"unable to open database file: {error}") from error
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=0.1, cached_statements=512, check_same_thread=not any_thread
    )
    try:
        # What is deleted is overwritten; it may have been forgotten for a reason.
        connection.execute("PRAGMA secure_delete = ON")
        # One connection owns the file, so there is no need for shared memory, which not every file system offers.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
            # What is deleted makes the file smaller. Of a file that has it this would write and wait for the disk: 8 to 15 ms.
            connection.execute("PRAGMA auto_vacuum = FULL")
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
        for suffix in SQLITE_SUFFIXES:
            Path(path + suffix).unlink(missing_ok=True)
