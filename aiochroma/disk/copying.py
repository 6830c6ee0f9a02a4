"""Copies of a database that are complete, and proven to be so by opening them; each in a child process.

A child takes what may crash, what may hang, and what must not close a file that this process has open. It is isolated: nothing
is imported from the working directory, and no variable of the environment and no ``.env`` decides what it does. Its time is
limited.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aiochroma._errors import BackupError, is_one_of, shown
from aiochroma._partial import PARTIAL_MARKER, lock_on
from aiochroma._types import JsonObject
from aiochroma.disk import child, lifeline
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
    from types import ModuleType


__all__ = [
    "PYTHON_VARIABLE",
    "ChildError",
    "Script",
    "Stamps",
    "Verification",
    "check_verification",
    "copy_database",
    "interpreter",
    "package_environment",
    "refuse_lack_of_room",
    "run_child",
    "run_script",
    "size_of",
    "stamps_of",
    "survives_rebuilding",
    "verify_copy",
]

PYTHON_VARIABLE = "AIOCHROMA_PYTHON"

_START = (
    "import _thread, json, os, runpy, sys;"
    " _thread.start_new_thread(lambda: os._exit(len(os.read(0, 1)) or 1), ());"  # See `child.end_with_parent`.
    " paths, module = json.loads(sys.argv[1]), sys.argv[2];"
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
        started: Whether it could be started.
    """

    def __init__(self, message: str, code: int | None, *, started: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.started = started


def interpreter(variable: str = PYTHON_VARIABLE) -> list[str]:
    """Return the Python interpreter that runs child processes, and what keeps it from importing from the working directory.

    A frozen program (PyInstaller, cx_Freeze) has none: what it calls its executable is the program itself, which would be started
    once more.

    Args:
        variable: Names another one where it is set, before the variable for all child processes.

    Raises:
        ChildError: No interpreter is found.
    """
    own = "" if getattr(sys, "frozen", False) else sys.executable
    chosen = os.environ.get(variable) or os.environ.get(PYTHON_VARIABLE) or own
    if not chosen:
        raise ChildError(
            "no child process can be started, because this program has no Python interpreter of its own; name one that has this "
            f"package installed in the variable {PYTHON_VARIABLE}",
            None,
            started=False,
        )
    return [chosen, "-P"] if sys.version_info >= (3, 11) else [chosen]


def package_environment() -> dict[str, str]:
    """Return this process's environment, in which the package is found where it was found here."""
    root = os.fspath(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, path] if path else [root])}


def run_child(
    module: str, arguments: Sequence[str | os.PathLike[str]], *, seconds: float, keeps: Sequence[int] = ()
) -> str:
    """Run a module to its end and return what it printed.

    Args:
        module: The full name of the module.
        arguments: The arguments on its command line.
        seconds: The longest time that it may take, in seconds; it is ended then.
        keeps: Descriptors that stay open in it.

    Raises:
        ChildError: It failed, crashed, or was not done in time; the message is its last line.
    """
    return _outcome(*started(_as_module(module), arguments, keeps), seconds)


def run_script(
    module: ModuleType,
    arguments: Sequence[str | os.PathLike[str]],
    *,
    seconds: float,
    keeps: Sequence[int] = (),
) -> str:
    """Run a module that imports nothing but the standard library; it starts ten times as fast as another one.

    Args:
        module: The module to run.
        arguments: The arguments on its command line.
        seconds: The longest time that it may take, in seconds; it is ended then.
        keeps: Descriptors that stay open in it.

    Raises:
        ChildError: It failed, crashed, or was not done in time; the message is its last line.
    """
    return _outcome(*started(as_script(module), arguments, keeps), seconds)


