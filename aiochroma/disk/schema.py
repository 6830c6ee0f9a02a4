"""All SQL that reads Chroma's own tables, of every version of Chroma whose data is read here.

What lies on disk is untrusted: a column may be missing (an older Chroma wrote the file), and a value may be of another type than
Chroma writes (another program did). So the columns that are there are asked for, and values are checked as they are read.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from aiochroma._types import JsonObject, MetadataView
from aiochroma.disk.layout import SQLITE_FILE, connect_read_only, log_topic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


__all__ = [
    "ADD",
    "CHUNKS_FOR",
    "DEFAULT_NEIGHBORS",
    "DELETE",
    "EMBEDDER_KEY",
    "LARGEST_DIMENSION",
    "LOG_INDEX",
    "MAX_NEIGHBORS",
    "MIN_NEIGHBORS",
    "MOST_VALUES",
    "UPDATE",
    "UPSERT",
    "WRITING",
    "IndexSettings",
    "LogEntry",
    "StoredCollection",
    "columns_of",
    "full_text_tables",
    "has_log_index",
    "is_readable",
    "keeps_log",
    "log_entries",
    "log_positions",
    "log_positions_in",
    "record_ids",
    "stored_collections",
    "stored_embedders",
    "tables_of",
    "unowned_chunks",
]

EMBEDDER_KEY = "aiochroma:embedder"
"""In the metadata of a namespace's collection: what embedded it."""
CHUNKS_FOR = "aiochroma:chunks_for"
"""In the metadata of a collection of chunks of long texts: the namespace."""
WRITING = "aiochroma:writing"
"""In the metadata of a memory: the writing that its chunks belong to, which their ids begin with."""

ADD, UPDATE, UPSERT, DELETE = range(4)
"""Chroma's codes for the operations in its log."""
_NO_KIND = -1
"""Stands for a logged operation that Chroma does not have."""

LOG_INDEX = "aiochroma_log_by_topic"
"""Our index on Chroma's log, which has none by collection: without it each write reads the whole retained log."""

MOST_VALUES = 5461
"""A record with more metadata keys (or more entries in one list) can be logged but never applied: SQLite takes 32,766 variables
in one statement, and Chroma needs six for each."""

MIN_NEIGHBORS, MAX_NEIGHBORS = 2, 32_767
"""Chroma's native code crashes with fewer, and stores twice the number in 16 bits."""
DEFAULT_NEIGHBORS = 16
"""The number that Chroma takes where none is given."""

_REQUIRED: Mapping[str, frozenset[str]] = {
    "collections": frozenset({"id", "name", "dimension", "database_id"}),
    "databases": frozenset({"id", "name", "tenant_id"}),
    "segments": frozenset({"id", "scope", "collection"}),
    "max_seq_id": frozenset({"segment_id", "seq_id"}),
    "embeddings": frozenset({"segment_id", "embedding_id"}),
    "embeddings_queue": frozenset({"seq_id", "operation", "topic", "id", "vector", "encoding", "metadata"}),
}

LARGEST_DIMENSION = 1 << 24


class LogEntry(NamedTuple):
    """An entry of the log, without its vector.

    Attributes:
        sequence: Its number.
        kind: One of `ADD`, `UPDATE`, `UPSERT`, `DELETE`; a negative number where SQLite has none of them.
        id: The record.
        has_vector: Whether there is a vector with it.
    """

    sequence: int
    kind: int
    id: str
    has_vector: bool


@dataclass(frozen=True)
class IndexSettings:
    """What a collection's vector index is made with.

    Attributes:
        is_cosine: Whether its distance is the cosine; vectors are stored with length one then.
        neighbors: Links of an element.
        problem: Why Chroma's native code must not be let near it; "" where nothing is wrong.
    """

    is_cosine: bool = False
    neighbors: int = DEFAULT_NEIGHBORS
    problem: str = ""


