"""The commands ``doctor``, ``backup``, ``restore`` and ``erase``; needs the extra ``cli``.

Importing this module imports neither chromadb nor numpy.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiochroma._errors import DatabasePathError, InvalidInputError
from aiochroma._files import canonical_path
from aiochroma.cli.common import (
    JsonOption,
    PathArgument,
    PathOption,
    directory,
    path_from,
    print_json,
    progress_bars,
    shown_size,
    shown_text,
    telling_when_interrupted,
)
from aiochroma.disk.layout import has_database

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiochroma.disk.backup import BackupReport
    from aiochroma.ops.report import DoctorReport

__all__ = ["maintenance_app"]

_DOCTOR_EXIT_CODES = (
    "Exit codes: 0 healthy, or healthy again; 1 something is wrong and can be repaired; 2 bad input; 3 not available (in use, "
    "no database, no permission, a newer format); 4 SQLite's file is damaged: restore a backup."
)
_EXIT_CODES = "Exit codes: 0 done; 2 bad input; 3 refused (in use, no room, not a backup, ...), and nothing was changed."

maintenance_app: typer.Typer = typer.Typer()
"""Included by the application; see :mod:`aiochroma.cli.app`."""


@maintenance_app.command(epilog=_DOCTOR_EXIT_CODES)
def doctor(
    given: PathArgument = None,
    path: PathOption = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Rebuild broken indexes and set aside what belongs to nothing; copies first."
        ),
    ] = False,
    vacuum: Annotated[
        bool,
        typer.Option("--vacuum", help="Give the room of what is dead back to the file system; copies first."),
    ] = False,
    erase_dead: Annotated[
        bool,
        typer.Option(
            "--erase", help="Remove what was forgotten or replaced from every file; makes no copy for it."
        ),
    ] = False,
    reembed_missing: Annotated[
        bool,
        typer.Option(
            "--reembed-missing",
            help="Embed the documents of records without a vector; may be interrupted and run again. Copies first.",
        ),
    ] = False,
    backup_to: Annotated[
        Path | None,
        typer.Option(
            "--backup-to",
            parser=path_from,
            metavar="DIR",
            help="Where the copy goes; default: beside the database.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a database, and repair it if asked to. Without an option nothing is changed.

    No program may have the database open.
    """
    from aiochroma.sync import doctor as examine

    changed = repair or vacuum or erase_dead or reembed_missing
    left = "; run it again: what is done stays done, and nothing that lives was touched" if changed else ""
    with telling_when_interrupted(lambda: left), progress_bars() as progress:
        report = examine(
            directory(given, path),
            repair=repair,
            vacuum=vacuum,
            erase=erase_dead,
            reembed_missing=reembed_missing,
            backup_to=backup_to,
            progress=progress,
        )
    if as_json:
        print_json(report.as_dict())
    else:
        _print_report(Console(highlight=False), report)
    raise typer.Exit(report.exit_code)


