"""Errors on the wire: what a caller gets from another process is what it would have got in its own."""

from __future__ import annotations

import builtins
import sys
import traceback
from typing import Any

from aiochroma._errors import AiochromaError, ForeignError, error_from_dict, error_to_dict
from aiochroma.host.frames import ProtocolError

__all__ = ["error_from_wire", "error_to_wire"]

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
