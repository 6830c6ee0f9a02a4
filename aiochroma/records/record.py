"""What a memory is in Chroma: the name of its collection, the keys of its metadata, and pure functions over records.

Any text is a namespace. Chroma allows 3 to 512 characters of ``[a-zA-Z0-9._-]``, alphanumeric at both ends, as the name of a
collection, but no two periods in a row, and no IP address. A namespace that is already such a name keeps it, so that a store
looks familiar in other tools. Anything else becomes ``ns.<escaped>.x``: letters, digits and ``-`` stay, every other byte of the
UTF-8 form becomes ``_`` and two hexadecimal digits. What would be too long becomes ``ns.sha256-<digest>.x``; the text itself is
in the collection's metadata in every case. ``ns.chunks-<digest>.x`` holds the chunks of a namespace's long texts; no namespace
has that name, because one that could is legal as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypedDict

from aiochroma._errors import InvalidInputError, shown
from aiochroma._types import JsonObject, Metadata, MetadataView, Vector
from aiochroma.backend.limits import check_storable_text
from aiochroma.disk.schema import EMBEDDER_KEY, WRITING
from aiochroma.text.memories import IndexedText
from aiochroma.text.metadata import as_chroma_keeps

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CHUNKS",
    "CHUNK_MADE",
    "CHUNK_OF",
    "CREATED_AT",
    "DIMENSIONS",
    "EMBEDDER",
    "EXACT_FLOATS",
    "EXPIRES_AT",
    "FINGERPRINT",
    "NAMESPACE",
    "PINNED",
    "POSITION",
    "REPLACED",
    "SCOPE",
    "SETTLING",
    "SETTLING_SECONDS",
    "SPARSE",
    "SPARSE_EMBEDDER",
    "THREAD",
    "UNORDERED",
    "UPDATED_AT",
    "WRITING",
    "Record",
    "SaidText",
    "aside_name",
    "before",
    "chunk_id",
    "chunks_name",
    "collection_name",
    "exact_metadata",
    "has_expired",
    "indexed_row",
    "made_at",
    "merged_metadata",
    "namespace_in",
    "namespace_of",
    "order_of",
    "record_of",
    "scope_filter",
    "scope_keys",
    "scope_parts",
    "scope_path",
    "text_id",
    "thread_position",
    "with_exact_floats",
    "without_sparse",
    "writing_of",
    "written_over",
]

NAMESPACE = "aiochroma:namespace"
"""In the metadata of a collection: the namespace."""
EMBEDDER = EMBEDDER_KEY
"""In the metadata of a collection: the identity of the embedder that made its vectors."""
DIMENSIONS = "aiochroma:dimensions"
"""In the metadata of a collection: the length of its vectors."""
FINGERPRINT = "aiochroma:embedder_fingerprint"
"""In the metadata of a collection: what the embedder makes of one fixed text."""
SPARSE_EMBEDDER = "aiochroma:sparse_embedder"
"""In the metadata of a collection: the identity of the function that made the sparse vectors of its texts."""
SETTLING = "aiochroma:settling"
"""In the metadata of a namespace whose copy is about to take over: until when writes wait, in seconds since 1970."""
SETTLING_SECONDS = 10.0
"""For no longer do they wait: whoever has them wait may have died."""
REPLACED = "aiochroma:replaced"
"""In the metadata of a collection whose place another one has taken: the namespace. It is not written to any more."""

CREATED_AT = "aiochroma:created_at"
UPDATED_AT = "aiochroma:updated_at"
EXPIRES_AT = "aiochroma:expires_at"
PINNED = "aiochroma:pinned"
THREAD = "aiochroma:thread"
POSITION = "aiochroma:position"
UNORDERED = "aiochroma:unordered"
"""True for a memory of no conversation that has nothing to do with what was remembered before and after it."""
SCOPE = "aiochroma:scope"
"""Whose memory it is: a path such as ``acme/user-7``. In its parts ``%`` is written ``%25`` and ``/`` is written ``%2F``."""
CHUNKS = "aiochroma:chunks"
"""The number of chunks of a long text; absent where the text is whole."""
SPARSE = "aiochroma:sparse"
"""The sparse vector of the text, by which some servers rank words."""
CHUNK_OF = "aiochroma:chunk_of"
CHUNK_MADE = "aiochroma:chunk_made"
"""In the metadata of a chunk: when it was written, in seconds since 1970."""

EXACT_FLOATS = "aiochroma:floats"
"""As JSON, by their keys, those floats as they were given of which Chroma keeps another last digit."""

_MOMENT = 5e-7
"""Moments that are nearer to each other, in seconds, are one: Chroma may change the last digit of a float."""
_LATEST = 1e12
"""No date has this many seconds since 1970."""


class Record(TypedDict):
    """A memory as its record.

    Attributes:
        id: Its id.
        document: Its text; empty where it has none.
        metadata: Its metadata; empty where it has none.
    """

    id: str
    document: str
    metadata: Metadata


def text_id(
    text: str, number: int = 0, *, scope: str = "", thread: str = "", made: float | None = None
) -> str:
    """Return the id of a text that was given none: equal texts have equal ids, so remembering twice is harmless.

    Args:
        text: The text.
        number: Above 0 for its next ids, should the first belong to another memory by now.
        scope: The path of the scope; two people who say the same have two memories.
        thread: The conversation; what is said in two of them is two memories.
        made: When it was made, in seconds since 1970, for a text that was said before in its thread; else None.
    """
    parts = [f"{number}", text] if number else [text]
    if scope or thread:
        at = "" if made is None else f"{made:.6f}"
        parts = [scope, thread, at, f"{number}", text]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class SaidText:
    """A text that was given no id, and may be a memory already.

    In a thread a text that was said before, at another moment, is another memory.

    Args:
        text: The text.
        metadata: What is stored with it.
        dedupe: Whether it is the same memory there, too.
    """

    def __init__(self, text: str, metadata: MetadataView, *, dedupe: bool) -> None:
        self._text = text
        self._scope, self._thread = metadata.get(SCOPE, ""), metadata.get(THREAD, "")
        self._made: float | None = metadata[CREATED_AT] if self._thread and not dedupe else None
        self._now = time.time()
        self.own_ids: list[str] = [text_id(text, scope=self._scope, thread=self._thread)]
        if self._made is not None:
            self.own_ids.append(self.id(1))

    def id(self, number: int) -> str:
        """Return its id where those of lower numbers belong to others."""
        return text_id(self._text, number, scope=self._scope, thread=self._thread, made=self._made)

    def is_memory(self, record: Record | None) -> bool:
        """Tell whether a record is its memory, and has not expired."""
        if record is None or has_expired(record["metadata"], self._now) or record["document"] != self._text:
            return False
        return self._made is None or abs(made_at(record["metadata"]) - self._made) <= _MOMENT

    def is_anothers(self, record: Record | None) -> bool:
        """Tell whether a record is another memory."""
        return (
            record is not None
            and not has_expired(record["metadata"], self._now)
            and not self.is_memory(record)
        )


def scope_path(parts: Iterable[str]) -> str:
    """Return the path that is stored of a scope: its parts, joined by ``/``."""
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in parts)


def scope_parts(path: str) -> tuple[str, ...]:
    """Return the parts of a path; empty for the empty one."""
    return tuple(part.replace("%2F", "/").replace("%25", "%") for part in path.split("/")) if path else ()


def scope_keys(path: str) -> dict[str, str]:
    """Return what is stored of a scope: its path, and every path above it, because Chroma's filter knows no prefixes."""
    parts = path.split("/")
    above = {f"{SCOPE}.{depth}": "/".join(parts[:depth]) for depth in range(1, len(parts))}
    return {SCOPE: path, **above}


