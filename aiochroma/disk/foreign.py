"""Finds other processes that have the database open without having asked for it.

Plain chromadb clients, for example, or database browsers. They do not know of our ownership lock, and a
second Chroma on one directory destroys vectors without an error.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._errors import DatabaseInUseError
from aiochroma.disk.layout import SQLITE_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["foreign_users", "refuse_foreign_users"]

_SECOND_LOOK_SECONDS = 0.1


def foreign_users(directory: Path) -> tuple[int, ...]:
    """Return the ids of other processes that have the database's SQLite file open.

    Linux only, and only processes that this user may look into; elsewhere always empty. Costs a few
    milliseconds with hundreds of processes.

    Args:
        directory: The canonical database directory.
    """
    if not sys.platform.startswith("linux"):
        return ()
    try:
        status = (directory / SQLITE_FILE).stat()
    except FileNotFoundError:
        return ()
    file = (status.st_dev, status.st_ino)
    return tuple(sorted({pid for pid, identity in _open_files() if identity == file and pid != os.getpid()}))


def refuse_foreign_users(directory: Path) -> None:
    """Raise if another process has the database open; call it after `acquire` and before Chroma opens.

    A process that is just ending is given a moment.

    Raises:
        DatabaseInUseError: Naming the process.
    """
    if not foreign_users(directory):
        return
    time.sleep(_SECOND_LOOK_SECONDS)
    users = foreign_users(directory)
    if users:
        names = ", ".join(f"{pid} ({_command(pid)})" for pid in users)
        raise DatabaseInUseError(
            f"{directory / SQLITE_FILE} is open in process {names}, which did not ask for the directory: a"
            " plain chromadb"
            " client or a database browser. Close it there; two processes on one database destroy each"
            " other's data.",
            pid=users[0],
        )


def _open_files() -> Iterator[tuple[int, tuple[int, int]]]:
    for process in os.scandir("/proc"):
        if not process.name.isdecimal():
            continue
        try:
            descriptors = os.listdir(f"/proc/{process.name}/fd")  # noqa: PTH208 - names are all that is needed
        except OSError:
            continue  # It ended while being looked at, or belongs to somebody else.
        for descriptor in descriptors:
            try:
                status = os.stat(f"/proc/{process.name}/fd/{descriptor}")  # noqa: PTH116 - thousands of them
            except OSError:
                continue  # Closed since; the others are still open.
            yield int(process.name), (status.st_dev, status.st_ino)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "ended"
