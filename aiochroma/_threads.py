"""How a coroutine of ours waits: on an event loop by suspending, without one by blocking its thread.

Everything is written once, as coroutines. On an event loop they are awaited. :func:`drive` runs them on a thread without one:
each thing that they wait for looks at :func:`waits_by_blocking` and then blocks instead of suspending, so a coroutine runs from
its beginning to its end in one go.

Work that would stop an event loop is done on threads of our own, and not with anyio's: those are no daemons and end with their
loop, so a loop that is abandoned in the middle of such work would keep the interpreter from ending. The standard library's
executors end with the interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from aiochroma._errors import BlockingCallError, EventLoopRequiredError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

__all__ = [
    "THREAD_NAME",
    "Started",
    "at_length",
    "drive",
    "driven",
    "off_loop",
    "on_callers_loop",
    "refuse_on_loop",
    "show_as",
    "together",
    "waits_by_blocking",
]

THREAD_NAME = "aiochroma-work"
_THREADS = 2
"""Validation and the like is Python code, of which only one thread runs at a time; the second is for what asks the disk."""

P = ParamSpec("P")
K = TypeVar("K")
T = TypeVar("T")

_executors: dict[int, ThreadPoolExecutor] = {}
_driving = threading.local()


# -- with and without an event loop ------------------------------------------------------------------------------------


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of ours to its end on this thread, without an event loop, and return its result.

    Raises:
        BlockingCallError: An event loop runs on this thread.
        EventLoopRequiredError: Something in it is asynchronous and not ours: an embedding function, an iterable.
    """
    try:
        refuse_on_loop()
    except BaseException:
        work.close()
        raise
    outer = getattr(_driving, "depth", 0)
    _driving.depth = outer + 1
    try:
        work.send(None)
        work.close()
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        _driving.depth = outer
    raise EventLoopRequiredError(
        "Something in this blocking call is asynchronous (an embedding function, an iterable?) and needs an event loop: use the "
        "asynchronous form, or give something synchronous."
    )


def waits_by_blocking() -> bool:
    """Tell how a coroutine of ours has to wait: True inside :func:`drive`, False on an event loop.

    Raises:
        EventLoopRequiredError: It is neither driven nor on an asyncio event loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        if getattr(_driving, "depth", 0):
            return True
    else:
        return False
    raise EventLoopRequiredError(
        "No asyncio event loop runs here, and aiochroma needs one: under trio or curio its asynchronous calls do not work. Use "
        "asyncio (with anyio: the backend 'asyncio'), or the blocking classes of `aiochroma.sync` on a worker thread."
    )


def refuse_on_loop() -> None:
    """Refuse to block a thread on which an event loop runs.

    Raises:
        BlockingCallError: One does, asyncio's or another library's.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        if _other_library() is None:
            return
    raise BlockingCallError(
        "An event loop runs on this thread and would stand still: await the asynchronous form of this call, or make the "
        "blocking one on another thread (`await asyncio.to_thread(...)`, under trio `await trio.to_thread.run_sync(...)`)."
    )


def _other_library() -> str | None:
    """Return the name of an asynchronous library whose loop runs on this thread and is not asyncio's: "trio", "curio"."""
    sniffio = sys.modules.get("sniffio")
    if sniffio is None:
        return None  # Such a loop imports it, to be recognised.
    try:
        return str(sniffio.current_async_library())
    except sniffio.AsyncLibraryNotFoundError:
        return None


class Blocking(Protocol):
    """The blocking form of an asynchronous object."""

    @property
    def asynchronous(self) -> Any:
        """The object whose coroutines are driven."""


def driven(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Make the blocking form of an asynchronous method, for a class that is :class:`Blocking`.

    Arguments, result and errors are the same, and so is what type checkers and :func:`help` show of them.
    """

    def call(self: Blocking, /, *values: P.args, **arguments: P.kwargs) -> T:
        return drive(method(self.asynchronous, *values, **arguments))

    show_as(call, method)
    return call


def show_as(function: Callable[..., object], template: Callable[..., object]) -> None:
    """Give a function the name, the docstring and the arguments of another, for ``inspect.signature`` and :func:`help`."""
    function.__name__, function.__qualname__ = template.__name__, template.__qualname__
    function.__doc__, function.__module__ = template.__doc__, template.__module__
    vars(function)["__signature__"] = inspect.signature(template)


class Started(Generic[T]):
    """Something that was begun and goes on meanwhile, where that is possible.

    Args:
        work: What to do. On an event loop it becomes a task; driven, it is done at once.
    """

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._task: asyncio.Task[T] | None = None
        self._error: BaseException | None = None
        try:
            blocking = waits_by_blocking()
        except BaseException:
            work.close()
            raise
        if not blocking:
            self._task = asyncio.get_running_loop().create_task(work)
            return
        try:
            self._result = drive(work)
        except Exception as error:  # noqa: BLE001 - given to whoever asks for the outcome
            self._error = error

    async def result(self) -> T:
        """Return what it returned, or raise what it raised."""
        if self._task is not None:
            return await self._task
        if self._error is not None:
            raise self._error
        return self._result

    async def settle(self, *, cancel: bool = False) -> BaseException | None:
        """Let it end, and return its error.

        Args:
            cancel: End it as soon as possible.
        """
        if self._task is None:
            return self._error
        if cancel:
            self._task.cancel()
        await asyncio.wait({self._task})
        return asyncio.CancelledError() if self._task.cancelled() else self._task.exception()


async def together(works: Mapping[K, Coroutine[Any, Any, T]]) -> dict[K, T]:
    """Do several things at the same time, where that is possible; when one fails, the others are ended."""
    started = {key: Started(work) for key, work in works.items()}
    try:
        return {key: await one.result() for key, one in started.items()}
    finally:
        for one in started.values():
            await one.settle(cancel=True)


# -- worker threads ----------------------------------------------------------------------------------------------------


async def off_loop(work: Callable[[], T]) -> T:
    """Do something on a worker thread, in the caller's context; a cancelled caller does not wait for its end.

    Driven, it is done here: there is no event loop that would stand still.
    """
    if waits_by_blocking():
        return work()
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_executor(), context.run, work)


async def at_length(work: Callable[[], T]) -> T:
    """Do something that takes long, such as the repair of a database, on a thread of its own, in the caller's context.

    A caller that is cancelled is released, and the work goes on to its end. Driven, it is done here.
    """
    if waits_by_blocking():
        return work()
    executor = ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME)
    try:
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(executor, context.run, work)
    finally:
        executor.shutdown(wait=False)


def on_callers_loop(function: Callable[P, object]) -> Callable[P, None]:
    """Have a function called on the caller's event loop, where there is one, whichever thread asks for it."""
    loop = None if waits_by_blocking() else asyncio.get_running_loop()

    def call(*values: P.args, **arguments: P.kwargs) -> None:
        if loop is None:
            function(*values, **arguments)
            return
        with contextlib.suppress(RuntimeError):  # The caller was cancelled, and its loop is closed.
            loop.call_soon_threadsafe(partial(function, *values, **arguments))

    return call


def _executor() -> ThreadPoolExecutor:
    """Return the threads of this process; a forked child has to have its own."""
    executor = _executors.get(os.getpid())
    if executor is None:
        executor = _executors.setdefault(
            os.getpid(), ThreadPoolExecutor(_THREADS, thread_name_prefix=THREAD_NAME)
        )
    return executor
