"""Chroma's ``AsyncServerAPI`` and ``ServerAPI`` over a session: what Chroma's own clients and collections talk to.

Importing this module imports chromadb; that happens after the DB thread has imported it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from chromadb.api import AsyncServerAPI, ServerAPI
from chromadb.api.types import IncludeMetadataDocumentsEmbeddings

from aiochroma._threads import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from chromadb.config import Settings

    from aiochroma.client.session import Session

__all__ = ["BlockingApi", "ChromaApi"]


class _Api:
    """The part of the server that is written out; the operations are added below, from Chroma's own list.

    Args:
        session: Carries the operations out.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def get_settings(self) -> Settings:
        """Return Chroma's settings as they are in force; known since the database was opened."""
        settings = self.session.describe().settings
        assert settings is not None, "a client is made when the database is open"
        return settings

    def __deepcopy__(self, memo: dict[int, Any]) -> _Api:
        return self


def _operations(interface: Any, *, blocking: bool) -> dict[str, Any]:
    """Make a method for each of the operations that Chroma's interface lists."""
    made = {name: _operation(interface, name, blocking=blocking) for name in interface.__abstractmethods__}
    made["_peek"] = _overriding(_peek_blocking if blocking else _peek)
    made["get_settings"] = _overriding(_Api.get_settings)
    return {**made, "__doc__": _Api.__doc__, "__module__": __name__}


def _operation(interface: Any, name: str, *, blocking: bool) -> Callable[..., Any]:
    template = getattr(interface, name)
    names = tuple(inspect.signature(template).parameters)[1:]

    def operation(self: _Api, *values: Any, **arguments: Any) -> Coroutine[Any, Any, Any]:
        if values:
            arguments.update(zip(names, values, strict=False))
        return self.session.submit(name, **arguments)

    def blocking_operation(self: _Api, *values: Any, **arguments: Any) -> Any:
        return drive(operation(self, *values, **arguments))

    method: Any = blocking_operation if blocking else operation
    method.__name__ = name
    method.__doc__ = template.__doc__
    made: Callable[..., Any] = _overriding(method)
    return made


def _overriding(method: Any) -> Any:
    """Mark a method as Chroma's metaclass wants every overriding one to be marked."""
    method.__override__ = True
    return method


async def _peek(self: _Api, collection_id: Any, n: int = 10, **database: Any) -> Any:
    """Return the first records: a ``get``, as in Chroma, so that a large one is paged."""
    include = list(IncludeMetadataDocumentsEmbeddings)
    return await self.session.submit(
        "_get", collection_id=collection_id, limit=n, include=include, **database
    )


def _peek_blocking(self: _Api, collection_id: Any, n: int = 10, **database: Any) -> Any:
    """Return the first records; see ``_peek``."""
    return drive(_peek(self, collection_id, n, **database))


ChromaApi: Any = type("ChromaApi", (_Api, AsyncServerAPI), _operations(AsyncServerAPI, blocking=False))
"""What Chroma's asynchronous client and collections talk to."""

BlockingApi: Any = type("BlockingApi", (_Api, ServerAPI), _operations(ServerAPI, blocking=True))
"""What Chroma's synchronous client and collections talk to."""
