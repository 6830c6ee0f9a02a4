"""``aiochroma demo``: three acts of a few seconds each, everything measured in that run.

``acts`` measures and tells them: a bot answers while records are written (measured in ``silence``); names, codes and numbers; a
process is killed in the middle of writing, and another one joins. ``table`` is the long comparison. Here are the sentences and
questions that ship with the package.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files

from aiochroma._types import JsonObject, Metadata

__all__ = ["NAMESPACES", "Question", "Sentence", "read_corpus", "read_questions"]

NAMESPACES = {"personal": 5, "academic": 2, "projects": 2, "style": 1}
"""How many hits a question takes from each namespace."""


@dataclass(frozen=True)
class Sentence:
    """One thing the assistant remembers."""

    text: str
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A question, and the one sentence that answers it."""

    text: str
    namespace: str
    answer: str


def read_corpus() -> dict[str, list[Sentence]]:
    """Return the sentences of each namespace."""
    sentences: dict[str, list[JsonObject]] = json.loads(_text("corpus.json"))
    return {
        namespace: [Sentence(entry["text"], entry.get("metadata") or {}) for entry in entries]
        for namespace, entries in sentences.items()
    }


def read_questions() -> list[Question]:
    """Return the questions with their answers."""
    return [
        Question(entry["question"], entry["namespace"], entry["answer"])
        for entry in json.loads(_text("questions.json"))
    ]


def _text(name: str) -> str:
    return files("aiochroma.demo").joinpath(name).read_text("utf-8")
