"""What erasing does to this package's own files: the history loses entries or their texts, and no page or journal keeps them.

The index beside Chroma's file follows Chroma's writes. What it has not followed leaves it before, as a whole: see
``backend.preparation.drop_unfollowed``.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, TypedDict

from aiochroma._files import SQLITE_SUFFIXES, irregular
from aiochroma.disk.layout import HISTORY_FILE, TEXT_INDEX_FILE, prepare_history
from aiochroma.disk.schema import full_text_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["ErasedHistory", "compact", "scrub_own_files"]

_OUR_FILES = "aiochroma-*.sqlite3"


class ErasedHistory(TypedDict, total=False):
    """Which entries leave the history; none where it is empty. It travels to the process that has the database open.

    Attributes:
        database: What the history calls the Chroma database of the memories.
        ids: By namespace the memories whose entries leave it.
        passing: Which further entries leave it, such as those of memories that were forgotten before. Each element lists names
            and values of metadata of which an entry must have noted one; without an element all entries pass.
        namespace: The namespace of those further entries; None for all.
    """

    database: str
    ids: Mapping[str, Sequence[str]]
    passing: Sequence[Sequence[tuple[str, str]]]
    namespace: str | None


def scrub_own_files(directory: Path, history: ErasedHistory | None) -> int:
    """Take what is dead out of our files, so that no free page and no journal holds it.

    Args:
        directory: The database directory; no program has it open.
        history: Which entries leave the history; None takes the texts out of all entries.

    Returns:
        How many entries stay in the history without their texts.

    Raises:
        OSError, sqlite3.Error: A file cannot be written, or the history is damaged.
    """
    emptied = 0
    for file in sorted(directory.glob(_OUR_FILES)):
        if irregular(file) is not None:
            continue  # Not a file of this package; `doctor` reports it.
        try:
            with closing(sqlite3.connect(file, isolation_level=None, timeout=5.0)) as connection:
                connection.execute("PRAGMA secure_delete = ON")
                if file.name == HISTORY_FILE:
                    prepare_history(connection)
                    emptied = _scrub_history(connection, history)
                compact(connection)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            if file.name != TEXT_INDEX_FILE:
                raise
            # It is damaged, and made again when it is used.
            for suffix in SQLITE_SUFFIXES:
                file.with_name(file.name + suffix).unlink(missing_ok=True)
    return emptied


def compact(connection: sqlite3.Connection) -> None:
    """Merge full-text tables, give free pages back, and empty the journal."""
    for table in sorted(full_text_tables(connection)):
        name = table.replace('"', '""')
        connection.execute(f'INSERT INTO "{name}" ("{name}") VALUES (\'optimize\')')  # noqa: S608 - out of sqlite_master
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _scrub_history(connection: sqlite3.Connection, history: ErasedHistory | None) -> int:
    if history is None:
        # All that is in it was replaced or forgotten; that something changed, and when, stays.
        return connection.execute("UPDATE changes SET text = NULL, metadata = NULL").rowcount
    database = history.get("database", "")
    for namespace, ids in history.get("ids", {}).items():
        connection.executemany(
            "DELETE FROM changes WHERE namespace = ? AND id = ? AND database = ?",
            [(namespace, id, database) for id in ids],
        )
    if "passing" not in history:
        return 0
    conditions, values = ["database = ?"], [database]
    if (only := history.get("namespace")) is not None:
        conditions.append("namespace = ?")
        values.append(only)
    for alternatives in history["passing"]:
        # What another program has damaged has noted nothing.
        noted = ["CASE WHEN json_valid(metadata) THEN json_extract(metadata, ?) END = ?"] * len(alternatives)
        conditions.append(f"({' OR '.join(noted)})")
        values += [text for name, value in alternatives for text in (f'$."{name}"', value)]
    connection.execute(f"DELETE FROM changes WHERE {' AND '.join(conditions)}", values)  # noqa: S608 - of this function's own texts
    return 0
