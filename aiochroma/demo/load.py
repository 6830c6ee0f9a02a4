"""The load: many tasks ask, one remembers, one watches the event loop."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiochroma.demo.corpus import Sentence

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Mapping, Sequence

    from aiochroma.demo.corpus import Question
    from aiochroma.demo.stores import Answer, Store

__all__ = ["Measurement", "Verdict", "judge", "percentile", "run_load"]

CONVERSATION = "conversation"
"""Where new messages go: a namespace that is not searched, so that every answer stays what it was."""

_TICK_SECONDS = 0.001


@dataclass(frozen=True)
class Verdict:
    """Whether the expected sentence was the first hit, and whether it was among the hits."""

    first: bool
    among: bool


@dataclass
class Measurement:
    """What one store did under the load; all times in seconds.

    Attributes:
        name: The store.
        load_seconds: How long it took to write the corpus.
        seconds: How long the load ran.
        asked: The time of each answered question.
        remembered: The time of each remembered text.
        stalls: By how much each tick of the event loop came late.
        verdicts: For each question that was asked: right at all times?
        failures: What failed, in order.
    """

    name: str
    load_seconds: float = 0.0
    seconds: float = 0.0
    asked: list[float] = field(default_factory=list)
    remembered: list[float] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which that share lies (nearest rank); NaN where there are no values."""
    if not values:
        return float("nan")
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def judge(question: Question, answers: Sequence[Answer]) -> Verdict:
    """Look for the expected sentence."""
    texts = [answer.text for answer in answers]
    return Verdict(texts[:1] == [question.answer], question.answer in texts)


async def run_load(
    store: Store,
    corpus: Mapping[str, Sequence[Sentence]],
    questions: Sequence[Question],
    seconds: float,
    tasks: int,
    load_seconds: float,
) -> Measurement:
    """Let a number of tasks ask for a time, each as soon as it has its answer, while another keeps remembering."""
    measurement = Measurement(store.name, load_seconds)
    begun = time.perf_counter()
    until = begun + seconds
    ticker = asyncio.create_task(_watch(measurement))
    try:
        await asyncio.gather(
            _remember(store, corpus, questions, until, measurement),
            *(_ask(store, questions, task * 7, until, measurement) for task in range(tasks)),
        )
    finally:
        ticker.cancel()
    measurement.seconds = time.perf_counter() - begun
    return measurement


async def _ask(
    store: Store, questions: Sequence[Question], start: int, until: float, measurement: Measurement
) -> None:
    for position in itertools.count(start):
        if time.perf_counter() >= until:
            return
        question = questions[position % len(questions)]
        answers = await _timed(store.ask(question.text), measurement.asked, measurement)
        if answers is not None:
            verdict = judge(question, answers)
            before = measurement.verdicts.get(question.text, verdict)
            measurement.verdicts[question.text] = Verdict(
                verdict.first and before.first, verdict.among and before.among
            )


async def _remember(
    store: Store,
    corpus: Mapping[str, Sequence[Sentence]],
    questions: Sequence[Question],
    until: float,
    measurement: Measurement,
) -> None:
    for namespace, sentence in _things_to_remember(corpus, questions):
        if time.perf_counter() >= until:
            return
        await _timed(store.remember(namespace, sentence), measurement.remembered, measurement)


def _things_to_remember(
    corpus: Mapping[str, Sequence[Sentence]], questions: Sequence[Question]
) -> Iterator[tuple[str, Sentence]]:
    """Alternate for ever between a sentence of a searched namespace, known already, and a new message."""
    # Transposed, so that one namespace follows another.
    known = itertools.cycle(
        (namespace, sentence)
        for row in zip(*([(name, sentence) for sentence in corpus[name]] for name in corpus), strict=False)
        for namespace, sentence in row
    )
    for number in itertools.count(1):
        yield next(known)
        yield CONVERSATION, Sentence(f"Message {number}: {questions[number % len(questions)].text}")


async def _timed(
    work: Awaitable[list[Answer] | None], times: list[float], measurement: Measurement
) -> list[Answer] | None:
    begun = time.perf_counter()
    try:
        result = await work
    except Exception as error:  # noqa: BLE001 - a store that fails under load is a result, and is reported
        measurement.failures.append(error)
        return None
    times.append(time.perf_counter() - begun)
    return result


async def _watch(measurement: Measurement) -> None:
    """Note by how much a short sleep lasts longer than asked: for that long the loop was blocked."""
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(_TICK_SECONDS)
        measurement.stalls.append(max(0.0, time.perf_counter() - begun - _TICK_SECONDS))
