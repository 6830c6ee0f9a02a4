"""What leaves a log that is kept, and what comes back into it, when a database is opened.

An entry leaves it when its vector is also elsewhere: in a backup, or in our own file. Where our file had it and is gone, or is
not believed any more, Chroma's index alone has the vector, and the log gets it back.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk.backup import recorded_sequences
from aiochroma.disk.recovery import complete_retained_log
from aiochroma.disk.retained_log import cut_log
from aiochroma.disk.salvage import trim_retained_log

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from aiochroma.disk.findings import PreflightReport

__all__ = ["tend_log"]

log: EventLogger = get_logger("aiochroma.disk")


def tend_log(
    directory: Path, preflight: PreflightReport, noted: Mapping[str, int], uncovered: Collection[str]
) -> None:
    """Let the log have what it needs and no more.

    Args:
        directory: The canonical directory; owned by this process, open neither in Chroma nor by what follows it.
        preflight: What the files look like; collections with problems are left alone.
        noted: By collection id, the entry up to which our file has everything.
        uncovered: Collections of which something has left the log because our file had it, which is not believed any more.
    """
    _trim(directory, preflight, noted, uncovered)
    _refill(directory, preflight, uncovered)
    cut_log(
        directory, noted, but_for={entry.collection_id for entry in preflight.collections if entry.problems}
    )


def _trim(
    directory: Path, preflight: PreflightReport, noted: Mapping[str, int], uncovered: Collection[str]
) -> None:
    # Entries that our file has not noted yet stay: from them it learns what it has missed.
    sequences = {
        collection: min(up_to, noted.get(collection, up_to))
        for collection, up_to in recorded_sequences(directory).items()
        if collection not in uncovered
    }
    applied = {entry.collection_id: entry.applied_sequence for entry in preflight.collections}
    if not sequences or any(
        applied.get(collection, up_to) < up_to for collection, up_to in sequences.items()
    ):
        # No backup; or the database is older than its backup: its files were replaced.
        return
    trimmed = trim_retained_log(directory, preflight, up_to=sequences)
    if trimmed:
        log.info("log.trimmed", database=str(directory), entries=trimmed)


def _refill(directory: Path, preflight: PreflightReport, uncovered: Collection[str]) -> None:
    some = tuple(entry for entry in preflight.collections if entry.collection_id in uncovered)
    if not some:
        return
    try:
        incomplete = complete_retained_log(directory, replace(preflight, collections=some))
    except (OSError, sqlite3.DatabaseError) as error:
        # As on a full disk. The index is whole, and the next opening tries it again.
        log.warning("log.not_refilled", database=str(directory), error=str(error))
        return
    if incomplete:
        log.warning("log.incomplete", database=str(directory), collections=", ".join(incomplete))
