"""Vectors that Chroma would refuse, found before anything of a long write is written.

Importing this module imports chromadb; that happens after the DB thread has imported it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from chromadb.errors import InvalidArgumentError

__all__ = ["check_vectors"]


def check_vectors(embeddings: Any) -> None:
    """Find what Chroma would refuse in the middle of a write that is cut into slices.

    Raises:
        chromadb.errors.InvalidArgumentError: As Chroma would, but naming the vector.
    """
    if not len(embeddings):
        return
    dimensions = len(embeddings[0])
    for position, vector in enumerate(embeddings):
        if len(vector) != dimensions:
            raise InvalidArgumentError(
                f"Inconsistent dimensions in provided embeddings: embeddings[{position}] has {len(vector)} dimensions, "
                f"embeddings[0] has {dimensions}. Nothing was written."
            )
    finite = np.isfinite(np.asarray(embeddings)).all(axis=1)
    if not finite.all():
        raise InvalidArgumentError(
            f"Embeddings must not contain NaN or Infinity values: embeddings[{int(np.flatnonzero(~finite)[0])}] does. "
            "Nothing was written."
        )
