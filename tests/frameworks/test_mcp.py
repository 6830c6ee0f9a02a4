"""The Model Context Protocol: a memory's server in this process, and sessions over standard input and output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import aiochroma
from aiochroma import sync

pytest.importorskip("mcp.server.mcpserver", reason="mcp is not installed (dependency group `frameworks`)")

from mcp import Client, StdioServerParameters
from programs import until

from aiochroma.mcp.server import make_server

COMMAND = [sys.executable, "-m", "aiochroma", "mcp"]


@pytest.fixture
async def memory(tmp_path):
    async with aiochroma.Memory(tmp_path / "memory") as memory:
        yield memory


@pytest.fixture
def environment(tmp_path_factory, monkeypatch):
    """A folder of sockets of the test's own; what was started there ends with the test."""
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    monkeypatch.setenv("AIOCHROMA_RUNTIME_DIR", str(folder))
    yield dict(os.environ)
    until(lambda: not list(folder.glob("*.mcp")), "the servers end when their sessions have")


def session(path, environment, *options):
    """The client's end of a session of its own."""
    arguments = [*COMMAND[1:], "--path", str(path), "--idle", "0.5", *options]
    return Client(StdioServerParameters(command=COMMAND[0], args=arguments, env=environment))


def content(result):
    """What a tool returned."""
    assert not result.is_error, result
    structured = result.structured_content
    return structured.get("result", structured)


def said(result):
    return result.content[0].text


