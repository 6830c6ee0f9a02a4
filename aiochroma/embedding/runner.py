"""Threads that embed for a database, with the same queue and the same promises as the DB thread.

Each kind of embedding function has a thread of its own, so one that hangs or is slow keeps only its own callers waiting; and
where the thread of a kind has been in one call for long, those who wait for it and those who come get another thread, up to a
few.

Texts that wait together are embedded in one call. Texts embedded lately are remembered, in a bounded number of bytes.
Asynchronous functions do not come here: they are awaited on their caller's event loop.
"""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, cast

from aiochroma._callbacks import is_asynchronous
from aiochroma._clock import monotonic
from aiochroma._errors import DeadlineExceededError, EmbeddingFailedError, EventLoopRequiredError
from aiochroma._types import Vector
from aiochroma._waiting import waits_by_blocking
from aiochroma.core.calls import NotBegunError
from aiochroma.core.plan import Limits, Step
from aiochroma.core.request import Request
from aiochroma.embedding.functions import (
    EmbeddingFunction,
    await_function,
    call_function,
    kind_of,
    name_of,
    refuse_within,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.core.connection import Connection
    from aiochroma.core.worker import Worker

__all__ = ["EmbeddingPlanner", "EmbeddingRunner", "EmbeddingWorker", "VectorCache"]

_CACHE_BYTES = 16 * 2**20
_ENTRY_BYTES = 250
"""An entry of the cache costs this beside its text and its numbers: the array's header and the dictionary's node."""
_TEXTS_PER_CALL = 256
_STUCK_SECONDS = 2.0
"""After so long in one call, all others get another thread."""
_MOST_THREADS = 4
"""For one kind of function."""
_HUNG_SECONDS = 30.0
"""When all threads have been in one call each for so long, callers are refused."""


class EmbeddingPlanner:
    """Merges what is to be embedded by the same function for the same purpose."""

    def __init__(self) -> None:
        self.limits: Limits = Limits()

    def plan(self, waiting: Sequence[Request], progress: Sequence[int], turn: int) -> list[Step]:  # noqa: ARG002 - the protocol
        """Group requests by function and purpose, in order of the first of each group."""
        steps: list[Step] = []
        groups: dict[tuple[int, bool, bool], tuple[Step, int]] = {}
        for position, request in enumerate(waiting):
            inputs = request.arguments["inputs"]
            purpose = request.arguments["is_query"], request.arguments["tokens"]
            key = (id(request.arguments["function"]), *purpose)
            step, total = groups.get(key, (None, 0))
            # Only plain lists of texts are joined; what an image function makes of its input is its own affair.
            if step is None or total + len(inputs) > _TEXTS_PER_CALL or not _is_texts(inputs):
                step, total = Step([]), 0
                steps.append(step)
            step.members.append(position)
            groups[key] = (step, total + len(inputs) if _is_texts(inputs) else _TEXTS_PER_CALL)
        return steps

    def merge(self, requests: Sequence[Request], step: Step) -> Request:  # noqa: ARG002 - the protocol
        """Join the inputs."""
        if len(requests) == 1:
            return requests[0]
        inputs = [text for request in requests for text in request.arguments["inputs"]]
        return Request("embed", {**requests[0].arguments, "inputs": inputs})

    def split(self, requests: Sequence[Request], result: object) -> list[Sequence[Vector]]:
        """Give each request its own vectors."""
        vectors, shares, start = cast("Sequence[Vector]", result), [], 0
        for request in requests:
            stop = start + len(request.arguments["inputs"])
            shares.append(vectors[start:stop])
            start = stop
        return shares

    def advance(self, request: Request, step: Step, part: object) -> tuple[int, bool]:  # noqa: ARG002 - the protocol
        """Return that all is done: a request to embed is never cut."""
        return len(request.arguments["inputs"]), True

    def join(self, request: Request, parts: Sequence[Sequence[Vector]]) -> Sequence[Vector]:  # noqa: ARG002 - the protocol
        """Return the one result: a request to embed is never cut."""
        return parts[0]

    def failure(self, request: Request, progress: int, error: BaseException) -> BaseException:  # noqa: ARG002 - the protocol
        """Return the function's own error."""
        return error


class EmbeddingWorker:
    """What an embedding thread owns: the cache, for each function that can be told apart."""

    def __init__(self) -> None:
        self._caches: weakref.WeakKeyDictionary[object, dict[tuple[bool, bool], VectorCache]] = (
            weakref.WeakKeyDictionary()
        )

    def execute(self, request: Request, deadline: float | None = None) -> list[Vector]:  # noqa: ARG002 - the protocol
        """Embed a batch and return one float32 array per input."""
        function, inputs = request.arguments["function"], request.arguments["inputs"]
        purpose = {name: request.arguments[name] for name in ("is_query", "tokens")}
        cache = self._cache(function, **purpose) if _is_texts(inputs) else None
        if cache is None:
            return call_function(function, inputs, **purpose)
        distinct = dict.fromkeys(inputs)
        known = {text: vector for text in distinct if (vector := cache.get(text)) is not None}
        missing = [text for text in distinct if text not in known]
        if missing:
            vectors = call_function(function, missing, **purpose)
            for text, vector in zip(missing, vectors, strict=True):
                known[text] = vector
                cache.put(text, vector)
        return [known[text] for text in inputs]

    def close(self) -> None:
        """Forget everything."""
        self._caches.clear()

    def _cache(self, function: object, *, is_query: bool, tokens: bool) -> VectorCache | None:
        try:
            caches = self._caches.setdefault(function, {})
        except TypeError:  # Not hashable or not weakly referable: it cannot be told apart from another.
            return None
        return caches.setdefault((is_query, tokens), VectorCache(_CACHE_BYTES))


class EmbeddingRunner:
    """Embeds for the clients of one database.

    Args:
        connection: The database; threads are started at first use and end with it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def embed(
        self,
        function: EmbeddingFunction,
        inputs: Sequence[object],
        *,
        is_query: bool,
        deadline: float | None,
        tokens: bool = False,
    ) -> list[Vector]:
        """Embed a batch without blocking the event loop.

        Args:
            function: A Chroma embedding function, or any callable that takes a list of inputs. A synchronous one runs on an
                embedding thread; an asynchronous one is awaited here.
            inputs: A list of texts, or of other inputs that the function takes. Few and short texts are embedded here where the
                function says that this is quicker (``inline_characters``).
            is_query: Whether the inputs are questions: use the function's ``embed_query`` if it has one.
            deadline: The moment (``monotonic()``) at which the caller stops waiting, or None.
            tokens: Whether to embed the tokens of the texts as well; see :class:`TokenEmbedder`. Default: False.

        Returns:
            One float32 array of shape (dimensions,) per input; with ``tokens`` a matrix of these.

        Raises:
            EmbeddingFailedError: The function raised, did not return one finite vector per input, is called from inside of
                itself, or has not come back from several calls.
            DeadlineExceededError: The deadline passed first.
            EventLoopRequiredError: The function is asynchronous, and this is a blocking call.
        """
        refuse_within(function)
        if is_asynchronous(function):
            if waits_by_blocking():
                raise EventLoopRequiredError(
                    f"The embedding function {name_of(function)!r} is asynchronous and needs an event loop: use the asynchronous "
                    "form of this call, or give a synchronous function."
                )
            return await await_function(function, inputs, is_query=is_query, deadline=deadline)
        if _is_short(function, inputs):
            return call_function(function, inputs, is_query=is_query, tokens=tokens)
        arguments = {"function": function, "inputs": inputs, "is_query": is_query, "tokens": tokens}
        request = Request("embed", arguments)
        waits_by_blocking()
        while True:
            worker = self._worker(function)
            ticket = worker.queue.submit(request, deadline)
            try:
                vectors: list[Vector] = await ticket.unless_stuck(partial(_is_stuck, worker), _STUCK_SECONDS)
            except NotBegunError:
                continue
            except DeadlineExceededError as error:
                raise _late(function, worker, error) from error
            return vectors

    def _worker(self, function: object) -> Worker:
        """Return a thread that is not stuck, which is started where there is none; else the one that is stuck least.

        Raises:
            EmbeddingFailedError: All of them hang.
        """
        kind = kind_of(function)
        stuck: list[tuple[float, Worker]] = []
        for number in range(_MOST_THREADS):
            worker = self._connection.extra_worker(
                ("embed", kind, number), "embed", EmbeddingWorker, EmbeddingPlanner()
            )
            if not _is_stuck(worker):
                return worker
            stuck.append((_seconds_in_call(worker), worker))
        seconds, worker = min(stuck, key=lambda one: one[0])
        if seconds < _HUNG_SECONDS:
            return worker
        raise EmbeddingFailedError(
            f"The embedding function {name_of(function)!r} has not come back from {_MOST_THREADS} calls, each of which began "
            f"more than {_HUNG_SECONDS:.0f} s ago. Give it a time limit of its own."
        )


def _seconds_in_call(worker: Worker) -> float:
    since = worker.busy_since
    return 0.0 if since is None else monotonic() - since


def _is_stuck(worker: Worker) -> bool:
    since = worker.busy_since
    return since is not None and monotonic() - since >= _STUCK_SECONDS


def _late(function: object, worker: Worker, error: DeadlineExceededError) -> DeadlineExceededError:
    """Return the error of a caller whose deadline passed. It names the embedder and not the queue before it."""
    return DeadlineExceededError(
        f"The deadline passed while the embedding function {name_of(function)!r} was at work: it has been in one call for "
        f"{_seconds_in_call(worker):.1f} s. Give it a time limit of its own, or the call a longer one.",
        started=error.started,
    )


def _is_texts(inputs: object) -> bool:
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], str)


def _is_short(function: EmbeddingFunction, inputs: Sequence[object]) -> bool:
    """Tell whether embedding here takes less time than handing over."""
    limit: int = getattr(function, "inline_characters", 0)
    return limit > 0 and _is_texts(inputs) and sum(len(str(text)) for text in inputs) <= limit


class VectorCache:
    """The vectors of the texts that were used last; for one thread.

    Vectors come out as they went in, and are shared: they are marked read-only when they go in.

    Args:
        max_bytes: The memory that texts and vectors together may take.

    Attributes:
        bytes: The memory that they take.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._vectors: OrderedDict[str, Vector] = OrderedDict()
        self.bytes: int = 0

    def get(self, text: str) -> Vector | None:
        """Return the vector of a text, or None; the text becomes the most recently used."""
        vector = self._vectors.get(text)
        if vector is not None:
            self._vectors.move_to_end(text)
        return vector

    def put(self, text: str, vector: Vector) -> None:
        """Keep a vector (a copy, unless it owns its memory) and drop the least recently used ones.

        A vector that alone exceeds the bound is not kept.
        """
        # A row of a batch keeps the whole batch alive, which the bound would not see.
        kept = vector if vector.base is None else vector.copy()
        kept.flags.writeable = False
        former = self._vectors.pop(text, None)
        if former is not None:
            self.bytes -= _size(text, former)
        size = _size(text, kept)
        if size > self._max_bytes:
            return
        self._vectors[text] = kept
        self.bytes += size
        while self.bytes > self._max_bytes:
            oldest, dropped = self._vectors.popitem(last=False)
            self.bytes -= _size(oldest, dropped)


def _size(text: str, vector: Vector) -> int:
    return sys.getsizeof(text) + vector.nbytes + _ENTRY_BYTES
