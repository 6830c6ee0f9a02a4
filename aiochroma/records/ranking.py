"""One ranking from text, meaning, time and weight. Pure functions: no I/O, no clock.

For a memory ``d`` of namespace ``n``::

    text(d)     = what the full-text index says: how much of the question d and its surroundings cover, 0 to 1
    vector(d)   = 2 ** -(cosine distance of d / the embedder's own max_distance)
    tokens(d)   = how much the tokens of the question are like those of d and its surroundings, 0 to 1 (``text.codes``)
    meaning(d)  = (vector(d) + TOKEN_WEIGHT * tokens(d)) / (1 + TOKEN_WEIGHT), or vector(d) where there are no tokens
    relevance   = (text(d) + v * meaning(d)) / (1 + v), where v is the weight of the vector, times 1 + TOKEN_WEIGHT with tokens
    recency(d)  = 1 - r + r * 2 ** -(age of d / half-life)
    score(d)    = relevance * recency(d) * weight(n)

``vector`` is 1 for the same direction and one half where the embedder itself draws its line, so that
embedders whose distances crowd near 1 count as much as others. It falls with the distance and never reaches
0. A memory whose distance is not known, because it is not among the nearest, gets that of the farthest of
them that are: it cannot be nearer.

``tokens`` is there where the embedder gives the states of tokens. A memory that has no codes, such as a long text, which is
found by its chunks, counts as the average of the others.

A weighted sum of scores on fixed scales, instead of ranks (reciprocal rank fusion) or of scores scaled by
each question's own maximum, because how sure each side is carries most of the information (Bruch, Gai &
Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", 2023; measured here as well), and because
namespaces then stay comparable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiochroma.records.spec import SearchMode, SearchSpec

__all__ = [
    "AUTO_MIN_SCORE",
    "TOKEN_WEIGHT",
    "Candidates",
    "ScoreParts",
    "diversify",
    "nearness",
    "passes",
    "rank",
    "recency",
]


_RECENCY_SHARE = 0.5
"""The part of the score that age may take in the long run."""

AUTO_MIN_SCORE: dict[SearchMode, float] = {"hybrid": 0.42, "vector": 0.5, "text": 0.4}
"""The relevance below which the best hit says that there is nothing.

Relevance is on a fixed scale: what share of the question's words is there at all counts in it. Measured with questions about
other things, of which 90 % fall below, and questions that have an answer, of which 2 % do. Another weight of the vector than 1
moves that of "hybrid" towards that of words alone or of meaning alone.
"""


AUTO_MIN_SCORE_WITH_TOKENS: dict[SearchMode, float] = {**AUTO_MIN_SCORE, "hybrid": 0.4}
"""The same where tokens count, which are somewhat like those of any memory."""

TOKEN_WEIGHT = 1.5
"""What tokens count beside the vector of the whole. Measured flat between 1 and 2."""


class Candidates(NamedTuple):
    """The memories that the full-text index or the vector search came up with for one query, in columns.

    Of equally good ones the first comes first.

    Attributes:
        text: The coverage of the question by each memory and its surroundings, 0 to 1.
        own_text: The coverage by each memory itself, 0 to 1.
        distance: The cosine distance of each from the question, 0 to 2; NaN where it is not known.
        tokens: How well each and its surroundings hold the tokens of the question, 0 to 1, NaN for one without codes; None where
            no tokens are compared.
    """

    text: NDArray[np.float64]
    own_text: NDArray[np.float64]
    distance: NDArray[np.float64]
    tokens: NDArray[np.float64] | None = None

    def only(self, positions: Sequence[int]) -> Candidates:
        """Return some of them."""
        return Candidates(*(None if column is None else column[positions] for column in self))  # type: ignore[arg-type]


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
        tokens: Similarity of the tokens of the memory and its surroundings to those of the question, or None.
    """

    score: float
    text: float
    own_text: float
    vector: float
    recency: float
    weight: float
    tokens: float | None = None


def nearness(distance: NDArray[np.float64], max_distance: float) -> NDArray[np.float64]:
    """Turn cosine distances into scores.

    Args:
        distance: 0 to 2, or infinite; rounding may have made it slightly negative.
        max_distance: The distance up to which the embedder calls texts related; above 0.

    Returns:
        1 for distance 0, 0.5 at ``max_distance``, falling further and never 0 but for an infinite distance.
    """
    import numpy as np

    near: NDArray[np.float64] = np.exp2(np.maximum(0.0, distance) / -max_distance)
    return near


