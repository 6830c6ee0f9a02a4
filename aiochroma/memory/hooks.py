"""Calling functions of the caller's, which may be synchronous, asynchronous, slow, or wrong."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import time
from typing import TYPE_CHECKING, Any

from aiochroma._deadline import deadline_at
from aiochroma._threads import waits_by_blocking
from aiochroma.embedding.functions import is_asynchronous

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiochroma._errors import AiochromaError

__all__ = ["ask"]


async def ask(
    name: str, function: Callable[..., Any], *arguments: Any, seconds: float, failure: type[AiochromaError]
) -> Any:
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
    limit = seconds if nearest is None else max(0.0, min(seconds, nearest - time.monotonic()))
    try:
        if is_asynchronous(function):
            return await asyncio.wait_for(_answer(function, arguments), limit)
        future = _on_thread_of_its_own(name, function, arguments)
        if waits_by_blocking():
            return future.result(limit)
        return await asyncio.wait_for(asyncio.wrap_future(future), limit)
    except (asyncio.TimeoutError, concurrent.futures.TimeoutError) as error:
        raise failure(f"`{name}` had not answered after {limit:.1f} s.") from error
    except Exception as error:
        raise failure(f"`{name}` failed with {type(error).__name__}: {error}") from error


async def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return await function(*arguments)


def _on_thread_of_its_own(
    name: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> concurrent.futures.Future[Any]:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def work() -> None:
        try:
            result, failure = function(*arguments), None
        except BaseException as error:  # noqa: BLE001 - the function's failure, whatever it is
            result, failure = None, error
        if not future.set_running_or_notify_cancel():
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name=f"aiochroma-{name}", daemon=True).start()
    return future
