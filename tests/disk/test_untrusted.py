"""What lies on disk is untrusted: whatever it is, it is reported, and one collection never keeps the others from opening."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import resource
import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import printed_by

import aiochroma
from aiochroma.disk import findings
from aiochroma.disk.id_map import IndexUnreadableError, read_cut_id_map, read_id_map
from aiochroma.disk.layout import INDEX_FILES, SQLITE_FILE
from aiochroma.disk.preflight import preflight

ID_MAP = "index_metadata.pickle"
GOOD = {"id_to_label": {"a": 1, "b": 2}, "label_to_id": {1: "a", 2: "b"}, "total_elements_added": 2}


class Command:
    def __reduce__(self):
        return os.system, ("touch /tmp/should-never-be-there",)


ODD_MAPS = {
    "negative label": {**GOOD, "id_to_label": {"a": -1, "b": 2}},
    "huge label": {**GOOD, "id_to_label": {"a": 2**70, "b": 2}},
    "label of text": {**GOOD, "id_to_label": {"a": "1", "b": 2}},
    "no label": {**GOOD, "id_to_label": {"a": None, "b": 2}},
    "boolean label": {**GOOD, "id_to_label": {"a": True, "b": 2}},
    "label beyond what was ever added": {**GOOD, "id_to_label": {"a": 7, "b": 2}},
    "id that is a number": {**GOOD, "id_to_label": {1: 1, "b": 2}},
    "two ids of one label": {**GOOD, "id_to_label": {"a": 2, "b": 2}},
    "labels of other ids": {**GOOD, "label_to_id": {1: "b", 2: "a"}},
    "labels that are a list": {**GOOD, "label_to_id": ["a", "b"]},
    "negative total": {**GOOD, "total_elements_added": -2},
    "huge total": {**GOOD, "total_elements_added": 2**80},
    "total of text": {**GOOD, "total_elements_added": "2"},
    "no total": {name: GOOD[name] for name in ("id_to_label", "label_to_id")},
    "a list": [1, 2, 3],
    "a command": {**GOOD, "id_to_label": Command()},
    "a set": {**GOOD, "id_to_label": {1, 2}},
    "a number with a point": {**GOOD, "id_to_label": {"a": 1.0, "b": 2}},
}
ODD_BYTES = {
    "a place in a table of 32 GiB": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a text of 4 GiB": b"\x80\x02}(X\xff\xff\xff\xff",
    "bytes of a terabyte": b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",
    "a text of a terabyte": b"\x80\x05\x8d\x00\x00\x00\x00\x00\x01\x00\x00.",
    "no beginning of a group": b"\x80\x02}u.",
    "a value that was never there": b"\x80\x02h\x07.",
    "nothing but an end": b".",
    "nothing": b"",
    "bytes after its end": pickle.dumps(GOOD, protocol=2) + b"\0",
}


@pytest.mark.parametrize("name", [*ODD_MAPS, *ODD_BYTES])
@pytest.mark.parametrize("protocol", [2, 4])
def test_an_odd_id_map_is_an_error_of_ours(tmp_path, name, protocol):
    """Wrong types, impossible numbers, instructions that run code or take memory: refused, and nothing is run."""
    content = ODD_BYTES[name] if name in ODD_BYTES else pickle.dumps(ODD_MAPS[name], protocol=protocol)
    (tmp_path / ID_MAP).write_bytes(content)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IndexUnreadableError):
        read_id_map(tmp_path)
    with contextlib.suppress(IndexUnreadableError):
        read_cut_id_map(tmp_path)
    assert not Path("/tmp/should-never-be-there").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most + 100_000, "it took more than 100 MB"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_id_map_of_any_writer_is_read(tmp_path, protocol):
    """Chroma's native writer, and Python's of before 1.0 in every protocol; texts that repeat, long ones, none."""
    labels = {f"id {number} ü": number for number in range(1, 300)} | {"x" * 70_000: 300, "": 301}
    content = {
        "dimensionality": None,
        "total_elements_added": 400_000,
        "id_to_label": labels,
        "label_to_id": {label: id for id, label in labels.items()},
        "id_to_seq_id": {},
    }
    (tmp_path / ID_MAP).write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_id_map(tmp_path).labels == labels
    assert read_id_map(tmp_path).total_added == 400_000


def test_a_huge_id_map_is_not_read(tmp_path):
    """One that is far larger than its vectors can account for is refused before it is read."""
    with (tmp_path / ID_MAP).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(IndexUnreadableError, match="far more"):
        read_id_map(tmp_path)


async def fill(path, *, damaged=("bad", 300)):
    name, count = damaged
    async with aiochroma.AsyncPersistentClient(path, durable=True) as client:
        for collection_name, records in (("good", 200), (name, count)):
            collection = await client.create_collection(
                collection_name,
                embedding_function=None,
                configuration={"hnsw": {"sync_threshold": 50, "batch_size": 50}},
            )
            await collection.upsert(
                ids=[f"r{n}" for n in range(records)],
                embeddings=np.random.default_rng(1).standard_normal((records, 8)).astype("float32"),
                documents=[f"document {n}" for n in range(records)],
            )


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    """A durable database with two collections of indexes on disk, closed."""
    path = tmp_path_factory.mktemp("seed") / "db"
    asyncio.run(fill(path))
    return path


@pytest.fixture
def database(seed, tmp_path):
    """A copy of it."""
    return shutil.copytree(seed, tmp_path / "db")


def index_of(path, name):
    (report,) = [entry for entry in preflight(path).collections if entry.name == name]
    return path / report.vector_segment_id


async def counts(path):
    """Return what each collection holds, read with its vectors; the error of one that cannot be."""
    found = {}
    async with aiochroma.AsyncPersistentClient(path, durable=True, allow_missing_vectors=True) as client:
        for collection in await client.list_collections():
            try:
                found[collection.name] = len((await collection.get(include=["embeddings"]))["ids"])
            except aiochroma.DatabaseCorruptError as error:
                found[collection.name] = error
    return found


@pytest.mark.parametrize("file", INDEX_FILES)
@pytest.mark.parametrize("kind", ["pipe", "directory", "link to nothing", "endless"])
async def test_a_file_of_an_index_that_is_no_file(database, file, kind):
    """A named pipe is not waited for, an endless file not read to its end; the index is set aside and rebuilt."""
    path = index_of(database, "bad") / file
    if kind == "endless":
        os.truncate(path, 2**40)
    else:
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to(database / "nowhere")
    begun = preflight(database)
    assert begun.sqlite_problems == ()
    assert await counts(database) == {"good": 200, "bad": 300}


@pytest.mark.parametrize("file", [file for file in INDEX_FILES if file != ID_MAP])
async def test_a_pipe_in_an_index_that_holds_nothing_yet(tmp_path, file):
    """Chroma makes the files long before it first writes them, and would wait for the pipe for ever when it opens them."""
    await fill(tmp_path, damaged=("young", 5))
    path = index_of(tmp_path, "young") / file
    assert not (path.parent / ID_MAP).exists()
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert [entry.name for entry in preflight(tmp_path).collections if entry.problems] == ["young"]
    assert await counts(tmp_path) == {"good": 200, "young": 5}


@pytest.mark.parametrize("records", [5, 300])
async def test_an_index_on_a_disk_that_is_not_there(tmp_path, records):
    """Its directory is a link that leads nowhere, persisted or not: set aside, and made again."""
    await fill(tmp_path, damaged=("moved", records))
    index = index_of(tmp_path, "moved")
    if index.exists():
        shutil.rmtree(index)
    index.symlink_to(tmp_path / "not mounted" / index.name)
    assert [entry.name for entry in preflight(tmp_path).collections if entry.problems] == ["moved"]
    assert await counts(tmp_path) == {"good": 200, "moved": records}


def test_flipped_bytes_of_an_index_are_reported_and_never_raised(database):
    """240 random damages of the five files: a report each time, whatever numbers come out of it."""
    index = index_of(database, "bad")
    files = {file: (index / file).read_bytes() for file in INDEX_FILES}
    generator = random.Random(7)
    noticed = 0
    for _ in range(240):
        name = generator.choice(INDEX_FILES)
        content = bytearray(files[name])
        if not content:
            continue
        for _ in range(generator.choice([1, 1, 4, 64])):
            content[generator.randrange(len(content))] = generator.randrange(256)
        (index / name).write_bytes(content)
        noticed += bool(preflight(database, thorough=True).problems)
        (index / name).write_bytes(files[name])
    assert noticed > 60
    assert preflight(database, thorough=True).problems == ()


ODD_ROWS = {
    "dimension of text": "UPDATE collections SET dimension = 'eight' WHERE name = 'bad'",
    "negative dimension": "UPDATE collections SET dimension = -8 WHERE name = 'bad'",
    "huge dimension": "UPDATE collections SET dimension = 1099511627776 WHERE name = 'bad'",
    "no segments": "DELETE FROM segments WHERE collection = (SELECT id FROM collections WHERE name = 'bad')",
    "a schema that is none": "UPDATE collections SET schema_str = 'nonsense' WHERE name = 'bad'",
    "an operation that is none": "INSERT INTO embeddings_queue (operation, topic, id, vector, encoding, metadata)"
    " SELECT 9, 'persistent://default/default/' || id, 'x', NULL, NULL, NULL FROM collections WHERE name = 'bad'",
    "no links": "UPDATE collections SET schema_str = replace(schema_str, '\"max_neighbors\":16', '\"max_neighbors\":0')"
    " WHERE name = 'bad'",
    "links of text": 'UPDATE collections SET schema_str = replace(schema_str, \'"max_neighbors":16\', \'"max_neighbors":"x"\')'
    " WHERE name = 'bad'",
    "too many links": "UPDATE collections SET schema_str = replace(schema_str, '\"max_neighbors\":16', '\"max_neighbors\":99999')"
    " WHERE name = 'bad'",
}


@pytest.mark.parametrize("name", ODD_ROWS)
async def test_an_odd_row_is_of_its_collection_alone(database, name):
    """The directory opens, the other collection is whole, and the odd one is refused by name before Chroma sees it."""
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        connection.execute(ODD_ROWS[name])
    connection.close()
    report = preflight(database)
    assert report.sqlite_problems == ()
    assert [entry.name for entry in report.collections if entry.problems] == ["bad"]
    async with aiochroma.AsyncPersistentClient(database, durable=True) as client:
        good = await client.get_collection("good", embedding_function=None)
        assert len((await good.get(include=["embeddings"]))["ids"]) == 200
        (entry,) = [entry for entry in report.collections if entry.name == "bad"]
        with pytest.raises(aiochroma.DatabaseCorruptError):
            await client.session.submit("_count", collection_id=entry.collection_id)
    found = await aiochroma.doctor(database, repair=True)
    if name == "no segments":
        assert found.exit_code == 1  # Nothing is left of it to be mended.
        return
    assert found.exit_code == 0, found.problems
    assert await counts(database) == {"good": 200, "bad": 300}
    async with aiochroma.AsyncPersistentClient(database) as client:
        assert (await client.health()).documents == 500


UNLISTABLE = {
    "metadata of bytes": "INSERT INTO collection_metadata (collection_id, key, str_value) SELECT id, 'k', x'ff' FROM collections",
    "a number of text": "INSERT INTO collection_metadata (collection_id, key, int_value) SELECT id, 'k', 'x' FROM collections",
    "a key of bytes": "INSERT INTO collection_metadata (collection_id, key, str_value) SELECT id, x'ff', 'v' FROM collections",
    "a configuration that is none": "config_json_str = '{no'",
    "a configuration of bytes": "config_json_str = x'ff00'",
    "a schema of bytes": "schema_str = x'ff00'",
    "a schema of something else": "schema_str = '{\"version\": 7}'",
    "a schema that is none": "schema_str = 'nonsense'",
    "a dimension of bytes": "dimension = x'08'",
    "a dimension with a fraction": "dimension = 8.5",
}


@pytest.mark.parametrize("name", UNLISTABLE)
async def test_what_keeps_chroma_from_listing_collections_is_of_its_collection_alone(database, name):
    """Chroma reads every row to list any; the others are listed and used all the same, and a repair brings the odd one back."""
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        change = UNLISTABLE[name]
        change = change if change.startswith("INSERT") else f"UPDATE collections SET {change}"
        connection.execute(f"{change} WHERE name = 'bad'")
    connection.close()
    found = await aiochroma.doctor(database)
    assert found.exit_code == 1
    assert any(problem.startswith("bad: ") for problem in found.problems)
    async with aiochroma.Memory(database, embedder="hashed") as memory:
        await memory.remember("The boat is in the shed.", namespace="mine")
        assert len(await memory.recall("boat", namespaces="mine")) == 1
        assert await memory.namespaces() == ["mine"]
    async with aiochroma.AsyncPersistentClient(database) as client:
        assert await client.count_collections() == len(await client.list_collections()) == 3
        await client.delete_collection("mine")
    repaired = await aiochroma.doctor(database, repair=True)
    assert repaired.exit_code == 0, repaired.problems
    assert await counts(database) == {"good": 200, "bad": 300}


ID = "(SELECT id FROM collections WHERE name = 'bad')"
SEGMENTS = f"(SELECT id FROM segments WHERE collection = {ID})"
UNTIED = {
    "a name of bytes": ["UPDATE collections SET name = x'626164' WHERE name = 'bad'"],
    "a name of bytes that another has": ["UPDATE collections SET name = x'676f6f64' WHERE name = 'bad'"],
    "a name of bytes that are no text": ["UPDATE collections SET name = x'ff61' WHERE name = 'bad'"],
    "an id that is none": ["UPDATE collections SET id = 'nonsense' WHERE name = 'bad'"],
    "no id": ["UPDATE collections SET id = NULL WHERE name = 'bad'"],
    "an id that is none anywhere": [
        f"UPDATE embeddings_queue SET topic = 'persistent://default/default/nonsense' WHERE topic LIKE '%/' || {ID}",
        f"UPDATE segments SET collection = 'nonsense' WHERE collection = {ID}",
        "UPDATE collections SET id = 'nonsense' WHERE name = 'bad'",
    ],
    "no database": ["DELETE FROM databases"],
    "no tenant": ["DELETE FROM tenants"],
    "neither": ["DELETE FROM databases", "DELETE FROM tenants"],
    "a database of another name": ["UPDATE databases SET name = x'ff'"],
    "an id of the database that is none": ["UPDATE databases SET id = 'nonsense'"],
    "a database that is none": ["UPDATE collections SET database_id = 'nonsense' WHERE name = 'bad'"],
    "no dimension": ["UPDATE collections SET dimension = NULL WHERE name = 'bad'"],
    "a segment of no scope": [
        f"UPDATE segments SET scope = x'00' WHERE scope = 'VECTOR' AND id IN {SEGMENTS}"
    ],
    "a segment of no type": [
        f"UPDATE segments SET type = 'odd' WHERE scope = 'METADATA' AND id IN {SEGMENTS}"
    ],
    "a segment of no collection": [
        f"UPDATE segments SET collection = '' WHERE scope = 'VECTOR' AND id IN {SEGMENTS}"
    ],
    "an index of no id": [f"UPDATE segments SET id = 'odd' WHERE scope = 'VECTOR' AND id IN {SEGMENTS}"],
    "records of no id": [f"UPDATE segments SET id = x'00' WHERE scope = 'METADATA' AND id IN {SEGMENTS}"],
    "records of no segment": [f"DELETE FROM segments WHERE scope = 'METADATA' AND id IN {SEGMENTS}"],
    "a position of text": [f"UPDATE max_seq_id SET seq_id = 'odd' WHERE segment_id IN {SEGMENTS}"],
    "a position of bytes": [f"UPDATE max_seq_id SET seq_id = x'ff' WHERE segment_id IN {SEGMENTS}"],
    "another hash of a migration": [
        "UPDATE migrations SET hash = '38352d725ad1c16074fac420b22b4634' WHERE dir = 'sysdb' AND version = 1"
    ],
    "a number after which there is none": [
        f"UPDATE embeddings SET id = 9223372036854775807 WHERE embedding_id = 'r7' AND segment_id IN {SEGMENTS}"
    ],
}


@pytest.mark.parametrize("repair", [False, True], ids=["opened", "repaired"])
@pytest.mark.parametrize("name", UNTIED)
async def test_rows_that_do_not_belong_together(database, name, repair):
    """What ties collections together is no identifier, no text or gone: doctor says so, opening and repairing lose nothing."""
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        for change in UNTIED[name]:
            connection.execute(change)
    connection.close()
    found = await aiochroma.doctor(database)
    assert found.exit_code == 1
    assert found.problems
    if repair:
        repaired = await aiochroma.doctor(database, repair=True)
        assert repaired.exit_code == 0, repaired.problems
        assert any("everything was copied" in action for action in repaired.actions)
    async with aiochroma.Memory(database, embedder="hashed") as memory:
        await memory.remember("The boat is in the shed.", namespace="mine")
        assert len(await memory.recall("boat", namespaces="mine")) == 1
    held = await counts(database)
    assert held.pop("good") == 200
    assert held.pop("mine") == 1
    assert list(held.values()) == [300]
    assert (await aiochroma.doctor(database)).exit_code == 0


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE embeddings SET embedding_id = x'ff' WHERE embedding_id = 'r7'",
        "UPDATE embeddings SET segment_id = 'nonsense' WHERE embedding_id = 'r7'",
        "UPDATE embedding_metadata SET key = x'ff' WHERE key = 'chroma:document' AND string_value = 'document 7'",
    ],
)
async def test_a_record_that_chroma_cannot_read_is_mended_when_asked(database, change):
    """It keeps its collection alone from being read, with an error that says what to do; the log still knows which it is."""
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        connection.execute(f"{change} AND id IN (SELECT id FROM embeddings WHERE segment_id IN {SEGMENTS})")
    connection.close()
    async with aiochroma.AsyncPersistentClient(database) as client:
        good = await client.get_collection("good", embedding_function=None)
        assert await good.count() == 200
        odd = await client.get_collection("bad", embedding_function=None)
        if "SET embedding_id" in change:
            with pytest.raises(aiochroma.AiochromaError, match="aiochroma doctor"):
                await odd.get()
    assert (await aiochroma.doctor(database)).exit_code == 1
    repaired = await aiochroma.doctor(database, repair=True)
    assert repaired.exit_code == 0, repaired.problems
    assert await counts(database) == {"good": 200, "bad": 300}


@pytest.mark.parametrize("opened_between", [False, True])
async def test_a_collection_whose_row_alone_is_gone(database, opened_between):
    """Its records are in no list; doctor says so, and a repair has it back, under a name that says what it is."""
    (lost,) = [entry.collection_id for entry in preflight(database).collections if entry.name == "bad"]
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        connection.execute("DELETE FROM collections WHERE name = 'bad'")
    connection.close()
    found = await aiochroma.doctor(database)
    assert found.exit_code == 1
    assert any(f"300 records, {lost}, is not in SQLite's list" in problem for problem in found.problems)
    if opened_between:
        assert await counts(database) == {"good": 200}
    repaired = await aiochroma.doctor(database, repair=True)
    assert repaired.exit_code == 0, repaired.problems
    assert any(f"the name recovered-{lost}, with the squared L2" in action for action in repaired.actions)
    async with aiochroma.AsyncPersistentClient(database) as client:
        back = await client.get_collection(f"recovered-{lost}", embedding_function=None)
        records = await back.get(include=["embeddings", "documents"])
        assert sorted(records["ids"]) == sorted(f"r{n}" for n in range(300))
        nearest = await back.query(query_embeddings=[records["embeddings"][7]], n_results=1)
        assert nearest["ids"] == [[records["ids"][7]]]
        await back.modify(name="bad")
    assert await counts(database) == {"good": 200, "bad": 300}


async def test_a_memory_whose_row_alone_is_gone_keeps_its_distance(tmp_path):
    """What a namespace remembers is found again as before, by the same distances."""
    async with aiochroma.Memory(tmp_path, embedder="hashed") as memory:
        await memory.remember_many(f"The boat {n} is in the shed." for n in range(20))
        before = [(hit.id, hit.distance) for hit in await memory.recall("boat 7", mode="vector")]
    connection = sqlite3.connect(tmp_path / SQLITE_FILE)
    with connection:
        connection.execute("DELETE FROM collections")
    connection.close()
    repaired = await aiochroma.doctor(tmp_path, repair=True)
    assert repaired.exit_code == 0, repaired.problems
    async with aiochroma.Memory(tmp_path, embedder="hashed") as memory:
        (name,) = await memory.namespaces()
        found = await memory.recall("boat 7", mode="vector", namespaces=name)
    assert [(hit.id, hit.distance) for hit in found] == before


async def test_a_collection_that_was_deleted_stays_deleted(database):
    """Chroma's own deletion leaves nothing that a repair could take for a collection."""
    async with aiochroma.AsyncPersistentClient(database) as client:
        await client.delete_collection("bad")
    assert (await aiochroma.doctor(database)).problems == ()
    await aiochroma.doctor(database, repair=True)
    assert await counts(database) == {"good": 200}


