"""The trail of what changed in a memory: an SQLite file of its own beside Chroma's, written on the DB thread.

Unlike the full-text index it cannot be made again, so a damaged file is reported, not replaced. An entry is written before
the change, and withdrawn where the change is certain not to happen: a process that dies in between, or a failure that leaves it
open, may leave an entry for a change that did not happen, never a change without an entry.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from datetime import datetime, timezone
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, NamedTuple

from aiochroma._errors import StoreUnavailableError
from aiochroma._files import touch_private, transaction
from aiochroma._types import Metadata
from aiochroma.disk.layout import HISTORY_FILE, is_damage, no_descriptors, prepare_history

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


__all__ = ["ERASE", "HISTORY_FILE", "ChangeLog", "Entry", "database_key"]

ERASE = "erase"
"""What is done to a memory of which no entry is to be left."""

_END = datetime.max.replace(tzinfo=timezone.utc).timestamp()
_DEFAULT = ("default_tenant", "default_database")


class Entry(NamedTuple):
    """One change.

    Attributes:
        at: When it was made, in seconds since 1970.
        action: What was done to the memory.
        namespace: The namespace of the memory.
        id: The id of the memory.
        text: The text before the change, or None where there was none.
        metadata: The metadata before the change, or None where there was none.
    """

    at: float
    action: str
    namespace: str
    id: str
    text: str | None
    metadata: Metadata | None


def database_key(tenant: str, database: str) -> str:
    """Return what the file calls a database of Chroma's; the default one is called nothing."""
    return "" if (tenant, database) == _DEFAULT else json.dumps([tenant, database])


class ChangeLog:
    """The trail of one database; to be made, used and closed on one thread.

    Args:
        path: The file, or ":memory:".

    Raises:
        StoreUnavailableError: The file cannot be opened or is damaged; every method may raise it.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)
        with self._explained():
            if self._path != ":memory:":
                touch_private(Path(self._path))
            self._connection = sqlite3.connect(self._path, isolation_level=None, timeout=1.0)
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA secure_delete = ON")
                # An entry has to be on the disk before the change is, which Chroma waits for as well.
                self._connection.execute("PRAGMA synchronous = FULL")
                prepare_history(self._connection)
            except BaseException:
                self._connection.close()
                raise

    def note(self, database: str, entries: Iterable[Entry]) -> tuple[int, int]:
        """Write entries in one transaction, and return the range of their numbers: first, and behind the last.

        One that says that a memory is erased is not kept, and takes the memory's other entries with it.

        Args:
            database: Chroma's database; see :func:`database_key`.
            entries: The changes to note.
        """
        rows, erased = [], []
        for entry in entries:
            if entry.action == ERASE:
                erased.append((entry.namespace, entry.id, database))
            else:
                metadata = None if entry.metadata is None else json.dumps(entry.metadata)
                rows.append((*entry[:5], metadata, database))
        with self._explained(), transaction(self._connection):
            self._connection.executemany(
                "DELETE FROM changes WHERE namespace = ? AND id = ? AND database = ?", erased
            )
            newest = self._connection.execute("SELECT COALESCE(MAX(number), 0) FROM changes").fetchone()[0]
            first = newest + 1
            self._connection.executemany(
                "INSERT INTO changes (number, at, action, namespace, id, text, metadata, database)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(number, *row) for number, row in enumerate(rows, first)],
            )
        return first, first + len(rows)

    def withdraw(self, numbers: tuple[int, int]) -> None:
        """Delete entries whose change did not happen."""
        with self._explained():
            self._connection.execute("DELETE FROM changes WHERE number >= ? AND number < ?", numbers)

    def read(self, database: str, namespace: str | None, id: str | None, limit: int) -> list[Entry]:
        """Return entries, newest first.

        Args:
            database: Only of this database; see :func:`database_key`.
            namespace: Only of this one, or None.
            id: Only of this memory, or None.
            limit: The most to return.
        """
        # SQLite is kept from looking at all of a namespace for the few entries of one memory.
        by_namespace = "namespace" if id is None else "+namespace"
        wanted = {"database": database, by_namespace: namespace, "id": id}
        given = {column: value for column, value in wanted.items() if value is not None}
        conditions = " AND ".join(f"{column} = ?" for column in given)
        with self._explained():
            found = self._connection.execute(
                f"SELECT at, action, namespace, id, text, metadata FROM changes WHERE {conditions}"  # noqa: S608 - of the three above
                " ORDER BY number DESC LIMIT ?",
                (*given.values(), limit),
            ).fetchall()
            return [_entry(*row) for row in found]

    def close(self) -> None:
        """Close the file. May be called again."""
        self._connection.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, ValueError, TypeError, OverflowError) as error:
            raise StoreUnavailableError(
                f"The history {self._path!r} cannot be used: {error}. {_advice(error)}, or open the memory without `history`."
            ) from error


def _entry(
    at: object, action: object, namespace: object, id: object, text: object, metadata: object
) -> Entry:
    """Make an entry of a row.

    Raises:
        ValueError: It is not what is written here.
    """
    values = None if metadata is None else json.loads(str(metadata))
    if (
        isinstance(at, float)
        and 0 <= at < _END
        and isinstance(action, str)
        and isinstance(namespace, str)
        and isinstance(id, str)
        and isinstance(text, (str, NoneType))
        and isinstance(values, (dict, NoneType))
    ):
        return Entry(at, action, namespace, id, text, values)
    raise ValueError(f"its entry for {id!r} is damaged")


def _advice(error: Exception) -> str:
    """Return what to do about a file that cannot be used; only one that is damaged is to be moved away."""
    exhausted = no_descriptors()
    if exhausted is not None:
        return f"{exhausted}: close some, or raise the limit"
    is_content = is_damage(error) or isinstance(error, (ValueError, TypeError, OverflowError))
    if isinstance(error, OSError) or not is_content:
        return "Nothing is wrong with its content: correct what keeps it from being opened and written"
    return "Move the file away to begin a new one"
