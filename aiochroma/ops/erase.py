"""Erasing a database that no program has open: what was forgotten, has expired or was replaced leaves its files as well."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from aiochroma._errors import DatabaseCorruptError, DatabasePathError, StoreUnavailableError
from aiochroma._threads import off_loop
from aiochroma.disk.erasing import ErasureReceipt, scrub
from aiochroma.disk.filesystem import canonical_directory
from aiochroma.disk.foreign import refuse_foreign_users
from aiochroma.disk.id_map import IndexUnreadableError
from aiochroma.disk.layout import SQLITE_FILE
from aiochroma.disk.ownership import acquire
from aiochroma.disk.preflight import preflight
from aiochroma.host.opening import ask_to_leave

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["erase"]


async def erase(
    path: str | os.PathLike[str], *, texts: Sequence[str] = (), keep_history: bool = False
) -> ErasureReceipt:
    """Remove everything that is dead from the files of a database, and prove it for the texts that are named.

    What is dead: records that were deleted, expired and swept, or replaced, whoever did it. A program that has the database open
    uses ``await memory.erase(...)``; a host that has no clients lets go of it. Nothing is copied first, since the copy would
    hold what is to go; nothing that lives is touched.

    Args:
        path: The database directory.
        texts: Texts to look for in every file afterwards, as UTF-8 and as JSON writes them.
        keep_history: Leave the texts in the history of changes. Without it entries stay and lose their texts.

    Returns:
        What was removed, what was looked for and where, and the copies that are not reached.

    Raises:
        DatabasePathError: There is no database, or no permission.
        DatabaseInUseError: Somebody has it open.
        DatabaseCorruptError: It is damaged: repair it first.
        StoreUnavailableError: A file cannot be written, or there is no room for a second copy of it.
    """
    return await off_loop(lambda: _erase(path, texts, keep_history=keep_history))


def _erase(path: str | os.PathLike[str], texts: Sequence[str], *, keep_history: bool) -> ErasureReceipt:
    directory = canonical_directory(path)
    if not (directory / SQLITE_FILE).exists():
        raise DatabasePathError(f"There is no database in {str(directory)!r}.")
    ask_to_leave(str(directory))
    ownership = acquire(directory, create=False)
    try:
        refuse_foreign_users(directory)
        found = preflight(directory)
        if found.problems:
            raise DatabaseCorruptError(
                f"{str(directory)!r} is damaged, so nothing was erased: {found.problems[0]}. First run `aiochroma doctor "
                "--repair`.",
                problems=found.problems,
            )
        return scrub(directory, texts=texts, history={} if keep_history else None)
    except (OSError, sqlite3.Error, IndexUnreadableError) as error:
        raise StoreUnavailableError(
            f"{str(directory)!r} could not be erased to the end: {error}. Nothing that lives was touched; erase again when "
            "that is mended."
        ) from error
    finally:
        ownership.release()
