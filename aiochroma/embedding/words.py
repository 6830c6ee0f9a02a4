"""Embedders that add up a vector for each word, without network or model: hashed ones, and those of the ``wordllama`` wheel."""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from aiochroma._distribution import install_line, missing_extra
from aiochroma._errors import EmbedderError
from aiochroma.embedding.protocol import load_tokenizer, normalise_rows, package_folder
from aiochroma.text.analysis import bounded_question, is_english_question, sections, words_of_meaning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["HashedEmbedder", "WordLlamaEmbedder"]

_DIMENSIONS = 512
_GRAM_LENGTHS = (3, 4)
_LONGEST_KEPT = 40
"""The longest word whose features are kept, some 2 kB; a run of characters without spaces may be 4,000 long."""

_NAME = "The embedder of offline word vectors"
_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
_TOKENS_AT_ONCE = 8192
"""The most tokens of one text gathered at once: 8192 rows of 256 float32 are 8 MiB, whatever the length of a text."""
_TOKENS_TOGETHER = 1024
"""Of several texts: 1 MiB stays in the processor's cache, and is added up in half the time of 8."""


class HashedEmbedder:
    """Signed hashes of words and of their character n-grams, in 512 dimensions; the same on every machine.

    Needs nothing but numpy, for any language. The hashing trick (Weinberger et al., "Feature Hashing for Large Scale Multitask
    Learning", ICML 2009) with the word and n-gram features of fastText (Bojanowski et al., "Enriching Word Vectors with Subword
    Information", TACL 2017). It finds texts that share words, parts of words, names, codes or runs of characters; it knows no
    synonyms.
    """

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


class WordLlamaEmbedder:
    """Mean of static word vectors (WordLlama ``l2_supercat``, 256 dimensions, English).

    About 20 microseconds for a sentence, no model to download. Texts may be of any length: every token
    counts. It knows meaning but not order, and cannot tell one number from another; the full-text index
    beside it does.

    Only the two data files of the wheel are read. Importing its Python side would configure the root logger, add warning filters
    and import an HTTP client, in whatever thread happens to embed first; and its own pooling pads a batch to its longest text,
    which costs gigabytes when one text of a batch is long.

    Instances share nothing and may be used from several threads at once; making one takes about 0.1 s.
    """

    def __init__(self) -> None:
        """Load the weights.

        Raises:
            MissingExtraError: wordllama, or what it needs, is not installed.
            EmbedderError: It is installed, but without the files that it is known to carry.
        """
        folder = package_folder("wordllama")
        if folder is None:
            raise missing_extra(_NAME, "local", "wordllama")
        _require_file(folder / _TOKENIZER)
        self._tokenizer = load_tokenizer(folder / _TOKENIZER, _NAME, "local")
        # Its model takes whole texts for words and keeps 10,000 of them, 6 kB each, to split a text faster that comes again.
        resize = getattr(self._tokenizer.model, "_resize_cache", None)
        if resize is not None:  # Older releases of `tokenizers` do not have it.
            resize(0)
        self._vectors, checksum = _load_vectors(folder / _WEIGHTS)
        self._identity = f"wordllama:l2_supercat:{self.dimensions}:mean:{checksum:08x}"

    @property
    def identity(self) -> str:
        """The model, the pooling and a checksum of the weights: other weights are another embedder."""
        return self._identity

    @property
    def dimensions(self) -> int:
        """256."""
        return int(self._vectors.shape[1])

    @property
    def max_distance(self) -> float:
        """The distance below which this embedder calls two texts related.

        Measured with questions about long conversations: of the turns that answer, 91 % lie within 0.85, and
        of all turns 42 %; within 0.8 it is 84 % and 26 %, within 0.7 63 % and 8 %.
        """
        return 0.85

    @property
    def inline_characters(self) -> int:
        """200: one question, which takes 65 microseconds where handing it over takes 200 more."""
        return 200

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see ``Embedder.embed``."""
        sums = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        pending: list[int] = []
        rows: list[int] = []
        starts: list[int] = []
        for row, text in enumerate(texts):
            tokens = self.token_ids(text)
            for start in range(0, len(tokens), _TOKENS_AT_ONCE):
                section = tokens[start : start + _TOKENS_AT_ONCE]
                if pending and len(pending) + len(section) > _TOKENS_TOGETHER:
                    self._add_up(sums, rows, starts, pending)
                    pending, rows, starts = [], [], []
                rows.append(row)
                starts.append(len(pending))
                pending.extend(section)
        self._add_up(sums, rows, starts, pending)
        return normalise_rows(sums)

    def embed_query(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed questions by their words of meaning; the others are half of a question and say little.

        On five LoCoMo conversations this raises recall@10 of turns by vectors alone from 44 to 53 %. In other languages the
        function words are not known, and capitals mean something.
        """
        bounded = [bounded_question(text) for text in texts]
        return self.embed(
            [" ".join(words_of_meaning(text)) if is_english_question(text) else text for text in bounded]
        )

    def token_ids(self, text: str) -> list[int]:
        """Split a text into the model's tokens.

        Args:
            text: Any text. A character that UTF-8 does not have (a lone surrogate) counts as a question mark.

        Returns:
            Indices into the model's vocabulary; empty for a blank text.
        """
        if not text or text.isspace():
            return []
        ids: list[int] = []
        # The tokenizer holds the interpreter: half a second for 600,000 characters as one.
        for section in sections(text):
            try:
                encoding = self._tokenizer.encode(section, add_special_tokens=False)
            except (
                TypeError,
                UnicodeEncodeError,
            ):  # Which of them, changes with the release of `tokenizers`.
                readable = section.encode("utf-8", "replace").decode("utf-8")
                encoding = self._tokenizer.encode(readable, add_special_tokens=False)
            ids += encoding.ids
        return ids

    def _add_up(
        self, sums: NDArray[np.float32], rows: list[int], starts: list[int], tokens: list[int]
    ) -> None:
        """Add the vectors of the tokens from each start to the next to the row it belongs to."""
        if rows:
            # A row occurs at most once here: the next section of a long text never fits
            # beside the one before it.
            sums[rows] += np.add.reduceat(self._vectors[tokens], starts, axis=0)


def _load_vectors(path: Path) -> tuple[NDArray[np.float32], int]:
    try:
        from safetensors.numpy import load
    except ImportError as error:
        raise missing_extra(_NAME, "local", "safetensors") from error
    _require_file(path)
    content = path.read_bytes()
    vectors = load(content)["embedding.weight"]
    return np.ascontiguousarray(vectors, dtype=np.float32), zlib.crc32(content)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise EmbedderError(
            f"The installed wordllama does not carry {path.parent.name}/{path.name}: install a release of it that does "
            f"({install_line('local')}), or give the memory another `embedder`."
        )
