"""The namespaces of the index: the number of each, what a search has to know of it as a whole, and how far it follows Chroma."""

from __future__ import annotations

import math
import sqlite3
from typing import NamedTuple

__all__ = ["NamespaceTable", "Summary", "position_of"]

_DIGITS = 19
"""The number of digits of the largest number that SQLite gives an entry."""


class Summary(NamedTuple):
    """What a search has to know of a namespace as a whole.

    Attributes:
        memories: How many there are.
        words: How many words they have together.
        has_threads: Whether any of them has neighbours.
        oldest: When the oldest was first remembered, in seconds since 1970, or None where it is not known of any.
        newest: When the newest was.
        next_expiry: When the first of them expires, in seconds since 1970, or None when none does.
    """

    memories: int
    words: int
    has_threads: bool
    oldest: float | None
    newest: float | None
    next_expiry: float | None


class NamespaceTable:
    """The namespaces; numbers and summaries are kept in memory.

    Args:
        connection: The index's own; the caller holds the transaction.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._numbers: dict[str, int] = {}
        self._summaries: dict[int, Summary] = {}

    def number(self, name: str) -> int:
        """Return the number of a namespace; 0, which has no rows, when it does not exist."""
        number = self._numbers.get(name, 0)
        if not number:
            row = self._connection.execute("SELECT number FROM namespaces WHERE name = ?", (name,)).fetchone()
            if row is not None:
                number = self._numbers[name] = int(row[0])
        return number

    def make(self, name: str) -> int:
        """Make a namespace and return its number."""
        made = self._connection.execute("INSERT INTO namespaces (name) VALUES (?) RETURNING number", (name,))
        number = self._numbers[name] = int(made.fetchone()[0])
        return number

    def drop(self, number: int) -> None:
        """Remove a namespace."""
        self._connection.execute("DELETE FROM namespaces WHERE number = ?", (number,))
        self._numbers = {name: known for name, known in self._numbers.items() if known != number}

    def changed(self) -> None:
        """Sum up again: a transaction begins."""
        self._summaries.clear()

    def rolled_back(self) -> None:
        """Forget what is in memory: a namespace that was made in a transaction is gone with it."""
        self._numbers.clear()
        self._summaries.clear()

    def names(self) -> list[str]:
        """Return the names, sorted."""
        return [row[0] for row in self._connection.execute("SELECT name FROM namespaces ORDER BY name")]

    def count_in(self, number: int, memories: int, words: int) -> None:
        """Keep the sums that a search needs, so that it has not to count."""
        self._connection.execute(
            "UPDATE namespaces SET memories = memories + ?, words = words + ? WHERE number = ?",
            (memories, words, number),
        )

    def summary(self, number: int) -> Summary:
        """Sum a namespace up; one that does not exist is empty."""
        known = self._summaries.get(number)
        if known is None:
            known = self._summaries[number] = self._summed_up(number)
        return known

    def _summed_up(self, number: int) -> Summary:
        found = self._connection.execute(
            "SELECT memories, words, EXISTS (SELECT 1 FROM memories AS m WHERE m.namespace = ?1 AND m.thread IS NOT NULL),"
            " (SELECT min(created) FROM memories WHERE namespace = ?1 AND created > 0),"
            " (SELECT max(created) FROM memories WHERE namespace = ?1 AND created > 0),"
            " (SELECT min(expires) FROM memories WHERE namespace = ?1 AND expires IS NOT NULL)"
            " FROM namespaces WHERE number = ?1",
            (number,),
        )
        row = found.fetchone()
        if row is None:
            return Summary(0, 0, has_threads=False, oldest=None, newest=None, next_expiry=None)
        memories, words, has_threads, oldest, newest, next_expiry = row
        times = [time for time in (oldest, newest, next_expiry) if time is not None]
        if not (type(memories) is int and type(words) is int and all(map(_is_time, times))):
            raise sqlite3.DatabaseError(
                "the full-text index is damaged: the sums of a namespace are no numbers"
            )
        return Summary(memories, words, bool(has_threads), oldest, newest, next_expiry)

    # -- following Chroma ----------------------------------------------------------------------------------------------

    def watermark(self, name: str) -> str | None:
        """Return the watermark of a namespace, or None where it has none or does not exist."""
        row = self._connection.execute("SELECT watermark FROM namespaces WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def watermarks(self) -> dict[str, str]:
        """Return the watermarks of all namespaces that have one."""
        return dict(
            self._connection.execute("SELECT name, watermark FROM namespaces WHERE watermark IS NOT NULL")
        )

    def mark(self, name: str, watermark: str) -> None:
        """Store the watermark of a namespace, if that exists."""
        self._connection.execute("UPDATE namespaces SET watermark = ? WHERE name = ?", (watermark, name))


def position_of(mark: object) -> int | None:
    """Return the entry of the log that a mark names; None for whatever else lies in the file."""
    if not isinstance(mark, str) or len(mark) > _DIGITS or not (mark.isascii() and mark.isdigit()):
        return None
    return int(mark) if int(mark) < 2**63 else None


def _is_time(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
