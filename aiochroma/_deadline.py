"""Deadlines that travel with the caller's context."""

from __future__ import annotations

import math
import time
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from aiochroma._errors import InvalidInputError, shown

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LONGEST_SECONDS", "checked_seconds", "deadline", "deadline_at"]

LONGEST_SECONDS = 10 * 365 * 86_400.0
"""Longer limits count as none: the clocks of threads and event loops overflow long before infinity."""

_UNSET = math.nan
_current: ContextVar[float | None] = ContextVar("aiochroma_deadline", default=_UNSET)


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
        moment = None if self._seconds is None else time.monotonic() + self._seconds
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
    """Return by when (``time.monotonic()``, seconds) a call that begins now must end, or None for no limit.

    Args:
        timeout: The client's own limit in seconds, used where no :class:`deadline` block surrounds the call.
    """
    moment = _current.get()
    if moment is None or not math.isnan(moment):
        return moment
    return None if timeout is None else time.monotonic() + timeout
