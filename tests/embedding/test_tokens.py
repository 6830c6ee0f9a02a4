"""Embedders that give the states of tokens: codes are kept with the memories, and follow them wherever their vectors go."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
from contextlib import closing
from functools import partial

import numpy as np
import pytest

import aiochroma
from aiochroma.embedding.minilm import is_packaged
from aiochroma.text import codes
from aiochroma.text.index import IndexedText, TextIndex

DIMENSIONS = 256
FACTS = [
    "the kettle in the kitchen is blue",
    "the dentist moved to Harbour Street",
    "a bicycle stands in the cellar",
    "grandmother bakes bread on Sunday",
]


def state(word):
    """Return a vector of length 1 for a word, the same everywhere."""
    seed = int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[:8])
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


class Words:
    """Stands for a model: a state for each word, and their mean."""

    identity = "words-of-tests"
    dimensions = DIMENSIONS
    max_distance = 0.9

    def embed(self, texts):
        return np.stack([matrix[0] for matrix in Words.embed_tokens(self, texts)])

    def embed_tokens(self, texts):
        matrices = []
        for text in texts:
            states = np.stack([state(word) for word in text.split()])
            mean = states.mean(axis=0)
            matrices.append(np.concatenate([mean[None] / np.linalg.norm(mean), states]))
        return matrices


class Other(Words):
    """Another model, whose states are those of other words."""

    identity = "other-words-of-tests"

    def embed_tokens(self, texts):
        return super().embed_tokens([" ".join(f"x{word}" for word in text.split()) for text in texts])


async def likeness(memory, question, **how):
    """Return how much the tokens of each memory are like those of a question, by text."""
    return {hit.text: hit.explain.get("tokens") for hit in await memory.recall(question, k=10, **how)}


def codes_in(path):
    """Return how many codes and memories a closed database has."""
    with closing(sqlite3.connect(path / "aiochroma-text.sqlite3")) as connection:
        return tuple(
            connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in ("codes", "memories")
        )


async def test_the_memory_with_the_tokens_of_the_question_comes_first(tmp_path):
    """Tokens count beside the vector, by meaning alone as well; by words alone they do not."""
    async with aiochroma.Memory(tmp_path, embedder=Words()) as memory:
        await memory.remember_many(FACTS, thread=False)
        for mode in ("hybrid", "vector"):
            found = await likeness(memory, "dentist street", mode=mode)
            assert max(found, key=found.__getitem__) == next(iter(found)) == FACTS[1]
            assert found[FACTS[1]] > 0.7 > 0.4 > found[FACTS[0]]
        assert set((await likeness(memory, "dentist street", mode="text")).values()) == {None}


async def test_what_stands_around_lends_its_tokens(tmp_path):
    """In a conversation the turn before the answer counts, as it does for words."""
    turns = ["where is the kettle", "in the kitchen", "and the bread", "it is gone"]
    found = []
    async with aiochroma.Memory(tmp_path, embedder=Words()) as memory:
        for number, thread in enumerate(("talk", False)):
            namespace = f"n{number}"
            await memory.remember_many(turns, namespace=namespace, thread=thread)
            found.append(await likeness(memory, "kettle", mode="vector", namespaces=namespace))
    together, alone = found
    assert together["in the kitchen"] > alone["in the kitchen"] + 0.3
    assert together["where is the kettle"] == pytest.approx(alone["where is the kettle"], abs=1e-6)


async def test_codes_go_where_the_memories_go(tmp_path):
    """They outlive a restart and a change of metadata, are replaced with the text, and go with the memory."""
    async with aiochroma.Memory(tmp_path, embedder=Words()) as memory:
        ids = await memory.remember_many(FACTS, thread=False)
        before = await likeness(memory, "kettle")
    assert codes_in(tmp_path) == (4, 4)
    async with aiochroma.Memory(tmp_path, embedder=Words()) as memory:
        assert await likeness(memory, "kettle") == before
        await memory.update(ids[0], metadata={"room": "kitchen"})
        await memory.pin(ids[1])
        assert (await likeness(memory, "kettle"))[FACTS[0]] == before[FACTS[0]]
        await memory.update(ids[0], text="the teapot is red")
        assert (await likeness(memory, "teapot"))["the teapot is red"] > 0.7
        await memory.forget(ids[2])
        await memory.erase(ids[3])
    assert codes_in(tmp_path) == (2, 2)


async def test_the_codes_in_memory_are_bounded(tmp_path, monkeypatch):
    """With room for one alone, and after a write that did not happen, a recall finds what it found before."""
    async with aiochroma.Memory(tmp_path, embedder=Words()) as memory:
        await memory.remember_many(FACTS, thread=False)
        before = await likeness(memory, "kettle")
        monkeypatch.setattr(codes, "_MOST_BYTES_KEPT", 500)
        for _ in range(2):
            assert await likeness(memory, "kettle") == before
        index = TextIndex(":memory:")
        index.upsert("n", [IndexedText("a", "x", vector=[1.0] * 8, code=b"\xff\xff")])
        coverage = partial(
            index.token_coverage,
            "n",
            np.full((1, 8), 8**-0.5, dtype=np.float32),
            np.array([1]),
            np.zeros(1),
            1,
        )
        assert coverage() == pytest.approx(1.0)
        with pytest.raises(sqlite3.Error):
            index.upsert(
                "n", [IndexedText("a", "x", code=b"\x00\x00"), IndexedText("b", "y", thread=object())]
            )
        assert coverage() == pytest.approx(1.0)
        index.close()


async def test_a_code_of_another_vector_is_not_kept(tmp_path):
    """Who gives a memory another vector by Chroma's own means takes its code away for good; with the same vector it stays."""
    async with aiochroma.Memory(tmp_path, embedder=Words()) as memory:
        first, second, *_ = await memory.remember_many(FACTS, thread=False)
        collection = await memory.client.get_collection("default", embedding_function=None)
        record = await collection.get(ids=[second], include=["embeddings"])
        await collection.update(
            ids=[first, second], embeddings=[state("teapot"), 3.0 * np.asarray(record["embeddings"][0])]
        )
        found = await likeness(memory, "kettle")
        assert (await memory.reembed()).unchanged == ("default",)
    assert found[FACTS[0]] is None
    assert None not in {found[text] for text in FACTS[1:]}
    assert codes_in(tmp_path) == (3, 4)


