"""The command line: a memory for a shell, and the demonstration.

Importing this module imports neither chromadb nor numpy, so that ``aiochroma --help`` is light.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

from aiochroma._distribution import missing_extra
from aiochroma._errors import AiochromaError, DatabasePathError, InvalidInputError, MissingExtraError
from aiochroma.memory.memory import Memory

try:
    import typer
    from rich.console import Console
    from rich.text import Text
except ImportError as error:
    raise missing_extra("The command line", "cli", error.name) from error

from aiochroma.cli.maintenance import maintenance_app
from aiochroma.cli.migrate import migrate_app
from aiochroma.cli.transfer import transfer_app

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aiochroma.memory.recall import Hit, Recall

__all__ = ["app", "run"]

T = TypeVar("T")

OK, NOTHING_FOUND, BAD_INPUT, UNAVAILABLE = range(4)

_EXIT_CODES = (
    "Exit codes: 0 done; 1 not found, or nothing recalled; 2 bad input; 3 the store is not available."
)
_DATABASE_FILE = "chroma.sqlite3"

app = typer.Typer(
    help="Remember texts and recall them by meaning, from a shell.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    # Errors of ours are one line; of anything else Python's own traceback says most.
    pretty_exceptions_enable=False,
)

PathOption = Annotated[Path, typer.Option("--path", help="The memory's directory.", metavar="DIR")]
NamespaceOption = Annotated[str, typer.Option("--namespace", "-n", help="The namespace; any text.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_HERE = Path("./memory")


def run() -> NoReturn:
    """Run the command line and end the process.

    An error of aiochroma's is one line on standard error; anything else keeps its traceback.
    """
    # What is worth saying is said by the commands; events would be bare words between the lines.
    logging.getLogger("aiochroma").addHandler(logging.NullHandler())
    try:
        app(prog_name="aiochroma")
    except AiochromaError as error:
        _say(str(error))
        sys.exit(BAD_INPUT if isinstance(error, (InvalidInputError, MissingExtraError)) else UNAVAILABLE)
    sys.exit(OK)


# -- commands ----------------------------------------------------------------------------------------------------------


@app.command(epilog=_EXIT_CODES)
def remember(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...", help="What to remember; - reads one text per line from standard input."
        ),
    ] = None,
    path: PathOption = _HERE,
    namespace: NamespaceOption = "default",
    id: Annotated[
        str | None, typer.Option("--id", help="Its id; by default it follows from the text.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", "-m", metavar="KEY=VALUE", help="Kept with it; repeatable."),
    ] = None,
) -> None:
    """Remember texts, and print their ids, one per line."""
    given = texts or []
    if not given and sys.stdin.isatty():
        raise InvalidInputError("Give a text, or - to read one text per line from standard input.")
    lines = given in ([], ["-"])
    if id is not None and (lines or len(given) > 1):
        raise InvalidInputError("`--id` is for a single text.")
    kept = _metadata(metadata or [])
    items = ({"text": text, "id": id, "metadata": kept} for text in (_lines() if lines else given))

    async def work(memory: Memory) -> list[str]:
        return await memory.remember_many(items, namespace=namespace)

    for written in _with_memory(path, work):
        typer.echo(written)


@app.command(epilog=_EXIT_CODES)
def recall(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The question.")],
    path: PathOption = _HERE,
    namespaces: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAME[=K]",
            help="Search this one, for its K best; repeatable; default all.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many hits each namespace may give.")] = 5,
    max_distance: Annotated[
        float | None, typer.Option(help="The largest distance of a hit, 0 to 2; default: no limit.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what was remembered about something, best first: score, namespace, text, id."""
    _require_store(path)
    wanted = _searches(namespaces or [], k)

    async def work(memory: Memory) -> Recall:
        return await memory.recall(query, namespaces=wanted, k=k, max_distance=max_distance)

    found = _with_memory(path, work)
    if as_json:
        errors = {name: str(failure) for name, failure in found.errors.items()}
        _print_json({"hits": [_plain(hit) for hit in found], "errors": errors, "timings": found.timings})
    else:
        console = Console(highlight=False)
        for hit in found:
            _print_hit(console, hit, score=True)
    for name, failure in found.errors.items():
        _say(f"namespace {name!r}: {failure}")
    if not found:
        raise typer.Exit(UNAVAILABLE if found.errors else NOTHING_FOUND)


