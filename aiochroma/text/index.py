"""A full-text index of the memories, in an SQLite file of its own beside Chroma's.

Chroma stays the source of truth. The index can be thrown away and rebuilt at any time, so it is written
without waiting for the disk, and a damaged file is deleted, not repaired. It serves one thread (SQLite's
connection enforces that).

Every namespace has an FTS5 table of its own: so the frequencies that terms are weighed with are those of the
namespace, and the cost of a search depends on the namespace, not on the file. The tables are contentless;
what they need to forget a row, the form in which it was indexed, is kept in the table of all memories, and
beside it what a search returns of a memory: Chroma takes a millisecond to read ten records.

FTS5 finds the rows of each term; the score is computed here (``_text_coverage``), because it has to look at
the neighbours in a conversation, and because asking for the rows is six times as fast as letting FTS5 rank
them.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from aiochroma.text.analysis import indexed_form
from aiochroma.text.coverage import WINDOW
from aiochroma.text.file import connect, create_terms, delete_files, full_text_available
from aiochroma.text.rows import read_rows
from aiochroma.text.search import TextHit, neighbour_columns, search_namespace
from aiochroma.text.terms import Postings, Summary, summary_of, terms_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["IndexedText", "Neighbour", "TextHit", "TextIndex", "full_text_available"]


class IndexedText(NamedTuple):
    """What the index stores of a memory.

    Attributes:
        id: Unique in its namespace.
        text: Any text.
        thread: The conversation that the memory belongs to, if any: the texts of one thread are neighbours.
        position: Its place in the thread; memories with equal positions keep the order in which they were
            written.
        metadata: What else is stored of it, to be read back with its text; None keeps neither for that.
        created: When it was first remembered, in seconds since 1970, or None where that is not known.
    """

    id: str
    text: str
    thread: str | None = None
    position: float = 0.0
    metadata: Mapping[str, Any] | None = None
    created: float | None = None


class Neighbour(NamedTuple):
    """A memory that stands near another in the same thread.

    Attributes:
        id: The memory that was asked for.
        neighbour: The id of the memory near it.
        offset: How many places it stands behind (negative: before) the one that was asked for; never 0.
    """

    id: str
    neighbour: str
    offset: int


class TextIndex:
    """The full-text index of one database; to be made, used and closed on one thread.

    Every method may raise ``sqlite3.DatabaseError`` when the file is damaged or the disk is full;
    ``recreate`` then gives an empty index, to be filled again from Chroma.
    """

    def __init__(self, path: Path | str) -> None:
        """Open the index, or make an empty one.

        Args:
            path: The file, or ":memory:".

        Raises:
            sqlite3.DatabaseError: The file is no index, of another format, or damaged (but see
                ``open_or_recreate``).
            sqlite3.OperationalError: The file cannot be opened: permissions, or another connection holds it.
        """
        self._path = str(path)
        self._numbers: dict[str, int] = {}
        self._summaries: dict[int, Summary] = {}
        self._connection = connect(self._path)
        self._postings = Postings(self._connection)

    @classmethod
    def open_or_recreate(cls, path: Path | str) -> TextIndex:
        """Open the index; delete a damaged file or one of another format, and make an empty one.

        Args:
            path: The file, or ":memory:".

        Returns:
            An index whose ``count`` and ``watermark`` tell what it holds.

        Raises:
            sqlite3.OperationalError: The file cannot be opened: permissions, or another connection holds it.
        """
        try:
            return cls(path)
        except sqlite3.OperationalError:
            # Locked or not permitted: nothing is wrong with what is in the file.
            raise
        except sqlite3.DatabaseError:
            delete_files(str(path))
            return cls(path)

    def recreate(self) -> None:
        """Throw everything away, a damaged file included, and begin anew with an empty index."""
        self.close()
        self._numbers.clear()
        self._summaries.clear()
        delete_files(self._path)
        self._connection = connect(self._path)
        self._postings = Postings(self._connection)

    def close(self) -> None:
        """Close the file; further use raises ``sqlite3.ProgrammingError``. May be called again."""
        self._connection.close()

    def upsert(self, namespace: str, rows: Iterable[IndexedText], *, watermark: str | None = None) -> None:
        """Add memories, or replace those with the same ids, in one transaction.

        Args:
            namespace: Any text; made when it does not exist.
            rows: The memories; of several with one id the last counts.
            watermark: Stored in the same transaction, when given; see ``set_watermark``.
        """
        with self._transaction():
            number = self._number_made(namespace)
            added = [self._upsert_row(number, row) for row in rows]
            self._count_in(number, sum(new for new, _ in added), sum(words for _, words in added))
            if watermark is not None:
                self._store_watermark(namespace, watermark)

    def delete(self, namespace: str, ids: Iterable[str], *, watermark: str | None = None) -> int:
        """Remove memories, in one transaction.

        Args:
            namespace: One that does not exist is empty.
            ids: Those that are not there are ignored.
            watermark: Stored in the same transaction, when given and when the namespace exists.

        Returns:
            How many were removed.
        """
        removed = removed_words = 0
        with self._transaction():
            number = self._number(namespace)
            if number is None:
                return 0
            for unwanted in ids:
                found = self._connection.execute(
                    "SELECT number, indexed, words FROM memories WHERE namespace = ? AND id = ?",
                    (number, unwanted),
                ).fetchone()
                if found is not None:
                    self._forget_terms(number, *found[:2])
                    self._connection.execute("DELETE FROM memories WHERE number = ?", (found[0],))
                    removed += 1
                    removed_words += found[2]
            self._count_in(number, -removed, -removed_words)
            if watermark is not None:
                self._store_watermark(namespace, watermark)
        return removed

    def delete_namespace(self, namespace: str) -> None:
        """Remove a namespace with its memories and its watermark; one that does not exist is ignored."""
        with self._transaction():
            number = self._number(namespace)
            if number is not None:
                self._drop(number)
        self._numbers.pop(namespace, None)

    def clear(self) -> None:
        """Remove all namespaces."""
        with self._transaction():
            for (number,) in self._connection.execute("SELECT number FROM namespaces").fetchall():
                self._drop(number)
        self._numbers.clear()

    def search(
        self,
        namespace: str,
        question: str,
        limit: int,
        *,
        pool: int | None = None,
        also: Sequence[str] = (),
        ids_allowed: Collection[str] | None = None,
        window: int = WINDOW,
        now: float | None = None,
    ) -> list[TextHit]:
        """Find the memories that cover a question, by themselves or with their neighbours.

        Args:
            namespace: One that does not exist is empty.
            question: Any text; nothing in it is taken for an operator.
            limit: The most hits to return, at least 1, beside those of ``also``.
            pool: So many memories that hold most of the question are looked at, with their neighbours; twice the
                limit, when not given. Where ``ids_allowed`` leaves too few, more are.
            also: Ids to score in any case, such as the nearest by vector; those that are not there are
                ignored.
            ids_allowed: When given, only these are returned; the others still lend them their terms.
            window: How many places of a thread lend their terms to each other; 0 looks at each memory alone.
            now: The moment from which the question speaks of "yesterday"; the present, when not given.

        Returns:
            The hits, best first; of equal ones the newest first. One of ``also`` that covers nothing has score 0.
            Which they are is decided before their length counts; see ``TextHit.place``.
            A question without words finds nothing.
        """
        number = self._number(namespace)
        if number is None:
            return []
        if number not in self._summaries:
            self._summaries[number] = summary_of(self._connection, number)
        summary = self._summaries[number]
        moment = time.time() if now is None else now
        terms = terms_of(self._connection, self._postings, number, summary, question, moment)
        if not terms:
            return []
        return search_namespace(
            self._connection,
            number,
            summary,
            terms,
            limit,
            pool=2 * limit if pool is None else pool,
            also=also,
            ids_allowed=ids_allowed,
            window=window,
        )

    def neighbours(self, namespace: str, ids: Sequence[str], window: int) -> list[Neighbour]:
        """Find what stands near memories in their threads.

        Args:
            namespace: One that does not exist is empty.
            ids: The memories; those that are not there, or in no thread, have no neighbours.
            window: How many places to look ahead and back, at least 1.

        Returns:
            One entry for each pair of a memory and a neighbour.
        """
        number = self._number(namespace)
        if number is None or not ids or window < 1:
            return []
        offsets = [*range(-window, 0), *range(1, window + 1)]
        found = read_rows(
            self._connection,
            f"m.id, {neighbour_columns('id', window)}",
            "json_each(?1) AS wanted CROSS JOIN memories AS m ON m.namespace = ?2 AND m.id = wanted.value",
            (json.dumps(list(ids)), number),
        )
        return [
            Neighbour(row[0], neighbour, offset)
            for row in found
            for offset, neighbour in zip(offsets, row[1:], strict=True)
            if neighbour is not None
        ]

    def places(self, namespace: str, ids: Iterable[str]) -> dict[str, tuple[str | None, float]]:
        """Return thread and position of memories; those that are not there are left out."""
        number = self._number(namespace)
        if number is None:
            return {}
        found = self._connection.execute(
            "SELECT m.id, m.thread, m.position FROM json_each(?) AS wanted"
            " CROSS JOIN memories AS m ON m.namespace = ? AND m.id = wanted.value",
            (json.dumps(list(ids)), number),
        )
        return {row[0]: (row[1], row[2]) for row in found}

    def last_position(self, namespace: str, thread: str) -> float:
        """Return the last place of a thread; 0 where it has no memory."""
        found = self._connection.execute(
            "SELECT MAX(position) FROM memories WHERE namespace = ? AND thread = ?",
            (self._number(namespace), thread),
        ).fetchone()
        return float(found[0] or 0.0)

    def read(self, namespace: str, ids: Iterable[str]) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return text and metadata of memories; those that are not there, or kept without metadata, are left out.

        Chroma takes a millisecond for ten records, whatever they are; this takes a tenth of it.
        """
        number = self._number(namespace)
        if number is None:
            return {}
        found = read_rows(
            self._connection,
            "m.id, COALESCE(m.document, m.indexed), m.metadata",
            "json_each(?) AS wanted CROSS JOIN memories AS m ON m.namespace = ? AND m.id = wanted.value"
            " WHERE m.metadata IS NOT NULL",
            (json.dumps(list(ids)), number),
        )
        return {id: (document, json.loads(metadata)) for id, document, metadata in found}

    def count(self, namespace: str) -> int:
        """Return how many memories of a namespace are indexed."""
        number = self._number(namespace)
        if number is None:
            return 0
        counted: int = self._connection.execute(
            "SELECT memories FROM namespaces WHERE number = ?", (number,)
        ).fetchone()[0]
        return counted

    def namespaces(self) -> list[str]:
        """Return the names of the namespaces that have been written."""
        return [row[0] for row in self._connection.execute("SELECT name FROM namespaces ORDER BY name")]

    def ids(self, namespace: str) -> set[str]:
        """Return the ids of all indexed memories of a namespace."""
        number = self._number(namespace)
        return {
            row[0]
            for row in self._connection.execute("SELECT id FROM memories WHERE namespace = ?", (number,))
        }

    def watermark(self, namespace: str) -> str | None:
        """Return what ``set_watermark`` stored last, or None."""
        row = self._connection.execute(
            "SELECT watermark FROM namespaces WHERE name = ?", (namespace,)
        ).fetchone()
        return None if row is None else row[0]

    def set_watermark(self, namespace: str, watermark: str) -> None:
        """Store how far the namespace follows Chroma.

        Args:
            namespace: Made when it does not exist.
            watermark: The owner's own mark; the index only keeps it.
        """
        with self._transaction():
            self._number_made(namespace)
            self._store_watermark(namespace, watermark)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._summaries.clear()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # A namespace made in this transaction is gone with it.
            self._numbers.clear()
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _number(self, namespace: str) -> int | None:
        """Return the number of a namespace, or None when it does not exist."""
        number = self._numbers.get(namespace)
        if number is None:
            row = self._connection.execute(
                "SELECT number FROM namespaces WHERE name = ?", (namespace,)
            ).fetchone()
            if row is None:
                return None
            number = self._numbers[namespace] = int(row[0])
        return number

    def _number_made(self, namespace: str) -> int:
        """Return the number of a namespace, which is made when it does not exist."""
        number = self._number(namespace)
        if number is None:
            made = self._connection.execute(
                "INSERT INTO namespaces (name) VALUES (?) RETURNING number", (namespace,)
            )
            number = self._numbers[namespace] = int(made.fetchone()[0])
            create_terms(self._connection, number)
        return number

    def _upsert_row(self, namespace: int, row: IndexedText) -> tuple[int, int]:
        """Write one row; return how many memories and words there are more than before."""
        indexed = indexed_form(row.text)
        words = len(indexed.split())
        document, metadata = _readable(row, indexed)
        created = None if row.created is None else int(row.created)
        found = self._connection.execute(
            "SELECT number, indexed, words FROM memories WHERE namespace = ? AND id = ?", (namespace, row.id)
        ).fetchone()
        if found is None:
            number = self._connection.execute(
                "INSERT INTO memories (namespace, id, thread, position, words, indexed, document, metadata, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (namespace, row.id, row.thread, row.position, words, indexed, document, metadata, created),
            ).lastrowid
        else:
            number = found[0]
            self._connection.execute(
                "UPDATE memories SET thread = ?, position = ?, words = ?, indexed = ?, document = ?, metadata = ?,"
                " created = ? WHERE number = ?",
                (row.thread, row.position, words, indexed, document, metadata, created, number),
            )
            if found[1] == indexed:
                return 0, 0
            self._forget_terms(namespace, *found[:2])
        self._postings.grown(namespace)
        self._connection.execute(
            f"INSERT INTO terms_{namespace} (rowid, text) VALUES (?, ?)",  # noqa: S608
            (number, indexed),
        )
        return (1, words) if found is None else (0, words - found[2])

    def _count_in(self, namespace: int, memories: int, words: int) -> None:
        """Keep the sums that a search needs, so that it has not to count."""
        self._connection.execute(
            "UPDATE namespaces SET memories = memories + ?, words = words + ? WHERE number = ?",
            (memories, words, namespace),
        )

    def _forget_terms(self, namespace: int, number: int, indexed: str) -> None:
        """Take a row out of a contentless table, which has to be told what it holds."""
        self._postings.replaced(namespace)
        self._connection.execute(
            f"INSERT INTO terms_{namespace} (terms_{namespace}, rowid, text) VALUES ('delete', ?, ?)",  # noqa: S608
            (number, indexed),
        )

    def _drop(self, number: int) -> None:
        self._postings.replaced(number)
        self._connection.execute(f"DROP TABLE terms_{number}")
        self._connection.execute("DELETE FROM memories WHERE namespace = ?", (number,))
        self._connection.execute("DELETE FROM namespaces WHERE number = ?", (number,))

    def _store_watermark(self, namespace: str, watermark: str) -> None:
        self._connection.execute("UPDATE namespaces SET watermark = ? WHERE name = ?", (watermark, namespace))


def _readable(row: IndexedText, indexed: str) -> tuple[str | None, str | None]:
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
