"""Migration: between directories and a real server, there and back, interrupted, refused, and compared."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from contextlib import closing
from importlib import import_module

import numpy as np
import pytest
from ops_databases import fill, vectors
from programs import ChromaServer, command, printed_by, python

import aiochroma
from aiochroma.ops.copying import NOTE

COUNT = 600
"""More than two pages."""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """Nothing from the machine's own configuration gets into a test."""
    for variable in list(os.environ):
        if variable.startswith("CHROMA_"):
            monkeypatch.delenv(variable)


@pytest.fixture
def server(tmp_path):
    """A Chroma server in which nothing has been: in new records it shows lists of deleted ones."""
    with ChromaServer(tmp_path / "server", tmp_path / "server.log") as started:
        yield started


@pytest.fixture
async def rich(tmp_path):
    """A directory with everything that a collection and a record can have."""
    path = tmp_path / "rich"
    async with aiochroma.AsyncPersistentClient(path) as client:
        mixed = await client.create_collection(
            "mixed",
            metadata={"owner": "tests", "ratio": 0.5, "hnsw:space": "ip", "aiochroma:embedder": "own"},
            embedding_function=None,
            configuration={
                "hnsw": {"space": "cosine", "ef_search": 50, "sync_threshold": 100, "batch_size": 50}
            },
        )
        await mixed.add(
            ids=[f"id {n}" for n in range(COUNT)],
            embeddings=vectors(COUNT) * 10,
            documents=[None if n % 7 == 0 else f"document {n} — ä\n" for n in range(COUNT)],
            metadatas=[None if n % 5 == 0 else _metadata(n) for n in range(COUNT)],
            uris=[f"file:///{n}" if n % 3 == 0 else None for n in range(COUNT)],
        )
        await mixed.delete(ids=["id 3", "id 4"])
        await client.create_collection("known-function")
        plain = await client.create_collection("plain", embedding_function=None)
        await plain.add(ids=["only"], embeddings=[[0.1, 0.2, 0.3]])
    return path


def _metadata(n):
    return {"n": n, "whole": float(n), "yes": n % 2 == 0, "tags": ["a", "b"], "big": 2**40}


async def everything(where, **names):
    """Return all that Chroma says of a store."""
    server = str(where).startswith("http")
    place = {"mode": "http", "host": where} if server else {"path": where}
    async with aiochroma.connect(**place, **names) as client:
        found = {}
        for collection in await client.list_collections():
            model = collection.get_model()
            records = await collection.get(include=["embeddings", "documents", "metadatas", "uris"])
            rows = zip(
                records["embeddings"],
                records["documents"],
                records["metadatas"],
                records["uris"],
                strict=True,
            )
            by_id = dict(zip(records["ids"], rows, strict=True))
            found[collection.name] = (
                model.metadata,
                model.configuration_json,
                model.serialized_schema,
                by_id,
            )
        return found


def assert_same(left, right):
    """Compare what `everything` returned; of vectors the cosine distance rounds the last digit."""
    assert set(left) == set(right)
    for name in left:
        assert left[name][:3] == right[name][:3]
        here, there = left[name][3], right[name][3]
        assert list(here) == list(there), "the order of writing is kept"
        for id in here:
            np.testing.assert_allclose(here[id][0], there[id][0], rtol=2e-6, atol=2e-6)
            assert [here[id][1], here[id][2] or None, here[id][3]] == [
                there[id][1],
                there[id][2] or None,
                there[id][3],
            ]


async def test_to_a_server_and_back_and_on(rich, server, tmp_path):
    """Directory to server, server to directory, directory to directory: at the end everything is what it was."""
    before = await everything(rich)
    stages = []
    there = await aiochroma.migrate(rich, server.url, progress=lambda *stage: stages.append(stage))
    assert (there.is_verified, there.exit_code, there.records, there.written) == (
        True,
        0,
        COUNT - 1,
        COUNT - 1,
    )
    assert ("copy mixed", COUNT - 2, COUNT - 2) in stages
    assert ("verify mixed", COUNT - 2, COUNT - 2) in stages
    assert_same(before, await everything(server.url))
    back = await aiochroma.migrate(server.url, tmp_path / "back")
    assert back.is_verified
    assert_same(before, await everything(tmp_path / "back"))
    on = await aiochroma.migrate(tmp_path / "back", tmp_path / "on")
    assert on.is_verified
    assert_same(before, await everything(tmp_path / "on"))


