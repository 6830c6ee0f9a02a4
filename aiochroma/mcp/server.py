"""A memory as a server of the Model Context Protocol: tools, resources and a prompt; and what serves it to many sessions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import traceback
from dataclasses import asdict
from functools import partial, wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import filelock

from aiochroma._distribution import missing_extra, version
from aiochroma._errors import (
    AiochromaError,
    DatabaseInUseError,
    InvalidInputError,
    SettingsConflictError,
    error_to_dict,
)
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject
from aiochroma.client.opening import AsyncPersistentClient
from aiochroma.host.sockets import check_peer, listen
from aiochroma.mcp import address_of
from aiochroma.memory.memory import Memory
from aiochroma.tools import is_within, memory_tools

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ResourceError, ToolError
    from mcp.server.stdio import stdio_server
    from mcp.shared.exceptions import MCPError
    from mcp.types import INVALID_PARAMS, ToolAnnotations
except ImportError as _error:
    raise missing_extra("aiochroma.mcp", "mcp", _error.name) from _error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    _Answering = Callable[..., Awaitable[Any]]

__all__ = ["McpHost", "make_server", "serve_alone"]

log: EventLogger = get_logger("aiochroma.mcp")

_INSTRUCTIONS = (
    "A memory that lasts from one conversation to the next. Recall before you answer from memory or say that you do not know; "
    "remember facts, decisions and preferences that will matter later, one sentence each."
)
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_ANNOTATIONS = {
    "remember": ToolAnnotations(destructive_hint=False, idempotent_hint=True, open_world_hint=False),
    "forget": ToolAnnotations(destructive_hint=True, idempotent_hint=True, open_world_hint=False),
}
_NAMES = {"list_memories": "list", "list_namespaces": "namespaces"}
"""Clients put the server's name before those of the tools."""


def make_server(
    memory: Memory, *, scope: str | tuple[str, ...] | None = None, read_only: bool = False
) -> MCPServer[Any]:
    """Make a server of a memory.

    Args:
        memory: An open memory; stays open.
        scope: Whose memories; see :func:`aiochroma.tools.memory_tools`.
        read_only: Leave out the tools that change something.

    Returns:
        The server; ``server.run()`` serves standard input and output.
    """
    server: MCPServer[Any] = MCPServer(
        "aiochroma", title="Memory", version=version(), instructions=_INSTRUCTIONS, log_level="WARNING"
    )
    tools = {tool.__name__: tool for tool in memory_tools(memory, scope=scope, read_only=read_only)}
    for name, tool in tools.items():
        server.add_tool(
            _telling(ToolError)(tool), _NAMES.get(name, name), annotations=_ANNOTATIONS.get(name, _READS)
        )
    _add_resources(server, memory, tools, scope)
    _add_prompt(server, memory, scope)
    return server


def serve_alone(directory: str, scope: tuple[str, ...], *, read_only: bool) -> None:
    """Serve standard input and output until they end, from a memory that this process opens for itself.

    Raises:
        DatabaseInUseError: Another process has the directory open.
    """

    async def serve() -> None:
        client = await AsyncPersistentClient(
            directory, process="this", durable=True, allow_missing_vectors=True
        )
        async with client, Memory(client=client) as memory:
            await make_server(memory, scope=scope or None, read_only=read_only).run_stdio_async()

    asyncio.run(serve())


def _telling(told: Callable[[str], Exception]) -> Callable[[_Answering], _Answering]:
    """Pass this package's errors on to whoever asked: they say what to do next. Any other error is left to that package.

    Args:
        told: Makes an error that the protocol's package passes on.
    """

    def telling(answer: _Answering) -> _Answering:
        @wraps(answer)
        async def call(*values: object, **arguments: object) -> Any:
            try:
                return await answer(*values, **arguments)
            except AiochromaError as error:
                raise told(str(error)) from error

        return call

    return telling


def _add_resources(
    server: MCPServer[Any], memory: Memory, tools: JsonObject, scope: str | tuple[str, ...] | None
) -> None:
    @server.resource(
        "memory://namespaces",
        title="Namespaces",
        mime_type="application/json",
        description="The parts of the memory.",
    )
    @_telling(ResourceError)
    async def namespaces() -> str:
        names = await tools["list_namespaces"]()
        return _json(
            [{"namespace": name, "uri": f"memory://namespaces/{quote(name, safe='')}"} for name in names]
        )

    @server.resource(
        "memory://namespaces/{namespace}",
        title="Namespace",
        mime_type="application/json",
        description="The newest memories of a part of the memory.",
    )
    @_telling(ResourceError)
    async def namespace(namespace: str) -> str:
        return _json(await tools["list_memories"](namespace, limit=50))

    @server.resource(
        "memory://memories/{namespace}/{id}",
        title="Memory",
        mime_type="application/json",
        description="One memory with all that is known of it.",
    )
    @_telling(ResourceError)
    async def one(namespace: str, id: str) -> str:
        hit = await memory.get(id, namespace=namespace)
        if hit is None or not is_within(hit, scope):
            raise ResourceError(f"There is no memory {id!r} in the namespace {namespace!r}.")
        return _json(asdict(hit))


