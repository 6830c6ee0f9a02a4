"""The index's file while Chroma is closed: how far it follows Chroma's log, and the vectors that make a broken index again."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from typing import TYPE_CHECKING

from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk.layout import TEXT_INDEX_FILE
from aiochroma.disk.recovery import quarantine_text_index
from aiochroma.text.index import TextIndex

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["IndexFile", "position_of"]

log: EventLogger = get_logger("aiochroma.records")

_DIGITS = 19
"""The number of digits of the largest number that SQLite gives an entry."""
_UNREADABLE = (sqlite3.Error, OSError, ValueError, TypeError)
"""What comes up where a file is damaged, locked, or holds what was never written there."""


def position_of(mark: object) -> int | None:
    """Return the entry of the log that a mark names; None for whatever else lies in the file."""
    if not isinstance(mark, str) or len(mark) > _DIGITS or not (mark.isascii() and mark.isdigit()):
        return None
    return int(mark) if int(mark) < 2**63 else None


class IndexFile:
    """The index's file of a directory. A file that is not there is empty; one that cannot be used is moved aside.

    Args:
        directory: The database's directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / TEXT_INDEX_FILE

    def noted(self) -> dict[str, int]:
        """Return, by collection id, up to which entry of Chroma's log it has everything."""
        marks: dict[str, int] = {}
        try:
            with self._opened() as index:
                for collection, mark in (index.watermarks() if index is not None else {}).items():
                    position = position_of(mark)
                    if isinstance(collection, str) and position is not None:
                        marks[collection] = position
        except _UNREADABLE as error:
            self._set_aside(error)
            return {}
        return marks

    def distrust(self, collections: Collection[str]) -> None:
        """Take back what it has noted of collections: their log has gone on without it.

        Raises:
            OSError: It cannot be written, and cannot be moved aside either.
        """
        if not collections:
            return
        try:
            with self._opened() as index:
                if index is not None:
                    for collection in collections:
                        index.set_watermark(collection, "")
        except _UNREADABLE as error:
            self._set_aside(error)

    def vectors(self, collection: str) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Return ids and vectors of a collection, a page at a time, up to one that is damaged."""
        with contextlib.suppress(*_UNREADABLE), self._opened() as index:
            if index is not None:
                yield from index.vector_pages(collection)

    def _set_aside(self, error: Exception) -> None:
        """Move it away, lest its notes are believed another time; it is made again from Chroma."""
        moved = quarantine_text_index(self._directory)
        log.warning("text_index.set_aside", file=str(self._file), error=str(error), quarantine=str(moved))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[TextIndex | None]:
        """Open it; None where there is none, or another thing in its place, which is never opened."""
        if not (self._file.is_file() and stat.S_ISREG(self._file.lstat().st_mode)):
            yield None
            return
        with contextlib.closing(TextIndex(self._file)) as index:
            yield index
