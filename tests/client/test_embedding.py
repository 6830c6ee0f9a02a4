"""Embedding functions: where they run, in which form they are accepted, and that None means none."""

from __future__ import annotations

import asyncio
import socket
import threading

import numpy as np
import pytest
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings
from programs import PATIENCE

import aiochroma


def vector_of(text):
    return np.array([len(text), 1.0, text.count("a"), 0.0], dtype=np.float32)


class Noting:
    """Notes which thread called it."""

    def __init__(self):
        self.threads = set()
        self.loops = set()
        self.batches = []

    def note(self, texts):
        self.threads.add(threading.get_ident())
        self.batches.append(list(texts))
        return [vector_of(text) for text in texts]


class Synchronous(Noting):
    def __call__(self, input):
        return self.note(input)


class Asynchronous(Noting):
    async def __call__(self, input):
        self.loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return self.note(input)


class AsynchronousForQueries(Asynchronous):
    def __init__(self):
        super().__init__()
        self.questions = []

    async def embed_query(self, input):
        self.questions.append(list(input))
        return [vector_of(text) for text in input]


class Chromas(EmbeddingFunction[Documents]):
    """As Chroma's own functions are written: stored by name, with another method for questions."""

    def __init__(self):
        self.noting = Noting()
        self.questions = []

    def __call__(self, input: Documents) -> Embeddings:
        return self.noting.note(input)

    def embed_query(self, input):
        self.questions.append(list(input))
        return [vector_of(text) for text in input]

    @staticmethod
    def name():
        return "noting"

    def get_config(self):
        return {}

    @staticmethod
    def build_from_config(config):
        return Chromas()


async def _use(client, function, name="embedded"):
    collection = await client.create_collection(name, embedding_function=function)
    await collection.add(ids=["a", "b"], documents=["banana", "melon"])
    await collection.upsert(ids=["c"], documents=["fig"])
    await collection.update(ids=["c"], documents=["date"])
    found = await collection.query(query_texts=["banana"], n_results=1)
    assert found["ids"] == [["a"]]
    return collection


async def test_embedding_never_runs_on_loop_or_db_thread(bindings, client):
    """A synchronous function has a thread of its own, neither that of the event loop nor that of Chroma."""
    function = Synchronous()
    await _use(client, function)
    assert len(function.threads) == 1
    assert threading.get_ident() not in function.threads
    assert function.threads.isdisjoint(bindings.threads)
    assert bindings.threads


async def test_the_loop_goes_on_while_a_function_takes_its_time(client):
    """The event loop, and the database, serve others while a function computes."""
    entered, go_on = threading.Event(), threading.Event()

    def slow(texts):
        entered.set()
        assert go_on.wait(PATIENCE)
        return [vector_of(text) for text in texts]

    collection = await client.create_collection("slow", embedding_function=slow)
    adding = asyncio.ensure_future(collection.add(ids=["a"], documents=["x"]))
    while not entered.is_set():
        await asyncio.sleep(0)
    assert await collection.count() == 0
    assert not adding.done()
    go_on.set()
    await adding
    assert await collection.count() == 1


async def test_asynchronous_functions_are_awaited_on_the_callers_loop(bindings, client):
    """An asynchronous function runs on the event loop that called, as its connections need."""
    function = Asynchronous()
    collection = await _use(client, function)
    assert function.loops == {asyncio.get_running_loop()}
    assert function.threads == {threading.get_ident()}

    async def from_elsewhere():
        await collection.add(ids=["z"], documents=["zebra"])
        return asyncio.get_running_loop()

    other = await asyncio.to_thread(asyncio.run, from_elsewhere())
    assert function.loops == {asyncio.get_running_loop(), other}


async def test_coroutine_functions_are_accepted(client):
    """A plain `async def` is an embedding function, too."""

    async def embed(texts):
        await asyncio.sleep(0)
        return [vector_of(text) for text in texts]

    await _use(client, embed)


