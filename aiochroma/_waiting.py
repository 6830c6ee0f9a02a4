"""How the coroutines of this package wait, and until when: on an event loop by suspending, without one by blocking its thread.

Everything is written once, as coroutines. On an event loop they are awaited. :func:`drive` runs them on a thread without one:
each thing that they wait for looks at :func:`waits_by_blocking` and then blocks instead of suspending, so a coroutine runs from
its beginning to its end in one go.

Work that would stop an event loop is done on threads of our own, and not with anyio's: those are no daemons and end with their
loop, so a loop that is abandoned in the middle of such work would keep the interpreter from ending. The standard library's
executors end with the interpreter.

A deadline travels with the caller's context.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import math
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, Token
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from aiochroma._clock import monotonic
from aiochroma._errors import (
    BlockingCallError,
    EventLoopRequiredError,
    InvalidInputError,
    StoreUnavailableError,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from types import TracebackType

__all__ = [
    "LONGEST_SECONDS",
    "THREAD_NAME",
    "Started",
    "at_length",
    "checked_seconds",
    "deadline",
    "deadline_at",
    "drive",
    "driven",
    "off_loop",
    "on_callers_loop",
    "refuse_on_loop",
    "rest",
    "show_as",
    "start_thread",
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

LONGEST_SECONDS = 10 * 365 * 86_400.0
"""Longer limits count as none: the clocks of threads and event loops overflow long before infinity."""

_UNSET = math.nan
_current: ContextVar[float | None] = ContextVar("aiochroma_deadline", default=_UNSET)


# -- with and without an event loop ------------------------------------------------------------------------------------


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Run one of this package's coroutines to its end on this thread, without an event loop, and return its result.

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
        # In a context of its own: an interrupt at the end of a `with deadline(...)` block leaves that deadline behind.
        contextvars.copy_context().run(work.send, None)
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
    """Tell how this package's coroutines have to wait: True inside :func:`drive`, False on an event loop.

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


async def rest(seconds: float) -> None:
    """Do nothing for a while."""
    if waits_by_blocking():
        time.sleep(seconds)  # noqa: ASYNC251 - there is no loop
    else:
        import asyncio

        await asyncio.sleep(seconds)


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
    return await _begun(_executor(), work)


async def at_length(work: Callable[[], T]) -> T:
    """Do something that takes long, such as the repair of a database, on a thread of its own, in the caller's context.

    A caller that is cancelled is released, and the work goes on to its end. Driven, it is done here.
    """
    if waits_by_blocking():
        return work()
    executor = ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME)
    try:
        return await _begun(executor, work)
    finally:
        executor.shutdown(wait=False)


def start_thread(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        StoreUnavailableError: It cannot be started.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise _no_thread(error) from error


def _begun(executor: ThreadPoolExecutor, work: Callable[[], T]) -> asyncio.Future[T]:
    context = contextvars.copy_context()
    is_refused = False

    def unless_refused() -> T:
        # What could get no thread stays in the executor's queue, for the next one that it gets.
        if is_refused:
            raise asyncio.CancelledError
        return context.run(work)

    try:
        return asyncio.get_running_loop().run_in_executor(executor, unless_refused)
    except RuntimeError as error:
        is_refused = True
        raise _no_thread(error) from error


def _no_thread(error: RuntimeError) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"A thread that this needs could not be started: {error}. If the process is not about to end, it has too many threads, "
        "or too little memory for another one: raise its limits (`ulimit -u`, `ulimit -v`), or run fewer."
    )


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


# -- until when ------------------------------------------------------------------------------------------------------------


class deadline:  # noqa: N801 - reads as a statement: `with aiochroma.deadline(0.5): ...`
    """Give every call inside the block one common deadline, in place of the client's own ``timeout``.

    The deadline is a moment, fixed when the block is entered: embedding, waiting in the queue and running all count.
    Inside another ``deadline`` the earlier moment holds. The block belongs to the task (or thread) that entered it and
    to the tasks started from it.

    A call whose deadline passes raises :class:`~aiochroma.DeadlineExceededError`. If it was still queued it never runs.
    If it had begun, it runs to its end on the DB thread and its outcome is dropped.

    Args:
        seconds: How long from now, in seconds; ``None`` lifts the client's own limit inside the block.

    Raises:
        InvalidInputError: ``seconds`` is negative, or is not a number.

    Example:
        >>> with deadline(0.5):
        ...     recall = await memory.recall("...")  # doctest: +SKIP
    """

    __slots__ = ("_seconds", "_token")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = checked_seconds("seconds", seconds, zero=True)
        self._token: Token[float | None] | None = None

    def __enter__(self) -> None:
        moment = None if self._seconds is None else monotonic() + self._seconds
        outer = _current.get()
        if outer is not None and not math.isnan(outer):
            moment = outer if moment is None else min(outer, moment)
        self._token = _current.set(moment)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        _current.reset(self._token)


def checked_seconds(
    name: str, seconds: float | None, *, zero: bool = False, none: bool = True
) -> float | None:
    """Return a time limit as a float, or None where there is none; infinity and everything above ten years count as none.

    Args:
        name: What the argument is called.
        seconds: The caller's value.
        zero: Whether zero is allowed.
        none: Whether None is allowed, for no limit.

    Raises:
        InvalidInputError: It is not a number, is NaN, or is too small.
    """
    if seconds is None and none:
        return None
    if (
        not isinstance(seconds, (int, float))
        or isinstance(seconds, bool)
        or not (seconds > 0 or (zero and seconds == 0))
    ):
        least = ("zero or more" if zero else "above 0") + (", or None" if none else "")
        raise InvalidInputError(f"`{name}` must be a number of seconds {least}, got {shown(seconds)}.")
    return None if seconds > LONGEST_SECONDS else float(seconds)


def deadline_at(timeout: float | None) -> float | None:
    """Return by when (``monotonic()``, seconds) a call that begins now must end, or None for no limit.

    Args:
        timeout: The client's own limit in seconds, used where no :class:`deadline` block surrounds the call.
    """
    moment = _current.get()
    if moment is None or not math.isnan(moment):
        return moment
    return None if timeout is None else monotonic() + timeout
