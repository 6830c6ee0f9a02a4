"""A memory for callers without an event loop: the coroutines of the asynchronous one, driven on the calling thread."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar

from aiochroma._threads import drive, driven
from aiochroma.memory.memory import Memory as AsyncMemory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    from typing_extensions import Self

    from aiochroma.client.client import BlockingClient
    from aiochroma.core.stats import Stats

__all__ = ["Memory"]

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")


def _arguments_of(
    template: Callable[P, Any],
) -> Callable[[Callable[Concatenate[C, ...], T]], Callable[Concatenate[C, P], T]]:
    """Give a method the arguments and the words of what it calls, also for type checkers and :func:`help`."""

    def with_arguments(method: Callable[Concatenate[C, ...], T]) -> Callable[Concatenate[C, P], T]:
        own = next(iter(inspect.signature(method).parameters.values()))
        arguments = inspect.signature(template).parameters.values()
        method.__signature__ = inspect.Signature([own, *arguments])  # type: ignore[attr-defined] # as `driven` does
        method.__doc__ = template.__doc__
        return method

    return with_arguments


def _awaited(
    method: Callable[Concatenate[AsyncMemory, P], Awaitable[T]],
) -> Callable[Concatenate[AsyncMemory, P], Coroutine[Any, Any, T]]:
    """Make a coroutine of a method that returns something to await."""

    @functools.wraps(method)
    async def call(self: AsyncMemory, /, *values: P.args, **arguments: P.kwargs) -> T:
        return await method(self, *values, **arguments)

    return call


class Memory:
    """A memory for scripts, threads and Streamlit: :class:`aiochroma.Memory` with calls that block.

    Arguments, results and errors are those of the asynchronous one. It opens with ``with``, with :meth:`open`, or at its first
    call, and may be used from any number of threads at once. Copies of the object share the memory.
    """

    @_arguments_of(AsyncMemory)
    def __init__(self, *values: Any, **options: Any) -> None:
        self._memory = AsyncMemory(*values, **options)

    @classmethod
    @_arguments_of(AsyncMemory.from_env)
    def from_env(cls: type[Memory], *values: Any, **options: Any) -> Memory:  # noqa: D102 - see the asynchronous one
        memory = cls.__new__(cls)
        memory._memory = AsyncMemory.from_env(*values, **options)  # noqa: SLF001 - of this class
        return memory

    @property
    def asynchronous(self) -> AsyncMemory:
        """The memory whose coroutines are driven."""
        self._memory._life.enter()  # noqa: SLF001 - one class in two forms
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

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        self._memory.__reduce__()

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

    close = driven(AsyncMemory.close)
    health = driven(AsyncMemory.health)
    backup = driven(AsyncMemory.backup)

    remember = driven(AsyncMemory.remember)
    remember_many = driven(AsyncMemory.remember_many)
    remember_messages = driven(AsyncMemory.remember_messages)
    update = driven(AsyncMemory.update)
    pin = driven(AsyncMemory.pin)

    recall = driven(AsyncMemory.recall)
    similar = driven(AsyncMemory.similar)
    get = driven(AsyncMemory.get)
    get_many = driven(AsyncMemory.get_many)
    list = driven(_awaited(AsyncMemory.list))
    namespaces = driven(AsyncMemory.namespaces)
    count = driven(AsyncMemory.count)
    history = driven(AsyncMemory.history)

    forget = driven(AsyncMemory.forget)
    erase = driven(AsyncMemory.erase)
    forget_many = driven(AsyncMemory.forget_many)
    forget_namespace = driven(AsyncMemory.forget_namespace)
    sweep = driven(AsyncMemory.sweep)

    reembed = driven(AsyncMemory.reembed)

    export = driven(AsyncMemory.export)
    import_ = driven(AsyncMemory.import_)
