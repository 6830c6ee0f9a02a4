"""Copies a database directory; run as a script with arguments SOURCE TARGET [PATTERN...], the standard library alone at hand.

In a child, because closing a file drops every POSIX lock that the process holds on it: a copy made inside the process that has
the database open would drop Chroma's own locks. And it starts in 20 ms: writing waits for it.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["copy"]

_CHUNK_BYTES = 64 * 2**20


def copy(source: Path, target: Path, patterns: Sequence[str] = ()) -> None:
    """Copy what is in a directory into an empty one, modes included.

    Entries of the top directory with a name like one of the patterns stay behind, and so does whatever is neither a file nor a
    directory, or vanishes meanwhile. Links are followed.
    """
    _copy(source, target, frozenset(), lambda name: any(fnmatch.fnmatchcase(name, one) for one in patterns))


def _copy(
    source: Path, target: Path, above: frozenset[tuple[int, int]], is_skipped: Callable[[str], bool]
) -> None:
    status = source.stat()
    above |= {(status.st_dev, status.st_ino)}
    for entry in source.iterdir():
        if is_skipped(entry.name):
            continue
        try:
            found = entry.stat()
        except FileNotFoundError:
            # A link to nothing; or a log, say, that has just got another name. What opens the copy misses what is needed.
            continue
        if stat.S_ISDIR(found.st_mode):
            if (found.st_dev, found.st_ino) not in above:  # Else a link to a directory that it lies in.
                (target / entry.name).mkdir(0o700)
                _copy(entry, target / entry.name, above, lambda _: False)
        elif stat.S_ISREG(found.st_mode):
            with suppress(FileNotFoundError):
                _copy_file(entry, target / entry.name)
    if sys.platform != "win32":
        target.chmod(stat.S_IMODE(status.st_mode))


def _copy_file(source: Path, target: Path) -> None:
    """Copy one file inside the kernel; where the file system can, its blocks are shared and not copied at all."""
    with source.open("rb") as old, open(target, "xb", opener=_open_privately) as new:
        if not _copied_by_the_kernel(old.fileno(), new.fileno()):
            old.seek(0)
            new.seek(0)
            new.truncate()
            shutil.copyfileobj(old, new, 2**20)
        if sys.platform != "win32":
            os.fchmod(new.fileno(), stat.S_IMODE(os.fstat(old.fileno()).st_mode))


def _open_privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _copied_by_the_kernel(old: int, new: int) -> bool:
    if not hasattr(os, "copy_file_range"):
        return False
    try:
        while os.copy_file_range(old, new, _CHUNK_BYTES):
            pass
    except OSError:
        return False  # Not between these two file systems, or there is no room: the next attempt says which.
    return os.fstat(new).st_size == os.fstat(old).st_size


if __name__ == "__main__":
    copy(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
