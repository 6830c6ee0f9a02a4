"""What goes wrong on the way to a server: repeated where that is harmless, told apart where not."""

from __future__ import annotations

import asyncio
import socket

import pytest
from chromadb import Knn, Schema, Search, SparseVectorIndexConfig
from chromadb.base_types import SparseVector
from chromadb.errors import ChromaError

import aiochroma


class Once:
    """A rule that answers the first requests of an operation in its own way, and lets the others pass."""

    def __init__(self, operation, what, times=1):
        self.operation, self.what, self.left = operation, what, times

    def __call__(self, seen):
        if seen.operation == self.operation and self.left:
            self.left -= 1
            return self.what
        return None


@pytest.fixture
async def through(relay):
    async with aiochroma.AsyncHttpClient("127.0.0.1", relay.port) as opened:
        yield opened


@pytest.fixture
async def collection(through, name):
    made = await through.create_collection(name, embedding_function=None)
    await made.upsert(
        ids=["a", "b"],
        embeddings=[[1.0, 0.0], [0.0, 1.0]],
        documents=["one", "two"],
        metadatas=[{"n": 1}, {"n": 2}],
    )
    return made


LOSSES = [
    "lose-request",
    "lose-response",
    (502, {}, b"bad gateway"),
    (503, {"Retry-After": "0"}, b""),
    (504, {}, b""),
]


@pytest.mark.parametrize(
    "what", [*LOSSES, (429, {}, b'{"error": "RateLimitError", "message": "slow down"}')], ids=str
)
async def test_reads_and_idempotent_writes_are_repeated(collection, relay, what):
    """A fault on the way is not seen by callers of reads, nor of writes that name their records."""
    for operation in ("query", "get", "count", "add", "upsert", "update", "delete"):
        relay.rule = Once(operation, what)
        if operation == "query":
            assert (await collection.query(query_embeddings=[[1.0, 0.0]], n_results=1))["ids"] == [["a"]]
        elif operation == "get":
            assert (await collection.get(ids=["b"]))["documents"] == ["two"]
        elif operation == "count":
            assert await collection.count() == 2
        elif operation == "delete":
            assert await collection.delete(ids=["c", "nobody"]) == {"deleted": 2}
        else:
            await getattr(collection, operation)(ids=["c"], embeddings=[[1.0, 1.0]], documents=[operation])
            assert (await collection.get(ids=["c"]))["documents"] == [operation]
        assert relay.rule.left == 0
    assert await collection.count() == 2


@pytest.mark.parametrize("what", LOSSES, ids=str)
async def test_other_writes_are_not_repeated(through, collection, relay, name, what):
    """A write that may have happened, and would do something else the second time, is sent once; the error says so."""
    calls = {
        "collections": lambda: through.create_collection(f"{name}-new", embedding_function=None),
        "delete": lambda: collection.delete(where={"n": 1}),
        str(collection.id): lambda: collection.modify(metadata={"changed": True}),
        name: lambda: through.delete_collection(name),
    }
    for operation, call in calls.items():
        relay.rule = Once(operation, what, times=2)
        with pytest.raises(aiochroma.OutcomeUnknownError, match="may or may not have happened") as error:
            await call()
        assert error.value.__cause__ is not None
        assert relay.rule.left == 1
        relay.rule = lambda seen: None


async def test_a_refusal_is_repeated_for_every_write(through, relay, name):
    """Where the server refused a call it did not happen, so even creating a collection is tried again."""
    relay.rule = Once("collections", (429, {}, b""))
    made = await through.create_collection(name, embedding_function=None)
    assert made.name == name


async def test_get_or_create_is_repeated(through, relay, name):
    """Getting or creating has the same result the second time."""
    relay.rule = Once("collections", "lose-response")
    made = await through.get_or_create_collection(name, embedding_function=None)
    assert made.name == name


