"""Erasing a person: what they said is in no file of the directory, and what others said stays."""

from __future__ import annotations

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
