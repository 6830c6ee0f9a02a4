"""FastAPI in this process: the lifespan, the dependencies, the health route, errors as responses."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import os
import threading
from contextlib import asynccontextmanager

import pytest
from programs import error_without, printed_by, until

import aiochroma

pytest.importorskip("fastapi", reason="fastapi is not installed (extra `fastapi`)")

from fastapi import APIRouter, FastAPI, HTTPException, Request, WebSocket
from fastapi.testclient import TestClient

from aiochroma.fastapi import (
    CancellingRoute,
    ClientDependency,
    MemoryDependency,
    get_memory,
    install,
    lifespan,
    store_of,
)


def application(opening, inner=None, *, details=False, **options):
    app = FastAPI(lifespan=lifespan(opening, inner, **options))
    install(app, details=details)

    @app.post("/memories")
    async def remember(text: str, memory: MemoryDependency):
        return await memory.remember(text)

    @app.get("/count")
    async def count(client: ClientDependency):
        return await client.count_collections()

    return app


@pytest.fixture
def serving():
    """Run an application; errors of its handlers become responses, as they would in production."""
    return lambda app: TestClient(app, raise_server_exceptions=False)


def database_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("aiochroma-db")]


def test_importing_it_does_not_import_chroma():
    """Importing the module stops no event loop for the time that importing chromadb takes."""
    loaded = printed_by("-c", "import sys, aiochroma.fastapi; print(*sys.modules)").split()
    assert "fastapi" in loaded
    assert not {"chromadb", "numpy"}.intersection(loaded)


def test_the_extra_is_named_where_fastapi_is_absent():
    """Without the package the error names it, and the extra that brings it."""
    shown = error_without("fastapi", "aiochroma.fastapi")
    assert "fastapi" in shown
    assert "aiochroma-memory[fastapi]" in shown


def test_the_store_lives_as_long_as_the_application(tmp_path, serving):
    """The store opens with the application and is closed, its thread ended, with it; and again the next time."""
    app = application(lambda: aiochroma.Memory(tmp_path))
    for documents in (0, 1):
        with serving(app) as client:
            assert client.get("/health/chromadb").json()["documents"] == documents
            assert client.post("/memories", params={"text": "the key is under the mat"}).status_code == 200
            assert len(database_threads()) == 1
        assert database_threads() == []


def test_it_composes_with_the_applications_own_lifespan(tmp_path, serving):
    """The application's own lifespan runs inside: it may use the store at both ends, and what it yields is kept."""
    events = []

    @asynccontextmanager
    async def inner(app):
        await store_of(app).remember("the key is under the mat")
        yield {"greeting": "hello"}
        events.append(await store_of(app).count())

    app = application(lambda: aiochroma.Memory(tmp_path), inner)

    @app.get("/greeting")
    async def greeting(request: Request):
        return request.state.greeting

    with serving(app) as client:
        assert client.get("/greeting").json() == "hello"
        assert client.get("/health/chromadb").json()["documents"] == 1
    assert events == [1]


def test_a_failing_lifespan_closes_the_store(tmp_path):
    """Where the application's own lifespan fails, the store is closed nevertheless."""

    @asynccontextmanager
    async def inner(app):
        raise LookupError("its own")
        yield

    with (
        pytest.raises(LookupError, match="its own"),
        TestClient(application(lambda: aiochroma.Memory(tmp_path), inner)),
    ):
        pass
    assert database_threads() == []


@pytest.mark.parametrize(
    "opening",
    [
        lambda path: aiochroma.Memory(path),
        lambda path: aiochroma.Memory(path, on_failure="degrade"),
        lambda path: aiochroma.AsyncPersistentClient(path),
        lambda path: aiochroma.AsyncEphemeralClient(),
        lambda path: aiochroma.connect(mode="persistent", path=path),
    ],
)
def test_whatever_opens_can_be_the_store(tmp_path, serving, opening):
    """A memory, a client and what the environment names: each can be the store, and each has a client."""
    with serving(application(lambda: opening(tmp_path))) as client:
        assert client.get("/count").json() == 0
        assert client.get("/health/chromadb").status_code == 200


