"""What is asked of a store: which items a filter lets pass, which namespaces a condition matches, what is embedded.

Filters and conditions follow LangGraph's own stores.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
from langchain_core.embeddings import Embeddings
from langgraph.store.base import (
    GetOp,
    IndexConfig,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
    TTLConfig,
    ensure_embeddings,
    get_text_at_path,
    tokenize_path,
    validate_op_namespace,
)

from aiochroma._errors import EmbeddingFailedError, InvalidInputError, shown
from aiochroma._types import JsonObject, Vector, Where
from aiochroma._waiting import off_loop
from aiochroma.backend.limits import is_number
from aiochroma.client.options import check_flag
from aiochroma.embedding.choice import adapted, default_embedder
from aiochroma.langchain.adapters import (
    AiochromaEmbeddings,
    EmbedderMark,
    embed_documents,
    embed_query,
    listed,
)
from aiochroma.langgraph.stored import path_of, value_as_json
from aiochroma.memory.arguments import DEEPEST_SCOPE, check_k

if TYPE_CHECKING:
    from langgraph.store.base import Op

__all__ = [
    "IndexedFields",
    "check",
    "check_ttl",
    "fixed_prefix",
    "matching_namespaces",
    "passes",
]

_LONGEST_TTL = 1e300
"""In minutes; beyond it the end is no number."""

# Not the keys of a memory's namespace: these vectors have no texts.
_IDENTITY = "aiochroma:langgraph_embedder"
_FINGERPRINT = "aiochroma:langgraph_embedder_fingerprint"


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
    try:
        for key, condition in (filter or {}).items():
            _check_condition(condition, key)
    except RecursionError:
        raise InvalidInputError(f"`filter` is nested too deeply: {shown(filter)}.") from None


def _check_condition(condition: object, key: str) -> None:
    if isinstance(condition, (list, tuple)):
        for position, one in enumerate(condition):
            _check_condition(one, f"{key}[{position}]")
    if not isinstance(condition, Mapping):
        return
    for name, given in condition.items():
        if not str(name).startswith("$"):
            _check_condition(given, f"{key}.{name}")
        elif name not in _OPERATORS:
            raise InvalidInputError(
                f"The filter on {shown(key)} has the operator {shown(name)}; there are {sorted(_OPERATORS)}."
            )
        elif name in _COMPARISONS and _number(given) is None:
            raise InvalidInputError(
                f"The filter on {shown(key)} compares by {name!r} with {shown(given)}, which is no number."
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
    return _equal(stored, condition)


def _compare(stored: object, operator: str, given: object) -> bool:
    if operator == "$eq":
        return _equal(stored, given)
    if operator == "$ne":
        return not _equal(stored, given)
    number, limit = _number(stored), _number(given)
    return number is not None and limit is not None and _COMPARISONS[operator](number, limit)


def _equal(stored: object, given: object) -> bool:
    """Compare what was stored with anything; what compares to no truth, as an array does, equals nothing that is JSON."""
    try:
        return bool(stored == given)
    except ValueError:
        return False


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


def matching_namespaces(op: ListNamespacesOp, namespaces: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return what an operation lists of these namespaces."""
    conditions = op.match_conditions or ()
    matching = {
        namespace[: op.max_depth]
        for namespace in namespaces
        if all(_matches_condition(condition, namespace) for condition in conditions)
    }
    return sorted(matching)[op.offset : op.offset + op.limit]


def _matches_condition(condition: MatchCondition, namespace: Sequence[str]) -> bool:
    """Tell whether a namespace begins or ends as a condition says; ``*`` stands for any one label.

    Raises:
        InvalidInputError: The condition is neither a prefix nor a suffix.
    """
    path = condition.path
    if condition.match_type not in ("prefix", "suffix"):
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
    for labels in _namespaces_in(op):
        if not isinstance(labels, (tuple, list)):
            raise InvalidInputError(f"A namespace must be a tuple of labels, got {shown(labels)}.")
    validate_op_namespace(op)
    if isinstance(op, (GetOp, PutOp)):
        path_of(op.namespace)
        if not isinstance(op.key, str):
            raise InvalidInputError(f"A key must be a string, got {shown(op.key)}.")
    if isinstance(op, PutOp) and op.value is not None:
        _check_put(op)
    if isinstance(op, (SearchOp, ListNamespacesOp)):
        _check_search(op)


