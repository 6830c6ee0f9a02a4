"""The queue of a database that another process serves: the requests that wait here, and those that have been sent.

The caller's thread sends a request itself, without blocking: a plain thread at once, an event loop at the end of its present
iteration, so that the requests of one iteration arrive together and can be merged. What does not fit into the socket, and
requests of many records, are sent by the link's thread. The host holds a limited window of requests of one client; the others
wait here, and count for the client's own ``max_pending``.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma.core.calls import Outcome, Ticket, TicketState, deliver
from aiochroma.core.operations import Lane
from aiochroma.core.queue import RequestQueue
from aiochroma.host.messages import LARGE, message_frames, records_of, request_to_wire
from aiochroma.host.wire import FrameKind, frame

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Iterable, Iterator
    from queue import SimpleQueue

    from aiochroma._errors import DeadlineExceededError
    from aiochroma.core.connection import WhenFull
    from aiochroma.host.wire import Codec

__all__ = ["LinkQueue", "Sent"]

_WINDOW_REQUESTS = 256
_WINDOW_BYTES = 16 * 2**20
_BATCH_BYTES = 128 * 1024
_VERDICT_SECONDS = 0.02
"""How long to wait for the host to say whether a request whose deadline has passed had begun."""

_LARGE_CHARACTERS = 2**20
_NOT_SENT = (TicketState.IN_LINE, TicketState.QUEUED)


class Sent:
    """A request that the host has.

    Attributes:
        ticket: The request.
        size: How many of its bytes have been sent so far.
    """

    __slots__ = ("size", "ticket")

    def __init__(self, ticket: Ticket) -> None:
        self.ticket: Ticket = ticket
        self.size: int = 0


class _Wakeup:
    """Stands for the queue's wakeup, and wakes the link's thread; may be used by a destructor."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def put(self, _: None) -> None:
        self._wake()


