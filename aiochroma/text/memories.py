"""The table of memories in the index's file: what a search, a list and a reader get to see of a memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from aiochroma._types import Metadata, MetadataView, Vector
from aiochroma.text.rows import read_numbers, read_rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray


__all__ = ["IndexedText", "MemoryTable", "StoredMemory", "readable"]

_FEW_ROWS = 5000
"""So many rows that pass a filter are sorted by themselves; of more, the namespace is walked through in order."""
_WALKED = 1000


class IndexedText(NamedTuple):
    """What the index stores of a memory.

    Attributes:
        id: Unique in its namespace.
        text: Any text.
        thread: The conversation that the memory belongs to, if any: the texts of one thread are neighbours.
        position: Its place in the thread; memories with equal positions keep the order in which they were written.
        metadata: What else is stored of it, to be filtered by and read back with its text; None keeps neither.
        created: When it was made, in seconds since 1970; 0 where that is not known.
        expires: When it expires, in seconds since 1970, or None.
        vector: Its vector; None keeps the one that is stored.
    """

    id: str
    text: str
    thread: str | None = None
    position: float = 0.0
    metadata: MetadataView | None = None
    created: float = 0.0
    expires: float | None = None
    vector: Vector | None = None


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
        """Return what is there of some ids."""
        source = "json_each(?) AS wanted CROSS JOIN memories AS m ON m.namespace = ? AND m.id = wanted.value"
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
        source = "json_each(?) AS wanted CROSS JOIN memories AS m ON m.namespace = ? AND m.id = wanted.value"
        found = read_rows(self._connection, "m.id, m.number", source, (json.dumps(list(ids)), namespace))
        return {id: number for id, number in found}  # noqa: C416 - the rows are lists

    def read(self, numbers: Iterable[int]) -> dict[int, tuple[str, str, Metadata]]:
        """Return id, text and metadata of rows; those kept without metadata are left out.

        Chroma takes a millisecond for ten records, whatever they are; this takes a tenth of it.
        """
        found = read_rows(
            self._connection,
            "m.number, m.id, COALESCE(m.document, m.indexed), m.metadata",
            "json_each(?) AS wanted CROSS JOIN memories AS m ON m.number = wanted.value WHERE m.metadata IS NOT NULL",
            (json.dumps(list(numbers)),),
        )
        return {number: (id, document, json.loads(metadata)) for number, id, document, metadata in found}

    def ids(self, numbers: Iterable[int]) -> dict[int, str]:
        """Return the ids of rows."""
        source = "json_each(?) AS wanted CROSS JOIN memories AS m ON m.number = wanted.value"
        found = read_rows(self._connection, "m.number, m.id", source, (json.dumps(list(numbers)),))
        return {number: id for number, id in found}  # noqa: C416 - the rows are lists

    def all_ids(self, namespace: int) -> set[str]:
        """Return the ids of all memories of a namespace."""
        return {
            id for (id,) in read_rows(self._connection, "id", "memories WHERE namespace = ?", (namespace,))
        }

    def last_position(self, namespace: int, thread: str) -> float:
        """Return the last place of a thread; 0 where it has no memory."""
        found = self._connection.execute(
            "SELECT MAX(position) FROM memories WHERE namespace = ? AND thread = ?", (namespace, thread)
        ).fetchone()
        return float(found[0] or 0.0)

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
        *,
        by_position: bool,
        after: tuple[float, str] | None,
        limit: int | None,
        newest_first: bool,
    ) -> list[int]:
        """Return the next rows of a list, without what has expired.

        Args:
            namespace: The namespace.
            passing: Only these rows, ascending; None for all.
            now: The time, in seconds since 1970.
            by_position: Order by the place in the thread, and not by the time at which a memory was made; then by id.
            after: That number and the id of the last memory before the page, or None for the first page.
            limit: The most to return, or None.
            newest_first: Begin at the end.
        """
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
        parameters: list[Any],
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
