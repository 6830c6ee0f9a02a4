"""How far the log of each collection goes: what tells whether something that follows Chroma has missed a write."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from aiochroma.disk.layout import SQLITE_FILE, connect_read_only

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["log_positions"]


def log_positions(directory: Path) -> dict[str, int]:
    """Return, by collection id, the number of the last write that Chroma has applied to its records.

    Call it while Chroma does not have the database open. Empty where there is no database, or none that can be read.
    """
    if not (directory / SQLITE_FILE).exists():
        return {}
    try:
        with connect_read_only(directory) as connection:
            rows = connection.execute(
                "SELECT s.collection, coalesce(m.seq_id, 0) FROM segments AS s"
                " LEFT JOIN max_seq_id AS m ON m.segment_id = s.id WHERE s.scope = 'METADATA'"
            ).fetchall()
    except sqlite3.DatabaseError:
        return {}
    return {
        collection: int.from_bytes(position, "big") if isinstance(position, bytes) else int(position)
        for collection, position in rows
    }