@pytest.mark.parametrize("records", [30, 300], ids=["waiting in the log", "in the index"])
async def test_a_record_of_another_id_gets_its_own_again(tmp_path, records):
    """Its vector is found under the id by which the log has it; doctor names both."""
    database = tmp_path / "db"
    await fill(database, damaged=("bad", records))
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        connection.execute(
            f"UPDATE embeddings SET embedding_id = 'other' WHERE embedding_id = 'r7' AND segment_id IN {SEGMENTS}"
        )
    connection.close()
    found = await aiochroma.doctor(database)
    assert found.exit_code == 1
    assert any("the id 'other', and in the log the id 'r7'" in problem for problem in found.problems)
    repaired = await aiochroma.doctor(database, repair=True)
    assert repaired.exit_code == 0, repaired.problems
    async with aiochroma.AsyncPersistentClient(database) as client:
        collection = await client.get_collection("bad", embedding_function=None)
        record = await collection.get(ids=["r7"], include=["embeddings", "documents"])
        assert record["documents"] == ["document 7"]
        assert (await collection.query(query_embeddings=record["embeddings"], n_results=1))["ids"] == [["r7"]]
        assert (await collection.get(ids=["other"]))["ids"] == []


@pytest.mark.parametrize("records", [30, 300], ids=["in our index", "in both"])
async def test_a_record_keeps_its_id_where_the_log_has_another(tmp_path, records):
    """What the index knows it by, or ours, is right: the log is one witness of three."""
    async with aiochroma.Memory(tmp_path, embedder="hashed") as memory:
        await memory.remember_many(
            {"id": f"r{n}", "text": f"The boat {n} is in the shed."} for n in range(records)
        )
    connection = sqlite3.connect(tmp_path / SQLITE_FILE)
    with connection:
        connection.execute("UPDATE embeddings_queue SET id = 'other' WHERE id = 'r7'")
    connection.close()
    repaired = await aiochroma.doctor(tmp_path, repair=True)
    assert repaired.exit_code == 0, repaired.problems
    async with aiochroma.Memory(tmp_path, embedder="hashed") as memory:
        assert (await memory.get("r7")).text == "The boat 7 is in the shed."
        assert await memory.get("other") is None


