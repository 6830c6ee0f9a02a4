"""A client that is opened when it is first needed: what the stores of other frameworks stand on.

Their methods exist twice, for event loops and for plain threads. What they do is written once, as coroutines over this client:
awaited on a loop or driven on a thread, on the same database thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from aiochroma._threads import waits_by_blocking
from aiochroma._types import Metadata
from aiochroma.client.opening import AsyncEphemeralClient, AsyncPersistentClient

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine

    from aiochroma.client.client import AsyncClient
    from aiochroma.client.collection import Collection

__all__ = ["LazyClient"]

T = TypeVar("T")


class LazyClient:
    """A client, and the collections that were looked up with it.

    Args:
        path: The database's directory; None for the database in memory that all ephemeral clients of the process share.
        client: A client to use in place of an own one, asynchronous or blocking; it stays open.
    """

    def __init__(self, path: str | os.PathLike[str] | None, client: Any = None) -> None:
        self._path = path
        self._owns_client = client is None
        self._client: AsyncClient | None = getattr(client, "asynchronous", client)
        self._collections: dict[str, Collection] = {}

    async def open(self) -> AsyncClient:
        """Return the client, opening it when it is first needed."""
        if self._client is None:
            opening = AsyncEphemeralClient() if self._path is None else AsyncPersistentClient(self._path)
            opened = await opening.open()
            if self._client is None:
                self._client = opened
            else:  # Another task or thread was faster.
                await opened.close()
        return self._client

    async def make_collection(self, name: str, metadata: Metadata | None) -> None:
        """Make a collection where there is none, with cosine distance and no embedding function."""
        client = await self.open()
        await client.get_or_create_collection(
            name, configuration={"hnsw": {"space": "cosine"}}, metadata=metadata, embedding_function=None
        )

    async def on_collection(
        self,
        name: str,
        work: Callable[[Collection], Coroutine[Any, Any, T]],
        *,
        absent: T,
        check: Callable[[Collection], Coroutine[Any, Any, None]] | None = None,
    ) -> T:
        """Do something with a collection, which is looked up once.

        Args:
            name: The collection.
            work: What to do.
            absent: The outcome where there is no such collection.
            check: Refuses a collection by raising.
        """
        client = await self.open()
        from chromadb.errors import NotFoundError

        for attempt in (1, 2):
            try:
                collection = self._collections.get(name)
                if collection is None:
                    collection = await client.get_collection(name, embedding_function=None)
                    if check is not None:
                        await check(collection)
                    self._collections[name] = collection
                return await work(collection)
            except NotFoundError:  # noqa: PERF203 - there are two attempts
                # It does not exist, or somebody has deleted it, and perhaps made it again.
                if self._collections.pop(name, None) is None or attempt == 2:
                    break
        return absent

    def known_collection(self, name: str) -> Collection | None:
        """Return a collection that was looked up before, or None."""
        return self._collections.get(name)

    async def close(self) -> None:
        """Close the client, if it is an own one, and wait until the database's thread has ended; idempotent."""
        waits_by_blocking()
        client = self._client
        self._collections.clear()
        if self._owns_client and client is not None:
            self._client = None
            await client.close()
