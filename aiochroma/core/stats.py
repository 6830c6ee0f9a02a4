"""Counters and times of one database: always kept, cheap, read with ``stats()``."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass

from aiochroma._errors import StoreUnavailableError
from aiochroma._types import JsonObject

__all__ = ["Latency", "Stats", "StatsRecorder"]

_INTERNAL = 500
"""Chroma's errors carry the code of an HTTP response; from here on it is not the caller's fault."""

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
        """Return the times waited and run; of many samples as they were when the last thirty-second of them was still to come.

        Every call of a memory asks what is known of its database, and putting all samples in order takes 0.6 ms.
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
