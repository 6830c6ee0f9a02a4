"""What memories are read from: JSON lines, an array of JSON, CSV, and folders of texts."""

from __future__ import annotations

import csv
import json
import stat
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from aiochroma._errors import InvalidInputError, shown
from aiochroma._types import JsonObject
from aiochroma.memory.arguments import Item, item_from
from aiochroma.records.record import collection_name

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from pathlib import Path

__all__ = ["MOMENTS", "Row", "reader_of", "size_of"]

T = TypeVar("T")

MOMENTS = ("created_at", "updated_at", "expires_at")
"""The fields of a memory that are moments."""

_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
_TEXT_SUFFIXES = frozenset({".txt", ".md"})
_CSV_FIELDS = frozenset({"text", "id", "scope", "thread", "position", "pinned", *MOMENTS})
_LONGEST_FIELD = 2**31 - 1
"""In characters: the most that fits into a C long on every system."""

_csv_limit = threading.Lock()


class Row(NamedTuple):
    """A memory of a file.

    Attributes:
        namespace: Where it belongs.
        item: The memory.
        size: How many bytes of the file it took, with what stands between it and the one before.
        is_named: Whether the file gives its id.
    """

    namespace: str
    item: Item
    size: int
    is_named: bool


def reader_of(path: Path, namespace: str) -> tuple[Generator[Row, None, None], bool]:
    """Return what reads a file or folder, and whether its memories replace others as a whole."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG  # The suffix is looked at first.
    except OSError as error:
        raise InvalidInputError(f"`file` {str(path)!r} cannot be read: {error}") from error
    if stat.S_ISDIR(mode):
        return _from_folder(path, namespace), False
    if not stat.S_ISREG(mode):
        # One without a writer keeps its thread for ever, and a device may have no end.
        raise InvalidInputError(
            f"`file` {str(path)!r} is a pipe or a device: write what it gives to a file first, or to `aiochroma import -`."
        )
    suffix = path.suffix.lower()
    if suffix in _JSON_SUFFIXES:
        return _guarded(path, _from_json(path, namespace)), True
    if suffix == ".csv":
        return _guarded(path, _from_csv(path, namespace)), False
    raise InvalidInputError(
        f"`file` {str(path)!r} must be a folder, or end in .csv or one of {sorted(_JSON_SUFFIXES)}."
    )


def _guarded(path: Path, rows: Iterable[Row]) -> Generator[Row, None, None]:
    try:
        yield from rows
    except OSError as error:
        raise InvalidInputError(f"`file` {str(path)!r} cannot be read: {error}") from error
    except csv.Error as error:
        raise InvalidInputError(f"`file` {str(path)!r} is not CSV: {error}") from error


def _from_json(path: Path, namespace: str) -> Generator[Row, None, None]:
    """Read one object or text per line, or one array of them."""
    read = _Bytes()
    # No universal newlines: within strings JSON escapes what ends a line.
    with closing(_lines(path, read, newline="\n")) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if number == 1 and line.lstrip().startswith("["):
                text = line + "".join(lines)
                yield from _from_array(path, text, namespace, read.take())
                return
            where = f"{path.name} line {number}"
            yield _entry_row(_parsed(line, where), namespace, where, read.take())


def _from_array(path: Path, text: str, namespace: str, size: int) -> Generator[Row, None, None]:
    """Read the items of an array; each counts as an equal part of the file."""
    entries = _parsed(text, path.name)
    if not isinstance(entries, list):
        raise InvalidInputError(f"{path.name} begins like a JSON array but is not one.")
    ends = [size * number // len(entries) for number in range(len(entries) + 1)] if entries else []
    for number, entry in enumerate(entries):
        yield _entry_row(entry, namespace, f"{path.name} item {number}", ends[number + 1] - ends[number])


def _parsed(text: str, where: str) -> object:
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError) as error:  # The latter where it is nested very deeply.
        raise InvalidInputError(f"{where} is not JSON: {error}") from error
    return parsed


def _entry_row(entry: object, namespace: str, where: str, size: int) -> Row:
    if not isinstance(entry, (dict, str)):
        raise InvalidInputError(f"{where} must be an object with `text`, or a text.")
    own = entry.pop("namespace", None) if isinstance(entry, dict) else None
    return _row(entry, namespace if own is None else own, where, size)


def _from_csv(path: Path, namespace: str) -> Generator[Row, None, None]:
    read = _Bytes()
    with closing(_lines(path, read, newline="")) as lines:
        reader = csv.DictReader(lines, strict=True)
        _check_columns(list(reader.fieldnames or ()), path.name)
        for values in _with_long_fields(reader):
            where = f"{path.name} line {reader.line_num}"
            if None in values or None in values.values():
                raise InvalidInputError(f"{where} does not have one value for each name of the first row.")
            entry: JsonObject = {name: values[name] for name in _CSV_FIELDS if values.get(name)}
            entry["text"] = values["text"]
            if "position" in entry:
                entry["position"] = _number(entry["position"], f"`position` of {where}")
            for name in MOMENTS:
                with suppress(ValueError, KeyError):
                    entry[name] = float(entry[name])
            if "pinned" in entry:
                entry["pinned"] = entry["pinned"].strip().lower() in {"1", "true", "yes"}
            metadata = {
                name: value
                for name, value in values.items()
                if value and name not in _CSV_FIELDS and name != "namespace"
            }
            if metadata:
                entry["metadata"] = metadata
            entry.setdefault("thread", False)
            yield _row(entry, values.get("namespace") or namespace, where, read.take())


def _check_columns(names: list[str], file: str) -> None:
    if "text" not in names:
        raise InvalidInputError(f"{file} has no column `text`; its first row is {names}.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidInputError(
            f"{file} has more than one column of the name {repeated}; each needs its own."
        )


def _with_long_fields(rows: Iterator[T]) -> Iterator[T]:
    """Read CSV whose fields may be longer than the csv module lets them be.

    Its limit is one for the whole process, so it is ours for a row at a time.
    """
    while True:
        with _csv_limit:
            limit = csv.field_size_limit(_LONGEST_FIELD)
            try:
                row = next(rows, None)
            finally:
                csv.field_size_limit(limit)
        if row is None:
            return
        yield row


@dataclass
class _Bytes:
    """How many bytes of a file have been read since somebody asked."""

    read: int = 0

    def take(self) -> int:
        """Return the number, and begin again."""
        read, self.read = self.read, 0
        return read


def _lines(path: Path, read: _Bytes, *, newline: str) -> Generator[str, None, None]:
    """Read the lines of a file, and count their bytes.

    Raises:
        InvalidInputError: One is not UTF-8. The lines before it come first, which a decoder of whole blocks would lose.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                read.read += len(line.encode("utf-8"))
            except UnicodeEncodeError as error:
                raise InvalidInputError(
                    f"{path.name} line {number} is not UTF-8, from its character {error.start} on; write the file as UTF-8."
                ) from None
            yield line


