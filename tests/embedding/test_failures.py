"""Whatever an embedder does, it is an embedder's failure, and harms nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import numpy as np
import pytest
from programs import PATIENCE

import aiochroma
import aiochroma.sync
from aiochroma._waiting import drive
from aiochroma.core.request import Request
from aiochroma.embedding import runner
from aiochroma.embedding.choice import adapted
from aiochroma.embedding.runner import EmbeddingWorker


def vectors(texts):
    return [[1.0, float(len(text) % 7), float(text.count("e"))] for text in texts]


class Failing:
    """Embeds until it is told to fail."""

    def __init__(self, error):
        self.error = error
        self.fails = False

    def __call__(self, texts):
        if self.fails:
            raise self.error
        return vectors(texts)


class FailingAsynchronously(Failing):
    async def __call__(self, texts):
        return super().__call__(texts)


class FailingAsItIsRead(Failing):
    def __call__(self, texts):
        return (super(FailingAsItIsRead, self).__call__([text])[0] for text in texts)


class _Tensor:
    def __array__(self, *_, **__):
        raise RuntimeError("Can't call numpy() on a tensor that requires grad.")


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Failing, ConnectionError("refused by https://user:s3cret@host/v1?key=s3cret")),
        (Failing, asyncio.CancelledError()),
        (Failing, SystemExit(3)),
        (Failing, GeneratorExit()),
        (FailingAsItIsRead, RuntimeError("no model")),
        (FailingAsItIsRead, ValueError("no model")),
        (FailingAsynchronously, SystemExit(3)),
        (FailingAsynchronously, KeyError("no model")),
        (FailingAsynchronously, asyncio.CancelledError()),
    ],
)
async def test_what_an_embedder_raises_has_one_type_and_its_cause(tmp_path, kind, error):
    """Writing raises `EmbeddingFailedError` with the cause; a hybrid recall goes on by words and says so."""
    embedder = kind(error)
    async with aiochroma.Memory(tmp_path, embedder=embedder) as memory:
        await memory.remember("The locker code is ZX-4410.")
        embedder.fails = True
        with pytest.raises(aiochroma.EmbeddingFailedError) as failed:
            await memory.remember("The printer is on floor 3.")
        assert type(failed.value.__cause__) is type(error)
        assert "s3cret" not in str(failed.value)
        found = await memory.recall("ZX-4410")
        assert [hit.text for hit in found] == ["The locker code is ZX-4410."]
        assert isinstance(found.errors[""], aiochroma.EmbeddingFailedError)
        with pytest.raises(aiochroma.EmbeddingFailedError):
            await memory.recall("ZX-4410", mode="vector")


class _Unnamed:
    max_distance = 0.5
    dimensions = 3

    @property
    def identity(self):
        raise RuntimeError("not loaded yet")

    def embed(self, texts):
        return vectors(texts)


class _Unconfigured:
    def __call__(self, input):
        return vectors(input)

    def name(self):
        return "own"

    def get_config(self):
        raise ConnectionError("the service is away")


@pytest.mark.parametrize("embedder", [_Unnamed(), _Unconfigured()])
async def test_an_embedder_that_cannot_say_what_it_is_blames_itself(tmp_path, embedder):
    """Opening raises an error of the embedder with its cause; nothing is left open."""
    with pytest.raises(aiochroma.EmbedderError) as failed:
        await aiochroma.Memory(tmp_path, embedder=embedder).open()
    assert failed.value.__cause__ is not None
    async with aiochroma.Memory(tmp_path, embedder=vectors) as memory:
        assert await memory.remember("sound")


async def test_an_identity_that_is_no_text_is_refused(tmp_path):
    """It is stored with the data, and compared with later."""

    class Numbered(_Unnamed):
        identity = 5

    with pytest.raises(aiochroma.InvalidInputError, match="identity"):
        await aiochroma.Memory(tmp_path, embedder=Numbered()).open()


class _Sound(_Unnamed):
    identity = "sound"


@pytest.mark.parametrize(
    ("claims", "named"),
    [
        ({"dimensions": "3"}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"max_distance": "0.5"}, "max_distance"),
        ({"max_distance": float("nan")}, "max_distance"),
        ({"inline_characters": None}, "inline_characters"),
        ({"window": 0}, "window"),
        ({"window": "512"}, "window"),
    ],
)
async def test_what_an_embedder_says_of_itself_is_checked(tmp_path, claims, named):
    """When it is given, and by name; a number of numpy is a number."""
    with pytest.raises(aiochroma.InvalidInputError, match=f"`{named}`"):
        await aiochroma.Memory(tmp_path, embedder=type("Odd", (_Sound,), claims)()).open()
    numbers = {"dimensions": np.int64(3), "max_distance": np.float32(0.5), "inline_characters": np.int64(5)}
    async with aiochroma.Memory(tmp_path, embedder=type("Numpy", (_Sound,), numbers)()) as memory:
        assert await memory.remember("sound")
        assert len(await memory.recall("sound", max_distance="auto")) == 1


async def test_what_is_nearly_an_embedder_is_told_what_it_lacks(tmp_path):
    """Or that it is the class of one."""

    class Nearly:
        identity = "nearly"
        embed = _Sound.embed

    with pytest.raises(aiochroma.InvalidInputError, match="lacks `dimensions`, `max_distance`"):
        await aiochroma.Memory(tmp_path, embedder=Nearly()).open()
    with pytest.raises(aiochroma.InvalidInputError, match="the class _Sound"):
        await aiochroma.Memory(tmp_path, embedder=_Sound).open()


@pytest.mark.parametrize(
    "answer", [ValueError("disallowed special token"), asyncio.CancelledError(), None, "3", 2.5, -1]
)
async def test_an_embedder_that_cannot_count_tokens_blames_itself(tmp_path, answer):
    """As where it fails to embed; nothing is written."""

    class Counting(_Sound):
        window = 4

        def count_tokens(self, text):
            if isinstance(answer, BaseException):
                raise answer
            return answer

    async with aiochroma.Memory(tmp_path, embedder=Counting()) as memory:
        with pytest.raises(aiochroma.EmbeddingFailedError, match="Counting"):
            await memory.remember("a text of more words than the embedder reads")
        assert await memory.count() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_vectors_that_are_no_numbers_blame_the_embedder(tmp_path, value):
    """NaN and infinities are the embedder's fault, and a degrading memory bears them."""

    def embed(texts):
        return [[value, 1.0] for _ in texts]

    async with aiochroma.Memory(tmp_path, embedder=embed) as memory:
        with pytest.raises(aiochroma.EmbeddingFailedError, match="NaN or an infinity"):
            await memory.remember("a sound text")
    async with aiochroma.Memory(tmp_path, embedder=embed, on_failure="degrade") as memory:
        assert await memory.remember("a sound text") == ""


