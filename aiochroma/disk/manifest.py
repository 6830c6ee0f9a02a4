"""What a backup says of itself, and what a database says of its newest backup."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from aiochroma._errors import BackupError
from aiochroma._files import write_atomically
from aiochroma._types import JsonObject
from aiochroma.disk.layout import BACKUP_NOTE, MANIFEST, SQLITE_FILE

__all__ = ["BackupReport", "read_manifest", "record_backup", "recorded_backup", "recorded_sequences"]


@dataclass(frozen=True)
class BackupReport:
    """A backup that was verified.

    Attributes:
        path: Where it is.
        created: When it was made, ISO 8601 in UTC.
        source: The database directory.
        collections: For each collection's id its ``name``, ``records`` and ``sequence``.
        bytes: Its size.
        paused_ms: For how long writing waited for the copy, in milliseconds.
        verified_ms: How long the verification took, with the database in use again, in milliseconds.
        verified: How it was verified: ``"full"``, every vector was read; or ``"quick"``.
        removed: Older backups that the rotation deleted, and what killed backups had left in the folder.
    """

    path: str
    created: str
    source: str
    collections: dict[str, JsonObject] = field(default_factory=dict)
    bytes: int = 0
    paused_ms: float = 0.0
    verified_ms: float = 0.0
    verified: str = "full"
    removed: tuple[str, ...] = ()

    @property
    def records(self) -> int:
        """Records in all collections."""
        return sum(int(entry["records"]) for entry in self.collections.values())


def read_manifest(backup: Path) -> JsonObject:
    """Return what a backup says of itself.

    Raises:
        BackupError: It is not a backup.
    """
    manifest, cause = None, None
    try:
        # A named pipe would be waited for.
        if (backup / MANIFEST).is_file():
            manifest = json.loads((backup / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        cause = error
    if not isinstance(manifest, dict):
        raise BackupError(
            f"{str(backup)!r} is not a backup: it has no readable {MANIFEST}. Backups are made with `await client.backup(...)` "
            "or `aiochroma backup`."
        ) from cause
    if not (backup / SQLITE_FILE).is_file():
        raise BackupError(f"{str(backup)!r} has a manifest but no {SQLITE_FILE}.")
    return manifest


def record_backup(directory: Path, report: BackupReport) -> None:
    """Write down in the database how far the newest verified backup goes, for cutting the retained log at the next open."""
    note = {
        "path": report.path,
        "created": report.created,
        "sequences": {id: entry["sequence"] for id, entry in report.collections.items()},
    }
    write_atomically(directory / BACKUP_NOTE, json.dumps(note))


def recorded_sequences(directory: Path) -> dict[str, int]:
    """Return, by collection id, up to which write of the log the newest verified backup goes; empty without one."""
    return _read_note(directory)[1]


def recorded_backup(directory: Path) -> Path | None:
    """Return the newest verified backup of a database, or None where there is none any more."""
    return _read_note(directory)[0]


def _read_note(directory: Path) -> tuple[Path | None, dict[str, int]]:
    file = directory / BACKUP_NOTE
    try:
        if not file.is_file():
            return None, {}
        note = json.loads(file.read_text(encoding="utf-8"))
        backup = Path(note["path"])
        sequences = {str(id): int(sequence) for id, sequence in note["sequences"].items()}
        # A backup that was deleted, or replaced by another one, is no reason to forget anything.
        if read_manifest(backup)["created"] != note["created"]:
            return None, {}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        BackupError,
    ):
        return None, {}
    return backup, sequences
