"""Moving databases between directories and servers, verified and resumable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from aiochroma._clock import monotonic
from aiochroma._errors import (
    DatabaseCorruptError,
    DatabasePathError,
    InvalidInputError,
    MigrationError,
    shown,
)
from aiochroma._files import canonical_path
from aiochroma._types import JsonObject
from aiochroma._waiting import off_loop
from aiochroma.backend.faults import opening_error
from aiochroma.backend.server import url_of
from aiochroma.client.opening import connect
from aiochroma.client.options import DEFAULT_DATABASE, DEFAULT_TENANT
from aiochroma.disk.catalog import databases_in
from aiochroma.disk.layout import has_database
from aiochroma.disk.ownership import acquire, refuse_foreign_users
from aiochroma.host.opening import ask_to_leave
from aiochroma.records.history import HISTORY_FILE

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiochroma.client.client import AsyncClient
    from aiochroma.client.opening import ClientOpening
    from aiochroma.client.options import ConnectOverrides

__all__ = ["CopiedCollection", "Endpoint", "MigrationReport", "endpoint_of", "migrate"]

_COMPLETE, _DIFFERENT = range(2)


@dataclass(frozen=True)
class CopiedCollection:
    """One collection.

    Attributes:
        name: The collection's name.
        tenant: Chroma's tenant at the destination.
        database: Chroma's database at the destination.
        records: Records at the source.
        written: Records that this run wrote, ``replaced`` among them.
        replaced: Records that were there and different.
        verified: Whether both sides were compared after copying.
        missing: Records that are not at the destination.
        different: Records whose vector, document, metadata or URI differs.
        extra: Records that are at the destination only; with ``merge`` they are not counted.
        differences: What differs, one sentence each, with a few ids as examples.
    """

    name: str
    tenant: str
    database: str
    records: int
    written: int = 0
    replaced: int = 0
    verified: bool = False
    missing: int = 0
    different: int = 0
    extra: int = 0
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class MigrationReport:
    """The outcome of a migration.

    Attributes:
        source: Where from; a server's address without its token.
        destination: The directory or server that was copied to.
        collections: One entry for each.
        notes: What was not copied, and why.
        seconds: How long all took.
    """

    source: str
    destination: str
    collections: tuple[CopiedCollection, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def records(self) -> int:
        """Records at the source."""
        return sum(entry.records for entry in self.collections)

    @property
    def written(self) -> int:
        """Records that this run wrote; what an interrupted run had written before is not among them."""
        return sum(entry.written for entry in self.collections)

    @property
    def differences(self) -> tuple[str, ...]:
        """What verification found, one sentence each."""
        return tuple(f"{entry.name}: {line}" for entry in self.collections for line in entry.differences)

    @property
    def is_verified(self) -> bool:
        """Whether everything was compared and nothing differs."""
        return all(entry.verified and not entry.differences for entry in self.collections)

    @property
    def exit_code(self) -> int:
        """0: nothing is known to differ; 1: something does."""
        return _DIFFERENT if self.differences else _COMPLETE

    def as_dict(self) -> JsonObject:
        """Return plain data, for JSON."""
        return {
            **asdict(self),
            "records": self.records,
            "written": self.written,
            "is_verified": self.is_verified,
        }


Pair = tuple[str, str]


async def migrate(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    tenant: str | None = None,
    database: str | None = None,
    to_tenant: str | None = None,
    to_database: str | None = None,
    all_databases: bool = False,
    merge: bool = False,
    verify: bool = True,
    src_options: ConnectOverrides | None = None,
    dst_options: ConnectOverrides | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> MigrationReport:
    """Copy all collections from a directory or a server to another.

    Each with its configuration, schema, embedding function's configuration and metadata, and every record with vector, document,
    metadata and URI. Records go in pages, so memory does not grow with their number. A memory's namespaces are among the
    collections; its full-text index is made again when it is used, its history of changes stays where it is.

    Nothing is written before all collections were looked at. A run that was interrupted, however hard, may be repeated: it
    goes on, and writes nothing twice. A copy that is complete already is compared and left alone. The source is not changed,
    except that opening a directory may repair it. Neither side should be written to meanwhile; a directory cannot be, for a
    server verification finds it.

    Args:
        src: A directory, or ``http(s)://host[:port][/tenant/database]``.
        dst: A directory, or ``http(s)://host[:port][/tenant/database]``; made if it does not exist.
        tenant: The source's tenant, where its address does not name it. Default: ``CHROMA_TENANT``, else Chroma's.
        database: The database at the source. Default: ``CHROMA_DATABASE``, else Chroma's.
        to_tenant: The destination's tenant. Default: as at the source.
        to_database: The destination's database. Default: as at the source.
        all_databases: Copy every database under its own name: of a directory those of every tenant, of a server those of the
            one tenant (servers do not list tenants).
        merge: Add to collections that hold something else; a record with the same id is replaced. Without it such collections
            are refused.
        verify: Compare both sides record by record afterwards.
        src_options: Further arguments for :func:`aiochroma.connect` on the source: ``auth_token``, ``auth_header``,
            ``ca_file``, ``timeout``, ... What is left out, the environment says (``CHROMA_AUTH_TOKEN`` and so on).
        dst_options: Further arguments for :func:`aiochroma.connect` on the destination. Where both are servers, the token and
            the certificates of the environment are the source's, and the destination gets only what is given here.
        progress: Called with a stage (``"copy notes"``, ``"verify notes"``), records done, and of how many.

    Returns:
        What was copied and what differs, if anything does; ``exit_code`` sums it up. Where something differs, another run
        mends it.

    Raises:
        InvalidInputError: An argument is wrong, the destination is the source or within it, or the source has no such database.
        DatabasePathError: There is no database in the source, or no permission.
        DatabaseInUseError: A process has one of the directories open; it may be this one.
        MigrationError: The destination holds something else under the same name; nothing was written.
        StoreUnavailableError: One of the two cannot be opened, or is lost on the way; another run goes on.

    Example:
        >>> report = await migrate("./memory", "http://chroma.internal:8000")  # doctest: +SKIP
        >>> report.is_verified  # doctest: +SKIP
        True
    """
    begun = monotonic()
    source = endpoint_of(src, "src", tenant, database, src_options)
    target = endpoint_of(dst, "dst", to_tenant, to_database, dst_options)
    if all_databases and (
        source.database or target.tenant or target.database or (source.directory and source.tenant)
    ):
        raise InvalidInputError(
            "`all_databases` copies each database under its own name: name no database, and no tenant but that of a server."
        )
    if source.directory is None and target.directory is None:
        # What the environment says of one server must not be sent to another.
        target.options.setdefault("auth_token", None)
        target.options.setdefault("ca_file", None)
    if source.directory and target.directory and source.directory in target.directory.parents:
        raise InvalidInputError(
            f"`dst`, {target.shown!r}, is inside of the database {source.shown!r}, whose backups would not hold it. "
            "Give a directory beside it."
        )
    held = await off_loop(lambda: source.look(must_exist=True))
    await off_loop(lambda: target.look(must_exist=False))
    async with AsyncExitStack() as stack:
        first = held[0] if all_databases and held else (source.tenant, source.database)
        reader = await _opened(stack, source, first)
        pairs = await _pairs(reader, target, held if source.directory else [], all_databases=all_databases)
        writer = await _opened_to_write(stack, target, pairs[0][1])
        _refuse_same(reader, writer, pairs)
        collections, left_out = await _copied(
            reader,
            writer,
            pairs,
            merge=merge,
            verify=verify,
            progress=progress or (lambda _stage, _done, _of: None),
        )
    return MigrationReport(
        source.shown,
        target.shown,
        tuple(collections),
        (*await off_loop(source.notes), *left_out),
        round(monotonic() - begun, 3),
    )


async def _opened(
    stack: AsyncExitStack, source: Endpoint, pair: tuple[str | None, str | None]
) -> AsyncClient:
    try:
        return await stack.enter_async_context(source.opening(*pair))
    except Exception as error:
        if not _is_not_found(error):
            raise
        raise InvalidInputError(f"{source.shown!r} has no such tenant or database: {error}") from error


async def _opened_to_write(stack: AsyncExitStack, target: Endpoint, pair: Pair) -> AsyncClient:
    """Open the destination; where its tenant or database is to be made, on Chroma's default."""
    try:
        return await stack.enter_async_context(target.opening(*pair))
    except Exception as error:
        if not _is_not_found(error):
            raise
    return await stack.enter_async_context(target.opening(DEFAULT_TENANT, DEFAULT_DATABASE))


