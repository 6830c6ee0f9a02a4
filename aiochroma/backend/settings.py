"""Chroma's settings, made of what the program was given and of nothing else.

Chroma's own ``Settings()`` read every environment variable of a field's name, and ``.env`` in the working directory: a foreign
file there could replace the authorities that are trusted, or send a local database's texts to a server.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from aiochroma._errors import InvalidInputError
from aiochroma._logging import get_logger

if TYPE_CHECKING:
    from chromadb.config import Settings

__all__ = ["chroma_settings", "import_chromadb"]

log = get_logger("aiochroma.backend")

_FIRST_UNTESTED = (1, 6)


def chroma_settings(given: Settings | None, **fixed: object) -> Settings:
    """Return settings for a database; chromadb is imported here, which takes half a second.

    Args:
        given: The caller's own, which are not changed; None for Chroma's defaults.
        fixed: Fields that are decided by us.

    Raises:
        InvalidInputError: chromadb cannot be imported, because a variable or ``.env`` has a value that its settings refuse.
    """
    import_chromadb()
    from chromadb.config import Settings

    # Without its constructor, which is what reads the environment.
    settings = Settings.model_construct() if given is None else given.model_copy(deep=True)
    for name, value in {"anonymized_telemetry": False, **fixed}.items():
        setattr(settings, name, value)
    return settings


def import_chromadb() -> None:
    """Import chromadb, which makes settings of its own meanwhile.

    Raises:
        InvalidInputError: A variable or ``.env`` has a value that its settings refuse.
    """
    from pydantic import ValidationError

    try:
        import chromadb
    except ValidationError as error:
        fields = ", ".join(str(problem["loc"][0]).upper() for problem in error.errors(include_input=False))
        raise InvalidInputError(
            f"chromadb cannot be imported, because its settings refuse what the environment or the file .env says: {fields}. "
            "Correct or remove it."
        ) from None
    _warn_of_untested(chromadb.__version__)


@functools.cache
def _warn_of_untested(version: str) -> None:
    """Say once that a release of chromadb is newer than those whose private parts and files were read."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers >= _FIRST_UNTESTED:
        log.warning("chroma.untested", version=version, tested=f"below {'.'.join(map(str, _FIRST_UNTESTED))}")
