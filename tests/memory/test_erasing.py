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