async def _pairs(
    reader: AsyncClient, target: Endpoint, held: list[Pair], *, all_databases: bool
) -> list[tuple[Pair, Pair]]:
    """Return tenant and database of what is copied, at the source and at the destination."""
    own = (str(reader.tenant), str(reader.database))
    if not all_databases:
        return [(own, (target.tenant or own[0], target.database or own[1]))]
    if not held:
        found = await reader.admin.list_databases(tenant=own[0])
        held = sorted((own[0], str(entry["name"])) for entry in found)
    return [(pair, pair) for pair in held or [own]]


def _refuse_same(reader: AsyncClient, writer: AsyncClient, pairs: list[tuple[Pair, Pair]]) -> None:
    source, target = (client.session.describe() for client in (reader, writer))
    same = (source.path, source.url) == (target.path, target.url)
    if same and {pair for pair, _ in pairs} & {pair for _, pair in pairs}:
        raise InvalidInputError(f"`src` and `dst` are the same: {source.name}.")


async def _copied(
    reader: AsyncClient,
    writer: AsyncClient,
    pairs: list[tuple[Pair, Pair]],
    *,
    merge: bool,
    verify: bool,
    progress: Callable[[str, int, int], None],
) -> tuple[list[CopiedCollection], list[str]]:
    # Late: both import chromadb, which by now the clients have done on their own threads.
    from aiochroma.ops.copying import DatabaseCopy
    from aiochroma.ops.sides import Side

    copies, problems = [], []
    for here, there in pairs:
        copy = DatabaseCopy(
            Side(reader, *here, sparse=bool(writer.session.describe().url)),
            Side(writer, *there),
            merge=merge,
            verify=verify,
            progress=progress,
            several=len(pairs) > 1,
        )
        problems += await copy.survey()
        copies.append(copy)
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise MigrationError(
            f"The destination holds something else already; nothing was copied. Another database, or `merge`, would do:{lines}",
            problems=problems,
        )
    copied = [entry for copy in copies for entry in await copy.run()]
    names = sorted({name for copy in copies for name in copy.without_sparse})
    notes = [
        f"{name}: a directory has no sparse vectors, so its words are ranked without them" for name in names
    ]
    return copied, notes


