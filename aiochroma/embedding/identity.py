"""Telling embedders apart: by name where they have one, and by what they return where they have not.

The identity of an embedder is stored with the data and shown in messages, health reports and logs. So it holds names and
model names only: no keys, addresses, headers, time-outs, devices. Two functions of one name may still embed differently (a
lambda, a partial, a method of two objects), and one function may be renamed. Therefore a fingerprint is stored as well: what the
embedder makes of one fixed text. Where names leave a doubt, fingerprints decide.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from aiochroma._types import Vector
from aiochroma.embedding.functions import kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


__all__ = ["PROBE", "fingerprint_of", "identity_of", "is_alike", "is_same_name"]

PROBE = "Our grey cat slept on the warm roof."
"""What every embedder is asked to embed; part of the stored format."""

MINILM = "minilm:all-MiniLM-L6-v2:384"
"""One model under several names: that of Chroma's two functions and of ours."""

_TELLING = (
    "model_name",
    "model",
    "model_id",
    "revision",
    "checkpoint",
    "dimensions",
    "task",
    "task_type",
    "instruction",
    "instructions",
    "normalize_embeddings",
    "late_chunking",
    "embedding_type",
    "language",
)
"""What in a configuration says which vectors come out. The rest says who asks, where, and with which key."""
_MINILM_NAMES = frozenset({"default", "onnx_mini_lm_l6_v2"})
_LONGEST = 200
_NUMBERS = 64
_TOLERANCE = 0.1
"""Of the length of a fingerprint. The same model on other hardware differs by a hundredth, another model by more than 1."""


def identity_of(function: Any) -> tuple[str, bool]:
    """Name an embedding function.

    Args:
        function: A Chroma embedding function, or any callable. One that has an ``identity`` (a text) names itself.

    Returns:
        The name, and whether it is certain: whether equal names mean equal vectors.
    """
    own = getattr(function, "identity", None)
    if isinstance(own, str) and own:
        return own, True
    if callable(getattr(function, "name", None)) and callable(getattr(function, "get_config", None)):
        name, config = function.name(), function.get_config()
        if isinstance(name, str) and isinstance(config, dict):
            identity = _chromas(name, config)
            return identity, kind_of(function).startswith("chromadb.") and "model" in identity
    return f"function:{kind_of(function)}", False


def is_same_name(stored: str, identity: str) -> bool:
    """Tell whether two identities name the same embedder, also where one was written with its whole configuration."""
    return _reduced(stored) == _reduced(identity)


def fingerprint_of(vector: Sequence[float] | Vector) -> str:
    """Write down what an embedder made of ``PROBE``: some of its numbers, as text."""
    import numpy as np

    return base64.b64encode(_some(vector).astype(np.float16).tobytes()).decode("ascii")


def is_alike(stored: str, fingerprint: str) -> bool:
    """Tell whether two fingerprints are those of one embedder; what cannot be read is like no other."""
    import numpy as np

    try:
        known, now = (
            np.frombuffer(base64.b64decode(text, validate=True), dtype=np.float16).astype(np.float32)
            for text in (stored, fingerprint)
        )
    except (binascii.Error, ValueError):
        return False
    if len(known) != len(now):
        return False
    return bool(np.linalg.norm(known - now) <= _TOLERANCE * max(np.linalg.norm(known), np.linalg.norm(now)))


def _some(vector: Sequence[float] | Vector) -> Any:
    import numpy as np

    numbers = np.asarray(vector, dtype=np.float32)
    chosen = numbers[np.linspace(0, len(numbers) - 1, min(_NUMBERS, len(numbers))).astype(int)]
    # Lengths do not count: distances are those of the cosine. Divided, they are within what 16 bits hold.
    divided: Any = chosen / (float(np.linalg.norm(numbers)) or 1.0)
    return divided


def _chromas(name: str, config: Mapping[str, Any]) -> str:
    if name in _MINILM_NAMES:
        return MINILM
    telling = {
        key: value
        for key in _TELLING
        if isinstance(value := config.get(key), (str, int, float, bool)) and len(str(value)) <= _LONGEST
    }
    return f"chroma:{name}:{json.dumps(telling, sort_keys=True)}"


def _reduced(identity: str) -> str:
    kind, _, rest = identity.partition(":")
    name, _, written = rest.partition(":")
    if kind != "chroma" or not written.startswith("{"):
        return identity
    try:
        config = json.loads(written)
    except ValueError:
        return identity
    return _chromas(name, config) if isinstance(config, dict) else identity