def scope_filter(path: str) -> JsonObject | None:
    """Return Chroma's filter for what belongs to a scope or to one below it; None for the empty one, which is all."""
    return {"$or": [{SCOPE: path}, {f"{SCOPE}.{path.count('/') + 1}": path}]} if path else None


def chunk_id(writing: str, number: int) -> str:
    """Return the id of a chunk."""
    return f"{writing}:{number}"


def writing_of(chunk: str) -> str:
    """Return the writing that a chunk belongs to, by the id of the chunk."""
    return chunk.rpartition(":")[0]


def has_expired(metadata: MetadataView, now: float) -> bool:
    """Return whether a memory has expired; a pinned one does not. What is no number is no time."""
    end = metadata.get(EXPIRES_AT)
    return isinstance(end, (int, float)) and end <= now and not metadata.get(PINNED)


def record_of(id: str, document: str | None, metadata: Metadata | None) -> Record:
    """Make a record of what Chroma or the index holds of it."""
    return {"id": id, "document": document or "", "metadata": metadata or {}}


def thread_position(metadata: MetadataView) -> tuple[str | None, float]:
    """Return where a memory stands: its conversation and its position there.

    A conversation is a thread within a scope: two people may have a thread of one name each. Other programs may have
    written anything there: without a valid thread a memory has none, and without a valid position it stands at 0.
    """
    thread, scope, position = metadata.get(THREAD), metadata.get(SCOPE), metadata.get(POSITION)
    if isinstance(thread, str) and isinstance(scope, str):
        thread = f"{scope}\0{thread}"
    return (
        thread if isinstance(thread, str) else None,
        float(position) if isinstance(position, (int, float)) and math.isfinite(position) else 0.0,
    )


