"""What must be equal for two requests to become one call: pure functions over plain data."""

from __future__ import annotations

from dataclasses import is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aiochroma.core.operations import Merge

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from aiochroma.core.request import Request

__all__ = ["frozen", "is_get_by_id", "read_key", "write_key"]

_DEEPEST = 64
"""Data that is nested deeper is not compared, and not merged; the interpreter's stack has an end."""


def is_get_by_id(arguments: Mapping[str, Any]) -> bool:
    """Whether a ``get`` asks for ids and for nothing else."""
    return bool(arguments.get("ids")) and not any(
        arguments.get(name) for name in ("where", "where_document", "limit", "offset")
    )


def read_key(request: Request) -> tuple[Hashable | None, int]:
    """Return what must be equal for reads to be merged (None: nothing is), and how much this one adds to a call."""
    arguments, row = request.arguments, request.row
    key: Hashable | None
    if row.merge is Merge.QUERIES:
        first, *_ = row.query_fields
        vectors = arguments[first]
        rest = frozen(arguments, without=row.query_fields)
        dimensions = 0 if not len(vectors) or isinstance(vectors[0], str) else _length(vectors[0])
        key = None if rest is None or not len(vectors) else (row.name, dimensions, rest)
        return key, len(vectors)
    if row.merge is Merge.GET_BY_ID and is_get_by_id(arguments):
        rest = frozen(arguments, without=("ids",))
        return None if rest is None else (row.name, "by id", rest), len(arguments["ids"])
    rest = None if row.merge is Merge.NONE else frozen(arguments)
    return None if rest is None else (row.name, rest), 0


def write_key(request: Request) -> Hashable | None:
    """Return what must be equal for writes to be merged: kind, fields present, and the vectors' dimension."""
    arguments, row = request.arguments, request.row
    if row.merge is not Merge.RECORDS or not arguments.get("ids"):
        return None
    if any(arguments.get(name) is not None for name in ("where", "where_document", "limit")):
        return None
    dimensions = {_length(vector) for name in row.vector_fields for vector in _given(arguments, name)} or {0}
    if len(dimensions) != 1:
        return None
    present = tuple(arguments.get(name) is not None for name in row.record_fields)
    rest = frozen(arguments, without=row.record_fields)
    return None if rest is None else (row.name, request.bulk, present, dimensions.pop(), rest)


def _given(arguments: Mapping[str, Any], name: str) -> Any:
    values = arguments.get(name)
    return () if values is None else values


def _length(vector: Any) -> int:
    return 0 if vector is None else len(vector)


def frozen(value: Any, *, without: tuple[str, ...] = (), _depth: int = 0) -> Hashable | None:
    """Return a hashable form of plain data, or None where there is something in it that is not plain, or nested too deep."""
    if _depth > _DEEPEST:
        return None
    if isinstance(value, dict):
        return _frozen_items(
            ((key, item) for key, item in value.items() if key not in without), "dict", _depth
        )
    if isinstance(value, (list, tuple)):
        return _frozen_items(enumerate(value), "list", _depth)
    # The type belongs to it: 1, 1.0 and True are equal, but not the same filter.
    return (type(value), value) if _is_plain(value) else None


def _frozen_items(items: Iterable[tuple[Any, Any]], kind: str, depth: int) -> Hashable | None:
    made = []
    for key, item in items:
        form = frozen(item, _depth=depth + 1)
        if form is None:
            return None
        made.append((key, form))
    return (kind, tuple(made))


def _is_plain(value: Any) -> bool:
    if is_dataclass(value):
        # Frozen and hashable: a value that says what it says, such as how a namespace is searched.
        return type(value).__hash__ is not None
    return value is None or isinstance(value, (str, int, float, UUID, Enum))
