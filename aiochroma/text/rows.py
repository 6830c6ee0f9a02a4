"""Rows of the index: many read in one step, sets of their numbers, and what is kept of them in memory.

Python's ``sqlite3`` releases the interpreter at every step to the next row. Beside a thread that is busy with Python it takes up
to 5 ms (``sys.getswitchinterval``) to get it back each time: reading fifty rows took 670 ms beside a busy event loop, and 30 ms
as one value. So SQLite joins all rows into one value, which JSON takes apart.
"""

from __future__ import annotations

import json
import sqlite3
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Order",
    "RowCache",
    "RowFilter",
    "TextQuery",
    "among",
    "distinct",
    "found_at",
    "read_numbers",
    "read_rows",
]

_MOST_BYTES_KEPT = 8_000_000
_ENTRY_BYTES = 300
"""The bytes that an entry takes beside its numbers: its key, its entry in the dictionary, the head of the array."""
_MOST_ABSENT = 4096
"""The words of two hundred questions that twenty namespaces do not have; some 1 MB."""
_SPARE = 1.5
_HIGHEST = 1 << 26
"""A row with a higher number is damage: SQLite gives the next one, and what is kept takes 20 bytes for each up to the highest."""
_DENSE = 16
"""Numbers up to so many times as high as there are of them are marked instead of sorted: 15 us instead of 35 for 1,800."""
_BESIDE = ", ".join(
    "COALESCE((SELECT n.number FROM memories AS n WHERE n.namespace = m.namespace AND n.thread = m.thread"  # noqa: S608
    f" AND (n.position, n.number) {compares} (m.position, m.number)"
    f" ORDER BY n.position {order}, n.number {order} LIMIT 1), 0)"
    for compares, order in (("<", "DESC"), (">", "ASC"))
)
"""The subqueries for the rows right before and right behind the row ``m`` in its thread; 0 for none."""


def read_rows(
    connection: sqlite3.Connection, columns: str, source: str, parameters: Sequence[object]
) -> list[list[Any]]:
    """Read rows of texts, integers and NULL; fractions would lose digits.

    Args:
        connection: An open connection.
        columns: SQL: the columns, separated by commas.
        source: SQL: what stands behind FROM.
        parameters: The values of its placeholders.

    Returns:
        The rows in SQLite's order.

    Raises:
        sqlite3.Error: SQLite could not read them.
    """
    found = connection.execute(
        f"SELECT json_group_array(json_array({columns})) FROM {source}",  # noqa: S608 - of this package's own texts
        parameters,
    ).fetchone()[0]
    rows: list[list[Any]] = json.loads(found)
    return rows


def read_numbers(
    connection: sqlite3.Connection, column: str, source: str, parameters: Sequence[object]
) -> NDArray[np.int64]:
    """Read a column of integers, in SQLite's order; arguments as :func:`read_rows`."""
    import numpy as np

    # One string instead of thousands of tuples: a quarter of the time.
    found = connection.execute(f"SELECT group_concat({column}) FROM {source}", parameters).fetchone()[0]  # noqa: S608
    return np.fromstring(found, dtype=np.int64, sep=",") if found else np.empty(0, dtype=np.int64)


