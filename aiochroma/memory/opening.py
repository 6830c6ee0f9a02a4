"""The life of a memory: what it is opened with, and what happens around each of its calls."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from aiochroma._clock import monotonic
from aiochroma._errors import ClosedError, InvalidInputError, is_one_of, shown
from aiochroma._logging import EventLogger, get_logger
from aiochroma._waiting import checked_seconds, waits_by_blocking
from aiochroma.client.maintenance import Health, unavailable
from aiochroma.client.options import EphemeralOptions, PersistentOptions, check_flag
from aiochroma.client.session import Shared, asynchronous_client
from aiochroma.core.stats import observed
from aiochroma.embedding.functions import identity_of
from aiochroma.embedding.protocol import SparseFunction
from aiochroma.memory.codes import CodesBeside
from aiochroma.memory.compacting import BackgroundCompacting
from aiochroma.memory.copies import no_sparse_vectors
from aiochroma.memory.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Generator, Sequence
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from aiochroma._types import JsonObject
    from aiochroma.client.client import AsyncClient, BlockingClient
    from aiochroma.client.options import ConnectOverrides, ConnectTarget
    from aiochroma.core.stats import Stats
    from aiochroma.disk.backup import BackupReport
    from aiochroma.embedding.choice import EmbedderFunction

__all__ = ["Home", "Life", "MemoryOptions", "OpenedMemory", "home_in_environment", "home_of"]

log: EventLogger = get_logger("aiochroma.memory")

T = TypeVar("T")


@dataclass(frozen=True)
class MemoryOptions:
    """How a memory behaves, whatever database it is on; see :class:`aiochroma.Memory`."""

    embedder: object = None
    on_failure: Literal["raise", "degrade"] = "raise"
    split_chars: int | None = None
    history: bool = False
    sweep_every: float | None = None
    auto_compact: bool = True
    sparse_embedder: object = None

    def __post_init__(self) -> None:
        if not is_one_of(self.on_failure, "raise", "degrade"):
            raise InvalidInputError(
                f"`on_failure` must be 'raise' or 'degrade', got {shown(self.on_failure)}."
            )
        checked_seconds("sweep_every", self.sweep_every)
        check_flag("history", self.history)
        check_flag("auto_compact", self.auto_compact)
        embedder = self.embedder
        usable = callable(embedder) or any(hasattr(embedder, name) for name in ("embed", "embed_documents"))
        if embedder is not None and not isinstance(embedder, str) and not usable:
            raise InvalidInputError(
                f"`embedder` must be an embedder, a callable, or the name of one of ours, got {shown(embedder)}."
            )

        if self.sparse_embedder is not None and not callable(self.sparse_embedder):
            raise InvalidInputError(
                "`sparse_embedder` must be one of Chroma's `SparseEmbeddingFunction`s, or a callable that returns a "
                f"`SparseVector` for each text, got {shown(self.sparse_embedder)}."
            )

    @property
    def sparse(self) -> SparseFunction | None:
        """The sparse embedder as the embedding thread calls it, or None."""
        if not callable(self.sparse_embedder):
            return None
        function = SparseFunction(self.sparse_embedder)
        function.identity = identity_of(self.sparse_embedder)[0]
        return function

    def choose_embedder(self, stored: Sequence[str]) -> EmbedderFunction:
        """Return the embedder; may load a model.

        Args:
            stored: The identities of the embedders that the database was written with, the most frequent first.
        """
        from aiochroma.embedding.choice import chosen

        return chosen(self.embedder, stored)


@dataclass(frozen=True)
class Home:
    """Where a memory is.

    Attributes:
        name: What messages call it.
        resolve: Returns the database; asks the file system, so it is not for an event loop's thread.
        client: A client to use in place of one of its own, or None.
        is_local: Whether it is known to be no server.
    """

    name: str
    resolve: Callable[[], ConnectTarget]
    client: AsyncClient | None = None
    is_local: bool = False


def home_of(
    client: AsyncClient | BlockingClient | None, options: PersistentOptions, *, on_disk: bool
) -> Home:
    """Return the home of a memory on a client, on a directory, or in memory; see :class:`aiochroma.Memory`.

    Args:
        client: A client to use in place of one of its own, or None.
        options: The options of its own client.
        on_disk: Whether there is a directory.

    Raises:
        InvalidInputError: An option is for a client that has been opened already.
    """
    if client is not None:
        asynchronous = asynchronous_client(client)
        ignored = [
            each.name
            for each in fields(options)
            if each.name not in _OF_MEMORY and getattr(options, each.name) != each.default
        ]
        if ignored:
            raise InvalidInputError(f"`client` is open with options of its own; give {ignored} to it.")
        url = asynchronous.session.describe().url
        return Home(f"on {client!r}", _no_database, asynchronous, is_local=not url)
    if on_disk:
        return Home(repr(str(options.path)), options.resolve, is_local=True)
    ephemeral = EphemeralOptions(
        **{each.name: getattr(options, each.name) for each in fields(EphemeralOptions)}
    )
    # Two memories without a path share nothing.
    own = uuid.uuid4().hex

    def resolve() -> ConnectTarget:
        target = ephemeral.resolve()
        return replace(target, location=replace(target.location, fingerprint=own))

    return Home("in memory", resolve, is_local=True)


_OF_MEMORY = frozenset({"path", "durable", "allow_missing_vectors"})
"""Options of a directory whose defaults are a memory's own."""


