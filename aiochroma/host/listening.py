"""A host's listening socket: its name in the folder of sockets, made by whoever has the owner's lock."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from aiochroma._errors import AiochromaError
from aiochroma.host import rendezvous

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Listening"]


class Listening:
    """The socket at which clients of a directory connect, while there is one.

    Args:
        directory: The canonical directory.

    Attributes:
        socket: The socket; None before it is made and after it is closed.
        address: Its name.
    """

    def __init__(self, directory: Path) -> None:
        self.socket: socket.socket | None = None
        self.address = rendezvous.socket_address(directory)
        self._directory = directory
        self._bound: os.stat_result | None = None

    def open(self) -> None:
        """Listen; a socket that was left over is removed.

        Raises:
            OSError: It cannot be made.
        """
        # The folder may have been deleted.
        rendezvous.socket_address(self._directory)
        self.socket = rendezvous.listen(self.address)
        self._bound = self.address.stat()

    def close(self) -> None:
        """Listen no more. A name that is somebody else's by now stays."""
        listening, self.socket = self.socket, None
        if listening is None:
            return
        if self.is_bound():
            with contextlib.suppress(OSError):
                self.address.unlink()
        listening.close()

    def is_bound(self) -> bool:
        """Whether the socket's name is still ours."""
        try:
            found = self.address.stat()
        except OSError:
            return False
        return self._bound is not None and os.path.samestat(found, self._bound)

    def waiting(self) -> Iterator[socket.socket]:
        """Accept those who wait, one after the other."""
        while self.socket is not None:
            try:
                connected, _ = self.socket.accept()
            except OSError:
                return
            yield connected

    def is_anothers(self) -> bool:
        """Whether another host listens."""
        with contextlib.suppress(AiochromaError):
            other = rendezvous.connect(self._directory)
            if other is not None:
                other.close()
                return True
        return False
