"""What every backend is: something that carries out requests and says what it can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aiochroma.core.connection import BackendInfo, Capabilities

if TYPE_CHECKING:
    from chromadb.api import ServerAPI

    from aiochroma.core.request import Request

__all__ = [
    "Backend",
    "BackendInfo",
    "Capabilities",
    "FurtherOperations",
    "MakeHook",
    "ServerOperations",
    "WriteHook",
]


class Backend(Protocol):
    """An open database: Chroma in this process, or a Chroma server."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    def execute(self, request: Request, deadline: float | None = None) -> Any:
        """Carry out one call and return its result.

        Args:
            request: The call.
            deadline: The moment (``time.monotonic()``) after which the result is no longer awaited, or None. It bounds waiting
                and repeating; a write that was sent completes.
        """

    def describe(self) -> BackendInfo:
        """Return what is known of it; called from any thread, never blocks."""

    def stop_retrying(self) -> None:
        """Repeat nothing any more: what is under way ends soon."""

    def close(self) -> None:
        """Give everything back."""


MakeHook = Callable[["ServerAPI", Path | None, Mapping[str, int]], "WriteHook"]
"""Makes what follows the writes of an open database: from Chroma, the database's directory (None without one), and by collection
id how far its log went when it was opened."""


class FurtherOperations(Protocol):
    """Operations that Chroma does not have, carried out where Chroma is called."""

    def operations(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""

    def collections_changed(self) -> None:
        """Note that collections may have been made, renamed or deleted."""


class ServerOperations(FurtherOperations, Protocol):
    """Operations on a server, which know of the writes that are made beside them."""

    def after_write(self, request: Request) -> None:
        """Follow a write of Chroma's own that was carried out, or may have been."""

    def close(self) -> None:
        """Give everything back."""


class WriteHook(FurtherOperations, Protocol):
    """What follows the writes of a backend, on its thread, such as a full-text index."""

    def after_write(self, request: Request) -> None:
        """Follow a write of Chroma's own that was carried out."""

    def work(self) -> bool:
        """Do a slice of what is left to do; return whether there is more."""

    def distrust(self, collection: str) -> None:
        """Note that a write to a collection failed that may have happened."""

    def forget_collection(self, collection: str) -> None:
        """Drop a collection that is gone, by its id."""

    def forget_everything(self) -> None:
        """Drop all collections."""

    def close(self, positions: Mapping[str, int]) -> None:
        """Note how far the log of each collection goes, and give everything back."""
