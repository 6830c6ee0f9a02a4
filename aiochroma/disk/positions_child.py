"""Reads how far Chroma's log goes; run as a script with the SQLite file, the standard library alone at hand.

In a child while Chroma has the file open: two SQLite libraries in one process lose each other's locks. It starts in 20 ms.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing

__all__: list[str] = []

_BUSY_SECONDS = 1.0


def _main(file: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None, timeout=_BUSY_SECONDS)) as connection:
        positions = connection.execute(
            "SELECT s.collection, m.seq_id FROM segments AS s JOIN max_seq_id AS m ON m.segment_id = s.id"
            " WHERE s.scope = 'METADATA' AND typeof(m.seq_id) = 'integer'"
        ).fetchall()
    print(json.dumps(dict(positions)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
