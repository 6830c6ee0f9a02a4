"""How far the copying of a collection into the index has come. Everything here runs on the DB thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.backend.chroma_records import Database
    from aiochroma.text.index import TextIndex

__all__ = ["Copying"]

_PAGE = 2048
"""Ids that are read from the index in one slice."""
_ALMOST = 0.999
"""The largest share that is reported as long as something of a collection is missing."""


@dataclass
class Copying:
    """A collection that is being copied into the index.

    Attributes:
        db: Its tenant and database.
        ids: The records to be copied; None before it is known which.
        records: Where only changed records are copied, how many records the index has; else 0.
        done: How many have been copied.
        there: The ids of Chroma's records, in its order; None before they are listed.
        is_past: Whether Chroma may have got others since they were listed.
        rows: The rows of the index whose ids are still to be compared; None before that has begun.
        known: The ids of the other rows.
    """

    db: Database
    ids: list[str] | None = None
    records: int = 0
    done: int = 0
    there: list[str] | None = None
    is_past: bool = False
    rows: NDArray[np.int64] | None = None
    known: set[str] = field(default_factory=set)

    @property
    def share(self) -> float:
        """The share of the collection that the index has; below 1 until it is current."""
        whole = max(self.records, len(self.ids or ()))
        return min(_ALMOST, 1 - (len(self.ids or ()) - self.done) / whole) if whole else 0.0

    def compare(self, index: TextIndex, collection: str) -> None:
        """Compare a page of what the index has. After the last, plan to look at what is gone, at what is new, and at the rest."""
        there = self.there or []
        rows = index.matching(collection, None) if self.rows is None else self.rows
        self.known.update(index.ids_of(rows[:_PAGE].tolist()).values())
        self.rows = rows[_PAGE:]
        if not len(self.rows):
            # What is gone is not deleted here: it may have come after the others were listed.
            new = [id for id in there if id not in self.known]
            self.ids = [*self.known.difference(there), *new, *(id for id in there if id in self.known)]
            self.there, self.known = None, set()
