"""Act two: names, codes and numbers. What do words find that vectors miss, and the other way round?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aiochroma.demo.corpus import NAMESPACES, read_corpus, read_questions
from aiochroma.memory.memory import Memory

if TYPE_CHECKING:
    from aiochroma.demo.corpus import Question

__all__ = ["MODES", "Answered", "ask_in_every_mode"]

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
