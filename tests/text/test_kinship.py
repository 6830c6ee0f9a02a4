"""Words that are akin by their letters."""

from __future__ import annotations

import pytest
from text_hits import search

from aiochroma.text import terms
from aiochroma.text.index import IndexedText, TextIndex
from aiochroma.text.terms import may_have_kin


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Der Mietvertrag liegt im Schrank.", "Mietvertrages"),
        ("Die Haustürschlüssel hängen im Flur.", "Haustür"),
        ("Kitaplar\u0131m\u0131z masada duruyor.", "kitaplar"),
        ("Она купила велосипеды.", "велосипед"),
        ("I like her photographs.", "photography"),
        ("The colour of the door is grey.", "color"),
    ],
)
def test_inflected_compounded_and_otherwise_spelled_words_are_found(text, question):
    """A rare word finds what is akin to it, and a memory that holds the word itself comes first."""
    index = TextIndex(":memory:")
    index.upsert("n", [IndexedText(f"{number}", f"filler {number}") for number in range(50)])
    index.upsert("n", [IndexedText("akin", text)])
    assert [hit.id for hit in search(index, "n", question, 3)] == ["akin"]
    index.upsert("n", [IndexedText("same", question)])
    hits = search(index, "n", question, 3)
    assert [hit.id for hit in hits] == ["same", "akin"]
    assert hits[0].own == 1.0 >= hits[1].own


def test_numbers_and_coded_characters_have_no_kin():
    """A number that differs in a digit is another number, and a pair of characters another word."""
    index = TextIndex(":memory:")
    index.upsert("n", [IndexedText("1", "order 88213"), IndexedText("2", "北京大学")])
    assert search(index, "n", "88214", 3) == []
    assert search(index, "n", "東京", 3) == []
    assert not may_have_kin("u5317u4eac")
    assert not may_have_kin("cat")


def test_words_that_came_and_went_are_followed():
    """What was remembered since is akin as well, and what was forgotten is not."""
    index = TextIndex(":memory:")
    index.upsert("n", [IndexedText("1", "bicycles everywhere")])
    assert [hit.id for hit in search(index, "n", "bicycling", 3)] == ["1"]
    index.upsert("n", [IndexedText("2", "motorbicycles")])
    assert {hit.id for hit in search(index, "n", "bicycling", 3)} == {"1", "2"}
    index.delete("n", ["1"])
    assert [hit.id for hit in search(index, "n", "bicycling", 3)] == ["2"]


def test_a_machine_that_is_busy_finds_as_much(monkeypatch):
    """Some words are read in any case, all of a small namespace, however little time there is."""
    monkeypatch.setattr(terms, "_SECONDS", 0.0)
    index = TextIndex(":memory:")
    index.upsert("n", [IndexedText("one", "I like her photographs.")])
    assert [hit.id for hit in search(index, "n", "photography", 1)] == ["one"]
