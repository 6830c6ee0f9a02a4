"""What people write with a memory: type checkers accept it, and know every type in it."""

from __future__ import annotations

from typing_extensions import assert_type

import aiochroma
from aiochroma import sync


async def a_bot(user: str) -> str:
    """Remember and recall for one of many people."""
    async with aiochroma.Memory("./memory", on_failure="degrade", timeout=2.0) as memory:
        assert_type(await memory.remember("I live in Rome", scope=("acme", user)), aiochroma.Id)
        ids = await memory.remember_messages([{"role": "user", "content": "Hi"}], thread="t", scope=user)
        assert_type(ids, aiochroma.Items[str])
        recall = await memory.recall("where?", scope=user, k=3, limit=5, max_distance="auto", window=2)
        assert_type(recall, aiochroma.Recall)
        for hit in recall:
            assert_type(hit, aiochroma.Hit)
        return recall.as_context(max_tokens=500)


async def looking_up(memory: aiochroma.Memory) -> list[str]:
    """Look memories up, and tell an outage from "there is none"."""
    hit = await memory.get("id")
    assert_type(hit, aiochroma.Hit | None)
    if isinstance(hit, aiochroma.UnavailableHit):
        assert_type(hit.error, BaseException | None)
    if hit:
        assert_type(hit.scope, tuple[str, ...])
    page = await memory.list(thread="t", newest_first=True, limit=20)
    assert_type(page, aiochroma.Page)
    assert_type(page.next, str | None)
    forgotten = await memory.forget(scope=("acme", "user-7"))
    assert_type(forgotten, aiochroma.Count)
    assert_type(await memory.erase(scope=("acme", "user-7")), aiochroma.ErasureReceipt)
    if forgotten.error is not None:
        raise forgotten.error
    return [hit.text async for hit in memory.list("default", after=page.next)]


async def changing(memory: aiochroma.Memory) -> aiochroma.Health:
    """Change memories, and see how the store is."""
    assert_type(await memory.update("id", metadata={"done": None}, ttl=60), aiochroma.Hit | None)
    assert_type(await memory.pin("id"), aiochroma.Hit | None)
    assert_type(await memory.count(), aiochroma.Count)
    assert_type(await memory.history(limit=3), aiochroma.Items[aiochroma.MemoryChange])
    await memory.backup("./backups", keep=3)
    return await memory.health()


def a_script() -> None:
    """The blocking form has the same arguments and gives the same things."""
    with sync.Memory("./memory", lock_timeout=3.0) as memory:
        assert_type(memory.remember("a fact", namespace="personal"), aiochroma.Id)
        assert_type(memory.recall("fact", namespaces={"personal": 3}), aiochroma.Recall)
        assert_type(memory.get("id"), aiochroma.Hit | None)
        assert_type(memory.list(limit=3), aiochroma.Page)
        assert_type(memory.forget("id"), aiochroma.Count)
        assert_type(memory.health(), aiochroma.Health)
    sync.Memory.from_env(mode="persistent", path="./memory", history=True).close()
