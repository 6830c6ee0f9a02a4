"""What a memory is in Chroma: the keys of its metadata, and pure functions over records."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CREATED_AT",
    "EXPIRES_AT",
    "PARTS",
    "PART_OF",
    "PINNED",
    "POSITION",
    "THREAD",
    "WRITING",
    "Place",
    "Record",
    "add_parts",
    "before",
    "candidate",
    "has_expired",
    "merged_metadata",
    "part_id",
    "stub",
    "text_id",
    "thread_position",
    "writing_of",
]

CREATED_AT = "aiochroma:created_at"
EXPIRES_AT = "aiochroma:expires_at"
PINNED = "aiochroma:pinned"
THREAD = "aiochroma:thread"
POSITION = "aiochroma:position"
PARTS = "aiochroma:parts"
"""Of how many parts a memory consists; absent where it is whole."""
WRITING = "aiochroma:writing"
"""Which writing of the memory its parts belong to."""
PART_OF = "aiochroma:part_of"

Record = dict[str, Any]
Place = dict[str, str]


def text_id(text: str, number: int = 0) -> str:
    """Return the id of a text that was given none: equal texts have equal ids, so remembering twice is harmless.

    Args:
        text: The text.
        number: Above 0 for its next ids, should the first belong to a memory that has another text by now.
    """
    return hashlib.sha256((f"{number}\0{text}" if number else text).encode()).hexdigest()[:32]


def part_id(writing: str, number: int) -> str:
    """Return the id of a part."""
    return f"{writing}:{number}"


def writing_of(part: str) -> str:
    """Return the writing that a part belongs to, by the part's id."""
    return part.rpartition(":")[0]


def has_expired(metadata: Mapping[str, Any], now: float) -> bool:
    """Return whether a memory has expired; a pinned one does not."""
    return not metadata.get(PINNED) and bool(metadata.get(EXPIRES_AT, now + 1) <= now)


def candidate(id: str, document: Any, metadata: Any, distance: float | None) -> Record:
    """Make what a search returns of a record."""
    return {
        "id": id,
        "distance": distance,
        "text": 0.0,
        "own": 0.0,
        "place": None,
        "document": document or "",
        "metadata": metadata or {},
    }


def stub(id: str, distance: float | None) -> Record:
    """Make what a search returns of a record that was not read: its metadata is None."""
    return {**candidate(id, "", None, distance), "metadata": None}


def thread_position(metadata: Mapping[str, Any]) -> tuple[str | None, float]:
    """Return where a memory stands: its thread and its place there.

    Other programs may have written anything; what is no thread is none, and what is no place is 0.
    """
    thread, place = metadata.get(THREAD), metadata.get(POSITION)
    return (
        thread if isinstance(thread, str) else None,
        float(place) if isinstance(place, (int, float)) and math.isfinite(place) else 0.0,
    )


def before(record: Record | None) -> tuple[str | None, dict[str, Any] | None]:
    """Return what the history keeps of a memory as it was: text and metadata."""
    return (None, None) if record is None else (record["document"], record["metadata"])


def merged_metadata(given: Mapping[str, Any], known: Record | None, *, exact: bool) -> dict[str, Any]:
    """Return what is written over the metadata of a memory; None takes a value away."""
    stored = dict(given)
    if known is None:
        stored.setdefault(POSITION, stored[CREATED_AT])
        return stored
    old = known["metadata"]
    if exact:
        stored.setdefault(POSITION, stored[CREATED_AT])
        stored.update((key, None) for key in old if key not in stored)
        return stored
    made = stored.pop(CREATED_AT)
    if stored.get(THREAD, old.get(THREAD)) != old.get(THREAD):
        stored.setdefault(POSITION, made)
    stored.update((key, None) for key in (EXPIRES_AT, PARTS, WRITING) if key in old and key not in stored)
    return stored


def add_parts(candidates: dict[str, Record], records: Mapping[str, Record], rows: Iterable[Any]) -> None:
    """Add memories by their nearest parts; the rows come nearest first."""
    for id, distance, document, metadata in rows:
        owner = metadata[PART_OF]
        known = candidates.get(owner) or records.get(owner)
        if known is None or known["metadata"].get(WRITING) != writing_of(id) or "passage" in known:
            continue
        entry = candidates.setdefault(owner, dict(known))
        entry["passage"] = document
        entry["distance"] = distance if entry["distance"] is None else min(distance, entry["distance"])
