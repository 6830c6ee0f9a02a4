"""Errors on the wire: what a caller gets from another process is what it would have got in its own."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from aiochroma._errors import AiochromaError, ForeignError, error_from_dict, error_to_dict
from aiochroma.host.frames import ProtocolError

__all__ = ["error_from_wire", "error_to_wire"]


def error_to_wire(error: BaseException) -> list[Any]:
    """Return an error, and where it happened, as plain data."""
    expected = isinstance(error, AiochromaError) or type(error).__module__.startswith("chromadb.")
    frames = None if expected else "".join(traceback.format_tb(error.__traceback__))
    return [error_to_dict(error), frames]


def error_from_wire(plain: Any) -> Exception:
    """Return the error again; one that cannot be made here, such as a panic of native code, is a ``RuntimeError`` that names it.

    Raises:
        ProtocolError: This is no error.
    """
    try:
        described, frames = plain
        error = error_from_dict(described)
    except Exception as problem:  # noqa: BLE001 - whatever is wrong with it
        raise ProtocolError(f"An error cannot be decoded: {type(problem).__name__}: {problem}") from None
    if isinstance(error, ForeignError):
        cause = error.__cause__
        error = RuntimeError(f"{error.type_name.rpartition('.')[2]}: {error.args[1]}")
        error.__cause__ = cause
    if frames and sys.version_info >= (3, 11):
        error.add_note(f"In the host process:\n{frames}".rstrip())
    return error
