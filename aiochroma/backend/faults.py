"""What an error of embedded Chroma means, what can be done about it, and what the caller is told.

Chroma reports nearly every fault of its storage as one class, ``InternalError``, with the cause in the text;
SQLite's code is in there where SQLite was the cause. The texts are those of Chroma 1.5.9; what is not
recognised is permanent and of unknown outcome, the cautious reading.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, replace
from enum import Enum
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
from aiochroma.backend.protocol import FailedCall
from aiochroma.disk.layout import free_bytes

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "FAULTS",
    "RESERVED_BYTES",
    "Fault",
    "FaultKind",
    "StorageFault",
    "WriteOutcome",
    "classify",
    "error_of",
    "full_disk_error",
    "is_about_arguments",
    "is_full",
    "is_not_written",
    "opening_error",
    "unknown_outcome",
]


class FaultKind(str, Enum):
    """What helps."""

    TRANSIENT = "transient"  # waiting
    MOVED = "moved"  # closing, and opening what is there now
    CORRUPT = "corrupt"  # closing, preflight, recovery, opening
    PERMANENT = "permanent"  # a person


class WriteOutcome(str, Enum):
    """Whether a write that ended in this error happened."""

    NOT_WRITTEN = "not written"  # refused before its commit
    LOGGED = (
        "logged"  # committed to the log; applied, at the latest when Chroma opens again without the fault
    )
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: Short name, for logs.
        kind: Which way out helps.
        explanation: What happened, for a person.
        advice: What to do, for a person.
        codes: SQLite's codes that mean this; the low byte of an extended code counts where it is not listed
            itself.
        pattern: A regular expression for the text that means this, where no code does.
        reopen_first: Whether Chroma must be closed and opened again before anything else is written. A write
            that ran out of space can leave a transaction open inside Chroma, and the next write then waits
            up to 1000 s for its own process, with the interpreter's lock held.
        outcome: Whether a write happened; filled in by `classify`.
        sqlite_code: The code found in the message, if any; filled in by `classify`.
    """

    name: str
    kind: FaultKind
    explanation: str
    advice: str
    codes: frozenset[int] = frozenset()
    pattern: str = ""
    reopen_first: bool = False
    outcome: WriteOutcome = WriteOutcome.UNKNOWN
    sqlite_code: int | None = None


