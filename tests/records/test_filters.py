"""Filters: what the index finds by them, what Chroma finds, and what is said of one record, are the same."""

from __future__ import annotations

import itertools
import math

import chromadb
import pytest
from chroma_filters import matches
from chromadb.config import Settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiochroma.records.spec import decoded, encoded
from aiochroma.text.index import IndexedText, TextIndex
from aiochroma.text.metadata import as_chroma_keeps

_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
# Of these Chroma changes no digit; any float has a test of its own.
_NUMBERS = st.integers(-5, 5) | st.integers(-(2**53), 2**53) | st.integers(-40, 40).map(lambda n: n / 8)
_VALUES = _TEXTS | _NUMBERS | st.booleans()
_KEYS = st.sampled_from(["a", "b", "schlüssel"])
_LISTS = st.one_of(
    st.lists(values, min_size=1, max_size=3)
    for values in (_TEXTS, st.integers(-5, 5), st.integers(-40, 40).map(lambda n: n / 8), st.booleans())
)
_CONDITIONS = st.one_of(
    st.tuples(_KEYS, _VALUES).map(lambda one: {one[0]: one[1]}),
    st.tuples(_KEYS, st.sampled_from(["$eq", "$ne"]), _VALUES).map(lambda one: {one[0]: {one[1]: one[2]}}),
    st.tuples(_KEYS, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), _NUMBERS).map(
        lambda one: {one[0]: {one[1]: one[2]}}
    ),
    st.tuples(_KEYS, st.sampled_from(["$in", "$nin"]), _LISTS).map(lambda one: {one[0]: {one[1]: one[2]}}),
    st.tuples(_KEYS, st.sampled_from(["$contains", "$not_contains"]), _VALUES).map(
        lambda one: {one[0]: {one[1]: one[2]}}
    ),
)
_FILTERS = st.recursive(
    _CONDITIONS,
    lambda inner: st.tuples(st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=2, max_size=3)).map(
        lambda one: {one[0]: one[1]}
    ),
    max_leaves=4,
)
_numbers = itertools.count()
_METADATA = st.dictionaries(_KEYS, _VALUES | _LISTS, max_size=3)


@pytest.fixture(scope="module")
def chroma():
    """Plain Chroma in memory."""
    return chromadb.EphemeralClient(Settings(anonymized_telemetry=False))


def _passing(index: TextIndex, where) -> set[str]:
    keep = index.filter("n", where, 0.0)
    return set(index.ids_of(keep.allowed.tolist()).values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(_METADATA, min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), _METADATA), max_size=4),
    st.lists(_FILTERS, min_size=1, max_size=6),
)
def test_the_index_finds_what_chroma_finds(chroma, records, changes, filters):
    """Whatever was stored, replaced and removed: the same memories pass in the index, in Chroma, and one by one."""
    # None is deleted: Chroma leaves the lists of its records, and shows them in the next one.
    collection = chroma.create_collection(f"filters-{next(_numbers)}", embedding_function=None)
    index = TextIndex(":memory:")
    stored = {str(number): metadata for number, metadata in enumerate(records)}
    index.upsert("n", [IndexedText(id, "text", metadata=metadata) for id, metadata in stored.items()])
    for number, metadata in changes:
        _passing(index, filters[0])  # What is remembered of a filter must not outlive a change.
        id = str(number)
        if metadata or id not in stored:
            stored[id] = metadata
            index.upsert("n", [IndexedText(id, "text", metadata=metadata)])
        else:
            del stored[id]
            index.delete("n", [id])
    try:
        if stored:
            collection.add(
                ids=list(stored),
                embeddings=[[1.0, 0.0]] * len(stored),
                metadatas=[metadata or None for metadata in stored.values()],
            )
        for where in filters:
            expected = set(collection.get(where=where, include=[])["ids"])
            assert _passing(index, where) == expected
            assert {id for id, metadata in stored.items() if matches(where, metadata)} == expected
    finally:
        index.close()


_ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 2) | st.floats(1e9, 2e9)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_ANY_FLOAT, min_size=1, max_size=6), _ANY_FLOAT)
def test_any_float_is_found_as_chroma_finds_it(chroma, values, other):
    """What Chroma makes of a float is what the index has of it, alone and in lists, and what it takes a filter's float for."""
    stored = {str(number): {"v": value, "l": [value, 0.5]} for number, value in enumerate(values)}
    collection = chroma.get_or_create_collection("floats", embedding_function=None)
    index = TextIndex(":memory:")
    kept = {id: as_chroma_keeps(metadata) for id, metadata in stored.items()}
    index.upsert("n", [IndexedText(id, "text", metadata=metadata) for id, metadata in kept.items()])
    try:
        collection.add(
            ids=list(stored), embeddings=[[1.0, 0.0]] * len(stored), metadatas=list(stored.values())
        )
        found = collection.get(include=["metadatas"])
        # Plain Chroma shows lists of records that are gone, under their keys.
        shown = [{name: metadata[name] for name in ("v", "l")} for metadata in found["metadatas"]]
        assert dict(zip(found["ids"], shown, strict=True)) == kept
        for value in {*values, other, kept["0"]["v"]}:
            conditions = [{name: value} for name in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")]
            conditions += [{"$in": [value, 0.25]}, {"$nin": [value, 0.25]}]
            for where in [*({"v": one} for one in conditions), {"l": {"$contains": value}}]:
                assert _passing(index, where) == set(collection.get(where=where, include=[])["ids"]), where
    finally:
        chroma.delete_collection("floats")
        index.close()


@given(_FILTERS)
def test_an_encoded_filter_is_the_same_filter(where):
    """It comes back with every value and its kind, and two that differ in kind alone are not equal."""
    assert repr(decoded(encoded(where))) == repr(decoded(encoded(decoded(encoded(where)))))
    assert encoded({"a": 1}) != encoded({"a": True}) != encoded({"a": 1.0})


def test_floats_keep_their_last_digit():
    """Two floats that are neighbours are told apart, whatever their size and sign; 0.0 and -0.0 are one."""
    values = [0.0, -0.0, 0.1, -0.1, 1e-300, 1e300, -1e300, 1 / 3]
    values += [math.nextafter(value, math.inf) for value in values]
    values = [value for value in values if as_chroma_keeps({"v": value})["v"] == value]
    assert len(values) > 10
    index = TextIndex(":memory:")
    index.upsert("n", [IndexedText(str(at), "x", metadata={"v": value}) for at, value in enumerate(values)])
    for value in values:
        assert _passing(index, {"v": value}) == {str(at) for at, other in enumerate(values) if other == value}
        assert _passing(index, {"v": {"$gt": value}}) == {
            str(at) for at, other in enumerate(values) if other > value
        }
    index.close()
