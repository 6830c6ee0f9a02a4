"""The three acts, one after the other, with what was seen in a sentence each.

A bot answers while records are written, measured in :mod:`aiochroma.demo.silence`. Then names, codes and numbers, and what is
asked in other words: what finds the answer, vectors, words, or both? A shop's notes about its customers are as alike as such
notes are: what tells them apart is a name, a code or a number. The assistant's sentences beside them are asked for in other
words than their own. Last, a process is killed in the middle of writing: what is left afterwards?

Run as ``python -m aiochroma.demo.acts DIRECTORY`` it is the process that is killed: it remembers one text after the other, and
prints the number of each that was acknowledged. With ``count`` behind it, it is the one that joins.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from aiochroma.demo import NAMESPACES, Question, read_corpus, read_questions
from aiochroma.demo.silence import RECORDS, measure_here, measure_threads
from aiochroma.disk.copying import interpreter, package_environment
from aiochroma.memory.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from rich.console import Console

    from aiochroma.demo.silence import Silence
    from aiochroma.records.spec import SearchMode

    _Measure = Callable[[str, Callable[[int], None]], Awaitable[Silence]]

__all__ = [
    "MODES",
    "Answered",
    "Crash",
    "ask_in_every_mode",
    "join_and_count",
    "kill_and_count",
    "make_notes",
    "run_demo",
]


MODES: tuple[SearchMode, ...] = ("vector", "text", "hybrid")

_WRITING_SECONDS = 1.0
_NAMESPACE = "diary"
_WRITERS = 8

_CUSTOMERS = "customers"
_HITS = {**NAMESPACES, _CUSTOMERS: 5}
_QUESTIONS_OF_A_KIND = 10
_SEED = 20_260_301

_FIRST_NAMES = (
    "Adaeze", "Bram", "Chiara", "Dmitri", "Elin", "Farid", "Greta", "Hiro", "Ines", "Jamal",
    "Katya", "Liam", "Mirela", "Nuno", "Oksana", "Pilar", "Quentin", "Rosa", "Sven", "Tomoko",
)  # fmt: skip
_LAST_NAMES = (
    "Abramov", "Bergström", "Castellano", "Dlamini", "Eriksen", "Fujimoto", "Grabowski", "Haddad", "Ivanova", "Jovanović",
    "Kowalczyk", "Lindqvist", "Marchetti", "Nakamura", "Okonkwo", "Petrescu", "Quispe", "Rasmussen", "Szabó", "Thorvaldsen",
    "Ulrich", "Vasquez", "Wachowska", "Xenakis", "Yilmaz", "Zeman", "Achterberg", "Brankov", "Ceylan", "Dvořák",
    "Escobedo", "Fitzgerald", "Giannopoulos", "Horvat", "Iversen", "Janssen", "Kallio", "Laurent", "Mbeki", "Novotny",
    "Oyelaran", "Pavlenko", "Qureshi", "Radić", "Sørensen", "Takahashi", "Urbánek", "Vieira", "Weatherby", "Zielińska",
)  # fmt: skip
_THINGS = (
    "a desk lamp",
    "a wool blanket",
    "a teapot",
    "a pair of boots",
    "a bicycle pump",
    "a chess set",
    "a raincoat",
    "a kettle",
)
_MONTHS = ("January", "February", "March", "April", "May", "June")
_PLACES = ("the shop", "the post office", "the depot by the station", "the kiosk on the square")
_TOPICS = ("a late delivery", "a missing part", "the wrong colour", "a refund", "another address")


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
    with (
        _bar(console, "acknowledged") as acknowledged,
        tempfile.TemporaryDirectory(prefix="aiochroma-demo-") as directory,
    ):
        crash = await kill_and_count(directory, _WRITING_SECONDS, lambda number: acknowledged(number, None))
        joined = None if sys.platform == "win32" else await join_and_count(directory)
    _print_crash(console, crash, joined)


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


def _print_crash(console: Console, crash: Crash, joined: int | None) -> None:
    lost = crash.acknowledged - crash.found
    said = Text(
        f"The process was killed when {crash.acknowledged:,} texts had been acknowledged; opened again, {crash.found:,} of them "
        "are there, "
    ).append(f"{lost} lost", style="bold green" if lost == 0 else "bold red")
    if joined is None:
        console.print(said.append("."))
        return
    said.append(f"; a second process joined while this one had the memory open, and counted {joined:,}")
    if joined > crash.found:
        said.append(f", with {joined - crash.found:,} that were written but not yet acknowledged")
    elif joined < crash.found:
        said.append(", which is not all of them", style="bold red")
    console.print(said.append("."))


def _title(console: Console, number: int, text: str) -> None:
    console.print(Text(f"\n{number}. ", style="bold cyan").append(text, style="bold"))


def _milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


@contextmanager
def _bar(console: Console, what: str) -> Iterator[Callable[[int, int | None], None]]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


# -- act two -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A question, and what kind of question it is.

    Attributes:
        kind: What it is about, as the table says it.
        question: The question with the text that answers it.
    """

    kind: str
    question: Question


@dataclass(frozen=True)
class Answered:
    """A question that was asked, and in which modes its answer was found.

    Attributes:
        asked: The question.
        found_by: The modes in which the text that answers it was among the hits.
    """

    asked: Asked
    found_by: frozenset[str]


