"""The vectors of the memories: kept in the index's file, and searched exactly.

Chroma's index is approximate and looks at all of a namespace; this one takes any set of rows. Vectors that were looked at last
stay in memory, all of a small namespace and those asked for of a large one.
"""

from __future__ import annotations

import json
import sqlite3
from collections import OrderedDict
from typing import TYPE_CHECKING

from aiochroma._types import Vector
from aiochroma.text.rows import among, read_numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.text.rows import RowFilter

__all__ = ["EXACT_ROWS", "Compared", "VectorTable", "directions"]

EXACT_ROWS = 16_000
"""Up to this many vectors are compared one by one; of more, Chroma's index is asked.

Measured in one process with 256 dimensions, one query, best 50, CPU ms of comparing and of Chroma's index with the look-up of
its ids: 1,000 vectors 0.15 and 1.06, 3,000 0.5 and 2.1, 6,000 0.9 and 2.3, 10,000 1.4 and 2.2, 15,000 2.1 and 2.5. What is
compared needs no second look for a filter, which costs Chroma 10 to 100 ms.
"""

_PAGE = 4096
_SPARE = 1.5
_SAMPLED = 16
"""Every sixteenth distance is a sample of all."""
_BLOCK = 200_000
"""Numbers multiplied at once."""


def directions(vectors: Sequence[Vector]) -> NDArray[np.float32] | None:
    """Return vectors as rows of length 1; None where there are none."""
    import numpy as np

    if vectors[0] is None:
        return None
    return _of_length_1(np.asarray(vectors, dtype=np.float32))


