"""Opens a copy of a database in a process of its own and checks that every record has its vector.

Run as ``python -m aiochroma.backend.verify_child DIRECTORY full|quick``; prints one JSON object. With ``rebuild COLLECTION_ID``
it reads that collection once, which makes Chroma rebuild its index. In a child, so that a copy that
makes Chroma's native code crash takes no other process with it, and with a limit on the size of files, so that it fills no disk.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._types import JsonObject
from aiochroma.backend.chroma import start_chroma
from aiochroma.backend.chroma_records import ChromaRecords, Database, server_api
from aiochroma.core.config import EngineOptions, Location
from aiochroma.disk.layout import connect_read_only
from aiochroma.disk.preflight import preflight
from aiochroma.disk.schema import record_ids
from aiochroma.disk.sqlite_file import prepare, wait_until_closed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiochroma.disk.findings import CollectionReport

__all__ = ["main", "verify"]

_PAGE = 1000
_ROOM_BYTES = 2**30


def verify(directory: Path, *, full: bool = True) -> JsonObject:
    """Check a database that no program has open.

    Args:
        directory: The directory.
        full: Read every vector; else those of one page of each collection.

    Returns:
        ``problems``: a sentence for each thing that is wrong; ``collections``: for each collection's id its ``name``,
        ``records`` and ``sequence`` (up to which write of the log it goes).
    """
    report = preflight(directory)
    usable = tuple(entry for entry in report.collections if not entry.unusable)
    # What is derived can be made again; and one collection that Chroma cannot use does not prevent a backup of
    # the others. How far its log goes is not said of it: nothing of it may be forgotten because of this copy.
    problems = [*report.sqlite_problems, *(problem for entry in usable for problem in entry.problems)]
    collections = {
        entry.collection_id: {
            "name": entry.label,
            "records": entry.records,
            "sequence": 0 if entry.unusable else entry.applied_sequence,
            **({"problem": entry.unusable} if entry.unusable else {}),
        }
        for entry in report.collections
    }
    if report.is_new:
        problems.append("there is no database in it")
    if not problems:
        problems = _read_collections(directory, usable, full=full)
        # One file instead of three: it can be read wherever it is kept, on a disk that cannot be written, too.
        if wait_until_closed(directory):
            prepare(directory, write_ahead=False)
    return {"problems": problems, "collections": collections}


def _read_collections(directory: Path, collections: tuple[CollectionReport, ...], *, full: bool) -> list[str]:
    with _chroma(directory) as api:
        for entry in collections:
            # Applies what is in the log still, so that SQLite's tables can be relied upon below.
            api.count(entry.collection_id, tenant=entry.tenant, database=entry.database)
    wait_until_closed(directory)
    # By id and not by position, which costs the more the further it goes.
    with connect_read_only(directory) as connection:
        ids = {
            entry.collection_id: sorted(record_ids(connection, entry.metadata_segment_id))
            for entry in collections
        }
    with _chroma(directory) as api:
        return [
            problem
            for entry in collections
            for problem in _read_collection(api, entry, ids[entry.collection_id], full=full)
        ]


@contextmanager
def _chroma(directory: Path) -> Iterator[ChromaRecords]:
    system = start_chroma(Location("persistent", str(directory)), EngineOptions())
    try:
        yield ChromaRecords(server_api(system))
    finally:
        system.stop()


def rebuild(directory: Path, collection_id: str) -> None:
    """Have Chroma rebuild the index of one collection."""
    for entry in preflight(directory).collections:
        if entry.collection_id == collection_id:
            with _chroma(directory) as api:
                api.get(collection_id, limit=1, include=[], tenant=entry.tenant, database=entry.database)


def _read_collection(api: ChromaRecords, entry: CollectionReport, ids: list[str], *, full: bool) -> list[str]:
    import numpy as np

    where: Database = {"tenant": entry.tenant, "database": entry.database}
    for start in range(0, len(ids) if full else min(len(ids), _PAGE), _PAGE):
        some = ids[start : start + _PAGE]
        page = api.get(entry.collection_id, ids=some, include=["embeddings"], **where)
        if len(page["ids"]) != len(some):
            return [f"{entry.label}: {len(some) - len(page['ids'])} of {len(some)} records cannot be read"]
        vectors = np.array(page["embeddings"])
        is_whole = vectors.shape == (len(some), entry.dimension)
        # Where the distance is the cosine, Chroma keeps no number of a vector whose length is too large for one.
        numbers = vectors[~np.isnan(vectors).all(axis=1)] if is_whole else vectors
        if not is_whole or not np.isfinite(numbers).all():
            return [f"{entry.label}: records {start} to {start + len(some)} do not all have a vector"]
        if not start and len(numbers):
            # One search, so that the graph of the index is walked as well and not only its vectors read.
            api.query(entry.collection_id, [numbers[0].tolist()], n_results=1, include=[], **where)
    count = api.count(entry.collection_id, **where)
    return [] if count == len(ids) else [f"{entry.label}: {count} of {len(ids)} records can be read"]


def _limit_file_size(directory: Path) -> None:
    if sys.platform == "win32":
        return
    import resource

    largest = max((file.stat().st_size for file in directory.rglob("*") if file.is_file()), default=0)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 2 * largest + _ROOM_BYTES
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )


def main() -> int:
    """Do what the command line says."""
    directory, what, *rest = Path(sys.argv[1]), *sys.argv[2:]
    _limit_file_size(directory)
    if what == "rebuild":
        rebuild(directory, rest[0])
    else:
        sys.stdout.write(json.dumps(verify(directory, full=what == "full")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
