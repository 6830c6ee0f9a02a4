"""Act two: names, codes and numbers, and what was asked in other words. What finds the answer: vectors, words, or both?

A shop's notes about its customers are as alike as such notes are: what tells them apart is a name, a code or a number. The
assistant's sentences beside them are asked for in other words than their own.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aiochroma.demo import NAMESPACES, Question, read_corpus, read_questions
from aiochroma.memory.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MODES", "Answered", "ask_in_every_mode", "make_notes"]

Mode = Literal["vector", "text", "hybrid"]

MODES: tuple[Mode, ...] = ("vector", "text", "hybrid")

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
