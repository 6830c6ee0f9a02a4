"""Many rows in one step, and sets of row numbers.

Python's ``sqlite3`` lets go of the interpreter at every step to the next row, and beside a thread that is busy with Python each
time it takes up to 5 ms (``sys.getswitchinterval``) to get it back: fifty rows took 670 ms beside a busy event loop, and 30 ms
as one. So rows come as one value, which JSON takes apart.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Hashable, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RowCache", "RowFilter", "Rows", "distinct", "read_numbers", "read_rows"]

_MOST_BYTES_KEPT = 8_000_000
_ENTRY_BYTES = 300
"""What an entry takes beside its numbers: its key, its place in the dictionary, the array's own head."""


def read_rows(
    connection: sqlite3.Connection, columns: str, source: str, parameters: Sequence[Any]
) -> list[list[Any]]:
    """Read rows of texts, integers and NULL; fractions would lose digits.

    Args:
        connection: An open connection.
        columns: SQL: the columns, separated by commas.
        source: SQL: what stands behind FROM.
        parameters: What its placeholders stand for.

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
    connection: sqlite3.Connection, column: str, source: str, parameters: Sequence[Any]
) -> NDArray[np.int64]:
    """Read a column of integers, in SQLite's order; arguments as :func:`read_rows`."""
    import numpy as np

    # One string instead of thousands of tuples: a quarter of the time.
    found = connection.execute(f"SELECT group_concat({column}) FROM {source}", parameters).fetchone()[0]  # noqa: S608
    return np.fromstring(found, dtype=np.int64, sep=",") if found else np.empty(0, dtype=np.int64)


class RowFilter(NamedTuple):
    """Which rows of a namespace may be returned.

    Attributes:
        allowed: Only these, ascending; None for all.
        excluded: But not these, ascending; empty where ``allowed`` says everything.
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
    """Return the numbers of arrays of any shape, ascending, each once; in a third of ``numpy.unique``'s time, which hashes."""
    import numpy as np

    joined = np.concatenate([some.ravel() for some in rows])
    joined.sort()
    differs = np.ones(len(joined), dtype=bool)
    np.not_equal(joined[1:], joined[:-1], out=differs[1:])
    return joined[differs]


class Rows(NamedTuple):
    """What a namespace was like when rows were looked up.

    Attributes:
        replaced: How often rows of it were taken out or changed.
        grown: How often rows were added behind all others.
    """

    replaced: int = 0
    grown: int = 0


class RowCache:
    """Which rows have something; those looked up last are kept, and completed when their namespace has grown.

    Queries that are asked together share most of their terms and their filters, and reading the rows of a common one is the
    larger part of a search (1 ms for a term that 10,000 texts hold).

    Args:
        read: Reads the rows of a namespace that have something and stand behind a row, ascending.
    """

    def __init__(self, read: Callable[[int, Any, int], NDArray[np.int64]]) -> None:
        self._read = read
        self._kept: OrderedDict[tuple[int, Hashable], tuple[Rows, NDArray[np.int64]]] = OrderedDict()
        self._versions: dict[int, Rows] = {}
        self._bytes = 0

    def rows(self, namespace: int, what: Hashable) -> NDArray[np.int64]:
        """Return the rows that have something, ascending; not to be changed."""
        import numpy as np

        key, now = (namespace, what), self._versions.get(namespace, Rows())
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
            # Whoever asks brings new words all the time, and that nothing has them is found at once.
            return kept
        self._kept[key] = (now, kept)
        self._bytes += kept.nbytes + _ENTRY_BYTES
        while self._bytes > _MOST_BYTES_KEPT and len(self._kept) > 1:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes + _ENTRY_BYTES
        return kept

    def replaced(self, namespace: int) -> None:
        """Note that rows of a namespace were taken out or have other things now."""
        version = self._versions.get(namespace, Rows())
        self._versions[namespace] = version._replace(replaced=version.replaced + 1)

    def grown(self, namespace: int) -> None:
        """Note that rows were added to a namespace."""
        version = self._versions.get(namespace, Rows())
        self._versions[namespace] = version._replace(grown=version.grown + 1)
