"""What the calls of a memory return: ordinary values that also say why they are empty.

With ``on_failure="degrade"`` a store that is unavailable gives an empty, falsy result of the same type whose ``error`` is the
reason. Everywhere else ``error`` is None, so an outage can be told from "there is none".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from aiochroma.memory.recall import Hit

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Count", "Id", "Items", "Page", "UnavailableHit"]

T = TypeVar("T")


class Id(str):  # noqa: SLOT000 - it has an attribute
    """The id of a memory; empty when the store was unavailable.

    Attributes:
        error: Why it is empty, or None.
    """

    error: BaseException | None = None

    @classmethod
    def failed(cls, error: BaseException) -> Self:
        """Make the empty one."""
        empty = cls()
        empty.error = error
        return empty


class Count(int):
    """A number of memories; 0 when the store was unavailable.

    Attributes:
        error: Why it is 0 although nothing was counted, or None.
    """

    error: BaseException | None = None

    @classmethod
    def failed(cls, error: BaseException) -> Self:
        """Make the one that counted nothing."""
        nothing = cls()
        nothing.error = error
        return nothing


class Items(list[T], Generic[T]):
    """A list of ids, names, memories or changes; empty when the store was unavailable.

    Attributes:
        error: Why it is empty, or None.
    """

    error: BaseException | None = None

    @classmethod
    def failed(cls, error: BaseException) -> Self:
        """Make the empty one."""
        empty = cls()
        empty.error = error
        return empty


class Page(Items[Hit]):
    """Some memories of a namespace, in order.

    Attributes:
        next: Where to go on: give it to ``list(after=...)``. None when there is nothing more.
        error: Why it is empty, or None.
    """

    next: str | None = None


@dataclass(frozen=True)
class UnavailableHit(Hit):
    """Stands where a memory would be, were the store available: falsy, and without content.

    Attributes:
        error: Why.
    """

    id: str = ""
    text: str = ""
    namespace: str = ""
    distance: float | None = None
    score: float = 0.0
    error: BaseException | None = field(default=None, compare=False)

    @classmethod
    def failed(cls, error: BaseException) -> Hit | None:
        """Make one."""
        return cls(error=error)

    def __bool__(self) -> Literal[False]:
        """Return False."""
        return False
