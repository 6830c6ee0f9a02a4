"""Memories to a file and back."""

from __future__ import annotations

import csv
import json
import os
import stat
import threading
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from aiochroma._errors import InvalidInputError, shown
from aiochroma._files import Replacement, expand
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject, MetadataView
from aiochroma._waiting import off_loop
from aiochroma.memory.arguments import Item, item_from
from aiochroma.memory.remembering import remember_batches
from aiochroma.memory.results import Count
from aiochroma.memory.store import checked_names
from aiochroma.memory.stored import matching_ids, read_records
from aiochroma.records.record import CREATED_AT, THREAD, UNORDERED, collection_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator

    from aiochroma.memory.opening import Life
    from aiochroma.memory.results import Hit
    from aiochroma.memory.store import Namespace, Store

__all__ = ["TEXT_SUFFIXES", "export", "import_"]

T = TypeVar("T")

log: EventLogger = get_logger("memory")

_PAGE = 500
_ROWS_AT_ONCE = 256
_WINDOW = 2048
_WINDOW_CHARACTERS = 4 * 1024 * 1024
_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
TEXT_SUFFIXES = frozenset({".txt", ".md"})
_MOMENTS = ("created_at", "updated_at", "expires_at")
_CSV_FIELDS = frozenset({"text", "id", "scope", "thread", "position", "pinned", *_MOMENTS})

_OWN_NAMES = ("chroma.sqlite3", "aiochroma-", ".aiochroma")
"""What the files of a database directory are called, Chroma's and ours."""
_LONGEST_FIELD = 2**31 - 1
"""In characters: the most that fits into a C long on every system."""

_csv_limit = threading.Lock()

Row = tuple[str, Item]


def export(
    life: Life,
    file: str | os.PathLike[str],
    *,
    namespaces: Iterable[str] | str | None,
    progress: Callable[[int], None] | None,
) -> Coroutine[object, object, Count]:
    """Write memories to a file; see ``Memory.export``."""
    names = checked_names(namespaces)

    async def work(store: Store) -> Count:
        return Count(await _export(store, file, names, progress))

    return life.run("export", work, Count.failed)


def import_(
    life: Life,
    file: str | os.PathLike[str],
    *,
    namespace: str | None,
    progress: Callable[[int], None] | None,
) -> Coroutine[object, object, Count]:
    """Remember what is in a file or folder; see ``Memory.import_``."""
    home = "default" if namespace is None else namespace
    collection_name(home)

    async def work(store: Store) -> Count:
        return Count(await _import(store, file, home, progress))

    return life.run("import_", work, Count.failed)


async def _export(
    store: Store,
    file: str | os.PathLike[str],
    names: list[str] | None,
    progress: Callable[[int], None] | None,
) -> int:
    """Write memories as JSON lines; see ``Memory.export``."""
    target = expand(file, "file")
    await off_loop(partial(_refuse_own_files, target, store.info.path))
    if names is None:
        names = await store.names()
    written = 0
    try:
        # Opened, written, closed and renamed off the loop, so no `async with` and no `with` around it all.
        output = await off_loop(lambda: Replacement(target))
        try:
            for name in names:
                written += await _export_namespace(store, name, output.file, written, progress)
            await off_loop(output.commit)
        except BaseException:
            await off_loop(output.discard)
            raise
    except OSError as error:
        raise InvalidInputError(
            f"`file` {str(target)!r} cannot be written: {error.strerror or error}."
        ) from error
    return written


def _refuse_own_files(target: Path, directory: str) -> None:
    """Refuse to export onto a file of the database, or among those of an index."""
    real, home = Path(os.path.realpath(target)), Path(os.path.realpath(directory))
    if not directory or home not in real.parents:
        return
    name = real.relative_to(home).parts[0]
    if name.startswith(_OWN_NAMES) or (home / name).is_dir():
        raise InvalidInputError(
            f"`file` {str(target)!r} belongs to the database in {directory!r}; export to a path outside of it."
        )


