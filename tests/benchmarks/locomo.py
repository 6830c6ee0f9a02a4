"""Measure recall on conversations: ``python tests/benchmarks/locomo.py FOLDER``.

LoCoMo (Maharana et al., "Evaluating Very Long-Term Conversational Memory of LLM Agents", ACL 2024; CC BY-NC
4.0) is not part of this project. FOLDER holds its conversations, one JSON file each.

Every turn is remembered as ``"{speaker}: {text} [{blip_caption}]"`` with the date of its session as ``created_at``, each
conversation in a namespace. Every question that has evidence is asked with default settings, once with each session as a
thread and once without threads. Recall@k by turn is the mean over questions of (evidence turns among the first k) /
(evidence turns); by session the same with the sessions of the evidence, ranked by their best turn. Evidence is read as it
is meant: a few entries of the data name two turns at once (``D8:6; D9:17``), or are misspelled (``D:11:26`` for
``D11:26``). Intervals are those of 95 % of resampled sets of questions.

Whether it knows that there is nothing is measured with 100 questions about other things (``off_topic.txt``, written before
any formula was tuned): how many of them come back empty with ``min_score="auto"``, and what that costs in evidence.

With ``--server`` everything is asked a second time through a Chroma server that is started for it on this machine, and compared:
what is found, question by question, and the time.

With ``--audit FILE`` recall is shown for the evidence as corrected by the public audit of LoCoMo as well (``errors.json`` of the
repository dial481/locomo-audit). With ``--mempalace FILE`` sessions are compared with those that MemPalace published for the same
questions (``results_locomo_*_session_top10_*.json`` in its repository): it ranks whole sessions, here one ranks by its best turn.

FOLDER may also hold conversations of REALTALK (``data`` of the repository danny911kr/REALTALK) or of BEAM (``chats/100K`` of
mohammadtavakoli78/BEAM), whose batches are sessions; their own groups of questions are shown.

With ``--save FILE`` the outcome of every question is kept; with ``--against FILE`` the differences to it are printed, with
the interval of paired resamples.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from _conversations import ADVERSARIAL, Conversation, Question, load, mempalace, with_audit

from aiochroma import AsyncClient, AsyncHttpClient, Memory, StoreUnavailableError
from aiochroma.embedding.minilm import MiniLmEmbedder
from aiochroma.embedding.words import HashedEmbedder, WordLlamaEmbedder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from aiochroma.records.spec import SearchMode

MODES: tuple[SearchMode, ...] = ("text", "vector", "hybrid")
CANDIDATES = 100
"""So many turns are asked for to see ten sessions."""
RESAMPLES = 2000
Published: TypeAlias = "Mapping[tuple[str, str, tuple[str, ...]], list[int]]"
"""For questions (conversation, text, evidence) the sessions that another memory found, best first."""
OFF_TOPIC = Path(__file__).with_name("off_topic.txt")


@dataclass
class Measured:
    """Recall of one question by turn at 5 and 10, by session at 10; the best score, and the time it took."""

    conversation: str
    question: str
    category: str
    turns_5: float
    turns_10: float
    sessions_10: float
    certain_turns_10: float
    score: float
    milliseconds: float
    corrected: tuple[float, float, float] | None = None
    """Turns at 5, at 10 and sessions at 10 with the evidence as corrected."""
    published: float | None = None
    """Sessions at 10 of a published result."""


class SentenceModel:
    """A model of sentence-transformers from a folder; never needed by the library."""

    max_distance = 0.7

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(folder))
        self.identity = f"sentence-transformers:{folder.name}"
        self.dimensions = int(self._model.get_sentence_embedding_dimension())
        self.window = int(self._model.max_seq_length)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has, those that the model adds included."""
        return len(self._model.tokenizer.encode(text, truncation=False))

    def embed(self, texts: Sequence[str]) -> Any:
        """Embed texts."""
        return self._model.encode(list(texts), normalize_embeddings=True)


EMBEDDERS: dict[str, Callable[[], Any]] = {
    "wordllama": WordLlamaEmbedder,
    "hashed": HashedEmbedder,
    "minilm": MiniLmEmbedder,
}


