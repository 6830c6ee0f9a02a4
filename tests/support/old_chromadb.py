"""Databases written by older releases of chromadb, each in an environment of its own.

The environments lie in a folder of the system's temporary directory and are kept for the next run. `python old_chromadb.py` makes
them. Tests are skipped only where the package index cannot be reached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

VERSIONS = ("0.5.23", "0.6.3", "1.0.0", "1.2.0")
CACHE = Path(tempfile.gettempdir()) / f"aiochroma-old-chromadb-{sys.version_info[0]}.{sys.version_info[1]}"

RECORDS = 260
DIMENSION = 12

WRITER = """
import json, random, sys
import chromadb

path, dimension, records = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def vector(number):
    generator = random.Random(number)
    return [generator.uniform(-1, 1) for _ in range(dimension)]

try:
    admin = chromadb.AdminClient(chromadb.Settings(is_persistent=True, persist_directory=path))
except ValueError:
    admin = chromadb.AdminClient(chromadb.config.Settings(is_persistent=True, persist_directory=path))
admin.create_tenant("acme")
admin.create_database("second", "acme")
truth = {}
for tenant, database in (("default_tenant", "default_database"), ("acme", "second")):
    client = chromadb.PersistentClient(path, tenant=tenant, database=database)
    for name, space in (("notes", "l2"), ("angles", "cosine")):
        collection = client.create_collection(
            name,
            embedding_function=None,
            metadata={"hnsw:space": space, "hnsw:sync_threshold": 100, "hnsw:batch_size": 50},
        )
        expected = {}
        for first in range(0, records, 20):
            numbers = range(first, first + 20)
            rows = {f"r{n}": (n, f"document {n} of {tenant}", {"n": n, "half": n / 2, "even": n % 2 == 0}) for n in numbers}
            collection.add(
                ids=list(rows),
                embeddings=[vector(n) for n, _, _ in rows.values()],
                documents=[text for _, text, _ in rows.values()],
                metadatas=[metadata for _, _, metadata in rows.values()],
            )
            expected.update(rows)
        gone = [f"r{n}" for n in range(10, 30)]
        collection.delete(ids=gone)
        for id in gone:
            del expected[id]
        for n in range(40, 45):
            collection.update(ids=[f"r{n}"], embeddings=[vector(n + 1000)], documents=[f"changed {n}"])
            expected[f"r{n}"] = (n + 1000, f"changed {n}", expected[f"r{n}"][2])
        collection.upsert(ids=["r10"], embeddings=[vector(10)], documents=["again"], metadatas=[{"n": 10}])
        expected["r10"] = (10, "again", {"n": 10})
        truth[f"{tenant}/{database}/{name}"] = {
            id: [vector(seed), text, metadata] for id, (seed, text, metadata) in expected.items()
        }
print(json.dumps(truth))
"""


class IndexUnreachableError(Exception):
    """The package index cannot be reached, so there is no such environment."""


def python_of(version: str) -> Path:
    """Return the interpreter of an environment with this release of chromadb, and make it if need be.

    Raises:
        IndexUnreachableError: pip cannot reach its index.
    """
    folder = CACHE / version
    interpreter = folder / "bin" / "python"
    if (folder / "complete").exists():
        return interpreter
    CACHE.mkdir(parents=True, exist_ok=True)
    venv.create(folder, clear=True, with_pip=True)
    command = [
        interpreter,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        f"chromadb=={version}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        unreachable = (
            "NewConnectionError",
            "Temporary failure in name resolution",
            "ConnectTimeout",
            "No matching distribution",
        )
        if any(sign in done.stderr for sign in unreachable):
            raise IndexUnreachableError(done.stderr[-500:])
        raise RuntimeError(f"chromadb {version} cannot be installed:\n{done.stderr[-3000:]}")
    (folder / "complete").touch()
    return interpreter


def write_database(version: str, directory: Path) -> dict[str, dict[str, list]]:
    """Have an older release write a database with deletes, updates, two tenants and two distances.

    Returns:
        By tenant/database/collection and id what has to be in it: vector, document, metadata.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHROMA_")}
    environment["ANONYMIZED_TELEMETRY"] = "False"
    done = subprocess.run(
        [python_of(version), "-c", WRITER, directory, str(DIMENSION), str(RECORDS)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=directory.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    for release in VERSIONS:
        print(release, python_of(release))
