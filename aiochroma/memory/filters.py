"""Filters as users write them: checked before anything is searched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiochroma._errors import InvalidInputError
from aiochroma._types import Where
from aiochroma.backend.limits import check_storable_text
from aiochroma.memory.items import check_value

__all__ = ["check_where", "checked_where"]

_DEEPEST = 100
"""The most nested levels of '$and' and '$or': each is a level of the call stack, here and below."""

_COMPARISONS = frozenset({"$gt", "$gte", "$lt", "$lte"})
_OPERATORS = frozenset({*_COMPARISONS, "$eq", "$ne", "$in", "$nin"})


def check_where(where: object, *, level: int = 0) -> None:
    """Check that a filter is one that Chroma and the index both understand.

    Args:
        where: The filter, or a part of it.
        level: In how many others it stands.

    Raises:
        InvalidInputError: It is not.
    """
    if not isinstance(where, Mapping) or len(where) != 1:
        raise InvalidInputError(
            f"`where` must be a mapping with one key (a name, or '$and' / '$or' with a list), got {where!r}."
        )
    (key, condition), *_ = where.items()
    if key in {"$and", "$or"}:
        if not isinstance(condition, list) or not condition:
            raise InvalidInputError(f"{key!r} of `where` must have a list of filters, got {condition!r}.")
        if level == _DEEPEST:
            raise InvalidInputError(
                f"`where` has more than {_DEEPEST} levels of '$and' and '$or'; write it flatter."
            )
        for part in condition:
            check_where(part, level=level + 1)
        return
    # Chroma finds texts under this name, and refuses to compare them.
    if not isinstance(key, str) or key.startswith("$") or key == "#document":
        raise InvalidInputError(f"`where` has the key {key!r}; it must be the name of a metadata value.")
    check_storable_text(key, f"The key {key!r} of `where`")
    if not isinstance(condition, Mapping):
        _check_scalar(condition, f"{key!r} of `where`")
        return
    if len(condition) != 1 or next(iter(condition)) not in _OPERATORS:
        raise InvalidInputError(
            f"{key!r} of `where` must have one of {sorted(_OPERATORS)}, got {condition!r}."
        )
    operator, given = next(iter(condition.items()))
    _check_given(operator, given, f"{operator!r} of {key!r} in `where`")


def checked_where(where: Where | None) -> Mapping[str, Any] | None:
    """Return a filter that has been checked; None is none."""
    if where is not None:
        check_where(where)
    return where


def _check_given(operator: str, given: object, what: str) -> None:
    """Check what an operator compares with."""
    if operator in {"$in", "$nin"}:
        if not isinstance(given, list) or not given:
            raise InvalidInputError(f"{what} must have a list with something in it, got {given!r}.")
        for one in given:
            _check_scalar(one, what)
        if len(set(map(_kind, given))) > 1:
            raise InvalidInputError(
                f"{what} must have a list of one type (strings, integers, floats or booleans), got {given!r}."
            )
        return
    if operator in _COMPARISONS and not _is_number(given):
        raise InvalidInputError(f"{what} must have a number, got {given!r}.")
    _check_scalar(given, what)


def _check_scalar(value: Any, what: str) -> None:
    if _kind(value) is None:
        raise InvalidInputError(
            f"{what} must have a string, an integer, a float or a boolean, got {type(value).__name__}: {value!r}."
        )
    check_value(value, f"{what} has {value!r}, which")


def _kind(value: object) -> type | None:
    """Return the type that Chroma takes a value for, or None where it takes it for none."""
    # A boolean is an integer to Python, so it is asked for first.
    return next((kind for kind in (bool, str, int, float) if isinstance(value, kind)), None)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
