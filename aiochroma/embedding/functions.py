"""Calling an embedding function, whatever its kind, and checking what it returns."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from aiochroma._errors import EmbeddingFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["call_function", "is_asynchronous", "name_of", "vectors_from"]


def is_asynchronous(function: Any) -> bool:
    """Return whether calling it gives a coroutine: an ``async def``, or an object with an asynchronous ``__call__``."""
    method = getattr(function, "__call__", None)  # noqa: B004 - not whether it can be called, but what is called
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method)


def name_of(function: Any) -> str:
    """Return what messages call an embedding function."""
    return getattr(function, "__name__", None) or type(function).__name__


def call_function(function: Any, inputs: Any, *, is_query: bool) -> Any:
    """Call an embedding function with a batch; for a question its ``embed_query`` is used if it has one."""
    if is_query and hasattr(function, "embed_query"):
        return function.embed_query(input=inputs)
    return function(inputs)


def vectors_from(result: Any, expected: int, function: Any) -> list[Any]:
    """Return the vectors that a function returned, one float32 array per input.

    Args:
        result: An array of shape (inputs, dimensions), or a list of vectors.
        expected: How many inputs there were.
        function: Whose result it is, for the message.

    Raises:
        EmbeddingFailedError: It is not one vector per input.
    """
    import numpy as np

    try:
        vectors: Sequence[Any] = [np.asarray(vector, dtype=np.float32) for vector in result]
    except (TypeError, ValueError) as error:
        raise EmbeddingFailedError(
            f"The embedding function {name_of(function)!r} did not return vectors but {type(result).__name__}."
        ) from error
    if len(vectors) != expected or any(vector.ndim != 1 for vector in vectors):
        shapes = {vector.shape for vector in vectors}
        raise EmbeddingFailedError(
            f"The embedding function {name_of(function)!r} was given {expected} inputs and returned {len(vectors)} items of "
            f"shapes {sorted(shapes)}; it must return one vector for each input."
        )
    return list(vectors)