async def _export_namespace(
    store: Store, name: str, output: IO[str], before: int, progress: Callable[[int], None] | None
) -> int:
    begun = await off_loop(lambda: output.tell() if output.seekable() else None)

    async def pages(found: Namespace) -> int:
        # Where another client has made the namespace again meanwhile, nothing of the former one is in the file.
        if begun is not None:
            await off_loop(lambda: (output.seek(begun), output.truncate()))
        # By id, not by position: a memory that is deleted meanwhile moves no other.
        ids = await matching_ids(store, found, None)
        count = 0
        without: list[str] = []
        for start in range(0, len(ids), _PAGE):
            records = await read_records(store, found, ids[start : start + _PAGE])
            # Without a text nothing could be remembered again; such records are other programs'.
            without += [hit.id for hit, _ in records if not hit.text.strip()]
            lines = [_line(hit, stored) for hit, stored in records if hit.text.strip()]
            await off_loop(partial(output.writelines, lines))
            count += len(lines)
            if progress is not None:
                progress(before + count)
        if without:
            log.warning("export.without_text", namespace=name, left_out=len(without), first=without[:3])
        return count

    return await store.on(name, pages, absent=0, any_embedder=True)


def _line(hit: Hit, stored: MetadataView) -> str:
    """Write a memory as a line; moments as seconds since 1970, which loses nothing."""
    entry: JsonObject = {"id": hit.id, "namespace": hit.namespace, "text": hit.text}
    if hit.metadata:
        entry["metadata"] = hit.metadata
    if hit.scope:
        entry["scope"] = list(hit.scope)
    if hit.thread is not None:
        entry["thread"] = hit.thread
    elif stored.get(UNORDERED):
        entry["thread"] = False
    entry["position"] = hit.position
    for name in _MOMENTS:
        moment = getattr(hit, name)
        if moment is not None:
            entry[name] = moment.timestamp()
    if hit.pinned:
        entry["pinned"] = True
    # Line separators of Unicode are letters to JSON and ends of lines to others.
    return (
        json.dumps(entry, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029") + "\n"
    )


async def _import(
    store: Store, file: str | os.PathLike[str], namespace: str, progress: Callable[[int], None] | None
) -> int:
    """Remember what is in a file or folder; see ``Memory.import_``."""
    path = expand(file, "file")
    rows, replaces = await off_loop(lambda: _reader(path, namespace))
    count = 0

    def written(batch: list[Item]) -> None:
        nonlocal count
        count += len(batch)
        if progress is not None:
            progress(count)

    reading = _Reading(rows)
    try:
        await remember_batches(store, _batches(reading), written, replace=replaces)
    finally:
        reading.close()
    return count


def _numbered(rows: Iterable[Row]) -> Generator[Row, None, None]:
    """Number the texts of a thread that have neither an id nor a moment, by how often each stands in the file before.

    Then a text that is repeated is remembered as often, and an import that is run again duplicates nothing.
    """
    said: Counter[tuple[str, str]] = Counter()
    for namespace, item in rows:
        if THREAD in item.own and CREATED_AT not in item.own and item.id == item.derived_id():
            said[namespace, item.id] += 1
            item.id = item.derived_id(said[namespace, item.id])
        yield namespace, item


async def _batches(reading: _Reading) -> AsyncIterator[tuple[str, list[Item]]]:
    """Read rows off the loop, a window at a time, and gather those of one namespace, wherever they stand in the window."""
    while True:
        window, error = await off_loop(reading.some)
        namespaces: dict[str, list[Item]] = {}
        for namespace, item in window:
            namespaces.setdefault(namespace, []).append(item)
        for namespace, items in namespaces.items():
            for start in range(0, len(items), _ROWS_AT_ONCE):
                yield namespace, items[start : start + _ROWS_AT_ONCE]
        if error is not None:
            raise error
        if not window:
            return


class _Reading:
    """Rows that are read on worker threads. A cancelled caller closes it while one of them reads: that one then closes the file.

    Args:
        rows: What reads them.
    """

    def __init__(self, rows: Generator[Row, None, None]) -> None:
        self._rows, self._numbered = rows, _numbered(rows)
        self._lock = threading.Lock()
        self._closed = False

    def some(self) -> tuple[list[Row], Exception | None]:
        """Read some rows, and what ended the reading: the rows before a bad one are to be written."""
        batch: list[Row] = []
        characters = 0
        error = None
        with self._lock:
            try:
                while (
                    len(batch) < _WINDOW
                    and characters < _WINDOW_CHARACTERS
                    and (row := next(self._numbered, None)) is not None
                ):
                    batch.append(row)
                    characters += len(row[1].text)
            except Exception as raised:  # noqa: BLE001 - raised when the rows before it are written
                error = raised
        if self._closed:
            self.close()
        return batch, error

    def close(self) -> None:
        """Close the file; waits for nothing."""
        self._closed = True
        if self._lock.acquire(blocking=False):
            with closing(self._rows), closing(self._numbered):
                self._lock.release()


def _reader(path: Path, namespace: str) -> tuple[Generator[Row, None, None], bool]:
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
    # No universal newlines: within strings JSON escapes what ends a line.
    with closing(_lines(path, newline="\n")) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if number == 1 and line.lstrip().startswith("["):
                yield from _from_array(path, line + "".join(lines), namespace)
                return
            where = f"{path.name} line {number}"
            yield _entry_row(_parsed(line, where), namespace, where)


def _from_array(path: Path, text: str, namespace: str) -> Generator[Row, None, None]:
    entries = _parsed(text, path.name)
    if not isinstance(entries, list):
        raise InvalidInputError(f"{path.name} begins like an array and is none.")
    for number, entry in enumerate(entries):
        yield _entry_row(entry, namespace, f"{path.name} item {number}")


def _parsed(text: str, where: str) -> object:
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError) as error:  # The latter where it is nested very deeply.
        raise InvalidInputError(f"{where} is not JSON: {error}") from error
    return parsed


