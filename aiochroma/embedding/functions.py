"""Calling an embedding function, whatever its kind, and checking what it returns.

Whatever goes wrong inside one comes out as :class:`EmbeddingFailedError` with its cause: it concerns the embedder, neither
the caller's arguments nor the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import re
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from aiochroma._errors import DeadlineExceededError, EmbedderError, EmbeddingFailedError
from aiochroma._types import Vector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


__all__ = [
    "await_function",
    "call_function",
    "is_asynchronous",
    "kind_of",
    "name_of",
    "refuse_within",
    "vectors_from",
]

_running: ContextVar[frozenset[str]] = ContextVar("aiochroma_embedders_running", default=frozenset())
"""The kinds of embedding function that this context is inside of."""
_MOST_CHARACTERS = 300
_URL_SECRETS = re.compile(r"(?<=://)[^\s/@]+@|\?[^\s'\")>]+")
_OFFLINE = (
    "Chroma downloads the model of this function at its first use, and that did not work. Put the model where Chroma keeps it "
    "(see `aiochroma.MiniLmEmbedder`), or open the memory without `embedder`, which needs no download."
)
_UNREACHABLE = "Is the service that it asks reachable from this machine, and is its model there?"


def is_asynchronous(function: object) -> bool:
    """Return whether calling it gives a coroutine: an ``async def``, or an object with an asynchronous ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    method = getattr(function, "__call__", None)  # noqa: B004 - not whether it can be called, but what is called
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method)


