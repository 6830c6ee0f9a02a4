"""LangGraph's ``BaseStore`` on a database: asynchronous and blocking on the same object."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import numpy as np
from langgraph.store.base import BaseStore, GetOp, Item, ListNamespacesOp, PutOp, SearchItem, SearchOp

from aiochroma._clock import monotonic
from aiochroma._waiting import drive, together
from aiochroma.client.options import check_name
from aiochroma.client.session import LazyClient, Shared
from aiochroma.langchain.adapters import listed
from aiochroma.langgraph.items import (
    IndexedFields,
    check,
    check_ttl,
    fixed_prefix,
    matching_namespaces,
    passes,
)
from aiochroma.langgraph.stored import (
    ITEMS,
    MINUTE,
    NO_VECTOR,
    Stored,
    Versions,
    check_layout,
    item_id,
    items_in,
    named_by,
    path_of,
    too_deep,
    value_as_json,
    vector_metadata,
)
from aiochroma.records.record import scope_filter

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    import chromadb
    from chromadb.api.types import Include
    from langgraph.store.base import IndexConfig, Op, Result, TTLConfig
    from typing_extensions import Self

    from aiochroma._types import Metadata, Vector, Where
    from aiochroma.client.collection import Collection
    from aiochroma.langchain.adapters import EmbedderMark

__all__ = ["AiochromaStore"]

_Ranked = list[tuple[Stored, float | None]]
"""Items, each with its score; None where an item was not found by its meaning."""
_FIRST_LOOK = 16
"""At least this many vectors are looked at first; one item may have several, and a filter may drop any."""
_LAST_LOOK = 2**31 - 1
"""More than any collection has; Chroma takes no larger number."""


class AiochromaStore(Shared, BaseStore):
    """A store for what graphs remember across threads: values under keys, in hierarchical namespaces, found by meaning.

    The asynchronous methods and the blocking ones work on the same database thread and may be mixed. Values are whatever JSON
    has. All namespaces are in one collection, as scopes, so thousands of them are cheap. Behaviour is that of LangGraph's own
    stores, except that

    * a namespace has at most eight labels, and no label holds half a character (a lone surrogate);
    * a value has at most a million bytes as JSON;
    * an item that is put again keeps its ``created_at``, and nothing of its former value is found any more;
    * a namespace without items is not listed;
    * without a query, and where an item has no vector, the items that were put last come first;
    * items whose time has passed are never returned;
    * a comparison with a value that is missing or no number lets nothing pass, instead of failing.

    Operations of one batch: reading sees the state before the batch; of several puts of one key the last one counts.

    Args:
        path: The database's directory; None for the database in memory that all ephemeral clients of the process share.
        index: What is embedded, and by what: LangGraph's ``fields`` (default ``["$"]``, the whole value), ``embed`` (default: the
            offline embedder of :class:`aiochroma.Memory`) and ``dims`` (default: the embedder's). None: nothing is embedded,
            and ``search`` ignores its query.
        ttl: LangGraph's configuration, in minutes: ``default_ttl``, ``refresh_on_read`` and ``sweep_interval_minutes``, which
            lets a write sweep when the last one is so long ago. Without it only :meth:`sweep` deletes.
        collection_name: The collection of the items; its name with ``.vectors`` is that of the vectors.
        client: A client to use in place of one of its own, asynchronous or blocking, of a directory or of a server; it stays
            open.

    Example:
        >>> store = AiochromaStore("./memory", index={"fields": ["text"]})  # doctest: +SKIP
        >>> await store.aput(("users", "ada"), "cat", {"text": "Her cat is called Kestrel."})  # doctest: +SKIP
        >>> await store.asearch(("users",), query="pets")  # doctest: +SKIP
    """

    supports_ttl = True

    def __init__(
        self,
        path: str | os.PathLike[str] | None = "./memory",
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        collection_name: str = "langgraph",
        client: object = None,
    ) -> None:
        check_ttl(ttl)
        check_name("collection_name", collection_name)
        self.ttl_config = ttl
        self._client = LazyClient(path, client)
        self._items = _Items(self._client, collection_name, index, ttl)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out several operations.

        Returns:
            The result of each, in order.

        Raises:
            InvalidInputError: An operation is wrong, or its namespace cannot be a scope; nothing was done.
            InvalidNamespaceError: LangGraph's, for a label that is empty or has a period.
            AiochromaError: See the error tree.
        """
        return drive(self._items.batch(ops))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Do the same as :meth:`batch`."""
        return await self._items.batch(ops)

    def sweep(self) -> int:
        """Delete the items whose time has passed, and what a put has left that died on its way, after an hour.

        Returns:
            How many items there were.
        """
        return drive(self._items.sweep())

    async def asweep(self) -> int:
        """Do the same as :meth:`sweep`."""
        return await self._items.sweep()

    def close(self) -> None:
        """Close the store's own clients and wait until the database's thread has ended; a later call opens them again."""
        drive(self._client.close())

    async def aclose(self) -> None:
        """Do the same as :meth:`close`."""
        await self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class _Items:
    """The items and their vectors, in two collections: what the store does, as coroutines for either way to wait."""

    def __init__(
        self, client: LazyClient, name: str, index: IndexConfig | None, ttl: TTLConfig | None
    ) -> None:
        self._client = client
        self._name = name
        self._vectors_name = f"{name}.vectors"
        self._index = None if index is None else IndexedFields(index)
        self._sweep_minutes = (ttl or {}).get("sweep_interval_minutes")
        self._swept_at = monotonic()
        self._versions = Versions()

    async def batch(self, given: Iterable[Op]) -> list[Result]:
        """Carry out operations: those that read, then those that write."""
        ops = listed(given, "`ops`")
        puts: dict[str, PutOp] = {}
        for op in ops:
            check(op)
            if isinstance(op, PutOp):
                # The last one counts, also for the order.
                id = item_id(op.namespace, op.key)
                puts.pop(id, None)
                puts[id] = op
        texts = self._texts(puts)
        vectors: dict[str, Vector | None] = {}
        if self._index is not None:
            queries = [op.query for op in ops if isinstance(op, SearchOp) and op.query]
            vectors = await self._index.embed_queries(queries)
        found = await self._read({item_id(op.namespace, op.key) for op in ops if isinstance(op, GetOp)})
        ranked = await together(
            {
                position: self._search(op, vectors.get(op.query or ""))
                for position, op in enumerate(ops)
                if isinstance(op, SearchOp)
            }
        )
        results: list[Result] = []
        read: list[Stored] = []
        for position, op in enumerate(ops):
            if isinstance(op, GetOp):
                item = found.get(item_id(op.namespace, op.key))
                read += [item] if item is not None and op.refresh_ttl else []
                results.append(None if item is None else Item(**item.fields()))
            elif isinstance(op, SearchOp):
                read += [item for item, _ in ranked[position]] if op.refresh_ttl else []
                results.append([SearchItem(**item.fields(), score=score) for item, score in ranked[position]])
            else:
                results.append(await self._namespaces(op) if isinstance(op, ListNamespacesOp) else None)
        await self._refresh(read)
        await self._put(puts, texts)
        return results

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _read(self, ids: Iterable[str]) -> dict[str, Stored]:
        ordered = sorted(ids)
        return {item.id: item for item in await self._get(ids=ordered)} if ordered else {}

    async def _get(
        self,
        ids: list[str] | None = None,
        where: Where | None = None,
        *,
        values: bool = True,
        expired: bool | None = False,
    ) -> list[Stored]:
        """Return the items that have not expired, those that have, or (None) both; with values where these are asked for."""
        include: Include = ["documents", "metadatas"] if values else ["metadatas"]

        async def read(collection: Collection) -> list[Stored]:
            found = await collection.get(ids, cast("chromadb.Where | None", where), include=include)
            return items_in(found, self._name, complete=values)

        items = await self._client.on_collection(self._name, read, absent=list[Stored](), check=check_layout)
        now = time.time()
        return [item for item in items if expired is None or item.has_expired(now) is expired]

    async def _namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        prefix = fixed_prefix(op.match_conditions or ())
        if too_deep(prefix):
            return []
        items = await self._get(values=False, where=scope_filter(path_of(prefix)))
        return matching_namespaces(op, {item.namespace for item in items})

    async def _search(self, op: SearchOp, vector: Vector | None) -> _Ranked:
        most = op.offset + op.limit
        if too_deep(op.namespace_prefix):
            return []
        where = scope_filter(path_of(op.namespace_prefix))
        ranked: _Ranked = []
        if vector is not None:
            ranked += await self._nearest(op, vector, most)
            where = {"indexed": False} if where is None else {"$and": [where, {"indexed": False}]}
        if len(ranked) < most:
            others = await self._get(values=bool(op.filter), where=where)
            others = [item for item in others if passes(item.value, op.filter)]
            others.sort(key=lambda item: item.updated_at, reverse=True)
            ranked += [(item, None) for item in others]
        return await self._with_values(ranked[op.offset : most])

    async def _with_values(self, ranked: _Ranked) -> _Ranked:
        """Read the values of those items that were listed without; one that has gone meanwhile is left out."""
        items = await self._read(item.id for item, _ in ranked if not item.complete)
        return [
            (items.get(item.id, item), score) for item, score in ranked if item.complete or item.id in items
        ]

    async def _nearest(self, op: SearchOp, vector: Vector, most: int) -> _Ranked:
        """Return the items nearest to a question, each by its nearest text; more are looked at until enough pass."""
        look_at = min(max(2 * most, _FIRST_LOOK), _LAST_LOOK)
        while True:
            rows = await self._rows(op.namespace_prefix, vector, look_at)
            items = await self._read({id for id, _, _ in rows if id})
            nearest: dict[str, tuple[Stored, float | None]] = {}
            for id, version, distance in rows:
                item = items.get(id)
                if item is None or item.id in nearest or item.version != version:
                    continue
                if passes(item.value, op.filter):
                    nearest[item.id] = (item, min(1.0 - distance, 1.0))
            if len(nearest) >= most or len(rows) < look_at:
                return list(nearest.values())[:most]
            look_at = min(4 * look_at, _LAST_LOOK)

    async def _rows(
        self, prefix: tuple[str, ...], vector: Vector, look_at: int
    ) -> list[tuple[str, str, float]]:
        """Return whose the nearest vectors are, an item's id and its version, with their distances; "" where they do not say."""

        async def query(collection: Collection) -> list[tuple[str, str, float]]:
            result = await collection.query(
                vector[np.newaxis],
                n_results=look_at,
                where=cast("chromadb.Where | None", scope_filter(path_of(prefix))),
                include=["metadatas", "distances"],
            )
            rows = zip((result["metadatas"] or [[]])[0], (result["distances"] or [[]])[0], strict=True)
            return [(*named_by(said), distance) for said, distance in rows]

        assert self._index is not None
        mark = await self._index.mark()
        return await self._client.on_collection(self._vectors_name, query, absent=[], check=mark.check)

    async def _refresh(self, read: Iterable[Stored]) -> None:
        """Let those items that were read and have a time to live live longer."""
        now = time.time()
        ends = {item.id: now + item.ttl * MINUTE for item in read if item.ttl is not None}
        if not ends:
            return

        async def write(collection: Collection) -> None:
            metadatas: list[chromadb.Metadata] = [{"expires_at": round(end, 6)} for end in ends.values()]
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
        with self._versions.putting(puts):
            await self._put_counted(puts, texts)
        minutes = self._sweep_minutes
        if minutes is not None and monotonic() - self._swept_at > minutes * MINUTE:
            await self.sweep()

    async def _put_counted(self, puts: dict[str, PutOp], texts: dict[str, list[str]]) -> None:
        before = {item.id: item for item in await self._get(sorted(puts), values=False, expired=None)}
        distinct = list(dict.fromkeys(text for of_item in texts.values() for text in of_item))
        rows = [] if self._index is None else await self._index.embed(distinct)
        embedded = {text: row for text, row in zip(distinct, rows, strict=False) if row is not None}
        vectors = {
            id: [embedded[text] for text in of_item if text in embedded] for id, of_item in texts.items()
        }
        written = [
            Stored.put(id, op, before.get(id), self._versions.now(), indexed=bool(vectors.get(id)))
            for id, op in puts.items()
            if op.value is not None
        ]
        indexed = [item for item in (*before.values(), *written) if item.indexed]
        try:
            # The vectors first, under ids of their own: until the item names their version, the former ones count.
            await self._write_vectors(written, vectors)
            await self._write_items(written)
            await self._delete([id for id, op in puts.items() if op.value is None], [])
        except BaseException:
            self._versions.leave((item.id, item.version) for item in indexed)
            raise
        known, contended = self._versions.written(
            {id: [item.version for item in indexed if item.id == id] for id in puts}
        )
        current = [item for item in written if item.id not in contended]
        if contended:
            current += await self._get(sorted(contended), values=False, expired=None)
        await self._delete([], sorted(known - {item.version for item in current}))
        self._versions.settle(known)

    async def _write_items(self, items: Sequence[Stored]) -> None:
        if items:
            await self._upsert(
                self._name,
                [item.id for item in items],
                [NO_VECTOR for _ in items],
                [item.metadata for item in items],
                [value_as_json(item.value, f"{item.key!r}") for item in items],
            )

    async def _write_vectors(self, items: Sequence[Stored], vectors: Mapping[str, list[Vector]]) -> None:
        rows = [(item, *row) for item in items for row in enumerate(vectors.get(item.id, ()))]
        if not rows or self._index is None:
            return
        await self._upsert(
            self._vectors_name,
            [f"{item.version}.{number}" for item, number, _ in rows],
            [vector for _, _, vector in rows],
            [vector_metadata(item) for item, _, _ in rows],
            None,
            await self._index.mark(),
        )

    async def _upsert(
        self,
        name: str,
        ids: list[str],
        vectors: list[Vector],
        metadatas: list[Metadata],
        documents: list[str] | None,
        mark: EmbedderMark | None = None,
    ) -> None:
        """Write records to a collection, which is made where there is none."""

        async def write(collection: Collection) -> bool:
            described = cast("list[chromadb.Metadata]", metadatas)
            await collection.upsert(ids, np.stack(vectors), described, documents)
            return True

        check = None if mark is None else mark.check
        if not await self._client.on_collection(name, write, absent=False, check=check):
            await self._client.make_collection(name, ITEMS if mark is None else await mark.metadata())
            await self._client.on_collection(name, write, absent=False, check=check)

    async def _delete(self, ids: list[str], versions: list[str]) -> None:
        """Delete items by their ids, and vectors by the versions of their items."""

        async def items(collection: Collection) -> None:
            await collection.delete(ids=ids)

        async def vectors(collection: Collection) -> None:
            await collection.delete(where=cast("chromadb.Where", {"version": {"$in": versions}}))

        if ids:
            await self._client.on_collection(self._name, items, absent=None)
        if versions:
            await self._client.on_collection(self._vectors_name, vectors, absent=None)

    async def sweep(self) -> int:
        """Delete the items whose time has passed, and return how many there were; and what puts that died have left."""
        self._swept_at = monotonic()
        left = await self._versions.abandoned(self._client, self._name, self._vectors_name)
        await self._delete([], left)
        where = {"$and": [{"expires_at": {"$lte": time.time()}}, {"ttl": {"$gte": 0.0}}]}
        expired = {item.id: item for item in await self._get(where=where, values=False, expired=True)}
        if not expired:
            return 0

        async def remove(collection: Collection) -> None:
            # The condition again: what was put or read meanwhile lives.
            await collection.delete(ids=list(expired), where=cast("chromadb.Where", where))

        await self._client.on_collection(self._name, remove, absent=None)
        there = {one.id: one.version for one in await self._get(sorted(expired), values=False, expired=None)}
        await self._delete([], sorted({item.version for item in expired.values()} - set(there.values())))
        return len(expired.keys() - there.keys())
