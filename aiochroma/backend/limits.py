"""What Chroma takes and can never store: refused before it is written, because what stands in its log is tried for ever.

Used wherever records come in: the client, a memory, an import, a migration.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from aiochroma._errors import InvalidInputError, shown
from aiochroma._types import JsonObject, MetadataView
from aiochroma.disk.schema import MOST_VALUES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aiochroma._types import Vector


__all__ = [
    "MOST_BYTES",
    "MOST_METADATA_VALUES",
    "bound_counts",
    "check_collection_metadata",
    "check_conditions",
    "check_filter",
    "check_index",
    "check_metadata_size",
    "check_records",
    "check_storable_text",
    "check_value",
    "check_where",
    "is_number",
    "kind_of_value",
    "usual_question",
]

MOST_METADATA_VALUES = 5_400
"""Chroma writes the metadata of a record in one statement with six variables for each value, and SQLite takes 32,766. The
document, and what aiochroma adds, need a few."""

MOST_BYTES = 1_000_000
"""How long a text may be in UTF-8, and all metadata of a record together. Chroma writes a text of this length in a second, in one
piece in which everybody waits, and reads long metadata again at later writes."""

_MOST_CONDITIONS = 900
"""SQLite takes an expression of depth 1,000, and the time for making it grows with the square of this number."""

_NEIGHBORS = range(2, 16_385)
"""With none Chroma's native code crashes at the first write, with one it finds next to nothing, and with more its files pass
for damaged."""

_MOST_PATTERN_BYTES = 49_998
"""SQLite takes a LIKE of 50,000 bytes, and Chroma puts a '%' on either side."""

_LARGEST_COUNT = 2**32 - 1
"""Chroma's native code takes 32 bits."""

_DEEPEST = 100
"""The most nested levels of '$and' and '$or': each is a level of the call stack, here and below."""

_MOST_QUESTIONS = 64
_USUALLY_INCLUDED = frozenset({"documents", "embeddings", "metadatas", "distances"})

_COMPARISONS = frozenset({"$gt", "$gte", "$lt", "$lte"})
_OPERATORS = frozenset({*_COMPARISONS, "$eq", "$ne", "$in", "$nin", "$contains", "$not_contains"})


def check_records(
    ids: Sequence[str],
    metadatas: Sequence[MetadataView | None] | None,
    documents: Sequence[str | None] | None,
    uris: Sequence[object] | None = None,
    most: float = MOST_BYTES,
) -> None:
    """Check that records can be stored; Chroma has checked their form, but for that of the URIs.

    Args:
        ids: The ids of the records.
        metadatas: The metadata of each record, where any is written.
        documents: The document of each record, where any is written.
        uris: The URI of each record, where any is written.
        most: How many bytes a document, an id, a URI and the metadata of a record may have.

    Raises:
        InvalidInputError: One of them cannot; names it, and nothing is written.
    """
    for name, texts in {"ids": ids, "documents": documents, "uris": uris}.items():
        for position, text in enumerate(texts or ()):
            if isinstance(text, str):
                if not _is_plain(text, most):
                    check_storable_text(text, f"{name}[{position}]", most)
            elif text is not None and name == "uris":
                raise InvalidInputError(f"uris[{position}] must be a string, got {shown(text)}.")
    for position, metadata in enumerate(metadatas or ()):
        if metadata is None:
            continue
        where = f"metadatas[{position}]"
        _check_values(metadata, where, most)
        has_document = documents is not None and documents[position] is not None
        check_metadata_size(metadata, where, MOST_VALUES - has_document, most)


def _check_values(metadata: MetadataView, where: str, most: float) -> None:
    for key, value in metadata.items():
        if not _is_plain(key, most):
            check_storable_text(key, f"A key of {where}", most)
        for part in value if isinstance(value, list) else (value,):
            if not (_is_plain(part, most) if isinstance(part, str) else isinstance(part, bool)):
                _check_part(part, f"{where}[{shown(key)}]", most)


def _check_part(part: object, where: str, most: float) -> None:
    """Check a value of metadata, or an element of one.

    A list with a number that is not finite ends the whole collection; for a larger integer Chroma keeps the nearest float.
    """
    if isinstance(part, str):
        check_storable_text(part, where, most)
    elif isinstance(part, (int, float)):
        check_value(part, where)