def _is_not_found(error: Exception) -> bool:
    from chromadb.errors import NotFoundError

    return isinstance(error, NotFoundError)


_HOLD_MS = 100.0
"""No other caller uses the loop or the database, so slices of writing may be as large as is efficient."""


@dataclass(frozen=True)
class Endpoint:
    """A directory or a server.

    Attributes:
        shown: How messages and the report call it.
        tenant: Chroma's tenant where one was named, else None.
        database: Chroma's database where one was named, else None.
        directory: The canonical directory, or None for a server.
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
        """See that no program has the directory open, this process included; nothing to see of a server.

        Asks the file system: not for an event loop's thread.

        Args:
            must_exist: Whether there has to be a database.

        Returns:
            Tenant and name of each database in it.

        Raises:
            DatabasePathError: There is no database, or no permission.
            DatabaseInUseError: Another process has it open.
            StoreUnavailableError: It cannot be read as it is now: its disk is full, it is locked, or damaged.
        """
        if self.directory is None:
            return []
        directory = self.directory
        exists = has_database(directory)
        if not exists and must_exist:
            raise DatabasePathError(f"There is no database in {str(directory)!r}.")
        if not exists and not os.path.lexists(directory):
            return []
        ask_to_leave(str(directory))
        with acquire(directory, create=False):
            refuse_foreign_users(directory)
            try:
                return databases_in(directory) if exists else []
            except DatabaseCorruptError as error:
                # SQLite could not read the file; a full disk or another program's lock is why as well as damage.
                raise opening_error(error, directory) from error.__cause__

    def notes(self) -> list[str]:
        """Say what lies beside the database and is not copied."""
        if self.directory is not None and (self.directory / HISTORY_FILE).exists():
            return [f"The history of changes stays where it is: {self.directory / HISTORY_FILE}."]
        return []


def endpoint_of(
    where: str | os.PathLike[str],
    role: str,
    tenant: str | None,
    database: str | None,
    options: ConnectOverrides | None,
) -> Endpoint:
    """Read an argument that names a directory or a server.

    Args:
        where: A directory, or ``http(s)://host[:port][/tenant/database]``.
        role: The argument's name, for messages.
        tenant: Chroma's tenant, where it is not in the address.
        database: Chroma's database.
        options: Further arguments for :func:`aiochroma.connect`.

    Raises:
        InvalidInputError: Something is wrong with it.
    """
    text = os.fspath(where) if isinstance(where, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text.strip():
        raise InvalidInputError(
            f"`{role}` must be a directory or the address of a server, got {shown(where)}."
        )
    if not isinstance(options, Mapping | None):
        raise InvalidInputError(f"`{role}_options` must be a mapping or None, got {shown(options)}.")
    if "://" not in text:
        directory = Path(canonical_path(text, role))
        own: ConnectOverrides = {"mode": "persistent", "path": directory, "max_write_slice_ms": _HOLD_MS}
        return Endpoint(text, tenant, database, directory, {**own, **(options or {})})
    try:
        parts = urlsplit(text.strip())
        known = parts.scheme in {"http", "https"} and not parts.query and not parts.fragment
        server_url = url_of(f"{parts.scheme}://{parts.netloc}", 1, ssl=False) if known else ""
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
    server: ConnectOverrides = {"mode": "http", "host": server_url, "ssl": parts.scheme == "https"}
    return Endpoint(server_url, tenant, database, None, {**server, **(options or {})})
