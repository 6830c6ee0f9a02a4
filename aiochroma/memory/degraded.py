"""Results that are empty because the store was unavailable, and say so: falsy, and they carry the error."""

from __future__ import annotations

__all__ = ["NoItems", "NoNumber", "NoText"]


class NoText(str):
    """The empty string that an unavailable store gives for an id; ``error`` tells why."""

    __slots__ = ("error",)

    def __new__(cls, error: BaseException) -> NoText:
        """Make the empty string with its reason."""
        text = super().__new__(cls)
        text.error = error
        return text

    error: BaseException


class NoNumber(int):
    """The zero that an unavailable store gives for a number; ``error`` tells why."""

    error: BaseException

    def __new__(cls, error: BaseException) -> NoNumber:
        """Make the zero with its reason."""
        number = super().__new__(cls)
        number.error = error
        return number


class NoItems(list[str]):
    """The empty list that an unavailable store gives; ``error`` tells why."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
