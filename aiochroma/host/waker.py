"""Waking a thread that waits for a socket."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["Waker"]


class Waker:
    """Wakes a thread that waits for a socket; may be used by a destructor, and does nothing in a forked child."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def wake(self) -> None:
        """Wake the thread; neither blocks nor raises."""
        if os.getpid() == self._pid:
            with contextlib.suppress(OSError):
                self._writer.send(b"\0")

    def drain(self) -> None:
        """Take note of having been woken."""
        with contextlib.suppress(OSError):
            while self.reader.recv(4096):
                pass

    def close(self) -> None:
        """Give the descriptors back."""
        self.reader.close()
        self._writer.close()
