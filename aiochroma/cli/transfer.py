"""The commands that move memories: ``import``, ``export``, ``reembed`` and ``migrate``; needs the extra ``cli``.

Importing this module imports neither chromadb nor numpy.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiochroma._errors import InvalidInputError, shown
from aiochroma.cli.common import (
    JsonOption,
    PathArgument,
    PathOption,
    chosen_path,
    counted,
    directory,
    open_memory,
    path_from,
    print_json,
    print_lines,
    progress_bar,
    progress_bars,
    say,
    shown_text,
    telling_when_interrupted,
    with_memory,
)
from aiochroma.cli.given import check_namespace, stdin_is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiochroma.client.options import ConnectOverrides
    from aiochroma.memory.memory import Memory
    from aiochroma.memory.reembedding import ReembedReport
    from aiochroma.ops.migrate import MigrationReport

__all__ = ["transfer_app"]

_EXIT_CODES = "Exit codes: 0 done; 2 bad input; 3 the store is not available; 130 interrupted."

_MIGRATE_EXIT_CODES = (
    "Exit codes: 0 done and verified; 1 verification found differences; 2 bad input; 3 refused (in use, the destination holds "
    "something else) or not available."
)
_ENDPOINT = "a directory, or http(s)://host:port, with /tenant/database where it is not the default"

transfer_app: typer.Typer = typer.Typer()


@transfer_app.command("import", epilog=_EXIT_CODES)
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            parser=path_from,
            metavar="FILE",
            help="JSON lines (.jsonl), a JSON array (.json), CSV (.csv), a folder of .txt and .md files, or - for JSON lines "
            "from standard input.",
        ),
    ],
    path: PathOption = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace", "-n", help="Where to, for what names no namespace itself; default: default."
        ),
    ] = None,
    split_chars: Annotated[
        int | None,
        typer.Option(help="Embed longer texts in chunks of this many characters; needs the extra `long`."),
    ] = None,
) -> None:
    """Remember what is in a file or folder. Interrupted, it may be run again: nothing is duplicated."""
    if namespace is not None:
        check_namespace(namespace)
    written = 0
    with _input(file) as source:
        memory = open_memory(path, split_chars=split_chars)

        async def work(memory: Memory) -> int:
            def note(count: int, done: int, of: int) -> None:
                nonlocal written
                written = count
                show("importing", done, of)

            with progress_bars(of_bytes=True) as show:
                return int(await memory.import_(source, namespace=namespace, progress=note))

        def left() -> str:
            return (
                f" after {counted(written)}, written for good; run it again to go on: nothing is duplicated"
            )

        with telling_when_interrupted(left):
            imported = with_memory(memory, work)
    typer.echo(f"{counted(imported)} imported")


@transfer_app.command("export", epilog=_EXIT_CODES)
def export_file(
    file: Annotated[
        Path,
        typer.Argument(
            parser=path_from, metavar="FILE", help="JSON lines; replaced if it exists; - for standard output."
        ),
    ],
    path: PathOption = None,
    namespaces: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="Only this one; repeatable.")
    ] = None,
) -> None:
    """Write all memories to a file that `aiochroma import` reads."""

    async def write(memory: Memory, target: Path) -> int:
        await _check_namespaces(memory, namespaces)
        counts = (
            [int(await memory.count(name)) for name in namespaces]
            if namespaces
            else [int(await memory.count())]
        )
        with progress_bar("exporting", sum(counts)) as progress:
            return int(await memory.export(target, namespaces=namespaces or None, progress=progress))

    memory = open_memory(path, must_exist=True)
    if str(file) != "-":
        with telling_when_interrupted(lambda: f"; {file} is as it was"):
            typer.echo(f"{counted(with_memory(memory, lambda opened: write(opened, file)))} exported")
        return
    with tempfile.TemporaryDirectory(prefix="aiochroma-") as folder:
        target = Path(folder) / "export.jsonl"
        count = with_memory(memory, lambda opened: write(opened, target))
        with target.open("rb") as lines:
            shutil.copyfileobj(lines, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    say(f"{counted(count)} exported")


@transfer_app.command("reembed", epilog=_EXIT_CODES)
def reembed(
    given: PathArgument = None,
    path: PathOption = None,
    embedder: Annotated[
        str, typer.Option("--embedder", "-e", help="The new embedder: wordllama, minilm or hashed.")
    ] = "wordllama",
    namespaces: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="Only this one; repeatable.")
    ] = None,
) -> None:
    """Give memories that another embedder has embedded vectors of a new one. Interrupted, it goes on when it is run again."""
    memory = open_memory(chosen_path(given, path), must_exist=True, embedder=embedder)

    async def work(memory: Memory) -> ReembedReport:
        await _check_namespaces(memory, namespaces)
        total = sum([await memory.count(name) for name in namespaces or await memory.namespaces()])
        with _progress_of_all("embedding", total) as progress:
            return await memory.reembed(namespaces or None, progress=progress)

    with telling_when_interrupted(lambda: "; run it again to go on"):
        report = with_memory(memory, work)
    print_lines(*(f"{name}: {counted(count)} embedded again" for name, count in report.embedded.items()))
    print_lines(*(f"{name}: has vectors of this embedder already" for name in report.unchanged))
    for name, ids in report.left.items():
        say(f"{name} is as it was: the embedder finds nothing in {', '.join(ids[:5])}")
    if not report.is_complete:
        raise typer.Exit(1)


@transfer_app.command("compact", epilog=_EXIT_CODES)
def compact(
    given: PathArgument = None,
    path: PathOption = None,
    namespaces: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", help="This one, worn or not; repeatable. Default: the worn ones."),
    ] = None,
) -> None:
    """Make worn indexes again, in which more is dead than alive, also beside programs that use them."""
    memory = open_memory(chosen_path(given, path), must_exist=True)

    async def work(memory: Memory) -> dict[str, int]:
        await _check_namespaces(memory, namespaces)
        total = sum([await memory.count(name) for name in namespaces]) if namespaces else None
        with _progress_of_all("copying", total) as progress:
            return await memory.compact(namespaces or None, progress=progress)

    with telling_when_interrupted(lambda: "; run it again to go on"):
        made = with_memory(memory, work)
    print_lines(*(f"{name}: index made again, {counted(count)} copied" for name, count in made.items()))
    if not made:
        say("in no index is more dead than alive")


@transfer_app.command(epilog=_MIGRATE_EXIT_CODES)
def migrate(
    endpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="[SRC] DST",
            help=f"From where, unless --path or the environment names it, and to where: each {_ENDPOINT}. DST is made if it does "
            "not exist.",
        ),
    ],
    path: PathOption = None,
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
        Path | None,
        typer.Option(
            parser=path_from, metavar="FILE", help="Certificates to trust; default: CHROMA_CA_FILE."
        ),
    ] = None,
    to_token: Annotated[
        str | None, typer.Option(envvar="CHROMA_TO_AUTH_TOKEN", help="Token of DST, where both are servers.")
    ] = None,
    to_ca_file: Annotated[
        Path | None,
        typer.Option(
            parser=path_from,
            metavar="FILE",
            envvar="CHROMA_TO_CA_FILE",
            help="Certificates to trust at DST, where both are servers.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a store: from a directory to a server, back, or elsewhere. Interrupted, it may be run again and goes on."""
    from aiochroma.ops.migrate import migrate as move

    if len(endpoints) > 2 or (path is not None and len(endpoints) == 2):
        raise InvalidInputError("Give SRC and DST, or --path and DST.")
    src = endpoints[0] if len(endpoints) == 2 else str(directory(None, path))
    dst = endpoints[-1]
    of_server = _given(token, ca_file)
    both = "://" in src and "://" in dst
    of_destination = _given(to_token, to_ca_file) if both else of_server
    left = "; run it again to go on: nothing is written twice"
    with telling_when_interrupted(lambda: left), progress_bars() as progress:
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
        print_json(report.as_dict())
    else:
        _print_migration(Console(highlight=False), report)
    raise typer.Exit(report.exit_code)


