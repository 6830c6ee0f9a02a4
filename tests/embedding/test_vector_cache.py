"""The cache of vectors: within its bound, least recently used first."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aiochroma.embedding.runner import VectorCache


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60), st.integers(0, 4000))
def test_the_bound_holds_and_values_are_right(operations, bound):
    """After any operations the bytes are within the bound, and a hit is the vector that was put."""
    cache = VectorCache(bound)
    for write, number in operations:
        if write:
            cache.put(str(number), np.full(64, number, np.float32))
        else:
            found = cache.get(str(number))
            assert found is None or (found == number).all()
        assert cache.bytes <= bound


def test_the_least_recently_used_goes_first():
    """A text that was read stays longer than one that was not."""
    size = VectorCache(10**6)
    size.put("a", np.zeros(8, np.float32))
    cache = VectorCache(2 * size.bytes)
    cache.put("a", np.zeros(8, np.float32))
    cache.put("b", np.zeros(8, np.float32))
    assert cache.get("a") is not None
    cache.put("c", np.zeros(8, np.float32))
    assert cache.get("b") is None
    assert cache.get("a") is not None


def test_a_row_does_not_keep_its_batch_alive():
    """What is kept owns its memory and cannot be written to."""
    cache = VectorCache(10**6)
    batch = np.ones((100, 8), np.float32)
    cache.put("a", batch[3])
    kept = cache.get("a")
    assert kept is not None
    assert kept.base is None
    assert not kept.flags.writeable
