"""The program that the tests of the storage layer run in child processes, with the real Chroma.

build DIRECTORY JSON      make a database
check DIRECTORY...        print one JSON line for each: what a user of Chroma gets, under limits on memory and file size
ingest DIRECTORY FIRST    add records without end, printing an acknowledgement after each batch
hold DIRECTORY STATEMENT  hold a transaction on the SQLite file until standard input closes
own DIRECTORY             own the directory until standard input closes
"""

import json
import os
import resource
import sqlite3
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def vector(number, dimension):
    """The vector of record `number`: deterministic and far from all others."""
    import numpy as np

    return np.random.default_rng(number).standard_normal(dimension).astype("float32")


def build(directory, plan):
    """Fill collections as told, closing Chroma at the end."""
    import chromadb

    from aiochroma.disk.sqlite_file import prepare, wait_until_closed

    path = Path(directory)
    path.mkdir(exist_ok=True)
    if plan.get("wal"):
        prepare(path)
    if plan.get("durable"):
        prepare(path, write_ahead=bool(plan.get("wal")))
        chromadb.PersistentClient(path=directory).close()
        assert wait_until_closed(path)
        assert prepare(path, keep_log=True, write_ahead=bool(plan.get("wal")))
    client = chromadb.PersistentClient(path=directory)
    for name, collection in plan["collections"].items():
        fill(client, name, **collection)
    if plan.get("abandon"):
        os._exit(0)
    client.close()


def fill(client, name, count, dimension=32, space="l2", sync=1000, changes=False):
    hnsw = {"space": space, "sync_threshold": sync, "batch_size": min(100, sync)}
    collection = client.get_or_create_collection(name, embedding_function=None, configuration={"hnsw": hnsw})
    for first in range(0, count, 100):
        numbers = range(first, min(count, first + 100))
        collection.add(
            ids=[f"r{number}" for number in numbers],
            embeddings=[vector(number, dimension) for number in numbers],
            documents=[f"doc {number}" for number in numbers],
        )
    if changes:
        collection.delete(ids=[f"r{number}" for number in range(120)])
        numbers = range(80, 300)
        collection.upsert(
            ids=[f"r{number}" for number in numbers],
            embeddings=[vector(number, dimension) for number in numbers],
            documents=[f"doc {number}" for number in numbers],
        )
        collection.update(ids=["r400"], metadatas=[{"mark": 1}])
        collection.update(ids=["r401"], embeddings=[vector(401, dimension)])
        collection.delete(ids=["r500"])
        collection.add(ids=["r500"], embeddings=[vector(500, dimension)], documents=["doc 500"])


def check(directory):
    """Say for each collection what is there, with right vectors and reachable by them."""
    import chromadb
    import numpy as np

    client = chromadb.PersistentClient(path=directory)
    result = {}
    for collection in client.list_collections():
        count = collection.count()
        ids = collection.get(include=[])["ids"]
        entry = {"count": count, "unreadable": 0, "wrong": 0, "unreachable": 0, "documents": 0}
        for first in range(0, len(ids), 500):
            some = ids[first : first + 500]
            try:
                rows = collection.get(ids=some, include=["embeddings", "documents"])
            except Exception:
                rows = {"ids": [], "embeddings": [], "documents": []}
                for one in some:
                    try:
                        row = collection.get(ids=[one], include=["embeddings", "documents"])
                    except Exception:
                        entry["unreadable"] += 1
                        continue
                    for key in rows:
                        rows[key].extend(row[key])
            for record, embedding, document in zip(
                rows["ids"], rows["embeddings"], rows["documents"], strict=True
            ):
                expected = vector(int(record[1:]), len(embedding))
                entry["wrong"] += not np.allclose(embedding, expected, atol=1e-4)
                entry["documents"] += document == f"doc {record[1:]}"
            queries = [vector(int(record[1:]), collection_dimension(rows)) for record in rows["ids"][::5]]
            if queries:
                found = collection.query(query_embeddings=queries, n_results=1, include=[])["ids"]
                entry["unreachable"] += sum(
                    hit != [record] for hit, record in zip(found, rows["ids"][::5], strict=True)
                )
        collection.upsert(ids=["r999999"], embeddings=[vector(999999, collection_dimension_of(collection))])
        collection.delete(ids=["r999999"])
        result[collection.name] = entry
    client.close()
    return result


def collection_dimension(rows):
    return len(rows["embeddings"][0])


def collection_dimension_of(collection):
    return collection._model.dimension or 4


def ingest(directory, first):
    import chromadb

    collection = chromadb.PersistentClient(path=directory).get_collection("main", embedding_function=None)
    number = first
    while True:
        numbers = range(number, number + 40)
        collection.add(
            ids=[f"r{one}" for one in numbers],
            embeddings=[vector(one, 128) for one in numbers],
            documents=[f"doc {one}" for one in numbers],
        )
        number += 40
        print(number, flush=True)


def main(command, directory, *rest):
    if command == "build":
        build(directory, json.loads(rest[0]))
    elif command == "check":
        resource.setrlimit(resource.RLIMIT_AS, (14 << 30, 14 << 30))
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20, 256 << 20))
        for one in (directory, *rest):
            try:
                answer = check(one)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps({"directory": one, "answer": answer}), flush=True)
    elif command == "ingest":
        ingest(directory, int(rest[0]))
    elif command == "hold":
        connection = sqlite3.connect(str(Path(directory) / "chroma.sqlite3"), isolation_level=None)
        for statement in rest:
            connection.execute(statement).fetchall()
        print("held", flush=True)
        sys.stdin.read()
    elif command == "own":
        from aiochroma.disk.ownership import acquire

        ownership = acquire(directory)
        print(os.getpid(), flush=True)
        sys.stdin.read()
        ownership.release()


if __name__ == "__main__":
    main(*sys.argv[1:])