def _namespaces_in(op: Op) -> list[object]:
    """Return the namespaces, prefixes and suffixes that an operation names, whatever they are."""
    if not isinstance(op, ListNamespacesOp):
        return [getattr(op, "namespace_prefix", getattr(op, "namespace", None))]
    conditions: list[object] = [*listed(op.match_conditions or (), "`match_conditions`")]
    for one in conditions:
        if not isinstance(one, MatchCondition):
            raise InvalidInputError(
                f"Namespaces are matched by LangGraph's `MatchCondition`s, got {shown(one)}."
            )
    return [one.path for one in op.match_conditions or ()]


def _check_search(op: SearchOp | ListNamespacesOp) -> None:
    numbers: dict[str, object] = {"limit": op.limit, "offset": op.offset}
    if isinstance(op, SearchOp):
        path_of(op.namespace_prefix[:DEEPEST_SCOPE])
        _check_filter(op.filter)
        if not isinstance(op.query, str | None):
            raise InvalidInputError(f"`query` must be a string or None, got {shown(op.query)}.")
    else:
        for condition in op.match_conditions or ():
            _matches_condition(condition, ())
        if op.max_depth is not None:
            numbers["max_depth"] = op.max_depth
    for name, number in numbers.items():
        if not isinstance(number, SupportsIndex) or operator.index(number) < 0:
            raise InvalidInputError(f"`{name}` must be a whole number of at least 0, got {shown(number)}.")


def _check_put(op: PutOp) -> None:
    value_as_json(op.value or {}, f"{shown(op.key)} in {op.namespace!r}")
    _check_minutes(op.ttl, f"The `ttl` of {shown(op.key)}")
    if op.index is not None and not isinstance(op.index, bool):
        _tokenized(op.index)


def _check_minutes(minutes: object, where: str) -> None:
    if minutes is not None and not (is_number(minutes) and 0 < minutes < _LONGEST_TTL):
        raise InvalidInputError(
            f"{where} must be a number of minutes above 0, or None, got {shown(minutes)}."
        )


def check_ttl(ttl: TTLConfig | None) -> None:
    """Check a store's times to live.

    Raises:
        InvalidInputError: Something of it is wrong, or it says what LangGraph's configuration does not have.
    """
    said = _checked_keys(ttl, "ttl", TTLConfig)
    _check_minutes(said.get("default_ttl"), "`default_ttl`")
    interval = said.get("sweep_interval_minutes")
    if interval is not None and not (is_number(interval) and interval >= 0):
        raise InvalidInputError(
            f"`sweep_interval_minutes` must be a number of at least 0, or None, got {shown(interval)}."
        )
    for name in ("refresh_on_read", "omit_expired"):
        check_flag(name, said.get(name, True))


def _checked_keys(given: object, name: str, kind: type) -> JsonObject:
    """Return a configuration of LangGraph's, none of whose keys is unknown: one misspelt would do nothing."""
    if not isinstance(given, Mapping | None):
        raise InvalidInputError(f"`{name}` must be a mapping or None, got {shown(given)}.")
    for key in given or {}:
        if key not in kind.__annotations__:
            raise InvalidInputError(
                f"`{name}` has no {shown(key)}; there are {sorted(kind.__annotations__)}."
            )
    return dict(given or {})


class IndexedFields:
    """What a store's ``index`` says.

    Args:
        index: LangGraph's configuration.

    Raises:
        InvalidInputError: Something of it is wrong.
    """

    def __init__(self, index: IndexConfig) -> None:
        said = _checked_keys(index, "index", IndexConfig)
        self._dimensions = said.get("dims")
        if self._dimensions is not None:
            check_k(self._dimensions, "`dims`")
        fields = said.get("fields")
        self._fields = _tokenized(["$"] if fields is None or fields == [] else fields)
        self._given = said.get("embed")
        if not (self._given is None or isinstance(self._given, (str, Embeddings)) or callable(self._given)):
            raise InvalidInputError(
                "`embed` must be an embedder of LangChain, a function of texts, the name of one that LangChain loads, or None; "
                f"got {shown(self._given)}."
            )
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
        if self._embeddings is None:
            try:
                self._embeddings = ensure_embeddings(self._given)
            except Exception as error:  # whatever the package that is to be loaded raises
                raise EmbeddingFailedError(
                    f"The embedder {shown(self._given)} of the store's index cannot be loaded: {error}"
                ) from error
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
    if not isinstance(fields, (list, tuple)) or not all(isinstance(field, str) for field in fields):
        raise InvalidInputError(
            f"What is embedded (`fields`, or a put's `index`) must be a list of paths in a value, got {shown(fields)}."
        )
    return ["$" if field == "$" else tokenize_path(field) for field in fields]
