"""Work that would stop an event loop, done on a thread of our own.

Not with anyio's worker threads: they are no daemons and end with their loop, so a loop that is abandoned in the middle of
such work would keep the interpreter from ending. The standard library's executors end with the interpreter.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from aiochroma._errors import BlockingCallError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["THREAD_NAME", "off_loop", "refuse_on_loop"]

THREAD_NAME = "aiochroma-work"
_THREADS = 2
"""Validation and the like is Python code, of which only one thread runs at a time; the second is for what asks the disk."""

T = TypeVar("T")

_executors: dict[int, ThreadPoolExecutor] = {}


async def off_loop(work: Callable[[], T]) -> T:
    """Do something on a worker thread, in the caller's context; a cancelled caller does not wait for its end."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_executor(), context.run, work)


def refuse_on_loop() -> None:
    """Refuse to block a thread on which an event loop runs.

    Raises:
        BlockingCallError: One does.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise BlockingCallError(
        "An event loop runs on this thread and would stand still: await the asynchronous form of this call, or make the "
        "blocking one on another thread (`await asyncio.to_thread(...)`)."
    )


def _executor() -> ThreadPoolExecutor:
    """Return the threads of this process; a forked child has to have its own."""
    executor = _executors.get(os.getpid())
    if executor is None:
        executor = _executors.setdefault(
            os.getpid(), ThreadPoolExecutor(_THREADS, thread_name_prefix=THREAD_NAME)
        )
    return executor