def name_of(function: object) -> str:
    """Return what messages call an embedding function."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", None) or type(function).__name__


def kind_of(function: object) -> str:
    """Return where the code of an embedding function stands: its module and its qualified name."""
    while isinstance(function, functools.partial):
        function = function.func
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def call_function(function: Any, inputs: Any, *, is_query: bool) -> list[Any]:
    """Call a synchronous embedding function with a batch; for a question its ``embed_query`` is used if it has one.

    Returns:
        One float32 array of shape (dimensions,) per input.

    Raises:
        EmbeddingFailedError: It raised, or did not return one finite vector for each input.
    """
    with _within(function), _blamed(function):
        result = _called(function, inputs, is_query=is_query)
    return vectors_from(result, inputs, function)


async def await_function(function: Any, inputs: Any, *, is_query: bool, deadline: float | None) -> list[Any]:
    """Call an asynchronous embedding function on this event loop.

    It runs in a task of its own: a cancellation that arises in it is its failure, and not its caller's end. When the caller
    is cancelled, or the deadline passes, it is cancelled too, and not waited for.

    Args:
        function: What is called; only its ``embed_query`` may be synchronous, and then is not used.
        inputs: A batch.
        is_query: Use ``embed_query`` if it is asynchronous, too.
        deadline: By when (``time.monotonic()``), or None.

    Returns:
        As :func:`call_function`.

    Raises:
        EmbeddingFailedError: As :func:`call_function`.
        DeadlineExceededError: The deadline passed first.
    """
    for_queries = getattr(function, "embed_query", None) if is_query else None

    async def answer() -> Any:
        # Blamed here as well: a SystemExit that leaves a task ends the event loop.
        with _within(function), _blamed(function):
            if inspect.iscoroutinefunction(for_queries):
                return await for_queries(input=inputs)
            return await function(inputs)

    task = asyncio.ensure_future(answer())
    try:
        await asyncio.wait(
            {task}, timeout=None if deadline is None else max(0.0, deadline - time.monotonic())
        )
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_seen)
    if not task.done():
        raise DeadlineExceededError(
            f"The embedding function {name_of(function)!r} had not answered when the deadline passed.",
            started=True,
        )
    with _blamed(function):
        result = task.result()
    return vectors_from(result, inputs, function)


def refuse_within(function: object) -> None:
    """Refuse to embed with a function from inside of itself: it would wait for its own end.

    Raises:
        EmbeddingFailedError: This is called, directly or not, by a function of this kind.
    """
    if kind_of(function) in _running.get():
        raise EmbeddingFailedError(
            f"The embedding function {name_of(function)!r} uses a memory, or a collection, that embeds with the same function: "
            "it would wait for itself. Keep what it needs in something that does not embed."
        )


def vectors_from(result: Any, inputs: Sequence[Any], function: Any) -> list[Any]:
    """Return the vectors that a function returned, one float32 array per input.

    Args:
        result: An array of shape (inputs, dimensions), or a list of vectors.
        inputs: What it was given.
        function: Whose result it is, for the message.

    Raises:
        EmbeddingFailedError: It is not one finite vector per input, all of the same length.
    """
    import numpy as np

    try:
        with np.errstate(over="ignore"):  # What does not fit becomes an infinity, which is refused below.
            vectors: Sequence[Vector] = [np.asarray(vector, dtype=np.float32) for vector in result]
    except (TypeError, ValueError, OverflowError) as error:
        raise EmbeddingFailedError(
            f"The embedding function {name_of(function)!r} did not return vectors but {type(result).__name__}."
        ) from error
    shapes = {vector.shape for vector in vectors}
    if (
        len(vectors) != len(inputs)
        or len(shapes) > 1
        or any(len(shape) != 1 or not shape[0] for shape in shapes)
    ):
        raise EmbeddingFailedError(
            f"The embedding function {name_of(function)!r} was given {len(inputs)} inputs and returned {len(vectors)} items of "
            f"shapes {sorted(shapes)}; it must return one vector for each input, all of the same length."
        )
    if vectors:
        unusable = np.flatnonzero(~np.isfinite(np.stack(vectors)).all(axis=1))
        if len(unusable):
            text = repr(inputs[int(unusable[0])])
            raise EmbeddingFailedError(
                f"The embedding function {name_of(function)!r} returned NaN or an infinity in {len(unusable)} of "
                f"{len(vectors)} vectors; the first is that of {text[:60]}."
            )
    return list(vectors)


def _called(function: Any, inputs: Any, *, is_query: bool) -> Any:
    if is_query and hasattr(function, "embed_query"):
        return function.embed_query(input=inputs)
    return function(inputs)


@contextlib.contextmanager
def _within(function: object) -> Iterator[None]:
    token = _running.set(_running.get() | {kind_of(function)})
    try:
        yield
    finally:
        _running.reset(token)


@contextlib.contextmanager
def _blamed(function: object) -> Iterator[None]:
    """Turn whatever a function raises into an error that says so."""
    try:
        yield
    except (EmbedderError, KeyboardInterrupt):
        raise
    except (
        BaseException
    ) as error:  # A cancellation, a panic of native code, or SystemExit is its failure as well.
        raise EmbeddingFailedError(_message(function, error)) from error


def _message(function: object, error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    reason = _URL_SECRETS.sub("", lines[0])[:_MOST_CHARACTERS] if lines else ""
    said = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    message = f"The embedding function {name_of(function)!r} failed with {said}"
    hint = _hint(function, error)
    return f"{message.rstrip('.')}. {hint}" if hint else message


def _hint(function: object, error: BaseException) -> str | None:
    cause: BaseException | None = error
    while cause is not None:
        kinds = {kind.__name__ for kind in type(cause).__mro__}
        if kinds & {
            "ConnectionError",
            "ConnectError",
            "ConnectTimeout",
            "TransportError",
            "gaierror",
            "APIConnectionError",
        }:
            chromas_own = kind_of(function).endswith(("DefaultEmbeddingFunction", "ONNXMiniLM_L6_V2"))
            return _OFFLINE if chromas_own else _UNREACHABLE
        cause = cause.__cause__ or cause.__context__
    return None


def _seen(task: asyncio.Future[Any]) -> None:
    """Look at the outcome of a task that is no longer awaited, which asyncio would otherwise report."""
    if not task.cancelled():
        task.exception()
