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

_RUNS = 512
"""A word is the set of its runs of three letters, each a number below this; few words have more than twenty."""
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
        self._sizes: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        # The words that hold each run, one run after the other, and where those of each begin.
        self._holders: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._begins: NDArray[np.int64] = np.zeros(_RUNS + 1, dtype=np.int64)
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
        runs = _runs([plain])[1]
        size = len(runs)
        if not size or not self._words:
            return []
        # Most words share no run with it: looking at those that do takes a fifth of the time of comparing all.
        sharing = [self._holders[self._begins[run] : self._begins[run + 1]] for run in runs]
        shared = np.bincount(np.concatenate(sharing), minlength=len(self._words))
        found = np.flatnonzero(shared)
        both, sizes = shared[found], self._sizes[found]
        small, large = np.minimum(sizes, size), np.maximum(sizes, size)
        dice = 2 * both / (sizes + size)
        inside = (both >= _INSIDE * small) & (small >= _FEWEST_LETTERS)
        alike = np.maximum(
            np.where(dice >= _LEAST_ALIKE, dice, 0.0), np.where(inside, np.sqrt(small / large), 0.0)
        )
        most = np.argsort(-alike, kind="stable")[: _MOST_KIN + 1]
        return [
            (self._words[at], _SHARE * share)
            for at, share in zip(found[most].tolist(), alike[most].tolist(), strict=True)
            if share > 0 and self._words[at] not in {term, plain}
        ][:_MOST_KIN]

    def _read(self) -> None:
        """Read words that were not read yet, for a short while."""
        if self._last is None:
            return
        until = time.monotonic() + _SECONDS
        table = f"temp.words_{self._namespace}"
        self._connection.execute(f"DROP TABLE IF EXISTS {table}")
        self._connection.execute(
            f"CREATE VIRTUAL TABLE {table} USING fts5vocab('main', 'terms_{self._namespace}', 'row')"
        )
        try:
            while self._last is not None:
                joined = self._connection.execute(
                    f"SELECT group_concat(term, char(10)) FROM (SELECT term FROM {table} WHERE term > ? LIMIT ?)",  # noqa: S608
                    (self._last, _AT_ONCE),
                ).fetchone()[0]
                read = joined.split("\n") if joined else []
                self._last = read[-1] if len(read) == _AT_ONCE else None
                words = [word for word in read if may_have_kin(word) and len(word) <= _LONGEST]
                if words:
                    # SQLite takes accents off Latin letters alone.
                    self._add(words, *_runs([_plain(word) for word in words]))
                if time.monotonic() >= until:
                    break
        finally:
            self._connection.execute(f"DROP TABLE {table}")

    def _add(self, words: list[str], rows: NDArray[np.int64], runs: NDArray[np.int64]) -> None:
        """Add words with the runs of each, by its row."""
        import numpy as np

        holders = np.concatenate([self._holders, (rows + len(self._words)).astype(np.int32)])
        held = np.concatenate([np.repeat(np.arange(_RUNS), np.diff(self._begins)), runs])
        self._holders = holders[np.argsort(held, kind="stable")]
        self._begins = np.concatenate([[0], np.cumsum(np.bincount(held, minlength=_RUNS))])
        self._words += words
        self._sizes = np.concatenate([self._sizes, np.bincount(rows, minlength=len(words))])


def _plain(word: str) -> str:
    """Return a word without accents."""
    return (
        word
        if word.isascii()
        else unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", word)))
    )


def _runs(words: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the runs of three letters that words hold: the word's position and the run's number, each pair once, by word."""
    import numpy as np

    bounded = [f"<{word[:_LONGEST]}>" for word in words]
    width = max(map(len, bounded))
    letters = (
        np.array(bounded, dtype=f"<U{width}").view(np.uint32).reshape(len(words), width).astype(np.uint64)
    )
    runs = (letters[:, :-2] * np.uint64(0x9E3779B1) + letters[:, 1:-1]) * np.uint64(0x85EBCA77) + letters[
        :, 2:
    ]
    columns = ((runs * np.uint64(0xC2B2AE3D27D4EB4F)) >> np.uint64(55)).astype(np.int64) % _RUNS
    holds = np.zeros((len(words), _RUNS), dtype=bool)
    row, column = np.nonzero(letters[:, 2:])
    holds[row, columns[row, column]] = True
    word, run = np.nonzero(holds)
    return word, run
