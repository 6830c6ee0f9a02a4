"""The index's file while Chroma is closed: how far it follows Chroma's log, and the vectors that make a broken index again."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from aiochroma.disk.layout import TEXT_INDEX_FILE
from aiochroma.text.index import TextIndex

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["IndexFile"]


class IndexFile:
    """The index's file of a directory. A file that is not there, or cannot be used, is empty.

    Args:
        directory: The database's directory.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / TEXT_INDEX_FILE

    def noted(self) -> dict[str, int]:
        """Return, by collection id, up to which entry of Chroma's log it has everything."""
        with self._opened() as index:
            marks = {} if index is None else index.watermarks()
        return {collection: int(mark) for collection, mark in marks.items() if mark.isdigit()}

    def distrust(self, collections: Collection[str]) -> None:
        """Take back what it has noted of collections: their log has gone on without it."""
        if not collections:
            return
        with self._opened() as index:
            if index is not None:
                for collection in collections:
                    index.set_watermark(collection, "")

    def vectors(self, collection: str) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Return ids and vectors of a collection, a page at a time."""
        with self._opened() as index:
            if index is not None:
                yield from index.vector_pages(collection)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[TextIndex | None]:
        try:
            index = TextIndex(self._file) if self._file.is_file() else None
        except (sqlite3.DatabaseError, OSError):
            index = None
        if index is None:
            yield None
            return
        with contextlib.closing(index), contextlib.suppress(sqlite3.DatabaseError):
            yield index
