"""The command ``migrate``; needs the extra ``cli``.

Importing this module imports neither chromadb nor numpy.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path  # noqa: TC003 - read from the signatures when the command is built
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiochroma.cli.maintenance import _bars
from aiochroma.ops.migrate import migrate as move

if TYPE_CHECKING:
    from aiochroma.client.options import ConnectOverrides
    from aiochroma.ops.migration_report import MigrationReport

__all__ = ["migrate_app"]

_EXIT_CODES = (
    "Exit codes: 0 done and verified; 1 verification found differences; 2 bad input; 3 refused (in use, the destination holds "
    "something else) or not available."
)
_PLACE = "a directory, or http(s)://host:port, with /tenant/database where it is not the default"

migrate_app = typer.Typer()
"""Included by the application; see :mod:`aiochroma.cli.app`."""


@migrate_app.command(epilog=_EXIT_CODES)
def migrate(
    src: Annotated[str, typer.Argument(metavar="SRC", help=f"Where from: {_PLACE}.")],
    dst: Annotated[
        str, typer.Argument(metavar="DST", help=f"Where to: {_PLACE}; made if it does not exist.")
    ],
    tenant: Annotated[
        str | None, typer.Option(help="Tenant of SRC; default: CHROMA_TENANT, else Chroma's.")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="Database of SRC; default: CHROMA_DATABASE, else Chroma's.")
    ] = None,
    to_tenant: Annotated[str | None, typer.Option(help="Tenant of DST; default: as in SRC.")] = None,
    to_database: Annotated[str | None, typer.Option(help="Database of DST; default: as in SRC.")] = None,
    all_databases: Annotated[
        bool,
        typer.Option(
            "--all-databases",
            help="Every database: of a directory in all tenants, of a server in one tenant.",
        ),
    ] = False,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="Add to collections that hold something else; records with the same id are replaced.",
        ),
    ] = False,
    verify: Annotated[bool, typer.Option(help="Compare both sides record by record afterwards.")] = True,
    token: Annotated[
        str | None,
        typer.Option(
            help="Token of the server (of SRC, where both are servers); better, since others cannot see it: CHROMA_AUTH_TOKEN."
        ),
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificates to trust; default: CHROMA_CA_FILE.")
    ] = None,
    to_token: Annotated[
        str | None, typer.Option(envvar="CHROMA_TO_AUTH_TOKEN", help="Token of DST, where both are servers.")
    ] = None,
    to_ca_file: Annotated[
        Path | None,
        typer.Option(
            envvar="CHROMA_TO_CA_FILE", help="Certificates to trust at DST, where both are servers."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Copy a store: from a directory to a server, back, or elsewhere. Interrupted, it may be run again and goes on."""
    of_server = _given(token, ca_file)
    both = "://" in src and "://" in dst
    of_destination = _given(to_token, to_ca_file) if both else of_server
    with _bars() as progress:
        report = asyncio.run(
            move(
                src,
                dst,
                tenant=tenant,
                database=database,
                to_tenant=to_tenant,
                to_database=to_database,
                all_databases=all_databases,
                merge=merge,
                verify=verify,
                src_options=of_server if "://" in src else None,
                dst_options=of_destination if "://" in dst else None,
                progress=progress,
            )
        )
    if as_json:
        typer.echo(json.dumps(report.as_dict(), ensure_ascii=False, indent=2))
    else:
        _print(Console(highlight=False), report)
    raise typer.Exit(report.exit_code)


def _given(token: str | None, ca_file: Path | None) -> ConnectOverrides:
    given: ConnectOverrides = {}
    if token is not None:
        given["auth_token"] = token
    if ca_file is not None:
        given["ca_file"] = ca_file
    return given


def _print(console: Console, report: MigrationReport) -> None:
    table = Table("collection", "records", "written", "replaced", "state", box=None)
    defaults = {(entry.tenant, entry.database) for entry in report.collections}
    for entry in report.collections:
        name = entry.name if len(defaults) == 1 else f"{entry.tenant}/{entry.database}/{entry.name}"
        if entry.differences:
            state = Text("different", style="red")
        else:
            state = (
                Text("the same", style="green") if entry.verified else Text("not compared", style="yellow")
            )
        numbers = (
            Text(str(number), justify="right") for number in (entry.records, entry.written, entry.replaced)
        )
        table.add_row(Text(name), *numbers, state)
    if report.collections:
        console.print(table)
    for title, style, lines in (("different", "red", report.differences), ("note", "dim", report.notes)):
        for line in lines:
            console.print(Text(f"{title}: ", style=style).append(line, style="default"), soft_wrap=True)
    console.print(_verdict(report), soft_wrap=True)


def _verdict(report: MigrationReport) -> Text:
    numbers = f"{report.records} records in {len(report.collections)} collections"
    seconds = f"({report.seconds:.2f} s)"
    if report.differences:
        return Text(
            f"{report.destination} is not what {report.source} is; run it again to mend it. {seconds}",
            "bold red",
        )
    if not report.is_verified:
        return Text(f"Copied, not compared: {numbers}. {seconds}", "yellow")
    return Text(f"{report.destination} holds what {report.source} holds: {numbers}. {seconds}", "bold green")
