"""What travels through the queue, as plain data: requests, their arguments cut into slices, their results put together.

Pure functions: no thread, no clock, no futures.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from aiochroma._types import Vector
from aiochroma.core.operations import Lane, Merge, Operation, Result, operation_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

__all__ = [
    "Arguments",
    "CallResult",
    "Request",
    "bytes_of",
    "cut",
    "end_within",
    "frozen",
    "is_get_by_id",
    "joined",
    "read_key",
    "split",
    "write_key",
]

Arguments: TypeAlias = "Mapping[str, Any]"
"""Keyword arguments of an operation; what each may hold is Chroma's to say."""

CallResult: TypeAlias = Any
"""What an operation returns; its row says what that looks like."""


_SIMPLE = frozenset({str, int, float, bool, type(None), UUID})

_DEEPEST = 64
"""Data that is nested deeper is not compared, and not merged; the interpreter's stack has an end."""


@dataclass(slots=True, eq=False)
class Request:
    """One call, as data; it can be copied, pickled and sent.

    Attributes:
        operation: The name of the call; its row is in :mod:`aiochroma.core.operations`.
        arguments: Its keyword arguments. The values belong to the request: no code changes them afterwards.
        bulk: Yield to interactive requests.
        atomic: Keep a write in one slice, however long it holds the interpreter.
        row: What the table says of its operation.
        lane: How it is ordered against the others; follows from the operation.
        collection: The id of the collection it is about, as text; empty where it is about none.
        merge_key: The plan's own note of what may be merged with it; worked out once, at the first look. Does not travel.
        page_ids: The plan's own note of which records a large read returns after its first page. Does not travel.
        listing: The number by which the plan asks for these ids again until they are there; 0 before. Does not travel.
    """

    operation: str
    arguments: Arguments
    bulk: bool = False
    atomic: bool = False
    row: Operation = field(init=False, repr=False)
    lane: Lane = field(init=False)
    collection: str = field(init=False)
    merge_key: tuple[Hashable | None, int] | None = field(init=False, default=None, repr=False)
    page_ids: list[str] | None = field(init=False, default=None, repr=False)
    listing: int = field(init=False, default=0, repr=False)

    def __post_init__(self) -> None:
        # Every step of the engine looks at it.
        self.row = operation_of(self.operation)
        self.lane = self.row.lane
        self.collection = str(self.arguments.get("collection_id", ""))

    def __reduce__(self) -> tuple[type[Request], tuple[object, ...]]:
        return Request, (self.operation, dict(self.arguments), self.bulk, self.atomic)


_FIELDS = ("ids", "embeddings", "metadatas", "documents", "uris", "data", "distances")
"""Fields of Chroma's results of ``get`` and ``query``."""


def cut(request: Request, start: int, stop: int) -> dict[str, object]:
    """Return the arguments of a write for the records, or of a search for the questions, from ``start`` to ``stop``."""
    arguments = dict(request.arguments)
    for name in request.row.query_fields or request.row.record_fields:
        if arguments.get(name) is not None:
            arguments[name] = arguments[name][start:stop]
    return arguments


_RECORD_BYTES = 64


def end_within(request: Request, start: int, stop: int, room: float, bytes_per_number: float) -> int:
    """Return the end of as many records of a write from ``start`` as there is room for; there is for one."""
    for position in range(start, stop):
        room -= _bytes_of_record(request, position, bytes_per_number)
        if room < 0 and position > start:
            return position
    return stop


def bytes_of(request: Request, bytes_per_number: float) -> float:
    """Estimate what the records of a write come to, with this many bytes for each number of a vector."""
    ids = request.arguments["ids"]
    return sum(_bytes_of_record(request, position, bytes_per_number) for position in range(len(ids)))


def _bytes_of_record(request: Request, position: int, bytes_per_number: float) -> float:
    arguments = request.arguments
    total = float(_RECORD_BYTES) + len(arguments["ids"][position])
    embeddings = arguments.get("embeddings")
    if bytes_per_number and embeddings is not None and embeddings[position] is not None:
        total += len(embeddings[position]) * bytes_per_number
    for name in ("documents", "uris"):
        values = arguments.get(name)
        if values is not None and values[position] is not None:
            total += _bytes_of_text(values[position])
    metadatas = arguments.get("metadatas")
    if metadatas is not None and metadatas[position] is not None:
        total += sum(len(key) + _bytes_of_value(value) for key, value in metadatas[position].items())
    return total


def _bytes_of_value(value: object) -> int:
    if isinstance(value, str):
        return _bytes_of_text(value)
    return sum(_bytes_of_value(item) for item in value) if isinstance(value, (list, tuple)) else 24