def home_in_environment(overrides: ConnectOverrides) -> Home:
    """Return the home that the environment names."""

    def resolve() -> ConnectTarget:
        from aiochroma.client.environment import options_from_environment

        options = options_from_environment(overrides)
        if isinstance(options, PersistentOptions):
            durable = True if options.durable is None else options.durable
            options = replace(options, allow_missing_vectors=True, durable=durable)
        return options.resolve()

    return Home("that the environment names", resolve)


def _no_database() -> ConnectTarget:
    raise ClosedError("The client of this memory was closed.")


class Life:
    """What happens around the calls of a memory: opening, degrading, sweeping in passing, closing.

    Args:
        options: How it behaves.
        home: Where it is.
    """

    def __init__(self, options: MemoryOptions, home: Home) -> None:
        self.name: str = home.name
        if options.sparse_embedder is not None and home.is_local:
            raise no_sparse_vectors(home.name)
        self.store: Store = Store(home, options)
        self.codes: CodesBeside = CodesBeside()
        self._degrades = options.on_failure == "degrade"
        self._sweep_every = options.sweep_every
        self._swept_at = float("-inf")
        self._entered = False
        self._closed = False
        self._compacting: BackgroundCompacting | None = None
        if options.auto_compact:
            self._compacting = BackgroundCompacting(self.store)
            self.store.note_forgotten = self._compacting.note

    def __repr__(self) -> str:
        if self._closed:
            state = "closed"
        elif not self._entered:
            state = "not open yet"
        else:
            state = f"open, {self.store.info.mode}" if self.store.is_open else "unavailable"
        return f"{self.name}, {state}"

    async def open(self) -> None:
        """Open the store; where the memory degrades, do not raise."""
        self._entered = True
        await self.run("open", _nothing, lambda _: None)

    async def close(self) -> None:
        """Close the store. Idempotent."""
        waits_by_blocking()  # Says at once that asyncio is needed.
        self._closed = True
        await self.codes.end()
        if self._compacting is not None:
            await self._compacting.end()
        await self.store.close()

    async def health(self) -> Health:
        """Return the state of the store; does not raise where it cannot be opened."""
        self._check()
        try:
            await self.store.ready()
            return await self.store.client.health()
        except Exception as error:  # noqa: BLE001 - a health check reports what is wrong, it does not raise it
            return unavailable(error)

    def _check(self) -> None:
        """Refuse a call of a memory that is not open. A blocking one opens at its first call."""
        blocking = waits_by_blocking()  # Says at once that asyncio is needed.
        if self._closed:
            raise ClosedError(f"The memory {self.name} is closed; make a new one.")
        self._entered = self._entered or blocking
        if not self._entered:
            raise ClosedError(
                f"The memory {self.name} is not open yet; use `async with` or `await memory.open()`."
            )

    async def run(
        self,
        name: str,
        work: Callable[[Store], Awaitable[T]],
        failed: Callable[[BaseException], T] | None,
        *,
        sweeps: bool = False,
        details: JsonObject | None = None,
    ) -> T:
        """Carry out a call whose arguments have been checked.

        Args:
            name: What the log calls it.
            work: What is done, on an open store.
            failed: Makes the empty result that carries an error, where the memory degrades; None for a call that always raises.
            sweeps: Whether it is a write after which the memory may sweep in passing.
            details: What it was asked for, for an observer: ``query``, ``namespaces``, ``id``, ``texts``.
        """
        self._check()
        carried_out = partial(self._carry_out, work)
        try:
            result = await (
                carried_out()
                if name == "open"
                else observed(name, details or {}, carried_out, self._database)
            )
        except InvalidInputError:
            raise
        except Exception as error:
            if not self._degrades or failed is None:
                raise
            log.warning("memory.degraded", operation=name, error=error)
            return failed(error)
        if sweeps:
            await self._sweep_in_passing()
        return result

    async def _carry_out(self, work: Callable[[Store], Awaitable[T]]) -> T:
        await self.store.ready()
        return await work(self.store)

    def _database(self) -> str:
        return self.store.info.name if self.store.is_open else self.name

    async def _sweep_in_passing(self) -> None:
        """Sweep after a write, if the memory is to do so and it is time."""
        now = monotonic()
        if self._sweep_every is None or now - self._swept_at < self._sweep_every:
            return
        self._swept_at = now
        try:
            from aiochroma.memory.forgetting import sweep_expired

            await sweep_expired(self.store, None)
        except Exception as error:  # noqa: BLE001 - Chroma's own as well
            # The write itself succeeded; the next one sweeps again.
            log.warning("memory.sweep_failed", error=error)