def _entry_row(entry: object, namespace: str, where: str) -> Row:
    if not isinstance(entry, (dict, str)):
        raise InvalidInputError(f"{where} must be an object with `text`, or a text.")
    own = entry.pop("namespace", None) if isinstance(entry, dict) else None
    return _row(entry, namespace if own is None else own, where)


def _from_csv(path: Path, namespace: str) -> Generator[Row, None, None]:
    with closing(_lines(path, newline="")) as lines:
        reader = csv.DictReader(lines, strict=True)
        _check_columns(list(reader.fieldnames or ()), path.name)
        for values in _with_long_fields(reader):
            where = f"{path.name} line {reader.line_num}"
            if None in values or None in values.values():
                raise InvalidInputError(f"{where} does not have one value for each name of the first row.")
            entry: JsonObject = {name: values[name] for name in _CSV_FIELDS if values.get(name)}
            entry["text"] = values["text"]
            for name in ("position", *_MOMENTS):
                if name in entry:
                    entry[name] = _number(entry[name], f"`{name}` of {where}")
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
            yield _row(entry, values.get("namespace") or namespace, where)


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


def _lines(path: Path, *, newline: str) -> Generator[str, None, None]:
    """Read the lines of a file.

    Raises:
        InvalidInputError: One is not UTF-8. The lines before it come first, which a decoder of whole blocks would lose.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InvalidInputError(
                    f"{path.name} line {number} is not UTF-8, from its character {error.start} on; write the file as UTF-8."
                ) from None
            yield line


def _from_folder(path: Path, namespace: str) -> Generator[Row, None, None]:
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() not in TEXT_SUFFIXES or not file.is_file():
            continue
        name = file.relative_to(path).as_posix()
        try:
            text = file.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{str(file)!r} cannot be read as UTF-8 text: {error}") from error
        if text.strip():
            entry = {"text": text, "id": name, "metadata": {"source": name}, "thread": False}
            yield _row(entry, namespace, name)


def _row(entry: object, namespace: str, where: str) -> Row:
    try:
        collection_name(namespace)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from None
    # Without a moment the order of the file says nothing about what belongs together.
    defaults = {} if isinstance(entry, dict) and "created_at" in entry else {"thread": False}
    return namespace, item_from(entry, where, defaults)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInputError(f"{what} must be a number, got {shown(text)}.") from None
