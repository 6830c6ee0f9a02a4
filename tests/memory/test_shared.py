"""A memory whose directory a host serves does what one does that has it open itself."""

from __future__ import annotations

import aiochroma


async def life(path, embedder, process):
    """Do everything that a memory can do, and return what came back."""
    seen = []
    async with aiochroma.Memory(
        path, embedder=embedder, process=process, host_idle=0.5, history=True
    ) as memory:
        messages = [{"role": "user", "content": f"message {number}"} for number in range(5)]
        ids = await memory.remember_messages(messages, thread="t", scope="ada")
        cat = await memory.remember("my cat is called Miso", metadata={"ts": 0.1}, thread=False)
        await memory.remember_many(["one fact", "another fact"], namespace="other")
        recall = await memory.recall("message 3", namespaces="default", k=1, window=1, diversity=0.2)
        seen.append([hit.text for hit in (*recall[0].before, *recall, *recall[0].after)])
        seen.append((await memory.update(cat, metadata={"x": 1, "ts": None})).metadata)
        seen.append((await memory.pin(cat)).pinned)
        seen.append([hit.text for hit in await memory.similar(ids[0], k=2)])
        seen.append([hit.text for hit in await memory.list(thread="t", newest_first=True, limit=2)])
        seen.append([hit.text for hit in await memory.get_many([cat, ids[1]])])
        seen.append([change.action for change in await memory.history(cat)])
        seen.append((await memory.namespaces(), await memory.count(), await memory.sweep()))
        receipt = await memory.erase(cat)
        seen.append((receipt.erased, receipt.found))
        seen.append((await memory.forget(scope="ada"), await memory.forget_namespace("other")))
        seen.append(((await memory.health()).status, await memory.count(), await memory.history(cat)))
    return seen


async def test_a_life_is_the_same_through_a_host(tmp_path, embedder):
    """Every call gives the same, whether the database is open in this process or in its host."""
    alone = await life(tmp_path / "alone", embedder, "this")
    assert await life(tmp_path / "shared", embedder, "shared") == alone
    assert alone[0] == ["message 2", "message 3", "message 4"]
