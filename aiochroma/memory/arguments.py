"""What callers give, checked before anything is embedded or written: texts, ids, moments, metadata, filters."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Literal, TypeAlias

from aiochroma._errors import InvalidInputError, shown
from aiochroma._types import JsonObject, Metadata, Where
from aiochroma.backend.limits import (
    check_metadata_size,
    check_storable_text,
    check_value,
    check_where,
    is_number,
    kind_of_value,
)
from aiochroma.records.record import (
    PINNED,
    POSITION,
    SCOPE,
    THREAD,
    UNORDERED,
    collection_name,
    scope_keys,
    scope_path,
    text_id,
)

__all__ = [
    "DEEPEST_SCOPE",
    "NOT_FOR_KEYS",
    "RESERVED",
    "Duration",
    "Item",
    "Moment",
    "Scope",
    "Thread",
    "check_id",
    "check_k",
    "check_text",
    "checked_ids",
    "checked_item",
    "checked_metadata",
    "checked_names",
    "checked_scope",
    "checked_where",
    "item_from",
    "now_in_seconds",
    "seconds_of",
]

Moment: TypeAlias = datetime | float
"""A datetime (one without a time zone is local time), or seconds since 1970."""

Duration: TypeAlias = float | timedelta
"""Seconds, or a timedelta."""

Scope: TypeAlias = str | tuple[str, ...]
"""Whose a memory is: one text, or several from the widest to the narrowest."""

Thread: TypeAlias = str | Literal[False] | None
"""A conversation; False: the memory stands alone; None: it stands in its scope."""

RESERVED = "aiochroma:"
"""Keys with this prefix are ours; a user's metadata may not use it."""

NOT_FOR_KEYS = (RESERVED, "chroma:", "$", "#")
"""No key of a user's metadata begins with one of these."""

_ITEM_FIELDS = frozenset(
    {
        "text",
        "id",
        "metadata",
        "scope",
        "thread",
        "position",
        "ttl",
        "expires_at",
        "created_at",
        "updated_at",
        "pinned",
    }
)


@dataclass(slots=True)
class Item:
    """One text to be remembered.

    Attributes:
        text: The text.
        id: Its id within the namespace.
        metadata: The user's own, flat.
        own: What aiochroma stores beside it (see the keys in ``records.record``); times in seconds since 1970.
    """

    text: str
    id: str
    metadata: Metadata = field(default_factory=dict)
    own: Metadata = field(default_factory=dict)

    def derived_id(self, number: int = 0, made: float | None = None) -> str:
        """Return the id that follows from scope, thread and text; see ``records.record.text_id``."""
        own = self.own
        return text_id(self.text, number, scope=own.get(SCOPE, ""), thread=own.get(THREAD, ""), made=made)


def item_from(value: object, where: str, defaults: JsonObject | None = None) -> Item:
    """Check one item: a text, or a mapping with ``remember``'s arguments.

    Args:
        value: The item.
        where: How the message names it, such as ``items[3]``.
        defaults: Arguments for an item that does not have them itself.

    Raises:
        InvalidInputError: Something about it is wrong.
    """
    if isinstance(value, str):
        return checked_item(value, where=where, **(defaults or {}))
    if not isinstance(value, Mapping):
        raise InvalidInputError(
            f"{where} must be a text or a mapping with `text`, got {type(value).__name__}: {shown(value)}."
        )
    unknown = sorted(map(str, set(value) - _ITEM_FIELDS))
    if unknown or "text" not in value:
        raise InvalidInputError(
            f"{where} must have `text` and may have {sorted(_ITEM_FIELDS - {'text'})}; it has {sorted(map(str, value))}."
        )
    return checked_item(**{**(defaults or {}), **value}, where=where)


