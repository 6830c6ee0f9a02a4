"""Chroma's clients over the engine: for event loops, and of its synchronous class for plain threads.

Importing this module imports chromadb; that happens after the DB thread has imported it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence  # noqa: TC003 - signatures resolve as Chroma's do
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar
from uuid import UUID  # noqa: TC003 - signatures resolve as Chroma's do

from chromadb.api import AsyncServerAPI, ServerAPI
from chromadb.api.async_client import AsyncAdminClient
from chromadb.api.async_client import AsyncClient as ChromaAsyncClient
from chromadb.api.client import AdminClient as ChromaAdminClient
from chromadb.api.client import Client
from chromadb.api.collection_configuration import CreateCollectionConfiguration  # noqa: TC002 - signatures resolve as Chroma's do
from chromadb.api.models.Collection import Collection as ChromaCollection
from chromadb.api.types import (
    CollectionMetadata,
    DataLoader,
    DefaultEmbeddingFunction,
    Embeddable,
    EmbeddingFunction,
    IncludeMetadataDocumentsEmbeddings,
    Loadable,
    Schema,
)
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, Settings

from aiochroma._callbacks import is_asynchronous
from aiochroma._errors import ClosedError
from aiochroma._waiting import drive, driven, show_as
from aiochroma.backend.limits import check_index
from aiochroma.client.collection import Collection
from aiochroma.client.maintenance import Health, backup, health
from aiochroma.client.session import Closing, Shared
from aiochroma.core.registry import close_all

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from chromadb.api.models.AsyncCollection import AsyncCollection

    from aiochroma._types import CollectionId
    from aiochroma.client.session import Session
    from aiochroma.core.stats import Stats
    from aiochroma.disk.backup import BackupReport
    from aiochroma.disk.findings import RecoveryReport

__all__ = ["AdminClient", "AsyncClient", "BlockingClient", "BlockingCollection"]

P = ParamSpec("P")
Function = TypeVar("Function")


# -- Chroma's operations -----------------------------------------------------------------------------------------------


class _Api(Shared):
    """What Chroma's clients and collections talk to; the operations are added below, from Chroma's own list.

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


def _operations(interface: type[AsyncServerAPI | ServerAPI], *, blocking: bool) -> dict[str, object]:
    """Make a method for each of the operations that Chroma's interface lists."""
    made = {name: _operation(interface, name, blocking=blocking) for name in interface.__abstractmethods__}
    methods = {**made, "_peek": _peek_blocking if blocking else _peek, "get_settings": _Api.get_settings}
    for method in methods.values():
        vars(method)["__override__"] = True  # Chroma's metaclass wants every overriding method to be marked.
    return {**methods, "__doc__": _Api.__doc__, "__module__": __name__}


def _operation(interface: type, name: str, *, blocking: bool) -> Callable[..., object]:
    template = getattr(interface, name)
    names = tuple(inspect.signature(template).parameters)[1:]

    def operation(self: _Api, *values: object, **arguments: Any) -> Coroutine[object, object, object]:
        if values:
            arguments.update(zip(names, values, strict=False))
        return self.session.submit(name, **arguments)

    def blocking_operation(self: _Api, *values: object, **arguments: object) -> object:
        return drive(operation(self, *values, **arguments))

    method: Callable[..., object] = blocking_operation if blocking else operation
    method.__name__ = name
    method.__doc__ = template.__doc__
    return method


async def _peek(self: _Api, collection_id: CollectionId, n: int = 10, **database: Any) -> object:
    """Return the first records: a ``get``, as in Chroma, so that a large one is paged."""
    include = list(IncludeMetadataDocumentsEmbeddings)
    return await self.session.submit(
        "_get", collection_id=collection_id, limit=n, include=include, **database
    )


def _peek_blocking(self: _Api, collection_id: CollectionId, n: int = 10, **database: Any) -> object:
    """Return the first records; see ``_peek``."""
    return drive(_peek(self, collection_id, n, **database))


_AsyncApi = type("_AsyncApi", (_Api, AsyncServerAPI), _operations(AsyncServerAPI, blocking=False))
_BlockingApi = type("_BlockingApi", (_Api, ServerAPI), _operations(ServerAPI, blocking=True))


