"""What travels through the queue: plain data, no closures and no futures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiochroma.core.operations import Lane, Operation, operation_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Request"]


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
    """

    operation: str
    arguments: Mapping[str, Any]
    bulk: bool = False
    atomic: bool = False
    row: Operation = field(init=False, repr=False)
    lane: Lane = field(init=False)
    collection: str = field(init=False)
    merge_key: Any = field(init=False, default=None, repr=False)
    page_ids: list[str] | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        # Every step of the engine looks at it.
        self.row = operation_of(self.operation)
        self.lane = self.row.lane
        self.collection = str(self.arguments.get("collection_id", ""))

    def __reduce__(self) -> tuple[type[Request], tuple[Any, ...]]:
        return Request, (self.operation, dict(self.arguments), self.bulk, self.atomic)