class VectorTable:
    """The vectors of all namespaces.

    Args:
        connection: The index's own; the caller holds the transaction.
        cache_bytes: How much may stay in memory.
    """

    def __init__(self, connection: sqlite3.Connection, cache_bytes: int) -> None:
        self._connection = connection
        self._cache_bytes = cache_bytes
        self._loaded: OrderedDict[int, _Loaded] = OrderedDict()

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, namespace: int, numbers: Sequence[int], vectors: Sequence[Vector]) -> None:
        """Store the vectors of rows, which may have had others; all have one length."""
        import numpy as np

        if not numbers:
            return
        matrix = np.asarray(vectors, dtype="<f4")
        if matrix.ndim != 2 or matrix.shape[1] == 0:
            return
        self._connection.execute(
            "INSERT OR REPLACE INTO vectors SELECT value, substr(?2, 1 + key * ?3, ?3) FROM json_each(?1)",
            (json.dumps(list(numbers)), matrix.tobytes(), 4 * matrix.shape[1]),
        )
        loaded = self._loaded.get(namespace)
        if loaded is not None and not loaded.put(np.asarray(numbers, dtype=np.int64), matrix):
            del self._loaded[namespace]

    def remove(self, namespace: int, numbers: Sequence[int]) -> None:
        """Remove the vectors of rows."""
        import numpy as np

        self._connection.execute(
            "DELETE FROM vectors WHERE number IN (SELECT value FROM json_each(?))",
            (json.dumps(list(numbers)),),
        )
        if namespace in self._loaded:
            self._loaded[namespace].drop(np.asarray(numbers, dtype=np.int64))

    def drop(self, namespace: int) -> None:
        """Remove all vectors of a namespace whose rows are still there."""
        self._connection.execute(
            "DELETE FROM vectors WHERE number IN (SELECT number FROM memories WHERE namespace = ?)",
            (namespace,),
        )
        self._loaded.pop(namespace, None)

    def rolled_back(self) -> None:
        """Forget what is in memory: a transaction that wrote vectors did not happen."""
        self._loaded.clear()

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the rows that have a vector, in order, with the vectors as they were stored."""
        import numpy as np

        source = "(SELECT v.number, v.vector FROM json_each(?) AS w CROSS JOIN vectors AS v ON v.number = w.value ORDER BY w.key)"
        found, joined, longest = self._connection.execute(
            f"SELECT group_concat(number), CAST(group_concat(vector, '') AS BLOB), max(length(vector)) FROM {source}",  # noqa: S608
            (json.dumps(rows.tolist()),),
        ).fetchone()
        if not found:
            return np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32)
        numbers = np.fromstring(found, dtype=np.int64, sep=",")
        if len(joined or b"") != len(numbers) * (longest or 0) or (longest or 0) % 4:
            raise sqlite3.DatabaseError("the vectors are damaged: they have different lengths")
        matrix = np.frombuffer(joined, dtype="<f4").reshape(len(numbers), -1)
        return numbers, matrix

    def pages(self, namespace: int) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Return all vectors of a namespace, page by page, with the ids of their memories."""
        last = 0
        while True:
            numbers = read_numbers(
                self._connection,
                "number",
                "(SELECT number FROM memories WHERE namespace = ? AND number > ? ORDER BY number LIMIT ?)",
                (namespace, last, _PAGE),
            )
            if not len(numbers):
                return
            last = int(numbers[-1])
            with_vector, matrix = self.read(numbers)
            ids = self._connection.execute(
                "SELECT json_group_array(id) FROM (SELECT m.id FROM json_each(?) AS w CROSS JOIN memories AS m"
                " ON m.number = w.value ORDER BY w.key)",
                (json.dumps(with_vector.tolist()),),
            ).fetchone()[0]
            yield json.loads(ids), matrix

    def distances(
        self, namespace: int, queries: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the cosine distances of rows (columns) from queries (rows); NaN where there is no vector of that length."""
        import numpy as np

        found = np.full((len(queries), len(rows)), np.nan)
        loaded = self._with(namespace, rows)
        if loaded is not None and loaded.dimensions == queries.shape[1]:
            there, at = loaded.positions(rows)
            found[:, there] = _distances(queries, loaded.matrix[at])
        return found

    def compared(
        self,
        namespace: int,
        queries: NDArray[np.float32],
        keep: RowFilter,
        everything: Callable[[], NDArray[np.int64]],
    ) -> Compared | None:
        """Compare rows with queries, one by one.

        Args:
            namespace: The namespace.
            queries: Vectors of length 1.
            keep: Which rows may be returned; at least these are compared.
            everything: Returns all rows of the namespace, ascending.

        Returns:
            None where the vectors are not as long as the queries: Chroma says what is wrong.
        """
        import numpy as np

        rows = keep.allowed
        loaded = self._loaded.get(namespace)
        if rows is None and (loaded is None or not loaded.is_complete):
            rows = everything()
        if rows is not None:
            loaded = self._with(namespace, rows)
        elif loaded is not None:
            self._loaded.move_to_end(namespace)
        if loaded is None:
            return Compared(np.empty(0, dtype=np.int64), np.empty((len(queries), 0), dtype=np.float32))
        if loaded.dimensions != queries.shape[1]:
            return None
        loaded.is_complete = loaded.is_complete or keep.allowed is None
        if keep.allowed is None or (loaded.is_complete and 2 * len(keep.allowed) > loaded.used):
            # Picking a vector out takes twice as long as multiplying it.
            numbers, matrix = loaded.numbers[: loaded.used], loaded.matrix[: loaded.used]
            hides = keep.allowed is not None or len(keep.excluded) > 0 or loaded.count < loaded.used
            hidden = (numbers < 0) | ~keep.keeps(numbers) if hides else None
            return Compared(numbers, _distances(queries, matrix), hidden, loaded.positions)
        there, at = loaded.positions(keep.allowed)
        return Compared(keep.allowed[there], _distances(queries, loaded.matrix[at]))

    @property
    def loaded_bytes(self) -> int:
        """How many bytes the vectors in memory take."""
        return sum(one.matrix.nbytes for one in self._loaded.values())

    def _with(self, namespace: int, rows: NDArray[np.int64]) -> _Loaded | None:
        """Return what is in memory of a namespace, after the vectors of some rows were read into it."""
        loaded = self._loaded.get(namespace)
        missing = rows if loaded is None else rows[~loaded.knows(rows)]
        for start in range(0, len(missing), _PAGE):
            asked = missing[start : start + _PAGE]
            numbers, matrix = self.read(asked)
            if loaded is None:
                loaded = _Loaded(matrix.shape[1], len(missing))
            if not loaded.put(numbers, matrix):
                self._loaded.pop(namespace, None)
                return None
            loaded.lacking(asked, numbers)
        if loaded is None or not loaded.dimensions:
            return None
        self._loaded[namespace] = loaded
        self._loaded.move_to_end(namespace)
        while self._loaded and self.loaded_bytes > self._cache_bytes:
            self._loaded.popitem(last=False)  # What is being searched is held by its caller.
        return loaded


class Compared:
    """Rows of a namespace with their cosine distances from queries.

    Args:
        numbers: The rows.
        distances: A row for each query, a column for each of them.
        hidden: Which of them may not be returned; None for none.
        positions: Tells which rows are here, and where those stand; None where ``numbers`` ascends.
    """

    def __init__(
        self,
        numbers: NDArray[np.int64],
        distances: NDArray[np.float32],
        hidden: NDArray[np.bool_] | None = None,
        positions: Callable[[NDArray[np.int64]], tuple[NDArray[np.bool_], NDArray[np.int64]]] | None = None,
    ) -> None:
        self._numbers = numbers
        self._distances = distances
        self._hidden = hidden
        self._positions = positions or self._found

    def nearest(self, limit: int) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return for each query the nearest rows that may be returned, nearest first, with their distances."""
        import numpy as np

        distances = self._distances
        if self._hidden is not None:
            distances = np.where(self._hidden, np.float32(np.inf), distances)
        return [_smallest(self._numbers, one, limit) for one in distances]

    def of(self, query: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the distances of rows from a query; NaN for one that has no vector."""
        import numpy as np

        there, at = self._positions(rows)
        found = np.full(len(rows), np.nan)
        found[there] = self._distances[query, at]
        return found

    def _found(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        import numpy as np

        there = among(rows, self._numbers)
        return there, np.searchsorted(self._numbers, rows[there])


class _Loaded:
    """Vectors of one namespace in memory, of length 1.

    Attributes:
        dimensions: How long they were; 0 when none was there.
        matrix: The vectors, in any order; rows behind ``used`` are room for more.
        numbers: The row number of each; -1 for one that is gone.
        used: How many are in use, those that are gone included.
        count: How many are there.
        is_complete: Whether all rows of the namespace that have a vector are here.
    """

    def __init__(self, dimensions: int, room: int) -> None:
        import numpy as np

        self.dimensions = dimensions
        self.matrix = np.zeros((room, dimensions), dtype=np.float32)
        self.numbers = np.full(room, -1, dtype=np.int64)
        self.used = self.count = 0
        self.is_complete = False
        self._without = np.empty(0, dtype=np.int64)
        self._order: NDArray[np.int64] | None = None
        self._sorted = np.empty(0, dtype=np.int64)

    def knows(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell for which rows it is known what vector they have, or that they have none."""
        known = self.positions(rows)[0]
        return known | among(rows, self._without) if len(self._without) else known

    def positions(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Tell which rows are here, and where those are in the matrix."""
        import numpy as np

        if self._order is None:
            alive = np.flatnonzero(self.numbers[: self.used] >= 0)
            self._order = alive[np.argsort(self.numbers[alive], kind="stable")]
            self._sorted = self.numbers[self._order]
        if not len(self._sorted):
            return np.zeros(len(rows), dtype=bool), np.empty(0, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, rows), len(self._sorted) - 1)
        there = self._sorted[at] == rows
        return there, self._order[at[there]]

    def put(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> bool:
        """Add vectors, or replace those of rows that are here; False where they have another length."""
        import numpy as np

        if not len(rows):
            return True
        if vectors.shape[1] != self.dimensions:
            if self.used:
                return False
            self.dimensions = vectors.shape[1]
            self.matrix = np.zeros((len(self.numbers), self.dimensions), dtype=np.float32)
        unit = _of_length_1(vectors)
        there, at = self.positions(rows)
        self.matrix[at] = unit[there]
        new, added = rows[~there], unit[~there]
        if len(new):
            self._make_room(len(new))
            end = self.used + len(new)
            self.matrix[self.used : end], self.numbers[self.used : end] = added, new
            self.used, self.count, self._order = end, self.count + len(new), None
            if len(self._without):
                self._without = np.setdiff1d(self._without, new)
        return True

    def drop(self, rows: NDArray[np.int64]) -> None:
        """Let go of rows."""
        import numpy as np

        there, at = self.positions(rows)
        self.numbers[at] = -1
        self.count -= int(there.sum())
        self._order = None
        self._without = np.setdiff1d(self._without, rows)

    def lacking(self, asked: NDArray[np.int64], found: NDArray[np.int64]) -> None:
        """Note which rows have no vector."""
        import numpy as np

        if len(found) < len(asked):
            self._without = np.union1d(self._without, np.setdiff1d(asked, found))

    def _make_room(self, more: int) -> None:
        import numpy as np

        if self.used + more <= len(self.numbers):
            return
        alive = np.flatnonzero(self.numbers[: self.used] >= 0)
        room = int(_SPARE * (len(alive) + more))
        if len(alive) == self.used and self._grow(room):
            return
        matrix = np.zeros((room, self.dimensions), dtype=np.float32)
        numbers = np.full(room, -1, dtype=np.int64)
        matrix[: len(alive)], numbers[: len(alive)] = self.matrix[alive], self.numbers[alive]
        self.matrix, self.numbers, self.used, self._order = matrix, numbers, len(alive), None

    def _grow(self, room: int) -> bool:
        """Lengthen the matrix where it stands; return False where it has to be copied.

        The system moves large ones without copying: 23 ms in place of 188 where 68,000 vectors of 256 numbers become 102,000.
        """
        import numpy as np

        try:
            self.matrix.resize((room, self.dimensions))
        except ValueError:  # Somebody looks at it, or it is a part of another.
            return False
        numbers = np.full(room, -1, dtype=np.int64)
        numbers[: self.used] = self.numbers[: self.used]
        self.numbers, self._order = numbers, None
        return True


def _of_length_1(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return (matrix / np.where(lengths > 0, lengths, 1.0)).astype(np.float32, copy=False)


def _distances(queries: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine distances of queries (rows of the result) and vectors (columns), all of length 1.

    In blocks so small that the library of linear algebra takes no second thread: it waits for the other's result with a busy
    loop, which on a machine with other work took 5.5 ms of CPU time where this takes 0.2 (10,000 vectors).
    """
    import numpy as np

    products = np.empty((len(queries), len(matrix)), dtype=np.float32)
    step = max(1, _BLOCK // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        block = matrix[start : start + step]
        for query, row in zip(queries, products, strict=True):
            np.dot(block, query, out=row[start : start + step])
    return np.subtract(1.0, products, out=products)


def _below(distances: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    """Return where distances are that hold the smallest ones, at least ``limit``; few others are among them, mostly.

    A sample says how far the smallest go, so that only few have to be put in order: a fifth of the time.
    """
    import numpy as np

    sample = distances[::_SAMPLED]
    enough = min(len(sample) - 1, 2 * limit // _SAMPLED + 2)
    at = np.flatnonzero(distances <= np.partition(sample, enough)[enough])
    return at if len(at) >= limit else np.arange(len(distances))


def _smallest(
    numbers: NDArray[np.int64], distances: NDArray[np.float32], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows of the smallest finite distances, in order; of equal ones the lower row first."""
    import numpy as np

    at = _below(distances, limit) if len(distances) > _SAMPLED * limit else np.arange(len(distances))
    if len(at) > limit:
        at = at[np.argpartition(distances[at], limit)[:limit]]
    at = at[np.isfinite(distances[at])]
    at = at[np.lexsort((numbers[at], distances[at]))]
    return numbers[at], distances[at].astype(np.float64)
