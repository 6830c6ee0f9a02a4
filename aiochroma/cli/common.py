"""What the commands share: options, exit codes, opening a memory, printing, and progress."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from aiochroma._errors import DatabasePathError, InvalidInputError, printable
from aiochroma._types import JsonObject
from aiochroma.disk.layout import has_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aiochroma.memory.memory import Memory
    from aiochroma.memory.results import Hit

__all__ = [
    "BAD_INPUT",
    "EXIT_CODES",
    "NOTHING_FOUND",
    "OK",
    "UNAVAILABLE",
    "JsonOption",
    "NamespaceOption",
    "PathArgument",
    "PathOption",
    "ScopeOption",
    "ThreadOption",
    "WhereOption",
    "check_exists",
    "chosen_path",
    "counted",
    "directory",
    "open_memory",
    "path_from",
    "plain",
    "print_hit",
    "print_json",
    "print_lines",
    "progress_bar",
    "progress_bars",
    "say",
    "shown_size",
    "shown_text",
    "telling_when_interrupted",
    "with_memory",
]

T = TypeVar("T")

OK, NOTHING_FOUND, BAD_INPUT, UNAVAILABLE = range(4)
EXIT_CODES = (
    "Exit codes: 0 done; 1 not found, or nothing recalled; 2 bad input; 3 the store is not available."
)


def path_from(text: str) -> Path:
    """Read a path.

    Raises:
        BadParameter: It is empty, as a variable of the shell that is not set: it would be the working directory.
    """
    if not text.strip():
        raise typer.BadParameter("it is empty; the working directory is `.`.")
    return Path(text)


_PATH_HELP = "The memory's directory; default: what CHROMA_* variables name, else ./memory."
PathOption = Annotated[Path | None, typer.Option("--path", parser=path_from, help=_PATH_HELP, metavar="DIR")]
PathArgument = Annotated[
    Path | None, typer.Argument(parser=path_from, help="The same as --path.", metavar="PATH")
]
NamespaceOption = Annotated[str, typer.Option("--namespace", "-n", help="The namespace; any text.")]
ScopeOption = Annotated[
    str | None,
    typer.Option(
        "--scope",
        metavar="A[/B...]",
        help="Whose memories: a person, or a path such as customer/person.",
    ),
]
ThreadOption = Annotated[str | None, typer.Option("--thread", help="The conversation.")]
WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="JSON", help='A filter over metadata, such as \'{"kind": "link"}\'.'),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_DEFAULT = Path("./memory")
_SERVER = re.compile(r"https?:/|[\w.-]+:\d+/?$", re.ASCII)


# -- opening -----------------------------------------------------------------------------------------------------------


def chosen_path(argument: Path | None, option: Path | None) -> Path | None:
    """Return the directory that was given, either as the argument PATH or with ``--path``; None where neither was.

    Raises:
        InvalidInputError: Both were given, or it looks like the address of a server and there is no such directory.
    """
    if argument is not None and option is not None:
        raise InvalidInputError(f"Give the directory once: {str(argument)!r}, or --path {str(option)!r}.")
    path = argument if option is None else option
    if path is not None and _SERVER.match(str(path)) and not os.path.lexists(path):
        # A path has lost one of the two slashes.
        address = str(path) if "://" in str(path) else str(path).replace(":/", "://", 1)
        raise InvalidInputError(
            f"{address!r} looks like the address of a server, and there is no such directory. For a server set "
            "CHROMA_MODE=http, CHROMA_HOST and CHROMA_PORT."
        )
    return path


def directory(argument: Path | None, option: Path | None) -> Path:
    """Return the directory for a command that works on files: the one that was given, or the environment's, or ./memory.

    Raises:
        InvalidInputError: None was given, and the environment names a server; see also :func:`chosen_path`.
    """
    path = chosen_path(argument, option)
    if path is None:
        mode = os.environ.get("CHROMA_MODE", "").strip().lower()
        if mode not in {"", "persistent"}:
            raise InvalidInputError(
                f"This command works on a directory, and CHROMA_MODE is {mode!r}: name the directory with --path."
            )
        path = Path(os.environ.get("CHROMA_DB_PATH") or _DEFAULT)
    return path.expanduser()


def check_exists(path: Path) -> None:
    """Refuse to make a new store where one is only to be read: most likely the path is misspelled.

    Raises:
        DatabasePathError: There is no memory in the directory.
    """
    if not has_database(path):
        raise DatabasePathError(
            f"There is no memory in {str(path)!r}; `aiochroma remember --path {path}` makes one."
        )


def open_memory(
    path: Path | None,
    *,
    must_exist: bool = False,
    split_chars: int | None = None,
    embedder: str | None = None,
) -> Memory:
    """Make the memory that the options and the environment name; it is not opened yet.

    Args:
        path: The directory that was given, or None.
        must_exist: Refuse to make a new store; see :func:`check_exists`.
        split_chars: The length of chunks in characters, as for :class:`aiochroma.Memory`.
        embedder: The name of an embedder, or None for the default.

    Raises:
        DatabasePathError: There is no memory in the directory, and there must be one.
        InvalidInputError: The path is the address of a server, or variables are wrong.
    """
    # Late, as all that a command needs alone: a session of `mcp` starts while the others are of no use.
    from aiochroma.memory.memory import Memory

    mode = os.environ.get("CHROMA_MODE", "").strip().lower()
    if path is None and mode not in {"", "persistent"}:
        return Memory.from_env(split_chars=split_chars, embedder=embedder)
    chosen = directory(path, None)
    if must_exist:
        check_exists(chosen)
    # The other variables, such as CHROMA_PROCESS, hold for a directory that is given here as well.
    return Memory.from_env(mode="persistent", path=chosen, split_chars=split_chars, embedder=embedder)


def with_memory(memory: Memory, work: Callable[[Memory], Awaitable[T]]) -> T:
    """Open a memory, do something with it, and close it."""

    async def opened() -> T:
        async with memory:
            return await work(memory)

    return asyncio.run(opened())


# -- printing ----------------------------------------------------------------------------------------------------------


def plain(hit: Hit) -> JsonObject:
    """Return a hit as plain data."""
    return asdict(hit)


def print_json(value: object) -> None:
    """Print JSON for a program that reads this one's output, or a person: escaped where the output's encoding lacks characters.

    Control characters above ASCII, which JSON may hold as they are, are escaped always: a terminal obeys some of them.
    """
    escaped = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") != "utf8"
    text = json.dumps(value, ensure_ascii=escaped, indent=2, default=_as_text)
    typer.echo(
        "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)
    )


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def print_hit(console: Console, hit: Hit, *, score: bool) -> None:
    """Print a hit as one line."""
    # Text, not markup: what people remember may contain square brackets. Not wrapped: a pipe wants one line per hit.
    line = Text()
    if score:
        line.append(f"{hit.score:6.3f}", style="bold").append("  ")
    line.append(shown_text(hit.namespace), style="cyan").append("  ").append(shown_text(hit.text))
    line.append("  ").append(shown_text(hit.id), style="dim")
    if not score and hit.metadata:
        line.append("  ").append(shown_text(json.dumps(hit.metadata, ensure_ascii=False)), style="dim")
    console.print(line, soft_wrap=True)


def shown_text(text: str) -> str:
    """Show control characters instead of obeying them: a stored text must not move the cursor or change colours."""
    return printable(re.sub(r"[\n\r\t]", " ", text))


def print_lines(*lines: str) -> None:
    """Print what is stored, a line each."""
    for line in lines:
        typer.echo(shown_text(line))


def say(message: str) -> None:
    """Print a line on standard error."""
    typer.echo("aiochroma: " + shown_text(" ".join(message.split())), err=True)


@contextmanager
def telling_when_interrupted(what: Callable[[], str]) -> Iterator[None]:
    """Say how things stand when Ctrl-C or a signal ends what is under way.

    Args:
        what: Returns the sentence.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        say(f"interrupted{what()}")
        raise


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show one bar: how many of a number of things are done, None for an unknown number."""
    with progress_bars() as show:
        yield lambda done: show(what, done, total)


@contextmanager
def progress_bars(*, of_bytes: bool = False) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a bar for each stage on standard error, where that is a terminal.

    Args:
        of_bytes: Whether what is done is counted in bytes.
    """
    console = Console(stderr=True)
    # Not markup: tenants and databases have names of any kind.
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True) if of_bytes else MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, of: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(shown_text(stage), total=of)
            bars.update(tasks[stage], completed=done, total=of)

        yield show


def counted(memories: int) -> str:
    """Return a number of memories as people say it."""
    return "1 memory" if memories == 1 else f"{memories} memories"


def shown_size(count: int) -> str:
    """Return a number of bytes as people read it."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