@contextlib.asynccontextmanager
async def opened(folder: Path, embedder: Any, *, server: bool) -> AsyncIterator[Memory]:
    """Open a memory in a folder, or on a server that keeps its database there."""
    if not server:
        async with Memory(folder, embedder=embedder) as memory:
            yield memory
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    program = str(Path(sys.executable).with_name("chroma"))
    process = await asyncio.create_subprocess_exec(
        program, "run", "--path", str(folder), "--port", str(port), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        client: AsyncClient | None = None
        while client is None:
            with contextlib.suppress(StoreUnavailableError):
                client = await AsyncHttpClient("127.0.0.1", port)
        async with client, Memory(client=client, embedder=embedder) as memory:
            yield memory
    finally:
        process.terminate()
        await process.wait()


async def measure(
    conversations: Iterable[Conversation],
    embedder: Any,
    modes: Sequence[SearchMode],
    *,
    threads: bool,
    server: bool,
    published: Published,
) -> dict[SearchMode, list[Measured]]:
    """Remember each conversation in a namespace of its own, and ask all questions in each mode."""
    measured: dict[SearchMode, list[Measured]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder), embedder, server=server) as memory:
            for conversation in conversations:
                items = []
                for turn in conversation.turns:
                    item = {"text": turn.text, "id": turn.id, "created_at": turn.created_at}
                    if threads:
                        item |= {"thread": f"session {turn.session}", "position": turn.position}
                    items.append(item)
                await memory.remember_many(items, namespace=conversation.name)
                for mode in modes:
                    measured[mode] += await ask(memory, conversation, mode, published)
    return measured


async def ask(
    memory: Memory, conversation: Conversation, mode: SearchMode, published: Published
) -> list[Measured]:
    """Ask all questions about a conversation, and those about other things, one after the other."""
    session_of = {turn.id: turn.session for turn in conversation.turns}
    measured = []
    off_topic = [Question(line, "", ()) for line in OFF_TOPIC.read_text("utf-8").splitlines()]
    for question in (*conversation.questions, *off_topic):
        start = time.perf_counter()
        turns = await memory.recall(question.text, namespaces=conversation.name, k=10, mode=mode)
        milliseconds = (time.perf_counter() - start) * 1000
        found = [hit.id for hit in turns]
        certain = turns
        if mode == "hybrid":
            certain = await memory.recall(
                question.text, namespaces=conversation.name, k=10, mode=mode, min_score="auto"
            )
        sessions: list[int] = []
        if question.category:
            more = await memory.recall(question.text, namespaces=conversation.name, k=CANDIDATES, mode=mode)
            sessions = list(dict.fromkeys(session_of[hit.id] for hit in more))[:10]

        def shares(
            evidence: tuple[str, ...], found: list[str] = found, sessions: list[int] = sessions
        ) -> tuple[float, float, float]:
            # Evidence that names no turn of the conversation can never be found, and counts as missed by turn.
            of = {session_of[turn] for turn in evidence if turn in session_of}
            return _share(evidence, found[:5]), _share(evidence, found[:10]), _share(of, sessions)

        theirs = published.get((conversation.name, question.text, question.evidence))
        answering = {session_of[turn] for turn in question.evidence if turn in session_of}
        measured.append(
            Measured(
                conversation.name,
                question.text,
                question.category,
                *shares(question.evidence),
                _share(question.evidence, [hit.id for hit in certain])
                if question.category
                else float(not certain),
                turns[0].score if turns else 0.0,
                milliseconds,
                None if question.corrected is None else shares(question.corrected),
                None if theirs is None else _share(answering, theirs[:10]),
            )
        )
    return measured


def _median_time(measured: Sequence[Measured]) -> float:
    return statistics.median(one.milliseconds for one in measured)


def _share(wanted: Iterable[object], found: Sequence[object]) -> float:
    wanted = list(wanted)
    return sum(one in found for one in wanted) / len(wanted) if wanted else 0.0


def _values(measured: Sequence[Measured]) -> np.ndarray:
    return 100 * np.array([(one.turns_5, one.turns_10, one.sessions_10) for one in measured])


