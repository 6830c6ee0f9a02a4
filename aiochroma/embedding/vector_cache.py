"""The vectors of the texts that were embedded last, within a bound in bytes."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["VectorCache"]

# What an entry costs beside its text and its numbers: the array's header and the dictionary's node, on 64
# bit.
_ENTRY_OVERHEAD = 250


class VectorCache:
    """A least-recently-used cache from text to vector; every method may be called from any thread.

    Vectors come out as they went in, and are shared: they are marked read-only when they go in.
    """

    def __init__(self, max_bytes: int) -> None:
        """Make an empty cache.

        Args:
            max_bytes: The memory that texts and vectors together may take; 0 keeps nothing.

        Raises:
            ValueError: ``max_bytes`` is negative.
        """
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, not {max_bytes}")
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._bytes = 0
        self._hits = 0
        self._misses = 0

    def get(self, text: str) -> NDArray[np.float32] | None:
        """Return the vector of a text, or None; the text becomes the most recently used."""
        with self._lock:
            vector = self._vectors.get(text)
            if vector is None:
                self._misses += 1
                return None
            self._hits += 1
            self._vectors.move_to_end(text)
            return vector

    def put(self, text: str, vector: NDArray[np.float32]) -> None:
        """Keep a vector (a copy, unless it owns its memory) and drop the least recently used ones.

        A vector that alone exceeds the bound is not kept.
        """
        # A row of a batch keeps the whole batch alive, which the bound would not see.
        kept = vector if vector.base is None else vector.copy()
        kept.flags.writeable = False
        with self._lock:
            self._discard(text)
            size = _size(text, kept)
            if size > self._max_bytes:
                return
            self._vectors[text] = kept
            self._bytes += size
            while self._bytes > self._max_bytes:
                oldest, dropped = self._vectors.popitem(last=False)
                self._bytes -= _size(oldest, dropped)

    def clear(self) -> None:
        """Forget everything but the counters of hits and misses."""
        with self._lock:
            self._vectors.clear()
            self._bytes = 0

    def stats(self) -> dict[str, int]:
        """Return the counters ``entries``, ``bytes``, ``max_bytes``, ``hits`` and ``misses``."""
        with self._lock:
            return {
                "entries": len(self._vectors),
                "bytes": self._bytes,
                "max_bytes": self._max_bytes,
                "hits": self._hits,
                "misses": self._misses,
            }

    def __len__(self) -> int:
        with self._lock:
            return len(self._vectors)

    def _discard(self, text: str) -> None:
        dropped = self._vectors.pop(text, None)
        if dropped is not None:
            self._bytes -= _size(text, dropped)


def _size(text: str, vector: NDArray[np.float32]) -> int:
    return sys.getsizeof(text) + int(vector.nbytes) + _ENTRY_OVERHEAD