async def test_lasting_faults_are_told(collection, relay):
    """After the last attempt a read says that the server is unavailable, a write that its outcome is unknown."""
    relay.rule = lambda seen: (503, {}, b"<html><body><h1>maintenance</h1></body></html>")
    seen = len(relay.seen)
    with pytest.raises(aiochroma.StoreUnavailableError, match=r"HTTP 503.*maintenance"):
        await collection.count()
    assert len(relay.seen) - seen == 6
    with pytest.raises(aiochroma.OutcomeUnknownError, match="6 attempts"):
        await collection.upsert(ids=["a"], embeddings=[[1.0, 0.0]])


async def test_the_server_s_own_word_stays(collection, relay):
    """Chroma's own error about being overloaded is raised as it is, once repeating has not helped."""
    from chromadb.errors import RateLimitError

    relay.rule = lambda seen: (429, {}, b'{"error": "RateLimitError", "message": "slow down"}')
    with pytest.raises(RateLimitError, match="slow down"):
        await collection.count()


async def test_a_lasting_fault_is_shared_by_a_merged_call(relay, server, name):
    """The members of a merged call that cannot reach the server share its error; they are not tried one by one."""
    async with aiochroma.AsyncHttpClient("127.0.0.1", relay.port, connections=1, attempts=2) as client:
        collection = await client.create_collection(name, embedding_function=None)
        await collection.upsert(ids=["a"], embeddings=[[1.0, 0.0]])
        relay.hold("count")
        busy = asyncio.ensure_future(collection.count())
        await asyncio.to_thread(relay.wait_until_held, 1)
        relay.rule = lambda seen: "lose-request" if seen.operation == "query" else None
        queries = [collection.query(query_embeddings=[[float(n), 0.0]], n_results=1) for n in range(10)]
        together = asyncio.gather(*queries, return_exceptions=True)
        await asyncio.sleep(0)
        relay.release()
        errors = await together
        assert await busy == 1
        assert {type(error) for error in errors} == {aiochroma.StoreUnavailableError}
        assert len({id(error) for error in errors}) == 10
        assert relay.count("query") == 2


async def test_repeating_ends_with_the_deadline(collection, relay):
    """No attempt begins when nobody would wait for it."""
    relay.rule = lambda seen: "lose-request"
    with (
        aiochroma.deadline(0.25),
        pytest.raises((aiochroma.StoreUnavailableError, aiochroma.DeadlineExceededError)),
    ):
        await collection.count()
    tried = relay.count("count")
    assert tried < 6


