"""Pipes by whose end a child process knows that the process that started it is gone.

A copy of this process that ``os.fork()`` makes would hold the other end, too, and outlive this one: it gives it up at once.
"""

from __future__ import annotations

import os

__all__ = ["cut", "made"]

_held: set[int] = set()


def made() -> tuple[int, int]:
    """Make one: the child's end, which it has for its input, and the end that this process holds until it cuts it.

    Raises:
        OSError: No more files can be open.
    """
    ends = os.pipe()
    _held.add(ends[1])
    return ends


def cut(held: int) -> None:
    """Let go of an end that this process holds."""
    _held.discard(held)
    os.close(held)


def _after_fork_in_child() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
