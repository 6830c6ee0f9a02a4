"""The fusion of scores: what any ranking must keep, whatever the numbers."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiochroma.records import ranking
from aiochroma.records.ranking import Candidates, diversify, nearness, recency
from aiochroma.records.spec import SearchSpec

if TYPE_CHECKING:
    import random


class Candidate(NamedTuple):
    """One of the candidates."""

    id: str
    text: float = 0.0
    own_text: float = 0.0
    distance: float | None = None
    age: float = 0.0
    tokens: float | None = None


_SHARES = st.floats(0.0, 1.0)
_CANDIDATES = st.lists(
    st.builds(
        Candidate,
        id=st.uuids().map(str),
        text=_SHARES,
        own_text=_SHARES,
        distance=st.none() | st.floats(0.0, 2.0),
        age=st.floats(-10.0, 1e9),
        tokens=st.none() | _SHARES,
    ),
    max_size=12,
    unique_by=lambda candidate: candidate.id,
)
_MODES = st.sampled_from(["hybrid", "vector", "text"])


def columns(candidates) -> Candidates:
    """Return candidates in columns."""
    rows = [
        (
            one.text,
            one.own_text,
            *(math.nan if value is None else value for value in (one.distance, one.tokens)),
        )
        for one in candidates
    ]
    return Candidates(*np.array(rows, dtype=np.float64).reshape(-1, 4).T)


def rank(candidates, limit=None, **how):
    """Rank as a search says it; of equal ones the smaller id comes first."""
    ordered = sorted(candidates, key=lambda one: one.id)
    age = np.array([one.age for one in ordered], dtype=np.float64)
    ranked = ranking.rank(columns(ordered), SearchSpec(**how), age=age, limit=limit)
    return [(ordered[position], parts) for position, parts in ranked]


def passes(candidate, max_distance) -> bool:
    """Tell whether a limit of distance leaves a candidate in."""
    return max_distance is None or bool(ranking.passes(columns([candidate]), max_distance)[0])


@given(_CANDIDATES, _MODES, st.randoms(use_true_random=False), st.none() | st.floats(1.0, 1e7))
def test_the_order_of_candidates_does_not_matter(candidates, mode, shuffler: random.Random, half_life):
    """The same candidates in another order give the same ranking, of finite scores that never rise."""
    ranked = rank(candidates, embedder_max_distance=0.85, mode=mode, half_life=half_life)
    shuffled = shuffler.sample(candidates, len(candidates))
    assert rank(shuffled, embedder_max_distance=0.85, mode=mode, half_life=half_life) == ranked
    scores = [parts.score for _, parts in ranked]
    assert all(math.isfinite(score) and 0.0 <= score <= 1.0 for score in scores)
    assert scores == sorted(scores, reverse=True)


@given(_CANDIDATES, _SHARES, st.floats(0.0, 2.0), st.floats(0.001, 0.5))
def test_more_text_or_less_distance_never_lowers_a_score(candidates, text, distance, step):
    """A candidate that covers more or lies nearer scores at least as much as before."""

    def score(text: float, distance: float) -> float:
        extended = [*candidates, Candidate("probe", text=text, distance=distance)]
        ranked = rank(extended, embedder_max_distance=0.85)
        return next(parts.score for candidate, parts in ranked if candidate.id == "probe")

    before = score(text, distance)
    assert score(min(1.0, text + step), distance) >= before
    assert score(text, max(0.0, distance - step)) >= before


@given(_CANDIDATES)
def test_modes_look_at_one_side_only(candidates):
    """Mode "vector" ranks by meaning alone, mode "text" by coverage alone, and neither keeps what has none."""
    without_tokens = [candidate._replace(tokens=None) for candidate in candidates]
    by_vector = rank(without_tokens, embedder_max_distance=0.85, mode="vector")
    distances = [candidate.distance for candidate, _ in by_vector]
    assert None not in distances
    assert distances == sorted(distances)
    by_text = rank(candidates, embedder_max_distance=0.85, mode="text")
    texts = [candidate.text for candidate, _ in by_text]
    assert texts == sorted(texts, reverse=True)
    assert 0.0 not in texts


def test_an_unknown_distance_counts_as_the_farthest_known():
    """What is not among the nearest gets the vector score of the last of them, not none."""
    ranked = rank(
        [Candidate("a", distance=0.4), Candidate("b", distance=0.9), Candidate("c", text=0.1, own_text=0.1)],
        embedder_max_distance=0.85,
    )
    parts = {candidate.id: part for candidate, part in ranked}
    assert parts["c"].vector == parts["b"].vector < parts["a"].vector


def test_a_threshold_spares_what_matches_by_text():
    """A far memory stays when it holds a term itself, and goes when only its neighbours do."""
    assert passes(Candidate("near", distance=0.5), 0.8)
    assert not passes(Candidate("far", distance=0.9), 0.8)
    assert passes(Candidate("named", own_text=0.2, text=0.2, distance=1.2), 0.8)
    assert not passes(Candidate("beside", text=0.5), 0.8)
    assert passes(Candidate("beside", text=0.5), None)


@given(_CANDIDATES, _MODES, st.none() | st.floats(0.0, 2.0), st.none() | st.integers(1, 12))
def test_a_threshold_and_a_limit_only_cut(candidates, mode, max_distance, limit):
    """What is left has the scores and the order that it has in the whole ranking."""
    whole = rank(candidates, embedder_max_distance=0.85, mode=mode)
    cut = rank(candidates, embedder_max_distance=0.85, mode=mode, max_distance=max_distance, limit=limit)
    assert cut == [pair for pair in whole if passes(pair[0], max_distance)][:limit]


@given(st.floats(0.0, 2.0), st.floats(0.0, 2.0), st.floats(0.05, 2.0))
def test_nearness_falls_with_distance(one, other, max_distance):
    """Nearness is 1 at 0, one half at the max_distance, and never rises with the distance."""
    assert nearness(0.0, max_distance) == 1.0
    assert math.isclose(nearness(max_distance, max_distance), 0.5)
    near, far = sorted((one, other))
    assert nearness(near, max_distance) >= nearness(far, max_distance) > 0.0


def test_recency_halves_what_age_may_take():
    """After one half-life half of the share is gone, after very long all of it; without one nothing."""
    assert recency(0.0, 60.0, 0.4) == 1.0
    assert math.isclose(recency(60.0, 60.0, 0.4), 0.8)
    assert math.isclose(recency(1e9, 60.0, 0.4), 0.6)
    aged = [Candidate("a", text=0.5, age=1e9)]
    assert rank(aged, half_life=None)[0][1].recency == 1.0


@given(_CANDIDATES, st.floats(0.1, 10.0))
def test_a_weight_is_a_factor_on_every_score(candidates, weight):
    """It changes no order within the namespace, and makes its hits count more or less beside others."""
    plain, weighed = (rank(candidates, embedder_max_distance=0.85, weight=factor) for factor in (1.0, weight))
    assert [one.id for one, _ in plain] == [one.id for one, _ in weighed]
    for (_, one), (_, other) in zip(plain, weighed, strict=True):
        assert math.isclose(other.score, one.score * weight)


@given(_CANDIDATES, _SHARES)
def test_a_lowest_score_only_cuts(candidates, least):
    """What is left has the scores and the order that it has in the whole ranking."""
    whole = rank(candidates, embedder_max_distance=0.85)
    cut = rank(candidates, embedder_max_distance=0.85, min_score=least)
    assert cut == [pair for pair in whole if pair[1].score >= least]


@given(st.lists(_SHARES, min_size=1, max_size=8), st.integers(1, 10), _SHARES, st.integers(0, 2**16))
def test_diversity_chooses_k_different_hits(scores, k, diversity, seed):
    """At most k hits come out, none twice, and without diversity in the order of the scores."""
    vectors = np.random.default_rng(seed).normal(size=(len(scores), 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = diversify(scores, vectors, k, diversity)
    assert len(chosen) == len(set(chosen)) == min(k, len(scores))
    plain = [scores[index] for index in diversify(scores, vectors, k, 0.0)]
    assert plain == sorted(scores, reverse=True)[:k]


def test_diversity_prefers_something_else_over_a_copy():
    """A copy of what was chosen yields to a hit that scores less but says something else."""
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert diversify([1.0, 0.9, 0.7], vectors, 2, 0.5) == [0, 2]
    assert diversify([], np.empty((0, 2), np.float32), 3, 0.5) == []


@given(_CANDIDATES, st.sampled_from([None, "auto"]))
def test_the_weight_of_the_vector_goes_from_words_alone_to_meaning_alone(candidates, min_score):
    """At 0 and at the largest float scores are those of the other modes, and so is what says that there is nothing."""
    known = [one._replace(text=one.text or 0.5, distance=one.distance or 0.5) for one in candidates]
    for weight, mode in ((0.0, "text"), (sys.float_info.max, "vector")):
        scores = [
            [parts.score for _, parts in rank(known, min_score=min_score, **how)]
            for how in ({"vector_weight": weight}, {"mode": mode})
        ]
        assert scores[0] == pytest.approx(scores[1])
