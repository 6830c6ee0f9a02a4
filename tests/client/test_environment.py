"""The environment decides nothing in silence, neither Chroma's settings nor the way to this machine."""

from __future__ import annotations

import asyncio
import os

import pytest
from programs import MODE, python

import aiochroma

PROGRAM = """
import asyncio, sys
import aiochroma
async def main():
    async with aiochroma.Memory(sys.argv[1], process=sys.argv[2]) as memory:
        await memory.remember("my secret")
        print(type(memory.client.get_settings()).__name__, memory.client.get_settings().chroma_api_impl)
try:
    asyncio.run(main())
except aiochroma.AiochromaError as error:
    print(type(error).__name__, error)
"""
STRAY = {
    "CHROMA_API_IMPL": "chromadb.api.fastapi.FastAPI",
    "CHROMA_SERVER_HOST": "127.0.0.1",
    "CHROMA_SERVER_HTTP_PORT": "9",
    "MIGRATIONS": "none",
}


def _run(tmp_path, variables, process="this"):
    return python("-c", PROGRAM, tmp_path / "db", process, cwd=tmp_path, **variables)


@pytest.mark.parametrize("source", ["variables", "file"])
def test_a_directory_never_becomes_a_server(tmp_path, source):
    """Neither by stray variables nor by a `.env` in the working directory."""
    if source == "file":
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in STRAY.items()))
    done = _run(tmp_path, STRAY if source == "variables" else {})
    assert done.stdout.split() == ["Settings", "chromadb.api.rust.RustBindingsAPI"], done.stderr


@pytest.mark.parametrize("process", ["this", "shared"])
@pytest.mark.parametrize("name", ["IS_PERSISTENT", "CHROMA_SERVER_CORS_ALLOW_ORIGINS"])
def test_what_keeps_chromadb_from_being_imported_is_named(tmp_path, monkeypatch, name, process):
    """Its settings refuse a value when the package is imported: the error says which variable it is."""
    monkeypatch.setenv("AIOCHROMA_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    done = _run(tmp_path, {name: "banana"}, process)
    assert done.stdout.startswith("InvalidInputError chromadb cannot be imported"), done.stderr
    assert name in done.stdout.upper()
    assert "banana" not in done.stdout + done.stderr


def test_a_file_of_variables_that_is_not_utf_8(tmp_path):
    """chromadb reads `.env` of the working directory, whatever wrote it: a shell of Windows writes UTF-16."""
    (tmp_path / ".env").write_bytes("GREETING=Grüße\n".encode("utf-16"))
    done = _run(tmp_path, {})
    assert done.stdout.startswith("InvalidInputError chromadb cannot be imported"), done.stderr
    assert ".env" in done.stdout


@pytest.mark.parametrize("process", ["this", "shared"])
@pytest.mark.parametrize("kind", ["pipe", "huge"])
def test_a_file_of_variables_that_keeps_everybody_waiting(tmp_path, monkeypatch, kind, process):
    """A pipe with nobody at its other end would be waited for by every import of this process: it is named instead."""
    monkeypatch.setenv("AIOCHROMA_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    if kind == "huge":
        (tmp_path / ".env").write_bytes(b"A=1\n" * 300_000)
    elif hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / ".env")
    else:
        pytest.skip("there are no named pipes")
    done = _run(tmp_path, {}, process)
    assert done.stdout.startswith("InvalidInputError chromadb was not imported"), done.stderr
    assert {"pipe": "is a named pipe", "huge": "has 1200000 bytes"}[kind] in done.stdout


INJECTED = {
    "CHROMA_PORT": "tcp://10.43.7.19:8000",
    "CHROMA_SERVICE_HOST": "10.43.7.19",
    "CHROMA_SERVICE_PORT": "8000",
    "CHROMA_PORT_8000_TCP": "tcp://10.43.7.19:8000",
    "CHROMA_PORT_8000_TCP_PROTO": "tcp",
}


@pytest.fixture
def service_links(monkeypatch):
    """What Kubernetes puts into every pod beside a service called `chroma`."""
    for name in [name for name in os.environ if name.startswith("CHROMA_")]:
        monkeypatch.delenv(name)
    for name, value in INJECTED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("mode", ["persistent", "ephemeral"])
async def test_service_links_are_of_no_concern_without_a_server(service_links, monkeypatch, tmp_path, mode):
    """What the mode does not use is not checked."""
    monkeypatch.setenv("CHROMA_MODE", mode)
    monkeypatch.setenv("CHROMA_DB_PATH", str(tmp_path))
    monkeypatch.setenv("CHROMA_CA_FILE", "/no/such/file")
    async with aiochroma.connect() as client:
        assert (await client.health()).mode == {"persistent": MODE}.get(mode, mode)


async def test_a_service_link_as_port_is_named(service_links, monkeypatch):
    """For a server the message says where the value comes from and what to do; a port or a URL of one's own is taken."""
    from aiochroma.client.environment import options_from_environment

    monkeypatch.setenv("CHROMA_MODE", "http")
    monkeypatch.setenv("CHROMA_HOST", "chroma")
    with pytest.raises(aiochroma.InvalidInputError, match=r"CHROMA_PORT.*Kubernetes.*http://chroma:8000"):
        await aiochroma.connect()
    assert options_from_environment({"port": 81}).resolve().location.url == "http://chroma:81"
    monkeypatch.setenv("CHROMA_HOST", "http://chroma:8000")
    assert options_from_environment({}).resolve().location.url == "http://chroma:8000"


async def test_this_machine_is_reached_without_a_proxy(monkeypatch):
    """A proxy of the environment never sees requests for the loopback address; it is asked for other machines."""
    seen = []

    async def answer(reader, writer):
        seen.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    proxy = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = f"http://user:swordfish@127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, address)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    shown = []
    for host in ("127.0.0.1", "chroma.invalid"):
        with pytest.raises(aiochroma.StoreUnavailableError) as caught:
            await aiochroma.AsyncHttpClient(host, 9, attempts=1)
        shown.append(str(caught.value))
        assert bool(seen) is (host == "chroma.invalid")
    assert "swordfish" not in "".join(shown)
    proxy.close()
    await proxy.wait_closed()


async def test_a_proxy_that_cannot_be_used(monkeypatch):
    """Its address, in which there may be a password, is not repeated."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "gopher://user:swordfish@proxy:1")
    with pytest.raises(aiochroma.InvalidInputError, match="HTTP_PROXY") as caught:
        await aiochroma.AsyncHttpClient("chroma.invalid", 9, attempts=1)
    assert "swordfish" not in repr(caught.value)
