"""How a vector store reaches its collection: from an event loop, or from a plain thread.

The store's methods are coroutines over an access. Those of :class:`BlockingAccess` never suspend, so that the same coroutines
can be driven to their end without an event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from aiochroma import sync
from aiochroma.client.opening import AsyncEphemeralClient, AsyncPersistentClient
from aiochroma.memory.blocking import Memory as BlockingMemory
from aiochroma.memory.memory import Memory

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from langchain_core.embeddings import Embeddings

    from aiochroma.client.client import AsyncClient
    from aiochroma.client.closing import Closing
    from aiochroma.memory.recall import Recall

__all__ = ["Access", "AsyncAccess", "BlockingAccess"]


class Access(Protocol):
    """What a vector store's methods wait for."""

    async def call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        """Call a method of a collection or of the client."""

    async def client(self) -> Any:
        """Return the client, opening it when it is first needed."""

    async def embed_documents(self, embeddings: Embeddings, texts: list[str]) -> list[list[float]]:
        """Embed texts."""

    async def embed_query(self, embeddings: Embeddings, text: str) -> list[float]:
        """Embed a question."""

    async def recall(self, embeddings: Embeddings, query: str, **arguments: Any) -> Recall:
        """Search by meaning and by words."""

    async def close(self) -> None:
        """Close the client, if it is ours."""


class AsyncAccess:
    """On an event loop.

    Args:
        path: The database's directory; None for the one in memory.
        client: A client to use in place of one of its own; it stays open.
    """

    def __init__(self, path: str | os.PathLike[str] | None, client: Any) -> None:
        self._path = path
        self._client: AsyncClient | None = client
        self._owns_client = client is None
        self._memory: Memory | None = None

    async def call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        """See :class:`Access`."""
        return await method(**arguments)

    async def client(self) -> Any:
        """See :class:`Access`."""
        if self._client is None:
            client = (
                await AsyncEphemeralClient()
                if self._path is None
                else await AsyncPersistentClient(self._path)
            )
            if self._client is None:
                self._client = client
            else:  # Another task was faster.
                await client.aclose()
        return self._client

    async def embed_documents(self, embeddings: Embeddings, texts: list[str]) -> list[list[float]]:
        """See :class:`Access`."""
        return await embeddings.aembed_documents(texts)

    async def embed_query(self, embeddings: Embeddings, text: str) -> list[float]:
        """See :class:`Access`."""
        return await embeddings.aembed_query(text)

    async def recall(self, embeddings: Embeddings, query: str, **arguments: Any) -> Recall:
        """See :class:`Access`."""
        if self._memory is None:
            self._memory = await Memory(client=await self.client(), embedder=embeddings).open()
        return await self._memory.recall(query, **arguments)

    async def close(self) -> None:
        """See :class:`Access`."""
        closing = self.release()
        if closing is not None:
            await closing

    def release(self) -> Closing | None:
        """Begin to close the client, if it is ours and open, and return what to wait for."""
        client, self._memory = self._client, None
        if not self._owns_client or client is None:
            return None
        self._client = None
        return client.close()


class BlockingAccess:
    """On a plain thread: nothing here ever suspends. Arguments as :class:`AsyncAccess`."""

    def __init__(self, path: str | os.PathLike[str] | None, client: Any) -> None:
        self._path = path
        self._client = client
        self._owns_client = client is None
        self._memory: BlockingMemory | None = None

    async def call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        """See :class:`Access`."""
        return method(**arguments)

    async def client(self) -> Any:
        """See :class:`Access`."""
        if self._client is None:
            client = sync.EphemeralClient() if self._path is None else sync.PersistentClient(self._path)
            if self._client is None:
                self._client = client
            else:  # Another thread was faster.
                client.close()
        return self._client

    async def embed_documents(self, embeddings: Embeddings, texts: list[str]) -> list[list[float]]:
        """See :class:`Access`."""
        return embeddings.embed_documents(texts)

    async def embed_query(self, embeddings: Embeddings, text: str) -> list[float]:
        """See :class:`Access`."""
        return embeddings.embed_query(text)

    async def recall(self, embeddings: Embeddings, query: str, **arguments: Any) -> Recall:
        """See :class:`Access`."""
        if self._memory is None:
            self._memory = BlockingMemory(client=await self.client(), embedder=embeddings).open()
        return self._memory.recall(query, **arguments)

    async def close(self) -> None:
        """See :class:`Access`."""
        client, self._memory = self._client, None
        if self._owns_client and client is not None:
            self._client = None
            client.close()
