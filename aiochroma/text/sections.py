"""Long texts in sections, so that no single step over one holds the interpreter for long."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MOST_QUESTION_CHARACTERS", "SECTION", "bounded_question", "sections"]

SECTION = 4_000
"""Characters; a tokenizer, which holds the interpreter, takes about 2 ms for them."""

MOST_QUESTION_CHARACTERS = 16_000
"""Of a longer question the first and the last half of this count: it says at either end what it is about."""


def sections(text: str, length: int = SECTION) -> Iterator[str]:
    """Cut a text into sections of at most that many characters, at white space where there is some.

    Args:
        text: Any text.
        length: The most characters of a section, at least 1.

    Yields:
        Sections that hold every word in its order. The white space character at a cut belongs to none; a run of
        characters longer than a section is divided.
    """
    start = 0
    while len(text) - start > length:
        stop = start + length
        space = next((place for place in range(stop, start + length // 2, -1) if text[place].isspace()), None)
        yield text[start : stop if space is None else space]
        start = stop if space is None else space + 1
    if start < len(text) or not text:
        yield text[start:]


def bounded_question(question: str) -> str:
    """Return what counts of a question: all of it, or of a very long one its beginning and its end."""
    if len(question) <= MOST_QUESTION_CHARACTERS:
        return question
    half = MOST_QUESTION_CHARACTERS // 2
    return f"{question[:half].rsplit(None, 1)[0]}\n{question[-half:].split(None, 1)[-1]}"
