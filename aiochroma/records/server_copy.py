"""What is known of a namespace of a server that is copied here, and what is noted of that in the file for the next start."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiochroma.backend.chroma_records import Database

__all__ = ["SKEW_SECONDS", "Copy", "Mark"]

SKEW_SECONDS = 60.0
"""How far other clocks are thought to be behind, at first."""
_KEPT_SECONDS = 7 * 86_400.0
"""After this time what lies in the file of a namespace is not believed any more."""


@dataclass
class Mark:
    """What the file has of a namespace.

    Attributes:
        tenant: Its tenant.
        database: Its database.
        as_of: What was stamped up to then is here, give or take the skew (see ``Copy``).
        skew: See ``Copy``.
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
        db: Its tenant and database.
        lock: Held by the search that brings it up to date.
        ids: Those that are to be copied, in the server's order; None before that has begun.
        copied: How many of them were.
        is_complete: Whether all were.
        followed_at: When the last question was asked that was answered (``time.monotonic()``).
        asked_at: The same on the clock that memories are stamped with.
        looked_back_at: The last question that went further back.
        compared_at: When the ids were compared last.
        skew: How far back that has to go, in seconds.
        must_look_back: Whether the next one has to, however long ago it was.
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
    used_at: float = field(default_factory=time.monotonic)
    refused_until: float = 0.0
    count: int = 0

    @property
    def share(self) -> float:
        """Which share of the namespace is here."""
        return 1.0 if self.is_complete else min(0.999, self.copied / len(self.ids)) if self.ids else 0.0
