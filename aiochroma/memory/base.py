"""Opening and closing a memory, and what all its calls share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from typing_extensions import Self

from aiochroma._errors import ClosedError, InvalidInputError
from aiochroma._logging import get_logger
from aiochroma.client.opening import AsyncEphemeralClient, AsyncPersistentClient, ClientOpening
from aiochroma.client.options import PersistentOptions
from aiochroma.memory.port import Port
from aiochroma.memory.recall import is_number
from aiochroma.memory.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType

    from aiochroma.client.client import AsyncClient
    from aiochroma.client.target import ConnectTarget
    from aiochroma.core.stats import Stats
    from aiochroma.embedding.choice import EmbedderFunction

__all__ = ["BaseMemory"]

log = get_logger("aiochroma.memory")

T = TypeVar("T")
M = TypeVar("M", bound="BaseMemory")


class BaseMemory:
    """The life of a memory; see :class:`aiochroma.Memory`."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None = "./memory",
        *,
        embedder: Any = None,
        on_failure: Literal["raise", "degrade"] = "raise",
        timeout: float | None = None,
        durable: bool = True,
        client: AsyncClient | None = None,
        split_chars: int | None = None,
        history: bool = False,
        sweep_every: float | None = None,
    ) -> None:
        if on_failure not in {"raise", "degrade"}:
            raise InvalidInputError(f"`on_failure` must be 'raise' or 'degrade', got {on_failure!r}.")
        for name, seconds in (("timeout", timeout), ("sweep_every", sweep_every)):
            if seconds is not None and not (is_number(seconds) and seconds > 0):
                raise InvalidInputError(
                    f"`{name}` must be a number of seconds above 0, or None, got {seconds!r}."
                )
        if embedder is not None and not _may_embed(embedder):
            raise InvalidInputError(f"`embedder` must be an embedder or a callable, got {embedder!r}.")

        def choose_embedder() -> EmbedderFunction:
            from aiochroma.embedding.choice import adapted, default_embedder

            return default_embedder() if embedder is None else adapted(embedder)

        self._path: object = path
        self._timeout = timeout
        self._durable = durable
        self._degrade = on_failure == "degrade"
        self._sweep_every = sweep_every
        self._settle: Callable[[], ConnectTarget] | None = None
        self._entered = False
        self._closed = False
        self._store = Store(
            path,
            self._opening,
            choose_embedder,
            Port(),
            client,
            split_chars=split_chars,
            history=bool(history),
        )

    @classmethod
    def from_env(
        cls,
        *,
        embedder: Any = None,
        on_failure: Literal["raise", "degrade"] = "raise",
        durable: bool = True,
        split_chars: int | None = None,
        history: bool = False,
        sweep_every: float | None = None,
        **overrides: Any,
    ) -> Self:
        """Make a memory of what the environment names: a directory, a server, or a database in memory.

        ``CHROMA_MODE`` (``persistent``, ``http`` or ``ephemeral``), ``CHROMA_DB_PATH``, ``CHROMA_HOST`` and so on are those of
        :func:`aiochroma.connect`. On a server there is no full-text index on disk: see :class:`aiochroma.Memory`.

        Args:
            embedder: As for the class; likewise
            on_failure: this,
            durable: this (without effect on a server),
            split_chars: this,
            history: this (not on a server), and
            sweep_every: this.
            overrides: Values in place of the variables, and further arguments of the client, as for
                :func:`aiochroma.connect`.

        Raises:
            InvalidInputError: When it is opened: values are wrong or missing; one error lists them all, secrets hidden.
        """
        memory = cls(
            None,
            embedder=embedder,
            on_failure=on_failure,
            durable=durable,
            split_chars=split_chars,
            history=history,
            sweep_every=sweep_every,
        )

        def settle() -> ConnectTarget:
            from aiochroma.client.environment import options_from_environment

            options = options_from_environment(overrides)
            if isinstance(options, PersistentOptions):
                options = replace(options, allow_missing_vectors=True)
                if options.durable is None and durable:
                    options = replace(options, durable=True)
            return options.resolve()

        memory._settle = settle
        memory._path = memory._store.describe = "that the environment names"
        return memory

    def _opening(self) -> Any:
        if self._settle is not None:
            return ClientOpening(self._settle)
        path: Any = self._path
        if path is None:
            return AsyncEphemeralClient(timeout=self._timeout)
        # Vectors that are lost are made again from their texts; see `OpenStore`.
        return AsyncPersistentClient(
            path, timeout=self._timeout, durable=self._durable or None, allow_missing_vectors=True
        )

    async def open(self) -> Self:
        """Open the store; returns itself. Idempotent.

        With ``on_failure="degrade"`` it does not raise, and the next call tries again.

        Raises:
            StoreUnavailableError: The store cannot be opened.
            ClosedError: The memory was closed.
        """
        self._entered = True
        await self._guarded("open", _nothing, lambda _: None)
        return self

    async def aclose(self) -> None:
        """Close the store and wait for its thread to end. Idempotent."""
        self._closed = True
        await self._store.close()

    def __await__(self) -> Generator[object, None, Self]:
        return self.open().__await__()

    async def __aenter__(self) -> Self:
        try:
            return await self.open()
        except BaseException:
            # Without it nobody would close what was opened so far.
            await self.aclose()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def stats(self) -> Stats:
        """Return counters and times of the store's thread, and the embedder's identity.

        Raises:
            ClosedError: The memory is not open.
        """
        stats: Stats = self._store.client.stats()
        return stats

    @property
    def client(self) -> AsyncClient:
        """The client below: for health, backup, and Chroma's own API on the same thread.

        Raises:
            ClosedError: The memory is not open.
        """
        client: AsyncClient = self._store.client
        return client

    async def _guarded(
        self, operation: str, work: Callable[[], Awaitable[T]], degraded: Callable[[Exception], T]
    ) -> T:
        """Run a call on an open store; where the memory degrades, log what went wrong and give the empty result."""
        if self._closed:
            raise ClosedError(f"The memory {self._path!r} is closed; make a new one.")
        if not self._entered:
            raise ClosedError(
                f"The memory {self._path!r} is not open yet; use `async with` or `await memory.open()`."
            )
        try:
            await self._store.ready()
            return await work()
        except InvalidInputError:
            raise
        except Exception as error:
            if not self._degrade:
                raise
            log.warning("memory.degraded", operation=operation, error=repr(error))
            return degraded(error)


async def _nothing() -> None:
    """Opening is what every call does first."""


def _may_embed(embedder: Any) -> bool:
    return callable(embedder) or hasattr(embedder, "embed") or hasattr(embedder, "embed_documents")
