"""Erasing a person: what they said is in no file of the directory, and what others said stays."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing

import pytest

import aiochroma
from aiochroma import InvalidInputError
from aiochroma.embedding.words import HashedEmbedder


def files_with(path, text):
    """Return the files below a directory that hold a text."""
    return [file.name for file in path.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


async def test_a_person_is_erased_from_every_file(path, embedder):
    """After it texts, former texts and history of the scope are in no file, in any namespace; others are whole."""
    async with aiochroma.Memory(path, embedder=embedder, history=True) as memory:
        secret = "The passport number of Kim is X1234567."
        id = await memory.remember(secret, scope=("acme", "kim"), namespace="a")
        await memory.update(id, namespace="a", text="Kim has no passport any more, and Y7654321 is void.")
        await memory.remember_messages(
            [{"role": "user", "content": "My cat is called Zanzibarita."}], scope=("acme", "kim"), thread="t"
        )
        await memory.remember("My dog is called Bramblewick.", scope=("acme", "ben"))
        receipt = await memory.erase(scope=("acme", "kim"))
        assert (receipt.erased, receipt.found) == (2, ())
        for text in ("X1234567", "Y7654321", "Zanzibarita"):
            assert files_with(path, text) == []
        assert [hit.text for hit in await memory.recall("pets")] == ["My dog is called Bramblewick."]
        assert await memory.history(id, namespace="a") == []
    for text in ("X1234567", "Y7654321", "Zanzibarita"):
        assert files_with(path, text) == []
    assert files_with(path, "Bramblewick")


async def test_the_history_of_the_memorys_own_database_is_erased(path, embedder):
    """In a database other than Chroma's default one, too; another database's entry of the same id stays."""
    async with aiochroma.AsyncPersistentClient(path) as client:
        for name in ("one", "two"):
            await client.admin.create_database(name)
    for name in ("one", "two"):
        async with (
            aiochroma.AsyncPersistentClient(path, database=name) as client,
            aiochroma.Memory(client=client, embedder=embedder, history=True) as memory,
        ):
            await memory.remember(f"The word is Floccinaucini in {name}.", id="same")
            await memory.update("same", text="There is no word.")
    async with (
        aiochroma.AsyncPersistentClient(path, database="one") as client,
        aiochroma.Memory(client=client, embedder=embedder, history=True) as memory,
    ):
        assert await memory.history("same")
        receipt = await memory.erase("same")
        assert (receipt.erased, receipt.found) == (1, ())
        assert await memory.history("same") == []
    assert files_with(path, "Floccinaucini in one") == []
    async with (
        aiochroma.AsyncPersistentClient(path, database="two") as client,
        aiochroma.Memory(client=client, embedder=embedder, history=True) as memory,
    ):
        assert await memory.history("same")


@pytest.mark.parametrize("way", ["forget", "erase"])
async def test_a_conversation_is_forgotten_and_no_other(memory, way):
    """A thread names its own memories alone: neither those of another nor those without one, nor another scope's of that name."""
    for scope in ("ada", "ben"):
        for thread in ("t", "u"):
            await memory.remember(f"{scope} in {thread}", scope=scope, thread=thread)
    await memory.remember("in no thread", scope="ada")
    await getattr(memory, way)(scope="ada", thread="t")
    assert {hit.text for hit in await memory.list()} == {"ada in u", "ben in t", "ben in u", "in no thread"}
    await getattr(memory, way)(thread="u")
    assert {hit.text for hit in await memory.list()} == {"ben in t", "in no thread"}


@pytest.mark.parametrize(
    ("chosen", "whole"),
    [
        ({"id": "secret", "namespace": "n"}, False),
        ({"id": "secret", "namespace": "n"}, True),
        ({"scope": "acme"}, False),
        ({"scope": ("acme", "kim")}, True),
        ({"thread": "t", "namespace": "n"}, False),
        ({"scope": "acme", "thread": "t", "namespace": "n"}, True),
        ({"namespace": "n"}, False),
        ({"namespace": "n"}, True),
    ],
)
async def test_what_was_forgotten_before_leaves_the_history(path, embedder, chosen, whole):
    """Whoever forgets first and erases then finds the text in no file, even if its namespace is gone; others' entries stay."""
    async with aiochroma.Memory(path, embedder=embedder, history=True) as memory:
        secret = {
            "text": "The word is Floccinaucini.",
            "id": "secret",
            "scope": ("acme", "kim"),
            "thread": "t",
        }
        await memory.remember_many([secret], namespace="n")
        for scope in ("ben", ("beta", "acme")):
            await memory.remember("A dog called Bramblewick.", id="other", scope=scope, thread="u")
            await memory.update("other", text="A cat.")
        if whole:
            await memory.forget_namespace("n")
        else:
            await memory.remember("something else", namespace="n")
            await memory.forget("secret", namespace="n")
        assert files_with(path, "Floccinaucini")
        receipt = await memory.erase(**chosen)
        assert receipt.is_complete
        assert files_with(path, "Floccinaucini") == []
        assert not any(change.text for change in await memory.history("secret", namespace="n"))
        assert "A dog called Bramblewick." in [change.text for change in await memory.history("other")]


