"""Which versions of an item are superseded: while several puts of it are on their way, and after one that died."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Mapping

    import chromadb

    from aiochroma.client.collection import Collection as Records
    from aiochroma.client.session import LazyClient

__all__ = ["Versions"]

_LONGEST_PUT = 3600.0
"""A put that began before, in seconds, is over, whichever process it was of."""


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
        self._complete_until = 0.0

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

    async def abandoned(self, client: LazyClient, items: str, vectors: str) -> list[str]:
        """Return the versions that have vectors and that no item names: whoever wrote or deleted the item has died.

        What was looked at the last time is not looked at again.

        Args:
            client: Of the database.
            items: The collection of the items.
            vectors: The collection of their vectors.
        """
        after, until = self._complete_until, time.time() - _LONGEST_PUT

        async def made(collection: Records) -> dict[str, str]:
            where = {"$and": [{"made": {"$gte": after}}, {"made": {"$lte": until}}]}
            found = await collection.get(where=cast("chromadb.Where", where), include=["metadatas"])
            return {str(one["version"]): str(one["item"]) for one in found["metadatas"] or ()}

        async def named(collection: Records) -> set[str]:
            found = await collection.get(sorted(set(versions.values())), include=["metadatas"])
            return {str(one["version"]) for one in found["metadatas"] or ()}

        versions = await client.on_collection(vectors, made, absent=dict[str, str]())
        self._complete_until = until
        if not versions:
            return []
        return sorted(versions.keys() - await client.on_collection(items, named, absent=set[str]()))
