"""Looks at a database before Chroma opens it, and changes nothing.

Chroma notices little of what can be wrong with its files: a damaged index makes it crash or fill the disk, a missing one makes it
answer from what is left, without an error. So the SQLite file, its version, every index and the agreement of the two are checked
here. About 25 ms for 10,000 records of 384 dimensions, and next to nothing for what has not changed since the last look; what
would take longer is sampled, and the report says so.

What is found is untrusted: whatever lies there, the result is a report and no error.
"""

from __future__ import annotations

import mmap
import os
import re
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._errors import DatabaseFormatError, StoreUnavailableError
from aiochroma._files import SQLITE_SUFFIXES, irregular
from aiochroma.disk.catalog import odd_metadata, odd_rows
from aiochroma.disk.findings import (
    CollectionReport,
    PreflightReport,
    crashing,
    index_stamp,
    read_seen,
    sqlite_is_unchanged,
)
from aiochroma.disk.hnsw_files import LINK_CHECK_LIMIT, inspect_index
from aiochroma.disk.index_vectors import written_vectors
from aiochroma.disk.layout import (
    HISTORY_FILE,
    ID_MAP_FILE,
    SQLITE_FILE,
    TEXT_INDEX_FILE,
    connect_read_only,
    free_bytes,
    index_directories,
    log_topic,
)
from aiochroma.disk.migrations import KNOWN_STEPS, odd_migrations
from aiochroma.disk.record_rows import unreached
from aiochroma.disk.schema import (
    ADD,
    DELETE,
    UPSERT,
    LogEntry,
    StoredCollection,
    full_text_tables,
    has_log_index,
    is_readable,
    keeps_log,
    log_entries,
    record_ids,
    stored_collections,
    tables_of,
)
from aiochroma.disk.unappliable import unappliable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["inspect_own_files", "preflight"]

_PROGRESS_STEP = 50_000
_MIGRATION_NAME = re.compile(r"\d{5}-[a-z0-9-]+\.sqlite\.sql")
_THOROUGH_SECONDS, _QUICK_SECONDS = 600.0, 2.0
_NEEDED_BYTES = 2**16
# "malformed inverted index for FTS5 table main.t", "unable to validate the inverted index for FTS5 table ...", and others.
_FULL_TEXT_COMPLAINT = re.compile(r"\bfts5\b|inverted index", re.IGNORECASE)


def preflight(directory: Path, *, thorough: bool = False) -> PreflightReport:
    """Check a database directory.

    Call it while this process owns the directory and Chroma does not have it open. Nothing is changed,
    except that a transaction which a killed process left half done is rolled back by SQLite, as Chroma's own
    open would do.

    Args:
        directory: The canonical database directory.
        thorough: Look at everything, whether it has changed since the last look or not, and sample nothing; minutes for a large
            database.

    Returns:
        The report. Damage is reported, not raised.

    Raises:
        DatabaseFormatError: A newer Chroma than the installed one wrote it.
        StoreUnavailableError: The disk is full.
    """
    started = monotonic()
    sqlite_file = directory / SQLITE_FILE
    size = sqlite_file.stat().st_size if sqlite_file.is_file() else 0
    if size == 0:
        report = _without_database(directory)
    else:
        try:
            with connect_read_only(directory) as connection:
                report = _Look(directory, connection, thorough=thorough).report()
        except sqlite3.DatabaseError as error:
            if _is_for_lack_of_room(error, directory):
                raise StoreUnavailableError(
                    f"{str(directory)!r} cannot be looked at, because its disk is full ({error}). Free some space and try again."
                ) from error
            report = PreflightReport(directory, sqlite_problems=(f"{SQLITE_FILE}: {error}",))
    return replace(report, size_bytes=size, seconds=monotonic() - started)


def _is_for_lack_of_room(error: sqlite3.DatabaseError, directory: Path) -> bool:
    """Tell whether SQLite lacks the little that it needs beside its file, which it calls an error of the disk."""
    return isinstance(error, sqlite3.OperationalError) and free_bytes(directory) < _NEEDED_BYTES