def check_collection_metadata(metadata: Mapping[str, object] | None) -> None:
    """Check that metadata of a collection can be stored: Chroma's native code fails in the middle of what it does not know.

    Raises:
        InvalidInputError: It cannot; names what is wrong, and nothing is written.
    """
    if not metadata:
        return
    for key, value in metadata.items():
        where = f"The collection's metadata {shown(key)}"
        if not isinstance(value, (str, int, float)):
            raise InvalidInputError(
                f"{where} = {shown(value)} must be a string, an integer, a float or a boolean: Chroma keeps lists for records "
                "alone. Write it as JSON text."
            )
        _check_text(key, where)
        if isinstance(value, str):
            _check_text(value, where)
        else:
            _check_part(value, where, math.inf)
    check_metadata_size(metadata, "the collection")


def check_filter(value: object, where: str, most: float = math.inf) -> None:
    """Check that all that a filter compares with is text that can be looked for; Chroma has checked its form.

    Args:
        value: The filter, or one that stands in it.
        where: How the message names it.
        most: How many bytes a string may have.

    Raises:
        InvalidInputError: A string is not text, or too long.
    """
    if isinstance(value, str):
        if len(value) * 4 > most and _bytes_in(value) > most:
            raise InvalidInputError(
                f"{where} has {_bytes_in(value):,} bytes, and may have {most:,}: nobody else is served while it is looked for."
            )
        _check_text(value, where)
    elif isinstance(value, dict):
        for key, part in value.items():
            check_filter(key, where, most)
            is_pattern = key in {"$contains", "$not_contains"} and where.endswith("`where_document`")
            check_filter(
                part, f"{shown(key)} of {where}", min(most, _MOST_PATTERN_BYTES) if is_pattern else most
            )
    elif isinstance(value, list):
        for part in value:
            check_filter(part, where, most)


def bound_counts(arguments: JsonObject) -> None:
    """Make numbers of records that Chroma cannot take, such as ``sys.maxsize`` for all, the largest that it can.

    Args:
        arguments: Of any operation; changed.

    Raises:
        InvalidInputError: One is negative.
    """
    for name in ("limit", "offset", "n_results"):
        count = arguments.get(name)
        if isinstance(count, int) and not 0 <= count <= _LARGEST_COUNT:
            if count < 0:
                raise InvalidInputError(f"`{name}` must not be negative, got {shown(count)}.")
            arguments[name] = _LARGEST_COUNT


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


def check_metadata_size(
    metadata: MetadataView, where: str, most_values: int = MOST_METADATA_VALUES, most: float = MOST_BYTES
) -> None:
    """Check that the metadata of a record can be stored; every element of a list counts.

    Args:
        metadata: The metadata.
        where: How the message names what it belongs to.
        most_values: How many values there may be.
        most: How many bytes they may have, with their keys.

    Raises:
        InvalidInputError: There are too many values, or they are too long.
    """
    values = size = 0
    for key, value in metadata.items():
        parts = value if isinstance(value, list) else (value,)
        values += len(parts)
        size += _bytes_in(key)
        for part in parts:
            if isinstance(part, str):
                size += _bytes_in(part)
    if values > most_values:
        raise InvalidInputError(
            f"The metadata of {where} has {values:,} values, and Chroma can store {most_values:,} of one record. "
            "Write what belongs together as one JSON text."
        )
    if size > most:
        raise InvalidInputError(
            f"The metadata of {where} has {size:,} bytes, and may have {most:,}: while a larger one is written, "
            "everybody waits. Keep it in a file of its own, and its name here."
        )


