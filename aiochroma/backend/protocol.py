"""What every backend is, something that carries out requests and says what it can do; and how a call that failed is repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_any,
    stop_when_event_set,
    wait_exponential,
    wait_random,
)
from tenacity.stop import stop_base

from aiochroma._clock import monotonic
from aiochroma.core.connection import BackendInfo, Capabilities
from aiochroma.disk.retained_log import Follower, LogState

if TYPE_CHECKING:
    import threading

    from chromadb.api import ServerAPI

    from aiochroma.core.config import EngineOptions
    from aiochroma.core.request import Request

__all__ = [
    "Backend",
    "BackendInfo",
    "Capabilities",
    "FailedCall",
    "FurtherOperations",
    "MakeHook",
    "ServerOperations",
    "WriteHook",
    "call_repeatedly",
]


class Backend(Protocol):
    """An open database: Chroma in this process, or a Chroma server."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    def execute(self, request: Request, deadline: float | None = None) -> Any:
        """Carry out one call and return its result.

        Args:
            request: The call.
            deadline: The moment (``monotonic()``) after which the result is no longer awaited, or None. It bounds waiting
                and repeating; a write that was sent completes.
        """

    def describe(self) -> BackendInfo:
        """Return what is known of it; called from any thread, never blocks."""

    def stop_retrying(self) -> None:
        """Repeat nothing any more: what is under way ends soon."""

    def close(self) -> None:
        """Give everything back."""


MakeHook = Callable[["ServerAPI", Path | None, LogState, "EngineOptions"], "WriteHook"]
"""Makes what follows the writes of an open database: from Chroma, the database's directory (None without one), how far its log
went when it was opened, and how the database is served."""


class FurtherOperations(Protocol):
    """Operations that Chroma does not have, carried out where Chroma is called."""

    def operations(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""

    def collections_changed(self, *, renamed: bool) -> None:
        """Note that collections may have been made or deleted, or that one has another name or other metadata."""


class ServerOperations(FurtherOperations, Protocol):
    """Operations on a server, which know of the writes that are made beside them."""

    def after_write(self, request: Request) -> None:
        """Follow a write of Chroma's own that was carried out, or may have been, or the deletion of collections."""

    def close(self) -> None:
        """Give everything back."""


class WriteHook(FurtherOperations, Follower, Protocol):
    """What follows the writes of a backend, on its thread, such as a full-text index."""

    def after_write(self, request: Request) -> None:
        """Follow a write of Chroma's own that was carried out."""

    def next_deletion(self) -> Request | None:
        """Return the deletion of a slice of what nothing needs any more, to be carried out now; None where there is none."""

    def work(self) -> bool:
        """Do a slice of what is left to do; return whether there is more."""

    def distrust(self, collection: str) -> None:
        """Note that a write to a collection failed that may have happened."""

    def forget_collection(self, collection: str) -> None:
        """Drop a collection that is gone, by its id."""

    def forget_everything(self) -> None:
        """Drop all collections."""

    def stop(self) -> None:
        """End what reads Chroma's file beside this thread: Chroma is about to close it."""

    def close(self, positions: Mapping[str, int]) -> None:
        """Note how far the log goes for the last time, and give everything back."""


T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.1

_LONGEST_PAUSE_SECONDS = 2.0


class FailedCall(Exception):  # noqa: N818 - never a caller's
    """A call failed on its way to the server or back.

    Attributes:
        cause: The error underneath.
        sent: The server may have carried it out. Over several attempts: in any of them.
        permanent: Trying again cannot help.
        pause: For how long the server asks to be left alone, in seconds.
        attempts: How many there have been.
    """

    def __init__(
        self, cause: BaseException, *, sent: bool, permanent: bool = False, pause: float = 0.0
    ) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.sent = sent
        self.permanent = permanent
        self.pause = pause
        self.attempts = 1


def call_repeatedly(
    function: Callable[[], T],
    *,
    repeatable: bool,
    attempts: int,
    deadline: float | None,
    stopped: threading.Event,
    on_retry: Callable[[int, FailedCall], None],
) -> T:
    """Call a function until it succeeds, with exponential back-off and jitter between the attempts.

    Args:
        function: What to call; raises :class:`FailedCall` where repeating may help, anything else where not.
        repeatable: Whether it may be repeated after the server may have carried it out.
        attempts: How many attempts at most.
        deadline: No further attempt begins after this moment (``monotonic()``).
        stopped: Set to give up early.
        on_retry: Called before each further attempt with the number of the one that failed, and its fault.

    Raises:
        FailedCall: The last one; ``.sent`` and ``.attempts`` speak for all attempts.
    """
    history = _History(repeatable=repeatable)

    def before_sleep(state: RetryCallState) -> None:
        on_retry(state.attempt_number, _fault_in(state))

    retrying = Retrying(
        retry=retry_if_exception(history.may_repeat),
        stop=stop_any(_OutOfTime(deadline), stop_after_attempt(attempts), stop_when_event_set(stopped)),
        wait=_pause,
        sleep=sleep_using_event(stopped),
        before_sleep=before_sleep,
        reraise=True,
    )
    return retrying(function)


class _History:
    """What the attempts so far allow."""

    def __init__(self, *, repeatable: bool) -> None:
        self._repeatable = repeatable
        self._attempts = 0
        self._sent = False

    def may_repeat(self, error: BaseException) -> bool:
        self._attempts += 1
        if not isinstance(error, FailedCall):
            return False
        self._sent = error.sent = self._sent or error.sent
        error.attempts = self._attempts
        return not error.permanent and (self._repeatable or not error.sent)


class _OutOfTime(stop_base):
    """True when there is no time left for a pause and another attempt."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline

    def __call__(self, retry_state: RetryCallState) -> bool:
        if self._deadline is None:
            return False
        return monotonic() + _pause(retry_state) >= self._deadline


_backoff = wait_exponential(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS) + wait_random(
    0, _FIRST_PAUSE_SECONDS
)


def _pause(state: RetryCallState) -> float:
    """Return how long to wait: longer from attempt to attempt, and no less than the server asked for, within reason."""
    return max(float(_backoff(state)), min(_fault_in(state).pause, _LONGEST_PAUSE_SECONDS))


def _fault_in(state: RetryCallState) -> FailedCall:
    fault = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(fault, FailedCall), "only faults are repeated"
    return fault