@contextmanager
def _input(file: Path) -> Iterator[Path]:
    """Give the file to read; standard input and a named pipe are written to a private file first: lines are read twice."""
    source: IO[bytes] | None = None
    name = "standard-input.jsonl"
    if str(file) != "-":
        file = file.expanduser()
        try:
            if not file.is_fifo():
                file.stat()
                yield file
                return
            source, name = file.open("rb"), file.name
        except OSError as error:
            raise InvalidInputError(f"{str(file)!r} cannot be read: {error.strerror}.") from error
    elif stdin_is_terminal():
        raise InvalidInputError("`import -` reads JSON lines from standard input, which is a terminal.")
    with tempfile.TemporaryDirectory(prefix="aiochroma-") as folder:
        copy = Path(folder) / name
        with source or sys.stdin.buffer as given, copy.open("wb") as lines:
            shutil.copyfileobj(given, lines)
        yield copy


@contextmanager
def _progress_of_all(what: str, total: int | None) -> Iterator[Callable[[str, int, int], None]]:
    """Show how far several namespaces are as one number."""
    done: dict[str, int] = {}
    with progress_bar(what, total) as show:

        def note(name: str, count: int, _: int) -> None:
            done[name] = count
            show(sum(done.values()))

        yield note


async def _check_namespaces(memory: Memory, names: list[str] | None) -> None:
    """Refuse the name of a namespace that is not there.

    Raises:
        InvalidInputError: There is no such namespace.
    """
    unknown = sorted(set(names or ()) - set(await memory.namespaces())) if names else []
    if unknown:
        raise InvalidInputError(
            f"There is no namespace {shown(unknown[0])}; `aiochroma namespaces` names them all."
        )


def _given(token: str | None, ca_file: Path | None) -> ConnectOverrides:
    given: ConnectOverrides = {}
    if token is not None:
        given["auth_token"] = token
    if ca_file is not None:
        given["ca_file"] = ca_file
    return given


def _print_migration(console: Console, report: MigrationReport) -> None:
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
        table.add_row(Text(shown_text(name)), *numbers, state)
    if report.collections:
        console.print(table)
    for title, style, lines in (("different", "red", report.differences), ("note", "dim", report.notes)):
        for line in lines:
            console.print(
                Text(f"{title}: ", style=style).append(shown_text(line), style="default"), soft_wrap=True
            )
    console.print(_verdict(report), soft_wrap=True)


def _verdict(report: MigrationReport) -> Text:
    numbers = f"{report.records} records in {len(report.collections)} collections"
    seconds = f"({report.seconds:.2f} s)"
    source, destination = shown_text(report.source), shown_text(report.destination)
    if report.differences:
        return Text(f"{destination} is not what {source} is; run it again to mend it. {seconds}", "bold red")
    if not report.is_verified:
        return Text(f"Copied, not compared: {numbers}. {seconds}", "yellow")
    return Text(f"{destination} holds what {source} holds: {numbers}. {seconds}", "bold green")
