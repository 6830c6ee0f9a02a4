"""Threads that embed for a database: same queue, same promises, other work.

Each kind of embedding function has a thread of its own, so one that hangs or is slow keeps only its own callers waiting; and
for a kind whose thread has been in one call for long, further callers get another thread, up to a few.

Texts that wait together are embedded in one call. Texts embedded lately are remembered, in a bounded number of bytes.
Asynchronous functions do not come here: they are awaited on their caller's event loop.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

from aiochroma._errors import EmbeddingFailedError, EventLoopRequiredError
from aiochroma._threads import waits_by_blocking
from aiochroma._types import Vector
from aiochroma.core.calls import call
from aiochroma.core.plan import Limits, Step
from aiochroma.core.request import Request
from aiochroma.embedding.functions import (
    await_function,
    call_function,
    is_asynchronous,
    kind_of,
    name_of,
    refuse_within,
)
from aiochroma.embedding.vector_cache import VectorCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.core.connection import Connection
    from aiochroma.core.queue import RequestQueue

__all__ = ["EmbeddingPlanner", "EmbeddingRunner", "EmbeddingWorker"]

_CACHE_BYTES = 16 * 2**20
_TEXTS_PER_CALL = 256
_STUCK_SECONDS = 5.0
"""After so long in one call, further callers get another thread."""
_MOST_THREADS = 4
"""For one kind of function; when all are stuck, callers are refused."""


class EmbeddingPlanner:
    """Merges what is to be embedded by the same function for the same purpose."""

    def __init__(self) -> None:
        self.limits = Limits()

    def plan(self, waiting: Sequence[Request], progress: Sequence[int], turn: int) -> list[Step]:  # noqa: ARG002 - the protocol
        """Group requests by function and purpose, in order of the first of each group."""
        steps: list[Step] = []
        groups: dict[tuple[int, bool], tuple[Step, int]] = {}
        for position, request in enumerate(waiting):
            inputs = request.arguments["inputs"]
            key = (id(request.arguments["function"]), request.arguments["is_query"])
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

    def split(self, requests: Sequence[Request], result: Any) -> list[Any]:
        """Give each request its own vectors."""
        parts, start = [], 0
        for request in requests:
            stop = start + len(request.arguments["inputs"])
            parts.append(result[start:stop])
            start = stop
        return parts

    def advance(self, request: Request, step: Step, part: Any) -> tuple[int, bool]:  # noqa: ARG002 - the protocol
        """Embedding is not cut."""
        return len(part), True

    def join(self, request: Request, parts: Sequence[Any]) -> Any:  # noqa: ARG002 - the protocol
        """Embedding is not cut."""
        return parts[0]

    def failure(self, request: Request, progress: int, error: BaseException) -> BaseException:  # noqa: ARG002 - the protocol
        """Return the function's own error."""
        return error


class EmbeddingWorker:
    """What an embedding thread owns: the cache, for each function that can be told apart."""

    def __init__(self) -> None:
        self._caches: weakref.WeakKeyDictionary[Any, dict[bool, VectorCache]] = weakref.WeakKeyDictionary()

    def execute(self, request: Request, deadline: float | None = None) -> list[Any]:  # noqa: ARG002 - the protocol
        """Embed a batch and return one float32 array per input."""
        function, inputs, is_query = (request.arguments[name] for name in ("function", "inputs", "is_query"))
        cache = self._cache(function, is_query=is_query) if _is_texts(inputs) else None
        if cache is None:
            return call_function(function, inputs, is_query=is_query)
        known = {text: cache.get(text) for text in dict.fromkeys(inputs)}
        missing = [text for text, vector in known.items() if vector is None]
        if missing:
            vectors = call_function(function, missing, is_query=is_query)
            for text, vector in zip(missing, vectors, strict=True):
                known[text] = vector
                cache.put(text, vector)
        return [known[text] for text in inputs]

    def close(self) -> None:
        """Forget everything."""
        self._caches.clear()

    def _cache(self, function: object, *, is_query: bool) -> VectorCache | None:
        try:
            caches = self._caches.setdefault(function, {})
        except TypeError:  # Not hashable or not weakly referable: it cannot be told apart from another.
            return None
        if is_query not in caches:
            caches[is_query] = VectorCache(_CACHE_BYTES)
        return caches[is_query]


class EmbeddingRunner:
    """Embeds for the clients of one database.

    Args:
        connection: The database; threads are started at first use and end with it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def embed(
        self, function: object, inputs: object, *, is_query: bool, deadline: float | None
    ) -> list[Any]:
        """Embed a batch without blocking the event loop.

        Args:
            function: A Chroma embedding function, or any callable that takes a list of inputs; synchronous ones run on an
                embedding thread, asynchronous ones are awaited here.
            inputs: A list of texts, or what else the function takes. Few and short ones are embedded here by a function that
                says that it is quicker so (``inline_characters``).
            is_query: Use the function's ``embed_query`` if it has one.
            deadline: By when (``time.monotonic()``), or None.

        Returns:
            One float32 array of shape (dimensions,) per input.

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
            return call_function(function, inputs, is_query=is_query)
        request = Request("embed", {"function": function, "inputs": inputs, "is_query": is_query})
        vectors: list[Vector] = await call(self._queue(function), request, deadline)
        return vectors

    def _queue(self, function: object) -> RequestQueue:
        """Return the queue of a thread that is not stuck, which is started where there is none."""
        kind = kind_of(function)
        for number in range(_MOST_THREADS):
            worker = self._connection.extra_worker(
                ("embed", kind, number), "embed", EmbeddingWorker, EmbeddingPlanner()
            )
            since = worker.busy_since
            if since is None or time.monotonic() - since < _STUCK_SECONDS:
                return worker.queue
        raise EmbeddingFailedError(
            f"The embedding function {name_of(function)!r} has not come back from {_MOST_THREADS} calls, each of which began "
            f"more than {_STUCK_SECONDS:.0f} s ago. Give it a time limit of its own."
        )


def _is_texts(inputs: object) -> bool:
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], str)


def _is_short(function: Any, inputs: Any) -> bool:
    """Tell whether embedding here takes less time than handing over."""
    limit: int = getattr(function, "inline_characters", 0)
    return limit > 0 and _is_texts(inputs) and sum(map(len, inputs)) <= limit
