"""Files and directories that we make: closed to others, under names that cannot be guessed, in place as a whole or not at all.

What a memory holds is private. So a directory that we make is 0700 and a file 0600; one that is there keeps its mode, which is
its owner's choice. What replaces a file is written beside it, flushed, and renamed over it.

Until then its process holds a lock on it. The next that replaces the same file removes what a process left that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._clock import file_clock_ns
from aiochroma._errors import InvalidInputError, shown
from aiochroma._types import JsonObject

if sys.platform != "win32":
    import fcntl
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from typing import TextIO

__all__ = [
    "BEGINNING_SECONDS",
    "DIRECTORY_MODE",
    "FILE_MODE",
    "INFIX",
    "MADE",
    "SQLITE_SUFFIXES",
    "Replacement",
    "canonical_path",
    "expand",
    "fixed_path",
    "flush",
    "identity",
    "irregular",
    "is_locked",
    "locked",
    "make_directory",
    "read_json",
    "touch_private",
    "transaction",
    "write_atomically",
]

SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")
"""SQLite's file, and what SQLite keeps beside it."""

_LARGEST_NOTE = 2**26

_NOT_OF_A_DIRECTORY = frozenset({errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EPERM})

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
            raise InvalidInputError(f"`{name}` must be a path that is not empty, got {shown(path)}.")
        return Path(os.fsdecode(os.fsencode(text))).expanduser()  # No file can be called by half a character.
    except (TypeError, RuntimeError, UnicodeEncodeError) as error:
        raise InvalidInputError(f"`{name}` is not a usable path: {shown(path)} ({error}).") from error


def fixed_path(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return a path that names the same directory after the process has changed to another one, as daemons do.

    What is no path is returned as it is: whoever uses it says what is wrong.
    """
    try:
        return Path.cwd() / expand(path, "path")
    except (OSError, InvalidInputError):
        return path


def canonical_path(path: str | os.PathLike[str], name: str = "path") -> str:
    """Return the one spelling of a directory: absolute, user's home expanded, symbolic links followed.

    Args:
        path: The directory; it need not exist.
        name: The argument's name, for the message.

    Raises:
        InvalidInputError: It is empty, or cannot be the path of a database.
    """
    given = expand(path, name)
    try:
        canonical = os.path.realpath(given)
        canonical.encode()  # Chroma takes paths as UTF-8 alone.
    except (OSError, ValueError) as error:
        # The working directory was deleted, for example.
        raise InvalidInputError(f"`{name}` is not a usable path: {shown(path)} ({error}).") from None
    return canonical


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


def irregular(sqlite_file: Path) -> Path | None:
    """Return what lies at the path of an SQLite file, or beside it under the name of a journal, and is no regular file.

    SQLite would wait for ever for the other end of a pipe, and write through a link to nothing.
    """
    for suffix in SQLITE_SUFFIXES:
        file = sqlite_file.with_name(sqlite_file.name + suffix)
        if os.path.lexists(file) and not file.is_file():
            return file
    return None


def touch_private(file: Path) -> None:
    """Make an empty file, closed to others, where there is none. SQLite gives its journals the mode of their database.

    Raises:
        OSError: It cannot be made, or it is no regular file, or a journal beside it is none.
    """
    special = irregular(file)
    if special is not None:
        raise OSError(errno.EINVAL, "it is not a regular file; move it away", str(special))
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), FILE_MODE))


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write all that happens in the block, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # On a full disk SQLite has taken it back itself.
            connection.execute("ROLLBACK")
        raise


def read_json(file: Path) -> JsonObject | None:
    """Return the JSON object in one of this package's notes, or None where it cannot be read.

    A note is as untrusted as anything on the disk: it may be a named pipe, which would be waited for, or fill the memory.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_NOTE:
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def flush(path: Path) -> None:
    """Write one file, or the entries of one directory, through to the disk.

    Of a directory as far as that is possible: this user may be one who may write in it and not look; some file systems refuse.

    Raises:
        OSError: A file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OF_A_DIRECTORY or not path.is_dir():
            raise


def identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of what is at a path, or None where nothing is."""
    try:
        # As text: asked before every call, and a path object takes three times as long.
        status = os.stat(str(path))  # noqa: PTH116 - see above
    except OSError:
        return None
    return status.st_dev, status.st_ino


def write_atomically(file: Path, content: str | bytes) -> None:
    """Put a text (in UTF-8) or bytes into a file, all of it or nothing, and through to the disk.

    Raises:
        OSError: It cannot be written; the former file is as it was.
    """
    replacement = Replacement(file)
    try:
        replacement.file.buffer.write(content.encode() if isinstance(content, str) else content)
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
        self._lock: int | None = None
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and not stat.S_ISREG(mode):
            self.file = self._opened_directly(path, mode)
            return
        self._target = Path(os.path.realpath(path))
        prefix = f".{self._target.name[:100]}{INFIX}"
        _remove_abandoned_files(self._target.parent, prefix)
        descriptor, name = tempfile.mkstemp(prefix=prefix, dir=self._target.parent)
        self._temporary = Path(name)
        try:
            self._lock = locked(self._temporary)
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
        descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
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
        self._release()
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
        self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


INFIX = ".partial-"
"""In the name of what is not complete yet."""
MADE = re.compile(r"\.partial-[a-z0-9_]{8}$")
BEGINNING_SECONDS = 60.0
"""What is empty is younger than this where the process that has made it is about to lock it and to write into it."""


def _remove_abandoned_files(folder: Path, prefix: str) -> None:
    """Remove what was to replace a file and was left behind by a process that was killed, as far as that is permitted."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (
                not entry.name.startswith(prefix)
                or not MADE.search(entry.name)
                or not entry.is_file(follow_symlinks=False)
            ):
                continue
            status = entry.stat(follow_symlinks=False)
            is_new = not status.st_size and (file_clock_ns() - status.st_mtime_ns) / 1e9 < BEGINNING_SECONDS
            if not is_new and not is_locked(Path(entry.path)):
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()


def locked(path: Path) -> int | None:
    """Lock a file or directory until its descriptor is closed, or the process ends; None where there are no such locks."""
    if sys.platform == "win32":
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # Without locks it is not taken for abandoned: see below.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def is_locked(path: Path) -> bool:
    """Tell whether a process still fills a file or directory; where locks do not work the answer is yes."""
    if sys.platform == "win32":
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
