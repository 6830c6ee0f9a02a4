"""From waiting requests to calls, and from results back to requests: pure functions, no thread, no clock, no Chroma.

A *round* is what the thread does between two looks at the queue: it carries out every waiting read, merged; then what creates
collections; then **one** slice of writing. So a read waits for at most one slice of writing, and no stream of reads can stop
writing. :meth:`RecordPlanner.plan` chooses the steps of one round. Each step names its members by position;
:meth:`RecordPlanner.merge` makes the one call for them and :meth:`RecordPlanner.split` gives each member its own result.

The table of operations says what may be merged, because it changes nothing but speed:

* searches with the same parameters on one collection: one call with many queries;
* ``get`` by id: one call with the union of the ids;
* ``count`` and other reads that are equal: one call;
* neighbouring writes of one kind to one collection, up to a repeated id.

A large ``get`` is read in pages: the first page, then the ids of the rest in one step, then page after page by id. Chroma
walks an offset from the beginning and evaluates a filter again for each page, so pages by offset would cost the square. The ids
of a whole collection may be listed beside the thread: that step is repeated, round after round, until they are there; meanwhile
others are served, and nothing is written to the collection. A search with many questions is asked page after page of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Protocol

from aiochroma._errors import PartialWriteError
from aiochroma.core.operations import Lane, Merge
from aiochroma.core.request import (
    Request,
    bytes_of,
    cut,
    end_within,
    is_get_by_id,
    joined,
    read_key,
    split,
    write_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from aiochroma.core.request import CallResult

__all__ = ["Limits", "Planner", "RecordPlanner", "Step"]

_RECORDS_AT_REWRITE = 8
"""Of a slice that also rewrites the index, which takes as long as some 50 records."""

_LISTINGS = count(1)

BULK_ROUND = 4
"""Once in this many rounds bulk writing goes first, so that a stream of small writes cannot starve it."""


@dataclass(slots=True)
class Limits:
    """How large one call may become.

    Attributes:
        records_per_slice: Records in one slice of writing; set from measured cost so that it holds the interpreter for about
            ``max_write_slice_ms``.
        bytes_per_slice: What these records may come to beyond the first: a long text takes as long as many short ones.
        bytes_per_number: What a number of a vector counts for.
        vectors_per_call: Query vectors in one merged call, each counted once for every collection that it searches. A merged
            call returns when its last vector is done, so more would delay the first for the sake of the last.
        ids_per_call: Ids in one merged ``get``.
        records_per_page: Records that one page of a large ``get`` returns; converting them holds the interpreter.
        cut_reads: Whether a large ``get`` is read in pages at all.
        lookahead: How many waiting requests of a lane are looked at in one round.
        until_rewrite: Tells of a collection how many more records can be written to it before the call that writes them also
            rewrites its index on the disk; None where that is not known.
        eases_rewrites: Whether a slice of a long write that rewrites the index is made small.
    """

    records_per_slice: int = 16
    bytes_per_slice: int = 256 * 1024
    bytes_per_number: float = 0.0
    vectors_per_call: int = 64
    ids_per_call: int = 512
    records_per_page: int = 256
    cut_reads: bool = True
    lookahead: int = 1024
    until_rewrite: Callable[[str], int | None] | None = None
    eases_rewrites: bool = False


@dataclass(slots=True)
class Step:
    """One call of a round.

    Attributes:
        members: Positions of the requests that it answers, in order of submission.
        start: First record of a request that is cut (it then is the only member).
        stop: End of the slice or page, or None where the request is not cut.
        records: How many records it writes; 0 for reads.
        lists_ids: Whether it asks only for the ids of all records after the first page of a large read.
    """

    members: list[int]
    start: int = 0
    stop: int | None = None
    records: int = 0
    lists_ids: bool = False


class Planner(Protocol):
    """The plan of a kind of request; see :class:`aiochroma.core.plan.RecordPlanner`."""

    limits: Limits

    def plan(self, waiting: Sequence[Request], progress: Sequence[int], number: int) -> list[Step]:
        """Choose the steps of one round."""

    def merge(self, requests: Sequence[Request], step: Step) -> Request:
        """Make one call."""

    def split(self, requests: Sequence[Request], result: object) -> list[CallResult]:
        """Take its result apart."""

    def advance(self, request: Request, step: Step, result: object) -> tuple[int, bool]:
        """Return how many records of a request that was cut are done, and whether that are all."""

    def join(self, request: Request, slices: Sequence[CallResult]) -> CallResult:
        """Put the results of its slices or pages together."""

    def failure(self, request: Request, progress: int, error: BaseException) -> BaseException:
        """Return the error of a request that was cut and failed."""


class RecordPlanner:
    """The plan for Chroma's operations and those of a memory."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits: Limits = limits or Limits()

    # -- choosing ------------------------------------------------------------------------------------------------------

    def plan(self, waiting: Sequence[Request], progress: Sequence[int], number: int) -> list[Step]:
        """Choose the steps of one round.

        Args:
            waiting: Requests in order of submission.
            progress: For each, how many records are done already; more than 0 only where it was cut before.
            number: The number of the round, by which interactive and bulk writing alternate.

        Returns:
            Steps to carry out in this order. A request that is in none of them waits for a later round.
        """
        if len(waiting) == 1 and not _is_paged(waiting[0], self.limits):
            # Alone: what it could be merged with need not be worked out.
            return [self._write_step(waiting, progress, [0]) if waiting[0].lane is Lane.WRITE else Step([0])]
        lanes = [request.lane for request in waiting]
        barrier = lanes.index(Lane.BARRIER) if Lane.BARRIER in lanes else len(lanes)
        if barrier == 0:
            return [Step([0])] if waiting else []
        reads, catalog, writes = (
            [position for position in range(barrier) if lanes[position] is lane][: self.limits.lookahead]
            for lane in (Lane.READ, Lane.CATALOG, Lane.WRITE)
        )
        after = self._reads_after_writing(waiting, progress, reads, writes)
        steps = self._plan_reads(waiting, progress, [position for position in reads if position not in after])
        paged = {waiting[step.members[0]].collection for step in steps if step.stop is not None}
        steps.extend(Step([position]) for position in catalog)
        write = self._plan_write(
            waiting, progress, [p for p in writes if waiting[p].collection not in paged], number
        )
        if write is None:
            return steps
        written = waiting[write.members[0]].collection
        begin = [position for position, collection in after.items() if collection == written]
        return [*steps, write, *self._plan_reads(waiting, progress, begin)]

    def _reads_after_writing(
        self, waiting: Sequence[Request], progress: Sequence[int], reads: Iterable[int], writes: Iterable[int]
    ) -> dict[int, str]:
        """Return the large reads that have to begin after a slice of an earlier write, with the collection of each.

        Writes to a collection wait while a large read of it is paged. If every large read began at once, a sequence of them
        without a gap would hold up a write for ever.
        """
        first: dict[str, int] = {}
        for position in writes:
            first.setdefault(waiting[position].collection, position)
        return {
            position: collection
            for position in (reads if first else ())
            if not progress[position]
            and waiting[position].page_ids is None
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
                steps.append(self._page(position, request, progress[position]))
                continue
            if request.merge_key is None:
                request.merge_key = read_key(request)
            key, size = request.merge_key
            most = self._most_merged(request)
            step, total = open_steps.get(key, (None, 0)) if key is not None else (None, 0)
            if step is None or total + size > most:
                step, total = Step([]), 0
                steps.append(step)
            step.members.append(position)
            if key is not None:
                open_steps[key] = (step, total + size)
        return steps

    def _most_merged(self, request: Request) -> int:
        merge = request.row.merge
        return self.limits.vectors_per_call if merge is Merge.QUERIES else self.limits.ids_per_call

    def _page(self, position: int, request: Request, done: int) -> Step:
        """Return the next step of a large read: its first page, the ids of the rest, or a page of those."""
        size = self.limits.records_per_page
        if request.row.query_fields:
            return Step([position], done, min(done + self.limits.vectors_per_call, _questions(request)))
        if request.page_ids is not None:
            return Step([position], done, min(done + size, len(request.page_ids)))
        if done or is_get_by_id(request.arguments):
            return Step([position], done, done, lists_ids=True)
        limit = request.arguments.get("limit")
        return Step([position], 0, size if limit is None else min(size, limit))

    def _plan_write(
        self, waiting: Sequence[Request], progress: Sequence[int], writes: Sequence[int], number: int
    ) -> Step | None:
        lines: dict[str, list[int]] = {}
        for position in writes:
            lines.setdefault(waiting[position].collection, []).append(position)
        if not lines:
            return None
        heads = {line[0]: line for line in lines.values()}
        bulk = [head for head in heads if _is_bulk(waiting[head], progress[head], self.limits)]
        interactive = [head for head in heads if head not in bulk]
        first, second = (bulk, interactive) if number % BULK_ROUND == 0 else (interactive, bulk)
        # Bulk writers alternate; interactive writes go in order of submission. Where only every fourth round is for bulk
        # writing, those rounds are counted: with two writers `number` itself would always name the first.
        bulk_number = number // BULK_ROUND if interactive else number
        head = bulk[bulk_number % len(bulk)] if (first or second) is bulk else min(interactive)
        return self._write_step(waiting, progress, heads[head])

    def _write_step(self, waiting: Sequence[Request], progress: Sequence[int], line: Sequence[int]) -> Step:
        head, start = waiting[line[0]], progress[line[0]]
        size, limits = _size(head), self.limits
        if head.arguments.get("ids") is None or head.arguments.get("limit") is not None:
            # A limit counts over the whole call, so it cannot be cut either.
            return Step([line[0]], records=size)
        if not head.atomic:
            most = limits.records_per_slice
            if start or size > most:
                most = self._within_rewrite(head.collection, most)
            stop = min(size, start + most)
            if stop - start > 1:
                stop = end_within(head, start, stop, limits.bytes_per_slice, limits.bytes_per_number)
            if start or stop < size:
                return Step([line[0]], start, stop, records=stop - start)
        if len(line) == 1:
            return Step([line[0]], records=size)
        members, total = [line[0]], size
        room = limits.bytes_per_slice - bytes_of(head, limits.bytes_per_number)
        seen = set(head.arguments["ids"])
        key = _noted_write_key(head)
        for position in line[1:]:
            request = waiting[position]
            total += _size(request)
            if total > limits.records_per_slice or key is None or _noted_write_key(request) != key:
                break
            ids = request.arguments["ids"]
            room -= bytes_of(request, limits.bytes_per_number)
            if room < 0 or not seen.isdisjoint(ids):
                break
            seen.update(ids)
            members.append(position)
        return Step(members, records=sum(_size(waiting[position]) for position in members))

    def _within_rewrite(self, collection: str, most: int) -> int:
        """Return how many records the next slice has: those before the index is rewritten, then few together with that."""
        limits = self.limits
        left = limits.until_rewrite(collection) if limits.eases_rewrites and limits.until_rewrite else None
        return most if left is None or left > most else min(most, max(left - 1, _RECORDS_AT_REWRITE))

    # -- merging and splitting -----------------------------------------------------------------------------------------

    def merge(self, requests: Sequence[Request], step: Step) -> Request:
        """Make the one call for the requests of a step."""
        head = requests[0]
        if step.lists_ids:
            return _listing(head, step.start)
        if step.stop is not None:
            is_get = head.lane is Lane.READ and not head.row.query_fields
            arguments = _page_of(head, step) if is_get else cut(head, step.start, step.stop)
            return Request(head.operation, arguments)
        if len(requests) == 1:
            return head
        arguments, row = dict(head.arguments), head.row
        if row.merge is Merge.GET_BY_ID and is_get_by_id(arguments):
            arguments["ids"] = list(
                dict.fromkeys(id for request in requests for id in request.arguments["ids"])
            )
        for name in row.query_fields or row.record_fields:
            if arguments.get(name) is not None:
                arguments[name] = [value for request in requests for value in request.arguments[name]]
        return Request(head.operation, arguments)

    def split(self, requests: Sequence[Request], result: object) -> list[CallResult]:
        """Give each of the merged requests its own result, exactly as it would have got it alone."""
        return [result] if len(requests) == 1 else split(requests, result)

    # -- requests in slices and pages ----------------------------------------------------------------------------------

    def advance(self, request: Request, step: Step, result: CallResult) -> tuple[int, bool]:
        """Return how many records of a request that was cut are done after this slice or page, and whether that was the last."""
        assert step.stop is not None
        if request.lane is Lane.WRITE:
            return step.stop, step.stop >= _size(request)
        if request.row.query_fields:
            return step.stop, step.stop >= _questions(request)
        if step.lists_ids:
            if result["ids"] is None:
                return step.start, False
            done = step.start + len(result["ids"])
            begun = step.start > 0
            if request.arguments.get("include") == [] or (begun and not result["ids"]):
                return done, True
            request.page_ids = [*([""] * step.start), *result["ids"]]
            return step.start, False
        if request.page_ids is not None:
            return step.stop, step.stop == len(request.page_ids)
        done = len(result["ids"])
        return done, done < step.stop or done == request.arguments.get("limit")

    def join(self, request: Request, slices: Sequence[CallResult]) -> CallResult:
        """Put the results of the slices or pages together."""
        is_get = request.lane is Lane.READ and not request.row.query_fields
        if is_get:
            slices = [result for result in slices if result["ids"] is not None]
        if is_get and request.arguments.get("include") != []:
            # One of them was the list of ids: the second, or the first where the request names ids itself.
            listed = 0 if is_get_by_id(request.arguments) else 1
            slices = [result for number, result in enumerate(slices) if number != listed]
        return joined(request, slices)

    def failure(self, request: Request, progress: int, error: BaseException) -> BaseException:
        """Return the error for a request that was cut and failed after ``progress`` records."""
        if not progress or request.lane is not Lane.WRITE:
            return error
        ids = request.arguments["ids"]
        partial = PartialWriteError(
            f"`{request.row.label}` of {len(ids)} records stopped after {progress}: {error}. Those in `.applied` "
            "are in the database; write `.remaining` again when the cause is gone.",
            applied=ids[:progress],
            remaining=ids[progress:],
        )
        partial.__cause__ = error
        return partial


def _size(request: Request) -> int:
    ids = request.arguments.get("ids")
    return 1 if ids is None else len(ids)


def _questions(request: Request) -> int:
    """Return how many questions a search has."""
    field, *_ = request.row.query_fields
    return len(request.arguments[field])


def _is_bulk(request: Request, done: int, limits: Limits) -> bool:
    return request.bulk or done > 0 or _size(request) > limits.records_per_slice


def _is_paged(request: Request, limits: Limits) -> bool:
    """Whether a ``get`` may return more than a page, or a search has more questions than one call takes.

    A ``get`` by id returns at most as many records as it has ids.
    """
    if not request.row.paged or request.atomic or not limits.cut_reads:
        return False
    if request.row.query_fields:
        return _questions(request) > limits.vectors_per_call
    ids, limit = request.arguments.get("ids"), request.arguments.get("limit")
    if not isinstance(limit, (int, type(None))):
        return False  # Chroma says what is wrong with it.
    most = min(
        (len(ids) if ids else limits.records_per_page + 1),
        limits.records_per_page + 1 if limit is None else limit,
    )
    return most > limits.records_per_page


def _listing(request: Request, done: int) -> Request:
    """Return what asks for the ids of a large read after its first records; it is to say None as long as they are not there."""
    arguments = _rest_of(request, done)
    if any(arguments.get(name) is not None for name in ("ids", "where", "where_document")):
        return Request(request.operation, arguments)
    request.listing = request.listing or next(_LISTINGS)
    names = ("collection_id", "tenant", "database", "offset", "limit")
    given = {name: arguments[name] for name in names if name in arguments}
    return Request("list_ids", {**given, "listing": request.listing})


def _rest_of(request: Request, done: int) -> dict[str, object]:
    """Return the arguments that ask for the ids of a large read after its first records."""
    limit = request.arguments.get("limit")
    return {
        **request.arguments,
        "offset": (request.arguments.get("offset") or 0) + done or None,
        "limit": None if limit is None else limit - done,
        "include": [],
    }


def _page_of(request: Request, step: Step) -> dict[str, object]:
    """Return the arguments of one page of a large read."""
    if request.page_ids is None:
        return {**request.arguments, "limit": step.stop}
    # Of ids that are all unknown one is asked for, so that the result has its fields.
    ids = request.page_ids[step.start : step.stop] or list(request.arguments["ids"][:1])
    nothing_else = dict.fromkeys(("where", "where_document", "limit", "offset"))
    return {**request.arguments, **nothing_else, "ids": ids}


def _noted_write_key(request: Request) -> Hashable | None:
    if request.merge_key is None:
        request.merge_key = (write_key(request), 0)
    return request.merge_key[0]
