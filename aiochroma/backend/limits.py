"""What Chroma takes and can never store: refused before it is written, because what stands in its log is tried for ever.

Used wherever records come in: the client, a memory, an import, a migration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiochroma._errors import InvalidInputError, shown
from aiochroma._types import MetadataView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


__all__ = [
    "MOST_METADATA_VALUES",
    "check_conditions",
    "check_filter",
    "check_index",
    "check_metadata_size",
    "check_records",
    "check_storable_text",
]

MOST_METADATA_VALUES = 5_400
"""Chroma writes the metadata of a record in one statement with six variables for each value, and SQLite takes 32,766. The
document, and what aiochroma adds, need a few."""

_CHROMAS_MOST_VALUES = 5_461
"""The exact limit, in which a document counts as one value."""

_MOST_CONDITIONS = 900
"""SQLite takes an expression of depth 1,000, and the time for making it grows with the square of this number."""

_NEIGHBORS = range(2, 16_385)
"""With none Chroma's native code crashes at the first write, with one it finds next to nothing, and with more its files pass
for damaged."""


def check_records(
    ids: Sequence[str],
    metadatas: Sequence[MetadataView | None] | None,
    documents: Sequence[str | None] | None,
) -> None:
    """Check that records can be stored; Chroma has checked their form.

    Args:
        ids: Their ids.
        metadatas: Their metadata, where there are any.
        documents: Their documents, where there are any.

    Raises:
        InvalidInputError: One of them cannot; names it, and nothing is written.
    """
    for position, id in enumerate(ids):
        check_storable_text(id, f"ids[{position}]")
    for position, document in enumerate(documents or ()):
        if isinstance(document, str):
            check_storable_text(document, f"documents[{position}]")
    for position, metadata in enumerate(metadatas or ()):
        if metadata is None:
            continue
        where = f"metadatas[{position}]"
        for key, value in metadata.items():
            check_storable_text(key, f"A key of {where}")
            for part in value if isinstance(value, list) else (value,):
                if isinstance(part, str):
                    check_storable_text(part, f"{where}[{shown(key)}]")
        has_document = documents is not None and documents[position] is not None
        check_metadata_size(metadata, where, most=_CHROMAS_MOST_VALUES - has_document)


def check_filter(value: object, where: str) -> None:
    """Check that all that a filter compares with is text where it is a string; Chroma has checked its form.

    Args:
        value: The filter, or one that stands in it.
        where: How the message names it.

    Raises:
        InvalidInputError: A string is not text.
    """
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, dict):
        for key, part in value.items():
            check_filter(key, where)
            check_filter(part, where)
    elif isinstance(value, list):
        for part in value:
            check_filter(part, where)


def check_conditions(*filters: object) -> None:
    """Check that filters have no more conditions than SQLite takes in one statement.

    Args:
        filters: What one call is asked to go by, in Chroma's language, or None.

    Raises:
        InvalidInputError: Says how many there are, and how many there may be.
    """
    conditions = sum(map(_conditions_in, filters))
    if conditions > _MOST_CONDITIONS:
        raise InvalidInputError(
            f"The filter has {conditions} conditions, and Chroma takes {_MOST_CONDITIONS}: use `$in` with a list of values, or "
            "ask in several calls."
        )


def _conditions_in(where: object) -> int:
    """Count the conditions, however deep the filter is."""
    count, left = 0, [where]
    while left:
        found = left.pop()
        for key, value in found.items() if isinstance(found, dict) else ():
            if key in {"$and", "$or"} and isinstance(value, list):
                left.extend(value)
            else:
                count += 1
    return count


def check_index(options: Mapping[str, Any] | None) -> None:
    """Check that Chroma can keep an index with these options.

    Args:
        options: Of the configuration's ``hnsw``, or None.

    Raises:
        InvalidInputError: It cannot: it would crash the process, at the first write and at every opening afterwards.
    """
    neighbors = (options or {}).get("max_neighbors")
    if isinstance(neighbors, int) and neighbors not in _NEIGHBORS:
        raise InvalidInputError(
            f"`max_neighbors` (`hnsw:M`) of an index must be from {_NEIGHBORS[0]} to {_NEIGHBORS[-1]}, got {shown(neighbors)}: "
            "Chroma's native code does not work with others."
        )


def check_metadata_size(metadata: MetadataView, where: str, *, most: int = MOST_METADATA_VALUES) -> None:
    """Check that the metadata of a record can be stored; every element of a list counts.

    Args:
        metadata: The metadata.
        where: How the message names what it belongs to.
        most: How many values there may be.

    Raises:
        InvalidInputError: There are too many values.
    """
    if len(metadata) <= most and not any(isinstance(value, list) for value in metadata.values()):
        return
    values = sum(len(value) if isinstance(value, list) else 1 for value in metadata.values())
    if values > most:
        raise InvalidInputError(
            f"The metadata of {where} has {values:,} values, and Chroma can store {most:,} of one record. "
            "Write what belongs together as one JSON text."
        )


def check_storable_text(text: str, where: str) -> None:
    """Check that a text can be stored, and be found again.

    Args:
        text: The text.
        where: How the message names it.

    Raises:
        InvalidInputError: It holds one half of a surrogate pair, or a NUL character.
    """
    if "\0" in text:
        raise InvalidInputError(
            f"{where} has a NUL character at position {text.index(chr(0))}: the full-text index of SQLite ends there, and newer "
            "releases call such an index damaged. Remove it with `text.replace('\\0', '')`."
        )
    _check_text(text, where)


def _check_text(text: str, where: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{where} has {text[error.start]!r} at {error.start}: one half of a surrogate pair, which is not text. Decode what "
            "it came from with `errors='replace'`, for example."
        ) from None
