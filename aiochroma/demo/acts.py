"""The three acts, one after the other, with what was seen in a sentence each."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from aiochroma.demo.crash import join_and_count, kill_and_count
from aiochroma.demo.silence import RECORDS, measure_here, measure_threads
from aiochroma.demo.words import MODES, ask_in_every_mode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from rich.console import Console

    from aiochroma.demo.crash import Crash
    from aiochroma.demo.silence import Silence
    from aiochroma.demo.words import Answered

    _Measure = Callable[[str, Callable[[int], None]], Awaitable[Silence]]

__all__ = ["run_demo"]

_WRITING_SECONDS = 1.0


def run_demo(console: Console) -> None:
    """Run the demonstration; blocks until it is over, at most some twenty seconds.

    Args:
        console: Where to print.
    """
    begun = time.perf_counter()
    asyncio.run(_demonstrate(console))
    console.print(
        f"Done in {time.perf_counter() - begun:.1f} s; the temporary directories are gone.", style="dim"
    )


async def _demonstrate(console: Console) -> None:
    _title(console, 1, f"a bot answers while up to {RECORDS:,} records are written")
    silences = [await _silence(console, "here", measure_here)]
    if sys.platform != "win32":
        silences.append(await _silence(console, "through the owner process", _measure_shared))
    silences.append(await _silence(console, "with asyncio.to_thread", measure_threads))
    _print_silences(console, silences)

    _title(console, 2, "names, codes and numbers")
    with (
        _bar(console, "asking") as asked,
        tempfile.TemporaryDirectory(prefix="aiochroma-demo-") as directory,
    ):
        answered, embedder = await ask_in_every_mode(directory, asked)
    _print_words(console, answered, embedder)

    _title(console, 3, "kill -9 in the middle of writing, and a second process")
    with tempfile.TemporaryDirectory(prefix="aiochroma-demo-") as directory:
        crash = await kill_and_count(directory, _WRITING_SECONDS)
        _print_crash(console, crash)
        if sys.platform != "win32":
            _print_second(console, await join_and_count(directory), crash)


async def _measure_shared(directory: str, progress: Callable[[int], None]) -> Silence:
    return await measure_here(directory, progress, process="shared")


async def _silence(console: Console, what: str, measure: _Measure) -> Silence:
    with (
        _bar(console, f"writing {what}") as progress,
        tempfile.TemporaryDirectory(prefix="aiochroma-demo-") as directory,
    ):
        return await measure(directory, lambda written: progress(written, RECORDS))


def _print_silences(console: Console, silences: Sequence[Silence]) -> None:
    table = Table("", "longest silence", "slowest answer", "records", "records/s", box=SIMPLE, pad_edge=False)
    shortest = min(silence.longest for silence in silences)
    for column in table.columns[1:]:
        column.justify = "right"
    for silence in silences:
        best = silence.longest == shortest
        table.add_row(
            silence.name,
            Text(_milliseconds(silence.longest), style="bold green" if best else ""),
            _milliseconds(max(silence.answers, default=0.0)),
            f"{silence.written:,}",
            f"{silence.written / silence.seconds:,.0f}",
        )
    console.print(table)
    quietest = min(silences, key=lambda silence: silence.longest)
    loudest = max(silences, key=lambda silence: silence.longest)
    console.print(
        f"The event loop was blocked for at most {_milliseconds(quietest.longest)} with {quietest.name}, and for "
        f"{_milliseconds(loudest.longest)} with {loudest.name}."
    )


def _print_words(console: Console, answered: Sequence[Answered], embedder: str) -> None:
    table = Table("asked about", "questions", *MODES, box=SIMPLE, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for kind in dict.fromkeys(each.asked.kind for each in answered):
        of_kind = [each for each in answered if each.asked.kind == kind]
        found = [sum(mode in each.found_by for each in of_kind) for mode in MODES]
        # Green is what found the most, red what found less than half of that.
        styles = (
            "green" if count == max(found) else "red" if 2 * count < max(found) else "" for count in found
        )
        table.add_row(
            kind,
            str(len(of_kind)),
            *(Text(str(count), style) for count, style in zip(found, styles, strict=True)),
        )
    console.print(table)
    # Those on which the two differ say most.
    for finder, other in (("text", "vector"), ("vector", "text")):
        telling = [each for each in answered if finder in each.found_by and other not in each.found_by]
        if telling:
            question = telling[0].asked.question
            console.print(
                Text(f"{finder}, and not {other}: ", style="dim")
                .append(question.text, style="bold")
                .append(f" {question.answer}", style="default")
            )
    counts = {mode: sum(mode in each.found_by for each in answered) for mode in MODES}
    console.print(
        f"Of {len(answered)} questions vectors alone found the answer to {counts['vector']}, words alone to {counts['text']}, "
        f"both together, which is the default, to {counts['hybrid']}."
    )
    console.print(f"Embedder: {embedder}.", style="dim", soft_wrap=True)


def _print_crash(console: Console, crash: Crash) -> None:
    lost = crash.acknowledged - crash.found
    style = "bold green" if lost == 0 else "bold red"
    console.print(
        Text(
            f"The process was killed after {crash.acknowledged:,} texts had been acknowledged; opened again, {crash.found:,} are "
            "there, "
        ).append(f"{lost} lost.", style=style)
    )


def _print_second(console: Console, seen: int, crash: Crash) -> None:
    console.print(f"A second process joined while this one had the memory open, and counted {seen:,} texts.")
    if seen < crash.found:
        console.print("It did not see all of them.", style="bold red")


def _title(console: Console, number: int, text: str) -> None:
    console.print(Text(f"\n{number}. ", style="bold cyan").append(text, style="bold"))


def _milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


@contextmanager
def _bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)
