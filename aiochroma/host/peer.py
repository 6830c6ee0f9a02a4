"""The connected clients as their host sees them: what each waits for, and what it has not read yet."""

from __future__ import annotations

import contextvars
import selectors
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._errors import ClosedError, DatabaseInUseError
from aiochroma._logging import EventLogger, get_logger
from aiochroma.core.calls import Ticket, TicketState
from aiochroma.core.stats import observer
from aiochroma.host.messages import LARGE, error_to_wire, message_frames, records_of, request_from_wire
from aiochroma.host.sockets import check_peer
from aiochroma.host.wire import FrameKind, MessageReader, ProtocolError, frame

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from aiochroma.core.calls import Outcome
    from aiochroma.core.queue import RequestQueue
    from aiochroma.core.stats import StatsRecorder
    from aiochroma.host.messages import Received
    from aiochroma.host.wire import Codec

__all__ = ["STUCK_SECONDS", "Clients", "Peer", "PeerTicket", "current_request"]

log: EventLogger = get_logger("aiochroma.host")

UNREAD_LIMIT = 64 * 2**20
"""A client that leaves more unread than this, and reads nothing, is disconnected; the others must not pay for it with memory."""

MOST_UNREAD = 4 * UNREAD_LIMIT
"""The most that is kept for a client that does read, but slowly."""

STUCK_SECONDS = 2.0
_RECEIVE_BYTES = 256 * 1024
_MOST_REQUESTS = 4096
"""The most requests of one client in the host. Our own clients stay far below it."""

current_request: contextvars.ContextVar[tuple[Peer, int] | None] = contextvars.ContextVar(
    "aiochroma_request", default=None
)
"""Client and number of the request that is being carried out, for the events that are logged meanwhile. Not the request itself:
it holds this context, and such a cycle is freed by the garbage collector alone."""


class PeerTicket(Ticket):
    """A client's request, with the number that the client gave it."""

    __slots__ = ("number",)

    home: Peer

    def __init__(self, received: Received, peer: Peer, number: int) -> None:
        self.number: int = number
        token = current_request.set((peer, number))
        try:
            super().__init__(received.request, peer, None, received.deadline)
        finally:
            current_request.reset(token)
        watching = observer()
        if watching is not None and received.carrier:
            self.context.run(watching.continue_call, received.carrier)


