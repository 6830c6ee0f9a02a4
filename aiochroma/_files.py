"""Files and directories that we make: closed to others, under names that cannot be guessed, in place as a whole or not at all.

What a memory holds is private. So a directory that we make is 0700 and a file 0600; one that is there keeps its mode, which is
its owner's choice. What replaces a file is written beside it, flushed, and renamed over it.

A directory that is not complete yet has a name of its own and a file that says what it is, and the process that fills it holds a
lock on it. One with the file whose lock no process holds was left behind by a backup, restore or repair that was killed, and so
was an empty one that is not new; both are found and removed. The file is taken away before a directory gets its final name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
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
    "DIRECTORY_MODE",
    "FILE_MODE",
    "PARTIAL_MARKER",
    "SQLITE_SUFFIXES",
    "PartialDirectory",
    "Replacement",
    "abandoned",
    "canonical_path",
    "expand",
    "flush",
    "identity",
    "irregular",
    "make_directory",
    "read_json",
    "remove_abandoned",
    "remove_marked",
    "touch_private",
    "transaction",
    "write_atomically",
]

SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")
"""SQLite's file, and what SQLite keeps beside it."""

_LARGEST_NOTE = 2**26

_NOT_OF_A_DIRECTORY = frozenset({errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EPERM})

PARTIAL_MARKER = ".aiochroma.partial.json"
"""The file in a directory that is not complete yet."""

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


_INFIX = ".partial-"
_MADE = re.compile(r"\.partial-[a-z0-9_]{8}$")
_BEGINNING_SECONDS = 60.0
"""An empty directory is younger than this where the process that has made it is about to write into it."""


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
        self.path: Path = Path(tempfile.mkdtemp(prefix=f"{final.name}{_INFIX}", dir=final.parent))
        try:
            self._identity = identity(self.path)
            self._descriptor = _locked(self.path)
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
        (self.path / PARTIAL_MARKER).unlink()
        flush(self.path)
        self.path.rename(self._final)
        flush(self._final.parent)
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
        if not entry.is_symlink()
        and ((entry / PARTIAL_MARKER).is_file() or _was_never_filled(entry))
        and not _is_locked(entry)
    ]


def _was_never_filled(directory: Path) -> bool:
    """Tell whether a process made a directory for itself and was killed before it wrote anything into it, a while ago."""
    try:
        age = (file_clock_ns() - directory.stat().st_mtime_ns) / 1e9
        return (
            bool(_MADE.search(directory.name)) and age > _BEGINNING_SECONDS and not any(directory.iterdir())
        )
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


def _locked(directory: Path) -> int | None:
    """Lock a directory until its descriptor is closed, or the process ends; None where there are no such locks."""
    if sys.platform == "win32":
        return None
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # Without locks it is not taken for abandoned: see below.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _is_locked(directory: Path) -> bool:
    """Tell whether a process still fills a directory; where locks do not work the answer is yes."""
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
