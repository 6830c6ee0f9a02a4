"""A memory as tools for a language model: plain typed functions, which every agent framework takes as they are.

pydantic-ai, OpenAI Agents, Microsoft's Agent Framework and Google ADK make a tool of a function with annotations and a docstring;
nothing of theirs is needed here. ``aiochroma mcp`` offers the same ones over the Model Context Protocol.

Example:
    >>> async with aiochroma.Memory("./memory") as memory:  # doctest: +SKIP
    ...     agent = pydantic_ai.Agent("openai:gpt-5", tools=memory_tools(memory, scope=("acme", "user-7")))
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

# pydantic does not read those of `typing` before Python 3.12.
from typing_extensions import TypedDict

from aiochroma._errors import InvalidInputError, shown
from aiochroma._types import Metadata
from aiochroma.client.options import check_flag
from aiochroma.memory.arguments import checked_scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiochroma.memory.memory import Memory
    from aiochroma.memory.results import Hit

__all__ = ["MemoryPage", "RecalledMemory", "is_within", "memory_tools"]

Value = str | int | float | bool

_MOST = 50
"""Memories that one answer holds, whatever a language model asks for."""


class RecalledMemory(TypedDict):
    """A memory as a language model is told about it.

    Attributes:
        id: What `forget` takes, together with the namespace.
        namespace: Where it is.
        text: What was remembered.
        date: When it was first remembered, as YYYY-MM-DD; empty where it is not known.
        metadata: What was stored with it.
    """

    id: str
    namespace: str
    text: str
    date: str
    metadata: Metadata


class MemoryPage(TypedDict):
    """Some memories, and where to go on.

    Attributes:
        memories: The memories, newest first.
        next: What `after` has to be for the ones that follow; None when there are no more.
    """

    memories: list[RecalledMemory]
    next: str | None


def memory_tools(
    memory: Memory, *, scope: str | tuple[str, ...] | None = None, read_only: bool = False
) -> list[Callable[..., Awaitable[Any]]]:
    """Return what a language model can do with a memory.

    Args:
        memory: An open memory; stays open.
        scope: Whose memories: everything is remembered in this scope, and nothing outside of it can be seen or forgotten. None
            for all of the memory.
        read_only: Leave out the tools that change something.

    What fails raises, also with a memory that degrades: the model is to know that nothing was remembered or looked up.

    Raises:
        InvalidInputError: It is no such memory, or the scope is none.

    Returns:
        The asynchronous functions ``recall``, ``list_memories``, ``list_namespaces``, ``remember`` and ``forget``.
    """
    _check(memory, scope, read_only=read_only)

    async def recall(query: str, namespaces: list[str] | None = None, limit: int = 5) -> list[RecalledMemory]:
        """Look up what was remembered about something. Use it before you answer from memory, or say that you do not know.

        Args:
            query: What you want to know, as a question or in keywords; names, codes and numbers are found as they are written.
            namespaces: Only these parts of the memory; all of them if left out.
            limit: The most memories to return, 1 to 50.
        """
        most = _bounded(limit)
        found = await memory.recall(query, namespaces=namespaces, scope=scope, k=most, limit=most)
        if not found:
            # Nothing was found because something failed: not the same as nothing being known.
            _raise_any(*found.errors.values())
        return [_told(hit) for hit in found]

    async def list_memories(namespace: str = "default", limit: int = 20, after: str = "") -> MemoryPage:
        """List memories without a question, newest first. Use `recall` to find something.

        Args:
            namespace: The part of the memory.
            limit: The most memories to return, 1 to 50.
            after: What the page before gave as `next`; empty for the first page.
        """
        most = _bounded(limit)
        page = await memory.list(namespace, scope=scope, newest_first=True, limit=most, after=after or None)
        _raise_any(page.error)
        return {"memories": [_told(hit) for hit in page], "next": page.next}

    async def list_namespaces() -> list[str]:
        """List the names of the parts that the memory has."""
        return await _names(memory, scope)

    async def remember(
        text: str,
        namespace: str = "default",
        metadata: dict[str, Value | list[Value]] | None = None,
        days: float | None = None,
    ) -> str:
        """Remember something for later conversations. Remembering it twice is harmless.

        Args:
            text: One fact in a sentence of its own, with names instead of pronouns: it is read later without this conversation.
            namespace: The part of the memory that it belongs to.
            metadata: Further values to keep with it; the values of a list are of one kind.
            days: Forget it after this many days; forever if left out.

        Returns:
            The id of the memory.
        """
        try:
            ttl = None if days is None else timedelta(days=float(days))
        except (OverflowError, TypeError, ValueError):
            ttl = timedelta(0)
        if ttl is not None and ttl <= timedelta(0):
            raise InvalidInputError(f"`days` must be a number of days above 0, got {shown(days)}.")
        id = await memory.remember(text, namespace=namespace, scope=scope, metadata=metadata, ttl=ttl)
        _raise_any(id.error)
        return str(id)

    async def forget(id: str, namespace: str = "default") -> bool:
        """Forget one memory for good, for instance because it is wrong or the user wants it.

        Args:
            id: The memory's id, from `recall` or `list_memories`.
            namespace: The memory's namespace, as that answer gives it.

        Returns:
            Whether there was such a memory.
        """
        hit = await memory.get(id, namespace=namespace)
        _raise_any(getattr(hit, "error", None))
        if not hit or not is_within(hit, scope):
            return False
        forgotten = await memory.forget(id, namespace=namespace)
        _raise_any(forgotten.error)
        return bool(forgotten)

    tools: list[Callable[..., Awaitable[Any]]] = [recall, list_memories, list_namespaces]
    return tools if read_only else [*tools, remember, forget]


def _check(memory: Memory, scope: object, *, read_only: bool) -> None:
    from aiochroma.memory.memory import Memory

    if not isinstance(memory, Memory):
        raise InvalidInputError(
            f"The tools need an `aiochroma.Memory`, which is asynchronous, got {shown(memory)}."
        )
    if scope is not None:
        checked_scope(scope)
    check_flag("read_only", read_only)


async def _names(memory: Memory, scope: str | tuple[str, ...] | None) -> list[str]:
    """Return the namespaces that hold something of a scope: the name of one may tell of somebody else, too."""
    names = await memory.namespaces()
    _raise_any(names.error)
    if scope is None:
        return list(names)
    pages = {name: await memory.list(name, scope=scope, limit=1) for name in names}
    _raise_any(*(page.error for page in pages.values()))
    return [name for name, page in pages.items() if page]


def _bounded(limit: object) -> int:
    """Return how many memories an answer holds; some frameworks pass on whatever the model wrote."""
    try:
        return max(1, min(int(cast("int", limit)), _MOST))
    except (OverflowError, TypeError, ValueError):
        raise InvalidInputError(f"`limit` must be a whole number, got {shown(limit)}.") from None


def _raise_any(*errors: BaseException | None) -> None:
    """Raise the first error there is: a model must not take an empty result of a memory that degrades for an answer."""
    for error in errors:
        if error is not None:
            raise error


def is_within(hit: Hit, scope: str | tuple[str, ...] | None) -> bool:
    """Tell whether a memory belongs to a scope or to one below it."""
    parts = () if scope is None else (scope,) if isinstance(scope, str) else tuple(scope)
    return hit.scope[: len(parts)] == parts


def _told(hit: Hit) -> RecalledMemory:
    return {
        "id": hit.id,
        "namespace": hit.namespace,
        "text": hit.text,
        "date": "" if hit.created_at is None else f"{hit.created_at:%Y-%m-%d}",
        "metadata": hit.metadata,
    }
