"""Codes of tokens: what an embedder makes of each token of a text, as one bit for each dimension, and how they are compared.

A vector of a whole text is the mean over its tokens, and a poor witness for one of them. Late interaction (Khattab & Zaharia,
"ColBERT: Efficient and Effective Passage Search via Contextualized Late Interaction over BERT", SIGIR 2020) compares each
token of a question with every token of a memory and takes the best. The signs of a token's state are enough for that: measured on
conversations, they find as much as the states themselves, and take 0.8 kB for a memory of 17 tokens in 384 dimensions.

A code begins with that of the vector of the whole text: so it is known for which vector it was made, and one that belongs to
another is not kept. Codes can be made again from the texts at any time.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aiochroma._types import Vector
from aiochroma.text.coverage import AFTER, BEFORE, with_surroundings
from aiochroma.text.rows import distinct, read_numbers

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["WINDOW", "CodeTable", "encoded_tokens"]

WINDOW = 2
"""So far memories of a thread lend each other their tokens: measured alike for 2 and 3, and each step costs 0.5 ms."""
_ONE_THREAD = 250_000
"""Up to this many products at once are worked out without a second thread; see ``vectors``."""
_SIGNS_PER_ERROR = 64
"""Two vectors are of one text where at most one sign in 64 differs. Those of two texts differ in one of 20 and more."""


def encoded_tokens(matrix: Vector) -> bytes:
    """Return the code of a text.

    Args:
        matrix: The vector of the text, and below it the states of its tokens.
    """
    import numpy as np

    # Where no token says anything, the vector stands for all of them.
    rows = matrix if len(matrix) > 1 else matrix[[0, 0]]
    return np.packbits(rows > 0, axis=1).tobytes()


class CodeTable:
    """The codes of all namespaces.

    Args:
        connection: The index's own; the caller holds the transaction.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, rows: Sequence[tuple[int, Vector | None, bytes | None]]) -> None:
        """Store codes.

        Args:
            rows: Row number, vector and code of memories that were written. Without a code, the stored one stays where it is that
                of the vector, or where there is no vector.
        """
        import numpy as np

        given = [(number, code) for number, _, code in rows if code]
        self._connection.executemany("INSERT OR REPLACE INTO codes VALUES (?, ?)", given)
        others = {number: vector for number, vector, code in rows if not code and vector is not None}
        if not others or not self._connection.execute("SELECT EXISTS (SELECT 1 FROM codes)").fetchone()[0]:
            return
        stored = self._connection.execute(
            "SELECT number, code FROM codes WHERE number IN (SELECT value FROM json_each(?))",
            (json.dumps(list(others)),),
        ).fetchall()
        self.remove(
            [
                number
                for number, code in stored
                if not code.startswith(np.packbits(np.asarray(others[number]) > 0).tobytes())
            ]
        )

    def complete(self, made: Sequence[tuple[int, Vector, bytes]]) -> None:
        """Store codes that were made of texts read before, which may have changed since.

        Args:
            made: Row number, the vector that is stored now, and the code. One that belongs to another vector is not stored; a
                few signs may differ, because a model need not give a text the very same numbers twice.
        """
        import numpy as np

        fitting = []
        for number, vector, code in made:
            own = np.packbits(vector > 0)
            other = np.frombuffer(code, dtype=np.uint8)[: len(own)]
            if len(other) == len(own) and np.unpackbits(own ^ other).sum() * _SIGNS_PER_ERROR <= len(vector):
                fitting.append((number, own.tobytes() + code[len(own) :]))
        self._connection.executemany("INSERT OR REPLACE INTO codes VALUES (?, ?)", fitting)

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove the codes of rows."""
        if numbers:
            self._connection.execute(
                "DELETE FROM codes WHERE number IN (SELECT value FROM json_each(?))",
                (json.dumps(list(numbers)),),
            )

    def drop(self, namespace: int) -> None:
        """Remove all codes of a namespace whose rows are still there."""
        self._connection.execute(
            "DELETE FROM codes WHERE number IN (SELECT number FROM memories WHERE namespace = ?)",
            (namespace,),
        )

    # -- reading -------------------------------------------------------------------------------------------------------

    def without(self, namespace: int) -> NDArray[np.int64]:
        """Return the rows of a namespace that have no code."""
        return read_numbers(
            self._connection,
            "number",
            "memories AS m WHERE namespace = ? AND NOT EXISTS (SELECT 1 FROM codes AS c WHERE c.number = m.number)",
            (namespace,),
        )

    def coverage(
        self, states: Vector, rows: NDArray[np.int64], around: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """Return how well memories and their surroundings hold the tokens of a question, 0 to 1.

        The same as the coverage of its words (see ``coverage``), but that a memory holds a token as much as its most similar
        token is like it. A token counts as much as the best memory holds more of it than the average one.

        Args:
            states: The states of the tokens of the question, one row of length 1 for each.
            rows: The memories, ascending, each once.
            around: For each of them a line of what stands near it, as ``Order.around`` has it; 0 for nothing.

        Returns:
            A number for each of ``rows``, NaN for one that has no code; None where none has one.
        """
        import numpy as np

        looked_at = distinct(rows, around)
        held, is_coded = self._similarities(states, looked_at)
        there = is_coded[np.searchsorted(looked_at, rows)]
        if not there.any():
            return None
        own, reach = with_surroundings(held, looked_at, rows, around, BEFORE, AFTER)
        telling = np.maximum(own.max(axis=1) - own.mean(axis=1), 1e-3)
        coverage: NDArray[np.float64] = np.where(there, (telling / telling.sum()) @ reach, np.nan)
        return coverage

    def _similarities(
        self, states: Vector, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return how much each token of a question (row) is like the best of each memory (column), and which have a code."""
        import numpy as np

        dimensions = states.shape[1]
        size = dimensions // 8
        similarities = np.zeros((len(states), len(rows)))
        # As one value for all rows; see ``rows``.
        found, lengths, joined = self._connection.execute(
            "SELECT group_concat(number), group_concat(length(code)), CAST(group_concat(code, '') AS BLOB) FROM (SELECT number,"
            " code FROM codes WHERE number IN (SELECT value FROM json_each(?)) ORDER BY number)",
            (json.dumps(rows.tolist()),),
        ).fetchone()
        if not found or len(joined) % size:
            return similarities, np.zeros(len(rows), dtype=bool)
        codes = np.frombuffer(joined, dtype=np.uint8).reshape(-1, size)
        products = np.empty((len(codes), len(states)), dtype=np.float32)
        step = max(1, _ONE_THREAD // states.size)
        for start in range(0, len(codes), step):
            bits = np.unpackbits(codes[start : start + step], axis=1).astype(np.float32)
            np.dot(bits, states.T, out=products[start : start + step])
        # The first of each code is that of the vector of the whole, and does not count.
        counts = np.fromstring(lengths, dtype=np.int64, sep=",") // size
        first = np.cumsum(counts) - counts
        products[first] = -np.inf
        best = np.maximum.reduceat(products, first, axis=0)
        # A set bit stands for +1 and the others for -1, divided by the length of such a row.
        coded = np.searchsorted(rows, np.fromstring(found, dtype=np.int64, sep=","))
        best = (2.0 * best.T - states.sum(axis=1, keepdims=True)) / np.sqrt(dimensions)
        similarities[:, coded] = np.maximum(best, 0.0)
        is_coded = np.zeros(len(rows), dtype=bool)
        is_coded[coded] = True
        return similarities, is_coded