def _from_folder(path: Path, namespace: str) -> Generator[Row, None, None]:
    for file in _texts_in(path):
        name = file.relative_to(path).as_posix()
        try:
            text = file.read_text("utf-8-sig")
            size = file.stat().st_size
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{str(file)!r} cannot be read as UTF-8 text: {error}") from error
        if text.strip():
            entry = {"text": text, "id": name, "metadata": {"source": name}, "thread": False}
            yield _row(entry, namespace, name, size)


def _texts_in(folder: Path) -> list[Path]:
    return [
        file for file in sorted(folder.rglob("*")) if file.suffix.lower() in _TEXT_SUFFIXES and file.is_file()
    ]


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of the texts in a folder; 0 where they cannot be counted."""
    with suppress(OSError):
        return sum(file.stat().st_size for file in (_texts_in(path) if path.is_dir() else [path]))
    return 0


def _row(entry: object, namespace: str, where: str, size: int) -> Row:
    collection_name(namespace, f"The namespace of {where}")
    # Without a moment the order of the file says nothing about what belongs together.
    defaults: JsonObject = {"thread": False}
    is_named = False
    if isinstance(entry, dict):
        defaults = {} if "created_at" in entry else defaults
        is_named = entry.get("id") is not None
        written = {name: entry[name] for name in MOMENTS if isinstance(entry.get(name), str)}
        entry = {**entry, **{name: _moment(text, f"`{name}` of {where}") for name, text in written.items()}}
    return Row(namespace, item_from(entry, where, defaults), size, is_named)


def _moment(text: str, what: str) -> datetime:
    try:
        # Python 3.10 does not know the letter.
        return datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith(("Z", "z")) else text)
    except ValueError:
        raise InvalidInputError(
            f"{what} must be seconds since 1970 or a moment such as '2026-05-01T12:00:00Z', got {shown(text)}."
        ) from None


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInputError(f"{what} must be a number, got {shown(text)}.") from None
