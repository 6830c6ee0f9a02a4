"""Many rows in one step.

Python's ``sqlite3`` lets go of the interpreter at every step to the next row, and beside a thread that is busy with Python each
time it takes up to 5 ms (``sys.getswitchinterval``) to get it back: fifty rows took 670 ms beside a busy event loop, and 30 ms
as one. So rows come as one value, which JSON takes apart.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

__all__ = ["read_rows"]


def read_rows(
    connection: sqlite3.Connection, columns: str, source: str, parameters: Sequence[Any]
) -> list[list[Any]]:
    """Read rows of texts, integers and NULL; fractions would lose digits.

    Args:
        connection: An open connection.
        columns: SQL: the columns, separated by commas.
        source: SQL: what stands behind FROM.
        parameters: What its placeholders stand for.

    Returns:
        The rows in SQLite's order.

    Raises:
        sqlite3.Error: SQLite could not read them.
    """
    found = connection.execute(
        f"SELECT json_group_array(json_array({columns})) FROM {source}",  # noqa: S608 - of this package's own texts
        parameters,
    ).fetchone()[0]
    rows: list[list[Any]] = json.loads(found)
    return rows
