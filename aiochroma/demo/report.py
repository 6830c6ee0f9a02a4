"""What the demonstration prints."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from aiochroma.demo.corpus import NAMESPACES
from aiochroma.demo.load import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import Console

    from aiochroma.demo.corpus import Question, Sentence
    from aiochroma.demo.load import Measurement, Verdict
    from aiochroma.demo.stores import Answer

__all__ = ["print_comparison", "print_opening", "print_samples"]

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