def _without_database(directory: Path) -> PreflightReport:
    """Tell a new directory from one that lost its SQLite file; Chroma would start afresh in both."""
    leftovers = tuple(index_directories(directory)) if directory.is_dir() else ()
    if not leftovers:
        return PreflightReport(directory, is_new=True)
    problem = f"{SQLITE_FILE} is missing or empty, but {len(leftovers)} index directories are here"
    return PreflightReport(directory, sqlite_problems=(problem,), orphaned_directories=leftovers)


def inspect_own_files(directory: Path) -> dict[str, str]:
    """Return what is wrong with our own files in a directory that this process owns: a sentence by the file's name."""
    found = {}
    for name in (TEXT_INDEX_FILE, HISTORY_FILE):
        problem = _problem_of(directory / name)
        if problem:
            found[name] = f"{name} {problem}"
    return found


def _problem_of(file: Path) -> str:
    special = irregular(file)
    if special is not None:
        return f"cannot be used: {special.name} is {_kind_of(special)}"
    if not file.exists():
        return ""
    for suffix in SQLITE_SUFFIXES:
        beside = file.with_name(file.name + suffix)
        if beside.exists() and not os.access(beside, os.R_OK | os.W_OK):
            return f"cannot be used: {beside.name} may not be read and written by this process"
    try:
        with closing(sqlite3.connect(file, isolation_level=None, timeout=5.0)) as connection:
            rows = _rows_in_time(connection, "PRAGMA quick_check(1)", _THOROUGH_SECONDS)
    except sqlite3.DatabaseError as error:
        return "" if _is_for_lack_of_room(error, file.parent) else f"cannot be used: {error}"
    return "" if rows is None or rows[0][0] == "ok" else f"is damaged: {rows[0][0]}"