class Peer:
    """One connection. The main thread reads, the DB thread sends; see :class:`aiochroma.core.calls.Receiver`.

    Args:
        connected: The connection.
        codec: Shared by all.
        notice: Has the main thread look at this client, because something did not fit into its socket, or it has failed.
        facts: Returns the frame that says what has changed since the client was last told, or nothing.
        recorder: Counts calls and rounds; its counters go along with every outcome.

    Attributes:
        pid: The client's process id, once it has been told.
        greeted: Whether the client was accepted and is served.
        tickets: Its requests that have not been answered, by number.
    """

    def __init__(
        self,
        connected: socket.socket,
        codec: Codec,
        notice: Callable[[Peer], None],
        facts: Callable[[Peer], bytes],
        recorder: StatsRecorder,
    ) -> None:
        connected.setblocking(False)
        self.socket = connected
        self.reader: MessageReader = MessageReader(codec)
        self.pid = 0
        self.greeted = False
        self.going = False
        self.closed: bool = False
        self.failed: str = ""
        self.tickets: dict[int, PeerTicket] = {}
        self.told: object = None
        self._codec = codec
        self._notice = notice
        self._facts = facts
        self._recorder = recorder
        self._lock = threading.Lock()
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._read_at = monotonic()

    # -- the DB thread's side --------------------------------------------------------------------------------------------

    def take(self, outcomes: Sequence[Outcome]) -> None:
        """Send a batch of outcomes, in order."""
        for outcome in outcomes:
            self.tickets.pop(_number_of(outcome), None)
        if self.closed:
            return
        facts = b"" if self.tickets else self._facts(self)
        batch = [facts] if facts else []
        now = monotonic()
        for outcome in outcomes:
            ticket = outcome.ticket
            assert isinstance(ticket, PeerTicket)
            if outcome.error is not None:
                if isinstance(outcome.error, ClosedError) and self.going and not ticket.started_at:
                    # It did not run here, so the client sends it to the next host.
                    batch.append(frame(FrameKind.VERDICT, ticket.number, self._codec.encode(False)))
                    continue
                batch.append(self._error_frame(ticket, outcome.error, now))
                continue
            large = records_of(outcome.result) > LARGE
            if large and batch:
                self.send(b"".join(batch))
                batch.clear()
            self._add_result(batch, ticket, [*self._figures(ticket, now), outcome.result], large=large)
        if batch:
            self.send(b"".join(batch))

    def _add_result(
        self, batch: list[bytes], ticket: PeerTicket, answer: list[object], *, large: bool
    ) -> None:
        try:
            for segment in message_frames(self._codec, FrameKind.RESULT, ticket.number, answer, large=large):
                if large:
                    self.send(segment)
                else:
                    batch.append(segment)
        except Exception as error:  # noqa: BLE001 - one result must not end everybody's thread
            batch.append(frame(FrameKind.CANCEL, ticket.number))
            batch.append(self._error_frame(ticket, error, monotonic()))

    def _error_frame(self, ticket: PeerTicket, error: BaseException, now: float) -> bytes:
        figures = self._figures(ticket, now)
        try:
            body = self._codec.encode([*figures, error_to_wire(error)])
        except Exception as problem:  # noqa: BLE001 - nor must one error
            text = f"{type(error).__name__}, which cannot be sent: {problem!r}"
            body = self._codec.encode([*figures, error_to_wire(RuntimeError(text))])
        return frame(FrameKind.ERROR, ticket.number, body)

    def _figures(self, ticket: PeerTicket, now: float) -> list[float]:
        """Return how long a request waited and ran, in seconds, and how many calls and rounds the database has had."""
        started = ticket.started_at or now
        return [started - ticket.queued_at, now - started, self._recorder.calls, self._recorder.batches]

    # -- sending, from any thread ----------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send data, and keep what the socket does not take yet; neither blocks nor raises."""
        with self._lock:
            if self.closed or self.failed:
                return
            if not self._unsent:
                data = self._sent(data)
            if not data:
                return
            self._unsent.append(data)
            self._unsent_bytes += len(data)
            if self._unsent_bytes > MOST_UNREAD:
                self.failed = self.failed or f"it left more than {MOST_UNREAD // 2**20} MB unread"
        self._notice(self)

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
        """Mark a client that reads nothing as failed; return whether it has to be looked at again soon."""
        with self._lock:
            full = self._unsent_bytes > UNREAD_LIMIT
            if full and monotonic() - self._read_at > STUCK_SECONDS:
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
            # The main thread cleans up.
            self.failed = self.failed or f"it is gone ({error.strerror})"
            self._notice(self)
            return b""
        if sent:
            self._read_at = monotonic()
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


