"""Hashed words and character n-grams: an embedder that needs nothing but numpy, for any language.

The hashing trick (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009) with
the word and n-gram features of fastText (Bojanowski et al., "Enriching Word Vectors with Subword
Information", TACL 2017). It finds texts that share words, parts of words, names, codes or runs of characters;
it knows no synonyms.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from aiochroma.embedding.protocol import normalise_rows
from aiochroma.text.analysis import sections, words_of_meaning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["HashedEmbedder"]

_DIMENSIONS = 512
_GRAM_LENGTHS = (3, 4)
_LONGEST_KEPT = 40
"""The longest word whose features are kept, some 2 kB; a run of characters without spaces may be 4,000 long."""


class HashedEmbedder:
    """Signed hashes of words and of their character n-grams, in 512 dimensions; the same on every machine."""

    @property
    def identity(self) -> str:
        """The features, their version and the dimensions."""
        return f"hashed-ngrams-2:{_DIMENSIONS}"

    @property
    def dimensions(self) -> int:
        """512."""
        return _DIMENSIONS

    @property
    def max_distance(self) -> float:
        """The distance below which this embedder calls two texts related.

        Measured with questions about long conversations: of the turns that answer, 79 % lie within 0.85, and
        of all turns 35 %; within 0.8 it is 62 % and 15 %, within 0.9 91 % and 59 %.
        """
        return 0.85

    @property
    def inline_characters(self) -> int:
        """200: one question, which takes 65 microseconds where handing it over takes 200 more."""
        return 200

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see ``Embedder.embed``."""
        sums = np.zeros((len(texts), _DIMENSIONS), dtype=np.float32)
        for row, text in enumerate(texts):
            counts = Counter(_words(text))
            if not counts:
                continue
            features = [
                _known_features(word) if len(word) <= _LONGEST_KEPT else _features(word) for word in counts
            ]
            # Sublinear: the tenth occurrence of a word says less than the first.
            weights = [1.0 + np.log(count) for count in counts.values()]
            lengths = [len(indices) for indices, _ in features]
            indices = np.concatenate([indices for indices, _ in features])
            values = np.concatenate([values for _, values in features]) * np.repeat(weights, lengths)
            sums[row] = np.bincount(indices, weights=values, minlength=_DIMENSIONS)
        return normalise_rows(sums)


def _words(text: str) -> list[str]:
    words: list[str] = []
    # The regular expression holds the interpreter.
    for section in sections(text):
        words += words_of_meaning(section if section.isascii() else unicodedata.normalize("NFKC", section))
    return words


def _features(word: str) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return where a word and its n-grams are counted, and with which sign and weight."""
    bounded = f"<{word}>"
    grams = [
        bounded[start : start + length]
        for length in _GRAM_LENGTHS
        for start in range(len(bounded) - length + 1)
        if length < len(bounded)
    ]
    hashes = np.array(
        [zlib.crc32(feature.encode("utf-8", "surrogatepass")) for feature in (bounded, *grams)],
        dtype=np.uint64,
    )
    signs = np.where((hashes >> np.uint64(31)) & np.uint64(1), 1.0, -1.0)
    weights = np.full(len(hashes), 1.0 / np.sqrt(max(1, len(grams))))
    weights[0] = 1.0
    return (hashes % np.uint64(_DIMENSIONS)).astype(np.intp), signs * weights


_known_features = lru_cache(maxsize=65_536)(_features)