async def test_a_damaged_entry_of_the_history_keeps_nothing_from_being_erased(path, embedder):
    """What it has noted cannot be told; every other entry of the scope goes."""
    async with aiochroma.Memory(path, embedder=embedder, history=True) as memory:
        for id in ("damaged", "sound"):
            await memory.remember(f"The word is Floccinaucini, {id}.", id=id, scope="kim")
            await memory.forget(id)
    with closing(sqlite3.connect(path / "aiochroma-history.sqlite3")) as file, file:
        file.execute("UPDATE changes SET metadata = '{' WHERE id = 'damaged' AND text IS NOT NULL")
    async with aiochroma.Memory(path, embedder=embedder, history=True) as memory:
        await memory.remember("something else", scope="kim")
        await memory.erase(scope="kim")
    assert files_with(path, "Floccinaucini, sound") == []


async def test_a_namespace_is_erased(memory, path):
    """A namespace alone is erased as a whole."""
    await memory.remember_many(["The code is Quizzaciously.", "another fact"], namespace="secrets")
    receipt = await memory.erase(namespace="secrets")
    assert (receipt.erased, receipt.found) == (2, ())
    assert await memory.namespaces() == []
    assert files_with(path, "Quizzaciously") == []


async def test_what_is_to_be_erased_has_to_be_said(memory):
    """Nothing, or an id together with something else, is refused, and nothing is erased."""
    id = await memory.remember("fact")
    for arguments in ({}, {"id": id, "scope": "kim"}, {"where": {"a": None}}):
        with pytest.raises(InvalidInputError):
            await memory.erase(**arguments)
    assert await memory.count() == 1


_MANY = 4200
"""More than the number of memories from which on a namespace is deleted by a child."""

_FORGETS = """
import asyncio, sys
import aiochroma
from aiochroma.embedding.words import HashedEmbedder

async def main():
    async with aiochroma.Memory(sys.argv[1], embedder=HashedEmbedder(), process="this") as memory:
        print("begins", flush=True)
        await memory.forget_namespace("large")

asyncio.run(main())
"""


def _records(path):
    """Return how many records SQLite has of each collection."""
    with closing(sqlite3.connect(f"file:{path / 'chroma.sqlite3'}?mode=ro", uri=True)) as connection:
        return dict(
            connection.execute(
                "SELECT c.name, count(e.id) FROM collections AS c"
                " JOIN segments AS s ON s.collection = c.id AND s.scope = 'METADATA'"
                " LEFT JOIN embeddings AS e ON e.segment_id = s.id GROUP BY c.name"
            )
        )


async def _filled(path):
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        await memory.remember_many((f"note {n}" for n in range(_MANY)), namespace="large")
        await memory.remember("The harbour is old.", namespace="small")


@pytest.mark.parametrize(
    "can_start",
    [
        pytest.param(True, id="by a child"),
        # A host could not be started either.
        pytest.param(False, id="no child can be started", marks=pytest.mark.this_process),
    ],
)
async def test_a_large_namespace_is_gone_at_once(path, monkeypatch, can_start):
    """Its name is free while its records are still being deleted; what others have stays; nothing is left in the end."""
    await _filled(path)
    if not can_start:
        monkeypatch.setenv("AIOCHROMA_PYTHON", str(path / "none"))
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        forgetting = asyncio.ensure_future(memory.forget_namespace("large"))
        while "large" in await memory.namespaces():
            await asyncio.sleep(0)
        assert not forgetting.done()
        assert not await memory.recall("note 3", namespaces="large")
        await memory.remember("note 3 is another one", namespace="large")
        assert await forgetting == _MANY
        found = await memory.recall("note 3")
        assert {hit.text for hit in found} <= {"note 3 is another one", "The harbour is old."}
        assert found[0].text == "note 3 is another one"
    assert _records(path) == {"large": 1, "small": 1}
    report = await aiochroma.doctor(path)
    assert report.exit_code == 0
    # Without a child it cannot be told which they are.
    assert not (can_start and report.orphaned_directories)


async def test_a_forgetting_that_was_killed_goes_on(path):
    """The namespace stays forgotten; what is remembered under its name since stays, when the next sweep takes the rest away."""
    await _filled(path)
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _FORGETS, str(path)), stdout=asyncio.subprocess.PIPE
    )
    assert await killed.stdout.readline() == b"begins\n"
    while max(left := _records(path).values()) == _MANY:
        await asyncio.sleep(0.01)
    killed.kill()
    await killed.wait()
    assert max(left) > 0
    assert (await aiochroma.doctor(path)).exit_code == 0
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        assert memory.client.recovery.collections == ()
        assert await memory.namespaces() == ["small"]
        await memory.remember("note 3 is another one", namespace="large")
        assert len(_records(path)) == 3
        await memory.sweep()
        assert [hit.text for hit in await memory.recall("note 3", namespaces="large")] == [
            "note 3 is another one"
        ]
    assert _records(path) == {"large": 1, "small": 1}