@dataclass(frozen=True)
class StoredCollection:
    """A collection as SQLite knows it.

    Attributes:
        id: Its id.
        name: Its name.
        database: Name of its Chroma database.
        tenant: Name of the tenant.
        dimension: Length of its vectors; None before the first write.
        vector_segment: Name of the index directory.
        metadata_segment: Segment of its records.
        persisted: Number of the last log entry that the index on disk holds; 0 if it was never persisted.
        applied: Number of the last log entry that SQLite's own tables hold; 0 if there is none.
        settings: What its index is made with.
        problem: Why it cannot be used, where its rows are not what Chroma writes; else "".
    """

    id: str
    name: str
    database: str
    tenant: str
    dimension: int | None
    vector_segment: str
    metadata_segment: str
    persisted: int
    applied: int
    settings: IndexSettings
    problem: str = ""


def tables_of(connection: sqlite3.Connection) -> set[str]:
    """Return the names of the tables."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {str(row[0]) for row in rows}


def columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the names of a table's columns; none where there is no such table."""
    return {str(row[0]) for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}


def is_readable(connection: sqlite3.Connection) -> bool:
    """Tell whether the tables have what is read here; those of an older Chroma have it only after Chroma migrated them."""
    return all(columns <= columns_of(connection, table) for table, columns in _REQUIRED.items())


def full_text_tables(connection: sqlite3.Connection) -> set[str]:
    """Return the names of FTS5 tables, whose content is derived from other tables and can be made again."""
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE VIRTUAL TABLE%USING fts5%'"
    )
    return {str(row[0]) for row in rows}


def has_log_index(connection: sqlite3.Connection) -> bool:
    """Tell whether the log has our index by collection."""
    return (
        connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = ?", (LOG_INDEX,)
        ).fetchone()
        is not None
    )


def keeps_log(connection: sqlite3.Connection) -> bool:
    """Tell whether the database's own configuration keeps Chroma from purging the log."""
    if not columns_of(connection, "embeddings_queue_config"):
        return False
    row = connection.execute("SELECT config_json_str FROM embeddings_queue_config LIMIT 1").fetchone()
    return row is not None and json_object(row[0]).get("automatically_purge") is False


def record_ids(connection: sqlite3.Connection, metadata_segment: str) -> set[str]:
    """Return the ids of a collection's records.

    Args:
        connection: A connection to the database.
        metadata_segment: Id of the collection's segment of records.
    """
    rows = connection.execute("SELECT embedding_id FROM embeddings WHERE segment_id = ?", (metadata_segment,))
    return {row[0] for row in rows if type(row[0]) is str}


def log_positions_in(connection: sqlite3.Connection) -> dict[str, int]:
    """Return, by collection id, the number of the last write that Chroma has applied to its records."""
    rows = connection.execute(
        "SELECT s.collection, m.seq_id FROM segments AS s LEFT JOIN max_seq_id AS m ON m.segment_id = s.id"
        " WHERE s.scope = 'METADATA'"
    )
    return {str(collection): sequence_number(position) for collection, position in rows}


def log_entries(connection: sqlite3.Connection, after: Mapping[str, int]) -> dict[str, list[LogEntry]]:
    """Return entries of the log by collection id, in their order; the log is read at most once.

    Args:
        connection: A connection to the database.
        after: By collection id, the number up to which entries are left out; collections that are not named are left out.
    """
    found: defaultdict[str, list[LogEntry]] = defaultdict(list)
    columns = "seq_id, operation, id, vector IS NOT NULL"
    if has_log_index(connection):
        for collection, sequence in after.items():
            rows = connection.execute(
                f"SELECT {columns} FROM embeddings_queue WHERE topic = ? AND seq_id > ? ORDER BY seq_id",  # noqa: S608 - a constant
                (log_topic(collection), sequence),
            )
            for row in rows:
                _append(found[collection], *row)
        return found
    by_topic = {log_topic(collection): collection for collection in after}
    rows = connection.execute(
        f"SELECT topic, {columns} FROM embeddings_queue WHERE seq_id > ? ORDER BY seq_id",  # noqa: S608 - a constant
        (min(after.values(), default=0),),
    )
    for topic, *row in rows:
        owner = by_topic.get(topic)
        if owner is not None and row[0] > after[owner]:
            _append(found[owner], *row)
    return found


