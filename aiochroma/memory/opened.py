"""What a memory stands on: an open client, and an embedder."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from aiochroma._errors import ClosedError, EmbeddingFailedError, InvalidInputError
from aiochroma.client.reembedding import SingleEmbedder, reembed_missing
from aiochroma.embedding.identity import PROBE, fingerprint_of
from aiochroma.memory.long import Splitter, middle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiochroma.core.connection import Capabilities
    from aiochroma.embedding.choice import EmbedderFunction
    from aiochroma.memory.port import Port

__all__ = ["Embedded", "OpenStore"]

_REOPEN_SECONDS = 1.0
_TEXTS_AT_ONCE = 256


class Embedded(NamedTuple):
    """A text as vectors.

    Attributes:
        vector: Of the whole text.
        parts: The parts of a text that is longer than the embedder reads, each with its vector; else empty.
    """

    vector: Any
    parts: list[tuple[str, Any]]


class OpenStore:
    """Opens what a memory stands on when it is first needed, and again when it failed; embeds.

    Args:
        describe: The path, for messages.
        opening: Makes something that opens a client, as the port wants it.
        choose_embedder: Returns the embedder; may take long.
        port: How to wait.
        client: A client to use in place of one of its own.
        split_chars: How long a part of a text may be, or None for what the embedder says.
        history: Note every change.
    """

    def __init__(
        self,
        describe: object,
        opening: Callable[[], Any],
        choose_embedder: Callable[[], EmbedderFunction],
        port: Port,
        client: Any,
        *,
        split_chars: int | None,
        history: bool,
    ) -> None:
        self.describe = describe
        self.port = port
        self._opening = opening
        self._choose_embedder = choose_embedder
        self._client = client
        self._owns_client = client is None
        self._split_chars = split_chars
        self._history = history
        self._embedder: EmbedderFunction | None = None
        self._splitter: Splitter | None = None
        self._failure: Exception | None = None
        self._failed_at = 0.0
        self._filled = False

    @property
    def client(self) -> Any:
        """The open client.

        Raises:
            ClosedError: It is not open.
        """
        if self._client is None:
            raise ClosedError(
                f"The memory {self.describe!r} is not open; use `async with` or `await memory.open()`."
            )
        return self._client

    @property
    def embedder(self) -> EmbedderFunction:
        """The embedder; known once the store was opened."""
        assert self._embedder is not None
        return self._embedder

    @property
    def capabilities(self) -> Capabilities:
        """What the database can do."""
        capabilities: Capabilities = self.client.session.describe().capabilities
        return capabilities

    async def ready(self) -> None:
        """Open the client and load the embedder, if that has not been done or the last attempt failed.

        Raises:
            StoreUnavailableError: The client cannot be opened; within a second the same error is given again.
        """
        if self._client is None or (self._owns_client and self._client.closed):
            if self._failure is not None and time.monotonic() - self._failed_at < _REOPEN_SECONDS:
                raise self._failure
            await self._open_client()
        try:
            await self._prepare()
        except Exception:
            # Nobody closes what could not be opened.
            client = self._client
            if self._owns_client and client is not None:
                self._client = None
                await self.port.close(client)
            raise
        self._client.session.connection.note_embedder(self.embedder.identity)

    async def _prepare(self) -> None:
        if self._embedder is None:
            embedder = await self.port.off_loop(self._choose_embedder)
            self._splitter = Splitter(embedder, self._split_chars)
            self._embedder = embedder
        if self._client.session.describe().has_missing_vectors:
            await self._fill_missing()
        if self._history and not self.capabilities.history:
            raise InvalidInputError(
                "`history` is kept in a file beside the database, and this one is a server's; open the memory without it."
            )

    async def _fill_missing(self) -> None:
        """Embed again what a broken index lost and no log held; what is not ours is left for its owner."""
        if self._filled:
            return
        self._filled = True

        async def embed(texts: list[str]) -> list[Any]:
            return [embedded.vector for embedded in await self.embed(texts, is_query=False)]

        await reembed_missing(self.submit, SingleEmbedder(self.embedder.identity, embed))

    def _opened_anew(self) -> None:
        """Forget what was true of the client before."""

    async def _open_client(self) -> None:
        try:
            client = await self.port.open(self._opening())
        except Exception as error:
            self._failure, self._failed_at = error, time.monotonic()
            raise
        if self._client is not None and not self._client.closed:
            await self.port.close(client)  # Another task was faster.
            return
        self._client, self._failure, self._filled = client, None, False
        self._opened_anew()

    async def close(self) -> None:
        """Close the client, if it is ours."""
        self._opened_anew()
        if self._client is not None and self._owns_client:
            await self.port.close(self._client)

    async def submit(self, operation: str, **arguments: Any) -> Any:
        """Carry out one operation on the DB thread."""
        return await self.port.submit(self._client, operation, **arguments)

    def limit(self) -> Any:
        """Put one deadline over the steps of a call."""
        return self._client.session.limit()

    # -- embedding -----------------------------------------------------------------------------------------------------

    async def embed(self, texts: Sequence[str], *, is_query: bool) -> list[Embedded]:
        """Embed texts of any length.

        Raises:
            InvalidInputError: A text embeds to nothing.
            EmbeddingFailedError: The embedder's vectors have another length than before.
            MissingExtraError: A text is too long for the embedder, and there is nothing to split it with.
        """
        splitter = self._splitter
        assert splitter is not None
        parts: dict[int, list[str]] = {}
        if any(splitter.may_be_long(text) for text in texts):
            parts = await self.port.off_loop(partial(splitter.split, texts))
        inputs = [part for place, text in enumerate(texts) for part in parts.get(place, (text,))]
        vectors = []
        for start in range(0, len(inputs), _TEXTS_AT_ONCE):
            vectors += await self._vectors(inputs[start : start + _TEXTS_AT_ONCE], is_query=is_query)
        embedded, start = [], 0
        for place, text in enumerate(texts):
            stop = start + len(parts.get(place, (text,)))
            # A part may consist of nothing but a ruled line. The others tell what the text is about.
            usable = [row for row in range(start, stop) if _has_direction(vectors[row])]
            if not usable:
                self._refuse(text)
            if place in parts:
                pairs = [(inputs[row], vectors[row]) for row in usable]
                embedded.append(Embedded(middle([vector for _, vector in pairs]), pairs))
            else:
                embedded.append(Embedded(vectors[start], []))
            start = stop
        return embedded

    async def _vectors(self, texts: list[str], *, is_query: bool) -> list[Any]:
        embedder = self.embedder
        vectors = await self.port.embed(self._client, embedder.function, texts, is_query=is_query)
        if embedder.dimensions is None and vectors:
            embedder.dimensions = len(vectors[0])
        for text, vector in zip(texts, vectors, strict=True):
            if len(vector) != embedder.dimensions:
                raise EmbeddingFailedError(
                    f"The embedder {embedder.identity!r} returned {len(vector)} dimensions for {text[:60]!r} and "
                    f"{embedder.dimensions} before."
                )
        return vectors

    async def fingerprint(self) -> str:
        """Return what the embedder makes of one fixed text; it is asked once.

        Raises:
            EmbeddingFailedError: It failed.
        """
        embedder = self.embedder
        if embedder.fingerprint is None:
            embedder.fingerprint = fingerprint_of((await self._vectors([PROBE], is_query=False))[0])
        return embedder.fingerprint

    def _refuse(self, text: str) -> NoReturn:
        raise InvalidInputError(
            f"The text {text[:60]!r} embeds to nothing with {self.embedder.identity!r}: it has no word that the embedder "
            "knows, and could never be found by meaning."
        )


def _has_direction(vector: Any) -> bool:
    return 0 < float(vector @ vector) < float("inf")