async def test_without_codes_a_recall_does_without_and_reembedding_makes_them(tmp_path):
    """Codes are disposable: an index that is gone, or written by another embedder, costs their help until then."""
    async with aiochroma.Memory(tmp_path, embedder=Words()) as memory:
        await memory.remember_many(FACTS, thread=False)
        before = await likeness(memory, "kettle")
    (tmp_path / "aiochroma-text.sqlite3").unlink()
    async with aiochroma.Memory(tmp_path, embedder=Words()) as memory:
        assert set((await likeness(memory, "kettle")).values()) == {None}
        assert (await memory.reembed()).embedded == {"default": 4}
        assert await likeness(memory, "kettle") == before
        assert (await memory.reembed()).unchanged == ("default",)
    async with aiochroma.Memory(tmp_path, embedder=Other()) as memory:
        assert (await memory.reembed()).embedded == {"default": 4}
        assert await likeness(memory, "kettle") != before
        assert None not in (await likeness(memory, "kettle")).values()
    async with aiochroma.Memory(tmp_path, embedder="hashed") as memory:
        await memory.reembed()
        assert set((await likeness(memory, "kettle")).values()) == {None}
    assert codes_in(tmp_path) == (0, 4)


async def test_a_text_that_changes_while_its_code_is_made_keeps_the_code_of_the_new_one(tmp_path):
    """Reembedding reads, embeds and writes; what was written in between, here by another memory, is newer."""
    reading, changed = threading.Event(), threading.Event()

    class Slow(Words):
        def embed_tokens(self, texts):
            if FACTS[0] in texts:
                reading.set()
                assert changed.wait(60)
            return super().embed_tokens(texts)

    class Quick(Words):
        """Has the same name, and an embedding thread of its own."""

    async with aiochroma.Memory(tmp_path, embedder=Quick()) as memory:
        first, *_ = await memory.remember_many(FACTS, thread=False)
    (tmp_path / "aiochroma-text.sqlite3").unlink()
    async with (
        aiochroma.Memory(tmp_path, embedder=Slow()) as memory,
        aiochroma.Memory(tmp_path, embedder=Quick()) as other,
    ):
        run = asyncio.create_task(memory.reembed())
        assert await asyncio.to_thread(reading.wait, 60)
        await other.update(first, text="the teapot is red")
        changed.set()
        await run
        found = await likeness(other, "teapot")
        assert found["the teapot is red"] > 0.7
        assert None not in found.values()


