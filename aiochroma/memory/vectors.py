"""Texts as vectors: embedded whole, or in chunks where they are longer than the embedder reads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from aiochroma._errors import EmbeddingFailedError, InvalidInputError
from aiochroma._threads import off_loop
from aiochroma.embedding.identity import PROBE, fingerprint_of
from aiochroma.memory.long import Splitter, middle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.embedding.choice import EmbedderFunction

__all__ = ["Embedded", "TextEmbedder"]

_TEXTS_AT_ONCE = 256


class Embedded(NamedTuple):
    """A text as vectors.

    Attributes:
        vector: The vector of the whole text.
        parts: The chunks of a text that is longer than the embedder reads, each with its vector; else empty.
    """

    vector: Any
    parts: list[tuple[str, Any]]


class TextEmbedder:
    """Embeds texts of any length.

    Args:
        function: The embedder.
        split_chars: The most characters of a chunk, or None for what the embedder reads.
    """

    def __init__(self, function: EmbedderFunction, split_chars: int | None) -> None:
        self.function = function
        self._splitter = Splitter(function, split_chars)

    async def fingerprint(self, client: Any) -> str:
        """Return what the embedder makes of one fixed text; it is asked once.

        Raises:
            EmbeddingFailedError: It failed.
        """
        function = self.function
        if function.fingerprint is None:
            function.fingerprint = fingerprint_of((await self._vectors(client, [PROBE], is_query=False))[0])
        return function.fingerprint

    async def embed(self, client: Any, texts: Sequence[str], *, is_query: bool) -> list[Embedded]:
        """Embed texts.

        Args:
            client: The client whose threads do it.
            texts: The texts.
            is_query: Whether they are questions.

        Raises:
            InvalidInputError: A text embeds to nothing.
            EmbeddingFailedError: The embedder raised, or its vectors have another length than before.
            MissingExtraError: A text is too long for the embedder, and there is nothing to split it with.
        """
        chunks: dict[int, list[str]] = {}
        if any(self._splitter.may_be_long(text) for text in texts):
            chunks = await off_loop(partial(self._splitter.split, texts))
        inputs = [chunk for number, text in enumerate(texts) for chunk in chunks.get(number, (text,))]
        vectors = []
        for start in range(0, len(inputs), _TEXTS_AT_ONCE):
            vectors += await self._vectors(client, inputs[start : start + _TEXTS_AT_ONCE], is_query=is_query)
        embedded, start = [], 0
        for number, text in enumerate(texts):
            stop = start + len(chunks.get(number, (text,)))
            # A chunk may consist of nothing but a ruled line. The others tell what the text is about.
            usable = [row for row in range(start, stop) if _has_direction(vectors[row])]
            if not usable:
                self._refuse(text)
            if number in chunks:
                pairs = [(inputs[row], vectors[row]) for row in usable]
                embedded.append(Embedded(middle([vector for _, vector in pairs]), pairs))
            else:
                embedded.append(Embedded(vectors[start], []))
            start = stop
        return embedded

    async def _vectors(self, client: Any, texts: list[str], *, is_query: bool) -> list[Any]:
        function = self.function
        vectors: list[Any] = await client.session.embed(function.function, texts, is_query=is_query)
        if function.dimensions is None and vectors:
            function.dimensions = len(vectors[0])
        for text, vector in zip(texts, vectors, strict=True):
            if len(vector) != function.dimensions:
                raise EmbeddingFailedError(
                    f"The embedder {function.identity!r} returned {len(vector)} dimensions for {text[:60]!r} and "
                    f"{function.dimensions} before."
                )
        return vectors

    def _refuse(self, text: str) -> NoReturn:
        raise InvalidInputError(
            f"The text {text[:60]!r} embeds to nothing with {self.function.identity!r}: it has no word that the embedder "
            "knows, and could never be found by meaning."
        )


def _has_direction(vector: Any) -> bool:
    return 0 < float(vector @ vector) < float("inf")
