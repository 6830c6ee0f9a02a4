"""What was changed in a memory, and when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from aiochroma.memory.items import user_metadata

if TYPE_CHECKING:
    from aiochroma.records.history import Entry

__all__ = ["Changes", "MemoryChange", "change_from"]


@dataclass(frozen=True)
class MemoryChange:
    """One change of one memory.

    Attributes:
        at: When (UTC).
        action: ``"remember"``, ``"refresh"``, ``"update"``, ``"pin"``, ``"unpin"``, ``"forget"`` or ``"sweep"``.
        namespace: Where.
        id: Which memory.
        text: Its text before the change; None where there was none.
        metadata: The user's metadata before the change; None where there was no memory.
    """

    at: datetime
    action: str
    namespace: str
    id: str
    text: str | None
    metadata: dict[str, Any] | None


class Changes(list[MemoryChange]):
    """The empty list that an unavailable store gives; ``error`` tells why."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def change_from(entry: Entry) -> MemoryChange:
    """Make a change of an entry of the history."""
    return MemoryChange(
        at=datetime.fromtimestamp(entry.at, timezone.utc),
        action=entry.action,
        namespace=entry.namespace,
        id=entry.id,
        text=entry.text,
        metadata=None if entry.metadata is None else user_metadata(entry.metadata),
    )
