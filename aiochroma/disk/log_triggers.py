# ruff: noqa: S608 - all SQL is made of this module's own texts
"""What SQLite takes out of Chroma's log, in the transaction in which Chroma applies an entry of it to its tables.

Chroma appends every write to the log, applies it, and of itself shortens the log only as far as its index on the disk has it; it
never does where the log is kept (``durable=True``). Triggers are the one way to do so as one with what Chroma does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiochroma.disk.schema import ADD, DELETE, UPDATE, UPSERT

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

__all__ = ["empty_log", "thin_log"]

_EMPTIED = (
    "BEGIN UPDATE embeddings_queue SET metadata = NULL"
    " WHERE seq_id = new.seq_id AND id = new.embedding_id AND metadata IS NOT NULL; END"
)
_EMPTYING = {
    "aiochroma_log_of_added": f"BEFORE INSERT ON embeddings {_EMPTIED}",
    "aiochroma_log_of_applied": f"AFTER UPDATE OF seq_id ON embeddings {_EMPTIED}",
}

_TABLE = "CREATE TABLE IF NOT EXISTS aiochroma_log (record INTEGER, entry INTEGER, PRIMARY KEY (record, entry)) WITHOUT ROWID"
"""The entries of a record but its last, which Chroma's own table has. Its numbers are not believed: what leaves the log always is
an entry of the record."""

# "INSERT OR IGNORE" would not do: in a trigger the statement that fires it decides what a conflict is.
_NOTED = (
    "INSERT INTO aiochroma_log SELECT {record}, {entry}"
    " WHERE NOT EXISTS (SELECT 1 FROM aiochroma_log WHERE record = {record} AND entry = {entry})"
)
_SUPERSEDED = (
    "DELETE FROM embeddings_queue WHERE seq_id IN (SELECT entry FROM aiochroma_log WHERE record = old.id)"
    " AND id = old.embedding_id"
    " AND topic = 'persistent://default/default/' || (SELECT collection FROM segments WHERE id = old.segment_id)"
)
_RECORD = "(SELECT id FROM embeddings WHERE segment_id = new.segment_id AND embedding_id = new.embedding_id)"
_EARLIER = (
    "seq_id < new.seq_id AND id = new.embedding_id AND topic = (SELECT topic FROM embeddings_queue WHERE seq_id = new.seq_id)"
    f" AND seq_id IN (SELECT seq_id FROM embeddings WHERE id = {_RECORD}"
    f" UNION ALL SELECT entry FROM aiochroma_log WHERE record = {_RECORD})"
)
_THINNING = {
    "aiochroma_log_of_changed": f"""AFTER UPDATE OF seq_id ON embeddings WHEN old.seq_id < new.seq_id BEGIN
    {_NOTED.format(record="old.id", entry="old.seq_id")};
    {_SUPERSEDED} AND seq_id < new.seq_id AND EXISTS (
        SELECT 1 FROM embeddings_queue AS n WHERE n.seq_id = new.seq_id AND (
            (n.operation = {UPSERT} AND n.vector IS NOT NULL) OR
            (embeddings_queue.operation = {UPDATE} AND (embeddings_queue.vector IS NULL OR n.vector IS NOT NULL))));
    DELETE FROM aiochroma_log WHERE record = old.id AND entry NOT IN (SELECT seq_id FROM embeddings_queue);
END""",
    "aiochroma_log_of_deleted": f"""AFTER DELETE ON embeddings BEGIN
    {_NOTED.format(record="old.id", entry="old.seq_id")};
    {_SUPERSEDED} AND operation <> {DELETE};
    DELETE FROM aiochroma_log WHERE record = old.id;
END""",
    "aiochroma_log_of_ignored": f"""BEFORE INSERT ON embeddings WHEN {_RECORD} IS NOT NULL
    AND (SELECT operation FROM embeddings_queue WHERE seq_id = new.seq_id AND id = new.embedding_id) = {ADD} BEGIN
    UPDATE embeddings_queue SET operation = {UPDATE}, vector = NULL, encoding = NULL WHERE seq_id = new.seq_id
        AND EXISTS (SELECT 1 FROM embeddings_queue WHERE vector IS NOT NULL AND {_EARLIER});
    DELETE FROM embeddings_queue WHERE operation = {UPDATE} AND vector IS NULL AND {_EARLIER};
    {_NOTED.format(record=_RECORD, entry="new.seq_id")};
END""",
}


def empty_log(connection: sqlite3.Connection) -> None:
    """Have SQLite take texts and metadata of applied entries out of the log, whose index takes their vectors alone.

    Chroma reads every entry that its index on the disk does not have yet again for each write. It tells for each text in it three
    times, in an error, that it is no number, with every character looked up in a table: 900 waiting texts of 300 emoji made an
    upsert of 24 ms one of 460, with the interpreter held.

    Args:
        connection: The file of a database that Chroma has made its tables in.
    """
    _install(connection, _EMPTYING)


def thin_log(connection: sqlite3.Connection) -> None:
    """Have SQLite delete from a log that is kept what later entries supersede.

    That is what made a record that is deleted, and changes whose vector, or lack of one, a later entry makes up for. What adds a
    record that is there already, which Chroma ignores, becomes a change of nothing: who adds the same each day keeps it once.
    So the log has every vector of a living record, and of a deleted one the deletion, which an index on disk may not have yet.

    Args:
        connection: The file of a database that Chroma has made its tables in.
    """
    connection.execute(_TABLE)
    _install(connection, _THINNING)


def _install(connection: sqlite3.Connection, triggers: Mapping[str, str]) -> None:
    """Make those that are missing or not as they are now, without a write where all are."""
    present = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
    for name, body in triggers.items():
        statement = f"CREATE TRIGGER {name} {body}"
        if present.get(name) != statement:
            connection.execute(f"DROP TRIGGER IF EXISTS {name}")
            connection.execute(statement)