def _interval(values: np.ndarray) -> str:
    """Return the interval of 95 % of the means of resamples."""
    chance = np.random.default_rng(0)
    means = [values[chance.integers(len(values), size=len(values))].mean(axis=0) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return "  ".join(f"[{a:.1f}, {b:.1f}]" for a, b in zip(low, high, strict=True))


def _row(name: str, measured: Sequence[Measured]) -> str:
    means = _values(measured).mean(axis=0)
    return f"  {name:<22}{len(measured):>6}{means[0]:>9.1f}{means[1]:>9.1f}{means[2]:>12.1f}"


def report(measured: Sequence[Measured], title: str, before: Sequence[Measured] | None) -> None:
    """Print the table of one embedder and mode."""
    times = sorted(one.milliseconds for one in measured)
    late = times[int(0.99 * (len(times) - 1))]
    asked = [one for one in measured if one.category]
    print(f"\n{title}: {_median_time(measured):.2f} ms per recall (p99 {late:.2f})")
    print(f"  {'':<22}{'asked':>6}{'turn@5':>9}{'turn@10':>9}{'session@10':>12}")
    print(_row("all with evidence", asked))
    print(f"  {'95 % of resamples':<28}  {_interval(_values(asked))}")
    if before is not None:
        known = {(one.conversation, one.question, one.category): one for one in before}
        pairs = [(one, known.get((one.conversation, one.question, one.category))) for one in asked]
        both = [(now, then) for now, then in pairs if then is not None]
        change = _values([now for now, _ in both]) - _values([then for _, then in both])
        shown = "  ".join(f"{mean:+.1f}" for mean in change.mean(axis=0))
        print(f"  {'against the other run':<28}  {shown}   {_interval(change)}")
    _report_corrected(asked)
    _report_published(asked)
    if any(one.category == ADVERSARIAL for one in asked):
        print(_row("categories 1 to 4", [one for one in asked if one.category != ADVERSARIAL]))
    groups: dict[str, list[Measured]] = defaultdict(list)
    for one in asked:
        groups[one.category].append(one)
    for one in asked:
        groups[f"conversation {one.conversation}"].append(one)
    for name in sorted(groups):
        print(_row(name, groups[name]))
    others = [one for one in measured if not one.category]
    empty = 100 * statistics.fmean(one.certain_turns_10 for one in others)
    cost = 100 * statistics.fmean(one.turns_10 - one.certain_turns_10 for one in asked)
    if "hybrid" in title:
        print(
            f'  min_score="auto": {empty:.1f} % of {len(others)} other questions come back empty, {cost:.1f} points fewer'
        )


def _report_corrected(asked: Sequence[Measured]) -> None:
    """Print recall of the evidence as corrected, if an audit was read."""
    values = 100 * np.array([one.corrected for one in asked if one.corrected is not None])
    if len(values):
        means = values.mean(axis=0)
        print(
            f"  {'evidence as corrected':<22}{len(values):>6}{means[0]:>9.1f}{means[1]:>9.1f}{means[2]:>12.1f}"
        )
        print(f"  {'95 % of resamples':<28}  {_interval(values)}")


def _report_published(asked: Sequence[Measured]) -> None:
    """Print the published result of another memory on the same questions, if one was read."""
    pairs = [(one.sessions_10, one.published) for one in asked if one.published is not None]
    if pairs:
        values = 100 * np.array(pairs)
        change = values[:, :1] - values[:, 1:]
        print(
            f"  sessions@10 of MemPalace, as published, on {len(pairs)} of these: {values[:, 1].mean():.1f}; here "
            f"{values[:, 0].mean():.1f} ({change.mean():+.1f} {_interval(change)})."
        )
        print("  There sessions are ranked whole, here by their best turn.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(description="Recall on LoCoMo conversations.")
    parser.add_argument("folder", type=Path, help="the folder with the conversations, one JSON file each")
    parser.add_argument("--embedder", choices=list(EMBEDDERS), nargs="+", default=["wordllama", "hashed"])
    parser.add_argument(
        "--model", type=Path, help="a folder with a model of sentence-transformers, measured as well"
    )
    parser.add_argument("--mode", choices=MODES, nargs="+", default=list(MODES))
    parser.add_argument("--threads", choices=("yes", "no"), nargs="+", default=["yes", "no"])
    parser.add_argument("--audit", type=Path, help="errors.json of the audit of LoCoMo")
    parser.add_argument("--mempalace", type=Path, help="published results of MemPalace on LoCoMo")
    parser.add_argument("--server", action="store_true", help="and through a Chroma server on this machine")
    parser.add_argument("--save", type=Path, help="a file for the outcome of every question")
    parser.add_argument("--against", type=Path, help="such a file, to compare with")
    options = parser.parse_args(arguments)
    conversations = load(options.folder) if options.folder.exists() else []
    if not conversations:
        print(f"No conversations in {options.folder}: the data are not part of this project (see --help).")
        return 2
    if options.audit is not None:
        conversations = with_audit(conversations, options.audit)
    published = {} if options.mempalace is None else mempalace(options.mempalace)
    embedders = {name: EMBEDDERS[name]() for name in options.embedder}
    if options.model is not None:
        embedders[options.model.name] = SentenceModel(options.model)
    before = json.loads(options.against.read_text("utf-8")) if options.against else {}
    outcome: dict[str, list[Measured]] = {}
    places = ("", ", on a server") if options.server else ("",)
    for name, threads, place in itertools.product(embedders, options.threads, places):
        ran = asyncio.run(
            measure(
                conversations,
                embedders[name],
                options.mode,
                threads=threads == "yes",
                server=bool(place),
                published=published,
            )
        )
        for mode, measured in ran.items():
            title = f"{name}, {mode}, {'sessions as threads' if threads == 'yes' else 'no threads'}"
            then = [Measured(**one) for one in before[title]] if title in before else None
            report(measured, title + place, outcome[title] if place else then)
            if place:
                ratio = _median_time(measured) / _median_time(outcome[title])
                print(f"  {ratio:.1f} times as long as on a directory")
            outcome[title + place] = measured
    if options.save:
        kept = {title: [asdict(one) for one in measured] for title, measured in outcome.items()}
        options.save.write_text(json.dumps(kept), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
