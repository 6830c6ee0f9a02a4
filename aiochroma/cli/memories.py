"""The commands for memories: remember, recall, list, get, update, pin, forget, namespaces and stats."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from aiochroma._errors import InvalidInputError, shown
from aiochroma._types import JsonObject
from aiochroma.cli.common import (
    EXIT_CODES,
    NOTHING_FOUND,
    UNAVAILABLE,
    JsonOption,
    NamespaceOption,
    PathArgument,
    PathOption,
    ScopeOption,
    ThreadOption,
    WhereOption,
    chosen_path,
    counted,
    open_memory,
    plain,
    print_hit,
    print_json,
    print_lines,
    say,
    shown_text,
    with_memory,
)
from aiochroma.cli.given import (
    check_namespace,
    duration,
    filter_from,
    items_of,
    limit_from,
    moment,
    named,
    named_lines,
    pairs,
    scope_from,
    searches_from,
    stdin_is_terminal,
)

if TYPE_CHECKING:
    from aiochroma.memory.memory import Memory
    from aiochroma.memory.results import Hit, Recall

__all__ = ["memories_app"]

memories_app: typer.Typer = typer.Typer()

MetadataOption = Annotated[
    list[str] | None,
    typer.Option("--metadata", "-m", metavar="KEY=VALUE", help="Kept with it, a list as JSON; repeatable."),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="WHEN",
        help="Only what was first remembered since: 2026-03-01, or 7d for a week ago.",
    ),
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="WHEN", help="Only what was first remembered before.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="The most memories in all.")]


@memories_app.command(epilog=EXIT_CODES)
def remember(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="What to remember; - reads one text per line from standard input."
        ),
    ] = None,
    path: PathOption = None,
    namespace: NamespaceOption = "default",
    scope: ScopeOption = None,
    thread: ThreadOption = None,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="TIME", help="Forget it after 90s, 12h, 7d, ...")
    ] = None,
    id: Annotated[
        str | None, typer.Option("--id", help="Its id; by default it follows from the text.")
    ] = None,
    metadata: MetadataOption = None,
) -> None:
    """Remember texts, and print their ids, one per line."""
    given = texts or []
    if not given and stdin_is_terminal():
        raise InvalidInputError("Give a text, or - to read one text per line from standard input.")
    lines = given in ([], ["-"])
    if id is not None and (lines or len(given) > 1):
        raise InvalidInputError("`--id` is for a single text.")
    common = {
        "id": id,
        "metadata": pairs(metadata or []),
        "ttl": duration(ttl, "--ttl"),
        "scope": scope_from(scope),
        "thread": thread,
    }
    check_namespace(namespace)
    # Before anything is opened all texts are looked at, and the first line.
    items = items_of(named_lines() if lines else named(given), common)
    begun = [*items] if not lines else [*islice(items, 1)]
    if not begun:
        say("nothing was remembered: standard input held no text")
        raise typer.Exit(NOTHING_FOUND)

    async def work(memory: Memory) -> list[str]:
        return [*await memory.remember_many(chain(begun, items), namespace=namespace)]

    print_lines(*with_memory(open_memory(path), work))


@memories_app.command(epilog=EXIT_CODES)
def recall(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The question.")],
    path: PathOption = None,
    namespaces: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAME[=K]",
            help="Search this one, for its K best; repeatable; default all.",
        ),
    ] = None,
    scope: ScopeOption = None,
    thread: ThreadOption = None,
    k: Annotated[int, typer.Option("-k", help="How many hits each namespace may give.")] = 5,
    limit: LimitOption = None,
    min_score: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE",
            help="The lowest score of a hit; auto: none where nothing was remembered about it; default: no limit.",
        ),
    ] = None,
    max_distance: Annotated[
        str | None,
        typer.Option(
            metavar="DISTANCE",
            help="The largest distance of a hit, 0 to 2; auto: the embedder's own; default: no limit.",
        ),
    ] = None,
    where: WhereOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    searched_by: Annotated[
        str, typer.Option("--mode", help="hybrid (by meaning and words), vector, or text.")
    ] = "hybrid",
    window: Annotated[
        int, typer.Option("--window", min=0, help="Neighbours before and after each hit in its thread.")
    ] = 0,
    context: Annotated[
        bool, typer.Option("--context", help="Print the hits as a text for a prompt.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print what was remembered about something, best first: score, namespace, text, id."""
    if searched_by not in {"hybrid", "vector", "text"}:
        raise InvalidInputError(f"`--mode` must be hybrid, vector or text, got {shown(searched_by)}.")
    chosen: Literal["hybrid", "vector", "text"] = searched_by  # type: ignore[assignment]  # checked above
    searched = searches_from(namespaces or [], k)
    options: JsonObject = {
        "where": filter_from(where),
        "since": moment(since, "--since"),
        "until": moment(until, "--until"),
        "min_score": limit_from(min_score, "--min-score"),
        "max_distance": limit_from(max_distance, "--max-distance", least=0),
    }

    async def work(memory: Memory) -> Recall:
        return await memory.recall(
            query,
            namespaces=searched,
            scope=scope_from(scope),
            thread=thread,
            k=k,
            limit=limit,
            mode=chosen,
            window=window,
            **options,
        )

    found = with_memory(open_memory(path, must_exist=True), work)
    if as_json:
        errors = {name: str(failure) for name, failure in found.errors.items()}
        print_json({"hits": [plain(hit) for hit in found], "errors": errors, "timings": found.timings})
    elif context:
        print_lines(*found.as_context().splitlines())
    else:
        console = Console(highlight=False)
        for hit in found:
            print_hit(console, hit, score=True)
    for name, failure in found.errors.items():
        say(f"namespace {name!r}: {failure}")
    if not found:
        say("no hits")
        raise typer.Exit(UNAVAILABLE if found.errors else NOTHING_FOUND)


