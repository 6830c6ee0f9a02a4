"""One connected client as its host sees it: what it waits for, and what it has not read yet."""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiochroma._errors import ClosedError
from aiochroma._logging import get_logger
from aiochroma.core.queue import Ticket
from aiochroma.host.frames import FrameKind, MessageReader, frame
from aiochroma.host.messages import LARGE, error_to_wire, message_frames, records_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from aiochroma.core.delivery import Outcome
    from aiochroma.host.codec import Codec
    from aiochroma.host.messages import Received

__all__ = ["Peer", "PeerTicket", "current_request"]

log = get_logger("aiochroma.host")

UNREAD_LIMIT = 64 * 2**20
"""A client that leaves more unread than this, and reads nothing, is disconnected; the others must not pay for it with memory."""

MOST_UNREAD = 4 * UNREAD_LIMIT
"""More than this is not kept even for a client that reads, slowly."""

STUCK_SECONDS = 2.0

current_request: contextvars.ContextVar[PeerTicket | None] = contextvars.ContextVar(
    "aiochroma_request", default=None
)
"""The request that is being carried out, for the events that are written meanwhile."""


class PeerTicket(Ticket):
    """A client's request, with the number that the client gave it."""

    __slots__ = ("number",)

    home: Peer

    def __init__(self, received: Received, peer: Peer, number: int) -> None:
        self.number = number
        token = current_request.set(self)
        try:
            super().__init__(received.request, peer, None, received.deadline)
        finally:
            current_request.reset(token)


class Peer:
    """One connection. The main thread reads, the DB thread sends; see :class:`aiochroma.core.queue.Home`.

    Args:
        connected: The connection.
        codec: Shared by all.
        wake: Wakes the main thread, which sends what did not fit.
        facts: Returns the frame that says what has changed since the last batch.

    Attributes:
        pid: The client's process, once it has said so.
        greeted: The client was made welcome and is served.
        tickets: Its requests that have not been answered, by number.
    """

    def __init__(
        self, connected: socket.socket, codec: Codec, wake: Callable[[], None], facts: Callable[[Peer], bytes]
    ) -> None:
        connected.setblocking(False)
        self.socket = connected
        self.reader = MessageReader(codec)
        self.pid = 0
        self.greeted = False
        self.going = False
        self.closed = False
        self.failed = ""
        self.tickets: dict[int, PeerTicket] = {}
        self.told: Any = None
        self._codec = codec
        self._wake = wake
        self._facts = facts
        self._lock = threading.Lock()
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._read_at = time.monotonic()

    # -- the DB thread's side --------------------------------------------------------------------------------------------

    def take(self, outcomes: Sequence[Outcome]) -> None:
        """Send a batch of outcomes, in order."""
        for outcome in outcomes:
            self.tickets.pop(_number_of(outcome), None)
        if self.closed:
            return
        batch: list[bytes] = [] if self.tickets else [self._facts(self)]
        for outcome in outcomes:
            ticket = outcome.ticket
            assert isinstance(ticket, PeerTicket)
            if outcome.error is not None:
                if isinstance(outcome.error, ClosedError) and self.going and not ticket.started_at:
                    # It did not run here: the client sends it to the next host.
                    batch.append(frame(FrameKind.VERDICT, ticket.number, self._codec.encode(False)))
                    continue
                value: list[Any] = [*_times(ticket), error_to_wire(outcome.error)]
                batch.append(frame(FrameKind.ERROR, ticket.number, self._codec.encode(value)))
                continue
            large = records_of(outcome.result) > LARGE
            if large and batch:
                self.send(b"".join(batch))
                batch.clear()
            self._add_result(batch, ticket, outcome.result, large=large)
        if batch:
            self.send(b"".join(batch))

    def _add_result(self, batch: list[bytes], ticket: PeerTicket, result: object, *, large: bool) -> None:
        try:
            for piece in message_frames(
                self._codec, FrameKind.RESULT, ticket.number, [*_times(ticket), result], large=large
            ):
                if large:
                    self.send(piece)
                else:
                    batch.append(piece)
        except Exception as error:  # noqa: BLE001 - one result must not end everybody's thread
            value = [*_times(ticket), error_to_wire(error)]
            batch.append(frame(FrameKind.CANCEL, ticket.number))
            batch.append(frame(FrameKind.ERROR, ticket.number, self._codec.encode(value)))

    # -- sending, from any thread ----------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send, or keep what the client is too slow for; neither blocks nor raises."""
        with self._lock:
            if self.closed:
                return
            if not self._unsent:
                data = self._sent(data)
            if not data:
                return
            self._unsent.append(data)
            self._unsent_bytes += len(data)
            if self._unsent_bytes > MOST_UNREAD:
                self.failed = self.failed or f"it left more than {MOST_UNREAD // 2**20} MB unread"
        self._wake()

    def send_unsent(self) -> bool:
        """Send what was kept; return whether all of it is sent."""
        with self._lock:
            while self._unsent and not self.closed:
                data = self._unsent.popleft()
                left = self._sent(data)
                self._unsent_bytes -= len(data) - len(left)
                if left:
                    self._unsent.appendleft(left)
                    return False
            return True

    def look(self) -> bool:
        """Give a client up that reads nothing; return whether it has to be looked at again soon."""
        with self._lock:
            full = self._unsent_bytes > UNREAD_LIMIT
            if full and time.monotonic() - self._read_at > STUCK_SECONDS:
                self.failed = (
                    self.failed or f"it left more than {UNREAD_LIMIT // 2**20} MB unread, and reads nothing"
                )
            return full

    @property
    def has_unsent(self) -> bool:
        """Whether something waits for the client to read."""
        return bool(self._unsent)

    def _sent(self, data: bytes) -> bytes:
        """Send as much as fits and return the rest. The caller holds the lock."""
        sent = 0
        try:
            while sent < len(data):
                sent += self.socket.send(memoryview(data)[sent:] if sent else data)
        except BlockingIOError:
            pass
        except OSError as error:
            # The main thread finds the same when it reads, and cleans up.
            self.failed = self.failed or f"it is gone ({error.strerror})"
            return b""
        if sent:
            self._read_at = time.monotonic()
        return data[sent:] if sent else data

    def close(self) -> None:
        """Close the connection; called on the main thread."""
        with self._lock:
            self.closed = True
            self._unsent.clear()
            self._unsent_bytes = 0
        with suppress(OSError):
            self.socket.close()


def _number_of(outcome: Outcome) -> int:
    ticket = outcome.ticket
    assert isinstance(ticket, PeerTicket)
    return ticket.number


def _times(ticket: Ticket) -> list[float]:
    """Return how long a request waited, and how long it has been at work, in seconds."""
    started = ticket.started_at or time.monotonic()
    return [started - ticket.queued_at, time.monotonic() - started]