class OpenedMemory(Shared):
    """The life of a memory, whatever it remembers: made, opened, asked for its state, backed up, and closed.

    Args:
        life: What happens around its calls.
    """

    def __init__(self, life: Life) -> None:
        self._life = life

    @classmethod
    def from_env(
        cls,
        *,
        embedder: object = None,
        on_failure: Literal["raise", "degrade"] = "raise",
        split_chars: int | None = None,
        history: bool = False,
        sweep_every: float | None = None,
        auto_compact: bool = True,
        sparse_embedder: object = None,
        **overrides: Unpack[ConnectOverrides],
    ) -> Self:
        """Make a memory on the directory, the server, or the database in memory that the environment names.

        ``CHROMA_MODE`` (``persistent``, ``http`` or ``ephemeral``), ``CHROMA_DB_PATH``, ``CHROMA_HOST`` and so on are those of
        :func:`aiochroma.connect`. What is different on a server: see :class:`aiochroma.Memory`.

        Args:
            embedder: Turns texts into vectors; see the class.
            on_failure: ``"raise"`` or ``"degrade"``; see the class.
            split_chars: The most characters of a chunk; see the class.
            history: Whether changes are noted; see the class. Refused on a server.
            sweep_every: The seconds after which a write sweeps; see the class.
            auto_compact: Whether worn indexes are made again in the background; see the class.
            sparse_embedder: Makes sparse vectors, by which some servers rank words; see the class. Refused on a directory.
            overrides: Values in place of the variables, and further options of the client, as for
                :func:`aiochroma.connect`. A directory is ``durable`` unless this says otherwise.

        Raises:
            InvalidInputError: When it is opened: values are wrong or missing; one error lists them all, secrets hidden.
        """
        memory = cls.__new__(cls)
        own = MemoryOptions(
            embedder, on_failure, split_chars, history, sweep_every, auto_compact, sparse_embedder
        )
        OpenedMemory.__init__(memory, Life(own, home_in_environment(overrides)))
        return memory

    async def open(self) -> Self:
        """Open the store and return the memory itself. Idempotent.

        With ``on_failure="degrade"`` it does not raise, and the next call tries again.

        Raises:
            StoreUnavailableError: The store cannot be opened.
            ClosedError: The memory was closed.
        """
        await self._life.open()
        return self

    async def close(self) -> None:
        """Close the store and wait for its thread to end. Idempotent."""
        await self._life.close()

    aclose = close

    def __await__(self) -> Generator[object, None, Self]:
        return self.open().__await__()

    async def __aenter__(self) -> Self:
        try:
            return await self.open()
        except BaseException:
            # Without it nothing would close what was opened so far.
            await self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._life!r}>"

    @property
    def client(self) -> AsyncClient:
        """The client below: Chroma's own API on the same thread, while the memory is open."""
        return self._life.store.client

    def stats(self) -> Stats:
        """Return counters and times of the store's thread, with the embedder in ``details``."""
        return self.client.stats()

    async def health(self) -> Health:
        """Return the state of the store; one that cannot be opened is ``"unavailable"``, and nothing is raised."""
        return await self._life.health()

    async def backup(
        self,
        target: str | os.PathLike[str],
        *,
        keep: int | None = None,
        verify: Literal["full", "quick"] = "full",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> BackupReport:
        """Copy the database while it is in use; see :meth:`aiochroma.AsyncClient.backup` for arguments, result and errors.

        It raises also where the memory degrades.
        """
        return await self._life.run(
            "backup",
            lambda store: store.client.backup(target, keep=keep, verify=verify, progress=progress),
            None,
        )


async def _nothing(_: Store) -> None:
    """Opening is what every call does first."""