def _bytes_of_text(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def split(requests: Sequence[Request], result: CallResult) -> list[CallResult]:
    """Give each of several requests that were one call its own result, exactly as it would have got it alone."""
    return _SPLIT[requests[0].row.result](requests, result)


def _copies(requests: Sequence[Request], result: object) -> list[CallResult]:
    return [result, *(copy.deepcopy(result) for _ in requests[1:])]


def _rows(requests: Sequence[Request], result: CallResult) -> list[CallResult]:
    own: list[CallResult] = []
    start = 0
    field, *_ = requests[0].row.query_fields
    for request in requests:
        stop = start + len(request.arguments[field])
        if isinstance(result, list):
            own.append(result[start:stop])
        else:
            entry = dict(result)
            for name in _FIELDS:
                if entry.get(name) is not None:
                    entry[name] = entry[name][start:stop]
            entry["included"] = request.arguments.get("include", result["included"])
            own.append(entry)
        start = stop
    return own


def _records(requests: Sequence[Request], result: CallResult) -> list[CallResult]:
    """Give each look-up by id its records, in the order in which Chroma would return them."""
    if not requests[0].arguments.get("ids"):
        return _copies(requests, result)  # No ids: they were equal.
    index = {id: row for row, id in enumerate(result["ids"])}
    given: set[str] = set()
    own = []
    for request in requests:
        rows = sorted(index[id] for id in set(request.arguments["ids"]) if id in index)
        entry = dict(result)
        for name in _FIELDS:
            if entry.get(name) is not None:
                entry[name] = _picked(entry[name], rows)
        if entry.get("metadatas") is not None and not given.isdisjoint(entry["ids"]):
            entry["metadatas"] = copy.deepcopy(entry["metadatas"])
        given.update(entry["ids"])
        entry["included"] = request.arguments.get("include", result["included"])
        own.append(entry)
    return own


def _picked(values: CallResult, rows: Sequence[int]) -> CallResult:
    return [values[row] for row in rows] if isinstance(values, list) else values[list(rows)]


def _deleted(requests: Sequence[Request], result: CallResult) -> list[CallResult]:
    # Local Chroma counts the ids it was given, whether or not they were there.
    return [type(result)(deleted=len(request.arguments["ids"])) for request in requests]


def _ids(requests: Sequence[Request], result: Sequence[str]) -> list[CallResult]:
    return [[id for id in result if id in own] for own in _own_ids(requests)]


def _by_id(requests: Sequence[Request], result: CallResult) -> list[CallResult]:
    return [{id: value for id, value in result.items() if id in own} for own in _own_ids(requests)]


def _hits(requests: Sequence[Request], result: CallResult) -> list[CallResult]:
    return [[hit for hit in result if hit["id"] in own] for own in _own_ids(requests)]


def _own_ids(requests: Sequence[Request]) -> list[set[str]]:
    return [set(request.arguments["ids"]) for request in requests]


_SPLIT = {
    Result.PLAIN: _copies,
    Result.RECORDS: _records,
    Result.ROWS: _rows,
    Result.DELETED: _deleted,
    Result.IDS: _ids,
    Result.BY_ID: _by_id,
    Result.HITS: _hits,
}


def joined(request: Request, slices: Sequence[CallResult]) -> CallResult:
    """Put the results of the slices of a write, or of the pages of a read, together."""
    first = slices[0]
    if len(slices) == 1:
        return first
    result = request.row.result
    if result is Result.DELETED:
        return type(first)(deleted=sum(each["deleted"] for each in slices))
    if result is Result.BY_ID:
        return {id: value for each in slices for id, value in each.items()}
    if result in {Result.IDS, Result.HITS}:
        return [entry for each in slices for entry in each]
    if result not in {Result.RECORDS, Result.ROWS}:
        return slices[-1]
    whole = dict(first)
    for name in _FIELDS:
        if whole.get(name) is not None:
            whole[name] = _concatenated([each[name] for each in slices])
    return whole


def _concatenated(pages: Sequence[CallResult]) -> CallResult:
    if isinstance(pages[0], list):
        return [value for page in pages for value in page]
    # Vectors come as arrays of shape (records, dimensions), from a backend that has imported numpy already.
    import numpy as np

    return np.concatenate([page for page in pages if len(page)] or pages[:1])


def frozen(value: object, *, without: tuple[str, ...] = (), _depth: int = 0) -> Hashable | None:
    """Return a hashable form of plain data, or None where there is something in it that is not plain, or nested too deep."""
    kind = type(value)
    # The type belongs to it: 1, 1.0 and True are equal, but not the same filter.
    if kind in _SIMPLE:
        return kind, value
    if _depth > _DEEPEST:
        return None
    if isinstance(value, dict):
        items: Iterable[tuple[Hashable, object]] = value.items()
        if without:
            items = [(key, item) for key, item in items if key not in without]
        return _frozen_items(items, "dict", _depth)
    if isinstance(value, (list, tuple)):
        return _frozen_items(enumerate(value), "list", _depth)
    if is_dataclass(value) and not _is_hashable(value):
        # It holds a filter, as the specification of a list does.
        form = frozen({field.name: getattr(value, field.name) for field in fields(value)}, _depth=_depth)
        return None if form is None else (kind, form)
    return (kind, value) if _is_plain(value) else None


def _frozen_items(items: Iterable[tuple[Hashable, object]], kind: str, depth: int) -> Hashable | None:
    made = []
    for key, item in items:
        form = frozen(item, _depth=depth + 1)
        if form is None:
            return None
        made.append((key, form))
    return kind, tuple(made)


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _is_plain(value: object) -> bool:
    if isinstance(value, (str, int, float, UUID, Enum)):
        return True
    # Frozen and hashable: a value that says what it says, such as how a namespace is searched.
    return is_dataclass(value) and type(value).__hash__ is not None


def is_get_by_id(arguments: Arguments) -> bool:
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
        return key, len(vectors) * (len(arguments[row.searched_field]) if row.searched_field else 1)
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


def _given(arguments: Arguments, name: str) -> Sequence[Vector]:
    values = arguments.get(name)
    return () if values is None else values


def _length(vector: Vector) -> int:
    return 0 if vector is None else len(vector)
