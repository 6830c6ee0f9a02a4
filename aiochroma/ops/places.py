"""Where a migration reads and writes: a directory or a server, checked before it is opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from aiochroma._errors import DatabasePathError, InvalidInputError
from aiochroma.backend.address import url_of
from aiochroma.client.opening import connect
from aiochroma.disk.filesystem import canonical_directory
from aiochroma.disk.foreign import refuse_foreign_users
from aiochroma.disk.layout import SQLITE_FILE
from aiochroma.disk.ownership import acquire
from aiochroma.disk.sqlite_file import databases_in
from aiochroma.host.opening import ask_to_leave
from aiochroma.records.history import HISTORY_FILE

if TYPE_CHECKING:
    import os

    from aiochroma.client.opening import ClientOpening
    from aiochroma.client.options import ConnectOverrides

__all__ = ["Place", "place_of"]

_HOLD_MS = 100.0
"""Nobody else uses the loop or the database, so pieces of writing may be as large as is efficient."""


@dataclass(frozen=True)
class Place:
    """A directory or a server.

    Attributes:
        shown: How messages and the report call it.
        tenant: Chroma's tenant where one was named, else None.
        database: Chroma's database where one was named, else None.
        directory: The directory, or None for a server.
        options: Arguments for :func:`aiochroma.connect`. Not shown: there may be a token among them.
    """

    shown: str
    tenant: str | None
    database: str | None
    directory: Path | None
    options: ConnectOverrides = field(repr=False)

    def opening(self, tenant: str | None, database: str | None) -> ClientOpening:
        """Return what opens a client on a tenant and database; None for the environment's, else Chroma's default."""
        options = self.options.copy()
        if tenant is not None:
            options["tenant"] = tenant
        if database is not None:
            options["database"] = database
        return connect(**options)

    def look(self, *, must_exist: bool) -> list[tuple[str, str]]:
        """See that nobody has the directory open, this process included; nothing to see of a server.

        Asks the file system: not for an event loop's thread.

        Args:
            must_exist: Whether there has to be a database.

        Returns:
            Tenant and name of each database in it.

        Raises:
            DatabasePathError: There is no database, or no permission.
            DatabaseInUseError: Somebody has it open.
        """
        if self.directory is None:
            return []
        directory = canonical_directory(self.directory)
        exists = (directory / SQLITE_FILE).exists()
        if not exists and must_exist:
            raise DatabasePathError(f"There is no database in {str(directory)!r}.")
        if not exists and not directory.exists():
            return []
        ask_to_leave(str(directory))
        ownership = acquire(directory, create=False)
        try:
            refuse_foreign_users(directory)
            return databases_in(directory) if exists else []
        finally:
            ownership.release()

    def notes(self) -> list[str]:
        """Say what lies beside the database and is not copied."""
        if self.directory is not None and (self.directory / HISTORY_FILE).exists():
            return [f"The history of changes stays where it is: {self.directory / HISTORY_FILE}."]
        return []


def place_of(
    where: str | os.PathLike[str],
    role: str,
    tenant: str | None,
    database: str | None,
    options: ConnectOverrides | None,
) -> Place:
    """Read an argument that names a directory or a server.

    Args:
        where: A directory, or ``http(s)://host[:port][/tenant/database]``.
        role: The argument's name, for messages.
        tenant: Chroma's tenant, where it is not in the address.
        database: Chroma's database, likewise.
        options: Further arguments for :func:`aiochroma.connect`.

    Raises:
        InvalidInputError: Something is wrong with it.
    """
    text = str(where)
    if not text.strip():
        raise InvalidInputError(f"`{role}` must be a directory or the address of a server, got {text!r}.")
    if "://" not in text:
        own: ConnectOverrides = {"mode": "persistent", "path": Path(text), "max_write_slice_ms": _HOLD_MS}
        return Place(text, tenant, database, Path(text), {**own, **(options or {})})
    try:
        parts = urlsplit(text.strip())
        known = parts.scheme in {"http", "https"} and not parts.query and not parts.fragment
        shown = url_of(f"{parts.scheme}://{parts.netloc}", 1, ssl=False) if known else ""
    except ValueError as error:
        # Ours is one, too; it does not repeat a password.
        raise InvalidInputError(f"`{role}` is not the address of a server: {error}") from None
    segments = [unquote(part) for part in parts.path.split("/") if part]
    if not known or len(segments) not in {0, 2}:
        raise InvalidInputError(
            f"`{role}` must be a directory, or http(s)://host:port, optionally with /tenant/database, got {text!r}."
        )
    if segments:
        for name, given, named in (("tenant", tenant, segments[0]), ("database", database, segments[1])):
            if given is not None and given != named:
                raise InvalidInputError(
                    f"`{role}` names the {name} {named!r}, and the argument another: {given!r}."
                )
        tenant, database = segments
    server: ConnectOverrides = {"mode": "http", "host": shown, "ssl": parts.scheme == "https"}
    return Place(shown, tenant, database, None, {**server, **(options or {})})