async def test_a_code_does_not_need_the_very_same_numbers(tmp_path):
    """A model that gives a text a little different numbers in another batch completes codes all the same."""

    class Rounding(Words):
        def embed_tokens(self, texts):
            matrices = super().embed_tokens(texts)
            for matrix in matrices:
                nearest = np.argsort(np.abs(matrix[0]))[:2]
                matrix[0, nearest] *= -1.0
            return matrices

    async with aiochroma.Memory(tmp_path, embedder=Words()) as memory:
        ids = await memory.remember_many(FACTS, thread=False)
    (tmp_path / "aiochroma-text.sqlite3").unlink()
    async with aiochroma.Memory(tmp_path, embedder=Rounding()) as memory:
        assert (await memory.reembed()).embedded == {"default": 4}
        await memory.update(ids[0], metadata={"room": "kitchen"})
        assert None not in (await likeness(memory, "kettle")).values()


async def test_an_import_and_a_process_that_shares_have_codes_too(tmp_path):
    """What is exported is embedded where it is imported; codes and tokens travel to the process that has the database."""
    async with aiochroma.Memory(tmp_path / "one", embedder=Words()) as memory:
        await memory.remember_many(FACTS, thread=False)
        before = await likeness(memory, "kettle")
        await memory.export(tmp_path / "all.jsonl")
    async with aiochroma.Memory(
        tmp_path / "two", embedder=Words(), process="shared", host_idle=0.5
    ) as memory:
        await memory.import_(tmp_path / "all.jsonl")
        assert await likeness(memory, "kettle") == before


async def test_a_question_has_the_vector_of_embed_query_and_its_own_tokens(tmp_path):
    """An embedder that treats questions differently does so with tokens, too; what is remembered is not touched by it."""

    class Asked(Words):
        def embed_query(self, texts):
            return self.embed([text.removeprefix("query: ") for text in texts])

        def embed_tokens(self, texts):
            matrices = super().embed_tokens(texts)
            for text, matrix in zip(texts, matrices, strict=True):
                if text.startswith("query: "):
                    matrix[0] = state("nothing of the kind")
            return matrices

    async with aiochroma.Memory(tmp_path, embedder=Asked()) as memory:
        await memory.remember_many(FACTS, thread=False)
        best, *_ = await memory.recall("query: dentist street", mode="vector", k=10)
        assert best.text == FACTS[1]
        assert best.distance == pytest.approx(
            1.0 - Words().embed([FACTS[1]])[0] @ Words().embed(["dentist street"])[0], abs=1e-4
        )
        assert best.explain["tokens"] > 0.3


@pytest.mark.parametrize("method", ["embed", "embed_query", "embed_tokens"])
async def test_an_asynchronous_embedder_of_tokens_is_refused_at_the_start(tmp_path, method):
    """It is called on a thread, where nothing could be awaited."""

    async def answer(texts):
        raise AssertionError("never called")

    embedder = Words()
    setattr(embedder, method, answer)
    with pytest.raises(aiochroma.InvalidInputError, match=f"`{method}`"):
        async with aiochroma.Memory(tmp_path, embedder=embedder):
            pass


@pytest.mark.parametrize(
    "result",
    [[np.zeros(8)], [np.zeros((2, 7))], [np.full((2, 8), np.nan)], [], 7],
    ids=["no matrix", "width", "not finite", "none", "no list"],
)
async def test_what_is_no_matrix_of_tokens_is_the_embedders_failure(tmp_path, result):
    """A wrong result of `embed_tokens` is reported as one of the embedder."""

    class Wrong(Words):
        def embed_tokens(self, texts):
            return result

    async with aiochroma.Memory(tmp_path, embedder=Wrong()) as memory:
        with pytest.raises(aiochroma.EmbeddingFailedError):
            await memory.remember("hello")


@pytest.mark.skipif(not is_packaged(), reason="the extra `minilm` is not installed")
def test_minilm_gives_the_tokens_that_say_something():
    """Above them stands the vector of the text; function words, punctuation and other scripts are left out."""
    embedder = aiochroma.MiniLmEmbedder()
    texts = ["The therapist, who was kind, sat on the mat.", "Who is it?", "東京", " "]
    tokens = embedder.embed_tokens(texts)
    np.testing.assert_allclose([matrix[0] for matrix in tokens], embedder.embed(texts), atol=1e-5)
    assert [len(matrix) - 1 for matrix in tokens] == [4, 3, 0, 0]
