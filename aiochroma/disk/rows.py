"""Rows of Chroma's tables that belong together and do not: what is odd of each, and what is written in its place.

Chroma reads the rows of all collections to list any, by identifiers that tie them together. One that is no identifier, or a name
that is no text, ends all of that; so does a database or a tenant that is gone, for all its collections. Nothing is deleted that
holds anything: what is written is what other rows say, or a new identifier or name where none does.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, NamedTuple

from aiochroma.disk.layout import index_directories, log_topic
from aiochroma.disk.schema import columns_of, sequence_number, shown, tables_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ["KINDS", "LARGEST_NUMBER", "Oddity", "is_id", "seen", "text_of"]

_TENANT, _DATABASE, _DATABASE_ID = "default_tenant", "default_database", str(uuid.UUID(int=0))
"""What Chroma makes with its tables; only this database has this id, and only under this name."""

_TYPES = {
    "VECTOR": "urn:chroma:segment/vector/hnsw-local-persisted",
    "METADATA": "urn:chroma:segment/metadata/sqlite",
}
LARGEST_NUMBER = 1 << 53
"""Far more than Chroma ever reaches, and far below where its own numbers end."""


class Oddity(NamedTuple):
    """What is odd of a row, as a sentence, and what mends it."""

    problem: str
    becomes: str
    statements: tuple[tuple[str, tuple[object, ...]], ...]


def _databases(connection: sqlite3.Connection, _directory: Path) -> Iterator[Oddity]:
    """Databases and tenants that are odd, or that are not there although collections are in them."""
    if "tenants" not in tables_of(connection):
        return
    rows = connection.execute("SELECT rowid, id, name, tenant_id FROM databases").fetchall()
    tenants = {row[0] for row in connection.execute("SELECT id FROM tenants")}
    ids = {row[1] for row in rows}
    named = {(tenant, name) for _, _, name, tenant in rows}
    used = {row[0] for row in connection.execute("SELECT DISTINCT database_id FROM collections")}
    absent = sorted(id for id in used - ids if is_id(id))
    for row, id, name, tenant in rows:
        right = (
            id if is_id(id) else _only(absent) or (str(uuid.uuid4()) if _DATABASE_ID in ids else _DATABASE_ID)
        )
        if right in absent:
            absent.remove(right)
        wanted = (text_of(tenant) or _TENANT, text_of(name) or f"recovered-{right}")
        if right == _DATABASE_ID and (_TENANT, _DATABASE) not in named:
            wanted = (_TENANT, _DATABASE)
        if wanted != (tenant, name) and wanted in named:
            wanted = (wanted[0], f"{wanted[1]}-{right}")
        if (right, *wanted) != (id, tenant, name):
            yield Oddity(
                f"a database has in SQLite the id {seen(id)}, the name {seen(name)} and the tenant {seen(tenant)}",
                f"it is the database {wanted[1]!r} of the tenant {wanted[0]!r} now",
                (
                    (
                        "UPDATE databases SET id = ?, tenant_id = ?, name = ? WHERE rowid = ?",
                        (right, *wanted, row),
                    ),
                    ("UPDATE collections SET database_id = ? WHERE database_id IS ?", (right, id)),
                ),
            )
        if wanted[0] not in tenants:
            tenants.add(wanted[0])
            yield _absent_tenant(wanted[0])
    for id in absent:
        wanted = (
            _TENANT,
            _DATABASE if id == _DATABASE_ID and (_TENANT, _DATABASE) not in named else f"recovered-{id}",
        )
        yield Oddity(
            f"the database {id} is not in SQLite, although collections are in it",
            f"it is there again, as {wanted[1]!r} of the tenant {wanted[0]!r}",
            (("INSERT INTO databases (id, tenant_id, name) VALUES (?, ?, ?)", (id, *wanted)),),
        )
        if _TENANT not in tenants:
            tenants.add(_TENANT)
            yield _absent_tenant(_TENANT)


def _absent_tenant(name: str) -> Oddity:
    return Oddity(
        f"the tenant {name!r} is not in SQLite, although a database is its own",
        "it is there again",
        (("INSERT INTO tenants (id) VALUES (?)", (name,)),),
    )


def _collections(connection: sqlite3.Connection, _directory: Path) -> Iterator[Oddity]:
    """Collections whose id, name or database is none."""
    rows = connection.execute("SELECT rowid, id, name, database_id FROM collections").fetchall()
    databases = [row[0] for row in connection.execute("SELECT id FROM databases")]
    named = {(database, name) for _, _, name, database in rows}
    held = {row[0] for row in connection.execute("SELECT collection FROM segments")}
    odd = [id for _, id, _, _ in rows if not is_id(id)]
    lost = sorted(id for id in held - {row[1] for row in rows} if is_id(id))
    for row, id, name, database in rows:
        right = id if is_id(id) else ""
        if not right:
            right = (_only(lost) if len(odd) == 1 and id not in held else "") or str(uuid.uuid4())
        place = database if is_id(database) else _only(databases) or _DATABASE_ID
        wanted = text_of(name) or f"recovered-{right}"
        if (place, wanted) != (database, name) and (place, wanted) in named:
            wanted = f"{wanted}-{right[:8]}"
        if (right, wanted, place) == (id, name, database):
            continue
        named.add((place, wanted))
        statements: list[tuple[str, tuple[object, ...]]] = [
            (
                "UPDATE collections SET id = ?, name = ?, database_id = ? WHERE rowid = ?",
                (right, wanted, place, row),
            )
        ]
        if right != id:
            statements += [
                ("UPDATE segments SET collection = ? WHERE collection IS ?", (right, id)),
                (
                    "UPDATE OR IGNORE collection_metadata SET collection_id = ? WHERE collection_id IS ?",
                    (right, id),
                ),
                (
                    "UPDATE embeddings_queue SET topic = ? WHERE topic = ?",
                    (log_topic(right), log_topic(shown(id))),
                ),
            ]
        yield Oddity(
            f"{text_of(name) or seen(name)}: a collection has in SQLite the id {seen(id)}, the name {seen(name)} and the"
            f" database {seen(database)}, and Chroma lists no collection because of it",
            f"its id is {right}, and its name {wanted!r}",
            tuple(statements),
        )


def _segments(connection: sqlite3.Connection, directory: Path) -> Iterator[Oddity]:
    """Segments, of which each collection has one of records and one of vectors, whose columns are not what Chroma writes."""
    if "type" not in columns_of(connection, "segments"):
        return
    names = dict(connection.execute("SELECT id, name FROM collections").fetchall())
    rows = connection.execute("SELECT rowid, id, type, scope, collection FROM segments").fetchall()
    kinds = {row: _kind(type, scope) for row, _, type, scope, _ in rows}
    lacking = _lacking(names, [(kinds[row], collection) for row, _, _, _, collection in rows])
    for row, id, type, scope, collection in rows:
        kind = kinds[row] or _only(kind for kind, owner in lacking if owner == collection)
        owner = collection
        if collection not in names and not is_id(collection):
            owner = _only(owner for lacks, owner in lacking if lacks == kind)
        if not kind or owner not in names:
            continue
        lacking.discard((kind, owner))
        right = id if is_id(id) else _segment_id(connection, directory, kind, id)
        known = isinstance(type, str) and type.startswith(_TYPES[kind].rpartition("/")[0])
        kept = type if known else _TYPES[kind]
        if (right, kept, kind, owner) != (id, type, scope, collection):
            moved = () if right == id else _moved_segment(id, right)
            yield Oddity(
                f"{shown(names[owner])}: its segment has in SQLite the id {seen(id)}, the type {seen(type)}, the scope"
                f" {seen(scope)} and the collection {seen(collection)}",
                f"it is the segment {right} of the scope {kind} now",
                (
                    (
                        "UPDATE segments SET id = ?, type = ?, scope = ?, collection = ? WHERE rowid = ?",
                        (right, kept, kind, owner, row),
                    ),
                    *moved,
                ),
            )
    for kind, owner in sorted(lacking):
        right = _segment_id(connection, directory, kind, None)
        statement = "INSERT INTO segments (id, type, scope, collection) VALUES (?, ?, ?, ?)"
        yield Oddity(
            f"{shown(names[owner])}: it has no segment of the scope {kind} in SQLite",
            f"it is there again, as {right}",
            ((statement, (right, _TYPES[kind], kind, owner)),),
        )
    yield from _twice(connection, rows, kinds, names)


def _lacking(names: Iterable[object], held: Iterable[tuple[str, object]]) -> set[tuple[str, str]]:
    """Return scopes that collections have no segment of; those that have none were being made or deleted, and are not told of."""
    owned: dict[object, set[str]] = {id: set() for id in names}
    for kind, collection in held:
        if collection in owned:
            owned[collection].add(kind)
    return {
        (kind, str(id))
        for id, found in owned.items()
        if found and is_id(id)
        for kind in _TYPES.keys() - found
    }


def _moved_segment(odd: object, right: str) -> tuple[tuple[str, tuple[object, ...]], ...]:
    return tuple(
        (f"UPDATE OR IGNORE {table} SET segment_id = ? WHERE segment_id IS ?", (right, odd))  # noqa: S608 - constants
        for table in ("embeddings", "max_seq_id", "segment_metadata")
    )


def _twice(
    connection: sqlite3.Connection,
    rows: Iterable[tuple[int, object, object, object, object]],
    kinds: dict[int, str],
    names: dict[object, object],
) -> Iterator[Oddity]:
    """Segments beside another of the same kind, to which nothing belongs."""
    by_kind: dict[tuple[object, str], list[tuple[int, object]]] = {}
    for row, id, _, _, collection in rows:
        if collection in names and kinds[row]:
            by_kind.setdefault((collection, kinds[row]), []).append((row, id))
    for (collection, kind), found in by_kind.items():
        if len(found) < 2:
            continue
        used = "SELECT 1 FROM max_seq_id WHERE segment_id IS ? UNION SELECT 1 FROM embeddings WHERE segment_id IS ?"
        empty = [(row, id) for row, id in found if connection.execute(used, (id, id)).fetchone() is None]
        for row, id in empty[len(empty) == len(found) :]:
            yield Oddity(
                f"{shown(names[collection])}: it has several segments of the scope {kind} in SQLite",
                f"{seen(id)}, which holds nothing, was taken out",
                (("DELETE FROM segments WHERE rowid = ?", (row,)),),
            )


def _segment_id(connection: sqlite3.Connection, directory: Path, kind: str, odd: object) -> str:
    """Return the id that the rows or the files of a segment still go by; a new one where nothing, or several things, tell."""
    known = {row[0] for row in connection.execute("SELECT id FROM segments")}
    if (
        odd is not None
        and connection.execute("SELECT 1 FROM embeddings WHERE segment_id IS ?", (odd,)).fetchone()
    ):
        return str(uuid.uuid4())  # All of it goes by the odd one.
    if kind == "VECTOR":
        held: Iterable[object] = index_directories(directory)
    else:
        held = [row[0] for row in connection.execute("SELECT DISTINCT segment_id FROM embeddings")]
    return _only([id for id in held if is_id(id) and id not in known]) or str(uuid.uuid4())


def _positions(connection: sqlite3.Connection, _directory: Path) -> Iterator[Oddity]:
    """How far Chroma has applied the log, where that is no such number; Chroma of before 0.6 wrote eight bytes."""
    names = dict(connection.execute("SELECT id, name FROM collections").fetchall())
    rows = connection.execute(
        "SELECT m.rowid, m.segment_id, m.seq_id, s.collection FROM max_seq_id AS m JOIN segments AS s ON s.id = m.segment_id"
        " WHERE typeof(m.seq_id) <> 'integer' OR m.seq_id < 0 OR m.seq_id > ?",
        (LARGEST_NUMBER,),
    ).fetchall()
    for row, segment, position, collection in rows:
        if isinstance(position, bytes) and len(position) == 8:
            continue
        # What is applied a second time is as it was.
        applied = connection.execute("SELECT seq_id FROM embeddings WHERE segment_id = ?", (segment,))
        right = max((sequence_number(number) for (number,) in applied), default=0)
        yield Oddity(
            f"{shown(names.get(collection, collection))}: SQLite says that its log was applied up to entry {seen(position)}",
            f"it is applied again from entry {right} on",
            (("UPDATE max_seq_id SET seq_id = ? WHERE rowid = ?", (right, row)),),
        )


KINDS: tuple[Callable[[sqlite3.Connection, Path], Iterator[Oddity]], ...] = (
    _databases,
    _collections,
    _segments,
    _positions,
)
"""In the order in which they are mended: each goes by what is right after the former."""


def _kind(type: object, scope: object) -> str:
    """Return the scope of a segment by either column; "" where neither tells."""
    if isinstance(scope, str) and scope in _TYPES:
        return scope
    return next((name for name, known in _TYPES.items() if known == type), "")


def is_id(value: object) -> bool:
    """Return whether it is an identifier as Chroma makes them."""
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value.lower()
    except ValueError:
        return False


def text_of(value: object) -> str:
    """Return a name, of text or of the bytes of one; "" where it is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    # Bytes that are no UTF-8 are surrogates here.
    return value if isinstance(value, str) and value.encode("utf-8", "replace").decode() == value else ""


def seen(value: object) -> str:
    """Return a value as it is written in a sentence."""
    return "NULL" if value is None else ascii(value)[:80]


def _only(found: Iterable[object]) -> str:
    """Return the only one of what was found; "" where there are several, or none."""
    alike = list(found)
    return str(alike[0]) if len(alike) == 1 else ""
