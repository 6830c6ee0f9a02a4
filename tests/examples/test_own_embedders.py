"""The embedders of examples/own_embedders.py, against a service on this machine that speaks as the real ones do."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from programs import python

import aiochroma

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_embedders.py"


def _vector(text):
    return [float(text.lower().count(letter)) for letter in "aeiounrstlkd"]


class _Service(BaseHTTPRequestHandler):
    """Answers as OpenAI's interface and as Ollama's; out of order, as the former may."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, len(asked["input"]), self.headers.get("Authorization")))
        if self.server.failing:
            self.send_error(503)
            return
        vectors = [_vector(text) for text in asked["input"]]
        if self.path == "/v1/embeddings":
            rows = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
            answer = {"data": rows[::-1], "model": asked["model"]}
        else:
            answer = {"embeddings": vectors}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def service():
    """A service on a free port, which notes what it was asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Service)
    server.requests, server.failing = [], False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def example():
    """The example as a module."""
    import importlib.util

    specification = importlib.util.spec_from_file_location("own_embedders", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


async def test_a_service_with_openais_interface(tmp_path, service, example):
    """Texts go in batches, vectors come in their order, the key is sent and stored nowhere."""
    url = f"http://127.0.0.1:{service.server_port}/v1"
    embedder = example.OpenAiCompatible(url, "model-1", 12, api_key="s3cret", batch=10)
    texts = [f"{'aeiou'[number % 5] * (number + 1)} note" for number in range(25)]
    async with aiochroma.Memory(tmp_path, embedder=embedder) as memory:
        await memory.remember_many(texts)
        for text in texts[:3]:
            assert (await memory.recall(text, k=1, mode="vector"))[0].text == text
        assert "s3cret" not in f"{await memory.health()} {memory.stats()}"
        assert max(size for _, size, _ in service.requests) <= 10
        assert {key for _, _, key in service.requests} == {"Bearer s3cret"}
        service.failing = True
        with pytest.raises(aiochroma.EmbeddingFailedError):
            await memory.remember("one more")
        found = await memory.recall("note")
        assert found
        assert isinstance(found.errors[""], aiochroma.EmbeddingFailedError)


async def test_ollama(tmp_path, service, example):
    """The same through Ollama's own interface, on a thread."""
    embedder = example.Ollama("model-1", 12, url=f"http://127.0.0.1:{service.server_port}")
    async with aiochroma.Memory(tmp_path, embedder=embedder) as memory:
        await memory.remember_many(["the lake", "a tram"])
        assert (await memory.recall("the lake", k=1, mode="vector"))[0].text == "the lake"
    assert {path for path, _, _ in service.requests} == {"/api/embed"}


def test_the_program(tmp_path, service):
    """It prints what was asked for; without the service it says what is wrong, and no traceback."""
    environment = {
        "EMBEDDINGS_URL": f"http://127.0.0.1:{service.server_port}/v1",
        "EMBEDDINGS_DIMENSIONS": "12",
    }
    run = partial(python, EXAMPLE, tmp_path / "memory", **environment)
    assert run().stdout == "The spare key is with the neighbour.\n"
    service.failing = True
    finished = run()
    assert finished.returncode == 1
    assert "The embedding service failed" in finished.stderr
    assert "Traceback" not in finished.stderr