def _bytes_in(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def check_storable_text(text: str, where: str, most: float = MOST_BYTES) -> None:
    """Check that a text can be stored, and be found again.

    Args:
        text: The text.
        where: How the message names it.
        most: How many bytes it may have.

    Raises:
        InvalidInputError: It is too long, or holds one half of a surrogate pair or a NUL character.
    """
    if len(text) * 4 > most and _bytes_in(text) > most:
        raise InvalidInputError(
            f"{where} has {_bytes_in(text):,} bytes, and may have {most:,}: while a longer one is written, everybody waits. "
            "Write it in several parts, or keep it in a file of its own and its name here."
        )
    if "\0" in text:
        raise InvalidInputError(
            f"{where} has a NUL character at position {text.index(chr(0))}: the full-text index of SQLite ends there, and newer "
            "releases call such an index damaged. Take it out, or write a space for it."
        )
    _check_text(text, where)


def _is_plain(text: str, most: float) -> bool:
    """Tell at once what needs no further look, which is nearly every text; to name one costs more than to look at it."""
    return text.isascii() and len(text) <= most and "\0" not in text


def _check_text(text: str, where: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{where} has {text[error.start]!r} at {error.start}: one half of a surrogate pair, which is not text: what it came "
            "from is not UTF-8, or was cut in the middle of a character."
        ) from None


def check_value(value: str | float, what: str) -> None:
    """Check that Chroma can store a value of metadata, or compare with it.

    Raises:
        InvalidInputError: It cannot.
    """
    if isinstance(value, str):
        check_storable_text(value, what)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidInputError(f"{what} has {value!r}, which is not a finite number.")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidInputError(
            f"{what} has {shown(value)}, which is not an integer of 64 bits; write it as text."
        )


def is_number(value: object) -> TypeGuard[float]:
    """Return whether something is an integer or a float, and not a boolean or an integer that no float can hold."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, float)


def check_where(where: object, *, level: int = 0) -> None:
    """Check that a filter is one that Chroma and the index both understand.

    Args:
        where: The filter, or one that stands in it.
        level: How many other filters it stands in.

    Raises:
        InvalidInputError: It is not.
    """
    if level == 0:
        check_conditions(where)
    if not isinstance(where, Mapping) or len(where) != 1:
        raise InvalidInputError(
            f"`where` must be a mapping with one key (a name, or '$and' / '$or' with a list), got {shown(where)}."
        )
    (key, condition), *_ = where.items()
    if key in {"$and", "$or"}:
        if not isinstance(condition, list) or not condition:
            raise InvalidInputError(
                f"{shown(key)} of `where` must have a list of filters, got {shown(condition)}."
            )
        if level == _DEEPEST:
            raise InvalidInputError(
                f"`where` has more than {_DEEPEST} levels of '$and' and '$or'; write it flatter."
            )
        for each in condition:
            check_where(each, level=level + 1)
        return
    # Chroma finds texts under this name, and refuses to compare them.
    if not isinstance(key, str) or key.startswith("$") or key == "#document":
        raise InvalidInputError(f"`where` has the key {shown(key)}; it must be the name of a metadata value.")
    check_storable_text(key, f"The key {shown(key)} of `where`")
    if not isinstance(condition, Mapping):
        _check_scalar(condition, f"{shown(key)} of `where`")
        return
    if len(condition) != 1 or next(iter(condition)) not in _OPERATORS:
        raise InvalidInputError(
            f"{shown(key)} of `where` must have one of {sorted(_OPERATORS)}, got {shown(condition)}."
        )
    operator, given = next(iter(condition.items()))
    _check_given(operator, given, f"{operator!r} of {shown(key)} in `where`")


def _check_given(operator: str, given: object, what: str) -> None:
    """Check what an operator compares with."""
    if operator in {"$in", "$nin"}:
        if not isinstance(given, list) or not given:
            raise InvalidInputError(f"{what} must have a list with something in it, got {shown(given)}.")
        for one in given:
            _check_scalar(one, what)
        if len(set(map(kind_of_value, given))) > 1:
            raise InvalidInputError(
                f"{what} must have a list of one type (strings, integers, floats or booleans), got {shown(given)}."
            )
        return
    if operator in _COMPARISONS and not is_number(given):
        raise InvalidInputError(f"{what} must have a number, got {shown(given)}.")
    _check_scalar(given, what)


def _check_scalar(value: object, what: str) -> None:
    if not isinstance(value, (str, int, float)):
        raise InvalidInputError(
            f"{what} must have a string, an integer, a float or a boolean, got {type(value).__name__}: {shown(value)}."
        )
    check_value(value, what)


def kind_of_value(value: object) -> type | None:
    """Return the type that Chroma takes a value for, or None where it takes it for none."""
    # A boolean is an integer to Python, so it is asked for first.
    return next((kind for kind in (bool, str, int, float) if isinstance(value, kind)), None)


def usual_question(
    given: object, n_results: object, include: object, others: Iterable[object]
) -> list[Vector] | None:
    """Return the vectors of a query as most are, in which Chroma's own check would find nothing; None where it has to look.

    That check takes half of the time that a query costs its caller's process.

    Args:
        given: The vectors.
        n_results: How many records to return.
        include: What of them.
        others: What else there may be in a query.
    """
    import numpy as np

    vectors = list(given) if type(given) is np.ndarray and given.ndim == 2 else given
    if type(vectors) is not list or not 0 < len(vectors) <= _MOST_QUESTIONS:
        return None
    if type(n_results) is not int or n_results < 1 or any(other is not None for other in others):
        return None
    if type(include) is not list or not all(
        type(name) is str and name in _USUALLY_INCLUDED for name in include
    ):
        return None
    length = len(vectors[0]) if type(vectors[0]) is np.ndarray and vectors[0].ndim else 0
    for vector in vectors:
        if type(vector) is not np.ndarray or vector.dtype != np.float32 or vector.shape != (length,):
            return None
        if not length or not np.isfinite(vector).all():
            return None
    return vectors