async def test_tables_that_chroma_cannot_bring_up_to_date_are_an_error_of_the_tree(database):
    """A step is noted as not done although it was: Chroma's own error says only what SQLite said."""
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        last = "SELECT max(version) FROM migrations WHERE dir = 'sysdb'"
        connection.execute(f"DELETE FROM migrations WHERE dir = 'sysdb' AND version = ({last})")
    connection.close()
    with pytest.raises(aiochroma.StoreUnavailableError, match=r"cannot be opened: .* `aiochroma doctor`"):
        await aiochroma.AsyncPersistentClient(database)


@pytest.mark.parametrize(
    "change",
    ["dir = x'00'", "dir = 'odd'", "filename = x'00'", "hash = x'00'", "version = 99", "sql = sql || ' '"],
)
async def test_a_list_of_migrations_that_chroma_cannot_follow(database, change):
    """Chroma panics, or says something of versions; which step is missing is said by doctor and by opening alike."""
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        connection.execute(f"UPDATE migrations SET {change} WHERE dir = 'metadb' AND version = 2")
    connection.close()
    found = await aiochroma.doctor(database)
    assert found.exit_code != 0
    assert any("list of migrations" in problem for problem in found.problems)
    with pytest.raises(aiochroma.DatabaseCorruptError, match="list of migrations"):
        await aiochroma.AsyncPersistentClient(database)


