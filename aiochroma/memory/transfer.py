"""Memories to a file and back."""

from __future__ import annotations

import json
import math
import os
import stat
import threading
from collections import Counter, deque
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from aiochroma._errors import InvalidInputError
from aiochroma._files import Replacement, expand
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject, MetadataView
from aiochroma._waiting import off_loop
from aiochroma.backend.limits import MOST_BYTES
from aiochroma.client.options import check_progress
from aiochroma.disk.layout import SQLITE_FILE
from aiochroma.memory.arguments import DEEPEST_SCOPE, NOT_FOR_KEYS, checked_names, item_from
from aiochroma.memory.remembering import remember_batches
from aiochroma.memory.results import Count
from aiochroma.memory.sources import MOMENTS, reader_of, size_of
from aiochroma.memory.stored import matching_ids, read_records
from aiochroma.records.record import CREATED_AT, THREAD, UNORDERED, collection_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
    from datetime import datetime

    from aiochroma.memory.arguments import Item
    from aiochroma.memory.opening import Life
    from aiochroma.memory.results import Hit
    from aiochroma.memory.sources import Row
    from aiochroma.memory.store import Namespace, Store

__all__ = ["export", "import_"]

log: EventLogger = get_logger("aiochroma.memory")

_PAGE = 500
_ROWS_AT_ONCE = 256
_WINDOW = 2048
_WINDOW_CHARACTERS = 4 * 1024 * 1024

_FEW_VALUES = 1000
_YEARS = range(1900, 9000)

_OWN_NAMES = (SQLITE_FILE, "aiochroma-", ".aiochroma")
"""What the files of a database directory are called, Chroma's and ours."""


def export(
    life: Life,
    file: str | os.PathLike[str],
    *,
    namespaces: Iterable[str] | str | None,
    progress: Callable[[int], None] | None,
) -> Coroutine[object, object, Count]:
    """Write memories to a file; see ``Memory.export``."""
    check_progress(progress)
    names = checked_names(namespaces)

    async def work(store: Store) -> Count:
        return Count(await _export(store, file, names, progress))

    return life.run("export", work, Count.failed)


def import_(
    life: Life,
    file: str | os.PathLike[str],
    *,
    namespace: str | None,
    progress: Callable[[int, int, int], None] | None,
) -> Coroutine[object, object, Count]:
    """Remember what is in a file or folder; see ``Memory.import_``."""
    check_progress(progress)
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
    else:
        found = await store.find(names, any_embedder=True)
        names = [name for name in dict.fromkeys(names) if found[name] is not None]
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
    # Only a file can be cut: what a pipe or a device was given it has.
    begun = await off_loop(lambda: output.tell() if stat.S_ISREG(os.fstat(output.fileno()).st_mode) else None)

    async def pages(found: Namespace) -> int:
        # Where another client has made the namespace again meanwhile, nothing of the former one is in the file.
        if begun is not None:
            await off_loop(lambda: (output.seek(begun), output.truncate()))
        # By id, not by position: a memory that is deleted meanwhile moves no other.
        ids = await matching_ids(store, found, None)
        count = 0
        left_out: dict[str, str] = {}
        for start in range(0, len(ids), _PAGE):
            records = await read_records(store, found, ids[start : start + _PAGE])
            lines = await off_loop(partial(_lines_of, records, left_out))
            await off_loop(partial(output.writelines, lines))
            count += len(lines)
            if progress is not None:
                progress(before + count)
        if left_out:
            log.warning(
                "export.left_out", namespace=name, left_out=len(left_out), first=[*left_out.items()][:3]
            )
        return count

    return await store.on(name, pages, absent=0, any_embedder=True)


def _lines_of(records: Iterable[tuple[Hit, MetadataView]], left_out: dict[str, str]) -> list[str]:
    """Write memories as lines, and note by id why one is left out: what another program wrote that no import takes."""
    lines = []
    for hit, stored in records:
        entry = _entry(hit, stored)
        line = json.dumps(entry, ensure_ascii=False)
        if not _is_ordinary(hit, line):
            try:
                item_from({name: value for name, value in entry.items() if name != "namespace"}, "It")
            except InvalidInputError as error:
                left_out[hit.id] = str(error)
                continue
        # Line separators of Unicode are letters to JSON and ends of lines to others.
        line = line.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        lines.append(f"{line}\n")
    return lines


