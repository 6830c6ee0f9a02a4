"""What is done to a database that no program has open: repair and erasing.

``mend`` writes to Chroma's SQLite file, as far as nothing is lost by it: `doctor` has made a copy before, owns the directory, and
Chroma does not have it open. ``fill_and_rebuild`` opens the database, which rebuilds its indexes, and embeds what has no vector.
``erase`` removes from the files what was forgotten, has expired or was replaced.
"""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._errors import DatabaseCorruptError, DatabasePathError, InvalidInputError, shown
from aiochroma._files import canonical_path, transaction
from aiochroma._partial import PartialDirectory
from aiochroma._types import Vector
from aiochroma._waiting import at_length
from aiochroma.backend.preparation import drop_unfollowed
from aiochroma.client.maintenance import FillReport, reembed_missing
from aiochroma.client.opening import AsyncPersistentClient
from aiochroma.disk.backup import begin_backup
from aiochroma.disk.catalog import drop_unreadable, mend_rows
from aiochroma.disk.copying import copy_database, refuse_lack_of_room
from aiochroma.disk.erasing import ErasureReceipt, scrub
from aiochroma.disk.layout import connect_read_write, has_database
from aiochroma.disk.ownership import acquire, refuse_foreign_users
from aiochroma.disk.preflight import preflight
from aiochroma.disk.record_rows import length_of_vectors
from aiochroma.disk.schema import (
    DEFAULT_NEIGHBORS,
    DELETE,
    LARGEST_DIMENSION,
    columns_of,
    full_text_tables,
    json_object,
)
from aiochroma.embedding.choice import chosen, known_embedder
from aiochroma.embedding.functions import is_same_name
from aiochroma.host.opening import ask_to_leave
from aiochroma.records.local_index import IndexFile

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Callable, Sequence

    from aiochroma.client.client import AsyncClient
    from aiochroma.disk.findings import CollectionReport, PreflightReport
    from aiochroma.embedding.choice import EmbedderFunction

__all__ = ["erase", "fill_and_rebuild", "mend", "save_copy", "scrub_files"]


def save_copy(directory: Path, backup_to: str | os.PathLike[str] | None) -> Path:
    """Copy everything before anything is changed; not verified, since what is copied is not whole.

    Args:
        directory: The canonical database directory; owned by this process.
        backup_to: Where the copy goes; None for beside the database.

    Raises:
        BackupError: It cannot be made there.
    """
    if backup_to is not None:
        partial = begin_backup(directory, backup_to, keep=None, verify="quick").partial
    else:
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        refuse_lack_of_room(directory, directory.parent)
        partial = PartialDirectory(
            directory.with_name(f"{directory.name}.before-repair-{stamp}-{uuid.uuid4().hex[:8]}")
        )
    try:
        copy_database(directory, partial.path)
        return partial.finish()
    except BaseException:
        partial.discard()
        raise


async def fill_and_rebuild(
    directory: Path, embedder: object, *, fill: bool, progress: Callable[[str, int, int], None]
) -> tuple[list[str], FillReport | None]:
    """Open a database, which repairs its indexes, and embed what has no vector if asked to.

    Args:
        directory: The database directory; no program owns it.
        embedder: What embeds; None for the one that each collection names, where that is built in.
        fill: Whether to embed.
        progress: Called with a collection's name, how many records are done, and of how many.

    Returns:
        What was done, one sentence each, and what became of records without vectors.
    """
    async with AsyncPersistentClient(
        directory, allow_missing_vectors=True, max_write_slice_ms=100.0
    ) as client:
        recovery = client.recovery
        assert recovery is not None
        actions = [
            f"the index of {entry.label} was rebuilt: {entry.from_log} vectors from the log, {entry.from_index} from the broken "
            f"files; {len(entry.missing)} are nowhere"
            for entry in recovery.collections
            if entry.rebuilt
        ]
        if not fill:
            return actions, None
        source = _DoctorsSource(client, embedder)
        filled = await reembed_missing(client.session.submit, source, progress=progress)
        actions.extend(f"{count} documents of {name} were embedded" for name, count in filled.filled.items())
        return actions, filled