async def test_a_complete_copy_is_left_alone(rich, tmp_path):
    """Run again, it compares and writes nothing."""
    await aiochroma.migrate(rich, tmp_path / "copy")
    again = await aiochroma.migrate(rich, tmp_path / "copy")
    assert (again.is_verified, again.written, again.records) == (True, 0, COUNT - 1)


_KILLED = """
import asyncio, os, signal, sys
import aiochroma

def progress(stage, done, of):
    if stage == "copy main" and done >= 600:
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(aiochroma.migrate(sys.argv[1], sys.argv[2], progress=progress))
"""


@pytest.mark.parametrize("to", ["server", "directory"])
async def test_killed_in_the_middle_and_run_again(to, request, tmp_path):
    """A run that is killed while it writes is continued by the next: nothing twice, nothing missing, no trace."""
    source, count = tmp_path / "db", 1000
    await fill(source, count=count)
    target = request.getfixturevalue("server").url if to == "server" else str(tmp_path / "copy")
    killed = await asyncio.to_thread(python, "-c", _KILLED, source, target)
    assert killed.returncode == -9
    left = await everything(target)
    assert set(left) == {"main", NOTE}
    assert 600 <= len(left["main"][3]) < count
    with pytest.raises(aiochroma.MigrationError, match="incomplete copy"):
        await aiochroma.migrate(target, tmp_path / "elsewhere")
    report = await aiochroma.migrate(source, target)
    assert report.is_verified
    # What was on its way when the run was killed may have arrived since.
    assert 0 < report.written <= count - len(left["main"][3])
    assert_same(await everything(source), await everything(target))


async def test_verification_finds_what_differs_and_another_run_mends_it(rich, server):
    """Whatever differs is named with its id; run again, it is the same and the exit code is 0."""
    before = await everything(rich)
    changed = []

    def disturb(stage, done, of):
        if stage == "verify mixed" and not changed:
            changed.append(True)
            printed_by("-c", _DISTURBED, server.port)

    report = await aiochroma.migrate(rich, server.url, progress=disturb)
    assert report.exit_code == 1
    assert not report.is_verified
    (mixed,) = [entry for entry in report.collections if entry.differences]
    assert (mixed.name, mixed.missing, mixed.different, mixed.extra) == ("mixed", 2, 2, 1)
    text = "\n".join(report.differences)
    assert "'id 9'" in text
    assert "vector, document" in text
    assert "differ in metadata, for example 'id 11'" in text
    assert "2 records are missing, for example 'id 20', 'id 21'" in text
    assert "'stranger'" in text
    async with aiochroma.connect(mode="http", host=server.url) as client:
        collection = await client.get_collection("mixed", embedding_function=None)
        await collection.delete(ids=["stranger"])
    mended = await aiochroma.migrate(rich, server.url)
    assert mended.is_verified
    (mixed,) = [entry for entry in mended.collections if entry.written]
    assert (mixed.written, mixed.replaced) == (4, 2)
    after = await everything(server.url)
    assert NOTE not in after
    assert {id: row[1] for id, row in after["mixed"][3].items()} == {
        id: row[1] for id, row in before["mixed"][3].items()
    }


_DISTURBED = """
import sys
import chromadb

collection = chromadb.HttpClient("127.0.0.1", int(sys.argv[1])).get_collection("mixed", embedding_function=None)
collection.update(ids=["id 9"], documents=["something else"], embeddings=[[1.0] * 16])
collection.update(ids=["id 11"], metadatas=[{"n": 12}])
collection.delete(ids=["id 20", "id 21"])
collection.add(ids=["stranger"], embeddings=[[1.0] * 16])
"""


