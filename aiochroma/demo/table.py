"""``aiochroma demo --table``: one assistant's memory under load, beside plain chromadb in threads.

``stores`` are the contenders behind one interface, ``load`` asks and remembers and measures.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from aiochroma.demo.corpus import NAMESPACES, read_corpus, read_questions
from aiochroma.demo.load import judge, percentile, run_load
from aiochroma.demo.stores import MemoryStore, PlainStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import Console

    from aiochroma.demo.corpus import Question, Sentence
    from aiochroma.demo.load import Measurement, Verdict
    from aiochroma.demo.stores import Answer, Store

__all__ = ["print_comparison", "print_opening", "print_samples", "run_table"]


def run_table(console: Console, *, seconds: float = 3.0, tasks: int = 32) -> None:
    """Run three loads and print what each did; blocks for a few seconds more than the loads take.

    Args:
        console: Where to print.
        seconds: How long each of the three loads runs.
        tasks: How many tasks ask at the same time.
    """
    begun = time.perf_counter()
    asyncio.run(_demonstrate(console, seconds, tasks))
    console.print(
        f"Done in {time.perf_counter() - begun:.1f} s; the temporary directories are gone.", style="dim"
    )


async def _demonstrate(console: Console, seconds: float, tasks: int) -> None:
    corpus, questions = read_corpus(), read_questions()
    hybrid = MemoryStore("hybrid")
    stores: list[Store] = [hybrid, MemoryStore("vector"), PlainStore()]
    print_opening(console, corpus, len(questions), seconds, tasks)
    # One after the other, each alone in the process: they would take the processor from each other.
    measured = [await _measured(console, store, seconds, tasks, samples=store is hybrid) for store in stores]
    print_comparison(console, measured, hybrid.embedder)


async def _measured(
    console: Console, store: Store, seconds: float, tasks: int, *, samples: bool
) -> Measurement:
    corpus, questions = read_corpus(), read_questions()
    with tempfile.TemporaryDirectory(prefix="aiochroma-demo-") as directory:
        await store.open(directory)
        try:
            begun = time.perf_counter()
            for namespace, sentences in corpus.items():
                await store.load(namespace, sentences)
            loaded = time.perf_counter() - begun
            # Everything once before anything is measured: the first use of a collection reads its index.
            answers = [(question, await store.ask(question.text)) for question in questions]
            if samples:
                print_samples(
                    console, [(question, hits, judge(question, hits)) for question, hits in answers]
                )
            console.print(f"{tasks} tasks ask {store.name} for {seconds:g} s ...", style="dim")
            return await run_load(store, corpus, questions, seconds, tasks, loaded)
        finally:
            await store.close()


_SAMPLE_EVERY = 5


def print_opening(
    console: Console, corpus: Mapping[str, Sequence[Sentence]], questions: int, seconds: float, tasks: int
) -> None:
    """Say what is about to happen."""
    sizes = ", ".join(f"{namespace} {len(sentences)}" for namespace, sentences in corpus.items())
    total = sum(len(sentences) for sentences in corpus.values())
    searches = ", ".join(f"{k} from {namespace}" for namespace, k in NAMESPACES.items())
    console.print(
        f"{total} sentences in {len(corpus)} namespaces ({sizes}), {questions} questions. Each question takes the best "
        f"{searches}. {tasks} tasks ask at the same time for {seconds:g} s while another keeps remembering: first by meaning "
        "and by words (hybrid, the default), then by meaning alone (vector), then the latter with plain chromadb in "
        "asyncio.to_thread, with the same embedder."
    )


def print_samples(console: Console, answers: Sequence[tuple[Question, Sequence[Answer], Verdict]]) -> None:
    """Print every fifth question with its best hit, right or wrong."""
    table = _table("Some answers", "question", "best hit", "namespace", "score", "expected")
    for question, hits, verdict in answers[::_SAMPLE_EVERY]:
        best = hits[0] if hits else None
        place = "first hit" if verdict.first else "among hits" if verdict.among else "not found"
        table.add_row(
            Text(question.text),
            Text(best.text if best else ""),
            Text(best.namespace if best else ""),
            Text(f"{best.score:.3f}" if best else ""),
            Text(place, style="green" if verdict.first else "yellow" if verdict.among else "red"),
        )
    console.print(table)


def print_comparison(console: Console, measurements: Sequence[Measurement], embedder: str) -> None:
    """Print what was measured, one column per store."""
    table = _table("Under load", "", *(measured.name.replace(", ", "\n") for measured in measurements))
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for title, value in _ROWS:
        table.add_row(title, *(value(measured) for measured in measurements))
    console.print(table)
    console.print(f"Embedder of both: {embedder}.", soft_wrap=True)
    if embedder.startswith("hashed"):
        console.print(
            "It knows no synonyms; install the extra 'local' for static word vectors.", style="yellow"
        )
    for measured in measurements:
        kinds = Counter(f"{type(failure).__name__}: {failure}" for failure in measured.failures)
        for failure, times in kinds.most_common(3):
            console.print(
                Text(f"{measured.name} failed {times} times with {failure}", style="red"), soft_wrap=True
            )


def _table(title: str, *headers: str) -> Table:
    return Table(*headers, title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)


def _times(values: Sequence[float]) -> str:
    return " / ".join(_milliseconds(percentile(values, share)) for share in (0.5, 0.99))


def _milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _right(measured: Measurement, *, first: bool) -> str:
    right = sum(verdict.first if first else verdict.among for verdict in measured.verdicts.values())
    return f"{right} of {len(measured.verdicts)}"


_ROWS: tuple[tuple[str, Callable[[Measurement], str]], ...] = (
    ("questions per second", lambda measured: f"{len(measured.asked) / measured.seconds:,.0f}"),
    ("question, p50 / p99 (ms)", lambda measured: _times(measured.asked)),
    ("texts remembered per second", lambda measured: f"{len(measured.remembered) / measured.seconds:,.0f}"),
    ("remembering, p50 / p99 (ms)", lambda measured: _times(measured.remembered)),
    ("event loop's worst stall (ms)", lambda measured: _milliseconds(max(measured.stalls, default=0.0))),
    ("event loop's stalls, p50 / p99 (ms)", lambda measured: _times(measured.stalls)),
    ("loading the sentences (ms)", lambda measured: f"{measured.load_seconds * 1000:.0f}"),
    ("failed calls", lambda measured: f"{len(measured.failures):,}"),
    ("answer always the first hit", lambda measured: _right(measured, first=True)),
    ("answer always among the hits", lambda measured: _right(measured, first=False)),
)