class RowFilter(NamedTuple):
    """Which rows of a namespace may be returned.

    Attributes:
        allowed: Only these rows may be returned, ascending; None for all.
        excluded: Rows that may not be returned, ascending; empty where ``allowed`` is given.
    """

    allowed: NDArray[np.int64] | None
    excluded: NDArray[np.int64]

    def keeps(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell for each row whether it may be returned."""
        import numpy as np

        if self.allowed is not None:
            return among(rows, self.allowed)
        return ~among(rows, self.excluded) if len(self.excluded) else np.ones(len(rows), dtype=bool)


def among(rows: NDArray[np.int64], found: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which rows are found, where ``found`` ascends; several times as fast as ``numpy.isin``."""
    import numpy as np

    if len(found) == 0:
        return np.zeros(len(rows), dtype=bool)
    at = np.minimum(np.searchsorted(found, rows), len(found) - 1)
    held: NDArray[np.bool_] = found[at] == rows
    return held


def distinct(*rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of arrays of any shape, ascending, each once; in a fraction of ``numpy.unique``'s time, which hashes."""
    import numpy as np

    joined = np.concatenate([some.ravel(order="K") for some in rows])
    if len(joined) and (highest := int(joined.max())) < _DENSE * len(joined) and int(joined.min()) >= 0:
        marks = np.zeros(highest + 1, dtype=bool)
        marks[joined] = True
        return marks.nonzero()[0]
    joined.sort()
    differs = np.ones(len(joined), dtype=bool)
    np.not_equal(joined[1:], joined[:-1], out=differs[1:])
    return joined[differs]


def found_at(numbers: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where numbers stand, all of which are among ``numbers``, which ascend and are not negative."""
    import numpy as np

    if wanted.size and (room := int(numbers[-1]) + 1) < _DENSE * wanted.size:
        places = np.empty(room, dtype=np.int64)
        places[numbers] = np.arange(len(numbers))
        return places[wanted]
    return numbers.searchsorted(wanted)


class _Version(NamedTuple):
    """The version of a namespace: how often its rows have changed.

    Attributes:
        replaced: How often rows of it were taken out or changed.
        grown: How often rows were added behind all others.
    """

    replaced: int = 0
    grown: int = 0


_FIRST = _Version()


class TextQuery(NamedTuple):
    """A query of one namespace; see ``TextIndex.search`` for what each means.

    Attributes:
        namespace: The namespace.
        query: A text.
        limit: The most hits.
        pool: The number of memories that are looked at with their neighbours.
        also: Rows to score in any case.
        keep: Which rows may be returned.
    """

    namespace: str
    query: str
    limit: int
    pool: int
    also: NDArray[np.int64]
    keep: RowFilter


class RowCache:
    """Remembers which rows have a term or pass a filter, and completes that when their namespace has grown.

    Queries that are asked together share most of their terms and their filters, and reading the rows of a common one is the
    larger share of a search (1 ms for a term that 10,000 texts hold).

    Args:
        read: Reads the rows that have it, ascending: ``read(namespace, what, behind)``, where only rows behind a row count.
    """

    def __init__(self, read: Callable[[int, Any, int], NDArray[np.int64]]) -> None:
        self._read = read
        self._kept: OrderedDict[tuple[int, Hashable], tuple[_Version, NDArray[np.int64]]] = OrderedDict()
        self._absent: OrderedDict[tuple[int, Hashable], _Version] = OrderedDict()
        """What no row had when its namespace was at some version: the words that questions are made of, asked each time."""
        self._versions: dict[int, _Version] = {}
        self._bytes = 0

    def rows(self, namespace: int, what: Hashable) -> NDArray[np.int64]:
        """Return the rows that have a term or pass a filter (``what``), ascending; the caller must not change them."""
        import numpy as np

        key, now = (namespace, what), self._versions.get(namespace, _FIRST)
        known = self._kept.get(key)
        if known is not None and known[0] == now:
            self._kept.move_to_end(key)
            return known[1]
        if self._absent.get(key) == now:
            self._absent.move_to_end(key)
            return np.empty(0, dtype=np.int64)
        version, kept = self._kept.pop(key, (None, None))
        if kept is not None:
            self._bytes -= kept.nbytes + _ENTRY_BYTES
        if kept is None or version is None or version.replaced != now.replaced:
            kept = self._read(namespace, what, 0)
        elif version != now:
            # SQLite gives a new row a number above all others, so what was added stands behind what is known.
            more = self._read(namespace, what, int(kept[-1]) if len(kept) else 0)
            kept = np.concatenate([kept, more]) if len(more) else kept
        if not len(kept):
            # Few of these: questions bring new words all the time.
            self._absent[key] = now
            if len(self._absent) > _MOST_ABSENT:
                self._absent.popitem(last=False)
            return kept
        self._kept[key] = (now, kept)
        self._bytes += kept.nbytes + _ENTRY_BYTES
        while self._bytes > _MOST_BYTES_KEPT and len(self._kept) > 1:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes + _ENTRY_BYTES
        return kept

    def replaced(self, namespace: int) -> None:
        """Note that rows of a namespace were taken out or changed."""
        version = self._versions.get(namespace, _FIRST)
        self._versions[namespace] = version._replace(replaced=version.replaced + 1)

    def grown(self, namespace: int) -> None:
        """Note that rows were added to a namespace."""
        version = self._versions.get(namespace, _FIRST)
        self._versions[namespace] = version._replace(grown=version.grown + 1)


class Order:
    """Knows which memories stand beside each other, and how many words each has, for the namespaces that were searched.

    A search looks at the neighbours of some hundred memories. Asking SQLite for them took longer than all the rest of the search
    (1.5 ms of CPU time of 4 at 10,000 memories). So the rows before and behind each row are kept in arrays in memory, indexed by
    row number, 20 bytes for each row: one look-up goes a step along the threads of many rows.

    Args:
        connection: The index's own.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.forget_all()

    def forget_all(self) -> None:
        """Read everything again when it is needed."""
        import numpy as np

        self._known: dict[int, tuple[int, int]] = {}
        """The namespaces that were read, and the lowest and the highest number that a row of each has had."""
        # No row has the number 0: it stands for nothing, and nothing stands beside it.
        self._before = np.zeros(1, dtype=np.int64)
        self._behind = np.zeros(1, dtype=np.int64)
        self._words = np.zeros(1, dtype=np.int32)

    def forget(self, namespace: int) -> None:
        """Forget a namespace, before its rows are deleted: other rows may get their numbers afterwards."""
        if namespace in self._known:
            del self._known[namespace]
            rows = read_numbers(self._connection, "number", "memories WHERE namespace = ?", (namespace,))
            self._before[rows] = self._behind[rows] = 0

    def load(self, namespaces: Iterable[int]) -> None:
        """Read namespaces, where that was not done; what is asked of their rows comes from memory then."""
        for namespace in namespaces:
            self._load(namespace)

    def around(self, rows: NDArray[np.int64], window: int) -> NDArray[np.int64]:
        """Return the rows near rows of namespaces that were loaded; 0 where there is none.

        Args:
            rows: Some rows.
            window: How far to look.

        Returns:
            A line for each row, with the rows from ``window`` before it to ``window`` behind it.
        """
        import numpy as np

        near = np.empty((2 * window, len(rows)), dtype=np.int64)
        before = behind = rows
        for distance in range(window):
            before, behind = self._before[before], self._behind[behind]
            near[window - 1 - distance], near[window + distance] = before, behind
        lines: NDArray[np.int64] = near.T
        return lines

    def span(self, namespace: int) -> tuple[int, int]:
        """Return the lowest and the highest number that a row of a namespace that was loaded has, or has had."""
        lowest, highest = self._known[namespace]
        return (lowest, highest) if highest else (0, 0)

    def words(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return how many words rows of namespaces that were loaded have."""
        words: NDArray[np.int32] = self._words[rows]
        return words

    def written(self, namespace: int, numbers: Sequence[int], words: Sequence[int]) -> None:
        """Note rows that were written, which may have stood elsewhere."""
        import numpy as np

        if namespace not in self._known or not numbers:
            return
        rows = np.array(numbers, dtype=np.int64)
        lowest, highest = self._known[namespace]
        self._known[namespace] = (min(lowest, int(rows.min())), max(highest, int(rows.max())))
        self._make_room(int(rows.max()))
        self._take_out(rows)
        self._words[rows] = words
        # Of two rows that have become neighbours at least one was written now, so looking up these is enough.
        found = np.array(
            read_rows(
                self._connection,
                f"m.number, {_BESIDE}",
                "json_each(?) AS given CROSS JOIN memories AS m ON m.number = given.value",
                (f"[{','.join(map(str, numbers))}]",),
            ),
            dtype=np.int64,
        )
        placed, before, behind = found.T
        self._before[placed], self._behind[placed] = before, behind
        self._behind[before], self._before[behind] = placed, placed
        self._before[0] = self._behind[0] = 0

    def removed(self, namespace: int, numbers: Sequence[int]) -> None:
        """Note rows that are gone."""
        import numpy as np

        if namespace in self._known:
            self._take_out(np.array(numbers, dtype=np.int64))

    def _take_out(self, rows: NDArray[np.int64]) -> None:
        for row in rows[(self._before[rows] > 0) | (self._behind[rows] > 0)].tolist():
            before, behind = self._before[row], self._behind[row]
            self._behind[before], self._before[behind] = behind, before
        self._before[rows] = self._behind[rows] = 0
        self._before[0] = self._behind[0] = 0

    def _load(self, namespace: int) -> None:
        """Read a namespace, if that was not done."""
        import numpy as np

        if namespace in self._known:
            return
        numbers, words = self._connection.execute(
            "SELECT group_concat(number), group_concat(words) FROM memories WHERE namespace = ?", (namespace,)
        ).fetchone()
        # Two walks along the index of threads: telling where each begins row by row took six times as long.
        threads = "FROM memories WHERE namespace = ? AND thread IS NOT NULL"
        placed = read_numbers(
            self._connection,
            "number",
            f"(SELECT number {threads} ORDER BY thread, position, number)",
            (namespace,),
        )
        sizes = read_numbers(
            self._connection,
            "size",
            f"(SELECT count(*) AS size {threads} GROUP BY thread ORDER BY thread)",
            (namespace,),
        )
        if not numbers:
            self._known[namespace] = (_HIGHEST, 0)
            return
        rows = np.fromstring(numbers, dtype=np.int64, sep=",")
        if not 0 < rows.min() <= rows.max() <= _HIGHEST:
            raise sqlite3.DatabaseError(
                "the full-text index is damaged: a memory has a number that none is given"
            )
        self._known[namespace] = (int(rows.min()), int(rows.max()))
        self._make_room(int(rows.max()))
        self._words[rows] = np.fromstring(words, dtype=np.int32, sep=",")
        self._before[rows] = self._behind[rows] = 0
        # With a 0 before the first row of each thread, nothing stands before it and behind the last row of the thread before.
        chain = np.insert(placed, np.cumsum(sizes) - sizes, 0)
        self._before[chain[1:]] = chain[:-1]
        self._behind[chain[:-1]] = chain[1:]
        self._before[0] = self._behind[0] = 0

    def _make_room(self, highest: int) -> None:
        import numpy as np

        more = highest + 1 - len(self._words)
        if more > 0:
            more = max(more, int((_SPARE - 1.0) * len(self._words)))
            self._before, self._behind = (
                np.concatenate([one, np.zeros(more, dtype=np.int64)]) for one in (self._before, self._behind)
            )
            self._words = np.concatenate([self._words, np.zeros(more, dtype=np.int32)])
