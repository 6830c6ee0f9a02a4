"""What becomes of texts and questions before they are indexed and asked for."""

from __future__ import annotations

import pytest
from text_hits import search

from aiochroma.text.analysis import (
    MOST_QUESTION_CHARACTERS,
    bounded_question,
    is_english_question,
    query_terms,
    sections,
    words_of_meaning,
)
from aiochroma.text.index import IndexedText, TextIndex


def found(text, question):
    index = TextIndex(":memory:")
    index.upsert("n", [IndexedText("other", "something else entirely"), IndexedText("sought", text)])
    return "sought" in [hit.id for hit in search(index, "n", question, 5)]


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("the kestrel_builder module", "kestrelbuilder"),
        ("the kestrelbuilder module", "kestrel_builder"),
        ("parseHTTPResponse fails", "parse http response"),
        ("we parse every response", "parseHTTPResponse"),
        ("call me at +49 170 123-4567", "01701234567"),
        ("call me at 0170/1234567", "+49 (170) 1234567"),
        ("it cost 12,500 dollars", "12500"),
        ("it cost 12500 dollars", "12.500"),
        ("मुझे हिन्दी पसंद है", "हिन्दी"),
    ],
)
def test_one_thing_written_in_two_ways_is_found(text, question):
    """Identifiers in whole and in parts, numbers with and without separators, words with vowel signs."""
    assert found(text, question)


def test_words_keep_their_combining_marks():
    """A vowel sign or an accent of its own is part of its word."""
    assert words_of_meaning("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words_of_meaning("cafe\u0301 noir 🎉") == ["cafe\u0301", "noir", "🎉"]


def test_english_is_told_from_what_may_be_another_language():
    """Only a question that is English beyond doubt loses its function words and its capitals."""
    assert is_english_question("What did she say about the boat?")
    assert is_english_question("What\u2019s in the box?")
    assert not is_english_question("Wann fährt der Zug nach Köln?")
    assert not is_english_question("Wo ist Anna?")


def test_rare_and_late_words_of_a_long_question_count():
    """What is asked at the end of a long message is found, however much stands before it."""
    index = TextIndex(":memory:")
    index.upsert("n", [IndexedText(f"{number}", f"word{number % 90} of small talk") for number in range(900)])
    index.upsert("n", [IndexedText("sought", "Order QX-88213 was refunded.")])
    talk = " ".join(f"word{number}" for number in range(90))
    assert search(index, "n", f"{talk} so what happened with QX-88213?", 5)[0].id == "sought"
    assert "qx" in query_terms(f"{'more words ' * 40_000} QX-88213")


@pytest.mark.parametrize("text", ["", "short", "word " * 5_000, "x" * 9_000, "ab\n" * 3_000])
def test_sections_hold_the_whole_text(text):
    """Cut at white space where there is some; nothing but that is lost."""
    cut = list(sections(text, 1_000))
    assert all(len(section) <= 1_000 for section in cut)
    assert "".join("".join(cut).split()) == "".join(text.split())
    if " " in text or "\n" in text:
        assert " ".join(cut).split() == text.split()


def test_a_very_long_question_counts_with_its_beginning_and_its_end():
    """Both ends are kept whole, and the middle is left out."""
    question = "Dear all, " + "blah " * 10_000 + "where is the key?"
    bounded = bounded_question(question)
    assert len(bounded) <= MOST_QUESTION_CHARACTERS
    assert bounded.startswith("Dear all,")
    assert bounded.endswith("where is the key?")
    assert bounded_question("short") == "short"