def checked_item(
    text: object,
    *,
    id: object = None,
    metadata: object = None,
    scope: object = None,
    thread: object = None,
    position: object = None,
    ttl: object = None,
    expires_at: object = None,
    created_at: object = None,
    updated_at: object = None,
    pinned: object = None,
    where: str = "`text`",
) -> Item:
    """Check what an item consists of; see ``Memory.remember`` for what they mean.

    Raises:
        InvalidInputError: One of them is wrong; the message names it.
    """
    checked_text = check_text(text, where)
    own_id = "" if id is None else check_id(id, f"The `id` of {where}")
    own: Metadata = {}
    if scope is not None:
        own.update(scope_keys(checked_scope(scope, f"The `scope` of {where}")))
    if thread is False:
        own[UNORDERED] = True
    elif thread is not None:
        own[THREAD] = check_id(thread, f"The `thread` of {where}")
    if position is not None:
        own[POSITION] = _finite(position, f"The `position` of {where}")
    if ttl is not None:
        if expires_at is not None:
            raise InvalidInputError(f"{where} has both `ttl` and `expires_at`; give one.")
        expires_at = _end_of(ttl, where)
    moments = {"expires_at": expires_at, "created_at": created_at, "updated_at": updated_at}
    own.update(
        (RESERVED + name, seconds_of(value, f"The `{name}` of {where}"))
        for name, value in moments.items()
        if value is not None
    )
    if not (pinned is None or isinstance(pinned, bool)):
        raise InvalidInputError(f"The `pinned` of {where} must be true or false, got {shown(pinned)}.")
    if pinned:
        own[PINNED] = True
    item = Item(checked_text, own_id, checked_metadata(metadata, where), own)
    item.id = item.id or item.derived_id()
    return item


def _end_of(ttl: object, where: str) -> float:
    """Return when a time to live ends, in seconds since 1970."""
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else _finite(ttl, f"The `ttl` of {where}")
    if seconds <= 0:
        raise InvalidInputError(f"The `ttl` of {where} must be more than 0 seconds, got {shown(ttl)}.")
    end = now_in_seconds() + seconds
    if not _is_date(end):
        raise InvalidInputError(
            f"The `ttl` of {where} is {shown(ttl)}, which ends after the last date there is; leave it out to keep the memory."
        )
    return end


DEEPEST_SCOPE = 8


def checked_scope(scope: object, where: str = "`scope`") -> str:
    """Return the path of a scope.

    Args:
        scope: A text, or several from the widest to the narrowest.
        where: How the message names it.

    Raises:
        InvalidInputError: It is neither, one of them is empty, or there are too many.
    """
    parts = (scope,) if isinstance(scope, str) else scope
    if not isinstance(parts, (tuple, list)) or not 1 <= len(parts) <= DEEPEST_SCOPE:
        raise InvalidInputError(
            f"{where} must be a text, or 1 to {DEEPEST_SCOPE} texts from the widest to the narrowest, got {shown(scope)}."
        )
    for part in parts:
        if not isinstance(part, str) or not part:
            raise InvalidInputError(f"{where} must consist of texts that are not empty, got {shown(scope)}.")
        check_storable_text(part, where)
    return scope_path(parts)


def checked_ids(ids: object) -> list[str]:
    """Return ids, each once.

    Raises:
        InvalidInputError: One is no id; its position is named.
    """
    if isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Iterable):
        raise InvalidInputError(f"`ids` must be several ids, got {shown(ids)}.")
    return list(dict.fromkeys(check_id(id, f"ids[{number}]") for number, id in enumerate(ids)))


def checked_names(namespaces: Iterable[str] | str | None) -> list[str] | None:
    """Return the names of the namespaces that a call is for; None for all.

    Raises:
        InvalidInputError: One is not a string, or is blank.
    """
    if namespaces is None:
        return None
    if not isinstance(namespaces, Iterable):
        raise InvalidInputError(f"`namespaces` must be names, one or several, got {shown(namespaces)}.")
    names = [namespaces] if isinstance(namespaces, str) else list(namespaces)
    for name in names:
        collection_name(name)
    return names


