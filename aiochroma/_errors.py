"""Every error that aiochroma raises on its own account.

Chroma's own errors about Chroma's own matters (``chromadb.errors.NotFoundError`` and so on, and the ``ValueError`` of its
validation) pass through unchanged, so that code written against chromadb keeps working. What concerns the database as a
whole, its thread, its queue or its files is one of these:

::

    AiochromaError
    ├── BlockingCallError (RuntimeError)       a call that would stop its thread's event loop, or greenlets, for ever
    ├── ClosedError (RuntimeError)             the client or its database is closed, or not open yet
    ├── EventLoopRequiredError (RuntimeError)  an asynchronous call where no asyncio event loop runs
    ├── ForkedProcessError (RuntimeError)      used in a child made by fork()
    ├── QueueFullError                         the queue is full and the caller asked not to wait
    ├── DeadlineExceededError (TimeoutError)   `.started` tells whether the call had begun
    ├── OutcomeUnknownError                    a write may or may not have happened
    ├── PartialWriteError                      a long write stopped midway; `.applied` and `.remaining` name the ids
    ├── InvalidInputError (ValueError)         an argument of ours is wrong; nothing was written
    ├── MissingExtraError (ImportError)        an optional package is not installed
    ├── StoreUnavailableError                  the database cannot be used as it is now
    │   ├── NamespaceMovingError               a copy of the namespace is about to take over; nothing was written
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
    ├── ExtractFailedError                     a conversation's `extract` failed; nothing was remembered
    ├── RerankFailedError                      a recall's `rerank` failed; the hits are in the order of their scores
    ├── BackupError                            a backup or a restore was refused or did not verify
    └── MigrationError                         the destination of a migration already holds something else

All of them survive :mod:`copy`, :mod:`pickle` and the way through :func:`error_to_dict` and :func:`error_from_dict`, with
their message, their fields, their notes and their cause.
"""

from __future__ import annotations

import builtins
import copy
import pickle
import reprlib
import sys
from typing import TYPE_CHECKING, Any

from aiochroma._types import JsonObject

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


__all__ = [
    "AccessDeniedError",
    "AiochromaError",
    "BackupError",
    "BlockingCallError",
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
    "EventLoopRequiredError",
    "ExtractFailedError",
    "ForeignError",
    "ForkedProcessError",
    "InvalidInputError",
    "MigrationError",
    "MissingExtraError",
    "NamespaceMovingError",
    "OutcomeUnknownError",
    "PartialWriteError",
    "QueueFullError",
    "RerankFailedError",
    "SettingsConflictError",
    "StoreUnavailableError",
    "error_from_dict",
    "error_to_dict",
    "is_one_of",
    "own_copy",
    "printable",
    "shown",
]


_MOST_CAUSES = 10
"""How many causes of causes travel with an error; some have themselves for a cause in the end."""


class _Shown(reprlib.Repr):
    """How a message writes a value that a caller gave: briefly, and without failing, whatever the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002 - as reprlib calls it
        # Python refuses to write one of more than 4,300 digits, and each one before takes time by the square.
        return repr(x) if x.bit_length() <= 256 else f"<an integer of {x.bit_length()} bits>"


shown: Callable[[object], str] = _Shown().repr
"""Write a value for a message: what is long is cut, and what has no `repr` of its own that works is named by its type."""


def printable(text: str) -> str:
    """Write control characters, ends of lines and marks that turn the direction of writing out: a terminal would obey them."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def is_one_of(value: object, *names: str) -> bool:
    """Return whether an argument is one of some names; it may be of any type, also one that cannot be compared or hashed."""
    return isinstance(value, str) and value in names


class AiochromaError(Exception):
    """Base of every error that aiochroma raises on its own account."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The constructors ask for fields by keyword, which the default, `cls(*self.args)`, does not give. The default loses
        # the cause, too.
        cause = self.__cause__
        try:
            pickle.dumps(cause)
        except Exception:  # noqa: BLE001 - whatever keeps another library's error from travelling
            cause = _foreign(cause)
        return _rebuilt, (type(self), self.args, _fields_of(self), cause, self.__suppress_context__)

    def __copy__(self) -> AiochromaError:
        return _rebuilt(type(self), self.args, _fields_of(self), self.__cause__, self.__suppress_context__)

    def __deepcopy__(self, memo: dict[int, Any]) -> AiochromaError:
        # The fields are plain and are never changed, and a cause can often not be copied.
        return self.__copy__()


class BlockingCallError(AiochromaError, RuntimeError):
    """A call that would stop the event loop of its thread, or gevent's greenlets for ever; nothing was done."""


class ClosedError(AiochromaError, RuntimeError):
    """The client, or the database behind it, is closed or was never opened."""


class EventLoopRequiredError(AiochromaError, RuntimeError):
    """An asynchronous call where no asyncio event loop runs: under trio, or with something asynchronous in a blocking call."""


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
        self.applied: tuple[str, ...] = tuple(applied)
        self.remaining: tuple[str, ...] = tuple(remaining)


class InvalidInputError(AiochromaError, ValueError):
    """An argument is wrong; the message names it and the offending element, and nothing was written."""


class MissingExtraError(AiochromaError, ImportError):
    """An optional package is not installed; the message names it and the extra that brings it."""


