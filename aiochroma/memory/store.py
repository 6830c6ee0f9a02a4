"""What a memory stands on: an open client, an embedder, and a collection for each namespace."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aiochroma._clock import monotonic
from aiochroma._errors import ClosedError, EmbedderError, EmbedderMismatchError, InvalidInputError
from aiochroma._types import MetadataView, Vector
from aiochroma._waiting import off_loop
from aiochroma.backend.schemas import MEMORY_CONFIGURATION, sparse_schema
from aiochroma.client.maintenance import SingleEmbedder, reembed_missing
from aiochroma.client.opening import ClientOpening
from aiochroma.core.stats import observed
from aiochroma.embedding.functions import is_alike, is_same_name
from aiochroma.embedding.protocol import described
from aiochroma.memory.copies import no_sparse_vectors, restore_names, settled, sparse_mark
from aiochroma.memory.vectors import TextEmbedder
from aiochroma.records.reading import sparse_embedder_of
from aiochroma.records.record import (
    DIMENSIONS,
    EMBEDDER,
    FINGERPRINT,
    NAMESPACE,
    SPARSE,
    SPARSE_EMBEDDER,
    chunks_name,
    collection_name,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from contextlib import AbstractContextManager
    from uuid import UUID

    from chromadb.types import Collection

    from aiochroma.client.client import AsyncClient
    from aiochroma.client.session import Session
    from aiochroma.core.calls import CallOutcome
    from aiochroma.core.connection import Capabilities, EngineInfo
    from aiochroma.embedding.choice import EmbedderFunction
    from aiochroma.embedding.protocol import SparseFunction
    from aiochroma.memory.opening import Home, MemoryOptions
    from aiochroma.memory.vectors import Embedded

__all__ = ["Namespace", "Store"]

T = TypeVar("T")

_REOPEN_SECONDS = 1.0
_LISTED_FROM = 64
"""From this many names on the list of all collections takes less time than asking for each."""
_LOOK_SECONDS = 1.0
"""How often calls look at the state of the database; each look takes a hundredth of a recall."""


class Namespace:
    """A namespace that exists.

    Attributes:
        name: The namespace.
        id: The id of its collection.
        collection: The arguments that every operation on its collection has.
        chunks: The name of the collection that holds the chunks of its long texts.
        sparse_embedder: The identity of the embedder whose sparse vectors the server searches there, or None.
    """

    __slots__ = ("chunks", "collection", "id", "name", "sparse_embedder")

    def __init__(self, name: str, model: Collection) -> None:
        self.name: str = name
        self.id: UUID = model.id
        database = {"tenant": model.tenant, "database": model.database}
        self.collection: dict[str, object] = {"collection_id": model.id, **database}
        self.chunks: str = chunks_name(name)
        self.sparse_embedder: str | None = sparse_embedder_of(model)


class Store:
    """Opens the database when it is first needed, and again when it failed; finds and makes namespaces.

    Args:
        home: Where the memory is.
        options: How it behaves.
    """

    def __init__(self, home: Home, options: MemoryOptions) -> None:
        self.name: str = home.name
        self.keeps_history: bool = options.history
        self._resolve = home.resolve
        self._choose_embedder = options.choose_embedder
        self._client = home.client
        self._owns_client = home.client is None
        self._split_chars = options.split_chars
        self.sparse: SparseFunction | None = options.sparse
        self._texts: TextEmbedder | None = None
        self._failure: Exception | None = None
        self._failed_at = 0.0
        self._reembedded_after: tuple[object, ...] | None = None
        self._has_ended = False
        self._looked_at = float("-inf")
        self.answers_in_parallel: bool = False
        self._namespaces: dict[str, Namespace] = {}
        self.chunks_checked: set[str] = set()  # Since the database was opened; see ``chunks``.
        self.note_forgotten: Callable[[int], None] = lambda _: None  # Told how many memories were forgotten.

    # -- opening -------------------------------------------------------------------------------------------------------

    @property
    def client(self) -> AsyncClient:
        """The open client.

        Raises:
            ClosedError: It is not open.
        """
        if self._client is None:
            raise ClosedError(
                f"The memory {self.name} is not open: use `async with` or `await memory.open()`. If it degrades, ask "
                "`health()` what keeps it from opening."
            )
        return self._client

    @property
    def session(self) -> Session:
        """What carries operations out."""
        return self.client.session

    @property
    def is_open(self) -> bool:
        """Whether there is an open client."""
        return self._client is not None and not self._client.closed

    @property
    def embedder(self) -> EmbedderFunction:
        """The embedder; it is known once the store has been opened."""
        assert self._texts is not None
        return self._texts.function

    @property
    def info(self) -> EngineInfo:
        """What is known of the database.

        Raises:
            ClosedError: It is not open.
        """
        return self.session.describe()

    @property
    def capabilities(self) -> Capabilities:
        """What the database can do."""
        return self.info.capabilities

    async def ready(self) -> None:
        """Open the client and load the embedder, if that has not been done or the last attempt failed.

        Raises:
            StoreUnavailableError: The client cannot be opened. For a second further calls get the same error at once.
        """
        if self._client is None or (self._owns_client and self._client.closed):
            if self._failure is not None and monotonic() - self._failed_at < _REOPEN_SECONDS:
                raise self._failure
            await self._open_client()
        try:
            await self._prepare()
        except Exception:
            # A memory that could not be opened is not closed.
            client = self._client
            if self._owns_client and client is not None:
                self._client = None
                await client.close()
            raise
        self.session.connection.note_embedder(self.embedder.identity)

    async def _open_client(self) -> None:
        try:
            client = await ClientOpening(self._resolve).open()
        except Exception as error:
            self._failure, self._failed_at = error, monotonic()
            raise
        if self._has_ended:
            await client.close()
            raise ClosedError(f"{self.name} was closed while it was opening.")
        if self._client is not None and not self._client.closed:
            await client.close()  # Another task was faster.
            return
        self._client, self._failure, self._reembedded_after = client, None, None
        self._looked_at = float("-inf")
        self._namespaces.clear()
        self.chunks_checked.clear()

    async def _prepare(self) -> None:
        if self._texts is None:
            embedder = await off_loop(partial(self._choose_embedder, await self._stored_embedders()))
            self._texts = TextEmbedder(embedder, self._split_chars, self.sparse)
        if monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        info = self.info
        self.answers_in_parallel = info.capabilities.parallel_calls
        opening = (info.recovery, info.host)
        if info.has_missing_vectors and self._reembedded_after != opening:
            self._reembedded_after = opening
            # Vectors that a broken index has lost and no log holds. A collection of another program is left to its owner.
            await reembed_missing(self.submit, SingleEmbedder(self.embedder.identity, self._document_vectors))
        if self.keeps_history and not info.capabilities.history:
            raise InvalidInputError(
                "`history` is kept in a file beside the database, and this one is a server's; open the memory without it."
            )
        if self.sparse is not None and not info.url:
            raise no_sparse_vectors(self.name)
        self._looked_at = monotonic()

    async def close(self) -> None:
        """Close the client, unless it was given; a client that is still opening is closed as soon as it is open."""
        self._has_ended = True
        self._namespaces.clear()
        if self._client is not None and self._owns_client:
            await self._client.close()

    # -- carrying out --------------------------------------------------------------------------------------------------

    def submit(self, operation: str, **arguments: Any) -> Coroutine[object, object, Any]:
        """Carry out one operation on the DB thread."""
        return self.session.submit(operation, **arguments)

    def submit_many(
        self, operations: Sequence[tuple[str, Mapping[str, object]]]
    ) -> Coroutine[object, object, list[CallOutcome]]:
        """Carry out several operations at the same time; an error is part of the outcome."""
        return self.session.submit_many(operations)

    def limit(self) -> AbstractContextManager[None]:
        """Put one deadline over the steps of a call."""
        return self.session.limit()

    async def embed(self, texts: Sequence[str], *, is_query: bool) -> list[Embedded]:
        """Embed texts of any length; see :meth:`TextEmbedder.embed`."""
        assert self._texts is not None
        return await self._texts.embed(self.session, texts, is_query=is_query)

    async def _document_vectors(self, texts: list[str]) -> list[Vector]:
        return [embedded.vector for embedded in await self.embed(texts, is_query=False)]

    # -- namespaces ----------------------------------------------------------------------------------------------------

    @property
    def database(self) -> dict[str, str]:
        """Tenant and database, as arguments of an operation."""
        return {"tenant": self.client.tenant, "database": self.client.database}

    async def collections(self) -> list[Collection]:
        """Return all collections of the database."""
        found: list[Collection] = await self.submit(
            "list_collections", limit=None, offset=None, **self.database
        )
        return found

    async def make_collection(self, name: str, metadata: MetadataView) -> Collection:
        """Return a collection with cosine distance, and with an index of sparse vectors where the metadata names their embedder.

        It is made where there is none.
        """
        from chromadb.errors import InvalidArgumentError

        is_sparse = SPARSE_EMBEDDER in metadata
        index = {"schema": sparse_schema(SPARSE)} if is_sparse else {"configuration": MEMORY_CONFIGURATION}
        make = self.submit("get_or_create_collection", name=name, metadata=metadata, **index, **self.database)
        try:
            made: Collection = await make
        except InvalidArgumentError as error:
            if not is_sparse:
                raise
            raise no_sparse_vectors(f"{self.info.name} ({error})") from error
        return made

    async def collection(self, name: str) -> Collection | None:
        """Return a collection, or None where there is none."""
        from chromadb.errors import NotFoundError

        try:
            found: Collection = await self.submit("get_collection", name=name, **self.database)
        except NotFoundError:
            return None
        return found

    async def names(self) -> list[str]:
        """Return the names of all namespaces, sorted."""
        names: list[str] = await self.submit("memory_namespaces", **self.database)
        return names

    async def _stored_embedders(self) -> list[str]:
        models = await self.collections()
        await restore_names(self, models)
        stored = Counter((model.metadata or {}).get(EMBEDDER) for model in models)
        return [identity for identity, _ in stored.most_common() if isinstance(identity, str)]

    async def find(
        self, names: Sequence[str], *, any_embedder: bool = False
    ) -> dict[str, Namespace | Exception | None]:
        """Look up namespaces, all at the same time.

        Args:
            names: The names of the namespaces.
            any_embedder: Whether namespaces of other embedders are returned too, for work that compares no vectors.

        Returns:
            For each name the namespace, None where it does not exist, or the exception.
        """
        unknown = [name for name in names if name not in self._namespaces]
        found: dict[str, Namespace | Exception | None] = {
            name: self._namespaces[name] for name in names if name in self._namespaces
        }
        for name, model in (await self._models(unknown)).items():
            if model is None or isinstance(model, Exception):
                found[name] = model
            elif isinstance(model, BaseException):
                raise model
            else:
                found[name] = await self._known(name, model, any_embedder=any_embedder)
        return found

    async def _models(self, names: Sequence[str]) -> dict[str, Collection | BaseException | None]:
        """Look the collections of namespaces up; of many with one request."""
        from chromadb.errors import NotFoundError

        if len(names) > _LISTED_FROM:
            models = {model.name: model for model in await self.collections()}
            return {name: models.get(collection_name(name)) for name in names}
        operations = [("get_collection", {"name": collection_name(name), **self.database}) for name in names]
        answers = await self.submit_many(operations) if operations else []
        return {
            name: None if isinstance(answer.error, NotFoundError) else answer.error or answer.result
            for name, answer in zip(names, answers, strict=True)
        }

    async def existing(self, name: str, *, any_embedder: bool = False) -> Namespace | None:
        """Return a namespace, or None where there is none."""
        found = (await self.find([name], any_embedder=any_embedder))[name]
        if isinstance(found, Exception):
            raise found
        return found

    async def on(
        self,
        name: str,
        work: Callable[[Namespace], Awaitable[T]],
        *,
        absent: T,
        any_embedder: bool = False,
    ) -> T:
        """Do something with a namespace.

        Args:
            name: The namespace.
            work: What to do.
            absent: The result where there is no such namespace.
            any_embedder: Whether the vectors may be another embedder's, for work that compares none.
        """

        async def on_it() -> T:
            namespace = await self.existing(name, any_embedder=any_embedder)
            return absent if namespace is None else await work(namespace)

        return await self._looked_up_again(name, on_it)

    async def on_made(self, name: str, work: Callable[[Namespace], Awaitable[T]]) -> T:
        """Do something with a namespace, which is made where there is none."""

        async def on_it() -> T:
            return await work(await self._made(name))

        return await self._looked_up_again(name, on_it)

    async def _looked_up_again(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do something with a namespace; once more, where it was deleted meanwhile, and perhaps made again."""
        from chromadb.errors import NotFoundError

        try:
            return await settled(work)
        except NotFoundError:
            self.drop(name)
            return await settled(work)

    async def _made(self, name: str) -> Namespace:
        known = await self.existing(name)
        if known is not None:
            return known
        metadata = {
            NAMESPACE: name,
            EMBEDDER: self.embedder.identity,
            FINGERPRINT: await self.fingerprint(),
            DIMENSIONS: self.embedder.dimensions,
            **sparse_mark(self),
        }
        make = partial(self.make_collection, collection_name(name), metadata)
        model = await observed("make_namespace", {"namespaces": [name]}, make, lambda: self.info.name)
        namespace = await self._known(name, model)
        if isinstance(namespace, Exception):
            raise namespace
        return namespace

    async def fingerprint(self) -> str:
        """Return what the embedder makes of one fixed text; see :meth:`TextEmbedder.fingerprint`."""
        assert self._texts is not None
        return await self._texts.fingerprint(self.session)

    async def _known(
        self, name: str, model: Collection, *, any_embedder: bool = False
    ) -> Namespace | Exception:
        stored = (model.metadata or {}).get(EMBEDDER)
        if await self.is_mine(model):
            namespace = self._namespaces[name] = Namespace(name, model)
            return namespace
        if any_embedder and stored is not None:
            return Namespace(name, model)  # Not kept: the next call may compare vectors.
        return EmbedderMismatchError(
            f"The namespace {name!r} holds vectors of {described(stored, _dimensions(model))} and this memory embeds with "
            f"{described(self.embedder.identity, self.embedder.dimensions)}. Vectors of different embedders "
            "cannot be compared: open the memory with the first one, or embed the texts again with this one: "
            "`await memory.reembed()` or `aiochroma reembed`."
        )

    async def is_mine(self, model: Collection) -> bool:
        """Tell whether this memory's embedder made a namespace's vectors; see :mod:`aiochroma.embedding.functions`."""
        metadata = model.metadata or {}
        stored, embedder = metadata.get(EMBEDDER), self.embedder
        fingerprint, dimensions = metadata.get(FINGERPRINT), _dimensions(model)
        if not isinstance(stored, str):
            return False
        same = is_same_name(stored, embedder.identity)
        if None not in {dimensions, embedder.dimensions} and dimensions != embedder.dimensions:
            return False
        if not isinstance(fingerprint, str) or (same and embedder.is_certain):
            return same
        try:
            alike = is_alike(fingerprint, await self.fingerprint())
        except EmbedderError:
            return same  # The failure is reported where vectors are needed.
        return alike and dimensions in {None, embedder.dimensions}

    def drop(self, name: str) -> None:
        """Forget the id of a namespace's collection, because it may be gone."""
        self._namespaces.pop(name, None)


def _dimensions(model: Collection) -> object:
    """Return the length of a namespace's vectors: Chroma's word, or before it has any what the metadata says."""
    return model.dimension or (model.metadata or {}).get(DIMENSIONS)
