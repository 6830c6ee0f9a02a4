"""Ordering the best hits again by a judge of the caller's."""

from __future__ import annotations

import asyncio
import threading

import pytest

import aiochroma
import aiochroma.sync
from aiochroma.memory import recalling

TEXTS = [f"the lake number {number}" for number in range(12)]


def by_number(query, texts):
    """Judge by the number at the end."""
    return [float(text.split()[-1]) for text in texts]


async def by_number_later(query, texts):
    await asyncio.sleep(0)
    return by_number(query, texts)


@pytest.fixture
async def memory(tmp_path):
    """A memory of a dozen lakes."""
    async with aiochroma.Memory(tmp_path, embedder="hashed") as memory:
        await memory.remember_many(TEXTS)
        yield memory


@pytest.mark.parametrize("judge", [by_number, by_number_later])
async def test_the_judge_orders_more_than_are_returned(memory, judge):
    """It sees the candidates, not only the hits, and its order counts; the number is part of the explanation."""
    hits = await memory.recall("lake", k=3, rerank=judge)
    assert [hit.text.split()[-1] for hit in hits] == ["11", "10", "9"]
    assert hits[0].explain["rerank"] == 11.0
    assert "rerank" in hits.timings
    assert not hits.errors


async def test_each_namespace_gives_as_many_as_it_may(memory):
    """The candidates of all namespaces are judged together."""
    await memory.remember_many(TEXTS, namespace="other")
    hits = await memory.recall("lake", namespaces={"default": 1, "other": 2}, rerank=by_number)
    assert [(hit.namespace, hit.text.split()[-1]) for hit in hits].count(("default", "11")) == 1
    assert [hit.namespace for hit in hits].count("other") == 2


async def test_no_hit_is_lost_to_the_judge(memory):
    """More are asked for than are judged, or another namespace has the better scores: all come, the judged ones first."""
    await memory.remember_many([f"the lake number {number}" for number in range(12, 60)])
    hits = await memory.recall("lake number", k=50, rerank=by_number)
    judged = [hit.explain["rerank"] for hit in hits if "rerank" in hit.explain]
    assert len(hits) == 50
    assert len(judged) == recalling.CANDIDATES
    assert judged == sorted(judged, reverse=True)
    assert all("rerank" in hit.explain for hit in hits[: recalling.CANDIDATES])
    await memory.remember_many([f"beside water, at {number}" for number in range(5)], namespace="other")
    hits = await memory.recall("the lake number", k=3, rerank=by_number)
    assert [hit.namespace for hit in hits].count("other") == 3
    assert all("rerank" in hit.explain for hit in hits)


async def test_a_judge_may_give_its_numbers_one_by_one(memory):
    """On its own thread, where one that never ends harms nobody."""
    threads = set()

    def lazily(query, texts):
        for text in texts:
            threads.add(threading.current_thread())
            yield float(text.split()[-1])

    hits = await memory.recall("lake", k=2, rerank=lazily)
    assert [hit.text.split()[-1] for hit in hits] == ["11", "10"]
    assert threading.current_thread() not in threads
    hits = await memory.recall("lake", k=2, rerank=lambda query, texts: iter(int, 1))
    assert isinstance(hits.errors[""], aiochroma.RerankFailedError)


def _raising(query, texts):
    raise ConnectionError("the service does not answer")


@pytest.mark.parametrize(
    "judge",
    [
        _raising,
        lambda query, texts: texts,
        lambda query, texts: [1.0],
        lambda query, texts: [float("nan")] * len(texts),
    ],
    ids=["raises", "texts", "too few", "nan"],
)
async def test_where_the_judge_fails_the_scores_stand(memory, judge):
    """The hits are those without a judge, and the recall says why."""
    plain = await memory.recall("lake", k=3)
    hits = await memory.recall("lake", k=3, rerank=judge)
    assert [hit.id for hit in hits] == [hit.id for hit in plain]
    assert isinstance(hits.errors[""], aiochroma.RerankFailedError)