async def test_a_memory_without_its_schema_keeps_its_distance(tmp_path):
    """Without a schema Chroma compares by L2; a memory's namespace compares by the cosine, which a repair writes down."""
    async with aiochroma.Memory(
        tmp_path, embedder=lambda texts: [[float(len(text)), 1.0] for text in texts]
    ) as memory:
        await memory.remember_many(["x" * 30, "y" * 3])
        before = [(hit.id, hit.distance) for hit in await memory.recall("z" * 9, mode="vector")]
    connection = sqlite3.connect(tmp_path / SQLITE_FILE)
    with connection:
        connection.execute("UPDATE collections SET schema_str = 'nonsense'")
    connection.close()
    repaired = await aiochroma.doctor(tmp_path, repair=True)
    assert repaired.exit_code == 0, repaired.problems
    async with aiochroma.AsyncPersistentClient(tmp_path) as client:
        collection = await client.get_collection("default", embedding_function=None)
        found = await collection.query(query_embeddings=[[9.0, 1.0]], n_results=2)
    assert list(zip(found["ids"][0], found["distances"][0], strict=True)) == [
        (id, pytest.approx(distance, abs=1e-6)) for id, distance in before
    ]


async def test_odd_values_of_sqlite_are_no_errors(database):
    """Numbers as bytes, ids that are no text, text that is no text, settings that are no JSON: looked at, not raised."""
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        connection.execute(
            "INSERT INTO migrations SELECT 'odd', 'one', filename, sql, hash FROM migrations LIMIT 1"
        )
        connection.execute("UPDATE max_seq_id SET seq_id = CAST(x'00000000000000ff' AS BLOB) WHERE rowid = 1")
        connection.execute("UPDATE collections SET config_json_str = '[1' WHERE name = 'good'")
        connection.execute(
            "INSERT INTO embeddings (segment_id, embedding_id, seq_id)"
            " SELECT segment_id, x'ff00', 1 FROM embeddings WHERE segment_id IN"
            " (SELECT id FROM segments WHERE scope = 'METADATA') LIMIT 1"
        )
        connection.execute(
            "INSERT INTO embeddings (segment_id, embedding_id, seq_id)"
            " SELECT segment_id, CAST(x'ff41' AS TEXT), 1 FROM embeddings WHERE typeof(embedding_id) = 'text' LIMIT 1"
        )
    connection.close()
    assert preflight(database).sqlite_problems == ()


