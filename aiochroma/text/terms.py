"""The terms of a question, and which rows of a namespace hold them: words, words akin to them, and dates.

Languages inflect and compound more than any stemmer knows ("Mietvertrag" and "Mietvertrages", "kitapta" and "kitap"). Words
that share most of their runs of three letters, or of which one is inside of the other, mostly mean something akin; where a word
of a question is rare, those that are akin to it are looked for as well, and count less.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma.text.analysis import bounded_question, match_expression, query_terms
from aiochroma.text.coverage import Term, term_weight
from aiochroma.text.dates import periods_in
from aiochroma.text.rows import RowCache, read_numbers

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.text.dates import Period
    from aiochroma.text.namespaces import Summary

__all__ = ["Postings", "Vocabulary", "may_have_kin", "terms_of"]

# M*: vowel signs belong to their words in the scripts of India. Porter leaves anything but ASCII alone.
_TOKENIZER = "porter unicode61 remove_diacritics 2 categories ''L* N* Co M*''"
_MOST_TERMS = 32
"""Of a question with more, which is a document, those of its terms count that are there and that fewest memories hold."""
_MOST_WORDS = 300_000
"""The most words of namespaces that are kept, some 70 bytes each; those that were asked for longest ago go first."""
_RARE = 0.002
"""A term that a smaller share of the memories holds, or none but one or two, is completed by what is akin to it."""
_RARE_ROWS = 2
_MOST_AKIN = 8
"""The most terms of a question that are completed, the rarest first."""
_DAY = 86_400.0
_DAYS_BEFORE = 1.0
_DAYS_AFTER = 4.0
"""After this many days before or after its date a memory holds half of it: things are told after they have happened."""
_FADES = 5
"""Halvings after which nothing counts any more."""
_MOST_YEARS = 30
_LEAST_HELD = 0.5
"""A date that memories hold less of than this, taken together, says nothing."""

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


class Postings:
    """Which rows hold a term: an FTS5 table for each namespace, and what was looked up last; see ``RowCache``.

    The tables are contentless. To forget a row, one has to be told the form in which it was indexed.

    Args:
        connection: The index's own.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._cache = RowCache(
            lambda namespace, term, behind: _rows_with(connection, namespace, term, behind)
        )
        self._vocabularies: dict[int, Vocabulary] = {}

    def rows(self, namespace: int, term: str) -> NDArray[np.int64]:
        """Return the rows that hold a term, ascending; not to be changed."""
        return self._cache.rows(namespace, term)

    def vocabulary(self, namespace: int, summary: Summary) -> Vocabulary:
        """Return the words of a namespace; made again when much of it has changed."""
        known = self._vocabularies.pop(namespace, None)
        if known is None or known.is_outdated(summary.memories):
            while sum(map(len, self._vocabularies.values())) > _MOST_WORDS:
                del self._vocabularies[next(iter(self._vocabularies))]
            known = Vocabulary(self._connection, namespace, summary.memories)
        self._vocabularies[namespace] = known
        return known

    def create(self, namespace: int) -> None:
        """Make the table of a namespace."""
        self._connection.execute(
            f"CREATE VIRTUAL TABLE terms_{namespace} USING fts5(text, content='', tokenize='{_TOKENIZER}')"
        )

    def add(self, namespace: int, rows: Sequence[tuple[int, str]]) -> None:
        """Add rows with the forms in which they are indexed."""
        self._cache.grown(namespace)
        if rows:
            self._connection.execute(
                f"INSERT INTO terms_{namespace} (rowid, text) SELECT json_extract(value, '$[0]'),"  # noqa: S608
                " json_extract(value, '$[1]') FROM json_each(?)",
                (json.dumps(rows),),
            )

    def remove(self, namespace: int, rows: Sequence[tuple[int, str]]) -> None:
        """Take rows out, with the forms in which they were indexed."""
        if rows:
            self._replaced(namespace)
            self._connection.execute(
                f"INSERT INTO terms_{namespace} (terms_{namespace}, rowid, text) SELECT 'delete',"  # noqa: S608
                " json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)",
                (json.dumps(rows),),
            )

    def tidy(self, namespace: int) -> None:
        """Join what FTS5 has written, which else keeps the words of rows that were taken out for a while."""
        if namespace:
            self._connection.execute(f"INSERT INTO terms_{namespace} (terms_{namespace}) VALUES ('optimize')")  # noqa: S608

    def drop(self, namespace: int) -> None:
        """Remove the table of a namespace."""
        self._replaced(namespace)
        self._connection.execute(f"DROP TABLE terms_{namespace}")

    def _replaced(self, namespace: int) -> None:
        self._cache.replaced(namespace)
        self._vocabularies.pop(namespace, None)


