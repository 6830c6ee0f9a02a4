"""The client's end: the thread that has an engine's requests served by another process, the host of the directory.

It connects to the host, or starts one, and reads the host's answers. The callers do the sending
(:mod:`aiochroma.host.link_queue`). When the host dies the thread connects to the next one, and requests that were under way are
sent again where carrying them out twice does no harm; the others fail with an error that says so.
"""

from __future__ import annotations

import select
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._errors import (
    AiochromaError,
    ClosedError,
    OutcomeUnknownError,
    StoreUnavailableError,
    own_copy,
)
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject
from aiochroma.core.calls import Outcome, TicketState, deliver
from aiochroma.core.config import DEFAULTS
from aiochroma.core.connection import Serving, thread_failure
from aiochroma.core.queue import QueueState
from aiochroma.core.stats import SlowLog, StatsRecorder, observer
from aiochroma.host.link_queue import LinkQueue
from aiochroma.host.messages import error_from_wire
from aiochroma.host.reaching import HOST_LOG, meet
from aiochroma.host.sockets import Waker
from aiochroma.host.wire import FrameKind, ProtocolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from aiochroma.core.calls import Ticket
    from aiochroma.core.connection import BackendInfo
    from aiochroma.core.registry import Engine
    from aiochroma.host.link_queue import Sent
    from aiochroma.host.wire import Codec, Message, MessageReader, Plain

__all__ = ["HostLink"]

log: EventLogger = get_logger("aiochroma.host")

_RECEIVE_BYTES = 256 * 1024
_DEATHS_OF_ONE_REQUEST = 2
_DEATHS = 5
_DEATHS_SECONDS = 60.0
_PAUSE_SECONDS = 1.0


class _HostGoneError(Exception):
    """The connection ended."""


