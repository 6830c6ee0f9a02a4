"""What Chroma takes and can never store: refused before it is written, because what stands in its log is tried for ever.

Used wherever records come in: the client, a memory, an import, a migration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiochroma._errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MOST_METADATA_VALUES", "check_metadata_size", "check_storable_text"]

MOST_METADATA_VALUES = 5_400
"""Chroma writes the metadata of a record in one statement with six variables for each value, and SQLite takes 32,766. The
document, and what aiochroma adds, need a few."""


def check_metadata_size(metadata: Mapping[str, Any], where: str) -> None:
    """Check that the metadata of a record can be stored; every element of a list counts.

    Args:
        metadata: The metadata.
        where: How the message names what it belongs to.

    Raises:
        InvalidInputError: There are too many values.
    """
    if len(metadata) * 8 < MOST_METADATA_VALUES and not any(
        isinstance(value, list) for value in metadata.values()
    ):
        return
    values = sum(len(value) if isinstance(value, list) else 1 for value in metadata.values())
    if values > MOST_METADATA_VALUES:
        raise InvalidInputError(
            f"The metadata of {where} has {values:,} values, and Chroma can store {MOST_METADATA_VALUES:,} of one record. "
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
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{where} has {text[error.start]!r} at {error.start}: one half of a surrogate pair, which is not text. Decode what "
            "it came from with `errors='replace'`, for example."
        ) from None
