"""From waiting requests to calls, and from results back to requests: pure functions, no thread, no clock, no Chroma.

A *round* is what the thread does between two looks at the queue: every read that waits, merged; then what creates
collections; then **one** piece of writing. So a read waits for at most one piece of writing, and writing goes on as long
as anybody writes. :func:`plan` chooses the steps of one round. Each step names its members by position; :func:`merge`
makes the one call for them and :func:`split` gives each member its own result.

What may be merged, because it changes nothing but speed:

* ``query`` with the same parameters on one collection: one call with many vectors;
* ``get`` by id: one call with the union of the ids;
* ``count`` and other reads that are equal: one call;
* neighbouring writes of one kind to one collection, up to a repeated id.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aiochroma._errors import PartialWriteError
from aiochroma.core.request import Lane, Request
from aiochroma.core.slices import RESULT_FIELDS, concatenated, split_get, split_questions

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

__all__ = ["Limits", "RecordPlanner", "Step"]

RECORD_FIELDS = ("ids", "embeddings", "metadatas", "documents", "uris")
"""Arguments of a write that have one entry for each record."""

QUESTION_FIELDS = {"_query": ("query_embeddings",), "search_memories": ("query_embeddings", "queries")}
"""Arguments of a search that have one entry for each question."""

BULK_TURN = 4
"""Every so many rounds bulk writing goes first, so that a stream of small writes cannot starve it."""


@dataclass(slots=True)
class Limits:
    """How large one call may become.

    Attributes:
        records_per_slice: Records in one piece of writing; set from measured cost so that it holds the interpreter for about
            ``max_write_slice_ms``.
        vectors_per_call: Query vectors in one merged call. A merged call returns when its last vector is done, so more
            would delay the first for the sake of the last.
        ids_per_call: Ids in one merged ``get``.
        records_per_page: Records that one piece of a large ``get`` returns; converting them holds the interpreter.
        cut_reads: Whether a large ``get`` is cut into pages at all.
        window: How many waiting requests of a lane are looked at in one round.
    """

    records_per_slice: int = 16
    vectors_per_call: int = 64
    ids_per_call: int = 512
    records_per_page: int = 256
    cut_reads: bool = True
    window: int = 1024


@dataclass(slots=True)
class Step:
    """One call of a round.

    Attributes:
        members: Positions of the requests that it answers, in order of submission.
        start: First record of a request that is cut (it then is the only member).
        stop: End of the piece, or None where the request is not cut.
        records: How many records it writes; 0 for reads.
    """

    members: list[int]
    start: int = 0
    stop: int | None = None
    records: int = 0


class RecordPlanner:
    """The plan for Chroma's operations."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()

    # -- choosing ------------------------------------------------------------------------------------------------------

    def plan(self, waiting: Sequence[Request], progress: Sequence[int], turn: int) -> list[Step]:
        """Choose the steps of one round.

        Args:
            waiting: Requests in order of submission.
            progress: For each, how many records are done already; more than 0 only where it was cut before.
            turn: The number of the round, for taking turns between interactive and bulk writing.

        Returns:
            Steps to carry out in this order. Not every request has to be in one: what is left waits for a later round.
        """
        lanes = [request.lane for request in waiting]
        barrier = lanes.index(Lane.BARRIER) if Lane.BARRIER in lanes else len(lanes)
        if barrier == 0:
            return [Step([0])] if waiting else []
        reads, catalog, writes = (
            [position for position in range(barrier) if lanes[position] is lane][: self.limits.window]
            for lane in (Lane.READ, Lane.CATALOG, Lane.WRITE)
        )
        after = self._reads_after_writing(waiting, progress, reads, writes)
        steps = self._plan_reads(waiting, progress, [position for position in reads if position not in after])
        paged = {waiting[step.members[0]].collection for step in steps if step.stop is not None}
        steps.extend(Step([position]) for position in catalog)
        write = self._plan_write(
            waiting, progress, [p for p in writes if waiting[p].collection not in paged], turn
        )
        if write is None:
            return steps
        written = waiting[write.members[0]].collection
        begin = [position for position, collection in after.items() if collection == written]
        return [*steps, write, *self._plan_reads(waiting, progress, begin)]

    def _reads_after_writing(
        self, waiting: Sequence[Request], progress: Sequence[int], reads: Iterable[int], writes: Iterable[int]
    ) -> dict[int, str]:
        """Return the large reads that begin after a piece of an earlier write to their collection.

        While a large read is paged, writes to its collection wait. If each began at once, large reads that follow
        each other without a gap would hold up a write for ever.
        """
        first: dict[str, int] = {}
        for position in writes:
            first.setdefault(waiting[position].collection, position)
        return {
            position: collection
            for position in (reads if first else ())
            if not progress[position]
            and first.get(collection := waiting[position].collection, position) < position
            and _is_paged(waiting[position], self.limits)
        }

    def _plan_reads(
        self, waiting: Sequence[Request], progress: Sequence[int], reads: Iterable[int]
    ) -> list[Step]:
        steps: list[Step] = []
        open_steps: dict[Hashable, tuple[Step, int]] = {}
        for position in reads:
            request = waiting[position]
            if _is_paged(request, self.limits):
                done = progress[position]
                steps.append(Step([position], done, done + self._page(request, done)))
                continue
            if request.merge_key is None:
                request.merge_key = self._read_key(request)
            key, size, most = request.merge_key
            step, total = open_steps.get(key, (None, 0)) if key is not None else (None, 0)
            if step is None or total + size > most:
                step, total = Step([]), 0
                steps.append(step)
            step.members.append(position)
            if key is not None:
                open_steps[key] = (step, total + size)
        return steps

    def _read_key(self, request: Request) -> tuple[Hashable | None, int, int]:
        """Return what must be equal for reads to be merged, the size of this one, and the most one call may have."""
        arguments = request.arguments
        if request.operation in QUESTION_FIELDS:
            vectors = arguments["query_embeddings"]
            rest = _frozen(
                {
                    name: value
                    for name, value in arguments.items()
                    if name not in QUESTION_FIELDS[request.operation]
                }
            )
            key = None if rest is None or not len(vectors) else (request.operation, _length(vectors[0]), rest)
            return key, len(vectors), self.limits.vectors_per_call
        if request.operation == "_get" and _is_get_by_id(arguments):
            rest = _frozen(arguments, without="ids")
            return (None if rest is None else ("_get", rest)), len(arguments["ids"]), self.limits.ids_per_call
        rest = _frozen(arguments)
        return (None if rest is None else (request.operation, rest)), 0, 1

    def _page(self, request: Request, done: int) -> int:
        limit = request.arguments.get("limit")
        return (
            self.limits.records_per_page if limit is None else min(self.limits.records_per_page, limit - done)
        )

    def _plan_write(
        self, waiting: Sequence[Request], progress: Sequence[int], writes: Sequence[int], turn: int
    ) -> Step | None:
        lines: dict[str, list[int]] = {}
        for position in writes:
            lines.setdefault(waiting[position].collection, []).append(position)
        if not lines:
            return None
        heads = {line[0]: line for line in lines.values()}
        bulk = [head for head in heads if _is_bulk(waiting[head], progress[head], self.limits)]
        interactive = [head for head in heads if head not in bulk]
        first, second = (bulk, interactive) if turn % BULK_TURN == 0 else (interactive, bulk)
        # Among several bulk writers each gets its turn; interactive writes go in order of submission. Where only every
        # fourth round is theirs, those rounds are counted: with two writers `turn` itself would always name the first.
        turn_of_bulk = turn // BULK_TURN if interactive else turn
        head = bulk[turn_of_bulk % len(bulk)] if (first or second) is bulk else min(interactive)
        return self._write_step(waiting, progress, heads[head])

    def _write_step(self, waiting: Sequence[Request], progress: Sequence[int], line: Sequence[int]) -> Step:
        head = waiting[line[0]]
        size, most = _size(head), self.limits.records_per_slice
        if head.operation == "_delete" and (
            head.arguments.get("ids") is None or head.arguments.get("limit") is not None
        ):
            # A limit counts over the whole call, so it cannot be cut either.
            return Step([line[0]], records=size)
        if not head.atomic and (progress[line[0]] or size > most):
            start = progress[line[0]]
            stop = min(size, start + most)
            return Step([line[0]], start, stop, records=stop - start)
        members, total = [line[0]], size
        seen = set(head.arguments["ids"])
        shape = _write_shape(head)
        for position in line[1:]:
            request = waiting[position]
            total += _size(request)
            if total > most or shape is None or request.atomic or _write_shape(request) != shape:
                break
            ids = request.arguments["ids"]
            if not seen.isdisjoint(ids):
                break
            seen.update(ids)
            members.append(position)
        return Step(members, records=sum(_size(waiting[position]) for position in members))

    # -- merging and splitting -----------------------------------------------------------------------------------------

    def merge(self, requests: Sequence[Request], step: Step) -> Request:
        """Make the one call for the requests of a step."""
        head = requests[0]
        if step.stop is not None:
            return _cut(head, step.start, step.stop)
        if len(requests) == 1:
            return head
        arguments = dict(head.arguments)
        if head.operation in QUESTION_FIELDS:
            for name in QUESTION_FIELDS[head.operation]:
                arguments[name] = [value for request in requests for value in request.arguments[name]]
        elif head.operation == "_get" and _is_get_by_id(arguments):
            arguments["ids"] = list(
                dict.fromkeys(id for request in requests for id in request.arguments["ids"])
            )
        elif head.lane is Lane.WRITE:
            for name in RECORD_FIELDS:
                if arguments.get(name) is not None:
                    arguments[name] = [value for request in requests for value in request.arguments[name]]
        return Request(head.operation, arguments)

    def split(self, requests: Sequence[Request], result: Any) -> list[Any]:
        """Give each of the merged requests its own result, exactly as it would have got it alone."""
        head = requests[0]
        if len(requests) == 1:
            return [result]
        if head.operation in QUESTION_FIELDS:
            return split_questions(requests, result)
        if head.operation == "_get" and _is_get_by_id(head.arguments):
            return split_get(requests, result)
        if head.operation == "_delete":
            # Local Chroma counts the ids it was given, whether or not they were there.
            return [type(result)(deleted=len(request.arguments["ids"])) for request in requests]
        if head.lane is Lane.WRITE:
            return [result] * len(requests)
        return [result, *(copy.deepcopy(result) for _ in requests[1:])]

    # -- requests in pieces --------------------------------------------------------------------------------------------

    def advance(self, request: Request, step: Step, part: Any) -> tuple[int, bool]:
        """Return how many records of a request that was cut are done after this piece, and whether that was the last."""
        assert step.stop is not None
        if request.lane is Lane.WRITE:
            return step.stop, step.stop >= _size(request)
        done = step.start + len(part["ids"])
        limit = request.arguments.get("limit")
        return done, done < step.stop or (limit is not None and done >= limit)

    def join(self, request: Request, parts: Sequence[Any]) -> Any:
        """Put the results of the pieces together."""
        if len(parts) == 1:
            return parts[0]
        if request.operation == "_delete":
            return type(parts[0])(deleted=sum(part["deleted"] for part in parts))
        if request.operation == "remember":
            return {given: written for part in parts for given, written in part.items()}
        if request.lane is Lane.WRITE:
            return parts[-1]
        joined = dict(parts[0])
        for name in RESULT_FIELDS:
            if joined.get(name) is not None:
                joined[name] = concatenated([part[name] for part in parts])
        return joined

    def failure(self, request: Request, progress: int, error: BaseException) -> BaseException:
        """Return the error for a request that was cut and failed after ``progress`` records."""
        if not progress or request.lane is not Lane.WRITE:
            return error
        ids = request.arguments["ids"]
        partial = PartialWriteError(
            f"`{request.operation.lstrip('_')}` of {len(ids)} records stopped after {progress}: {error}. Those in `.applied` "
            "are in the database; write `.remaining` again when the cause is gone.",
            applied=ids[:progress],
            remaining=ids[progress:],
        )
        partial.__cause__ = error
        return partial