async def test_a_question_may_be_embedded_differently(client):
    """`embed_query` is used for questions, and only for them, in both kinds of function."""
    chromas, asynchronous = Chromas(), AsynchronousForQueries()
    await _use(client, chromas, "chromas")
    await _use(client, asynchronous, "asynchronous")
    assert chromas.questions == [["banana"]]
    assert asynchronous.questions == [["banana"]]
    assert ["banana"] not in asynchronous.batches


async def test_texts_that_wait_together_are_embedded_together(client):
    """Requests of many tasks become few calls of the function."""
    entered, go_on = threading.Event(), threading.Event()
    batches = []

    def embed(texts):
        batches.append(list(texts))
        entered.set()
        assert go_on.wait(PATIENCE)
        return [vector_of(text) for text in texts]

    collection = await client.create_collection("together", embedding_function=embed)
    first = asyncio.ensure_future(collection.add(ids=["0"], documents=["0"]))
    while not entered.is_set():
        await asyncio.sleep(0)
    others = [asyncio.ensure_future(collection.add(ids=[f"{n}"], documents=[f"{n}"])) for n in range(1, 20)]
    for _ in range(10):
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(first, *others)
    assert len(batches) == 2
    assert sorted(batches[1]) == sorted(f"{n}" for n in range(1, 20))


async def test_no_function_means_none(client, monkeypatch):
    """With `embedding_function=None` nothing is embedded and nobody is called on the network."""
    attempts = []

    def refuse(*arguments, **named):
        attempts.append(arguments)
        raise OSError("no network in this test")

    collection = await client.create_collection("none", embedding_function=None)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for attempt in (
        collection.add(ids=["a"], documents=["x"]),
        collection.upsert(ids=["a"], documents=["x"]),
        collection.update(ids=["a"], documents=["x"]),
        collection.query(query_texts=["x"]),
    ):
        with pytest.raises(ValueError, match="embedding function"):
            await attempt
    assert attempts == []
    assert await collection.count() == 0
    await collection.add(ids=["a"], documents=["x"], embeddings=[[1.0, 2.0]])
    await collection.update(ids=["a"], metadatas=[{"changed": True}])


@pytest.mark.parametrize(
    "answer",
    [
        lambda texts: [],
        lambda texts: None,
        lambda texts: [[1.0]] * (len(texts) + 1),
        lambda texts: 3,
        lambda texts: ["x"],
    ],
)
async def test_what_is_not_vectors_is_refused(client, answer):
    """A function that does not return one vector for each text is named, and nothing is written."""
    collection = await client.create_collection("wrong", embedding_function=answer)
    with pytest.raises(aiochroma.EmbeddingFailedError, match="lambda"):
        await collection.add(ids=["a"], documents=["x"])
    assert await collection.count() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_functions_that_return_nonsense_write_nothing(client, value):
    """NaN and infinity from a function are found before anything is written."""
    collection = await client.create_collection(
        "nonsense", embedding_function=lambda texts: [[1.0, value] for _ in texts]
    )
    with pytest.raises(Exception, match="NaN"):
        await collection.add(ids=["a"], documents=["x"])
    assert await collection.count() == 0


async def test_the_functions_own_error_comes_back(client):
    """What a function raises reaches its caller as the cause of an embedding error, and the next text is embedded."""
    answers = iter([KeyError("no such model"), None])

    def moody(texts):
        error = next(answers)
        if error is not None:
            raise error
        return [vector_of(text) for text in texts]

    collection = await client.create_collection("moody", embedding_function=moody)
    with pytest.raises(aiochroma.EmbeddingFailedError, match="no such model") as failed:
        await collection.add(ids=["a"], documents=["x"])
    assert isinstance(failed.value.__cause__, KeyError)
    await collection.add(ids=["a"], documents=["y"])
    assert await collection.count() == 1


async def test_the_deadline_covers_embedding(client):
    """A deadline that passes while an asynchronous function is awaited ends the call; nothing is written."""

    async def never(texts):
        await asyncio.Event().wait()

    collection = await client.create_collection("never", embedding_function=never)
    with aiochroma.deadline(0.05), pytest.raises(aiochroma.DeadlineExceededError):
        await collection.add(ids=["a"], documents=["x"])
    assert await collection.count() == 0
