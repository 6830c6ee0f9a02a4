"""An item as a record, and back; and which of its versions are superseded: while several puts of it are on their way, and later.

An item is one record: its value as JSON in the document; key and times in the metadata, and its namespace as the scope of a
memory (see :mod:`aiochroma.records.record`), so that one collection holds any number of namespaces and a prefix is a filter. A
record needs a vector, so it has one of length 1 that means nothing. The vectors of an item's texts are records of a collection of
their own, one for each text, which name the item and the version of it that they belong to: those of an older version mean
nothing. Another program may have written any other record beside them, which is no item and is left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, cast

import numpy as np

from aiochroma._errors import InvalidInputError, shown
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject, Metadata, MetadataView, Where
from aiochroma.backend.limits import check_storable_text, is_number
from aiochroma.memory.arguments import DEEPEST_SCOPE, checked_scope
from aiochroma.records.record import SCOPE, scope_keys, scope_parts

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable

    import chromadb
    from chromadb.api.types import GetResult
    from langgraph.store.base import PutOp

    from aiochroma.client.collection import Collection as Records
    from aiochroma.client.session import LazyClient

__all__ = [
    "ITEMS",
    "MINUTE",
    "NO_VECTOR",
    "Stored",
    "Versions",
    "check_layout",
    "item_id",
    "items_in",
    "named_by",
    "path_of",
    "too_deep",
    "value_as_json",
    "vector_metadata",
]

NO_VECTOR = np.ones(1, dtype=np.float32)

MINUTE = 60.0

ITEMS: Metadata = {"aiochroma:langgraph": "items"}
"""What a collection that a store has made for its items says of itself."""
_LOOKED_AT = 1000
"""How many records are read, in a collection without a mark, to find out whether a store wrote it."""

log: EventLogger = get_logger("aiochroma.langgraph")

_LONGEST_PUT = 3600.0
"""A put that began before, in seconds, is over, whichever process it was of."""


@dataclass(frozen=True)
class Stored:
    """An item as it is stored.

    Attributes:
        id: The id of the record that holds the item.
        namespace: The labels of the item's namespace.
        key: The item's key, unique in its namespace.
        value: What is remembered; empty where the item was read without.
        created_at: When it was first written, in seconds since 1970.
        updated_at: When it was last written or refreshed, in seconds since 1970.
        version: Different whenever it is written.
        ttl: Minutes that it lives after it was last written or read, or None.
        expires_at: When that ends, or None.
        indexed: Whether it has vectors.
        complete: Whether it was read with its value.
    """

    id: str
    namespace: tuple[str, ...]
    key: str
    value: JsonObject
    created_at: float
    updated_at: float
    version: str
    ttl: float | None
    expires_at: float | None
    indexed: bool
    complete: bool = True

    @classmethod
    def of(
        cls, id: str, document: str | None, metadata: MetadataView | None, *, complete: bool
    ) -> Stored | None:
        """Make an item of its record; None where the record is none, because another program wrote it.

        Args:
            id: The record's id.
            document: Its document, where it was read.
            metadata: Its metadata.
            complete: Whether the document was read.
        """
        said = metadata or {}
        ttl, end = said.get("ttl"), said.get("expires_at")
        try:
            key, value = json.loads(said["key"]), json.loads(document or "") if complete else {}
            item = cls(
                id,
                scope_parts(said.get(SCOPE, "")),
                key,
                value,
                said["created_at"],
                said["updated_at"],
                said["version"],
                ttl,
                end,
                said["indexed"],
                complete,
            )
            item.fields()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError, RecursionError):
            return None
        numbers = [item.created_at, item.updated_at, *(one for one in (ttl, end) if one is not None)]
        is_item = (
            isinstance(key, str)
            and isinstance(value, dict)
            and isinstance(item.version, str)
            and isinstance(item.indexed, bool)
            and all(is_number(number) and math.isfinite(number) for number in numbers)
            and "namespace" not in said
        )
        return item if is_item else None

    @classmethod
    def put(cls, id: str, op: PutOp, before: Stored | None, now: float, *, indexed: bool) -> Stored:
        """Make an item of what is put, in place of the one that was there before."""
        ttl = None if op.ttl is None else float(op.ttl)
        return cls(
            id=id,
            namespace=op.namespace,
            key=op.key,
            value=dict(op.value or {}),
            created_at=now if before is None or before.has_expired(now) else before.created_at,
            updated_at=now,
            version=uuid.uuid4().hex,
            ttl=ttl,
            expires_at=None if ttl is None else round(now + ttl * MINUTE, 6),
            indexed=indexed,
        )

    @property
    def metadata(self) -> Metadata:
        """What the record says about the item; None takes away what it said before."""
        return {
            **_scope(self.namespace),
            "key": json.dumps(self.key),
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "version": self.version,
            "ttl": self.ttl,
            "expires_at": self.expires_at,
            "indexed": self.indexed,
        }

    def fields(self) -> JsonObject:
        """Return what LangGraph's item is made of."""
        return {
            "namespace": self.namespace,
            "key": self.key,
            "value": self.value,
            "created_at": datetime.fromtimestamp(self.created_at, timezone.utc),
            "updated_at": datetime.fromtimestamp(self.updated_at, timezone.utc),
        }

    def has_expired(self, now: float) -> bool:
        """Tell whether its time has passed."""
        # Without a time to live, an end was set by a caller that had read the version before.
        return self.ttl is not None and self.expires_at is not None and self.expires_at <= now


