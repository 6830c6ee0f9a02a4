"""What the messages between a client and its host hold: written by one side, read by the other, in one place."""

from __future__ import annotations

import builtins
import sys
import time
import traceback
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from aiochroma._distribution import version
from aiochroma._errors import AiochromaError, ForeignError, error_from_dict, error_to_dict
from aiochroma._types import JsonObject, MetadataView
from aiochroma.core.config import EngineOptions
from aiochroma.core.operations import OPERATIONS
from aiochroma.core.request import Request
from aiochroma.host.frames import FRAME_LIMIT, PROTOCOL, FrameKind, ProtocolError, frame
from aiochroma.host.types import received, settings_from_json, settings_to_json, travelling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiochroma.core.queue import Ticket
    from aiochroma.host.codec import Codec

__all__ = [
    "LARGE",
    "Received",
    "error_from_wire",
    "error_to_wire",
    "event_values",
    "message_frames",
    "options_from_json",
    "options_to_json",
    "records_of",
    "request_from_wire",
    "request_to_wire",
    "versions",
]

LARGE = 64
"""Messages of more records than this are encoded and sent in pieces."""

_SHARED_OPTIONS = ("max_write_slice_ms", "lock_timeout", "durable", "allow_missing_vectors")
"""What of a client's options concerns the host; the others are matters of the client alone."""


class Received(NamedTuple):
    """A request as the host receives it."""

    request: Request
    deadline: float | None


def versions() -> JsonObject:
    """Return what must be equal on both sides, as it is here."""
    return {"protocol": PROTOCOL, "aiochroma": version(), "chromadb": metadata.version("chromadb")}


def options_to_json(options: EngineOptions) -> JsonObject:
    """Return what a client asks of the host."""
    values = {name: getattr(options, name) for name in _SHARED_OPTIONS}
    settings = options.settings
    return {**values, "settings": None if settings is None else settings_to_json(settings)}


def options_from_json(values: MetadataView) -> EngineOptions:
    """Return what a client asks of the host.

    Raises:
        ProtocolError: They are no options.
    """
    try:
        settings = values.get("settings")
        return EngineOptions(
            settings=None if settings is None else settings_from_json(settings),
            **{name: values.get(name) for name in _SHARED_OPTIONS},
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"The options cannot be read: {type(error).__name__}") from None


def request_to_wire(ticket: Ticket) -> list[Any]:
    """Return a request as it travels. No clock is shared: a deadline travels as the seconds that are left."""
    request = ticket.request
    arguments, rows = travelling(request.arguments)
    left = None if ticket.deadline is None else max(0.0, ticket.deadline - time.monotonic())
    return [request.operation, arguments, rows, request.bulk, request.atomic, left]


def request_from_wire(plain: Any) -> Received:
    """Return a request.

    Raises:
        ProtocolError: It is none.
    """
    try:
        operation, arguments, rows, bulk, atomic, left = plain
        if operation not in OPERATIONS:
            raise ProtocolError(f"The unknown operation {operation!r} came.")
        request = Request(operation, received(arguments, rows), bool(bulk), bool(atomic))
        return Received(request, None if left is None else time.monotonic() + float(left))
    except (TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"A request cannot be read: {type(error).__name__}: {error}") from None


def records_of(value: object) -> int:
    """Return about how many records there are in arguments or in a result."""
    if type(value) is dict:
        return max(
            (len(value[name]) for name in ("ids", "query_embeddings") if type(value.get(name)) is list),
            default=0,
        )
    return len(value) if type(value) is list else 0


def message_frames(
    codec: Codec, kind: FrameKind, number: int, value: object, *, large: bool
) -> Iterator[bytes]:
    """Yield the frames of a message; a large one is encoded a piece at a time.

    Raises:
        TypeError: There is something in it that does not travel. Frames may have been yielded before: ``CANCEL`` makes the
            other side drop them.
    """
    if not large:
        body = codec.encode(value)
        if len(body) <= FRAME_LIMIT // 4:
            yield frame(kind, number, body)
            return
    piece = b""
    for following in codec.pieces(value):
        if piece:
            yield frame(FrameKind.PART, number, piece)
        piece = following
    yield frame(kind, number, piece)


def event_values(values: MetadataView) -> JsonObject:
    """Return an event's values as they travel: texts, numbers, and the texts of everything else."""
    return {
        name: value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
        for name, value in values.items()
    }


_PLAIN = (str, bytes, int, float, bool, type(None))


def error_to_wire(error: BaseException) -> list[Any]:
    """Return an error as plain data: what it is, the arguments of one of Python's own, and where it happened."""
    kind = type(error)
    arguments = None
    if kind.__module__ == "builtins" and all(type(value) in _PLAIN for value in error.args):
        arguments = list(error.args)
    expected = isinstance(error, AiochromaError) or kind.__module__.startswith("chromadb.")
    frames = None if expected else "".join(traceback.format_tb(error.__traceback__))
    return [error_to_dict(error), arguments, frames]


def error_from_wire(plain: Any) -> Exception:
    """Return the error again; one that cannot be made here, such as a panic of native code, is a ``RuntimeError`` that names it.

    Raises:
        ProtocolError: This is no error.
    """
    try:
        described, arguments, frames = plain
        error = error_from_dict(described)
        if arguments is not None:
            error = _of_python(str(described["type"]), arguments, error)
    except Exception as problem:  # noqa: BLE001 - whatever is wrong with it
        raise ProtocolError(f"An error cannot be decoded: {type(problem).__name__}: {problem}") from None
    if isinstance(error, ForeignError):
        cause = error.__cause__
        error = RuntimeError(f"{error.type_name.rpartition('.')[2]}: {error.args[1]}")
        error.__cause__ = cause
    if frames and sys.version_info >= (3, 11):
        error.add_note(f"In the host process:\n{frames}".rstrip())
    return error


def _of_python(name: str, arguments: list[Any], otherwise: Exception) -> Exception:
    """Make one of Python's own errors from its arguments."""
    kind = getattr(builtins, name.removeprefix("builtins."), None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return otherwise
    error = kind(*arguments)
    error.__cause__ = otherwise.__cause__
    return error
