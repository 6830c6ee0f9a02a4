"""Deadlines that travel with the caller's context."""

from __future__ import annotations

import math
import time
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from aiochroma._errors import InvalidInputError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["deadline", "deadline_at", "set_moment"]

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
        InvalidInputError: ``seconds`` is negative or not a number.

    Example:
        >>> with deadline(0.5):
        ...     recall = await memory.recall("...")  # doctest: +SKIP
    """

    __slots__ = ("_seconds", "_token")

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not seconds >= 0:
            raise InvalidInputError(f"`seconds` of a deadline must be zero or more, got {seconds!r}.")
        self._seconds = seconds
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


def set_moment(moment: float) -> None:
    """Let a moment hold for everything that runs in the present context, as a :class:`deadline` block would."""
    _current.set(moment)


def deadline_at(timeout: float | None) -> float | None:
    """Return the moment (``time.monotonic()``, seconds) by which a call that begins now must end, or None for no limit.

    Args:
        timeout: The client's own limit in seconds, used where no :class:`deadline` block surrounds the call.
    """
    moment = _current.get()
    if moment is None or not math.isnan(moment):
        return moment
    return None if timeout is None else time.monotonic() + timeout
