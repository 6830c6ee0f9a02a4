"""Erasing: what was forgotten, has expired or was replaced leaves the files of a database as well.

Deleting a record leaves its text in Chroma's log, in free pages and in full-text segments, its vector in the log and in the
index, and both in what repairs have set aside. Here all that is dead goes, whoever deleted it:

- **The log** keeps one entry for each living record: its newest vector, without text and metadata. That is what a rebuild
  of an index needs, and no more.
- **The index** gets another vector in the place of each deleted one: that of a neighbour, so that searches find their
  way as before. Its unused room is blanked.
- **The SQLite files**, Chroma's and ours: full-text tables are merged, free pages given back, journals emptied.
- **Quarantines and orphaned indexes** are deleted.

Then every file is read, and the receipt says what was looked for and where.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain, repeat
from typing import TYPE_CHECKING

from aiochroma._clock import file_clock_ns, monotonic
from aiochroma._errors import StoreUnavailableError
from aiochroma._files import flush, transaction
from aiochroma._types import JsonObject
from aiochroma.disk.backup import kept_copies
from aiochroma.disk.erasing_own import ErasedHistory, compact, scrub_own_files
from aiochroma.disk.hnsw_files import DELETED_MARK, blank_room, map_elements, read_header, unit_forms
from aiochroma.disk.id_map import IndexUnreadableError, read_id_map, write_id_map
from aiochroma.disk.layout import (
    HEADER_FILE,
    ID_MAP_FILE,
    LENGTH_FILE,
    LEVEL0_FILE,
    QUARANTINE_PREFIX,
    connect_read_write,
    files_holding,
    index_directories,
    log_topic,
)
from aiochroma.disk.schema import (
    DELETE,
    UPSERT,
    record_ids,
    stored_collections,
    unowned_chunks,
)
from aiochroma.disk.sqlite_file import delete_orphaned_lists, delete_records

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from aiochroma.disk.schema import StoredCollection

__all__ = ["ErasureReceipt", "UnusedRooms", "scrub", "trace_patterns"]

_COARSE_NS = 50_000_000
"""A file that was changed so lately may be changed again without another time of change."""
_SHORTEST_PATTERN = 6
"""Texts of fewer bytes are in any file by chance."""


@dataclass(frozen=True)
class ErasureReceipt:
    """What was erased, and what was looked at to prove it.

    Attributes:
        erased: Memories that were forgotten by this call.
        texts: Texts that were looked for, as UTF-8 and as JSON writes them.
        vectors: Vectors that were looked for, as they were given and, with the cosine distance, as the index held them.
        files: Every file of the directory; each was read to its end.
        bytes_checked: The size of those files.
        found: Files that hold one of the texts or vectors still. Empty when the erasure is complete.
        chunks: Chunks of long texts that belonged to no memory any more, because another program had deleted it: deleted as
            well, and looked for.
        shared: How many of the texts are, or are part of, the text of a memory that lives: not looked for; nor is their vector
            where another memory says the same.
        too_short: How many of the texts are too short to be told from chance: not looked for.
        log_entries: Entries that were deleted from Chroma's log, or emptied of their text.
        vectors_replaced: Deleted vectors that were overwritten in the indexes.
        removed: Quarantines and orphaned indexes that were deleted.
        entries_kept: Entries of the history that stay without their texts, to say that something changed. They name the ids of
            memories. Those of a memory leave with it where a memory erases, and all are gone when the file is deleted.
        not_reached: Copies that an erasure does not reach, as far as they are known: backups, and what restores and repairs
            have kept beside the database.
    """

    erased: int = 0
    texts: int = 0
    vectors: int = 0
    files: tuple[str, ...] = ()
    bytes_checked: int = 0
    found: tuple[str, ...] = ()
    chunks: int = 0
    shared: int = 0
    too_short: int = 0
    log_entries: int = 0
    vectors_replaced: int = 0
    removed: tuple[str, ...] = ()
    entries_kept: int = 0
    not_reached: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether nothing of what was looked for is in any file of the directory."""
        return not self.found

    def as_dict(self) -> JsonObject:
        """Return plain data, for JSON."""
        return {**asdict(self), "is_complete": self.is_complete}


@dataclass
class _Tally:
    log_entries: int = 0
    vectors: int = 0
    vector_forms: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def scrub(
    directory: Path,
    *,
    texts: Sequence[str] = (),
    vectors: Sequence[bytes] = (),
    history: ErasedHistory | None = None,
    set_aside: bool = True,
) -> ErasureReceipt:
    """Remove all that is dead from the files of a database, and look for what must not be there any more.

    Args:
        directory: The canonical directory; owned by this process, not open in Chroma, and sound.
        texts: Texts to look for afterwards.
        vectors: Vectors to look for, as float32 bytes; each that of the text at its place, where there is one (or "").
        history: Which entries leave the history; None takes the texts out of all entries.
        set_aside: Delete quarantines and orphaned indexes as well.

    Raises:
        StoreUnavailableError: A file is damaged, locked or cannot be written, or there is no room for a second copy of it. What
            was done by then is done; nothing that lives was touched.
    """
    try:
        return _scrub(directory, texts, vectors, history, set_aside=set_aside)
    except (OSError, sqlite3.Error, IndexUnreadableError) as error:
        raise StoreUnavailableError(
            f"{str(directory)!r} could not be erased to the end: {error}. Nothing that lives was touched; run "
            "`aiochroma doctor`, then erase again."
        ) from error