def made_at(metadata: MetadataView) -> float:
    """Return when a memory was first remembered, in seconds since 1970 and whole microseconds.

    Chroma may change the last digit of a float. Other programs may have written anything; what is no time is 0.
    """
    seconds = metadata.get(CREATED_AT)
    return round(float(seconds), 6) if isinstance(seconds, (int, float)) and abs(seconds) < _LATEST else 0.0


def order_of(metadata: MetadataView) -> tuple[str | None, float]:
    """Return beside which others a memory stands: its conversation, or else what was remembered before and after it.

    Order of arrival is a conversation for every scope. A memory that says so, or that another program wrote, is in none.
    """
    thread, position = thread_position(metadata)
    arrived = metadata.get(CREATED_AT)
    if thread is not None or metadata.get(UNORDERED) or not isinstance(arrived, (int, float)):
        return thread, position
    scope = metadata.get(SCOPE)
    # No conversation has a name like this: no text of a memory holds a NUL.
    return f"\0\0{scope if isinstance(scope, str) else ''}", float(arrived)


def indexed_row(
    id: str,
    document: str | None,
    metadata: MetadataView | None,
    vector: Vector | None,
    code: bytes | None = None,
) -> IndexedText:
    """Return what the index stores of a record; other programs may have written anything."""
    metadata = metadata or {}
    thread, position = order_of(metadata)
    expires = metadata.get(EXPIRES_AT)
    return IndexedText(
        id,
        document or "",
        thread,
        round(position, 6),
        metadata,
        made_at(metadata),
        float(expires) if isinstance(expires, (int, float)) and not metadata.get(PINNED) else None,
        vector,
        code,
    )


def without_sparse(stored: MetadataView | None) -> MetadataView | None:
    """Return metadata without the sparse vector, which the server alone searches."""
    return {key: stored[key] for key in stored if key != SPARSE} if stored and SPARSE in stored else stored


def before(record: Record | None) -> tuple[str | None, Metadata | None]:
    """Return what the history keeps of a memory as it was: text and metadata."""
    return (None, None) if record is None else (record["document"], record["metadata"])


def merged_metadata(given: MetadataView, known: Record | None, *, exact: bool) -> Metadata:
    """Return what is written over the metadata of a memory; None takes a value away."""
    stored = dict(given)
    if known is None:
        stored.setdefault(POSITION, stored[CREATED_AT])
        return with_exact_floats(stored, {})
    old = known["metadata"]
    if exact:
        stored.setdefault(POSITION, stored[CREATED_AT])
        stored.update((key, None) for key in old if key not in stored)
        return with_exact_floats(stored, {})
    made = stored.pop(CREATED_AT)
    if stored.get(THREAD, old.get(THREAD)) != old.get(THREAD):
        stored.setdefault(POSITION, made)
    # The paths above another scope are not its own: whoever asks for them would find it.
    above = [key for key in old if key.startswith(f"{SCOPE}.")] if SCOPE in stored else []
    left = (EXPIRES_AT, CHUNKS, WRITING, SPARSE, *above)
    stored.update((key, None) for key in left if key in old and key not in stored)
    return with_exact_floats(stored, old)


def with_exact_floats(given: Metadata, old: MetadataView) -> Metadata:
    """Return metadata that is written over another, with the floats that Chroma changes in a form in which it does not."""
    kept = as_chroma_keeps(given)
    changed = {name: value for name, value in given.items() if kept[name] != value}
    floats = {**_exact_floats(old), **_exact_floats(given), **changed}
    if not floats:
        return given
    floats = _still_true(floats, {**old, **kept})
    return {**given, EXACT_FLOATS: json.dumps(floats) if floats else None}


