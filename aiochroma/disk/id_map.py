"""Reads ``index_metadata.pickle``, the map between ids and labels, without running anything that is in it.

What lies on disk is untrusted. A pickle of a few bytes can name any function, or make Python's own reader take gigabytes for a
table of its own. So the few instructions that Chroma's writers use are carried out here, on plain values; any other is damage.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from aiochroma._files import write_atomically
from aiochroma.disk.layout import ID_MAP_FILE, LEVEL0_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["IdMap", "IndexUnreadableError", "read_cut_id_map", "read_id_map", "write_id_map"]

ReadNumber: TypeAlias = "Callable[[bytes, int], int]"
"""Reads a number out of a pickle at a position."""

_LARGEST_TOTAL = 2**40
_SPARE_BYTES = 256 * 2**20
_BYTES_PER_VECTOR_BYTE = 64
"""An id map that is larger than this many times the vectors is not read; ids would be tens of thousands of characters long."""


class IndexUnreadableError(Exception):
    """A file of the index is missing, cut off, or contradicts itself or another; the message says how."""


@dataclass(frozen=True)
class IdMap:
    """``index_metadata.pickle``: which id has which label.

    Attributes:
        labels: Label of each id that is in the index; all different, from 0 to `total_added`.
        total_added: Elements ever added, deleted ones included.
    """

    labels: dict[str, int]
    total_added: int


def read_id_map(directory: Path) -> IdMap:
    """Read a complete id map.

    Raises:
        IndexUnreadableError: Missing, cut off, or not what Chroma writes.
    """
    machine = _Machine(_content(directory))
    try:
        complete = machine.run()
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise IndexUnreadableError(
            f"{ID_MAP_FILE} cannot be decoded: {error or type(error).__name__}"
        ) from error
    if not complete:
        raise IndexUnreadableError(f"{ID_MAP_FILE} is cut off")
    found = machine.result()
    id_map = _checked(found)
    back = found.get("label_to_id")
    if not isinstance(back, dict) or any(back.get(label) != id for id, label in id_map.labels.items()):
        raise IndexUnreadableError(f"{ID_MAP_FILE} contradicts itself: ids and labels do not belong together")
    return id_map


def read_cut_id_map(directory: Path) -> IdMap:
    """Read what is left of an id map that was cut off.

    That is how a kill in the middle of writing it leaves it. The pairs at its beginning are as sound as
    those of a complete one: Chroma writes it from memory in one go, after all vectors it speaks of. Of a
    file that is damaged in any other way nothing is believed.

    Raises:
        IndexUnreadableError: Nothing is left, or it was not simply cut off.
    """
    machine = _Machine(_content(directory))
    try:
        machine.run()
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise IndexUnreadableError(f"{ID_MAP_FILE} is damaged, not just cut off") from error
    try:
        id_map = _checked(machine.result())
    except IndexUnreadableError as error:
        raise IndexUnreadableError(f"{ID_MAP_FILE} is cut off before its first complete entries") from error
    if not id_map.labels:
        raise IndexUnreadableError(f"{ID_MAP_FILE} is cut off before its first complete entries")
    return id_map


def write_id_map(directory: Path, labels: Mapping[str, int], total_added: int) -> None:
    """Write an id map, all of it or nothing, as Chroma writes it."""
    content = {
        "dimensionality": None,
        "total_elements_added": total_added,
        "max_seq_id": None,
        "id_to_label": dict(labels),
        "label_to_id": {label: id for id, label in labels.items()},
        "id_to_seq_id": {},
    }
    write_atomically(directory / ID_MAP_FILE, pickle.dumps(content, protocol=3))


def _content(directory: Path) -> bytes:
    file, vectors = directory / ID_MAP_FILE, directory / LEVEL0_FILE
    try:
        if not file.is_file():
            raise IndexUnreadableError(f"{ID_MAP_FILE} is missing, or not a regular file")
        size = file.stat().st_size
        if size > _SPARE_BYTES + _BYTES_PER_VECTOR_BYTE * (
            vectors.stat().st_size if vectors.is_file() else 0
        ):
            raise IndexUnreadableError(
                f"{ID_MAP_FILE} has {size} bytes, far more than its vectors can account for"
            )
        return file.read_bytes()
    except OSError as error:
        raise IndexUnreadableError(f"{ID_MAP_FILE} cannot be read: {error.strerror}") from error


def _checked(found: dict[object, object]) -> IdMap:
    labels, total = found.get("id_to_label"), found.get("total_elements_added")
    if not isinstance(labels, dict) or type(total) is not int or not 0 <= total <= _LARGEST_TOTAL:
        raise IndexUnreadableError(f"{ID_MAP_FILE} is not an id map")
    if any(type(id) is not str or type(label) is not int for id, label in labels.items()):
        raise IndexUnreadableError(f"{ID_MAP_FILE} has ids that are no text, or labels that are no numbers")
    values = labels.values()
    if (
        len(set(values)) != len(labels)
        or len(labels) > total
        or (labels and not 0 <= min(values) <= max(values) <= total)
    ):
        raise IndexUnreadableError(
            f"{ID_MAP_FILE} contradicts itself: {len(labels)} ids, {len(set(values))} labels, {total} added"
        )
    return IdMap(labels, total)


class _Mark:
    """Stands on the stack where a group of values begins."""


class _PersistentData(dict[object, object]):
    """Stands for the class that Chroma before 1.0 pickled; only its attributes are of interest."""


_MARK = _Mark()
_CLASS = _Mark()
_U32, _I32, _U16, _U64 = struct.Struct("<I"), struct.Struct("<i"), struct.Struct("<H"), struct.Struct("<Q")


class _Machine:
    """Carries out the instructions of a pickle that build dictionaries, texts and numbers.

    Args:
        content: The pickle, or its beginning.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def run(self) -> bool:
        """Carry out all instructions; returns False where the bytes end in the middle.

        Raises:
            ValueError: An instruction, or its operands, are not what Chroma writes.
        """
        content, stack, size = self._content, self._stack, len(self._content)
        position = 0
        try:
            while position < size:
                code = content[position]
                position += 1
                if code == 0x58:  # BINUNICODE, BININT: nearly all there is
                    end = position + 4 + _U32.unpack_from(content, position)[0]
                    if end > size:
                        return False
                    stack.append(content[position + 4 : end].decode("utf-8", "surrogatepass"))
                    position = end
                elif code == 0x4A:
                    stack.append(_I32.unpack_from(content, position)[0])
                    position += 4
                elif code == 0x2E:  # STOP
                    if position < size:
                        raise ValueError(f"{size - position} bytes follow its end, which Chroma refuses")
                    return True
                else:
                    position = self._other(code, position)
        except struct.error:
            return False
        return False

    def result(self) -> dict[object, object]:
        """Return the dictionary that was built; of a pickle that was cut off what it held by then.

        Raises:
            IndexUnreadableError: No dictionary was built.
        """
        stack = self._stack
        while len(stack) > 1:
            # Cut off: the values since the last mark belong to the dictionary below it, the last key may lack its value.
            items = self._since_mark() if _MARK in stack else [stack.pop()]
            if stack and isinstance(stack[-1], dict):
                stack[-1].update(zip(items[::2], items[1::2], strict=False))
        if not stack or not isinstance(stack[0], dict):
            raise IndexUnreadableError(f"{ID_MAP_FILE} is not an id map")
        found: dict[object, object] = stack[0]
        return found

    def _other(self, code: int, position: int) -> int:
        """Carry out a less frequent instruction; returns where the next one begins."""
        content, stack = self._content, self._stack
        if code in _SIZES:
            reader, length = _SIZES[code]
            operand = reader(content, position)
            if code in _COUNTED:
                return self._text(position + length, operand)
            self._with_operand(code, operand)
            return position + length
        if code == 0x8A:  # LONG1
            end = position + 1 + _byte(content, position)
            if end > len(content):
                raise struct.error
            stack.append(int.from_bytes(content[position + 1 : end], "little", signed=True))
            return end
        if code == 0x63:  # GLOBAL
            lines = content[position : position + 1000].split(b"\n", 2)
            if len(lines) < 3:
                raise struct.error
            self._class(lines[0].decode(), lines[1].decode())
            return position + len(lines[0]) + len(lines[1]) + 2
        self._without_operand(code)
        return position

    def _text(self, start: int, length: int) -> int:
        end = start + length
        if end > len(self._content):
            raise struct.error
        self._stack.append(self._content[start:end].decode("utf-8", "surrogatepass"))
        return end

    def _with_operand(self, code: int, operand: int) -> None:
        if code in {0x4B, 0x4D}:  # BININT1, BININT2
            self._stack.append(operand)
        elif code in {0x71, 0x72}:  # BINPUT, LONG_BINPUT
            self._memo[operand] = self._stack[-1]
        elif code in {0x68, 0x6A}:  # BINGET, LONG_BINGET
            self._stack.append(self._memo[operand])

    def _without_operand(self, code: int) -> None:
        stack = self._stack
        if code == 0x28:  # MARK
            stack.append(_MARK)
        elif code == 0x75:  # SETITEMS
            items = self._since_mark()
            _dictionary(stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        elif code == 0x73:  # SETITEM
            value, key = stack.pop(), stack.pop()
            _dictionary(stack[-1])[key] = value
        elif code in _VALUES:
            stack.append(_VALUES[code]())
        elif code == 0x94:  # MEMOIZE
            self._memo[len(self._memo)] = stack[-1]
        elif code == 0x93:  # STACK_GLOBAL
            name, module = stack.pop(), stack.pop()
            self._class(module, name)
        elif code in {0x81, 0x52} and stack[-1] == () and stack[-2] is _CLASS:  # NEWOBJ, REDUCE
            stack[-2:] = [_PersistentData()]
        elif code == 0x62 and isinstance(stack[-2], _PersistentData):  # BUILD
            state = stack.pop()
            _dictionary(stack[-1]).update(_dictionary(state))
        else:
            raise ValueError(f"the instruction {code:#04x} has no place in an id map")

    def _class(self, module: object, name: object) -> None:
        if name != "PersistentData" or not str(module).startswith("chromadb."):
            raise ValueError(f"{module}.{name} has no place in an id map")
        self._stack.append(_CLASS)

    def _since_mark(self) -> list[object]:
        stack = self._stack
        start = len(stack) - 1
        while stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise ValueError("a group of values has no beginning")
        items = stack[start + 1 :]
        del stack[start:]
        return items


def _dictionary(value: object) -> dict[object, object]:
    if not isinstance(value, dict):
        raise ValueError("something is put into what is no dictionary")  # noqa: TRY004 - of the same kind as the others
    return value


def _byte(content: bytes, position: int) -> int:
    if position >= len(content):
        raise struct.error
    return content[position]


def _unpacker(of: struct.Struct) -> ReadNumber:
    def read(content: bytes, position: int) -> int:
        found: int = of.unpack_from(content, position)[0]
        return found

    return read


_SIZES: dict[int, tuple[ReadNumber, int]] = {
    0x80: (_byte, 1),  # PROTO
    0x95: (_unpacker(_U64), 8),  # FRAME
    0x4B: (_byte, 1),
    0x4D: (_unpacker(_U16), 2),
    0x8C: (_byte, 1),  # SHORT_BINUNICODE
    0x8D: (_unpacker(_U64), 8),  # BINUNICODE8
    0x71: (_byte, 1),
    0x72: (_unpacker(_U32), 4),
    0x68: (_byte, 1),
    0x6A: (_unpacker(_U32), 4),
}
"""Instructions with an operand of fixed length: what reads it, and its bytes."""

_COUNTED = frozenset({0x8C, 0x8D})
"""Those whose operand says how many bytes of text follow."""

_VALUES: dict[int, Callable[[], object]] = {
    0x7D: dict,  # EMPTY_DICT
    0x4E: lambda: None,  # NONE
    0x88: lambda: True,  # NEWTRUE
    0x89: lambda: False,  # NEWFALSE
    0x29: tuple,  # EMPTY_TUPLE
}
