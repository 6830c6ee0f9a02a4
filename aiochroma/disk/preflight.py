"""Looks at a database before Chroma opens it, and changes nothing.

Chroma notices little of what can be wrong with its files: a damaged index makes it crash or fill the disk, a
missing one makes it answer from what is left, without an error. So the SQLite file, its version, every index
and the agreement of the two are checked here. About 25 ms for 10,000 records of 384 dimensions; what would
take longer is sampled, and the report says so.
"""

from __future__ import annotations

import json
import mmap
import re
import sqlite3
import time
from dataclasses import dataclass, field, replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiochroma._errors import DatabaseFormatError
from aiochroma.disk.hnsw_files import LINK_CHECK_LIMIT, inspect_index
from aiochroma.disk.layout import (
    ID_MAP_FILE,
    SQLITE_FILE,
    connect_read_only,
    index_directories,
    log_topic,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CollectionReport", "PreflightReport", "preflight"]

# The newest migration of each kind in Chroma 1.5.0 to 1.5.9.
_KNOWN_MIGRATIONS: Mapping[str, int] = {"sysdb": 10, "metadb": 6, "embeddings_queue": 2}
# Older than these, the tables read here look different; Chroma migrates them at its next open.
_OLDEST_READABLE: Mapping[str, int] = {"sysdb": 9, "metadb": 5, "embeddings_queue": 2}
_PROGRESS_STEP = 50_000
_MIGRATION_NAME = re.compile(r"\d{5}-[a-z0-9-]+\.sqlite\.sql")


@dataclass(frozen=True)
class CollectionReport:
    """One collection: what SQLite knows of it and what its index holds.

    Attributes:
        collection_id: Id of the collection.
        name: Name of the collection.
        database: Name of the Chroma database it is in.
        tenant: Name of the tenant.
        dimension: Length of its vectors; None before the first write.
        records: Records in SQLite.
        vectors: Vectors in the index on disk.
        pending: Log entries that Chroma will replay at open.
        retained: Log entries of this collection in all.
        persisted_sequence: Sequence number up to which the index on disk is complete; 0 if never persisted.
        applied_sequence: The same for SQLite's own tables.
        vector_segment_id: Name of the index directory.
        metadata_segment_id: Segment of the records in SQLite.
        index_problems: One sentence for each thing wrong with the index files.
        missing: Ids of records without a vector in the index or in the log entries to be replayed.
        surplus: Number of ids that have a vector in the index but no record.
        sampled: Whether only a sample of the index's links was followed.
    """

    collection_id: str
    name: str
    database: str
    tenant: str
    dimension: int | None
    records: int
    vectors: int
    pending: int
    retained: int
    persisted_sequence: int
    applied_sequence: int
    vector_segment_id: str
    metadata_segment_id: str
    index_problems: tuple[str, ...] = ()
    missing: tuple[str, ...] = field(default=(), repr=False)
    surplus: int = 0
    sampled: bool = False

    @property
    def label(self) -> str:
        """The name, with database and tenant where they are not Chroma's defaults."""
        if (self.tenant, self.database) == ("default_tenant", "default_database"):
            return self.name
        return f"{self.tenant}/{self.database}/{self.name}"

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each thing that is wrong."""
        found = [f"{self.label}: {problem}" for problem in self.index_problems]
        if self.missing:
            found.append(
                f"{self.label}: {len(self.missing)} of {self.records} records have no vector in the index"
            )
        return tuple(found)


@dataclass(frozen=True)
class PreflightReport:
    """The state of a database directory.

    Attributes:
        directory: The directory.
        is_new: There is no database yet; Chroma will create one.
        sqlite_problems: What is wrong with the SQLite file; never repaired without being asked.
        collections: One report for each; empty when the SQLite file cannot be read.
        log_rows: Entries in the write-ahead log.
        log_bytes: Bytes of vectors and metadata in it.
        keeps_log: Whether purging is switched off, so that the log holds every vector; None for a new
            database.
        journal_mode: SQLite's journal mode, "wal" or "delete"; "" for a new database.
        size_bytes: Size of the SQLite file.
        free_bytes: How much of it a vacuum would give back.
        orphaned_directories: Index directories that belong to no collection.
        migrations: Newest applied migration of each kind.
        is_older: Written by an older Chroma; collections are checked only after Chroma has migrated it.
        notes: What was not checked completely, and why.
        seconds: How long it took.
    """

    directory: Path
    is_new: bool = False
    sqlite_problems: tuple[str, ...] = ()
    collections: tuple[CollectionReport, ...] = ()
    log_rows: int = 0
    log_bytes: int = 0
    keeps_log: bool | None = None
    journal_mode: str = ""
    size_bytes: int = 0
    free_bytes: int = 0
    orphaned_directories: tuple[str, ...] = ()
    migrations: Mapping[str, int] = field(default_factory=dict)
    is_older: bool = False
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each thing that is wrong, the SQLite file first."""
        return self.sqlite_problems + tuple(
            problem for report in self.collections for problem in report.problems
        )

    @property
    def damaged(self) -> tuple[CollectionReport, ...]:
        """The collections that need `recover`."""
        return tuple(report for report in self.collections if report.index_problems or report.missing)


def preflight(
    directory: Path, *, check_seconds: float = 2.0, link_limit: int = LINK_CHECK_LIMIT
) -> PreflightReport:
    """Check a database directory.

    Call it while this process owns the directory and Chroma does not have it open. Nothing is changed,
    except that a transaction which a killed process left half done is rolled back by SQLite, as Chroma's own
    open would do.

    Args:
        directory: The canonical database directory.
        check_seconds: Longest time for SQLite's own check of its pages, and for counting the log.
        link_limit: Elements of an index up to which every link is followed.

    Returns:
        The report. Damage is reported, not raised.

    Raises:
        DatabaseFormatError: A newer Chroma than the installed one wrote it.
    """
    started = time.monotonic()
    sqlite_file = directory / SQLITE_FILE
    size = sqlite_file.stat().st_size if sqlite_file.exists() else 0
    if size == 0:
        report = _without_database(directory)
    else:
        try:
            with connect_read_only(directory) as connection:
                report = _inspect(directory, connection, check_seconds, link_limit)
        except sqlite3.DatabaseError as error:
            report = PreflightReport(directory, sqlite_problems=(f"{SQLITE_FILE}: {error}",))
    return replace(report, size_bytes=size, seconds=time.monotonic() - started)


def _without_database(directory: Path) -> PreflightReport:
    """Tell a new directory from one that lost its SQLite file; Chroma would start afresh in both."""
    leftovers = tuple(index_directories(directory)) if directory.is_dir() else ()
    if not leftovers:
        return PreflightReport(directory, is_new=True)
    problem = f"{SQLITE_FILE} is missing or empty, but {len(leftovers)} index directories are here"
    return PreflightReport(directory, sqlite_problems=(problem,), orphaned_directories=leftovers)


def _inspect(
    directory: Path, connection: sqlite3.Connection, check_seconds: float, link_limit: int
) -> PreflightReport:
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return _without_database(directory)
    if not {"migrations", "collections", "segments", "embeddings_queue"} <= tables:
        return PreflightReport(directory, sqlite_problems=(f"{SQLITE_FILE} is not a Chroma database",))
    migrations = _check_format(directory, connection)
    notes: list[str] = []
    problems = _quick_check(connection, check_seconds, notes)
    is_older = any(migrations.get(kind, 0) < version for kind, version in _OLDEST_READABLE.items())
    if is_older:
        notes.append("written by an older Chroma: collections are checked after Chroma has migrated it")
    log = _log_sizes(connection, check_seconds, notes)
    collections = () if is_older else _inspect_collections(directory, connection, log, link_limit)
    notes.extend(
        f"{report.label}: links of the index were sampled" for report in collections if report.sampled
    )
    page_size, free_pages = _pragma(connection, "page_size"), _pragma(connection, "freelist_count")
    segments = {row[0] for row in connection.execute("SELECT id FROM segments")}
    return PreflightReport(
        directory,
        sqlite_problems=tuple(problems),
        collections=collections,
        log_rows=sum(rows for rows, _ in log.values()),
        log_bytes=sum(size for _, size in log.values()),
        keeps_log=_keeps_log(connection),
        journal_mode=str(connection.execute("PRAGMA journal_mode").fetchone()[0]),
        free_bytes=page_size * free_pages,
        orphaned_directories=tuple(name for name in index_directories(directory) if name not in segments),
        migrations=migrations,
        is_older=is_older,
        notes=tuple(notes),
    )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _check_format(directory: Path, connection: sqlite3.Connection) -> dict[str, int]:
    """Return the newest migration of each kind; Chroma opens databases of the future without a word."""
    applied: dict[str, tuple[int, str]] = {}
    for kind, version, name in connection.execute(
        "SELECT dir, version, filename FROM migrations ORDER BY version"
    ):
        applied[kind] = (int(version), str(name))
    for kind, (version, name) in applied.items():
        if version > _KNOWN_MIGRATIONS.get(kind, version) and not _is_known_to_installed_chroma(name):
            raise DatabaseFormatError(
                f"{directory} was written by a newer Chroma (migration {kind} {name!r}, known up to"
                f" {_KNOWN_MIGRATIONS[kind]}); install that version of chromadb, nothing was touched"
            )
    return {kind: version for kind, (version, _) in applied.items()}


def _is_known_to_installed_chroma(migration: str) -> bool:
    """Look for the migration's file name in Chroma's native library, which carries its migrations inside.

    The ``.sql`` files of the Python package are no help: in 1.5 they lag behind. Slow (tens of
    milliseconds), so only for a database that is newer than the versions known here; importing chromadb
    would take far longer.
    """
    specification = util.find_spec("chromadb_rust_bindings")
    if specification is None or not _MIGRATION_NAME.fullmatch(migration):
        return False
    for folder in specification.submodule_search_locations or ():
        for library in sorted(Path(folder).glob("*.so")) + sorted(Path(folder).glob("*.pyd")):
            with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(migration.encode()) >= 0:
                    return True
    return False


def _quick_check(connection: sqlite3.Connection, seconds: float, notes: list[str]) -> list[str]:
    """Let SQLite check its pages, for a bounded time; returns what it found."""
    rows = _rows_in_time(connection, "PRAGMA quick_check(5)", seconds)
    if rows is None:
        notes.append(f"SQLite's check of its pages was stopped after {seconds:g} s")
        return []
    return [f"{SQLITE_FILE}: {row[0]}" for row in rows if row[0] != "ok"]


def _rows_in_time(connection: sqlite3.Connection, query: str, seconds: float) -> list[Any] | None:
    """Return the rows of a query, or None if it took longer than that."""
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _PROGRESS_STEP)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError as error:
        # SQLITE_INTERRUPT; its name is an attribute only from Python 3.11 on.
        if "interrupt" not in str(error):
            raise
        return None
    finally:
        connection.set_progress_handler(None, 0)


