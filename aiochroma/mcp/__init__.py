"""The Model Context Protocol: a memory for coding agents and other programs that speak it.

``aiochroma mcp`` is what such a program starts, once for each session. That process passes the messages on between the program's
pipes and one server process for each directory (``python -m aiochroma.mcp``), which holds the memory: the first session starts
it, it ends after the last one, and it shares the directory with other programs through a host. The session's process imports
neither the protocol's package nor Chroma nor numpy, so that ten sessions cost little more than one. The server needs the extra
``mcp``. :func:`aiochroma.mcp.server.make_server` makes a server of a memory in this process.

Where Python has no Unix-domain sockets, as on Windows, there is no server process: a session opens the directory itself and says
so on standard error, and another session of the directory gets :class:`aiochroma.DatabaseInUseError` until this one has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING, BinaryIO

import filelock

from aiochroma._clock import lock_within, monotonic
from aiochroma._distribution import missing_extra, version
from aiochroma._errors import StoreUnavailableError, error_from_dict
from aiochroma.host.reaching import start_detached
from aiochroma.host.sockets import check_peer, connect_to, socket_address

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["MCP_LOG", "address_of", "run_session"]

MCP_LOG = "aiochroma-mcp.log"
"""In the database's directory."""

_REACH_SECONDS = 60.0
_LOCK_SECONDS = 0.05
_BYTES = 65536


def run_session(
    path: str | os.PathLike[str], *, scope: Sequence[str] = (), read_only: bool = False, idle: float = 600.0
) -> int:
    """Serve standard input and output until either ends.

    Args:
        path: The database's directory.
        scope: Whose memories, from the widest label to the narrowest; empty for all.
        read_only: Leave out the tools that change something.
        idle: For how long a server that this session starts stays without sessions, in seconds.

    Returns:
        The exit code: 0 when the client has closed its end, 1 when the server has.

    Raises:
        AiochromaError: The server cannot open the directory; its own error.
        MissingExtraError: The protocol's package is not installed.
        StoreUnavailableError: The server cannot be started or reached.
    """
    if find_spec("mcp") is None:
        raise missing_extra("`aiochroma mcp`", "mcp", "mcp")
    directory = os.path.realpath(path)
    if not hasattr(socket, "AF_UNIX"):
        return _serve_alone(directory, tuple(scope), read_only=read_only)
    hello = {"version": version(), "scope": list(scope), "read_only": read_only}
    until = monotonic() + _REACH_SECONDS
    while monotonic() < until:
        with _reach(directory, idle, until) as connected, connected.makefile("rb") as incoming:
            answer = b""
            with contextlib.suppress(OSError):
                connected.sendall(json.dumps(hello).encode() + b"\n")
                answer = incoming.readline()
            if not answer:
                continue  # The server was just about to end.
            if error := json.loads(answer).get("error"):
                raise error_from_dict(error)
            return _relay(connected, incoming, sys.stdin.buffer, sys.stdout.buffer)
    raise _not_reached(directory)


def _serve_alone(directory: str, scope: tuple[str, ...], *, read_only: bool) -> int:
    """Serve standard input and output from this process, which has the directory for itself."""
    from aiochroma.mcp.server import serve_alone

    print(
        "aiochroma: this Python has no Unix-domain sockets, so this session has the directory for itself. Another session gets "
        "an error until this one has ended.",
        file=sys.stderr,
        flush=True,
    )
    serve_alone(directory, scope, read_only=read_only)
    return 0


def _relay(connected: socket.socket, incoming: BinaryIO, given: BinaryIO, out: BinaryIO) -> int:
    ended = threading.Event()

    def send() -> None:
        descriptor = given.fileno()
        with contextlib.suppress(OSError):
            while data := os.read(descriptor, _BYTES):
                connected.sendall(data)
        ended.set()
        with contextlib.suppress(OSError):
            # What was sent is still answered.
            connected.shutdown(socket.SHUT_WR)

    # Nothing can interrupt a read of a pipe; the interpreter ends without it.
    threading.Thread(target=send, daemon=True).start()
    # The server is gone without having read all, or the client without having.
    with contextlib.suppress(ConnectionError):
        while data := incoming.read1(_BYTES):  # type: ignore[attr-defined] # a buffered reader has it
            out.write(data)
            out.flush()
    return 0 if ended.is_set() else 1


def address_of(directory: str) -> Path:
    """Return where the server of a directory listens."""
    return socket_address(directory).with_suffix(".mcp")


def _reach(directory: str, idle: float, until: float) -> socket.socket:
    address = address_of(directory)
    # Whoever holds it may start a server, or end one.
    changing = filelock.FileLock(address.with_suffix(".mcp-lock"), thread_local=False)
    while monotonic() < until:
        connected = connect_to(address)
        if connected is None:
            with contextlib.suppress(filelock.Timeout), lock_within(changing, _LOCK_SECONDS):
                connected = connect_to(address)
                if connected is None:
                    start_detached("aiochroma.mcp", directory, {"idle": idle}, log=MCP_LOG)
        if connected is not None:
            check_peer(connected, f"the server of {directory!r}")
            connected.settimeout(None)
            return connected
    raise _not_reached(directory)


def _not_reached(directory: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"The server of {directory!r} could not be reached within {_REACH_SECONDS:.0f} s; its log is {MCP_LOG!r} there."
    )