@pytest.mark.parametrize("vector", [[], [1e300, 1.0], [3e38, 3e38]])
async def test_vectors_without_a_direction_blame_the_embedder(tmp_path, vector):
    """None of any length, and none whose numbers do not fit: the text is not to blame, and nothing warns."""
    async with aiochroma.Memory(tmp_path, embedder=lambda texts: [vector for _ in texts]) as memory:
        with pytest.raises(aiochroma.EmbeddingFailedError):
            await memory.remember("The locker code is ZX-4410.")


@pytest.mark.parametrize(
    "result", [None, 3, [[1.0]], [[1.0], [1.0, 2.0]], "text", [_Tensor(), _Tensor()], iter([[1.0]])]
)
async def test_what_is_no_vector_for_each_text_is_refused(client, result):
    """Too few vectors, vectors of different lengths and other things are the function's failure."""
    collection = await client.create_collection("facts", embedding_function=lambda _: result)
    with pytest.raises(aiochroma.EmbeddingFailedError):
        await collection.add(ids=["a", "b"], documents=["x", "y"])


async def test_a_callers_cancellation_remains_its_own(tmp_path):
    """A caller that is cancelled while an asynchronous embedder works is released as cancelled, and so is the embedder."""
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def embed(texts):
        entered.set()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            cancelled.set()
        return vectors(texts)

    async with aiochroma.Memory(tmp_path, embedder=embed) as memory:
        task = asyncio.ensure_future(memory.remember("hello"))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(cancelled.wait(), PATIENCE)


