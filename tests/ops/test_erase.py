"""Forgetting forgets: after an erasure what was forgotten, has expired or was replaced is in no file of the directory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing

import numpy as np
import pytest
from chromadb.config import Settings
from ops_databases import contents
from programs import PATIENCE, printed_by

import aiochroma
from aiochroma.client.session import Session
from aiochroma.disk.preflight import preflight
from aiochroma.embedding.words import HashedEmbedder
from aiochroma.memory.forgetting import erase_traces
from aiochroma.records.record import CHUNKS, WRITING, chunks_name

SECRETS = (
    "my bank pin is quetzalcoatl 7788",
    "the passphrase is xiuhtecuhtli",
    'a "quoted" ünïcödé line\nand another \\ one',
)
LIVING = "The key is under the mat."


def holds(path, pattern):
    """Return the files that hold some bytes."""
    return sorted(file.name for file in path.rglob("*") if file.is_file() and pattern in file.read_bytes())


def forms(text):
    return {
        text.encode(),
        json.dumps(text)[1:-1].encode(),
        json.dumps(text, ensure_ascii=False)[1:-1].encode(),
    }


def vector_of(text):
    (vector,) = (
        HashedEmbedder().embed_documents([text])
        if hasattr(HashedEmbedder, "embed_documents")
        else HashedEmbedder()([text])
    )
    return np.asarray(vector, dtype="<f4").tobytes()


def assert_gone(path):
    for text in SECRETS:
        for form in forms(text):
            assert holds(path, form) == [], text


async def live_and_forget(path, **options):
    """Remember secrets beside a hundred others; forget one, replace one, let one expire."""
    async with aiochroma.Memory(path, embedder=HashedEmbedder(), history=True, **options) as memory:
        await memory.remember_many([f"An ordinary memory of number {n}." for n in range(60)])
        forgotten = await memory.remember(SECRETS[0], metadata={"owner": "quetzalcoatl-owner"})
        await memory.remember(SECRETS[1], ttl=0.05)
        replaced = await memory.remember(SECRETS[2])
        await memory.remember_many([f"Another memory of number {n}." for n in range(60)])
        kept = await memory.remember(LIVING)
        await memory.recall("bank pin")
        await memory.update(replaced, text="Nothing of note.")
        assert await memory.forget(forgotten)
        await asyncio.sleep(0.1)
        await memory.sweep()
    return kept


@pytest.mark.parametrize("durable", [True, None])
async def test_what_was_forgotten_is_in_no_file(tmp_path, durable):
    """The texts as UTF-8 and as JSON are nowhere in the directory, the receipt says so, and what lives is whole."""
    path = tmp_path / "db"
    kept = await live_and_forget(path, durable=durable)
    assert any(holds(path, form) for text in SECRETS for form in forms(text)), (
        "nothing was there to be erased"
    )
    receipt = await aiochroma.erase(path, texts=SECRETS)
    assert receipt.is_complete
    assert receipt.texts == len(SECRETS)
    assert set(receipt.files) >= {"chroma.sqlite3", "aiochroma-history.sqlite3"}
    assert receipt.bytes_checked > 100_000
    assert_gone(path)
    assert holds(path, b"quetzalcoatl") == []
    async with aiochroma.Memory(path, embedder=HashedEmbedder(), history=True, durable=durable) as memory:
        assert (await memory.get(kept)).text == LIVING
        assert await memory.count() == 122
        assert [hit.text for hit in await memory.recall("where is the key", k=1)] == [LIVING]
        assert all(change.text is None for change in await memory.history())
        await memory.remember("Life goes on.")
        assert await memory.count() == 123
    assert preflight(path, thorough=True).problems == ()


@pytest.mark.parametrize("is_open", [False, True])
async def test_no_word_of_it_stays_in_a_full_text_index(tmp_path, is_open):
    """Such an index keeps the words of rows that were taken out until its pieces are joined."""
    path = tmp_path / "db"
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        await memory.remember_many([f"An ordinary memory of number {n}." for n in range(20)])
        secret = await memory.remember(SECRETS[0])
        await memory.recall("bank pin")
        await memory.remember_many([f"Another memory of number {n}." for n in range(20)])
        if is_open:
            await memory.erase(secret)
            assert holds(path, b"quetzalcoatl") == []
        else:
            await memory.forget(secret)
    assert is_open or "aiochroma-text.sqlite3" in holds(path, b"quetzalcoatl")
    await aiochroma.erase(path)
    assert holds(path, b"quetzalcoatl") == []


async def test_a_lost_index_is_rebuilt_after_an_erasure(tmp_path):
    """The log still has the vector of each living record, so that durability is kept."""
    path = tmp_path / "db"
    await live_and_forget(path)
    await aiochroma.erase(path)
    for index in list(path.glob("*-*-*-*-*")):
        if index.is_dir():
            shutil.rmtree(index)
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        assert await memory.count() == 122
        assert [hit.text for hit in await memory.recall("where is the key", k=1, mode="vector")] == [LIVING]


async def fill(path, vectors, *, durable, space):
    async with aiochroma.AsyncPersistentClient(path, durable=durable) as client:
        collection = await client.create_collection(
            "main",
            embedding_function=None,
            configuration={"hnsw": {"space": space, "sync_threshold": 50, "batch_size": 50}},
        )
        ids = [f"r{n}" for n in range(len(vectors))]
        # Not all at once: how many are in a slice depends on the machine, and with it when Chroma writes the index.
        for start in range(0, len(ids), 20):
            page = ids[start : start + 20]
            await collection.upsert(
                ids=page,
                embeddings=vectors[start : start + 20],
                documents=[f"document {id}" for id in page],
            )


@pytest.mark.parametrize("durable", [True, None])
@pytest.mark.parametrize("space", ["l2", "cosine"])
async def test_vectors_leave_the_index_and_the_log(tmp_path, durable, space):
    """A deleted vector is in no file, as it was given or with length one; the others are found as before."""
    path = tmp_path / "db"
    vectors = np.random.default_rng(3).standard_normal((240, 16)).astype("float32")
    await fill(path, vectors, durable=durable, space=space)
    gone = [7, 60, 120, 230]
    async with aiochroma.AsyncPersistentClient(path, durable=durable) as client:
        collection = await client.get_collection("main", embedding_function=None)
        await collection.delete(ids=[f"r{n}" for n in gone])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    stored = [row[:4].tobytes() for n in gone for row in (vectors[n], unit[n])]
    assert any(holds(path, pattern) for pattern in stored)
    receipt = await aiochroma.erase(path)
    assert [pattern for pattern in stored if holds(path, pattern)] == []
    assert receipt.vectors_replaced >= 2
    found = await contents(path, durable=durable)
    assert found.keys() == {f"r{n}" for n in range(240) if n not in gone}
    np.testing.assert_allclose(found["r8"][0], vectors[8], rtol=1e-5)
    async with aiochroma.AsyncPersistentClient(path, durable=durable) as client:
        collection = await client.get_collection("main", embedding_function=None)
        living = [n for n in range(240) if n not in gone]
        hits = await collection.query(query_embeddings=vectors[living], n_results=1, include=[])
        reached = sum(ids == [f"r{n}"] for n, ids in zip(living, hits["ids"], strict=True))
        assert reached >= len(living) - 2
    assert preflight(path, thorough=True).problems == ()


async def test_a_collection_that_was_deleted_leaves_with_all_it_had(tmp_path):
    """Its log entries, its orphaned index and what a repair had set aside."""
    path = tmp_path / "db"
    vectors = np.random.default_rng(3).standard_normal((120, 16)).astype("float32")
    await fill(path, vectors, durable=True, space="l2")
    async with aiochroma.AsyncPersistentClient(path) as client:
        await client.delete_collection("main")
    for left in ("quarantine-20250101T000000Z", str(uuid.uuid4())):
        (path / left).mkdir()
        (path / left / "data").write_bytes(vectors.tobytes())
    receipt = await aiochroma.erase(path)
    assert len(receipt.removed) == 2
    assert holds(path, vectors[5].tobytes()) == []
    assert holds(path, b"document r5") == []


async def test_an_open_database_is_erased_between_two_requests(tmp_path):
    """Requests wait, nothing fails, and the client goes on."""
    path = tmp_path / "db"
    vectors = np.random.default_rng(3).standard_normal((120, 16)).astype("float32")
    await fill(path, vectors, durable=True, space="l2")
    async with aiochroma.AsyncPersistentClient(path) as client:
        collection = await client.get_collection("main", embedding_function=None)
        await collection.delete(ids=["r5"])
        receipt, *counts = await asyncio.gather(
            erase_traces(client.session, erased=1, texts=["document r5"], vectors=[vectors[5]], history=None),
            *(collection.count() for _ in range(20)),
        )
        assert receipt.is_complete
        assert receipt.erased == receipt.texts == receipt.vectors == 1
        assert counts == [119] * 20
        await collection.upsert(ids=["new"], embeddings=vectors[:1])
        assert await collection.count() == 120
        assert (await client.health()).status == "ok"
    assert holds(path, vectors[5].tobytes()) == []


async def test_a_vector_of_length_one_is_looked_for_where_an_index_held_it(tmp_path):
    """With the cosine distance the index keeps a vector's direction: a file that has those bytes is found."""
    path = tmp_path / "db"
    vectors = np.random.default_rng(3).standard_normal((120, 16)).astype("float32")
    await fill(path, vectors, durable=True, space="cosine")
    held = next(path.glob("*/data_level0.bin")).read_bytes()
    unit = vectors[5] / np.linalg.norm(vectors[5])
    # The last digits are the processor's; its first digits say where it is.
    rows = np.frombuffer(held, dtype="<f4", count=len(held) // 4)
    windows = np.lib.stride_tricks.sliding_window_view(rows, 16)
    (position, *_) = np.flatnonzero(np.abs(windows - unit).max(axis=1) < 1e-5)
    (path / "somebodys.bin").write_bytes(b"before" + windows[position].tobytes() + b"after")
    async with aiochroma.AsyncPersistentClient(path) as client:
        collection = await client.get_collection("main", embedding_function=None)
        await collection.delete(ids=["r5"])
        receipt = await erase_traces(client.session, erased=1, texts=[], vectors=[vectors[5]], history=None)
        assert receipt.found == ("somebodys.bin",)


async def test_a_text_in_the_unused_room_of_an_index_is_blanked(tmp_path):
    """A new index's files are as large as it may grow, and filled with what Chroma's memory held at that moment."""
    path = tmp_path / "db"
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        secret = await memory.remember(SECRETS[0])
        await memory.remember(LIVING, namespace="other")
    rooms = sorted(path.rglob("data_level0.bin"))
    assert len(rooms) == 2
    for room in rooms:
        content = bytearray(room.read_bytes())
        content[-len(SECRETS[0]) :] = SECRETS[0].encode()
        room.write_bytes(content)
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        receipt = await memory.erase(secret)
        assert receipt.is_complete, receipt.found
        assert_gone(path)
        assert (await memory.recall("where is the key?", namespaces="other"))[0].text == LIVING


async def test_what_the_memory_of_the_process_still_holds_stays_out_of_later_indexes(tmp_path):
    """Chroma fills the room of an index that it writes after the erasure with it; that is blanked, at the latest at the end."""
    path = tmp_path / "db"
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        secret = await memory.remember(SECRETS[0])
        await memory.remember(LIVING)
        assert (await memory.erase(secret)).is_complete
        for number in range(2):
            await memory.remember(f"A number: {number}", namespace=f"later {number}")
            await memory.recall("a number", namespaces=f"later {number}")
        rooms = sorted(path.rglob("data_level0.bin"))
        assert len(rooms) == 3
        for room in rooms:
            with room.open("r+b") as opened:
                opened.seek(-len(SECRETS[0].encode()), os.SEEK_END)
                opened.write(SECRETS[0].encode())
        assert len(holds(path, SECRETS[0].encode())) == 3
    assert_gone(path)
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        assert [hit.text for hit in await memory.recall("key", namespaces="default")] == [LIVING]
        assert len(await memory.recall("a number", namespaces=["later 0", "later 1"])) == 2


async def test_lists_without_a_record_are_erased(tmp_path):
    """Chroma leaves them where a collection is deleted as a whole, and shows them in records made later."""
    path = tmp_path / "db"
    async with aiochroma.AsyncPersistentClient(path) as client:
        await client.create_collection("kept", embedding_function=None)
    with closing(sqlite3.connect(path / "chroma.sqlite3")) as connection, connection:
        connection.execute(
            "INSERT INTO embedding_metadata_array (id, key, string_value) VALUES (77, 'tags', ?)", SECRETS[:1]
        )
    assert holds(path, SECRETS[0].encode())
    await aiochroma.doctor(path, erase=True)
    assert holds(path, SECRETS[0].encode()) == []


@pytest.mark.parametrize("in_memory", [False, True])
async def test_a_later_record_does_not_show_the_lists_of_one_that_is_gone(tmp_path, in_memory):
    """They are deleted with the record: one by one, with its collection or its database, and after a reset."""
    vectors = np.eye(3, 8, dtype=np.float32)
    settings = Settings(allow_reset=True)

    async def add(name, metadatas):
        made = await client.create_collection(name, embedding_function=None)
        await made.add(ids=["1", "2", "3"], embeddings=vectors, metadatas=metadatas, documents=["text"] * 3)
        return made

    opening = (
        aiochroma.AsyncEphemeralClient(settings)
        if in_memory
        else aiochroma.AsyncPersistentClient(tmp_path, settings)
    )
    async with opening as client:
        for round in range(3):
            if round == 2:
                await client.reset()
            await add("gone", [{"tags": ["a"]}] * 3)
            await client.delete_collection("gone")
            made = await add("made", [{"own": 1}, {"tags": ["b", "c"]}, None])
            assert (await made.get())["metadatas"] == [{"own": 1}, {"tags": ["b", "c"]}, None]
            await made.delete(ids=["2"])
            await made.add(ids=["4"], embeddings=vectors[:1], documents=["text"])
            assert (await made.get(ids=["4"]))["metadatas"] == [None]
            await client.delete_collection("made")
        await add("kept", [{"tags": ["a"]}] * 3)
        await client.admin.create_database("other")
        await client.set_database("other")
        await add("gone", [{"tags": ["a"]}] * 3)
        await client.set_database("default_database")
        await client.admin.delete_database("other")
        assert (await (await add("made", [{"own": 1}, None, None])).get())["metadatas"][1:] == [None, None]
        # Those of the other database's collections are still known.
        await client.delete_collection("made")
        await client.delete_collection("kept")
        assert (await (await add("again", [None] * 3)).get())["metadatas"] == [None] * 3


async def test_the_receipt_says_what_was_not_reached_and_not_looked_for(tmp_path):
    """Backups by name; texts that a living memory contains, or that are too short to be told from chance."""
    path = tmp_path / "db"
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        await memory.remember("The key is under the mat.")
        await memory.client.backup(tmp_path / "backup")
    receipt = await aiochroma.erase(path, texts=["under the mat", "yes", "nobody said this"])
    assert receipt.not_reached == (str(tmp_path / "backup"),)
    assert (receipt.shared, receipt.too_short) == (1, 1)
    assert receipt.is_complete


async def test_copies_beside_a_directory_of_any_name_are_named(tmp_path):
    """A name with letters that mean something in patterns means itself."""
    path, kept = tmp_path / "bot[1]", tmp_path / "bot[1].before-restore-20260101T000000Z-1"
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        await memory.remember("The key is under the mat.")
    kept.mkdir()
    (tmp_path / "bot1.before-restore-20260101T000000Z-1").mkdir()
    assert (await aiochroma.erase(path)).not_reached == (str(kept),)


async def test_a_text_that_is_there_still_is_found(tmp_path):
    """The look is real: a file that holds the text makes the receipt incomplete, and is named."""
    path = tmp_path / "db"
    await live_and_forget(path)
    # As UTF-8, and as JSON with escapes and without; the last one has something to escape.
    for form in (SECRETS[0].encode(), *forms(SECRETS[2])):
        (path / "notes of somebody.txt").write_bytes(b"by the way: " + form + b"!")
        receipt = await aiochroma.erase(path, texts=SECRETS)
        assert not receipt.is_complete
        assert receipt.found == ("notes of somebody.txt",)


@pytest.mark.parametrize("replaced", [True, False])
async def test_chunks_of_what_another_program_deleted_or_replaced(tmp_path, replaced):
    """Nobody has told the memory; its long text is still gone with its id, and the receipt can say so."""
    path = tmp_path / "db"
    async with aiochroma.Memory(path, embedder=HashedEmbedder(), split_chars=60) as memory:
        await memory.remember(LIVING)
        secret = await memory.remember(f"It is long. {SECRETS[0]}. " * 4)
        collection = await memory.client.get_collection("default", embedding_function=None)
        if replaced:
            text = "Nothing of note."
            vectors = HashedEmbedder().embed([text])
            await collection.update(
                ids=[secret], embeddings=vectors, documents=[text], metadatas=[{WRITING: None}]
            )
        else:
            await collection.delete(ids=[secret])
        receipt = await memory.erase(secret)
        assert (receipt.is_complete, receipt.erased) == (True, int(replaced))
        assert [hit.text for hit in await memory.recall("key")] == [LIVING]
    assert_gone(path)


@pytest.mark.parametrize("way", ["scope", "where", "closed", "doctor"])
@pytest.mark.parametrize("whole", [False, True])
async def test_chunks_that_no_memory_has_any_more(tmp_path, way, whole):
    """Another program has deleted the long memory, or all of its namespace: whatever is erased, its chunks are in no file."""
    path = tmp_path / "db"
    long = " ".join(f"{number} {SECRETS[0]}. " * 4 for number in range(30))
    async with aiochroma.Memory(path, embedder=HashedEmbedder(), split_chars=60) as memory:
        await memory.remember(
            LIVING + " It is the second mat, the red one. " * 4, scope="ada", namespace="kept"
        )
        secret = await memory.remember(long, scope="ada", namespace="gone")
        if whole:
            await memory.client.delete_collection("gone")
        else:
            collection = await memory.client.get_collection("gone", embedding_function=None)
            await collection.delete(ids=[secret])
        chunks = await memory.client.get_collection(chunks_name("gone"), embedding_function=None)
        held = await chunks.get(include=["embeddings"])
        assert len(held["ids"]) > 64
        if way == "scope":
            receipt = await memory.erase(scope="ada", namespace="elsewhere")
        elif way == "where":
            receipt = await memory.erase(where={"kind": "note"})
    if way == "closed":
        receipt = await aiochroma.erase(path)
    elif way == "doctor":
        report = await aiochroma.doctor(path, erase=True)
        assert report.exit_code == 0
    if way != "doctor":
        assert (receipt.is_complete, receipt.chunks) == (True, len(held["ids"])), receipt
    assert_gone(path)
    assert [holds(path, row.astype("<f4").tobytes()) for row in held["embeddings"][:3]] == [[], [], []]
    assert preflight(path, thorough=True).problems == ()
    async with aiochroma.Memory(path, embedder=HashedEmbedder(), split_chars=60) as memory:
        (hit,) = await memory.recall("the second red mat", namespaces="kept")
        assert hit.passage is not None
        await memory.remember(LIVING * 9, namespace="gone")
        assert [hit.text for hit in await memory.recall("key", namespaces="gone")] == [LIVING * 9]


@pytest.mark.parametrize("way", ["memory", "closed", "erase", "vacuum"])
@pytest.mark.parametrize("durable", [True, None])
async def test_what_another_program_deleted_leaves_our_index(tmp_path, way, durable):
    """Our index has not followed that, and its namespace is not used any more: neither it nor a recall has the text."""
    path = tmp_path / "db"
    async with aiochroma.Memory(path, embedder=HashedEmbedder(), durable=durable) as memory:
        await memory.remember(LIVING)
        ids = await memory.remember_many([SECRETS[0], SECRETS[1]], namespace="gone")
        await memory.recall("bank pin", namespaces="gone")
    program = f"""
import chromadb
collection = chromadb.PersistentClient({str(path)!r}).get_collection("gone", embedding_function=None)
vector = collection.get(ids=[{ids[0]!r}], include=["embeddings"])["embeddings"][0]
collection.delete(ids=[{ids[0]!r}])
collection.update(ids=[{ids[1]!r}], embeddings=[vector], documents=["something else"])
collection.upsert(ids=["new"], embeddings=[vector], documents=["something new"])
"""
    printed_by("-c", program)
    if way == "memory":
        async with aiochroma.Memory(path, embedder=HashedEmbedder(), durable=durable) as memory:
            await memory.erase(namespace="nowhere")
    elif way == "closed":
        receipt = await aiochroma.erase(path, texts=SECRETS)
        assert receipt.is_complete, receipt.found
    else:
        await aiochroma.doctor(path, **{way: True})
    assert_gone(path)
    async with aiochroma.Memory(path, embedder=HashedEmbedder(), durable=durable) as memory:
        assert [hit.text for hit in await memory.recall("key", namespaces="default")] == [LIVING]
        found = {hit.text for hit in await memory.recall("bank pin", namespaces="gone", k=9)}
        assert found == {"something else", "something new"}
        assert await memory.count("gone") == 2


async def test_what_another_memory_says_too_is_not_looked_for(tmp_path):
    """Neither the text nor its vector, which is the same: the receipt says so, and is complete; nothing of the other is lost."""
    path = tmp_path / "db"
    long = " ".join(f"{number} is a number of note. " * 3 for number in range(8))
    async with aiochroma.Memory(path, embedder=HashedEmbedder(), split_chars=60) as memory:
        for text in (SECRETS[0], long):
            for namespace in ("one", "two"):
                await memory.remember(text, id=f"id of {text[:5]}", namespace=namespace)
            receipt = await memory.erase(f"id of {text[:5]}", namespace="one")
            assert receipt.is_complete, receipt.found
            assert receipt.shared == receipt.texts >= 1
            (hit,) = await memory.recall(text[:60], namespaces="two", k=1)
            assert hit.text == text


async def test_a_long_text_that_is_remembered_while_its_chunks_are_erased_is_whole(tmp_path, monkeypatch):
    """Its chunks come first, and belong to no memory until it is there; it is written again with both."""
    path = tmp_path / "db"
    async with aiochroma.Memory(path, embedder=HashedEmbedder(), split_chars=60) as memory:
        await memory.remember(LIVING)
        submit, receipts = Session.submit, []

        async def erasing_before(session, operation, **arguments):
            if operation in ("remember", "change_memories") and len(receipts) < 2:
                receipts.append(await erase_traces(session, erased=0, texts=[], vectors=[], history=None))
            return await submit(session, operation, **arguments)

        monkeypatch.setattr(Session, "submit", erasing_before)
        id = await memory.remember("A very long story. " * 30)
        await memory.update(id, text="Another long story, of a mat. " * 30)
        assert [receipt.chunks > 1 for receipt in receipts] == [True, True]
        held = await (await memory.client.get_collection("default", embedding_function=None)).get(ids=[id])
        chunks = await memory.client.get_collection(chunks_name("default"), embedding_function=None)
        assert await chunks.count() == held["metadatas"][0][CHUNKS] > 1


async def test_a_damaged_or_open_database_is_refused(tmp_path):
    """Nothing is erased where vectors are nowhere, for what is set aside may hold them, or where somebody has it open."""
    path = tmp_path / "db"
    vectors = np.random.default_rng(3).standard_normal((120, 16)).astype("float32")
    await fill(path, vectors, durable=None, space="l2")
    async with aiochroma.AsyncPersistentClient(path):
        with pytest.raises(aiochroma.DatabaseInUseError):
            await aiochroma.erase(path)
    broken = next(path.glob("*/index_metadata.pickle"))
    broken.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(aiochroma.DatabaseCorruptError, match="doctor"):
            await aiochroma.erase(path)
    assert holds(path, vectors[5].tobytes()) == ["data_level0.bin"]
    with pytest.raises(aiochroma.DatabasePathError):
        await aiochroma.erase(tmp_path / "nowhere")


@pytest.mark.parametrize("way", ["memory", "closed"])
@pytest.mark.parametrize("durable", [True, None])
async def test_ids_leave_as_well(tmp_path, way, durable):
    """An address, say: of Chroma's id map, log and tables, and of ours; only the history of a closed one keeps it, as it says."""
    path, address = tmp_path / "db", "ada.lovelace@example.org"
    vectors = np.random.default_rng(3).standard_normal((120, 16)).astype("float32")
    await fill(path, vectors, durable=durable, space="l2")
    async with aiochroma.Memory(
        path, embedder=HashedEmbedder(), durable=durable, history=True, split_chars=60
    ) as memory:
        await memory.remember("It is a long text of hers. " * 30, id=address, thread=f"of {address}")
        await memory.remember_many([f"An ordinary memory of number {n}." for n in range(60)])
        plain = await memory.client.get_collection("main", embedding_function=None)
        await plain.upsert(ids=[address] * 1, embeddings=vectors[:1])
        await plain.upsert(ids=[f"s{n}" for n in range(60)], embeddings=vectors[:60])
        assert len(holds(path, address.encode())) >= 2
        await plain.delete(ids=[address])
        if way == "memory":
            receipt = await memory.erase(address)
        else:
            await memory.forget(address)
            receipt = await memory.erase("nobody")
        assert receipt.entries_kept == 0
    if way == "closed":
        assert (await aiochroma.erase(path)).entries_kept == 62
    assert holds(path, address.encode()) == ([] if way == "memory" else ["aiochroma-history.sqlite3"])
    assert preflight(path, thorough=True).problems == ()


_KILLED_WHILE_ERASING = """
import os, signal, sys, aiochroma.sync
from aiochroma.disk import erasing

def killed(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(erasing, sys.argv[2], killed)
aiochroma.sync.erase(sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    "moment", ["unit_forms", "write_id_map", "flush", "_scrub_log", "compact", "_remove", "scrub_own_files"]
)
@pytest.mark.parametrize("way", ["erase", "doctor"])
async def test_an_erasure_that_was_killed_is_run_again(tmp_path, moment, way):
    """What it had begun to take out of an index is mended before; then the bytes are gone, and all that lives is there."""
    path = tmp_path / "db"
    vectors = np.random.default_rng(3).standard_normal((120, 16)).astype("float32")
    await fill(path, vectors, durable=None, space="cosine")
    (path / str(uuid.uuid4())).mkdir()
    (path / "aiochroma-notes.sqlite3").touch()
    async with aiochroma.AsyncPersistentClient(path) as client:
        collection = await client.get_collection("main", embedding_function=None)
        await collection.delete(ids=["r40", "r41", "r42"])
    before = await contents(path)
    command = [sys.executable, "-c", _KILLED_WHILE_ERASING, str(path), moment]
    assert subprocess.run(command, timeout=PATIENCE, check=False).returncode == -signal.SIGKILL
    if way == "erase":
        assert (await aiochroma.erase(path, texts=["document r40"])).is_complete
    else:
        assert (await aiochroma.doctor(path, erase=True)).exit_code == 0
    assert holds(path, b"document r40") == []
    held = np.frombuffer(next(path.glob("*/data_level0.bin")).read_bytes(), dtype="<f4")
    windows = np.lib.stride_tricks.sliding_window_view(held, 16)
    assert np.abs(windows - vectors[40] / np.linalg.norm(vectors[40])).max(axis=1).min() > 1e-3
    after = await contents(path)
    assert after.keys() == before.keys()
    for id, (vector, text) in before.items():
        assert after[id][1] == text
        np.testing.assert_allclose(after[id][0], vector, rtol=1e-5)
    assert preflight(path, thorough=True).problems == ()


_KILLED_WHILE_A_MEMORY_ERASES = """
import asyncio, os, signal, sys, aiochroma
from aiochroma.backend import embedded
from aiochroma.embedding.words import HashedEmbedder

def killed(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with aiochroma.Memory(sys.argv[1], embedder=HashedEmbedder(), history=True) as memory:
        await memory.update(sys.argv[2], metadata={"seen": 1})
        embedded.scrub = killed
        await memory.erase(where={"kind": "secret"})

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
async def test_a_filter_that_finds_nothing_any_more_still_erases_after_a_kill(tmp_path):
    """Its memories are gone, and what the history has of them would not be found by it: that goes with them, or before."""
    path = tmp_path / "db"
    async with aiochroma.Memory(path, embedder=HashedEmbedder(), history=True) as memory:
        await memory.remember(LIVING, id="living")
        await memory.remember(SECRETS[0], metadata={"kind": "secret"}, id="secret")
    command = [sys.executable, "-c", _KILLED_WHILE_A_MEMORY_ERASES, str(path), "secret"]
    assert subprocess.run(command, timeout=PATIENCE, check=False).returncode == -signal.SIGKILL
    async with aiochroma.Memory(path, embedder=HashedEmbedder(), history=True) as memory:
        assert (await memory.erase(where={"kind": "secret"})).is_complete
        assert [change.id for change in await memory.history()] == ["living"]
        assert (await memory.get("living")).text == LIVING
    assert_gone(path)


async def test_the_log_holds_no_text_after_an_erasure(tmp_path):
    """One entry for each living record, its vector, and nothing else."""
    path = tmp_path / "db"
    await live_and_forget(path)
    await aiochroma.erase(path)
    connection = sqlite3.connect(path / "chroma.sqlite3")
    try:
        rows = connection.execute(
            "SELECT id, operation, metadata FROM embeddings_queue WHERE vector IS NOT NULL"
        ).fetchall()
        live = connection.execute("SELECT count(*) FROM embeddings").fetchone()[0]
    finally:
        connection.close()
    assert len(rows) == len({row[0] for row in rows}) == live
    assert {row[2] for row in rows} == {None}


async def test_doctor_erases_and_gives_room_back(tmp_path):
    """`vacuum` takes what is dead out of the log and keeps the history; `erase` takes the history's texts as well."""
    path = tmp_path / "db"
    await live_and_forget(path)
    await aiochroma.doctor(path, vacuum=True)
    with contextlib.closing(sqlite3.connect(path / "chroma.sqlite3")) as connection:
        assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
    assert holds(path, SECRETS[0].encode()) == ["aiochroma-history.sqlite3"]
    report = await aiochroma.doctor(path, erase=True)
    assert report.exit_code == 0
    assert report.saved_to is None
    assert_gone(path)
