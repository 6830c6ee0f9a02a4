"""From text to what the full-text index stores, and from a question to what it is asked. Pure functions.

SQLite's ``unicode61`` tokenizer knows the letters of Unicode 6.1 and takes a run of letters for a word. So
text is prepared here: scripts that put no spaces between words (Chinese, Japanese, Thai and others) become
overlapping pairs of characters, as in Lucene's ``CJKBigramFilter``, and these pairs, symbols such as emoji,
and every letter that an old SQLite may not know are written as hexadecimal codes, which any tokenizer takes
for words.

Identifiers and numbers are written in more than one way, so they are indexed, and asked for, in a second form as well:
``kestrel_builder`` also as one word, ``parseHTTPResponse`` also its words, ``+49 170 123-4567`` also without separators and by
its last eight digits.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MOST_QUESTION_CHARACTERS",
    "SECTION",
    "bounded_question",
    "indexed_form",
    "is_english_question",
    "is_stop_word",
    "match_expression",
    "query_terms",
    "sections",
    "words_of_meaning",
]

SECTION = 4_000
"""The most characters of a section; a tokenizer, which holds the interpreter, takes about 2 ms for them."""

MOST_QUESTION_CHARACTERS = 16_000
"""The most characters of a question that count. Of a longer one its beginning and its end count, half of this each."""


# Scripts with spaces between words, whole in Unicode 6.1 and known to ``unicode61``: Latin, Greek, Cyrillic,
# Armenian, Hebrew, Arabic, Syriac, Thaana, NKo; the scripts of India; Georgian; Ethiopic; and the extensions
# of Latin and Greek.
_CODED_RUN = re.compile(r"[^\x00-\u07ff\u0900-\u0dff\u10a0-\u10ff\u1200-\u139f\u1e00-\u206f]+")
_VOWEL_POINTS = re.compile(
    r"[\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8]"
)
_SINGLE_CODE = re.compile(r"u[0-9a-f]{3,6}")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_TYPOGRAPHIC = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "-", 0x2026: "."}
_RUN = re.compile(r"[A-Za-z0-9_-]+")
_JOINED = re.compile(r"[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+){1,5}")
_CAMEL = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]*[a-z][A-Z][A-Za-z0-9]*")
_HUMP = re.compile("[a-z][A-Z]")
_DIGITS = re.compile("[0-9]")
_CAMEL_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_NUMBER = re.compile(r"(?<![A-Za-z0-9])\+?[0-9][0-9 ().,'/-]{3,40}[0-9](?![A-Za-z0-9])")
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:[ ,.'][0-9]{3})+")
_CALENDAR_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{1,2}[./][0-9]{1,2}[./][0-9]{4}")
_LONG_DIGITS = re.compile(r"(?<![A-Za-z0-9])\+?[0-9]{9,15}(?![A-Za-z0-9])")
_FEWEST_DIGITS = 7
"""The fewest digits with separators between them that are a telephone number, an account, an article."""
_LAST_DIGITS = 8
"""Telephone numbers are the same from here on, whatever stands before: +49 170, 0170, 0049 170."""
_SEPARATOR_CATEGORIES = frozenset("PSZC")
_MOST_TERMS = 128
"""Of the terms of a longer question the first and the last half are looked up; see ``telling_terms``."""
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about am an and any are as at be been being but by can could did do does doing for from had has "
        "have having he her hers him his how i if in into is it its me my of on or our ours she so some "
        "such than that the their theirs them then there these they this those to us was we were what when "
        "where which while who whom whose why will with would you your yours s t d ll m re ve don didn "
        "doesn isn wasn aren ",
    )
)


def indexed_form(text: str) -> str:
    """Prepare a text for the index.

    Args:
        text: Any text, lone surrogates and null characters included.

    Returns:
        A text that SQLite can store and ``unicode61`` splits into the right terms.
    """
    further = _further_forms(text)
    form = text.replace("\0", " ")
    if not text.isascii():
        form = _CODED_RUN.sub(
            lambda run: f" {' '.join(_coded(run.group(), last_alone=True))} ", _folded(text)
        )
    return f"{form} {' '.join(further)}" if further else form


def query_terms(question: str) -> list[str]:
    """Find the terms that a question asks for.

    Function words of English are left out, unless nothing else remains: they match nearly everything, which
    costs time and says nothing. In other languages how many memories hold them gives such words their small weight.

    Args:
        question: Any text; of a very long one its beginning and its end count.

    Returns:
        Different terms in their order, at most 128; none holds a quotation mark.
    """
    question = bounded_question(question)
    terms = list(dict.fromkeys([*_split(question), *_further_forms(question)]))
    telling = [term for term in terms if term not in _STOP_WORDS] or terms
    if len(telling) > _MOST_TERMS:
        telling = telling[: _MOST_TERMS // 2] + telling[-(_MOST_TERMS // 2) :]
    return telling


def words_of_meaning(text: str) -> list[str]:
    """Reduce a text to what it is about, for an embedder that takes the mean of its words.

    Args:
        text: Any text.

    Returns:
        Its words in lower case, repeated ones included, without the function words of English; all its words
        when nothing else remains, and its punctuation when it has no words. Empty for a blank text only.
    """
    folded = text.casefold()
    words = _ASCII_WORD.findall(folded) if folded.isascii() else _words(folded)
    return [word for word in words if word not in _STOP_WORDS] or words or text.split()


def is_stop_word(word: str) -> bool:
    """Tell whether a word in lower case is a function word of English."""
    return word in _STOP_WORDS


def is_english_question(text: str) -> bool:
    """Tell whether a text is English beyond doubt: ASCII but for its quotation marks, with a long function word."""
    plain = text.lower().translate(_TYPOGRAPHIC)
    return plain.isascii() and any(
        len(word) > 2 and word in _STOP_WORDS for word in _ASCII_WORD.findall(plain)
    )


def _words(text: str) -> list[str]:
    """Split a text where white space, punctuation or controls stand; a symbol such as an emoji is a word of its own."""
    characters = []
    for character in text:
        kind = unicodedata.category(character)[0]
        # Vowel signs and accents (M) belong to their words.
        characters.append(
            character if kind in "LNM" else f" {character} " if kind == "S" and character > "\x7f" else " "
        )
    return "".join(characters).split()


def match_expression(terms: list[str]) -> str:
    """Write terms as an FTS5 expression that matches what holds any of them.

    Args:
        terms: As ``query_terms`` returns them.

    Returns:
        Quoted strings joined by OR: no character in them can act as an operator. Empty for no terms.
    """
    return " OR ".join(f'"{term}"*' if _SINGLE_CODE.fullmatch(term) else f'"{term}"' for term in terms)


def _further_forms(text: str) -> list[str]:
    """Return the second forms of the identifiers and numbers in a text, each once."""
    forms: list[str] = []
    # Most texts have none of these, and looking for one letter takes a tenth of looking for the whole pattern.
    for run in _RUN.findall(text) if "_" in text or "-" in text else ():
        joined = run.replace("_", "").replace("-", "")
        if joined != run and not joined.isdigit() and _JOINED.fullmatch(run):
            forms.append(joined)
    for match in _CAMEL.finditer(text) if _HUMP.search(text) else ():
        forms += _CAMEL_PARTS.findall(match.group())
    has_digits = _DIGITS.search(text)
    for match in _NUMBER.finditer(text) if has_digits else ():
        digits = re.sub("[^0-9]", "", match.group())
        if _CALENDAR_DAY.fullmatch(match.group()) or digits == match.group():
            continue
        if len(digits) >= _FEWEST_DIGITS:
            forms += [digits, digits[-_LAST_DIGITS:]]
        elif _THOUSANDS.fullmatch(match.group()):
            forms.append(digits)
    for match in _LONG_DIGITS.finditer(text) if has_digits else ():
        forms.append(match.group()[-_LAST_DIGITS:])
    return list(dict.fromkeys(form.lower() for form in forms))


def _split(text: str) -> list[str]:
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    # A single character of a script without spaces asks for every pair that begins with it or, since the last
    # character of a run stands alone as well, for the end of a run (see ``match_expression``).
    spaced = _CODED_RUN.sub(lambda run: f" {' '.join(_coded(run.group(), last_alone=False))} ", _folded(text))
    return "".join(
        " " if unicodedata.category(character)[0] in _SEPARATOR_CATEGORIES else character
        for character in spaced
    ).split()


def _folded(text: str) -> str:
    """Unify what means the same: widths, ligatures, case, with and without Hebrew and Arabic vowel points."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _VOWEL_POINTS.sub("", folded).replace("\0", " ")