@memories_app.command("list", epilog=EXIT_CODES)
def list_(
    given: PathArgument = None,
    path: PathOption = None,
    namespace: NamespaceOption = "default",
    scope: ScopeOption = None,
    thread: ThreadOption = None,
    where: WhereOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    newest_first: Annotated[bool, typer.Option("--newest-first", help="Begin with the newest.")] = False,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """List memories in the order in which they were first remembered, those of a thread in their order there."""
    options: JsonObject = {
        "where": filter_from(where),
        "since": moment(since, "--since"),
        "until": moment(until, "--until"),
    }

    console = Console(highlight=False)
    count = 0

    async def work(memory: Memory) -> list[JsonObject]:
        listing = memory.list(
            namespace,
            scope=scope_from(scope),
            thread=thread,
            newest_first=newest_first,
            limit=limit,
            **options,
        )
        nonlocal count
        rows = []
        # Printed as they come: whoever reads the first few does not wait for the others.
        async for hit in listing:
            count += 1
            if as_json:
                rows.append(_without_search(hit))
            else:
                print_hit(console, hit, score=False)
        return rows

    rows = with_memory(open_memory(chosen_path(given, path), must_exist=True), work)
    if as_json:
        print_json(rows)
    if not count:
        say(f"there is no such memory in the namespace {namespace!r}; `aiochroma namespaces` names them all")
        raise typer.Exit(NOTHING_FOUND)


@memories_app.command(epilog=EXIT_CODES)
def get(
    id: Annotated[str, typer.Argument(metavar="ID")],
    path: PathOption = None,
    namespace: NamespaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Print a memory by its id."""

    async def work(memory: Memory) -> Hit | None:
        return await memory.get(id, namespace=namespace)

    hit = with_memory(open_memory(path, must_exist=True), work)
    if not hit:
        _say_absent([id], namespace)
        raise typer.Exit(NOTHING_FOUND)
    if as_json:
        print_json(_without_search(hit))
    else:
        print_hit(Console(highlight=False), hit, score=False)


@memories_app.command(epilog=EXIT_CODES)
def update(
    id: Annotated[str, typer.Argument(metavar="ID")],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The new text; default: as it is.")
    ] = None,
    path: PathOption = None,
    namespace: NamespaceOption = "default",
    metadata: MetadataOption = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="KEY", help="Take this metadata away; repeatable.")
    ] = None,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="TIME", help="Forget it after 90s, 12h, 7d, ...")
    ] = None,
) -> None:
    """Change a memory; what is not given stays as it is."""
    changes = {**pairs(metadata or []), **dict.fromkeys(remove or [])}
    lifetime = duration(ttl, "--ttl")
    if text is None and not changes and lifetime is None:
        raise InvalidInputError("Nothing to change: give a text, --metadata, --remove or --ttl.")

    async def work(memory: Memory) -> Hit | None:
        return await memory.update(id, namespace=namespace, text=text, metadata=changes or None, ttl=lifetime)

    hit = with_memory(open_memory(path, must_exist=True), work)
    if not hit:
        _say_absent([id], namespace)
        raise typer.Exit(NOTHING_FOUND)
    print_hit(Console(highlight=False), hit, score=False)


@memories_app.command(epilog=EXIT_CODES)
def pin(
    id: Annotated[str, typer.Argument(metavar="ID")],
    path: PathOption = None,
    namespace: NamespaceOption = "default",
    unpin: Annotated[bool, typer.Option("--unpin", help="Let it be swept again.")] = False,
) -> None:
    """Keep a memory when others are swept away."""

    async def work(memory: Memory) -> Hit | None:
        return await memory.pin(id, namespace=namespace, pinned=not unpin)

    if not with_memory(open_memory(path, must_exist=True), work):
        _say_absent([id], namespace)
        raise typer.Exit(NOTHING_FOUND)


@memories_app.command(epilog=EXIT_CODES)
def forget(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID")] = None,
    path: PathOption = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace", "-n", help="The namespace; default: default, and with --scope all of them."
        ),
    ] = None,
    where: WhereOption = None,
    thread: ThreadOption = None,
    scope: ScopeOption = None,
) -> None:
    """Forget memories by their ids, or all of a filter, a thread, or a scope; prints how many.

    Ends with 1 if there was none, or none of one of the ids. Their bytes leave the files later; see `aiochroma erase`.
    """
    chosen = filter_from(where)
    if bool(ids) == bool(chosen or thread or scope):
        raise InvalidInputError("Give ids, or --where, --thread or --scope, and not both.")

    async def work(memory: Memory) -> tuple[int, list[str]]:
        if not ids:
            count = await memory.forget(
                namespace=namespace, where=chosen, thread=thread, scope=scope_from(scope)
            )
            return int(count), []
        there = namespace or "default"
        absent = [each for each in ids if not await memory.forget(each, namespace=there)]
        return len(ids) - len(absent), absent

    forgotten, absent = with_memory(open_memory(path, must_exist=True), work)
    _say_absent(absent, namespace or "default")
    typer.echo(f"{counted(forgotten)} forgotten")
    if absent or not forgotten:
        raise typer.Exit(NOTHING_FOUND)


@memories_app.command(epilog=EXIT_CODES)
def namespaces(given: PathArgument = None, path: PathOption = None) -> None:
    """Print the names of the namespaces, one per line."""

    async def work(memory: Memory) -> list[str]:
        return [*await memory.namespaces()]

    print_lines(*with_memory(open_memory(chosen_path(given, path), must_exist=True), work))


@memories_app.command(epilog=EXIT_CODES)
def stats(given: PathArgument = None, path: PathOption = None, as_json: JsonOption = False) -> None:
    """Print how much is remembered in which namespace, with which embedder, and this visit's counters and times."""

    async def work(memory: Memory) -> JsonObject:
        counts = {name: int(await memory.count(name)) for name in await memory.namespaces()}
        thread = memory.stats().as_dict()
        info = memory.client.session.describe()
        where = info.path or info.url
        return {"path": where, "namespaces": counts, "embedder": thread.pop("embedder"), "thread": thread}

    found = with_memory(open_memory(chosen_path(given, path), must_exist=True), work)
    if as_json:
        print_json(found)
        return
    _print_stats(Console(highlight=False), found)


# -- what they share ---------------------------------------------------------------------------------------------------


def _without_search(hit: Hit) -> JsonObject:
    # Nothing was searched for: these two would say nothing.
    return {key: value for key, value in plain(hit).items() if key not in {"distance", "score"}}


def _say_absent(ids: list[str], namespace: str) -> None:
    for each in ids:
        say(f"there is no memory {each!r} in the namespace {namespace!r}")


def _print_stats(console: Console, found: JsonObject) -> None:
    from rich.table import Table

    thread = found.pop("thread")
    counts = found.pop("namespaces")
    for key, value in found.items():
        console.print(Text(shown_text(f"{key}: {value}")), soft_wrap=True)
    table = Table("namespace", "memories", box=None, pad_edge=False)
    for name, count in counts.items():
        table.add_row(Text(shown_text(name)), Text(str(count), justify="right"))
    table.add_row("together", Text(str(sum(counts.values())), justify="right"), style="bold")
    console.print(table)
    waited, ran = thread.pop("wait_ms"), thread.pop("run_ms")
    del thread["name"]
    console.print("requests: " + ", ".join(f"{value} {key}" for key, value in thread.items()), soft_wrap=True)
    for title, times in (("waited", waited), ("ran", ran)):
        console.print(f"{title}: p50 {times['p50']} ms, p99 {times['p99']} ms, at most {times['max']} ms")
