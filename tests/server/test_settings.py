"""Configuration by environment and arguments."""

from __future__ import annotations

import pytest
from programs import printed_by, python

import aiochroma
from aiochroma.client.environment import options_from_environment


@pytest.fixture
def environment(monkeypatch):
    """Set variables by keyword."""

    def set_variables(**values):
        for name, value in values.items():
            monkeypatch.setenv(f"CHROMA_{name.upper()}", value)

    return set_variables


def target(**overrides):
    return options_from_environment(overrides).resolve()


async def test_a_directory(environment, tmp_path):
    """Without a mode a directory is opened, the one that is named."""
    environment(db_path=str(tmp_path / "database"))
    async with aiochroma.connect() as client:
        assert (await client.health()).mode == "persistent"
    assert (tmp_path / "database" / "chroma.sqlite3").exists()


async def test_a_server(environment, server):
    """In mode `http` the server is opened that is named."""
    environment(mode="HTTP", host="127.0.0.1", port=str(server.port), auth_token="a-token")
    async with aiochroma.connect() as client:
        assert (await client.health()).mode == "http"


async def test_in_memory(environment):
    """In mode `ephemeral` nothing is written anywhere."""
    environment(mode="ephemeral")
    async with aiochroma.connect() as client:
        assert (await client.health()).mode == "ephemeral"


async def test_arguments_come_first(environment, tmp_path):
    """An argument replaces the variable, and further arguments of the client are passed on."""
    environment(mode="http", host="nowhere.invalid")
    async with aiochroma.connect(mode="persistent", path=tmp_path, max_pending=7, timeout=30) as client:
        assert client.session.connection.engine.options.max_pending == 7
        assert client.session.timeout == 30


def test_every_variable(environment, tmp_path):
    """Each variable has its effect."""
    (tmp_path / "ca.pem").write_text("")
    environment(
        mode="http", host="h", port="81", ssl="true", auth_token="a-token", auth_header="Both", tenant="t"
    )
    environment(database="d", timeout="1.5", ca_file=str(tmp_path / "ca.pem"))
    found = target(connections=2)
    assert found.location.url == "https://h:81"
    assert (found.tenant, found.database, found.timeout) == ("t", "d", 1.5)
    assert dict(found.options.access.headers) == {
        "authorization": "Bearer a-token",
        "x-chroma-token": "a-token",
    }
    assert found.options.access.ca_file == str(tmp_path / "ca.pem")
    assert found.options.connections == 2
    assert "a-token" not in repr(found)
    assert "a-token" not in repr(options_from_environment({}))


def test_an_empty_variable_is_not_set(environment):
    """Compose files pass empty strings for what is not set."""
    environment(mode="", auth_token="", timeout="", db_path="")
    assert target(path="x").location.kind == "persistent"


def test_one_error_lists_everything(environment):
    """All that is wrong or missing is said at once, by variable and argument, and no secret is repeated."""
    environment(
        mode="http",
        port="eight",
        ssl="perhaps",
        auth_token="secret token",
        timeout="-1",
        auth_header="cookie",
    )
    environment(ca_file="/no/such/file")
    with pytest.raises(aiochroma.InvalidInputError) as error:
        target(nonsense=1, tenant="")
    lines = str(error.value).splitlines()
    named = {line.removeprefix("  - ").split(" ")[0].rstrip(":") for line in lines[1:]}
    assert named == {
        "CHROMA_HOST",
        "CHROMA_PORT",
        "CHROMA_SSL",
        "CHROMA_AUTH_TOKEN",
        "CHROMA_AUTH_HEADER",
        "CHROMA_CA_FILE",
        "CHROMA_TIMEOUT",
        "CHROMA_TENANT",
        "`nonsense`",
    }
    assert "secret token" not in str(error.value)
    assert error.value.__cause__ is None
    assert "'eight'" in str(error.value)


def test_a_wrong_mode(environment):
    """A mode that does not exist is named with those that do."""
    environment(mode="postgres")
    with pytest.raises(
        aiochroma.InvalidInputError, match=r"CHROMA_MODE.*persistent.*http.*ephemeral.*'postgres'"
    ):
        target()


def test_a_password_in_the_host(environment):
    """A host with a password in it is refused without repeating it."""
    environment(mode="http", host="https://user:hunter22@example.org")
    with pytest.raises(aiochroma.InvalidInputError, match="CHROMA_HOST") as error:
        target()
    assert "hunter22" not in str(error.value)


def test_certificates_without_tls(environment, tmp_path):
    """A file of certificates is of no use without TLS, which is more likely to have been forgotten."""
    (tmp_path / "ca.pem").write_text("")
    environment(mode="http", host="h", ca_file=str(tmp_path / "ca.pem"))
    with pytest.raises(aiochroma.InvalidInputError, match="CHROMA_SSL=true"):
        target()
    environment(host="https://h")
    assert target().location.url == "https://h:443"


def test_arguments_of_another_mode():
    """An argument that the chosen client does not have is refused by name."""
    with pytest.raises(aiochroma.InvalidInputError, match=r"`durable`.*'http'"):
        target(mode="http", host="h", durable=True)


async def test_the_error_comes_when_awaited(environment):
    """`connect` itself does nothing; what is wrong is said where it is awaited."""
    environment(mode="http")
    opening = aiochroma.connect()
    with pytest.raises(aiochroma.InvalidInputError, match="CHROMA_HOST"):
        await opening


def test_importing_is_light():
    """The package imports neither chromadb, numpy, pydantic nor an HTTP library."""
    code = "import sys, aiochroma; print(*({'chromadb', 'numpy', 'pydantic', 'httpx', 'orjson'} & set(sys.modules)))"
    assert printed_by("-c", code).strip() == ""


def test_a_forked_child_may_open_its_own(server):
    """A process that used a server may fork, and the child opens a client of its own; the parent's is refused there."""
    program = """
import asyncio, os, sys, warnings
import aiochroma
warnings.simplefilter("ignore", DeprecationWarning)
port = int(sys.argv[1])
async def in_parent():
    client = await aiochroma.AsyncHttpClient("127.0.0.1", port)
    await client.heartbeat()
    return client
async def in_child():
    try:
        await client.heartbeat()
    except aiochroma.ForkedProcessError:
        print("refused", flush=True)
    async with aiochroma.AsyncHttpClient("127.0.0.1", port) as own:
        print("own" if await own.heartbeat() else "none", flush=True)
client = asyncio.run(in_parent())
child = os.fork()
asyncio.run(in_child() if not child else client.aclose())
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    assert printed_by("-c", program, server.port).split() == ["refused", "own"]


@pytest.mark.parametrize(
    "mode", ["", "await collection.count()", "raise SystemExit(3)"], ids=["idle", "used", "exit"]
)
def test_exit_without_closing(server, mode):
    """A program that never closes its client ends, with its own exit code and no crash."""
    program = f"""
import asyncio, sys
import aiochroma
async def main():
    global client, collection
    client = await aiochroma.AsyncHttpClient("127.0.0.1", int(sys.argv[1]))
    collection = await client.get_or_create_collection("exit", embedding_function=None)
    {mode}
asyncio.run(main())
"""
    done = python("-c", program, server.port)
    assert done.returncode == (3 if "SystemExit" in mode else 0), done.stderr
