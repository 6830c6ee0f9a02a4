"""What a client and everything made by it share: a connection, its limits, embedding, the order of calls, and closing."""

from __future__ import annotations

import asyncio
import math
import weakref
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from aiochroma._clock import monotonic
from aiochroma._errors import AiochromaError, ClosedError, DeadlineExceededError, InvalidInputError, shown
from aiochroma._files import expand, fixed_path
from aiochroma._types import Vector
from aiochroma._waiting import checked_seconds, deadline, deadline_at, refuse_on_loop, waits_by_blocking
from aiochroma.backend.limits import MOST_BYTES, bound_counts
from aiochroma.core.calls import call, call_many
from aiochroma.core.request import Request
from aiochroma.core.stats import observer
from aiochroma.embedding.runner import EmbeddingRunner

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Generator, Hashable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from aiochroma._types import Metadata, Vector
    from aiochroma.client.client import AsyncClient
    from aiochroma.client.collection import Collection
    from aiochroma.core.calls import CallOutcome
    from aiochroma.core.connection import Connection, EngineInfo, WhenFull
    from aiochroma.embedding.functions import EmbeddingFunction

__all__ = ["Closing", "LazyClient", "Session", "Shared", "Turn", "Turns", "asynchronous_client"]

T = TypeVar("T")


class Shared:
    """Base of objects on an open database: a copy is the object itself, and it cannot be pickled for another process."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise InvalidInputError(
            f"{self!r} cannot be pickled: it stands on a thread of this process. Open one in each process."
        )


class Turns:
    """Lets writes be submitted in the order in which they were called.

    A long write is validated on a worker thread, and texts are embedded, before there is a request that can be
    queued; a short write that is called later is ready at once. All are prepared at the same time, but each is
    submitted only after those that were called before it, on the same event loop, for the same collection.
    """

    def __init__(self) -> None:
        self._lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, Turn]] = (
            weakref.WeakKeyDictionary()
        )

    def take(self, key: Hashable) -> Turn:
        """Take the next position in line; use the result with ``with`` around preparation and submission.

        A blocking call waits for no other: its thread prepares and submits one request after the other.
        """
        if waits_by_blocking():
            return Turn({}, key)
        return Turn(self._lines.setdefault(asyncio.get_running_loop(), {}), key)


class Turn:
    """A position in the line of writes. Leaving the block gives it up; the writes behind still wait for those in front."""

    __slots__ = ("_before", "_end", "_key", "_line", "over")

    def __init__(self, line: dict[Hashable, Turn], key: Hashable) -> None:
        self._line = line
        self._key = key
        self._before = line.get(key)
        self.over: bool = False
        self._end: asyncio.Future[None] | None = None
        line[key] = self

    async def come(self, timeout: float | None) -> None:
        """Wait until the writes in front have been submitted. The next write may follow as soon as this task waits again.

        So the caller has to submit its own write before it waits for anything.

        Args:
            timeout: The client's own limit, in seconds, or None.

        Raises:
            DeadlineExceededError: The deadline passed first; nothing was submitted.
        """
        before = self._before
        if before is not None and not before.over:
            moment = deadline_at(timeout)
            seconds = None if moment is None else max(0.0, moment - monotonic())
            await asyncio.wait([before.ending()], timeout=seconds)
            if not before.over:
                raise DeadlineExceededError(
                    "The deadline passed while an earlier write to the same collection was being prepared; this one "
                    "never ran.",
                    started=False,
                )
        self._give()

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        before = self._before
        if before is None or before.over:
            self._give()
        else:
            before.ending().add_done_callback(lambda _: self._give())

    def ending(self) -> asyncio.Future[None]:
        """Return a future that is done when this position is given up."""
        if self._end is None:
            self._end = asyncio.get_running_loop().create_future()
        return self._end

    def _give(self) -> None:
        self.over = True
        self._before = None
        if self._end is not None and not self._end.done():
            self._end.set_result(None)
        if self._line.get(self._key) is self:
            del self._line[self._key]


class Session(Shared):
    """One client's use of a database.

    Its coroutines are awaited on an event loop, or driven without one; see :func:`aiochroma._waiting.drive`. Collections hold the
    session, and the session holds the connection: a database stays open as long as anything of the client that opened it is in
    use.

    Args:
        connection: The client's own connection to the database.
        timeout: The client's limit for each call, in seconds; None for none.
        when_full: What a call does when the queue is full: wait in line, or raise.
    """

    def __init__(self, connection: Connection, *, timeout: float | None, when_full: WhenFull) -> None:
        self.connection = connection
        self.timeout = timeout
        self.when_full = when_full
        self.turns: Turns = Turns()
        self._runner = EmbeddingRunner(connection)

    def limit(self) -> AbstractContextManager[None]:
        """Put the client's time limit, if it has one, over all steps of a call: embedding, then the database."""
        moment = deadline_at(self.timeout)
        return nullcontext() if moment is None else deadline(max(0.0, moment - monotonic()))

    def submit(
        self, operation: str, *, bulk: bool = False, atomic: bool = False, **arguments: object
    ) -> Coroutine[object, object, Any]:
        """Carry out one operation and return its result.

        Not a coroutine function itself: where thousands of requests wait, each frame that is saved saves memory.
        """
        bound_counts(arguments)
        request = Request(operation, arguments, bulk, atomic)
        return call(self.connection, request, deadline_at(self.timeout), when_full=self.when_full)

    async def submit_many(self, operations: Sequence[tuple[str, Mapping[str, object]]]) -> list[CallOutcome]:
        """Carry out several operations at the same time; an error is part of the outcome."""
        requests = [Request(operation, arguments) for operation, arguments in operations]
        return await call_many(self.connection, requests, deadline_at(self.timeout), when_full=self.when_full)

    async def embed(
        self, function: EmbeddingFunction, inputs: Sequence[object], *, is_query: bool, tokens: bool = False
    ) -> list[Vector]:
        """Embed off the event loop and off the DB thread; see :meth:`EmbeddingRunner.embed`."""
        self.connection.require_open()
        watching = observer()
        began = monotonic() if watching is not None else 0.0
        vectors = await self._runner.embed(
            function, inputs, is_query=is_query, deadline=deadline_at(self.timeout), tokens=tokens
        )
        if watching is not None:
            watching.embedding(monotonic() - began, len(vectors))
        return vectors

    def describe(self) -> EngineInfo:
        """Return what is known of the database; never blocks."""
        return self.connection.describe()

    @cached_property
    def most_bytes(self) -> float:
        """How long a text may be, and all metadata of a record; what a server takes is its own affair."""
        return math.inf if self.describe().url else MOST_BYTES

    @property
    def closed(self) -> bool:
        """Whether the client was closed; others on the same database may still be open."""
        return self.connection.closed


