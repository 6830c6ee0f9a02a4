"""Which versions of an item have been superseded while several puts of it are on their way."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Mapping

__all__ = ["Versions"]


class _OnTheirWay:
    """What is known of the puts of one item, as long as there is one."""

    def __init__(self) -> None:
        self.puts: int = 0
        self.several: bool = False
        self.versions: set[str] = set()


class Versions:
    """The versions of items that puts have written or found, until no put of the item is on its way any more.

    Of puts of one key at the same time, each finds the same former version, and the last to write the item wins. Which one that
    is only the item itself says; the vectors of all others can go. Those of a put that has not written its item yet are not
    known here, so nothing takes them away. What a put has done that failed in between only the item says, too: the next put,
    of whatever key, asks it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: dict[str, _OnTheirWay] = {}
        self._left: dict[str, set[str]] = {}
        self._last_time = 0.0

    def now(self) -> float:
        """Return this moment in whole microseconds, later than the one before: items are listed in the order of their puts."""
        with self._lock:
            self._last_time = max(round(time.time(), 6), round(self._last_time + 1e-6, 6))
            return self._last_time

    @contextmanager
    def putting(self, ids: Collection[str]) -> Generator[None]:
        """Count puts of these items as on their way."""
        with self._lock:
            for id in ids:
                item = self._items.setdefault(id, _OnTheirWay())
                item.several = item.several or item.puts > 0
                item.puts += 1
        try:
            yield
        finally:
            with self._lock:
                for id in ids:
                    self._items[id].puts -= 1
                    if not self._items[id].puts:
                        del self._items[id]

    def written(self, versions: Mapping[str, Iterable[str]]) -> tuple[set[str], set[str]]:
        """Note versions of items that were written or found, for each item whose put is on its way.

        Returns:
            All versions known of these items and of those that failed puts have left, and the ids of the items that have to be
            asked which of them is theirs: more than one put was on its way to them, or one has failed.
        """
        with self._lock:
            items = {id: self._items[id] for id in versions}
            for id, item in items.items():
                item.versions.update(versions[id])
            known = {version for item in items.values() for version in item.versions}
            known.update(*self._left.values())
            return known, {id for id, item in items.items() if item.several} | set(self._left)

    def leave(self, versions: Iterable[tuple[str, str]]) -> None:
        """Note versions, each behind the id of its item, of a put that failed: which of them is the item's is not known."""
        with self._lock:
            for id, version in versions:
                self._left.setdefault(id, set()).add(version)

    def settle(self, versions: Collection[str]) -> None:
        """Forget versions that failed puts have left: they are gone, or those of their items."""
        with self._lock:
            for left in self._left.values():
                left.difference_update(versions)
            self._left = {id: left for id, left in self._left.items() if left}