async def test_nobody_listens():
    """Connecting to nothing names host and port, and says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(aiochroma.StoreUnavailableError, match=f"'127.0.0.1', port {port}.*chroma run"):
        await aiochroma.AsyncHttpClient("127.0.0.1", port, attempts=2)


async def test_something_else_listens(relay):
    """A server that is not Chroma is told apart from one that is down."""
    relay.rule = lambda seen: (404, {"Content-Type": "text/html"}, b"<html><body>no such page</body></html>")
    with pytest.raises(aiochroma.StoreUnavailableError, match=r"HTTP 404.*no such page.*no Chroma server"):
        await aiochroma.AsyncHttpClient("127.0.0.1", relay.port)


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        (
            {"Content-Type": "text/html"},
            b"<html><body>Please log in</body></html>",
            "HTTP 200 .Please log in",
        ),
        ({"Content-Type": "text/plain"}, b"hello", "no JSON"),
        ({"Content-Encoding": "gzip"}, b"hello", "decompressing"),
    ],
)
async def test_something_else_answers_with_success(relay, headers, body, said):
    """A page to log in, and what else answers every request with 200, is no Chroma server either."""
    relay.rule = lambda seen: (200, headers, body)
    with pytest.raises(aiochroma.StoreUnavailableError, match=said):
        await aiochroma.AsyncHttpClient("127.0.0.1", relay.port)


SHAPES = [
    b"[]",
    b"{}",
    b"null",
    b'"x"',
    b"5",
    b'{"ids": 5}',
    b'{"ids": [["a"]], "documents": []}',
    b'[{"id": 1}]',
]


@pytest.mark.parametrize("shape", SHAPES)
async def test_answers_of_another_form(relay, name, shape):
    """JSON that is none of Chroma's is an error of ours, which names the server and what came, whatever was asked."""
    async with aiochroma.AsyncHttpClient("127.0.0.1", relay.port, attempts=1) as client:
        collection = await client.create_collection(name, embedding_function=None)
        memory = aiochroma.Memory(client=client, embedder="hashed")
        await memory.open()
        await memory.remember("a kettle", id="k", namespace=f"{name}-memory")
        relay.rule = lambda seen: (200, {"Content-Type": "application/json"}, shape)
        asked = {
            "count": collection.count(),
            "get": collection.get(),
            "get by id": collection.get(ids=["a"], include=["embeddings", "documents"]),
            "query": collection.query(query_embeddings=[[1.0, 2.0]]),
            "peek": collection.peek(),
            "collections": client.list_collections(),
            "collection": client.get_collection(name),
            "made": client.get_or_create_collection(f"{name}2"),
            "count of collections": client.count_collections(),
            "version": client.get_version(),
            "recall": memory.recall("kettle", namespaces=f"{name}-memory"),
            "list": memory.list(f"{name}-memory")._page(),
            "got": memory.get("k", namespace=f"{name}-memory"),
            "count of memories": memory.count(),
            "remember": memory.remember("a lamp", namespace=f"{name}-memory"),
            "forget": memory.forget("k", namespace=f"{name}-memory"),
            "reset of the connection": client.reset_connection(),
        }
        for what, call in asked.items():
            (result,) = await asyncio.gather(call, return_exceptions=True)
            if isinstance(result, aiochroma.AiochromaError):
                assert f"127.0.0.1:{relay.port}" in str(result), what
                assert "HTTP 200" in str(result), what
            else:
                assert _may_be(what, shape, result), (what, result)
    with pytest.raises(aiochroma.StoreUnavailableError, match=f"127.0.0.1:{relay.port}.*HTTP 200"):
        await aiochroma.AsyncHttpClient("127.0.0.1", relay.port, attempts=1)


def _may_be(what, shape, result):
    """Tell whether a result is what the answer says, if it is Chroma's after all."""
    if shape in {b"[]", b"{}"}:
        return what in {"collections", "count of memories", "list", "got", "forget"} and not result
    if shape == b"5":
        return what in {"count", "count of collections"} and result == 5
    return shape == b'"x"' and what == "version" and result == "x"


