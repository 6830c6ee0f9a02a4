"""LangGraph: the store against LangGraph's own one in memory, on random operations.

What differs by intent is taken into account in :class:`Oracle` and :func:`expected_search`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiochroma import sync

pytest.importorskip("langgraph.store", reason="langgraph-checkpoint is not installed (group `frameworks`)")

from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from aiochroma.langgraph import AiochromaStore

WORDS = ["apple", "bridge", "candle", "dragon", "ember", "forest"]
EVERYTHING = 1_000


def letters(texts):
    """How often each letter occurs: an embedder whose distances can be told apart."""
    return [[0.1 + text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]


INDEX = {"dims": 26, "embed": letters, "fields": ["text", "tags[*]"]}


class Oracle(InMemoryStore):
    """LangGraph's store, with what ours does otherwise: nothing is left of a former value, or of an empty namespace."""

    def batch(self, ops):
        results, puts, searches = self._prepare_ops(ops)
        if searches:
            self._batch_search(searches, self._embed_search_queries(searches), results)
        for namespace, key in puts:
            self._vectors[namespace].pop(key, None)
        texts = self._extract_texts(puts)
        # Its own way to do this fails where two items of a batch have the same text.
        for text, places in texts.items():
            for namespace, key, path in places:
                self._vectors[namespace][key][path] = self.embeddings.embed_query(text)
        self._apply_put_ops(puts)
        return results

    def _handle_list_namespaces(self, op):
        for namespace in [namespace for namespace, items in self._data.items() if not items]:
            del self._data[namespace]
        return super()._handle_list_namespaces(op)


labels = st.sampled_from(["a", "b", "*", "ü", '"'])
namespaces = st.lists(labels, min_size=1, max_size=3).map(tuple)
prefixes = st.lists(labels, max_size=2).map(tuple)
keys = st.sampled_from(["one", "two", "three"])
scalars = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from(WORDS))
values = st.fixed_dictionaries(
    {"n": st.integers(-3, 3)},
    optional={
        "text": st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join),
        "tags": st.lists(st.sampled_from(WORDS), max_size=3),
        "nested": st.dictionaries(st.sampled_from(["x", "y"]), scalars, max_size=2),
    },
)
operators = st.dictionaries(
    st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), st.integers(-3, 3), min_size=1, max_size=2
)
filters = st.one_of(
    st.none(),
    st.builds(lambda condition: {"n": condition}, st.one_of(operators, st.integers(-3, 3))),
    st.builds(lambda word: {"tags": [word]}, st.sampled_from(WORDS)),
    st.builds(lambda value: {"nested": {"x": value}}, scalars),
    st.builds(lambda value: {"nested": {"$ne": {"x": value}}}, scalars),
)
limits = {"limit": st.integers(0, 6), "offset": st.integers(0, 3)}
conditions = st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), prefixes)
operations = st.one_of(
    st.builds(
        PutOp,
        namespaces,
        keys,
        st.one_of(st.none(), values),
        st.one_of(st.none(), st.just(False), st.just(["nested.x", "text"])),
        ttl=st.none(),
    ),
    st.builds(GetOp, namespaces, keys),
    st.builds(
        SearchOp,
        prefixes,
        filters,
        query=st.one_of(st.none(), st.sampled_from(WORDS)),
        refresh_ttl=st.booleans(),
        **limits,
    ),
    st.builds(
        ListNamespacesOp,
        st.one_of(st.none(), st.lists(conditions, max_size=2).map(tuple)),
        st.one_of(st.none(), st.integers(1, 3)),
        **limits,
    ),
)


def shown(item):
    return None if item is None else (item.namespace, item.key, item.value)


def expected_search(oracle, op, put_at):
    """Return LangGraph's whole result as ours orders it: by score, then without one; without one the last put first."""
    everything = oracle.batch([op._replace(limit=EVERYTHING, offset=0)])[0]
    return sorted(
        everything,
        key=lambda item: (
            (0, -item.score, 0) if item.score is not None else (1, 0, -put_at[item.namespace, item.key])
        ),
    )


def compare_search(op, result, expected):
    page = expected[op.offset : op.offset + op.limit]
    assert len(result) == len(page)
    assert [item.score for item in result] == [
        None if item.score is None else pytest.approx(item.score, abs=1e-5) for item in page
    ]
    scores = {(item.namespace, item.key): item.score for item in expected}
    for item, other in zip(result, page, strict=True):
        if item.score is None:
            assert shown(item) == shown(other)
        else:  # Items of one score may be in any order.
            assert scores[item.namespace, item.key] == pytest.approx(item.score, abs=1e-5)
    assert {shown(item)[:2] for item in result} <= set(scores)


@pytest.fixture(scope="module")
def database():
    """Keeps the database in memory open from one example to the next."""
    client = sync.EphemeralClient()
    yield client
    client.close()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)  # fmt: skip
@given(
    batches=st.lists(st.tuples(st.booleans(), st.lists(operations, max_size=8)), max_size=8),
    index=st.booleans(),
)
async def test_as_langgraphs_own_store(database, batches, index):
    """Results and their order are those of LangGraph's store, whichever way each batch is carried out."""
    configuration = INDEX if index else None
    oracle = Oracle(index=configuration)
    put_at, count = {}, 0
    async with AiochromaStore(None, index=configuration, collection_name=f"n{uuid.uuid4().hex}") as store:
        for on_loop, ops in batches:
            expected = [
                expected_search(oracle, op, put_at) if isinstance(op, SearchOp) else None for op in ops
            ]
            theirs = oracle.batch(ops)
            ours = await store.abatch(ops) if on_loop else await asyncio.to_thread(store.batch, ops)
            assert len(ours) == len(ops)
            for op, our, their, whole in zip(ops, ours, theirs, expected, strict=True):
                if isinstance(op, SearchOp):
                    compare_search(op, our, whole)
                elif isinstance(op, GetOp):
                    assert shown(our) == shown(their)
                else:
                    assert our == their
            for op in ops:
                if isinstance(op, PutOp):
                    count += 1
                    put_at[op.namespace, op.key] = count
