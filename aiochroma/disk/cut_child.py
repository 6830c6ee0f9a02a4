"""Cuts Chroma's log; run as a script with a directory and a plan in JSON, the standard library alone at hand.

In a child while Chroma has the file open: two SQLite libraries in one process lose each other's locks. It starts in 20 ms.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["cut"]

_BUSY_SECONDS = 1.0


def cut(connection: sqlite3.Connection, plan: Iterable[tuple[str, str, int]], most: int) -> int:
    """Delete entries of the log that Chroma has applied to a collection's records and to its index on disk.

    The newest entry of the whole log stays: SQLite numbers the next one after it, and Chroma ignores numbers it has seen.

    Args:
        connection: A connection without transactions of its own.
        plan: Collection id, its topic in the log, and the newest entry that may go.
        most: The most entries to delete.

    Returns:
        How many were deleted.
    """
    newest = connection.execute("SELECT max(seq_id) FROM embeddings_queue").fetchone()[0]
    if newest is None:
        return 0
    deleted = 0
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("BEGIN IMMEDIATE")
    try:
        for collection, topic, position in plan:
            held = [
                row[0]
                for row in connection.execute(
                    "SELECT m.seq_id FROM segments AS s LEFT JOIN max_seq_id AS m ON m.segment_id = s.id"
                    " WHERE s.collection = ?",
                    (collection,),
                )
            ]
            if len(held) < 2 or not all(type(number) is int for number in held):
                continue  # Its index was never written to its files, or an older Chroma has noted how far.
            deleted += connection.execute(
                "DELETE FROM embeddings_queue WHERE seq_id IN (SELECT seq_id FROM embeddings_queue"
                " WHERE topic = ? AND seq_id <= ? ORDER BY seq_id LIMIT ?)",
                (topic, min(position, newest - 1, *held), most - deleted),
            ).rowcount
            if deleted >= most:
                break
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return deleted


def _main(file: str, plan: str, most: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None, timeout=_BUSY_SECONDS)) as connection:
        deleted = cut(connection, json.loads(plan), int(most))
        positions = connection.execute(
            "SELECT s.collection, m.seq_id FROM segments AS s JOIN max_seq_id AS m ON m.segment_id = s.id"
            " WHERE s.scope = 'METADATA' AND typeof(m.seq_id) = 'integer'"
        ).fetchall()
    print(json.dumps({"deleted": deleted, "positions": dict(positions)}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
