"""A memory as plain functions for a language model."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import typing

import pytest

import aiochroma
from aiochroma import sync
from aiochroma.tools import memory_tools


async def test_the_tools(tmp_path):
    """Remembering, recalling, listing and forgetting, with plain data in and out."""
    async with aiochroma.Memory(tmp_path) as memory:
        tools = {tool.__name__: tool for tool in memory_tools(memory)}
        id = await tools["remember"](
            "The door code is 4711.", namespace="house", metadata={"floor": 2}, days=2
        )
        (found,) = await tools["recall"]("door code")
        assert found == {**found, "id": id, "namespace": "house", "metadata": {"floor": 2}}
        assert len(found["date"]) == 10
        assert await tools["list_namespaces"]() == ["house"]
        assert (await tools["list_memories"]("house"))["memories"] == [found]
        assert await tools["forget"](id, namespace="house") is True
        assert await tools["forget"](id, namespace="house") is False
        assert await tools["recall"]("door code") == []


async def test_a_scope_is_a_wall(tmp_path):
    """What belongs to another scope is neither found nor listed nor forgotten; what lies below is."""
    async with aiochroma.Memory(tmp_path) as memory:
        ada = {tool.__name__: tool for tool in memory_tools(memory, scope=("acme", "ada"))}
        acme = {tool.__name__: tool for tool in memory_tools(memory, scope="acme")}
        await memory.remember("Globex sells pins.", scope="globex")
        bobs = await memory.remember("Bob's PIN is 1234.", scope=("acme", "bob"))
        own = await ada["remember"]("Ada's PIN is 9876.")
        assert [found["id"] for found in await ada["recall"]("PIN", limit=50)] == [own]
        assert await ada["forget"](bobs) is False
        assert {found["id"] for found in await acme["recall"]("PIN", limit=50)} == {own, bobs}
        assert await acme["forget"](bobs) is True
        await memory.remember("Globex hires.", namespace="globex secrets", scope="globex")
        assert await ada["list_namespaces"]() == ["default"]


@pytest.mark.parametrize("limit", [None, "many", float("nan"), [3]])
async def test_a_limit_that_is_none_is_refused_by_name(tmp_path, limit):
    """Some frameworks pass on what the model wrote."""
    async with aiochroma.Memory(tmp_path) as memory:
        tools = {tool.__name__: tool for tool in memory_tools(memory)}
        for call in (tools["recall"]("a text", limit=limit), tools["list_memories"](limit=limit)):
            with pytest.raises(aiochroma.InvalidInputError, match="`limit`"):
                await call


@pytest.mark.parametrize("days", [1e300, float("nan"), float("inf"), -1, "soon"])
async def test_a_time_that_is_none_is_refused_by_name(tmp_path, days):
    """Neither endless, nor a number that is none, nor negative; the model that passed it can read which argument it is."""
    async with aiochroma.Memory(tmp_path) as memory:
        tools = {tool.__name__: tool for tool in memory_tools(memory)}
        with pytest.raises(aiochroma.InvalidInputError, match=r"`days`|`ttl`"):
            await tools["remember"]("a text", days=days)


async def test_a_model_is_told_what_failed(tmp_path):
    """A memory that degrades returns empty results; to a model they would look like answers."""
    program = "import sys, aiochroma.sync; c = aiochroma.sync.PersistentClient(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        await asyncio.to_thread(other.stdout.readline)
        async with aiochroma.Memory(tmp_path, on_failure="degrade") as memory:
            assert (await memory.recall("anything")).error is not None
            tools = {tool.__name__: tool for tool in memory_tools(memory)}
            for name, arguments in (
                ("recall", ["a question"]),
                ("list_memories", []),
                ("list_namespaces", []),
                ("remember", ["a text"]),
                ("forget", ["an id"]),
            ):
                with pytest.raises(aiochroma.DatabaseInUseError):
                    await tools[name](*arguments)
        other.stdin.close()


async def test_without_the_tools_that_change_something(tmp_path):
    """A language model that shall only read gets no other tools; all are typed and described."""
    async with aiochroma.Memory(tmp_path) as memory:
        names = [tool.__name__ for tool in memory_tools(memory, read_only=True)]
        assert names == ["recall", "list_memories", "list_namespaces"]
        for tool in memory_tools(memory):
            hints = typing.get_type_hints(tool)
            assert inspect.iscoroutinefunction(tool)
            assert set(inspect.signature(tool).parameters) | {"return"} == set(hints)
            assert all(f"{name}: " in tool.__doc__ for name in hints if name != "return")


async def test_an_answer_is_bounded(tmp_path):
    """However many a language model asks for, an answer has 50 memories at most, and one at least."""
    async with aiochroma.Memory(tmp_path) as memory:
        await memory.remember_many([f"note {number}" for number in range(60)])
        tools = {tool.__name__: tool for tool in memory_tools(memory)}
        assert len(await tools["recall"]("note", limit=10_000)) == 50
        assert len((await tools["list_memories"](limit=10_000))["memories"]) == 50
        assert len(await tools["recall"]("note", limit=-3)) == 1


async def test_odd_arguments_of_the_tools_are_refused(tmp_path):
    """A blocking memory would fail in the middle of a conversation; so would a scope that is none."""
    async with aiochroma.Memory(tmp_path) as memory:
        for odd in (sync.Memory(tmp_path), None, str(tmp_path)):
            with pytest.raises(aiochroma.InvalidInputError, match=r"aiochroma\.Memory"):
                memory_tools(odd)
        for odd in ("", (), 7, ("a", ""), "\ud800"):
            with pytest.raises(aiochroma.InvalidInputError, match="scope"):
                memory_tools(memory, scope=odd)
        with pytest.raises(aiochroma.InvalidInputError, match="read_only"):
            memory_tools(memory, read_only="no")
