"""What Chroma's own tests use of Chroma, made of this project's client.

Chroma drives its asynchronous HTTP client through its tests with an adapter of its own, ``chromadb.utils.async_to_sync``:
every coroutine method is replaced by one that runs it on the calling thread's event loop. The same adapter is put around
:class:`aiochroma.AsyncClient` here, so each thread of a test is another event loop on one DB thread. Stand-ins exist for
the classes that the tests name: ``System``, ``Client``, ``AdminClient``, ``PersistentClient``, ``EphemeralClient``.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chromadb.api import ServerAPI
from chromadb.api.client import AdminClient as ChromaAdminClient
from chromadb.api.client import Client as ChromaClient
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, Settings
from chromadb.config import System as ChromaSystem
from chromadb.db.impl.sqlite import SqliteDB
from chromadb.utils.async_to_sync import async_class_to_sync, async_to_sync

import aiochroma
import aiochroma.client.client
from aiochroma.core import registry as _registry

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "REPLACED",
    "AdminClient",
    "Client",
    "EphemeralClient",
    "PersistentClient",
    "System",
    "clients_made",
    "close_everything",
]

_EMBEDDED = {"chromadb.api.rust.RustBindingsAPI", "chromadb.api.segment.SegmentAPI"}
_RUST = "chromadb.api.rust.RustBindingsAPI"
_CLOSE_SECONDS = 60.0

_opened: list[BlockingClient] = []
_opened_lock = threading.Lock()
_totals = {"made": 0}


class BlockingClient(aiochroma.client.client.AsyncClient):
    """The client under test, with the two members that only a synchronous client has: ``with``, and a blocking close."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with _opened_lock:
            _opened.append(self)
            _totals["made"] += 1

    @property
    def _system(self) -> System:
        system = System.__new__(System)
        system.settings = self.get_settings()
        system.client = self
        return system

    def close(self) -> None:
        super().close().wait(_CLOSE_SECONDS)
        _await_host(self)

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# The client is made by the class that this name has when it is opened.
aiochroma.client.client.AsyncClient = BlockingClient


class System:
    """Stands in for ``chromadb.config.System``: a database that is open from ``start`` to ``stop``."""

    client: BlockingClient | None = None

    def __new__(cls, settings: Settings | None = None) -> Any:
        if settings is not None and settings.chroma_api_impl not in _EMBEDDED:
            return ChromaSystem(settings)
        return super().__new__(cls)

    def __init__(self, settings: Settings) -> None:
        self.settings = _embedded(settings)

    @property
    def _running(self) -> bool:
        return self.client is not None and self.client.session.connection.engine.serving.thread.is_alive()

    def start(self) -> None:
        self.client = _open(self.settings, DEFAULT_TENANT, DEFAULT_DATABASE)

    def stop(self) -> None:
        """Close every client of this database, as stopping Chroma's ``System`` does, and wait for the end."""
        if self.client is None:
            return
        engine = self.client.session.connection.engine
        with _opened_lock:
            clients = [client for client in _opened if client.session.connection.engine is engine]
            _opened[:] = [client for client in _opened if client.session.connection.engine is not engine]
        for client in clients:
            client.session.connection.close()
        assert engine.serving.join(_CLOSE_SECONDS), "the DB thread did not end"
        _await_host(self.client)

    def reset_state(self) -> None:
        assert self.client is not None
        self.client.reset()

    def instance(self, kind: type) -> Any:
        """Return the server under test, or what reads the tables from outside."""
        assert self.client is not None
        if kind is ServerAPI:
            return async_class_to_sync(self.client._server)
        assert kind is SqliteDB, f"there is no {kind} in an embedded store"
        return Tables(Path(self.settings.persist_directory) / "chroma.sqlite3")


