"""Which memories stand beside each other, and how many words each has, in memory.

A search looks at what stands around some hundred memories; asked of SQLite, that took longer than all the rest of it (1.5 ms of
CPU time of 4 at 10,000 memories). So what stands before and behind each row is kept in arrays that row numbers index: 20 bytes
for each, and a step along all of some rows is one look-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiochroma.text.rows import read_rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Order"]

_SPARE = 1.5
_BESIDE = ", ".join(
    "COALESCE((SELECT n.number FROM memories AS n WHERE n.namespace = m.namespace AND n.thread = m.thread"  # noqa: S608
    f" AND (n.position, n.number) {compares} (m.position, m.number)"
    f" ORDER BY n.position {order}, n.number {order} LIMIT 1), 0)"
    for compares, order in (("<", "DESC"), (">", "ASC"))
)
"""The queries for what stands next to the row ``m``, before and behind it; 0 for nothing."""


class Order:
    """The order of the memories of the namespaces that were searched.

    Args:
        connection: The index's own.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.forget_all()

    def forget_all(self) -> None:
        """Read everything again when it is needed."""
        import numpy as np

        self._known: set[int] = set()
        # No row has the number 0: it stands for nothing, and nothing stands beside it.
        self._before = np.zeros(1, dtype=np.int64)
        self._behind = np.zeros(1, dtype=np.int64)
        self._words = np.zeros(1, dtype=np.int32)

    def forget(self, namespace: int) -> None:
        """Read a namespace again when it is needed."""
        self._known.discard(namespace)

    def around(self, namespace: int, rows: NDArray[np.int64], window: int) -> NDArray[np.int64]:
        """Return what stands near rows of a namespace; 0 for nothing.

        Args:
            namespace: The namespace.
            rows: Some of its rows.
            window: How far to look.

        Returns:
            A line for each row, with what stands ``window`` places before it to what stands ``window`` behind it.
        """
        import numpy as np

        self._load(namespace)
        near = np.empty((2 * window, len(rows)), dtype=np.int64)
        before = behind = rows
        for distance in range(window):
            before, behind = self._before[before], self._behind[behind]
            near[window - 1 - distance], near[window + distance] = before, behind
        lines: NDArray[np.int64] = near.T
        return lines

    def words(self, namespace: int, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return how many words rows of a namespace have."""
        self._load(namespace)
        words: NDArray[np.int32] = self._words[rows]
        return words

    def written(self, namespace: int, numbers: Sequence[int], words: Sequence[int]) -> None:
        """Note rows that were written, which may have stood elsewhere."""
        import numpy as np

        if namespace not in self._known or not numbers:
            return
        rows = np.array(numbers, dtype=np.int64)
        self._make_room(int(rows.max()))
        self._take_out(rows)
        self._words[rows] = words
        # Between two that are next to each other nothing is new, or one of them is, and is looked up here.
        found = np.array(
            read_rows(
                self._connection,
                f"m.number, {_BESIDE}",
                "json_each(?) AS wanted CROSS JOIN memories AS m ON m.number = wanted.value",
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
        # A 0 before the first of each thread: so that is what stands before it, and behind the last of another.
        chain = self._connection.execute(
            "SELECT group_concat(CASE WHEN begins THEN '0,' || number ELSE number END) FROM (SELECT number,"
            " thread IS NOT lag(thread) OVER (ORDER BY thread, position, number) AS begins FROM memories"
            " WHERE namespace = ? AND thread IS NOT NULL ORDER BY thread, position, number)",
            (namespace,),
        ).fetchone()[0]
        self._known.add(namespace)
        if not numbers:
            return
        rows = np.fromstring(numbers, dtype=np.int64, sep=",")
        self._make_room(int(rows.max()))
        self._words[rows] = np.fromstring(words, dtype=np.int32, sep=",")
        self._before[rows] = self._behind[rows] = 0
        if chain:
            placed = np.fromstring(chain, dtype=np.int64, sep=",")
            self._before[placed[1:]] = placed[:-1]
            self._behind[placed[:-1]] = placed[1:]
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
