"""Files that we make: closed to others, under names that cannot be guessed, in place as a whole or not at all.

What a memory holds is private. So a directory that we make is 0700 and a file 0600; one that is there keeps its mode, which is
its owner's choice. What replaces a file is written beside it, flushed, and renamed over it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._errors import InvalidInputError

if TYPE_CHECKING:
    from typing import TextIO

__all__ = [
    "DIRECTORY_MODE",
    "FILE_MODE",
    "Replacement",
    "expand",
    "flush",
    "identity",
    "make_directory",
    "touch_private",
    "write_atomically",
    "write_bytes_atomically",
]

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


def expand(path: str | os.PathLike[str], name: str) -> Path:
    """Return a path that a user gave, with ``~`` resolved.

    Args:
        path: The path.
        name: The argument's name, for the message.

    Raises:
        InvalidInputError: It is empty, or names nothing on this system.
    """
    try:
        text = os.fspath(path)
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            raise InvalidInputError(f"`{name}` must be the path of a file, got {path!r}.")
        return Path(text).expanduser()
    except (TypeError, RuntimeError) as error:
        raise InvalidInputError(f"`{name}` is not a usable path: {path!r} ({error}).") from error


def make_directory(directory: Path) -> None:
    """Make a directory, and missing ones above it, closed to others; one that is there stays as it is.

    Raises:
        OSError: It cannot be made, or is a file.
    """
    missing = []
    while not os.path.lexists(directory):
        missing.append(directory)
        directory = directory.parent
    for entry in reversed(missing):
        with contextlib.suppress(FileExistsError):
            entry.mkdir(DIRECTORY_MODE)
            flush(entry.parent)
    if missing and not missing[0].is_dir():
        raise NotADirectoryError(f"{missing[0]} is a file")


def touch_private(file: Path) -> None:
    """Make an empty file, closed to others, where there is none.

    SQLite gives its journals the mode of their database.

    Raises:
        OSError: It cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), FILE_MODE))


def flush(path: Path) -> None:
    """Write one file, or the entries of one directory, through to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of what is at a path, or None where nothing is."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def write_atomically(file: Path, text: str) -> None:
    """Put a text into a file, all of it or nothing, and through to the disk.

    Raises:
        OSError: It cannot be written; the former file is as it was.
    """
    replacement = Replacement(file)
    try:
        replacement.file.write(text)
        replacement.commit()
    except BaseException:
        replacement.discard()
        raise


def write_bytes_atomically(file: Path, content: bytes) -> None:
    """Put bytes into a file, all of them or none, and through to the disk.

    Raises:
        OSError: It cannot be written; the former file is as it was.
    """
    replacement = Replacement(file)
    try:
        replacement.file.buffer.write(content)
        replacement.commit()
    except BaseException:
        replacement.discard()
        raise


class Replacement:
    """An output that takes the place of a file when it is complete.

    A link is followed: what it points to is replaced, and the link stays. What is no regular file (a named pipe, a terminal,
    ``/dev/stdout``) is written to directly, because replacing it would take it away from whoever reads it.

    Args:
        path: Where the output goes.

    Attributes:
        file: What to write to, text in UTF-8.

    Raises:
        OSError: It cannot be written, is a directory, or is a pipe without a reader.
    """

    file: TextIO

    def __init__(self, path: Path) -> None:
        self._temporary: Path | None = None
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and not stat.S_ISREG(mode):
            self.file = self._opened_directly(path, mode)
            return
        self._target = Path(os.path.realpath(path))
        descriptor, name = tempfile.mkstemp(prefix=f".{self._target.name[:100]}.", dir=self._target.parent)
        self._temporary = Path(name)
        try:
            if mode is not None and sys.platform != "win32":
                os.fchmod(descriptor, stat.S_IMODE(mode))
            self.file = open(descriptor, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - a descriptor; closed by commit or discard
        except BaseException:
            os.close(descriptor)
            self._remove()
            raise

    @staticmethod
    def _opened_directly(path: Path, mode: int) -> TextIO:
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{path} is a directory")
        # Without a reader a pipe is refused, not waited for.
        flags = os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags)
        if hasattr(os, "set_blocking"):
            os.set_blocking(descriptor, True)
        return open(descriptor, "w", encoding="utf-8")  # noqa: PTH123 - see above

    def commit(self) -> None:
        """Put the output in place, through to the disk; call it once, with everything written."""
        self.file.flush()
        if self._temporary is None:
            self.file.close()
            return
        os.fsync(self.file.fileno())
        self.file.close()
        self._temporary.replace(self._target)
        self._temporary = None
        flush(self._target.parent)

    def discard(self) -> None:
        """Leave the former file as it is; nothing after `commit`."""
        with contextlib.suppress(OSError):
            self.file.close()
        self._remove()

    def _remove(self) -> None:
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            self._temporary = None