def _length(vector: Sequence[float] | None) -> int:
    """Return how many numbers a vector has; a query that is asked by its words alone has none."""
    return 0 if vector is None else len(vector)


def _size(request: Request) -> int:
    ids = request.arguments.get("ids")
    return 1 if ids is None else len(ids)


def _is_bulk(request: Request, done: int, limits: Limits) -> bool:
    return request.bulk or done > 0 or _size(request) > limits.records_per_slice


def _is_get_by_id(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments.get("ids")) and not any(
        arguments.get(name) for name in ("where", "where_document", "limit", "offset")
    )


def _is_paged(request: Request, limits: Limits) -> bool:
    """Whether a ``get`` may return more than a page. One by id returns at most as many records as it has ids."""
    if request.operation != "_get" or request.atomic or not limits.cut_reads:
        return False
    ids, limit = request.arguments.get("ids"), request.arguments.get("limit")
    if not isinstance(limit, (int, type(None))):
        return False  # Chroma says what is wrong with it.
    most = min(
        (len(ids) if ids else limits.records_per_page + 1),
        limits.records_per_page + 1 if limit is None else limit,
    )
    return most > limits.records_per_page


def _cut(request: Request, start: int, stop: int) -> Request:
    arguments = dict(request.arguments)
    if request.operation == "_get":
        arguments["offset"] = (arguments.get("offset") or 0) + start
        arguments["limit"] = stop - start
    else:
        for name in RECORD_FIELDS:
            if arguments.get(name) is not None:
                arguments[name] = arguments[name][start:stop]
    return Request(request.operation, arguments)


