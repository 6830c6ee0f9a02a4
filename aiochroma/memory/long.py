"""Texts that are longer than the embedder reads: split where sentences end, so that nothing of them is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiochroma._distribution import missing_extra
from aiochroma._errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiochroma.embedding.choice import EmbedderFunction

__all__ = ["Splitter", "middle"]

_FEWEST_CHARACTERS = 32


class Splitter:
    """Splits the texts that an embedder would not read to their end.

    Splitting prefers paragraphs to sentences, sentences to words, and words to characters; only a word longer than the whole
    window is divided.

    Args:
        embedder: Its ``window`` counts, in tokens, unless
        split_chars: says how many characters a part may have.

    Raises:
        InvalidInputError: ``split_chars`` is no number, or too small for a sentence.
    """

    def __init__(self, embedder: EmbedderFunction, split_chars: int | None) -> None:
        if split_chars is not None and (
            not isinstance(split_chars, int)
            or isinstance(split_chars, bool)
            or split_chars < _FEWEST_CHARACTERS
        ):
            raise InvalidInputError(
                f"`split_chars` must be an integer of at least {_FEWEST_CHARACTERS}, or None, got {split_chars!r}."
            )
        self._identity = embedder.identity
        self._capacity = embedder.window if split_chars is None else split_chars
        self._length: Callable[[str], int] = embedder.count_tokens if split_chars is None else len
        self._splitter: Any = None

    def may_be_long(self, text: str) -> bool:
        """Return whether a text has to be looked at; cheap. No text has more tokens than bytes, and a few added ones."""
        return self._capacity is not None and len(text.encode()) + 2 > self._capacity

    def split(self, texts: Sequence[str]) -> dict[int, list[str]]:
        """Split the texts that are too long; may take a while.

        Returns:
            The parts of each, by its place among the texts; texts that are read to their end are left out.

        Raises:
            MissingExtraError: One is too long, and there is nothing to split it with.
        """
        if self._capacity is None:
            return {}
        found: dict[int, list[str]] = {}
        for place, text in enumerate(texts):
            if self.may_be_long(text) and self._length(text) > self._capacity:
                found[place] = self._loaded(text).chunks(text)
        return found

    def _loaded(self, text: str) -> Any:
        if self._splitter is None:
            try:
                from semantic_text_splitter import TextSplitter
            except ImportError as error:
                raise missing_extra(
                    f"The embedder {self._identity!r} would read no more than the beginning of {text[:60]!r} "
                    f"({len(text)} characters). Splitting it ",
                    "long",
                    "semantic_text_splitter",
                ) from error
            assert self._capacity is not None
            self._splitter = TextSplitter.from_callback(self._length, self._capacity)
        return self._splitter


def middle(vectors: Sequence[Any]) -> Any:
    """Return the direction that several vectors have in common: that of their mean, or else of the first."""
    import numpy as np

    rows = np.stack(vectors)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    mean = (rows / np.where(lengths > 0, lengths, 1.0)).mean(axis=0)
    length = float(np.linalg.norm(mean))
    # Parts that point in opposite directions have no middle.
    return (mean / length).astype(np.float32) if length > 1e-6 else vectors[0]
