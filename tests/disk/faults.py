"""Makes the real Chroma fail in one way, and prints each error as JSON: the call, its class, its text.

The database has 200 records, of which the first 100 are in the index on disk at least.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))

from damage import flip


def vectors(count=1):
    return np.random.default_rng(0).standard_normal((count, 32)).astype("float32")


def attempt(call, function):
    try:
        return function()
    except BaseException as error:
        print(json.dumps([call, type(error).__name__, str(error)]), flush=True)
        return None


def opened(directory):
    import chromadb

    return chromadb.PersistentClient(path=str(directory))


def collection_of(client):
    return client.get_collection("main", embedding_function=None)


def use(directory):
    """Open the database as any program would, and make each kind of call."""
    client = attempt("open", lambda: opened(directory))
    if client is None:
        return
    main = collection_of(client)
    attempt("count", main.count)
    attempt("get", lambda: main.get(ids=["r1"], include=["embeddings"]))
    attempt("query", lambda: main.query(query_embeddings=vectors(), n_results=1, include=[]))
    attempt("upsert", lambda: main.upsert(ids=["n"], embeddings=vectors()))


def upsert_after(directory, action):
    main = collection_of(opened(directory))
    main.count()
    action()

    def write():
        # Chroma keeps several connections, and takes them in turn: one that it opens after the action knows nothing of it.
        for number in range(50):
            main.upsert(ids=[f"n{number}"], embeddings=vectors())

    attempt("upsert", write)


def replaced(directory):
    def replace():
        copy = directory.with_name("copy")
        shutil.copytree(directory, copy)
        shutil.rmtree(directory)
        copy.rename(directory)

    upsert_after(directory, replace)


def moved(directory):
    upsert_after(directory, lambda: directory.rename(directory.with_name("elsewhere")))


def cannot_open(directory):
    (directory / "chroma.sqlite3").unlink()
    (directory / "chroma.sqlite3").mkdir()
    use(directory)


def read_only(directory):
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
    use(directory)


def nearly_full(directory):
    """Move the database to a small disk with 90 kB left, and return its collection."""
    keep = directory.with_name(f"{directory.name}-keep")
    shutil.copytree(directory, keep)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", directory], check=True)
    shutil.copytree(keep, directory, dirs_exist_ok=True)
    connection = sqlite3.connect(directory / "chroma.sqlite3")
    connection.execute("PRAGMA journal_mode=wal").fetchall()
    connection.close()
    main = collection_of(opened(directory))
    main.upsert(ids=["first"], embeddings=vectors())
    size = os.statvfs(directory)
    (directory / "ballast").write_bytes(bytes(max(0, size.f_bavail * size.f_frsize - 90_000)))
    return main


# After one such error the process ends: a further write may wait 1000 s for a transaction of its own process.
def disk_full(directory):
    main = nearly_full(directory)
    attempt("upsert", lambda: main.upsert(ids=[f"n{n}" for n in range(1000)], embeddings=vectors(1000)))


def not_applied(directory):
    main = nearly_full(directory)

    def fill():
        for number in range(1000):
            main.upsert(ids=[f"m{number}"], embeddings=vectors())

    attempt("upsert", fill)


def not_a_database(directory):
    flip(directory / "chroma.sqlite3", 0, 16)
    use(directory)


def malformed(directory):
    flip(directory / "chroma.sqlite3", 100)
    use(directory)


def index_of(directory):
    return next(file.parent for file in directory.glob("*/index_metadata.pickle"))


def header_deleted(directory):
    (index_of(directory) / "header.bin").unlink()
    use(directory)


def pickle_empty(directory):
    os.truncate(index_of(directory) / "index_metadata.pickle", 0)
    use(directory)


def vectors_zeroed(directory):
    """Every label is zero, which no record has. (Of a file that is too short Chroma reads memory that nobody wrote.)"""
    vectors_of_index = index_of(directory) / "data_level0.bin"
    size = vectors_of_index.stat().st_size
    os.truncate(vectors_of_index, 0)
    os.truncate(vectors_of_index, size)
    use(directory)


def stale(directory):
    """Read an empty collection; let another process write to it; query it."""
    client = opened(directory)
    empty = client.create_collection("empty", embedding_function=None)
    empty.get(limit=1)
    empty.query(query_embeddings=vectors(), n_results=1)
    writer = f"""
import chromadb
collection = chromadb.PersistentClient(path={str(directory)!r}).get_collection("empty", embedding_function=None)
collection.add(ids=["a"], embeddings=[[1.0] * 32])
"""
    subprocess.run([sys.executable, "-c", writer], check=True)
    attempt("query", lambda: empty.query(query_embeddings=vectors(), n_results=1))


def other_version(directory):
    connection = sqlite3.connect(directory / "chroma.sqlite3")
    with connection:
        connection.execute("UPDATE migrations SET hash = 'other' WHERE dir = 'metadb' AND version = 6")
    connection.close()
    use(directory)


def closed(directory):
    client = opened(directory)
    main = collection_of(client)
    client.close()
    attempt("count", main.count)


def caller(directory):
    main = collection_of(opened(directory))
    attempt("upsert", lambda: main.upsert(ids=["n"], embeddings=[[1.0, 2.0]]))


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)