async def test_settings_that_crash_chroma_are_mended_when_asked(database):
    """Doctor finds them, says so, and gives the collection settings with which its records are there again."""
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        connection.execute(ODD_ROWS["no links"])
    connection.close()
    found = await aiochroma.doctor(database)
    assert any("max_neighbors" in problem for problem in found.problems)
    assert any("--repair" in line for line in found.advice)
    repaired = await aiochroma.doctor(database, repair=True)
    assert repaired.exit_code == 0, repaired.problems
    assert await counts(database) == {"good": 200, "bad": 300}


POISON = """
import sys, chromadb
collection = chromadb.PersistentClient(sys.argv[1]).get_collection("bad", embedding_function=None)
try:
    collection.upsert(ids=["poison"], embeddings=[[1.0] * 8], metadatas=[{f"k{n}": n for n in range(6000)}])
except Exception as error:
    print(type(error).__name__)
"""


async def test_an_entry_that_can_never_be_applied_is_taken_out(database):
    """Plain Chroma logs it and fails from then on; here the others go on, and a repair brings the collection back."""
    assert printed_by("-c", POISON, database) == "InternalError\n"
    found = await counts(database)
    assert found["good"] == 200
    assert "doctor --repair" in str(found["bad"])
    report = await aiochroma.doctor(database)
    assert report.exit_code == 1
    assert any("5461" in problem for problem in report.problems)
    repaired = await aiochroma.doctor(database, repair=True)
    assert repaired.exit_code == 0, repaired.problems
    assert await counts(database) == {"good": 200, "bad": 300}
    async with aiochroma.AsyncPersistentClient(database, durable=True) as client:
        collection = await client.get_collection("bad", embedding_function=None)
        await collection.upsert(ids=["later"], embeddings=[[2.0] * 8])
        assert await collection.count() == 301


