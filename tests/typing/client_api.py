"""What people write with clients: type checkers accept it, and know every type in it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import chromadb
from chromadb.api.types import GetResult, QueryResult
from typing_extensions import assert_type

import aiochroma
from aiochroma import sync
from aiochroma.client.client import BlockingClient
from aiochroma.client.maintenance import Health

VECTORS: list[Sequence[float] | Sequence[int]] = [[1.0, 2.0]]


async def a_client() -> int:
    """Open, write, read, look after it, close."""
    async with aiochroma.AsyncPersistentClient(
        "./chroma", timeout=2.0, when_full="raise", durable=True
    ) as client:
        assert_type(client, aiochroma.AsyncClient)
        collection = await client.get_or_create_collection("notes", embedding_function=None)
        assert_type(collection, aiochroma.Collection)
        await collection.upsert(ids=["a"], embeddings=VECTORS, metadatas=[{"n": 1}])
        assert_type(await collection.query(query_embeddings=VECTORS), QueryResult)
        assert_type(await collection.get(ids=["a"]), GetResult)
        assert_type(await client.list_collections(), Sequence[aiochroma.Collection])
        assert_type(await client.health(), Health)
        report = await client.backup(
            "./backups", keep=3, progress=lambda stage, done, of: print(stage, done, of)
        )
        assert_type(report, aiochroma.BackupReport)
        assert_type(client.stats(), aiochroma.Stats)
        return await collection.count()


async def several_on_one_opening() -> None:
    """An opening may be awaited and entered any number of times."""
    opening = aiochroma.connect(mode="http", host="chroma", port=8000, connections=8, auth_token="token")
    client = await opening
    assert_type(client, aiochroma.AsyncClient)
    async with opening as other:
        assert_type(other, aiochroma.AsyncClient)
    await client.close()


def a_script() -> int:
    """The same without an event loop."""
    with sync.PersistentClient("./chroma", timeout=2.0) as client:
        assert_type(client, BlockingClient)
        collection: chromadb.Collection = client.get_or_create_collection("notes", embedding_function=None)
        collection.add(ids=["a"], embeddings=VECTORS)
        assert_type(collection.get(ids=["a"]), GetResult)
        assert_type(client.health(), Health)
        assert_type(client.backup("./backup"), aiochroma.BackupReport)
        client.reset_connection()
        return collection.count()


async def what_goes_wrong(client: aiochroma.AsyncClient) -> str:
    """Errors say what they know in typed fields."""
    try:
        with aiochroma.deadline(0.5):
            await client.heartbeat()
    except aiochroma.DeadlineExceededError as error:
        assert_type(error.started, bool)
    except aiochroma.PartialWriteError as error:
        assert_type(error.applied, tuple[str, ...])
        assert_type(error.remaining, tuple[str, ...])
    except aiochroma.DatabaseCorruptError as error:
        assert_type(error.problems, tuple[str, ...])
    except aiochroma.DatabaseInUseError as error:
        assert_type(error.pid, int | None)
    except aiochroma.StoreUnavailableError as error:
        return str(error)
    return "fine"


if __name__ == "__main__":
    asyncio.run(a_client())
