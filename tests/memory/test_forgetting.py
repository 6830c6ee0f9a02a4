"""Erasing a person: what they said is in no file of the directory, and what others said stays."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

import aiochroma
from aiochroma import InvalidInputError


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
