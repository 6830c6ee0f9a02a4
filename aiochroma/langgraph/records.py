"""An item as a record, and back; which items a filter lets pass, and which namespaces a condition matches.

An item is one record: its value as JSON in the document, its namespace, key and times in the metadata. A record needs a vector,
so it has one of length 1 that means nothing. The vectors of an item's texts are records of a collection of their own, one for
each text, which name the item and the version of it that they belong to: those of an older version mean nothing.

Filters and conditions follow LangGraph's own stores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from aiochroma._errors import InvalidInputError
from aiochroma._types import JsonObject, Metadata, MetadataView, Where

if TYPE_CHECKING:
    from langgraph.store.base import MatchCondition


__all__ = [
    "NO_VECTOR",
    "Stored",
    "below",
    "check_filter",
    "item_id",
    "matches_condition",
    "passes",
    "value_as_json",
    "vector_records",
]

NO_VECTOR = [1.0]

_DEPTH = "depth"


@dataclass(frozen=True)
class Stored:
    """An item as it is stored.

    Attributes:
        id: Of its record.
        namespace: Its labels.
        key: Unique in the namespace.
        value: What is remembered; empty where the item was read without.
        created_at: Seconds since 1970.
        updated_at: The same for the last refresh.
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
            tuple(json.loads(metadata["namespace"])),
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

    @property
    def metadata(self) -> Metadata:
        """What the record says about the item; None takes away what it said before."""
        return {
            **_places(self.namespace),
            "namespace": json.dumps(self.namespace),
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
        # Without a time to live, an end was set by somebody who had read the version before.
        return self.ttl is not None and self.expires_at is not None and self.expires_at <= now


def item_id(namespace: tuple[str, ...], key: str) -> str:
    """Return the id of an item's record; labels and keys may be of any length."""
    return hashlib.sha256(json.dumps([*namespace, key]).encode("utf-8", "surrogatepass")).hexdigest()


def vector_records(item: Stored, vectors: list[Any]) -> dict[str, list[Any]]:
    """Return the records of an item's vectors, as a collection's ``upsert`` takes them."""
    metadata = {**_places(item.namespace), "item": item.id, "version": item.version}
    return {
        "ids": [f"{item.version}.{number}" for number in range(len(vectors))],
        "embeddings": vectors,
        "metadatas": [dict(metadata) for _ in vectors],
    }


def below(prefix: tuple[str, ...]) -> JsonObject | None:
    """Return Chroma's filter for what lies in a namespace or below it; None for everything."""
    return {f"{_DEPTH}.{len(prefix)}": json.dumps(prefix)} if prefix else None


def _places(namespace: tuple[str, ...]) -> JsonObject:
    return {f"{_DEPTH}.{depth}": json.dumps(namespace[:depth]) for depth in range(1, len(namespace) + 1)}


def value_as_json(value: Mapping[str, Any], where: str) -> str:
    """Write a value down.

    Raises:
        InvalidInputError: There is something in it that JSON does not have.
    """
    try:
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"The value of {where} cannot be written as JSON ({error}): {str(value)[:200]}."
        ) from error
    return text


_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "$gt": lambda stored, given: stored > given,
    "$gte": lambda stored, given: stored >= given,
    "$lt": lambda stored, given: stored < given,
    "$lte": lambda stored, given: stored <= given,
}

_OPERATORS = frozenset({"$eq", "$ne", *_COMPARISONS})


def check_filter(filter: Where | None) -> None:
    """Check the operators of a filter, also where no item would be compared with them.

    Raises:
        InvalidInputError: There is one that is not known, or a comparison with something that is no number.
    """
    for key, condition in (filter or {}).items():
        _check(condition, key)


def _check(condition: object, key: str) -> None:
    if not isinstance(condition, Mapping):
        return
    for name, given in condition.items():
        if not str(name).startswith("$"):
            _check(given, f"{key}.{name}")
        elif name not in _OPERATORS:
            raise InvalidInputError(
                f"The filter on {key!r} has the operator {name!r}; there are {sorted(_OPERATORS)}."
            )
        elif name in _COMPARISONS and _number(given) is None:
            raise InvalidInputError(
                f"The filter on {key!r} compares by {name!r} with {given!r}, which is no number."
            )


def passes(value: Mapping[str, Any], filter: Where | None) -> bool:
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


def _number(value: Any) -> float | None:
    """Return what LangGraph compares: a number, or a text that is one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def matches_condition(condition: MatchCondition, namespace: Sequence[str]) -> bool:
    """Tell whether a namespace begins or ends as a condition says; ``*`` stands for any one label.

    Raises:
        InvalidInputError: The condition is neither a prefix nor a suffix.
    """
    path = condition.path
    if condition.match_type not in {"prefix", "suffix"}:
        raise InvalidInputError(
            f"A namespace can be matched by its 'prefix' or its 'suffix', got {condition.match_type!r}."
        )
    if len(namespace) < len(path):
        return False
    labels = (
        namespace[: len(path)]
        if condition.match_type == "prefix"
        else namespace[len(namespace) - len(path) :]
    )
    return all(pattern in {"*", label} for pattern, label in zip(path, labels, strict=True))
