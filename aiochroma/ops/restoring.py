"""Putting a backup in the place of a database that a host may still have open."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aiochroma._threads import refuse_on_loop
from aiochroma.disk.restore import restore as put_in_place
from aiochroma.host.opening import ask_to_leave

if TYPE_CHECKING:
    from pathlib import Path

    from aiochroma.disk.copying import Verification

__all__ = ["restore"]


def restore(
    backup: str | os.PathLike[str], path: str | os.PathLike[str], *, verify: Verification = "full"
) -> Path | None:
    """Put a backup in the place of a database. A host that has no clients lets go of it.

    Args:
        backup: A directory made by a backup; it stays as it is.
        path: The database directory; need not exist.
        verify: How the copy is verified before it takes the place: ``"full"`` or ``"quick"``.

    Returns:
        Where the database that was there before is now, or None where there was none.

    Raises:
        BackupError: The source is not a backup, or does not verify; nothing was touched.
        DatabaseInUseError: Somebody has the target open; nothing was touched.
        DatabasePathError: The target is a file, or there is no permission.
        BlockingCallError: An event loop runs on this thread.
    """
    refuse_on_loop()
    ask_to_leave(os.path.realpath(path))
    return put_in_place(backup, path, verify=verify)
