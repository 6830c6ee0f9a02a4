"""One ranking from text, meaning, time and weight. Pure functions: no I/O, no clock.

For a memory ``d`` of namespace ``n``::

    text(d)     = what the full-text index says: how much of the question d and its surroundings cover, 0 to 1
    vector(d)   = 2 ** -(cosine distance of d / the embedder's own max_distance)
    relevance   = (text(d) + VECTOR_WEIGHT * vector(d)) / (1 + VECTOR_WEIGHT)
    recency(d)  = 1 - r + r * 2 ** -(age of d / half-life)
    score(d)    = relevance * recency(d) * weight(n)

``vector`` is 1 for the same direction and one half where the embedder itself draws its line, so that
embedders whose distances crowd near 1 count as much as others. It falls with the distance and never reaches
0. A memory whose distance is not known, because it is not among the nearest, gets that of the farthest of
them that are: it cannot be nearer.

A weighted sum of scores on fixed scales, instead of ranks (reciprocal rank fusion) or of scores scaled by
each question's own maximum, because how sure each side is carries most of the information (Bruch, Gai &
Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", 2023; measured here as well), and because
namespaces then stay comparable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.records.spec import Mode, SearchSpec

__all__ = [
    "AUTO_MIN_SCORE",
    "Candidate",
    "ScoreParts",
    "diversify",
    "nearness",
    "passes",
    "rank",
    "recency",
]


AUTO_MIN_SCORE: dict[Mode, float] = {"hybrid": 0.42, "vector": 0.5, "text": 0.4}
"""The relevance below which the best hit says that there is nothing.

