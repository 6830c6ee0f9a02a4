"""The ids of a large collection, listed by a child process: Chroma gives them in one piece, in which everybody waits.

Chroma reads the ids of 100,000 records in 0.3 s, a third of it with the interpreter held, and pages of them in more, since each
page begins with skipping those before it. A child reads Chroma's file beside the thread that calls Chroma.

Everything here runs on the DB thread.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk import child
from aiochroma.disk.copying import ChildError, Script

if TYPE_CHECKING:
    from collections.abc import Hashable
    from pathlib import Path

    from typing_extensions import Unpack

    from aiochroma.backend.chroma_records import ChromaRecords, Database

__all__ = ["IdListing"]

log: EventLogger = get_logger("aiochroma.backend")

_FEWEST = 4096
"""From this many records on a child lists a collection. It takes 50 ms to start; Chroma lists a smaller collection in 15 ms."""
_SECONDS = 30.0
_WAIT_SECONDS = 0.005
"""How long one slice waits for a child, in seconds."""


class IdListing:
    """Lists the ids of collections.

    Args:
        api: Chroma.
        file: Chroma's SQLite file, or None where there is none: then nothing is listed by a child.
    """

    def __init__(self, api: ChromaRecords, file: Path | None) -> None:
        self._api = api
        self._file = file
        self._asked: dict[Hashable, Script] = {}

    def listed(self, listing: Hashable, collection: str, db: Database) -> tuple[list[str] | None, bool]:
        """Do a slice of listing a collection.

        Args:
            listing: What the child is known by: another name lists the collection once more.
            collection: The collection.
            db: Its tenant and database.

        Returns:
            The ids in Chroma's order, or None as long as they are not there, to be asked for again; and whether a child listed
            them, so that what was written since it began may be missing.
        """
        asked = self._asked.get(listing)
        if asked is not None:
            if not asked.is_over(_WAIT_SECONDS):
                return None, True
            del self._asked[listing]
            try:
                return list(map(str, json.loads(asked.result()))), True
            except (ChildError, ValueError, TypeError) as error:
                log.info("ids.not_listed", collection=collection, error=str(error))
        elif other := next((one for one in self._asked.values() if not one.is_over()), None):
            # One child at a time.
            other.is_over(_WAIT_SECONDS)
            return None, True
        elif self._ask(listing, collection, db):
            return None, True
        return self.at_once(collection, **db), False

    def exactly(self, listing: Hashable, collection: str, db: Database, most: int | None) -> list[str] | None:
        """Do the same where nothing is written to the collection before the ids are there, and only the first are needed."""
        if most is not None and most < _FEWEST:
            return self._api.get(collection, limit=most, include=[], **db)["ids"]
        ids, is_past = self.listed(listing, collection, db)
        if ids is None or not is_past or len(ids) == self._api.count(collection, **db):
            return ids
        # By a deletion that no caller asked for, as of the chunks of a text that is gone.
        return self.at_once(collection, **db)

    def at_once(self, collection: str, **db: Unpack[Database]) -> list[str]:
        """List a collection in one piece."""
        return self._api.get(collection, include=[], **db)["ids"]

    def _ask(self, listing: Hashable, collection: str, db: Database) -> bool:
        """Start a child; return False where none is needed, or none can be started."""
        # Before it counts, Chroma applies its log to the file.
        if self._file is None or self._api.count(collection, **db) < _FEWEST:
            return False
        try:
            self._asked[listing] = Script(child, ["ids", self._file, collection], seconds=_SECONDS)
        except ChildError as error:
            self._file = None  # As inside of another program: the next attempt would fail as well.
            log.info("ids.not_listed", collection=collection, error=str(error))
            return False
        return True

    def drop(self, listing: Hashable) -> None:
        """End what lists a collection."""
        asked = self._asked.pop(listing, None)
        if asked is not None:
            asked.end()

    def close(self) -> None:
        """End all that is under way: it has a file of the database open."""
        for listing in tuple(self._asked):
            self.drop(listing)