def _keeps_log(connection: sqlite3.Connection) -> bool:
    """Tell whether the database's own configuration keeps Chroma from purging the log."""
    row = connection.execute("SELECT config_json_str FROM embeddings_queue_config LIMIT 1").fetchone()
    return row is not None and json.loads(row[0]).get("automatically_purge") is False


def _log_sizes(
    connection: sqlite3.Connection, seconds: float, notes: list[str]
) -> dict[str, tuple[int, int]]:
    """Return the entries and the bytes of vectors in the log, by topic; nothing if that takes too long."""
    # The LIMIT keeps SQLite from sorting the vectors themselves, which takes five times as long.
    query = (
        "SELECT topic, count(*), coalesce(sum(size), 0) FROM"
        " (SELECT topic, length(vector) AS size FROM embeddings_queue LIMIT -1) GROUP BY topic"
    )
    rows = _rows_in_time(connection, query, seconds)
    if rows is None:
        notes.append(f"the log was not counted: it took longer than {seconds:g} s")
    return {topic: (count, size) for topic, count, size in rows or ()}


def _inspect_collections(
    directory: Path, connection: sqlite3.Connection, log: Mapping[str, tuple[int, int]], link_limit: int
) -> tuple[CollectionReport, ...]:
    rows = connection.execute(
        "SELECT c.id, c.name, c.dimension, d.name, d.tenant_id, v.id, m.id,"
        " coalesce((SELECT seq_id FROM max_seq_id WHERE segment_id = v.id), 0),"
        " coalesce((SELECT seq_id FROM max_seq_id WHERE segment_id = m.id), 0)"
        " FROM collections c JOIN databases d ON d.id = c.database_id"
        " JOIN segments v ON v.collection = c.id AND v.scope = 'VECTOR'"
        " JOIN segments m ON m.collection = c.id AND m.scope = 'METADATA' ORDER BY c.name, c.id"
    ).fetchall()
    return tuple(_inspect_collection(directory, connection, row, log, link_limit) for row in rows)


