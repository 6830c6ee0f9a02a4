"""Which tenants and databases there are in a directory; Chroma itself lists no tenants."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from aiochroma._errors import DatabaseCorruptError
from aiochroma.disk.layout import SQLITE_FILE, connect_read_only

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["databases_in"]


def databases_in(directory: Path) -> list[tuple[str, str]]:
    """Return tenant and name of every database, sorted; none where an older Chroma, which knew neither, wrote the directory.

    Args:
        directory: The directory; nobody else may have it open.

    Raises:
        DatabaseCorruptError: SQLite cannot read its file.
    """
    try:
        with connect_read_only(directory) as connection:
            tables = {
                row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            if "databases" not in tables:
                return []
            return sorted(connection.execute("SELECT tenant_id, name FROM databases").fetchall())
    except sqlite3.DatabaseError as error:
        raise DatabaseCorruptError(
            f"{directory / SQLITE_FILE} cannot be read: {error}. See `aiochroma doctor`.",
            problems=(str(error),),
        ) from error
