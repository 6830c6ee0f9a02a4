"""Whether an index holds the vectors that were written: their norms, and some of them beside Chroma's log, or our own file.

Links and labels say nothing about the vectors themselves. Chroma answers from whatever lies there: with the cosine distance it
returns each vector times its norm in ``length.bin``, a zero too, and the files of another index of the same size fit in every
other way. With the other distances it neither reads nor needs the norms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiochroma.disk.id_map import IdMap, IndexUnreadableError
from aiochroma.disk.layout import LENGTH_FILE, LEVEL0_FILE, log_topic
from aiochroma.disk.own_index import followed_vectors

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from aiochroma.disk.schema import LogEntry, StoredCollection

__all__ = ["Written", "check_vectors", "written_vectors"]

_LOOKED_AT = 64
_TOLERANCE = 1e-3
"""Two vectors are the same if they differ by no more than this share of their length; what processors do differently is less."""


@dataclass(frozen=True)
class Written:
    """What SQLite says of the vectors of an index.

    Attributes:
        is_cosine: Whether they have length one in the index, and their norms lie beside them.
        vectors: Some of them by record id, as float32 bytes; none where neither the log nor our own file has them.
    """

    is_cosine: bool = False
    vectors: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def written_vectors(
    directory: Path, connection: sqlite3.Connection, stored: StoredCollection, pending: Iterable[LogEntry]
) -> Written:
    """Read what SQLite says of the vectors of an index, and our own file where the log has none.

    A record names the last entry of the log that changed it, so an entry that Chroma ignored, such as the addition of a
    record that was there, is not taken for its vector.

    Args:
        directory: The database directory.
        connection: A connection to its SQLite file.
        stored: The collection.
        pending: The entries of its log that the index on disk does not hold.
    """
    rows = connection.execute(
        "SELECT e.embedding_id, q.vector FROM"
        " (SELECT embedding_id, seq_id FROM embeddings WHERE segment_id = ? LIMIT ?) AS e"
        " LEFT JOIN embeddings_queue AS q ON q.seq_id = e.seq_id AND q.id = e.embedding_id"
        " AND q.topic = ? AND q.seq_id <= ? AND q.encoding = 'FLOAT32' AND typeof(q.vector) = 'blob'",
        (stored.metadata_segment, _LOOKED_AT, log_topic(stored.id), stored.persisted),
    )
    to_come = {entry.id for entry in pending}
    logged = {id: vector for id, vector in rows if type(id) is str and id not in to_come}
    lacking = [id for id, vector in logged.items() if vector is None]
    vectors = {**logged, **followed_vectors(directory, stored.id, lacking, position=stored.applied)}
    size = 4 * (stored.dimension or 0)
    return Written(
        stored.settings.is_cosine,
        {id: vector for id, vector in vectors.items() if vector is not None and len(vector) == size},
    )


def check_vectors(directory: Path, elements: npt.NDArray[np.void], id_map: IdMap, written: Written) -> None:
    """Compare the vectors of an index with what was written.

    Args:
        directory: The directory of the index.
        elements: Its elements, all of them; see ``map_elements``.
        id_map: Its id map.
        written: What SQLite says.

    Raises:
        IndexUnreadableError: They are others.
    """
    import numpy as np

    norms = None
    if written.is_cosine:
        norms = np.fromfile(directory / LENGTH_FILE, dtype="<f4", count=len(elements))
        suspect = np.flatnonzero(~(norms > 0))
        # A vector of zeros has no direction, and none of length one either.
        odd = suspect[np.abs(np.linalg.norm(elements["vector"][suspect], axis=1) - 1.0) < _TOLERANCE]
        if len(odd):
            raise IndexUnreadableError(
                f"{LENGTH_FILE}: {len(odd)} vectors have no norm that can be, the first is {norms[odd[0]]} for element {odd[0]}"
            )
    sought = {id_map.labels[id]: vector for id, vector in written.vectors.items() if id in id_map.labels}
    labels = elements["label"]
    positions = np.flatnonzero(np.isin(labels, np.fromiter(sought, dtype=np.uint64, count=len(sought))))
    different = 0
    for position in positions:
        held, given = elements["vector"][position], np.frombuffer(sought[int(labels[position])], dtype="<f4")
        if norms is not None:
            held = held * norms[position]
        # Written so that no number at all is different, too.
        different += bool(not np.linalg.norm(held - given) <= _TOLERANCE * np.linalg.norm(given))
    if 2 * different > len(positions):
        raise IndexUnreadableError(
            f"{LEVEL0_FILE} has other vectors than were written for {different} of {len(positions)} records: files that do not "
            "belong together"
        )