FOREIGN_ENTRIES = {
    "an encoding that is none": ("zeroblob(32)", "'BOGUS'", "NULL"),
    "numbers that are whole": ("zeroblob(32)", "'INT32'", "NULL"),
    "half a number": ("zeroblob(7)", "'FLOAT32'", "NULL"),
    "an empty vector": ("zeroblob(0)", "'FLOAT32'", "NULL"),
    "no vector": ("NULL", "NULL", "NULL"),
    "metadata of bytes": ("zeroblob(32)", "'FLOAT32'", "x'ff'"),
    "metadata that is no JSON": ("zeroblob(32)", "'FLOAT32'", "'{no'"),
    "metadata that is a list": ("zeroblob(32)", "'FLOAT32'", "'[1]'"),
    "nested metadata": ("zeroblob(32)", "'FLOAT32'", """'{"a": {"b": 1}}'"""),
    "a list of several types": ("zeroblob(32)", "'FLOAT32'", """'{"a": [1, "b"]}'"""),
    "a number that is none": ("zeroblob(32)", "'FLOAT32'", """'{"a": NaN}'"""),
}


@pytest.mark.parametrize("name", FOREIGN_ENTRIES)
async def test_an_entry_that_another_program_has_logged(database, name):
    """Chroma cannot read it, and would fail at each use: named, of its collection alone, and taken out by a repair."""
    vector, encoding, metadata = FOREIGN_ENTRIES[name]
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        connection.execute(
            "INSERT INTO embeddings_queue (operation, topic, id, vector, encoding, metadata)"
            f" SELECT 0, 'persistent://default/default/' || id, 'odd', {vector}, {encoding}, {metadata}"
            " FROM collections WHERE name = 'bad'"
        )
    connection.close()
    report = await aiochroma.doctor(database)
    assert report.exit_code == 1
    assert any("record 'odd' has" in problem for problem in report.problems)
    async with aiochroma.Memory(database, embedder="hashed") as memory:
        await memory.remember("The boat is in the shed.")
        assert len(await memory.recall("boat")) == 1
        await memory.forget_namespace("default")
    found = await counts(database)
    assert found["good"] == 200
    assert isinstance(found["bad"], aiochroma.DatabaseCorruptError)
    repaired = await aiochroma.doctor(database, repair=True)
    assert repaired.exit_code == 0, repaired.problems
    assert await counts(database) == {"good": 200, "bad": 300}


