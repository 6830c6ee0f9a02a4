"""Arguments of long calls cut into slices, results of merged and cut calls taken apart and put together: pure functions."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from aiochroma.core.operations import Result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiochroma.core.request import Request

__all__ = ["cut", "joined", "split"]

_FIELDS = ("ids", "embeddings", "metadatas", "documents", "uris", "data", "distances")
"""Fields of Chroma's results of ``get`` and ``query``."""


# -- arguments ---------------------------------------------------------------------------------------------------------


def cut(request: Request, start: int, stop: int) -> dict[str, Any]:
    """Return the arguments of a write for the records from ``start`` to ``stop``."""
    arguments = dict(request.arguments)
    for name in request.row.record_fields:
        if arguments.get(name) is not None:
            arguments[name] = arguments[name][start:stop]
    return arguments


# -- results of merged calls -------------------------------------------------------------------------------------------


def split(requests: Sequence[Request], result: Any) -> list[Any]:
    """Give each of several requests that were one call its own result, exactly as it would have got it alone."""
    return _SPLIT[requests[0].row.result](requests, result)


def _copies(requests: Sequence[Request], result: object) -> list[Any]:
    return [result, *(copy.deepcopy(result) for _ in requests[1:])]


def _rows(requests: Sequence[Request], result: Any) -> list[Any]:
    own: list[Any] = []
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


def _records(requests: Sequence[Request], result: Mapping[str, Any]) -> list[Any]:
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


def _picked(values: Any, rows: Sequence[int]) -> Any:
    return [values[row] for row in rows] if isinstance(values, list) else values[list(rows)]


def _deleted(requests: Sequence[Request], result: Any) -> list[Any]:
    # Local Chroma counts the ids it was given, whether or not they were there.
    return [type(result)(deleted=len(request.arguments["ids"])) for request in requests]


def _ids(requests: Sequence[Request], result: Sequence[str]) -> list[Any]:
    return [[id for id in result if id in own] for own in _own_ids(requests)]


def _by_id(requests: Sequence[Request], result: Mapping[str, Any]) -> list[Any]:
    return [{id: value for id, value in result.items() if id in own} for own in _own_ids(requests)]


def _hits(requests: Sequence[Request], result: Sequence[Mapping[str, Any]]) -> list[Any]:
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


# -- results of cut calls ----------------------------------------------------------------------------------------------


def joined(request: Request, slices: Sequence[Any]) -> Any:
    """Put the results of the slices of a write, or of the pages of a read, together."""
    first = slices[0]
    if len(slices) == 1:
        return first
    result = request.row.result
    if result is Result.DELETED:
        return type(first)(deleted=sum(part["deleted"] for part in slices))
    if result is Result.BY_ID:
        return {id: value for part in slices for id, value in part.items()}
    if result in {Result.IDS, Result.HITS}:
        return [entry for part in slices for entry in part]
    if result is not Result.RECORDS:
        return slices[-1]
    whole = dict(first)
    for name in _FIELDS:
        if whole.get(name) is not None:
            whole[name] = _concatenated([part[name] for part in slices])
    return whole


def _concatenated(pages: Sequence[Any]) -> Any:
    if isinstance(pages[0], list):
        return [value for page in pages for value in page]
    # Vectors come as arrays of shape (records, dimensions), from a backend that has imported numpy already.
    import numpy as np

    return np.concatenate([page for page in pages if len(page)] or pages[:1])