def make_notes() -> tuple[list[str], list[Asked]]:
    """Make the shop's notes, four of each customer, and questions about some of them; the same at every call."""
    chosen = random.Random(_SEED)  # noqa: S311 - not for secrets
    numbers = chosen.sample(range(100), len(_LAST_NAMES))
    codes = chosen.sample(range(10_000, 100_000), 3 * len(_LAST_NAMES))
    notes: list[str] = []
    asked: list[Asked] = []
    for number, last in enumerate(_LAST_NAMES):
        name = f"{chosen.choice(_FIRST_NAMES)} {last}"
        day = f"{chosen.randint(1, 28)} {chosen.choice(_MONTHS)}"
        order, parcel, invoice = (f"{kind}-{codes.pop()}" for kind in ("KL", "RX", "INV"))
        phone = f"555-01{numbers[number]:02}"
        ordered = f"{name} ordered {chosen.choice(_THINGS)} on {day}; the order number is {order}."
        waiting = f"Parcel {parcel} for {name} is waiting at {chosen.choice(_PLACES)}."
        called = f"{name} called from {phone} about {chosen.choice(_TOPICS)}."
        paid = f"Invoice {invoice} over {chosen.randint(20, 400)} euros was paid by {name}."
        notes += [ordered, waiting, called, paid]
        if number < _QUESTIONS_OF_A_KIND:
            asked += [
                Asked("a name", Question(f"What did {last} order?", _CUSTOMERS, ordered)),
                Asked("a code", Question(f"Where is {parcel}?", _CUSTOMERS, waiting)),
                Asked("a number", Question(f"Who called from {phone}?", _CUSTOMERS, called)),
            ]
    return notes, asked


async def ask_in_every_mode(
    directory: str, progress: Callable[[int, int], None]
) -> tuple[list[Answered], str]:
    """Load the memory, ask every question in every mode, and say who found what.

    Args:
        directory: An empty directory.
        progress: Called with the number of questions that have been asked, and of how many.

    Returns:
        The questions with the modes that answered them, and the embedder's identity.
    """
    notes, asked = make_notes()
    asked += [Asked("something, in other words", question) for question in read_questions()]
    texts = {name: [sentence.text for sentence in sentences] for name, sentences in read_corpus().items()}
    done = 0
    async with Memory(directory) as memory:
        for namespace, of_namespace in {**texts, _CUSTOMERS: notes}.items():
            # Facts in no particular order: none lends relevance to the one that happens to stand beside it.
            await memory.remember_many(of_namespace, namespace=namespace, thread=False)

        async def ask(each: Asked) -> Answered:
            nonlocal done
            found_by = set()
            for mode in MODES:
                hits = await memory.recall(each.question.text, namespaces=_HITS, mode=mode)
                if each.question.answer in [hit.text for hit in hits]:
                    found_by.add(mode)
            done += 1
            progress(done, len(asked))
            return Answered(each, frozenset(found_by))

        answered = await asyncio.gather(*map(ask, asked))
        return answered, str(memory.stats().embedder)


# -- act three ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crash:
    """What was counted.

    Attributes:
        acknowledged: How many texts the killed process had been told are safe.
        found: How many of these are there after opening again.
        seconds: How long opening again and counting took.
    """

    acknowledged: int
    found: int
    seconds: float


async def kill_and_count(directory: str, seconds: float, progress: Callable[[int], None]) -> Crash:
    """Let a process remember for so long, kill it with SIGKILL, open its directory here, and count.

    Args:
        directory: An empty directory.
        seconds: How long it writes, from its first acknowledged text on.
        progress: Called with the number of texts that have been acknowledged, on another thread.
    """
    acknowledged = await asyncio.to_thread(_write_and_kill, directory, seconds, progress)
    begun = time.perf_counter()
    async with Memory(directory) as memory:
        hits = await asyncio.gather(
            *(memory.get(_id(number), namespace=_NAMESPACE) for number in acknowledged)
        )
    found = sum(
        hit is not None and hit.text == _text(number) for number, hit in zip(acknowledged, hits, strict=True)
    )
    return Crash(len(acknowledged), found, time.perf_counter() - begun)


async def join_and_count(directory: str) -> int:
    """Hold the memory open in this process, let another one join, and return how many texts that one counts."""
    async with Memory(directory, process="shared") as memory:
        await memory.count(_NAMESPACE)
        command = [*interpreter(), "-m", "aiochroma.demo.acts", directory, "count"]
        child = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, env=package_environment()
        )
        said, _ = await child.communicate()
        return int(said)


def _write_and_kill(directory: str, seconds: float, progress: Callable[[int], None]) -> list[int]:
    command = [*interpreter(), "-m", "aiochroma.demo.acts", directory]
    environment = package_environment()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:  # noqa: S603 - ourselves
        assert process.stdout is not None
        acknowledged = []
        until = None
        for line in process.stdout:
            acknowledged.append(int(line))
            progress(len(acknowledged))
            if until is None:
                until = time.monotonic() + seconds
            if time.monotonic() > until:
                break
        process.kill()
        # What it had said before it died counts as well; a half-written line does not.
        acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
    return acknowledged


def _id(number: int) -> str:
    return f"entry-{number}"


def _text(number: int) -> str:
    return f"On day {number} I wrote entry {number} of this diary."


async def _write(directory: str) -> None:
    """Remember with a few writers at once, for ever; print what is acknowledged."""
    async with Memory(directory) as memory:

        async def writer(start: int) -> None:
            number = start
            while True:
                await memory.remember(_text(number), id=_id(number), namespace=_NAMESPACE)
                print(number, flush=True)
                number += _WRITERS

        await asyncio.gather(*(writer(number) for number in range(_WRITERS)))


async def _count(directory: str) -> None:
    async with Memory(directory, process="shared") as memory:
        print(await memory.count(_NAMESPACE))


if __name__ == "__main__":
    asyncio.run(_count(sys.argv[1]) if sys.argv[2:] == ["count"] else _write(sys.argv[1]))
