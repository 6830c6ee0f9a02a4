"""The client's end: serves an engine's requests by a process that has the database open. One thread for each engine."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from aiochroma._logging import get_logger
from aiochroma.core.config import DEFAULTS
from aiochroma.core.stats import StatsRecorder
from aiochroma.host.link_queue import LinkQueue
from aiochroma.host.link_state import LinkState
from aiochroma.host.waker import Waker

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiochroma.core.connection import BackendInfo
    from aiochroma.core.queue import RequestQueue
    from aiochroma.core.registry import Engine

__all__ = ["HostLink"]

log = get_logger("aiochroma.engine")


class HostLink:
    """What an engine has its requests served by, where another process has the directory open.

    See :class:`aiochroma.core.connection.Serving`.

    Args:
        engine: The engine; its location and options say what to reach, and how.
        on_idle: Called on the link's thread when it was woken.
        on_end: Called on the link's thread when it ends.
    """

    def __init__(self, engine: Engine, *, on_idle: Callable[[], None], on_end: Callable[[], None]) -> None:
        location, options = engine.location, engine.options
        self._waker = Waker()
        queue = LinkQueue(
            location.name, int(options.max_pending or DEFAULTS["max_pending"]), self._waker.wake
        )
        self.queue: RequestQueue = queue
        self.recorder = StatsRecorder()
        self._end_lock = threading.Lock()
        self._ended: list[Callable[[], None]] = []
        self._over = False
        self._state = LinkState(engine, queue, self.recorder, self._waker, on_idle)
        self.thread = threading.Thread(
            target=_serve,
            args=(self._state, on_end, self._announce_end),
            name=f"aiochroma-link:{location.short_name}",
            daemon=True,
        )

    def start(self) -> None:
        """See :class:`Serving`."""
        self.thread.start()

    def close(self, *, drain: bool = True) -> None:
        """See :class:`Serving`."""
        self.queue.close(drain=drain)

    def when_ended(self, callback: Callable[[], None]) -> None:
        """See :class:`Serving`."""
        with self._end_lock:
            if not self._over:
                self._ended.append(callback)
                return
        callback()

    def join(self, timeout: float | None = None) -> bool:
        """See :class:`Serving`."""
        if self.thread.ident is not None and self.thread is not threading.current_thread():
            self.thread.join(timeout)
        return not self.thread.is_alive()

    def describe(self) -> BackendInfo | None:
        """Return what the host said last; None until the database is open."""
        return self._state.info

    def _announce_end(self) -> None:
        with self._end_lock:
            self._over = True
            callbacks = list(self._ended)
        for callback in callbacks:
            callback()


def _serve(state: LinkState, on_end: Callable[[], None], announce: Callable[[], None]) -> None:
    """Body of the thread."""
    failure: BaseException | None = None
    try:
        state.run()
    except BaseException as error:  # noqa: BLE001 - remembered and given to every caller
        failure = error.with_traceback(None)
        log.warning("database.failed", database=state.queue.name, error=repr(error))
    finally:
        state.wind_up(failure)
        on_end()
        announce()