def recency(age: NDArray[np.float64], half_life: float, share: float) -> NDArray[np.float64]:
    """Return the factors for the ages of memories.

    Args:
        age: Seconds; negative counts as 0.
        half_life: Seconds after which half of what age may take is gone; above 0.
        share: The part of the score that age may take in the long run, 0 to 1.

    Returns:
        1 for a new memory, towards ``1 - share`` for an old one.
    """
    import numpy as np

    factor: NDArray[np.float64] = 1.0 - share + share * np.exp2(np.maximum(0.0, age) / -half_life)
    return factor


def passes(candidates: Candidates, max_distance: float) -> NDArray[np.bool_]:
    """Tell which candidates a limit of the cosine distance leaves in.

    Those are the ones that are near enough, and those that hold a term of the question themselves: what matches by text is
    spared. What only stands beside a match, and is not known to be near, is cut.
    """
    return (candidates.own_text > 0.0) | (candidates.distance <= max_distance)


def rank(
    candidates: Candidates,
    spec: SearchSpec,
    *,
    age: NDArray[np.float64] | None = None,
    limit: int | None = None,
) -> list[tuple[int, ScoreParts]]:
    """Rank the candidates of one namespace.

    Args:
        candidates: All that the two searches found, each once.
        spec: How to rank. Mode "vector" drops what has no distance and ranks by it alone; "text" drops what covers nothing.
        age: Seconds since each was written or refreshed; None where the specification has no ``half_life``.
        limit: The most to return; None for all.

    Returns:
        The positions of candidates with their scores, best first; of equal ones the nearer, then the first.
    """
    import numpy as np

    text, own_text, distance, tokens = candidates
    known = distance == distance
    # What is dropped counts here too: a limit of distance changes no score.
    distance = np.where(known, distance, distance[known].max() if known.any() else np.inf)
    vector = nearness(distance, spec.embedder_max_distance)
    kept = np.ones(len(text), dtype=bool)
    if spec.mode != "hybrid":
        kept = known if spec.mode == "vector" else text > 0.0
    if spec.max_distance is not None:
        kept = kept & passes(candidates, spec.max_distance)
    meaning, vector_weight, limits = vector, spec.vector_weight, AUTO_MIN_SCORE
    if tokens is not None and (coded := tokens == tokens).any():
        similarity = np.where(coded, tokens, tokens[coded].mean())
        meaning = (vector + TOKEN_WEIGHT * similarity) / (1.0 + TOKEN_WEIGHT)
        vector_weight, limits = vector_weight * (1.0 + TOKEN_WEIGHT), AUTO_MIN_SCORE_WITH_TOKENS
    relevance = text if spec.mode == "text" else meaning
    if spec.mode == "hybrid":
        # A weight may be so large that its product with another number is infinite.
        share_of_text = 1.0 / (1.0 + vector_weight)
        relevance = share_of_text * text + (1.0 - share_of_text) * meaning
    score, fading = relevance, None
    if spec.half_life is not None and age is not None:
        fading = recency(age, spec.half_life, _RECENCY_SHARE)
        score = score * fading
    score = score * spec.weight
    if spec.min_score == "auto":
        limit_of_best = limits[spec.mode]
        if spec.mode == "hybrid":
            share = 1.0 - 1.0 / (1.0 + spec.vector_weight)
            limit_of_best = np.interp(
                share, (0.0, 0.5, 1.0), (limits["text"], limit_of_best, limits["vector"])
            )
        if not kept.any() or relevance[kept].max() < limit_of_best:
            return []
    elif spec.min_score is not None:
        kept = kept & (score >= float(spec.min_score))
    at = np.flatnonzero(kept)
    at = at[np.lexsort((distance[at], -score[at]))][:limit]
    columns = (column[at].tolist() for column in (score, text, own_text, vector))
    faded = [1.0] * len(at) if fading is None else fading[at].tolist()
    of_tokens = [None] * len(at) if tokens is None else tokens[at].tolist()
    return [
        (position, ScoreParts(total, by_text, own, near, fades, spec.weight, like if like == like else None))
        for position, total, by_text, own, near, fades, like in zip(
            at.tolist(), *columns, faded, of_tokens, strict=True
        )
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