async def test_a_judge_that_never_answers_is_not_waited_for(memory, monkeypatch):
    """Neither by its caller, after a while, nor by anybody else."""
    monkeypatch.setattr(recalling, "_RERANK_SECONDS", 0.2)
    go_on = threading.Event()

    def never(query, texts):
        assert go_on.wait(60)

    hits = await memory.recall("lake", k=3, rerank=never)
    assert len(hits) == 3
    assert isinstance(hits.errors[""], aiochroma.RerankFailedError)
    assert not (await memory.recall("lake", k=3, rerank=by_number)).errors
    go_on.set()


def test_a_blocking_memory_reranks(tmp_path):
    """A synchronous judge serves the blocking memory as well."""
    with aiochroma.sync.Memory(tmp_path, embedder="hashed") as memory:
        memory.remember_many(TEXTS)
        assert [hit.text.split()[-1] for hit in memory.recall("lake", k=2, rerank=by_number)] == ["11", "10"]


async def test_what_cannot_be_called_is_refused(memory):
    """Before anything is searched."""
    with pytest.raises(aiochroma.InvalidInputError, match="`rerank`"):
        await memory.recall("lake", rerank="cross-encoder")


async def test_auto_gives_nothing_where_nothing_was_remembered(memory):
    """A question about something else comes back empty, one about what is there does not; per namespace as well."""
    await memory.remember_many(
        ["Anna has a grey cat called Miso.", "The cat sleeps on the sofa."], namespace="cats"
    )
    assert await memory.recall("What is Anna's cat called?", namespaces="cats", min_score="auto")
    assert not await memory.recall("How is parchment made?", namespaces="cats", min_score="auto")
    search = aiochroma.NamespaceSearch(min_score="auto")
    assert not await memory.recall("How is parchment made?", namespaces={"cats": search})
    with pytest.raises(aiochroma.InvalidInputError, match="`min_score`"):
        await memory.recall("lake", min_score="high")


async def test_unordered_memories_lend_nothing_by_their_order(memory, tmp_path):
    """`thread=False` opts out, files that do not say when something was said do by themselves, and export keeps it."""
    for namespace, thread in (("turns", None), ("facts", False)):
        await memory.remember_many(
            ["Where was it taken?", "It was the harbour.", "Seventeen."], namespace=namespace, thread=thread
        )
    turns = await memory.recall("harbour taken", namespaces="turns", mode="text")
    facts = await memory.recall("harbour taken", namespaces="facts", mode="text")
    assert "Seventeen." in [hit.text for hit in turns]
    assert "Seventeen." not in [hit.text for hit in facts]
    exported = tmp_path / "facts.jsonl"
    await memory.export(exported, namespaces="facts")
    await memory.forget_namespace("facts")
    await memory.import_(exported)
    table = tmp_path / "table.csv"
    table.write_text("text\nWhere was it taken?\nIt was the harbour.\nSeventeen.\n")
    await memory.import_(table, namespace="table")
    for namespace in ("facts", "table"):
        found = await memory.recall("harbour taken", namespaces=namespace, mode="text")
        assert "Seventeen." not in [hit.text for hit in found]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), StopIteration(), SystemExit(3), GeneratorExit()])
@pytest.mark.parametrize("is_asynchronous", [False, True])
async def test_whatever_a_judge_raises_is_its_own_failure(memory, error, is_asynchronous):
    """No end of the caller, of the event loop, or of its patience: the order by score stands, and the recall says so."""

    def judge(question, texts):
        raise error

    async def judge_asynchronously(question, texts):
        raise error

    recall = await memory.recall("lake", rerank=judge_asynchronously if is_asynchronous else judge)
    assert len(recall) == 5
    assert isinstance(recall.errors[""], aiochroma.RerankFailedError)
    assert "had not answered" not in str(recall.errors[""])
