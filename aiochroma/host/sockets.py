"""Where clients and the host of a directory meet: a socket whose address follows from the directory, for one user alone.

The folder of the sockets belongs to the user and is closed to everybody else; beyond that, both sides ask the kernel who is at
the other end. Nothing listens on the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import selectors
import socket
import stat
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._errors import AiochromaError, DatabaseInUseError, InvalidInputError, StoreUnavailableError
from aiochroma._logging import EventLogger, get_logger
from aiochroma.disk.layout import no_descriptors
from aiochroma.disk.ownership import read_owner

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Listening",
    "Waker",
    "check_peer",
    "connect",
    "connect_to",
    "folder_of_sockets",
    "is_served",
    "listen",
    "process_at",
    "require_sockets",
    "socket_address",
]

log: EventLogger = get_logger("aiochroma.host")

_LONGEST_ADDRESS = 100
"""``sun_path`` has 108 bytes on Linux and 104 on macOS, one of which ends it."""

_BACKLOG = 128
_ACCEPT_AGAIN_SECONDS = 1.0
"""So long who connects has to wait where there are no descriptors for them."""
_FOLDER_VARIABLE = "AIOCHROMA_RUNTIME_DIR"


def require_sockets() -> None:
    """Make sure that this system can share a database between processes.

    Raises:
        InvalidInputError: It has no Unix-domain sockets.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise InvalidInputError(
            '`process="shared"` needs Unix-domain sockets, which this Python does not have. Open the directory in one process '
            "only, or run a Chroma server."
        )


def socket_address(directory: str | os.PathLike[str]) -> Path:
    """Return the address of a directory's host; makes the folder it is in.

    Args:
        directory: The canonical directory.

    Raises:
        StoreUnavailableError: There is no folder for it that is this user's alone.
    """
    require_sockets()
    name = f"{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}.sock"
    return folder_of_sockets(len(name)) / name


def folder_of_sockets(length_of_name: int = 24) -> Path:
    """Return the folder of this user's sockets; made where there is none.

    Raises:
        StoreUnavailableError: It belongs to another user, or is open to others, or its path is too long for a socket.
    """
    chosen = os.environ.get(_FOLDER_VARIABLE)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    user = os.getuid() if hasattr(os, "getuid") else 0
    folders = [Path(chosen)] if chosen else []
    if not chosen and runtime and Path(runtime).is_dir():
        folders.append(Path(runtime) / "aiochroma")
    if not chosen:
        folders.append(Path(tempfile.gettempdir()) / f"aiochroma-{user}")
    for folder in folders:
        if len(os.fsencode(folder)) + 1 + length_of_name <= _LONGEST_ADDRESS:
            return _own(folder)
    raise StoreUnavailableError(
        f"The path of {str(folders[-1])!r} is too long for a socket, which may have {_LONGEST_ADDRESS} bytes. Set the variable "
        f"{_FOLDER_VARIABLE} to a shorter folder, in every program that opens the database."
    )


def _own(folder: Path) -> Path:
    """Make sure that a folder is this user's alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StoreUnavailableError(
            f"The folder of the hosts' sockets, {str(folder)!r}, cannot be used: {error.strerror or error}. Set "
            f"{_FOLDER_VARIABLE} to another one, in every program that opens the database."
        ) from error
    mine = found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode)
    if not mine or stat.S_IMODE(found.st_mode) & 0o077:
        raise StoreUnavailableError(
            f"The folder of the hosts' sockets, {str(folder)!r}, must be a directory of this user's with the permissions 0700, "
            f"and is not (owner {found.st_uid}, permissions {stat.S_IMODE(found.st_mode):04o}). Correct it, or set "
            f"{_FOLDER_VARIABLE} to another one."
        )
    return folder


def listen(address: Path) -> socket.socket:
    """Listen at an address; the caller owns the directory, so a socket that is there already is left over.

    Raises:
        OSError: It cannot be bound.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            address.unlink()
        mask = os.umask(0o177)
        try:
            listening.bind(os.fspath(address))
        finally:
            os.umask(mask)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def connect(directory: str | os.PathLike[str]) -> socket.socket | None:
    """Return a connection to the host of a directory, or None where none listens.

    The address that the owner has written down comes first: its environment may be another one than ours.

    Raises:
        StoreUnavailableError: The folder of the sockets is not this user's alone.
        DatabaseInUseError: Another user's process listens.
    """
    owner = read_owner(directory)
    addresses = [] if owner is None or not owner.socket else [Path(owner.socket)]
    try:
        usual = socket_address(directory)
    except StoreUnavailableError:
        if not addresses:
            raise
    else:
        if usual not in addresses:
            addresses.append(usual)
    for address in addresses:
        connected = connect_to(address)
        if connected is not None:
            check_peer(connected, f"the host of {os.fspath(directory)!r}")
            return connected
    return None


