"""What the calls of a memory return: memories, and ordinary values that also say why they are empty.

With ``on_failure="degrade"`` a store that is unavailable gives an empty, falsy result of the same type whose ``error`` is the
reason. Everywhere else ``error`` is None, so an outage can be told from "there is none".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Generic, Literal, TypeAlias, TypeVar, get_args, overload

from aiochroma._types import Metadata, MetadataView
from aiochroma.memory.arguments import RESERVED
from aiochroma.memory.formatting import as_context
from aiochroma.records.record import (
    CREATED_AT,
    EXPIRES_AT,
    PINNED,
    SCOPE,
    THREAD,
    UPDATED_AT,
    exact_metadata,
    scope_parts,
    thread_position,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema
    from typing_extensions import Self

    from aiochroma.records.spec import Neighbour, SearchResult

__all__ = [
    "Count",
    "Hit",
    "Id",
    "Items",
    "MemoryChange",
    "Page",
    "Recall",
    "UnavailableHit",
    "hit_from",
    "hits_from",
    "moment_in",
    "user_metadata",
]

T = TypeVar("T")


class _ErrorName:
    """Has pydantic show an error as the name of its class; its message may name paths and addresses."""

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.json_or_python_schema(
            json_schema=core_schema.str_schema(),
            python_schema=core_schema.is_instance_schema(BaseException),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda error: type(error).__name__, return_schema=core_schema.str_schema()
            ),
        )


Failure: TypeAlias = Annotated[BaseException, _ErrorName()]
"""An error beside what was found all the same."""


# -- memories ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hit:
    """A memory that was found.

    Attributes:
        id: The memory's id within its namespace.
        text: The text that was remembered.
        namespace: The namespace that the memory is in.
        distance: Cosine distance from the question, 0 (same direction) to 2; None when it was found by its words and is
            not among the nearest.
        score: What it is ranked by; greater is better, comparable within one recall.
        metadata: The metadata that it was given.
        created_at: When it was first remembered (UTC).
        updated_at: When it was last remembered or changed (UTC).
        expires_at: When it will be forgotten (UTC), or None.
        pinned: Whether it is pinned.
        scope: Whose it is: the parts of its scope, from the widest to the narrowest; empty where it has none.
        thread: The conversation it belongs to, or None.
        position: The memory's position in its thread, whose memories are in the order of these numbers.
        passage: The chunk of its text that is nearest to the question, where the text was so long that it was embedded in
            chunks; else None.
        explain: What the score is made of: ``text``, ``own_text``, ``vector``, ``tokens`` (where the embedder gives them),
            ``recency``, ``weight``.
        before: The memories before it in its thread, oldest first; empty unless the recall has a ``window``.
        after: The memories after it in its thread, oldest first; empty unless the recall has a ``window``.
    """

    id: str
    text: str
    namespace: str
    distance: float | None
    score: float
    metadata: Metadata = field(default_factory=dict)
    created_at: datetime | None = None
    updated_at: datetime | None = None
    expires_at: datetime | None = None
    pinned: bool = False
    scope: tuple[str, ...] = ()
    thread: str | None = None
    position: float = 0.0
    passage: str | None = None
    explain: dict[str, float] = field(default_factory=dict)
    before: tuple[Hit, ...] = ()
    after: tuple[Hit, ...] = ()


@dataclass(frozen=True)
class Recall(Sequence[Hit]):
    """The hits of a question, best first, with what failed and how long it took.

    Attributes:
        hits: The hits.
        errors: What went wrong in a namespace, by its name; ``hits`` has what was found all the same. An error of the question
            as a whole has the empty text as its key: the question could not be embedded (the hits are those of its words
            alone), ``rerank`` failed (the hits are in the order of their scores), or nothing could be searched
            (``on_failure="degrade"``).
        timings: Milliseconds: ``embedding``, ``queue`` (longest wait of a search), ``search:<namespace>``, ``total``.
        indexing: The namespaces whose index is still being made, each with the share of its memories that the index holds, 0
            to 1. The hits are from that share.
    """

    hits: tuple[Hit, ...] = ()
    errors: dict[str, Failure] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    indexing: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> BaseException | None:
        """Why the question as a whole failed, or None."""
        return self.errors.get("")

    @classmethod
    def failed(cls, error: BaseException) -> Recall:
        """Make the empty recall of a question that failed as a whole."""
        return cls(errors={"": error})

    def cut(self, limit: int | None) -> Recall:
        """Return a recall of the first ``limit`` hits; None keeps all."""
        return self if limit is None else replace(self, hits=self.hits[:limit])

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...

    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def as_context(
        self,
        *,
        max_chars: int | None = None,
        max_tokens: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        template: str = "- [{date}] {speaker}{text}",
        heading: str | None = "{namespace}:",
        order: Literal["score", "newest", "oldest"] = "score",
    ) -> str:
        """Write the hits for a prompt, grouped by namespace; a memory is never cut in half.

        What does not fit is left out, the lowest scores first. With ``window`` the neighbours of the hits are written too, each
        once, in the order of their thread. Stored texts cannot look like a heading or an entry: their lines but the first are
        indented, so begin a template of your own with something of your own.

        Args:
            max_chars: The most characters of the result; default: no limit.
            max_tokens: The most tokens of the result; default: no limit.
            count_tokens: A callable that counts the tokens of a text as the language model does; default: a quarter of its
                UTF-8 bytes, rounded up, a common rule of thumb.
            template: How one memory is written; may use ``{text}``, ``{passage}`` (the chunk of a long text that was found),
                ``{speaker}`` (name or role of a message, with a colon), ``{namespace}``, ``{id}``, ``{date}``, ``{score}``,
                ``{distance}``, and ``{metadata}``.
            heading: What is written above each namespace; may use ``{namespace}``; None for no headings and no grouping.
            order: The order of the hits within a namespace: ``"score"`` (best first, default), ``"newest"`` or ``"oldest"``
                first.

        Returns:
            The text; empty where nothing was found, or nothing fits.

        Raises:
            InvalidInputError: A limit is below 1, or the template or the heading names something else.
        """
        return as_context(
            self.hits,
            max_chars=max_chars,
            max_tokens=max_tokens,
            count_tokens=count_tokens,
            template=template,
            heading=heading,
            order=order,
        )


@dataclass(frozen=True)
class MemoryChange:
    """One change of one memory.

    Attributes:
        at: When it was made (UTC).
        action: ``"remember"``, ``"refresh"``, ``"update"``, ``"pin"``, ``"unpin"``, ``"forget"`` or ``"sweep"``.
        namespace: The memory's namespace.
        id: The memory's id.
        text: The memory's text before the change; None where there was none.
        metadata: The metadata that it had been given before the change; None where there was no memory.
    """

    at: datetime
    action: str
    namespace: str
    id: str
    text: str | None
    metadata: Metadata | None


# -- values that may be empty because the store was unavailable ---------------------------------------------------------


class _MayBeEmpty:
    """A value that says why it is empty."""

    error: BaseException | None = None

    @classmethod
    def failed(cls, error: BaseException) -> Self:
        """Make the empty one."""
        empty = cls()
        empty.error = error
        return empty

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Have pydantic, and so FastAPI, take it for the plain text, number or list that it is."""
        if issubclass(cls, list):
            (item,) = get_args(source) or ((Hit,) if issubclass(cls, Page) else (object,))
            return handler.generate_schema(list[item])  # type: ignore[valid-type] # known when it runs
        return handler.generate_schema(str if issubclass(cls, str) else int)


