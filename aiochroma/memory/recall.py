"""What a recall is asked for, and what comes back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime  # noqa: TC003 - frameworks read the annotations
from typing import TYPE_CHECKING, Any, Literal, overload

from aiochroma._errors import InvalidInputError
from aiochroma._types import Metadata, MetadataView, Where
from aiochroma.memory.filters import check_where
from aiochroma.memory.formatting import as_context
from aiochroma.memory.items import (
    CREATED_AT,
    EXPIRES_AT,
    PINNED,
    SCOPE,
    THREAD,
    UPDATED_AT,
    check_k,
    is_number,
    moment,
    user_metadata,
)
from aiochroma.records.record import scope_parts, thread_position
from aiochroma.records.spec import Mode

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["Hit", "Mode", "NamespaceSearch", "Recall", "has_passed", "hit_from", "searches_from"]


@dataclass(frozen=True)
class NamespaceSearch:
    """How one namespace is searched.

    Attributes:
        k: How many hits it may give, at least 1.
        max_distance: The largest cosine distance of a hit, 0 to 2; ``"auto"`` for the embedder's own; None for the best
            ``k`` whatever their distance. A memory that matches by text is spared.
        where: Chroma's filter over metadata, or None.
        weight: Factor on its scores when namespaces are merged; above 0.
        min_score: The lowest score of a hit; ``"auto"`` for no hit at all where the best one says that nothing was
            remembered about it; None for no limit.
    """

    k: int = 5
    max_distance: float | Literal["auto"] | None = None
    where: Where | None = None
    weight: float = 1.0
    min_score: float | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        check_k(self.k)
        max_distance = self.max_distance
        if (
            max_distance is not None
            and max_distance != "auto"
            and not (is_number(max_distance) and 0 <= max_distance < math.inf)
        ):
            raise InvalidInputError(
                f"`max_distance` must be a distance of at least 0, 'auto', or None, got {max_distance!r}."
            )
        least = self.min_score
        if least is not None and least != "auto" and not (is_number(least) and math.isfinite(least)):
            raise InvalidInputError(f"`min_score` must be a finite number, 'auto', or None, got {least!r}.")
        if not (is_number(self.weight) and 0 < self.weight < math.inf):
            raise InvalidInputError(f"`weight` must be a number above 0, got {self.weight!r}.")
        if self.where is not None:
            check_where(self.where)


@dataclass(frozen=True)
class Hit:
    """A memory that was found.

    Attributes:
        id: Its id within the namespace.
        text: The text.
        namespace: Where it was found.
        distance: Cosine distance from the question, 0 (same direction) to 2; None when it was found by its words and is
            not among the nearest.
        score: What it is ranked by; greater is better, comparable within one recall.
        metadata: The user's own.
        created_at: When it was first remembered (UTC).
        updated_at: When it was last remembered or changed (UTC).
        expires_at: When it will be forgotten (UTC), or None.
        pinned: Whether it is pinned.
        scope: Whose it is: the parts of its scope, from the widest to the narrowest; empty where it has none.
        thread: The conversation it belongs to, or None.
        position: Its place in the thread.
        passage: The part that is nearest to the question, where the text is so long that it was embedded in parts, else
            None.
        explain: The parts of the score: ``text``, ``own_text``, ``vector``, ``recency``, ``weight``.
        before: With ``window``: the memories before it in its thread, oldest first.
        after: Likewise those after it.
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
        errors: For each namespace that failed, or could not be searched as it should, why; whatever was found is there. What
            concerns the question as a whole has the empty string as its key: that it could not be embedded (the hits are those
            of its words alone), that ``rerank`` failed (the hits are in the order of their scores), or that nothing could be
            searched (``on_failure="degrade"``).
        timings: Milliseconds: ``embedding``, ``queue`` (longest wait of a search), ``search:<namespace>``, ``total``.
        indexing: The namespaces whose index is still being made, each with the share that is in it, 0 to 1. They answered
            from what the index held.
    """

    hits: tuple[Hit, ...] = ()
    errors: dict[str, BaseException] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    indexing: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> BaseException | None:
        """Why the question as a whole failed, or None."""
        return self.errors.get("")

    @classmethod
    def failed(cls, error: BaseException) -> Recall:
        """Make the empty one of a question that failed as a whole."""
        return cls(errors={"": error})

    def cut(self, limit: int | None) -> Recall:
        """Return it with no more hits than a limit."""
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
            max_chars: The most characters, or None.
            max_tokens: The most tokens, or None.
            count_tokens: Counts the tokens of a text as the language model does; default: a quarter of its UTF-8 bytes,
                rounded up, a common rule of thumb.
            template: One memory; may use ``{text}``, ``{passage}`` (of a long text the part that was found), ``{speaker}`` (of a
                message its name or role, with a colon), ``{namespace}``, ``{id}``, ``{date}``, ``{score}``, ``{distance}``, and
                ``{metadata}``.
            heading: Above each namespace; may use ``{namespace}``; None for no headings and no grouping.
            order: Within a namespace: best first, newest first, or oldest first.

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


def searches_from(
    namespaces: Any,
    k: int,
    max_distance: float | Literal["auto"] | None,
    where: Where | None,
    min_score: float | Literal["auto"] | None,
) -> tuple[dict[str, NamespaceSearch] | None, NamespaceSearch]:
    """Return how each namespace is to be searched (None for all alike), and how one that says nothing itself is.

    Args:
        namespaces: None, one name, several names, or a mapping from names to ``k`` or to a :class:`NamespaceSearch`.
        k: For namespaces that say nothing themselves.
        max_distance: The largest cosine distance for each namespace that says nothing itself.
        where: The filter for each namespace that says nothing itself.
        min_score: The lowest score for each namespace that says nothing itself.

    Raises:
        InvalidInputError: Something of it is wrong.
    """
    common = NamespaceSearch(check_k(k), max_distance, where, min_score=min_score)
    if namespaces is None:
        return None, common
    if isinstance(namespaces, str):
        return {namespaces: common}, common
    if isinstance(namespaces, Mapping):
        return {
            name: value
            if isinstance(value, NamespaceSearch)
            else replace(common, k=check_k(value, f"`namespaces[{name!r}]`"))
            for name, value in namespaces.items()
        }, common
    try:
        return dict.fromkeys(namespaces, common), common
    except TypeError:
        raise InvalidInputError(
            f"`namespaces` must be a name, several names, or a mapping to `k` or `NamespaceSearch`, got {namespaces!r}."
        ) from None


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
    """Make a hit of a record."""
    stored = stored or {}
    thread, scope = stored.get(THREAD), stored.get(SCOPE)
    return Hit(
        id=id,
        text=document or "",
        namespace=namespace,
        distance=distance,
        score=score,
        metadata=user_metadata(stored),
        created_at=moment(stored, CREATED_AT),
        updated_at=moment(stored, UPDATED_AT),
        expires_at=moment(stored, EXPIRES_AT),
        pinned=bool(stored.get(PINNED)),
        scope=scope_parts(scope) if isinstance(scope, str) else (),
        thread=thread if isinstance(thread, str) else None,
        position=thread_position(stored)[1],
        passage=passage,
        explain=dict(explain or {}),
        before=before,
        after=after,
    )


def has_passed(hit: Hit) -> bool:
    """Return whether a memory has expired; a pinned one does not."""
    return hit.expires_at is not None and not hit.pinned and hit.expires_at.timestamp() <= time.time()
