"""Chroma's asynchronous collection, with what its own does on the event loop done elsewhere.

Signatures, results and errors are Chroma's (a test compares them). Corrected are:

* embedding functions run on the embedding thread, or are awaited where they are asynchronous;
* large inputs are validated on a worker thread;
* ``embedding_function=None`` means none: no fallback that downloads a model;
* vectors of different lengths, NaN and infinities are found before anything is written, however the write is cut;
* what everybody would wait for is refused then, too: a document, an id, metadata of a record, or a string of a filter of more
  than 1 MB, except by a server, which has limits of its own.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.types import (
    EMBEDDING_KEY,
    ID,
    URI,
    DefaultEmbeddingFunction,
    DeleteResult,
    Document,
    Embedding,
    GetResult,
    IDs,
    Image,
    Include,
    Metadata,
    OneOrMany,
    PyEmbedding,
    QueryRequest,
    QueryResult,
    ReadLevel,
    Schema,
    SearchResult,
    Where,
    WhereDocument,
    get_default_embeddable_record_set_fields,
    maybe_cast_one_to_many,
)
from chromadb.errors import InvalidArgumentError
from chromadb.execution.expression.plan import Search  # noqa: TC002 - signatures resolve as Chroma's do

from aiochroma._errors import InvalidInputError
from aiochroma._types import Vector
from aiochroma._waiting import off_loop
from aiochroma.backend.limits import check_filter, check_records, usual_question
from aiochroma.client.session import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from chromadb.api.types import BaseRecordSet, Embeddable, EmbeddingFunction, Embeddings

    from aiochroma.client.session import Session

__all__ = ["Collection"]

RequestT = TypeVar("RequestT", bound="Mapping[str, object]")
ResultT = TypeVar("ResultT", "GetResult", "QueryResult")

_LARGE = 64
"""Inputs of more records are validated off the loop: 64 take 0.2 ms, a hop to a worker thread takes 0.1 ms."""

_NO_FUNCTION = (
    "You must provide an embedding function to compute embeddings (this collection was opened with "
    "`embedding_function=None`): give `embeddings`, or open the collection with a function."
)


class _Records(NamedTuple):
    """The arguments that every write has."""

    ids: OneOrMany[ID]
    embeddings: OneOrMany[Embedding] | OneOrMany[PyEmbedding] | None
    metadatas: OneOrMany[Metadata] | None
    documents: OneOrMany[Document] | None
    images: OneOrMany[Image] | None
    uris: OneOrMany[URI] | None


class _ToEmbed(NamedTuple):
    """Stands in a prepared request where the vectors will be, until they have been computed off the loop."""

    record_set: Mapping[str, Any]
    fields: set[str] | None
    is_query: bool


class _OverSession(Protocol):
    """What an aiochroma client gives its collections."""

    session: Session


class Collection(Shared, AsyncCollection):
    """A collection of embedded Chroma; see ``chromadb.api.models.AsyncCollection`` for every argument.

    Light: it holds what the collection is called and where it is, and owns no thread. It may be used from any event loop.
    Cancelling a call releases the caller at once: a call that was still queued never runs, one that had begun runs to its
    end and its outcome is dropped.

    Besides Chroma's own errors every method may raise :class:`~aiochroma.ClosedError`,
    :class:`~aiochroma.DeadlineExceededError`, :class:`~aiochroma.QueueFullError`,
    :class:`~aiochroma.ForkedProcessError` and :class:`~aiochroma.StoreUnavailableError`; a long write also
    :class:`~aiochroma.PartialWriteError`.
    """

    @cached_property
    def session(self) -> Session:
        """What the client that made it, and everything made by that client, share."""
        return cast("_OverSession", self._client).session

    @property
    def embedding_function(self) -> EmbeddingFunction[Embeddable] | None:
        """What embeds texts that are given without vectors; None where nothing does. It may be asynchronous."""
        return self._embedding_function

    @embedding_function.setter
    def embedding_function(self, function: EmbeddingFunction[Embeddable] | None) -> None:
        self._embedding_function = function

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self.session.describe().name}>"

    async def add(
        self,
        ids: OneOrMany[ID],
        embeddings: OneOrMany[Embedding] | OneOrMany[PyEmbedding] | None = None,
        metadatas: OneOrMany[Metadata] | None = None,
        documents: OneOrMany[Document] | None = None,
        images: OneOrMany[Image] | None = None,
        uris: OneOrMany[URI] | None = None,
    ) -> None:
        """Add records; an id that exists already is left as it is. See ``AsyncCollection.add``."""
        records = _Records(ids, embeddings, metadatas, documents, images, uris)
        await self._write("_add", self._validate_and_prepare_add_request, records)

    async def update(
        self,
        ids: OneOrMany[ID],
        embeddings: OneOrMany[Embedding] | OneOrMany[PyEmbedding] | None = None,
        metadatas: OneOrMany[Metadata] | None = None,
        documents: OneOrMany[Document] | None = None,
        images: OneOrMany[Image] | None = None,
        uris: OneOrMany[URI] | None = None,
    ) -> None:
        """Change records; an id that does not exist is ignored. See ``AsyncCollection.update``."""
        records = _Records(ids, embeddings, metadatas, documents, images, uris)
        await self._write("_update", self._validate_and_prepare_update_request, records)

    async def upsert(
        self,
        ids: OneOrMany[ID],
        embeddings: OneOrMany[Embedding] | OneOrMany[PyEmbedding] | None = None,
        metadatas: OneOrMany[Metadata] | None = None,
        documents: OneOrMany[Document] | None = None,
        images: OneOrMany[Image] | None = None,
        uris: OneOrMany[URI] | None = None,
    ) -> None:
        """Add records, or change those that exist. See ``AsyncCollection.upsert``."""
        records = _Records(ids, embeddings, metadatas, documents, images, uris)
        await self._write("_upsert", self._validate_and_prepare_upsert_request, records)

    async def get(
        self,
        ids: OneOrMany[ID] | None = None,
        where: Where | None = None,
        limit: int | None = None,
        offset: int | None = None,
        where_document: WhereDocument | None = None,
        include: Include = ["metadatas", "documents"],  # noqa: B006 - Chroma's signature; copied before use
    ) -> GetResult:
        """Return records by id or by filter. See ``AsyncCollection.get``."""
        request = await self._prepared(
            self._validate_and_prepare_get_request,
            _count(ids),
            ids=ids,
            where=where,
            where_document=where_document,
            include=_own(include),
        )
        result = await self._submit(
            "_get",
            ids=request["ids"],
            where=request["where"],
            where_document=request["where_document"],
            include=request["include"],
            limit=limit,
            offset=offset,
        )
        return await self._transformed(self._transform_get_response, result, request["include"])

    async def query(
        self,
        query_embeddings: OneOrMany[Embedding] | OneOrMany[PyEmbedding] | None = None,
        query_texts: OneOrMany[Document] | None = None,
        query_images: OneOrMany[Image] | None = None,
        query_uris: OneOrMany[URI] | None = None,
        ids: OneOrMany[ID] | None = None,
        n_results: int = 10,
        where: Where | None = None,
        where_document: WhereDocument | None = None,
        include: Include = ["metadatas", "documents", "distances"],  # noqa: B006 - Chroma's signature; copied before use
    ) -> QueryResult:
        """Return the nearest records of each question. See ``AsyncCollection.query``."""
        with self.session.limit():
            others = (query_texts, query_images, query_uris, ids, where, where_document)
            vectors = usual_question(query_embeddings, n_results, include, others)
            request = (
                QueryRequest(
                    embeddings=cast("Embeddings", vectors),
                    ids=None,
                    where=None,
                    where_document=None,
                    include=_own(include),
                    n_results=n_results,
                )
                if vectors is not None
                else await self._prepared(
                    self._validate_and_prepare_query_request,
                    max(_count(query_embeddings), _count(ids), _LARGE + 1 if query_uris is not None else 0),
                    query_embeddings=query_embeddings,
                    query_texts=query_texts,
                    query_images=query_images,
                    query_uris=query_uris,
                    ids=ids,
                    n_results=n_results,
                    where=where,
                    where_document=where_document,
                    include=_own(include),
                )
            )
            result = await self._submit(
                "_query",
                ids=request["ids"],
                query_embeddings=request["embeddings"],
                n_results=request["n_results"],
                where=request["where"],
                where_document=request["where_document"],
                include=request["include"],
            )
        return await self._transformed(self._transform_query_response, result, request["include"])

    async def search(
        self,
        searches: OneOrMany[Search],
        read_level: ReadLevel = ReadLevel.INDEX_AND_WAL,
    ) -> SearchResult:
        """Search by expression; only Chroma's hosted service can. See ``AsyncCollection.search``."""
        given = maybe_cast_one_to_many(searches) or []
        embedded = await off_loop(lambda: [self._embed_search_string_queries(search) for search in given])
        result: SearchResult = await self._submit("_search", searches=embedded, read_level=read_level)
        return result

    async def delete(
        self,
        ids: IDs | None = None,
        where: Where | None = None,
        where_document: WhereDocument | None = None,
        limit: int | None = None,
    ) -> DeleteResult:
        """Delete records by id or by filter. See ``AsyncCollection.delete``."""
        with self.session.turns.take(self.id) as turn:
            request = await self._prepared(
                self._validate_and_prepare_delete_request,
                _count(ids),
                ids=ids,
                where=where,
                where_document=where_document,
                limit=limit,
            )
            await turn.come(self.session.timeout)
            deleted: DeleteResult = await self._submit("_delete", **request)
            return deleted

    async def fork(self, new_name: str) -> Collection:
        """Copy the collection; only Chroma's hosted service can. See ``AsyncCollection.fork``."""
        model = await self._submit("_fork", new_name=new_name)
        return Collection(self._client, model, self._embedding_function, self._data_loader)

    # -- what the calls share ------------------------------------------------------------------------------------------

    def _submit(self, operation: str, **arguments: Any) -> Coroutine[object, object, Any]:
        """Carry out an operation on this collection."""
        return self.session.submit(
            operation, collection_id=self.id, tenant=self.tenant, database=self.database, **arguments
        )

    async def _write(self, operation: str, prepare: Callable[..., RequestT], records: _Records) -> None:
        session = self.session
        with session.limit(), session.turns.take(self.id) as turn:
            has_files = records.uris is not None and records.embeddings is None
            size = max(_count(records.ids), _LARGE + 1 if has_files else 0)
            request = await self._prepared(prepare, size, **records._asdict())
            await turn.come(session.timeout)
            fields = ("ids", "embeddings", "metadatas", "documents", "uris")
            await self._submit(operation, **{name: request[name] for name in fields})

    def _checked(self, prepare: Callable[..., RequestT], arguments: Mapping[str, object]) -> RequestT:
        """Find what Chroma would take and could never apply, or would refuse in the middle of a write that is cut into slices."""
        try:
            request = prepare(**arguments)
            _check_limits(request, self.session.most_bytes)
        except RecursionError as error:
            raise InvalidInputError(
                "An argument is nested too deeply to be looked at; write it flatter."
            ) from error
        return request

    async def _prepared(self, prepare: Callable[..., RequestT], size: int, **arguments: object) -> RequestT:
        """Validate, off the loop if there is much of it, and embed."""
        if size > _LARGE or self._get_sparse_embedding_targets():
            request = await off_loop(lambda: self._checked(prepare, arguments))
        else:
            request = self._checked(prepare, arguments)
        waiting = request.get("embeddings")
        if isinstance(waiting, _ToEmbed):
            inputs = await self._inputs(waiting)
            vectors = await self.session.embed(self._function_to_use(), inputs, is_query=waiting.is_query)
            _check_vectors(vectors)
            cast("dict[str, object]", request)["embeddings"] = vectors
        return request

    async def _inputs(self, waiting: _ToEmbed) -> Sequence[object]:
        for name in waiting.fields or get_default_embeddable_record_set_fields():
            values = waiting.record_set[name]
            if values is None:
                continue
            if name != "uris":
                return cast("Sequence[object]", values)
            loader = self._data_loader
            if loader is None:
                raise ValueError("You must set a data loader on the collection if loading from URIs.")
            return await off_loop(lambda: loader(uris=values))  # noqa: B023 - leaves the loop
        raise ValueError(
            f"Record does not contain any non-None fields that can be embedded: {waiting.fields}"
        )

    async def _transformed(
        self, transform: Callable[..., ResultT], result: object, include: Include
    ) -> ResultT:
        if "data" in include and self._data_loader is not None:
            # The data loader reads files, or fetches what the URIs point to.
            return await off_loop(lambda: transform(response=result, include=include))
        return transform(response=result, include=include)

    def _embed_record_set(
        self, record_set: BaseRecordSet, embeddable_fields: set[str] | None = None, is_query: bool = False
    ) -> Embeddings:
        waiting = _ToEmbed(cast("Mapping[str, Any]", record_set), embeddable_fields, is_query)
        return cast("Embeddings", waiting)

    def _embed(self, input: Any, is_query: bool = False) -> Embeddings:
        """Embed on this thread: for those who relied on Chroma's own method of this name."""
        function = self._function_to_use()
        if is_query and hasattr(function, "embed_query"):
            return function.embed_query(input=input)
        return function(input)

    def _function_to_use(self) -> EmbeddingFunction[Embeddable]:
        """Return the embedding function, by Chroma's order of precedence, except that None means none.

        Raises:
            ValueError: There is none.
        """
        own = self._embedding_function
        if own is None:
            raise ValueError(_NO_FUNCTION)
        if not isinstance(own, DefaultEmbeddingFunction):
            return own
        configured = self.configuration.get("embedding_function")
        chosen = configured or self._function_of_schema() or own
        return cast("EmbeddingFunction[Embeddable]", chosen)

    def _function_of_schema(self) -> EmbeddingFunction[Embeddable] | None:
        schema = self.schema
        if schema is None:
            return None
        for kinds in (schema.keys.get(EMBEDDING_KEY), schema.defaults):
            vectors = kinds.float_list if kinds is not None else None
            if vectors is not None and vectors.vector_index is not None:
                function: EmbeddingFunction[Embeddable] | None = (
                    vectors.vector_index.config.embedding_function
                )
                if function is not None:
                    return function
        return None

    @property
    def schema(self) -> Schema | None:
        """The collection's schema; read from its serialized form once, not for every record that is added."""
        serialized = self._model.serialized_schema
        cached = self.__dict__.get("_schema_cache")
        if cached is None or cached[0] is not serialized:
            cached = (serialized, Schema.deserialize_from_json(serialized or {}))
            self.__dict__["_schema_cache"] = cached
        schema: Schema = cached[1]
        return schema


