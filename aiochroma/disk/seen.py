"""What was found sound at an earlier look, and how its files looked then: an opening checks what has changed since.

A file whose size and time of change are the same was not written. A few moments after a change that is not certain (clocks of
file systems are coarse), so what was changed just before the look is looked at again. `doctor` looks at everything.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING

from aiochroma._files import write_atomically
from aiochroma._types import JsonObject
from aiochroma.disk.layout import INDEX_FILES, SEEN_NOTE, SQLITE_FILE

if TYPE_CHECKING:
    from pathlib import Path


__all__ = ["Stamp", "index_stamp", "note_clean_close", "read_seen", "sqlite_is_unchanged", "write_seen"]

_SETTLED_NANOSECONDS = 2 * 10**9
_FORMAT = 1

Stamp = list[list[int]]
"""Size and time of change of each file; empty where that tells nothing."""


def index_stamp(directory: Path) -> Stamp:
    """Return how the files of an index look now."""
    stamp = []
    for name in INDEX_FILES:
        try:
            status = (directory / name).stat()
        except OSError:
            stamp.append([-1, 0])
            continue
        if time.time_ns() - status.st_mtime_ns < _SETTLED_NANOSECONDS:
            return []
        stamp.append([status.st_size, status.st_mtime_ns])
    return stamp


def read_seen(directory: Path) -> JsonObject:
    """Return what was noted at the last look; nothing where that is not known."""
    file = directory / SEEN_NOTE
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("format") == _FORMAT else {}


def write_seen(directory: Path, collections: JsonObject) -> None:
    """Note what was found sound; a disk that cannot be written does not keep any program from opening."""
    with contextlib.suppress(OSError):
        write_atomically(
            directory / SEEN_NOTE, json.dumps({"format": _FORMAT, "sqlite": [], "collections": collections})
        )


def note_clean_close(directory: Path) -> None:
    """Note how the SQLite file looks after Chroma has closed it; nothing where no look was noted before."""
    seen = read_seen(directory)
    if seen:
        seen["sqlite"] = _sqlite_stamp(directory)
        with contextlib.suppress(OSError):
            write_atomically(directory / SEEN_NOTE, json.dumps(seen))


def sqlite_is_unchanged(directory: Path, seen: JsonObject) -> bool:
    """Tell whether no program has written to the SQLite file since it was closed cleanly."""
    stamp = _sqlite_stamp(directory)
    return bool(stamp) and stamp == seen.get("sqlite")


def _sqlite_stamp(directory: Path) -> list[int]:
    """Return size, time of change and inode; nothing while there is a journal beside the file."""
    try:
        if any(
            (directory / f"{SQLITE_FILE}{suffix}").stat().st_size
            for suffix in ("-wal", "-journal")
            if (directory / f"{SQLITE_FILE}{suffix}").exists()
        ):
            return []
        status = (directory / SQLITE_FILE).stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ino]
