"""Directories that are not complete yet: under a name of their own until they are, and removed where their process was killed.

A directory that is not complete yet has a name of its own and a file that says what it is, and the process that fills it holds a
lock on it. One with the file whose lock no process holds was left behind by a backup, restore or repair that was killed, and so
was an empty one that is not new; both are found and removed. The file is taken away when a directory has its final name, with
which it means nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from aiochroma._clock import file_clock_ns
from aiochroma._files import (
    BEGINNING_SECONDS,
    INFIX,
    MADE,
    flush,
    identity,
    is_locked,
    locked,
    touch_private,
)

__all__ = ["PARTIAL_MARKER", "PartialDirectory", "abandoned", "lock_on", "remove_abandoned", "remove_marked"]

PARTIAL_MARKER = ".aiochroma.partial.json"
"""The file in a directory that is not complete yet."""

_locks: dict[Path, int] = {}
"""The descriptors that hold the locks of this process, by directory."""


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
        self._identity: tuple[int, int] | None = None
        self._descriptor: int | None = None
        self.path: Path = Path(tempfile.mkdtemp(prefix=f"{final.name}{INFIX}", dir=final.parent))
        try:
            self._identity = identity(self.path)
            self._descriptor = locked(self.path)
            if self._descriptor is not None:
                _locks[self.path] = self._descriptor
            touch_private(self.path / PARTIAL_MARKER)
            flush(self.path)
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            self._release()
            raise

    def finish(self) -> Path:
        """Write everything through to the disk, give the directory its final name, and return that.

        Raises:
            OSError: Something is there already.
        """
        if os.path.lexists(self._final):
            raise FileExistsError(f"{self._final} exists")
        _flush_tree(self.path)
        self.path.rename(self._final)
        flush(self._final.parent)
        # Only now: without its name or this file it would be nobody's, should this process be killed in between.
        (self._final / PARTIAL_MARKER).unlink()
        flush(self._final)
        self._release()
        return self._final

    def discard(self) -> None:
        """Remove what is still incomplete; nothing after `finish`."""
        if self._identity is not None and identity(self.path) == self._identity:
            remove_marked(self.path)
        self._release()

    def _release(self) -> None:
        self._identity = None
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _locks.pop(self.path, None)
            os.close(descriptor)


def lock_on(directory: Path) -> tuple[int, ...]:
    """Return the descriptor that holds the lock on a directory in the making, for a child process that writes into it.

    The child may outlive this process, and nothing is removed under its hands.
    """
    descriptor = _locks.get(directory)
    return () if descriptor is None else (descriptor,)


def abandoned(folder: Path) -> list[Path]:
    """Return the directories in a folder that a process left behind incomplete when it was killed."""
    try:
        entries = sorted(folder.glob(f"*{INFIX}*"))
    except OSError:
        return []
    return [
        entry
        for entry in entries
        if not entry.is_symlink()
        and ((entry / PARTIAL_MARKER).is_file() or _was_never_filled(entry))
        and not is_locked(entry)
    ]


def _was_never_filled(directory: Path) -> bool:
    """Tell whether a process made a directory for itself and was killed before it wrote anything into it, a while ago."""
    try:
        age = (file_clock_ns() - directory.stat().st_mtime_ns) / 1e9
        return bool(MADE.search(directory.name)) and age > BEGINNING_SECONDS and not any(directory.iterdir())
    except OSError:
        return False


def remove_marked(directory: Path) -> None:
    """Remove a directory that has the file which says that it is not complete; that goes last, should this process be killed.

    Raises:
        OSError: Something in it cannot be removed.
    """
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != PARTIAL_MARKER:
            entry.unlink()
    shutil.rmtree(directory)


def remove_abandoned(folder: Path) -> tuple[str, ...]:
    """Remove them, as far as that is permitted; returns what was removed."""
    removed = []
    for entry in abandoned(folder):
        with contextlib.suppress(OSError):
            if (entry / PARTIAL_MARKER).is_file():
                remove_marked(entry)
            else:
                entry.rmdir()  # Not what somebody else has put into it meanwhile.
            removed.append(str(entry))
    return tuple(removed)


def _flush_tree(directory: Path) -> None:
    """Write a directory with all that is in it through to the disk."""
    for folder, _, names in os.walk(directory, topdown=False):
        for file in map(Path(folder).joinpath, names):
            if file.is_file():
                flush(file)
        flush(Path(folder))
