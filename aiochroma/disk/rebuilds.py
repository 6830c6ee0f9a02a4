"""Rebuilds of indexes that have begun and not ended.

Chroma rebuilds an index in native code, which can end the whole process. So each rebuild is noted before it begins. Where a note
is left the next opening tries that one in a child process; should the child die of it too, the collection is left alone from then
on, and all the others can be used.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from aiochroma._files import write_atomically
from aiochroma.disk.layout import REBUILD_NOTE
from aiochroma.disk.schema import json_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["begin_rebuild", "crashing", "end_rebuild", "note_crash", "unfinished"]

_BEGUN, _CRASHES = "begun", "crashes"


def begin_rebuild(directory: Path, collection_id: str) -> None:
    """Note that a rebuild begins.

    Raises:
        OSError: It cannot be noted, so it must not begin.
    """
    _write(directory, {**_read(directory), collection_id: _BEGUN})


def end_rebuild(directory: Path, collection_id: str) -> None:
    """Note that a rebuild has ended, well or with an error; or that it may be tried again."""
    noted = _read(directory)
    if noted.pop(collection_id, None) is not None:
        _write(directory, noted)


def note_crash(directory: Path, collection_id: str) -> None:
    """Note that a rebuild ends the process that does it."""
    _write(directory, {**_read(directory), collection_id: _CRASHES})


def unfinished(directory: Path) -> list[str]:
    """Return the ids of collections whose rebuild did not end; why is not known yet."""
    return [id for id, state in _read(directory).items() if state == _BEGUN]


def crashing(directory: Path) -> frozenset[str]:
    """Return the ids of collections whose rebuild ends the process."""
    return frozenset(id for id, state in _read(directory).items() if state == _CRASHES)


def _read(directory: Path) -> dict[str, str]:
    file = directory / REBUILD_NOTE
    try:
        text = file.read_text(encoding="utf-8") if file.is_file() else None
    except (OSError, ValueError):
        return {}
    return {str(id): str(state) for id, state in json_object(text).items()}


def _write(directory: Path, noted: Mapping[str, str]) -> None:
    if noted:
        write_atomically(directory / REBUILD_NOTE, json.dumps(noted))
    else:
        with contextlib.suppress(OSError):
            (directory / REBUILD_NOTE).unlink()