def _append(entries: list[LogEntry], sequence: int, kind: object, id: object, has_vector: object) -> None:
    known = isinstance(id, str) and isinstance(kind, int) and ADD <= kind <= DELETE
    operation = kind if known and isinstance(kind, int) else _NO_KIND
    entries.append(LogEntry(sequence, operation, shown(id), bool(has_vector)))


def stored_collections(connection: sqlite3.Connection) -> list[StoredCollection]:
    """Return all collections, by name."""
    columns = columns_of(connection, "collections")
    named = ", ".join(
        f"c.{name}" if name in columns else "NULL" for name in ("config_json_str", "schema_str")
    )
    rows = connection.execute(
        "SELECT c.id, c.name, c.dimension, d.name, d.tenant_id,"  # noqa: S608 - names of columns that are there
        f" {named} FROM collections AS c LEFT JOIN databases AS d ON d.id = c.database_id ORDER BY c.name, c.id"
    ).fetchall()
    # SQLite has no index by collection: asked for each, it would read all segments as often.
    segments: dict[tuple[object, object], object] = {}
    for id, scope, collection in connection.execute("SELECT id, scope, collection FROM segments"):
        segments.setdefault((collection, scope), id)
    sequences = dict(connection.execute("SELECT segment_id, seq_id FROM max_seq_id"))
    old_settings: defaultdict[str, JsonObject] = defaultdict(dict)
    for id, key, value in connection.execute(
        "SELECT collection_id, key, coalesce(str_value, int_value) FROM collection_metadata"
        " WHERE key IN ('hnsw:space', 'hnsw:M')"
    ):
        old_settings[id][key] = value
    found = []
    for id, name, dimension, database, tenant, configuration, schema in rows:
        vector, metadata = segments.get((id, "VECTOR")), segments.get((id, "METADATA"))
        problem = ""
        if not all(type(value) is str for value in (id, name, database, tenant)):
            problem = "its name, database or tenant is missing in SQLite"
        elif type(vector) is not str or type(metadata) is not str:
            problem = "it has no segments in SQLite: making or deleting it was interrupted"
        elif dimension is not None and not (type(dimension) is int and 0 < dimension <= LARGEST_DIMENSION):
            problem = f"its dimension is {dimension!r} in SQLite"
        found.append(
            StoredCollection(
                id=shown(id),
                name=shown(name),
                database=shown(database),
                tenant=shown(tenant),
                dimension=None if problem else dimension,
                vector_segment=shown(vector),
                metadata_segment=shown(metadata),
                persisted=sequence_number(sequences.get(vector)),
                applied=sequence_number(sequences.get(metadata)),
                settings=index_settings(schema, configuration, old_settings.get(id, {})),
                problem=problem,
            )
        )
    return found


def stored_embedders(connection: sqlite3.Connection) -> dict[str, int]:
    """Return how many collections each embedder has written, by what they call it; the most frequent first."""
    if not columns_of(connection, "collection_metadata"):
        return {}
    rows = connection.execute(
        "SELECT str_value, COUNT(*) FROM collection_metadata WHERE key = ? GROUP BY str_value ORDER BY 2 DESC, 1",
        (EMBEDDER_KEY,),
    )
    return {name: count for name, count in rows if isinstance(name, str)}