def item_id(namespace: tuple[str, ...], key: str) -> str:
    """Return the id of an item's record; labels and keys may be of any length."""
    return hashlib.sha256(json.dumps([*namespace, key]).encode("utf-8", "surrogatepass")).hexdigest()


def items_in(found: GetResult, collection: str | None, *, complete: bool) -> list[Stored]:
    """Return the items among what was read of a collection; what is none is left out, and logged.

    Args:
        found: What was read.
        collection: The collection's name; None where nothing is logged.
        complete: Whether the documents were read.
    """
    documents: Sequence[str | None] = found["documents"] or [None] * len(found["ids"])
    rows = zip(found["ids"], documents, found["metadatas"] or (), strict=True)
    read = {id: Stored.of(id, document, said, complete=complete) for id, document, said in rows}
    odd = [id for id, item in read.items() if item is None]
    if odd and collection is not None:
        log.warning("store.left_out", collection=collection, records=len(odd), first=shown(odd[0]))
    return [item for item in read.values() if item is not None]


def named_by(metadata: MetadataView | None) -> tuple[str, str]:
    """Return the item that a vector's record names, and its version; "" where it does not say."""
    item, version = ((metadata or {}).get(name) for name in ("item", "version"))
    return item if isinstance(item, str) else "", version if isinstance(version, str) else ""


async def check_layout(collection: Records) -> None:
    """Refuse a collection whose items lie in it in another way, so that a search would pass them over.

    Single records of other programs are no reason: not in a collection that a store has made, or that has an item of one.

    Raises:
        InvalidInputError: It is such a one, or holds something else.
    """

    async def has_item(limit: int, where: Where | None) -> bool | None:
        found = await collection.get(
            limit=limit, where=cast("chromadb.Where | None", where), include=["metadatas"]
        )
        return bool(items_in(found, None, complete=False)) if found["ids"] else None

    if ITEMS.items() <= (collection.metadata or {}).items() or await has_item(1, None) is not False:
        return
    if not await has_item(_LOOKED_AT, {"indexed": {"$in": [True, False]}}):
        raise InvalidInputError(
            f"The collection {collection.name!r} was not written by this version of the store: its records are laid out "
            "differently. Give the store another `collection_name`, and put the items again; or delete the collection."
        )


def vector_metadata(item: Stored) -> Metadata:
    """Return what the record of a vector of an item says."""
    return {**_scope(item.namespace), "item": item.id, "version": item.version, "made": item.updated_at}


def path_of(namespace: Sequence[str]) -> str:
    """Return the path of the scope that a namespace is; empty for the empty one.

    Raises:
        InvalidInputError: There are more labels than a scope can have, or a label that Chroma cannot store.
    """
    return checked_scope(tuple(namespace), "The namespace") if namespace else ""


def too_deep(prefix: Sequence[str]) -> bool:
    """Tell whether no namespace can have this prefix, because it has more labels than a scope."""
    return len(prefix) > DEEPEST_SCOPE


def _scope(namespace: Sequence[str]) -> dict[str, str]:
    return scope_keys(path_of(namespace)) if namespace else {}


