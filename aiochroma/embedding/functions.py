"""Embedding functions: what one is called, whether two are the same, calling one, and checking what it returns.

The identity of an embedder is stored with the data and shown in messages, health reports and logs. So it holds names and
model names only: no keys, addresses, headers, time-outs, devices. Two functions of one name may still embed differently (a
lambda, a partial, a method of two objects), and one function may be renamed. Therefore a fingerprint is stored as well: what the
embedder makes of one fixed text. Where names leave a doubt, fingerprints decide.

Whatever goes wrong inside a function comes out as :class:`EmbeddingFailedError` with its cause: it concerns the embedder, neither
the caller's arguments nor the database.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import functools
import inspect
import json
import operator
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from copy import copy
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from aiochroma._clock import monotonic
from aiochroma._errors import DeadlineExceededError, EmbedderError, EmbeddingFailedError
from aiochroma._types import Vector
from aiochroma.embedding.protocol import SparseFunction, sparse_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt
    from chromadb.base_types import SparseVector


__all__ = [
    "MINILM",
    "PROBE",
    "EmbeddingFunction",
    "await_function",
    "blamed",
    "call_function",
    "fingerprint_of",
    "identity_of",
    "is_alike",
    "is_same_name",
    "kind_of",
    "matrices_from",
    "name_of",
    "refuse_within",
    "tokens_of",
    "vectors_from",
]

EmbeddingFunction: TypeAlias = Callable[..., Any]
"""Takes a list of inputs and returns a vector for each, or a coroutine that does; what it returns is checked here."""

PROBE = "Our grey cat slept on the warm roof."
"""Every embedder is asked to embed this text; part of the stored format."""

MINILM = "minilm:all-MiniLM-L6-v2:384"
"""One model under several names: that of Chroma's two functions and of aiochroma's own."""

_TELLING = (
    "model_name",
    "model",
    "model_id",
    "revision",
    "checkpoint",
    "dimensions",
    "task",
    "task_type",
    "instruction",
    "instructions",
    "normalize_embeddings",
    "late_chunking",
    "embedding_type",
    "language",
)
"""These keys of a configuration decide which vectors come out. The others say who asks, where, and with which key."""
_MINILM_NAMES = frozenset({"default", "onnx_mini_lm_l6_v2"})
_LONGEST = 200
_NUMBERS = 64
_TOLERANCE = 0.1
"""Of the length of a fingerprint. The same model on other hardware differs by a hundredth, another model by more than 1."""
_running: ContextVar[frozenset[str]] = ContextVar("aiochroma_embedders_running", default=frozenset())
"""The kinds of embedding function that this context is inside of."""
_MOST_CHARACTERS = 300
_MOST_TOKENS = 2**31
"""More than any text has; what splits texts takes no larger number."""
_URL_SECRETS = re.compile(r"(?<=://)[^\s/@]+@|\?[^\s'\")>]+")
_OFFLINE = (
    "Chroma downloads the model of this function at its first use, and that did not work. Put the model where Chroma keeps it "
    "(see `aiochroma.MiniLmEmbedder`), or open the memory without `embedder`, which needs no download."
)
_UNREACHABLE = "Is the service that it asks reachable from this machine, and is its model there?"


def identity_of(function: EmbeddingFunction) -> tuple[str, bool]:
    """Name an embedding function.

    Args:
        function: A Chroma embedding function, or any callable. One that has an ``identity`` (a text) names itself.

    Returns:
        The name, and whether it is certain: whether equal names mean equal vectors.
    """
    own = getattr(function, "identity", None)
    if isinstance(own, str) and own:
        return own, True
    read_name, read_config = getattr(function, "name", None), getattr(function, "get_config", None)
    if callable(read_name) and callable(read_config):
        name, config = read_name(), read_config()
        if isinstance(name, str) and isinstance(config, dict):
            identity = _chromas(name, config)
            return identity, kind_of(function).startswith("chromadb.") and "model" in identity
    return f"function:{kind_of(function)}", False


def is_same_name(stored: str, identity: str) -> bool:
    """Tell whether two identities name the same embedder, also where one was written with its whole configuration."""
    return _reduced(stored) == _reduced(identity)


def fingerprint_of(vector: Sequence[float] | Vector) -> str:
    """Return some numbers of the vector that an embedder made of ``PROBE``, as text."""
    import numpy as np

    return base64.b64encode(_some(vector).astype(np.float16).tobytes()).decode("ascii")


def is_alike(stored: str, fingerprint: str) -> bool:
    """Tell whether two fingerprints are those of one embedder; False where one of them cannot be read."""
    import numpy as np

    try:
        known, now = (
            np.frombuffer(base64.b64decode(text, validate=True), dtype=np.float16).astype(np.float32)
            for text in (stored, fingerprint)
        )
    except (binascii.Error, ValueError):
        return False
    if len(known) != len(now):
        return False
    return bool(np.linalg.norm(known - now) <= _TOLERANCE * max(np.linalg.norm(known), np.linalg.norm(now)))


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


def call_function(
    function: EmbeddingFunction, inputs: Sequence[object], *, is_query: bool, tokens: bool = False
) -> list[Vector]:
    """Call a synchronous embedding function with a batch; for a question its ``embed_query`` is used if it has one.

    Args:
        function: The function.
        inputs: A batch.
        is_query: Whether the inputs are questions.
        tokens: Whether to ask for the states of the tokens as well, by ``embed_tokens`` or ``embed_query_tokens``.

    Returns:
        One float32 array of shape (dimensions,) per input; with ``tokens`` a matrix, see :class:`TokenEmbedder`.

    Raises:
        EmbeddingFailedError: It raised, or did not return one finite vector for each input.
    """
    given = [*inputs]  # Its own: some clean the texts in place.
    if tokens:
        with _within(function), blamed(function):
            # Functions that have none are not asked.
            matrices = _whole(getattr(function, "embed_query_tokens" if is_query else "embed_tokens")(given))
        return matrices_from(matrices, inputs, function)
    with _within(function), blamed(function):
        for_queries = getattr(function, "embed_query", None) if is_query else None
        result = _whole(function(given) if for_queries is None else for_queries(input=given))
    return vectors_from(result, inputs, function)


async def await_function(
    function: EmbeddingFunction, inputs: Sequence[object], *, is_query: bool, deadline: float | None
) -> list[Vector]:
    """Call an asynchronous embedding function on this event loop.

    It runs in a task of its own: a cancellation that arises in it is its failure, and not its caller's end. When the caller
    is cancelled, or the deadline passes, it is cancelled too, and not waited for.

    Args:
        function: The asynchronous function. Its ``embed_query`` is used only if that is asynchronous, too.
        inputs: A batch.
        is_query: Whether the inputs are questions: use ``embed_query`` for them.
        deadline: By when (``monotonic()``), or None.

    Returns:
        As :func:`call_function`.

    Raises:
        EmbeddingFailedError: As :func:`call_function`.
        DeadlineExceededError: The deadline passed first.
    """
    for_queries = getattr(function, "embed_query", None) if is_query else None
    given = [*inputs]

    async def answer() -> Iterable[npt.ArrayLike]:
        # Blamed here as well: a SystemExit that leaves a task ends the event loop.
        with _within(function), blamed(function):
            if for_queries is not None and inspect.iscoroutinefunction(for_queries):
                result: Iterable[npt.ArrayLike] = await for_queries(input=given)
            else:
                result = await function(given)
            return _whole(result)

    task = asyncio.ensure_future(answer())
    try:
        await asyncio.wait({task}, timeout=None if deadline is None else max(0.0, deadline - monotonic()))
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_seen)
    if not task.done():
        raise DeadlineExceededError(
            f"The embedding function {name_of(function)!r} had not answered when the deadline passed.",
            started=True,
        )
    with blamed(function):
        result = task.result()
    return vectors_from(result, inputs, function)


def tokens_of(embedder: object, count: Callable[[str], int], text: str) -> int:
    """Count the tokens of a text as an embedder does.

    Raises:
        EmbeddingFailedError: It raised, or returned no number of tokens.
    """
    with blamed(embedder):
        tokens = operator.index(count(text))
        if tokens < 0:
            raise ValueError(f"`count_tokens` returned {tokens}")
    return min(tokens, _MOST_TOKENS)


def _whole(result: Iterable[npt.ArrayLike]) -> Iterable[npt.ArrayLike]:
    """Return what a function returned; vectors that are made as they are read are made here, where it is blamed for them."""
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("it is asynchronous, which its type does not say; pass an `async def` that awaits it")
    return [copy(vector) for vector in result] if isinstance(result, Iterator) else result


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


def vectors_from(
    result: Iterable[npt.ArrayLike], inputs: Sequence[object], function: EmbeddingFunction
) -> list[Vector]:
    """Return the vectors that a function returned, one float32 array per input; copies, as it may use its own again.

    Those of a :class:`SparseFunction` are as :func:`sparse_rows` returns them.

    Args:
        result: An array of shape (inputs, dimensions), or a list of vectors.
        inputs: The inputs that it was called with.
        function: The function that returned it, for the message.

    Raises:
        EmbeddingFailedError: It is not one finite vector per input, all of the same length.
    """
    import numpy as np

    if isinstance(function, SparseFunction):
        return sparse_rows(cast("Iterable[SparseVector]", result), inputs, name_of(function))
    try:
        with np.errstate(over="ignore"):  # What does not fit becomes an infinity, which is refused below.
            vectors: Sequence[Vector] = [np.array(vector, dtype=np.float32) for vector in result]
    except Exception as error:  # Other libraries' arrays raise errors of their own.
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


def _some(vector: Sequence[float] | Vector) -> Vector:
    import numpy as np

    numbers = np.asarray(vector, dtype=np.float32)
    chosen = numbers[np.linspace(0, len(numbers) - 1, min(_NUMBERS, len(numbers))).astype(int)]
    # Lengths do not count: distances are those of the cosine. Divided, they are within what 16 bits hold.
    divided: Vector = chosen / (float(np.linalg.norm(numbers)) or 1.0)
    return divided


def _chromas(name: str, config: Mapping[str, object]) -> str:
    if name in _MINILM_NAMES:
        return MINILM
    telling = {
        key: value
        for key in _TELLING
        if isinstance(value := config.get(key), (str, int, float, bool)) and len(str(value)) <= _LONGEST
    }
    return f"chroma:{name}:{json.dumps(telling, sort_keys=True)}"


def _reduced(identity: str) -> str:
    kind, _, rest = identity.partition(":")
    name, _, written = rest.partition(":")
    if kind != "chroma" or not written.startswith("{"):
        return identity
    try:
        config = json.loads(written)
    except ValueError:
        return identity
    return _chromas(name, config) if isinstance(config, dict) else identity


def matrices_from(
    result: Iterable[npt.ArrayLike], inputs: Sequence[object], function: EmbeddingFunction
) -> list[Vector]:
    """Return what a function made of texts and their tokens, one float32 matrix per input; copies, as it may use its own again.

    Raises:
        EmbeddingFailedError: It is not one finite matrix per input, all of the same width.
    """
    import numpy as np

    try:
        with np.errstate(over="ignore"):
            matrices: Sequence[Vector] = [np.array(matrix, dtype=np.float32) for matrix in result]
    except Exception as error:  # Other libraries' arrays raise errors of their own.
        raise EmbeddingFailedError(
            f"The embedder {name_of(function)!r} did not return matrices of tokens but {type(result).__name__}."
        ) from error
    widths = {matrix.shape[1] if matrix.ndim == 2 and len(matrix) else 0 for matrix in matrices}
    if len(matrices) != len(inputs) or len(widths) > 1 or any(not width or width % 8 for width in widths):
        raise EmbeddingFailedError(
            f"The embedder {name_of(function)!r} was given {len(inputs)} texts and returned {len(matrices)} items; "
            "`embed_tokens` must return a matrix for each text, all of one width, which is a multiple of 8."
        )
    unusable = [
        repr(text) for text, matrix in zip(inputs, matrices, strict=True) if not np.isfinite(matrix).all()
    ]
    if unusable:
        raise EmbeddingFailedError(
            f"The embedder {name_of(function)!r} returned NaN or an infinity for {len(unusable)} of {len(matrices)} texts; the "
            f"first is {unusable[0][:60]}."
        )
    return list(matrices)


@contextlib.contextmanager
def _within(function: object) -> Iterator[None]:
    token = _running.set(_running.get() | {kind_of(function)})
    try:
        yield
    finally:
        _running.reset(token)


@contextlib.contextmanager
def blamed(function: object) -> Iterator[None]:
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


def _seen(task: asyncio.Future[Iterable[npt.ArrayLike]]) -> None:
    """Look at the outcome of a task that is no longer awaited, which asyncio would otherwise report."""
    if not task.cancelled():
        task.exception()
