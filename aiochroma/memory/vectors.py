"""Texts as vectors: embedded whole, or in chunks that are split where sentences end; and the chunks as records.

Chunks are written before their memories, and taken back where these are not written; every sweep looks for those without one.
"""

from __future__ import annotations

import math
import time
import uuid
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

from aiochroma._distribution import missing_extra
from aiochroma._errors import AiochromaError, EmbeddingFailedError, InvalidInputError, shown
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import MetadataView, Vector
from aiochroma._waiting import off_loop
from aiochroma.core.request import Request
from aiochroma.disk.schema import CHUNKS_FOR
from aiochroma.embedding.functions import PROBE, fingerprint_of
from aiochroma.embedding.protocol import normalise_rows
from aiochroma.memory.arguments import now_in_seconds
from aiochroma.records.record import (
    CHUNK_MADE,
    CHUNK_OF,
    CHUNKS,
    SPARSE,
    WRITING,
    chunk_id,
    collection_name,
    writing_of,
)
from aiochroma.text.codes import encoded_tokens

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from aiochroma._types import CollectionId, Metadata, Vector
    from aiochroma.client.session import Session
    from aiochroma.embedding.choice import EmbedderFunction
    from aiochroma.embedding.protocol import SparseFunction
    from aiochroma.memory.store import Namespace, Store
    from aiochroma.records.spec import SparseQuery

__all__ = [
    "CHUNKS_FOR",
    "Embedded",
    "Splitter",
    "TextEmbedder",
    "chunks_written",
    "drop_unowned_chunks",
    "middle",
    "new_writings",
    "write_chunks",
]

log: EventLogger = get_logger("aiochroma.memory")

_CHUNKS_AT_ONCE = 256
_UNOWNED_SECONDS = 3600.0
"""So long after its chunks a memory may still be written."""
_TEXTS_AT_ONCE = 256


class Embedded(NamedTuple):
    """A text as vectors.

    Attributes:
        vector: The vector of the whole text.
        tokens: The states of its tokens, below its vector, where the embedder gives them; None for a text with chunks.
        chunks: The chunks of a text that is longer than the embedder reads, each with its vector; else empty.
        sparse: The identity of the sparse embedder, and what it made of the whole text (see ``sparse_rows``); None without one.
    """

    vector: Vector
    chunks: list[tuple[str, Vector]]
    tokens: Vector | None = None
    sparse: tuple[str, Vector] | None = None

    @property
    def code(self) -> bytes | None:
        """The code of its tokens, which is kept with a memory."""
        return None if self.tokens is None else encoded_tokens(self.tokens)

    def sparse_query(self, embedder: str | None) -> SparseQuery | None:
        """Return its sparse vector, where a namespace has those of the same embedder; else None."""
        if self.sparse is None or self.sparse[0] != embedder:
            return None
        dimensions, values = self.sparse[1].tolist()
        return tuple(map(int, dimensions)), tuple(values)

    def sparse_key(self, embedder: str | None, stored: MetadataView | None = None) -> Metadata:
        """Return what is stored of its sparse vector in a namespace that has those of an embedder, or is ``stored`` already."""
        from chromadb.base_types import SparseVector

        found = self.sparse_query(embedder)
        if found is not None:
            return {SPARSE: SparseVector(list(found[0]), list(found[1]))} if found[0] else {}
        return {SPARSE: stored[SPARSE]} if stored and embedder and SPARSE in stored else {}

    @property
    def question_tokens(self) -> Vector | None:
        """The states of the tokens of a question, each of length 1."""
        if self.tokens is None or len(self.tokens) < 2:
            return None
        return normalise_rows(self.tokens[1:])