class _CannotOpenError(Exception):
    """The host has the directory, and cannot open the database."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class HostLink(Serving):
    """Serves the requests of an engine through the process that has the directory open.

    Args:
        engine: The engine; its location and options say what to reach, and how.
        on_idle: Called on the link's thread when it was woken.
        on_end: Called on the link's thread when it ends.
    """

    def __init__(self, engine: Engine, *, on_idle: Callable[[], None], on_end: Callable[[], None]) -> None:
        self._state = state = _LinkState(engine, on_idle)
        name = f"aiochroma-link:{engine.location.short_name}"
        super().__init__(name, state.queue, state.recorder, state.serve, on_end)

    def describe(self) -> BackendInfo | None:
        """Return what the host last said of itself; None until the database is open."""
        return self._state.info


class _LinkState:
    """The state of the link's thread; no other thread touches it, except to read ``info``."""

    _poll: select.poll
    _polls_to_write: bool

    def __init__(self, engine: Engine, on_idle: Callable[[], None]) -> None:
        location, options = engine.location, engine.options
        self.waker = Waker()
        self.queue = LinkQueue(
            location.name, int(options.max_pending or DEFAULTS["max_pending"]), self.waker.wake
        )
        self.recorder = StatsRecorder()
        self.info: BackendInfo | None = None
        self._engine: Engine | None = engine
        self._location, self._options = location, options
        self._on_idle = on_idle
        slow_ms = options.slow_request_ms or DEFAULTS["slow_request_ms"]
        self._slow = SlowLog(location.name, slow_ms / 1000)
        self._codec: Codec | None = None
        self._socket: socket.socket | None = None
        self._host: JsonObject = {}
        self._reader: MessageReader | None = None
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._woken_by = self.waker.reader.fileno()
        self._going = False
        self._took_back = False
        self._early: list[Message] = []
        self._outcomes: list[Outcome] = []
        self._deaths: deque[float] = deque(maxlen=_DEATHS)
        self._deaths_of: dict[Ticket, int] = {}

    # -- the thread's life -------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Body of the thread: serve until the queue is closed and empty."""
        failure: BaseException | None = None
        self.queue.served_by = threading.get_ident()
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001 - remembered and given to every caller
            failure = error.with_traceback(None)
            if self.info is None:  # Whoever opens it is told by the error.
                log.info("database.not_opened", database=self.queue.name, error=error)
            else:
                log.warning("database.failed", database=self.queue.name, error=error)
                failure = thread_failure(self.queue.name, failure)
        finally:
            self._wind_up(failure)

    def _serve(self) -> None:
        assert self._engine is not None
        self._engine.await_previous()
        self._engine = None
        self._connect()
        while self._goes_on():
            try:
                self._step()
            except (_HostGoneError, ProtocolError) as error:  # noqa: PERF203 - serving goes on
                self._lost(error)
            except _CannotOpenError as refusal:
                if self.info is None:
                    raise refusal.error from refusal.error.__cause__
                self._lost(refusal)
                self._fail_and_pause(refusal.error)

    def _step(self) -> None:
        if self._early:
            self._take_early()
        elif self._socket is None:
            self._reconnect()
        else:
            self._turn()

    def _goes_on(self) -> bool:
        queue = self.queue
        if queue.state is QueueState.OPEN:
            return True
        if not queue.drain:
            self._refuse(queue.unclaimed())
        return queue.pending > 0 and (queue.has_sent or queue.has_queued or queue.in_line > 0)

    def _turn(self) -> None:
        """Wait until there is something to read or to write, or a verdict is overdue; then do that."""
        assert self._socket is not None
        queue = self.queue
        over, next_at = queue.undecided()
        for number in over:
            queue.decided(number, began=True)
        if queue.state is not QueueState.OPEN and not queue.drain and queue.has_sent and not self._took_back:
            self._took_back = True
            queue.take_back()
        queue.flush(link=True)
        if queue.wants_to_write is not self._polls_to_write:
            self._polls_to_write = queue.wants_to_write
            events = select.POLLIN | (select.POLLOUT if self._polls_to_write else 0)
            self._poll.modify(self._socket, events)
        for descriptor, events in self._poll.poll(_milliseconds_until(next_at)):
            if descriptor == self._woken_by:
                self.waker.drain()
                self._on_idle()
            elif events & ~select.POLLOUT:
                self._receive()

    def _receive(self) -> None:
        assert self._socket is not None
        assert self._reader is not None
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            raise _HostGoneError(str(error)) from None
        if not size:
            raise _HostGoneError("the connection was closed")
        try:
            for kind, number, value in self._reader.feed(self._buffer[:size]):
                self._handle(kind, number, value)
        finally:
            self._flush()

    def _flush(self) -> None:
        if self._outcomes:
            outcomes, self._outcomes = self._outcomes, []
            deliver(outcomes)

    # -- what the host says ------------------------------------------------------------------------------------------------

    def _handle(self, kind: FrameKind, number: int, value: object) -> None:
        if kind is FrameKind.RESULT or kind is FrameKind.ERROR:
            self._answered(kind, number, value)
        elif kind is FrameKind.VERDICT:
            self.queue.decided(number, began=bool(value))
        elif kind is FrameKind.FACTS:
            self._take_facts(value)
        elif kind is FrameKind.EVENT:
            self._log_event(number, value)
        elif kind is FrameKind.OPENED:
            self._slow.opened_at = monotonic()
        elif kind is FrameKind.GOING:
            self._going = True
            self.queue.pause()
        elif kind is FrameKind.FAILED:
            raise _CannotOpenError(error_from_wire(value))
        elif kind is not FrameKind.CANCEL:
            raise ProtocolError(f"A message of the kind {kind.name} came, which no host sends now.")

    def _answered(self, kind: FrameKind, number: int, value: Plain) -> None:
        try:
            waited, ran, calls, batches, content = value
            waited, ran = float(waited), float(ran)
        except (TypeError, ValueError):
            raise ProtocolError("An outcome cannot be read.") from None
        error = error_from_wire(content) if kind is FrameKind.ERROR else None
        self.recorder.calls, self.recorder.batches = calls, batches
        sent = self.queue.arrived(number)
        if sent is None:
            return
        ticket = sent.ticket
        self._deaths_of.pop(ticket, None)
        if error is not None:
            self.recorder.record_error(ticket.request.operation, error)
        watching = observer()
        if watching is not None:
            watching.request(self.queue.name, ticket.request.row.label, ticket.context, waited, ran, 1, error)
        self._note_times(ticket, waited, ran)
        if not self.queue.finish([ticket], failed=error is not None):
            self._outcomes.append(Outcome(ticket, None if error is not None else content, error))

    def _note_times(self, ticket: Ticket, waited: float, ran: float) -> None:
        now = monotonic()
        ticket.started_at = max(ticket.queued_at, now - ran)
        self.recorder.record(ticket.started_at - ticket.queued_at, ran)
        if now - ticket.queued_at > self._slow.seconds:
            self._slow.look(ticket, now, waited, ran)

    def _take_facts(self, value: Plain) -> None:
        try:
            last_error, info = value
        except (TypeError, ValueError):
            raise ProtocolError("What the host says of itself cannot be read.") from None
        self.recorder.last_error = last_error
        if info is not None:
            self.info = replace(info, host=self._host)

    def _log_event(self, number: int, value: Plain) -> None:
        """Log an event of the host in this process as well, in the context of the request that it is about, if any."""
        try:
            level, name, fields = value
            write = {"warning": log.warning, "error": log.error}[level]
            fields = {str(key): item for key, item in fields.items()}
        except (TypeError, ValueError, KeyError, AttributeError):
            raise ProtocolError("An event cannot be read.") from None
        context = self.queue.context_of(number)
        if context is None:
            write(name, **fields)
        else:
            context.run(write, name, **fields)

    # -- connecting --------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Connect to the host, or start one.

        Raises:
            AiochromaError: No host listens and none can be started, or the host refused this client.
        """
        try:
            met = meet(self._location, self._options, self._codec, self._is_unneeded)
        except OSError as error:  # The system gives no further descriptor, for example.
            raise StoreUnavailableError(
                f"The host of {self.queue.name} cannot be reached: {error}."
            ) from error
        self._host = {name: met.welcome.get(name) for name in ("pid", "since", "clients", "aiochroma")}
        if self._options.durable and not met.welcome.get("durable"):
            log.warning(
                "database.not_durable",
                database=self._location.name,
                hint="opened first by a client that did not ask for `durable=True`; it holds from the next opening on",
            )
        self._going, self._took_back = False, False
        met.connected.setblocking(False)
        self._socket, self._reader, self._codec, self._early = met.connected, met.reader, met.codec, met.early
        self._poll, self._polls_to_write = select.poll(), False
        self._poll.register(self.waker.reader, select.POLLIN)
        self._poll.register(met.connected, select.POLLIN)
        self.queue.attach(met.connected, met.codec)

    def _take_early(self) -> None:
        """Handle the messages that came together with the welcome."""
        early, self._early = self._early, []
        for kind, number, value in early:
            self._handle(kind, number, value)

    def _is_unneeded(self) -> bool:
        return self.queue.state is not QueueState.OPEN and (not self.queue.drain or self.queue.pending == 0)

    # -- when the host is gone -----------------------------------------------------------------------------------------------

    def _lost(self, reason: Exception) -> None:
        """Go through the requests that the host had: those that may be repeated are sent again, the others fail."""
        self._flush()
        had = self.queue.detach()
        self._close_socket()
        now = monotonic()
        self._deaths_of = {
            ticket: deaths
            for ticket, deaths in self._deaths_of.items()
            if ticket.state in {TicketState.QUEUED, TicketState.RUNNING}
        }
        if not (self._going or isinstance(reason, _CannotOpenError)):
            self._deaths.append(now)
            log.warning("host.lost", database=self.queue.name, pid=self._host.get("pid"), reason=str(reason))
        again: list[Ticket] = []
        for sent in had:
            self._after_death(sent, again)
        self._flush()
        self.queue.put_back(again)
        if len(self._deaths) == _DEATHS and now - self._deaths[0] < _DEATHS_SECONDS:
            self._deaths.clear()
            self._fail_and_pause(
                StoreUnavailableError(
                    f"The process that serves {self.queue.name} ended {_DEATHS} times within {_DEATHS_SECONDS:.0f} s; its log is "
                    f"{self._log_path!r}. The next request tries again."
                )
            )

    def _after_death(self, sent: Sent, again: list[Ticket]) -> None:
        ticket = sent.ticket
        if ticket.state is not TicketState.RUNNING:
            self.queue.finish([ticket], failed=True)
            return
        deaths = self._deaths_of[ticket] = self._deaths_of.get(ticket, 0) + 1
        if not ticket.request.row.may_be_repeated(ticket.request.arguments):
            error: AiochromaError = OutcomeUnknownError(
                f"`{ticket.request.row.label}` on {self.queue.name} was under way when the process that serves it "
                "ended. It may have been carried out or not, and a second time it would have another effect: look before you "
                "repeat it."
            )
        elif deaths >= _DEATHS_OF_ONE_REQUEST:
            error = StoreUnavailableError(
                f"`{ticket.request.row.label}` on {self.queue.name} was under way both times when the process that "
                f"serves it ended, and may be the reason; it is not sent once more. The log of the host is {self._log_path!r}."
            )
        else:
            again.append(ticket)
            return
        del self._deaths_of[ticket]
        if not self.queue.finish([ticket], failed=True):
            self._outcomes.append(Outcome(ticket, error=error))

    def _reconnect(self) -> None:
        """Connect to the next host as soon as there is a request.

        Where that fails, the requests that wait get the error, and the next request tries again.
        """
        queue = self.queue
        if not (queue.has_queued or queue.in_line):
            self._wait_for_wakeup(None)
            return
        try:
            self._connect()
        except ClosedError:
            self._refuse(queue.unclaimed())
        except AiochromaError as error:
            self._fail_and_pause(error)

    def _fail_and_pause(self, error: Exception) -> None:
        """Answer the requests that wait with an error, and pause before the next attempt."""
        self._fail(self.queue.unclaimed(), error)
        self._wait_for_wakeup(_PAUSE_SECONDS)

    def _wait_for_wakeup(self, seconds: float | None) -> None:
        until = None if seconds is None else monotonic() + seconds
        poll = select.poll()
        poll.register(self.waker.reader, select.POLLIN)
        while until is None or monotonic() < until:
            if poll.poll(_milliseconds_until(until)):
                self.waker.drain()
                self._on_idle()
                if until is None or self.queue.state is not QueueState.OPEN:
                    return

    def _refuse(self, tickets: list[Ticket]) -> None:
        self._fail(tickets, self.queue.closed_error())

    def _fail(self, tickets: list[Ticket], error: BaseException) -> None:
        for ticket in tickets:
            self._deaths_of.pop(ticket, None)
            if not self.queue.finish([ticket], failed=True):
                self._outcomes.append(Outcome(ticket, error=own_copy(error)))
        self._flush()

    @property
    def _log_path(self) -> str:
        return str(Path(self._location.path) / HOST_LOG)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _wind_up(self, failure: BaseException | None) -> None:
        """Answer the requests that are left, and close what is open."""
        had = self.queue.detach()
        self._close_socket()
        left = self.queue.end(failure)
        refusal = failure or self.queue.closed_error()
        self._fail([*(sent.ticket for sent in had), *left], refusal)
        self.waker.close()


def _milliseconds_until(moment: float | None) -> int | None:
    """Return how many milliseconds to poll until a moment (``monotonic()``) has passed; None for no limit."""
    return None if moment is None else max(0, int((moment - monotonic()) * 1000)) + 1
