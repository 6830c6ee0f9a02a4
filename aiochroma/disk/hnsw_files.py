"""Reads the five files of one persisted HNSW index, and says whether native code may be trusted with them.

Chroma rewrites these files in place: first ``header.bin``, then ``data_level0.bin`` (for each element: its
links of the lowest level, its vector, its label), ``length.bin`` (a norm for each element),
``link_lists.bin`` (the links of the upper levels), and last ``index_metadata.pickle`` (ids to labels). A
kill in between leaves files that do not belong together, and hnswlib's loader believes whatever it reads: it
crashes, or fills the disk. So everything it will follow is followed here first: sizes, counts, levels, the
target of every link, and labels against ids.

Nothing is executed and nothing is written.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiochroma.disk.id_map import IdMap, IndexUnreadableError, read_id_map
from aiochroma.disk.index_vectors import Written, check_vectors
from aiochroma.disk.layout import (
    HEADER_FILE,
    ID_MAP_FILE,
    LENGTH_FILE,
    LEVEL0_FILE,
    LINK_LISTS_FILE,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

__all__ = [
    "DELETED_MARK",
    "LINK_CHECK_LIMIT",
    "Header",
    "IndexReport",
    "blank_room",
    "inspect_index",
    "map_elements",
    "read_header",
    "unit_forms",
]

# Up to this many elements every level-0 link is followed (about 2 ms for each 10,000); above, evenly spaced ones.
LINK_CHECK_LIMIT = 200_000

_HEADER = struct.Struct("<iQQQQQQiIQQQdQ")
_PERSISTENCE_VERSION = 1
_LABEL_BYTES = 8
_MAXIMUM_LEVEL = 64
# Chroma grows an index to the next power of two; anything far beyond its elements is damage that would be allocated.
_MAXIMUM_SPARE = 1 << 22
DELETED_MARK = 1 << 16
_LARGEST_ELEMENT = 1 << 28
# Their number is stored in 16 bits.
_MOST_LINKS = (1 << 16) - 1
# Upper levels have one link list for every few elements; this many words for each element are more than any index needs.
_WORDS_PER_ELEMENT = 4
_UNKNOWN = Written()


@dataclass(frozen=True)
class Header:
    """``header.bin``, in hnswlib's order.

    Attributes:
        version: Version of the file format.
        offset_level0: Where the level-0 links begin inside an element, in bytes.
        capacity: Elements there is room for.
        count: Elements there are, deleted ones included.
        element_size: Bytes for each element of ``data_level0.bin``.
        label_offset: Where the label begins inside an element.
        data_offset: Where the vector begins inside an element.
        top_level: Highest level in use.
        entry_point: Element where a search begins.
        links_upper: Most links of an element on an upper level.
        links_level0: Most links of an element on level 0.
    """

    version: int
    offset_level0: int
    capacity: int
    count: int
    element_size: int
    label_offset: int
    data_offset: int
    top_level: int
    entry_point: int
    links_upper: int
    links_level0: int


@dataclass(frozen=True)
class IndexReport:
    """What is in an index directory, and what is wrong with it.

    Attributes:
        problems: One sentence for each; not empty means that Chroma must not load these files.
        ids: The ids that have a vector here; empty when the id map cannot be read or there is none.
        persisted: Whether the index was ever persisted, that is, whether there is an id map.
        elements: Elements in the files, deleted ones included.
        sampled: Whether only a sample of the level-0 links was followed.
    """

    problems: tuple[str, ...] = ()
    ids: frozenset[str] = field(default=frozenset(), repr=False)
    persisted: bool = False
    elements: int = 0
    sampled: bool = False


def inspect_index(
    directory: Path,
    dimension: int | None,
    *,
    link_limit: int = LINK_CHECK_LIMIT,
    written: Written = _UNKNOWN,
) -> IndexReport:
    """Check one index directory completely.

    Args:
        directory: The directory of a vector segment; it may be missing.
        dimension: Length of the vectors according to SQLite, if known.
        link_limit: Elements up to which every level-0 link is followed.
        written: What SQLite says of the vectors.

    Returns:
        The report; a missing directory, or one whose index was created but never persisted, is healthy and
        empty.
    """
    problems: list[str] = []
    id_map: IdMap | None = None
    if os.path.lexists(directory) and not directory.is_dir():
        return IndexReport((f"{directory.name} is no directory, or a link to none",))
    persisted = os.path.lexists(directory / ID_MAP_FILE)
    if persisted:
        try:
            id_map = read_id_map(directory)
        except IndexUnreadableError as error:
            problems.append(str(error))
    elif not _was_ever_filled(directory):
        return IndexReport(tuple(_special_files(directory)))
    else:
        problems.append(
            f"{ID_MAP_FILE} is missing although {HEADER_FILE} is not that of an empty index: interrupted first persist"
        )
    elements, sampled = 0, False
    try:
        header = read_header(directory, dimension)
        elements, sampled = header.count, header.count > link_limit
        if id_map is not None:
            # Without one the index is rebuilt in any case, and the count in its header is not worth reading gigabytes for.
            _check_counts(header, id_map)
            _check_upper_links(directory, header)
            held = map_elements(directory / LEVEL0_FILE, header)
            _check_level0(held, id_map, link_limit)
            check_vectors(directory, held, id_map, written)
    except IndexUnreadableError as error:
        problems.append(str(error))
    return IndexReport(
        problems=tuple(problems),
        ids=frozenset(id_map.labels) if id_map is not None else frozenset(),
        persisted=persisted,
        elements=elements,
        sampled=sampled,
    )


def _check_counts(header: Header, id_map: IdMap) -> None:
    if header.count != id_map.total_added:
        raise IndexUnreadableError(
            f"{HEADER_FILE} has {header.count} elements, {ID_MAP_FILE} {id_map.total_added}: interrupted persist"
        )


def _special_files(directory: Path) -> list[str]:
    """Say which files of an index that holds nothing are no files: native code would wait for a pipe for ever."""
    problems = []
    for name in (HEADER_FILE, LEVEL0_FILE, LENGTH_FILE, LINK_LISTS_FILE):
        if os.path.lexists(directory / name):
            try:
                _size(directory, name)
            except IndexUnreadableError as error:
                problems.append(str(error))
    return problems


def _was_ever_filled(directory: Path) -> bool:
    """Tell whether files without an id map hold anything.

    Chroma creates empty ones long before its first persist. Chroma 1.5.9 would start an empty index over
    whatever is there; later versions refuse to.
    """
    if not os.path.lexists(directory / HEADER_FILE):
        return False
    try:
        return read_header(directory, None, complete=False).count > 0
    except IndexUnreadableError:
        return True


def read_header(directory: Path, dimension: int | None, *, complete: bool = True) -> Header:
    """Read and check ``header.bin`` against itself and against the sizes of the other files.

    Args:
        directory: The directory of a vector segment.
        dimension: Length of the vectors according to SQLite, if known.
        complete: Check against the other files too.

    Raises:
        IndexUnreadableError: Missing, cut off, or implausible.
    """
    size = _size(directory, HEADER_FILE)
    if size != _HEADER.size:
        raise IndexUnreadableError(f"{HEADER_FILE} has {size} bytes, expected {_HEADER.size}")
    try:
        values = _HEADER.unpack((directory / HEADER_FILE).read_bytes())
    except (OSError, struct.error) as error:
        raise IndexUnreadableError(f"{HEADER_FILE} cannot be read: {error}") from error
    header = Header(*values[:11])
    multiplier, construction_depth = values[12], values[13]
    if header.version != _PERSISTENCE_VERSION:
        raise IndexUnreadableError(
            f"{HEADER_FILE} has version {header.version}, known is {_PERSISTENCE_VERSION}"
        )
    plausible = (
        header.offset_level0 == 0
        and 0 < header.links_level0 <= _MOST_LINKS
        and 0 < header.links_upper <= header.links_level0
        and header.data_offset == 4 + 4 * header.links_level0
        and header.data_offset < header.label_offset == header.element_size - _LABEL_BYTES
        and header.element_size <= _LARGEST_ELEMENT
        and header.count <= header.capacity <= 64 * header.count + _MAXIMUM_SPARE
        and (header.count == 0 or header.entry_point < header.count)
        and -1 <= header.top_level <= _MAXIMUM_LEVEL
        and math.isfinite(multiplier)
        and multiplier > 0
        and 0 < construction_depth < 1 << 20
    )
    if not plausible:
        raise IndexUnreadableError(f"{HEADER_FILE} is implausible: {header}")
    if dimension is not None and header.label_offset - header.data_offset != 4 * dimension:
        stored = (header.label_offset - header.data_offset) / 4
        raise IndexUnreadableError(
            f"{HEADER_FILE} says {stored:g} dimensions, the collection has {dimension}"
        )
    if complete:
        _check_size(directory, LEVEL0_FILE, header.count * header.element_size)
        _check_size(directory, LENGTH_FILE, header.count * 4)
    return header


def _check_size(directory: Path, name: str, needed: int) -> None:
    size = _size(directory, name)
    if size < needed:
        raise IndexUnreadableError(f"{name} has {size} bytes, at least {needed} are needed")


def _size(directory: Path, name: str) -> int:
    """Return the size of a file of an index; of a named pipe, for one, nothing would ever be read."""
    try:
        status = (directory / name).stat()
    except OSError as error:
        raise IndexUnreadableError(f"{name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise IndexUnreadableError(f"{name} is not a regular file")
    return status.st_size


def map_elements(file: Path, header: Header, *, writable: bool = False) -> npt.NDArray[np.void]:
    """Map the complete elements of ``data_level0.bin`` as records.

    The fields are ``links_count``, ``links``, ``vector`` and ``label``.

    Args:
        file: The file; it may be shorter than the header says.
        header: The layout.
        writable: Whether what is written to the records goes to the file.

    Returns:
        Records backed by the file, at most ``header.count``.
    """
    import numpy as np

    layout = np.dtype(
        {
            "names": ["links_count", "links", "vector", "label"],
            "formats": [
                "<u4",
                ("<u4", (header.links_level0,)),
                ("<f4", ((header.label_offset - header.data_offset) // 4,)),
                "<u8",
            ],
            "offsets": [0, 4, header.data_offset, header.label_offset],
            "itemsize": header.element_size,
        }
    )
    count = min(header.count, file.stat().st_size // header.element_size)
    if count == 0:
        return np.empty(0, layout)
    return np.memmap(file, dtype=layout, mode="r+" if writable else "r", shape=(count,))


def _check_level0(elements: npt.NDArray[np.void], id_map: IdMap, link_limit: int) -> None:
    """Follow the level-0 links, and compare labels with ids."""
    import numpy as np

    count = len(elements)
    step = max(1, -(-count // link_limit))
    counts = elements["links_count"]
    sizes = (counts & 0xFFFF)[::step]
    bad_size = np.flatnonzero(sizes > elements["links"].shape[1])
    if len(bad_size):
        raise IndexUnreadableError(
            f"{LEVEL0_FILE}: element {bad_size[0] * step} claims {sizes[bad_size[0]]} links"
        )
    links = elements["links"][::step]
    used = np.arange(links.shape[1], dtype=np.uint32) < sizes[:, None]
    outside = np.flatnonzero(((links >= count) & used).any(axis=1))
    if len(outside):
        raise IndexUnreadableError(
            f"{LEVEL0_FILE}: element {outside[0] * step} links to an element that does not exist"
        )
    labels = np.sort(np.ascontiguousarray(elements["label"])[(counts & DELETED_MARK) == 0])
    expected = np.sort(np.fromiter(id_map.labels.values(), dtype=np.uint64, count=len(id_map.labels)))
    if not np.array_equal(labels, expected):
        missing = len(np.setdiff1d(expected, labels))
        raise IndexUnreadableError(
            f"{LEVEL0_FILE} holds {len(labels)} vectors, {ID_MAP_FILE} {len(expected)} ids; {missing} ids "
            "have no vector: interrupted persist"
        )


def _check_upper_links(directory: Path, header: Header) -> None:
    """Follow the links of the upper levels.

    The file has for each element a size in bytes, then for each of its upper levels a list of links.
    """
    import numpy as np

    words = 1 + header.links_upper  # one word says how many links follow; there is always room for all
    # A file that a damaged index has filled the disk with is not read as a whole.
    limit = header.count * (1 + _WORDS_PER_ELEMENT * words) + _MAXIMUM_LEVEL * words
    content = _words(directory, min(limit, _size(directory, LINK_LISTS_FILE) // 4))
    levels = np.zeros(header.count, dtype=np.int32)
    lists: list[tuple[int, int]] = []  # (position of a list, its level)
    # Most elements live on level 0 only and are one zero word: jump from one that does not to the next.
    nonzero = np.flatnonzero(content)
    position = element = 0
    while element < header.count:
        at = int(np.searchsorted(nonzero, position))
        jump = int(nonzero[at]) if at < len(nonzero) else len(content)
        skipped = min(jump - position, header.count - element)
        position, element = position + skipped, element + skipped
        if element == header.count:
            break
        if position >= len(content):
            raise IndexUnreadableError(f"{LINK_LISTS_FILE} ends at element {element} of {header.count}")
        size = int(content[position])
        level, rest = divmod(size, 4 * words)
        if rest or level > max(header.top_level, 0) or position + 1 + level * words > len(content):
            raise IndexUnreadableError(f"{LINK_LISTS_FILE}: element {element} claims {size} bytes of links")
        levels[element] = level
        lists.extend((position + 1 + words * above, above + 1) for above in range(level))
        position, element = position + 1 + level * words, element + 1
    if header.count and levels[header.entry_point] != max(header.top_level, 0):
        raise IndexUnreadableError(
            f"{LINK_LISTS_FILE}: the entry point is not on the top level {header.top_level}"
        )
    if lists:
        _check_link_lists(content, np.asarray(lists), levels, words)


def _words(directory: Path, count: int) -> npt.NDArray[np.uint32]:
    import numpy as np

    try:
        return np.fromfile(directory / LINK_LISTS_FILE, dtype="<u4", count=count)
    except OSError as error:
        raise IndexUnreadableError(f"{LINK_LISTS_FILE} cannot be read: {error.strerror}") from error


def _check_link_lists(
    content: npt.NDArray[np.uint32], lists: npt.NDArray[np.int64], levels: npt.NDArray[np.int32], words: int
) -> None:
    import numpy as np

    table = content[lists[:, :1] + np.arange(words)]
    sizes = table[:, 0] & 0xFFFF
    if (sizes >= words).any():
        raise IndexUnreadableError(f"{LINK_LISTS_FILE}: a list claims more links than it has room for")
    used = np.arange(words - 1, dtype=np.uint32) < sizes[:, None]
    targets = table[:, 1:]
    if ((targets >= len(levels)) & used).any():
        raise IndexUnreadableError(f"{LINK_LISTS_FILE}: a link leads to an element that does not exist")
    # hnswlib follows a link on a level without asking whether its target has that level.
    reached = levels[np.where(used, targets, 0)]
    if ((reached < lists[:, 1:]) & used).any():
        raise IndexUnreadableError(f"{LINK_LISTS_FILE}: a link leads to an element that is not on that level")


_UNIT_TOLERANCE = 1e-5


def unit_forms(deleted: npt.NDArray[np.float32], sought: Sequence[bytes]) -> list[bytes]:
    """Return those of an index's vectors that are sought ones brought to length one.

    The last digits depend on the processor that did it, so they are recognised and not computed.
    """
    import numpy as np

    given = [np.frombuffer(vector, dtype="<f4") for vector in sought]
    fitting = [vector for vector in given if len(vector) == deleted.shape[1] and np.any(vector)]
    if not fitting:
        return []
    units = np.array([vector / np.linalg.norm(vector) for vector in fitting], dtype="<f4")
    return [row.tobytes() for row in deleted if (np.abs(units - row).max(axis=1) < _UNIT_TOLERANCE).any()]


_BLANK_BYTES = 2**20


def blank_room(index: Path, header: Header) -> None:
    """Write zeros behind the elements of an index, where Chroma writes what its memory happens to hold."""
    for name, start in ((LEVEL0_FILE, header.count * header.element_size), (LENGTH_FILE, header.count * 4)):
        with (index / name).open("r+b") as opened:
            end = opened.seek(0, os.SEEK_END)
            opened.seek(start)
            for position in range(start, end, _BLANK_BYTES):
                opened.write(bytes(min(_BLANK_BYTES, end - position)))
            opened.flush()
            os.fsync(opened.fileno())
