"""Chroma's asynchronous client over the engine.

Importing this module imports chromadb; that happens after the DB thread has imported it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence  # noqa: TC003 - signatures resolve as Chroma's do
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID  # noqa: TC003 - signatures resolve as Chroma's do

from chromadb.api.async_client import AsyncAdminClient
from chromadb.api.async_client import AsyncClient as ChromaAsyncClient
from chromadb.api.collection_configuration import CreateCollectionConfiguration  # noqa: TC002 - signatures resolve as Chroma's do
from chromadb.api.types import (
    CollectionMetadata,
    DataLoader,
    DefaultEmbeddingFunction,
    Embeddable,
    EmbeddingFunction,
    Loadable,
    Schema,
)
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, Settings

from aiochroma._deadline import checked_seconds
from aiochroma._errors import ClosedError, InvalidInputError
from aiochroma._threads import refuse_on_loop, waits_by_blocking
from aiochroma.client.chroma_api import ChromaApi
from aiochroma.client.collection import Collection
from aiochroma.client.maintenance import Health, backup, health
from aiochroma.core.limits import check_index
from aiochroma.core.registry import close_all
from aiochroma.embedding.functions import is_asynchronous

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator
    from types import TracebackType

    from aiochroma.client.session import Session
    from aiochroma.core.connection import Connection
    from aiochroma.core.stats import Stats
    from aiochroma.disk.manifest import BackupReport
    from aiochroma.disk.recovery import RecoveryReport

__all__ = ["AdminClient", "AsyncClient", "Closing", "described"]


class AdminClient(AsyncAdminClient):
    """Tenants and databases, on the same DB thread; see ``chromadb.api.AsyncAdminAPI``."""

    def __init__(self, server: Any) -> None:
        self._server = server


class AsyncClient(ChromaAsyncClient):
    """Chroma with the interface of ``chromadb.AsyncHttpClient``'s client, over an engine of ours.

    Made by :func:`aiochroma.AsyncPersistentClient`, :func:`aiochroma.AsyncEphemeralClient` and
    :func:`aiochroma.AsyncHttpClient`. One client may be used from any number of event loops and tasks at once. A request that
    is cancelled before it has started never runs; one that has started completes and its outcome is dropped.
    """

    _server: Any

    def __init__(self, session: Session, tenant: str, database: str) -> None:
        self.session = session
        self._server = ChromaApi(session)
        self._admin_client = AdminClient(self._server)
        self.tenant = tenant
        self.database = database

    def __repr__(self) -> str:
        return described(self, self.session)

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncClient:
        # A program's state may be copied; the client in it is shared.
        return self

    def __reduce__(self) -> Any:
        raise InvalidInputError(f"{self!r} cannot be pickled; open a client in each process.")

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
    def admin(self) -> AsyncAdminClient:
        """Tenants and databases: ``create_tenant``, ``get_database`` and so on."""
        return self._admin_client  # type: ignore[return-value]

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

    def _collection(self, chromas: Any, function: Any, data_loader: Any) -> Collection:
        collection = Collection(self._server, chromas.get_model(), _storable(function), data_loader)
        if function is not None:
            collection._embedding_function = function  # noqa: SLF001 - past Chroma's check, which knows no coroutines
        return collection


def described(client: object, session: Session) -> str:
    """Return how a client is shown: its class, database, mode and state."""
    info = session.describe()
    state = "closed" if session.closed else "open"
    return f"<{type(client).__name__} of {info.name}, mode {info.mode!r}, {state}>"


def _storable(function: Any) -> Any:
    """Return what Chroma may check and write down of an embedding function: nothing of an asynchronous or plain one."""
    if function is None or is_asynchronous(function) or not hasattr(function, "name"):
        return None
    return function


def _check_index(schema: Schema | None, configuration: Any, metadata: CollectionMetadata | None) -> None:
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


_DRIVEN_SECONDS = 30.0
"""For how long a blocking client waits for the end of its database."""


class Closing:
    """Done when the DB thread has ended, or at once while other clients keep the database open.

    Awaiting it is shielded: a cancelled caller still waits for the thread, then is cancelled. Otherwise whoever opens the
    directory next might find it half closed.

    Args:
        connection: A share that was given back.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __await__(self) -> Generator[object, None, None]:
        return self._ended().__await__()

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until the DB thread has ended.

        Args:
            timeout: For how long, in seconds; None for as long as it takes.

        Returns:
            Whether it has ended (or other clients keep it open).

        Raises:
            BlockingCallError: An event loop runs on this thread; await instead.
        """
        refuse_on_loop()
        return self._connection.join(checked_seconds("timeout", timeout, zero=True))

    async def _ended(self) -> None:
        if waits_by_blocking():
            self._connection.join(_DRIVEN_SECONDS)
            return
        if self._connection.join(0):
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def resolve() -> None:
            if not ended.done():
                ended.set_result(None)

        def announce() -> None:
            try:
                loop.call_soon_threadsafe(resolve)
            except RuntimeError:
                return  # The loop was closed before the thread ended: no caller waits.

        self._connection.when_ended(announce)
        cancelled = False
        while not ended.done():
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError:  # noqa: PERF203 - waiting goes on
                cancelled = True
        # The announcement is the thread's last act: this returns at once.
        self._connection.join()
        if cancelled:
            raise asyncio.CancelledError