class LinkQueue(RequestQueue):
    """A queue whose serving thread is in another process.

    Args:
        name: What to call the database in messages.
        limit: How many requests may be waiting here or sent.
        wake: Wakes the link's thread; neither blocks nor raises.
    """

    def __init__(self, name: str, limit: int, wake: Callable[[], None]) -> None:
        super().__init__(name, limit)
        self.wakeup: SimpleQueue[None] = _Wakeup(wake)  # type: ignore[assignment] # `put` is all that is used of it
        self._wake_thread = wake
        self._sent: dict[int, Sent] = {}
        self._sent_bytes = 0
        self._number = 0
        self._control: deque[tuple[int, bytes]] = deque()
        self._doubted: deque[tuple[float, int]] = deque()
        self._sending = threading.Lock()
        self._asked = False
        self._paused = False
        self._socket: socket.socket | None = None
        self._codec: Codec | None = None
        self._unsent = b""
        self._large: tuple[Sent, int, Iterator[bytes]] | None = None
        self._loops: set[asyncio.AbstractEventLoop] = set()

    # -- callers' side ---------------------------------------------------------------------------------------------------

    def put(self, *tickets: Ticket, when_full: WhenFull = "wait") -> None:
        """See :meth:`RequestQueue.put`."""
        super().put(*tickets, when_full=when_full)
        home = tickets[0].home if tickets else None
        if self._socket is None:
            # The link's thread may be waiting for a request before it connects again.
            self._wake_thread()
        if not isinstance(home, asyncio.AbstractEventLoop):
            self.flush()
        elif home not in self._loops:
            # The other requests of this iteration of the loop go out together with this one.
            self._loops.add(home)
            home.call_soon(self._flush_of, home)

    def cancel(self, ticket: Ticket) -> None:
        """See :meth:`RequestQueue.cancel`."""
        if self._release_caller(ticket, "cancelled") is TicketState.RUNNING:
            self._ask_verdict(ticket)

    def expire(self, ticket: Ticket) -> DeadlineExceededError | None:
        """See :meth:`RequestQueue.expire`. The error of a request that was sent comes a moment later, with the host's verdict."""
        before = self._release_caller(ticket, "expired")
        if before is TicketState.RUNNING:
            self._ask_verdict(ticket)
        return self._deadline_error(ticket, started=False) if before in _NOT_SENT else None

    def finish(self, tickets: Iterable[Ticket], *, failed: bool) -> list[Ticket]:
        """See :meth:`RequestQueue.finish`. A caller whose deadline has passed is told only now whether its request had begun."""
        abandoned = super().finish(tickets, failed=failed)
        if abandoned:
            self._tell_expired(abandoned, started=True)
        return abandoned

    def _tell_expired(self, abandoned: Iterable[Ticket], *, started: bool) -> None:
        deliver(
            Outcome(ticket, error=self._deadline_error(ticket, started=started))
            for ticket in abandoned
            if ticket.left == "expired"
        )

    def mark_forked(self) -> None:
        """See :meth:`RequestQueue.mark_forked`. The child closes its copy of the connection: the host must see the parent end."""
        super().mark_forked()
        self._sending = threading.Lock()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask_verdict(self, ticket: Ticket) -> None:
        """Tell the host that a request is no longer awaited, and ask whether it had begun."""
        with self.lock:
            for number, sent in self._sent.items():
                if sent.ticket is ticket:
                    self._doubted.append((monotonic() + _VERDICT_SECONDS, number))
                    self._control.append((number, b""))
                    break
        self.flush()
        self._wake_thread()

    def _flush_of(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loops.discard(loop)
        self.flush()

    # -- the link's thread: what has been sent ---------------------------------------------------------------------------

    def attach(self, connected: socket.socket, codec: Codec) -> None:
        """Send over this connection from now on."""
        with self._sending:
            self._socket, self._codec = connected, codec
            self._unsent, self._large, self._paused = b"", None, False
            self._control.clear()

    def detach(self) -> list[Sent]:
        """Stop sending, and return the requests that the host had, in the order in which they were sent."""
        with self._sending, self.lock:
            self._socket, self._unsent, self._large = None, b"", None
            had = list(self._sent.values())
            self._sent.clear()
            self._doubted.clear()
            self._sent_bytes = 0
        return had

    def pause(self) -> None:
        """Send no further request: the host is ending, and serves only what it has received."""
        self._paused = True

    def arrived(self, number: int) -> Sent | None:
        """Take a request whose outcome has come off the window; return None where the number is not known."""
        with self.lock:
            sent = self._sent.pop(number, None)
            if sent is not None:
                self._sent_bytes -= sent.size
        return sent

    def put_back(self, tickets: Iterable[Ticket]) -> None:
        """Put requests that are to be sent again before all others, in their order."""
        alive: list[Ticket] = []
        gone: list[Ticket] = []
        with self.lock:
            for ticket in tickets:
                if ticket.state is TicketState.RUNNING:
                    ticket.state, ticket.started_at = TicketState.QUEUED, 0.0
                    alive.append(ticket)
                else:
                    gone.append(ticket)
            self._queued.extendleft(reversed(alive))
        # Their callers gave up in the meantime.
        self.finish(gone, failed=True)

    def decided(self, number: int, *, began: bool) -> None:
        """Take the host's verdict on a request that its caller gave up: whether it had begun."""
        sent = self.arrived(number)
        if sent is None:
            return
        ticket = sent.ticket
        with self.lock:
            withdrawn = not began and ticket.state is TicketState.ABANDONED
            if withdrawn:
                self.counts["abandoned"] -= 1
                self.counts[ticket.left] += 1
        if withdrawn:
            self._tell_expired(super().finish([ticket], failed=True), started=False)
        elif not began and self.drain:
            self.put_back([ticket])
        elif not self.finish([ticket], failed=True):
            deliver([Outcome(ticket, error=self.closed_error())])

    def context_of(self, number: int) -> contextvars.Context | None:
        """Return the context of a request that the host has."""
        sent = self._sent.get(number)
        return None if sent is None else sent.ticket.context

    def take_back(self) -> None:
        """Ask the host to give back all requests that have not begun."""
        with self.lock:
            body = self._codec.encode("queued") if self._codec is not None else b""
            self._control.extend((number, body) for number in self._sent)
        self.flush()

    def undecided(self) -> tuple[list[int], float | None]:
        """Return the requests whose verdict is overdue, and when the next one will be (``monotonic()``)."""
        over: list[int] = []
        while self._doubted:
            decide_at, number = self._doubted[0]
            if number in self._sent:
                if decide_at > monotonic():
                    return over, decide_at
                over.append(number)
            self._doubted.popleft()
        return over, None

    def unclaimed(self) -> list[Ticket]:
        """Take all requests that have not been sent."""
        return [ticket for ticket in self.take(block=False) if ticket.state is TicketState.QUEUED]

    @property
    def has_sent(self) -> bool:
        """Whether the host has a request."""
        return bool(self._sent)

    @property
    def has_queued(self) -> bool:
        """Whether a request waits here."""
        return bool(self._queued)

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits for room in the socket."""
        return bool(self._unsent)

    # -- sending -----------------------------------------------------------------------------------------------------------

    def flush(self, *, link: bool = False) -> None:
        """Send what may be sent; never blocks. A thread that is sending already sends the new requests as well.

        Args:
            link: Whether this is the link's thread, which alone sends large requests.
        """
        self._asked = True
        while self._asked and self._sending.acquire(blocking=False):
            try:
                self._asked = False
                self._send_waiting(link=link)
            finally:
                self._sending.release()

    def _send_waiting(self, *, link: bool) -> None:
        while self._socket is not None and any((self._queued, self._control, self._unsent, self._large)):
            if self._unsent and not self._push(b""):
                if not link:
                    self._wake_thread()
                return
            if self._large is not None:
                if not link:
                    self._wake_thread()
                    return
                self._push(self._batch(reads_only=True) + self._next_segment())
                continue
            if batch := self._batch():
                self._push(batch)
            elif not self._begin_large(link=link):
                return

    def _push(self, data: bytes) -> bool:
        """Send as much as the socket takes, and keep the rest; return whether everything was sent."""
        assert self._socket is not None
        data = self._unsent + data if self._unsent else data
        sent = 0
        try:
            while sent < len(data):
                sent += self._socket.send(memoryview(data)[sent:])
        except BlockingIOError:
            pass
        except OSError:
            # The link's thread notices it at its next read, whatever the reason was, and connects again.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            sent = len(data)
            self._socket = None
        self._unsent = data[sent:]
        return not self._unsent

    def _batch(self, *, reads_only: bool = False) -> bytes:
        """Return the frames of the small requests that may be sent now, behind those of cancellations."""
        assert self._codec is not None
        frames: list[bytes] = []
        size = 0
        while self._control:
            number, body = self._control.popleft()
            if self._large is not None and self._large[1] == number:
                # The host drops the part that it has received.
                self._large = None
                self.decided(number, began=False)
            frames.append(frame(FrameKind.CANCEL, number, body))
        while self._queued and size < _BATCH_BYTES:
            chosen = self._choose(reads_only=reads_only)
            if chosen is None:
                break
            number, sent = chosen
            try:
                wire = request_to_wire(sent.ticket)
                encoded = list(message_frames(self._codec, FrameKind.REQUEST, number, wire, large=False))
            except Exception as error:  # noqa: BLE001 - belongs to the caller
                self._fail(number, error)
                continue
            frames += encoded
            size += self._count(number, sent, sum(map(len, encoded)))
        return b"".join(frames)

    def _count(self, number: int, sent: Sent, size: int) -> int:
        """Count bytes of a request that were sent, as long as the host has it; return their number."""
        with self.lock:
            sent.size += size
            if number in self._sent:
                self._sent_bytes += size
        return size

    def _choose(self, *, reads_only: bool) -> tuple[int, Sent] | None:
        """Take the next small request, if there is one and the host has room for it."""
        late: list[Ticket] = []
        try:
            with self.lock:
                while self._queued and self._has_room() and not self._paused:
                    position = self._first_small_read() if reads_only else 0
                    if position is None:
                        return None
                    ticket = self._queued[position]
                    is_late = ticket.is_late
                    if ticket.state is TicketState.QUEUED and not is_late and _is_large(ticket):
                        return None
                    del self._queued[position]
                    if is_late:
                        late.append(ticket)
                    elif ticket.state is TicketState.QUEUED:
                        return self._claimed(ticket)
            return None
        finally:
            for ticket in late:  # Not sent, so it is certain that they never run.
                if (error := self.expire(ticket)) is not None:
                    deliver([Outcome(ticket, error=error)])

    def _first_small_read(self) -> int | None:
        """Return the position of the first small read that no barrier stands before: it may overtake what is being sent."""
        for position, ticket in enumerate(self._queued):
            if ticket.request.lane is Lane.BARRIER:
                return None
            if ticket.request.lane is Lane.READ and not _is_large(ticket):
                return position
        return None

    def _begin_large(self, *, link: bool) -> bool:
        """Begin to send the next request if it is a large one; return whether this thread has more to send."""
        assert self._codec is not None
        with self.lock:
            if not self._queued or self._paused or not self._has_room():
                return False
            if not link:
                self._wake_thread()
                return False
            ticket = self._queued.popleft()
            if ticket.state is not TicketState.QUEUED:
                return True
            number, sent = self._claimed(ticket)
        try:
            wire = request_to_wire(ticket)
        except Exception as error:  # noqa: BLE001 - belongs to the caller
            self._fail(number, error)
            return True
        self._large = (sent, number, message_frames(self._codec, FrameKind.REQUEST, number, wire, large=True))
        return True

    def _next_segment(self) -> bytes:
        if self._large is None:
            return b""
        sent, number, segments = self._large
        try:
            segment = next(segments, b"")
        except Exception as error:  # noqa: BLE001 - belongs to the caller
            self._large = None
            self._fail(number, error)
            return frame(FrameKind.CANCEL, number)
        if not segment:
            self._large = None
        self._count(number, sent, len(segment))
        return segment

    def _has_room(self) -> bool:
        return not self._sent or (len(self._sent) < _WINDOW_REQUESTS and self._sent_bytes < _WINDOW_BYTES)

    def _claimed(self, ticket: Ticket) -> tuple[int, Sent]:
        """Note that a request is with the host from now on. The caller holds the lock."""
        self._number += 1
        sent = self._sent[self._number] = Sent(ticket)
        ticket.state = TicketState.RUNNING
        return self._number, sent

    def _fail(self, number: int, error: BaseException) -> None:
        """Answer a request that cannot be sent."""
        sent = self.arrived(number)
        if sent is not None and not self.finish([sent.ticket], failed=True):
            deliver([Outcome(sent.ticket, error=error)])


def _is_large(ticket: Ticket) -> bool:
    """Return whether encoding a request takes too long for its caller's thread."""
    arguments = ticket.request.arguments
    if records_of(arguments) > LARGE:
        return True
    documents = arguments.get("documents")
    return type(documents) is list and sum(len(text) for text in documents if text) > _LARGE_CHARACTERS
