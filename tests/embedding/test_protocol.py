"""What every embedder promises, and what is checked of vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from aiochroma.embedding.protocol import Embedder, QueryEmbedder, normalise_rows
from aiochroma.embedding.words import HashedEmbedder, WordLlamaEmbedder

_WORDLLAMA = WordLlamaEmbedder()
_SCRIPTS = [
    "I moved to Köln.",
    "東京タワーに行きました",
    "हिन्दी भाषा",
    "عربي جميل",
    "שלום עולם",
    "ฉันรักไทย",
    "🎉🎂",
    "?!",
    "the",
]


def questions(embedder, texts):
    """Embed questions as a memory does: by the embedder's own method for them, if it has one."""
    return embedder.embed_query(texts) if isinstance(embedder, QueryEmbedder) else embedder.embed(texts)


@pytest.fixture(params=[_WORDLLAMA, HashedEmbedder()], ids=["wordllama", "hashed"])
def embedder(request):
    """Each embedder that works offline."""
    return request.param


def test_embedders_meet_the_protocol(embedder):
    """Both embedders are recognised as such, and state an identity, dimensions and a threshold."""
    assert isinstance(embedder, Embedder)
    assert str(embedder.dimensions) in embedder.identity
    assert 0.0 < embedder.max_distance < 2.0


def test_rows_are_of_length_one_in_any_script(embedder):
    """Every text with something in it gets a row of length 1, in whatever script."""
    matrix = embedder.embed(_SCRIPTS)
    assert matrix.shape == (len(_SCRIPTS), embedder.dimensions)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(questions(embedder, _SCRIPTS), axis=1), 1.0, atol=1e-5)


def test_blank_texts_are_detectable(embedder):
    """A text without anything in it gets a row of zeros, which the caller can find and reject."""
    assert embedder.embed(["", "a fact", " \n\t"]).any(axis=1).tolist() == [False, True, False]
    assert embedder.embed([]).shape == (0, embedder.dimensions)


def test_a_text_embeds_the_same_alone_and_in_a_batch(embedder):
    """The other texts of a call, however long, do not change a text's vector."""
    texts = ["short", "word " * 30_000, "", "My sister lives in Lisbon."]
    together = embedder.embed(texts)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(embedder.embed([text])[0], row, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=40), max_size=5))
@example(["half a \ud83d pair", "\udfff"])
def test_any_text_embeds_to_finite_numbers(texts):
    """No text, lone surrogates included, raises or yields a number that is not finite."""
    for embedder in (_WORDLLAMA, HashedEmbedder()):
        matrix = questions(embedder, texts)
        assert matrix.shape == (len(texts), embedder.dimensions)
        assert np.isfinite(matrix).all()


@given(npst.arrays(np.float32, (4, 3), elements=st.floats(width=32)))
def test_normalised_rows_have_length_one_or_no_direction(matrix):
    """Normalising makes rows length 1; those with NaN, an infinity or only zeros become zero."""
    for row, normalised in zip(matrix, normalise_rows(matrix), strict=True):
        if np.isfinite(row).all() and row.any():
            assert np.linalg.norm(normalised.astype(np.float64)) == pytest.approx(1.0, abs=1e-4)
        else:
            assert not normalised.any()
