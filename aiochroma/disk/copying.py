"""Copies of a database that are complete, and proven to be so by opening them; each in a child process."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from aiochroma._errors import BackupError
from aiochroma.disk import copy_child
from aiochroma.disk.child import ChildError, run_child, run_script
from aiochroma.disk.filesystem import free_bytes
from aiochroma.disk.layout import (
    BACKUP_NOTE,
    LOCK_FILE,
    MANIFEST,
    OWNER_FILE,
    PARTIAL_MARKER,
    QUARANTINE_PREFIX,
    SEEN_NOTE,
    SQLITE_FILE,
)

__all__ = [
    "Verification",
    "copy_database",
    "refuse_lack_of_room",
    "size_of",
    "survives_rebuilding",
    "verify_copy",
]

Verification = Literal["full", "quick"]

_LEFT_BEHIND = (
    LOCK_FILE,
    OWNER_FILE,
    BACKUP_NOTE,
    MANIFEST,
    PARTIAL_MARKER,
    SEEN_NOTE,
    f"{SQLITE_FILE}-shm",
    f"{QUARANTINE_PREFIX}*",
)
_SPARE_BYTES = 16 * 2**20
"""What stays free on the disk of a copy: a full disk would stop the database that is being copied, too."""

_LEAST_SECONDS = 300.0
_SLOWEST_BYTES = 2**20
"""A child that copies or reads fewer bytes a second than this hangs."""


def copy_database(directory: Path, target: Path) -> None:
    """Copy the files of a database that nobody writes to meanwhile into an empty directory.

    Raises:
        BackupError: Copying failed (a full disk, for example).
    """
    try:
        run_script(copy_child.__file__, [directory, target, *_LEFT_BEHIND], seconds=_seconds(directory))
    except ChildError as error:
        raise BackupError(f"Copying {str(directory)!r} to {str(target)!r} failed: {error}.") from error


def verify_copy(target: Path, how: Verification = "full") -> dict[str, Any]:
    """Open a copy and check that every record has its vector; see :mod:`aiochroma.backend.verify_child`.

    Args:
        target: The copy.
        how: ``"full"`` reads every vector; ``"quick"`` checks the files and searches each collection once.

    Returns:
        For each collection's id its ``name``, ``records`` and ``sequence``.

    Raises:
        BackupError: It is not complete, or the child died of it.
    """
    try:
        printed = run_child("aiochroma.backend.verify_child", [target, how], seconds=_seconds(target))
        result: dict[str, Any] = json.loads(printed)
    except (ChildError, ValueError) as error:
        raise BackupError(f"{str(target)!r} could not be verified: {error}.") from error
    if result["problems"]:
        raise BackupError(f"{str(target)!r} is not a complete database: {'; '.join(result['problems'])}")
    collections: dict[str, Any] = result["collections"]
    return collections


def survives_rebuilding(directory: Path, collection_id: str) -> bool:
    """Have a child process read a collection once, which makes Chroma rebuild its index; returns whether the child lived.

    Args:
        directory: The database; owned by this process, not open in Chroma.
        collection_id: Id of the collection.
    """
    try:
        run_child(
            "aiochroma.backend.verify_child",
            [directory, "rebuild", collection_id],
            seconds=_seconds(directory),
        )
    except ChildError as error:
        # A child that raises has lived; what Chroma raised comes again when the collection is used.
        return error.code is not None and error.code > 0
    return True


def refuse_lack_of_room(source: Path, folder: Path) -> None:
    """Refuse to copy a directory to where there is no room for it.

    Raises:
        BackupError: There is not.
    """
    needed, free = size_of(source) + _SPARE_BYTES, free_bytes(folder)
    if needed > free:
        raise BackupError(
            f"A copy of {str(source)!r} needs {needed // 2**20 + 1} MiB and {free // 2**20} MiB are free in {str(folder)!r}."
        )


def size_of(directory: Path) -> int:
    """Return the bytes of all files below a directory, as far as they can be seen."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # Gone between the listing and the look.
                total += Path(folder, name).stat().st_size
    return total


def _seconds(directory: Path) -> float:
    return _LEAST_SECONDS + size_of(directory) / _SLOWEST_BYTES
