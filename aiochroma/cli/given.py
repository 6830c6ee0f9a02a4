"""What is given on the command line and on standard input, as values: checked, in the words of the command line."""

from __future__ import annotations

import json
import math
import re
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from aiochroma._errors import InvalidInputError, shown
from aiochroma._types import JsonObject, Metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "check_namespace",
    "duration",
    "filter_from",
    "items_of",
    "limit_from",
    "moment",
    "named",
    "named_lines",
    "pairs",
    "scope_from",
    "searches_from",
    "stdin_is_terminal",
]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_LONGEST_K = 7
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def pairs(given: list[str]) -> Metadata:
    """Read ``KEY=VALUE`` pairs: numbers, ``true``, ``false`` and lists as in JSON, anything else as text.

    Raises:
        InvalidInputError: There is no ``=``.
    """
    values: Metadata = {}
    for pair in given:
        key, sign, value = pair.partition("=")
        if not sign:
            raise InvalidInputError(f"`--metadata` must be KEY=VALUE, got {shown(pair)}.")
        values[key] = _value(value)
    return values


def _value(text: str) -> str | int | float | bool | list[object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, (int, float, list)) else text


def filter_from(text: str | None) -> JsonObject | None:
    """Read a filter.

    Raises:
        InvalidInputError: It is not a JSON object.
    """
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"`--where` must be JSON, got {shown(text)}: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidInputError(f"`--where` must be a JSON object, got {shown(text)}.")
    return value


def check_namespace(name: str) -> None:
    """Check the name of a namespace, before a store is made for it.

    Raises:
        InvalidInputError: It is blank, or is no text.
    """
    from aiochroma.records.record import collection_name

    collection_name(name, "`--namespace`")


def scope_from(text: str | None) -> tuple[str, ...] | None:
    """Read a scope, whose labels are joined by slashes.

    Raises:
        InvalidInputError: A label is empty, or there are too many.
    """
    if text is None:
        return None
    from aiochroma.memory.arguments import DEEPEST_SCOPE

    labels = tuple(text.split("/"))
    if "" in labels or len(labels) > DEEPEST_SCOPE:
        raise InvalidInputError(
            f"`--scope` must be 1 to {DEEPEST_SCOPE} labels with a / between them, none of them empty, got {shown(text)}."
        )
    return labels


def limit_from(text: str | None, option: str, least: float = -math.inf) -> float | str | None:
    """Read a number, or ``auto``.

    Raises:
        InvalidInputError: It is neither, or is less than it may be.
    """
    if text is None or text == "auto":
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < least:
        kind = "a number" if math.isinf(least) else f"a number of at least {least}"
        raise InvalidInputError(f"`{option}` must be {kind}, or auto, got {shown(text)}.")
    return number


def searches_from(names: list[str], k: int) -> dict[str, int] | None:
    """Read ``NAME`` and ``NAME=K``; what follows the last ``=`` is K only if it is a number.

    Raises:
        InvalidInputError: K is 0, or too large.
    """
    if not names:
        return None
    searches: dict[str, int] = {}
    for text in names:
        name, sign, number = text.rpartition("=")
        if sign and number.isdecimal():
            if len(number) > _LONGEST_K or not int(number):
                raise InvalidInputError(
                    f"K must be at least 1, and no more than a million, in `--namespace {text}`."
                )
            searches[name] = int(number)
        else:
            searches[text] = k
    return searches


def duration(text: str | None, option: str) -> timedelta | None:
    """Read a length of time such as ``90s``, ``15m``, ``12h``, ``7d`` or ``2w``.

    Raises:
        InvalidInputError: The text is not a length of time.
    """
    if text is None:
        return None
    match = _DURATION.fullmatch(text.strip())
    if match is None or not 0 < float(match[1]) < math.inf:
        raise InvalidInputError(
            f"`{option}` must be a time such as 90s, 15m, 12h, 7d or 2w, got {shown(text)}."
        )
    try:
        length = timedelta(**{_UNITS[match[2]]: float(match[1])})
        _ = datetime.now(timezone.utc) + length  # There is a date at its end.
    except OverflowError:
        raise InvalidInputError(f"`{option}` is too long: {text!r}.") from None
    return length


def moment(text: str | None, option: str) -> datetime | None:
    """Read a moment: a date or a date with a time, in local time unless it says otherwise, or how long ago it was.

    Raises:
        InvalidInputError: The text is not a moment.
    """
    if text is None:
        return None
    if _DURATION.fullmatch(text.strip()):
        ago = duration(text, option)
        assert ago is not None
        try:
            return datetime.now(timezone.utc) - ago
        except OverflowError:
            raise InvalidInputError(f"`{option}` is too long ago: {text!r}.") from None
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise InvalidInputError(
            f"`{option}` must be a date such as 2026-03-01, a time such as 2026-03-01T12:00, or how long ago, such as 7d; got "
            f"{text!r}."
        ) from None


# -- texts --------------------------------------------------------------------------------------------------------------


def items_of(texts: Iterable[tuple[str, str]], common: JsonObject) -> Iterator[JsonObject]:
    """Make items of texts, and name each in what is wrong with it.

    Raises:
        InvalidInputError: A text or an option is wrong.
    """
    from aiochroma.memory.arguments import item_from

    for name, text in texts:
        item = {"text": text, **common}
        item_from(item, name)
        yield item


def named(texts: list[str]) -> Iterator[tuple[str, str]]:
    """Give each text that was an argument the name that messages have for it."""
    for number, text in enumerate(texts, start=1):
        yield "the text" if len(texts) == 1 else f"text {number}", text


def named_lines() -> Iterator[tuple[str, str]]:
    """Read one text per line, and say which; blank lines are left out.

    Raises:
        InvalidInputError: A line is not UTF-8.
    """
    if sys.stdin is None:
        raise InvalidInputError("Standard input is closed: there is nothing to read from it.")
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"Line {number} of standard input is not UTF-8: {error}.") from error
        if text.strip():
            yield f"line {number} of standard input", text


def stdin_is_terminal() -> bool:
    """Whether a person would have to type what is read."""
    return sys.stdin is None or sys.stdin.isatty()
