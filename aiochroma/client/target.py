"""What a client is to be opened on, and what opens it: the only place that knows kinds of databases apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from aiochroma.backend.http import open_http
from aiochroma.core.registry import Opener, acquire
from aiochroma.host.opening import EMBEDDED
from aiochroma.records.scratch_index import ScratchIndex

if TYPE_CHECKING:
    from aiochroma.core.config import EngineOptions, Location
    from aiochroma.core.connection import WhenFull
    from aiochroma.core.registry import Lease

__all__ = ["DEFAULT_DATABASE", "DEFAULT_TENANT", "ConnectTarget"]


_OPENERS = {
    "persistent": EMBEDDED,
    "ephemeral": EMBEDDED,
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
        when_full: What a call does when the queue is full: wait in line, or raise.
        opener: How it is opened; default: as its kind is in this process.
    """

    location: Location
    options: EngineOptions
    tenant: str = DEFAULT_TENANT
    database: str = DEFAULT_DATABASE
    timeout: float | None = None
    when_full: WhenFull = "wait"
    opener: Opener | None = None

    def acquire(self) -> Lease:
        """Return a share in the database's engine; errors as :func:`aiochroma.core.registry.acquire`."""
        return acquire(self.location, self.options, self.opener or _OPENERS[self.location.kind])