@app.command(epilog=_EXIT_CODES)
def get(
    id: Annotated[str, typer.Argument(metavar="ID")],
    path: PathOption = _HERE,
    namespace: NamespaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Print a memory by its id."""
    _require_store(path)

    async def work(memory: Memory) -> Hit | None:
        return await memory.get(id, namespace=namespace)

    hit = _with_memory(path, work)
    if hit is None:
        _say(f"there is no memory {id!r} in the namespace {namespace!r}")
        raise typer.Exit(NOTHING_FOUND)
    if as_json:
        # Nothing was searched for: these two would say nothing.
        _print_json({key: value for key, value in _plain(hit).items() if key not in {"distance", "score"}})
    else:
        _print_hit(Console(highlight=False), hit, score=False)


@app.command(epilog=_EXIT_CODES)
def forget(
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    path: PathOption = _HERE,
    namespace: NamespaceOption = "default",
) -> None:
    """Forget memories by their ids; ends with 1 if there was none of one of them."""
    _require_store(path)

    async def work(memory: Memory) -> list[str]:
        return [each for each in ids if not await memory.forget(each, namespace=namespace)]

    unknown = _with_memory(path, work)
    for each in unknown:
        _say(f"there is no memory {each!r} in the namespace {namespace!r}")
    if unknown:
        raise typer.Exit(NOTHING_FOUND)


@app.command(epilog=_EXIT_CODES)
def namespaces(path: PathOption = _HERE) -> None:
    """Print the names of the namespaces, one per line."""
    _require_store(path)

    async def work(memory: Memory) -> list[str]:
        return await memory.namespaces()

    for name in _with_memory(path, work):
        typer.echo(name)


@app.command(epilog=_EXIT_CODES)
def stats(path: PathOption = _HERE, as_json: JsonOption = False) -> None:
    """Print how much is remembered in which namespace, with which embedder, and this visit's counters and times."""
    _require_store(path)
    where = os.path.realpath(path)

    async def work(memory: Memory) -> dict[str, Any]:
        counts = {name: await memory.count(name) for name in await memory.namespaces()}
        thread = memory.stats().as_dict()
        return {"path": where, "namespaces": counts, "embedder": thread.pop("embedder"), "thread": thread}

    found = _with_memory(path, work)
    if as_json:
        _print_json(found)
        return
    _print_stats(Console(highlight=False), found)


@app.command(epilog=_EXIT_CODES)
def demo(
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="How long each of the three loads runs.")
    ] = 3.0,
    tasks: Annotated[int, typer.Option(min=1, max=1000, help="How many tasks ask at the same time.")] = 32,
) -> None:
    """Load one assistant's memory into a temporary directory, ask it from many tasks at once, and measure."""
    from aiochroma.demo import run_demo

    run_demo(Console(highlight=False), seconds=seconds, tasks=tasks)


# `import` and `export` have a module of their own.
app.add_typer(transfer_app)
# So have `doctor`, `backup` and `restore`.
app.add_typer(maintenance_app)
# And `migrate`.
app.add_typer(migrate_app)

# -- what they share ---------------------------------------------------------------------------------------------------


def _with_memory(path: Path, work: Callable[[Memory], Awaitable[T]]) -> T:
    async def opened() -> T:
        async with Memory(path) as memory:
            return await work(memory)

    return asyncio.run(opened())


def _require_store(path: Path) -> None:
    """Refuse to make a new store where one is only to be read: most likely the path is misspelled.

    Raises:
        DatabasePathError: There is none.
    """
    if not (path / _DATABASE_FILE).exists():
        raise DatabasePathError(f"There is no memory in {str(path)!r}; `aiochroma remember` makes one.")


def _lines() -> Iterator[str]:
    """Read one text per line; blank lines are none.

    Raises:
        InvalidInputError: A line is not UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"Line {number} of standard input is not UTF-8: {error}.") from error
        if text.strip():
            yield text


def _metadata(pairs: list[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` pairs: numbers, ``true`` and ``false`` as in JSON, anything else as text.

    Raises:
        InvalidInputError: There is no ``=``.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise InvalidInputError(f"`--metadata` must be KEY=VALUE, got {pair!r}.")
        values[key] = _scalar(value)
    return values


def _scalar(text: str) -> str | int | float | bool:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float)) else text


def _searches(names: list[str], k: int) -> dict[str, int] | None:
    """Read ``NAME`` and ``NAME=K``; what follows the last ``=`` is K only if it is a number."""
    if not names:
        return None
    searches: dict[str, int] = {}
    for text in names:
        name, sign, number = text.rpartition("=")
        if sign and number.isdecimal():
            searches[name] = int(number)
        else:
            searches[text] = k
    return searches


def _plain(hit: Hit) -> dict[str, Any]:
    return asdict(hit)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=_as_text))


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _print_hit(console: Console, hit: Hit, *, score: bool) -> None:
    # Text, not markup: what people remember may contain square brackets. Not wrapped: a pipe wants one line per hit.
    line = Text(f"{hit.score:6.3f}  ", style="bold") if score else Text()
    line.append_tokens(
        [(hit.namespace, "cyan"), ("  ", None), (hit.text, None), ("  ", None), (hit.id, "dim")]
    )
    if not score and hit.metadata:
        line.append("  ").append(json.dumps(hit.metadata, ensure_ascii=False), style="dim")
    console.print(line, soft_wrap=True)


def _print_stats(console: Console, found: dict[str, Any]) -> None:
    from rich.table import Table

    thread = found.pop("thread")
    counts = found.pop("namespaces")
    for key, value in found.items():
        console.print(Text(f"{key}: {value}"), soft_wrap=True)
    table = Table("namespace", "memories", box=None, pad_edge=False)
    for name, count in counts.items():
        table.add_row(Text(name), Text(str(count), justify="right"))
    table.add_row("together", Text(str(sum(counts.values())), justify="right"), style="bold")
    console.print(table)
    waited, ran = thread.pop("wait_ms"), thread.pop("run_ms")
    del thread["name"]
    console.print("requests: " + ", ".join(f"{value} {key}" for key, value in thread.items()), soft_wrap=True)
    for title, times in (("waited", waited), ("ran", ran)):
        console.print(f"{title}: p50 {times['p50']} ms, p99 {times['p99']} ms, at most {times['max']} ms")


def _say(message: str) -> None:
    typer.echo("aiochroma: " + " ".join(message.split()), err=True)