def _own(include: Include) -> Include:
    """Copy the caller's list, because Chroma appends to it; what is no list is left for Chroma to refuse."""
    return include.copy() if isinstance(include, list) else include


def _count(values: object) -> int:
    return len(values) if isinstance(values, (list, tuple, np.ndarray)) else 0


def _check_limits(request: Mapping[str, Any], most: float) -> None:
    if request.get("ids") is not None and "metadatas" in request:
        check_records(request["ids"], request["metadatas"], request["documents"], request["uris"], most)
    else:
        for name in ("ids", "where", "where_document"):
            # Ids may be longer: what another program has written can be read and deleted.
            check_filter(request.get(name), f"`{name}`", math.inf if name == "ids" else most)
    embeddings = request.get("embeddings")
    if embeddings is not None and not isinstance(embeddings, _ToEmbed):
        _check_vectors(embeddings)


def _check_vectors(embeddings: Sequence[Vector]) -> None:
    """Find what Chroma would refuse in the middle of a write that is cut into slices.

    Raises:
        chromadb.errors.InvalidArgumentError: As Chroma would, but naming the vector.
    """
    if not len(embeddings):
        return
    dimensions = len(embeddings[0])
    for position, vector in enumerate(embeddings):
        if len(vector) != dimensions:
            raise InvalidArgumentError(
                f"Inconsistent dimensions in provided embeddings: embeddings[{position}] has {len(vector)} dimensions, "
                f"embeddings[0] has {dimensions}. Nothing was written."
            )
    finite = np.isfinite(np.asarray(embeddings))
    if not finite.all():
        first = int(np.flatnonzero(~finite.all(axis=1))[0])
        raise InvalidArgumentError(
            f"Embeddings must not contain NaN or Infinity values: embeddings[{first}] does. "
            "Nothing was written."
        )
