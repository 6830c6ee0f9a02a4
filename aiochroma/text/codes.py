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
from aiochroma.text.rows import among, distinct, read_numbers

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["WINDOW", "CodeTable", "encoded_tokens"]

WINDOW = 2
"""So far memories of a thread lend each other their tokens: measured alike for 2 and 3, and each step costs 0.5 ms."""
_ONE_THREAD = 250_000
"""Up to this many products at once are worked out without a second thread; see ``vectors``."""
_MOST_BYTES_KEPT = 16 * 2**20
"""Codes that stay in memory, of some 16,000 memories: to read them takes half as long as to compare them."""
_ENTRY_BYTES = 140
"""What an entry takes beside its code: the row's number, the head of the bytes, its place in the dictionary."""
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
        self._kept: dict[int, bytes] = {}
        self._bytes = 0

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, rows: Sequence[tuple[int, Vector | None, bytes | None]]) -> None:
        """Store codes.

        Args:
            rows: Row number, vector and code of memories that were written. Without a code, the stored one stays where it is that
                of the vector, or where there is no vector.
        """
        import numpy as np

        given = [(number, code) for number, _, code in rows if code]
        self._forget(number for number, _, _ in rows)
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
        self._forget(number for number, _ in fitting)
        self._connection.executemany("INSERT OR REPLACE INTO codes VALUES (?, ?)", fitting)

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove the codes of rows."""
        self._forget(numbers)
        if numbers:
            self._connection.execute(
                "DELETE FROM codes WHERE number IN (SELECT value FROM json_each(?))",
                (json.dumps(list(numbers)),),
            )

    def drop(self, namespace: int) -> None:
        """Remove all codes of a namespace whose rows are still there."""
        self._forget(list(self._kept))
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
        self,
        states: Vector,
        rows: NDArray[np.int64],
        around: NDArray[np.int64],
        others: NDArray[np.float64],
        most: int,
    ) -> NDArray[np.float64] | None:
        """Return how well memories and their surroundings hold the tokens of a question, 0 to 1.

        The same as the coverage of its words (see ``coverage``), but that a memory holds a token as much as its most similar
        token is like it. A token counts as much as the best memory holds more of it than the average one. Surroundings take
        most of the time, so only the best memories are looked at with theirs.

        Args:
            states: The states of the tokens of the question, one row of length 1 for each.
            rows: The memories, ascending, each once.
            around: For each of them a line of what stands near it, as ``Order.around`` has it; 0 for nothing.
            others: What else speaks for each memory, where its tokens speak for it by 0 to 1.
            most: How many are looked at with their surroundings.

        Returns:
            A number for each of ``rows``, NaN for one that has no code; None where none has one.
        """
        import numpy as np

        own, is_coded = self._similarities(states, rows)
        if not is_coded.any():
            return None
        telling = np.maximum(own.max(axis=1) - own.mean(axis=1), 1e-3)
        telling /= telling.sum()
        coverage: NDArray[np.float64] = telling @ own
        best = np.sort(np.argsort(-(coverage + others), kind="stable")[:most])
        looked_at = distinct(rows, around[best])
        is_new = ~among(looked_at, rows)
        held = np.empty((len(states), len(looked_at)))
        held[:, ~is_new] = own
        held[:, is_new] = self._similarities(states, looked_at[is_new])[0]
        coverage[best] = (
            telling @ with_surroundings(held, looked_at, rows[best], around[best], BEFORE, AFTER)[1]
        )
        coverage[~is_coded] = np.nan
        return coverage

    def _similarities(
        self, states: Vector, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return how much each token of a question (row) is like the best of each memory (column), and which have a code."""
        import numpy as np

        dimensions = states.shape[1]
        size = dimensions // 8
        similarities = np.zeros((len(states), len(rows)))
        found = self._read(rows)
        lengths = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
        is_coded = (lengths > 0) & (lengths % size == 0)
        if not is_coded.any():
            return similarities, is_coded
        joined = b"".join(code for code, usable in zip(found, is_coded.tolist(), strict=True) if usable)
        codes = np.frombuffer(joined, dtype=np.uint8).reshape(-1, size)
        products = np.empty((len(codes), len(states)), dtype=np.float32)
        step = max(1, _ONE_THREAD // states.size)
        for start in range(0, len(codes), step):
            bits = np.unpackbits(codes[start : start + step], axis=1).astype(np.float32)
            np.dot(bits, states.T, out=products[start : start + step])
        # The first of each code is that of the vector of the whole, and does not count.
        counts = lengths[is_coded] // size
        first = np.cumsum(counts) - counts
        products[first] = -np.inf
        best = np.maximum.reduceat(products, first, axis=0)
        # A set bit stands for +1 and the others for -1, divided by the length of such a row.
        best = (2.0 * best.T - states.sum(axis=1, keepdims=True)) / np.sqrt(dimensions)
        similarities[:, is_coded] = np.maximum(best, 0.0)
        return similarities, is_coded

    def _read(self, rows: NDArray[np.int64]) -> list[bytes]:
        """Return the codes of rows, empty where there is none; those that were looked at last stay in memory."""
        numbers = rows.tolist()
        missing = [number for number in numbers if number not in self._kept]
        if missing:
            # As one value for all rows; see ``rows``.
            found, lengths, joined = self._connection.execute(
                "SELECT group_concat(number), group_concat(length(code)), CAST(group_concat(code, '') AS BLOB) FROM (SELECT"
                " c.number, c.code FROM json_each(?) AS w CROSS JOIN codes AS c ON c.number = w.value)",
                (json.dumps(missing),),
            ).fetchone()
            read, start = dict.fromkeys(missing, b""), 0
            if found:
                for number, length in zip(
                    map(int, found.split(",")), map(int, lengths.split(",")), strict=True
                ):
                    read[number] = joined[start : start + length]
                    start += length
            self._kept |= read
            self._bytes += sum(_ENTRY_BYTES + len(code) for code in read.values())
        codes = [self._kept[number] for number in numbers]
        while self._bytes > _MOST_BYTES_KEPT:
            self._forget([next(iter(self._kept))])
        return codes

    def _forget(self, numbers: Iterable[int]) -> None:
        """Read the codes of rows again when they are asked for."""
        for number in numbers:
            code = self._kept.pop(number, None)
            self._bytes -= 0 if code is None else _ENTRY_BYTES + len(code)