def _scrub(
    directory: Path,
    texts: Sequence[str],
    vectors: Sequence[bytes],
    history: ErasedHistory | None,
    *,
    set_aside: bool,
) -> ErasureReceipt:
    tally = _Tally()
    with connect_read_write(directory) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        stored = [entry for entry in stored_collections(connection) if not entry.problem]
        unowned = unowned_chunks(connection, stored)
        for rows in unowned.values():
            delete_records(connection, [row for row, _ in rows.values()])
            tally.texts += [text for _, text in rows.values()]
        twins = {text for text in (*texts, *tally.texts) if _is_shared(connection, text, whole=True)}
        # A memory of the same text has the same vector.
        vectors = [
            one for one, text in zip(vectors, chain(texts, repeat("")), strict=False) if text not in twins
        ]
        texts = [text for text in (*texts, *tally.texts) if text]
        shared = {text for text in texts if text in twins or _is_shared(connection, text)}
        living = {entry.id: record_ids(connection, entry.metadata_segment) for entry in stored}
        for entry in stored:
            if not entry.settings.problem:
                rows = unowned.get(entry.id, {})
                chunks = {id for id, (_, text) in rows.items() if text not in twins}
                _scrub_index(
                    directory / entry.vector_segment, entry, living[entry.id], vectors, chunks, tally
                )
        _scrub_log(connection, stored, living, tally)
        delete_orphaned_lists(connection)
        compact(connection)
    if set_aside:
        segments = {entry.vector_segment for entry in stored}
        orphans = [path for name, path in index_directories(directory).items() if name not in segments]
        for path in (*orphans, *sorted(directory.glob(f"{QUARANTINE_PREFIX}*"))):
            _remove(path, tally)
    entries_kept = scrub_own_files(directory, history)
    sought = [text for text in texts if text not in shared]
    patterns = [
        *trace_patterns(sought),
        *(vector for vector in (*vectors, *tally.vector_forms) if any(vector)),
    ]
    files, size, found = files_holding(directory, patterns)
    return ErasureReceipt(
        texts=len(texts),
        vectors=len(vectors),
        chunks=len(tally.texts),
        files=files,
        bytes_checked=size,
        found=found,
        shared=len(shared),
        too_short=sum(len(text.encode("utf-8", "surrogatepass")) < _SHORTEST_PATTERN for text in sought),
        log_entries=tally.log_entries,
        vectors_replaced=tally.vectors,
        removed=tuple(tally.removed),
        entries_kept=entries_kept,
        not_reached=tuple(kept_copies(directory)),
    )


