"""The index of the memories, in an SQLite file of its own beside Chroma's: their words, metadata and vectors.

Chroma stays the source of truth. The index can be thrown away and rebuilt at any time, so it is written without waiting for
the disk, and a damaged file is deleted, not repaired. It serves one thread (SQLite's connection enforces that).

Every namespace has an FTS5 table of its own: so the frequencies that terms are weighed with are those of the namespace, and
the cost of a search depends on the namespace, not on the file. The tables are contentless; what they need to forget a row, the
form in which it was indexed, is kept in the table of all memories, and beside it what a search returns of a memory: Chroma
takes a millisecond to read ten records.

FTS5 finds the rows of each term; the score is computed in ``coverage``, which looks at neighbours, in a sixth of FTS5's time.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING

from aiochroma._files import transaction
from aiochroma._types import Metadata, Where
from aiochroma.text import codes
from aiochroma.text.analysis import indexed_form
from aiochroma.text.codes import CodeTable
from aiochroma.text.coverage import WINDOW, TextHits, TextSearch, search_together
from aiochroma.text.memories import IndexedText, MemoryTable, connect, delete_files, readable
from aiochroma.text.metadata import MetadataTable
from aiochroma.text.namespaces import NamespaceTable
from aiochroma.text.rows import Order, RowFilter, TextQuery
from aiochroma.text.terms import Postings, terms_of
from aiochroma.text.vectors import VectorTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.text.memories import ListPage
    from aiochroma.text.vectors import Compared

__all__ = ["IndexedText", "TextHits", "TextIndex"]

CACHE_BYTES = 64 * 2**20
"""How much of the vectors stays in memory: those of 65,000 memories with 256 dimensions."""


class TextIndex:
    """The index of one database; to be made, used and closed on one thread, unless ``any_thread``.

    Every method may raise ``sqlite3.DatabaseError`` when the file is damaged or the disk is full; ``recreate`` then gives an
    empty index, to be filled again from Chroma. A namespace that does not exist is empty.

    Args:
        path: The file, or ":memory:".
        cache_bytes: How much of the vectors may stay in memory.
        any_thread: Several threads may use it, one at a time; else one alone.

    Raises:
        sqlite3.DatabaseError: The file is no index, of another format, or damaged (but see ``open_or_recreate``).
        sqlite3.OperationalError: The file cannot be opened: permissions, or another connection holds it.
    """

    def __init__(self, path: Path | str, *, cache_bytes: int = CACHE_BYTES, any_thread: bool = False) -> None:
        self._path = str(path)
        self._cache_bytes = cache_bytes
        self._any_thread = any_thread
        self._open()

    @classmethod
    def open_or_recreate(
        cls, path: Path | str, *, cache_bytes: int = CACHE_BYTES, any_thread: bool = False
    ) -> TextIndex:
        """Open the index; delete a damaged file or one of another format, and make an empty one.

        Raises:
            sqlite3.OperationalError: The file cannot be opened: permissions, or another connection holds it.
        """
        try:
            return cls(path, cache_bytes=cache_bytes, any_thread=any_thread)
        except sqlite3.OperationalError:
            # Locked or not permitted: nothing is wrong with what is in the file.
            raise
        except sqlite3.DatabaseError:
            delete_files(str(path))
            return cls(path, cache_bytes=cache_bytes, any_thread=any_thread)

    def recreate(self) -> None:
        """Throw everything away, a damaged file included, and begin with an empty index."""
        self.close()
        delete_files(self._path)
        self._open()

    def close(self) -> None:
        """Close the file; further use raises ``sqlite3.ProgrammingError``. May be called again."""
        self._connection.close()

    def _open(self) -> None:
        connection = self._connection = connect(self._path, any_thread=self._any_thread)
        self._namespaces = NamespaceTable(connection)
        self._terms = Postings(connection)
        self._memories = MemoryTable(connection)
        self._metadata = MetadataTable(connection)
        self._vectors = VectorTable(connection, self._cache_bytes)
        self._codes = CodeTable(connection)
        self._order = Order(connection)

    # -- writing -------------------------------------------------------------------------------------------------------

    def upsert(self, namespace: str, rows: Iterable[IndexedText], *, watermark: str | None = None) -> None:
        """Add memories, or replace those with the same ids, in one transaction.

        Args:
            namespace: Any text; made when it does not exist.
            rows: The memories; of several with one id the last counts.
            watermark: Stored in the same transaction, when given; see ``set_watermark``.
        """
        with self._transaction():
            number = self._number_made(namespace)
            self._write(number, list({row.id: row for row in rows}.values()))
            if watermark is not None:
                self._namespaces.mark(namespace, watermark)

    def delete(self, namespace: str, ids: Iterable[str], *, watermark: str | None = None) -> int:
        """Remove those memories that are there, and store a watermark, in one transaction; return how many were removed."""
        with self._transaction():
            number = self._namespaces.number(namespace)
            old = list(self._memories.stored(number, ids).values())
            numbers = [memory.number for memory in old]
            if old:
                self._terms.remove(number, [(memory.number, memory.indexed) for memory in old])
                self._metadata.remove(number, [(memory.number, memory.metadata or {}) for memory in old])
                self._vectors.remove(number, numbers)
                self._codes.remove(numbers)
                self._memories.remove(numbers)
                self._order.removed(number, numbers)
                self._namespaces.count_in(number, -len(old), -sum(memory.words for memory in old))
            if watermark is not None:
                self._namespaces.mark(namespace, watermark)
        return len(old)

    def delete_namespace(self, namespace: str) -> None:
        """Remove a namespace with its memories and its watermark."""
        with self._transaction():
            number = self._namespaces.number(namespace)
            if number:
                self._drop(number)

    def clear(self) -> None:
        """Remove all namespaces."""
        with self._transaction():
            for (number,) in self._connection.execute("SELECT number FROM namespaces").fetchall():
                self._drop(number)

    # -- searching -----------------------------------------------------------------------------------------------------

    def filter(self, namespace: str, where: Where | None, now: float) -> RowFilter:
        """Return which rows may be returned: those that pass a filter, and have not expired.

        Args:
            namespace: The namespace.
            where: One of Chroma's filters over metadata, or None.
            now: The time, in seconds since 1970.
        """
        import numpy as np

        number = self._namespaces.number(namespace)
        nothing = np.empty(0, dtype=np.int64)
        if not number:
            return RowFilter(nothing, nothing)
        next_expiry = self._namespaces.summary(number).next_expiry
        expired = (
            self._memories.expired(number, now) if next_expiry is not None and next_expiry <= now else nothing
        )
        if not where:
            return RowFilter(None, expired)
        passing = self._metadata.matching(number, where)
        return RowFilter(
            np.setdiff1d(passing, expired, assume_unique=True) if len(expired) else passing, nothing
        )

    def matching(self, namespace: str, where: Where | None) -> NDArray[np.int64]:
        """Return the rows that pass one of Chroma's filters, whether they have expired or not; all for None."""
        number = self._namespaces.number(namespace)
        return self._metadata.matching(number, where) if where else self._metadata.everything(number)

    def search(
        self,
        namespace: str,
        query: str,
        limit: int,
        *,
        pool: int | None = None,
        also: NDArray[np.int64] | None = None,
        keep: RowFilter | None = None,
        window: int = WINDOW,
        now: float | None = None,
    ) -> TextHits:
        """Find the memories that cover a query, by themselves or with their neighbours.

        Args:
            namespace: The namespace.
            query: Any text; nothing in it is taken for an operator.
            limit: The most hits to return, at least 1, beside those of ``also``.
            pool: The number of memories, those that hold most of the query, that are looked at with their neighbours; twice the
                limit, when not given.
            also: Rows to score in any case, such as the nearest by vector.
            keep: Which rows may be returned; the others still lend them their terms. None for all.
            window: The distance in a thread over which memories lend their terms to each other; 0 looks at each memory alone.
            now: The moment from which the query speaks of "yesterday", in seconds since 1970; the present, when not given.

        Returns:
            The hits, best first; of equal ones the newest first. One of ``also`` that covers nothing has score 0. Which they
            are is decided before their length counts. A query without words finds nothing.
        """
        import numpy as np

        nothing = np.empty(0, dtype=np.int64)
        asked = TextQuery(
            namespace,
            query,
            limit,
            2 * limit if pool is None else pool,
            nothing if also is None else also,
            RowFilter(None, nothing) if keep is None else keep,
        )
        (hits,) = self.search_together([asked], window=window, now=now)
        best = np.argsort(hits.scores, kind="stable")[::-1]
        return TextHits(hits.rows[best], hits.scores[best], hits.own[best])

    def search_together(
        self, queries: Sequence[TextQuery], *, window: int = WINDOW, now: float | None = None
    ) -> list[TextHits]:
        """Answer several queries, each as :meth:`search` does, in a fraction of the time; the hits of each ascend by row."""
        import numpy as np

        moment = time.time() if now is None else now
        nothing = TextHits(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))
        found = [nothing] * len(queries)
        searches: dict[int, TextSearch] = {}
        for at, one in enumerate(queries):
            number = self._namespaces.number(one.namespace)
            summary = self._namespaces.summary(number)
            terms = []
            if number:
                terms = terms_of(self._connection, self._terms, number, summary, one.query, moment)
            if terms:
                searches[at] = TextSearch(number, summary, terms, one.limit, one.pool, one.also, one.keep)
        if searches:
            together = search_together(self._order, list(searches.values()), window)
            for at, hits in zip(searches, together, strict=True):
                found[at] = hits
        return found

    def compared(self, namespace: str, queries: NDArray[np.float32], keep: RowFilter) -> Compared | None:
        """Compare rows that may be returned with each query (a row of length 1), one by one; see ``VectorTable``."""
        number = self._namespaces.number(namespace)
        return self._vectors.compared(number, queries, keep, lambda: self._metadata.everything(number))

    def distances(
        self, namespace: str, queries: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the cosine distances of rows (columns) from queries (rows of length 1); NaN where they are not known."""
        return self._vectors.distances(self._namespaces.number(namespace), queries, rows)

    def token_coverage(
        self,
        namespace: str,
        states: NDArray[np.float32],
        rows: NDArray[np.int64],
        others: NDArray[np.float64],
        most: int,
    ) -> NDArray[np.float64] | None:
        """Return how well rows and their surroundings hold the tokens of a question; see ``CodeTable.coverage``."""
        number = self._namespaces.number(namespace)
        window = codes.WINDOW if self._namespaces.summary(number).has_threads else 0
        self._order.load([number])
        around = self._order.around(rows, window)
        return self._codes.coverage(states, rows, around, others, most)

    def set_codes(self, namespace: str, made: Mapping[str, bytes]) -> None:
        """Store the codes of memories that are there, by their ids; not where the vector is no longer that of the code."""
        import numpy as np

        with self._transaction():
            numbers = self._memories.numbers(self._namespaces.number(namespace), made)
            by_row = {number: made[id] for id, number in numbers.items()}
            rows, vectors = self._vectors.read(np.array(list(by_row), dtype=np.int64))
            self._codes.complete(
                [(row, vector, by_row[row]) for row, vector in zip(rows.tolist(), vectors, strict=True)]
            )

    # -- reading -------------------------------------------------------------------------------------------------------

    def without_code(self, namespace: str) -> list[str]:
        """Return the ids of the memories that have no code of their tokens."""
        return list(self.ids_of(self._codes.without(self._namespaces.number(namespace)).tolist()).values())

    def texts_under(self, namespace: str, key: str) -> list[str]:
        """Return the texts that the memories have under a key of their metadata, each once."""
        return self._metadata.texts(self._namespaces.number(namespace), key)

    def greatest(self, namespace: str, key: str, limit: int) -> NDArray[np.int64]:
        """Return the rows that have the greatest floats under a key of their metadata, the greatest first."""
        return self._metadata.greatest(self._namespaces.number(namespace), key, limit)

    def rows(self, namespace: str, ids: Iterable[str]) -> dict[str, int]:
        """Return the rows of ids; those that are not there are left out."""
        return self._memories.numbers(self._namespaces.number(namespace), ids)

    def read(self, rows: Iterable[int]) -> dict[int, tuple[str, str, Metadata]]:
        """Return id, text and metadata of rows; see ``MemoryTable``."""
        return self._memories.read(rows)

    def ids_of(self, rows: Iterable[int]) -> dict[int, str]:
        """Return the ids of rows."""
        return self._memories.ids(rows)

    def neighbours(self, namespace: str, rows: Iterable[int], window: int) -> list[tuple[int, int, int]]:
        """Return what stands up to ``window`` positions before or behind rows in their threads: row, neighbour, offset."""
        import numpy as np

        asked = np.array(list(rows), dtype=np.int64)
        self._order.load([self._namespaces.number(namespace)])
        offsets = [*range(-window, 0), *range(1, window + 1)]
        return [
            (row, neighbour, offset)
            for row, near in zip(asked.tolist(), self._order.around(asked, window).tolist(), strict=True)
            for offset, neighbour in zip(offsets, near, strict=True)
            if neighbour
        ]

    def last_position(self, namespace: str, thread: str) -> float:
        """Return the last position of a thread; 0 where it has no memory."""
        return self._memories.last_position(self._namespaces.number(namespace), thread)

    def vectors(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the rows that have a vector, in order, with the vectors as they were written."""
        return self._vectors.read(rows)

    def vector_pages(self, namespace: str) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Return all vectors of a namespace, page by page, with the ids of their memories."""
        return self._vectors.pages(self._namespaces.number(namespace))

    def page(self, namespace: str, keep: RowFilter, now: float, page: ListPage) -> list[int]:
        """Return the rows of a page of a list, without what has expired by ``now`` (seconds since 1970)."""
        return self._memories.page(self._namespaces.number(namespace), keep.allowed, now, page)

    def count(self, namespace: str) -> int:
        """Return how many memories of a namespace are indexed."""
        return self._namespaces.summary(self._namespaces.number(namespace)).memories

    def namespaces(self) -> list[str]:
        """Return the names of the namespaces that have been written."""
        return self._namespaces.names()

    def ids(self, namespace: str) -> set[str]:
        """Return the ids of all indexed memories of a namespace."""
        return self._memories.all_ids(self._namespaces.number(namespace))

    # -- following Chroma ----------------------------------------------------------------------------------------------

    def watermark(self, namespace: str) -> str | None:
        """Return what ``set_watermark`` stored last, or None."""
        return self._namespaces.watermark(namespace)

    def watermarks(self) -> dict[str, str]:
        """Return the watermarks of all namespaces that have one."""
        return self._namespaces.watermarks()

    def sync(self) -> None:
        """Have all that was written on the disk; otherwise SQLite chooses the time."""
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def tidy(self, namespace: str) -> None:
        """Leave nothing in the file of what was removed or changed in a namespace."""
        self._terms.tidy(self._namespaces.number(namespace))
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def set_watermark(self, namespace: str, watermark: str) -> None:
        """Store how far a namespace follows Chroma, as its owner puts it; it is made when it does not exist."""
        with self._transaction():
            self._number_made(namespace)
            self._namespaces.mark(namespace, watermark)

    # -- inside --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._namespaces.changed()
        try:
            with transaction(self._connection):
                yield
        except BaseException:
            self._namespaces.rolled_back()
            self._metadata.rolled_back()
            self._vectors.rolled_back()
            self._order.forget_all()
            raise

    def _number_made(self, namespace: str) -> int:
        """Return the number of a namespace, which is made when it does not exist."""
        number = self._namespaces.number(namespace)
        if not number:
            number = self._namespaces.make(namespace)
            self._terms.create(number)
        return number

    def _write(self, namespace: int, rows: Sequence[IndexedText]) -> None:
        """Write rows whose ids are all different, table by table: one statement for all of them, not some for each."""
        old = self._memories.stored(namespace, [row.id for row in rows])
        number, words_added = self._memories.next_number(), 0
        written, terms, forgotten, metadata = [], [], [], []
        for row in rows:
            indexed = indexed_form(row.text)
            words = len(indexed.split())
            document, stored_metadata = readable(row, indexed)
            known = old.get(row.id)
            at = number if known is None else known.number
            number += known is None
            written.append((at, row, indexed, words, document, stored_metadata))
            words_added += words - (0 if known is None else known.words)
            if known is None or known.indexed != indexed:
                terms.append((at, indexed))
                if known is not None:
                    forgotten.append((at, known.indexed))
            kept = row.metadata or {} if stored_metadata is not None else {}
            if known is None or known.metadata != kept:
                metadata.append((at, kept, None if known is None else known.metadata or {}))
        self._terms.remove(namespace, forgotten)
        self._terms.add(namespace, terms)
        if replaced := [(at, before) for at, _, before in metadata if before is not None]:
            self._metadata.remove(namespace, replaced)
        self._metadata.add(namespace, [(at, after) for at, after, _ in metadata])
        with_vector = [(entry[0], entry[1].vector) for entry in written if entry[1].vector is not None]
        self._vectors.write(namespace, [at for at, _ in with_vector], [vector for _, vector in with_vector])
        self._codes.write([(entry[0], entry[1].vector, entry[1].code) for entry in written])
        self._memories.write(namespace, written)
        self._order.written(namespace, [entry[0] for entry in written], [entry[3] for entry in written])
        self._namespaces.count_in(namespace, len(rows) - len(old), words_added)

    def _drop(self, number: int) -> None:
        for table in (self._vectors, self._codes, self._metadata, self._terms):
            table.drop(number)
        self._order.forget(number)
        self._connection.execute("DELETE FROM memories WHERE namespace = ?", (number,))
        self._namespaces.drop(number)
