"""Reads ``index_metadata.pickle``, the map between ids and labels, without running anything that is in it."""

from __future__ import annotations

import pickle
import pickletools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiochroma.disk.layout import ID_MAP_FILE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["IdMap", "IndexUnreadableError", "read_cut_id_map", "read_id_map"]

# How pickletools says that the bytes end in the middle: "not enough data in stream", "expected 4 bytes ...
# but only 2 remain", "pickle exhausted before seeing STOP", "no newline found".
_CUT_OFF = re.compile(r"exhausted|not enough data|remain|no newline")


class IndexUnreadableError(Exception):
    """A file of the index is missing, cut off, or contradicts itself or another; the message says how."""


@dataclass(frozen=True)
class IdMap:
    """``index_metadata.pickle``: which id has which label.

    Attributes:
        labels: Label of each id that is in the index.
        total_added: Elements ever added, deleted ones included.
    """

    labels: dict[str, int]
    total_added: int


def read_id_map(directory: Path) -> IdMap:
    """Read ``index_metadata.pickle`` with an unpickler that can build plain values only.

    Raises:
        IndexUnreadableError: Missing, cut off, not what Chroma writes, or asking for code to be run.
    """
    try:
        with (directory / ID_MAP_FILE).open("rb") as file:
            content = _IdMapUnpickler(file).load()
        labels, total, back = content["id_to_label"], content["total_elements_added"], content["label_to_id"]
    except OSError as error:
        raise IndexUnreadableError(f"{ID_MAP_FILE} cannot be read: {error.strerror}") from error
    except Exception as error:
        # A damaged pickle raises nearly anything.
        raise IndexUnreadableError(f"{ID_MAP_FILE} cannot be decoded: {type(error).__name__}") from error
    if not isinstance(labels, dict) or not isinstance(back, dict) or not isinstance(total, int) or total < 0:
        raise IndexUnreadableError(f"{ID_MAP_FILE} is not an id map")
    if len(back) != len(labels) or len(labels) > total:
        raise IndexUnreadableError(
            f"{ID_MAP_FILE} contradicts itself: {len(labels)} ids, {len(back)} labels, {total} added"
        )
    return IdMap(labels, total)


def read_cut_id_map(directory: Path) -> IdMap:
    """Read what is left of an id map that was cut off.

    That is how a kill in the middle of writing it leaves it. The pairs at its beginning are as sound as
    those of a complete one: Chroma writes it from memory in one go, after all vectors it speaks of. Of a
    file that is damaged in any other way nothing is believed.

    Raises:
        IndexUnreadableError: Nothing is left, or it was not simply cut off.
    """
    content = (directory / ID_MAP_FILE).read_bytes()
    labels: dict[str, int] = {}
    total: int | None = None
    section, key = "", None
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if isinstance(argument, str):
                key = argument
            elif opcode.name in {"EMPTY_DICT", "NONE"} and key is not None:
                section, key = key, None
            elif isinstance(argument, int) and not isinstance(argument, bool) and key is not None:
                if section == "id_to_label":
                    labels[key] = argument
                elif key == "total_elements_added":
                    total = argument
                key = None
    except ValueError as error:
        if not _CUT_OFF.search(str(error)):
            raise IndexUnreadableError(f"{ID_MAP_FILE} is damaged, not just cut off") from error
    consistent = total is not None and len(set(labels.values())) == len(labels) <= total
    if total is None or not labels or not consistent or max(labels.values()) > total:
        raise IndexUnreadableError(f"{ID_MAP_FILE} is cut off before its first complete entries")
    return IdMap(labels, total)


class _PersistentData(dict[str, Any]):
    """Stands for the class that Chroma before 1.0 pickled; only its attributes are of interest."""

    def __init__(self, *_arguments: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.update(state)


class _IdMapUnpickler(pickle.Unpickler):
    """Builds dictionaries, strings and numbers; refuses to look up any class or function but one stand-in."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "PersistentData" and module.startswith("chromadb."):
            return _PersistentData
        raise pickle.UnpicklingError(f"{module}.{name} has no place in an id map")

    def persistent_load(self, _persistent_id: object) -> Any:
        raise pickle.UnpicklingError("a persistent reference has no place in an id map")
