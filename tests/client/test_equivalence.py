"""Merged and cut requests on real Chroma against plain chromadb, called one by one."""

from __future__ import annotations

import asyncio
import itertools

import chromadb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiochroma

IDS = [f"id{number}" for number in range(6)]
_numbers = itertools.count()


def vector(seed):
    """Different seeds give different distances, so that neighbours have one order."""
    return np.random.default_rng(seed).random(3, dtype=np.float32).tolist()


seeds = st.integers(0, 10_000)
some_ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True)
filters = st.none() | st.sampled_from([{"k": 1}, {"k": {"$ne": 1}}, {"k": {"$in": [1, 2]}}])
includes = st.sampled_from([[], ["documents"], ["metadatas", "documents"], ["embeddings"]])


@st.composite
def writes(draw):
    ids = draw(some_ids)
    method = draw(st.sampled_from(["add", "upsert", "update", "delete"]))
    arguments = {"ids": ids}
    if method != "delete":
        arguments["embeddings"] = [vector(draw(seeds)) for _ in ids]
        arguments["metadatas"] = [{"k": draw(st.integers(1, 3))} for _ in ids]
        if draw(st.booleans()):
            arguments["documents"] = [draw(st.sampled_from(["alpha", "beta", ""])) for _ in ids]
    elif draw(st.booleans()):
        arguments["where"] = {"k": draw(st.integers(1, 3))}
    return method, arguments


@st.composite
def reads(draw):
    method = draw(st.sampled_from(["get", "get", "query", "query", "count"]))
    if method == "count":
        return method, {}
    if method == "query":
        questions = [vector(draw(seeds)) for _ in range(draw(st.integers(1, 3)))]
        include = [*draw(includes), "distances"]
        arguments = {"query_embeddings": questions, "n_results": draw(st.integers(1, 4)), "include": include}
        return method, {**arguments, "where": draw(filters)}
    arguments = {
        "include": draw(includes),
        "where": draw(filters),
        "limit": draw(st.none() | st.integers(1, 4)),
    }
    return method, {**arguments, "ids": draw(st.none() | some_ids)}


rounds = st.lists(
    st.lists(writes(), min_size=1, max_size=6) | st.lists(reads(), min_size=1, max_size=8),
    min_size=1,
    max_size=5,
)


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    return pytest.approx(value, rel=1e-5) if isinstance(value, float) else value


async def outcome(coroutine):
    try:
        return await coroutine
    except Exception as error:
        return (type(error).__name__, str(error))


def outcome_of(function, arguments):
    try:
        return function(**arguments)
    except Exception as error:
        return (type(error).__name__, str(error))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """An event loop with our client, and a plain chromadb client of another database."""
    loop = asyncio.new_event_loop()

    async def opened():
        return await aiochroma.AsyncPersistentClient(tmp_path_factory.mktemp("ours"))

    ours = loop.run_until_complete(opened())
    theirs = chromadb.PersistentClient(str(tmp_path_factory.mktemp("theirs")))
    yield loop, ours, theirs
    theirs.close()
    loop.run_until_complete(ours.aclose())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=rounds)
def test_merged_results_equal_one_by_one(both, rounds):
    """Requests submitted together have the results that plain chromadb gives, called one by one in that order."""
    loop, ours, theirs = both
    name = f"collection-{next(_numbers)}"

    async def together(collection, requests):
        coroutines = [outcome(getattr(collection, method)(**arguments)) for method, arguments in requests]
        return await asyncio.gather(*coroutines)

    mine = loop.run_until_complete(ours.create_collection(name, embedding_function=None))
    plain_one = theirs.create_collection(name, embedding_function=None)
    # Read once before the first write: else Chroma applies its whole log again at the next write after the first read, and an
    # update of an id that did not exist then changes the record that was added since. Ours does the same by itself.
    plain_one.get(limit=1)
    for requests in rounds:
        results = loop.run_until_complete(together(mine, requests))
        for (method, arguments), result in zip(requests, results, strict=True):
            expected = outcome_of(getattr(plain_one, method), arguments)
            assert equal(result, expected)
    everything = loop.run_until_complete(mine.get(include=["embeddings", "metadatas", "documents"]))
    assert equal(everything, plain_one.get(include=["embeddings", "metadatas", "documents"]))


def equal(result, expected):
    return _lists(result) == plain(expected)


def _lists(value):
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_lists(item) for item in value]
    return _lists(value.tolist()) if isinstance(value, np.ndarray) else value