def _coded(run: str, *, last_alone: bool) -> list[str]:
    """Write a run of characters as coded pairs, and its symbols one by one."""
    codes: list[str] = []
    word = ""
    for character in [*run, " "]:
        kind = unicodedata.category(character)[0]
        if kind in "LNM":
            word += character
            continue
        codes += _pairs(word, last_alone=last_alone)
        word = ""
        if kind == "S":
            codes.append(_code(character))
    return codes


def _pairs(word: str, *, last_alone: bool) -> list[str]:
    if not word:
        return []
    pairs = [_code(word[start : start + 2]) for start in range(len(word) - 1)]
    if last_alone or not pairs:
        pairs.append(_code(word[-1]))
    return pairs


def _code(characters: str) -> str:
    return "u" + "u".join(f"{ord(character):x}" for character in characters)


def sections(text: str, length: int = SECTION) -> Iterator[str]:
    """Cut a text into sections, at white space where there is some: no single step over one holds the interpreter for long.

    Args:
        text: Any text.
        length: The most characters of a section; at least 1.

    Yields:
        Sections that hold every word in its order. The white space character at a cut belongs to none; a run of
        characters longer than a section is divided.
    """
    start = 0
    while len(text) - start > length:
        stop = start + length
        space = next((at for at in range(stop, start + length // 2, -1) if text[at].isspace()), None)
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
