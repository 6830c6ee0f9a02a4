"""Results of merged and cut calls, taken apart and put together: pure functions."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiochroma.core.request import Request

__all__ = ["RESULT_FIELDS", "concatenated", "split_get", "split_questions"]

RESULT_FIELDS = ("ids", "embeddings", "metadatas", "documents", "uris", "data", "distances")


def split_questions(requests: Sequence[Request], result: Any) -> list[Any]:
    """Give each of several searches that were one call its own rows."""
    parts: list[Any] = []
    start = 0
    for request in requests:
        stop = start + len(request.arguments["query_embeddings"])
        if isinstance(result, list):
            parts.append(result[start:stop])
            start = stop
            continue
        part = dict(result)
        for name in RESULT_FIELDS:
            if part.get(name) is not None:
                part[name] = part[name][start:stop]
        part["included"] = request.arguments.get("include", result["included"])
        parts.append(part)
        start = stop
    return parts


def split_get(requests: Sequence[Request], result: Mapping[str, Any]) -> list[Any]:
    """Give each of several look-ups by id its own records, in the order in which Chroma would return them."""
    place = {id: position for position, id in enumerate(result["ids"])}
    given: set[str] = set()
    parts = []
    for request in requests:
        wanted = sorted(place[id] for id in set(request.arguments["ids"]) if id in place)
        part = dict(result)
        for name in RESULT_FIELDS:
            if part.get(name) is not None:
                part[name] = _picked(part[name], wanted)
        if part.get("metadatas") is not None and not given.isdisjoint(part["ids"]):
            part["metadatas"] = copy.deepcopy(part["metadatas"])
        given.update(part["ids"])
        part["included"] = request.arguments.get("include", result["included"])
        parts.append(part)
    return parts


def _picked(values: Any, positions: Sequence[int]) -> Any:
    return (
        [values[position] for position in positions] if isinstance(values, list) else values[list(positions)]
    )


def concatenated(pieces: Sequence[Any]) -> Any:
    """Put the pieces of one field of a result together."""
    if isinstance(pieces[0], list):
        return [value for piece in pieces for value in piece]
    # Vectors come as arrays of shape (records, dimensions), from a backend that has imported numpy already.
    import numpy as np

    return np.concatenate([piece for piece in pieces if len(piece)] or pieces[:1])