def test_a_client_is_no_memory(serving):
    """A memory is refused where the store is a client, with a response, and the reason in the error."""
    app = application(aiochroma.AsyncEphemeralClient)
    with serving(app) as client:
        answer = client.post("/memories", params={"text": "x"})
        assert (answer.status_code, answer.json()["error"]) == (503, "ClosedError")
        with pytest.raises(aiochroma.ClosedError, match="ClientDependency"):
            get_memory(Request({"type": "http", "app": app}))


def test_websockets_have_it_too(tmp_path, serving):
    """The dependencies work in WebSocket handlers."""
    app = application(lambda: aiochroma.Memory(tmp_path))

    @app.websocket("/chat")
    async def chat(socket: WebSocket, memory: MemoryDependency, client: ClientDependency):
        await socket.accept()
        await memory.remember(await socket.receive_text())
        await socket.send_json([hit.text for hit in await memory.recall("where is the key?")])
        await socket.close()

    with serving(app) as client, client.websocket_connect("/chat") as socket:
        socket.send_text("the key is under the mat")
        assert socket.receive_json() == ["the key is under the mat"]


def test_the_dependency_can_be_replaced(tmp_path, serving):
    """A test of an application may put a memory of its own in the place of the real one, and run no lifespan."""
    app = application(lambda: aiochroma.Memory(tmp_path / "real"))
    other = aiochroma.Memory(None)
    app.dependency_overrides[get_memory] = lambda: other
    assert serving(app).post("/memories", params={"text": "x"}).json()["error"] == "ClosedError"
    assert not (tmp_path / "real").exists()


@pytest.mark.parametrize("details", [False, True])
def test_health_says_what_there_is_to_know(tmp_path, serving, details):
    """A healthy store answers 200 with its mode, documents, queue and the time in UTC; owner and versions where asked for."""
    with serving(application(lambda: aiochroma.Memory(tmp_path), details=details)) as client:
        client.post("/memories", params={"text": "the key is under the mat"})
        answer = client.get("/health/chromadb")
        state = answer.json()
        assert answer.status_code == 200
        assert (state["status"], state["mode"], state["documents"], state["queue_depth"]) == (
            "ok",
            "persistent",
            1,
            0,
        )
        private = {"owner", "last_error", "embedder", "chroma_version"}
        assert private & set(state) == (private if details else set())
        assert str(os.getpid()) not in answer.text or details
        if details:
            assert state["embedder"]
            assert state["chroma_version"]
            assert state["owner"]["pid"] == os.getpid()
        assert dt.datetime.fromisoformat(state["timestamp"]).utcoffset() == dt.timedelta(0)


@pytest.mark.parametrize("on_failure", ["raise", "degrade"])
def test_a_store_that_is_unavailable_at_the_start(tmp_path, serving, on_failure):
    """The application starts without its store, answers 503 with the reason, and has it as soon as it can be opened."""
    path = tmp_path / "store"
    path.write_text("a file where the directory should be")
    with serving(application(lambda: aiochroma.Memory(path, on_failure=on_failure))) as client:
        health = client.get("/health/chromadb")
        assert health.status_code == 503
        assert health.json()["status"] == "unavailable"
        assert health.json()["error"] == "DatabasePathError"
        assert str(path) not in health.text
        assert int(health.headers["Retry-After"]) >= 1
        answer = client.get("/count")
        assert (answer.status_code, answer.json()["error"]) == (503, "DatabasePathError")
        assert str(path) not in answer.text
        assert int(answer.headers["Retry-After"]) >= 1
        path.unlink()
        until(lambda: client.get("/health/chromadb").status_code == 200, "a healthy store")
        assert client.post("/memories", params={"text": "the key is under the mat"}).status_code == 200


