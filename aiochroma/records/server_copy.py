"""What is known of a namespace of a server that is copied here, and what is noted of that in the file for the next start."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma.records.record import UPDATED_AT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiochroma._types import MetadataView
    from aiochroma.backend.chroma_records import Database
    from aiochroma.text.index import TextIndex

__all__ = [
    "SKEW_SECONDS",
    "Copy",
    "FreshCodes",
    "Mark",
    "leaving",
    "newest_stamps",
    "note_changed",
    "stamp_of",
]

SKEW_SECONDS = 60.0
"""How far other clocks are thought to be behind, at first."""
_ON_THE_WAY_SECONDS = 1.0
"""How much later than it was stamped a write may come to the server."""
_KEPT_SECONDS = 7 * 86_400.0
"""After this time what lies in the file of a namespace is not believed any more."""
_UNUSED_SECONDS = 600.0
"""A namespace that was not searched for this time makes room for another."""
_MOST_UNREAD = 1000
"""With more that this client has written, a namespace is read again whole."""
_NEWEST = 100
"""So many of those that were changed last tell whether the server was put back to an earlier state."""
_CODE_BYTES = 8 * 2**20
"""The most bytes of codes that wait for their memories: those of some 10,000."""


@dataclass
class Mark:
    """What the file has of a namespace.

    Attributes:
        tenant: The namespace's tenant.
        database: The namespace's database.
        as_of: What was stamped up to then is here, give or take the skew.
        skew: How far back a question about changes has to go, in seconds.
        read_at: When it was read whole.
        unread: What this client has written since.
        is_tidy: Nothing is left of memories that were changed, or taken out.
    """

    tenant: str
    database: str
    as_of: float
    skew: float
    read_at: float
    unread: list[str] = field(default_factory=list)
    is_tidy: bool = False

    @classmethod
    def of(cls, text: str | None) -> Mark | None:
        """Read a mark; None for whatever else lies in the file, and for one that is too old, or of a clock that was ahead."""
        try:
            mark = cls(**json.loads(text or ""))
            numbers = (mark.as_of, mark.skew, mark.read_at)
            texts = (mark.tenant, mark.database, *mark.unread)
            usable = all(isinstance(one, float) and math.isfinite(one) for one in numbers)
        except (ValueError, TypeError, RecursionError):
            return None
        if not usable or not all(isinstance(one, str) for one in texts):
            return None
        now = time.time()
        return mark if now - _KEPT_SECONDS < mark.read_at <= now and mark.as_of <= now else None

    def __str__(self) -> str:
        return json.dumps(asdict(self))


@dataclass
class Copy:
    """A namespace that is followed.

    Attributes:
        db: The namespace's tenant and database.
        lock: Held by the search that brings it up to date.
        ids: Those that are to be copied, in the server's order; None before that has begun.
        copied: How many of them were.
        is_complete: Whether all were.
        followed_at: When the last question was asked that was answered (``monotonic()``).
        asked_at: When that question was asked, on the clock that memories are stamped with.
        looked_back_at: When the last question was asked that went further back.
        compared_at: When the ids were compared last.
        skew: How far back a question about changes has to go, in seconds.
        must_look_back: Whether the next question has to go further back, however long ago the last such one was.
        read_at: When the namespace was read whole, on the clock that memories are stamped with.
        noted_at: When its mark was written last.
        unread: What this client has written.
        used_at: When it was searched last.
        refused_until: Until when it is not asked again whether there is room for it.
        count: How many memories it had when it was refused.
    """

    db: Database
    lock: threading.Lock = field(default_factory=threading.Lock)
    ids: list[str] | None = None
    copied: int = 0
    is_complete: bool = False
    followed_at: float = 0.0
    asked_at: float = 0.0
    looked_back_at: float = 0.0
    compared_at: float = 0.0
    skew: float = SKEW_SECONDS
    must_look_back: bool = True
    read_at: float = 0.0
    noted_at: float = 0.0
    unread: set[str] = field(default_factory=set)
    used_at: float = field(default_factory=monotonic)
    refused_until: float = 0.0
    count: int = 0

    @property
    def share(self) -> float:
        """Which share of the namespace is here."""
        return 1.0 if self.is_complete else min(0.999, self.copied / len(self.ids)) if self.ids else 0.0

    def asked_since(self, *, looks_back: bool) -> float:
        """Return from which moment on it is asked for what was changed."""
        return self.asked_at - (self.skew if looks_back else _ON_THE_WAY_SECONDS)

    def refusal(self, most: int) -> str:
        """Say why it is not kept, where so many memories may be."""
        return (
            f"The namespace has {self.count:,} memories, and {most:,} of a server are kept in this process at most. Words were "
            "compared with what the server came up with: some hits may be missing. A directory has no such limit; on Chroma "
            "Cloud a namespace whose memories have sparse vectors (`sparse_embedder`) has none either."
        )


class FreshCodes:
    """The codes of the tokens of what this client has written, until the copy has read it from the server."""

    def __init__(self) -> None:
        self._codes: dict[tuple[str, str], bytes] = {}
        self._bytes = 0

    def put(self, collection: str, ids: Iterable[str], codes: Iterable[bytes | None]) -> None:
        """Keep codes; of too many the oldest are let go."""
        for id, code in zip(ids, codes, strict=True):
            self.take(collection, [id])
            if code:
                self._codes[collection, id] = code
                self._bytes += len(code)
        while self._bytes > _CODE_BYTES:
            self._bytes -= len(self._codes.pop(next(iter(self._codes))))

    def take(self, collection: str, ids: Iterable[str]) -> dict[str, bytes]:
        """Return the codes of ids, and let go of them."""
        found = {id: code for id in ids if (code := self._codes.pop((collection, id), None)) is not None}
        self._bytes -= sum(map(len, found.values()))
        return found


def leaving(sizes: Mapping[str, int], used_at: Mapping[str, float], room: int) -> list[str]:
    """Return which namespaces leave for another one to fit, those that were not searched for longest first.

    Args:
        sizes: How many memories each has.
        used_at: When each was searched last (``monotonic()``).
        room: How many memories all of them may have; below 0 where the other one never fits.
    """
    now, whole, found = monotonic(), sum(sizes.values()), []
    for name in sorted(sizes, key=lambda name: used_at[name]):
        if whole > room >= 0 and now - used_at[name] > _UNUSED_SECONDS:
            found.append(name)
            whole -= sizes[name]
    return found


def note_changed(index: TextIndex, collection: str, unread: Iterable[str]) -> None:
    """Note what this client has written to a namespace, or removed from it, since its mark was written."""
    mark = Mark.of(index.watermark(collection))
    if mark is not None:
        known = dict.fromkeys([*mark.unread, *unread])
        changed = replace(mark, unread=list(known), is_tidy=False)
        if changed != mark:
            index.set_watermark(collection, str(changed) if len(known) <= _MOST_UNREAD else "")


def newest_stamps(index: TextIndex, collection: str) -> dict[str, float]:
    """Return when those memories were changed that were changed last."""
    read = index.read(index.greatest(collection, UPDATED_AT, _NEWEST).tolist())
    return {id: stamp_of(metadata) for id, _, metadata in read.values()}


def stamp_of(metadata: MetadataView | None) -> float:
    """Return when a memory was changed last, by the clock of who did it; 0 where nothing says so."""
    stamp = (metadata or {}).get(UPDATED_AT)
    return float(stamp) if isinstance(stamp, (int, float)) else 0.0
