"""Entries of Chroma's log that can never be applied: Chroma has them, and from then on fails at each use of the collection.

Chroma itself logs records with more metadata than SQLite takes. The rest is what other programs have written there.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, NoReturn

from aiochroma.disk.schema import ADD, MOST_VALUES, UPSERT

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from aiochroma.disk.schema import LogEntry

__all__ = ["unappliable"]

_NUMBER_BYTES = 4


def unappliable(connection: sqlite3.Connection, entries: Iterable[LogEntry], applied: int) -> dict[int, str]:
    """Return, by number, why entries of a collection's log can never be applied.

    Args:
        connection: A connection to the database.
        entries: The entries.
        applied: The number of the last one that Chroma has applied; what it has read once is not looked at again.
    """
    found = {}
    for entry in entries:
        if entry.kind < 0:
            found[entry.sequence] = f"what is logged of record {entry.id!r} is none of Chroma's operations"
        elif entry.sequence > applied:
            # SQLite knows the length of a vector without reading it.
            row = connection.execute(
                "SELECT encoding, typeof(vector), length(vector), metadata FROM embeddings_queue WHERE seq_id = ?",
                (entry.sequence,),
            ).fetchone()
            reason = row and (_wrong_vector(entry, *row[:3]) or _wrong_metadata(row[3]))
            if reason:
                found[entry.sequence] = f"record {entry.id!r} {reason}"
    return found


def _wrong_vector(entry: LogEntry, encoding: object, kind: str, length: int | None) -> str:
    if kind == "null":
        if entry.kind in {ADD, UPSERT}:
            return "has no vector"
        return "" if encoding in {None, "FLOAT32"} else f"has a vector in the encoding {encoding!r}"
    if encoding != "FLOAT32":
        return f"has a vector in the encoding {encoding!r}"
    if kind not in {"blob", "text"} or not length or length % _NUMBER_BYTES:
        return "has a vector whose bytes are no numbers"
    return ""


def _wrong_metadata(text: object) -> str:
    if text is None:
        return ""
    try:
        metadata = (
            json.loads(text, parse_constant=_refuse, parse_float=_finite) if isinstance(text, str) else None
        )
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        return "has metadata that is no JSON object"
    for key, value in metadata.items():
        if not _is_storable(value):
            return f"has metadata that Chroma does not store, {key!r}"
    values = max([len(metadata), *(len(value) for value in metadata.values() if isinstance(value, list))])
    return f"has {values} metadata values, {MOST_VALUES} are possible" if values > MOST_VALUES else ""


def _is_storable(value: object) -> bool:
    if isinstance(value, dict):
        return "#type" in value  # A sparse vector.
    if not isinstance(value, list):
        return True
    texts = sum(isinstance(part, str) for part in value)
    return texts in {0, len(value)} and all(isinstance(part, (str, int, float)) for part in value)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(digits)
    return number