def exact_metadata(stored: MetadataView) -> MetadataView:
    """Return metadata with its floats as they were given."""
    floats = _exact_floats(stored)
    return {**stored, **_still_true(floats, stored)} if floats else stored


def _exact_floats(stored: MetadataView) -> Metadata:
    """Return what was noted of floats; other programs may have written anything."""
    noted = stored.get(EXACT_FLOATS)
    try:
        floats = json.loads(noted) if isinstance(noted, str) else {}
    except (ValueError, RecursionError):
        return {}
    return floats if isinstance(floats, dict) else {}


def _still_true(floats: MetadataView, stored: MetadataView) -> Metadata:
    """Return those floats of which Chroma would keep what is stored: another program may have changed a value since."""
    return {
        name: floats[name]
        for name, kept in as_chroma_keeps(floats).items()
        if type(kept) is type(stored.get(name)) and kept == stored[name]
    }


def written_over(known: Record | None, id: str, document: str, metadata: MetadataView) -> Record:
    """Return a record as Chroma keeps it after a write of this metadata over what is known."""
    before = {} if known is None else known["metadata"]
    whole = {**before, **as_chroma_keeps(metadata)}
    after = {name: value for name, value in whole.items() if value is not None}
    return {"id": id, "document": document, "metadata": after}


# -- names of collections ------------------------------------------------------------------------------------------------

_LEGAL = re.compile(r"(?!.*\.\.|\d+(?:\.\d+){3}\Z)[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
_ESCAPED = re.compile(r"ns\.(.*)\.x", re.DOTALL)
_HASHED = re.compile(r"ns\.sha256-[0-9a-f]{64}\.x")
_MOST = 512
_KEPT = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def collection_name(namespace: str, where: str = "`namespace`") -> str:
    """Return the collection's name for a namespace; different namespaces have different names.

    Args:
        namespace: The namespace.
        where: How the message names it.

    Raises:
        InvalidInputError: The namespace is not a string, or is blank.
    """
    if not isinstance(namespace, str) or not namespace.strip():
        raise InvalidInputError(f"{where} must be a string that is not blank, got {shown(namespace)}.")
    if _LEGAL.fullmatch(namespace) and not _ESCAPED.fullmatch(namespace):
        return namespace
    check_storable_text(namespace, where)
    data = namespace.encode()
    escaped = "".join(chr(byte) if byte in _KEPT else f"_{byte:02x}" for byte in data)
    name = f"ns.{escaped}.x"
    if len(name) > _MOST or _HASHED.fullmatch(name):
        return f"ns.sha256-{hashlib.sha256(data).hexdigest()}.x"
    return name


def chunks_name(namespace: str) -> str:
    """Return the name of the collection that holds the chunks of long texts; no namespace's own collection has this name."""
    return f"ns.chunks-{hashlib.sha256(namespace.encode()).hexdigest()}.x"


def aside_name(namespace: str, what: str = "") -> str:
    """Return the name under which the original steps aside whose place a copy has taken; ``what`` is "chunks" for its chunks."""
    return f"ns.replaced{what}-{hashlib.sha256(namespace.encode()).hexdigest()}.x"


def namespace_in(name: str, metadata: MetadataView) -> str | None:
    """Return which namespace a collection holds, by its name and metadata, or None where it holds none.

    Another program may have renamed the collection: a namespace is called what it is found by.
    """
    if EMBEDDER not in metadata:
        return None
    stated = str(metadata.get(NAMESPACE) or name)
    return stated if _is_found_by(stated, name) else namespace_of(name) or name


def namespace_of(name: str) -> str | None:
    """Return the namespace of a collection's name, or None where only the collection's metadata can tell.

    A name that no namespace has, such as another program's, is returned as it is.
    """
    if _HASHED.fullmatch(name):
        return None
    escaped = _ESCAPED.fullmatch(name)
    if escaped is None:
        return name
    data = re.sub(rb"_([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), escaped[1].encode())
    namespace = data.decode(errors="replace")
    return namespace if _is_found_by(namespace, name) else name


def _is_found_by(namespace: str, name: str) -> bool:
    """Tell whether a namespace leads to a collection of this name; what is no namespace's name leads nowhere."""
    with suppress(InvalidInputError):
        return collection_name(namespace) == name
    return False
