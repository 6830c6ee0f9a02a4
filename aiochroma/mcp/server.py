"""A memory as a server of the Model Context Protocol: tools, resources and a prompt."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiochroma._distribution import missing_extra, version
from aiochroma._errors import AiochromaError
from aiochroma.tools import is_within, memory_tools

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ResourceError, ToolError
    from mcp.types import ToolAnnotations
except ImportError as error:
    raise missing_extra("aiochroma.mcp", "mcp", error.name) from error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiochroma.memory.memory import Memory

__all__ = ["make_server"]

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
        server.add_tool(_telling(tool), _NAMES.get(name, name), annotations=_ANNOTATIONS.get(name, _READS))
    _add_resources(server, memory, tools, scope)
    _add_prompt(server, memory, scope)
    return server


def _telling(tool: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Have errors of ours reach the language model: they say what to do next. Anything else is the server's own affair."""

    @wraps(tool)
    async def call(*values: object, **arguments: object) -> Any:
        try:
            return await tool(*values, **arguments)
        except AiochromaError as error:
            raise ToolError(str(error)) from error

    return call


def _add_resources(
    server: MCPServer[Any], memory: Memory, tools: dict[str, Any], scope: str | tuple[str, ...] | None
) -> None:
    @server.resource(
        "memory://namespaces",
        title="Namespaces",
        mime_type="application/json",
        description="The parts of the memory.",
    )
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
    async def namespace(namespace: str) -> str:
        return _json(await tools["list_memories"](namespace, limit=50))

    @server.resource(
        "memory://memories/{namespace}/{id}",
        title="Memory",
        mime_type="application/json",
        description="One memory with all that is known of it.",
    )
    async def one(namespace: str, id: str) -> str:
        hit = await memory.get(id, namespace=namespace)
        if hit is None or not is_within(hit, scope):
            raise ResourceError(f"There is no memory {id!r} in the namespace {namespace!r}.")
        return _json(asdict(hit))


def _add_prompt(server: MCPServer[Any], memory: Memory, scope: str | tuple[str, ...] | None) -> None:
    @server.prompt(
        title="What the memory knows", description="What was remembered about a question, to put before it."
    )
    async def context(question: str) -> str:
        found = await memory.recall(question, scope=scope, k=10, limit=20)
        known = found.as_context(max_tokens=2000) or "Nothing."
        return f"What you remember from earlier conversations:\n\n{known}\n\n{question}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str)
