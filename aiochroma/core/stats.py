"""What is counted and measured of a database, and who is told of it."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from aiochroma._errors import StoreUnavailableError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextvars import Context

    from aiochroma.core.calls import Ticket

__all__ = ["Latency", "Observer", "SlowLog", "Stats", "StatsRecorder", "observer", "set_observer"]

log: EventLogger = get_logger("aiochroma.core")

T = TypeVar("T")

_INTERNAL = 500
"""Chroma's errors carry the code of an HTTP response; from here on it is not the caller's fault."""

_SLOW_REPORT_SECONDS = 1.0
_SAMPLES = 2048
"""Latencies are those of this many most recent requests: enough for a p99, constant memory."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds over the most recent requests (at most 2048); 0.0 where there were none."""

    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0


@dataclass(frozen=True)
class Stats:
    """What a database's thread has done since it was opened.

    ``submitted == done + failed + cancelled + expired + abandoned + pending + in_line``, except that a request which was
    abandoned and is still running counts as abandoned.

    Attributes:
        name: The database.
        submitted: Requests accepted into the queue.
        done: Requests that returned a result to their caller.
        failed: Requests that raised an error in their caller.
        cancelled: Requests whose caller left while they were queued; they never ran.
        expired: Requests whose deadline passed while they were queued; they never ran.
        abandoned: Requests whose caller left, or whose deadline passed, while they ran; their outcome was dropped.
        refused: Requests that did not want to wait for a full queue.
        pending: Requests that are queued or running now; never above ``max_pending``.
        in_line: Requests that wait in line because the queue is full.
        calls: Calls made into the database; fewer than requests where requests were merged, more where they were cut.
        batches: Rounds, in each of which the thread took all that waited.
        wait_ms: Time from submission to the start of the call, in milliseconds.
        run_ms: Time inside the call, in milliseconds.
        embedder: The identity of the embedder that a memory on this database uses, or None.
    """

    name: str
    submitted: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    abandoned: int = 0
    refused: int = 0
    pending: int = 0
    in_line: int = 0
    calls: int = 0
    batches: int = 0
    wait_ms: Latency = Latency()
    run_ms: Latency = Latency()
    embedder: str | None = None

    def as_dict(self) -> JsonObject:
        """Return plain data, for logs and JSON."""
        return asdict(self)


class StatsRecorder:
    """Written by the serving thread only, read by anybody."""

    def __init__(self) -> None:
        self.calls = 0
        self.batches = 0
        self.last_error: str | None = None
        self.busy_since: float | None = None
        self._recorded = self._counted = 0
        self._times = Latency(), Latency()
        self._wait: deque[float] = deque(maxlen=_SAMPLES)
        self._run: deque[float] = deque(maxlen=_SAMPLES)

    def record(self, wait_seconds: float, run_seconds: float) -> None:
        """Note the times of one request."""
        self._wait.append(wait_seconds)
        self._run.append(run_seconds)
        self._recorded += 1

    def record_error(self, label: str, error: BaseException) -> None:
        """Note the last error that concerns the store, and not a caller's arguments."""
        code = getattr(error, "code", None)
        if isinstance(error, (StoreUnavailableError, OSError)) or (callable(code) and code() >= _INTERNAL):
            self.last_error = f"{label}: {type(error).__name__}: {error}"

    def times(self) -> tuple[Latency, Latency]:
        """Return the times waited and run; they lag behind by at most a thirty-second of the samples.

        Every call of a memory asks what is known of its database, and sorting all samples takes 0.6 ms.
        """
        recorded = self._recorded
        if recorded - self._counted > len(self._wait) // 32:
            self._counted, self._times = recorded, (_times(self._wait), _times(self._run))
        return self._times


def _times(seconds: deque[float]) -> Latency:
    for _ in range(8):
        try:
            values = sorted(seconds)
        except RuntimeError:  # The serving thread appended in the middle of the copy.
            continue
        break
    else:
        return Latency()
    if not values:
        return Latency()
    last = len(values) - 1
    return Latency(*(round(values[int(last * share)] * 1000, 3) for share in (0.5, 0.99, 1.0)))


class Observer(Protocol):
    """What is told to whoever observes. Must neither block nor raise."""

    async def memory_call(
        self,
        name: str,
        details: JsonObject,
        work: Callable[[], Awaitable[T]],
        database: Callable[[], str],
    ) -> T:
        """Carry out a call of a memory, and return what it returns.

        Args:
            name: Of the call, such as ``"recall"``.
            details: What it was asked for: ``query``, ``namespaces``, ``id``, ``texts``, where it has these.
            work: What to await.
            database: Returns the name of the database; known when the call has ended.
        """

    def request(
        self,
        database: str,
        operation: str,
        context: Context,
        waited: float,
        ran: float,
        merged: int,
        error: BaseException | None,
    ) -> None:
        """Take note of a request that was carried out; on the thread that did it, before its caller goes on.

        Args:
            database: The name of the database.
            operation: The name of the operation.
            context: The context of the caller.
            waited: Seconds in the queue.
            ran: Seconds in the database.
            merged: How many requests one call into the database has answered; 1 for a request of its own.
            error: What it raised, or None.
        """

    def embedding(self, seconds: float, texts: int) -> None:
        """Take note of an embedding, in the caller's context."""

    def carrier(self, context: Context) -> dict[str, str]:
        """Return what tells another process which call a request belongs to: a ``traceparent``, as W3C has it."""

    def continue_call(self, carrier: Mapping[str, str]) -> None:
        """Note, in the present context, that what follows belongs to a call of another process."""


_observer: Observer | None = None


def observer() -> Observer | None:
    """Return the observer of this process, or None."""
    return _observer


async def observed(
    name: str, details: JsonObject, work: Callable[[], Awaitable[T]], database: Callable[[], str]
) -> T:
    """Carry out a call of a memory, before the eyes of whoever observes; see :meth:`Observer.memory_call`."""
    watching = observer()
    return await (work() if watching is None else watching.memory_call(name, details, work, database))


def set_observer(chosen: Observer | None) -> None:
    """Set the observer of this process, or take it away."""
    global _observer  # noqa: PLW0603 - one for the whole process
    _observer = chosen


class SlowLog:
    """Logs slow requests; under a backlog all are slow, so one a second stands for the others.

    Args:
        name: The database.
        seconds: A request that took longer, waiting included, is slow.

    Attributes:
        seconds: See above.
        opened_at: When the database was opened (``monotonic()``): waiting for that does not make a request slow.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.opened_at: float | None = None
        self._name = name
        self.seconds = seconds
        self._reported_at = float("-inf")
        self._unreported = 0

    def look(self, ticket: Ticket, now: float, waited: float, ran: float) -> None:
        """Log a request if it was slow; the times are in seconds, ``now`` is its end."""
        if self.opened_at is None or now - max(ticket.queued_at, self.opened_at) <= self.seconds:
            return
        self._unreported += 1
        if now - self._reported_at < _SLOW_REPORT_SECONDS:
            return
        ticket.context.run(
            log.warning,
            "request.slow",
            database=self._name,
            operation=ticket.request.operation,
            wait_ms=round(waited * 1000, 1),
            run_ms=round(ran * 1000, 1),
            slow_since_last_report=self._unreported,
        )
        self._reported_at, self._unreported = now, 0
