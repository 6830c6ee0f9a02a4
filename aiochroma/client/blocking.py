"""Chroma's synchronous client and collection: the asynchronous ones, driven on the calling thread.

Importing this module imports chromadb; that happens after the DB thread has imported it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from chromadb.api.client import AdminClient, Client
from chromadb.api.models.Collection import Collection as ChromaCollection

from aiochroma._errors import ClosedError
from aiochroma._threads import drive, driven
from aiochroma.client.chroma_api import BlockingApi
from aiochroma.client.client import AsyncClient, described
from aiochroma.client.collection import Collection
from aiochroma.core.registry import close_all

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from types import TracebackType

    from aiochroma.client.session import Session
    from aiochroma.core.stats import Stats
    from aiochroma.disk.recovery import RecoveryReport

__all__ = ["BlockingClient", "BlockingCollection"]

P = ParamSpec("P")


class BlockingCollection(ChromaCollection):
    """``chromadb``'s collection, with the arguments, results and errors of :class:`aiochroma.Collection`."""

    def __init__(self, asynchronous: Collection) -> None:
        self.asynchronous = asynchronous
        super().__init__(BlockingApi(asynchronous.session), asynchronous.get_model(), None, None)
        self._embedding_function = asynchronous.embedding_function

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockingCollection:
        return self

    add = driven(Collection.add)
    update = driven(Collection.update)
    upsert = driven(Collection.upsert)
    get = driven(Collection.get)
    query = driven(Collection.query)
    search = driven(Collection.search)
    delete = driven(Collection.delete)
    count = driven(Collection.count)
    peek = driven(Collection.peek)
    modify = driven(Collection.modify)

    def fork(self, new_name: str) -> BlockingCollection:
        """Copy the collection; only Chroma's hosted service can. See ``Collection.fork``."""
        return BlockingCollection(drive(self.asynchronous.fork(new_name)))


def _giving_collection(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, Collection]],
) -> Callable[Concatenate[BlockingClient, P], BlockingCollection]:
    """Make the blocking form of a method that returns a collection."""

    def call(self: BlockingClient, /, *values: P.args, **arguments: P.kwargs) -> BlockingCollection:
        return BlockingCollection(drive(method(self.asynchronous, *values, **arguments)))

    call.__name__, call.__qualname__, call.__doc__ = method.__name__, method.__qualname__, method.__doc__
    call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined] # read by `inspect.signature` and `help`
    return call


class BlockingClient(Client):
    """``chromadb``'s client, with every call on the DB thread.

    Made by :func:`aiochroma.sync.PersistentClient` and its siblings. It is of Chroma's own class, so other libraries take it. One
    client may be used from any number of threads at once; a thread on which an event loop runs is refused. What its calls raise
    beside Chroma's own errors is in the error tree.

    Attributes:
        asynchronous: The same client for event loops: what this one drives.
    """

    _server: Any

    def __init__(self, asynchronous: AsyncClient) -> None:
        self.asynchronous = asynchronous
        self._server = BlockingApi(asynchronous.session)
        self._admin_client = _BlockingAdmin(self._server)

    def __repr__(self) -> str:
        return described(self, self.session)

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockingClient:
        # A program's state may be copied; the client in it is shared.
        return self

    def __reduce__(self) -> Any:
        return self.asynchronous.__reduce__()

    @property
    def session(self) -> Session:
        """What this client and everything made by it share."""
        return self.asynchronous.session

    @property
    def tenant(self) -> str:
        """Chroma's tenant."""
        return self.asynchronous.tenant

    @tenant.setter
    def tenant(self, tenant: str) -> None:
        self.asynchronous.tenant = tenant

    @property
    def database(self) -> str:
        """Chroma's database within the tenant."""
        return self.asynchronous.database

    @database.setter
    def database(self, database: str) -> None:
        self.asynchronous.database = database

    @property
    def admin(self) -> AdminClient:
        """Tenants and databases: ``create_tenant``, ``get_database`` and so on."""
        return self._admin_client  # type: ignore[return-value]

    @property
    def closed(self) -> bool:
        """Whether this client was closed; others on the same database may still be open."""
        return self.asynchronous.closed

    @property
    def recovery(self) -> RecoveryReport | None:
        """What had to be repaired when the database was opened; None for one that has no files."""
        return self.asynchronous.recovery

    def stats(self) -> Stats:
        """Return counters and times of the database's thread since it was opened."""
        return self.asynchronous.stats()

    health = driven(AsyncClient.health)
    reset_connection = driven(AsyncClient.reset_connection)
    backup = driven(AsyncClient.backup)
    close = driven(AsyncClient.aclose)
    _validate_tenant_database = driven(AsyncClient._validate_tenant_database)  # noqa: SLF001 - Chroma's own name

    create_collection = _giving_collection(AsyncClient.create_collection)
    get_collection = _giving_collection(AsyncClient.get_collection)
    get_collection_by_id = _giving_collection(AsyncClient.get_collection_by_id)
    get_or_create_collection = _giving_collection(AsyncClient.get_or_create_collection)

    def list_collections(
        self, limit: int | None = None, offset: int | None = None
    ) -> Sequence[BlockingCollection]:
        """Return the collections of the database. See ``chromadb.api.ClientAPI``."""
        found = drive(self.asynchronous.list_collections(limit, offset))
        return [BlockingCollection(collection) for collection in found]

    def __enter__(self) -> BlockingClient:
        if self.closed:
            raise ClosedError("A client that was closed cannot be opened again; make a new one.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def clear_system_cache() -> None:
        """Begin to close every database of this process, so that the next client opens it again."""
        close_all()
        Client.clear_system_cache()


class _BlockingAdmin(AdminClient):
    def __init__(self, server: Any) -> None:
        self._server = server
