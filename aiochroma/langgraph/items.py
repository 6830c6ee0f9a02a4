"""The items of a store in two collections: what the store's operations do, as coroutines for either way to wait."""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from langgraph.store.base import (
    GetOp,
    Item,
    ListNamespacesOp,
    PutOp,
    SearchItem,
    SearchOp,
    validate_op_namespace,
)

from aiochroma._errors import InvalidInputError
from aiochroma._threads import start
from aiochroma._types import Vector
from aiochroma.langgraph.embedding import TextIndex
from aiochroma.langgraph.records import (
    NO_VECTOR,
    Stored,
    below,
    check_filter,
    item_id,
    matches_condition,
    passes,
    value_as_json,
    vector_records,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping, Sequence

    from langgraph.store.base import IndexConfig, Op, TTLConfig

    from aiochroma.client.opening import LazyClient
    from aiochroma.langchain.embeddings import EmbedderMark

__all__ = ["ItemCollection"]

_MINUTE = 60.0
_FIRST_LOOK = 16
"""At least this many vectors are looked at first; one item may have several, and a filter may drop any."""


class ItemCollection:
    """Items and their vectors; see :class:`~aiochroma.langgraph.AiochromaStore` for the arguments."""

    def __init__(
        self, client: LazyClient, name: str, index: IndexConfig | None, ttl: TTLConfig | None
    ) -> None:
        self._client = client
        self._name = name
        self._vectors_name = f"{name}.vectors"
        self._index = None if index is None else TextIndex(index)
        minutes = (ttl or {}).get("sweep_interval_minutes")
        self._sweep_every = None if minutes is None else minutes * _MINUTE
        self._swept_at = time.monotonic()
        self._last_time = 0.0
        self._lock = threading.Lock()

    async def batch(self, ops: list[Op]) -> list[Any]:
        """Carry out operations: those that read, then those that write."""
        puts: dict[str, PutOp] = {}
        for op in ops:
            _check(op)
            if isinstance(op, PutOp):
                # The last one counts, also for the order.
                id = item_id(op.namespace, op.key)
                puts.pop(id, None)
                puts[id] = op
        texts = self._texts(puts)
        vectors: dict[str, Vector] = {}
        if self._index is not None:
            queries = [op.query for op in ops if isinstance(op, SearchOp) and op.query]
            vectors = await self._index.embed_queries(queries)
        found = await self._read({item_id(op.namespace, op.key) for op in ops if isinstance(op, GetOp)})
        results = await _together(
            {
                place: self._search(op, vectors.get(op.query or ""))
                if isinstance(op, SearchOp)
                else self._namespaces(op)
                for place, op in enumerate(ops)
                if isinstance(op, (SearchOp, ListNamespacesOp))
            }
        )
        for place, op in enumerate(ops):
            if isinstance(op, GetOp):
                results[place] = found.get(item_id(op.namespace, op.key))
        await self._refresh(ops, results)
        await self._put(puts, texts)
        return [_result(op, results.get(place)) for place, op in enumerate(ops)]

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _read(self, ids: Iterable[str]) -> dict[str, Stored]:
        ordered = sorted(ids)
        if not ordered:
            return {}
        return {item.id: item for item in await self._get(ids=ordered)}

    async def _get(self, *, values: bool = True, **arguments: Any) -> list[Stored]:
        """Return the items that are there and have not expired, with their values where these are asked for."""
        include = ["documents", "metadatas"] if values else ["metadatas"]

        async def read(collection: Any) -> list[Stored]:
            found = await collection.get(include=include, **arguments)
            documents = found["documents"] or [None] * len(found["ids"])
            return [Stored.of(*row) for row in zip(found["ids"], documents, found["metadatas"], strict=True)]

        items = await self._client.on_collection(self._name, read, absent=list[Stored]())
        now = time.time()
        return [item for item in items if not item.has_expired(now)]

    async def _namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        conditions = op.match_conditions or ()
        prefix = max(
            (_fixed(condition.path) for condition in conditions if condition.match_type == "prefix"),
            key=len,
            default=(),
        )
        namespaces = {item.namespace for item in await self._get(values=False, where=below(prefix))}
        matching = [
            namespace
            for namespace in namespaces
            if all(matches_condition(condition, namespace) for condition in conditions)
        ]
        if op.max_depth is not None:
            matching = list({namespace[: op.max_depth] for namespace in matching})
        return sorted(matching)[op.offset : op.offset + op.limit]

    async def _search(self, op: SearchOp, vector: object) -> list[tuple[Stored, float | None]]:
        most = op.offset + op.limit
        where = below(op.namespace_prefix)
        ranked: list[tuple[Stored, float | None]] = []
        if vector is not None:
            ranked += await self._nearest(op, vector, most)
            where = {"indexed": False} if where is None else {"$and": [where, {"indexed": False}]}
        if len(ranked) < most:
            others = await self._get(values=bool(op.filter), where=where)
            others = [item for item in others if passes(item.value, op.filter)]
            others.sort(key=lambda item: item.updated_at, reverse=True)
            ranked += [(item, None) for item in others]
        return await self._with_values(ranked[op.offset : most])

    async def _with_values(
        self, ranked: list[tuple[Stored, float | None]]
    ) -> list[tuple[Stored, float | None]]:
        """Read the values of those items that were listed without; one that has gone meanwhile is left out."""
        items = await self._read(item.id for item, _ in ranked if not item.complete)
        return [
            (items.get(item.id, item), score) for item, score in ranked if item.complete or item.id in items
        ]

    async def _nearest(self, op: SearchOp, vector: object, most: int) -> list[tuple[Stored, float | None]]:
        """Return the items nearest to a question, each by its nearest text; more are looked at until enough pass."""
        look_at = max(2 * most, _FIRST_LOOK)
        while True:
            rows = await self._rows(op.namespace_prefix, vector, look_at)
            items = await self._read({metadata["item"] for metadata, _ in rows})
            nearest: dict[str, tuple[Stored, float | None]] = {}
            for metadata, distance in rows:
                item = items.get(metadata["item"])
                if item is None or item.id in nearest or item.version != metadata["version"]:
                    continue
                if passes(item.value, op.filter):
                    nearest[item.id] = (item, 1.0 - distance)
            if len(nearest) >= most or len(rows) < look_at:
                return list(nearest.values())[:most]
            look_at *= 4

    async def _rows(
        self, prefix: tuple[str, ...], vector: Any, look_at: int
    ) -> list[tuple[dict[str, Any], float]]:
        async def query(collection: Any) -> list[tuple[dict[str, Any], float]]:
            result = await collection.query(
                query_embeddings=[vector],
                n_results=look_at,
                where=below(prefix),
                include=["metadatas", "distances"],
            )
            return list(zip(result["metadatas"][0], result["distances"][0], strict=True))

        assert self._index is not None
        mark = await self._index.mark()
        return await self._client.on_collection(self._vectors_name, query, absent=[], check=mark.check)

    async def _refresh(self, ops: Sequence[Op], results: Mapping[int, Any]) -> None:
        """Let those items live longer that were read and have a time to live."""
        read: dict[str, Stored] = {}
        for place, op in enumerate(ops):
            if isinstance(op, GetOp) and op.refresh_ttl and results[place] is not None:
                read[results[place].id] = results[place]
            elif isinstance(op, SearchOp) and op.refresh_ttl:
                read.update({item.id: item for item, _ in results[place]})
        now = time.time()
        ends = {item.id: now + item.ttl * _MINUTE for item in read.values() if item.ttl is not None}
        if not ends:
            return

        async def write(collection: Any) -> None:
            metadatas = [{"expires_at": round(end, 6)} for end in ends.values()]
            await collection.update(ids=list(ends), metadatas=metadatas)

        await self._client.on_collection(self._name, write, absent=None)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _texts(self, puts: dict[str, PutOp]) -> dict[str, list[str]]:
        if self._index is None:
            return {}
        return {id: self._index.texts(op.value, op.index) for id, op in puts.items() if op.value is not None}

    async def _put(self, puts: dict[str, PutOp], texts: dict[str, list[str]]) -> None:
        if not puts:
            return
        before = await self._read(puts)
        distinct = list(dict.fromkeys(text for of_item in texts.values() for text in of_item))
        embedded = (
            {} if self._index is None else dict(zip(distinct, await self._index.embed(distinct), strict=True))
        )
        vectors = {
            id: [embedded[text] for text in of_item if embedded[text] is not None]
            for id, of_item in texts.items()
        }
        written = [
            self._stored(id, op, before.get(id), indexed=bool(vectors.get(id)))
            for id, op in puts.items()
            if op.value is not None
        ]
        # The vectors first, under ids of their own: until the item names their version, the former ones count.
        await self._write_vectors(written, vectors)
        if written:
            await self._write_items(written)
        deleted = [id for id, op in puts.items() if op.value is None]
        if deleted:
            await self._delete_items(deleted)
        outdated = {id: item.version for id, item in before.items() if item.indexed}
        if outdated:
            await self._delete_vectors(list(outdated.values()))
        if self._sweep_every is not None and time.monotonic() - self._swept_at > self._sweep_every:
            await self.sweep()

    def _stored(self, id: str, op: PutOp, before: Stored | None, *, indexed: bool) -> Stored:
        assert op.value is not None
        now = self._now()
        return Stored(
            id=id,
            namespace=op.namespace,
            key=op.key,
            value=dict(op.value),
            created_at=now if before is None else before.created_at,
            updated_at=now,
            version=uuid.uuid4().hex,
            ttl=op.ttl,
            expires_at=None if op.ttl is None else round(now + op.ttl * _MINUTE, 6),
            indexed=indexed,
        )

    def _now(self) -> float:
        """Return this moment in whole microseconds, later than the one before: items are listed in the order of their puts."""
        with self._lock:
            self._last_time = max(round(time.time(), 6), round(self._last_time + 1e-6, 6))
            return self._last_time

    async def _write_items(self, items: Sequence[Stored]) -> None:
        async def write(collection: Any) -> bool:
            await collection.upsert(
                ids=[item.id for item in items],
                embeddings=[NO_VECTOR for _ in items],
                documents=[value_as_json(item.value, f"{item.key!r}") for item in items],
                metadatas=[item.metadata for item in items],
            )
            return True

        await self._on_made(self._name, write, None)

    async def _write_vectors(self, items: Sequence[Stored], vectors: dict[str, list[Any]]) -> None:
        records = [vector_records(item, vectors[item.id]) for item in items if vectors.get(item.id)]
        if not records or self._index is None:
            return
        mark = await self._index.mark()

        async def write(collection: Any) -> bool:
            columns = {
                name: [entry for record in records for entry in record[name]]
                for name in ("ids", "embeddings", "metadatas")
            }
            await collection.upsert(**columns)
            return True

        await self._on_made(self._vectors_name, write, mark)

    async def _on_made(self, name: str, work: Any, mark: EmbedderMark | None) -> None:
        """Do something with a collection, which is made where there is none."""
        check = None if mark is None else mark.check
        if await self._client.on_collection(name, work, absent=False, check=check):
            return
        await self._client.make_collection(name, None if mark is None else await mark.metadata())
        await self._client.on_collection(name, work, absent=False, check=check)

    async def _delete_items(self, ids: list[str]) -> None:
        async def delete(collection: Any) -> None:
            await collection.delete(ids=ids)

        await self._client.on_collection(self._name, delete, absent=None)

    async def _delete_vectors(self, versions: list[str]) -> None:
        async def delete(collection: Any) -> None:
            await collection.delete(where={"version": {"$in": versions}})

        await self._client.on_collection(self._vectors_name, delete, absent=None)

    async def sweep(self) -> int:
        """Delete the items whose time has passed, and return how many there were."""
        self._swept_at = time.monotonic()
        where = {"$and": [{"expires_at": {"$lte": time.time()}}, {"ttl": {"$gte": 0.0}}]}

        async def read(collection: Any) -> list[Stored]:
            found = await collection.get(where=where, include=["metadatas"])
            return [
                Stored.of(id, None, metadata)
                for id, metadata in zip(found["ids"], found["metadatas"], strict=True)
            ]

        expired = await self._client.on_collection(self._name, read, absent=list[Stored]())
        if expired:
            await self._delete_items([item.id for item in expired])
            await self._delete_vectors([item.version for item in expired])
        return len(expired)


async def _together(works: Mapping[int, Coroutine[Any, Any, Any]]) -> dict[int, Any]:
    """Do several things at the same time; when one fails, the others are ended."""
    started = {place: start(work) for place, work in works.items()}
    try:
        return {place: await one.result() for place, one in started.items()}
    finally:
        for one in started.values():
            await one.settle(cancel=True)


def _result(op: Op, result: Any) -> Any:
    """Return a result as LangGraph wants it."""
    if isinstance(op, GetOp) and result is not None:
        return Item(**result.fields())
    if isinstance(op, SearchOp):
        return [SearchItem(**item.fields(), score=score) for item, score in result]
    return result


def _fixed(path: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of a path before its first wildcard."""
    labels = tuple(path)
    return labels[: labels.index("*")] if "*" in labels else labels


def _check(op: Op) -> None:
    """Check an operation before anything is done.

    Raises:
        InvalidInputError: It is wrong.
        InvalidNamespaceError: LangGraph's, for a label that is empty or has a period.
    """
    if not isinstance(op, (GetOp, SearchOp, ListNamespacesOp, PutOp)):
        raise InvalidInputError(
            f"A store carries out LangGraph's operations, got {type(op).__name__}: {op!r}."
        )
    validate_op_namespace(op)
    if isinstance(op, PutOp) and op.value is not None:
        value_as_json(op.value, f"{op.key!r} in {op.namespace!r}")
        if op.ttl is not None and not 0 < op.ttl < float("inf"):
            raise InvalidInputError(
                f"The `ttl` of {op.key!r} must be a number of minutes above 0, got {op.ttl!r}."
            )
    if isinstance(op, SearchOp):
        check_filter(op.filter)
    if isinstance(op, (SearchOp, ListNamespacesOp)) and (op.limit < 0 or op.offset < 0):
        raise InvalidInputError(
            f"`limit` and `offset` must be at least 0, got {op.limit!r} and {op.offset!r}."
        )
