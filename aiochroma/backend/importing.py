"""Importing chromadb, whose own settings read variables and the file ``.env`` of the working directory meanwhile."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
from pathlib import Path

from aiochroma._errors import InvalidInputError
from aiochroma._logging import EventLogger, get_logger

__all__ = ["import_chromadb"]

log: EventLogger = get_logger("aiochroma.backend")

_FIRST_UNTESTED = (1, 6)

_LARGEST_DOTENV = 2**20
"""Bytes; one of 33 MB takes minutes to read."""


def import_chromadb() -> None:
    """Import chromadb, which makes settings of its own meanwhile.

    Raises:
        InvalidInputError: A variable or ``.env`` has a value that its settings refuse, or ``.env`` cannot be read.
    """
    from pydantic import ValidationError

    if "chromadb" not in sys.modules:
        _refuse_dotenv()
    try:
        import chromadb
    except ValidationError as error:
        fields = ", ".join(str(problem["loc"][0]).upper() for problem in error.errors(include_input=False))
        raise _refused(fields) from None
    except (UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and Path(str(error.filename)).name != ".env":
            raise
        raise InvalidInputError(
            "chromadb cannot be imported, because it reads the file .env of the working directory and cannot make sense of it: "
            f"{error}. Write it in UTF-8 and let this process read it, or start the program in another directory."
        ) from error
    except ValueError as error:
        if (
            type(error).__name__ != "SettingsError"
        ):  # Of pydantic-settings, whose releases have it in several places.
            raise
        # A list that is no JSON. The message names the setting; its cause has the value.
        raise _refused(str(error)) from None
    _warn_of_untested(chromadb.__version__)


def _refused(what: str) -> InvalidInputError:
    return InvalidInputError(
        f"chromadb cannot be imported, because its settings refuse what the environment or the file .env says: {what}. "
        "Correct or remove it."
    )


def _refuse_dotenv() -> None:
    """Refuse a ``.env`` for which the import would wait, maybe for ever, with all other imports of this process behind it."""
    with contextlib.suppress(OSError):
        found = os.stat(".env")  # noqa: PTH116 - all that matters of it
        if stat.S_ISFIFO(found.st_mode) or found.st_size > _LARGEST_DOTENV:
            what = "is a named pipe" if stat.S_ISFIFO(found.st_mode) else f"has {found.st_size} bytes"
            raise InvalidInputError(
                f"chromadb was not imported, because it reads the file .env of the working directory, and that {what}. Start the "
                "program in another directory, or import chromadb before, which waits for it."
            )


@functools.cache
def _warn_of_untested(version: str) -> None:
    """Say once that a release of chromadb is newer than those whose private parts and files were read."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers >= _FIRST_UNTESTED:
        log.warning("chroma.untested", version=version, tested=f"below {'.'.join(map(str, _FIRST_UNTESTED))}")
