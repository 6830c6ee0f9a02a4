"""The vectors of the index: exact neighbours of any set of rows, whatever is in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochroma.text.index import IndexedText, TextIndex
from aiochroma.text.rows import RowFilter

_NOTHING = np.empty(0, dtype=np.int64)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "write", "delete", "no vector", "ask"]), st.integers(0, 30)),
        min_size=1,
        max_size=30,
    ),
    st.none() | st.sets(st.integers(0, 30)),
    st.integers(0, 2**16),
)
def test_the_nearest_are_those_that_comparing_all_gives(cache_bytes, changes, allowed, seed):
    """Written, replaced, deleted, allowed or not, in memory or in the file: ids and distances are exact."""
    generator = np.random.default_rng(seed)
    index, held = TextIndex(":memory:", cache_bytes=cache_bytes), {}
    query = generator.normal(size=(1, 8)).astype(np.float32)
    query /= np.linalg.norm(query)

    def check(allowed_ids):
        rows = index.rows("n", map(str, range(31)))
        keep = RowFilter(None, _NOTHING)
        if allowed_ids is not None:
            keep = RowFilter(
                np.array(sorted(row for id, row in rows.items() if int(id) in allowed_ids), dtype=np.int64),
                _NOTHING,
            )
        ((found, distances),) = index.compared("n", query, keep).nearest(5)
        ids = index.ids_of(found.tolist())
        expected = sorted(
            (1.0 - float(vector @ query[0]) / float(np.linalg.norm(vector)), int(id))
            for id, vector in held.items()
            if allowed_ids is None or int(id) in allowed_ids
        )[:5]
        assert [int(ids[row]) for row in found.tolist()] == [id for _, id in expected]
        np.testing.assert_allclose(distances, [distance for distance, _ in expected], atol=1e-5)

    for kind, number in changes:
        id = str(number)
        if kind == "write":
            held[id] = generator.normal(size=8).astype(np.float32)
            index.upsert("n", [IndexedText(id, "text", vector=held[id])])
        elif kind == "delete":
            held.pop(id, None)
            index.delete("n", [id])
        elif kind == "no vector":  # It keeps the one that it has.
            index.upsert("n", [IndexedText(id, "other text")])
        elif index.count("n"):
            check(allowed)
    if index.count("n"):
        check(allowed)
        check(None)
    index.close()


def test_vectors_of_another_length_are_not_compared():
    """The index has no answer, so that Chroma says what is wrong."""
    index = TextIndex(":memory:")
    index.upsert("n", [IndexedText("a", "text", vector=[1.0, 0.0, 0.0])])
    assert index.compared("n", np.ones((1, 2), dtype=np.float32), RowFilter(None, _NOTHING)) is None
    index.close()


def test_what_stays_in_memory_is_bounded():
    """However many namespaces are searched, in whatever order, their vectors in memory take no more than they may."""
    limit = 40_000
    index = TextIndex(":memory:", cache_bytes=limit)
    random = np.random.default_rng(5)
    vectors = random.normal(size=(60, 32)).astype(np.float32)
    for number in range(12):
        rows = [IndexedText(f"{at}", "text", vector=vector) for at, vector in enumerate(vectors)]
        index.upsert(f"n{number}", rows)
    query = (vectors[:1] / np.linalg.norm(vectors[0])).astype(np.float32)
    for number in [*range(12), 3, 3, 7, 0]:
        keep = index.filter(f"n{number}", None, 0.0)
        ((rows, distances),) = index.compared(f"n{number}", query, keep).nearest(5)
        assert len(rows) == 5
        assert abs(distances[0]) < 1e-6
        assert 0 < index._vectors.loaded_bytes <= limit


def test_vectors_in_memory_stay_exact_while_they_become_many():
    """Written beside searches, in pages, so that their room in memory grows again and again, with gaps and without."""
    generator = np.random.default_rng(7)
    vectors = generator.normal(size=(1200, 16)).astype(np.float32)
    query = vectors[:1] / np.linalg.norm(vectors[0])
    index = TextIndex(":memory:", cache_bytes=2**20)
    for start in range(0, 1200, 60):
        ids = [str(number) for number in range(start, start + 60)]
        index.upsert("n", [IndexedText(id, "text", vector=vectors[int(id)]) for id in ids])
        if start == 600:
            index.delete("n", map(str, range(1, 600, 2)))
        there = [n for n in range(start + 60) if not (start >= 600 and n < 600 and n % 2)]
        cosines = vectors[there] @ query[0] / np.linalg.norm(vectors[there], axis=1)
        ((found, _),) = index.compared("n", query, RowFilter(None, _NOTHING)).nearest(10)
        names = index.ids_of(found.tolist())
        assert [int(names[row]) for row in found.tolist()] == [
            there[at] for at in np.argsort(-cosines, kind="stable")[:10]
        ]
