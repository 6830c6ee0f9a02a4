"""The ids of a large collection, listed by a child process: Chroma gives them in one piece, in which everybody waits.

Chroma reads the ids of 100,000 records in 0.3 s, and pages of them in more, since each page begins with skipping those before it.
A child reads Chroma's file beside the thread that calls Chroma.

Everything here runs on the DB thread.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk import child
from aiochroma.disk.copying import ChildError, Script

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.backend.chroma_records import ChromaRecords, Database
    from aiochroma.text.index import TextIndex

__all__ = ["Copying", "IdListing"]

log: EventLogger = get_logger("aiochroma.records")

_FEWEST = 4096
"""From this many records on a child lists a collection. It takes 50 ms to start; Chroma lists a smaller collection in 15 ms."""
_SECONDS = 30.0
_WAIT_SECONDS = 0.005
"""How long one slice waits for a child, in seconds."""
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


class IdListing:
    """Lists the ids of collections.

    Args:
        api: Chroma.
        file: Chroma's SQLite file, or None where there is none: then nothing is listed by a child.
    """

    def __init__(self, api: ChromaRecords, file: Path | None) -> None:
        self._api = api
        self._file = file
        self._asked: dict[str, Script] = {}

    def work(self, collection: str, copying: Copying) -> None:
        """Do a slice of listing a collection; once it is listed, ``copying.there`` is no longer None."""
        if collection not in self._asked and not self._ask(collection, copying.db):
            self.at_once(collection, copying)
            return
        asked = self._asked.get(collection)
        if asked is None:
            # One child at a time.
            next(iter(self._asked.values())).is_over(_WAIT_SECONDS)
        elif asked.is_over(_WAIT_SECONDS):
            del self._asked[collection]
            try:
                copying.there = list(map(str, json.loads(asked.result())))
                copying.is_past = True
            except (ChildError, ValueError, TypeError) as error:
                log.info("text_index.not_listed", collection=collection, error=str(error))
                self.at_once(collection, copying)

    def at_once(self, collection: str, copying: Copying) -> None:
        """List a collection in one piece."""
        copying.there = self._api.get(collection, include=[], **copying.db)["ids"]
        copying.is_past = False

    def _ask(self, collection: str, db: Database) -> bool:
        """Start a child, or let it wait for another; return False where none is needed, or none can be started."""
        # Before it counts, Chroma applies its log to the file.
        if self._file is None or self._api.count(collection, **db) < _FEWEST:
            return False
        if all(script.is_over() for script in self._asked.values()):
            try:
                self._asked[collection] = Script(child, ["ids", self._file, collection], seconds=_SECONDS)
            except ChildError as error:
                self._file = None  # As inside of another program: the next attempt would fail as well.
                log.info("text_index.not_listed", collection=collection, error=str(error))
                return False
        return True

    def drop(self, collection: str) -> None:
        """End what lists a collection."""
        asked = self._asked.pop(collection, None)
        if asked is not None:
            asked.end()

    def close(self) -> None:
        """End all that is under way: it has a file of the database open."""
        for collection in tuple(self._asked):
            self.drop(collection)