async def test_something_else_at_the_destination_is_refused_before_anything_is_written(rich, tmp_path):
    """One collection in the way, and not even the others are copied."""
    target = tmp_path / "taken"
    async with aiochroma.AsyncPersistentClient(target) as client:
        collection = await client.create_collection("plain", embedding_function=None)
        await collection.add(ids=["theirs"], embeddings=[[1.0, 2.0, 3.0]])
    with pytest.raises(aiochroma.MigrationError) as caught:
        await aiochroma.migrate(rich, target)
    assert caught.value.problems == ("plain: 1 records are missing, for example 'only'",)
    assert list(await everything(target)) == ["plain"]


async def test_merging(rich, tmp_path):
    """Asked to, it adds to what is there; of the same id the source's record counts, wholly."""
    target = tmp_path / "taken"
    async with aiochroma.AsyncPersistentClient(target) as client:
        collection = await client.create_collection("plain", metadata={"mine": 1}, embedding_function=None)
        await collection.add(
            ids=["theirs", "only"],
            embeddings=[[1.0, 2.0, 3.0]] * 2,
            documents=["a", "b"],
            metadatas=[{"c": 1}] * 2,
        )
    report = await aiochroma.migrate(rich, target, merge=True)
    assert report.is_verified
    after = await everything(target)
    assert after["plain"][0] == {"mine": 1}
    assert set(after["plain"][3]) == {"theirs", "only"}
    assert after["plain"][3]["only"][1:] == (None, None, None)
    assert after["plain"][3]["theirs"][1] == "a"


async def test_records_of_another_kind_are_not_merged(rich, tmp_path):
    """Another distance or another embedder makes numbers that mean nothing side by side."""
    target = tmp_path / "taken"
    async with aiochroma.AsyncPersistentClient(target) as client:
        collection = await client.create_collection("mixed", embedding_function=None)
        await collection.add(ids=["theirs"], embeddings=[[1.0, 2.0, 3.0]])
    with pytest.raises(aiochroma.MigrationError) as caught:
        await aiochroma.migrate(rich, target, merge=True)
    (distance, dimension, embedder) = caught.value.problems
    assert "'l2' and not 'cosine'" in distance
    assert "3 dimensions and not 16" in dimension
    assert 'embedder is null and not "own"' in embedder


async def test_what_is_neither_a_path_nor_an_address_is_refused(tmp_path, monkeypatch):
    """Its text would be the name of a directory, which would be made."""
    monkeypatch.chdir(tmp_path)
    for odd in (None, 7, True, b"x", object()):
        with pytest.raises(aiochroma.InvalidInputError, match="`dst`"):
            await aiochroma.migrate(tmp_path, odd)
        with pytest.raises(aiochroma.InvalidInputError, match="`src`"):
            await aiochroma.migrate(odd, tmp_path)
    with pytest.raises(aiochroma.InvalidInputError, match="`src_options`"):
        await aiochroma.migrate(tmp_path, tmp_path / "new", src_options=["token"])
    with pytest.raises(aiochroma.InvalidInputError, match="`texts`"):
        await aiochroma.erase(tmp_path, texts=7)
    assert list(tmp_path.iterdir()) == []


async def test_a_directory_within_the_source_is_refused(rich):
    """Backing up the source would not reach it, nor erasing; nothing is made there."""
    with pytest.raises(aiochroma.InvalidInputError, match="inside of the database"):
        await aiochroma.migrate(rich, rich / "copy")
    assert not (rich / "copy").exists()


