"""``aiochroma import`` and ``aiochroma export``, with a progress bar where somebody is looking."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aiochroma._errors import DatabasePathError, InvalidInputError
from aiochroma.memory.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["transfer_app"]

_EXIT_CODES = "Exit codes: 0 done; 2 bad input; 3 the store is not available."
_DATABASE_FILE = "chroma.sqlite3"
_HERE = Path("./memory")

transfer_app = typer.Typer()

PathOption = Annotated[Path, typer.Option("--path", help="The memory's directory.", metavar="DIR")]


@transfer_app.command("import", epilog=_EXIT_CODES)
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON lines (.jsonl), CSV (.csv), or a folder of .txt and .md files."
        ),
    ],
    path: PathOption = _HERE,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace", "-n", help="Where to, for what names no namespace itself; default: default."
        ),
    ] = None,
    split_chars: Annotated[
        int | None,
        typer.Option(help="Embed longer texts in parts of so many characters; needs the extra `long`."),
    ] = None,
) -> None:
    """Remember what is in a file or folder. Interrupted, it may be run again: nothing is duplicated."""
    if not file.exists():
        raise InvalidInputError(f"There is no {str(file)!r}.")

    async def work() -> int:
        async with Memory(path, split_chars=split_chars) as memory:
            with _bar("importing", None) as progress:
                return await memory.import_(file, namespace=namespace, progress=progress)

    typer.echo(f"{asyncio.run(work())} memories imported")


@transfer_app.command("export", epilog=_EXIT_CODES)
def export_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines; replaced if it exists.")],
    path: PathOption = _HERE,
    namespaces: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="Only this one; repeatable.")
    ] = None,
) -> None:
    """Write all memories to a file that `aiochroma import` reads."""
    if not (path / _DATABASE_FILE).exists():
        raise DatabasePathError(f"There is no memory in {str(path)!r}; `aiochroma remember` makes one.")

    async def work() -> int:
        async with Memory(path) as memory:
            total = (
                sum([await memory.count(name) for name in namespaces]) if namespaces else await memory.count()
            )
            with _bar("exporting", total) as progress:
                return await memory.export(file, namespaces=namespaces or None, progress=progress)

    typer.echo(f"{asyncio.run(work())} memories exported")


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how far it is, on standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.update(task, completed=count)