def test_an_embedder_that_uses_its_own_memory_is_refused_at_once(tmp_path):
    """From inside of an embedder the same embedder cannot be asked: it would wait for itself."""
    inner = []

    def embed(texts):
        if not inner:
            inner.append(None)
            with contextlib.suppress(aiochroma.EmbeddingFailedError):
                memory.recall("anything", mode="vector", namespaces="seen")
                inner.append("an answer")
        return vectors(texts)

    with aiochroma.sync.Memory(tmp_path, embedder=vectors) as memory:
        memory.remember("something", namespace="seen")
    with aiochroma.sync.Memory(tmp_path, embedder=embed) as memory:
        done = []
        thread = threading.Thread(target=lambda: done.append(memory.remember("hello there")), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert done
        assert inner == [None]


async def test_an_embedder_that_hangs_keeps_no_other_waiting(client):
    """Another function embeds meanwhile, on a thread of its own."""
    entered, go_on = threading.Event(), threading.Event()

    def hanging(texts):
        entered.set()
        assert go_on.wait(PATIENCE)
        return vectors(texts)

    stuck = await client.create_collection("stuck", embedding_function=hanging)
    sound = await client.create_collection("sound", embedding_function=vectors)
    task = asyncio.ensure_future(stuck.add(ids=["a"], documents=["x"]))
    while not entered.is_set():
        await asyncio.sleep(0)
    await sound.add(ids=["a"], documents=["x"])
    assert not task.done()
    go_on.set()
    await task


async def test_a_service_that_swallows_calls_is_asked_on_further_threads_and_then_refused(
    client, monkeypatch
):
    """Calls that never return cost their own callers; later ones are served, and the number of threads is bounded."""
    monkeypatch.setattr(runner, "_STUCK_SECONDS", 0.0)
    monkeypatch.setattr(runner, "_HUNG_SECONDS", 0.0)
    entered, go_on = threading.Semaphore(0), threading.Event()

    def sometimes(texts):
        if "hang" in texts:
            entered.release()
            assert go_on.wait(PATIENCE)
        return vectors(texts)

    collection = await client.create_collection("facts", embedding_function=sometimes)
    tasks = []
    for number in range(3):
        tasks.append(asyncio.ensure_future(collection.query(query_texts=["hang"])))
        while not await asyncio.to_thread(entered.acquire, timeout=PATIENCE):
            pass
        assert not tasks[number].done()
    await collection.add(ids=["a"], documents=["x"])
    tasks.append(asyncio.ensure_future(collection.query(query_texts=["hang"])))
    assert await asyncio.to_thread(entered.acquire, timeout=PATIENCE)
    with pytest.raises(aiochroma.EmbeddingFailedError, match="has not come back from 4 calls"):
        await collection.query(query_texts=["anything"])
    go_on.set()
    await asyncio.gather(*tasks)


async def test_those_who_wait_behind_a_call_that_hangs_get_their_answers(client, monkeypatch):
    """They move to another thread, on a loop and without one; the call that hangs goes on alone."""
    monkeypatch.setattr(runner, "_STUCK_SECONDS", 0.05)
    entered, go_on = threading.Event(), threading.Event()

    def sometimes(texts):
        if "hang" in texts:
            entered.set()
            assert go_on.wait(PATIENCE)
        return vectors(texts)

    collection = await client.create_collection("facts", embedding_function=sometimes)
    hanging = asyncio.ensure_future(collection.query(query_texts=["hang"]))
    assert await asyncio.to_thread(entered.wait, PATIENCE)
    with aiochroma.deadline(PATIENCE):
        await asyncio.gather(*(collection.add(ids=[str(n)], documents=[f"text {n}"]) for n in range(5)))
        # These were queued behind it: the thread was not known to be stuck.
        await asyncio.to_thread(drive, collection.add(ids=["plain"], documents=["a plain thread"]))
    assert not hanging.done()
    go_on.set()
    await hanging


async def test_the_error_of_a_deadline_says_that_the_embedder_hangs(client):
    """And not that some queue is long."""
    entered, go_on = threading.Event(), threading.Event()

    def hanging(texts):
        entered.set()
        assert go_on.wait(PATIENCE)
        return vectors(texts)

    collection = await client.create_collection("facts", embedding_function=hanging)
    for _ in range(2):
        with aiochroma.deadline(1.0), pytest.raises(aiochroma.DeadlineExceededError, match="hanging"):
            await collection.add(ids=["a"], documents=["x"])
    go_on.set()


@pytest.mark.parametrize("tokens", [False, True])
def test_an_embedder_may_use_its_arrays_again(tokens):
    """What was returned stays as it was, and the embedder's own arrays stay writable."""

    class Reusing:
        identity, dimensions, max_distance = "reusing", 8, 0.5

        def __init__(self):
            self.vector, self.matrix = np.zeros(8, dtype=np.float32), np.zeros((2, 8), dtype=np.float32)

        def embed(self, texts):
            for text in texts:
                self.vector[:] = len(text)
                yield self.vector

        def embed_tokens(self, texts):
            for text in texts:
                self.matrix[:] = len(text)
                yield self.matrix

    worker, function = EmbeddingWorker(), adapted(Reusing()).function
    purpose = {"function": function, "is_query": False, "tokens": tokens}
    first, second = worker.execute(Request("embed", {**purpose, "inputs": ["a", "bb"]}))
    (third,) = worker.execute(Request("embed", {**purpose, "inputs": ["ccc"]}))
    assert [vector.mean() for vector in (first, second, third)] == [1.0, 2.0, 3.0]
    (again,) = worker.execute(Request("embed", {**purpose, "inputs": ["a"]}))
    assert again.mean() == 1.0


async def test_an_embedder_may_clean_its_texts_in_place(tmp_path):
    """The list that it is given is its own: the texts that are remembered, and the vectors that belong to them, stay."""

    def cleaning(texts):
        for at, text in enumerate(texts):
            texts[at] = text.replace("\n", " ")
        return vectors(texts)

    async def asynchronously(texts):
        return cleaning(texts)

    for number, embedder in enumerate((cleaning, asynchronously)):
        async with aiochroma.Memory(tmp_path / str(number), embedder=embedder) as memory:
            await memory.remember("a kettle\nof tea")
            assert [hit.text for hit in await memory.recall("kettle\ntea")] == ["a kettle\nof tea"]


@pytest.mark.filterwarnings("error")
async def test_a_coroutine_that_nothing_announces_is_named(tmp_path):
    """`lambda texts: service.embed(texts)` is no `async def`, so it is called on a thread; the error says what to pass."""

    class Service:
        async def embed(self, texts):
            return vectors(texts)

    class Wrapped:
        identity = "wrapped"

        def __call__(self, texts):
            return Service().embed(texts)

    async with aiochroma.Memory(tmp_path / "memory", embedder=Wrapped()) as memory:
        with pytest.raises(aiochroma.EmbeddingFailedError, match="async def"):
            await memory.remember("a kettle of tea")