_DRIVEN_SECONDS = 30.0
"""For how long a blocking client waits for the end of its database."""


class Closing:
    """Done when the DB thread has ended, or at once while other clients keep the database open.

    Awaiting it is shielded: a cancelled caller still waits for the thread, then is cancelled. Otherwise whoever opens the
    directory next might find it half closed.

    Args:
        connection: A share that was given back.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __await__(self) -> Generator[object, None, None]:
        return self._ended().__await__()

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until the DB thread has ended.

        Args:
            timeout: For how long, in seconds; None for as long as it takes.

        Returns:
            Whether it has ended (or other clients keep it open).

        Raises:
            BlockingCallError: An event loop runs on this thread; await instead.
        """
        refuse_on_loop()
        return self._connection.join(checked_seconds("timeout", timeout, zero=True))

    async def _ended(self) -> None:
        if waits_by_blocking():
            self._connection.join(_DRIVEN_SECONDS)
            return
        if self._connection.join(0):
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def resolve() -> None:
            if not ended.done():
                ended.set_result(None)

        def announce() -> None:
            try:
                loop.call_soon_threadsafe(resolve)
            except RuntimeError:
                return  # The loop was closed before the thread ended: no caller waits.

        self._connection.when_ended(announce)
        cancelled = False
        while not ended.done():
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError:  # noqa: PERF203 - waiting goes on
                cancelled = True
        # The announcement is the thread's last act: this returns at once.
        self._connection.join()
        if cancelled:
            raise asyncio.CancelledError


