"""``aiochroma mcp`` and ``aiochroma ui``: a memory for other programs, and for people to look at."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from aiochroma.cli.common import ScopeOption, scope_from

__all__ = ["frameworks_app"]

_HERE = Path("./memory")

frameworks_app = typer.Typer()

PathOption = Annotated[Path, typer.Option("--path", help="The memory's directory.", metavar="DIR")]


@frameworks_app.command(
    epilog="Exit codes: 0 the client has ended the session; 1 the server has; 3 the store is not available."
)
def mcp(
    path: PathOption = _HERE,
    scope: ScopeOption = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Leave out the tools that change something.")
    ] = False,
    idle: Annotated[
        float,
        typer.Option(
            help="How long the server stays when the last session has ended.", metavar="SECONDS", min=0
        ),
    ] = 60.0,
) -> None:
    """Serve a memory to a client of the Model Context Protocol, over standard input and output.

    The client starts this once for each session; all sessions of a directory share one server in the background.
    """
    from aiochroma.mcp.session import run_session

    sys.exit(run_session(path, scope=scope_from(scope) or (), read_only=read_only, idle=idle))


@frameworks_app.command(epilog="Exit codes: 0 interrupted; 2 bad input; 3 the store is not available.")
def ui(
    path: PathOption = _HERE,
    port: Annotated[int | None, typer.Option(help="The port; default: one that is free.", min=1)] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Offer to forget memories and to make backups.")
    ] = False,
) -> None:
    """Serve a page to look at a memory, on this machine only; prints its address."""
    from aiochroma.ui import serve

    sys.exit(serve(path, port=port, write=write))
