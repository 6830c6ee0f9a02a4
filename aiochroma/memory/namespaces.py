"""Any text as the name of a collection, and back.

Chroma allows 3 to 512 characters of ``[a-zA-Z0-9._-]``, alphanumeric at both ends. A namespace that is already such a name
keeps it, so that a store looks familiar in other tools. Anything else becomes ``ns.<escaped>.x``: letters, digits and
``-`` stay, every other byte of the UTF-8 form becomes ``_`` and two hexadecimal digits. What would be too long becomes
``ns.sha256-<digest>.x``; the text itself is in the collection's metadata in every case. ``ns.parts-<digest>.x`` holds the
parts of a namespace's long texts; no namespace has that name, because one that could is legal as it is.
"""

from __future__ import annotations

import hashlib
import re

from aiochroma._errors import InvalidInputError
from aiochroma.backend.limits import check_storable_text

__all__ = ["collection_name", "namespace_of", "parts_name"]

_LEGAL = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
_ESCAPED = re.compile(r"ns\.(.*)\.x", re.DOTALL)
_HASHED = re.compile(r"ns\.sha256-[0-9a-f]{64}\.x")
_MOST = 512
_KEPT = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def collection_name(namespace: str) -> str:
    """Return the collection's name for a namespace; different namespaces have different names.

    Raises:
        InvalidInputError: The namespace is not a string, or is blank.
    """
    if not isinstance(namespace, str) or not namespace.strip():
        raise InvalidInputError(f"`namespace` must be a string that is not blank, got {namespace!r}.")
    if _LEGAL.fullmatch(namespace) and not _ESCAPED.fullmatch(namespace):
        return namespace
    check_storable_text(namespace, "`namespace`")
    data = namespace.encode()
    escaped = "".join(chr(byte) if byte in _KEPT else f"_{byte:02x}" for byte in data)
    name = f"ns.{escaped}.x"
    if len(name) > _MOST or _HASHED.fullmatch(name):
        return f"ns.sha256-{hashlib.sha256(data).hexdigest()}.x"
    return name


def parts_name(namespace: str) -> str:
    """Return the name of the collection that holds the parts of long texts; no namespace's own collection is called so."""
    return f"ns.parts-{hashlib.sha256(namespace.encode()).hexdigest()}.x"


def namespace_of(name: str) -> str | None:
    """Return the namespace of a collection's name, or None where only the collection's metadata can tell."""
    if _HASHED.fullmatch(name):
        return None
    escaped = _ESCAPED.fullmatch(name)
    if escaped is None:
        return name
    data = re.sub(rb"_([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), escaped[1].encode("ascii"))
    return data.decode()
