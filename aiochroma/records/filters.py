"""Chroma's ``where`` filters as values: joined, encoded for a request, and evaluated for one record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiochroma._types import JsonObject, MetadataView, Where
from aiochroma.records.record import CREATED_AT, THREAD, scope_filter

if TYPE_CHECKING:
    from aiochroma.records.spec import SearchSpec

__all__ = ["COMPARISONS", "decoded", "encoded", "filter_of", "joined", "matches", "plain"]

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda stored, given: stored > given,
    "$gte": lambda stored, given: stored >= given,
    "$lt": lambda stored, given: stored < given,
    "$lte": lambda stored, given: stored <= given,
}


def encoded(where: Where | None) -> str | None:
    """Write a filter as JSON text: a value that can be compared, and tells 1, 1.0 and true apart."""
    return json.dumps(plain(where)) if where else None


@lru_cache(maxsize=256)
def decoded(where: str) -> Mapping[str, Any]:
    """Read a filter that :func:`encoded` wrote; not to be changed."""
    found: Mapping[str, Any] = json.loads(where)
    return found


def filter_of(spec: SearchSpec) -> JsonObject | None:
    """Return all that a search says about metadata as one filter that Chroma understands, or None."""
    return joined(
        decoded(spec.where) if spec.where else None,
        scope_filter(spec.scope),
        None if spec.thread is None else {THREAD: spec.thread},
        None if spec.since is None else {CREATED_AT: {"$gte": spec.since}},
        None if spec.until is None else {CREATED_AT: {"$lt": spec.until}},
    )


def plain(where: Where) -> JsonObject:
    """Return a filter as Chroma takes it: in dictionaries, whatever mappings it has, and none around a single filter."""
    (key, condition), *_ = where.items()
    if key in {"$and", "$or"}:
        parts = [plain(part) for part in condition]
        return parts[0] if len(parts) == 1 else {key: parts}
    return {key: dict(condition) if isinstance(condition, Mapping) else condition}


def joined(*filters: Where | None) -> JsonObject | None:
    """Return a filter for what passes all filters; None among them lets everything pass."""
    given = [plain(one) for one in filters if one]
    if len(given) > 1:
        return {"$and": given}
    return given[0] if given else None


def matches(where: Where | None, metadata: MetadataView) -> bool:
    """Tell whether a record passes a filter, as Chroma would.

    Numbers are compared with numbers, and anything else with its own kind. A record without such a value passes ``$ne`` and
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
        _is_number(stored) and _is_number(given) and COMPARISONS[operator](stored, _as_stored(stored, given))
    )


def _equal(stored: object, given: object) -> bool:
    if _is_number(stored) and _is_number(given):
        return bool(stored == _as_stored(stored, given))
    # What is left is no number on both sides; to Python, 1 equals True.
    return not (_is_number(stored) or _is_number(given)) and bool(stored == given)


def _as_stored(stored: Any, given: Any) -> float:
    """Return a number as Chroma compares it: it keeps integers and floats apart, and converts what is asked for.

    So an integer is compared with a float without its fraction: 0 is at least 0.5.
    """
    return int(given) if isinstance(stored, int) else float(given)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
