"""Rows of records that are not what Chroma writes, and the length of a collection's vectors, which they tell.

What one of them keeps from working is its own collection, apart from the numbers of records: those are shared by all.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aiochroma.disk.hnsw_files import read_header
from aiochroma.disk.id_map import IndexUnreadableError, read_id_map
from aiochroma.disk.layout import log_topic
from aiochroma.disk.own_index import is_followed
from aiochroma.disk.rows import LARGEST_NUMBER, Oddity, is_id, seen, text_of
from aiochroma.disk.schema import EMBEDDER_KEY, columns_of, shown, tables_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

__all__ = ["COSINE", "KINDS", "KINDS_OF_RECORDS", "length_of_vectors", "unreached"]

COSINE = json.dumps({"vector_index": {"hnsw": {"space": "cosine"}}})
"""A configuration, for a memory's collection without its schema: Chroma would compare by another distance."""


def length_of_vectors(
    connection: sqlite3.Connection, directory: Path, collection: str, index: str
) -> int | None:
    """Return how long a collection's vectors are, by its log, or by its index; None where neither has any.

    Args:
        connection: A connection to the database.
        directory: The database directory.
        collection: The collection's id.
        index: Name of its index directory.
    """
    logged = connection.execute(
        "SELECT length(vector) / 4 FROM embeddings_queue WHERE topic = ? AND vector IS NOT NULL LIMIT 1",
        (log_topic(collection),),
    ).fetchone()
    if logged is not None:
        return int(logged[0])
    try:
        header = read_header(directory / index, None, complete=False)
    except IndexUnreadableError:
        return None
    return (header.label_offset - header.data_offset) // 4


def _dimensions(connection: sqlite3.Connection, directory: Path) -> Iterator[Oddity]:
    """Collections that have been written to and have no dimension: Chroma finds nothing in them, without an error."""
    rows = connection.execute(
        "SELECT c.id, c.name, (SELECT id FROM segments WHERE collection = c.id AND scope = 'VECTOR') FROM collections AS c"
        " JOIN segments AS s ON s.collection = c.id AND s.scope = 'METADATA' JOIN max_seq_id AS m ON m.segment_id = s.id"
        " WHERE c.dimension IS NULL"
    ).fetchall()
    for collection, name, index in rows:
        dimension = length_of_vectors(connection, directory, shown(collection), shown(index))
        if dimension is not None:
            yield Oddity(
                f"{shown(name)}: its dimension is NULL in SQLite, and Chroma finds nothing in it because of that",
                f"it is {dimension} again, as that of its vectors",
                (("UPDATE collections SET dimension = ? WHERE id = ?", (dimension, collection)),),
            )


def _numbers(connection: sqlite3.Connection, _directory: Path) -> Iterator[Oddity]:
    """Numbers of records that Chroma cannot read, or after which SQLite gives no further ones: no collection could be written."""
    outermost = connection.execute("SELECT min(id), max(id) FROM embeddings").fetchone()
    if outermost[0] is None or (outermost[0] > 0 and outermost[1] <= LARGEST_NUMBER):
        return
    odd = connection.execute(
        "SELECT id, embedding_id FROM embeddings WHERE id < 1 OR id > ?", (LARGEST_NUMBER,)
    ).fetchall()
    free = connection.execute(
        "SELECT max(coalesce((SELECT max(id) FROM embeddings WHERE id <= ?1), 0),"
        " coalesce((SELECT max(id) FROM embedding_metadata WHERE id <= ?1), 0))",
        (LARGEST_NUMBER,),
    ).fetchone()[0]
    unowned = connection.execute(
        "SELECT DISTINCT id FROM embedding_metadata WHERE id NOT IN (SELECT id FROM embeddings) LIMIT 2"
    ).fetchall()
    for place, (number, id) in enumerate(odd, 1):
        right = (
            unowned[0][0] if len(odd) == len(unowned) == 1 and type(unowned[0][0]) is int else free + place
        )
        yield Oddity(
            f"the record {seen(id)} has in SQLite the number {number}",
            f"its number is {right} now",
            (
                ("UPDATE embeddings SET id = ? WHERE id = ?", (right, number)),
                ("UPDATE embedding_metadata SET id = ? WHERE id = ?", (right, number)),
                *(
                    [("UPDATE embedding_metadata_array SET id = ? WHERE id = ?", (right, number))]
                    if "embedding_metadata_array" in tables_of(connection)
                    else []
                ),
                ("UPDATE embedding_fulltext_search SET rowid = ? WHERE rowid = ?", (right, number)),
            ),
        )


