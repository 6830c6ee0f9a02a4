"""What a host says of itself, to ``aiochroma host --status`` and to tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiochroma.core.registry import BackendWorker
    from aiochroma.host.peer import Peer

__all__ = ["status_of"]


def status_of(worker: BackendWorker, peers: Iterable[Peer], *, going: bool) -> dict[str, Any]:
    """Return what a host does at this moment, as plain values."""
    queue, recorder = worker.queue, worker.recorder
    wait, run = recorder.times()
    return {
        "state": "going" if going else "open" if worker.describe() else "opening",
        "clients": [{"pid": peer.pid, "requests": len(peer.tickets)} for peer in peers if peer.greeted],
        "pending": queue.pending,
        "done": queue.counts["done"],
        "failed": queue.counts["failed"],
        "calls": recorder.calls,
        "wait_ms": {"p50": wait.p50, "p99": wait.p99, "max": wait.max},
        "run_ms": {"p50": run.p50, "p99": run.p99, "max": run.max},
        "last_error": recorder.last_error,
    }
