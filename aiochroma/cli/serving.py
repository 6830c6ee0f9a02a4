"""The commands that serve a memory to others: ``host`` to programs, ``mcp`` to agents, ``ui`` to people; needs the extra ``cli``.

Importing this module imports neither chromadb nor numpy.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from aiochroma._clock import monotonic
from aiochroma._errors import DatabaseInUseError, InvalidInputError, StoreUnavailableError
from aiochroma._types import JsonObject
from aiochroma.cli.common import PathArgument, PathOption, ScopeOption, check_exists, directory, print_lines
from aiochroma.cli.given import scope_from

if TYPE_CHECKING:
    from aiochroma.host.wire import FrameKind

__all__ = ["serving_app"]

_EXIT_CODES = (
    "Exit codes: 0 done; 1 there is no host; 2 bad input; 3 refused: in use by a program, or clients are connected and --force "
    "is not given."
)
_GOING_SECONDS = 12.0
"""A host serves what it has received for at most ten seconds."""

_NONE = 1

serving_app: typer.Typer = typer.Typer()
"""Included by the application; see :mod:`aiochroma.cli.app`."""


@serving_app.command(epilog=_EXIT_CODES)
def host(
    given: PathArgument = None,
    path: PathOption = None,
    idle: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="End after this many seconds without a client; default: never.", min=0
        ),
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Print what the host does.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the host, if it has no clients.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="With --stop: end it even though clients are connected, or it hangs."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --status: print JSON.")] = False,
) -> None:
    """Have a directory open, in the foreground, for every program that opens it with process="shared".

    As a service of its own (systemd, a container) it outlives the programs that use it.

    SIGTERM and SIGINT end it: clients keep what they have not sent, and start a new host for it.
    """
    if (
        (status and stop)
        or (force and not stop)
        or (as_json and not status)
        or (idle is not None and (status or stop))
    ):
        raise InvalidInputError(
            "Give one of --status [--json] and --stop [--force], or --idle, or none of them."
        )
    from aiochroma._files import canonical_path
    from aiochroma.host.sockets import require_sockets

    require_sockets()
    served = canonical_path(directory(given, path))
    if status:
        _show(served, as_json=as_json)
    elif stop:
        _stop(served, force=force)
    else:
        _serve(served, idle)


@serving_app.command(
    epilog="Exit codes: 0 the client has ended the session; 1 the server has; 3 the store is not available."
)
def mcp(
    given: PathArgument = None,
    path: PathOption = None,
    scope: ScopeOption = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Leave out the tools that change something.")
    ] = False,
    idle: Annotated[
        float,
        typer.Option(
            help="How long the server stays when the last session has ended: a session that finds it begins at once.",
            metavar="SECONDS",
            min=0,
        ),
    ] = 600.0,
) -> None:
    """Serve a memory to a client of the Model Context Protocol, over standard input and output.

    The client starts this once for each session; all sessions of a directory share one server in the background.
    """
    from aiochroma.mcp import run_session

    served = directory(given, path)
    if read_only:
        check_exists(served)
    sys.exit(run_session(served, scope=scope_from(scope) or (), read_only=read_only, idle=idle))


@serving_app.command(epilog="Exit codes: 0 interrupted; 2 bad input; 3 the store is not available.")
def ui(
    given: PathArgument = None,
    path: PathOption = None,
    port: Annotated[
        int | None, typer.Option(help="The port; default: one that is free.", min=1, max=65535)
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Offer to forget memories and to make backups.")
    ] = False,
) -> None:
    """Serve a page to look at a memory, on this machine only; prints its address."""
    from aiochroma.ui import serve

    shown = directory(given, path)
    check_exists(shown)
    sys.exit(serve(shown, port=port, write=write))


def _serve(path: str, idle: float | None) -> None:
    from aiochroma.host.__main__ import serve

    refused: list[BaseException] = []

    def announce(error: BaseException | None) -> None:
        if error is not None:
            refused.append(error)
        else:
            print_lines(f"The host of {path} listens (process {os.getpid()}).")

    code = serve(path, idle=idle, announce=announce, to_terminal=True)
    if refused:
        raise refused[0]
    raise typer.Exit(code)


def _show(path: str, *, as_json: bool) -> None:
    from aiochroma.host.sockets import connect
    from aiochroma.host.wire import FrameKind

    connected = connect(path)
    if connected is None:
        print_lines("null" if as_json else f"There is no host of {path}.")
        raise typer.Exit(_NONE)
    with connected:
        answer = _answer(connected, path, FrameKind.STATUS)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    clients = ", ".join(str(client["pid"]) for client in answer["clients"]) or "none"
    print_lines(
        f"process   {answer['pid']} since {answer['since']}, aiochroma {answer['aiochroma']}, {answer['state']}"
    )
    print_lines(f"clients   {clients}")
    print_lines(
        f"requests  {answer['done']} done, {answer['failed']} failed, {answer['pending']} pending; {answer['calls']} calls"
    )
    print_lines(f"times     waited {_times(answer['wait_ms'])}; ran {_times(answer['run_ms'])}")
    if answer["last_error"]:
        print_lines(f"error     {answer['last_error']}")


def _times(latency: dict[str, float]) -> str:
    return f"{latency['p50']:.1f} ms (p99 {latency['p99']:.1f})"


def _stop(path: str, *, force: bool) -> None:
    from aiochroma.disk.ownership import read_owner
    from aiochroma.host.sockets import connect, process_at
    from aiochroma.host.wire import FrameKind

    connected = connect(path)
    if connected is None:
        print_lines(f"There is no host of {path}.")
        raise typer.Exit(_NONE)
    with connected:
        # Whom the kernel names may be ended; what is written in a file, or said over a socket, may name anybody.
        pid = process_at(connected)
        if pid is None and not hasattr(socket, "SO_PEERCRED"):
            owner = read_owner(path)
            pid = None if owner is None else owner.pid
        try:
            answer = _answer(connected, path, FrameKind.STOP, force)
        except StoreUnavailableError:
            if not force or pid is None:
                raise
            answer = {}
    if answer.get("reason") == "clients":
        raise DatabaseInUseError(
            f"The host of {path} (process {answer['pid']}) has {answer['clients']} clients: end them, or give --force.",
            pid=answer["pid"],
        )
    if pid is None:
        print_lines(
            f"The host of {path} was told to end. It is in another container: what it does cannot be seen."
        )
        return
    if not _has_ended(pid, _GOING_SECONDS if "clients" in answer else 0.0):
        if not force:
            raise StoreUnavailableError(
                f"The host of {path} (process {pid}) is still there after {_GOING_SECONDS:.0f} s: give --force."
            )
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _has_ended(pid, _GOING_SECONDS)
    print_lines(f"The host of {path} (process {pid}) has ended.")


def _answer(connected: socket.socket, path: str, question: FrameKind, value: object = None) -> JsonObject:
    """Ask the host of a directory.

    Raises:
        StoreUnavailableError: It does not answer.
    """
    from aiochroma.host.reaching import ask
    from aiochroma.host.wire import ProtocolError

    try:
        answer: JsonObject = ask(connected, question, value)[2]
    except (OSError, ProtocolError) as error:
        raise StoreUnavailableError(
            f"The host of {path} does not answer ({error}): `aiochroma host {path} --stop --force` ends it."
        ) from error
    return answer


def _has_ended(pid: int, seconds: float) -> bool:
    """Wait for the end of a process; return whether it came."""
    from aiochroma.disk.ownership import is_alive

    until = monotonic() + seconds
    while is_alive(pid):
        if monotonic() >= until:
            return False
        time.sleep(0.02)
    return True
