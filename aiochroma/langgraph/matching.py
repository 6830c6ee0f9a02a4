"""Which items a filter lets pass, and which namespaces a condition matches. Pure; follows LangGraph's own stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiochroma._errors import InvalidInputError

if TYPE_CHECKING:
    from langgraph.store.base import MatchCondition

__all__ = ["check_filter", "matches_condition", "passes"]

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "$gt": lambda stored, given: stored > given,
    "$gte": lambda stored, given: stored >= given,
    "$lt": lambda stored, given: stored < given,
    "$lte": lambda stored, given: stored <= given,
}
_OPERATORS = frozenset({"$eq", "$ne", *_COMPARISONS})


def check_filter(filter: Mapping[str, Any] | None) -> None:
    """Check the operators of a filter, also where no item would be compared with them.

    Raises:
        InvalidInputError: There is one that is not known, or a comparison with something that is no number.
    """
    for key, condition in (filter or {}).items():
        _check(condition, key)


def _check(condition: Any, key: str) -> None:
    if not isinstance(condition, Mapping):
        return
    for name, given in condition.items():
        if not str(name).startswith("$"):
            _check(given, f"{key}.{name}")
        elif name not in _OPERATORS:
            raise InvalidInputError(
                f"The filter on {key!r} has the operator {name!r}; there are {sorted(_OPERATORS)}."
            )
        elif name in _COMPARISONS and _number(given) is None:
            raise InvalidInputError(
                f"The filter on {key!r} compares by {name!r} with {given!r}, which is no number."
            )


def passes(value: Mapping[str, Any], filter: Mapping[str, Any] | None) -> bool:
    """Tell whether a value passes a filter: every key of the filter must match."""
    return all(_matches(value.get(key), condition) for key, condition in (filter or {}).items())


def _matches(stored: Any, condition: Any) -> bool:
    if isinstance(condition, Mapping):
        if any(str(name).startswith("$") for name in condition):
            return all(_compare(stored, name, given) for name, given in condition.items())
        return isinstance(stored, Mapping) and all(
            _matches(stored.get(name), given) for name, given in condition.items()
        )
    if isinstance(condition, (list, tuple)):
        return (
            isinstance(stored, (list, tuple))
            and len(stored) == len(condition)
            and all(map(_matches, stored, condition))
        )
    return bool(stored == condition)


def _compare(stored: Any, operator: str, given: Any) -> bool:
    if operator == "$eq":
        return bool(stored == given)
    if operator == "$ne":
        return bool(stored != given)
    number, limit = _number(stored), _number(given)
    return number is not None and limit is not None and _COMPARISONS[operator](number, limit)


def _number(value: Any) -> float | None:
    """Return what LangGraph compares: a number, or a text that is one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def matches_condition(condition: MatchCondition, namespace: Sequence[str]) -> bool:
    """Tell whether a namespace begins or ends as a condition says; ``*`` stands for any one label.

    Raises:
        InvalidInputError: The condition is neither a prefix nor a suffix.
    """
    path = condition.path
    if condition.match_type not in {"prefix", "suffix"}:
        raise InvalidInputError(
            f"A namespace can be matched by its 'prefix' or its 'suffix', got {condition.match_type!r}."
        )
    if len(namespace) < len(path):
        return False
    labels = (
        namespace[: len(path)]
        if condition.match_type == "prefix"
        else namespace[len(namespace) - len(path) :]
    )
    return all(wanted in {"*", label} for wanted, label in zip(path, labels, strict=True))