async def test_a_server_that_never_answers():
    """The time for an answer is limited."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(aiochroma.StoreUnavailableError, match="no answer came in time"):
            await aiochroma.AsyncHttpClient("127.0.0.1", port, read_timeout=0.2, attempts=2)


class Load:
    """Writers and readers who check every answer against what was acknowledged before they asked."""

    def __init__(self, collection):
        self.collection = collection
        self.acknowledged = {"r0": 0}
        self.errors = []
        self.answers = 0
        self.stopping = False
        self._tasks = [asyncio.ensure_future(self._write(f"w{writer}")) for writer in range(8)]
        self._tasks += [asyncio.ensure_future(self._read()) for _ in range(4)]

    async def go_on(self):
        enough = self.answers + 50
        while self.answers < enough and not any(task.done() for task in self._tasks):
            await asyncio.sleep(0.01)

    async def stop(self):
        self.stopping = True
        await asyncio.gather(*self._tasks)

    async def _write(self, key):
        number = 0
        while not self.stopping:
            number += 1
            try:
                await self.collection.upsert(
                    ids=[key], embeddings=[[1.0, 1.0]], metadatas=[{"number": number}]
                )
            except DOCUMENTED as error:
                self.errors.append(error)
            else:
                self.acknowledged[key] = number

    async def _read(self):
        while not self.stopping:
            known = dict(self.acknowledged)
            try:
                got = await self.collection.get(ids=list(known))
            except DOCUMENTED as error:
                self.errors.append(error)
            else:
                self.answers += 1
                found = {
                    id: (metadata or {}).get("number", 0)
                    for id, metadata in zip(got["ids"], got["metadatas"], strict=True)
                }
                assert set(found) == set(known), "an acknowledged write is missing"
                assert all(found[id] >= number for id, number in known.items()), (
                    "an acknowledged write was undone"
                )


DOCUMENTED = (aiochroma.StoreUnavailableError, aiochroma.OutcomeUnknownError)


@pytest.mark.parametrize("attempts", [1, 40])
async def test_restart_under_load(own_server, name, attempts):
    """A server that is killed and started again under load: every answer is right, nothing acknowledged is lost, and errors
    are the documented ones; with attempts enough, nobody sees any."""
    async with aiochroma.AsyncHttpClient("127.0.0.1", own_server.port, attempts=attempts) as client:
        collection = await client.create_collection(name, embedding_function=None)
        await collection.upsert(ids=["r0"], embeddings=[[0.0, 1.0]])
        load = Load(collection)
        for _ in range(2):
            await load.go_on()
            await asyncio.to_thread(own_server.kill)
            await asyncio.to_thread(own_server.start)
        await load.go_on()
        await load.stop()
        got = await collection.get()
        final = {
            id: (metadata or {}).get("number", 0)
            for id, metadata in zip(got["ids"], got["metadatas"], strict=True)
        }
        assert all(final[id] >= number for id, number in load.acknowledged.items())
        # 40 attempts last longer than a restart, however busy the machine.
        assert bool(load.errors) == (attempts == 1)


async def test_a_server_that_comes_back(own_server, name):
    """A client outlives its server: calls fail while it is away, and go on when it is back."""
    async with aiochroma.AsyncHttpClient("127.0.0.1", own_server.port, attempts=1) as client:
        collection = await client.create_collection(name, embedding_function=None)
        await collection.upsert(ids=["a"], embeddings=[[1.0, 0.0]])
        own_server.kill()
        with pytest.raises(aiochroma.StoreUnavailableError):
            await collection.count()
        with pytest.raises(aiochroma.StoreUnavailableError):
            await collection.upsert(ids=["b"], embeddings=[[1.0, 0.0]])
        assert (await client.health()).status == "unavailable"
        own_server.start()
        assert await collection.count() == 1
        assert (await client.health()).status == "ok"


async def test_what_goes_wrong_is_not_taken_for_a_missing_tenant(relay):
    """A fault while the tenant is looked up is told as what it is."""
    relay.rule = lambda seen: (401, {}, b"") if seen.operation == "default_tenant" else None
    with pytest.raises(aiochroma.AccessDeniedError, match="HTTP 401"):
        await aiochroma.AsyncHttpClient("127.0.0.1", relay.port)


async def test_sparse_vectors_reach_a_server_which_refuses_them(through, collection, name):
    """Only Chroma Cloud and distributed Chroma have them. A local server says so, for the index, a record and a search."""
    sparse = SparseVector(indices=[1, 5], values=[1.0, 0.5])
    schema = Schema().create_index(config=SparseVectorIndexConfig(bm25=True), key="words")
    with pytest.raises(ChromaError, match="Sparse vector indexing is not enabled in local"):
        await through.create_collection(f"{name}-sparse", schema=schema, embedding_function=None)
    with pytest.raises(ChromaError, match="not supported for local chroma: words"):
        await collection.upsert("c", embeddings=[[1.0, 0.0]], metadatas={"words": sparse})
    with pytest.raises(ChromaError, match="words"):
        await collection.search(Search(rank=Knn(query=sparse, key="words")))
    assert await collection.count() == 2
