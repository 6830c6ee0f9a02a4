"""``aiochroma demo --table``: one assistant's memory under load, beside plain chromadb in threads.

Many tasks ask, one remembers, one watches the event loop: first of a :class:`~aiochroma.Memory`, then of plain chromadb.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, cast

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from aiochroma.demo import NAMESPACES, Sentence, read_corpus, read_questions
from aiochroma.demo.silence import plain_client, watch_loop
from aiochroma.embedding.choice import default_embedder
from aiochroma.memory.memory import Memory
from aiochroma.records.record import text_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from chromadb import Collection
    from rich.console import Console

    from aiochroma._types import Metadata, Vector
    from aiochroma.demo import Question

__all__ = ["Contender", "Measurement", "Reply", "Verdict", "judge", "percentile", "run_load", "run_table"]

# -- the stores, behind one interface ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """A hit of a question; the score is comparable within one store only."""

    text: str
    namespace: str
    score: float


class Contender(Protocol):
    """What the load needs."""

    name: str

    async def open(self, directory: str) -> None:
        """Open an empty store."""

    async def load(self, namespace: str, sentences: Sequence[Sentence]) -> None:
        """Write many sentences."""

    async def remember(self, namespace: str, sentence: Sentence) -> None:
        """Write one sentence."""

    async def ask(self, question: str) -> list[Reply]:
        """Search the four namespaces; best hit first."""

    async def close(self) -> None:
        """Close it, so that its directory may be removed."""


class _MemoryStore:
    """aiochroma.

    Args:
        mode: ``"hybrid"``, as it is by default: by meaning and by words. ``"vector"``: by meaning alone, as plain chromadb
            searches, although with more candidates for the ranking than the hits asked for.
    """

    def __init__(self, mode: Literal["hybrid", "vector"]) -> None:
        self.name = f"aiochroma, {mode}"
        self.embedder = ""
        self._mode: Literal["hybrid", "vector"] = mode

    async def open(self, directory: str) -> None:
        self._memory = await Memory(directory).open()
        self.embedder = str(self._memory.stats().embedder)

    async def load(self, namespace: str, sentences: Sequence[Sentence]) -> None:
        # Facts in no particular order: none lends relevance to the one that happens to stand beside it.
        items = [
            {"text": sentence.text, "metadata": sentence.metadata, "thread": False} for sentence in sentences
        ]
        await self._memory.remember_many(items, namespace=namespace)

    async def remember(self, namespace: str, sentence: Sentence) -> None:
        await self._memory.remember(sentence.text, namespace=namespace, metadata=sentence.metadata)

    async def ask(self, question: str) -> list[Reply]:
        # A namespace that fails counts as a failed question.
        recall = await self._memory.recall(question, namespaces=NAMESPACES, mode=self._mode)
        for error in recall.errors.values():
            raise error
        return [Reply(hit.text, hit.namespace, hit.score) for hit in recall]

    async def close(self) -> None:
        await self._memory.close()


class _PlainStore:
    """What one writes without this library: chromadb's client, every call in ``asyncio.to_thread``.

    The same embedder, the same collections and the same searches, in the event loop's own executor; a question is embedded
    once and its searches run at the same time. What differs is the way to the database, what goes with it there (aiochroma
    keeps the vectors of texts it met lately, the moment at which a text was first remembered, and a full-text index).
    """

    name = "chromadb, to_thread"

    async def open(self, directory: str) -> None:
        self._embed = (await asyncio.to_thread(default_embedder)).function
        self._client = await asyncio.to_thread(plain_client, directory)
        self._collections: dict[str, Collection] = {}

    async def load(self, namespace: str, sentences: Sequence[Sentence]) -> None:
        collection = await self._collection(namespace)
        await asyncio.to_thread(self._upsert, collection, sentences)

    async def remember(self, namespace: str, sentence: Sentence) -> None:
        collection = await self._collection(namespace)
        await asyncio.to_thread(self._upsert, collection, [sentence])

    async def ask(self, question: str) -> list[Reply]:
        vector = (await asyncio.to_thread(self._embed, [question]))[0]
        found = await asyncio.gather(
            *(self._search(namespace, vector, k) for namespace, k in NAMESPACES.items()),
        )
        return sorted((answer for answers in found for answer in answers), key=lambda answer: -answer.score)

    async def close(self) -> None:
        await asyncio.to_thread(self._client.close)

    async def _search(self, namespace: str, vector: Vector, k: int) -> list[Reply]:
        result = await asyncio.to_thread(
            self._collections[namespace].query,
            query_embeddings=vector[None],
            n_results=k,
            include=["documents", "metadatas", "distances"],
        )
        assert result["documents"] is not None
        assert result["distances"] is not None
        pairs = zip(result["documents"][0], result["distances"][0], strict=True)
        return [Reply(text, namespace, 1.0 - distance) for text, distance in pairs]

    async def _collection(self, namespace: str) -> Collection:
        if namespace not in self._collections:
            self._collections[namespace] = await asyncio.to_thread(
                self._client.get_or_create_collection,
                namespace,
                configuration={"hnsw": {"space": "cosine"}},
                embedding_function=None,
            )
        return self._collections[namespace]

    def _upsert(self, collection: Collection, sentences: Sequence[Sentence]) -> None:
        texts = [sentence.text for sentence in sentences]
        collection.upsert(
            ids=[text_id(text) for text in texts],
            embeddings=list(self._embed(texts)),
            documents=texts,
            metadatas=[sentence.metadata or cast("Metadata", None) for sentence in sentences],
        )


# -- the load --------------------------------------------------------------------------------------------------------

CONVERSATION = "conversation"
"""Where new messages go: a namespace that is not searched, so that every answer stays what it was."""


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


def judge(question: Question, answers: Sequence[Reply]) -> Verdict:
    """Look for the expected sentence."""
    texts = [answer.text for answer in answers]
    return Verdict(texts[:1] == [question.answer], question.answer in texts)


async def run_load(
    store: Contender,
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
    ticker = asyncio.create_task(watch_loop(measurement.stalls.append))
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
    store: Contender, questions: Sequence[Question], start: int, until: float, measurement: Measurement
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
    store: Contender,
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
    work: Awaitable[list[Reply] | None], times: list[float], measurement: Measurement
) -> list[Reply] | None:
    begun = time.perf_counter()
    try:
        result = await work
    except Exception as error:  # noqa: BLE001 - a store that fails under load is a result, and is reported
        measurement.failures.append(error)
        return None
    times.append(time.perf_counter() - begun)
    return result


# -- running and printing it -------------------------------------------------------------------------------------------


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
    hybrid = _MemoryStore("hybrid")
    stores: list[Contender] = [hybrid, _MemoryStore("vector"), _PlainStore()]
    _print_opening(console, corpus, len(questions), seconds, tasks)
    # One after the other, each alone in the process: they would take the processor from each other.
    measured = [await _measured(console, store, seconds, tasks, samples=store is hybrid) for store in stores]
    _print_comparison(console, measured, hybrid.embedder)


async def _measured(
    console: Console, store: Contender, seconds: float, tasks: int, *, samples: bool
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
                _print_samples(
                    console, [(question, hits, judge(question, hits)) for question, hits in answers]
                )
            console.print(f"{tasks} tasks ask {store.name} for {seconds:g} s ...", style="dim")
            return await run_load(store, corpus, questions, seconds, tasks, loaded)
        finally:
            await store.close()


_SAMPLE_EVERY = 5


def _print_opening(
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


def _print_samples(console: Console, answers: Sequence[tuple[Question, Sequence[Reply], Verdict]]) -> None:
    """Print every fifth question with its best hit, right or wrong."""
    table = _table("Some answers", "question", "best hit", "namespace", "score", "expected")
    for question, hits, verdict in answers[::_SAMPLE_EVERY]:
        best = hits[0] if hits else None
        outcome = "first hit" if verdict.first else "among hits" if verdict.among else "not found"
        table.add_row(
            Text(question.text),
            Text(best.text if best else ""),
            Text(best.namespace if best else ""),
            Text(f"{best.score:.3f}" if best else ""),
            Text(outcome, style="green" if verdict.first else "yellow" if verdict.among else "red"),
        )
    console.print(table)


def _print_comparison(console: Console, measurements: Sequence[Measurement], embedder: str) -> None:
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
