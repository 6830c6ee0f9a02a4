"""Readers of conversations with questions and their evidence. The data are not part of this project.

LoCoMo (one JSON file for each conversation, or the list that is published), REALTALK (the same form, with a time for each
message) and BEAM (a folder for each chat, with ``chat.json`` and ``probing_questions/probing_questions.json``).
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

CATEGORIES = {1: "1 multi-hop", 2: "2 temporal", 3: "3 open-domain", 4: "4 single-hop", 5: "5 adversarial"}
ADVERSARIAL = CATEGORIES[5]
_INDEX_OF_BEAM = re.compile(r"\s*->->\s*[\d,]+\s*$")


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
    """One question and the turns that answer it; no category for one about something else."""

    text: str
    category: str
    evidence: tuple[str, ...]
    corrected: tuple[str, ...] | None = None
    """The evidence according to an audit, where that was read."""


@dataclass(frozen=True)
class Conversation:
    """One conversation with the questions about it."""

    name: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]


def load(folder: Path) -> list[Conversation]:
    """Read the conversations of a folder, or of a file, in any of the forms."""
    chats = sorted(folder.glob("*/chat.json"), key=lambda path: (len(path.parent.name), path.parent.name))
    if chats:
        return [_beam(path.parent) for path in chats]
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else [folder]:
        content = json.loads(path.read_text("utf-8"))
        for one in content if isinstance(content, list) else [content]:
            name = str(one.get("sample_id", path.stem)).removeprefix("conv-")
            found.append(_conversation(name, one.get("conversation", one), one["qa"]))
    return found


def with_audit(conversations: Iterable[Conversation], file: Path) -> list[Conversation]:
    """Give the questions the evidence as corrected by an audit: a list of errors with cited and correct evidence."""
    corrected = {
        (entry["question"], _evidence(entry["cited_evidence"])): _evidence(entry["correct_evidence"])
        for entry in json.loads(file.read_text("utf-8"))
        if entry["correct_evidence"]
    }
    return [
        replace(
            conversation,
            questions=tuple(
                replace(
                    question, corrected=corrected.get((question.text, question.evidence), question.evidence)
                )
                for question in conversation.questions
            ),
        )
        for conversation in conversations
    ]


def mempalace(file: Path) -> dict[tuple[str, str, tuple[str, ...]], list[int]]:
    """Read MemPalace's published results: the sessions that it found for each question, best first."""
    return {
        (entry["sample_id"].removeprefix("conv-"), entry["question"], _evidence(entry["evidence"])): [
            int(session.removeprefix("session_")) for session in entry["retrieved_ids"]
        ]
        for entry in json.loads(file.read_text("utf-8"))
    }


def _conversation(name: str, content: Mapping[str, Any], questions: Iterable[dict[str, Any]]) -> Conversation:
    numbers = sorted(int(match[1]) for key in content if (match := re.fullmatch(r"session_(\d+)", key)))
    turns = []
    for number in numbers:
        begun = _moment(content[f"session_{number}_date_time"])
        for position, turn in enumerate(content[f"session_{number}"]):
            caption = f" [{turn['blip_caption']}]" if turn.get("blip_caption") else ""
            said = turn["text"] if "text" in turn else turn["clean_text"]
            made = _moment(turn["date_time"]) if "date_time" in turn else begun
            turns.append(
                Turn(
                    turn["dia_id"],
                    number,
                    position,
                    f"{turn['speaker']}: {said}{caption}",
                    made + timedelta(milliseconds=position)
                    if "date_time" in turn
                    else made + timedelta(seconds=position),
                )
            )
    return Conversation(
        name,
        tuple(turns),
        tuple(
            Question(entry["question"], CATEGORIES[entry["category"]], _evidence(entry["evidence"]))
            for entry in questions
            if entry["evidence"]
        ),
    )


def _moment(text: str) -> datetime:
    """Read a date such as ``11:01 am on 17 December, 2022`` or ``29.12.2023, 22:42:04``."""
    form = "%d.%m.%Y, %H:%M:%S" if text[:1].isdigit() and "." in text else "%I:%M %p on %d %B, %Y"
    return datetime.strptime(text, form).replace(tzinfo=timezone.utc)


def _evidence(entries: Iterable[str]) -> tuple[str, ...]:
    """Return the turns that entries name; one that names none stands for itself, and can only be missed."""
    turns: list[str] = []
    for entry in entries:
        named = re.findall(r"D:?(\d+):(\d+)", entry)
        turns += [f"D{int(session)}:{int(turn)}" for session, turn in named] or [entry]
    return tuple(dict.fromkeys(turns))


def _beam(folder: Path) -> Conversation:
    turns: list[Turn] = []
    anchor = datetime(2024, 1, 1, tzinfo=timezone.utc)
    for batch in json.loads((folder / "chat.json").read_text("utf-8")):
        for position, message in enumerate(message for turn in batch["turns"] for message in turn):
            with contextlib.suppress(ValueError):
                stated = datetime.strptime(message.get("time_anchor") or "", "%B-%d-%Y")
                anchor = max(anchor, stated.replace(tzinfo=timezone.utc))
            said = _INDEX_OF_BEAM.sub("", message["content"])
            turns.append(
                Turn(
                    str(message["id"]),
                    batch["batch_number"],
                    position,
                    f"{message['role']}: {said}",
                    anchor + timedelta(seconds=len(turns)),
                )
            )
    probing = json.loads((folder / "probing_questions" / "probing_questions.json").read_text("utf-8"))
    return Conversation(
        folder.name,
        tuple(turns),
        tuple(
            Question(entry["question"], category, evidence)
            for category, entries in probing.items()
            for entry in entries
            if (evidence := tuple(dict.fromkeys(map(str, _numbers(entry.get("source_chat_ids"))))))
        ),
    )


def _numbers(value: object) -> Iterator[int]:
    """Return the numbers in lists and mappings."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, (list, dict)):
        inside: Sequence[object] = list(value.values()) if isinstance(value, dict) else value
        for one in inside:
            yield from _numbers(one)
