"""What a memory stands on: an open client, an embedder, and a collection for each namespace."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aiochroma._errors import ClosedError, EmbedderError, EmbedderMismatchError, InvalidInputError
from aiochroma._threads import off_loop
from aiochroma._types import MetadataView
from aiochroma.client.maintenance import SingleEmbedder, reembed_missing
from aiochroma.client.opening import ClientOpening
from aiochroma.embedding.functions import is_alike, is_same_name
from aiochroma.memory.namespaces import collection_name, namespace_of, parts_name
from aiochroma.memory.vectors import TextEmbedder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiochroma.client.options import ConnectTarget
    from aiochroma.core.calls import CallOutcome
    from aiochroma.core.connection import Capabilities, EngineInfo
    from aiochroma.embedding.choice import EmbedderFunction
    from aiochroma.memory.vectors import Embedded

__all__ = ["Namespace", "Store"]

T = TypeVar("T")

NAMESPACE = "aiochroma:namespace"
EMBEDDER = "aiochroma:embedder"
DIMENSIONS = "aiochroma:dimensions"
FINGERPRINT = "aiochroma:embedder_fingerprint"

_REOPEN_SECONDS = 1.0


class Namespace:
    """A namespace that exists: its collection's place in Chroma.

    Attributes:
        name: The namespace.
        place: The arguments that every operation on its collection has.
        parts: The name of the collection that holds the chunks of its long texts.
    """

    __slots__ = ("name", "parts", "place")

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.place = {"collection_id": model.id, "tenant": model.tenant, "database": model.database}
        self.parts = parts_name(name)


class Store:
    """Opens the database when it is first needed, and again when it failed; finds and makes namespaces.

    Args:
        resolve: Says which database is to be opened; called off the event loop.
        choose_embedder: Returns the embedder, given the identities of those that the database was written with, the most
            frequent first; may take long.
        client: A client to use in place of one of its own, or None.
        describe: What messages call the memory.
        split_chars: The most characters of a chunk of a long text, or None for what the embedder reads.
        history: Whether every change is noted.
    """

    def __init__(
        self,
        resolve: Callable[[], ConnectTarget],
        choose_embedder: Callable[[Sequence[str]], EmbedderFunction],
        client: Any,
        *,
        describe: str,
        split_chars: int | None,
        history: bool,
    ) -> None:
        self.describe = describe
        self.keeps_history = history
        self._resolve = resolve
        self._choose_embedder = choose_embedder
        self._client = client
        self._owns_client = client is None
        self._split_chars = split_chars
        self._texts: TextEmbedder | None = None
        self._failure: Exception | None = None
        self._failed_at = 0.0
        self._has_reembedded = False
        self._has_ended = False
        self._namespaces: dict[str, Namespace] = {}

    # -- opening -------------------------------------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """The open client.

        Raises:
            ClosedError: It is not open.
        """
        if self._client is None:
            raise ClosedError(
                f"The memory {self.describe} is not open; use `async with` or `await memory.open()`."
            )
        return self._client

    @property
    def is_open(self) -> bool:
        """Whether there is an open client."""
        return self._client is not None and not self._client.closed

    @property
    def embedder(self) -> EmbedderFunction:
        """The embedder; known once the store was opened."""
        assert self._texts is not None
        return self._texts.function

    @property
    def info(self) -> EngineInfo:
        """What is known of the database.

        Raises:
            ClosedError: It is not open.
        """
        info: EngineInfo = self.client.session.describe()
        return info

    @property
    def capabilities(self) -> Capabilities:
        """What the database can do."""
        return self.info.capabilities

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
                await client.close()
            raise
        self._client.session.connection.note_embedder(self.embedder.identity)

    async def _open_client(self) -> None:
        try:
            client = await ClientOpening(self._resolve).open()
        except Exception as error:
            self._failure, self._failed_at = error, time.monotonic()
            raise
        if self._has_ended:
            await client.close()  # Nobody else would.
            raise ClosedError(f"{self.describe} was closed while it was opening.")
        if self._client is not None and not self._client.closed:
            await client.close()  # Another task was faster.
            return
        self._client, self._failure, self._has_reembedded = client, None, False
        self._namespaces.clear()

    async def _prepare(self) -> None:
        if self._texts is None:
            embedder = await off_loop(partial(self._choose_embedder, await self._stored_embedders()))
            self._texts = TextEmbedder(embedder, self._split_chars)
        if self.info.has_missing_vectors and not self._has_reembedded:
            self._has_reembedded = True
            # What a broken index lost and no log held; what is not ours is left for its owner.
            await reembed_missing(self.submit, SingleEmbedder(self.embedder.identity, self._document_vectors))
        if self.keeps_history and not self.capabilities.history:
            raise InvalidInputError(
                "`history` is kept in a file beside the database, and this one is a server's; open the memory without it."
            )

    async def close(self) -> None:
        """Close the client, if it is ours; one that is opening meanwhile closes as soon as it is open."""
        self._has_ended = True
        self._namespaces.clear()
        if self._client is not None and self._owns_client:
            await self._client.close()

    # -- carrying out --------------------------------------------------------------------------------------------------

    async def submit(self, operation: str, **arguments: Any) -> Any:
        """Carry out one operation on the DB thread."""
        return await self._client.session.submit(operation, **arguments)

    async def submit_many(self, operations: list[tuple[str, dict[str, Any]]]) -> list[CallOutcome]:
        """Carry out several operations at the same time; an error is part of the outcome."""
        outcomes: list[CallOutcome] = await self._client.session.submit_many(operations)
        return outcomes

    def limit(self) -> Any:
        """Put one deadline over the steps of a call."""
        return self._client.session.limit()

    async def embed(self, texts: Sequence[str], *, is_query: bool) -> list[Embedded]:
        """Embed texts of any length; see :meth:`TextEmbedder.embed`."""
        assert self._texts is not None
        return await self._texts.embed(self._client, texts, is_query=is_query)

    async def _document_vectors(self, texts: list[str]) -> list[Any]:
        return [embedded.vector for embedded in await self.embed(texts, is_query=False)]

    # -- namespaces ----------------------------------------------------------------------------------------------------

    @property
    def database(self) -> dict[str, str]:
        """Tenant and database, as arguments of an operation."""
        return {"tenant": self._client.tenant, "database": self._client.database}

    async def names(self) -> list[str]:
        """Return the names of all namespaces, sorted."""
        models = await self.submit("list_collections", limit=None, offset=None, **self.database)
        names = []
        for model in models:
            metadata = model.metadata or {}
            if EMBEDDER in metadata:
                stated = str(metadata.get(NAMESPACE) or model.name)
                # Another program may have renamed the collection: a namespace is called what it is found by.
                is_found = bool(stated.strip()) and collection_name(stated) == model.name
                names.append(stated if is_found else namespace_of(model.name) or model.name)
        return sorted(names)

    async def _stored_embedders(self) -> list[str]:
        from aiochroma.memory.reembedding import restore_names

        models = await self.submit("list_collections", limit=None, offset=None, **self.database)
        await restore_names(self, models)
        found = Counter(model.metadata[EMBEDDER] for model in models if EMBEDDER in (model.metadata or {}))
        return [identity for identity, _ in found.most_common() if isinstance(identity, str)]

    async def find(
        self, names: Sequence[str], *, any_embedder: bool = False
    ) -> dict[str, Namespace | Exception | None]:
        """Look namespaces up, all at the same time; each once.

        Args:
            names: Their names.
            any_embedder: Whether those of other embedders are given too, for what compares no vectors.

        Returns:
            For each name the namespace, None where it does not exist, or the exception.
        """
        from chromadb.errors import NotFoundError

        unknown = [name for name in names if name not in self._namespaces]
        found: dict[str, Namespace | Exception | None] = {
            name: self._namespaces[name] for name in names if name in self._namespaces
        }
        operations = [
            ("get_collection", {"name": collection_name(name), **self.database}) for name in unknown
        ]
        answers = await self.submit_many(operations) if operations else []
        for name, answer in zip(unknown, answers, strict=True):
            if answer.error is None:
                found[name] = await self._known(name, answer.result, any_embedder=any_embedder)
            elif isinstance(answer.error, NotFoundError):
                found[name] = None
            elif isinstance(answer.error, Exception):
                found[name] = answer.error
            else:
                raise answer.error
        return found

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
        """Do something with a namespace; ``absent`` is the outcome where there is none."""
        from chromadb.errors import NotFoundError

        for attempt in (1, 2):
            namespace = await self.existing(name, any_embedder=any_embedder)
            if namespace is None:
                break
            try:
                return await work(namespace)
            except NotFoundError:
                # Somebody has deleted it, and perhaps made it again.
                self.drop(name)
                if attempt == 2:
                    raise
        return absent

    async def on_made(self, name: str, work: Callable[[Namespace], Awaitable[T]]) -> T:
        """Do something with a namespace, which is made where there is none."""
        from chromadb.errors import NotFoundError

        try:
            return await work(await self._made(name))
        except NotFoundError:
            self.drop(name)
            return await work(await self._made(name))

    async def _made(self, name: str) -> Namespace:
        known = await self.existing(name)
        if known is not None:
            return known
        fingerprint = await self.fingerprint()
        model = await self.submit(
            "get_or_create_collection",
            name=collection_name(name),
            configuration={"hnsw": {"space": "cosine"}},
            metadata={
                NAMESPACE: name,
                EMBEDDER: self.embedder.identity,
                DIMENSIONS: self.embedder.dimensions,
                FINGERPRINT: fingerprint,
            },
            **self.database,
        )
        namespace = await self._known(name, model)
        if isinstance(namespace, Exception):
            raise namespace
        return namespace

    async def fingerprint(self) -> str:
        """Return what the embedder makes of one fixed text; see :meth:`TextEmbedder.fingerprint`."""
        assert self._texts is not None
        return await self._texts.fingerprint(self._client)

    async def _known(self, name: str, model: Any, *, any_embedder: bool = False) -> Namespace | Exception:
        metadata = model.metadata or {}
        stored = metadata.get(EMBEDDER)
        if await self.is_mine(metadata):
            namespace = self._namespaces[name] = Namespace(name, model)
            return namespace
        if any_embedder and stored is not None:
            return Namespace(name, model)  # Not kept: the next call may want to compare vectors.
        return EmbedderMismatchError(
            f"The namespace {name!r} holds vectors of {_described(stored, metadata)} and this memory embeds with "
            f"{_described(self.embedder.identity, {DIMENSIONS: self.embedder.dimensions})}. Vectors of different embedders "
            "cannot be compared: open the memory with the first one, or embed the texts again with this one: "
            "`await memory.reembed()` or `aiochroma reembed`."
        )

    async def is_mine(self, metadata: MetadataView) -> bool:
        """Tell whether this memory's embedder made a namespace's vectors; see :mod:`aiochroma.embedding.functions`."""
        stored, embedder = metadata.get(EMBEDDER), self.embedder
        fingerprint, dimensions = metadata.get(FINGERPRINT), metadata.get(DIMENSIONS)
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
            return same  # Its failure is told where its vectors are needed.
        return alike and dimensions in {None, embedder.dimensions}

    def drop(self, name: str) -> None:
        """Forget what is known of a namespace that may be gone."""
        self._namespaces.pop(name, None)


def _described(identity: str | None, metadata: MetadataView) -> str:
    """Return how messages call an embedder; two of one name differ in their dimensions, or in what they return."""
    if identity is None:
        return "an unknown embedder (of another program)"
    dimensions = metadata.get(DIMENSIONS)
    return f"{identity!r} ({dimensions} dimensions)" if dimensions is not None else repr(identity)
