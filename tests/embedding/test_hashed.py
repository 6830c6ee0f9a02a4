"""The hashed n-grams: the same everywhere, near for what shares words or parts of words."""

from __future__ import annotations

import numpy as np
import pytest
from programs import printed_by

from aiochroma.embedding.words import HashedEmbedder


@pytest.mark.parametrize(
    ("text", "alike", "other"),
    [
        ("the code is XK-4711", "what was XK-4711", "what was QP-9920"),
        ("Schifffahrtsgesellschaft", "Schifffahrt", "Bergsteiger"),
        ("東京タワーに行きました", "東京タワー", "大阪城"),
        ("she photographed birds", "photography", "cooking"),
    ],
)
def test_shared_words_and_parts_of_words_are_near(text, alike, other):
    """What shares words, codes or parts of words is nearer than what does not, in any script."""
    one, near, far = HashedEmbedder().embed([text, alike, other])
    assert one @ near > one @ far


def test_vectors_do_not_depend_on_the_process():
    """Another process with another hash seed computes the same vector."""
    program = (
        "from aiochroma.embedding.words import HashedEmbedder\n"
        "print(HashedEmbedder().embed(['Zürich, 東京 and XK-4711']).tobytes().hex())"
    )
    shown = printed_by("-c", program, PYTHONHASHSEED="4711")
    here = HashedEmbedder().embed(["Zürich, 東京 and XK-4711"])
    np.testing.assert_array_equal(np.frombuffer(bytes.fromhex(shown.strip()), np.float32), here[0])
