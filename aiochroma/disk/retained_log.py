"""Reads Chroma's write-ahead log, the table ``embeddings_queue``.

Besides the index it is the only place that holds vectors. Chroma appends every write to it, applies the
write to SQLite and to the index in memory, and, unless purging is switched off, deletes what the index on
disk holds as well. At open it replays what is newer than the index on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiochroma.disk.layout import connect_read_only, log_topic
from aiochroma.disk.schema import ADD, DELETE, UPDATE, UPSERT, log_entries

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

__all__ = ["LogOutcome", "iter_log_vectors", "replay"]


@dataclass(frozen=True)
class LogOutcome:
    """What the index would hold if it were rebuilt from the log alone.

    Attributes:
        with_vector: Ids whose vector the log holds.
        deleted: Ids whose last entry is a deletion.
    """

    with_vector: frozenset[str]
    deleted: frozenset[str]


def replay(connection: sqlite3.Connection, collection_id: str, after: int = 0) -> LogOutcome:
    """Work out, without reading a vector, what a replay of the log would leave in an empty index.

    Args:
        connection: Any connection to the database.
        collection_id: Id of the collection.
        after: Entries up to this sequence number are left out.
    """
    present: set[str] = set()
    deleted: set[str] = set()
    for entry in log_entries(connection, {collection_id: after}).get(collection_id, []):
        if entry.kind == DELETE:
            present.discard(entry.id)
            deleted.add(entry.id)
        elif entry.kind in {ADD, UPSERT} and entry.has_vector:
            # An update of an id that the index does not know is ignored by Chroma, so it adds nothing here
            # either.
            present.add(entry.id)
            deleted.discard(entry.id)
    return LogOutcome(frozenset(present), frozenset(deleted))


def iter_log_vectors(
    directory: Path, collection_id: str, ids: Collection[str] | None = None
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Read vectors out of the log: for each id the newest one, ids whose last entry is a deletion left out.

    For salvage by other means than Chroma's own replay. Call it while Chroma does not have the database open.

    Args:
        directory: The database directory.
        collection_id: Id of the collection.
        ids: Only these; all when None.

    Yields:
        Id and vector.

    Raises:
        sqlite3.DatabaseError: The SQLite file is damaged.
        ValueError: An entry is in an encoding that Chroma 1.5 does not write.
    """
    import numpy as np

    with connect_read_only(directory) as connection:
        topic = log_topic(collection_id)
        newest: dict[str, int] = {}
        rows = connection.execute(
            "SELECT seq_id, id, operation FROM embeddings_queue"
            " WHERE topic = ? AND (vector IS NOT NULL OR operation = 3) ORDER BY seq_id",
            (topic,),
        )
        for sequence, record_id, kind in rows:
            if kind == DELETE:
                newest.pop(record_id, None)
            elif (kind != UPDATE or record_id in newest) and (kind != ADD or record_id not in newest):
                newest[record_id] = sequence
        chosen = newest if ids is None else {key: newest[key] for key in ids if key in newest}
        for record_id, sequence in chosen.items():
            vector, encoding = connection.execute(
                "SELECT vector, encoding FROM embeddings_queue WHERE seq_id = ?", (sequence,)
            ).fetchone()
            if encoding != "FLOAT32":
                raise ValueError(f"log entry {sequence} is encoded as {encoding!r}; only FLOAT32 is known")
            yield record_id, np.frombuffer(vector, dtype="<f4").copy()