def _write_shape(request: Request) -> Hashable | None:
    """Return what must be equal for writes to be merged: kind, fields present, and the vectors' dimension."""
    if request.merge_key is None:
        request.merge_key = (_shape_of(request),)
    shape: Hashable | None = request.merge_key[0]
    return shape


def _shape_of(request: Request) -> Hashable | None:
    arguments = request.arguments
    if arguments.get("where") or arguments.get("where_document") or not arguments.get("ids"):
        return None
    embeddings = arguments.get("embeddings")
    dimensions = {len(vector) for vector in embeddings} if embeddings is not None else {0}
    if len(dimensions) != 1:
        return None
    present = tuple(arguments.get(name) is not None for name in RECORD_FIELDS)
    rest = _frozen({k: v for k, v in arguments.items() if k not in RECORD_FIELDS})
    return None if rest is None else (request.operation, request.bulk, present, dimensions.pop(), rest)


def _frozen(value: Any, *, without: str = "") -> Hashable | None:
    """Return a hashable picture of plain data, or None where there is something in it that is not plain."""
    if isinstance(value, dict):
        return _frozen_items(((key, item) for key, item in value.items() if key != without), "dict")
    if isinstance(value, (list, tuple)):
        return _frozen_items(enumerate(value), "list")
    # The type belongs to it: 1, 1.0 and True are equal, but not the same filter.
    return (type(value), value) if _is_plain(value) else None


def _frozen_items(items: Iterable[tuple[Any, Any]], kind: str) -> Hashable | None:
    frozen = []
    for key, item in items:
        picture = _frozen(item)
        if picture is None:
            return None
        frozen.append((key, picture))
    return (kind, tuple(frozen))


def _is_plain(value: Any) -> bool:
    if is_dataclass(value):
        # Frozen and hashable: a value that says what it says, such as how a namespace is searched.
        return type(value).__hash__ is not None
    return value is None or isinstance(value, (str, int, float, UUID, Enum))
