"""Copies of a database that are complete, and proven to be so by opening them; each in a child process.

A child takes what may crash, what may hang, and what must not close a file that this process has open. It is isolated: nothing
is imported from the working directory, and no variable of the environment and no ``.env`` decides what it does. Its time is
limited.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aiochroma._errors import BackupError
from aiochroma._files import PARTIAL_MARKER
from aiochroma._types import JsonObject
from aiochroma.disk import copy_child
from aiochroma.disk.layout import (
    BACKUP_NOTE,
    LOCK_FILE,
    MANIFEST,
    OWNER_FILE,
    QUARANTINE_PREFIX,
    SEEN_NOTE,
    SQLITE_FILE,
    free_bytes,
    index_directories,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = [
    "ChildError",
    "Stamps",
    "Verification",
    "check_verification",
    "copy_again",
    "copy_database",
    "refuse_lack_of_room",
    "run_child",
    "run_script",
    "size_of",
    "stamps_of",
    "survives_rebuilding",
    "verify_copy",
]

_START = (
    "import json, runpy, sys; paths, module = json.loads(sys.argv[1]), sys.argv[2];"
    " sys.path += [path for path in paths if path not in sys.path]; del sys.argv[:2];"
    " runpy.run_module(module, run_name='__main__', alter_sys=True)"
)

_KEPT_VARIABLES = frozenset(
    {"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "TZ", "USERPROFILE"}
)


class ChildError(Exception):
    """A child did not do what it was started for.

    Attributes:
        code: Its exit code; negative for a signal, None when its time was over or it could not be started.
    """

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


def run_child(module: str, arguments: Sequence[str | os.PathLike[str]], *, seconds: float) -> str:
    """Run a module to its end and return what it printed.

    Args:
        module: Its full name.
        arguments: Its command line.
        seconds: It is ended after this many seconds.

    Raises:
        ChildError: It failed, crashed, or was not done in time; the message is its last line.
    """
    return _run(["-c", _START, json.dumps(_paths()), module], arguments, seconds)


def run_script(file: str, arguments: Sequence[str | os.PathLike[str]], *, seconds: float) -> str:
    """Run a script that imports nothing but the standard library; it starts ten times as fast as a module.

    Args:
        file: The script.
        arguments: Its command line.
        seconds: It is ended after this many seconds.

    Raises:
        ChildError: It failed, crashed, or was not done in time; the message is its last line.
    """
    return _run(["-S", file], arguments, seconds)


def _run(what: list[str], arguments: Sequence[str | os.PathLike[str]], seconds: float) -> str:
    if not sys.executable:
        raise ChildError(
            "no child process can be started, because `sys.executable` names no interpreter", None
        )
    command = [sys.executable, "-I", *what, *(str(argument) for argument in arguments)]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _KEPT_VARIABLES or name.startswith("LC_")
    }
    try:
        done = subprocess.run(  # noqa: S603 - our own code
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=seconds,
            env=environment,
            cwd=os.path.abspath(os.sep),  # noqa: PTH100 - a constant
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"it was not done within {seconds:.0f} s and was ended", None) from error
    except OSError as error:
        raise ChildError(
            f"no child process could be started ({sys.executable!r}): {error.strerror}", None
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
        raise ChildError(lines[-1], done.returncode)
    return done.stdout


def _paths() -> list[str]:
    """Return where this process imports from, the working directory left out.

    They come behind the child's own. Where the package itself lies in the working directory, that is among them: nothing else
    is asked for that is not found before it.
    """
    try:
        here = os.path.realpath(os.curdir)
    except OSError:
        here = ""  # It was deleted.
    found = [
        path
        for path in sys.path
        if Path(path).is_absolute() and os.path.exists(path) and os.path.realpath(path) != here  # noqa: PTH110 - may be a zip
    ]
    return [*found, str(Path(__file__).resolve().parents[2])]


Verification = Literal["full", "quick"]

Stamps = dict[str, tuple[int, int, int]]
"""Identity, size and time of change of files, by name."""

_LEFT_BEHIND = (
    LOCK_FILE,
    OWNER_FILE,
    BACKUP_NOTE,
    MANIFEST,
    PARTIAL_MARKER,
    SEEN_NOTE,
    f"{SQLITE_FILE}-shm",
    f"{QUARANTINE_PREFIX}*",
)
_SQLITE_NAMES = (".sqlite3", ".sqlite3-wal", ".sqlite3-journal")
_SPARE_BYTES = 16 * 2**20
"""What stays free on the disk of a copy: a full disk would stop the database that is being copied, too."""

_LEAST_SECONDS = 300.0

_SLOWEST_BYTES = 2**20
"""A child that copies or reads fewer bytes a second than this hangs."""


def copy_database(directory: Path, target: Path) -> None:
    """Copy the files of a database that no program writes to meanwhile into an empty directory.

    In the kernel, and with shared blocks where the file system can.

    Raises:
        BackupError: Copying failed (a full disk, for example).
    """
    try:
        run_script(copy_child.__file__, [directory, target, *_LEFT_BEHIND], seconds=_seconds(directory))
    except ChildError as error:
        raise BackupError(f"Copying {str(directory)!r} to {str(target)!r} failed: {error}.") from error


def stamps_of(directory: Path) -> Stamps:
    """Return how the files look in which a database keeps something; where two looks are the same, nothing was written."""
    stamps = {}
    for folder in (directory, *index_directories(directory).values()):
        for file in folder.iterdir():
            if folder == directory and not file.name.endswith(_SQLITE_NAMES):
                continue
            with contextlib.suppress(FileNotFoundError):
                found = file.stat()
                stamps[str(file)] = (found.st_ino, found.st_size, found.st_mtime_ns)
    return stamps


def copy_again(directory: Path, target: Path) -> None:
    """Copy the files of a database in the place of a copy that something was written during.

    Raises:
        BackupError: Copying failed.
    """
    for entry in target.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != PARTIAL_MARKER:
            entry.unlink()
    copy_database(directory, target)


def verify_copy(target: Path, how: Verification = "full") -> JsonObject:
    """Open a copy and check that every record has its vector; see :mod:`aiochroma.backend.verify_child`.

    Args:
        target: The copy.
        how: ``"full"`` reads every vector; ``"quick"`` checks the files and searches each collection once.

    Returns:
        For each collection's id its ``name``, ``records`` and ``sequence``.

    Raises:
        BackupError: It is not complete, or the child died of it.
    """
    try:
        printed = run_child("aiochroma.backend.verify_child", [target, how], seconds=_seconds(target))
        result: JsonObject = json.loads(printed)
    except (ChildError, ValueError) as error:
        raise BackupError(f"{str(target)!r} could not be verified: {error}.") from error
    if result["problems"]:
        raise BackupError(f"{str(target)!r} is not a complete database: {'; '.join(result['problems'])}")
    collections: JsonObject = result["collections"]
    return collections


def survives_rebuilding(directory: Path, collection_id: str) -> bool:
    """Have a child process read a collection once, which makes Chroma rebuild its index; returns whether the child lived.

    Args:
        directory: The database; owned by this process, not open in Chroma.
        collection_id: Id of the collection.
    """
    try:
        run_child(
            "aiochroma.backend.verify_child",
            [directory, "rebuild", collection_id],
            seconds=_seconds(directory),
        )
    except ChildError as error:
        # A child that raises has lived; what Chroma raised comes again when the collection is used.
        return error.code is not None and error.code > 0
    return True


def check_verification(how: object) -> None:
    """Check an argument that says how a copy is verified.

    Raises:
        BackupError: It is neither ``"full"`` nor ``"quick"``.
    """
    if how not in ("full", "quick"):
        raise BackupError(f'`verify` must be "full" or "quick", got {how!r}.')


def refuse_lack_of_room(source: Path, folder: Path) -> None:
    """Refuse to copy a directory to where there is no room for it.

    Raises:
        BackupError: There is not.
    """
    needed, free = size_of(source) + _SPARE_BYTES, free_bytes(folder)
    if needed > free:
        raise BackupError(
            f"A copy of {str(source)!r} needs {needed // 2**20 + 1} MiB and {free // 2**20} MiB are free in {str(folder)!r}."
        )


def size_of(directory: Path) -> int:
    """Return the bytes of all files below a directory, as far as they can be seen."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # Gone between the listing and the look.
                total += Path(folder, name).stat().st_size
    return total


def _seconds(directory: Path) -> float:
    return _LEAST_SECONDS + size_of(directory) / _SLOWEST_BYTES