async def test_a_configuration_of_the_log_that_is_none(database):
    """Chroma would open nothing because of it; it is written anew, with what Chroma takes where there is none."""
    connection = sqlite3.connect(database / SQLITE_FILE)
    with connection:
        connection.execute("UPDATE embeddings_queue_config SET config_json_str = 'nonsense'")
    connection.close()
    assert await counts(database) == {"good": 200, "bad": 300}


async def test_a_rebuild_that_did_not_end_is_tried_in_a_child(database):
    """When the child lives the collection is as it was; nothing is noted any more."""
    (entry,) = [entry for entry in preflight(database).collections if entry.name == "bad"]
    findings.begin_rebuild(database, entry.collection_id)
    assert await counts(database) == {"good": 200, "bad": 300}
    assert findings.unfinished(database) == []
    assert findings.crashing(database) == frozenset()


async def test_a_rebuild_is_not_blamed_where_no_child_can_try_it(database, monkeypatch):
    """A frozen program has no interpreter: nothing is known against the collection, which is used as before."""
    (entry,) = [entry for entry in preflight(database).collections if entry.name == "bad"]
    findings.begin_rebuild(database, entry.collection_id)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert await counts(database) == {"good": 200, "bad": 300}
    assert findings.crashing(database) == frozenset()


async def test_a_rebuild_that_ends_the_process_is_not_tried_again(database):
    """Every opening leaves that collection alone; a repair tries once more, in a process of its own."""
    (entry,) = [entry for entry in preflight(database).collections if entry.name == "bad"]
    findings.note_crash(database, entry.collection_id)
    for _ in range(2):
        found = await counts(database)
        assert found["good"] == 200
        assert isinstance(found["bad"], aiochroma.DatabaseCorruptError)
    repaired = await aiochroma.doctor(database, repair=True)
    assert repaired.exit_code == 0, repaired.problems
    assert await counts(database) == {"good": 200, "bad": 300}


async def test_a_rebuild_is_noted_before_it_begins(database, monkeypatch):
    """Should it end the process, the next opening knows."""
    header = index_of(database, "bad") / "header.bin"
    header.write_bytes(header.read_bytes()[:10])
    noted = []
    from aiochroma.backend import preparation

    monkeypatch.setattr(preparation, "end_rebuild", lambda path, _: noted.append(findings.unfinished(path)))
    assert await counts(database) == {"good": 200, "bad": 300}
    assert [len(ids) for ids in noted] == [1]
