"""What an embedder is, what our own embedders share, and the form in which a sparse one is called.

An embedder turns texts into vectors of a fixed length. It is called off the event loop and off the DB thread,
possibly from several threads at once, so an implementation must be safe to call concurrently.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from aiochroma._distribution import missing_extra
from aiochroma._errors import EmbeddingFailedError
from aiochroma._types import Vector

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from chromadb.base_types import SparseVector
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = [
    "Embedder",
    "InlineEmbedder",
    "QueryEmbedder",
    "SparseFunction",
    "TokenEmbedder",
    "WindowedEmbedder",
    "described",
    "load_tokenizer",
    "normalise_rows",
    "package_folder",
    "sparse_rows",
]


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors that are near each other (in cosine distance) when the texts are related."""

    @property
    def identity(self) -> str:
        """A name that is stored with the data: equal names mean that the vectors may be compared."""

    @property
    def dimensions(self) -> int:
        """The length of every vector."""

    @property
    def max_distance(self) -> float:
        """The cosine distance (0 to 2) up to which this embedder itself calls two texts related."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: Any texts, of any length.

        Returns:
            One row of length 1 per text, shape ``(len(texts), dimensions)``; a row of zeros stands for a text
            in which the embedder finds nothing.
        """


@runtime_checkable
class QueryEmbedder(Embedder, Protocol):
    """An embedder that treats a question differently from what is remembered."""

    def embed_query(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed questions; the result has the shape and the meaning of ``embed``'s."""


@runtime_checkable
class InlineEmbedder(Embedder, Protocol):
    """An embedder that has embedded a short text sooner than another thread could be asked to.

    That takes some 200 microseconds; more than that should not be spent on an event loop.
    """

    @property
    def inline_characters(self) -> int:
        """Texts that have together at most this many characters are embedded where they are asked for."""


@runtime_checkable
class TokenEmbedder(Embedder, Protocol):
    """An embedder that also gives what its model makes of each token of a text, in the same forward pass.

    A memory keeps the signs of these states beside the vector, and compares the tokens of a question with those of the memories
    that it came up with; see :mod:`aiochroma.text.codes`. A server has no place for them: they lie in the copy at the client,
    which makes those of what other clients have written itself, in the background. All methods must be synchronous. Where there
    is an ``embed_query`` as well (see :class:`QueryEmbedder`), the vector of a question is its, and the tokens are those
    of ``embed_tokens``.
    """

    def embed_tokens(self, texts: Sequence[str]) -> Sequence[NDArray[np.float32]]:
        """Embed texts with their tokens.

        Args:
            texts: Texts or questions, of any length.

        Returns:
            For each text a matrix of ``dimensions`` columns, a multiple of 8: its vector, as ``embed`` gives it, and below it a
            row for each token that says something. States of tokens need not have length 1.
        """


@runtime_checkable
class WindowedEmbedder(Embedder, Protocol):
    """An embedder that reads the beginning of a text only; a memory gives it longer texts in chunks.

    Any other embedding function may say so in the same way. One that does not is taken to read every text to its end.
    """

    @property
    def window(self) -> int:
        """How many tokens of a text it reads, those that it adds itself included."""

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has, those that the embedder adds included; without this, characters count."""


def described(identity: object, dimensions: object) -> str:
    """Return what messages call an embedder; two of one name differ in their dimensions, or in what they return."""
    if identity is None:
        return "an unknown embedder (of another program)"
    return f"{identity!r} ({dimensions} dimensions)" if dimensions is not None else repr(identity)


class SparseFunction(functools.partial[object]):
    """A sparse embedding function as the embedding thread calls it; what it returns is checked by :func:`sparse_rows`.

    Attributes:
        identity: The name that is stored with the data.
    """

    identity: str = ""

    @property
    def embed_query(self) -> object:
        """What it has for questions, or None."""
        return getattr(self.func, "embed_query", None)


_SPARSE_DIMENSIONS = 2**32


def sparse_rows(result: Iterable[SparseVector], inputs: Sequence[object], name: str) -> list[Vector]:
    """Return the sparse vectors that a function returned, each as two rows: the dimensions in which it is not 0, and its values.

    Args:
        result: Chroma's ``SparseVector`` for each input.
        inputs: The inputs that it was called with.
        name: What messages call the function.

    Raises:
        EmbeddingFailedError: It is not one sparse vector for each input, of finite numbers.
    """
    import numpy as np

    try:
        rows = [np.array([vector.indices, vector.values], dtype=np.float64) for vector in result]
    except Exception as error:
        raise EmbeddingFailedError(
            f"The sparse embedding function {name!r} did not return `SparseVector`s but {type(result).__name__}."
        ) from error
    usable = all(
        row.ndim == 2
        and np.isfinite(row).all()
        and (row[0] >= 0).all()
        and (row[0] < _SPARSE_DIMENSIONS).all()
        for row in rows
    )
    if len(rows) != len(inputs) or not usable:
        raise EmbeddingFailedError(
            f"The sparse embedding function {name!r} was given {len(inputs)} texts and returned {len(rows)} items; it must "
            "return a `SparseVector` for each, of finite values in dimensions from 0 to 4294967295."
        )
    return cast("list[Vector]", rows)  # Of float64, which holds every dimension.


def normalise_rows(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale every row to length 1; a row without a direction (zeros, NaN, infinity) becomes a row of zeros.

    Args:
        matrix: Shape ``(n, dimensions)``; not changed.

    Returns:
        A new matrix of the same shape.
    """
    import numpy as np

    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    usable = np.isfinite(lengths) & (lengths > 0.0)
    rows = np.zeros_like(matrix)
    np.divide(matrix, lengths[:, None], out=rows, where=usable[:, None], casting="unsafe")
    return rows


def package_folder(name: str) -> Path | None:
    """Return the folder of an installed package, which is not imported; None where it is not installed."""
    specification = importlib.util.find_spec(name)
    if specification is None or not specification.submodule_search_locations:
        return None
    return Path(next(iter(specification.submodule_search_locations)))


def load_tokenizer(path: Path, feature: str, extra: str) -> Tokenizer:
    """Load a tokenizer that neither pads nor cuts.

    Args:
        path: Its file.
        feature: The name of the embedder in the message that says what to install.
        extra: The extra of this package that brings what is needed.

    Raises:
        MissingExtraError: ``tokenizers`` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_extra(feature, extra, "tokenizers") from error
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
