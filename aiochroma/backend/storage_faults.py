"""From Chroma's errors to what a caller is told; what they mean is decided in :mod:`aiochroma.backend.faults`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiochroma._errors import (
    AiochromaError,
    ClosedError,
    DatabaseCorruptError,
    DatabaseFormatError,
    DatabaseLockedError,
    DatabaseMovedError,
    DatabasePathError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from aiochroma.backend.faults import FaultKind, WriteOutcome, classify
from aiochroma.disk.filesystem import free_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from aiochroma.backend.faults import Fault

__all__ = ["RESERVED_BYTES", "error_of", "full_disk_error", "is_full", "opening_error", "unknown_outcome"]

RESERVED_BYTES = 8 * 2**20
"""Writing stops while less is free on the disk: room for one slice of records, for the rewriting of an index, and for the
journal. Chroma itself does not come back from a disk that fills up in the middle of a write."""

_NEEDED_TO_OPEN_BYTES = 2**20

_BY_NAME: dict[str, type[AiochromaError]] = {
    "locked": DatabaseLockedError,
    "read_only": DatabasePathError,
    "other_version": DatabaseFormatError,
    "closed": ClosedError,
}
_BY_KIND: dict[FaultKind, type[AiochromaError]] = {
    FaultKind.MOVED: DatabaseMovedError,
    FaultKind.CORRUPT: DatabaseCorruptError,
}


def error_of(fault: Fault, cause: BaseException, directory: Path) -> AiochromaError:
    """Return the error that says what happened to a database and what to do, for a fault of which nothing was written."""
    kind = _BY_NAME.get(fault.name) or _BY_KIND.get(fault.kind, StoreUnavailableError)
    if fault.reopen_first:
        kind = StoreUnavailableError
    return kind(f"{str(directory)!r}: {fault.explanation} {fault.advice} (Chroma says: {_first_line(cause)})")


def unknown_outcome(cause: BaseException, directory: Path, outcome: WriteOutcome) -> OutcomeUnknownError:
    """Return the error of a write that may have happened, or may happen yet."""
    if outcome is WriteOutcome.LOGGED:
        what = "Chroma has the write in its log and applies it as soon as the database opens without fault"
    else:
        what = "The write may have happened"
    return OutcomeUnknownError(
        f"{str(directory)!r}: {what}; read before you write again. ({type(cause).__name__}: {_first_line(cause)})"
    )


def is_full(directory: Path, needed: int = _NEEDED_TO_OPEN_BYTES) -> bool:
    """Tell whether less than so many bytes are free; False where the directory is gone."""
    try:
        return free_bytes(directory) < needed
    except OSError:
        return False


def full_disk_error(directory: Path) -> StoreUnavailableError:
    """Return the error of a write that was refused because the disk is nearly full."""
    return StoreUnavailableError(
        f"The disk of {str(directory)!r} is full: {free_bytes(directory) // 1024} KiB are free, and writing stops below "
        f"{RESERVED_BYTES // 2**20} MiB. Nothing was written. Free some space and try again; reading goes on."
    )


def opening_error(error: BaseException, directory: Path) -> BaseException:
    """Return what to raise in place of an error that came up while a database was being opened."""
    if isinstance(error, AiochromaError) and not isinstance(error, DatabaseCorruptError):
        return error
    text = str(error)
    if is_full(directory):
        return StoreUnavailableError(
            f"{str(directory)!r} cannot be opened: its disk is full, and opening needs to write a little. Nothing was lost; free "
            f"some space and try again. ({_first_line(error)})"
        )
    if "database is locked" in text:
        return DatabaseLockedError(
            f"{str(directory)!r} cannot be opened: another process holds SQLite's lock. End it (a database browser, a backup "
            f"script?) and try again. ({_first_line(error)})"
        )
    if "readonly database" in text or "read-only" in text.lower():
        return DatabasePathError(
            f"{str(directory)!r} may not be written: a read-only mount, or missing permission. Opening needs to write, too. "
            f"({_first_line(error)})"
        )
    if isinstance(error, AiochromaError) or not isinstance(error, Exception):
        return error
    fault = classify(error)
    return error if fault.name == "unrecognised" else error_of(fault, error, directory)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
