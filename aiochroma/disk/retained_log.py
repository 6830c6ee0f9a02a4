"""Chroma's log where it is kept: how far our own file follows it, and what of it need not be kept any more.

Chroma appends every write to its log and, unless purging is switched off, deletes what its index on disk holds as well; after
that a vector exists in that index alone, which is rewritten in place. With purging switched off nothing is lost with an index,
and the log grows for ever.

Memories do not need that. The file beside Chroma's holds them with their vectors, so each of the two can be made again from the
other. It notes, now and then, up to which entry of the log it has everything, and it is certainly on the disk then. So an entry
may go when three hold it: Chroma's records, Chroma's index on disk, and our file up to its note. What is newer than the note is
in the log, whatever dies; and the log names the few memories that have to be copied again after a death. Collections that our
file does not follow keep their log.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject
from aiochroma.disk import cut_child
from aiochroma.disk.copying import ChildError, run_script
from aiochroma.disk.layout import SQLITE_FILE, connect_read_only, connect_read_write, log_topic
from aiochroma.disk.schema import log_entries, log_positions_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["LogState", "RetainedLog", "cut_closed_log", "log_state"]

log: EventLogger = get_logger("aiochroma.disk")

_DUE_RECORDS = 1000
"""So many records are written before the log is cut, when nobody waits."""
_OVERDUE_RECORDS = 5000
"""So many, and it is cut though somebody waits: some 40 ms."""
_MOST_ENTRIES = 2000
"""Entries that are deleted at once: 10 to 20 ms."""
_MOST_COLLECTIONS = 500
"""Collections whose log is cut at once: they are named on a command line."""
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
    with connect_read_only(directory) as connection:
        positions = log_positions_in(connection)
        entries = log_entries(
            connection, {collection: mark for collection, mark in noted.items() if collection in positions}
        )
    for collection, mark in noted.items():
        newer = entries.get(collection, [])
        end = max((entry.sequence for entry in newer), default=mark)
        # A gap: something was purged, or these are other files than those that our file has followed.
        if positions.get(collection, -1) in range(mark, end + 1) and (was_kept or not newer):
            changed[collection] = frozenset(entry.id for entry in newer)
    return LogState(positions, was_kept, changed)


def cut_closed_log(directory: Path, noted: Mapping[str, int]) -> bool:
    """Delete entries that are held elsewhere, while Chroma does not have the database open; return whether there are more."""
    if not noted:
        return False
    try:
        with connect_read_write(directory) as connection:
            return cut_child.cut(connection, _plan(noted), _MOST_ENTRIES) >= _MOST_ENTRIES
    except sqlite3.DatabaseError as error:
        log.warning("log.not_cut", database=str(directory), error=str(error))
        return False


def _plan(noted: Mapping[str, int]) -> list[tuple[str, str, int]]:
    return [(collection, log_topic(collection), mark) for collection, mark in noted.items()]


class Follower(Protocol):
    """Our file, which follows Chroma's writes."""

    def noted(self, collections: Iterable[str]) -> Mapping[str, int]:
        """Return, by collection id, up to which entry of the log it has everything; none of those that it does not know of."""

    def note(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Note that on the disk, for what has changed since the last time; return what was noted.

        Args:
            positions: By collection id, how far the log goes now.
        """


class RetainedLog:
    """The log of a database that is open: cut now and then, on the thread that calls Chroma.

    Args:
        directory: The database directory.
        follower: Our file.
        left: Collections whose log has not been cut to the end yet.
    """

    def __init__(self, directory: Path, follower: Follower, left: Iterable[str]) -> None:
        self._directory = directory
        self._follower = follower
        self._left = dict.fromkeys(left)
        self._written = _DUE_RECORDS if self._left else 0

    @property
    def is_overdue(self) -> bool:
        """Whether it has to be cut though somebody waits."""
        return self._written >= _OVERDUE_RECORDS

    def wrote(self, records: int) -> None:
        """Count what was written."""
        self._written += records

    def work(self) -> bool:
        """Cut it if enough was written since the last time; return whether there is more to cut."""
        if self._written < _DUE_RECORDS:
            return False
        # By the notes of the last time; new ones are made of what the same child reads, and go with the next cut.
        due = list(islice(self._left, _MOST_COLLECTIONS))
        plan = _plan(self._follower.noted(due))
        try:
            answer: JsonObject = json.loads(
                run_script(
                    cut_child.__file__,
                    [self._directory / SQLITE_FILE, json.dumps(plan), str(_MOST_ENTRIES)],
                    seconds=_SECONDS,
                )
            )
        except ChildError as error:
            self._written = 0
            log.warning("log.not_cut", database=str(self._directory), error=str(error))
            return False
        if answer["deleted"] < _MOST_ENTRIES:
            for collection in due:
                del self._left[collection]
        more = bool(self._left)
        self._left.update(dict.fromkeys(self._follower.note(answer["positions"])))
        self._written = _DUE_RECORDS if more else 0
        return more
