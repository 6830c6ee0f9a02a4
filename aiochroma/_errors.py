"""Every error that aiochroma raises on its own account.

Chroma's own errors about Chroma's own matters (``chromadb.errors.NotFoundError`` and so on, and the ``ValueError`` of its
validation) pass through unchanged, so that code written against chromadb keeps working. What concerns the database as a
whole, its thread, its queue or its files is one of these:

::

    AiochromaError
    ├── ClosedError (RuntimeError)             the client or its database is closed, or not open yet
    ├── ForkedProcessError (RuntimeError)      used in a child made by fork()
    ├── QueueFullError                         the queue is full and the caller asked not to wait
    ├── DeadlineExceededError (TimeoutError)   `.started` tells whether the call had begun
    ├── OutcomeUnknownError                    a write may or may not have happened
    ├── PartialWriteError                      a long write stopped midway; `.applied` and `.remaining` name the ids
    ├── InvalidInputError (ValueError)         an argument of ours is wrong; nothing was written
    ├── MissingExtraError (ImportError)        an optional package is not installed
    ├── StoreUnavailableError                  the database cannot be used as it is now
    │   ├── DatabasePathError                  not a directory, or no permission
    │   ├── DatabaseInUseError                 another process (or a plain chromadb client) owns it
    │   ├── DatabaseLockedError                a foreign process holds SQLite's lock
    │   ├── DatabaseMovedError                 the files were moved, deleted or replaced under us
    │   ├── DatabaseCorruptError               damaged beyond what may be repaired without being asked
    │   ├── DatabaseFormatError                written by a newer version
    │   ├── AccessDeniedError                  the server, or the proxy before it, did not accept the credentials
    │   └── SettingsConflictError (ValueError) already open in this process with different settings
    ├── EmbedderError
    │   ├── EmbedderMismatchError              the data was embedded by another embedder
    │   └── EmbeddingFailedError               the embedder raised, or returned something that is not a vector
    ├── BackupError                            a backup or a restore was refused or did not verify
    └── MigrationError                         the destination of a migration already holds something else
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AccessDeniedError",
    "AiochromaError",
    "BackupError",
    "ClosedError",
    "DatabaseCorruptError",
    "DatabaseFormatError",
    "DatabaseInUseError",
    "DatabaseLockedError",
    "DatabaseMovedError",
    "DatabasePathError",
    "DeadlineExceededError",
    "EmbedderError",
    "EmbedderMismatchError",
    "EmbeddingFailedError",
    "ForkedProcessError",
    "InvalidInputError",
    "MigrationError",
    "MissingExtraError",
    "OutcomeUnknownError",
    "PartialWriteError",
    "QueueFullError",
    "SettingsConflictError",
    "StoreUnavailableError",
]


class AiochromaError(Exception):
    """Base of every error that aiochroma raises on its own account."""


class ClosedError(AiochromaError, RuntimeError):
    """The client, or the database behind it, is closed or was never opened."""


class ForkedProcessError(AiochromaError, RuntimeError):
    """The database was opened before ``fork()``; Chroma's native threads do not exist in the child."""


class QueueFullError(AiochromaError):
    """The queue of the database is full and the caller asked not to wait.

    Attributes:
        limit: How many requests may wait at once.
    """

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class DeadlineExceededError(AiochromaError, TimeoutError):
    """The deadline passed before an outcome was there.

    Attributes:
        started: False when the request was still queued: it never ran and never will. True when the call had begun: it
            runs to its end on the DB thread and its outcome is dropped, so a write may well have happened.
    """

    def __init__(self, message: str, *, started: bool) -> None:
        super().__init__(message)
        self.started = started


class OutcomeUnknownError(AiochromaError):
    """A write failed in a way that leaves open whether it happened; read before you write again."""


class PartialWriteError(AiochromaError):
    """A long write was cut into slices and one of them failed; the cause is Chroma's own error.

    Attributes:
        applied: The ids that are in the database, in the order given.
        remaining: The ids that are not, in the order given.
    """

    def __init__(self, message: str, *, applied: Sequence[str], remaining: Sequence[str]) -> None:
        super().__init__(message)
        self.applied = tuple(applied)
        self.remaining = tuple(remaining)


class InvalidInputError(AiochromaError, ValueError):
    """An argument is wrong; the message names it and the offending element, and nothing was written."""


class MissingExtraError(AiochromaError, ImportError):
    """An optional package is not installed; the message names it and the extra that brings it."""


class StoreUnavailableError(AiochromaError):
    """The database cannot be used as it is now."""


class DatabasePathError(StoreUnavailableError):
    """The path is not a directory, or there is no permission to write in it."""


class DatabaseInUseError(StoreUnavailableError):
    """Somebody else owns the directory; two writers would destroy each other's vectors.

    Attributes:
        pid: Process id of the owner, if known.
        host: Host name of the owner, if known.
        since: When the owner opened it (ISO 8601, UTC), if known.
    """

    def __init__(
        self, message: str, *, pid: int | None = None, host: str | None = None, since: str | None = None
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.host = host
        self.since = since


class DatabaseLockedError(StoreUnavailableError):
    """A foreign process holds SQLite's lock, and did not release it within the deadline."""


class DatabaseMovedError(StoreUnavailableError):
    """The database's files were moved, deleted or replaced while it was open."""


class DatabaseCorruptError(StoreUnavailableError):
    """The database is damaged beyond what may be repaired without being asked.

    Attributes:
        problems: One sentence for each thing that was found.
    """

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class DatabaseFormatError(StoreUnavailableError):
    """The database was written by a newer version than this one can read."""


class AccessDeniedError(StoreUnavailableError):
    """The server, or the proxy before it, did not accept the credentials, or wants some."""


class SettingsConflictError(StoreUnavailableError, ValueError):
    """The same directory is already open in this process with different settings."""


class EmbedderError(AiochromaError):
    """Something about turning text into vectors went wrong."""


class EmbedderMismatchError(EmbedderError):
    """The data was embedded by another embedder; the message names both."""


class EmbeddingFailedError(EmbedderError):
    """The embedder raised, or returned something that is not a finite, non-zero vector for every text."""


class BackupError(AiochromaError):
    """A backup or a restore was refused or did not verify; nothing was changed."""


class MigrationError(AiochromaError):
    """The destination of a migration holds something else already, or the source is itself incomplete; nothing was copied.

    Attributes:
        problems: One sentence for each collection that is in the way.
    """

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)