def trace_patterns(texts: Iterable[str]) -> list[bytes]:
    """Return the bytes that a text leaves in files: UTF-8, and what JSON makes of it with and without escapes."""
    patterns: dict[bytes, None] = {}
    for text in texts:
        forms = (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
        encoded = [form.encode("utf-8", "surrogatepass") for form in forms]
        if len(encoded[0]) >= _SHORTEST_PATTERN:
            patterns.update(dict.fromkeys(encoded))
    return list(patterns)


# -- Chroma's log ------------------------------------------------------------------------------------------------------


def _scrub_log(
    connection: sqlite3.Connection,
    stored: Sequence[StoredCollection],
    living: Mapping[str, set[str]],
    tally: _Tally,
) -> None:
    """Keep the newest vector of each living record; entries that Chroma has not applied yet stay as they are."""
    newest = connection.execute("SELECT max(seq_id) FROM embeddings_queue").fetchone()[0]
    if newest is None:
        return
    with transaction(connection):
        before = connection.total_changes
        for entry in stored:
            _scrub_topic(connection, entry, living[entry.id])
        topics = [log_topic(entry.id) for entry in stored]
        marks = ", ".join("?" * len(topics))
        # Of collections that are gone.
        connection.execute(f"DELETE FROM embeddings_queue WHERE topic NOT IN ({marks})", topics)  # noqa: S608 - question marks
        tally.log_entries = connection.total_changes - before
        if connection.execute("SELECT max(seq_id) FROM embeddings_queue").fetchone()[0] != newest and topics:
            # SQLite would give its number to the next entry, and Chroma ignores entries with numbers it has seen.
            connection.execute(
                "INSERT INTO embeddings_queue (seq_id, operation, topic, id) VALUES (?, ?, ?, ?)",
                (newest, DELETE, topics[0], "aiochroma-erased"),
            )


def _scrub_topic(connection: sqlite3.Connection, stored: StoredCollection, living: set[str]) -> None:
    topic, applied = log_topic(stored.id), stored.applied
    rows = connection.execute(
        "SELECT seq_id, id, operation, vector IS NOT NULL, metadata IS NOT NULL FROM embeddings_queue"
        " WHERE topic = ? AND seq_id <= ? ORDER BY seq_id DESC",
        (topic, applied),
    ).fetchall()
    kept: set[str] = set()
    doomed, emptied = [], []
    for sequence, id, kind, has_vector, has_text in rows:
        if id in living and id not in kept and has_vector:
            kept.add(id)
            if kind != UPSERT or has_text:
                emptied.append((UPSERT, sequence))
        else:
            doomed.append((sequence,))
    connection.executemany("DELETE FROM embeddings_queue WHERE seq_id = ?", doomed)
    connection.executemany(
        "UPDATE embeddings_queue SET operation = ?, metadata = NULL WHERE seq_id = ?", emptied
    )


# -- indexes -----------------------------------------------------------------------------------------------------------


def _scrub_index(
    index: Path,
    stored: StoredCollection,
    living: set[str],
    sought: Sequence[bytes],
    chunks: Collection[str],
    tally: _Tally,
) -> None:
    """Overwrite the vectors of deleted elements with those of neighbours, and note which of the sought ones they were.

    Behind the elements the files of a new index hold room for more, which Chroma writes as its memory happens to be: texts, too.

    Raises:
        IndexUnreadableError: The files cannot be read.
    """
    import numpy as np

    if not (index / HEADER_FILE).is_file():
        return
    header = read_header(index, stored.dimension)
    blank_room(index, header)
    if not (index / ID_MAP_FILE).is_file():
        return
    id_map = read_id_map(index)
    dead = {label for id, label in id_map.labels.items() if id not in living}
    elements = map_elements(index / LEVEL0_FILE, header, writable=True)
    if not len(elements):
        return
    counts = elements["links_count"]
    marked = (counts & DELETED_MARK) != 0
    gone = marked | np.isin(elements["label"], np.fromiter(dead, dtype=np.uint64, count=len(dead)))
    positions = np.flatnonzero(gone)
    if len(positions):
        labels = [label for id, label in id_map.labels.items() if id in chunks]
        tally.vector_forms += [
            row.tobytes() for row in elements["vector"][np.isin(elements["label"], labels)]
        ]
        if stored.settings.is_cosine:
            tally.vector_forms += unit_forms(elements["vector"][positions], sought)
        norms = np.memmap(index / LENGTH_FILE, dtype="<f4", mode="r+", shape=(header.count,))
        for position in positions:
            links = elements["links"][position][: counts[position] & 0xFFFF]
            near = next((link for link in links if link < len(gone) and not gone[link]), None)
            elements["vector"][position] = 0.0 if near is None else elements["vector"][near]
            norms[position] = 0.0 if near is None else norms[near]
            counts[position] |= DELETED_MARK
        norms.flush()
        elements.flush()  # type: ignore[attr-defined]  # a memory map
    if dead:
        # Last, as Chroma writes it.
        write_id_map(
            index, {id: label for id, label in id_map.labels.items() if label not in dead}, id_map.total_added
        )
    flush(index / LEVEL0_FILE)
    tally.vectors += len(positions)


# -- what to look for ---------------------------------------------------------------------------------------------------


def _is_shared(connection: sqlite3.Connection, text: str, *, whole: bool = False) -> bool:
    """Tell whether a text is the text of a record that lives, or, unless it has to be the ``whole`` of one, part of one."""
    condition = "key = 'chroma:document' AND string_value = ?" if whole else "instr(string_value, ?) > 0"
    try:
        row = connection.execute(
            f"SELECT 1 FROM embedding_metadata WHERE {condition} LIMIT 1",  # noqa: S608 - constants
            (text,),
        ).fetchone()
    except UnicodeEncodeError:
        return False  # A lone surrogate, which SQLite cannot hold.
    return row is not None


def _remove(path: Path, tally: _Tally) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        tally.removed.append(path.name)


class UnusedRooms:
    """Blanks the room behind the elements of indexes that are written in a process that has erased something.

    The memory of such a process may hold erased texts still, and Chroma fills the room of a new index with what it finds there.

    Args:
        directory: The database directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: dict[str, int] = {}
        self._is_watched = False
        self._due = 0.0

    def watch(self) -> None:
        """Begin: something was erased."""
        self._is_watched = True

    def blank(self, *, now: bool = False) -> None:
        """Blank what was written since, if it is time: looking takes some microseconds for each index."""
        begun = monotonic()
        if not self._is_watched or (begun < self._due and not now):
            return
        for name, index in index_directories(self._directory).items():
            with suppress(OSError, IndexUnreadableError):  # It is being made, or deleted.
                changed = (index / LEVEL0_FILE).stat()
                if self._seen.get(name) == changed.st_mtime_ns:
                    continue
                blank_room(index, read_header(index, None))
                # As Chroma has left it, so that a later change is seen.
                os.utime(index / LEVEL0_FILE, ns=(changed.st_atime_ns, changed.st_mtime_ns))
                if file_clock_ns() - changed.st_mtime_ns > _COARSE_NS:
                    self._seen[name] = changed.st_mtime_ns
        self._due = monotonic() + 50 * (monotonic() - begun)