def test_ending_while_the_store_is_awaited(tmp_path, serving):
    """An application whose store never came ends without waiting for it."""
    path = tmp_path / "store"
    path.write_text("a file where the directory should be")
    with serving(application(lambda: aiochroma.Memory(path))):
        pass
    assert path.is_file()


def test_a_store_that_is_required(tmp_path):
    """With `required` the application does not start without its store, and the reason is raised."""
    path = tmp_path / "store"
    path.write_text("a file where the directory should be")
    with (
        pytest.raises(aiochroma.DatabasePathError),
        TestClient(application(lambda: aiochroma.Memory(path), required=True)),
    ):
        pass


def test_a_wrong_configuration_is_never_waited_for():
    """What is wrong with the configuration is raised at the start."""
    with (
        pytest.raises(aiochroma.InvalidInputError, match="CHROMA_HOST"),
        TestClient(application(lambda: aiochroma.connect(mode="http"))),
    ):
        pass


def test_without_the_lifespan(serving):
    """An application without the lifespan, or one that is not running, is told what is missing."""
    app = FastAPI()
    install(app, details=True)
    with serving(app) as client:
        health = client.get("/health/chromadb")
        assert health.status_code == 503
        assert "lifespan" in health.json()["error"]


def test_a_full_queue_is_503_with_retry_after(serving):
    """More requests than may wait are answered with 503 and when to come back."""
    app = application(lambda: aiochroma.AsyncEphemeralClient(max_pending=1, when_full="raise"))

    @app.get("/many")
    async def many(client: ClientDependency):
        return await asyncio.gather(*(client.count_collections() for _ in range(50)))

    with serving(app) as client:
        answer = client.get("/many")
        assert (answer.status_code, answer.json()["error"]) == (503, "QueueFullError")
        assert answer.headers["Retry-After"] == "1"


def test_a_deadline_is_504(serving):
    """A deadline that passed is answered with 504, and whether the call had begun."""
    app = application(aiochroma.AsyncEphemeralClient)

    @app.get("/late")
    async def late(client: ClientDependency):
        with aiochroma.deadline(0):
            return await client.count_collections()

    with serving(app) as client:
        answer = client.get("/late")
        assert (answer.status_code, answer.json()["error"]) == (504, "DeadlineExceededError")
        assert answer.json()["started"] is False


def test_an_embedder_that_fails_is_503(serving):
    """Its service may be back in a moment; what it said is logged, and not for the public."""

    def embedder(texts):
        raise ConnectionError("http://10.0.0.7:11434 refused")

    with serving(application(lambda: aiochroma.Memory(None, embedder=embedder))) as client:
        answer = client.post("/memories", params={"text": "a text"})
        assert (answer.status_code, answer.json()["error"]) == (503, "EmbeddingFailedError")
        assert answer.headers["Retry-After"] == "1"
        assert "10.0.0.7" not in answer.text


@pytest.mark.parametrize(("error", "code"), [("StoreUnavailableError", 1013), ("InvalidInputError", 1011)])
def test_a_websocket_that_was_accepted_is_closed(serving, error, code):
    """There is no response any more that could tell it what failed; the code and the reason do."""
    app = application(lambda: aiochroma.Memory(None))

    @app.websocket("/chat")
    async def chat(socket: WebSocket):
        await socket.accept()
        raise getattr(aiochroma, error)("the file /srv/memory is gone")

    with serving(app) as client, client.websocket_connect("/chat") as socket:
        assert socket.receive() == {"type": "websocket.close", "code": code, "reason": error}


