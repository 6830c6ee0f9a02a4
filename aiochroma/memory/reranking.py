"""Ordering the best hits again by a judge of the caller's: a cross-encoder, a service, a language model.

The judge sees the question and the texts of the best candidates, and gives each a number. What it does wrong costs its order
alone: when it raises, takes too long or returns something else, the order by score stands, and the recall says so.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from aiochroma._errors import InvalidInputError, RerankFailedError
from aiochroma.memory.hooks import ask

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiochroma.memory.recall import Hit, NamespaceSearch

__all__ = ["CANDIDATES", "Rerank", "check_rerank", "reranked", "within_limits"]

Rerank: TypeAlias = Callable[[str, list[str]], "Sequence[float] | Awaitable[Sequence[float]]"]

CANDIDATES = 40
"""So many hits, the best of all namespaces, are judged."""
_SECONDS = 10.0
"""How long a judge may take, where no deadline is nearer."""


def check_rerank(rerank: Any) -> Rerank | None:
    """Check that something may judge, and return it.

    Raises:
        InvalidInputError: It cannot be called.
    """
    if rerank is None or callable(rerank):
        return rerank  # type: ignore[no-any-return]  # called with care
    raise InvalidInputError(
        f"`rerank` must be a callable of the question and a list of texts, which returns a number for each, got {rerank!r}."
    )


async def reranked(
    rerank: Rerank, query: str, hits: Sequence[Hit], searches: Mapping[str, NamespaceSearch]
) -> list[Hit]:
    """Order hits as a judge says, and leave each namespace what it may give.

    Args:
        rerank: The judge.
        query: The question.
        hits: Best first.
        searches: How many hits each namespace may give.

    Returns:
        The hits that were judged, best first; their ``explain`` has the number as ``rerank``.

    Raises:
        RerankFailedError: The judge raised, took too long, or did not return a number for each text.
    """
    judged = hits[:CANDIDATES]
    numbers = await ask(
        "rerank", rerank, query, [hit.text for hit in judged], seconds=_SECONDS, failure=RerankFailedError
    )
    try:
        values = [float(number) for number in numbers]
    except (TypeError, ValueError, OverflowError) as error:
        raise RerankFailedError(
            f"`rerank` returned {type(numbers).__name__} and no list of numbers."
        ) from error
    if len(values) != len(judged) or not all(map(math.isfinite, values)):
        raise RerankFailedError(
            f"`rerank` was given {len(judged)} texts and returned {len(values)} numbers, or such that are not finite."
        )
    order = sorted(range(len(judged)), key=lambda number: -values[number])
    return within_limits(
        (
            replace(judged[number], explain={**judged[number].explain, "rerank": values[number]})
            for number in order
        ),
        searches,
    )


def within_limits(hits: Iterable[Hit], searches: Mapping[str, NamespaceSearch]) -> list[Hit]:
    """Return hits, of each namespace no more than it may give."""
    given: dict[str, int] = {}
    kept = []
    for hit in hits:
        given[hit.namespace] = given.get(hit.namespace, 0) + 1
        if given[hit.namespace] <= searches[hit.namespace].k:
            kept.append(hit)
    return kept