async def test_a_store_in_use_is_refused(rich, tmp_path):
    """On either side, by another program or by this one, and nothing is made."""
    async with aiochroma.AsyncPersistentClient(rich):
        with pytest.raises(aiochroma.DatabaseInUseError, match="this same process"):
            await aiochroma.migrate(rich, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        refused = await asyncio.to_thread(python, "-m", "aiochroma", "migrate", rich, tmp_path / "copy")
        assert refused.returncode == 3
        assert str(os.getpid()) in refused.stderr
    async with aiochroma.AsyncPersistentClient(tmp_path / "copy"):
        with pytest.raises(aiochroma.DatabaseInUseError):
            await aiochroma.migrate(rich, tmp_path / "copy")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
async def test_the_directory_of_a_running_server_is_refused(server, tmp_path):
    """A server asks nobody for its directory; that it has it open is seen nevertheless."""
    async with aiochroma.connect(mode="http", host=server.url) as client:
        await client.create_collection("main", embedding_function=None)
    with pytest.raises(aiochroma.DatabaseInUseError, match="chroma"):
        await aiochroma.migrate(server.directory, tmp_path / "copy")


async def test_all_databases_of_all_tenants(tmp_path, server):
    """Each arrives under its own name; without being asked for they stay where they are."""
    source = tmp_path / "db"
    places = [("default_tenant", "default_database"), ("default_tenant", "second"), ("another", "third")]
    async with aiochroma.AsyncPersistentClient(source) as client:
        await client.admin.create_database("second")
        await client.admin.create_tenant("another")
        await client.admin.create_database("third", "another")
    for tenant, database in places:
        async with aiochroma.AsyncPersistentClient(source, tenant=tenant, database=database) as client:
            collection = await client.create_collection("main", embedding_function=None)
            await collection.add(ids=[database], embeddings=[[1.0, 2.0]])
    one = await aiochroma.migrate(source, f"{server.url}/another/renamed", tenant="another", database="third")
    assert [(entry.tenant, entry.database) for entry in one.collections] == [("another", "renamed")]
    assert list((await everything(server.url, tenant="another", database="renamed"))["main"][3]) == ["third"]
    report = await aiochroma.migrate(source, server.url, all_databases=True)
    assert report.is_verified
    assert {(entry.tenant, entry.database) for entry in report.collections} == set(places)
    for tenant, database in places:
        found = await everything(server.url, tenant=tenant, database=database)
        assert list(found["main"][3]) == [database]


async def test_a_memory_works_at_the_destination(server, tmp_path):
    """Namespaces, also those whose names Chroma would not take, are recalled by meaning and by word on the other side."""
    namespaces = ["facts", "häuser & gärten"]
    async with aiochroma.Memory(tmp_path / "memory", embedder=_embed, history=True) as memory:
        for name in namespaces:
            await memory.remember(
                f"The zyzzyva of {name} sleeps.", namespace=name, id="one", metadata={"m": 1}, thread=False
            )
            await memory.remember("Nothing of the kind.", namespace=name, thread=False)
    report = await aiochroma.migrate(tmp_path / "memory", server.url)
    assert report.is_verified
    (note,) = report.notes
    assert "history" in note
    assert (await aiochroma.migrate(server.url, tmp_path / "back")).is_verified
    async with aiochroma.Memory(tmp_path / "back", embedder=_embed) as memory:
        assert sorted(await memory.namespaces()) == sorted(namespaces)
        for name in namespaces:
            found = await memory.recall("zyzzyva", namespaces=[name], k=1)
            assert [(hit.id, hit.metadata) for hit in found] == [("one", {"m": 1})]
            assert found[0].score > 0


def _embed(texts):
    return [np.random.default_rng(sum(text.encode())).standard_normal(8).astype("float32") for text in texts]


async def test_a_collection_of_an_older_chroma(rich, tmp_path):
    """What has no schema on disk, but a configuration, arrives with it."""
    made = await everything(rich)
    with closing(sqlite3.connect(rich / "chroma.sqlite3")) as connection, connection:
        for name, entry in made.items():
            stored = {
                "vector_index": {"hnsw": entry[1]["hnsw"]},
                "embedding_function": entry[1]["embedding_function"],
            }
            connection.execute(
                "UPDATE collections SET schema_str = NULL, config_json_str = ? WHERE name = ?",
                (json.dumps(stored), name),
            )
    before = await everything(rich)
    assert before["mixed"][1]["hnsw"]["space"] == "cosine"
    report = await aiochroma.migrate(rich, tmp_path / "copy")
    assert report.differences == ()
    after = await everything(tmp_path / "copy")
    assert {name: entry[:2] for name, entry in after.items()} == {
        name: entry[:2] for name, entry in before.items()
    }


async def test_a_collection_is_made_without_a_schema(rich, tmp_path):
    """For a server that knows no schemas, distance, index and embedding function go by the configuration."""
    from aiochroma.ops.sides import Side, make_like, unlike

    async with (
        aiochroma.AsyncPersistentClient(rich) as here,
        aiochroma.AsyncPersistentClient(tmp_path / "b") as there,
    ):
        source, target = (Side(client, client.tenant, client.database) for client in (here, there))
        models = await source.models()
        for model in models.values():
            bare = model.model_copy(update={"serialized_schema": None})
            assert unlike(bare, await make_like(bare, target)) == []
        made = await target.models()
        assert made["mixed"].configuration_json["hnsw"]["ef_search"] == 50
        assert made["known-function"].configuration_json["embedding_function"]["name"] == "default"


async def test_the_source_is_not_changed(rich, tmp_path):
    """Afterwards everything is where it was."""
    before = await everything(rich)
    await aiochroma.migrate(rich, tmp_path / "copy")
    assert_same(before, await everything(rich))


async def test_the_command(rich, server):
    """It says what it did, in words and as JSON; the environment's tenant and token are the server's."""
    done = await asyncio.to_thread(command, "migrate", rich, server.url, CHROMA_AUTH_TOKEN="secret-of-mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{COUNT - 1} records in 3 collections" in done.stdout
    again = await asyncio.to_thread(command, "migrate", rich, server.url, "--json", "--no-verify")
    assert again.returncode == 0
    report = json.loads(again.stdout)
    assert (report["written"], report["records"]) == (0, COUNT - 1)
    assert "secret-of-mine" not in done.stdout + again.stdout
    described = await asyncio.to_thread(command, "migrate", "--help")
    assert (described.returncode, described.stderr) == (0, "")
    assert "--merge" in described.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "x"], "`SRC` must be a directory"),
        (["db", "ftp://x"], "`DST` must be a directory, or http"),
        (["db", "http://x/only-one"], "optionally with /tenant/database"),
        (["db", "http://me:hunter2@x"], "must not contain user name or password"),
        (["db", "http://x:99999"], "`DST` is not the address of a server"),
        (["db", "db"], "are the same"),
        (["db", "http://x/one/two", "--to-tenant", "three"], "names the tenant 'one'"),
        (["db", "x", "--all-databases", "--database", "one"], "`--all-databases`"),
        (["db", "x", "--database", "not-there"], "has no such tenant or database"),
        (["db", "x", "--tenant", "not-there"], "has no such tenant or database"),
    ],
)
async def test_bad_arguments(arguments, message, tmp_path):
    """Each is one line that names the argument, with exit code 2; nothing is made, no password is repeated."""
    await fill(tmp_path / "db", count=1)
    arguments = [str(tmp_path / value) if value in {"db", "x"} else value for value in arguments]
    refused = await asyncio.to_thread(command, "migrate", *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "hunter2" not in refused.stderr
    assert not (tmp_path / "x").exists()


async def test_no_source(tmp_path):
    """A misspelled directory is not made, and neither is the destination."""
    with pytest.raises(aiochroma.DatabasePathError, match="no database"):
        await aiochroma.migrate(tmp_path / "none", tmp_path / "copy")
    assert not any(tmp_path.iterdir())


async def test_what_the_environment_says_of_one_server_is_not_sent_to_another(
    server, rich, monkeypatch, tmp_path
):
    """From server to server the token of the environment is the source's; the other is spoken to without."""
    migrating = import_module("aiochroma.ops.migrate")
    monkeypatch.setenv("CHROMA_AUTH_TOKEN", "token-of-the-source")
    await aiochroma.migrate(rich, server.url)
    sent = {}
    connect = migrating.connect

    def noting(**options):
        opening = connect(**options)
        resolve = opening.resolve

        def settled():
            target = resolve()
            sent[target.location.url] = dict(target.options.access.headers)
            return target

        opening.resolve = settled
        return opening

    monkeypatch.setattr(migrating, "connect", noting)
    with ChromaServer(tmp_path / "second", tmp_path / "second.log") as second:
        report = await aiochroma.migrate(server.url, second.url)
        assert report.is_verified
        assert "token-of-the-source" in sent[server.url]["authorization"]
        assert sent[second.url] == {}
