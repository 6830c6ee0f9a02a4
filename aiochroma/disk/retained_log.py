"""Chroma's log where it is kept, and how far our own file follows it.

Chroma appends every write to its log and, unless purging is switched off, deletes what its index on disk holds as well; after
that a vector exists in that index alone, which is rewritten in place. With purging switched off nothing is lost with an index.

The file beside Chroma's holds memories with their vectors. It notes, now and then, up to which entry of the log it has
everything, and it is certainly on the disk then. After a death the log names the few memories that are newer than the note, and
only these are copied again.

So what both Chroma's index and our file have leaves the log when the database is opened and closed: each of the two makes the
other again. What only one of them has stays.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from aiochroma._files import SQLITE_SUFFIXES, flush, transaction
from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk import child
from aiochroma.disk.copying import ChildError, Script
from aiochroma.disk.layout import INDEX_FILES, SQLITE_FILE, connect_read_only, connect_read_write, log_topic
from aiochroma.disk.own_index import ids_with_vector
from aiochroma.disk.schema import (
    keeps_log,
    log_entries,
    log_positions_in,
    sequence_number,
    tables_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

__all__ = ["Follower", "LogState", "RetainedLog", "cut_log", "flushed", "log_state"]

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
        uncovered: Collections of which something has left the log because our file had it, which is not believed any more.
    """

    positions: Mapping[str, int] = field(default_factory=dict)
    is_kept: bool = False
    changed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    uncovered: frozenset[str] = frozenset()


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
            cuts = _cuts(connection)
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
        # Or our file is an older one, from before something left the log.
        has_gap = positions.get(collection, -1) not in range(mark, end + 1) or mark < cuts.get(collection, 0)
        if not has_gap and (was_kept or not newer):
            changed[collection] = frozenset(entry.id for entry in newer)
    return LogState(positions, was_kept, changed, frozenset(cuts.keys() & positions.keys() - changed.keys()))


def flushed(directory: Path) -> bool:
    """Write the file through to the disk, when Chroma has closed it; return whether that could be done.

    What follows Chroma notes how far it goes, and after a failure of power must not be ahead of Chroma's file.
    """
    try:
        for suffix in SQLITE_SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                flush(directory / f"{SQLITE_FILE}{suffix}")
    except OSError as error:
        log.info("log.not_cut", database=str(directory), error=str(error))
        return False
    return True


_CUTS = "aiochroma_log_cuts"
"""By collection, up to which entry something has left the log because our file has it."""


def cut_log(directory: Path, noted: Mapping[str, int], *, but_for: Collection[str] = ()) -> None:
    """Delete from a log that is kept what both Chroma's index on the disk and our file have, and note it in Chroma's file.

    A collection keeps all of its log where our file lacks the vector of a record that is named there. The newest entry of the
    whole log stays, too, because SQLite numbers the next one after it and Chroma ignores entries with old numbers. Where a file
    cannot be written, nothing leaves it.

    Args:
        directory: The canonical directory; owned by this process, open neither in Chroma nor by what follows it.
        noted: By collection id, the entry up to which our file has everything, certainly on the disk.
        but_for: Collections that are left as they are.
    """
    entries, ends_by_collection = 0, dict[str, int]()
    try:
        with connect_read_write(directory) as connection:
            if not keeps_log(connection):
                return
            newest = connection.execute("SELECT max(seq_id) FROM embeddings_queue").fetchone()[0] or 0
            for collection, index, persisted, segment, applied in connection.execute(_FOLLOWED).fetchall():
                ends = (noted.get(collection, 0), sequence_number(persisted), sequence_number(applied))
                up_to = min(*ends, newest - 1)
                if up_to > 0 and collection not in but_for and _has_log(connection, collection, up_to):
                    _flush_index(directory / index)
                    leaving = _living(connection, collection, segment, up_to)
                    if leaving <= ids_with_vector(directory, collection, leaving):
                        ends_by_collection[collection] = up_to
            if ends_by_collection:
                entries = _cut(connection, ends_by_collection)
    except (OSError, sqlite3.DatabaseError) as error:
        log.warning("log.not_cut", database=str(directory), error=str(error))
    if entries:
        log.info("log.cut", database=str(directory), entries=entries)


_FOLLOWED = (
    "SELECT v.collection, v.id, p.seq_id, m.id, a.seq_id FROM segments AS v JOIN max_seq_id AS p ON p.segment_id = v.id"
    " JOIN segments AS m ON m.collection = v.collection AND m.scope = 'METADATA' JOIN max_seq_id AS a ON a.segment_id = m.id"
    " WHERE v.scope = 'VECTOR' AND typeof(v.id) = 'text' AND typeof(m.id) = 'text' AND typeof(v.collection) = 'text'"
)
_UP_TO = "FROM embeddings_queue WHERE topic = ? AND seq_id <= ?"


def _has_log(connection: sqlite3.Connection, collection: str, up_to: int) -> bool:
    chosen = (log_topic(collection), up_to)
    return connection.execute(f"SELECT 1 {_UP_TO} LIMIT 1", chosen).fetchone() is not None


def _living(connection: sqlite3.Connection, collection: str, segment: str, up_to: int) -> set[str]:
    """Return the ids of the records whose entries are about to leave the log."""
    rows = connection.execute(
        "SELECT DISTINCT q.id FROM embeddings_queue AS q JOIN embeddings AS e ON e.segment_id = ? AND e.embedding_id = q.id"
        " WHERE q.topic = ? AND q.seq_id <= ?",
        (segment, log_topic(collection), up_to),
    )
    return {id for (id,) in rows}


def _flush_index(index: Path) -> None:
    """Chroma has written an index, and does not wait for the disk."""
    for name in INDEX_FILES:
        with contextlib.suppress(FileNotFoundError):
            flush(index / name)


def _cut(connection: sqlite3.Connection, ends: Mapping[str, int]) -> int:
    """Cut the log of all collections at once: of many, each for itself would wait for the disk."""
    with transaction(connection):
        connection.execute(f"CREATE TABLE IF NOT EXISTS {_CUTS} (collection TEXT PRIMARY KEY, entry INTEGER)")
        connection.execute(f"DELETE FROM {_CUTS} WHERE collection NOT IN (SELECT id FROM collections)")  # noqa: S608 - a constant
        connection.executemany(f"INSERT OR REPLACE INTO {_CUTS} VALUES (?, ?)", ends.items())  # noqa: S608 - a constant
        chosen = [(log_topic(collection), up_to) for collection, up_to in ends.items()]
        return connection.executemany(f"DELETE {_UP_TO}", chosen).rowcount


def _cuts(connection: sqlite3.Connection) -> dict[str, int]:
    if _CUTS not in tables_of(connection):
        return {}
    rows = connection.execute(f"SELECT collection, entry FROM {_CUTS}")  # noqa: S608 - a constant
    return {str(collection): sequence_number(entry) for collection, entry in rows}


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