def unreached(connection: sqlite3.Connection) -> list[object]:
    """Return the segments that records are in and that SQLite does not have: nothing reaches those records."""
    rows = connection.execute("SELECT DISTINCT segment_id FROM embeddings EXCEPT SELECT id FROM segments")
    return [row[0] for row in rows.fetchall()]


def _lost_collections(connection: sqlite3.Connection, directory: Path) -> Iterator[Oddity]:
    """Collections whose row alone is gone: their segments and records are there. Chroma deletes all of it in one transaction."""
    segments = connection.execute(
        "SELECT collection, id, (SELECT v.id FROM segments AS v WHERE v.collection = s.collection AND v.scope = 'VECTOR')"
        " FROM segments AS s WHERE scope = 'METADATA' AND collection NOT IN (SELECT id FROM collections)"
        " AND EXISTS (SELECT 1 FROM embeddings WHERE segment_id = s.id)"
    ).fetchall()
    databases = [row[0] for row in connection.execute("SELECT id FROM databases ORDER BY id")]
    for collection, metadata, index in segments:
        if not is_id(collection) or not databases:
            continue
        records = connection.execute(
            "SELECT count(*) FROM embeddings WHERE segment_id = ?", (metadata,)
        ).fetchone()[0]
        is_memory = connection.execute(
            "SELECT 1 FROM collection_metadata WHERE collection_id = ? AND key = ?",
            (collection, EMBEDDER_KEY),
        ).fetchone()
        values = {
            "id": collection,
            "name": f"recovered-{collection}",
            "database_id": databases[0],
            "dimension": length_of_vectors(connection, directory, collection, shown(index)),
            "config_json_str": COSINE if is_memory else "{}",
        }
        present = columns_of(connection, "collections")
        values = {name: value for name, value in values.items() if name in present}
        # The names of columns are constants.
        insert = f"INSERT INTO collections ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"  # noqa: S608
        distance = "cosine" if is_memory else "squared L2"
        yield Oddity(
            f"a collection of {records} records, {collection}, is not in SQLite's list of collections, although its records are",
            f"it is there again under the name recovered-{collection}, with the {distance} distance; `modify(name=...)` renames"
            " it, and whoever has deleted it may do so again",
            ((insert, tuple(values.values())),),
        )


def _record_segments(connection: sqlite3.Connection, _directory: Path) -> Iterator[Oddity]:
    """Records that are in no segment, and of which the log knows to which collection they belong."""
    owners = connection.execute("SELECT collection, id FROM segments WHERE scope = 'METADATA'").fetchall()
    by_topic = {log_topic(shown(collection)): segment for collection, segment in owners}
    for odd in unreached(connection):
        rows = connection.execute(
            "SELECT e.id, q.id, q.topic FROM embeddings AS e JOIN embeddings_queue AS q ON q.seq_id = e.seq_id"
            " WHERE e.segment_id IS ? AND q.id IS e.embedding_id",
            (odd,),
        ).fetchall()
        for number, id, topic in rows:
            if topic in by_topic:
                statement = "UPDATE OR IGNORE embeddings SET segment_id = ? WHERE id = ?"
                yield Oddity(
                    f"the record {seen(id)} is in no collection: it has in SQLite the segment {seen(odd)}",
                    f"it is in the segment {by_topic[topic]} again, as its log says",
                    ((statement, (by_topic[topic], number)),),
                )