def test_wrong_input_is_422_and_unknown_outcome_504(serving):
    """Wrong input is the caller's fault and says why; a write without an answer is not to be repeated blindly."""
    app = application(lambda: aiochroma.Memory(None))

    @app.get("/unknown")
    async def unknown():
        raise aiochroma.OutcomeUnknownError("the connection to 10.0.0.7 was lost")

    with serving(app) as client:
        answer = client.post("/memories", params={"text": " "})
        assert answer.status_code == 422
        assert "blank" in answer.json()["detail"]
        answer = client.get("/unknown")
        assert answer.status_code == 504
        assert "Retry-After" not in answer.headers
        assert "10.0.0.7" not in answer.text


async def asked(app, *, path="/task", body=b"", hangs_up_when=lambda: False):
    """Send one request to an application, whose client hangs up when a condition is true; return status and body."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []

    async def receive():
        if messages:
            return messages.pop(0)
        while not hangs_up_when():
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "root_path": "",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def with_route(handler):
    app = FastAPI()
    install(app)
    router = APIRouter(route_class=CancellingRoute)
    router.post("/task")(handler)
    app.include_router(router)
    return app


async def test_what_waits_for_a_client_that_is_gone_never_runs(tmp_path):
    """A request that was still queued when its client hung up never reaches the database."""
    async with aiochroma.AsyncPersistentClient(tmp_path) as client:
        collection = await client.create_collection("things", embedding_function=None)
        before = client.stats()

        async def handler():
            await collection.add(ids=["a"], embeddings=[[1.0, 0.0]])

        app = with_route(handler)
        big = asyncio.ensure_future(
            collection.upsert(ids=[str(number) for number in range(2000)], embeddings=[[0.0, 1.0]] * 2000)
        )
        await asyncio.sleep(0)
        status, _ = await asked(app, hangs_up_when=lambda: client.stats().submitted == before.submitted + 2)
        await big
        assert status == 499
        assert client.stats().cancelled == before.cancelled + 1
        assert (await collection.get(ids=["a"]))["ids"] == []


async def test_handlers_of_clients_that_stay_are_left_alone():
    """A handler sees its body, its answer is sent, and it runs in the task of the request."""
    tasks = []

    async def handler(what: dict):
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0.01)
        return what

    assert await asked(with_route(handler), body=b'{"a": 1}') == (200, b'{"a":1}')
    assert tasks == [asyncio.current_task()]


async def test_errors_of_handlers_pass_unchanged():
    """What a handler raises is answered as it would be without the route class."""

    async def absent():
        raise HTTPException(404, "no such thing")

    async def wrong():
        raise aiochroma.InvalidInputError("no")

    assert (await asked(with_route(absent)))[0] == 404
    assert (await asked(with_route(wrong)))[0] == 422


def test_the_whole_reason_is_told_where_asked_for(tmp_path, serving):
    """A route that is not for the public names the path."""
    path = tmp_path / "store"
    path.write_text("a file where the directory should be")
    with serving(application(lambda: aiochroma.Memory(path), details=True)) as client:
        reason = client.get("/health/chromadb").json()["error"]
        assert reason.startswith("DatabasePathError: ")
        assert str(path) in reason


def test_a_mounted_application_whose_lifespan_no_server_runs(tmp_path):
    """The error says why there is no store, and where the lifespan belongs."""
    below = FastAPI(lifespan=lifespan(lambda: aiochroma.Memory(tmp_path / "memory")))

    @below.get("/count")
    async def count(memory: MemoryDependency) -> int:
        return await memory.count()

    app = FastAPI()
    app.mount("/below", below)
    with TestClient(app) as client, pytest.raises(aiochroma.ClosedError, match="outermost application"):
        client.get("/below/count")
    assert not (tmp_path / "memory").exists()


def test_mounted_applications_have_the_store(tmp_path, serving):
    """No server runs the lifespan of an application that is mounted; it has the store, and the responses, of the one above."""
    below, deeper = FastAPI(), FastAPI()

    @below.get("/count")
    async def count(memory: MemoryDependency) -> int:
        return await memory.count()

    @deeper.get("/recall")
    async def recall(question: str, memory: MemoryDependency) -> list[aiochroma.Hit]:
        return list(await memory.recall(question))

    app = application(lambda: aiochroma.Memory(tmp_path))
    app.mount("/below", below)
    below.mount("/deeper", deeper)
    with serving(app) as client:
        client.post("/memories", params={"text": "the key is under the mat"})
        assert client.get("/below/count").json() == 1
        assert len(client.get("/below/deeper/recall", params={"question": "key"}).json()) == 1
        refused = client.get("/below/deeper/recall", params={"question": ""})
        assert (refused.status_code, refused.json()["error"]) == (422, "InvalidInputError")


def test_hits_are_a_response_model(tmp_path, serving):
    """A route may be annotated with what it returns, and the description of the interface shows its fields."""
    app = application(lambda: aiochroma.Memory(tmp_path))

    @app.get("/hits")
    async def hits(memory: MemoryDependency) -> list[aiochroma.Hit]:
        return list(await memory.recall("where is the key?"))

    with serving(app) as client:
        client.post("/memories", params={"text": "the key is under the mat"})
        (hit,) = client.get("/hits").json()
        assert hit["text"] == "the key is under the mat"
        assert dt.datetime.fromisoformat(hit["created_at"]).utcoffset() == dt.timedelta(0)
        described = client.get("/openapi.json").json()["components"]["schemas"]["Hit"]["properties"]
        assert set(described) == {each.name for each in dataclasses.fields(aiochroma.Hit)}


def test_what_would_be_something_else_is_refused_where_it_is_written(tmp_path):
    """A store in the place of what makes one; a flag that is a text, which would be true whatever it says."""
    memory = aiochroma.Memory(tmp_path)
    for odd in (memory, None, str(tmp_path)):
        with pytest.raises(aiochroma.InvalidInputError, match=r"opening.*lambda"):
            lifespan(odd)
    with pytest.raises(aiochroma.InvalidInputError, match="required"):
        lifespan(lambda: memory, required="no")
    with pytest.raises(aiochroma.InvalidInputError, match="details"):
        install(FastAPI(), details="false")


@pytest.mark.parametrize("odd", [None, 7, "app", FastAPI, APIRouter()])
def test_what_is_no_application_is_refused_by_name(odd):
    """A router or the class in place of the application, for example, says so."""
    for use in (install, store_of):
        with pytest.raises(
            aiochroma.InvalidInputError, match=r"`app` must be the (FastAPI|Starlette) application"
        ):
            use(odd)


@pytest.mark.parametrize("odd", [7, "", [], {}])
def test_what_is_no_lifespan_is_refused_where_it_is_written(tmp_path, odd):
    """Falsy things, too."""
    with pytest.raises(aiochroma.InvalidInputError, match=r"`inner`.*asynccontextmanager"):
        lifespan(lambda: aiochroma.Memory(tmp_path), odd)


def test_what_makes_something_else_says_so_at_the_start(tmp_path, serving):
    """A class in place of a memory, and a plain generator in place of a lifespan."""

    def plain(app):
        yield

    for opening, inner, says in (
        (lambda: aiochroma.Memory, None, "`opening`"),
        (lambda: None, None, "`opening`"),
        (lambda: aiochroma.Memory(tmp_path), plain, "`inner`"),
    ):
        app = FastAPI(lifespan=lifespan(opening, inner))
        with pytest.raises(aiochroma.InvalidInputError, match=says), serving(app):
            pass
    assert not database_threads()


def test_a_lifespan_without_its_decorator_runs(tmp_path, serving):
    """As Starlette takes it."""
    ran = []

    async def inner(app):
        ran.append(await store_of(app).count())
        yield
        ran.append("over")

    with serving(FastAPI(lifespan=lifespan(lambda: aiochroma.Memory(tmp_path), inner))):
        assert ran == [0]
    assert ran == [0, "over"]
