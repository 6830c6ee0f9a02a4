"""A memory for callers without an event loop: the same coroutines, driven to their end on the calling thread."""

from __future__ import annotations

from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

from aiochroma._threads import drive
from aiochroma.memory.memory import Memory as AsyncMemory

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from aiochroma.client.blocking import BlockingClient
    from aiochroma.core.stats import Stats

__all__ = ["Memory"]

P = ParamSpec("P")
T = TypeVar("T")


def _driven(
    method: Callable[Concatenate[AsyncMemory, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Memory, P], T]:
    """Make the blocking form of a method: same arguments, result and errors."""

    def call(self: Memory, /, *values: P.args, **arguments: P.kwargs) -> T:
        self.open()
        return self._run(method(self._memory, *values, **arguments))

    update_wrapper(call, method)
    return call


class Memory:
    """:class:`aiochroma.Memory` for scripts, threads and Streamlit: same arguments, results and errors, no ``await``.

    It may be used from any number of threads at once, beside asynchronous memories of the same directory, and refuses to run
    on a thread whose event loop would stand still. Opens with ``with`` (or at the first call). The embedder, and the items of
    ``remember_many``, must be synchronous; batches are embedded and written in turn.

    Args:
        path: The directory; None keeps everything in memory.
        embedder: A synchronous one; see :class:`aiochroma.Memory`, also for the others.
        on_failure: ``"raise"`` or ``"degrade"``.
        timeout: Limit for each call, in seconds; None for none.
        durable: Keep every vector in Chroma's log as well.
        client: A client from :func:`aiochroma.sync.PersistentClient` to use in place of one of its own.
        split_chars: Embed longer texts in parts of at most so many characters.
        history: Note every change.
        sweep_every: Sweep after a write, so many seconds after the last time.

    Raises:
        InvalidInputError: An argument is wrong.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = "./memory",
        *,
        embedder: Any = None,
        on_failure: Literal["raise", "degrade"] = "raise",
        timeout: float | None = None,
        durable: bool = True,
        client: BlockingClient | None = None,
        split_chars: int | None = None,
        history: bool = False,
        sweep_every: float | None = None,
    ) -> None:
        self._memory = AsyncMemory(
            path,
            embedder=embedder,
            on_failure=on_failure,
            timeout=timeout,
            durable=durable,
            client=None if client is None else client.asynchronous,
            split_chars=split_chars,
            history=history,
            sweep_every=sweep_every,
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
    ) -> Memory:
        """Make a memory of what the environment names. See :meth:`aiochroma.Memory.from_env`."""
        memory = cls(None)
        memory._memory = AsyncMemory.from_env(
            embedder=embedder,
            on_failure=on_failure,
            durable=durable,
            split_chars=split_chars,
            history=history,
            sweep_every=sweep_every,
            **overrides,
        )
        return memory

    def __enter__(self) -> Memory:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> Memory:
        """Open the store; returns itself. Idempotent. See :meth:`aiochroma.Memory.open`."""
        self._run(self._memory.open())
        return self

    def close(self) -> None:
        """Close the store and wait for its thread to end. Idempotent."""
        drive(self._memory.aclose())

    remember = _driven(AsyncMemory.remember)
    remember_many = _driven(AsyncMemory.remember_many)
    update = _driven(AsyncMemory.update)
    pin = _driven(AsyncMemory.pin)
    recall = _driven(AsyncMemory.recall)
    similar = _driven(AsyncMemory.similar)
    get = _driven(AsyncMemory.get)
    forget = _driven(AsyncMemory.forget)
    forget_namespace = _driven(AsyncMemory.forget_namespace)
    sweep = _driven(AsyncMemory.sweep)
    namespaces = _driven(AsyncMemory.namespaces)
    count = _driven(AsyncMemory.count)
    history = _driven(AsyncMemory.history)
    export = _driven(AsyncMemory.export)
    import_ = _driven(AsyncMemory.import_)

    def stats(self) -> Stats:
        """Return counters and times of the store's thread. See :meth:`aiochroma.Memory.stats`."""
        return self._memory.stats()

    @property
    def client(self) -> BlockingClient:
        """The client below.

        Raises:
            ClosedError: The memory is not open.
        """
        from aiochroma.client.blocking import BlockingClient

        return BlockingClient(self._memory.client)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return drive(work)