class _DoctorsSource:
    """Embeds with what the caller gave, or with the embedder that a collection names."""

    def __init__(self, client: AsyncClient, embedder: object) -> None:
        self._client = client
        self._given = None if embedder is None else chosen(embedder)
        self._chosen: EmbedderFunction | None = None

    def refusal(self, stored: str | None) -> str | None:
        """See :class:`aiochroma.client.maintenance.EmbeddingSource`."""
        given = self._given
        if given is None:
            self._chosen = None if stored is None else known_embedder(stored)
        else:
            self._chosen = given if stored is None or is_same_name(stored, given.identity) else None
        if self._chosen is not None:
            return None
        if stored is None:
            return "it is not known what embedded it; give the embedder"
        return f"it was embedded by {stored!r}, which is not at hand; give that embedder"

    async def embed(self, texts: list[str]) -> Sequence[Vector]:
        """See :class:`aiochroma.client.maintenance.EmbeddingSource`."""
        assert self._chosen is not None
        vectors: Sequence[Vector] = await self._client.session.embed(
            self._chosen.function, texts, is_query=False
        )
        return vectors


def mend(directory: Path, report: PreflightReport) -> list[str]:
    """Mend settings, entries of the log, and full-text tables.

    Args:
        directory: The canonical database directory.
        report: What `preflight` found since Chroma closed it.

    Returns:
        What was done, one sentence each.

    Raises:
        sqlite3.DatabaseError: The file cannot be written; what was not yet done was not begun.
    """
    done: list[str] = []
    if report.odd_rows:
        with connect_read_write(directory) as connection:
            done.extend(mend_rows(connection, directory, thorough=True))
        # What the rows say of the collections is known from here on.
        report = preflight(directory, thorough=True)
    with connect_read_write(directory) as connection:
        for collection in report.collections:
            if collection.unusable and collection.dimension is None:
                done.extend(_set_dimension(connection, directory, collection))
            dropped = drop_unreadable(connection, collection.collection_id)
            if dropped:
                done.append(f"{collection.label}: {'; '.join(dropped)}")
            elif collection.settings.problem:
                _set_neighbors(connection, collection)
                done.append(
                    f"the setting `max_neighbors` of {collection.label} is {DEFAULT_NEIGHBORS} now, with which Chroma works"
                )
            for sequence, reason in collection.unappliable.items():
                _take_out(connection, sequence)
                done.append(f"entry {sequence} was taken out of the log of {collection.label}: {reason}")
        if report.full_text_problems:
            for table in sorted(full_text_tables(connection)):
                _rebuild_full_text(connection, table)
                done.append(f"the full-text table {table} was made again from the documents")
    return done


def _set_neighbors(connection: sqlite3.Connection, collection: CollectionReport) -> None:
    """Give an index that cannot be made the number of links that Chroma takes by default, wherever that is written."""
    present = [
        name for name in ("schema_str", "config_json_str") if name in columns_of(connection, "collections")
    ]
    row = connection.execute(
        f"SELECT {', '.join(present)} FROM collections WHERE id = ?",  # noqa: S608 - constants
        (collection.collection_id,),
    ).fetchone()
    with transaction(connection):
        for name, text in zip(present, row, strict=True):
            stored = json_object(text)
            if _replace_neighbors(stored):
                connection.execute(
                    f"UPDATE collections SET {name} = ? WHERE id = ?",  # noqa: S608 - constants
                    (json.dumps(stored, separators=(",", ":")), collection.collection_id),
                )
        connection.execute(
            "UPDATE collection_metadata SET int_value = ?, str_value = NULL, float_value = NULL"
            " WHERE collection_id = ? AND key = 'hnsw:M'",
            (DEFAULT_NEIGHBORS, collection.collection_id),
        )


def _set_dimension(
    connection: sqlite3.Connection, directory: Path, collection: CollectionReport
) -> list[str]:
    """Write the length of a collection's vectors where SQLite has none that can be; the log or the index know it."""
    row = connection.execute(
        "SELECT dimension FROM collections WHERE id = ?", (collection.collection_id,)
    ).fetchone()
    if row is None or row[0] is None or (type(row[0]) is int and 0 < row[0] <= LARGEST_DIMENSION):
        return []
    dimension = length_of_vectors(
        connection, directory, collection.collection_id, collection.vector_segment_id
    )
    if dimension is None:
        return []
    connection.execute(
        "UPDATE collections SET dimension = ? WHERE id = ?", (dimension, collection.collection_id)
    )
    return [f"the dimension of {collection.label} is {dimension} again, as that of its vectors"]


