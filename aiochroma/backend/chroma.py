"""The one module that starts Chroma and calls it; everything here runs on the thread that owns it.

Chroma's ``System`` is built directly, not through ``chromadb.PersistentClient``: the registry behind that is neither safe
for concurrent first use nor aware of two spellings of one path, and both have cost people their vectors. What the
``System`` yields is a ``ServerAPI``, whose methods are the operations of our requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiochroma.backend.protocol import BackendInfo, Capabilities
from aiochroma.backend.settings import chroma_settings
from aiochroma.core.request import Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from chromadb.api import ServerAPI
    from chromadb.config import System

    from aiochroma.backend.protocol import WriteHook
    from aiochroma.core.config import EngineOptions, Location
    from aiochroma.core.request import Request

__all__ = ["ChromaBackend", "start_chroma"]

_IN_PROCESS = "chromadb.api.rust.RustBindingsAPI"
"""Whatever the caller's settings say: a database of this process never talks to a server."""

_COUNTS_AT_ONCE = 8
"""Each holds the interpreter for about a millisecond."""


def start_chroma(location: Location, options: EngineOptions) -> System:
    """Start Chroma on a directory, or in memory.

    chromadb is imported here, on the DB thread: it takes half a second, and the event loop goes on meanwhile.
    """
    settings = chroma_settings(
        options.settings, is_persistent=location.kind == "persistent", chroma_api_impl=_IN_PROCESS
    )
    from chromadb.api import ServerAPI
    from chromadb.config import System

    if location.path:
        settings.persist_directory = location.path
    system = System(settings)
    # Abstract: looking up the implementation that the settings name is what `instance` is for.
    system.instance(ServerAPI)  # type: ignore[type-abstract]
    system.start()
    return system


class ChromaBackend:
    """A database that Chroma has open.

    Args:
        system: Chroma's system, started.

    Attributes:
        api: Chroma.
        hook: What follows the writes, or None.
    """

    def __init__(self, system: System) -> None:
        from chromadb.api import ServerAPI

        self._system = system
        self.api: ServerAPI = system.instance(ServerAPI)  # type: ignore[type-abstract]
        self._touched: set[str] = set()
        self._counts: dict[str, int] = {}
        self._changed: dict[str, Any] = {}
        self.hook: WriteHook | None = None
        self._own: dict[str, Callable[..., Any]] = {"count_documents": self.count_documents}

    @property
    def capabilities(self) -> Capabilities:
        """See :class:`aiochroma.backend.protocol.Backend`."""
        return Capabilities(full_text=self.hook is not None, history=self.hook is not None)

    def describe(self) -> BackendInfo:
        """See :class:`aiochroma.backend.protocol.Backend`."""
        return BackendInfo(self.capabilities, self._system.settings)

    def stop_retrying(self) -> None:
        """See :class:`aiochroma.backend.protocol.Backend`; nothing is repeated here."""

    def execute(self, request: Request, deadline: float | None = None) -> Any:  # noqa: ARG002 - nothing waits or is repeated here
        """Carry out one call and return Chroma's result."""
        operation, arguments = request.operation, request.arguments
        self._prepare(request)
        own = self._own.get(operation)
        if own is not None:
            if request.lane is Lane.WRITE:
                self._changed[str(arguments["collection_id"])] = arguments
            return own(**arguments)
        if operation == "delete_collection" and self.hook is not None:
            self._delete_collection(arguments)
            return None
        result = getattr(self.api, operation)(**arguments)
        if operation in {"_get", "_query"} and result.get("embeddings") is not None:
            result["embeddings"] = _as_arrays(operation, result["embeddings"])
        elif request.lane is Lane.WRITE:
            self._changed[str(arguments["collection_id"])] = arguments
            if self.hook is not None:
                self.hook.after_write(request)
        elif operation in {"reset", "delete_collection", "delete_database"}:
            self._touched.clear()
            self._counts.clear()
            self._changed.clear()
            if self.hook is not None:
                self.hook.forget_everything()
        return result

    def _prepare(self, request: Request) -> None:
        operation, arguments = request.operation, request.arguments
        if "collection_id" in arguments and operation not in {
            "_get",
            "_query",
            "search_memories",
            "similar_memories",
        }:
            self._touch(arguments)
        if self.hook is not None and request.lane in {Lane.CATALOG, Lane.BARRIER}:
            self.hook.collections_changed()

    def work(self) -> bool:
        """Do a slice of what the follower has left to do; return whether there is more."""
        return self.hook is not None and self.hook.work()

    def follow(self, hook: WriteHook) -> None:
        """Have every write followed from now on, and offer the operations that the follower adds."""
        self.hook = hook
        self._own.update(hook.operations())

    def _delete_collection(self, arguments: Any) -> None:
        """Delete a collection and its index, which goes by the id that nobody can look up afterwards."""
        collection = str(self.api.get_collection(**arguments).id)
        self.api.delete_collection(**arguments)
        self._touched.discard(collection)
        self._counts.pop(collection, None)
        self._changed.pop(collection, None)
        assert self.hook is not None
        self.hook.forget_collection(collection)

    def count_documents(self, tenant: str, database: str) -> int:
        """Return how many records a database holds, without holding the interpreter for long.

        Counts are kept; those of collections that changed since are taken again, a few at a time, so the number may lag
        behind in a store with very many collections.
        """
        collections = self.api.list_collections(tenant=tenant, database=database)
        stale = [
            entry
            for entry in collections
            if str(entry.id) not in self._counts or str(entry.id) in self._changed
        ]
        for entry in stale[:_COUNTS_AT_ONCE]:
            arguments: dict[str, Any] = {"collection_id": entry.id, "tenant": tenant, "database": database}
            self._touch(arguments)
            self._counts[str(entry.id)] = self.api._count(**arguments)  # noqa: SLF001 - Chroma's own name
            self._changed.pop(str(entry.id), None)
        return sum(self._counts.get(str(entry.id), 0) for entry in collections)

    def close(self) -> None:
        """Let go of the database."""
        self._own = {}
        if self.hook is not None:
            self.hook.close({})
            self.hook = None
        del self.api
        self._system.stop()

    def _touch(self, arguments: Any) -> None:
        """Read a collection once before it is written or counted for the first time.

        Chroma replays a collection's log on first use. Inside ``get`` it does so with the interpreter released (6 ms of
        stalled event loop against 324 ms inside ``count``, for 900 records), and it avoids applying the log a second time
        at the next write.
        """
        collection = str(arguments["collection_id"])
        if collection in self._touched:
            return
        place = {name: arguments[name] for name in ("tenant", "database") if name in arguments}
        self.api._get(collection_id=arguments["collection_id"], limit=1, include=[], **place)  # noqa: SLF001 - Chroma's own name
        self._touched.add(collection)


def _as_arrays(operation: str, embeddings: Any) -> Any:
    """Turn vectors from lists into arrays here, piece by piece, and not on the event loop, all at once.

    Returns:
        float64, as Chroma's own conversion gives: shape (records, dimensions) for ``_get``, a list of such for ``_query``.
    """
    import numpy as np

    if operation == "_get":
        return np.array(embeddings)
    return [np.array(rows) for rows in embeddings]