class TextEmbedder:
    """Embeds texts of any length.

    Args:
        function: The embedder.
        split_chars: The most characters of a chunk, or None for what the embedder reads.
        sparse: The sparse embedder, or None.
    """

    def __init__(
        self, function: EmbedderFunction, split_chars: int | None, sparse: SparseFunction | None
    ) -> None:
        self.function = function
        self._sparse = sparse
        self._splitter = Splitter(function, split_chars)

    async def fingerprint(self, session: Session) -> str:
        """Return what the embedder makes of one fixed text; it embeds it once.

        Raises:
            EmbeddingFailedError: It failed.
        """
        function = self.function
        if function.fingerprint is None:
            function.fingerprint = fingerprint_of(
                (await self._embedded(session, [PROBE], is_query=False))[0].vector
            )
        return function.fingerprint

    async def embed(self, session: Session, texts: Sequence[str], *, is_query: bool) -> list[Embedded]:
        """Embed texts.

        Args:
            session: The client's session, whose threads do it.
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
            vectors += await self._embedded(
                session, inputs[start : start + _TEXTS_AT_ONCE], is_query=is_query
            )
        embedded, start = [], 0
        for number, text in enumerate(texts):
            stop = start + len(chunks.get(number, (text,)))
            # A chunk may consist of nothing but a ruled line. The others tell what the text is about.
            usable = [row for row in range(start, stop) if _has_direction(vectors[row].vector)]
            if not usable:
                self._refuse(text)
            if number in chunks:
                pairs = [(inputs[row], vectors[row].vector) for row in usable]
                embedded.append(Embedded(middle([vector for _, vector in pairs]), pairs))
            else:
                embedded.append(vectors[start])
            start = stop
        if self._sparse is None:
            return embedded
        rows = await session.embed(self._sparse, list(texts), is_query=is_query)
        identity = self._sparse.identity
        return [one._replace(sparse=(identity, row)) for one, row in zip(embedded, rows, strict=True)]

    async def _embedded(self, session: Session, texts: list[str], *, is_query: bool) -> list[Embedded]:
        function = self.function
        found = await session.embed(function.function, texts, is_query=is_query, tokens=function.gives_tokens)
        embedded = [
            Embedded(matrix[0], [], matrix) if function.gives_tokens else Embedded(matrix, [])
            for matrix in found
        ]
        if function.dimensions is None and embedded:
            function.dimensions = len(embedded[0].vector)
        for text, one in zip(texts, embedded, strict=True):
            if len(one.vector) != function.dimensions:
                raise EmbeddingFailedError(
                    f"The embedder {function.identity!r} returned {len(one.vector)} dimensions for {text[:60]!r} and "
                    f"{function.dimensions} before."
                )
        return embedded

    def _refuse(self, text: str) -> NoReturn:
        raise InvalidInputError(
            f"The text {text[:60]!r} embeds to nothing with {self.function.identity!r}: it has no word that the embedder "
            "knows, and could never be found by meaning."
        )


def _has_direction(vector: Vector) -> bool:
    """Tell whether a vector can be compared with others by its direction.

    Raises:
        EmbeddingFailedError: Its numbers are too large for that.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        length = float(vector @ vector)
    if length == math.inf:
        raise EmbeddingFailedError(
            "The embedder returned numbers so large that their squares do not fit (above 1e19): scale its vectors."
        )
    return length > 0


_FEWEST_CHARACTERS = 32


class _Chunking(Protocol):
    """A splitter of the package ``semantic_text_splitter``."""

    def chunks(self, text: str) -> list[str]:
        """Split a text."""


class Splitter:
    """Splits the texts that an embedder would not read to their end.

    Splitting prefers paragraphs to sentences, sentences to words, and words to characters; only a word longer than the whole
    window is divided.

    Args:
        embedder: The embedder; it says how many tokens it reads.
        split_chars: The most characters of a chunk, in place of the most tokens; or None.

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
                f"`split_chars` must be an integer of at least {_FEWEST_CHARACTERS}, or None, got {shown(split_chars)}."
            )
        self._identity = embedder.identity
        self._capacity = embedder.window if split_chars is None else split_chars
        self._length: Callable[[str], int] = embedder.count_tokens if split_chars is None else len
        self._splitter: _Chunking | None = None

    def may_be_long(self, text: str) -> bool:
        """Return whether a text has to be looked at; cheap. No text has more tokens than bytes, and a few added ones."""
        return self._capacity is not None and len(text.encode()) + 2 > self._capacity

    def split(self, texts: Sequence[str]) -> dict[int, list[str]]:
        """Split the texts that are too long; may take a while.

        Returns:
            The chunks of each, by its index among the texts; texts that are read to their end are left out.

        Raises:
            MissingExtraError: One is too long, and there is nothing to split it with.
        """
        if self._capacity is None:
            return {}
        found: dict[int, list[str]] = {}
        for number, text in enumerate(texts):
            if self.may_be_long(text) and self._length(text) > self._capacity:
                found[number] = self._loaded(text).chunks(text)
        return found

    def _loaded(self, text: str) -> _Chunking:
        splitter = self._splitter
        if splitter is None:
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
            splitter = self._splitter = TextSplitter.from_callback(self._length, self._capacity)
        return splitter


def middle(vectors: Sequence[Vector]) -> Vector:
    """Return the direction that several vectors have in common: that of their mean, or else of the first."""
    import numpy as np

    rows = np.stack(vectors)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    mean = (rows / np.where(lengths > 0, lengths, 1.0)).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length <= 1e-6:
        return vectors[0]  # Vectors that point in opposite directions have no middle.
    common: Vector = (mean / length).astype(np.float32)
    return common


# -- chunks as records --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def chunks_written(
    store: Store, namespace: Namespace, long: Mapping[str, Sequence[tuple[str, Vector]]]
) -> AsyncIterator[dict[str, Metadata]]:
    """Write the chunks of long texts, give the metadata by which their memories know them, and take them back on failure.

    The chunks come first: a memory that is there has all its chunks. Where it is not written after them nothing is left of
    them, unless the process dies meanwhile; then the next one finds them.

    Args:
        store: The store.
        namespace: The namespace of the memories.
        long: The chunks of each long text with their vectors, by the id of the memory.
    """
    if not long:
        yield {}
        return
    await drop_unowned_chunks(store, namespace)
    made = await store.make_collection(namespace.chunks, {CHUNKS_FOR: namespace.name})
    writings = new_writings(long)
    try:
        await write_chunks(store, made.id, long, writings)
        yield writings
    except BaseException:
        _take_back(store, namespace, writings)
        raise


def _take_back(store: Store, namespace: Namespace, writings: Mapping[str, Metadata]) -> None:
    """Have chunks deleted whose memories were not written; waits for nothing, since the caller's time may be up."""
    arguments = {"ids": list(writings), "metadatas": list(writings.values()), "chunks": namespace.chunks}

    def note(future: asyncio.Future[Any] | concurrent.futures.Future[Any]) -> None:
        failure = "cancelled" if future.cancelled() else future.exception()
        if failure is None:
            if future.result():
                log.warning("memory.taken_back", namespace=namespace.name, ids=future.result()[:3])
        else:
            log.warning("memory.not_taken_back", namespace=namespace.name, error=failure)

    try:
        request = Request("drop_chunks", {**namespace.collection, **arguments})
        future = store.session.connection.submit(request).future
    except AiochromaError as error:
        log.warning("memory.not_taken_back", namespace=namespace.name, error=error)
    else:
        assert future is not None
        future.add_done_callback(note)