def _replace_neighbors(stored: object) -> bool:
    """Replace the setting in every place of a schema or configuration; returns whether it was there."""
    found = False
    if isinstance(stored, dict):
        if "max_neighbors" in stored:
            stored["max_neighbors"] = DEFAULT_NEIGHBORS
            found = True
        for value in stored.values():
            found = _replace_neighbors(value) or found
    return found


def _take_out(connection: sqlite3.Connection, sequence: int) -> None:
    """Turn an entry of the log into one that does nothing: the deletion of a record that never was.

    Its number stays taken. SQLite would give it to the next entry, and Chroma ignores entries with numbers it has seen.
    """
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute(
        "UPDATE embeddings_queue SET operation = ?, id = ?, vector = NULL, encoding = NULL, metadata = NULL WHERE seq_id = ?",
        (DELETE, f"taken-out-{uuid.uuid4()}", sequence),
    )


def _rebuild_full_text(connection: sqlite3.Connection, table: str) -> None:
    name = table.replace('"', '""')
    connection.execute(f'INSERT INTO "{name}" ("{name}") VALUES (\'rebuild\')')  # noqa: S608 - a name out of sqlite_master, quoted


async def erase(
    path: str | os.PathLike[str], *, texts: Sequence[str] = (), keep_history: bool = False
) -> ErasureReceipt:
    """Remove everything that is dead from the files of a database, and prove it for the texts that are named.

    What is dead: records that were deleted, expired and swept, or replaced, whoever did it. A program that has the database open
    uses ``await memory.erase(...)``; a host that has no clients lets go of it. Nothing is copied first, since the copy would
    hold what is to go; nothing that lives is touched. An index that is damaged is made again before, as at any opening: a
    process that was killed while it wrote or erased leaves one. Killed, an erasure may be run again.

    Args:
        path: The database directory.
        texts: Texts to look for in every file afterwards, as UTF-8 and as JSON writes them.
        keep_history: Leave the texts in the history of changes. Without it entries stay and lose their texts.

    Returns:
        What was removed, what was looked for and where, and the copies that are not reached.

    Raises:
        InvalidInputError: `texts` are no texts.
        DatabasePathError: There is no database, or no permission.
        DatabaseInUseError: Another process has it open.
        DatabaseCorruptError: It is damaged, and opening does not mend it: repair it first.
        StoreUnavailableError: A file cannot be written, or there is no room for a second copy of it.
    """
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise InvalidInputError(f"`texts` must be a list of texts, got {shown(texts)}.")
    receipt = await at_length(lambda: _erase(path, texts, keep_history=keep_history, opened=False))
    if receipt is None:
        # Vectors that are nowhere make it fail: what is set aside may hold them, and an erasure deletes that.
        async with AsyncPersistentClient(path):
            pass
        receipt = await at_length(lambda: _erase(path, texts, keep_history=keep_history, opened=True))
    assert receipt is not None
    return receipt


def _erase(
    path: str | os.PathLike[str], texts: Sequence[str], *, keep_history: bool, opened: bool
) -> ErasureReceipt | None:
    """Erase from the files; None where the database is to be ``opened`` before, since that mends its indexes."""
    directory = Path(canonical_path(path))
    if not has_database(directory):
        raise DatabasePathError(f"There is no database in {str(directory)!r}.")
    ask_to_leave(str(directory))
    with acquire(directory, create=False):
        refuse_foreign_users(directory)
        found = preflight(directory)
        if found.damaged and not opened:
            return None
        if found.problems:
            raise DatabaseCorruptError(
                f"{str(directory)!r} is damaged, so nothing was erased: {found.problems[0]}. First run `aiochroma doctor "
                "--repair`.",
                problems=found.problems,
            )
        return scrub_files(directory, texts=texts, keep_history=keep_history)


def scrub_files(
    directory: Path, *, texts: Sequence[str] = (), keep_history: bool = False, set_aside: bool = True
) -> ErasureReceipt:
    """Remove what is dead from all files of a database; see :func:`erase`, and ``disk.erasing.scrub``.

    Args:
        directory: The canonical database directory; owned by this process, not open in Chroma, and sound.
        texts: Texts to look for afterwards.
        keep_history: Leave the texts in the history of changes.
        set_aside: Delete quarantines and orphaned indexes as well.
    """
    drop_unfollowed(directory, IndexFile(directory))
    return scrub(directory, texts=texts, history={} if keep_history else None, set_aside=set_aside)