class Script:
    """What :func:`run_script` does, beside this thread.

    Args:
        module: The module to run.
        arguments: The arguments on its command line.
        seconds: The longest time that it may take, in seconds; it is ended then.

    Raises:
        ChildError: It cannot be started.
    """

    def __init__(
        self, module: ModuleType, arguments: Sequence[str | os.PathLike[str]], *, seconds: float
    ) -> None:
        self._process, self._lifeline = started(as_script(module), arguments)
        self._future: Future[str] = Future()
        self._thread = threading.Thread(
            target=self._wait, args=(seconds,), name="aiochroma-child", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:
            lifeline.cut(self._lifeline)
            with self._process:
                self._process.kill()
            raise ChildError(f"it could not be watched: {error}", None) from error

    def is_over(self, seconds: float = 0.0) -> bool:
        """Wait until it has ended, for this time at most; return whether it has."""
        return bool(wait([self._future], seconds).done)

    def result(self) -> str:
        """Return what it printed, once it is over.

        Raises:
            ChildError: It failed, crashed, was ended, or was not done in time.
        """
        return self._future.result()

    def end(self) -> None:
        """End it, and wait until it has ended."""
        self._process.kill()
        self._thread.join()

    def _wait(self, seconds: float) -> None:
        try:
            self._future.set_result(_outcome(self._process, self._lifeline, seconds))
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._future.set_exception(error)


def _as_module(name: str) -> list[str]:
    return ["-c", _START, json.dumps(_paths()), name]


def as_script(module: ModuleType) -> list[str]:
    """Return how an interpreter is told to run a module that imports nothing but the standard library."""
    file = str(module.__file__)
    # The modules of a frozen program are in no file.
    return ["-S", file] if os.path.isfile(file) else _as_module(module.__name__)  # noqa: PTH113 - a text


def started(
    what: list[str], arguments: Sequence[str | os.PathLike[str]], keeps: Sequence[int] = ()
) -> tuple[subprocess.Popen[str], int]:
    """Start a child; return it with its lifeline: a pipe to its input, by whose end it knows that this process is gone."""
    command = [*interpreter(), "-I", *what, *(str(argument) for argument in arguments)]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _KEPT_VARIABLES or name.startswith("LC_")
    }
    ends: tuple[int, ...] = ()
    try:
        ends = lifeline.made()
        process = subprocess.Popen(  # noqa: S603 - our own code
            command,
            stdin=ends[0],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            pass_fds=keeps,
            cwd=os.path.abspath(os.sep),  # noqa: PTH100 - a constant
        )
    except OSError as error:
        for held in ends[1:]:
            lifeline.cut(held)
        raise ChildError(
            f"no child process could be started ({command[0]!r}): {error.strerror}", None, started=False
        ) from error
    finally:
        for given in ends[:1]:
            os.close(given)
    return process, ends[1]


def _outcome(process: subprocess.Popen[str], held: int, seconds: float) -> str:
    """Wait for a child, and return what it printed."""
    expired = threading.Event()

    def end() -> None:
        expired.set()
        process.kill()

    # Not `communicate(timeout=...)`: that asks a clock that a program under test may have stopped.
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    with process:
        try:
            timer.start()
            printed, complaints = process.communicate()
        except RuntimeError as error:
            process.kill()
            raise ChildError(f"it could not be watched: {error}", None) from error
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
            lifeline.cut(held)
    if expired.is_set():
        raise ChildError(f"it was not done within {seconds:.0f} s and was ended", None)
    if process.returncode:
        lines = complaints.strip().splitlines() or [f"it ended with exit code {process.returncode}"]
        raise ChildError(lines[-1], process.returncode)
    return printed


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
    "aiochroma-*.log*",
)
_SQLITE_NAMES = (".sqlite3", ".sqlite3-wal", ".sqlite3-journal")
_SPARE_BYTES = 16 * 2**20
"""What stays free on the disk of a copy: a full disk would stop the database that is being copied, too."""

_LEAST_SECONDS = 300.0

_SLOWEST_BYTES = 2**20
"""A child that copies or reads fewer bytes a second than this hangs."""


def copy_database(directory: Path, target: Path) -> None:
    """Copy the files of a database that no program writes to meanwhile.

    In the kernel, and with shared blocks where the file system can. Into an empty directory, or over an earlier copy, of which
    what has not changed since stays.

    Raises:
        BackupError: Copying failed (a full disk, for example).
    """
    try:
        arguments: list[str | Path] = ["copy", directory, target, *_LEFT_BEHIND]
        run_script(child, arguments, seconds=_seconds(directory), keeps=lock_on(target))
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
        arguments = [target, how]
        printed = run_child(
            "aiochroma.backend.verify_child", arguments, seconds=_seconds(target), keeps=lock_on(target)
        )
        result: JsonObject = json.loads(printed)
    except (ChildError, ValueError) as error:
        raise BackupError(f"{str(target)!r} could not be verified: {error}.") from error
    if result["problems"]:
        raise BackupError(f"{str(target)!r} is not a complete database: {'; '.join(result['problems'])}")
    collections: JsonObject = result["collections"]
    return collections


def survives_rebuilding(directory: Path, collection_id: str) -> bool:
    """Have a child process read a collection once, which makes Chroma rebuild its index; returns whether the child lived.

    Where no child can be started nothing speaks against the collection, and the answer is yes.

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
        return not error.started or (error.code is not None and error.code > 0)
    return True


def check_verification(how: object) -> None:
    """Check an argument that says how a copy is verified.

    Raises:
        BackupError: It is neither ``"full"`` nor ``"quick"``.
    """
    if not is_one_of(how, "full", "quick"):
        raise BackupError(f'`verify` must be "full" or "quick", got {shown(how)}.')


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
