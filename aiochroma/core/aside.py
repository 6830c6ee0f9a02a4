"""Work that a call has begun and that goes on beside the DB thread, which meanwhile carries out reads and nothing else."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Aside"]

T = TypeVar("T")


class Aside(Generic[T]):
    """What a barrier returns whose work needs no more than that nothing is written.

    Until it is over reads are carried out, and everything else waits.

    Args:
        work: The work; begins now, on a thread of its own.
        finish: Called on the DB thread when the work is over, with nothing else under way; gets what the work returned, and
            returns the result of the call. Not called when the work raised.
    """

    def __init__(self, work: Callable[[], T], finish: Callable[[T], Any]) -> None:
        self._work = work
        self._finish = finish
        self._future: concurrent.futures.Future[T] = concurrent.futures.Future()
        threading.Thread(
            target=self._run, name=f"{threading.current_thread().name}:aside", daemon=True
        ).start()

    @property
    def is_over(self) -> bool:
        """Whether the work is done, or has failed."""
        return self._future.done()

    def when_over(self, callback: Callable[[], None]) -> None:
        """Call something when the work is over, on its thread; at once if it is."""
        self._future.add_done_callback(lambda _: callback())

    def result(self) -> Any:
        """Wait for the work, and return the result of the call.

        Raises:
            BaseException: Whatever the work raised, or its end.
        """
        return self._finish(self._future.result())

    def _run(self) -> None:
        try:
            self._future.set_result(self._work())
        except BaseException as error:  # noqa: BLE001 - belongs to the caller, not to the thread
            self._future.set_exception(error)
