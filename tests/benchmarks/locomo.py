"""Measure recall on LoCoMo conversations: ``python tests/benchmarks/locomo.py FOLDER``.

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

With ``--server`` everything goes through a Chroma server that is started for it on this machine.

With ``--save FILE`` the outcome of every question is kept; with ``--against FILE`` the differences to it are printed, with
the interval of paired resamples.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aiochroma import AsyncHttpClient, Memory, StoreUnavailableError
from aiochroma.embedding.hashed import HashedEmbedder
from aiochroma.embedding.minilm import MiniLmEmbedder
from aiochroma.embedding.wordllama import WordLlamaEmbedder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from aiochroma.records.spec import Mode

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
MODES: tuple[Mode, ...] = ("text", "vector", "hybrid")
CANDIDATES = 100
"""So many turns are asked for to see ten sessions."""
RESAMPLES = 2000
OFF_TOPIC = Path(__file__).with_name("off_topic.txt")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    id: str
    session: int
    position: int
    text: str
    created_at: datetime


@dataclass(frozen=True)
class Question:
    """One question and the turns that answer it."""

    text: str
    category: int
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """One conversation with the questions about it."""

    name: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]


@dataclass
class Measured:
    """Recall of one question by turn at 5 and 10, by session at 10; the best score, and the time it took."""

    conversation: str
    question: str
    category: int
    turns_5: float
    turns_10: float
    sessions_10: float
    certain_turns_10: float
    score: float
    milliseconds: float


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


def load(folder: Path) -> list[Conversation]:
    """Read the conversations of a folder."""
    return [
        _conversation(path.stem, json.loads(path.read_text("utf-8")))
        for path in sorted(folder.glob("*.json"))
    ]


def _conversation(name: str, content: dict[str, Any]) -> Conversation:
    numbers = sorted(int(match[1]) for key in content if (match := re.fullmatch(r"session_(\d+)", key)))
    turns = []
    for number in numbers:
        begun = _moment(content[f"session_{number}_date_time"])
        for position, turn in enumerate(content[f"session_{number}"]):
            caption = f" [{turn['blip_caption']}]" if turn.get("blip_caption") else ""
            turns.append(
                Turn(
                    turn["dia_id"],
                    number,
                    position,
                    f"{turn['speaker']}: {turn['text']}{caption}",
                    begun + timedelta(seconds=position),
                )
            )
    questions = [
        Question(entry["question"], entry["category"], _evidence(entry["evidence"]))
        for entry in content["qa"]
        if entry["evidence"]
    ]
    return Conversation(name, tuple(turns), tuple(questions))


def _moment(text: str) -> datetime:
    """Read the date of a session, such as ``11:01 am on 17 December, 2022``."""
    return datetime.strptime(text, "%I:%M %p on %d %B, %Y").replace(tzinfo=timezone.utc)


def _evidence(entries: Iterable[str]) -> tuple[str, ...]:
    """Return the turns that entries name; one that names none stands for itself, and can only be missed."""
    turns: list[str] = []
    for entry in entries:
        named = re.findall(r"D:?(\d+):(\d+)", entry)
        turns += [f"D{int(session)}:{int(turn)}" for session, turn in named] or [entry]
    return tuple(dict.fromkeys(turns))


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
        async with await AsyncHttpClient("127.0.0.1", port) as client:
            while True:
                with contextlib.suppress(StoreUnavailableError):
                    await client.heartbeat()
                    break
            async with Memory(client=client, embedder=embedder) as memory:
                yield memory
    finally:
        process.terminate()
        await process.wait()


async def measure(
    conversations: Iterable[Conversation],
    embedder: Any,
    modes: Sequence[Mode],
    *,
    threads: bool,
    server: bool,
) -> dict[Mode, list[Measured]]:
    """Remember each conversation in a namespace of its own, and ask all questions in each mode."""
    measured: dict[Mode, list[Measured]] = {mode: [] for mode in modes}
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
                    measured[mode] += await ask(memory, conversation, mode)
    return measured


async def ask(memory: Memory, conversation: Conversation, mode: Mode) -> list[Measured]:
    """Ask all questions about a conversation, and those about other things, one after the other."""
    session_of = {turn.id: turn.session for turn in conversation.turns}
    measured = []
    off_topic = [Question(line, 0, ()) for line in OFF_TOPIC.read_text("utf-8").splitlines()]
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
        # Evidence that names no turn of the conversation can never be found, and counts as missed by turn.
        wanted_sessions = {session_of[turn] for turn in question.evidence if turn in session_of}
        measured.append(
            Measured(
                conversation.name,
                question.text,
                question.category,
                _share(question.evidence, found[:5]),
                _share(question.evidence, found[:10]),
                _share(wanted_sessions, sessions),
                _share(question.evidence, [hit.id for hit in certain])
                if question.category
                else float(not certain),
                turns[0].score if turns else 0.0,
                milliseconds,
            )
        )
    return measured


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
    print(f"\n{title}: {statistics.median(times):.2f} ms per recall (p99 {late:.2f})")
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
    print(_row("categories 1 to 4", [one for one in asked if one.category != 5]))
    groups: dict[str, list[Measured]] = defaultdict(list)
    for one in asked:
        groups[f"{one.category} {CATEGORIES[one.category]}"].append(one)
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
    parser.add_argument("--server", action="store_true", help="through a Chroma server on this machine")
    parser.add_argument("--save", type=Path, help="a file for the outcome of every question")
    parser.add_argument("--against", type=Path, help="such a file, to compare with")
    options = parser.parse_args(arguments)
    conversations = load(options.folder) if options.folder.is_dir() else []
    if not conversations:
        print(f"No conversations in {options.folder}: the data are not part of this project (see --help).")
        return 2
    embedders = {name: EMBEDDERS[name]() for name in options.embedder}
    if options.model is not None:
        embedders[options.model.name] = SentenceModel(options.model)
    before = json.loads(options.against.read_text("utf-8")) if options.against else {}
    outcome: dict[str, list[Measured]] = {}
    for name, embedder in embedders.items():
        for threads in options.threads:
            ran = asyncio.run(
                measure(
                    conversations, embedder, options.mode, threads=threads == "yes", server=options.server
                )
            )
            for mode, measured in ran.items():
                title = f"{name}, {mode}, {'sessions as threads' if threads == 'yes' else 'no threads'}"
                then = [Measured(**one) for one in before[title]] if title in before else None
                report(measured, title, then)
                outcome[title] = measured
    if options.save:
        kept = {title: [asdict(one) for one in measured] for title, measured in outcome.items()}
        options.save.write_text(json.dumps(kept), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
