"""Chroma's ``where`` filters, evaluated for one record: what the index and Chroma are compared with."""

from __future__ import annotations

import operator
from collections.abc import Mapping

COMPARISONS = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}


def matches(where, metadata) -> bool:
    """Tell whether a record passes a filter, as Chroma would.

    Numbers are compared with numbers, and anything else with its own kind. A record without such a value passes ``$ne``,
    ``$nin`` and ``$not_contains``, and nothing else.
    """
    if not where:
        return True
    key, condition = next(iter(where.items()))
    if key == "$and":
        return all(matches(one, metadata) for one in condition)
    if key == "$or":
        return any(matches(one, metadata) for one in condition)
    comparison, given = (
        next(iter(condition.items())) if isinstance(condition, Mapping) else ("$eq", condition)
    )
    stored = metadata.get(key)
    if comparison in {"$eq", "$ne"}:
        return _equal(stored, given) == (comparison == "$eq")
    if comparison in {"$in", "$nin"}:
        return any(_equal(stored, one) for one in given) == (comparison == "$in")
    if comparison in {"$contains", "$not_contains"}:
        held = isinstance(stored, list) and any(one == given for one in stored if type(one) is type(given))
        return held == (comparison == "$contains")
    return (
        _is_number(stored)
        and _is_number(given)
        and COMPARISONS[comparison](stored, _as_stored(stored, given))
    )


def _equal(stored: object, given: object) -> bool:
    if _is_number(stored) and _is_number(given):
        return bool(stored == _as_stored(stored, given))
    # What is left is no number on both sides; to Python, 1 equals True.
    return not (_is_number(stored) or _is_number(given)) and bool(stored == given)


def _as_stored(stored, given):
    """Return a number as Chroma compares it: it keeps integers and floats apart, and converts what is asked for.

    So an integer is compared with a float without its fraction: 0 is at least 0.5.
    """
    return int(given) if isinstance(stored, int) else float(given)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