def _inspect_collection(
    directory: Path,
    connection: sqlite3.Connection,
    row: tuple[Any, ...],
    log: Mapping[str, tuple[int, int]],
    link_limit: int,
) -> CollectionReport:
    collection_id, name, dimension, database, tenant, vector_segment, metadata_segment, persisted, applied = (
        row
    )
    index = inspect_index(directory / vector_segment, dimension, link_limit=link_limit)
    problems = list(index.problems)
    if not index.persisted and persisted > 0 and not problems:
        what = ID_MAP_FILE if (directory / vector_segment).is_dir() else "the index directory"
        problems.append(f"the index was persisted up to log entry {persisted}, but {what} is missing")
    ids = {
        record[0]
        for record in connection.execute(
            "SELECT embedding_id FROM embeddings WHERE segment_id = ?", (metadata_segment,)
        )
    }
    topic = log_topic(collection_id)
    pending = connection.execute(
        "SELECT id, operation, vector IS NOT NULL FROM embeddings_queue WHERE topic = ? AND seq_id > ?",
        (topic, persisted),
    ).fetchall()
    to_come = {record for record, operation, has_vector in pending if has_vector and operation in {0, 2}}
    to_go = {record for record, operation, _ in pending if operation == 3}
    return CollectionReport(
        collection_id=collection_id,
        name=name,
        database=database,
        tenant=tenant,
        dimension=dimension,
        records=len(ids),
        vectors=len(index.ids),
        pending=len(pending),
        retained=log.get(topic, (0, 0))[0],
        persisted_sequence=persisted,
        applied_sequence=applied,
        vector_segment_id=vector_segment,
        metadata_segment_id=metadata_segment,
        index_problems=tuple(problems),
        missing=() if problems else tuple(sorted(ids - index.ids - to_come)),
        surplus=0 if problems else len(index.ids - ids - to_go),
        sampled=index.sampled,
    )
