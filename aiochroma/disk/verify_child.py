"""Opens a copy of a database in a process of its own and checks that every record has its vector.

Run as ``python -m aiochroma.disk.verify_child DIRECTORY``; prints one JSON object. In a child, so that a copy that
makes Chroma's native code crash takes nobody with it, and with a limit on the size of files, so that it fills no disk.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiochroma.disk.preflight import preflight
from aiochroma.disk.schema import prepare, wait_until_closed

if TYPE_CHECKING:
    from aiochroma.disk.preflight import CollectionReport

__all__ = ["main", "verify"]

_PAGE = 1000
_ROOM_BYTES = 2**30


def verify(directory: Path) -> dict[str, Any]:
    """Check a database that nobody has open.

    Returns:
        ``problems``: a sentence for each thing that is wrong; ``collections``: for each collection's id its ``name``,
        ``records`` and ``sequence`` (up to which write of the log it goes).
    """
    report = preflight(directory)
    problems = list(report.problems)
    collections = {
        entry.collection_id: {
            "name": entry.label,
            "records": entry.records,
            "sequence": entry.applied_sequence,
        }
        for entry in report.collections
    }
    if report.is_new:
        problems.append("there is no database in it")
    if not problems:
        problems = _read_everything(directory, report.collections)
        # One file instead of three: it can be read wherever it is kept, on a disk that cannot be written, too.
        if wait_until_closed(directory):
            prepare(directory, write_ahead=False)
    return {"problems": problems, "collections": collections}


def _read_everything(directory: Path, collections: tuple[CollectionReport, ...]) -> list[str]:
    from chromadb.api import ServerAPI
    from chromadb.config import Settings, System

    system = System(
        Settings(anonymized_telemetry=False, is_persistent=True, persist_directory=str(directory))
    )
    api: Any = system.instance(ServerAPI)  # type: ignore[type-abstract]
    system.start()
    try:
        return [problem for entry in collections for problem in _read_collection(api, entry)]
    finally:
        system.stop()


def _read_collection(api: Any, entry: CollectionReport) -> list[str]:
    import numpy as np

    place = {"tenant": entry.tenant, "database": entry.database}
    seen = 0
    while True:
        page = api._get(entry.collection_id, limit=_PAGE, offset=seen, include=["embeddings"], **place)  # noqa: SLF001
        if not page["ids"]:
            break
        vectors = np.array(page["embeddings"])
        if vectors.shape != (len(page["ids"]), entry.dimension) or not np.isfinite(vectors).all():
            return [f"{entry.label}: records {seen} to {seen + len(page['ids'])} do not all have a vector"]
        if not seen:
            # One search, so that the graph of the index is walked as well and not only its vectors read.
            api._query(entry.collection_id, [vectors[0].tolist()], n_results=1, include=[], **place)  # noqa: SLF001
        seen += len(page["ids"])
    return [] if seen == entry.records else [f"{entry.label}: {seen} of {entry.records} records can be read"]


def _limit_file_size(directory: Path) -> None:
    if sys.platform == "win32":
        return
    import resource

    largest = max((file.stat().st_size for file in directory.rglob("*") if file.is_file()), default=0)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    wanted = 2 * largest + _ROOM_BYTES
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )


def main() -> int:
    """Verify the directory that the command line names."""
    directory = Path(sys.argv[1])
    _limit_file_size(directory)
    sys.stdout.write(json.dumps(verify(directory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
