"""The three acts, one after the other, with what was seen in a sentence each."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from aiochroma.demo import NAMESPACES, read_corpus, read_questions
from aiochroma.demo.crash import join_and_count, kill_and_count
from aiochroma.demo.silence import RECORDS, measure_here, measure_threads
from aiochroma.memory.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from rich.console import Console

    from aiochroma.demo import Question
    from aiochroma.demo.crash import Crash
    from aiochroma.demo.silence import Silence

    _Measure = Callable[[str, Callable[[int], None]], Awaitable[Silence]]

__all__ = ["MODES", "Answered", "ask_in_every_mode", "run_demo"]

Mode = Literal["vector", "text", "hybrid"]

MODES: tuple[Mode, ...] = ("vector", "text", "hybrid")


@dataclass(frozen=True)
class Answered:
    """A question, and in which modes its answer was found.

    Attributes:
        question: The question with the text that answers it.
        found_by: The modes in which that text was among the hits.
    """

    question: Question
    found_by: frozenset[str]


async def ask_in_every_mode(directory: str) -> tuple[list[Answered], str]:
    """Load the assistant's memory, ask every question in every mode, and say who found what.

    Args:
        directory: An empty directory.

    Returns:
        The questions with the modes that answered them, and the embedder's identity.
    """
    answered = []
    async with Memory(directory) as memory:
        for namespace, sentences in read_corpus().items():
            # Facts in no particular order: none lends relevance to the one that happens to stand beside it.
            items = [
                {"text": sentence.text, "metadata": sentence.metadata, "thread": False}
                for sentence in sentences
            ]
            await memory.remember_many(items, namespace=namespace)
        for question in read_questions():
            found_by = set()
            for mode in MODES:
                hits = await memory.recall(question.text, namespaces=NAMESPACES, mode=mode)
                if question.answer in [hit.text for hit in hits]:
                    found_by.add(mode)
            answered.append(Answered(question, frozenset(found_by)))
        return answered, str(memory.stats().embedder)


_WRITING_SECONDS = 1.0

_SHOWN_QUESTIONS = 6


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
    with tempfile.TemporaryDirectory(prefix="aiochroma-demo-") as directory:
        answered, embedder = await ask_in_every_mode(directory)
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
        _bar(console, f"writing {what}", RECORDS) as progress,
        tempfile.TemporaryDirectory(prefix="aiochroma-demo-") as directory,
    ):
        return await measure(directory, progress)


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
    table = Table("question", *MODES, box=SIMPLE, pad_edge=False)
    # Those on which the modes differ say most.
    telling = [each for each in answered if 0 < len(each.found_by) < len(MODES)]
    for each in telling[:_SHOWN_QUESTIONS]:
        marks = (
            Text("found", style="green") if mode in each.found_by else Text("missed", style="red")
            for mode in MODES
        )
        table.add_row(Text(each.question.text), *marks)
    console.print(table)
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
def _bar(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
