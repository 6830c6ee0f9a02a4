"""How a database is opened in this process, and how a host is reached instead: the openers of a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._errors import AiochromaError, DatabaseInUseError
from aiochroma.backend.chroma import ChromaBackend, start_chroma
from aiochroma.backend.embedded import EmbeddedBackend
from aiochroma.core.registry import Opener
from aiochroma.disk.layout import TEXT_INDEX_FILE
from aiochroma.disk.ownership import acquire, read_owner
from aiochroma.disk.retained_log import LogState
from aiochroma.host.link import HostLink
from aiochroma.host.reaching import LEAVING_SECONDS, acquire_after_host, ask
from aiochroma.host.sockets import connect, is_served, require_sockets
from aiochroma.host.wire import FrameKind, ProtocolError
from aiochroma.records.local_index import IndexFile, LocalIndex

if TYPE_CHECKING:
    import socket

    from chromadb.api import ServerAPI

    from aiochroma.backend.embedded import TakeLock
    from aiochroma.core.config import EngineOptions, Location
    from aiochroma.disk.ownership import Owner

__all__ = ["EMBEDDED", "SHARED", "ask_to_leave", "open_embedded", "opener_for"]


def _local_index(
    api: ServerAPI, directory: Path | None, state: LogState, options: EngineOptions
) -> LocalIndex:
    file = None if directory is None else directory / TEXT_INDEX_FILE
    return LocalIndex(api, file, state, options.vector_cache_bytes)


def open_embedded(
    location: Location, options: EngineOptions, take_lock: TakeLock = acquire_after_host
) -> ChromaBackend:
    """Open a database, with our index beside it; called once, on its DB thread.

    Args:
        location: Where it is; in memory without a path.
        options: How it is opened.
        take_lock: Takes the owner's lock, at every opening; called with the directory and the seconds to wait.

    Raises:
        AiochromaError: See :class:`aiochroma.backend.embedded.EmbeddedBackend`.
    """
    if location.kind == "ephemeral":
        backend = ChromaBackend(start_chroma(location, options))
        backend.follow(_local_index(backend.api, None, LogState(), options))
        return backend
    return EmbeddedBackend(location, options, _local_index, take_lock, IndexFile(Path(location.path)))


EMBEDDED = Opener(open_embedded)
"""A database of this process."""

SHARED = Opener(open_embedded, native=False, serve=HostLink)
"""A database that another process has open; a forked child may open its own link."""


def opener_for(directory: str, options: EngineOptions) -> Opener:
    """Return how a directory is opened. Asks the file system and the host: not for an event loop's thread.

    Raises:
        InvalidInputError: This system cannot share it.
        DatabaseInUseError: It is to be open in this process alone, and a host with clients serves it.
    """
    if options.process == "shared":
        require_sockets()
        return SHARED
    if options.process == "this":
        ask_to_leave(directory)
        return EMBEDDED
    return SHARED if is_served(directory) else EMBEDDED


def ask_to_leave(directory: str) -> None:
    """Have a host without clients let go of a directory, and wait for one that is going; does nothing where there is none.

    Raises:
        DatabaseInUseError: Clients are connected to it.
    """
    owner = read_owner(directory)
    try:
        connected = connect(directory)
    except DatabaseInUseError:
        raise
    except AiochromaError:
        return
    if connected is None:
        if owner is None or owner.role != "host":
            return
    else:
        _stop(connected, directory, owner)
    # Its socket goes first, its lock last.
    acquire(directory, LEAVING_SECONDS, create=False).release()


def _stop(connected: socket.socket, directory: str, owner: Owner | None) -> None:
    """Ask a host to end, which it does unless it has clients."""
    with connected:
        try:
            kind, _, answer = ask(connected, FrameKind.STOP, False)
        except (OSError, ProtocolError):
            return
        if kind is FrameKind.REFUSED:
            raise DatabaseInUseError(
                f"{directory} is served by the host process {answer.get('pid')} with {answer.get('clients')} clients. Open it "
                'with process="shared", or leave `process` out, to be one of them; or end them first.',
                pid=answer.get("pid"),
                host=None if owner is None else owner.host,
                since=None if owner is None else owner.since,
            )
