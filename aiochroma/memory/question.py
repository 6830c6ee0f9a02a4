"""A question as it is asked of a memory, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from aiochroma._errors import InvalidInputError
from aiochroma.memory.items import check_text, check_thread, checked_scope, seconds_of
from aiochroma.memory.namespaces import collection_name
from aiochroma.memory.recall import NamespaceSearch, is_number, searches_from
from aiochroma.memory.reranking import Rerank, check_rerank
from aiochroma.records.spec import VECTOR_WEIGHT, Mode

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Question", "question_from"]

_MOST_NEIGHBOURS = 50
"""On either side; each is a query of its own inside SQLite, on the thread that everybody waits for."""


@dataclass(frozen=True)
class Question:
    """A question, and how all its searches are done.

    Attributes:
        text: The question.
        searches: How each namespace is searched; None for all namespaces alike, as ``common`` says.
        common: How a namespace that says nothing itself is searched.
        scope: The path of a scope: only its memories and those below it; empty for all.
        thread: Only memories of this thread, or None for all.
        rerank: What orders the best hits again, or None.
        mode: By meaning, by text, or both.
        vector_weight: What the vectors count beside the text.
        since: Only memories first remembered at this moment (seconds since 1970) or later, or None.
        until: Only memories first remembered before this moment, or None.
        half_life: Seconds after which half of what age may take from a score is gone, or None.
        diversity: 0 for the best, towards 1 for the most different.
        window: How many neighbours before and after each hit come with it.
    """

    text: str
    searches: dict[str, NamespaceSearch] | None
    common: NamespaceSearch
    scope: str
    thread: str | None
    rerank: Rerank | None
    mode: Mode
    vector_weight: float
    since: float | None
    until: float | None
    half_life: float | None
    diversity: float
    window: int


def question_from(
    query: Any,
    *,
    namespaces: Any = None,
    scope: Any = None,
    thread: Any = None,
    k: int = 5,
    max_distance: float | Literal["auto"] | None = None,
    min_score: float | Literal["auto"] | None = None,
    where: Mapping[str, Any] | None = None,
    mode: Mode = "hybrid",
    vector_weight: float = VECTOR_WEIGHT,
    since: Any = None,
    until: Any = None,
    half_life: Any = None,
    diversity: float = 0.0,
    window: int = 0,
    rerank: Any = None,
) -> Question:
    """Check what ``Memory.recall`` is asked for.

    Raises:
        InvalidInputError: Something of it is wrong.
    """
    check_text(query, "`query`")
    if mode not in {"hybrid", "vector", "text"}:
        raise InvalidInputError(f"`mode` must be 'hybrid', 'vector' or 'text', got {mode!r}.")
    if not (is_number(diversity) and 0 <= diversity <= 1):
        raise InvalidInputError(f"`diversity` must be from 0 to 1, got {diversity!r}.")
    if not (is_number(vector_weight) and 0 <= vector_weight < math.inf):
        raise InvalidInputError(f"`vector_weight` must be at least 0, got {vector_weight!r}.")
    if not isinstance(window, int) or isinstance(window, bool) or not 0 <= window <= _MOST_NEIGHBOURS:
        raise InvalidInputError(f"`window` must be an integer from 0 to {_MOST_NEIGHBOURS}, got {window!r}.")
    searches, common = searches_from(namespaces, k, max_distance, where, min_score)
    for name in searches or ():
        collection_name(name)
    seconds = half_life.total_seconds() if hasattr(half_life, "total_seconds") else half_life
    if seconds is not None and not (is_number(seconds) and 0 < seconds < math.inf):
        raise InvalidInputError(f"`half_life` must be more than 0 seconds, got {half_life!r}.")
    return Question(
        text=query,
        searches=searches,
        common=common,
        scope="" if scope is None else checked_scope(scope),
        thread=None if thread is None else check_thread(thread),
        rerank=check_rerank(rerank),
        mode=mode,
        vector_weight=vector_weight,
        since=None if since is None else seconds_of(since, "`since`"),
        until=None if until is None else seconds_of(until, "`until`"),
        half_life=seconds,
        diversity=diversity,
        window=window,
    )