def _record_ids(connection: sqlite3.Connection, _directory: Path) -> Iterator[Oddity]:
    """Records whose id is no text; the log still has it, or its bytes say it."""
    rows = connection.execute(
        "SELECT e.id, e.segment_id, e.embedding_id, e.seq_id, s.collection FROM embeddings AS e"
        " JOIN segments AS s ON s.id = e.segment_id WHERE typeof(e.embedding_id) <> 'text'"
    ).fetchall()
    for number, segment, id, sequence, collection in rows:
        logged = connection.execute(
            "SELECT id FROM embeddings_queue WHERE seq_id = ? AND topic = ? AND typeof(id) = 'text'",
            (sequence, log_topic(shown(collection))),
        ).fetchone()
        right = text_of(logged[0] if logged else id)
        taken = "SELECT 1 FROM embeddings WHERE segment_id = ? AND embedding_id = ?"
        problem = f"a record of the collection {shown(collection)} has in SQLite the id {seen(id)}"
        if right and connection.execute(taken, (segment, right)).fetchone() is None:
            statement = ("UPDATE embeddings SET embedding_id = ? WHERE id = ?", (right, number))
            yield Oddity(problem, f"its id is {right!r} now", (statement,))
            continue
        yield Oddity(
            problem,
            "it was taken out, since nothing says which it is",
            (
                ("DELETE FROM embeddings WHERE id = ?", (number,)),
                ("DELETE FROM embedding_metadata WHERE id = ?", (number,)),
                ("DELETE FROM embedding_fulltext_search WHERE rowid = ?", (number,)),
            ),
        )


def _renamed_records(connection: sqlite3.Connection, directory: Path) -> Iterator[Oddity]:
    """Records with another id than the log has of them, unless the index, or our own, knows them by it: the log is odd then."""
    rows = connection.execute(
        "SELECT e.id, e.embedding_id, q.id, s.collection,"
        " (SELECT v.id FROM segments AS v WHERE v.collection = s.collection AND v.scope = 'VECTOR')"
        " FROM embeddings AS e JOIN segments AS s ON s.id = e.segment_id JOIN embeddings_queue AS q ON q.seq_id = e.seq_id"
        " WHERE q.topic = ? || s.collection AND q.id <> e.embedding_id"
        " AND typeof(e.embedding_id) = 'text' AND typeof(q.id) = 'text'"
        " AND NOT EXISTS (SELECT 1 FROM embeddings AS o WHERE o.segment_id = e.segment_id AND o.embedding_id = q.id)"
        " AND NOT EXISTS (SELECT 1 FROM embeddings_queue AS n WHERE n.topic = q.topic AND n.seq_id > q.seq_id"
        " AND n.id IN (q.id, e.embedding_id))",
        (log_topic(""),),
    ).fetchall()
    known: dict[object, Collection[str]] = {}
    for number, id, logged, collection, index in rows:
        if index not in known:
            known[index] = _indexed(directory / shown(index))
        if id not in known[index] and not is_followed(directory, shown(collection), id):
            yield Oddity(
                f"a record has in SQLite the id {seen(id)}, and in the log the id {seen(logged)}: its vector is not found",
                f"its id is {seen(logged)} again",
                (("UPDATE embeddings SET embedding_id = ? WHERE id = ?", (logged, number)),),
            )


def _indexed(index: Path) -> Collection[str]:
    try:
        return read_id_map(index).labels
    except IndexUnreadableError:
        return ()


def _record_keys(connection: sqlite3.Connection, _directory: Path) -> Iterator[Oddity]:
    """Metadata of records under a key that is no text."""
    for table in sorted({"embedding_metadata", "embedding_metadata_array"} & tables_of(connection)):
        query = f"SELECT rowid, id, key FROM {table} WHERE typeof(key) <> 'text'"  # noqa: S608 - a constant
        for row, number, key in connection.execute(query).fetchall():
            right = text_of(key)
            change = (
                (f"UPDATE OR REPLACE {table} SET key = ? WHERE rowid = ?", (right, row))  # noqa: S608 - a constant
                if right
                else (f"DELETE FROM {table} WHERE rowid = ?", (row,))  # noqa: S608 - a constant
            )
            yield Oddity(
                f"metadata of the record of number {number} stands under the key {seen(key)}",
                f"it is under {right!r} now" if right else "it was taken out",
                (change,),
            )


KINDS: tuple[Callable[[sqlite3.Connection, Path], Iterator[Oddity]], ...] = (_dimensions, _numbers)
"""What is looked for whenever a directory is opened."""

KINDS_OF_RECORDS: tuple[Callable[[sqlite3.Connection, Path], Iterator[Oddity]], ...] = (
    _lost_collections,
    _record_segments,
    _record_ids,
    _renamed_records,
    _record_keys,
)
"""What is looked for by a thorough look alone: it reads the rows of all records."""