@maintenance_app.command(epilog=_EXIT_CODES)
def backup(
    directories: Annotated[
        list[Path],
        typer.Argument(
            parser=path_from,
            metavar="[PATH] TARGET",
            help="The memory's directory, unless --path or the environment names it; and the backup's directory, with --keep "
            "the folder of all backups.",
        ),
    ],
    path: PathOption = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="Delete the oldest backups, so that this many remain.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Check the copy's files and search it once; do not read every vector."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a database, and check the copy by opening it: every record must have its vector.

    A program that shares the database through a host may have it open. One that has it for itself makes its own backups:
    `await memory.backup(...)`.
    """
    given, target = _last(directories, "the backup's directory")
    source = Path(canonical_path(directory(given, path)))
    if not has_database(source):
        raise DatabasePathError(f"There is no database in {str(source)!r}.")
    with (
        telling_when_interrupted(lambda: "; the database goes on as it was"),
        progress_bars(of_bytes=True) as progress,
    ):
        report = asyncio.run(_back_up(source, target, keep, progress, quick=quick))
    if as_json:
        print_json({**report.__dict__, "records": report.records})
        return
    console = Console(highlight=False)
    console.print(Text(shown_text(report.path)), soft_wrap=True)
    console.print(
        f"{report.records} records in {len(report.collections)} collections, {shown_size(report.bytes)}; copied in "
        f"{report.paused_ms:.0f} ms, verified in {report.verified_ms:.0f} ms",
        soft_wrap=True,
    )
    for removed in report.removed:
        console.print(Text(shown_text(f"deleted: {removed}")), soft_wrap=True)


@maintenance_app.command(epilog=_EXIT_CODES)
def restore(
    source: Annotated[
        Path,
        typer.Argument(parser=path_from, metavar="BACKUP", help="What `backup` has made; stays as it is."),
    ],
    given: PathArgument = None,
    path: PathOption = None,
) -> None:
    """Make a database of a backup. A database that the directory holds is kept beside it, renamed.

    No program may have the database open.
    """
    from aiochroma.sync import restore as put_back

    target = directory(given, path)
    left = f"; {target} is what it was or what the backup is, whole; run it again"
    with telling_when_interrupted(lambda: left), progress_bars() as progress:
        progress("restore", 0, 1)
        before = put_back(source, target)
        progress("restore", 1, 1)
    console = Console(highlight=False)
    console.print(Text(shown_text(f"{target} holds what the backup {source} holds.")), soft_wrap=True)
    if before is not None:
        console.print(Text(shown_text(f"The former database is kept in {before}.")), soft_wrap=True)


@maintenance_app.command(
    epilog="Exit codes: 0 erased; 1 a text is in a file still; 2 bad input; 3 not available, or damaged."
)
def erase(
    given: PathArgument = None,
    path: PathOption = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text that must be in no file afterwards; may be given several times."),
    ] = None,
    keep_history: Annotated[
        bool, typer.Option("--keep-history", help="Leave the texts in the history of changes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what was forgotten, has expired or was replaced from every file. What lives is not touched.

    No program may have the database open.
    """
    from aiochroma.sync import erase as erase_files

    receipt = erase_files(directory(given, path), texts=text or (), keep_history=keep_history)
    if as_json:
        print_json(receipt.as_dict())
        raise typer.Exit(0 if receipt.is_complete else 1)
    console = Console(highlight=False)
    console.print(
        f"{receipt.log_entries} entries of the log and {receipt.vectors_replaced} vectors were erased; {len(receipt.files)} "
        f"files, {shown_size(receipt.bytes_checked)}, were read afterwards.",
        soft_wrap=True,
    )
    if receipt.chunks:
        console.print(
            f"{receipt.chunks} chunks of long texts belonged to no memory any more, and were erased as well.",
            soft_wrap=True,
        )
    for title, lines in (
        ("removed", receipt.removed),
        ("still there", receipt.found),
        ("not reached", receipt.not_reached),
    ):
        for line in lines:
            console.print(Text(shown_text(f"{title}: {line}")), soft_wrap=True)
    if receipt.entries_kept:
        console.print(
            f"{receipt.entries_kept} entries of the history stay without their texts; they name the ids of memories.",
            soft_wrap=True,
        )
    if receipt.shared:
        console.print(
            f"{receipt.shared} of the texts are part of memories that live, and were not looked for.",
            soft_wrap=True,
        )
    if receipt.too_short:
        console.print(
            f"{receipt.too_short} of the texts are so short that they are in any file by chance, and were not looked for.",
            soft_wrap=True,
        )
    raise typer.Exit(0 if receipt.is_complete else 1)


def _last(directories: list[Path], what: str) -> tuple[Path | None, Path]:
    """Take ``[PATH] TARGET`` apart.

    Raises:
        InvalidInputError: There are more than two.
    """
    if len(directories) > 2:
        raise InvalidInputError(f"Give PATH and {what}, got {len(directories)} directories.")
    return (directories[0] if len(directories) == 2 else None), directories[-1]


async def _back_up(
    path: Path,
    target: Path,
    keep: int | None,
    progress: Callable[[str, int, int], None],
    *,
    quick: bool,
) -> BackupReport:
    from aiochroma.client.opening import AsyncPersistentClient

    async with AsyncPersistentClient(path) as client:
        return await client.backup(target, keep=keep, verify="quick" if quick else "full", progress=progress)


def _print_report(console: Console, report: DoctorReport) -> None:
    facts = [
        ("database", report.path),
        ("owner", "no program has it open" if report.owner is None else _owner(report.owner)),
        ("versions", ", ".join(f"{name} {value}" for name, value in report.versions.items())),
    ]
    if report.owner is None and not report.sqlite_is_damaged:
        durable = {
            True: "every vector is kept twice: in the index, and in our file, the log or the newest backup",
            False: "vectors are in the index only",
            None: "unknown",
        }
        facts += [
            ("journal", report.journal_mode),
            ("durability", durable[report.durable]),
            ("log", f"{report.log_entries} entries, {shown_size(report.log_bytes)}"),
            ("SQLite file", f"{shown_size(report.size_bytes)}, {shown_size(report.free_bytes)} of it free"),
            ("orphaned indexes", f"{len(report.orphaned_directories)}, {shown_size(report.orphaned_bytes)}"),
            ("quarantine", f"{len(report.quarantines)}, {shown_size(report.quarantined_bytes)}"),
            ("left incomplete", f"{len(report.unfinished)}, {shown_size(report.unfinished_bytes)}"),
            ("newest backup", report.backup or "none known"),
        ]
    for name, value in facts:
        console.print(
            Text(f"{name:>17}: ", style="dim").append(shown_text(value), style="default"), soft_wrap=True
        )
    if report.collections:
        console.print(_collections(report))
    for title, style, lines in (
        ("done", "green", report.actions),
        ("problem", "red", report.problems),
        ("left", "red", _left(report)),
        ("note", "dim", report.notes),
        ("advice", "yellow", report.advice),
    ):
        for line in lines:
            console.print(
                Text(f"{title}: ", style=style).append(shown_text(line), style="default"), soft_wrap=True
            )
    console.print(_verdict(report), soft_wrap=True)


def _collections(report: DoctorReport) -> Table:
    table = Table(
        "collection", "records", "dimension", "indexed", "dead", "to apply", "no vector", "state", box=None
    )
    for entry in report.collections:
        state = Text("damaged", style="red") if entry.problems else Text("ok", style="green")
        numbers = (
            entry.records,
            entry.dimension or "-",
            entry.indexed,
            entry.dead,
            entry.pending,
            entry.missing,
        )
        table.add_row(
            Text(shown_text(entry.name)), *(Text(str(number), justify="right") for number in numbers), state
        )
    return table


def _left(report: DoctorReport) -> list[str]:
    """Say which records have no vector still, and why; the first few by name."""
    if report.filled is None:
        return []
    return [
        f"{name}: {len(ids)} records have no vector still, because {reason}: {', '.join(ids[:5])}"
        for name, reasons in report.filled.left.items()
        for reason, ids in reasons.items()
    ]


def _verdict(report: DoctorReport) -> Text:
    seconds = f" ({report.seconds:.2f} s)"
    if report.owner is not None:
        return Text(f"Not checked: another process has it open.{seconds}", style="yellow")
    if report.sqlite_is_damaged:
        return Text(f"Damaged beyond repair: restore a backup.{seconds}", style="bold red")
    if report.problems:
        return Text(f"{len(report.problems)} problems.{seconds}", style="bold red")
    return Text(f"Healthy: {report.records} records, each with its vector.{seconds}", style="bold green")


def _owner(owner: dict[str, object]) -> str:
    return f"process {owner.get('pid')} ({owner.get('command', 'unknown')}) on {owner.get('host')} since {owner.get('since')}"
