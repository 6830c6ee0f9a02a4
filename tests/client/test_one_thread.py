"""Every call into Chroma's binding is made by one thread."""

from __future__ import annotations

import asyncio
import threading

import uvloop
from programs import PATIENCE

import aiochroma


async def _mixed_load(path, owner, vectors):
    async with aiochroma.AsyncPersistentClient(path) as client:
        shared = await client.get_or_create_collection("shared", embedding_function=None)
        own = await client.create_collection(
            f"own-{owner}", metadata={"owner": owner}, embedding_function=None
        )
        data = vectors(40, seed=len(owner))
        ids = [f"{owner}-{number}" for number in range(40)]
        await asyncio.gather(
            own.add(ids=ids, embeddings=data),
            *(
                shared.upsert(ids=[id], embeddings=[row], documents=[id])
                for id, row in zip(ids, data, strict=True)
            ),
            *(shared.query(query_embeddings=[row], n_results=3) for row in data),
            *(shared.count() for _ in range(5)),
            client.heartbeat(),
            client.list_collections(),
            client.count_collections(),
        )
        found = await asyncio.gather(*(shared.get(ids=[id]) for id in ids))
        assert [result["documents"] for result in found] == [[id] for id in ids]
        await own.update(ids=ids[:2], metadatas=[{"seen": True}] * 2)
        await own.delete(ids=ids[2:])
        await own.modify(metadata={"owner": "nobody"})
        assert await own.count() == 2
        await own.peek()
        await client.admin.create_tenant(f"tenant-{owner}")
        await client.delete_collection(f"own-{owner}")


async def test_every_call_into_chroma_is_made_by_one_thread(bindings, tmp_path, vectors):
    """Over a mixed load from several event loops and threads Chroma sees one thread, from its opening to its closing."""
    path = tmp_path / "store"
    errors = []

    def on_another_loop(owner, new_loop):
        loop = new_loop()
        try:
            loop.run_until_complete(_mixed_load(path, owner, vectors))
        except BaseException as error:
            errors.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    async with aiochroma.AsyncPersistentClient(path):
        threads = [
            threading.Thread(target=on_another_loop, args=(owner, new_loop))
            for owner, new_loop in (
                ("first", asyncio.new_event_loop),
                ("second", uvloop.new_event_loop),
                ("third", asyncio.new_event_loop),
            )
        ]
        for thread in threads:
            thread.start()
        await _mixed_load(path, "here", vectors)
        for thread in threads:
            await asyncio.to_thread(thread.join, PATIENCE)
    assert errors == []
    assert len(bindings.threads) == 1
    assert threading.get_ident() not in bindings.threads
    assert bindings.names >= {
        "open",
        "close",
        "add",
        "upsert",
        "update",
        "delete",
        "get",
        "query",
        "count",
        "heartbeat",
        "create_collection",
        "get_collection",
        "delete_collection",
        "list_collections",
        "update_collection",
        "create_tenant",
    }


async def test_waiting_requests_are_merged(client, collection, vectors):
    """Requests that wait at the same moment share calls into Chroma, and each gets its own answer."""
    data = vectors(64)
    ids = [f"id{number}" for number in range(64)]
    await collection.add(ids=ids, embeddings=data)
    before = client.stats()
    results = await asyncio.gather(*(collection.query(query_embeddings=[row], n_results=1) for row in data))
    assert [result["ids"] for result in results] == [[[id]] for id in ids]
    after = client.stats()
    assert after.done - before.done == 64
    assert after.calls - before.calls < 64


async def test_stats_add_up(client, collection, vectors):
    """The counters tell what happened to every request, and the times are those of requests."""
    await collection.add(ids=["a"], embeddings=vectors(1))
    stats = client.stats()
    finished = stats.done + stats.failed + stats.cancelled + stats.expired + stats.abandoned
    assert stats.submitted == finished + stats.pending
    assert stats.pending == 0
    assert stats.batches > 0
    assert 0 <= stats.run_ms.p50 <= stats.run_ms.p99 <= stats.run_ms.max
    assert stats.as_dict()["submitted"] == stats.submitted
