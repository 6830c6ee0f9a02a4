"""Directories in the making, so that what a killed backup, restore or repair leaves behind is found and removed.

Until it is complete a directory has a name of its own and a file that says what it is, and the process that fills it holds a
lock on it. One with the file whose lock no process holds was left behind. A finished database is never such
a directory: the file is taken away before a directory gets its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._files import flush, identity, write_atomically
from aiochroma.disk.layout import PARTIAL_MARKER

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PartialDirectory", "abandoned", "remove_abandoned"]

_INFIX = ".partial-"


class PartialDirectory:
    """An empty directory beside its final place, closed to others.

    Args:
        final: Where it is to be when it is complete.

    Attributes:
        path: Where it is until then.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, final: Path) -> None:
        self._final = final
        self.path = Path(tempfile.mkdtemp(prefix=f"{final.name}{_INFIX}", dir=final.parent))
        self._identity = identity(self.path)
        self._descriptor = _locked(self.path)
        try:
            write_atomically(self.path / PARTIAL_MARKER, json.dumps({"for": str(final), "pid": os.getpid()}))
        except BaseException:
            self.discard()
            raise

    def finish(self) -> Path:
        """Write everything through to the disk, and give the directory its name.

        Returns:
            The final place.

        Raises:
            OSError: Something is there already.
        """
        if os.path.lexists(self._final):
            raise FileExistsError(f"{self._final} exists")
        flush_tree(self.path)
        (self.path / PARTIAL_MARKER).unlink()
        flush(self.path)
        self.path.rename(self._final)
        flush(self._final.parent)
        self._release()
        return self._final

    def discard(self) -> None:
        """Remove what is still incomplete; nothing after `finish`."""
        if self._identity is not None and identity(self.path) == self._identity:
            shutil.rmtree(self.path)
        self._release()

    def _release(self) -> None:
        self._identity = None
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def abandoned(folder: Path) -> list[Path]:
    """Return the directories in a folder that a process left behind incomplete when it was killed."""
    try:
        entries = sorted(folder.glob(f"*{_INFIX}*"))
    except OSError:
        return []
    return [
        entry
        for entry in entries
        if (entry / PARTIAL_MARKER).is_file() and not entry.is_symlink() and not _is_locked(entry)
    ]


def remove_abandoned(folder: Path) -> tuple[str, ...]:
    """Remove them, as far as that is permitted; returns what was removed."""
    removed = []
    for entry in abandoned(folder):
        with contextlib.suppress(OSError):
            shutil.rmtree(entry)
            removed.append(str(entry))
    return tuple(removed)


def flush_tree(directory: Path) -> None:
    """Write a directory with all that is in it through to the disk."""
    for entry in _entries(directory):
        flush_tree(entry) if entry.is_dir() else flush(entry)
    flush(directory)


def _entries(directory: Path) -> Iterator[Path]:
    return (entry for entry in directory.iterdir() if entry.is_dir() or entry.is_file())


def _locked(directory: Path) -> int | None:
    """Lock a directory until its descriptor is closed, or the process ends; None where there are no such locks."""
    if sys.platform == "win32":
        return None
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # Without locks it is not taken for abandoned: see below.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _is_locked(directory: Path) -> bool:
    """Tell whether somebody fills a directory still; so one has to assume where locks do not work."""
    if sys.platform == "win32":
        return True
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