class Id(_MayBeEmpty, str):  # noqa: SLOT000 - it has an attribute
    """The id of a memory; empty when the store was unavailable.

    Attributes:
        error: Why it is empty, or None.
    """


class Count(_MayBeEmpty, int):
    """A number of memories; 0 when the store was unavailable.

    Attributes:
        error: Why it is 0 although nothing was counted, or None.
    """


class Items(_MayBeEmpty, list[T], Generic[T]):
    """A list of ids, names, memories or changes; empty when the store was unavailable.

    Attributes:
        error: Why it is empty, or None.
    """


class Page(Items[Hit]):
    """Some memories of a namespace, in order.

    Attributes:
        next: The cursor behind which the next page begins: give it to ``list(after=...)``. None on the last page.
        error: Why it is empty, or None.
    """

    next: str | None = None


@dataclass(frozen=True)
class UnavailableHit(Hit):
    """What stands for a memory while the store is unavailable: falsy, and without content.

    Attributes:
        error: Why the store is unavailable.
    """

    id: str = ""
    text: str = ""
    namespace: str = ""
    distance: float | None = None
    score: float = 0.0
    error: Failure | None = field(default=None, compare=False)

    @classmethod
    def failed(cls, error: BaseException) -> Hit | None:
        """Make the one that says why."""
        return cls(error=error)

    def __bool__(self) -> Literal[False]:
        """Return False."""
        return False


# -- from records ------------------------------------------------------------------------------------------------------


def user_metadata(stored: MetadataView | None) -> Metadata:
    """Return the metadata that a memory was given, of all that is stored with it; the lists in it are the caller's own."""
    return {
        key: list(value) if isinstance(value, list) else value
        for key, value in exact_metadata(stored or {}).items()
        if not key.startswith(RESERVED)
    }


def moment_in(stored: MetadataView | None, key: str) -> datetime | None:
    """Return a stored time (seconds since 1970) as a datetime in UTC, or None where there is none, or no date."""
    seconds = (stored or {}).get(key)
    if not isinstance(seconds, (int, float)):
        return None
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return None


def hit_from(
    namespace: str,
    id: str,
    document: str | None,
    stored: MetadataView | None,
    *,
    distance: float | None = None,
    score: float = 0.0,
    passage: str | None = None,
    explain: Mapping[str, float] | None = None,
    before: tuple[Hit, ...] = (),
    after: tuple[Hit, ...] = (),
) -> Hit:
    """Make a hit of what is stored."""
    stored = stored or {}
    thread, scope = stored.get(THREAD), stored.get(SCOPE)
    return Hit(
        id=id,
        text=document or "",
        namespace=namespace,
        distance=distance,
        score=score,
        metadata=user_metadata(stored),
        created_at=moment_in(stored, CREATED_AT),
        updated_at=moment_in(stored, UPDATED_AT),
        expires_at=moment_in(stored, EXPIRES_AT),
        pinned=bool(stored.get(PINNED)),
        scope=scope_parts(scope) if isinstance(scope, str) else (),
        thread=thread if isinstance(thread, str) else None,
        position=thread_position(stored)[1],
        passage=passage,
        explain=dict(explain or {}),
        before=before,
        after=after,
    )


_EXPLAINED = ("text", "own_text", "vector", "tokens", "recency", "weight")


def hits_from(namespace: str, result: SearchResult) -> list[Hit]:
    """Make hits of what a search of a namespace found, best first."""

    def near(neighbours: tuple[Neighbour, ...]) -> tuple[Hit, ...]:
        return tuple(hit_from(namespace, one.id, one.document, one.metadata) for one in neighbours)

    return [
        hit_from(
            namespace,
            found.id,
            found.document,
            found.metadata,
            distance=found.distance,
            score=found.score.score,
            passage=found.passage,
            explain={name: value for name in _EXPLAINED if (value := getattr(found.score, name)) is not None},
            before=near(found.before),
            after=near(found.after),
        )
        for found in result.hits
    ]
