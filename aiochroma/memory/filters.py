"""Chroma's ``where`` filters, evaluated here: for records that were fetched without the filter.

A filter that keeps most of a collection makes Chroma gather the ids of all that match before it searches (1 ms becomes
50 ms at 20,000 records). Fetching some more and leaving out what does not match gives the same hits, as long as enough
remain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiochroma._errors import InvalidInputError
from aiochroma.memory.items import check_encodable, check_value

__all__ = ["both", "check_where", "matches", "plain"]

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda stored, given: stored > given,
    "$gte": lambda stored, given: stored >= given,
    "$lt": lambda stored, given: stored < given,
    "$lte": lambda stored, given: stored <= given,
}
_OPERATORS = frozenset({*_COMPARISONS, "$eq", "$ne", "$in", "$nin"})


def check_where(where: Any) -> None:
    """Check that a filter is one that Chroma and :func:`matches` both understand.

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
        for part in condition:
            check_where(part)
        return
    # Chroma finds texts under this name, and refuses to compare them.
    if not isinstance(key, str) or key.startswith("$") or key == "#document":
        raise InvalidInputError(f"`where` has the key {key!r}; it must be the name of a metadata value.")
    check_encodable(key, f"The key {key!r} of `where`")
    if not isinstance(condition, Mapping):
        _check_scalar(condition, f"{key!r} of `where`")
        return
    if len(condition) != 1 or next(iter(condition)) not in _OPERATORS:
        raise InvalidInputError(
            f"{key!r} of `where` must have one of {sorted(_OPERATORS)}, got {condition!r}."
        )
    operator, given = next(iter(condition.items()))
    _check_given(operator, given, f"{operator!r} of {key!r} in `where`")


def _check_given(operator: str, given: Any, what: str) -> None:
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


def _kind(value: Any) -> type | None:
    """Return the type that Chroma takes a value for, or None where it takes it for none."""
    # A boolean is an integer to Python, so it is asked for first.
    return next((kind for kind in (bool, str, int, float) if isinstance(value, kind)), None)


def plain(where: Mapping[str, Any]) -> dict[str, Any]:
    """Return a filter as Chroma takes it: in dictionaries, whatever mappings it has, and none around a single filter."""
    (key, condition), *_ = where.items()
    if key in {"$and", "$or"}:
        parts = [plain(part) for part in condition]
        return parts[0] if len(parts) == 1 else {key: parts}
    return {key: dict(condition) if isinstance(condition, Mapping) else condition}


def both(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a filter for what passes two filters, either of which may be None."""
    given = [plain(part) for part in (one, other) if part]
    if len(given) == 2:
        return {"$and": given}
    return given[0] if given else None


def matches(where: Mapping[str, Any] | None, metadata: Mapping[str, Any]) -> bool:
    """Tell whether a record passes a filter, as Chroma would.

    Numbers are compared with numbers, and anything else with its own kind; what has no such value passes ``$ne`` and
    ``$nin`` and nothing else.
    """
    if not where:
        return True
    key, condition = next(iter(where.items()))
    if key == "$and":
        return all(matches(part, metadata) for part in condition)
    if key == "$or":
        return any(matches(part, metadata) for part in condition)
    operator, given = next(iter(condition.items())) if isinstance(condition, Mapping) else ("$eq", condition)
    stored = metadata.get(key)
    if operator == "$eq":
        return _equal(stored, given)
    if operator == "$ne":
        return not _equal(stored, given)
    if operator == "$in":
        return any(_equal(stored, one) for one in given)
    if operator == "$nin":
        return not any(_equal(stored, one) for one in given)
    return (
        _is_number(stored) and _is_number(given) and _COMPARISONS[operator](stored, _as_stored(stored, given))
    )


def _equal(stored: Any, given: Any) -> bool:
    if _is_number(stored) and _is_number(given):
        return bool(stored == _as_stored(stored, given))
    # What is left is no number on both sides; to Python, 1 equals True.
    return not (_is_number(stored) or _is_number(given)) and bool(stored == given)


def _as_stored(stored: Any, given: Any) -> float:
    """Return a number as Chroma compares it: it keeps integers and floats apart, and converts what is asked for.

    So an integer is compared with a float without its fraction: 0 is at least 0.5.
    """
    return int(given) if isinstance(stored, int) else float(given)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
