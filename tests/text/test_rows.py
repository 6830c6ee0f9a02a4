"""Sets of rows that are kept: right after every change, and bounded whatever is asked for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aiochroma.text import rows
from aiochroma.text.rows import RowCache, RowFilter, distinct, found_at

_ROWS = st.sets(st.integers(1, 60)).map(lambda held: np.array(sorted(held), dtype=np.int64))


@given(st.lists(st.tuples(st.sampled_from(["grow", "replace", "ask"]), st.integers(0, 3)), max_size=20))
def test_what_is_kept_is_what_reading_gives(changes):
    """Rows that were added and rows that were taken out are known at the next look."""
    held: dict[int, list[int]] = {what: [] for what in range(4)}
    last = 0

    def read(namespace, what, behind):
        return np.array([row for row in held[what] if row > behind], dtype=np.int64)

    cache = RowCache(read)
    for kind, what in changes:
        if kind == "grow":
            last += 1
            held[what].append(last)
            cache.grown(7)
        elif kind == "replace" and held[what]:
            held[what].pop()
            cache.replaced(7)
        assert cache.rows(7, what).tolist() == held[what]


def test_what_nothing_has_is_not_kept_for_ever(monkeypatch):
    """Of what has no rows little is kept; short entries take room as well, and the least lately asked for make place."""
    monkeypatch.setattr(rows, "_MOST_ABSENT", 100)
    monkeypatch.setattr(rows, "_MOST_BYTES_KEPT", 100_000)
    cache = RowCache(lambda *_: np.empty(0, dtype=np.int64))
    for number in range(5_000):
        assert len(cache.rows(1, f"unknown word {number}")) == 0
    assert not cache._kept
    assert len(cache._absent) == 100
    cache = RowCache(lambda *_: np.array([1], dtype=np.int64))
    for number in range(5_000):
        assert len(cache.rows(1, f"rare word {number}")) == 1
    assert 0 < len(cache._kept) < 1_000


@given(
    st.lists(st.lists(st.integers(0, 40), max_size=30), min_size=1, max_size=3), st.sampled_from([1, 10_000])
)
def test_numbers_close_together_and_far_apart_are_put_in_order_and_found(given_numbers, apart):
    """Those that are marked and those that are sorted: each once, ascending, and each found where it stands."""
    arrays = [np.array(some, dtype=np.int64) * apart for some in given_numbers]
    wanted = np.concatenate(arrays)
    numbers = distinct(*arrays)
    assert numbers.tolist() == sorted(set(wanted.tolist()))
    assert numbers[found_at(numbers, wanted)].tolist() == wanted.tolist()


@given(_ROWS, st.none() | _ROWS, _ROWS)
def test_a_filter_keeps_what_is_allowed_or_not_excluded(asked, allowed, excluded):
    """Only the allowed ones where they are known, else all but the excluded."""
    keep = RowFilter(allowed, excluded if allowed is None else np.empty(0, dtype=np.int64))
    kept = set(asked[keep.keeps(asked)].tolist())
    expected = (
        set(asked.tolist()) & set(allowed.tolist())
        if allowed is not None
        else set(asked.tolist()) - set(excluded.tolist())
    )
    assert kept == expected
