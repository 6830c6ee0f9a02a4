"""What SQLite has about collections as a whole: their databases, and values because of which Chroma lists no collection at all.

Chroma reads every collection's row to list any. So what it cannot read there is taken out of its way when a directory is opened:
the others go on, and the odd collection is refused by name until it is mended.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from aiochroma._errors import DatabaseCorruptError
from aiochroma._files import transaction
from aiochroma.disk import migrations, record_rows, rows
from aiochroma.disk.layout import SQLITE_FILE, connect_read_only, connect_read_write
from aiochroma.disk.schema import (
    EMBEDDER_KEY,
    columns_of,
    is_configuration,
    is_schema,
    json_object,
    shown,
    tables_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aiochroma.disk.findings import PreflightReport

__all__ = [
    "databases_in",
    "drop_unreadable",
    "make_listable",
    "mend_rows",
    "odd_metadata",
    "odd_rows",
]

_NO_SCHEMA = ""
"""Chroma takes it for none, and `preflight` for one that is to be mended."""

_NO_DIMENSION = 0
"""A number, as Chroma wants one, and none that a collection can have."""

_NO_CONFIGURATION = "{}"


def databases_in(directory: Path) -> list[tuple[str, str]]:
    """Return tenant and name of every database, sorted; none where an older Chroma, which knew neither, wrote the directory.

    Chroma itself lists no tenants.

    Args:
        directory: The directory; no other program may have it open.

    Raises:
        DatabaseCorruptError: SQLite cannot read its file.
    """
    try:
        with connect_read_only(directory) as connection:
            if "databases" not in tables_of(connection):
                return []
            return sorted(connection.execute("SELECT tenant_id, name FROM databases").fetchall())
    except (sqlite3.DatabaseError, TypeError) as error:
        raise DatabaseCorruptError(
            f"{directory / SQLITE_FILE} cannot be read: {error}. See `aiochroma doctor`.",
            problems=(str(error),),
        ) from error


def make_listable(directory: Path, report: PreflightReport) -> list[str]:
    """Take what Chroma cannot read out of the rows of collections.

    A configuration beside a schema says nothing, and neither does metadata of no type: its collection is whole without it. Else
    the collection stays one that is refused by name, because of what stands there now.

    Args:
        directory: The canonical database directory, not open in Chroma.
        report: What `preflight` found.

    Returns:
        What was done, one sentence each.

    Raises:
        sqlite3.DatabaseError: The file cannot be written.
    """
    done: list[str] = []
    odd = [entry for entry in report.collections if entry.unusable]
    if not (odd or report.odd_rows):
        return done
    with connect_read_write(directory) as connection:
        if report.odd_rows:
            done.extend(mend_rows(connection, directory))
        metadata = odd_metadata(connection)
        for entry in odd:
            for row, what in metadata.get(entry.collection_id, []):
                connection.execute("DELETE FROM collection_metadata WHERE rowid = ?", (row,))
                done.append(f"of the metadata of {entry.label} {what} was taken out")
            stored = _stored(connection, entry.collection_id)
            for column, value in _replacements(stored).items():
                _write(connection, entry.collection_id, column, value)
                done.append(
                    f"{column} of {entry.label} was {shown(stored[column])[:200]!r} and is {value!r} now"
                )
    return done


def odd_rows(connection: sqlite3.Connection, directory: Path, *, thorough: bool = False) -> tuple[str, ...]:
    """Return what is odd of the rows that belong together, one sentence each.

    Args:
        connection: A connection to the database, whose tables are those of a Chroma of today.
        directory: The database directory.
        thorough: Whether to read the rows of all records, which are odd for their own collection alone.
    """
    return tuple(
        oddity.problem for kind in _kinds(thorough=thorough) for oddity in kind(connection, directory)
    )


def mend_rows(connection: sqlite3.Connection, directory: Path, *, thorough: bool = False) -> list[str]:
    """Mend what is odd of them, in one transaction; return what was done, one sentence each.

    Args:
        connection: A connection that may write; Chroma does not have the directory open.
        directory: The database directory.
        thorough: As for `odd_rows`.

    Raises:
        sqlite3.DatabaseError: The file cannot be written; nothing was changed.
    """
    done = []
    with transaction(connection):
        for kind in _kinds(thorough=thorough):
            for oddity in list(kind(connection, directory)):
                for statement, values in oddity.statements:
                    connection.execute(statement, values)
                done.append(f"{oddity.problem}: {oddity.becomes}")
    return done


def _kinds(*, thorough: bool) -> tuple[Callable[[sqlite3.Connection, Path], Iterator[rows.Oddity]], ...]:
    always = (*migrations.KINDS, *rows.KINDS, *record_rows.KINDS)
    return (*always, *(record_rows.KINDS_OF_RECORDS if thorough else ()))


def odd_metadata(connection: sqlite3.Connection) -> dict[str, list[tuple[int, str]]]:
    """Return, by collection id, row and description of metadata of collections whose types Chroma does not read."""
    types = {
        "str_value": ("text",),
        "int_value": ("integer",),
        "bool_value": ("integer",),
        "float_value": ("real", "integer"),
    }
    columns = columns_of(connection, "collection_metadata")
    odd = [
        f"typeof({name}) NOT IN ({', '.join(map(repr, (*names, 'null')))})"
        for name, names in types.items()
        if name in columns
    ]
    found: dict[str, list[tuple[int, str]]] = {}
    rows = connection.execute(
        "SELECT collection_id, rowid, key, coalesce(str_value, int_value, float_value) FROM collection_metadata"  # noqa: S608 - constants
        f" WHERE {' OR '.join([*odd, 'typeof(key) IS NOT ' + repr('text')])}"
    )
    for collection, row, key, value in rows:
        found.setdefault(shown(collection), []).append((row, f"{shown(key)[:80]!r} = {shown(value)[:80]!r}"))
    return found


def drop_unreadable(connection: sqlite3.Connection, collection: str) -> list[str]:
    """Take out a schema or a configuration that is none; Chroma then goes by what is left.

    Args:
        connection: A connection that may write.
        collection: The collection's id.

    Returns:
        What was done, as ends of sentences.
    """
    stored = _stored(connection, collection)
    schema, configuration = stored.get("schema_str"), stored.get("config_json_str")
    drops_schema, drops_configuration = not _is_schema_or_none(schema), not is_configuration(configuration)
    if not (drops_schema or drops_configuration):
        return []
    done = []
    if drops_schema:
        _write(connection, collection, "schema_str", None)
        done.append("the schema, which could not be read, was dropped")
    if drops_configuration:
        _write(connection, collection, "config_json_str", _NO_CONFIGURATION)
        done.append("the configuration, which could not be read, was dropped")
    if schema is not None and not drops_schema:
        done.append("its schema holds")
    elif not drops_configuration and json_object(configuration):
        done.append("its configuration holds")
    elif _is_of_a_memory(connection, collection):
        _write(connection, collection, "config_json_str", record_rows.COSINE)
        done.append("it compares by the cosine distance, as every memory")
    else:
        done.append("it compares by Chroma's default, the squared L2 distance, whatever was chosen for it")
    return done


def _stored(connection: sqlite3.Connection, collection: str) -> dict[str, object]:
    """Return what stands in a collection's row, of the columns that are there."""
    present = sorted({"dimension", "config_json_str", "schema_str"} & columns_of(connection, "collections"))
    row = connection.execute(
        f"SELECT {', '.join(present)} FROM collections WHERE id = ?",  # noqa: S608 - constants
        (collection,),
    ).fetchone()
    return dict(zip(present, row or (), strict=False))


