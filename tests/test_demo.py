"""The demonstration: its data is sound, its judgement is fair, and it runs."""

from __future__ import annotations

import asyncio
import io
import math
import re
from collections import Counter

import pytest

pytest.importorskip("rich")

from rich.console import Console

from aiochroma.demo import NAMESPACES, Question, Sentence, read_corpus, read_questions
from aiochroma.demo.acts import make_notes, run_demo
from aiochroma.demo.table import Reply, judge, percentile, run_load, run_table


class FakeStore:
    """Answers from a dictionary, and fails on request."""

    name = "fake"

    def __init__(self, answers, broken=()):
        self.answers, self.broken = answers, broken
        self.written = []

    async def remember(self, namespace, sentence):
        await asyncio.sleep(0)
        self.written.append((namespace, sentence.text))

    async def ask(self, question):
        await asyncio.sleep(0)
        if question in self.broken:
            raise ConnectionError("no answer")
        return self.answers[question]


QUESTIONS = [
    Question("first?", "a", "one"),
    Question("second?", "b", "two"),
    Question("third?", "b", "three"),
]
CORPUS = {"a": [Sentence("one"), Sentence("four")], "b": [Sentence("two"), Sentence("three")]}


def test_every_question_is_answered_by_exactly_one_sentence_of_its_namespace():
    """The questions point at sentences that are there, so that a miss is the search's fault."""
    corpus = read_corpus()
    assert set(corpus) == set(NAMESPACES)
    for question in read_questions():
        assert [sentence.text for sentence in corpus[question.namespace]].count(question.answer) == 1


def test_what_a_question_names_is_in_the_note_that_answers_it():
    """The shop's notes are the same at every call; a code or a number is in one of them, a name in the four of its customer."""
    notes, asked = make_notes()
    assert (notes, asked) == make_notes()
    assert len(set(notes)) == len(notes)
    assert Counter(each.kind for each in asked) == {"a name": 10, "a code": 10, "a number": 10}
    for each in asked:
        named = re.search(r"RX-\d+|555-\d+|did (\S+)", each.question.text)
        holding = [note for note in notes if (named[1] or named[0]) in note]
        assert each.question.answer in holding
        assert len(holding) == (4 if each.kind == "a name" else 1)


def test_no_sentence_occurs_twice():
    """A sentence has one id in its namespace; two of them would be one memory."""
    counted = Counter(
        (namespace, s.text) for namespace, sentences in read_corpus().items() for s in sentences
    )
    assert max(counted.values()) == 1


def test_judging_tells_the_first_hit_from_the_others():
    """Only the best hit counts as first, and any hit counts as among."""
    question = QUESTIONS[0]
    right, wrong = Reply("one", "a", 0.9), Reply("four", "a", 0.8)
    verdicts = [judge(question, hits) for hits in ([right, wrong], [wrong, right], [wrong], [])]
    assert [(verdict.first, verdict.among) for verdict in verdicts] == [
        (True, True),
        (False, True),
        (False, False),
        (False, False),
    ]


def test_a_percentile_is_one_of_the_values():
    """Nearest rank: no value is invented, and none at all is not a number."""
    assert [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0.5, 0.99)] == [3.0, 4.0]
    assert math.isnan(percentile([], 0.5))


async def test_the_load_reports_failures_and_keeps_asking():
    """A failing question is counted and neither stops the load nor counts as answered."""
    answers = {
        "first?": [Reply("one", "a", 1.0)],
        "third?": [Reply("four", "a", 1.0), Reply("three", "b", 0.5)],
    }
    store = FakeStore(answers, broken={"second?"})
    measured = await run_load(store, CORPUS, QUESTIONS, seconds=0.05, tasks=3, load_seconds=0.0)
    assert {name: (verdict.first, verdict.among) for name, verdict in measured.verdicts.items()} == {
        "first?": (True, True),
        "third?": (False, True),
    }
    assert measured.asked
    assert measured.failures
    assert {str(failure) for failure in measured.failures} == {"no answer"}


async def test_the_load_remembers_known_sentences_and_new_messages_in_turn():
    """Writes go to the searched namespaces without changing what they hold, and to one that is not searched."""
    store = FakeStore({question.text: [] for question in QUESTIONS})
    await run_load(store, CORPUS, QUESTIONS, seconds=0.05, tasks=1, load_seconds=0.0)
    known, new = store.written[0::2], store.written[1::2]
    assert known[:5] == [("a", "one"), ("b", "two"), ("a", "four"), ("b", "three"), ("a", "one")]
    assert {namespace for namespace, _ in new} == {"conversation"}
    assert len({text for _, text in new}) == len(new)


def test_the_demonstration_runs_and_measures_all_stores():
    """A short run on the real stores prints samples and the numbers of each, without a failed call."""
    written = io.StringIO()
    run_table(Console(file=written, width=160, highlight=False), seconds=0.3, tasks=8)
    printed = written.getvalue()
    assert "Some answers" in printed
    assert re.search(r"failed calls +0 +0 +0\b", printed), printed
    rates = re.search(r"questions per second +([\d,]+) +([\d,]+) +([\d,]+)", printed)
    assert rates, printed
    assert all(int(rate.replace(",", "")) > 0 for rate in rates.groups())
    assert len(re.findall(r"\d+ of \d+", printed)) == 6


def test_the_three_acts_run_and_say_what_they_saw():
    """Every act prints what was measured in this run: silences, who found what, and that nothing acknowledged was lost."""
    written = io.StringIO()
    run_demo(Console(file=written, width=160, highlight=False))
    printed = " ".join(written.getvalue().split())
    assert len(re.findall(r"[\d,.]+ ms", printed)) >= 6, printed
    assert re.search(
        r"vectors alone found the answer to \d+, words alone to \d+, both together.* to \d+", printed
    )
    counted = re.search(
        r"killed when ([\d,]+) texts had been acknowledged; opened again, ([\d,]+) of them are there, 0 lost",
        printed,
    )
    assert counted, printed
    assert counted[1] == counted[2] != "0"
    joined = re.search(r"0 lost; a second process joined .* and counted ([\d,]+)", printed)
    assert joined, printed
    # What had not been acknowledged may be there as well.
    assert int(joined[1].replace(",", "")) >= int(counted[2].replace(",", ""))