class Tables:
    """Stands in for ``SqliteDB``, with which the tests look into the tables.

    A second SQLite library in the process would, at its close, drop the locks of the one inside Chroma; a child process
    copies the database and the copy is read.
    """

    querybuilder = staticmethod(SqliteDB.querybuilder)
    parameter_format = staticmethod(SqliteDB.parameter_format)

    def __init__(self, file: Path) -> None:
        self.file = file

    @contextmanager
    def tx(self) -> Iterator[sqlite3.Cursor]:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))"
            subprocess.run([sys.executable, "-I", "-c", program, str(self.file), str(copy)], check=True)
            with closing(sqlite3.connect(copy)) as connection:
                yield connection.cursor()


class Client:
    """Stands in for ``chromadb.api.client.Client``; what is made is the client under test."""

    def __new__(
        cls, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE, settings: Settings | None = None
    ) -> Any:
        settings = settings or Settings()
        if settings.chroma_api_impl not in _EMBEDDED:
            return ChromaClient(tenant, database, settings)
        return _open(_embedded(settings), tenant, database)

    @staticmethod
    def from_system(system: Any, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE) -> Any:
        return Client(tenant, database, system.settings)


class AdminClient:
    """Stands in for ``chromadb.api.client.AdminClient``; what is made is ``client.admin``."""

    def __new__(cls, settings: Settings | None = None) -> Any:
        settings = settings or Settings()
        if settings.chroma_api_impl not in _EMBEDDED:
            return ChromaAdminClient(settings)
        admin: Any = async_class_to_sync(_open(_embedded(settings), DEFAULT_TENANT, DEFAULT_DATABASE).admin)
        admin.clear_system_cache = BlockingClient.clear_system_cache
        return admin

    @staticmethod
    def from_system(system: Any) -> Any:
        return AdminClient(system.settings)


def PersistentClient(  # noqa: N802 - Chroma's name
    path: Any = "./chroma",
    settings: Settings | None = None,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
) -> Any:
    return _wait(aiochroma.AsyncPersistentClient(path, settings, tenant, database))


def EphemeralClient(  # noqa: N802 - Chroma's name
    settings: Settings | None = None, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE
) -> Any:
    return _wait(aiochroma.AsyncEphemeralClient(settings, tenant, database))


def ClientOfSettings(  # noqa: N802 - Chroma's name
    settings: Settings | None = None, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE
) -> Any:
    """Stand in for the factory ``chromadb.Client``."""
    return Client(tenant, database, settings)


def clients_made() -> int:
    """Return how many clients were opened since the start."""
    return _totals["made"]


def close_everything() -> None:
    """Close what a test left open, and wait for the end."""
    with _opened_lock:
        clients = list(_opened)
        _opened.clear()
    for client in clients:
        client.session.connection.close()
    _registry.close_all()
    for client in clients:
        assert client.session.connection.engine.serving.join(_CLOSE_SECONDS), "the DB thread did not end"
        _await_host(client)


def _await_host(client: BlockingClient) -> None:
    """Wait for the end of the process that had the directory open, where this was its last client: tests delete directories."""
    from programs import is_alive, until

    serving = client.session.connection.engine.serving
    info = serving.describe()
    if info is not None and info.host and not serving.thread.is_alive():
        pid = info.host["pid"]
        until(lambda: not is_alive(pid), f"the end of {pid}")


def _open(settings: Settings, tenant: str, database: str) -> Any:
    return _wait_for_client(aiochroma.client.client.AsyncClient.create, tenant, database, settings)


async def _opened_by(opening: Any) -> Any:
    return await opening


def _wait(opening: Any) -> Any:
    return _wait_for_client(_opened_by, opening)


def _wait_for_client(function: Any, *args: Any) -> Any:
    client = async_to_sync(function)(*args)
    async_class_to_sync(client._admin_client)
    return client


def _embedded(settings: Settings) -> Settings:
    """Settings of a test that name Chroma's former implementation in Python mean the one in Rust."""
    return settings.model_copy(update={"chroma_api_impl": _RUST})


REPLACED: dict[Any, Any] = {ChromaClient: Client, ChromaAdminClient: AdminClient, ChromaSystem: System}
"""What the test modules imported by name, and what stands in for it."""