def terms_of(
    connection: sqlite3.Connection,
    postings: Postings,
    namespace: int,
    summary: Summary,
    question: str,
    now: float,
) -> list[Term]:
    """Look the terms of a question up.

    Args:
        connection: The index's own.
        postings: What it keeps of earlier lookups.
        namespace: Which namespace.
        summary: What it is like as a whole.
        question: Any text.
        now: The present moment, for dates such as "yesterday".

    Returns:
        The terms, with those of dates behind the words; none for a question without either.
    """
    found = [(term, postings.rows(namespace, term)) for term in _words_of(question)]
    if len(found) > _MOST_TERMS:
        telling = {
            term for term, _ in sorted(found, key=lambda one: (len(one[1]) == 0, len(one[1])))[:_MOST_TERMS]
        }
        found = [(term, rows) for term, rows in found if term in telling]
    most = max(_RARE_ROWS, int(_RARE * summary.memories))
    rare = sorted((len(rows), term) for term, rows in found if len(rows) <= most and may_have_kin(term))[
        :_MOST_AKIN
    ]
    akin = {term for _, term in rare}
    terms = [
        _with_kin(postings, namespace, summary, term, rows)
        if term in akin
        else Term(rows, term_weight(summary.memories, len(rows)))
        for term, rows in found
    ]
    return terms + _dates(connection, namespace, summary, question, now)


def _with_kin(
    postings: Postings, namespace: int, summary: Summary, term: str, rows: NDArray[np.int64]
) -> Term:
    """Make a term of a word and of the words akin to it; a row holds what is the largest share of any of them."""
    import numpy as np

    kin = [
        (postings.rows(namespace, word), share)
        for word, share in postings.vocabulary(namespace, summary).kin(term)
    ]
    if not kin:
        return Term(rows, term_weight(summary.memories, len(rows)))
    joined = np.concatenate([rows, *(some for some, _ in kin)])
    given = np.repeat([1.0, *(share for _, share in kin)], [len(rows), *(len(some) for some, _ in kin)])
    held, position = np.unique(joined, return_inverse=True)
    shares = np.zeros(len(held))
    np.maximum.at(shares, position, given)
    return Term(held, term_weight(summary.memories, float(shares.sum())), shares)


@lru_cache(maxsize=64)
def _words_of(question: str) -> tuple[str, ...]:
    """Return the terms of a question; every namespace that it is asked of asks for them."""
    return tuple(query_terms(question))


@lru_cache(maxsize=64)
def _periods_of(question: str, day: int) -> tuple[Period, ...]:
    """Return the dates of a question that is asked on a day since 1970."""
    return tuple(periods_in(bounded_question(question), day * _DAY))


def _dates(
    connection: sqlite3.Connection, namespace: int, summary: Summary, question: str, now: float
) -> list[Term]:
    """Make a term of each date that a question speaks of and that some memories are near."""
    import numpy as np

    if summary.oldest is None or summary.newest is None:
        return []
    periods = _periods_of(question, int(now // _DAY))
    first_year, last_year = (
        1970 + int(seconds // (365.2425 * _DAY)) for seconds in (summary.oldest, summary.newest)
    )
    terms = []
    for period in periods[:_MOST_AKIN]:
        shares_of: dict[int, float] = {}
        for begin, end in period.spans(max(first_year, last_year - _MOST_YEARS) - 1, last_year):
            rows, created = _rows_between(
                connection,
                namespace,
                int(begin - _FADES * _DAYS_BEFORE * _DAY),
                int(end + _FADES * _DAYS_AFTER * _DAY),
            )
            outside = np.maximum((begin - created) / _DAYS_BEFORE, (created - end) / _DAYS_AFTER) / _DAY
            for row, share in zip(rows.tolist(), np.exp2(-np.maximum(outside, 0.0)).tolist(), strict=True):
                shares_of[row] = max(share, shares_of.get(row, 0.0))
        held = np.array(sorted(shares_of), dtype=np.int64)
        shares = np.array([shares_of[row] for row in held.tolist()])
        if shares.sum() >= _LEAST_HELD:
            terms.append(Term(held, term_weight(summary.memories, float(shares.sum())), shares))
    return terms


def _rows_between(
    connection: sqlite3.Connection, namespace: int, begin: int, end: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows that were first remembered in a span of time, and when each was."""
    import numpy as np

    rows, created = connection.execute(
        "SELECT group_concat(number), group_concat(CAST(created AS INTEGER)) FROM memories"
        " WHERE namespace = ? AND created >= ? AND created < ?",
        (namespace, begin, end),
    ).fetchone()
    if not rows:
        return np.empty(0, dtype=np.int64), np.empty(0)
    return np.fromstring(rows, dtype=np.int64, sep=","), np.fromstring(created, dtype=np.float64, sep=",")


def _rows_with(connection: sqlite3.Connection, namespace: int, term: str, behind: int) -> NDArray[np.int64]:
    """Return the rows behind a row that hold a term, ascending."""
    # FTS5 yields rows in ascending order.
    return read_numbers(
        connection,
        "rowid",
        f"terms_{namespace} WHERE terms_{namespace} MATCH ? AND rowid > ?",
        (match_expression([term]), behind),
    )


# -- words that are akin by their letters -------------------------------------------------------------------------------


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
        runs = _runs_of(plain)
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
        until = monotonic() + _SECONDS
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
                if monotonic() >= until:
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


@lru_cache(maxsize=64)
def _runs_of(word: str) -> NDArray[np.int64]:
    """Return the runs of a word of a question; every namespace that it is asked of asks for them."""
    return _runs([word])[1]


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
