"""The static word vectors: offline, meaningful, and without side effects."""

from __future__ import annotations

import ctypes
import importlib.util
import sys

import pytest
from programs import printed_by

import aiochroma
from aiochroma.embedding import words as _wordllama
from aiochroma.embedding.words import WordLlamaEmbedder


def test_meaning_is_nearer_than_something_else():
    """A question is nearer to what answers it in other words than to an unrelated sentence."""
    embedder = WordLlamaEmbedder()
    memories = embedder.embed(["She adopted a puppy from the shelter.", "The train to Oslo was late."])
    question = embedder.embed_query(["What dog does she have?"])[0]
    near, far = memories @ question
    assert near > far


def test_half_a_character_counts_as_a_question_mark():
    """In a text and in a question: it came from somewhere that cut it."""
    embedder = WordLlamaEmbedder()
    assert embedder.token_ids("a cat \ud83d") == embedder.token_ids("a cat ?")
    assert embedder.embed_query(["\ud83d"]).shape == (1, embedder.dimensions)


def test_loading_changes_nothing_global():
    """Loading and using the vectors leaves the root logger, the environment and the warning filters alone."""
    program = (
        "import logging, os, warnings, numpy, safetensors.numpy, tokenizers\n"
        "from aiochroma.embedding.words import WordLlamaEmbedder\n"
        "def state(): return (list(logging.root.handlers), logging.root.level, dict(os.environ), "
        "list(warnings.filters))\n"
        "before = state()\n"
        "WordLlamaEmbedder().embed(['a fact'])\n"
        "assert state() == before\n"
        "import sys; assert 'wordllama' not in sys.modules\n"
    )
    printed_by("-c", program)


def test_a_missing_package_names_the_extra(monkeypatch):
    """Without wordllama the error says which extra brings it, and is an ImportError."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(aiochroma.MissingExtraError, match=r"aiochroma-memory\[local\]") as caught:
        WordLlamaEmbedder()
    assert isinstance(caught.value, ImportError)


def test_missing_weights_are_named(monkeypatch, tmp_path):
    """A wordllama without the files that are read gives an error that names the file."""
    monkeypatch.setattr(_wordllama, "package_folder", lambda name: tmp_path)
    with pytest.raises(aiochroma.EmbedderError, match="l2_supercat"):
        WordLlamaEmbedder()


class _Allocated(ctypes.Structure):
    """What glibc tells of its heaps: ten numbers of bytes and pieces."""

    _fields_ = [(f"field_{number}", ctypes.c_size_t) for number in range(10)]

    in_use = property(lambda self: self.field_7)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="glibc tells what is allocated",
)
def test_texts_that_were_embedded_are_not_kept():
    """Thousands of texts that are all different leave nothing behind: the tokenizer would keep 6 kB of each."""
    allocated = ctypes.CDLL(None).mallinfo2
    allocated.restype = _Allocated
    embedder = WordLlamaEmbedder()
    embedder.embed(["a first text"])
    before = allocated().in_use
    for start in range(0, 3000, 100):
        embedder.embed(
            [
                f"What was said at moment {n} in the {n * n}th of {n + 7} meetings is about {n * 31} gardens and trains."
                for n in range(start, start + 100)
            ]
        )
    assert allocated().in_use - before < 3_000_000