FAULTS: tuple[Fault, ...] = (
    Fault(
        "locked",
        FaultKind.TRANSIENT,
        "Another process holds SQLite's lock on the database.",
        "Close what has it open: a database browser, a backup tool, a second program.",
        codes=frozenset({5, 6}),
    ),
    Fault(
        "replaced",
        FaultKind.MOVED,
        "The database file was moved, deleted or replaced while it was open.",
        "Reopen the database; do not delete or replace its directory while a program uses it.",
        codes=frozenset({1032}),
    ),
    Fault(
        "cannot_open",
        FaultKind.MOVED,
        "The database file cannot be opened: it or its directory is gone, or is not a file.",
        "Check the path; reopen the database when the directory is back.",
        codes=frozenset({14}),
    ),
    Fault(
        "read_only",
        FaultKind.PERMANENT,
        "The database may not be written: a read-only mount, or missing permission.",
        "Make the directory and the files in it writable for this user. Opening needs to write, too.",
        codes=frozenset({8, 3, 23}),
    ),
    Fault(
        "disk_full",
        FaultKind.PERMANENT,
        "The disk is full.",
        "Free some space, then reopen the database; what was acknowledged is safe.",
        codes=frozenset({13}),
        reopen_first=True,
    ),
    Fault(
        "disk_error",
        FaultKind.PERMANENT,
        "The operating system reported an error while the database file was read or written.",
        "Check the disk and its free space; restore a backup if the database does not open any more.",
        codes=frozenset({10}),
        reopen_first=True,
    ),
    Fault(
        "sqlite_damaged",
        FaultKind.CORRUPT,
        "The SQLite file is damaged, or is not a database.",
        "Restore a backup, or move the database aside and start with an empty one.",
        codes=frozenset({11, 26}),
    ),
    Fault(
        "index_unreadable",
        FaultKind.CORRUPT,
        "The files of a vector index are damaged; a process was probably killed while it wrote them.",
        "Reopen the database: the index is set aside and rebuilt from what is left.",
        pattern=r"Error loading hnsw index|Error (?:de)?serializing pickle file|Error opening pickle file",
    ),
    Fault(
        "index_incomplete",
        FaultKind.CORRUPT,
        "A vector index lacks vectors of records that exist: its files are damaged, or a second process wrote.",
        "Reopen the database: it is checked and rebuilt from what is left. Never use two processes on one directory.",
        pattern=r"Error finding id|Error getting embedding",
    ),
    Fault(
        "index_stale",
        FaultKind.MOVED,
        "A vector index was opened while it was empty and has been written by another process since.",
        "Reopen the database. Never use two processes on one directory.",
        pattern=r"Nothing found on disk",
    ),
    Fault(
        "index_not_updated",
        FaultKind.CORRUPT,
        "A write is in the log but could not be applied to the vector index: the disk is full, or the index is damaged.",
        "Free some space if there is none, then reopen the database: the index is checked and the write applied.",
        pattern=r"Failed to apply logs to the hnsw|Error applying log chunk|Error persisting hnsw",
        reopen_first=True,
    ),
    Fault(
        "not_applied",
        FaultKind.MOVED,
        "A write is in the log but could not be applied to the records: the disk is full, or the file is locked.",
        "Free some space if there is none, then reopen the database: the write is applied.",
        pattern=r"Failed to apply logs to the metadata segment|Error purging logs|^Error in compaction",
        reopen_first=True,
    ),
    Fault(
        "compactor_gone",
        FaultKind.PERMANENT,
        "The thread of Chroma that applies the log has ended: it met an entry that it cannot read.",
        "The database is opened again before the next call. `aiochroma doctor --repair` takes out what Chroma cannot read.",
        pattern=r"Error sending message to compactor|Error receiving message from compactor",
        reopen_first=True,
    ),
    Fault(
        "catalog_unreadable",
        FaultKind.PERMANENT,
        "What SQLite has about a collection is not what Chroma writes.",
        "`aiochroma doctor` looks at all of it, and `--repair` mends what can be mended; a backup has the rest.",
        pattern=r"Could not deserialize (?:schema|collection|configuration)|Internal error in getting count"
        r"|Failed to get segments|error occurred while decoding column|Error reading from metadata segment reader",
    ),
    Fault(
        "other_version",
        FaultKind.PERMANENT,
        "The database was made by another version of Chroma, with tables that this one does not know.",
        "Install the version of chromadb that wrote it.",
        pattern=r"Inconsistent (?:hash|version)",
    ),
    Fault(
        "closed",
        FaultKind.PERMANENT,
        "The database was closed while something still used it.",
        "Open it again, and close it only when nothing uses it any more.",
        pattern=r"has no attribute 'bindings'",
    ),
)


class StorageFault(FailedCall):
    """A call that failed in the storage.

    Attributes:
        found: What the table says of it.
    """

    def __init__(self, cause: BaseException, found: Fault, *, sent: bool, permanent: bool) -> None:
        super().__init__(cause, sent=sent, permanent=permanent)
        self.found = found


_PANIC = Fault(
    "panic",
    FaultKind.PERMANENT,
    "Chroma's native code failed in the middle of a call, and may not be usable as it is.",
    "The database is opened again before the next call. Read the message of the error that caused this one.",
    reopen_first=True,
)

_UNRECOGNISED = Fault(
    "unrecognised",
    FaultKind.PERMANENT,
    "Chroma reported an error that is not known to be a fault of its storage.",
    "Read the message of the error that caused this one.",
)

_MAY_HAVE_COMMITTED = frozenset({10, 13})
"""Input/output error and full disk: they also come from the commit, whose pages may be in the journal all the same and are then
applied when the database is opened next. Met with 1034, a failed fsync, and with full disks."""

_CODE = re.compile(r"\(code: (\d+)\)")

_PANIC_CLASS = "PanicException"

