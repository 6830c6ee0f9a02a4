"""An item as a record, and back; which items a filter lets pass, which namespaces a condition matches, what is embedded.

An item is one record: its value as JSON in the document; key and times in the metadata, and its namespace as the scope of a
memory (see :mod:`aiochroma.records.record`), so that one collection holds any number of namespaces and a prefix is a filter. A
record needs a vector, so it has one of length 1 that means nothing. The vectors of an item's texts are records of a collection of
their own, one for each text, which name the item and the version of it that they belong to: those of an older version mean
nothing.

Filters and conditions follow LangGraph's own stores.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
from langgraph.store.base import (
    GetOp,
    ListNamespacesOp,
    PutOp,
    SearchOp,
    ensure_embeddings,
    get_text_at_path,
    tokenize_path,
    validate_op_namespace,
)

from aiochroma._errors import EmbeddingFailedError, InvalidInputError, shown
from aiochroma._types import JsonObject, Metadata, MetadataView, Vector, Where
from aiochroma._waiting import off_loop
from aiochroma.backend.limits import check_storable_text, is_number
from aiochroma.embedding.choice import adapted, default_embedder
from aiochroma.langchain.adapters import AiochromaEmbeddings, EmbedderMark, embed_documents, embed_query
from aiochroma.memory.arguments import DEEPEST_SCOPE, checked_scope
from aiochroma.records.record import SCOPE, scope_keys, scope_parts

if TYPE_CHECKING:
    from langgraph.store.base import Embeddings, IndexConfig, MatchCondition, Op

    from aiochroma.client.collection import Collection

__all__ = [
    "MINUTE",
    "NO_VECTOR",
    "IndexedFields",
    "Stored",
    "check",
    "check_layout",
    "fixed_prefix",
    "item_id",
    "matches_condition",
    "passes",
    "path_of",
    "too_deep",
    "value_as_json",
    "vector_metadata",
]

NO_VECTOR = np.ones(1, dtype=np.float32)

MINUTE = 60.0
_LONGEST_TTL = 1e300
"""In minutes; beyond it the end is no number."""

# Not the keys of a memory's namespace: these vectors have no texts.
_IDENTITY = "aiochroma:langgraph_embedder"
_FINGERPRINT = "aiochroma:langgraph_embedder_fingerprint"


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
    def of(cls, id: str, document: str | None, metadata: MetadataView) -> Stored:
        """Make an item of its record."""
        return cls(
            id,
            scope_parts(metadata.get(SCOPE, "")),
            json.loads(metadata["key"]),
            {} if document is None else json.loads(document),
            metadata["created_at"],
            metadata["updated_at"],
            metadata["version"],
            metadata.get("ttl"),
            metadata.get("expires_at"),
            bool(metadata["indexed"]),
            document is not None,
        )

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


async def check_layout(collection: Collection) -> None:
    """Refuse a collection whose items lie in it in another way, so that a search would pass them over.

    Raises:
        InvalidInputError: It is such a one, or holds something else.
    """
    found = await collection.get(limit=1, include=["metadatas"])
    for metadata in found["metadatas"] or ():
        if "version" not in (metadata or {}) or "namespace" in metadata:
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


_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "$gt": lambda stored, given: stored > given,
    "$gte": lambda stored, given: stored >= given,
    "$lt": lambda stored, given: stored < given,
    "$lte": lambda stored, given: stored <= given,
}

_OPERATORS = frozenset({"$eq", "$ne", *_COMPARISONS})


def _check_filter(filter: Where | None) -> None:
    """Check the operators of a filter, also where no item would be compared with them.

    Raises:
        InvalidInputError: There is one that is not known, or a comparison with something that is no number.
    """
    if not isinstance(filter, Mapping | None):
        raise InvalidInputError(f"`filter` must be a mapping or None, got {shown(filter)}.")
    for key, condition in (filter or {}).items():
        _check_condition(condition, key)


def _check_condition(condition: object, key: str) -> None:
    if not isinstance(condition, Mapping):
        return
    for name, given in condition.items():
        if not str(name).startswith("$"):
            _check_condition(given, f"{key}.{name}")
        elif name not in _OPERATORS:
            raise InvalidInputError(
                f"The filter on {key!r} has the operator {name!r}; there are {sorted(_OPERATORS)}."
            )
        elif name in _COMPARISONS and _number(given) is None:
            raise InvalidInputError(
                f"The filter on {key!r} compares by {name!r} with {given!r}, which is no number."
            )


def passes(value: Mapping[str, object], filter: Where | None) -> bool:
    """Tell whether a value passes a filter: every key of the filter must match."""
    return all(_matches(value.get(key), condition) for key, condition in (filter or {}).items())


def _matches(stored: object, condition: object) -> bool:
    if isinstance(condition, Mapping):
        if any(str(name).startswith("$") for name in condition):
            return all(_compare(stored, name, given) for name, given in condition.items())
        return isinstance(stored, Mapping) and all(
            _matches(stored.get(name), given) for name, given in condition.items()
        )
    if isinstance(condition, (list, tuple)):
        return (
            isinstance(stored, (list, tuple))
            and len(stored) == len(condition)
            and all(map(_matches, stored, condition))
        )
    return bool(stored == condition)


def _compare(stored: object, operator: str, given: object) -> bool:
    if operator == "$eq":
        return bool(stored == given)
    if operator == "$ne":
        return bool(stored != given)
    number, limit = _number(stored), _number(given)
    return number is not None and limit is not None and _COMPARISONS[operator](number, limit)


def _number(value: object) -> float | None:
    """Return what LangGraph compares: a number, or a text that is one."""
    if not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def fixed_prefix(conditions: Iterable[MatchCondition]) -> tuple[str, ...]:
    """Return the labels that every matching namespace begins with, as far as a single condition says them."""
    prefixes = [tuple(one.path) for one in conditions if one.match_type == "prefix"]
    fixed = [path[: path.index("*")] if "*" in path else path for path in prefixes]
    return max(fixed, key=len, default=())


def matches_condition(condition: MatchCondition, namespace: Sequence[str]) -> bool:
    """Tell whether a namespace begins or ends as a condition says; ``*`` stands for any one label.

    Raises:
        InvalidInputError: The condition is neither a prefix nor a suffix.
    """
    path = condition.path
    if condition.match_type not in {"prefix", "suffix"}:
        raise InvalidInputError(
            f"A namespace can be matched by its 'prefix' or its 'suffix', got {shown(condition.match_type)}."
        )
    if len(namespace) < len(path):
        return False
    start = 0 if condition.match_type == "prefix" else len(namespace) - len(path)
    labels = namespace[start : start + len(path)]
    return all(pattern in {"*", label} for pattern, label in zip(path, labels, strict=True))


def check(op: Op) -> None:
    """Check an operation before anything is done.

    Raises:
        InvalidInputError: It is wrong, or its namespace cannot be a scope.
        InvalidNamespaceError: LangGraph's, for a label that is empty or has a period.
    """
    if not isinstance(op, (GetOp, SearchOp, ListNamespacesOp, PutOp)):
        raise InvalidInputError(
            f"A store carries out LangGraph's operations, got {type(op).__name__}: {shown(op)}."
        )
    namespace = getattr(op, "namespace_prefix", getattr(op, "namespace", None))
    if isinstance(namespace, str):
        raise InvalidInputError(f"A namespace must be a tuple of labels, got {shown(namespace)}.")
    validate_op_namespace(op)
    if isinstance(op, (GetOp, PutOp)):
        path_of(op.namespace)
    if isinstance(op, PutOp) and op.value is not None:
        _check_put(op)
    if isinstance(op, (SearchOp, ListNamespacesOp)):
        _check_search(op)


def _check_search(op: SearchOp | ListNamespacesOp) -> None:
    if isinstance(op, SearchOp):
        path_of(op.namespace_prefix[:DEEPEST_SCOPE])
        _check_filter(op.filter)
    for name, number in (("limit", op.limit), ("offset", op.offset)):
        if not isinstance(number, SupportsIndex) or number < 0:
            raise InvalidInputError(f"`{name}` must be a whole number of at least 0, got {shown(number)}.")


def _check_put(op: PutOp) -> None:
    value_as_json(op.value or {}, f"{shown(op.key)} in {op.namespace!r}")
    ttl: object = op.ttl
    if ttl is not None and not (is_number(ttl) and 0 < ttl < _LONGEST_TTL):
        raise InvalidInputError(
            f"The `ttl` of {op.key!r} must be a number of minutes above 0, got {shown(ttl)}."
        )
    if op.index is not None and not isinstance(op.index, bool):
        _tokenized(op.index)


class IndexedFields:
    """What a store's ``index`` says.

    Args:
        index: LangGraph's configuration.
    """

    def __init__(self, index: IndexConfig) -> None:
        self._dimensions = index.get("dims")
        self._fields = _tokenized(index.get("fields") or ["$"])
        self._given = index.get("embed")
        self._embeddings: Embeddings | None = None
        self._mark: EmbedderMark | None = None

    async def mark(self) -> EmbedderMark:
        """Return what is written down of the embedder with its vectors."""
        if self._mark is None:
            embeddings = await self._loaded()
            if isinstance(self._given, str):
                identity = f"langchain:{self._given}"
            else:
                identity = adapted(embeddings if self._given is None else self._given).identity
            self._mark = EmbedderMark(
                embeddings, identity, identity_key=_IDENTITY, fingerprint_key=_FINGERPRINT
            )
        return self._mark

    def texts(self, value: Mapping[str, object], index: bool | Sequence[str] | None) -> list[str]:
        """Return the texts to embed of a value.

        Args:
            value: The value.
            index: What the put says: its own fields, False for none of them, None for the store's.
        """
        if index is False:
            return []
        fields = self._fields if index is None or index is True else _tokenized(index)
        return [text for field in fields for text in get_text_at_path(dict(value), field) if text.strip()]

    async def embed(self, texts: list[str]) -> list[Vector | None]:
        """Return a vector for each text, None where the embedder finds nothing in it."""
        if not texts:
            return []
        rows = await embed_documents(await self._loaded(), texts)
        return [self._checked(row) for row in rows]

    async def embed_queries(self, queries: Sequence[str]) -> dict[str, Vector | None]:
        """Return the vector of each question, None where the embedder finds nothing in it."""
        return {
            query: self._checked(await embed_query(await self._loaded(), query))
            for query in dict.fromkeys(queries)
        }

    async def _loaded(self) -> Embeddings:
        if self._embeddings is None and self._given is None:
            self._embeddings = AiochromaEmbeddings(await off_loop(default_embedder))
        self._embeddings = self._embeddings or ensure_embeddings(self._given)
        return self._embeddings

    def _checked(self, row: object) -> Vector | None:
        vector = np.asarray(row, dtype=np.float32)
        if self._dimensions is not None and vector.shape != (self._dimensions,):
            raise EmbeddingFailedError(
                f"The embedder returned a vector of shape {vector.shape}, and the store's index says {self._dimensions} `dims`."
            )
        length = float(vector @ vector)
        return vector if 0 < length < float("inf") else None


def _tokenized(fields: Sequence[str]) -> list[str | list[str]]:
    if isinstance(fields, str) or not all(isinstance(field, str) for field in fields):
        raise InvalidInputError(f"What is embedded must be a list of paths in a value, got {shown(fields)}.")
    return ["$" if field == "$" else tokenize_path(field) for field in fields]
