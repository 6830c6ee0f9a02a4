"""``aiochroma import``, ``export`` and ``reembed``, with a progress bar where somebody is looking."""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiochroma._errors import InvalidInputError
from aiochroma.cli.common import PathOption, open_memory, progress_bar, say, stdin_is_terminal, with_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiochroma.memory.memory import Memory
    from aiochroma.memory.reembedding import ReembedReport

__all__ = ["transfer_app"]

_EXIT_CODES = "Exit codes: 0 done; 2 bad input; 3 the store is not available; 130 interrupted."

transfer_app = typer.Typer()


@transfer_app.command("import", epilog=_EXIT_CODES)
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
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
    written = 0
    with _input(file) as source:
        memory = open_memory(path, split_chars=split_chars)

        async def work(memory: Memory) -> int:
            def note(count: int) -> None:
                nonlocal written
                written = count
                show(count)

            with progress_bar("importing", _records_in(source)) as show:
                return int(await memory.import_(source, namespace=namespace, progress=note))

        try:
            imported = with_memory(memory, work)
        except KeyboardInterrupt:
            say(
                f"interrupted after {written} memories, which are written; run it again to go on: nothing is duplicated"
            )
            raise
    typer.echo(f"{imported} memories imported")


@transfer_app.command("export", epilog=_EXIT_CODES)
def export_file(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines; replaced if it exists; - for standard output.")
    ],
    path: PathOption = None,
    namespaces: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="Only this one; repeatable.")
    ] = None,
) -> None:
    """Write all memories to a file that `aiochroma import` reads."""

    async def write(memory: Memory, target: Path) -> int:
        counts = (
            [int(await memory.count(name)) for name in namespaces]
            if namespaces
            else [int(await memory.count())]
        )
        with progress_bar("exporting", sum(counts)) as progress:
            return int(await memory.export(target, namespaces=namespaces or None, progress=progress))

    memory = open_memory(path, must_exist=True)
    if str(file) != "-":
        typer.echo(f"{with_memory(memory, lambda opened: write(opened, file))} memories exported")
        return
    with tempfile.TemporaryDirectory(prefix="aiochroma-") as folder:
        target = Path(folder) / "export.jsonl"
        count = with_memory(memory, lambda opened: write(opened, target))
        with target.open("rb") as lines:
            shutil.copyfileobj(lines, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    say(f"{count} memories exported")


@transfer_app.command("reembed", epilog=_EXIT_CODES)
def reembed(
    embedder: Annotated[
        str, typer.Option("--embedder", "-e", help="The new embedder: wordllama, minilm or hashed.")
    ] = "wordllama",
    path: PathOption = None,
    namespaces: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="Only this one; repeatable.")
    ] = None,
) -> None:
    """Embed what another embedder has embedded again. Interrupted, it may be run again: it goes on where it stopped."""
    memory = open_memory(path, must_exist=True, embedder=embedder)

    async def work(memory: Memory) -> ReembedReport:
        total = sum([await memory.count(name) for name in namespaces or await memory.namespaces()])
        done: dict[str, int] = {}
        with progress_bar("embedding", total) as show:

            def note(name: str, count: int, _: int) -> None:
                done[name] = count
                show(sum(done.values()))

            return await memory.reembed(namespaces or None, progress=note)

    report = with_memory(memory, work)
    for name, count in report.embedded.items():
        typer.echo(f"{name}: {count} memories were embedded again")
    for name in report.unchanged:
        typer.echo(f"{name}: has vectors of this embedder already")
    for name, ids in report.left.items():
        say(f"{name} is as it was: the embedder finds nothing in {', '.join(ids[:5])}")
    if not report.is_complete:
        raise typer.Exit(1)


@contextmanager
def _input(file: Path) -> Iterator[Path]:
    """Give the file to read; standard input is written to a private file first, because its lines are read twice."""
    if str(file) != "-":
        file = file.expanduser()
        if not file.exists():
            raise InvalidInputError(f"There is no {str(file)!r}.")
        yield file
        return
    if stdin_is_terminal():
        raise InvalidInputError("`import -` reads JSON lines from standard input, which is a terminal.")
    with tempfile.TemporaryDirectory(prefix="aiochroma-") as folder:
        copy = Path(folder) / "standard-input.jsonl"
        with copy.open("wb") as lines:
            shutil.copyfileobj(sys.stdin.buffer, lines)
        yield copy


def _records_in(file: Path) -> int | None:
    """Return how many lines a file of lines has, for the progress bar; None where that says nothing."""
    if file.is_dir() or file.suffix not in {".jsonl", ".ndjson"}:
        return None
    count = 0
    with file.open("rb") as lines:
        while block := lines.read(2**20):
            count += block.count(b"\n")
    return count