class StoreUnavailableError(AiochromaError):
    """The database cannot be used as it is now."""


class NamespaceMovingError(StoreUnavailableError):
    """A copy of the namespace is about to take over, and the write was not carried out; a memory waits, and does it again."""


class DatabasePathError(StoreUnavailableError):
    """The path is not a directory, or there is no permission to write in it."""


class DatabaseInUseError(StoreUnavailableError):
    """Another process owns the directory; two writers would destroy each other's vectors.

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
        self.problems: tuple[str, ...] = tuple(problems)


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


class ExtractFailedError(AiochromaError):
    """What was to make memories of messages raised, took too long, or returned something else; nothing was remembered."""


class RerankFailedError(AiochromaError):
    """What was to order the hits of a recall again raised, took too long, or returned no number for each text."""


class BackupError(AiochromaError):
    """A backup or a restore was refused or did not verify; nothing was changed."""


class MigrationError(AiochromaError):
    """The destination of a migration holds something else already, or the source is itself incomplete; nothing was copied.

    Attributes:
        problems: One sentence for each collection that is in the way.
    """

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems: tuple[str, ...] = tuple(problems)


class ForeignError(Exception):
    """Stands for the error of another library that could not travel to this process; appears only as a cause.

    Attributes:
        type_name: Module and name of the error's class.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name

    def __str__(self) -> str:
        return f"{self.type_name}: {self.args[1]}"


def own_copy(error: BaseException) -> BaseException:
    """Return a copy of an error for one of several callers: raising one adds to its traceback, which keeps its frames alive.

    An error of another library that cannot be copied is returned itself.
    """
    try:
        copied = copy.copy(error)
    except Exception:  # noqa: BLE001 - whatever its constructor makes of its arguments
        return error
    if type(copied) is not type(error) or str(copied) != str(error):
        return error
    copied.__cause__, copied.__suppress_context__ = error.__cause__, error.__suppress_context__
    return copied


def error_to_dict(error: BaseException, _causes: int = _MOST_CAUSES) -> JsonObject:
    """Return an error as plain data: texts, numbers, booleans, None, and lists and dictionaries of these.

    Args:
        error: Any error. One of this module keeps its class, message, fields, notes and cause; another one keeps its class
            name, its message and its cause.
    """
    cause = error.__cause__ if _causes else None
    data: JsonObject = {
        "type": _name_of(error),
        "message": str(error),
        "cause": None if cause is None else error_to_dict(cause, _causes - 1),
    }
    if isinstance(error, AiochromaError):
        fields = _fields_of(error).items()
        data["fields"] = {name: list(value) if isinstance(value, tuple) else value for name, value in fields}
    return data


def error_from_dict(data: Mapping[str, Any]) -> Exception:
    """Return the error that :func:`error_to_dict` described.

    Args:
        data: What that function returned, possibly after a way through JSON or msgpack.

    Returns:
        An error of this module; one of Python's or Chroma's own where it is made of a message alone; else a
        :class:`ForeignError`. The data never decide which module is imported.
    """
    name, message = str(data["type"]), str(data["message"])
    cause = None if data.get("cause") is None else error_from_dict(data["cause"])
    module, _, class_name = name.rpartition(".")
    own = globals().get(class_name) if module == __name__ else None
    if isinstance(own, type) and issubclass(own, AiochromaError):
        fields = {
            key: tuple(value) if isinstance(value, list) and key != "__notes__" else value
            for key, value in data.get("fields", {}).items()
        }
        return _rebuilt(own, (message,), fields, cause, cause is not None)
    error = _by_message(module, class_name, message) or ForeignError(name, message)
    error.__cause__ = cause
    return error


def _by_message(module: str, class_name: str, message: str) -> Exception | None:
    """Make an error of Python or Chroma, where its class takes a message and shows it unchanged."""
    source: Any = builtins if module == "builtins" else None
    if module == "chromadb.errors":
        source = sys.modules.get(module)
    kind = getattr(source, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    try:
        error = kind(message)
    except TypeError:
        return None
    return error if str(error) == message else None


def _fields_of(error: AiochromaError) -> JsonObject:
    """Return what an error knows besides its message; notes, which are an attribute, too."""
    fields = dict(vars(error))
    if isinstance(error, ImportError):
        # These are no entries of its dictionary.
        fields.update(name=error.name, path=error.path)
    return fields


def _rebuilt(
    kind: type[AiochromaError],
    args: tuple[Any, ...],
    fields: JsonObject,
    cause: BaseException | None,
    suppress_context: bool,
) -> AiochromaError:
    """Make an error without its constructor, whose signature a class derived from it may have changed."""
    error = kind.__new__(kind)
    error.args = args
    if isinstance(error, ImportError):
        error.msg = str(args[0]) if args else ""
    for name, value in fields.items():
        setattr(error, name, list(value) if name == "__notes__" else value)
    error.__cause__ = cause
    error.__suppress_context__ = suppress_context
    return error


def _foreign(error: BaseException | None) -> ForeignError | None:
    return None if error is None else ForeignError(_name_of(error), str(error))


def _name_of(error: BaseException) -> str:
    if isinstance(error, ForeignError):
        return error.type_name
    return f"{type(error).__module__}.{type(error).__qualname__}"
