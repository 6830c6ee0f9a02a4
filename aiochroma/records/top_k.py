"""What a search says of the candidates it wants: a value that travels in a request, and knows no more than the records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiochroma.records.record import Record

__all__ = ["TopK"]


class TopK(ABC):
    """Chooses among the candidates of a question.

    Where candidates are found, before they are read: only what is wanted has to be read, and in the same request.
    Implementations are immutable, hashable, and quick; searches with equal ones are merged.
    """

    @abstractmethod
    def select(self, candidates: Iterable[Record]) -> list[Record]:
        """Return what is wanted of the candidates, best first; their documents and metadata may be missing."""