Relevance is on a fixed scale: what share of the question's words is there at all counts in it. Measured with questions about
other things, of which 90 % fall below, and questions that have an answer, of which 2 % do.
"""


class Candidate(NamedTuple):
    """A memory that the full-text index or the vector search came up with.

    Attributes:
        id: Tells it from the others of its namespace; of equally good ones the smaller comes first.
        text: Its coverage of the question by itself and its surroundings, 0 to 1 (``TextHit.score``).
        own_text: Its coverage by itself, 0 to 1 (``TextHit.own``).
        distance: Its cosine distance from the question, 0 to 2, or None when it is not among the nearest.
        age: Seconds since it was written or refreshed; negative counts as 0.
    """

    id: int | str
    text: float = 0.0
    own_text: float = 0.0
    distance: float | None = None
    age: float = 0.0


@dataclass(frozen=True)
class ScoreParts:
    """A score and what it is made of; the names are those of the module's formula.

    Attributes:
        score: What the ranking is by.
        text: Coverage of the question by the memory and its surroundings.
        own_text: Coverage by the memory itself: what is missing to ``text`` comes from its neighbours.
        vector: Nearness in meaning.
        recency: The factor for its age.
        weight: The weight of its namespace.
    """

    score: float
    text: float
    own_text: float
    vector: float
    recency: float
    weight: float


def nearness(distance: float, max_distance: float) -> float:
    """Turn a cosine distance into a score.

    Args:
        distance: 0 to 2; rounding may have made it slightly negative.
        max_distance: The distance up to which the embedder calls texts related; above 0.

    Returns:
        1 for distance 0, 0.5 at the max_distance, falling further and never 0.
    """
    return math.pow(2.0, -max(0.0, distance) / max_distance)


def recency(age: float, half_life: float | None, share: float) -> float:
    """Return the factor for a memory's age.

    Args:
        age: Seconds; negative counts as 0.
        half_life: Seconds after which half of what age may take is gone; None ignores age.
        share: How much of the score age may take in the long run, 0 to 1.

    Returns:
        1 for a new memory, towards ``1 - share`` for an old one.
    """
    if half_life is None:
        return 1.0
    return 1.0 - share + share * math.pow(2.0, -max(0.0, age) / half_life)


def passes(candidate: Candidate, max_distance: float | None) -> bool:
    """Tell whether a threshold of distance leaves a candidate in.

    Args:
        candidate: The candidate.
        max_distance: The greatest cosine distance, or None for no threshold.

    Returns:
        True when it is near enough, or holds a term of the question itself: what matches by text is spared.
        What only stands beside a match and is not known to be near is cut.
    """
    if max_distance is None or candidate.own_text > 0.0:
        return True
    return candidate.distance is not None and candidate.distance <= max_distance


def rank(
    candidates: Sequence[Candidate],
    spec: SearchSpec,
    *,
    recency_share: float = 0.5,
    limit: int | None = None,
) -> list[tuple[Candidate, ScoreParts]]:
    """Rank the candidates of one namespace.

    Args:
        candidates: All that the two searches found, each id once, in any order.
        spec: How to rank. Mode "vector" drops what has no distance and ranks by it alone; "text" drops what covers nothing.
        recency_share: How much of the score age may take in the long run, 0 to 1.
        limit: The most to return; None for all.

    Returns:
        Candidates with their scores, best first; of equal ones the nearer, then the one with the smaller id.
    """
    # What is dropped counts here too: a limit of distance changes no score.
    farthest = max((known.distance for known in candidates if known.distance is not None), default=math.inf)
    mode, vector_weight = spec.mode, spec.vector_weight
    least = None if spec.min_score == "auto" or spec.min_score is None else float(spec.min_score)
    best = 0.0
    ranked = []
    for candidate in candidates:
        if (mode == "vector" and candidate.distance is None) or (mode == "text" and candidate.text <= 0.0):
            continue
        if spec.max_distance is not None and not passes(candidate, spec.max_distance):
            continue
        distance = farthest if candidate.distance is None else candidate.distance
        vector = nearness(distance, spec.embedder_max_distance)
        if mode == "vector":
            relevance = vector
        elif mode == "text":
            relevance = candidate.text
        else:
            relevance = (candidate.text + vector_weight * vector) / (1.0 + vector_weight)
        fading = 1.0 if spec.half_life is None else recency(candidate.age, spec.half_life, recency_share)
        best = relevance if relevance > best else best  # noqa: FURB136 - twice as fast as max
        score = relevance * fading * spec.weight
        if least is None or score >= least:
            ranked.append((-score, distance, candidate.id, candidate, vector, fading))
    if spec.min_score == "auto" and best < AUTO_MIN_SCORE[mode]:
        return []
    ranked.sort()  # Ids differ, so nothing behind them is compared.
    return [
        (candidate, ScoreParts(-negative, candidate.text, candidate.own_text, vector, fading, spec.weight))
        for negative, _, _, candidate, vector, fading in ranked[:limit]
    ]


def diversify(scores: Sequence[float], vectors: NDArray[np.float32], k: int, diversity: float) -> list[int]:
    """Choose by maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998).

    One after another the hit with the greatest ``(1 - diversity) * score - diversity * similarity`` is taken,
    where ``similarity`` is its greatest cosine similarity to one already taken. Scores are divided by the
    greatest one first, so that both terms run to 1.

    Args:
        scores: Of the hits, best first or not; at least 0.
        vectors: One row of length 1 per hit.
        k: How many to choose at most, at least 1.
        diversity: 0 keeps the order of the scores, 1 looks at difference alone.

    Returns:
        Indices of the chosen hits in the order in which they were chosen.
    """
    import numpy as np

    relevance = np.asarray(scores, dtype=np.float64)
    if len(relevance) == 0:
        return []
    relevance = relevance / (relevance.max() or 1.0)
    similarity = np.zeros(len(relevance))
    open_ = np.ones(len(relevance), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < min(k, len(relevance)):
        marginal = np.where(open_, (1.0 - diversity) * relevance - diversity * similarity, -np.inf)
        best = int(np.argmax(marginal))
        chosen.append(best)
        open_[best] = False
        alike = vectors @ vectors[best]
        similarity = np.maximum(similarity, alike) if len(chosen) > 1 else np.asarray(alike, dtype=np.float64)
    return chosen