def is_served(directory: str | os.PathLike[str]) -> bool:
    """Whether a host of this user listens."""
    with contextlib.suppress(AiochromaError):
        connected = connect(directory)
        if connected is not None:
            connected.close()
            return True
    return False


def connect_to(address: Path) -> socket.socket | None:
    """Return a connection to what listens at an address, or None where nothing does."""
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.settimeout(5.0)
        connecting.connect(os.fspath(address))
    except (OSError, ValueError):  # The latter for what is no address.
        connecting.close()
        return None
    return connecting


def check_peer(connected: socket.socket, who: str) -> None:
    """Make sure that the process at the other end is this user's. The connection is closed if it is not.

    Raises:
        DatabaseInUseError: It is another user's.
    """
    _, user = _at(connected)
    if user not in {None, os.getuid()}:
        connected.close()
        raise DatabaseInUseError(
            f"{who} belongs to user {user}; a database is shared by processes of one user only."
        )


def process_at(connected: socket.socket) -> int | None:
    """Return the process at the other end, as the kernel tells; None where it cannot, or it is in another container."""
    return _at(connected)[0] or None


def _at(connected: socket.socket) -> tuple[int | None, int | None]:
    """Return process and user at the other end; None where the kernel does not tell, and the folder's permissions have to do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None, None
    data = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", data)
    return process, user


class Listening:
    """The socket at which clients of a directory connect, while there is one.

    Args:
        directory: The canonical directory.
        selector: Tells when somebody connects.

    Attributes:
        socket: The socket; None before it is made and after it is closed.
        address: The name of the socket.
        watched_from: From which moment on (``monotonic()``) the selector may watch it.
    """

    def __init__(self, directory: Path, selector: selectors.BaseSelector) -> None:
        self.socket: socket.socket | None = None
        self.watched_from: float = 0.0
        self._selector = selector
        self._watched = False
        self.address: Path = socket_address(directory)
        self._directory = directory
        self._bound: os.stat_result | None = None

    def open(self) -> None:
        """Listen; a socket that was left over is removed.

        Raises:
            OSError: It cannot be made.
        """
        # The folder may have been deleted.
        socket_address(self._directory)
        self.socket = listen(self.address)
        self._bound = self.address.stat()

    @property
    def has_begun(self) -> bool:
        """Whether it has listened, even if the socket is gone by now and cannot be made again."""
        return self._bound is not None

    def watch(self) -> None:
        """Have the selector watch the socket, if it may; called on the thread that selects."""
        if self.socket is not None and not self._watched and monotonic() >= self.watched_from:
            self._watched = True
            self._selector.register(self.socket, selectors.EVENT_READ)

    def _unwatch(self) -> None:
        if self.socket is not None and self._watched:
            self._selector.unregister(self.socket)
        self._watched = False

    def close(self) -> None:
        """Listen no more. A name that is another process's by now stays."""
        self._unwatch()
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
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                reason = no_descriptors() or error.strerror or str(error)
                log.warning("host.cannot_accept", database=str(self._directory), reason=reason)
                # The socket stays readable. Watched on, it would take a whole processor; and whoever goes makes room.
                self._unwatch()
                self.watched_from = monotonic() + _ACCEPT_AGAIN_SECONDS
                return
            yield connected


class Waker:
    """Wakes a thread that waits for a socket; may be used by a destructor, and does nothing in a forked child."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.reader: socket.socket
        self.writer: socket.socket
        self.reader, self.writer = socket.socketpair()
        self.reader.setblocking(False)
        self.writer.setblocking(False)

    def wake(self) -> None:
        """Wake the thread; neither blocks nor raises."""
        if os.getpid() == self._pid:
            with contextlib.suppress(OSError):
                self.writer.send(b"\0")

    def drain(self) -> None:
        """Take note of having been woken."""
        with contextlib.suppress(OSError):
            while self.reader.recv(4096):
                pass

    def close(self) -> None:
        """Give the descriptors back."""
        self.reader.close()
        self.writer.close()