# -- with an event loop ------------------------------------------------------------------------------------------------


class AdminClient(AsyncAdminClient):
    """Tenants and databases, on the same DB thread; see ``chromadb.api.AsyncAdminAPI``."""

    def __init__(self, server: AsyncServerAPI) -> None:
        self._server = server


class AsyncClient(Shared, ChromaAsyncClient):
    """Chroma with the interface of ``chromadb.AsyncHttpClient``'s client, over an aiochroma engine.

    Made by :func:`aiochroma.AsyncPersistentClient`, :func:`aiochroma.AsyncEphemeralClient` and
    :func:`aiochroma.AsyncHttpClient`. One client may be used from any number of event loops and tasks at once. A request that
    is cancelled before it has started never runs; one that has started completes and its outcome is dropped.
    """

    _admin_client: AdminClient

    def __init__(self, session: Session, tenant: str, database: str) -> None:
        self.session = session
        self._server = _AsyncApi(session)
        self._admin_client = AdminClient(self._server)
        self.tenant = tenant
        self.database = database

    def __repr__(self) -> str:
        return _shown(self, self.session)

    @classmethod
    async def create(
        cls,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
        settings: Settings | None = None,
    ) -> AsyncClient:
        """Open what the settings describe, as Chroma's own ``create`` does."""
        from aiochroma.client.opening import AsyncEphemeralClient, AsyncHttpClient, AsyncPersistentClient

        if settings is None:
            return await AsyncEphemeralClient(None, tenant, database)
        if settings.chroma_server_host:
            port, ssl = settings.chroma_server_http_port or 8000, bool(settings.chroma_server_ssl_enabled)
            return await AsyncHttpClient(
                settings.chroma_server_host,
                port,
                ssl,
                settings=settings,
                tenant=tenant,
                database=database,
            )
        if settings.is_persistent:
            return await AsyncPersistentClient(settings.persist_directory, settings, tenant, database)
        return await AsyncEphemeralClient(settings, tenant, database)

    @property
    def admin(self) -> AdminClient:
        """Tenants and databases: ``create_tenant``, ``get_database`` and so on."""
        return self._admin_client

    @property
    def closed(self) -> bool:
        """Whether this client was closed; others on the same database may still be open."""
        return self.session.closed

    def stats(self) -> Stats:
        """Return counters and times of the database's thread since it was opened."""
        return self.session.describe().stats

    @property
    def recovery(self) -> RecoveryReport | None:
        """What had to be repaired when the database was opened; None for one that has no files."""
        return self.session.describe().recovery

    async def health(self) -> Health:
        """Return the state of the store; never raises, except that a cancelled caller is released."""
        return await health(self.session, self.tenant, self.database)

    async def reset_connection(self) -> None:
        """Close the database and open it again on its thread; requests wait meanwhile and do not fail.

        Raises:
            StoreUnavailableError: It cannot be opened; the next request tries again.
        """
        await self.session.submit("reopen")

    async def backup(
        self,
        target: str | os.PathLike[str],
        *,
        keep: int | None = None,
        verify: Literal["full", "quick"] = "full",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> BackupReport:
        """Copy the database while it is in use.

        The files are copied between two writes, so the copy is consistent; reads go on, and writes wait no longer than that.
        Then the copy is opened in a child process, where every record must have its vector, and only then it gets its name.
        Once there is a verified backup, the log that ``durable=True`` retains is cut at the next opening to what came after it.

        Args:
            target: The backup's own directory, which must not exist; with ``keep`` the folder of all backups.
            keep: Delete the oldest backups of the folder so that this many remain.
            verify: ``"full"`` reads every vector of the copy. ``"quick"`` checks its files and searches each collection once; the
                log is not cut for such a backup.
            progress: Called with the stage (``"copy"``, ``"verify"``, ``"done"``), bytes copied, and bytes in all. Without an
                event loop only when a stage begins.

        Returns:
            Where it is, what it holds, and for how many milliseconds writing waited.

        Raises:
            BackupError: The target is refused, copying failed, or the copy is not complete; nothing is left behind.
        """
        return await backup(self.session, target, keep=keep, verify=verify, progress=progress)

    async def _validate_tenant_database(self, tenant: str, database: str) -> None:
        """Ask for both, as Chroma does, which however takes whatever goes wrong for a missing tenant."""
        await self._admin_client.get_tenant(name=tenant)
        await self._admin_client.get_database(name=database, tenant=tenant)

    # -- closing -------------------------------------------------------------------------------------------------------

    def close(self) -> Closing:
        """Begin to close at once; idempotent.

        What was submitted before is still served. When this was the last client of the database in the process, its files
        are closed and its thread ends.

        Returns:
            An awaitable that is done when the thread has ended (at once, while other clients keep the database open). It
            need not be awaited; ``close().wait(seconds)`` blocks instead, for callers without an event loop.
        """
        self.session.connection.close()
        return Closing(self.session.connection)

    async def aclose(self) -> None:
        """The same as ``await client.close()``."""
        await self.close()

    async def __aenter__(self) -> AsyncClient:
        if self.closed:
            raise ClosedError("A client that was closed cannot be opened again; make a new one.")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @staticmethod
    def clear_system_cache() -> None:
        """Begin to close every database of this process, so that the next client opens it again."""
        close_all()
        ChromaAsyncClient.clear_system_cache()

    # -- collections ---------------------------------------------------------------------------------------------------

    async def list_collections(
        self, limit: int | None = None, offset: int | None = None
    ) -> Sequence[Collection]:
        """Return the collections of the database. See ``chromadb.api.AsyncClientAPI``."""
        models = await self._server.list_collections(
            limit, offset, tenant=self.tenant, database=self.database
        )
        return [Collection(client=self._server, model=model) for model in models]

    async def create_collection(
        self,
        name: str,
        schema: Schema | None = None,
        configuration: CreateCollectionConfiguration | None = None,
        metadata: CollectionMetadata | None = None,
        embedding_function: EmbeddingFunction[Embeddable] | None = DefaultEmbeddingFunction(),  # type: ignore[assignment] # noqa: B008 - Chroma's signature
        data_loader: DataLoader[Loadable] | None = None,
        get_or_create: bool = False,
    ) -> Collection:
        """Make a collection. See ``chromadb.api.AsyncClientAPI``."""
        _check_index(schema, configuration, metadata)
        created = await super().create_collection(
            name,
            schema,
            _copied(configuration),
            metadata,
            _storable(embedding_function),
            data_loader,
            get_or_create,
        )
        return self._collection(created, embedding_function, data_loader)

    async def get_collection(
        self,
        name: str,
        embedding_function: EmbeddingFunction[Embeddable] | None = DefaultEmbeddingFunction(),  # type: ignore[assignment] # noqa: B008 - Chroma's signature
        data_loader: DataLoader[Loadable] | None = None,
    ) -> Collection:
        """Return a collection by name. See ``chromadb.api.AsyncClientAPI``."""
        found = await super().get_collection(name, _storable(embedding_function), data_loader)
        return self._collection(found, embedding_function, data_loader)

    async def get_collection_by_id(
        self,
        id: UUID,
        embedding_function: EmbeddingFunction[Embeddable] | None = DefaultEmbeddingFunction(),  # type: ignore[assignment] # noqa: B008 - Chroma's signature
        data_loader: DataLoader[Loadable] | None = None,
    ) -> Collection:
        """Return a collection by its id. See ``chromadb.api.AsyncClientAPI``."""
        found = await super().get_collection_by_id(id, _storable(embedding_function), data_loader)
        return self._collection(found, embedding_function, data_loader)

    async def get_or_create_collection(
        self,
        name: str,
        schema: Schema | None = None,
        configuration: CreateCollectionConfiguration | None = None,
        metadata: CollectionMetadata | None = None,
        embedding_function: EmbeddingFunction[Embeddable] | None = DefaultEmbeddingFunction(),  # type: ignore[assignment] # noqa: B008 - Chroma's signature
        data_loader: DataLoader[Loadable] | None = None,
    ) -> Collection:
        """Return a collection, making it where there is none. See ``chromadb.api.AsyncClientAPI``."""
        _check_index(schema, configuration, metadata)
        found = await super().get_or_create_collection(
            name, schema, _copied(configuration), metadata, _storable(embedding_function), data_loader
        )
        return self._collection(found, embedding_function, data_loader)

    def _collection(
        self,
        chromas: AsyncCollection,
        function: EmbeddingFunction[Embeddable] | None,
        data_loader: DataLoader[Loadable] | None,
    ) -> Collection:
        collection = Collection(self._server, chromas.get_model(), _storable(function), data_loader)
        collection.embedding_function = function  # Past Chroma's check, which knows no coroutines.
        return collection


def _shown(client: object, session: Session) -> str:
    """Return how a client is shown: its class, database, mode and state."""
    info = session.describe()
    state = "closed" if session.closed else "open"
    return f"<{type(client).__name__} of {info.name}, mode {info.mode!r}, {state}>"


def _storable(function: Function | None) -> Function | None:
    """Return what Chroma may check and write down of an embedding function: nothing of an asynchronous or plain one."""
    if function is None or is_asynchronous(function) or not hasattr(function, "name"):
        return None
    return function


def _check_index(
    schema: Schema | None,
    configuration: CreateCollectionConfiguration | None,
    metadata: CollectionMetadata | None,
) -> None:
    """Refuse an index that would crash Chroma's native code, wherever it is asked for.

    Raises:
        InvalidInputError: It would.
    """
    check_index((configuration or {}).get("hnsw"))
    if metadata is not None and "hnsw:M" in metadata:
        check_index({"max_neighbors": metadata["hnsw:M"]})
    for kinds in () if schema is None else (schema.defaults, *schema.keys.values()):
        vectors = kinds.float_list
        if vectors is not None and vectors.vector_index is not None:
            hnsw = vectors.vector_index.config.hnsw
            check_index(None if hnsw is None else hnsw.model_dump())


def _copied(configuration: CreateCollectionConfiguration | None) -> CreateCollectionConfiguration | None:
    """Chroma writes the embedding function into the caller's own dictionary."""
    return None if configuration is None else configuration.copy()


# -- without an event loop -----------------------------------------------------------------------------------------------


class BlockingCollection(Shared, ChromaCollection):
    """``chromadb``'s collection, with the arguments, results and errors of :class:`aiochroma.Collection`."""

    def __init__(self, asynchronous: Collection) -> None:
        self.asynchronous = asynchronous
        super().__init__(_BlockingApi(asynchronous.session), asynchronous.get_model(), None, None)
        self._embedding_function = asynchronous.embedding_function

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
    method: Callable[Concatenate[AsyncClient, P], Coroutine[object, object, Collection]],
) -> Callable[Concatenate[BlockingClient, P], BlockingCollection]:
    """Make the blocking form of a method that returns a collection."""

    def call(self: BlockingClient, /, *values: P.args, **arguments: P.kwargs) -> BlockingCollection:
        return BlockingCollection(drive(method(self.asynchronous, *values, **arguments)))

    show_as(call, method)
    return call


class BlockingClient(Shared, Client):
    """``chromadb``'s client, with every call on the DB thread.

    Made by :func:`aiochroma.sync.PersistentClient` and its siblings. It is of Chroma's own class, so other libraries take it. One
    client may be used from any number of threads at once; a thread on which an event loop runs is refused. What its calls raise
    beside Chroma's own errors is in the error tree.

    Attributes:
        asynchronous: The same client for event loops: what this one drives.
    """

    _admin_client: _BlockingAdmin

    def __init__(self, asynchronous: AsyncClient) -> None:
        self.asynchronous = asynchronous
        self._server = _BlockingApi(asynchronous.session)
        self._admin_client = _BlockingAdmin(self._server)

    def __repr__(self) -> str:
        return _shown(self, self.session)

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
    def admin(self) -> ChromaAdminClient:
        """Tenants and databases: ``create_tenant``, ``get_database`` and so on."""
        return self._admin_client

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


class _BlockingAdmin(ChromaAdminClient):
    def __init__(self, server: ServerAPI) -> None:
        self._server = server
