"""The end of a database, as something to await."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiochroma._deadline import checked_seconds
from aiochroma._threads import refuse_on_loop, waits_by_blocking

if TYPE_CHECKING:
    from collections.abc import Generator

    from aiochroma.core.connection import Connection

__all__ = ["Closing"]

_DRIVEN_SECONDS = 30.0
"""For how long a blocking client waits for the end of its database."""


class Closing:
    """Done when the DB thread has ended, or at once while other clients keep the database open.

    Awaiting it is shielded: a cancelled caller still waits for the thread, then is cancelled. Otherwise whoever opens the
    directory next might find it half closed.

    Args:
        connection: A share that was given back.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __await__(self) -> Generator[object, None, None]:
        return self._ended().__await__()

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until the DB thread has ended.

        Args:
            timeout: For how long, in seconds; None for as long as it takes.

        Returns:
            Whether it has ended (or other clients keep it open).

        Raises:
            BlockingCallError: An event loop runs on this thread; await instead.
        """
        refuse_on_loop()
        return self._connection.join(checked_seconds("timeout", timeout, zero=True))

    async def _ended(self) -> None:
        if waits_by_blocking():
            self._connection.join(_DRIVEN_SECONDS)
            return
        if self._connection.join(0):
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def resolve() -> None:
            if not ended.done():
                ended.set_result(None)

        def announce() -> None:
            try:
                loop.call_soon_threadsafe(resolve)
            except RuntimeError:
                return  # The loop was closed before the thread ended: nobody waits.

        self._connection.when_ended(announce)
        cancelled = False
        while not ended.done():
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError:  # noqa: PERF203 - waiting goes on
                cancelled = True
        # The announcement is the thread's last act: this returns at once.
        self._connection.join()
        if cancelled:
            raise asyncio.CancelledError
