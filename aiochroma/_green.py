"""What gevent and eventlet make of threads, and where nothing could come of that.

They replace threads by greenlets: functions that take turns on one real thread. Where that is done before this package is
imported, the DB thread is one of them, its queue and its locks are theirs, and it works. Done later, or by halves, one greenlet
waits for another on a lock that stops both for ever. Nothing could be done about it then, so it is refused at the opening.
"""

from __future__ import annotations

import asyncio
import os
import queue
import subprocess
import sys
import threading

from aiochroma._errors import BlockingCallError

__all__ = ["real_thread", "refuse_another_thread", "refuse_half_patched"]

_lock_at_import = threading.Lock
_is_green = not type(threading.Lock()).__module__.startswith("_thread")


def refuse_half_patched() -> None:
    """Refuse to open a database where its thread and its callers would wait for each other for ever.

    Raises:
        BlockingCallError: Threads were replaced after the import of this package, or not all that belongs to them; or what is
            called from is not of those greenlets.
    """
    if threading.Lock is not _lock_at_import:
        raise BlockingCallError(
            "Threads were replaced after aiochroma had been imported (`gevent.monkey.patch_all()`, `eventlet.monkey_patch()`), "
            "and its locks would stop every greenlet. Do that first, before any other import."
        )
    if not _is_green:
        replaced = [each.__name__ for each in (queue.SimpleQueue, subprocess.Popen) if _is_of_greenlets(each)]
        if replaced:
            raise BlockingCallError(
                f"{' and '.join(replaced)} were replaced and threads were not (`gevent.monkey.patch_all(thread=False)`): threads "
                "would wait for greenlets for ever. Replace threads as well (`gevent.monkey.patch_all()`)."
            )
        return
    if sys.platform == "linux" and threading.get_native_id() != os.getpid():
        raise BlockingCallError(
            "With threads replaced by greenlets (gevent, eventlet) a database has to be opened and used on the main thread, "
            "whose greenlets serve it, and not on one of a pool: call it directly."
        )
    try:
        loop = type(asyncio.get_running_loop()).__module__
    except RuntimeError:
        return
    if loop.split(".")[0] == "uvloop":
        raise BlockingCallError(
            "With threads replaced by greenlets (gevent, eventlet) uvloop would keep the one that serves the database from ever "
            "running: use asyncio's own event loop."
        )


def _is_of_greenlets(kind: type) -> bool:
    return kind.__module__.split(".")[0] in {"gevent", "eventlet"}


def real_thread() -> int | None:
    """Return the real thread that greenlets, which should be threads, take turns on; None where threads are threads."""
    return threading.get_native_id() if _is_green else None


def refuse_another_thread(name: str) -> None:
    """Refuse a request from a real thread that would not be woken.

    Args:
        name: What messages call the database.

    Raises:
        BlockingCallError: Always.
    """
    raise BlockingCallError(
        f"{name} is served by a greenlet (gevent, eventlet), and this is another real thread, as those of gevent's pool are: it "
        "would never be woken. Call it directly, from a greenlet of the thread that opened it."
    )