# Only these classes ever carry a fault of the storage; the others are about the caller's arguments.
_STORAGE_CLASSES = frozenset({"InternalError", "AttributeError", _PANIC_CLASS, "ValueError"})


def is_panic(error: BaseException) -> bool:
    """Tell whether an error is a panic of native code, which is no ``Exception``."""
    return type(error).__name__ == _PANIC_CLASS


def classify(error: BaseException) -> Fault:
    """Look an error of Chroma up in the table.

    Args:
        error: What Chroma raised.

    Returns:
        The row, with the outcome and SQLite's code filled in.
    """
    text = str(error)
    found = _CODE.search(text)
    code = int(found[1]) if found else None
    row = _UNRECOGNISED
    if type(error).__name__ in _STORAGE_CLASSES:
        row = _by_code(code) or _by_text(text) or (_PANIC if is_panic(error) else _UNRECOGNISED)
    return replace(row, outcome=_outcome(row, text, code), sqlite_code=code)


def is_about_arguments(error: BaseException) -> bool:
    """Tell whether Chroma refused the caller's arguments, before it wrote anything."""
    from chromadb.errors import ChromaError, InternalError

    refused = isinstance(error, ChromaError) and not isinstance(error, InternalError)
    return refused or isinstance(error, (ValueError, TypeError))


def is_not_written(error: BaseException) -> bool:
    """Tell whether a write that raised an error of Chroma's is certain not to happen, now or when Chroma opens again."""
    if not isinstance(error, Exception):
        return False
    # The other classes are about the caller's arguments, which Chroma looks at before it writes.
    about_storage = type(error).__name__ in _STORAGE_CLASSES
    return not about_storage or classify(error).outcome is WriteOutcome.NOT_WRITTEN


def _by_code(code: int | None) -> Fault | None:
    if code is None:
        return None
    exact = (fault for fault in FAULTS if code in fault.codes)
    primary = (fault for fault in FAULTS if code & 0xFF in fault.codes)
    return next(exact, None) or next(primary, None)


def _by_text(text: str) -> Fault | None:
    return next((fault for fault in FAULTS if fault.pattern and re.search(fault.pattern, text)), None)


def _outcome(row: Fault, text: str, code: int | None) -> WriteOutcome:
    """Tell from where the error came whether the log, which Chroma writes first, had been committed."""
    if text.startswith("Error in compaction"):
        return WriteOutcome.LOGGED
    if code is not None and code & 0xFF in _MAY_HAVE_COMMITTED:
        return WriteOutcome.UNKNOWN
    if code is not None and text.startswith("Query error"):
        return WriteOutcome.NOT_WRITTEN
    if row is not _UNRECOGNISED and (row.name == "closed" or text.startswith("error returned from database")):
        return WriteOutcome.NOT_WRITTEN
    return WriteOutcome.UNKNOWN


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
    """Tell whether less than this many bytes are free; False where the directory is gone."""
    try:
        return free_bytes(directory) < needed
    except OSError:
        return False


def full_disk_error(directory: Path) -> StoreUnavailableError:
    """Return the error of a write that was refused because the disk is nearly full."""
    return StoreUnavailableError(
        f"The disk of {str(directory)!r} is full, or `ulimit -f` leaves no room: {free_bytes(directory) // 1024} KiB are free, "
        f"and writing stops below {RESERVED_BYTES // 2**20} MiB. Nothing more was written. Free some space; reading goes on."
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
    if isinstance(error, AiochromaError) or not (isinstance(error, Exception) or is_panic(error)):
        return error
    if isinstance(error, (OSError, sqlite3.Error)):
        return StoreUnavailableError(
            f"{str(directory)!r} cannot be opened: {_first_line(error)}. `aiochroma doctor` looks at all of its files."
        )
    fault = classify(error)
    if fault.name not in {_PANIC.name, _UNRECOGNISED.name}:
        return error_of(fault, error, directory)
    # No caller is to blame for it: nobody has asked for anything yet.
    if type(error).__name__ == "InternalError" or is_panic(error):
        return StoreUnavailableError(
            f"{str(directory)!r} cannot be opened: Chroma says {_first_line(error)!r}. `aiochroma doctor` looks at all of its "
            "files."
        )
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