def _kind_of(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, where nothing is"
    return "a directory" if path.is_dir() else "no regular file (a pipe, a socket or a device)"


class _Look:
    """One look at a database whose SQLite file can be opened.

    Args:
        directory: The directory.
        connection: The SQLite file of the directory, open for reading.
        thorough: Whether to read every link of the indexes; see `preflight`.
    """

    def __init__(self, directory: Path, connection: sqlite3.Connection, *, thorough: bool) -> None:
        self._directory = directory
        self._connection = connection
        self._thorough = thorough
        self._seconds = _THOROUGH_SECONDS if thorough else _QUICK_SECONDS
        self._links = sys.maxsize if thorough else LINK_CHECK_LIMIT
        self._seen = {} if thorough else read_seen(directory)
        self._notes: list[str] = []

    def report(self) -> PreflightReport:
        """Look at everything.

        Raises:
            DatabaseFormatError: A newer Chroma than the installed one wrote it.
            sqlite3.DatabaseError: The file is damaged.
        """
        directory, connection = self._directory, self._connection
        tables = tables_of(connection)
        if not tables:
            return _without_database(directory)
        if not {"migrations", "collections", "segments", "embeddings_queue"} <= tables:
            return PreflightReport(directory, sqlite_problems=(f"{SQLITE_FILE} is not a Chroma database",))
        migrations = _check_format(directory, connection)
        damage, full_text = self._check_pages()
        damage = (*odd_migrations(connection), *damage)
        is_older = not is_readable(connection)
        if is_older:
            self._notes.append(
                "written by an older Chroma: collections are checked after Chroma has migrated it"
            )
        collections = () if is_older else self._collections()
        self._notes.extend(
            f"{report.label}: links of the index were sampled" for report in collections if report.sampled
        )
        if self._thorough and not is_older and (left := unreached(connection)):
            self._notes.append(
                f"there are records of {len(left)} collections that are not in SQLite; nothing reaches them"
            )
        rows, size = self._log_size()
        segments = {row[0] for row in connection.execute("SELECT id FROM segments")}
        return PreflightReport(
            directory,
            sqlite_problems=damage,
            full_text_problems=full_text,
            odd_rows=() if is_older else odd_rows(connection, directory, thorough=self._thorough),
            collections=collections,
            log_rows=rows,
            log_bytes=size,
            keeps_log=keeps_log(connection),
            journal_mode=str(connection.execute("PRAGMA journal_mode").fetchone()[0]),
            free_bytes=_pragma(connection, "page_size") * _pragma(connection, "freelist_count"),
            orphaned_directories=tuple(name for name in index_directories(directory) if name not in segments),
            migrations=migrations,
            is_older=is_older,
            notes=tuple(self._notes),
        )

    # -- the SQLite file -----------------------------------------------------------------------------------------------

    def _check_pages(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Let SQLite check its pages, for a bounded time; returns damage, and complaints about full-text tables alone."""
        if sqlite_is_unchanged(self._directory, self._seen):
            return (), ()
        try:
            rows = _rows_in_time(self._connection, "PRAGMA quick_check(20)", self._seconds)
        except sqlite3.OperationalError as error:
            if "no such module" not in str(error):
                raise
            self._notes.append(f"SQLite's check of its pages could not be made: {error}")
            return (), ()
        if rows is None:
            self._notes.append(f"SQLite's check of its pages was stopped after {self._seconds:g} s")
            return (), ()
        return self._sorted_complaints([str(row[0]) for row in rows if row[0] != "ok"])

    def _sorted_complaints(self, complaints: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Tell damage from a full-text table that another version of SQLite reads differently."""
        tables = full_text_tables(self._connection)
        damage: list[str] = []
        full_text: list[str] = []
        for complaint in complaints:
            derived = _FULL_TEXT_COMPLAINT.search(complaint) and any(name in complaint for name in tables)
            (full_text if derived else damage).append(f"{SQLITE_FILE}: {complaint}")
        return tuple(damage), tuple(full_text)

    def _log_size(self) -> tuple[int, int]:
        """Return the entries in the log and the bytes of their vectors; zeros unless the look is thorough."""
        if not self._thorough:
            return 0, 0
        # The LIMIT keeps SQLite from reading the vectors themselves, which takes five times as long.
        query = "SELECT count(*), coalesce(sum(size), 0) FROM (SELECT length(vector) AS size FROM embeddings_queue LIMIT -1)"
        rows = _rows_in_time(self._connection, query, self._seconds)
        if rows is None:
            self._notes.append(f"the log was not counted: it took longer than {self._seconds:g} s")
            return 0, 0
        return int(rows[0][0]), int(rows[0][1])

    # -- collections ---------------------------------------------------------------------------------------------------

    def _collections(self) -> tuple[CollectionReport, ...]:
        dying, odd = crashing(self._directory), odd_metadata(self._connection)
        stored = stored_collections(self._connection)
        found = {entry.id: self._as_seen(entry) for entry in stored if entry.id not in dying}
        changed = {entry.id: entry.persisted for entry in stored if found.get(entry.id) is None}
        log = log_entries(self._connection, changed)
        reports = []
        for entry in stored:
            report = found.get(entry.id) or self._inspected(entry, log.get(entry.id, []))
            if entry.id in dying and not report.unusable:
                report = replace(report, unusable=_DIED)
            elif entry.id in odd and not report.unusable:
                what = ", ".join(what for _, what in odd[entry.id])
                report = replace(
                    report, unusable=f"its metadata has {what}, and Chroma lists no collection because of it"
                )
            reports.append(report)
        return tuple(reports)

    def _as_seen(self, stored: StoredCollection) -> CollectionReport | None:
        """Return what the last look found, where nothing has changed since."""
        collections = self._seen.get("collections")
        noted = collections.get(stored.id) if isinstance(collections, dict) else None
        if not isinstance(noted, dict) or stored.problem or stored.settings.problem:
            return None
        now = {"persisted": stored.persisted, "applied": stored.applied, "dimension": stored.dimension}
        if any(noted.get(name) != value for name, value in now.items()):
            return None
        stamp = index_stamp(self._directory / stored.vector_segment)
        if not stamp or stamp != noted.get("stamp") or not self._log_ends_at(stored):
            return None
        names = ("records", "vectors", "pending", "surplus")
        numbers = [number for number in map(noted.get, names) if type(number) is int]
        if len(numbers) != 4:
            return None
        records, vectors, pending, surplus = numbers
        return replace(_report(stored), records=records, vectors=vectors, pending=pending, surplus=surplus)

    def _log_ends_at(self, stored: StoredCollection) -> bool:
        """Tell whether all of a collection's log has been applied; not known without our index on the log."""
        if not has_log_index(self._connection):
            return False
        newest = self._connection.execute(
            "SELECT max(seq_id) FROM embeddings_queue WHERE topic = ?", (log_topic(stored.id),)
        ).fetchone()[0]
        return newest is None or newest <= stored.applied

    def _inspected(self, stored: StoredCollection, log: Sequence[LogEntry]) -> CollectionReport:
        if stored.problem or stored.settings.problem:
            return replace(
                _report(stored), unusable=stored.problem or stored.settings.problem, pending=len(log)
            )
        path = self._directory / stored.vector_segment
        try:
            written = written_vectors(self._directory, self._connection, stored, log)
            index = inspect_index(path, stored.dimension, link_limit=self._links, written=written)
        except (ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError) as error:
            # Whatever numbers lie there.
            problem = f"the index files cannot be read: {type(error).__name__}: {error}"
            return replace(_report(stored), index_problems=(problem,), pending=len(log))
        problems = list(index.problems)
        if not index.persisted and stored.persisted > 0 and not problems:
            what = ID_MAP_FILE if path.is_dir() else "the index directory"
            problems.append(
                f"the index was persisted up to log entry {stored.persisted}, but {what} is missing"
            )
        ids = record_ids(self._connection, stored.metadata_segment)
        to_come = {entry.id for entry in log if entry.has_vector and entry.kind in {ADD, UPSERT}}
        to_go = {entry.id for entry in log if entry.kind == DELETE}
        poison = unappliable(self._connection, log, stored.applied)
        return replace(
            _report(stored),
            records=len(ids),
            vectors=len(index.ids),
            dead=max(0, index.elements - len(index.ids)),
            pending=len(log),
            index_problems=tuple(problems),
            unappliable=poison,
            unusable=_POISONED if poison else "",
            missing=() if problems else tuple(sorted(ids - index.ids - to_come)),
            surplus=0 if problems else len(index.ids - ids - to_go),
            sampled=index.sampled,
        )


_POISONED = (
    "Chroma fails at each use, because there is an entry in its log that can never be applied; `aiochroma doctor --repair` takes"
    " it out"
)
_DIED = "rebuilding its index ends the process (Chroma's native code crashes); restore a backup, or delete the collection"


def _report(stored: StoredCollection) -> CollectionReport:
    return CollectionReport(
        collection_id=stored.id,
        name=stored.name,
        database=stored.database,
        tenant=stored.tenant,
        dimension=stored.dimension,
        records=0,
        vectors=0,
        pending=0,
        persisted_sequence=stored.persisted,
        applied_sequence=stored.applied,
        vector_segment_id=stored.vector_segment,
        metadata_segment_id=stored.metadata_segment,
        settings=stored.settings,
    )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _check_format(directory: Path, connection: sqlite3.Connection) -> dict[str, int]:
    """Return the newest migration of each kind; Chroma opens databases of the future without a word."""
    applied: dict[str, tuple[int, str]] = {}
    for kind, version, name in connection.execute(
        "SELECT dir, version, filename FROM migrations ORDER BY version"
    ):
        if isinstance(version, int) and isinstance(kind, str):
            applied[kind] = (version, str(name))
    for kind, (version, name) in applied.items():
        if version > KNOWN_STEPS.get(kind, version) and not _is_known_to_installed_chroma(name):
            raise DatabaseFormatError(
                f"{directory} was written by a newer Chroma (migration {kind} {name!r}, known up to"
                f" {KNOWN_STEPS[kind]}); install that version of chromadb, nothing was touched"
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


def _rows_in_time(
    connection: sqlite3.Connection, query: str, seconds: float
) -> list[tuple[str | int, ...]] | None:
    """Return the rows of a query, or None if it took longer than that."""
    deadline = monotonic() + seconds
    connection.set_progress_handler(lambda: monotonic() > deadline, _PROGRESS_STEP)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError as error:
        # SQLITE_INTERRUPT; its name is an attribute only from Python 3.11 on.
        if "interrupt" not in str(error):
            raise
        return None
    finally:
        connection.set_progress_handler(None, 0)
