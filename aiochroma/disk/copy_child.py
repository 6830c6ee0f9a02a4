"""Copies a database directory; run as a script in a child process, with nothing but the standard library.

In a child, because closing a file drops every POSIX lock that the process holds on it: a copy made inside the process
that has the database open would drop Chroma's own locks.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

_PIECE_BYTES = 64 * 2**20


def copy(source: Path, target: Path, skipped: frozenset[str] = frozenset()) -> None:
    """Copy a tree; entries of the top directory with these names, and what is in quarantine, stay behind."""
    target.mkdir()
    for entry in source.iterdir():
        if entry.name in skipped or entry.name.startswith("quarantine-"):
            continue
        if entry.is_dir():
            copy(entry, target / entry.name)
        else:
            copy_file(entry, target / entry.name)


def copy_file(source: Path, target: Path) -> None:
    """Copy one file inside the kernel; where the file system can, its blocks are shared and not copied at all."""
    if hasattr(os, "copy_file_range"):
        try:
            with source.open("rb") as old, target.open("xb") as new:
                while os.copy_file_range(old.fileno(), new.fileno(), _PIECE_BYTES):
                    pass
                complete = os.fstat(new.fileno()).st_size == os.fstat(old.fileno()).st_size
        except OSError:
            complete = (
                False  # Not between these two file systems, or there is no room: the next attempt says which.
            )
        if complete:
            return
    shutil.copyfile(source, target)


def flush_tree(directory: Path) -> None:
    """Write a directory with all that is in it through to the disk."""
    for entry in directory.iterdir():
        flush_tree(entry) if entry.is_dir() else flush(entry)
    flush(directory)


def flush(path: Path) -> None:
    """Write one file, or the entries of one directory, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    copy(Path(sys.argv[1]), Path(sys.argv[2]), frozenset(sys.argv[3:]))
