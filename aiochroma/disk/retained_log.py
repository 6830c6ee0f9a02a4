"""Chroma's log where it is kept, and how far our own file follows it.

Chroma appends every write to its log and, unless purging is switched off, deletes what its index on disk holds as well; after
that a vector exists in that index alone, which is rewritten in place. With purging switched off nothing is lost with an index.

The file beside Chroma's holds memories with their vectors. It notes, now and then, up to which entry of the log it has
everything, and it is certainly on the disk then. After a death the log names the few memories that are newer than the note, and
only these are copied again.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk import child
from aiochroma.disk.copying import ChildError, Script
from aiochroma.disk.layout import SQLITE_FILE, connect_read_only
from aiochroma.disk.schema import log_entries, log_positions_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Follower", "LogState", "RetainedLog", "log_state"]

log: EventLogger = get_logger("aiochroma.disk")

_DUE_RECORDS = 1000
"""After this many records our file notes how far it goes, as soon as no request waits."""
_SECONDS = 30.0


@dataclass(frozen=True)
class LogState:
    """How far the log of a database went when it was opened.

    Attributes:
        positions: By collection id, the last entry that Chroma has applied to its records.
        is_kept: Whether Chroma keeps the log from now on, so that it names all that changes.
        changed: For each collection of which our file has everything up to the entry that it noted: what the log names beyond.
    """

    positions: Mapping[str, int] = field(default_factory=dict)
    is_kept: bool = False
    changed: Mapping[str, frozenset[str]] = field(default_factory=dict)


def log_state(directory: Path, noted: Mapping[str, int], *, was_kept: bool) -> LogState:
    """Compare what our file has noted with the log. Call it while Chroma does not have the database open.

    Args:
        directory: The database directory.
        noted: By collection id, the entry up to which our file has everything.
        was_kept: Whether nothing has been purged since. Otherwise our file has everything only where nothing is newer.
    """
    if not (directory / SQLITE_FILE).exists():
        return LogState()
    changed = {}
    try:
        with connect_read_only(directory) as connection:
            positions = log_positions_in(connection)
            entries = log_entries(
                connection,
                {collection: mark for collection, mark in noted.items() if collection in positions},
            )
    except sqlite3.DatabaseError:
        # Without Chroma's tables, which are made when it opens, there is nothing that our file could have followed.
        return LogState()
    for collection, mark in noted.items():
        newer = entries.get(collection, [])
        end = max((entry.sequence for entry in newer), default=mark)
        # A gap: something was purged, or these are other files than those that our file has followed.
        if positions.get(collection, -1) in range(mark, end + 1) and (was_kept or not newer):
            changed[collection] = frozenset(entry.id for entry in newer)
    return LogState(positions, was_kept, changed)


class Follower(Protocol):
    """Our file, which follows Chroma's writes."""

    def note(self, positions: Mapping[str, int], *, is_newest: bool = True) -> None:
        """Note on the disk up to which entry of the log it has everything, for what has changed since the last time.

        Args:
            positions: By collection id, an entry of the log that it has, with all before it.
            is_newest: Whether nothing has been written since. Otherwise it is to be noted again.
        """


class RetainedLog:
    """The log of a database that is open: our file is told now and then how far it goes, on the thread that calls Chroma.

    A child process asks, beside that thread. What it has read is used between two requests: by then our file has all that the log
    named when it was asked.

    Args:
        directory: The database directory.
        follower: The file of this package's index, which follows Chroma's writes.
    """

    def __init__(self, directory: Path, follower: Follower) -> None:
        self._directory = directory
        self._follower = follower
        self._written = 0
        self._asked: Script | None = None
        self._can_ask = True

    def wrote(self, records: int) -> None:
        """Count what was written."""
        self._written += records

    def work(self) -> None:
        """Ask how far the log goes, if enough was written since the last time; have our file note the answer that has come."""
        if self._asked is not None:
            if self._asked.is_over():
                asked, self._asked = self._asked, None
                self._note(asked)
        elif self._written >= _DUE_RECORDS and self._can_ask:
            self._written = 0
            try:
                self._asked = Script(child, ["positions", self._directory / SQLITE_FILE], seconds=_SECONDS)
            except ChildError as error:
                # As inside of another program. Closing notes how far it goes; after a death more is copied again.
                self._can_ask = False
                log.info("log.not_noted", database=str(self._directory), error=str(error))

    def close(self) -> None:
        """End what still asks: it has a file of the database open."""
        if self._asked is not None:
            self._asked.end()
            self._asked = None

    def _note(self, asked: Script) -> None:
        try:
            positions: Mapping[str, int] = dict(json.loads(asked.result()))
        except (ChildError, ValueError, TypeError) as error:
            log.warning("log.not_noted", database=str(self._directory), error=str(error))
            return
        self._follower.note(positions, is_newest=not self._written)
