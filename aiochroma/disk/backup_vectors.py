"""Reads single vectors out of a backup, without opening it with Chroma."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from aiochroma._logging import get_logger
from aiochroma.disk.layout import connect_read_only
from aiochroma.disk.retained_log import iter_log_vectors
from aiochroma.disk.salvage import salvage_vectors
from aiochroma.disk.schema import stored_collections

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

__all__ = ["vectors_in_backup"]

log = get_logger("aiochroma.backup")


def vectors_in_backup(
    backup: Path, collection_id: str, ids: Collection[str]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the vectors that a backup has of some records.

    Args:
        backup: A backup that was verified.
        collection_id: Id of the collection.
        ids: The records.

    Returns:
        By id; records that the backup does not know are not among them. Empty where the backup cannot be read, which is
        logged.
    """
    try:
        with connect_read_only(backup) as connection:
            stored = next(
                (entry for entry in stored_collections(connection) if entry.id == collection_id), None
            )
        if stored is None:
            return {}
        found = dict(iter_log_vectors(backup, collection_id, ids))
        wanted = set(ids) - found.keys()
        if wanted:
            held = salvage_vectors(
                backup / stored.vector_segment,
                stored.dimension,
                cosine=stored.settings.is_cosine,
                neighbors=stored.settings.neighbors,
            )
            found.update({id: vector for id, vector in held.vectors.items() if id in wanted})
    except (OSError, sqlite3.DatabaseError, ValueError) as error:
        log.warning("backup.unreadable", backup=str(backup), error=str(error))
        return {}
    return found
