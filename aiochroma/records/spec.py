"""What a search says, and what it gives back: frozen plain data that travels in a request, and can be compared and pickled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from aiochroma._types import Metadata

if TYPE_CHECKING:
    from aiochroma.records.ranking import ScoreParts

__all__ = ["VECTOR_WEIGHT", "Mode", "Neighbour", "SearchHit", "SearchResult", "SearchSpec"]

Mode = Literal["hybrid", "vector", "text"]

# Both sides alike. Measured flat between 0.5 and 1.4 with static word vectors.
VECTOR_WEIGHT = 1.0


@dataclass(frozen=True)
class SearchSpec:
    """How one namespace is searched. Searches of one namespace with equal specs are carried out together.

    Attributes:
        k: The most hits to return for a query; at least 1.
        mode: ``"hybrid"`` ranks by meaning and by words, ``"vector"`` by meaning alone, ``"text"`` by words alone.
        vector_weight: What meaning counts beside the words in ``"hybrid"``; at least 0.
        weight: A factor on the scores, which makes namespaces comparable; above 0.
        max_distance: The largest cosine distance of a hit, or None. A memory that holds a word of the query is spared.
        min_score: The lowest score of a hit; ``"auto"`` for no hit at all where the best one says that there is nothing (see
            ``ranking.AUTO_MIN_SCORE``); None for no limit.
        embedder_max_distance: The distance up to which the embedder calls two texts related; above 0.
        where: A filter over metadata as JSON text (see ``filters.encoded``), or None.
        scope: The path of a scope (see ``record.scope_path``): only its memories and those of scopes below it; empty for all.
        thread: Only memories of this conversation, or None for all.
        since: Only memories first remembered at this moment (seconds since 1970) or later, or None.
        until: Only memories first remembered before this moment, or None.
        half_life: Seconds after which half of what age may take from a score is gone, or None to ignore age.
        diversity: 0 returns the best hits; towards 1 hits differ more from those before them.
        window: How many neighbours before and after each hit come with it.
    """

    k: int = 5
    mode: Mode = "hybrid"
    vector_weight: float = VECTOR_WEIGHT
    weight: float = 1.0
    max_distance: float | None = None
    min_score: float | Literal["auto"] | None = None
    embedder_max_distance: float = 1.0
    where: str | None = None
    scope: str = ""
    thread: str | None = None
    since: float | None = None
    until: float | None = None
    half_life: float | None = None
    diversity: float = 0.0
    window: int = 0


@dataclass(frozen=True)
class Neighbour:
    """A memory that stands near a hit in its thread.

    Attributes:
        id: Its id.
        document: Its text.
        metadata: What is stored with it.
    """

    id: str
    document: str
    metadata: Metadata


@dataclass(frozen=True)
class SearchHit:
    """A memory that a search found.

    Attributes:
        id: Its id.
        document: Its text.
        metadata: What is stored with it.
        distance: Its cosine distance from the query, or None where it is not known.
        score: Its score, and what that is made of.
        passage: Of a long text the chunk that is nearest to the query, or None.
        before: With ``window``: what stands before it in its thread, oldest first.
        after: With ``window``: what stands after it, oldest first.
    """

    id: str
    document: str
    metadata: Metadata
    distance: float | None
    score: ScoreParts
    passage: str | None = None
    before: tuple[Neighbour, ...] = ()
    after: tuple[Neighbour, ...] = ()


@dataclass(frozen=True)
class SearchResult:
    """What one query found in one namespace.

    Attributes:
        hits: Best first.
        indexed: Which share of the namespace the index held, 0 to 1. Below 1 the search answered from that share, and
            some hits may be missing.
        problem: Why some hits may be missing, or None: words could not be searched for in an index.
    """

    hits: tuple[SearchHit, ...] = field(default=())
    indexed: float = 1.0
    problem: str | None = None
