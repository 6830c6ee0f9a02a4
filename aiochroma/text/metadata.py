"""Metadata as rows that a filter finds by an index: the table of keys and values in the index's file.

A value keeps its kind, because Chroma tells them apart: a string, an integer, a float or a boolean. A float is stored as the
integer that has the same bits in an order that agrees with the floats': so it passes through JSON without losing a digit. Of a
list each element has a row, of a kind of its own: only ``$contains`` looks at lists.

Chroma keeps metadata as JSON text, and so come the filters that it is asked by. Its reader of JSON changes the last digit of one
in nine arbitrary floats, always in the same way: so what is stored here, and what is sought, is what Chroma makes of a float.

Through a server a float passes that reader on both ways, and one in ten arbitrary floats changes twice. So once a client has read
its copy of a namespace again, a filter for exactly such a float does not find it there; a range does. Floats as people write
them, of at most 14 digits and without an exponent, are always found.
"""

from __future__ import annotations

import json
import math
import struct
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any

from aiochroma._types import Metadata, MetadataView, Where
from aiochroma.text.rows import RowCache, read_numbers, read_rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray


__all__ = ["MetadataTable", "as_chroma_keeps"]

_SQL = {"$eq": "=", "$contains": "=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_LARGEST = 2**63 - 1
_FLOAT, _INTEGER = struct.Struct(">d"), struct.Struct(">q")


class MetadataTable:
    """The metadata of all namespaces.

    Args:
        connection: The index's own; the caller holds the transaction.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._keys: dict[int, dict[str, int]] = {}
        self._cache = RowCache(self._read)

    # -- writing -------------------------------------------------------------------------------------------------------

    def add(self, namespace: int, entries: Iterable[tuple[int, MetadataView]]) -> None:
        """Store the metadata of rows that have none."""
        rows = self._rows(namespace, entries)
        if rows:
            self._connection.execute(
                "INSERT OR IGNORE INTO metadata_values SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),"
                " json_extract(value, '$[2]'), json_extract(value, '$[3]') FROM json_each(?)",
                (json.dumps(rows),),
            )
        self._cache.grown(namespace)

    def remove(self, namespace: int, entries: Iterable[tuple[int, MetadataView]]) -> None:
        """Take out what :meth:`add` stored."""
        self._cache.replaced(namespace)
        # Key by key: of four columns in one list SQLite would look up the first alone, and go through all that has the key.
        by_key: dict[tuple[int, str], list[tuple[Any, int]]] = {}
        for key, kind, value, number in self._rows(namespace, entries):
            by_key.setdefault((key, kind), []).append((value, number))
        for (key, kind), pairs in by_key.items():
            self._connection.execute(
                "DELETE FROM metadata_values WHERE key = ? AND kind = ? AND (value, memory) IN"
                " (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))",
                (key, kind, json.dumps(pairs)),
            )

    def drop(self, namespace: int) -> None:
        """Forget the keys of a namespace whose rows were removed."""
        self._cache.replaced(namespace)
        self._keys.clear()
        self._connection.execute(
            "DELETE FROM metadata_values WHERE key IN (SELECT number FROM metadata_keys WHERE namespace = ?)",
            (namespace,),
        )
        self._connection.execute("DELETE FROM metadata_keys WHERE namespace = ?", (namespace,))

    def rolled_back(self) -> None:
        """Forget the keys that a transaction made which did not happen."""
        self._keys.clear()

    def _rows(
        self, namespace: int, entries: Iterable[tuple[int, MetadataView]]
    ) -> list[tuple[int, str, Any, int]]:
        keys = self._keys.setdefault(namespace, {})
        rows = []
        for number, metadata in entries:
            for name, value in metadata.items():
                rows += [
                    (keys.get(name) or self._key_made(namespace, name), *stored, number)
                    for stored in _rows_of(value)
                ]
        return rows

    def _key_made(self, namespace: int, name: str) -> int:
        number = self._key(namespace, name)
        if number is None:
            number = self._connection.execute(
                "INSERT INTO metadata_keys (namespace, name) VALUES (?, ?)", (namespace, name)
            ).lastrowid
            assert number is not None
            self._keys.setdefault(namespace, {})[name] = number
        return number

    def _key(self, namespace: int, name: str) -> int | None:
        number = self._keys.get(namespace, {}).get(name)
        if number is None:
            found = self._connection.execute(
                "SELECT number FROM metadata_keys WHERE namespace = ? AND name = ?", (namespace, name)
            ).fetchone()
            if found is not None:
                number = self._keys.setdefault(namespace, {})[name] = int(found[0])
        return number

    def everything(self, namespace: int) -> NDArray[np.int64]:
        """Return all rows of a namespace, ascending; not to be changed."""
        return self._cache.rows(namespace, None)

    def texts(self, namespace: int, name: str) -> list[str]:
        """Return the texts that are stored under a key, each once, in the form in which they are stored."""
        key = self._key(namespace, name)
        source = "(SELECT DISTINCT value FROM metadata_values WHERE key = ? AND kind = 's')"
        return (
            []
            if key is None
            else [value for (value,) in read_rows(self._connection, "value", source, (key,))]
        )

    def greatest(self, namespace: int, name: str, limit: int) -> NDArray[np.int64]:
        """Return the rows that have the greatest floats under a key, the greatest first."""
        source = (
            "(SELECT memory FROM metadata_values WHERE key = ? AND kind = 'f' ORDER BY value DESC LIMIT ?)"
        )
        return read_numbers(self._connection, "memory", source, (self._key(namespace, name), limit))

    # -- filters -------------------------------------------------------------------------------------------------------

    def matching(self, namespace: int, where: Where) -> NDArray[np.int64]:
        """Return the rows that pass one of Chroma's filters, ascending; not to be changed.

        Numbers are compared with numbers and anything else with its own kind. Rows without such a value pass ``$ne`` and
        ``$nin`` and nothing else.
        """
        import numpy as np

        (key, condition), *_ = where.items()
        if key == "$and":
            return reduce(np.intersect1d, (self.matching(namespace, part) for part in condition))
        if key == "$or":
            return reduce(np.union1d, (self.matching(namespace, part) for part in condition))
        operator, given = next(iter(condition.items())) if hasattr(condition, "items") else ("$eq", condition)
        if operator in {"$ne", "$nin"}:
            passing = self._equal(namespace, key, given if operator == "$nin" else [given])
            return np.setdiff1d(self.everything(namespace), passing, assume_unique=True)
        if operator in {"$eq", "$in"}:
            return self._equal(namespace, key, given if operator == "$in" else [given])
        if operator in {"$contains", "$not_contains"}:
            holding = self._compared(namespace, key, "$contains", [given])
            if operator == "$contains":
                return holding
            return np.setdiff1d(self.everything(namespace), holding, assume_unique=True)
        return self._compared(namespace, key, operator, [given])

    def _equal(self, namespace: int, key: str, values: Sequence[Any]) -> NDArray[np.int64]:
        return self._compared(namespace, key, "$eq", values)

    def _compared(self, namespace: int, key: str, operator: str, values: Sequence[Any]) -> NDArray[np.int64]:
        """Return the rows whose value compares with any of some values."""
        import numpy as np

        number = self._key(namespace, key)
        by_kind: dict[str, list[Any]] = {}
        for value in values:
            for kind, stored in _sought(operator, value):
                by_kind.setdefault(kind, []).append(stored)
        if number is None or not by_kind:
            return np.empty(0, dtype=np.int64)
        found = [
            self._cache.rows(namespace, (number, kind, operator, tuple(dict.fromkeys(stored))))
            for kind, stored in by_kind.items()
        ]
        return reduce(np.union1d, found) if len(found) > 1 else found[0]

    def _read(self, namespace: int, what: Any, behind: int) -> NDArray[np.int64]:
        """Read the rows that have a value, or all of a namespace."""
        if what is None:
            rows = read_numbers(
                self._connection, "number", "memories WHERE namespace = ? AND number > ?", (namespace, behind)
            )
            rows.sort()
            return rows
        key, kind, operator, values = what
        condition = f"value {_SQL[operator]} ?"
        parameter = values[0]
        if len(values) > 1:
            condition, parameter = "value IN (SELECT value FROM json_each(?))", json.dumps(values)
        found = read_numbers(
            self._connection,
            "memory",
            f"metadata_values WHERE key = ? AND kind = ? AND {condition} AND memory > ?",
            (key, kind, parameter, behind),
        )
        found.sort()  # SQLite has them in the order of the values.
        return found


def _rows_of(value: object) -> list[tuple[str, Any]]:
    """Return kind and value of each row of a value; a list may hold one twice."""
    if isinstance(value, list):
        parts = [_stored(part) for part in value]
        return list({(part[0].upper(), part[1]): None for part in parts if part is not None})
    stored = _stored(value)
    return [] if stored is None else [stored]


def _stored(value: object) -> tuple[str, Any] | None:
    """Return the kind of a value and what stands for it in the table; None for what cannot be compared."""
    if isinstance(value, str):
        # SQLite ends a JSON text at a null character.
        return "s", value.replace("\\", "\\\\").replace("\0", "\\0")
    if isinstance(value, float):
        return ("f", _ordered(value)) if value == value else None
    if isinstance(value, bool):
        return "b", int(value)
    if isinstance(value, int):
        return ("i", value) if -_LARGEST - 1 <= value <= _LARGEST else None
    return None


def _sought(operator: str, value: object) -> list[tuple[str, Any]]:
    """Return what a value is compared with, by kind.

    Chroma keeps integers and floats apart, and converts what is asked for: an integer is compared with a float without its
    fraction, so 0 is at least 0.5.
    """
    if operator == "$contains":
        return _rows_of([_kept(value) if isinstance(value, float) else value])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        stored = _stored(value)
        return [stored] if stored is not None and operator == "$eq" else []
    if isinstance(value, float):
        value = _kept(value)
    whole = max(-_LARGEST - 1, min(_LARGEST, int(value)))
    return [("i", whole), ("f", _ordered(float(value)))]


def _ordered(value: float) -> int:
    """Return an integer for a float, in the same order; the same one for 0.0 and -0.0."""
    bits: int = _INTEGER.unpack(_FLOAT.pack(value + 0.0))[0]
    return bits if bits >= 0 else bits ^ _LARGEST


def as_chroma_keeps(metadata: MetadataView) -> Metadata:
    """Return metadata with its floats as Chroma keeps them, once it was written."""
    return {
        name: _kept(value)
        if isinstance(value, float)
        else [_kept(part) if isinstance(part, float) else part for part in value]
        if isinstance(value, list)
        else value
        for name, value in metadata.items()
    }


_EXACT_DIGITS, _LARGEST_POWER = 15, 308


def _kept(value: float) -> float:
    """Return what Chroma's reader of JSON makes of a float.

    It takes all digits as one number, and multiplies or divides that by a power of ten; each of the three is rounded.
    """
    # What is remembered of equal numbers is told of all: of 0.0 also where it is -0.0, or another class of float.
    kept = _reread(value)
    return value if kept == value else kept


@lru_cache(maxsize=1024)
def _reread(value: float) -> float:
    """See :func:`_kept`; the times of a memory are asked for several times."""
    text = float.__repr__(value)
    # Without an exponent the power is small; it is exact then, and so are few digits.
    if (len(text) <= _EXACT_DIGITS and "e" not in text) or not math.isfinite(value):
        return value
    digits, _, exponent = text.lstrip("-").partition("e")
    whole, _, fraction = digits.partition(".")
    power = int(exponent or 0) - len(fraction)
    kept = float(int(whole + fraction))
    if power < -_LARGEST_POWER:
        kept, power = kept / 1e308, power + _LARGEST_POWER
    kept = kept * float(f"1e{power}") if power >= 0 else kept / float(f"1e{-power}")
    return math.copysign(kept, value)
