"""Chroma's settings, as Chroma's own tests use them: what was opened may be opened again with what it says of itself."""

from __future__ import annotations

import pytest
from chromadb.config import Settings

import aiochroma


@pytest.mark.parametrize("settings", [None, Settings(allow_reset=True)], ids=["left out", "given"])
async def test_a_client_may_be_opened_with_the_settings_of_another(tmp_path, settings):
    """A second client that is given the first one's `get_settings()` shares its database."""
    async with aiochroma.AsyncPersistentClient(tmp_path, settings) as first:
        await first.create_collection("things", embedding_function=None)
        async with aiochroma.AsyncPersistentClient(tmp_path, first.get_settings()) as second:
            assert await second.count_collections() == 1


async def test_default_settings_agree_with_none():
    """Settings that were left out are Chroma's defaults, in whatever order the clients are opened."""
    for first, second in ((None, Settings()), (Settings(), None)):
        async with (
            aiochroma.AsyncEphemeralClient(first) as one,
            aiochroma.AsyncEphemeralClient(second) as other,
        ):
            await one.create_collection("things", embedding_function=None)
            assert await other.count_collections() == 1
            await one.delete_collection("things")


async def test_other_settings_are_refused_as_chroma_refuses_them():
    """Settings that differ in what counts are a ValueError, as in Chroma."""
    async with aiochroma.AsyncEphemeralClient():
        with pytest.raises(ValueError, match="already exists with different settings"):
            await aiochroma.AsyncEphemeralClient(Settings(allow_reset=True))
