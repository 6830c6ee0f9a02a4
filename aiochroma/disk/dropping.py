"""Deletes the records of a collection that is to be deleted, in a child process, a slice at a time.

Chroma deletes a record from its index as well, which it loads for that in one piece, and writes again every so often: 0.3 and
0.1 s for 100,000 records. Of a collection that is to be deleted as a whole the index goes with its files. So only the rows in
SQLite need work, and they may go at any time: an index with more vectors than there are records is what every deletion leaves.

The thread that calls Chroma waits for each slice, some 9 ms, without holding the interpreter, and before it writes for what a
slice takes longer. So the child never has SQLite's lock when Chroma wants it.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING

from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import CollectionId
from aiochroma.disk import child, lifeline
from aiochroma.disk.copying import ChildError, as_script, started
from aiochroma.disk.layout import SQLITE_FILE

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

__all__ = ["Droppings"]

log: EventLogger = get_logger("aiochroma.disk")

_SLICE_SECONDS = 30.0
_PATIENCE_SECONDS = 0.02
"""How long a slice is waited for, before those who read get their turn, in seconds."""


class Droppings:
    """Deletes the records of collections.

    Args:
        directory: The database directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._under_way: dict[str, _Dropping] = {}

    def drop(self, collection_id: CollectionId, tenant: str, database: str) -> int | None:  # noqa: ARG002 - one file has all
        """Delete some records of a collection that is to be deleted.

        Returns:
            How many; 0 where it has to be asked again, -1 where none is left, None where Chroma has to delete them.
        """
        collection = str(collection_id)
        try:
            if collection not in self._under_way:
                self._under_way[collection] = _Dropping(self._directory, collection)
            dropped = self._under_way[collection].slice()
        except (ChildError, OSError, ValueError) as error:
            log.info("records.not_dropped", database=str(self._directory), error=str(error))
            dropped = None
        if (dropped is None or dropped < 0) and collection in self._under_way:
            self._under_way.pop(collection).close()
        return dropped

    def wait(self) -> None:
        """Wait until no slice is under way: somebody is about to write."""
        for dropping in self._under_way.values():
            with contextlib.suppress(ChildError):
                dropping.wait()

    def close(self) -> None:
        """End what is under way."""
        while self._under_way:
            self._under_way.popitem()[1].close()


class _Dropping:
    """Deletes the records of one collection.

    Args:
        directory: The database directory.
        collection: Id of the collection.

    Raises:
        ChildError: No child can be started.
    """

    def __init__(self, directory: Path, collection: str) -> None:
        self._process: subprocess.Popen[str]
        self._process, self._commands = started(
            as_script(child), ["drop", directory / SQLITE_FILE, collection]
        )
        self._is_deleting = False
        self._read = b""

    def slice(self) -> int:
        """Delete some records.

        Returns:
            How many; 0 where the child was busy, -1 where none is left.

        Raises:
            ChildError: It failed.
        """
        if not self._is_deleting:
            if not self._has_answered(_PATIENCE_SECONDS):
                return 0
            self._answer()
            os.write(self._commands, b".")
            self._is_deleting = True
        if not self._has_answered(_PATIENCE_SECONDS):
            return 0
        self._is_deleting = False
        return int(self._answer()) or -1

    def wait(self) -> None:
        """Wait until the slice under way, if any, is done.

        Raises:
            ChildError: It failed, or was not done in time.
        """
        if self._is_deleting and not self._has_answered(_SLICE_SECONDS):
            raise ChildError(f"it was not done within {_SLICE_SECONDS:.0f} s", None)

    def close(self) -> None:
        """End the child, and wait until it has ended."""
        with self._process:
            self._process.kill()
        lifeline.cut(self._commands)

    def _has_answered(self, seconds: float) -> bool:
        """Wait for a line; what has been read ahead is kept here, where the pipe would not show it any more."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._read:
            if not select.select([descriptor], [], [], seconds)[0]:
                return False
            more = os.read(descriptor, 1024)
            if not more:
                assert self._process.stderr is not None
                complaints = self._process.stderr.read().strip().splitlines() or ["it ended"]
                raise ChildError(complaints[-1], self._process.poll())
            self._read += more
        return True

    def _answer(self) -> bytes:
        line, _, self._read = self._read.partition(b"\n")
        return line