def _is_ordinary(hit: Hit, line: str) -> bool:
    """Tell, in a tenth of the time, that an import takes a memory; where this says no, ``item_from`` decides.

    Args:
        hit: The memory.
        line: All of it as JSON: what is short as a whole is short in each part.
    """
    try:
        return (
            len(line.encode()) <= MOST_BYTES
            and "\\u0000" not in line
            and not hit.text[0].isspace()
            and hit.id != ""
            and "" not in hit.scope
            and len(hit.scope) <= DEEPEST_SCOPE
            and len(hit.metadata) <= _FEW_VALUES
            and not any(not key or key.startswith(NOT_FOR_KEYS) for key in hit.metadata)
            and all(map(_is_plain, hit.metadata.values()))
            and all(moment.year in _YEARS for moment in _moments(hit).values())
        )
    except (IndexError, UnicodeEncodeError):
        return False


def _is_plain(value: object) -> bool:
    """Tell whether a value can be stored, of which the size is known, and that it is text where it is a string."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str) or (isinstance(value, int) and -(2**63) <= value < 2**63)


def _entry(hit: Hit, stored: MetadataView) -> JsonObject:
    """Return what is written of a memory; moments as seconds since 1970, which loses nothing."""
    entry: JsonObject = {"id": hit.id, "namespace": hit.namespace, "text": hit.text}
    if hit.metadata:
        entry["metadata"] = hit.metadata
    if hit.scope:
        entry["scope"] = list(hit.scope)
    if hit.thread is not None or stored.get(UNORDERED):
        entry["thread"] = hit.thread or False
    entry["position"] = hit.position
    entry.update((name, moment.timestamp()) for name, moment in _moments(hit).items())
    if hit.pinned:
        entry["pinned"] = True
    return entry


def _moments(hit: Hit) -> dict[str, datetime]:
    found: dict[str, datetime | None] = {name: getattr(hit, name) for name in MOMENTS}
    return {name: moment for name, moment in found.items() if moment is not None}


async def _import(
    store: Store,
    file: str | os.PathLike[str],
    namespace: str,
    progress: Callable[[int, int, int], None] | None,
) -> int:
    """Remember what is in a file or folder; see ``Memory.import_``."""
    path = expand(file, "file")
    rows, replaces = await off_loop(lambda: reader_of(path, namespace))
    total = 0 if progress is None else await off_loop(lambda: size_of(path))
    count = taken = 0
    sizes: deque[int] = deque()

    def written(batch: list[Item]) -> None:
        nonlocal count, taken
        count += len(batch)
        taken += sizes.popleft()
        if progress is not None:
            progress(count, taken, total)

    reading = _Reading(rows)
    try:
        await remember_batches(store, _batches(reading, sizes, replaces=replaces), written)
    finally:
        reading.close()
    return count


def _numbered(rows: Iterable[Row]) -> Generator[Row, None, None]:
    """Number the texts of a thread that have neither an id nor a moment, by how often each stands in the file before.

    Then a text that is repeated is remembered as often, and an import that is run again duplicates nothing.
    """
    said: Counter[tuple[str, str]] = Counter()
    for row in rows:
        namespace, item = row.namespace, row.item
        if THREAD in item.own and CREATED_AT not in item.own and item.id == item.derived_id():
            said[namespace, item.id] += 1
            item.id = item.derived_id(said[namespace, item.id])
        yield row


async def _batches(
    reading: _Reading, sizes: deque[int], *, replaces: bool
) -> AsyncIterator[tuple[str, list[Item], bool]]:
    """Read rows off the loop, a window at a time, and gather those of one namespace, wherever they stand in the window.

    A row whose id follows from its text alone replaces nothing: under that id there may be another memory by now.

    Args:
        reading: The files to read.
        sizes: How many bytes of the file each batch took is put here, behind those of the batch before.
        replaces: Whether the others replace memories as a whole.
    """
    while True:
        window, error = await off_loop(reading.some)
        alike: dict[tuple[str, bool], list[Row]] = {}
        for row in window:
            is_named = row.is_named or row.item.id != row.item.derived_id()
            alike.setdefault((row.namespace, replaces and is_named), []).append(row)
        for (namespace, replace), rows in alike.items():
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                batch = rows[start : start + _ROWS_AT_ONCE]
                sizes.append(sum(row.size for row in batch))
                yield namespace, [row.item for row in batch], replace
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
                    characters += len(row.item.text)
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