def _write(connection: sqlite3.Connection, collection: str, column: str, value: object) -> None:
    query = f"UPDATE collections SET {column} = ? WHERE id = ?"  # noqa: S608 - constants
    connection.execute(query, (value, collection))


def _replacements(stored: dict[str, object]) -> dict[str, object]:
    """Return, by column, what has to stand there in place of what Chroma cannot read."""
    dimension, schema = stored.get("dimension"), stored.get("schema_str")
    changes: dict[str, object] = {}
    if dimension is not None and not (type(dimension) is int and 0 <= dimension < 2**31):
        changes["dimension"] = _NO_DIMENSION
    if not _is_schema_or_none(schema) and schema != _NO_SCHEMA:
        changes["schema_str"] = _NO_SCHEMA
    elif is_schema(schema) and not is_configuration(stored.get("config_json_str")):
        changes["config_json_str"] = _NO_CONFIGURATION
    return changes


def _is_schema_or_none(schema: object) -> bool:
    return schema is None or is_schema(schema)


def _is_of_a_memory(connection: sqlite3.Connection, collection: str) -> bool:
    query = "SELECT 1 FROM collection_metadata WHERE collection_id = ? AND key = ?"
    return connection.execute(query, (collection, EMBEDDER_KEY)).fetchone() is not None
