"""Chroma's migrations: the steps by which it made and changed its tables, each noted in SQLite with its text and a hash of that.

Chroma opens no database of whose steps one is missing, or has another hash than it knows.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from aiochroma.disk.layout import SQLITE_FILE
from aiochroma.disk.rows import Oddity, seen

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["KINDS", "KNOWN_STEPS", "odd_migrations"]

_HASHES = {
    "sysdb": (
        "38352d725ad1c16074fac420b22b4633",
        "2913cb6a503055a95f625448037e8912",
        "42d22d0574d31d419c2a0e7f625c93aa",
        "048867ce8fcdefe4023c7110e4433591",
        "b1367c826b8fba5f96f27befdc1d42d2",
        "4eea7468935bf25d4604a0fed2366116",
        "1c7e63bba346a42a18b6ab7f1c989bed",
        "0a0e7e93111a01789addf64961c6127c",
        "054355aef9e63702bf54ea29e61563f1",
        "5c3a5ac4b79df76799b4721827ed5e1d",
    ),
    "metadb": (
        "2b4cf52c4bb2676e21d6860a4409f856",
        "12a570f7121b3a8ce750a2a7c36da20f",
        "f97ad6334aeaa8f419f01110b648b97a",
        "fb36603a45ee2cd0254cef3ef86585e8",
        "0e9de46758761b373ce682925edcc326",
        "e026f01ea92c1baa1493f4ad5ca7cfe7",
    ),
    "embeddings_queue": (
        "d3755dfd232be8e8301f4d7fcfb3a486",
        "8fbfe4ffb3e57f1d8bfdc58510a82e85",
    ),
}
"""By kind, the hash of each step, the first one first; no release of Chroma has changed one that was there."""

KNOWN_STEPS: Mapping[str, int] = {kind: len(hashes) for kind, hashes in _HASHES.items()}
"""By kind, the newest step in Chroma 1.5.0 to 1.5.9."""


def odd_migrations(connection: sqlite3.Connection) -> list[str]:
    """Return what Chroma does not open a database with, and nothing here mends.

    None of its steps may be left out, be named by what is no text, or be another one than Chroma's.

    Args:
        connection: A connection to the database.
    """
    versions: dict[object, set[object]] = {kind: set() for kind in KNOWN_STEPS}
    found = []
    for kind, version, *texts in connection.execute(
        "SELECT dir, version, filename, sql, hash FROM migrations"
    ):
        odd = [seen(text) for text in (kind, *texts) if not isinstance(text, str)]
        if odd:
            found.append(f"{SQLITE_FILE}: its list of migrations has {', '.join(odd)} where a text has to be")
        versions.setdefault(kind, set()).add(version)
    for kind, known in KNOWN_STEPS.items():
        there = {version for version in versions[kind] if isinstance(version, int)}
        absent = sorted(set(range(1, min(max(there, default=0), known))) - there)
        if absent:
            found.append(f"{SQLITE_FILE}: its list of migrations has no step {absent} of {kind!r}")
    found.extend(
        f"{SQLITE_FILE}: in its list of migrations step {version} of {kind!r} is not that of Chroma"
        for _, kind, version, _, right in _other_hashes(connection)
        if not right
    )
    return found


def _other_hashes(connection: sqlite3.Connection) -> Iterator[tuple[int, str, int, str, str]]:
    """Yield row, kind, step and hash of steps with another hash or text, and the right hash; "" where the text is another."""
    rows = connection.execute("SELECT rowid, dir, version, sql, hash FROM migrations").fetchall()
    for row, kind, version, text, hash in rows:
        hashes = _HASHES.get(kind, ()) if isinstance(kind, str) else ()
        if not (type(version) is int and 0 < version <= len(hashes)):
            continue
        # Chroma can be told to take another algorithm, with longer hashes.
        if not (isinstance(text, str) and isinstance(hash, str) and len(hash) <= 32):
            continue
        known = hashes[version - 1]
        digest = hashlib.md5(text.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()
        if (hash, digest) != (known, known):
            yield row, kind, version, hash, known if digest == known else ""


def _hashes_alone(connection: sqlite3.Connection, _directory: Path) -> Iterator[Oddity]:
    """Steps whose text is Chroma's, and whose hash is not that of it."""
    for row, kind, version, hash, right in _other_hashes(connection):
        if right:
            yield Oddity(
                f"step {version} of Chroma's migrations {kind!r} has in SQLite the hash {seen(hash)}, which is not that of its"
                " text, and Chroma opens nothing because of it",
                f"it has the hash {right} again",
                (("UPDATE migrations SET hash = ? WHERE rowid = ?", (right, row)),),
            )


KINDS: tuple[Callable[[sqlite3.Connection, Path], Iterator[Oddity]], ...] = (_hashes_alone,)
"""What is looked for whenever a directory is opened."""