def value_as_json(value: Mapping[str, object], where: str) -> str:
    """Write a value down.

    Raises:
        InvalidInputError: There is something in it that JSON does not have, or it is longer than a record may be.
    """
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"The value of {where} must be a mapping, got {shown(value)}.")
    try:
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"The value of {where} cannot be written as JSON ({error}): {shown(value)}."
        ) from error
    check_storable_text(text, f"The value of {where}")
    return text


class _OnTheirWay:
    """What is known of the puts of one item, as long as there is one."""

    def __init__(self) -> None:
        self.puts: int = 0
        self.several: bool = False
        self.versions: set[str] = set()


class Versions:
    """The versions of items that puts have written or found, until no put of the item is on its way any more.

    Of puts of one key at the same time, each finds the same former version, and the last to write the item wins. Which one that
    is only the item itself says; the vectors of all others can go. Those of a put that has not written its item yet are not
    known here, so nothing takes them away. What a put has done that failed in between only the item says, too: the next put,
    of whatever key, asks it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: dict[str, _OnTheirWay] = {}
        self._left: dict[str, set[str]] = {}
        self._last_time = 0.0
        self._complete_until = 0.0

    def now(self) -> float:
        """Return this moment in whole microseconds, later than the one before: items are listed in the order of their puts."""
        with self._lock:
            self._last_time = max(round(time.time(), 6), round(self._last_time + 1e-6, 6))
            return self._last_time

    @contextmanager
    def putting(self, ids: Collection[str]) -> Generator[None]:
        """Count puts of these items as on their way."""
        with self._lock:
            for id in ids:
                item = self._items.setdefault(id, _OnTheirWay())
                item.several = item.several or item.puts > 0
                item.puts += 1
        try:
            yield
        finally:
            with self._lock:
                for id in ids:
                    self._items[id].puts -= 1
                    if not self._items[id].puts:
                        del self._items[id]

    def written(self, versions: Mapping[str, Iterable[str]]) -> tuple[set[str], set[str]]:
        """Note versions of items that were written or found, for each item whose put is on its way.

        Returns:
            All versions known of these items and of those that failed puts have left, and the ids of the items that have to be
            asked which of them is theirs: more than one put was on its way to them, or one has failed.
        """
        with self._lock:
            items = {id: self._items[id] for id in versions}
            for id, item in items.items():
                item.versions.update(versions[id])
            known = {version for item in items.values() for version in item.versions}
            known.update(*self._left.values())
            return known, {id for id, item in items.items() if item.several} | set(self._left)

    def leave(self, versions: Iterable[tuple[str, str]]) -> None:
        """Note versions, each behind the id of its item, of a put that failed: which of them is the item's is not known."""
        with self._lock:
            for id, version in versions:
                self._left.setdefault(id, set()).add(version)

    def settle(self, versions: Collection[str]) -> None:
        """Forget versions that failed puts have left: they are gone, or those of their items."""
        with self._lock:
            for left in self._left.values():
                left.difference_update(versions)
            self._left = {id: left for id, left in self._left.items() if left}

    async def abandoned(self, client: LazyClient, items: str, vectors: str) -> list[str]:
        """Return the versions that have vectors and that no item names: whoever wrote or deleted the item has died.

        What was looked at the last time is not looked at again.

        Args:
            client: Of the database.
            items: The collection of the items.
            vectors: The collection of their vectors.
        """
        after, until = self._complete_until, time.time() - _LONGEST_PUT

        async def made(collection: Records) -> dict[str, str]:
            where = {"$and": [{"made": {"$gte": after}}, {"made": {"$lte": until}}]}
            found = await collection.get(where=cast("chromadb.Where", where), include=["metadatas"])
            named = [named_by(said) for said in found["metadatas"] or ()]
            return {version: item for item, version in named if item and version}

        async def named(collection: Records) -> set[str]:
            found = await collection.get(sorted(set(versions.values())), include=["metadatas"])
            return {named_by(said)[1] for said in found["metadatas"] or ()}

        versions = await client.on_collection(vectors, made, absent=dict[str, str]())
        self._complete_until = until
        if not versions:
            return []
        return sorted(versions.keys() - await client.on_collection(items, named, absent=set[str]()))
