"""Words that are akin by their letters: inflected, compounded, spelled another way.

Languages inflect and compound more than any stemmer knows ("Mietvertrag" and "Mietvertrages", "kitapta" and "kitap"). Words
that share most of their runs of three letters, or of which one is inside of the other, mostly mean something akin; where a word
of a question is rare, those that are akin to it are looked for as well, and count less.
"""

from __future__ import annotations

import re
import time
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Vocabulary", "may_have_kin"]

_BITS = 512
"""A word is a set of its runs of three letters, each a bit; few words have more than twenty."""
_LONGEST = 40
_FEWEST_LETTERS = 4
_MOST_KIN = 8
_SHARE = 0.6
"""What a word counts that is as much akin as can be. Measured flat between 0.4 and 0.8."""
_LEAST_ALIKE = 0.4
_INSIDE = 0.75
"""The share of a word that has to be in another one for it to be inside of it; word borders count as letters."""
_GROWTH = 0.1
"""The share by which a namespace may grow before its words are read again."""
_AT_ONCE = 4_000
_SECONDS = 0.01
"""How long reading goes on at a time: it stops everybody. The next question goes on."""
_CODED = re.compile(r"(?:u[0-9a-f]{3,6})+")
_DIGIT = re.compile(r"\d")
_ACCENTS = re.compile(r"[\u0300-\u036f]")


def may_have_kin(term: str) -> bool:
    """Tell whether letters say what a term is akin to: not of numbers, coded characters, and very short words."""
    return len(term) >= _FEWEST_LETTERS and not _DIGIT.search(term) and not _CODED.fullmatch(term)


class Vocabulary:
    """The words of a namespace, as they were when it was made.

    Args:
        connection: The index's own.
        namespace: Which namespace.
        memories: How many memories it has.
    """

    def __init__(self, connection: sqlite3.Connection, namespace: int, memories: int) -> None:
        import numpy as np

        self._connection = connection
        self._namespace = namespace
        self._memories = memories
        self._words: list[str] = []
        self._signatures: NDArray[np.uint64] = np.empty((0, _BITS // 64), dtype=np.uint64)
        self._sizes: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._last: str | None = ""

    def __len__(self) -> int:
        """Return how many words were read so far."""
        return len(self._words)

    def is_outdated(self, memories: int) -> bool:
        """Tell whether so much has changed that the words should be read again."""
        return abs(memories - self._memories) > _GROWTH * self._memories

    def kin(self, term: str) -> list[tuple[str, float]]:
        """Return the words that are most akin to a term, and how much of it they count; at most 8, the term not among them."""
        import numpy as np

        self._read()
        plain = _plain(term)
        signature = _signatures([plain])[0]
        size = int(_count(signature[None])[0])
        if not size or not self._words:
            return []
        both = _count(self._signatures & signature)
        small, large = np.minimum(self._sizes, size), np.maximum(self._sizes, size)
        dice = 2 * both / np.maximum(1, self._sizes + size)
        inside = (both >= _INSIDE * small) & (small >= _FEWEST_LETTERS)
        alike = np.maximum(
            np.where(dice >= _LEAST_ALIKE, dice, 0.0),
            np.where(inside, np.sqrt(small / np.maximum(1, large)), 0.0),
        )
        most = np.argsort(-alike, kind="stable")[: _MOST_KIN + 1].tolist()
        return [
            (self._words[at], _SHARE * float(alike[at]))
            for at in most
            if alike[at] > 0 and self._words[at] not in {term, plain}
        ][:_MOST_KIN]

    def _read(self) -> None:
        """Read words that were not read yet, for a short while."""
        import numpy as np

        if self._last is None:
            return
        until = time.monotonic() + _SECONDS
        table = f"temp.words_{self._namespace}"
        self._connection.execute(f"DROP TABLE IF EXISTS {table}")
        self._connection.execute(
            f"CREATE VIRTUAL TABLE {table} USING fts5vocab('main', 'terms_{self._namespace}', 'row')"
        )
        try:
            while self._last is not None and time.monotonic() < until:
                joined = self._connection.execute(
                    f"SELECT group_concat(term, char(10)) FROM (SELECT term FROM {table} WHERE term > ? LIMIT ?)",  # noqa: S608
                    (self._last, _AT_ONCE),
                ).fetchone()[0]
                read = joined.split("\n") if joined else []
                self._last = read[-1] if len(read) == _AT_ONCE else None
                words = [word for word in read if may_have_kin(word) and len(word) <= _LONGEST]
                if words:
                    # SQLite takes accents off Latin letters alone.
                    more = _signatures([_plain(word) for word in words])
                    self._words += words
                    self._signatures = np.concatenate([self._signatures, more])
                    self._sizes = np.concatenate([self._sizes, _count(more)])
        finally:
            self._connection.execute(f"DROP TABLE {table}")


def _plain(word: str) -> str:
    """Return a word without accents."""
    return (
        word
        if word.isascii()
        else unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", word)))
    )


def _signatures(words: Sequence[str]) -> NDArray[np.uint64]:
    """Return the sets of three letters of words as bits, one row for each."""
    import numpy as np

    bounded = [f"<{word[:_LONGEST]}>" for word in words]
    width = max(map(len, bounded))
    letters = (
        np.array(bounded, dtype=f"<U{width}").view(np.uint32).reshape(len(words), width).astype(np.uint64)
    )
    runs = (letters[:, :-2] * np.uint64(0x9E3779B1) + letters[:, 1:-1]) * np.uint64(0x85EBCA77) + letters[
        :, 2:
    ]
    columns = ((runs * np.uint64(0xC2B2AE3D27D4EB4F)) >> np.uint64(55)).astype(np.int64) % _BITS
    bits = np.zeros((len(words), _BITS), dtype=bool)
    row, column = np.nonzero(letters[:, 2:])
    bits[row, columns[row, column]] = True
    return np.packbits(bits, axis=1).view(np.uint64)


def _count(signatures: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the bits of each row."""
    import numpy as np

    counted = (
        np.bitwise_count(signatures)
        if hasattr(np, "bitwise_count")
        else np.unpackbits(np.ascontiguousarray(signatures).view(np.uint8), axis=-1)
    )
    summed: NDArray[np.int64] = counted.reshape(len(signatures), -1).sum(axis=1, dtype=np.int64)
    return summed
