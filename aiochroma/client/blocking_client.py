"""Chroma's synchronous client over the engine.

Importing this module imports chromadb; that happens after the DB thread has imported it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chromadb.api.client import AdminClient, Client

from aiochroma._errors import BackupError, ClosedError
from aiochroma._threads import refuse_on_loop
from aiochroma.client.chroma_api import BlockingServer
from aiochroma.client.closing import Closing
from aiochroma.client.maintenance import Health, health
from aiochroma.core.calls import call_blocking
from aiochroma.core.registry import close_all
from aiochroma.core.request import Request
from aiochroma.disk.backup import begin_backup, finish_backup

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from aiochroma.core.connection import Connection, WhenFull
    from aiochroma.core.stats import Stats
    from aiochroma.disk.manifest import BackupReport
    from aiochroma.disk.recovery import RecoveryReport

__all__ = ["BlockingClient"]

_CLOSE_SECONDS = 30.0


class _BlockingAdmin(AdminClient):
    def __init__(self, server: Any) -> None:
        self._server = server


class BlockingClient(Client):
    """``chromadb``'s client, with every call on the DB thread.

    Made by :func:`aiochroma.sync.PersistentClient` and its siblings. One client may be used from any number of threads at
    once; a thread on which an event loop runs is refused. What its calls raise beside Chroma's own errors is in the error tree.
    """

    _server: Any

    def __init__(
        self,
        connection: Connection,
        tenant: str,
        database: str,
        *,
        timeout: float | None,
        when_full: WhenFull,
    ) -> None:
        self._connection = connection
        self._server = BlockingServer(connection, timeout, when_full=when_full)
        self._admin_client = _BlockingAdmin(self._server)
        self.tenant = tenant
        self.database = database

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} of {self._connection.describe().name}, {state}>"

    @property
    def admin(self) -> AdminClient:
        """Tenants and databases: ``create_tenant``, ``get_database`` and so on."""
        return self._admin_client  # type: ignore[return-value]

    @property
    def closed(self) -> bool:
        """Whether this client was closed; others on the same database may still be open."""
        return self._connection.closed

    def stats(self) -> Stats:
        """Return counters and times of the database's thread since it was opened."""
        return self._connection.describe().stats

    @property
    def recovery(self) -> RecoveryReport | None:
        """What had to be repaired when the database was opened; None for one that has no files."""
        return self._connection.describe().recovery

    def health(self) -> Health:
        """Return the state of the store.

        Raises:
            BlockingCallError: An event loop runs on this thread.
        """
        refuse_on_loop()
        asked: Any = _Awaitable(self)
        state: Health = _without_suspending(health(asked))
        return state

    def reset_connection(self) -> None:
        """Close the database and open it anew on its thread; requests wait meanwhile and do not fail.

        Raises:
            StoreUnavailableError: It cannot be opened; the next request tries again.
        """
        self._server.submit_blocking("reopen")

    def backup(self, target: str | os.PathLike[str], *, keep: int | None = None) -> BackupReport:
        """Copy the database while it is in use; see :meth:`aiochroma.AsyncClient.backup`.

        Args:
            target: The backup's own directory, which must not exist; with ``keep`` the folder of all backups.
            keep: Delete the oldest backups of the folder so that so many remain.

        Raises:
            BackupError: The target is refused, copying failed, or the copy is not complete; nothing is left behind.
        """
        refuse_on_loop()
        info = self._connection.describe()
        if not info.capabilities.files:
            raise BackupError(f"{info.name} has no files to back up.")
        begun = begin_backup(Path(info.path), target, keep=keep, verify="full")
        try:
            # The client's own limit is for single requests.
            request = Request("copy_files", {"target": str(begun.partial.path)})
            paused = call_blocking(self._connection, request, None)
            return finish_backup(begun, paused_ms=paused * 1000)
        except BaseException:
            begun.partial.discard()
            raise

    def _validate_tenant_database(self, tenant: str, database: str) -> None:
        """Ask for both, as Chroma does, which however takes whatever goes wrong for a missing tenant."""
        self._admin_client.get_tenant(name=tenant)
        self._admin_client.get_database(name=database, tenant=tenant)

    def close(self) -> None:
        """Close, and wait for the DB thread to end if this was the last client of the database. Idempotent.

        Raises:
            BlockingCallError: An event loop runs on this thread; the client is closed, but nobody has waited for it.
        """
        self._connection.close()
        Closing(self._connection).wait(_CLOSE_SECONDS)

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
        """Begin to close every database of this process, so that the next client opens anew."""
        close_all()
        Client.clear_system_cache()


class _Awaitable:
    """A blocking client with the interface of an asynchronous one, as far as a health check needs it; never suspends."""

    def __init__(self, client: BlockingClient) -> None:
        self._client = client
        self._connection = client._connection  # noqa: SLF001 - one package
        self._server = self
        self.tenant, self.database = client.tenant, client.database

    async def get_version(self) -> str:
        return self._client.get_version()

    async def submit(self, operation: str, **arguments: Any) -> Any:
        return self._client._server.submit_blocking(operation, **arguments)  # noqa: SLF001 - one package


def _without_suspending(work: Any) -> Any:
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a blocking client's calls do not suspend")
