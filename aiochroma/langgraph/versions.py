"""Which versions of an item have been superseded while several puts of it are on their way."""

from __future__ import annotations

import threading
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
    known here, so nothing takes them away.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: dict[str, _OnTheirWay] = {}

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
            All versions known of these items, and the ids of those items that more than one put was on its way to.
        """
        with self._lock:
            items = {id: self._items[id] for id in versions}
            for id, item in items.items():
                item.versions.update(versions[id])
            known = {version for item in items.values() for version in item.versions}
            return known, {id for id, item in items.items() if item.several}