def _add_prompt(server: MCPServer[Any], memory: Memory, scope: str | tuple[str, ...] | None) -> None:
    @server.prompt(
        title="What the memory knows", description="What was remembered about a question, to put before it."
    )
    @_telling(partial(MCPError, INVALID_PARAMS))
    async def context(question: str) -> str:
        found = await memory.recall(question, scope=scope, k=10, limit=20)
        known = found.as_context(max_tokens=2000) or "Nothing."
        return f"What you remember from earlier conversations:\n\n{known}\n\n{question}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str)


# -- the server process of a directory ----------------------------------------------------------------------------------

_LONGEST_LINE = 2**24
_LAST_SECONDS = 30.0
"""For so long a session goes on behind the end of its input; a request that was cancelled is not answered."""


class McpHost:
    """Serves sessions that connect to a socket, each with a server of its own over one memory.

    Args:
        memory: The open memory.
        directory: The canonical directory.
        idle: Ends after this many seconds without a session.
    """

    def __init__(self, memory: Memory, directory: str, idle: float) -> None:
        self._memory = memory
        self._address = address_of(directory)
        self._changing = filelock.FileLock(self._address.with_suffix(".mcp-lock"), thread_local=False)
        self._idle = idle
        self._sessions: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Listen, and return when no session has been connected for long enough."""
        listening = await asyncio.start_unix_server(
            self._accept, sock=listen(self._address), limit=_LONGEST_LINE
        )
        ready()
        try:
            while not await self._may_go():
                pass
        finally:
            listening.close()
            for session in self._sessions:
                session.cancel()
            if self._sessions:
                await asyncio.wait(self._sessions)

    async def _may_go(self) -> bool:
        """Wait until something changes, and return whether this was the end."""
        self._changed.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), None if self._sessions else self._idle)
            return False
        try:
            # Sessions look under this lock before they start another server.
            with self._changing.acquire(timeout=0):
                if self._sessions:
                    return False
                self._address.unlink(missing_ok=True)
                return True
        except filelock.Timeout:
            return False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        self._changed.set()
        try:
            # asyncio's own object does not let itself be closed.
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as connected:
                check_peer(connected, "A session")
            await self._session(reader, writer)
        except DatabaseInUseError as error:
            log.warning("mcp.refused_session", reason=str(error))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The session's process has gone.
        except Exception:  # noqa: BLE001 - the other sessions go on
            log.warning("mcp.session_failed", traceback=traceback.format_exc())
        finally:
            self._sessions.discard(task)
            self._changed.set()
            writer.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = json.loads(await reader.readline() or b"{}")
        if hello.get("version") != version():
            error = SettingsConflictError(
                f"The server of this directory is of version {version()} and this session of {hello.get('version')}. Close the "
                "other sessions; the server then ends by itself."
            )
            writer.write(json.dumps({"error": error_to_dict(error)}).encode() + b"\n")
            return
        try:
            server = make_server(
                self._memory, scope=tuple(hello["scope"]) or None, read_only=bool(hello["read_only"])
            )
        except InvalidInputError as error:
            writer.write(json.dumps({"error": error_to_dict(error)}).encode() + b"\n")
            return
        writer.write(b"{}\n")
        await writer.drain()
        lowlevel = server._lowlevel_server  # noqa: SLF001 - the package's own transports are written so
        streams: Any = _Lines(reader, writer)
        async with stdio_server(streams, streams) as (incoming, outgoing):
            await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())


class _Lines:
    """A connection as the protocol's package reads and writes standard input and output.

    The package drops what is under way when its input ends. So the end is held back until what was asked is answered: a client
    that has sent everything may close its end, as `echo` does.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._asked: set[str] = set()
        self._answered = asyncio.Event()
        self._answered.set()

    def __aiter__(self) -> _Lines:
        return self

    async def __anext__(self) -> bytes:
        try:
            line = await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            line = error.partial
        except asyncio.LimitOverrunError:
            return await self._too_long()
        if not line:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._answered.wait(), _LAST_SECONDS)
            raise StopAsyncIteration
        message = _message(line)
        if "method" in message and "id" in message:
            self._asked.add(repr(message["id"]))
            self._answered.clear()
        return line

    async def _too_long(self) -> bytes:
        """Read past a line that is longer than any message may be; what stands for it is no message, and is refused as such."""
        while await self._is_longer():
            pass
        log.info("mcp.message_left_out", longer_than=_LONGEST_LINE)
        return b"too long"

    async def _is_longer(self) -> bool:
        """Read some more of a line, and return whether that was not its end."""
        try:
            await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as error:
            await self._reader.readexactly(error.consumed)
            return True
        except asyncio.IncompleteReadError:
            pass
        return False

    async def write(self, text: str) -> None:
        self._writer.write(text.encode())
        message = _message(text)
        if "method" not in message and "id" in message:
            self._asked.discard(repr(message["id"]))
            if not self._asked:
                self._answered.set()

    async def flush(self) -> None:
        await self._writer.drain()


def _message(line: bytes | str) -> JsonObject:
    """Read a message; what is none is empty."""
    try:
        message: object = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