def asynchronous_client(client: object) -> AsyncClient:
    """Return the asynchronous client of what a caller gives as one, asynchronous or blocking.

    Raises:
        InvalidInputError: It is none of ours, or not open yet.
    """
    from aiochroma.client.client import AsyncClient

    asynchronous = getattr(client, "asynchronous", client)
    if not isinstance(asynchronous, AsyncClient):
        raise InvalidInputError(
            f"`client` must be an open client of aiochroma (`await` what opens it), got {shown(client)}."
        )
    return asynchronous


class LazyClient:
    """A client that is opened when it is first needed, and the collections that were looked up with it.

    The stores of other frameworks stand on it. Their methods exist twice, for event loops and for plain threads; what they do is
    written once, as coroutines over this client, which are awaited on a loop or driven on a thread.

    Args:
        path: The database's directory; None for the database in memory that all ephemeral clients of the process share.
        client: A client to use in place of an own one, asynchronous or blocking; it stays open.

    Raises:
        InvalidInputError: The client is not one of ours, or not open yet; or the path is none.
    """

    def __init__(self, path: str | os.PathLike[str] | None, client: object = None) -> None:
        self._path = path if path is None else fixed_path(path)
        self._owns_client = client is None
        self._client = None if client is None else asynchronous_client(client)
        if client is None and path is not None:
            expand(path, "path")
        self._collections: dict[str, Collection] = {}
        self._closings = 0

    async def open(self) -> AsyncClient:
        """Return the client, opening it when it is first needed.

        Raises:
            ClosedError: It was closed while it was opening.
        """
        if self._client is None:
            from aiochroma.client.opening import AsyncEphemeralClient, AsyncPersistentClient

            opening = AsyncEphemeralClient() if self._path is None else AsyncPersistentClient(self._path)
            closings = self._closings
            opened = await opening.open()
            if self._closings != closings:
                await opened.close()
                raise ClosedError("The store was closed while its client was opening.")
            if self._client is None:
                self._client = opened
            else:  # Another task or thread was faster.
                await opened.close()
        return self._client

    async def make_collection(self, name: str, metadata: Metadata | None) -> None:
        """Make a collection where there is none, with cosine distance and no embedding function."""
        client = await self.open()
        await client.get_or_create_collection(
            name, configuration={"hnsw": {"space": "cosine"}}, metadata=metadata, embedding_function=None
        )

    async def on_collection(
        self,
        name: str,
        work: Callable[[Collection], Coroutine[object, object, T]],
        *,
        absent: T,
        check: Callable[[Collection], Coroutine[object, object, None]] | None = None,
    ) -> T:
        """Do something with a collection, which is looked up once.

        Args:
            name: The collection.
            work: What to do.
            absent: The outcome where there is no such collection.
            check: Refuses a collection by raising.

        Raises:
            InvalidInputError: Chroma refuses what the work gives it; its error is the cause.
        """
        client = await self.open()
        from chromadb.errors import InvalidArgumentError, NotFoundError

        for attempt in (1, 2):
            try:
                collection = self._collections.get(name)
                if collection is None:
                    collection = await client.get_collection(name, embedding_function=None)
                    if check is not None:
                        await check(collection)
                    if self._client is client:  # Or else it was closed meanwhile, and the collection with it.
                        self._collections[name] = collection
                return await work(collection)
            except NotFoundError:  # noqa: PERF203 - there are two attempts
                # It does not exist, or was deleted, and perhaps made again.
                if self._collections.pop(name, None) is None or attempt == 2:
                    break
            except AiochromaError:
                raise
            except (TypeError, ValueError, OverflowError, InvalidArgumentError) as error:
                raise InvalidInputError(
                    f"Chroma refuses what is given for {shown(name)}: {error!s:.500}"
                ) from error
        return absent

    def known_collection(self, name: str) -> Collection | None:
        """Return a collection that was looked up before, or None."""
        return self._collections.get(name)

    async def close(self) -> None:
        """Close the client, if it is an own one, and wait until the database's thread has ended; idempotent."""
        waits_by_blocking()
        client = self._client
        self._closings += 1
        self._collections.clear()
        if self._owns_client and client is not None:
            self._client = None
            await client.close()
