"""The same classes and functions for callers without an event loop: scripts, threads, Streamlit.

No event loop runs behind these: the coroutines of the asynchronous classes run on the calling thread, which blocks where they
would wait. They may be used from any number of threads at once, beside asynchronous clients of the same directory, and refuse to
run on a thread whose event loop would stand still (:class:`aiochroma.BlockingCallError`).
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from aiochroma import ops as _ops
from aiochroma._waiting import drive, driven
from aiochroma.client import opening as _opening
from aiochroma.client import session as _session
from aiochroma.memory.memory import Memory as _AsyncMemory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    from typing_extensions import Self

    from aiochroma.client.client import BlockingClient
    from aiochroma.core.stats import Stats

__all__ = [
    "EphemeralClient",
    "HttpClient",
    "Memory",
    "PersistentClient",
    "connect",
    "doctor",
    "erase",
    "migrate",
    "restore",
]

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")


# -- clients -----------------------------------------------------------------------------------------------------------


def _blocking(opener: Callable[P, _opening.ClientOpening], name: str) -> Callable[P, BlockingClient]:
    """Make the blocking form of what opens a client: same arguments and errors; returns the open client."""

    def open_client(*values: P.args, **arguments: P.kwargs) -> BlockingClient:
        client = drive(opener(*values, **arguments).open())
        # Not before the DB thread has imported chromadb.
        from aiochroma.client.client import BlockingClient

        return BlockingClient(client)

    open_client.__name__ = open_client.__qualname__ = name
    open_client.__doc__ = (
        f"The blocking form of :func:`aiochroma.{opener.__name__}`: same arguments and errors.\n\n"
        "It returns the open client, which is of Chroma's own class, so other libraries take it. Use it with ``with``, or\n"
        "``close`` it.\n"
    )
    signature = inspect.signature(opener).replace(return_annotation="BlockingClient")
    vars(open_client)["__signature__"] = signature
    return open_client


PersistentClient = _blocking(_opening.AsyncPersistentClient, "PersistentClient")
EphemeralClient = _blocking(_opening.AsyncEphemeralClient, "EphemeralClient")
HttpClient = _blocking(_opening.AsyncHttpClient, "HttpClient")
connect = _blocking(_opening.connect, "connect")


# -- memory -------------------------------------------------------------------------------------------------------------


def _arguments_of(
    template: Callable[P, object],
) -> Callable[[Callable[Concatenate[C, ...], T]], Callable[Concatenate[C, P], T]]:
    """Give a method the arguments and the words of what it calls, also for type checkers and :func:`help`."""

    def with_arguments(method: Callable[Concatenate[C, ...], T]) -> Callable[Concatenate[C, P], T]:
        own = next(iter(inspect.signature(method).parameters.values()))
        arguments = inspect.signature(template).parameters.values()
        vars(method)["__signature__"] = inspect.Signature([own, *arguments])
        method.__doc__ = template.__doc__
        return method

    return with_arguments


def _awaited(
    method: Callable[Concatenate[_AsyncMemory, P], Awaitable[T]],
) -> Callable[Concatenate[_AsyncMemory, P], Coroutine[object, object, T]]:
    """Make a coroutine of a method that returns something to await."""

    @functools.wraps(method)
    async def call(self: _AsyncMemory, /, *values: P.args, **arguments: P.kwargs) -> T:
        return await method(self, *values, **arguments)

    return call


class Memory(_session.Shared):
    """A memory for scripts, threads and Streamlit: :class:`aiochroma.Memory` with calls that block.

    Arguments, results and errors are those of the asynchronous one. It opens with ``with``, with :meth:`open`, or at its first
    call, and may be used from any number of threads at once. Copies of the object share the memory.
    """

    @_arguments_of(_AsyncMemory)
    def __init__(self, *values: Any, **options: Any) -> None:
        self._memory = _AsyncMemory(*values, **options)

    @classmethod
    @_arguments_of(_AsyncMemory.from_env)
    def from_env(cls: type[Memory], *values: Any, **options: Any) -> Memory:  # noqa: D102 - see the asynchronous one
        memory = cls.__new__(cls)
        memory._memory = _AsyncMemory.from_env(*values, **options)  # noqa: SLF001 - of this class
        return memory

    @property
    def asynchronous(self) -> _AsyncMemory:
        """The memory whose coroutines are driven."""
        return self._memory

    def open(self) -> Self:
        """Open the store; returns itself. Idempotent. See :meth:`aiochroma.Memory.open`."""
        drive(self._memory.open())
        return self

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._memory)

    @property
    def client(self) -> BlockingClient:
        """The client below: Chroma's own API on the same thread.

        Raises:
            ClosedError: The memory is not open.
        """
        from aiochroma.client.client import BlockingClient

        return BlockingClient(self._memory.client)

    def stats(self) -> Stats:
        """Return counters and times of the store's thread. See :meth:`aiochroma.Memory.stats`."""
        return self._memory.stats()

    close = driven(_AsyncMemory.close)
    health = driven(_AsyncMemory.health)
    backup = driven(_AsyncMemory.backup)

    remember = driven(_AsyncMemory.remember)
    remember_many = driven(_AsyncMemory.remember_many)
    remember_messages = driven(_AsyncMemory.remember_messages)
    update = driven(_AsyncMemory.update)
    pin = driven(_AsyncMemory.pin)

    recall = driven(_AsyncMemory.recall)
    similar = driven(_AsyncMemory.similar)
    get = driven(_AsyncMemory.get)
    get_many = driven(_AsyncMemory.get_many)
    list = driven(_awaited(_AsyncMemory.list))
    namespaces = driven(_AsyncMemory.namespaces)
    count = driven(_AsyncMemory.count)
    history = driven(_AsyncMemory.history)

    forget = driven(_AsyncMemory.forget)
    erase = driven(_AsyncMemory.erase)
    forget_many = driven(_AsyncMemory.forget_many)
    forget_namespace = driven(_AsyncMemory.forget_namespace)
    sweep = driven(_AsyncMemory.sweep)

    reembed = driven(_AsyncMemory.reembed)
    compact = driven(_AsyncMemory.compact)

    export = driven(_AsyncMemory.export)
    import_ = driven(_AsyncMemory.import_)


# -- whole databases ---------------------------------------------------------------------------------------------------


def _blocking_function(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make the blocking form of an asynchronous function: same arguments, result and errors."""

    def call(*values: P.args, **arguments: P.kwargs) -> T:
        return drive(function(*values, **arguments))

    call.__name__ = call.__qualname__ = function.__name__
    call.__doc__ = (
        f"The blocking form of :func:`aiochroma.{function.__name__}`: same arguments, result and errors."
    )
    vars(call)["__signature__"] = inspect.signature(function)
    return call


doctor = _blocking_function(_ops.doctor)
erase = _blocking_function(_ops.erase)
migrate = _blocking_function(_ops.migrate)
restore = _blocking_function(_ops.restore)
