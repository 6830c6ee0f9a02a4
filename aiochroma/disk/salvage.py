"""Finds vectors: in Chroma's log, in an index that Chroma can no longer load, and in a backup.

Besides the index, the log (the table ``embeddings_queue``) is all that holds vectors. Chroma appends every write to it, applies
the write to SQLite and to the index in memory, and, unless purging is switched off, deletes what the index on disk holds as well.
When it opens it replays what is newer than the index on disk.

In the index, an element of ``data_level0.bin`` carries its own label, and the id map says which id has that label, so a vector
can be read without the graph around it. Why that is sound after a kill in the middle of a persist:

- Chroma writes the id map last. Whichever version of it is complete on disk, every label in it was written to
  ``data_level0.bin`` by that persist or an earlier one, at a position that never changes.
- What an interrupted persist was rewriting is either links, which are not used here, or the vector of a record whose write is
  still in the log, because Chroma purges the log only afterwards; the replay then overwrites what is read here.
- The position is not trusted but verified: each label must occur exactly once, links must stay within bounds and vectors be
  finite (and of unit length where Chroma stores them so).

Damage by other means (a bad disk) is recognised only where it breaks one of these rules; all elements within a page of such a
position are then given up. Without a readable id map nothing is read from the index: labels are numbered in the order of first
writes, deletions included, which SQLite does not record, so any assignment would be a guess.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiochroma._errors import DatabaseCorruptError
from aiochroma._files import transaction
from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk.hnsw_files import Header, map_elements, read_header
from aiochroma.disk.id_map import IdMap, IndexUnreadableError, read_cut_id_map, read_id_map
from aiochroma.disk.layout import (
    ID_MAP_FILE,
    LENGTH_FILE,
    LEVEL0_FILE,
    connect_read_only,
    connect_read_write,
    log_topic,
)
from aiochroma.disk.schema import (
    ADD,
    DEFAULT_NEIGHBORS,
    DELETE,
    UPDATE,
    UPSERT,
    log_entries,
    stored_collections,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from aiochroma.disk.findings import PreflightReport

__all__ = [
    "LogOutcome",
    "Salvage",
    "iter_log_vectors",
    "replay",
    "salvage_vectors",
    "trim_retained_log",
    "vectors_in_backup",
]

log: EventLogger = get_logger("aiochroma.backup")


@dataclass(frozen=True)
class LogOutcome:
    """What the index would hold if it were rebuilt from the log alone.

    Attributes:
        with_vector: Ids whose vector the log holds.
        deleted: Ids whose last entry is a deletion.
    """

    with_vector: frozenset[str]
    deleted: frozenset[str]


def replay(connection: sqlite3.Connection, collection_id: str) -> LogOutcome:
    """Work out, without reading a vector, what a replay of the log would leave in an empty index.

    Args:
        connection: A connection to the database.
        collection_id: Id of the collection.
    """
    present: set[str] = set()
    deleted: set[str] = set()
    for entry in log_entries(connection, {collection_id: 0}).get(collection_id, []):
        if entry.kind == DELETE:
            present.discard(entry.id)
            deleted.add(entry.id)
        elif entry.kind in {ADD, UPSERT} and entry.has_vector:
            # An update of an id that the index does not know is ignored by Chroma, so it adds nothing here either.
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


def trim_retained_log(
    directory: Path, report: PreflightReport, *, up_to: Mapping[str, int] | None = None
) -> int:
    """Delete from the log what the verified indexes on disk hold as well; returns how many entries.

    This is what bounds a log that is kept. From then on a broken index can no longer be rebuilt from the log
    alone, so call it when the vectors exist elsewhere: after a backup that was verified. The newest entry of
    the whole log always stays, because SQLite numbers the next one after it and Chroma ignores entries with
    old numbers.

    Args:
        directory: The canonical directory; owned by this process, not open in Chroma.
        report: A `preflight` report made since Chroma closed the directory. Collections with problems are
            left alone.
        up_to: By collection id, the newest entry that exists elsewhere; what is newer stays, and so do
            collections that are not named. None: everything exists elsewhere.

    Raises:
        DatabaseCorruptError: The report names problems of the SQLite file.
        sqlite3.DatabaseError: Deleting failed; nothing was deleted.
    """
    if report.sqlite_problems:
        raise DatabaseCorruptError(
            f"the log of {directory} is not trimmed while the file is damaged",
            problems=report.sqlite_problems,
        )
    deleted = 0
    with connect_read_write(directory) as connection, transaction(connection):
        newest = connection.execute("SELECT max(seq_id) FROM embeddings_queue").fetchone()[0]
        for collection in report.collections:
            held = min(collection.persisted_sequence, collection.applied_sequence)
            if up_to is not None:
                held = min(held, up_to.get(collection.collection_id, 0))
            if collection.problems or newest is None:
                continue
            deleted += connection.execute(
                "DELETE FROM embeddings_queue WHERE topic = ? AND seq_id <= ? AND seq_id < ?",
                (log_topic(collection.collection_id), held, newest),
            ).rowcount
    return deleted


_PAGE_BYTES = 4096
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Salvage:
    """Vectors read from a broken index.

    Attributes:
        vectors: Vector of each id that could be read.
        explanation: What could not be read, and why; "" when everything was.
    """

    vectors: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict, repr=False)
    explanation: str = ""


def salvage_vectors(
    index_directory: Path, dimension: int | None, *, cosine: bool = False, neighbors: int = DEFAULT_NEIGHBORS
) -> Salvage:
    """Read every vector that can be read soundly.

    Args:
        index_directory: The directory of a vector segment; it may be missing.
        dimension: Length of the vectors according to SQLite.
        cosine: Whether Chroma stores the vectors with length one and their norms beside them.
        neighbors: The collection's ``max_neighbors``, for the layout when the header is lost.

    Returns:
        The vectors by id, and why others are not among them.
    """
    import numpy as np

    if dimension is None or not (index_directory / LEVEL0_FILE).is_file():
        return Salvage(explanation="there are no index files to read")
    try:
        id_map, is_cut = _id_map(index_directory)
    except IndexUnreadableError as error:
        return Salvage(explanation=f"vectors cannot be told apart: {error}")
    layout = _layout(index_directory, dimension, neighbors, id_map.total_added)
    # The id map says how many there ever were; a file that damage has made endless is not read to its end.
    elements = map_elements(index_directory / LEVEL0_FILE, layout)[: id_map.total_added]
    good = _sound_elements(elements, layout, cosine)
    if len(elements) and not good.any():
        return Salvage(explanation=f"no element of {LEVEL0_FILE} is as expected")
    labels, first, repeats = np.unique(elements["label"], return_index=True, return_counts=True)
    position_of = {
        int(label): int(position)
        for label, position, count in zip(labels, first, repeats, strict=True)
        if count == 1 and good[position]
    }
    positions = {
        record: position_of[label] for record, label in id_map.labels.items() if label in position_of
    }
    norms = _norms(index_directory, len(elements)) if cosine else None
    vectors = {}
    for record, position in positions.items():
        vector = np.array(elements["vector"][position], dtype=np.float32)
        vectors[record] = vector if norms is None else vector * norms[position]
    lost = len(id_map.labels) - len(positions)
    reasons = [f"{lost} vectors are cut off or lie in damaged positions of {LEVEL0_FILE}"] if lost else []
    if is_cut:
        reasons.append(f"{ID_MAP_FILE} is cut off after {len(id_map.labels)} ids")
    return Salvage(vectors=vectors, explanation="; ".join(reasons))


def _id_map(index_directory: Path) -> tuple[IdMap, bool]:
    """Return the id map, or its beginning, and whether it is only that."""
    try:
        return read_id_map(index_directory), False
    except IndexUnreadableError:
        if not (index_directory / ID_MAP_FILE).is_file():
            raise
        return read_cut_id_map(index_directory), True


def _layout(index_directory: Path, dimension: int, neighbors: int, count: int) -> Header:
    """Return where things are inside an element: from the header, or else as Chroma would lay them out."""
    try:
        header = read_header(index_directory, dimension, complete=False)
    except IndexUnreadableError:
        links = 2 * neighbors
        data = 4 + 4 * links
        label = data + 4 * dimension
        return Header(1, 0, count, count, label + 8, label, data, 0, 0, neighbors, links)
    return header


def _sound_elements(elements: npt.NDArray[np.void], layout: Header, cosine: bool) -> npt.NDArray[np.bool_]:
    """Tell which elements are as an element must be, and not beside one that is not."""
    import numpy as np

    if len(elements) == 0:
        return np.zeros(0, dtype=np.bool_)
    sizes = elements["links_count"] & 0xFFFF
    used = np.arange(layout.links_level0, dtype=np.uint32) < sizes[:, None]
    limit = max(layout.count, len(elements))
    vectors = elements["vector"]
    bad = (
        (sizes > layout.links_level0)
        | ((elements["links"] >= limit) & used).any(axis=1)
        | (elements["label"] > np.iinfo(np.uint32).max)
        | ~np.isfinite(vectors).all(axis=1)
    )
    if cosine:
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        bad |= np.abs(norms - 1.0) > _UNIT_TOLERANCE
    reach = 1 + _PAGE_BYTES // layout.element_size
    near = bad.copy()
    for position in np.flatnonzero(bad):
        near[max(0, position - reach) : position + reach + 1] = True
    sound: npt.NDArray[np.bool_] = np.logical_not(near)
    return sound


def _norms(index_directory: Path, count: int) -> npt.NDArray[np.float32] | None:
    import numpy as np

    file = index_directory / LENGTH_FILE
    if not file.is_file() or file.stat().st_size < 4 * count:
        return None
    norms = np.fromfile(file, dtype="<f4", count=count)
    return norms if bool(np.isfinite(norms).all()) and bool((norms >= 0).all()) else None


def vectors_in_backup(
    backup: Path, collection_id: str, ids: Collection[str]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the vectors that a backup has of some records.

    Args:
        backup: A backup that was verified.
        collection_id: Id of the collection.
        ids: The records.

    Returns:
        By id; records that the backup does not know are not among them. Empty where the backup cannot be read, which is
        logged.
    """
    try:
        with connect_read_only(backup) as connection:
            stored = next(
                (entry for entry in stored_collections(connection) if entry.id == collection_id), None
            )
        if stored is None:
            return {}
        found = dict(iter_log_vectors(backup, collection_id, ids))
        absent = set(ids) - found.keys()
        if absent:
            held = salvage_vectors(
                backup / stored.vector_segment,
                stored.dimension,
                cosine=stored.settings.is_cosine,
                neighbors=stored.settings.neighbors,
            )
            found.update({id: vector for id, vector in held.vectors.items() if id in absent})
    except (OSError, sqlite3.DatabaseError, ValueError) as error:
        log.warning("backup.unreadable", backup=str(backup), error=str(error))
        return {}
    return found
