"""What several connections to one server do at once: a pure function, as the plan of a single thread is.

The rules of :mod:`aiochroma.core.worker` hold with several steps in flight:

* at most one write for each collection, so that writes to a collection take effect in the order of submission;
* at most one step that creates collections, for the same reason;
* no write to a collection while a large read of it is being paged, and no such read while a write is in flight;
* a barrier alone: after everything submitted before it, before everything submitted after it.

Steps are chosen in the order of their oldest request, so nothing is starved. Bulk writing comes after the others, except
every fourth time, and never occupies the last connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiochroma.core.operations import Lane
from aiochroma.core.plan import BULK_ROUND, Limits, RecordPlanner, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aiochroma.core.request import Request

__all__ = ["ConnectionPlanner", "InFlight"]

_BODY_BYTES = 768 * 1024
"""What the records of one write may come to. A reverse proxy with default settings refuses bodies above 1 MB; larger ones
gain a few per cent, and keep other writes waiting longer."""

_RECORD_BYTES = 64
_BASE64_BYTES_PER_NUMBER = 16 / 3


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step that a connection is carrying out.

    Attributes:
        lane: How its requests are ordered against others.
        collection: The collection that it concerns, or empty.
        paged: It is one page of a large read.
        bulk: It is bulk writing.
    """

    lane: Lane
    collection: str = ""
    paged: bool = False
    bulk: bool = False


class ConnectionPlanner(RecordPlanner):
    """The plan for a server.

    Args:
        limits: How large one call may become. Reads are not cut: other clients of the server may write between two pages,
            so a read in pages might miss a record that was there all the time.
        connections: How many steps may be in flight.
    """

    def __init__(self, limits: Limits | None = None, connections: int = 4) -> None:
        super().__init__(limits or Limits(records_per_slice=5000, cut_reads=False))
        self._most_bulk = max(1, connections - 1)

    def schedule(
        self,
        waiting: Sequence[Request],
        progress: Sequence[int],
        number: int,
        in_flight: Sequence[InFlight],
        free: int,
    ) -> list[Step]:
        """Choose the steps that are to begin now.

        Args:
            waiting: Requests in order of submission, without those in flight.
            progress: For each, how many records are done already.
            number: The number of the look, by which interactive and bulk writing alternate.
            in_flight: What the connections are doing.
            free: How many connections are idle.

        Returns:
            At most ``free`` steps, which may all be carried out at the same time. Not empty where something waits and
            nothing is in flight.
        """
        lanes = [request.lane for request in waiting]
        if any(step.lane is Lane.BARRIER for step in in_flight):
            return []
        barrier = lanes.index(Lane.BARRIER) if Lane.BARRIER in lanes else len(lanes)
        if barrier == 0:
            return [Step([0])] if waiting and not in_flight else []
        of_lane = {
            lane: [position for position in range(barrier) if lanes[position] is lane][
                : self.limits.lookahead
            ]
            for lane in Lane
        }
        written = {step.collection for step in in_flight if step.lane is Lane.WRITE}
        reads = self._plan_reads(waiting, progress, of_lane[Lane.READ])
        steps = [
            step for step in reads if step.stop is None or waiting[step.members[0]].collection not in written
        ]
        if not any(step.lane is Lane.CATALOG for step in in_flight):
            steps.extend(Step([position]) for position in of_lane[Lane.CATALOG][:1])
        held = written | {step.collection for step in in_flight if step.paged}
        held.update(waiting[step.members[0]].collection for step in steps if step.stop is not None)
        writes = [position for position in of_lane[Lane.WRITE] if waiting[position].collection not in held]
        bulk, interactive = self._plan_writes(waiting, progress, writes)
        steps.extend(interactive)
        steps.sort(key=lambda step: step.members[0])
        room = self._most_bulk - sum(step.bulk for step in in_flight)
        bulk = _rotated(bulk, number)[: max(0, room)]
        return [*bulk, *steps][:free] if number % BULK_ROUND == 0 else [*steps, *bulk][:free]

    def describe(self, request: Request, step: Step) -> InFlight:
        """Return what others have to know of a step while it is in flight; ``request`` is its first member."""
        cut = step.stop is not None
        return InFlight(
            request.lane,
            request.collection,
            paged=cut and request.lane is Lane.READ,
            bulk=request.lane is Lane.WRITE and (cut or request.bulk),
        )

    def _plan_writes(
        self, waiting: Sequence[Request], progress: Sequence[int], writes: Iterable[int]
    ) -> tuple[list[Step], list[Step]]:
        lines: dict[str, list[int]] = {}
        for position in writes:
            lines.setdefault(waiting[position].collection, []).append(position)
        bulk: list[Step] = []
        interactive: list[Step] = []
        for line in lines.values():
            step = self._fitting(waiting, self._write_step(waiting, progress, line))
            (bulk if self.describe(waiting[line[0]], step).bulk else interactive).append(step)
        return bulk, interactive

    def _fitting(self, waiting: Sequence[Request], step: Step) -> Step:
        """Shorten a write until its records fit into one body."""
        head = waiting[step.members[0]]
        ids = head.arguments.get("ids")
        if ids is None:
            return step
        if len(step.members) == 1:
            if head.atomic:
                return step
            stop = len(ids) if step.stop is None else step.stop
            end = _end_of_body(head, step.start, stop)
            return step if end == stop else Step(step.members, step.start, end, records=end - step.start)
        total = 0.0
        for count, position in enumerate(step.members):
            total += _bytes_of(waiting[position])
            if total > _BODY_BYTES and count:
                members = step.members[:count]
                shorter = Step(
                    members, records=sum(len(waiting[member].arguments["ids"]) for member in members)
                )
                return self._fitting(waiting, shorter) if count == 1 else shorter
        return step


def _rotated(steps: list[Step], number: int) -> list[Step]:
    first = number % len(steps) if steps else 0
    return steps[first:] + steps[:first]


def _end_of_body(request: Request, start: int, stop: int) -> int:
    """Return the end of as many records from ``start`` as fit into one body; one always does."""
    total = 0.0
    for position in range(start, stop):
        total += _bytes_of_record(request, position)
        if total > _BODY_BYTES and position > start:
            return position
    return stop


def _bytes_of(request: Request) -> float:
    return sum(_bytes_of_record(request, position) for position in range(len(request.arguments["ids"])))


def _bytes_of_record(request: Request, position: int) -> float:
    """Estimate what a record comes to in a body: vectors travel as base64, text as UTF-8."""
    arguments = request.arguments
    total = float(_RECORD_BYTES) + len(arguments["ids"][position])
    embeddings = arguments.get("embeddings")
    if embeddings is not None:
        total += len(embeddings[position]) * _BASE64_BYTES_PER_NUMBER
    for name in ("documents", "uris"):
        values = arguments.get(name)
        if values is not None and values[position] is not None:
            total += _bytes_of_text(values[position])
    metadatas = arguments.get("metadatas")
    if metadatas is not None and metadatas[position] is not None:
        total += sum(len(key) + _bytes_of_value(value) for key, value in metadatas[position].items())
    return total


def _bytes_of_value(value: object) -> int:
    if isinstance(value, str):
        return _bytes_of_text(value)
    return sum(_bytes_of_value(item) for item in value) if isinstance(value, (list, tuple)) else 24


def _bytes_of_text(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