class Clients:
    """All connections of a host; its methods are called on the main thread where nothing else is said.

    Args:
        queue: Where requests go.
        selector: Tells the main thread when a client has sent something, or when its socket takes more.
        wake: Wakes the main thread.
        facts: Returns the frame that says what has changed since a client was last told, or nothing.
        recorder: Counts calls and rounds.
        asked: Answers what a client asks of the host itself: ``asked(peer, kind, value)``.

    Attributes:
        codec: Shared by all connections.
        alone_since: Since when no client is connected (``monotonic()``); None while one is.
        crowded: Whether a client has left so much unread that it has to be looked at again soon.
    """

    codec: Codec

    def __init__(
        self,
        queue: RequestQueue,
        selector: selectors.BaseSelector,
        wake: Callable[[], None],
        facts: Callable[[Peer], bytes],
        recorder: StatsRecorder,
        asked: Callable[[Peer, FrameKind, object], None],
    ) -> None:
        self.alone_since: float | None = monotonic()
        self.crowded: bool = False
        self._queue = queue
        self._selector = selector
        self._wake = wake
        self._facts = facts
        self._recorder = recorder
        self._asked = asked
        self._peers: set[Peer] = set()
        self._noticed: deque[Peer] = deque()
        self._unread: set[Peer] = set()
        self._arrived: list[PeerTicket] = []
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers))

    @property
    def served(self) -> int:
        """How many clients are connected and served."""
        return sum(peer.greeted for peer in self)

    def accept(self, waiting: Iterable[socket.socket]) -> bool:
        """Accept connections that wait; return whether there were any."""
        came = False
        for connected in waiting:
            try:
                check_peer(connected, "A client")
            except DatabaseInUseError as error:
                log.warning("host.refused_client", database=self._queue.name, reason=str(error))
                continue
            peer = Peer(connected, self.codec, self._notice, self._facts, self._recorder)
            self._peers.add(peer)
            self._selector.register(connected, selectors.EVENT_READ, peer)
            self.alone_since, came = None, True
        return came

    def serve(self, peer: Peer, events: int) -> bool:
        """Read what a client has sent, and send what it can read; return whether that was requests alone."""
        if events & selectors.EVENT_WRITE:
            peer.send_unsent()
        if not events & selectors.EVENT_READ or peer not in self._peers:
            return False
        try:
            size = peer.socket.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except OSError:
            size = 0
        if not size:
            self._drop(peer, "")
            return False
        requests_alone = not events & selectors.EVENT_WRITE
        try:
            for kind, number, value in peer.reader.feed(self._buffer[:size]):
                if kind is FrameKind.REQUEST and peer.greeted:
                    self._arrived.append(_ticket(peer, number, value))
                    continue
                requests_alone = False
                # Requests that came earlier are submitted earlier.
                self.hand_over()
                if kind is FrameKind.CANCEL and peer.greeted:
                    self._cancel(peer, number, value)
                else:
                    self._asked(peer, kind, value)
        except Exception as error:  # noqa: BLE001 - whatever one client sends, the others go on
            self._drop(peer, str(error) if isinstance(error, ProtocolError) else repr(error))
            return False
        return requests_alone

    def hand_over(self) -> None:
        """Submit the requests that have come.

        Best called last before waiting, because the DB thread wakes up and wants the interpreter.
        """
        if not self._arrived:
            return
        tickets, self._arrived = self._arrived, []
        try:
            self._queue.put(*tickets)
        except ClosedError:
            # They did not run here, so the clients send them to the next host.
            for ticket in tickets:
                ticket.home.tickets.pop(ticket.number, None)
                ticket.home.send(frame(FrameKind.VERDICT, ticket.number, self.codec.encode(False)))
        except Exception as failure:  # noqa: BLE001 - why the database could not be opened, or is not served any more
            for peer in {ticket.home for ticket in tickets}:
                peer.send(frame(FrameKind.FAILED, 0, self.codec.encode(error_to_wire(failure))))

    def _notice(self, peer: Peer) -> None:
        """Have the main thread look at a client soon; called from any thread."""
        self._noticed.append(peer)
        self._wake()

    def look_after(self) -> None:
        """Drop clients that have failed; wait for room in the sockets of those that have unsent data."""
        self.crowded = False
        while self._noticed:
            self._unread.add(self._noticed.popleft())
        for peer in list(self._unread):
            self.crowded = peer.look() or self.crowded
            if peer.failed:
                self._drop(peer, peer.failed)
            if not peer.has_unsent:
                self._unread.discard(peer)
            if peer not in self._peers:
                continue
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.has_unsent else 0)
            if self._selector.get_key(peer.socket).events != events:
                self._selector.modify(peer.socket, events, peer)

    def broadcast(self, data: bytes) -> None:
        """Send to every client; called from any thread."""
        for peer in self:
            if peer.greeted:
                peer.send(data)

    def _cancel(self, peer: Peer, number: int, value: object) -> None:
        """Cancel a request, or give it back if it has not begun, and tell the client whether it had begun."""
        ticket = peer.tickets.get(number)
        if ticket is None:
            return
        if value == "queued" and ticket.state not in {TicketState.IN_LINE, TicketState.QUEUED}:
            return
        self._queue.cancel(ticket)
        peer.tickets.pop(number, None)
        began = ticket.state is not TicketState.CANCELLED
        peer.send(frame(FrameKind.VERDICT, number, self.codec.encode(began)))

    def _drop(self, peer: Peer, reason: str) -> None:
        """Let go of a client that is gone or has to go: its queued requests never run, a running one completes."""
        if peer not in self._peers:
            return
        self.hand_over()
        self._peers.discard(peer)
        self._selector.unregister(peer.socket)
        peer.close()
        if reason and peer.greeted:
            log.warning("host.dropped_client", database=self._queue.name, client=peer.pid, reason=reason)
        for ticket in list(peer.tickets.values()):
            self._queue.cancel(ticket)
        peer.tickets.clear()
        if not self._peers:
            self.alone_since = monotonic()


def _ticket(peer: Peer, number: int, value: object) -> PeerTicket:
    if len(peer.tickets) >= _MOST_REQUESTS or number in peer.tickets:
        raise ProtocolError("It sent too many requests at once, or two of one number.")
    ticket = PeerTicket(request_from_wire(value), peer, number)
    peer.tickets[number] = ticket
    return ticket
