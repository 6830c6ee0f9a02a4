"""Closes the index directories that Chroma makes to others, as everything is that this package makes.

Chroma makes them as the process's umask says. That is the whole process's, so it is not changed for the moment of a call: files
that other threads make would get other modes than their programs expect.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from aiochroma._files import DIRECTORY_MODE
from aiochroma.disk.layout import is_index_name

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ClosedIndexes"]


class ClosedIndexes:
    """Closes the index directories that come to be in a database; those that are there keep their modes.

    Args:
        directory: The database directory, mended and not yet open in Chroma.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known = frozenset(os.listdir(directory))  # noqa: PTH208 - names are all that is needed
        self._stamp = (0, 0)

    def close_new(self, *, now: bool = False) -> None:
        """Close those that have come to be since; without ``now`` only where the directory looks different."""
        with suppress(OSError):
            status = os.stat(self._directory)  # noqa: PTH116 - at every call
            # Its links are its directories, where the file system counts them; its time of change may be that of the last look.
            stamp = (status.st_mtime_ns, status.st_nlink)
            if stamp == self._stamp and not now:
                return
            names = frozenset(os.listdir(self._directory))  # noqa: PTH208 - names are all that is needed
            for name in filter(is_index_name, names - self._known):
                with suppress(OSError):  # It was deleted, for one.
                    (self._directory / name).chmod(DIRECTORY_MODE)
            self._known, self._stamp = names, stamp
