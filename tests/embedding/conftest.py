"""A client whose collections embed."""

from __future__ import annotations

import pytest

import aiochroma


@pytest.fixture
async def client():
    """A client of a database of its own, in memory."""
    async with aiochroma.AsyncEphemeralClient() as client:
        yield client
