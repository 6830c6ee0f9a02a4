"""The FastAPI example, used over HTTP: embedded, and with several workers against a server."""

from __future__ import annotations

import re

import httpx
import pytest
import yaml
from programs import PATIENCE, ChromaServer, Service, printed_by, until

pytest.importorskip("fastapi", reason="fastapi is not installed (extra `fastapi`)")


@pytest.fixture
def serve(examples, tmp_path):
    """Start the example."""

    def make(*options, **environment):
        return Service(
            "app:app", tmp_path / "log", *options, directory=examples / "fastapi_service", **environment
        )

    return make


def use(service):
    """Do with the service what its documentation says; return its health."""
    service.when_up(f"{service.url}/health/chromadb")
    with httpx.Client(base_url=service.url, trust_env=False, timeout=PATIENCE) as client:
        # Of several workers another one may have answered before; this one says 503 until it is there, too.
        new = {"text": "The key is under the mat.", "namespace": "flat"}
        until(
            lambda: client.post("/memories", json=new).status_code != 503, "the worker has opened its store"
        )
        answer = client.post("/memories", json=new)
        assert answer.status_code == 201
        id = answer.json()["id"]
        assert client.get(f"/memories/flat/{id}").json()["text"] == "The key is under the mat."
        assert client.get("/memories/flat/nothing").status_code == 404
        assert client.post("/memories", json={"text": "  "}).status_code == 422
        assert client.post("/memories", json={}).status_code == 422
        assert client.get("/recall", params={"question": "x", "k": 0}).status_code == 422
        recalled = client.get("/recall", params={"question": "where is the key?"}).json()
        assert [hit["text"] for hit in recalled["hits"]] == ["The key is under the mat."]
        assert recalled["failed"] == {}
        return client.get("/health/chromadb").json()


def test_embedded(serve, tmp_path):
    """In development the service has its database in a directory, and finds it again after a restart."""
    for _ in range(2):
        with serve(CHROMA_DB_PATH=tmp_path / "store") as service:
            health = use(service)
            assert (health["mode"], health["documents"]) == ("persistent", 1)
            service.stop()
            assert "Traceback" not in service.output()


def test_several_workers_against_a_server(serve, tmp_path):
    """In production several workers use one Chroma server."""
    server = ChromaServer(tmp_path / "server", tmp_path / "server.log")
    address = {"CHROMA_MODE": "http", "CHROMA_HOST": "127.0.0.1", "CHROMA_PORT": server.port}
    with server, serve("--workers", "2", **address) as service:
        health = use(service)
        assert (health["mode"], health["documents"]) == ("http", 1)


def test_a_limit_that_is_too_short(serve, tmp_path):
    """A store that does not open within the service's limit is unavailable, which is answered and not fatal."""
    with serve(CHROMA_DB_PATH=tmp_path / "store", CHROMA_TIMEOUT="0.000001") as service:
        health = service.when_up(f"{service.url}/health/chromadb")
        assert health.status_code == 503
        assert health.json()["error"] == "DeadlineExceededError"
        assert (
            httpx.get(f"{service.url}/recall", params={"question": "x"}, trust_env=False).status_code == 503
        )


def test_the_arrangement_fits_the_one_it_includes(examples):
    """What the compose file names exists: the file it includes, the service it waits for, the network, the command's module."""
    folder = examples / "fastapi_service"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    (included,) = compose["include"]
    server = yaml.safe_load((folder / included).read_text())
    service = compose["services"]["memories"]
    assert set(service["depends_on"]) <= set(server["services"])
    assert set(service["networks"]) <= set(server["networks"])
    assert set(service["networks"]) <= set(server["services"]["proxy"]["networks"])
    assert service["environment"]["CHROMA_HOST"] == "proxy"
    assert service["environment"]["CHROMA_PORT"] in server["services"]["proxy"]["ports"][0].split(":")[-1]
    assert service["environment"]["CHROMA_AUTH_TOKEN"].startswith("${CHROMA_AUTH_TOKEN:?")
    root = (folder / service["build"]["context"]).resolve()
    dockerfile = (root / service["build"]["dockerfile"]).read_text()
    assert "app:app" in dockerfile
    # The package comes from the source, and what is copied is there and not ignored.
    assert "install --no-cache-dir '/source[" in dockerfile
    copied = [
        name for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE) for name in line.split()[:-1]
    ]
    let_in = re.findall(r"^!(.*)$", (folder / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(let_in)
    assert all((root / name).exists() for name in copied)


def test_the_documented_variables_exist(examples):
    """Every variable that the example names is one that the library reads."""
    from aiochroma import connect

    text = "".join((examples / "fastapi_service" / name).read_text() for name in ("app.py", "compose.yaml"))
    named = set(re.findall(r"\bCHROMA_[A-Z_]+\b", text))
    assert named
    assert [name for name in named if name not in connect.__doc__] == []


def test_it_is_light_to_import(examples):
    """Importing the application does not import chromadb: uvicorn does it on the event loop."""
    code = "import sys, app; print(*sys.modules)"
    assert "chromadb" not in printed_by("-c", code, cwd=examples / "fastapi_service").split()
