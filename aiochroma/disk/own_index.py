"""What is read of our own index file while no connection of ours has it open: ids and vectors of memories.

What lies there is untrusted: a file of another form, or none, has nothing.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from aiochroma._files import SQLITE_SUFFIXES
from aiochroma.disk.layout import TEXT_INDEX_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["followed_vectors", "ids_with_vector", "is_followed"]

_BUSY_SECONDS = 5.0

_ID = (
    """SELECT 1 FROM memories WHERE id = ?2 AND namespace = (SELECT number FROM namespaces WHERE name = ?1)"""
)
# A cross join keeps the order: otherwise SQLite reads the whole list once for each memory of the namespace.
_IDS = """SELECT m.id FROM json_each(?2) AS w CROSS JOIN memories AS m ON m.id = w.value
    JOIN vectors AS v ON v.number = m.number WHERE m.namespace = (SELECT number FROM namespaces WHERE name = ?1)"""
_VECTORS = """SELECT m.id, v.vector FROM json_each(?2) AS w CROSS JOIN memories AS m ON m.id = w.value
    JOIN vectors AS v ON v.number = m.number
    WHERE m.namespace = (SELECT number FROM namespaces WHERE name = ?1 AND watermark = ?3)"""


def is_followed(directory: Path, collection: str, id: str) -> bool:
    """Return whether our own index has a memory of this id."""
    return bool(_rows(directory, _ID, collection, id))


def ids_with_vector(directory: Path, collection: str, ids: Iterable[str]) -> set[str]:
    """Return those of some memories of a collection whose vectors our own index has."""
    return {id for (id,) in _rows(directory, _IDS, collection, json.dumps(list(ids))) if type(id) is str}


def followed_vectors(
    directory: Path, collection: str, ids: Iterable[str], *, position: int
) -> dict[str, bytes]:
    """Return vectors that our own index has of memories, as float32 bytes; none unless it goes exactly as far as the log.

    Args:
        directory: The database directory.
        collection: Id of the collection.
        ids: The memories.
        position: Up to which entry of the log Chroma has applied it.
    """
    if any(os.path.lexists(directory / f"{TEXT_INDEX_FILE}{suffix}") for suffix in SQLITE_SUFFIXES[1:]):
        # Left by a process that died. Closing would remove it, and with it the reason to check the file as a whole.
        return {}
    rows = _rows(directory, _VECTORS, collection, json.dumps(list(ids)), str(position))
    return {id: vector for id, vector in rows if type(id) is str and type(vector) is bytes}


def _rows(directory: Path, query: str, *parameters: str) -> list[tuple[object, ...]]:
    file = directory / TEXT_INDEX_FILE
    if not file.is_file():
        return []
    try:
        with closing(sqlite3.connect(file, timeout=_BUSY_SECONDS)) as own:
            return own.execute(query, parameters).fetchall()
    except (sqlite3.Error, UnicodeError):
        return []
