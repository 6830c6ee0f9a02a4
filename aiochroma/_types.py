"""Names for what Chroma and JSON leave open. What is looked at only by passing it on is ``object`` elsewhere; these are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from uuid import UUID

    import numpy as np
    import numpy.typing as npt

__all__ = ["CollectionId", "JsonObject", "Metadata", "MetadataView", "Vector", "Vectors", "Where"]

Metadata: TypeAlias = dict[str, Any]
"""A record's metadata: under each key a text, a number, a boolean, or a list of one of these."""

MetadataView: TypeAlias = Mapping[str, Any]
"""Metadata that is not changed."""

Where: TypeAlias = Mapping[str, Any]
"""A filter in Chroma's language, on metadata or on documents."""

JsonObject: TypeAlias = dict[str, Any]
"""An object as JSON has it."""

Vector: TypeAlias = "npt.NDArray[np.float32]"
"""One embedding."""

Vectors: TypeAlias = "Sequence[npt.NDArray[np.float32]]"
"""Embeddings, one for each text or record."""

CollectionId: TypeAlias = "UUID | str"
"""The id of a collection; Chroma takes either form."""