def unowned_chunks(
    connection: sqlite3.Connection, stored: Sequence[StoredCollection]
) -> dict[str, dict[str, tuple[int, str]]]:
    """Return chunks whose memory is gone, by collection and id: row and text of each; not those of copies, which come first."""
    rows = connection.execute("SELECT collection_id FROM collection_metadata WHERE key = ?", (CHUNKS_FOR,))
    marked = {row[0] for row in rows}
    holders = [entry for entry in stored if entry.id in marked and entry.name.startswith("ns.chunks-")]
    if not holders:
        return {}
    rows = connection.execute(
        "SELECT DISTINCT string_value FROM embedding_metadata WHERE key = ?", (WRITING,)
    )
    writings: set[object] = {row[0] for row in rows}
    for entry in stored:  # What was written last may be in the log alone.
        rows = connection.execute(
            "SELECT metadata FROM embeddings_queue WHERE topic = ? AND seq_id > ?",
            (log_topic(entry.id), entry.applied),
        )
        writings.update(str(json_object(row[0]).get(WRITING)) for row in rows)
    found = {}
    for entry in holders:
        rows = connection.execute(
            "SELECT e.embedding_id, e.id, m.string_value FROM embeddings AS e"
            " LEFT JOIN embedding_metadata AS m ON m.id = e.id AND m.key = 'chroma:document' WHERE e.segment_id = ?",
            (entry.metadata_segment,),
        )
        unowned = {
            id: (row, str(text or "")) for id, row, text in rows if str(id).rpartition(":")[0] not in writings
        }
        if unowned:
            found[entry.id] = unowned
    return found


def index_settings(schema: object, configuration: object, old: MetadataView) -> IndexSettings:
    """Return what an index is made with, from the three places where versions of Chroma have written it.

    Args:
        schema: The column ``schema_str``.
        configuration: The column ``config_json_str``.
        old: The collection's metadata ``hnsw:space`` and ``hnsw:M``.
    """
    for what, is_odd in (
        ("schema", schema is not None and not is_schema(schema)),
        ("configuration", not is_configuration(configuration)),
    ):
        if is_odd:
            return IndexSettings(
                problem=f"its {what} is none that Chroma reads, which lists no collection because of it"
            )
    current = _object_in(json_object(schema), "keys", "#embedding", "float_list", "vector_index", "config")
    written = json_object(configuration)
    legacy = _object_in(written, "hnsw") or _object_in(written, "vector_index", "hnsw")
    space = current.get("space") or legacy.get("space") or old.get("hnsw:space")
    neighbors = next(
        (
            value
            for value in (
                _object_in(current, "hnsw").get("max_neighbors"),
                legacy.get("max_neighbors"),
                old.get("hnsw:M"),
            )
            if value is not None
        ),
        DEFAULT_NEIGHBORS,
    )
    if type(neighbors) is not int or not MIN_NEIGHBORS <= neighbors <= MAX_NEIGHBORS:
        problem = (
            f"its setting `max_neighbors` is {neighbors!r}, with which Chroma's native code crashes"
            f" ({MIN_NEIGHBORS} to {MAX_NEIGHBORS} is possible)"
        )
        return IndexSettings(space == "cosine", problem=problem)
    return IndexSettings(space == "cosine", neighbors)


def is_schema(text: object) -> bool:
    """Tell whether Chroma reads a schema."""
    return isinstance(json_object(text).get("defaults"), dict)


def is_configuration(text: object) -> bool:
    """Tell whether Chroma reads a configuration; it reads none as well."""
    return text is None or bool(json_object(text)) or (isinstance(text, str) and text.strip() == "{}")


def sequence_number(value: object) -> int:
    """Return a number of the log; Chroma before 0.6 stored it as bytes. 0 for anything else."""
    if isinstance(value, bytes) and len(value) <= 8:
        return int.from_bytes(value, "big")
    if isinstance(value, float) and math.isfinite(value):
        return int(value)
    return value if type(value) is int and value > 0 else 0


def json_object(text: object) -> JsonObject:
    """Return an object that is stored as JSON; an empty one where the text is no JSON object."""
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _object_in(container: JsonObject, *names: str) -> JsonObject:
    found: object = container
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def shown(value: object) -> str:
    """Return a value of SQLite as text that can be printed; "" for NULL."""
    if value is None:
        return ""
    return str(value).encode("utf-8", "replace").decode()


def log_positions(directory: Path) -> dict[str, int]:
    """Return, by collection id, the number of the last write that Chroma has applied to its records.

    It tells whether something that follows Chroma has missed a write. Call it while Chroma does not have the database open.
    Empty where there is no database, or none that can be read.
    """
    if not (directory / SQLITE_FILE).exists():
        return {}
    try:
        with connect_read_only(directory) as connection:
            return log_positions_in(connection)
    except sqlite3.DatabaseError:
        return {}
