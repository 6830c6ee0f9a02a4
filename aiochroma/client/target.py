"""What a client is to be opened on, settled from the caller's arguments; the same for every kind of client."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aiochroma._deadline import checked_seconds
from aiochroma._errors import InvalidInputError
from aiochroma.backend.address import AuthHeader, access_to, url_of
from aiochroma.backend.embedded import open_embedded
from aiochroma.backend.http import open_http
from aiochroma.core.config import EngineOptions, Location, canonical_path
from aiochroma.core.registry import Opener, acquire
from aiochroma.records.local_index import TEXT_INDEX_FILE, LocalIndex
from aiochroma.records.scratch_index import ScratchIndex

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path

    from chromadb.api import ServerAPI
    from chromadb.config import Settings

    from aiochroma.core.registry import Lease

__all__ = ["DEFAULT_DATABASE", "DEFAULT_TENANT", "ConnectTarget", "embedded_target", "http_target"]


def _local_index(api: ServerAPI, directory: Path | None, positions: Mapping[str, int]) -> LocalIndex:
    return LocalIndex(api, None if directory is None else directory / TEXT_INDEX_FILE, positions)


_EMBEDDED = Opener(partial(open_embedded, make_hook=_local_index))
_OPENERS = {
    "persistent": _EMBEDDED,
    "ephemeral": _EMBEDDED,
    # A forked child may make its own connections to a server.
    "http": Opener(partial(open_http, make_operations=ScratchIndex), parallel=True, native=False),
}

DEFAULT_TENANT = "default_tenant"
DEFAULT_DATABASE = "default_database"


@dataclass(frozen=True)
class ConnectTarget:
    """A database, and how a client is going to use it.

    Attributes:
        location: Where it is.
        options: How it is served.
        tenant: Chroma's tenant.
        database: Chroma's database within the tenant.
        timeout: Limit for each call, in seconds, or None.
        wait: Whether callers stand in line when the queue is full.
    """

    location: Location
    options: EngineOptions
    tenant: str = DEFAULT_TENANT
    database: str = DEFAULT_DATABASE
    timeout: float | None = None
    wait: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "timeout", checked_seconds("timeout", self.timeout))

    def acquire(self) -> Lease:
        """Return a share in the database's engine; errors as :func:`aiochroma.core.registry.acquire`."""
        return acquire(self.location, self.options, _OPENERS[self.location.kind])


def embedded_target(path: str | os.PathLike[str] | None, options: EngineOptions, **use: Any) -> ConnectTarget:
    """Return a directory, or the database in memory where ``path`` is None.

    Follows symbolic links, which asks the file system: not for an event loop's thread.
    """
    location = Location("ephemeral") if path is None else Location("persistent", canonical_path(path))
    return ConnectTarget(location, options, **use)


def http_target(
    host: str,
    port: int,
    ssl: bool,
    headers: Mapping[str, str] | None,
    settings: Settings | None,
    *,
    auth_token: Any = None,
    auth_header: AuthHeader = "authorization",
    ca_file: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    **use: Any,
) -> ConnectTarget:
    """Return a server; arguments as :func:`aiochroma.AsyncHttpClient`.

    Raises:
        InvalidInputError: One of them is wrong.
    """
    url = url_of(host, port, ssl=ssl)
    if ca_file is not None and not url.startswith("https:"):
        raise InvalidInputError("`ca_file` is of no use without TLS: set `ssl=True`, or leave it out.")
    credentials: tuple[Any, ...] = ()
    if settings is not None:
        _refuse_other_address(settings, host, port, url)
        headers = {**(settings.chroma_server_headers or {}), **(headers or {})}
        credentials = (
            settings.chroma_client_auth_provider,
            settings.chroma_client_auth_credentials,
            settings.chroma_auth_token_transport_header,
            settings.chroma_server_ssl_verify,
        )
    tenant = str(use.get("tenant", DEFAULT_TENANT))
    access = access_to(headers, auth_token, auth_header, ca_file, tenant, *credentials)
    location = Location("http", url=url, fingerprint=access.fingerprint)
    return ConnectTarget(location, EngineOptions(settings, access=access, **(options or {})), **use)


def _refuse_other_address(settings: Settings, host: str, port: int, url: str) -> None:
    """Chroma's own client refuses settings that name another server than its arguments, and so does this one."""
    if settings.chroma_server_host == url:
        return  # As an open client's own settings name it.
    for name, mine, theirs in (
        ("host", host, settings.chroma_server_host),
        ("port", port, settings.chroma_server_http_port),
    ):
        if theirs is not None and theirs != mine:
            raise InvalidInputError(
                f"`settings` name another {name} ({theirs!r}) than the arguments ({mine!r})."
            )