def new_writings(long: Mapping[str, Sequence[tuple[str, Vector]]]) -> dict[str, Metadata]:
    """Return the metadata by which memories know their chunks, which are not written yet."""
    return {id: {WRITING: uuid.uuid4().hex, CHUNKS: len(chunks)} for id, chunks in long.items()}


async def write_chunks(
    store: Store,
    collection: CollectionId,
    long: Mapping[str, Sequence[tuple[str, Vector]]],
    writings: Mapping[str, Metadata],
) -> None:
    """Write chunks into a collection.

    Args:
        store: The store.
        collection: The collection of the chunks.
        long: The chunks of each long text with their vectors, by the id of the memory.
        writings: See :func:`new_writings`.
    """
    rows = [
        (chunk_id(writings[id][WRITING], number), id, text, vector)
        for id, chunks in long.items()
        for number, (text, vector) in enumerate(chunks)
    ]
    for begin in range(0, len(rows), _CHUNKS_AT_ONCE):
        page = rows[begin : begin + _CHUNKS_AT_ONCE]
        await store.submit(
            "_upsert",
            bulk=len(rows) > _CHUNKS_AT_ONCE,
            collection_id=collection,
            ids=[row[0] for row in page],
            embeddings=[row[3] for row in page],
            metadatas=[{CHUNK_OF: row[1], CHUNK_MADE: now_in_seconds()} for row in page],
            documents=[row[2] for row in page],
            uris=None,
            **store.database,
        )


async def drop_unowned_chunks(store: Store, namespace: Namespace) -> None:
    """Delete the chunks of texts whose memories were never written, because a process died; once in a store's life."""
    if namespace.name in store.chunks_checked:
        return
    store.chunks_checked.add(namespace.name)
    holder = await store.collection(namespace.chunks)
    if holder is None:
        return
    collection = {**namespace.collection, "collection_id": holder.id}
    # First the chunks: those of a memory that is written meanwhile are not among them.
    ids: list[str] = (await store.submit("_get", **collection, include=[]))["ids"]
    writings = set(await store.submit("memory_writings", **namespace.collection))
    suspects = [id for id in ids if writing_of(id) not in writings]
    # A memory comes after its chunks, by another process perhaps.
    latest, unowned, memories = time.time() - _UNOWNED_SECONDS, list[str](), set[str]()
    for start in range(0, len(suspects), _CHUNKS_AT_ONCE):
        page = suspects[start : start + _CHUNKS_AT_ONCE]
        found = await store.submit("_get", **collection, ids=page, include=["metadatas"])
        for id, metadata in zip(found["ids"], found["metadatas"], strict=True):
            if (metadata or {}).get(CHUNK_MADE, 0.0) < latest:
                unowned.append(id)
                memories.add(str((metadata or {}).get(CHUNK_OF)))
    if unowned and not await _is_embedded_again(store, namespace):
        await store.submit("_delete", bulk=True, **collection, ids=unowned)
        log.warning(
            "memory.unowned_chunks",
            namespace=namespace.name,
            deleted=len(unowned),
            of=sorted(memories)[:3],
        )


async def _is_embedded_again(store: Store, namespace: Namespace) -> bool:
    """Tell whether another collection takes the namespace's place, or has taken it: the chunks found may be of its memories."""
    from aiochroma.memory.copies import copy_name

    copy = await store.collection(copy_name(namespace.name, ""))
    present = await store.collection(collection_name(namespace.name))
    return copy is not None or present is None or present.id != namespace.id