def check_id(id: object, where: str = "`id`") -> str:
    """Check that something is the id of a memory or the name of a thread, and return it.

    Raises:
        InvalidInputError: It is not a string, is empty, or cannot be stored.
    """
    if not isinstance(id, str) or not id:
        raise InvalidInputError(f"{where} must be a non-empty string, got {shown(id)}.")
    check_storable_text(id, where)
    return id


def check_text(text: object, where: str) -> str:
    """Check that something is a text that is not blank, and return it.

    Raises:
        InvalidInputError: It is not a string, is blank, or cannot be stored.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"{where} must be a string, got {type(text).__name__}: {shown(text)}.")
    if not text.strip():
        raise InvalidInputError(f"{where} is blank ({shown(text)}); there is nothing in it.")
    check_storable_text(text, where)
    return text


def checked_metadata(metadata: object, where: str, *, removing: bool = False) -> Metadata:
    """Check a user's metadata: a flat mapping from strings to strings, numbers, booleans, and lists of one of these.

    Args:
        metadata: The user's, or None.
        where: How the message names what it belongs to.
        removing: Whether None is allowed as a value, to take a key away.

    Raises:
        InvalidInputError: It is not.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(f"The `metadata` of {where} must be a mapping, got {shown(metadata)}.")
    for key, value in metadata.items():
        if not isinstance(key, str) or not key or key.startswith(NOT_FOR_KEYS):
            raise InvalidInputError(
                f"The `metadata` of {where} has the key {shown(key)}; keys are non-empty strings that do not begin "
                f"with any of {NOT_FOR_KEYS}."
            )
        if removing and value is None:
            continue
        parts = value if isinstance(value, list) else [value]
        if len(set(map(kind_of_value, parts))) != 1 or kind_of_value(parts[0]) is None:
            raise InvalidInputError(
                f"The `metadata` of {where} has {shown(key)} = {shown(value)} ({type(value).__name__}); Chroma stores "
                "strings, integers, floats, booleans, and lists of one of these that are not empty. Write nested values as "
                "JSON text."
            )
        check_storable_text(key, f"The `metadata` of {where}")
        for part in parts:
            check_value(part, f"{shown(key)} in the `metadata` of {where}")
    check_metadata_size(metadata, where)
    return dict(metadata)


_MOST_RESULTS = 1_000_000
"""Chroma counts in 32 bits, and a search may look at several times this number of records."""


def check_k(k: object, where: str = "`k`") -> int:
    """Check a number of results.

    Raises:
        InvalidInputError: It is not an integer of at least 1, or is more than Chroma can be asked for.
    """
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= _MOST_RESULTS:
        raise InvalidInputError(f"{where} must be an integer from 1 to {_MOST_RESULTS:,}, got {shown(k)}.")
    return k


def seconds_of(value: object, where: str) -> float:
    """Return a moment as seconds since 1970.

    Args:
        value: A datetime (one without a time zone is taken as local time), or the seconds themselves.
        where: How the message names it.

    Raises:
        InvalidInputError: It is neither.
    """
    if not isinstance(value, datetime):
        value = _finite(value, where)
    try:
        seconds = value.timestamp() if isinstance(value, datetime) else value
    except (OverflowError, ValueError, OSError) as error:
        # One without a time zone, at the edge of what the calendar knows.
        raise InvalidInputError(
            f"{where} is {shown(value)}, which is no date that the system knows."
        ) from error
    if not _is_date(seconds):
        raise InvalidInputError(f"{where} is {seconds!r} s since 1970, which is no date.")
    return round(seconds, 6)


def _is_date(seconds: float) -> bool:
    try:
        datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return False
    return True


def now_in_seconds() -> float:
    """Return this moment in seconds since 1970, in whole microseconds: Chroma may change the last digit of a float."""
    return round(time.time(), 6)


def _finite(value: object, where: str) -> float:
    if not is_number(value) or not math.isfinite(value):
        raise InvalidInputError(f"{where} must be a finite number, got {shown(value)}.")
    return float(value)


def checked_where(where: Where | None) -> Where | None:
    """Return a filter after checking it, or None for None."""
    if where is not None:
        check_where(where)
    return where
