"""Calling functions of the caller's, which may be synchronous, asynchronous, slow, or wrong: a judge, an extractor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiochroma._clock import monotonic
from aiochroma._waiting import deadline_at, start_thread, waits_by_blocking

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiochroma._errors import AiochromaError

__all__ = ["ask", "is_asynchronous"]

_MOST_ITEMS = 100_000
"""The most items that are taken of an iterator."""


async def ask(
    name: str,
    function: Callable[..., object],
    *arguments: object,
    seconds: float,
    failure: type[AiochromaError],
) -> object:
    """Call a function of the caller's and return what it returns.

    A synchronous one runs on a thread of its own: should it never return, it keeps no caller waiting.

    Args:
        name: What messages call it: the name of the argument that it was given as.
        function: The function.
        *arguments: Its arguments.
        seconds: How long it may take, where no deadline is nearer.
        failure: The error for whatever goes wrong.

    Raises:
        AiochromaError: It raised, or had not answered in time; of the kind ``failure``.
    """
    nearest = deadline_at(None)
    limit = seconds if nearest is None else max(0.0, min(seconds, nearest - monotonic()))
    try:
        if is_asynchronous(function):
            answer = await asyncio.wait_for(_on_this_loop(function, arguments), limit)
        else:
            future = _on_thread_of_its_own(name, function, arguments)
            answer = (
                future.result(limit)
                if waits_by_blocking()
                else await asyncio.wait_for(asyncio.wrap_future(future), limit)
            )
            coroutine = answer.result
            if inspect.iscoroutine(coroutine):  # As a lambda returns that calls an `async def`.
                if waits_by_blocking():
                    coroutine.close()
                    raise failure(
                        f"`{name}` is asynchronous, and this blocking call has no event loop for it."
                    )
                answer = await asyncio.wait_for(_on_this_loop(lambda: coroutine, ()), limit)
    except (asyncio.TimeoutError, concurrent.futures.TimeoutError) as error:
        raise failure(f"`{name}` had not answered after {limit:.1f} s.") from error
    raised = answer.raised
    if raised is not None:
        raise failure(f"`{name}` failed with {type(raised).__name__}: {raised}") from raised
    return answer.result


def is_asynchronous(function: object) -> bool:
    """Return whether calling it gives a coroutine: an ``async def``, or an object with an asynchronous ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    method = getattr(function, "__call__", None)  # noqa: B004 - not whether it can be called, but what is called
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method)


@dataclass(slots=True)
class _Answer:
    """What a function returned or raised.

    A cancellation, ``SystemExit`` or ``StopIteration`` is its failure as well: let out they would end the caller, the event
    loop, or nothing at all, since no future takes them.
    """

    result: object = None
    raised: BaseException | None = None


async def _on_this_loop(function: Callable[..., Any], arguments: tuple[object, ...]) -> _Answer:
    async def answer() -> _Answer:
        try:
            return _Answer(_completed(await function(*arguments)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the function's failure, whatever it is
            return _Answer(raised=error)

    task = asyncio.ensure_future(answer())
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
    return task.result()


def _completed(result: object) -> object:
    """Return an iterator's items: what makes them may be slow, or never end, and has to be where it can be left alone."""
    return list(itertools.islice(result, _MOST_ITEMS)) if isinstance(result, Iterator) else result


def _on_thread_of_its_own(
    name: str, function: Callable[..., object], arguments: tuple[object, ...]
) -> concurrent.futures.Future[_Answer]:
    future: concurrent.futures.Future[_Answer] = concurrent.futures.Future()

    def work() -> None:
        try:
            answer = _Answer(_completed(function(*arguments)))
        except BaseException as error:  # noqa: BLE001 - the function's failure, whatever it is
            answer = _Answer(raised=error)
        if future.set_running_or_notify_cancel():
            future.set_result(answer)

    context = contextvars.copy_context()
    start_thread(threading.Thread(target=context.run, args=(work,), name=f"aiochroma-{name}", daemon=True))
    return future