async def test_tools_are_described(memory):
    """A language model is told what each tool is for, what its arguments are, and which of them change something."""
    async with Client(make_server(memory)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert sorted(tools) == ["forget", "list", "namespaces", "recall", "remember"]
    assert all(len(tool.description) > 40 for tool in tools.values())
    assert tools["recall"].input_schema["required"] == ["query"]
    assert tools["remember"].input_schema["properties"]["text"]["type"] == "string"
    assert [name for name, tool in sorted(tools.items()) if tool.annotations.read_only_hint] == [
        "list",
        "namespaces",
        "recall",
    ]
    assert tools["forget"].annotations.destructive_hint
    async with Client(make_server(memory, read_only=True)) as client:
        assert sorted(tool.name for tool in (await client.list_tools()).tools) == [
            "list",
            "namespaces",
            "recall",
        ]


async def test_remember_recall_forget(memory):
    """What is remembered is found, listed and forgotten; the memory itself has the same."""
    async with Client(make_server(memory)) as client:
        arguments = {
            "text": "Ada's cat is called Kestrel.",
            "namespace": "pets",
            "metadata": {"of": ["a", "b"]},
        }
        id = content(await client.call_tool("remember", arguments))
        await client.call_tool("remember", {"text": "The door code is 4711.", "days": 1})
        assert (await memory.get(id, namespace="pets")).metadata == {"of": ["a", "b"]}
        (found,) = content(await client.call_tool("recall", {"query": "cat", "namespaces": ["pets"]}))
        assert (found["id"], found["text"]) == (id, arguments["text"])
        (code,) = content(await client.call_tool("recall", {"query": "door code", "limit": 1}))
        assert (await memory.get(code["id"])).expires_at is not None
        assert content(await client.call_tool("namespaces", {})) == ["default", "pets"]
        assert content(await client.call_tool("forget", {"id": id, "namespace": "pets"})) is True
        assert content(await client.call_tool("forget", {"id": id, "namespace": "pets"})) is False
        assert content(await client.call_tool("list", {"namespace": "pets"})) == {
            "memories": [],
            "next": None,
        }


async def test_pages(memory):
    """A list goes on where the page before ended."""
    await memory.remember_many([f"note {number}" for number in range(7)])
    async with Client(make_server(memory)) as client:
        seen, after = [], ""
        while True:
            page = content(await client.call_tool("list", {"limit": 3, "after": after}))
            seen += [one["text"] for one in page["memories"]]
            after = page["next"]
            if after is None:
                break
    assert seen == [f"note {number}" for number in reversed(range(7))]


async def test_a_scope_is_a_wall(memory):
    """A session of one user neither sees nor forgets what belongs to another."""
    other = await memory.remember("Bob's PIN is 1234.", scope=("acme", "bob"))
    async with Client(make_server(memory, scope=("acme", "ada"))) as client:
        own = content(await client.call_tool("remember", {"text": "Ada's PIN is 9876."}))
        assert (await memory.get(own)).scope == ("acme", "ada")
        found = content(await client.call_tool("recall", {"query": "PIN", "limit": 50}))
        assert [one["id"] for one in found] == [own]
        listed = content(await client.call_tool("list", {}))
        assert [one["id"] for one in listed["memories"]] == [own]
        assert content(await client.call_tool("forget", {"id": other})) is False
        with pytest.raises(Exception, match="no memory"):
            await client.read_resource(f"memory://memories/default/{other}")
        assert "1234" not in json.dumps(
            (await client.get_prompt("context", {"question": "PIN?"})).model_dump()
        )
    async with Client(make_server(memory, scope="acme")) as client:
        assert len(content(await client.call_tool("recall", {"query": "PIN"}))) == 2
    assert await memory.get(other)


async def test_errors_say_what_to_do(memory):
    """The language model is told what was wrong with its call, and whoever reads a resource or asks for the prompt."""
    async with Client(make_server(memory)) as client:
        result = await client.call_tool("remember", {"text": "   "})
        assert result.is_error
        assert "blank" in said(result)
        result = await client.call_tool("remember", {"text": "x", "metadata": {"aiochroma:x": 1}})
        assert "begin" in said(result)
        result = await client.call_tool("remember", {"text": "x", "days": -1})
        assert "`days` must be a number of days above 0, got -1" in said(result)
        with pytest.raises(Exception, match="must be a string that is not blank, got ' '"):
            await client.read_resource("memory://namespaces/%20")
        with pytest.raises(Exception, match="`query` is blank"):
            await client.get_prompt("context", {"question": " "})


async def test_resources_and_prompt(memory):
    """Namespaces, their newest memories and single ones can be read, whatever they are called; the prompt has what is known."""
    namespace = "notes of 50 % / ü"
    id = await memory.remember("The attic is dusty.", namespace=namespace, metadata={"floor": 3})
    async with Client(make_server(memory)) as client:
        templates = {one.uri_template for one in (await client.list_resource_templates()).resource_templates}
        assert templates == {"memory://namespaces/{namespace}", "memory://memories/{namespace}/{id}"}
        (name,) = json.loads((await client.read_resource("memory://namespaces")).contents[0].text)
        assert name["namespace"] == namespace
        page = json.loads((await client.read_resource(name["uri"])).contents[0].text)
        assert [one["id"] for one in page["memories"]] == [id]
        uri = name["uri"].replace("namespaces", "memories") + f"/{id}"
        one = json.loads((await client.read_resource(uri)).contents[0].text)
        assert (one["text"], one["metadata"]) == ("The attic is dusty.", {"floor": 3})
        prompt = await client.get_prompt("context", {"question": "Is the attic clean?"})
        text = prompt.messages[0].content.text
        assert "The attic is dusty." in text
        assert text.endswith("Is the attic clean?")


async def test_sessions_over_pipes(environment, tmp_path):
    """Several sessions at once are processes on one server; one that is killed takes nobody with it."""
    path = tmp_path / "memory"
    async with session(path, environment, "--scope", "acme/ada") as one:
        await one.call_tool("remember", {"text": "Ada's cat is called Kestrel."})
        async with session(path, environment, "--read-only") as two, session(path, environment) as three:
            assert len((await two.list_tools()).tools) == 3
            calls = [three.call_tool("remember", {"text": f"note {number}"}) for number in range(20)]
            assert len({content(result) for result in await asyncio.gather(*calls)}) == 20
            found = content(await two.call_tool("recall", {"query": "the name of the cat", "limit": 1}))
            assert found[0]["text"] == "Ada's cat is called Kestrel."

            doomed = subprocess.Popen(
                [*COMMAND, "--path", path, "--idle", "0.5"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            request = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            doomed.stdin.write(json.dumps(request).encode() + b"\n")
            doomed.stdin.flush()
            assert json.loads(await asyncio.to_thread(doomed.stdout.readline))["id"] == 1
            doomed.send_signal(signal.SIGKILL)
            await asyncio.to_thread(doomed.communicate)
            assert len(content(await three.call_tool("recall", {"query": "note", "limit": 50}))) == 21
        # The scope of the session that was first: only its own.
        assert len(content(await one.call_tool("list", {"limit": 50}))["memories"]) == 1
    # The database is shared: a program beside the sessions has the same.
    async with (
        aiochroma.AsyncPersistentClient(path, process="shared", host_idle=1) as client,
        aiochroma.Memory(client=client) as memory,
    ):
        assert await memory.count() == 21


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be another user")
async def test_a_session_of_another_user_is_refused(environment, tmp_path):
    """Even where folder and socket are open to all: the kernel tells who it is."""
    path = tmp_path / "memory"
    # Folders of pytest's are closed to others.
    with tempfile.TemporaryDirectory(prefix="aio-") as folder:
        environment = {**environment, "AIOCHROMA_RUNTIME_DIR": folder}
        async with session(path, environment) as own:
            await own.call_tool("remember", {"text": "Ada's cat is called Kestrel."})
            (address,) = Path(folder).glob("*.mcp")
            Path(folder).chmod(0o711)
            address.chmod(0o666)
            hello = {"version": aiochroma.__version__, "scope": [], "read_only": True}
            for user, answer in ((0, b"{}\n"), (65534, b"")):
                with socket.socket(socket.AF_UNIX) as connecting:
                    connecting.settimeout(60.0)
                    os.seteuid(user)
                    try:
                        connecting.connect(str(address))
                    finally:
                        os.seteuid(0)
                    with contextlib.suppress(ConnectionError):
                        connecting.sendall(json.dumps(hello).encode() + b"\n")
                    assert await asyncio.to_thread(received, connecting) == answer
            assert content(await own.call_tool("recall", {"query": "cat"}))
            Path(folder).chmod(0o700)
        await asyncio.to_thread(until, lambda: not list(Path(folder).glob("*.mcp")), "the server ends")


def received(connected):
    try:
        return connected.recv(100)
    except ConnectionError:
        return b""


def test_nothing_but_messages(environment, tmp_path):
    """Standard output carries JSON-RPC only, whatever comes in; the session ends with its client, in good order."""
    command = [*COMMAND, "--path", tmp_path, "--idle", "0.5"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        for line in (
            b'{"jsonrpc": "2.0", "id": 7, "method": "ping"}',
            b"nonsense",
            b"x" * (2**24 + 2**20),
            b'{"jsonrpc": "2.0", "id": 8}',
        ):
            process.stdin.write(line + b"\n")
        process.stdin.write(b'{"jsonrpc": "2.0", "id": 9, "method": "ping"}\n')
        process.stdin.flush()
        answers = []
        while not answers or answers[-1].get("id") != 9:
            answers.append(json.loads(process.stdout.readline()))
        assert all(answer["jsonrpc"] == "2.0" for answer in answers)
        assert process.communicate() == (b"", b"")
    assert process.returncode == 0


def test_what_was_sent_before_the_end_is_answered(environment, tmp_path):
    """A client may send everything and close its end, as a shell does: each request has its answer."""
    initialize = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    }
    call = {"name": "remember", "arguments": {"text": "Ada's cat is called Kestrel."}}
    messages = [
        {"id": 1, "method": "initialize", "params": initialize},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": call},
    ]
    lines = "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages)
    command = [*COMMAND, "--path", tmp_path, "--idle", "0.5"]
    done = subprocess.run(
        command, input=lines.encode(), capture_output=True, env=environment, timeout=100, check=False
    )
    answers = {answer["id"]: answer for answer in map(json.loads, done.stdout.splitlines())}
    assert (done.returncode, sorted(answers), "result" in answers[2]) == (0, [1, 2], True), done


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux for the memory that was in use")
def test_a_session_is_thin(environment, tmp_path):
    """A session's process has neither Chroma nor numpy in it, nor the protocol's package or our searches, and little memory."""
    code = (
        "import sys; from aiochroma.mcp import run_session\n"
        f"run_session({str(tmp_path)!r}, idle=0.5)\n"
        "heavy = {'chromadb', 'numpy', 'mcp', 'pydantic', 'aiochroma.host.messages'} & set(sys.modules)\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]\n"
        "print(sorted(heavy), int(peak) // 1024, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"", capture_output=True, env=environment, timeout=100, check=True
    )
    heavy, megabytes = done.stderr.decode().rsplit(" ", 1)
    assert heavy == "[]"
    assert int(megabytes) <= 80


def test_a_directory_that_cannot_be_served(environment, tmp_path):
    """The session says why on standard error and ends with the code of the command line."""
    held = tmp_path / "held"
    with sync.PersistentClient(held, process="this"):
        done = subprocess.run(
            [*COMMAND, "--path", held],
            input=b"",
            capture_output=True,
            env=environment,
            timeout=100,
            check=False,
        )
    assert done.returncode == 3
    assert b"DatabaseInUse" in done.stderr or str(os.getpid()).encode() in done.stderr
    assert done.stdout == b""


WITHOUT_SOCKETS = """
import contextlib, socket, sys
with contextlib.suppress(ImportError):
    import psutil  # On Linux it takes such sockets for granted while it is imported.
pair, family = socket.socketpair, socket.AF_UNIX
socket.socketpair = lambda: pair(family)  # What a loop wakes itself with is another kind of socket where there is no such family.
del socket.AF_UNIX
from aiochroma.__main__ import main
sys.argv = ["aiochroma", *sys.argv[1:]]
main()
"""


async def test_without_unix_sockets(tmp_path):
    """Where Python has no such sockets, a session has the directory for itself and says so; sharing is refused with a reason."""
    command = [sys.executable, "-c", WITHOUT_SOCKETS]
    options = {"args": [*command[1:], "mcp", "--path", str(tmp_path)], "env": dict(os.environ)}
    async with Client(StdioServerParameters(command=command[0], **options)) as client:
        await client.call_tool("remember", {"text": "Ada's cat is called Kestrel."})
        found = content(await client.call_tool("recall", {"query": "cat"}))
        assert [one["text"] for one in found] == ["Ada's cat is called Kestrel."]
        second = await asyncio.to_thread(run, *command, "mcp", "--path", tmp_path)
        assert second.returncode == 3
        assert b"has no Unix-domain sockets" in second.stderr
        assert b"in use" in second.stderr or b"is open" in second.stderr, second.stderr
    # What a session may do is the same as where it shares the directory.
    options["args"] += ["--read-only", "--scope", "acme/ben"]
    async with Client(StdioServerParameters(command=command[0], **options)) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {"list", "namespaces", "recall"}
        assert content(await client.call_tool("recall", {"query": "cat"})) == []
    host = await asyncio.to_thread(run, *command, "host", tmp_path)
    assert host.returncode == 2
    assert b"Unix-domain sockets" in host.stderr
    shared = {**os.environ, "CHROMA_PROCESS": "shared"}
    recalled = await asyncio.to_thread(run, *command, "recall", "--path", tmp_path, "cat", env=shared)
    assert recalled.returncode == 2
    assert b"Unix-domain sockets" in recalled.stderr
    assert b"Kestrel" in (await asyncio.to_thread(run, *command, "recall", "--path", tmp_path, "cat")).stdout


def run(*command, env=None):
    return subprocess.run(command, input=b"", capture_output=True, env=env, timeout=100, check=False)
