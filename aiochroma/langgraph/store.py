"""LangGraph's ``BaseStore`` on a database: asynchronous and blocking on the same object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langgraph.store.base import BaseStore

from aiochroma._threads import drive
from aiochroma.client.opening import LazyClient
from aiochroma.langgraph.items import ItemCollection

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from types import TracebackType

    from langgraph.store.base import IndexConfig, Op, Result, TTLConfig
    from typing_extensions import Self

__all__ = ["AiochromaStore"]


class AiochromaStore(BaseStore):
    """A store for what graphs remember across threads: values under keys, in hierarchical namespaces, found by meaning.

    The asynchronous methods and the blocking ones work on the same database thread and may be mixed. Values are whatever JSON
    has. Behaviour is that of LangGraph's own stores, except that

    * an item that is put again keeps its ``created_at``, and nothing of its former value is found any more;
    * a namespace without items is not listed;
    * without a query, and where an item has no vector, the items that were put last come first;
    * items whose time has passed are never returned;
    * a comparison with a value that is missing or no number lets nothing pass, instead of failing.

    Operations of one batch: reading sees the state before the batch; of several puts of one key the last one counts.

    Args:
        path: The database's directory; None for the database in memory that all ephemeral clients of the process share.
        index: What is embedded, and by what: LangGraph's ``fields`` (default ``["$"]``, the whole value), ``embed`` (default: the
            offline embedder of :class:`aiochroma.Memory`) and ``dims`` (default: the embedder's). None: nothing is embedded,
            and ``search`` ignores its query.
        ttl: LangGraph's configuration, in minutes: ``default_ttl``, ``refresh_on_read`` and ``sweep_interval_minutes``, which
            lets a write sweep when the last one is so long ago. Without it only :meth:`sweep` deletes.
        collection_name: The collection of the items; its name with ``.vectors`` is that of the vectors.
        client: A client to use in place of one of its own, asynchronous or blocking, of a directory or of a server; it stays
            open.

    Example:
        >>> store = AiochromaStore("./memory", index={"fields": ["text"]})  # doctest: +SKIP
        >>> await store.aput(("users", "ada"), "cat", {"text": "Her cat is called Kestrel."})  # doctest: +SKIP
        >>> await store.asearch(("users",), query="pets")  # doctest: +SKIP
    """

    supports_ttl = True

    def __init__(
        self,
        path: str | os.PathLike[str] | None = "./memory",
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        collection_name: str = "langgraph",
        client: object = None,
    ) -> None:
        self.ttl_config = ttl
        self._client = LazyClient(path, client)
        self._items = ItemCollection(self._client, collection_name, index, ttl)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out several operations.

        Returns:
            The result of each, in order.

        Raises:
            InvalidInputError: An operation is wrong; nothing was done.
            InvalidNamespaceError: LangGraph's, for a label that is empty or has a period.
            AiochromaError: See the error tree.
        """
        return drive(self._items.batch(list(ops)))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As :meth:`batch`."""
        return await self._items.batch(list(ops))

    def sweep(self) -> int:
        """Delete the items whose time has passed.

        Returns:
            How many there were.
        """
        return drive(self._items.sweep())

    async def asweep(self) -> int:
        """As :meth:`sweep`."""
        return await self._items.sweep()

    def close(self) -> None:
        """Close the store's own clients and wait until the database's thread has ended; a later call opens them again."""
        drive(self._client.close())

    async def aclose(self) -> None:
        """As :meth:`close`."""
        await self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
