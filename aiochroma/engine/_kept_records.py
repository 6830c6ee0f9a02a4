"""The texts and metadata that searches found last, so that what is found again is not read again.

Of a search for many questions at once, reading what was found takes longer than finding it: each record is looked up in
SQLite by itself. Used on the DB thread alone, through which every write passes: what is written is forgotten before.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiochroma.engine._records import Record

__all__ = ["KeptRecords"]

_MAX_BYTES = 16 * 2**20
# What an entry takes beside its texts and values, on 64 bit: its key, its dictionary, the node of the cache.
_ENTRY_BYTES = 600
# Reading the few that are missing costs a call of its own, so it has to be few.
_MISSING_SHARE = 0.2

Kept = tuple[str, dict[str, Any], int]


class KeptRecords:
    """A least-recently-used cache of records, bounded in bytes.

    Args:
        max_bytes: What it may take.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._bytes = 0
        self._warm: set[str] = set()

    def is_warm(self, collection: str) -> bool:
        """Tell whether most of what the last search found was here."""
        return collection in self._warm

    def complete(self, collection: str, records: Iterable[Record]) -> list[str]:
        """Give records without metadata what is known of them.

        Returns:
            The ids of those of which nothing is.
        """
        missing: dict[str, None] = {}
        for record in records:
            if record["metadata"] is None:
                key = (collection, record["id"])
                known = self._kept.get(key)
                if known is None:
                    missing[record["id"]] = None
                else:
                    self._kept.move_to_end(key)
                    record.update(document=known[0], metadata=dict(known[1]))
        return list(missing)

    def note(self, collection: str, found: Sequence[str]) -> None:
        """Note, before they are kept, how much of what was found is here."""
        missing = sum((collection, id) not in self._kept for id in found)
        if missing > _MISSING_SHARE * len(found):
            self._warm.discard(collection)
        else:
            self._warm.add(collection)

    def keep(
        self,
        collection: str,
        ids: Sequence[str],
        documents: Sequence[str | None],
        metadatas: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Keep records as they were read."""
        for id, document, metadata in zip(ids, documents, metadatas, strict=True):
            key = (collection, id)
            self._drop(key)
            text, values = document or "", dict(metadata or {})
            size = _ENTRY_BYTES + sys.getsizeof(text)
            size += sum(sys.getsizeof(name) + sys.getsizeof(value) for name, value in values.items())
            self._kept[key] = (text, values, size)
            self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._kept.popitem(last=False)[1][2]

    def forget(self, collection: str, ids: Iterable[str] | None) -> None:
        """Forget records that are written, or all of a collection."""
        for key in (
            [(collection, id) for id in ids]
            if ids is not None
            else [key for key in self._kept if key[0] == collection]
        ):
            self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._warm.clear()
        self._bytes = 0

    def _drop(self, key: tuple[str, str]) -> None:
        dropped = self._kept.pop(key, None)
        if dropped is not None:
            self._bytes -= dropped[2]
