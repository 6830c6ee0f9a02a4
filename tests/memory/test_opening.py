"""What a memory is opened with, what it is alone with, and what a program may do with the object."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
import threading

import pytest
from programs import MODE, PATIENCE

import aiochroma
from aiochroma import InvalidInputError, sync
from aiochroma.client.options import EphemeralOptions, PersistentOptions


async def test_two_memories_without_a_path_share_nothing(embedder):
    """Each has its own, and nothing is left of it when it is closed."""
    async with (
        aiochroma.Memory(None, embedder=embedder) as one,
        aiochroma.Memory(None, embedder=embedder) as other,
    ):
        await one.remember("the first bot's secret")
        assert (await one.count(), await other.count()) == (1, 0)
        assert not await other.recall("secret")
    async with aiochroma.Memory(None, embedder=embedder) as memory:
        assert await memory.count() == 0


@pytest.mark.parametrize("durable", [True, False])
async def test_durable_means_what_it_says(path, embedder, durable):
    """False keeps Chroma's log short although the directory was durable before, and True keeps it."""
    async with aiochroma.Memory(path, embedder=embedder, durable=not durable) as memory:
        await memory.remember("fact")
    async with aiochroma.Memory(path, embedder=embedder, durable=durable) as memory:
        await memory.remember("another")
        assert memory.client.session.connection.engine.options.durable is durable


def test_a_memory_takes_the_options_of_its_client():
    """Every option of a client that concerns a memory is an argument of the same name with the same default."""
    arguments = inspect.signature(aiochroma.Memory).parameters
    own = {"path", "durable", "allow_missing_vectors", "tenant", "database", "when_full"}
    for kind in (PersistentOptions, EphemeralOptions):
        for each in dataclasses.fields(kind):
            if each.name not in own:
                assert arguments[each.name].default == each.default, each.name


async def test_a_client_keeps_its_own_options(path, embedder):
    """With a client of its own a memory refuses options that would have no effect."""
    async with aiochroma.AsyncPersistentClient(path) as client:
        for options in ({"timeout": 3.0}, {"max_pending": 5}, {"lock_timeout": 1.0}):
            with pytest.raises(InvalidInputError, match=f"`client`.*{next(iter(options))}"):
                aiochroma.Memory(client=client, embedder=embedder, **options)
        async with aiochroma.Memory(client=client, embedder=embedder) as memory:
            await memory.remember("fact")
        assert not client.closed


def test_a_blocking_client_may_be_given(path, embedder):
    """A blocking memory takes a blocking client, and leaves it open."""
    with sync.PersistentClient(path) as client:
        with sync.Memory(client=client, embedder=embedder) as memory:
            memory.remember("fact")
        assert client.count_collections() == 1


async def test_a_memory_says_where_it_is_and_in_which_state(path, embedder):
    """The representation names path, mode and state."""
    memory = aiochroma.Memory(path, embedder=embedder)
    assert repr(memory) == f"<Memory {str(path)!r}, not open yet>"
    async with memory:
        assert repr(memory) == f"<Memory {str(path)!r}, open, {MODE}>"
    assert repr(memory) == f"<Memory {str(path)!r}, closed>"


@dataclasses.dataclass
class State:
    """What agents carry along."""

    memory: object


async def test_copies_share_the_memory_and_pickling_is_refused(memory):
    """State with a memory inside is copied, and the memory in it is the same; another process gets a clear error."""

    state = State(memory)
    assert copy.deepcopy(state).memory is copy.copy(memory) is dataclasses.asdict(state)["memory"] is memory
    with pytest.raises(InvalidInputError, match="cannot be pickled"):
        pickle.dumps(state)
    blocking = sync.Memory(None)
    assert copy.deepcopy([blocking])[0] is blocking
    with pytest.raises(InvalidInputError, match="cannot be pickled"):
        pickle.dumps(blocking)


async def test_close_is_awaited_by_either_name(path, embedder):
    """``close`` and ``aclose`` do the same, as often as they are called."""
    for close in ("close", "aclose"):
        memory = await aiochroma.Memory(path, embedder=embedder).open()
        await getattr(memory, close)()
        await memory.close()
        with pytest.raises(aiochroma.ClosedError, match="is closed"):
            await memory.count()


def test_without_asyncio_every_call_says_so(path, embedder):
    """A coroutine that no asyncio event loop runs, as under trio, says at once what it needs; also where it would degrade."""
    memory = aiochroma.Memory(path, embedder=embedder, on_failure="degrade")
    for call in (memory.open(), memory.remember("fact"), memory.recall("fact"), memory.close()):
        with pytest.raises(aiochroma.AiochromaError, match="asyncio"):
            call.send(None)
        call.close()


async def test_health_and_backup_are_there(memory, tmp_path):
    """What a client can do for its store, its memory can."""
    await memory.remember("fact")
    state = await memory.health()
    assert (state.status, state.documents) == ("ok", 1)
    assert (await memory.backup(tmp_path / "backup")).records == 1


async def test_a_backup_raises_where_the_memory_degrades(tmp_path):
    """It says what keeps the store from opening, and not that nobody opened it."""
    (tmp_path / "file").write_text("no directory")
    async with aiochroma.Memory(tmp_path / "file", on_failure="degrade") as memory:
        with pytest.raises(aiochroma.DatabasePathError):
            await memory.backup(tmp_path / "backup")
        with pytest.raises(aiochroma.ClosedError, match="health"):
            memory.stats()


def test_an_infinite_timeout_is_none(path, embedder):
    """A limit that no clock can hold is no limit."""
    with sync.Memory(path, embedder=embedder, timeout=float("inf")) as memory:
        assert memory.count() == 0


def test_the_blocking_form_shows_the_same_signatures():
    """What ``help`` and type checkers show of the blocking memory are the arguments of the asynchronous one."""
    for name in ("recall", "list", "remember", "from_env"):
        one, other = (inspect.signature(getattr(kind, name)) for kind in (aiochroma.Memory, sync.Memory))
        assert list(one.parameters.values()) == list(other.parameters.values())
        assert getattr(sync.Memory, name).__doc__ == getattr(aiochroma.Memory, name).__doc__
    one, other = (inspect.signature(kind).parameters for kind in (aiochroma.Memory, sync.Memory))
    assert list(one.values()) == list(other.values())
    assert not asyncio.iscoroutinefunction(sync.Memory.recall)
    assert sys.modules["aiochroma.sync"].Memory is sync.Memory


async def test_a_collection_that_another_tool_renamed(path, embedder):
    """A namespace goes by one name: it is listed, counted, recalled and forgotten under the collection's new one."""
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        await memory.remember("the first lake", namespace="user-kim")
        collection = await memory.client.get_collection("user-kim", embedding_function=None)
        await collection.modify(name="archive-kim")
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        assert await memory.namespaces() == ["archive-kim"]
        assert await memory.count("archive-kim") == 1
        assert len(await memory.recall("lake", namespaces="archive-kim")) == 1
        assert await memory.forget_namespace("archive-kim") == 1
        assert await memory.client.list_collections() == []


@pytest.mark.parametrize("stated", ["a\0b", " ", 7])
async def test_what_a_collection_says_of_its_namespace_is_not_believed(path, embedder, stated):
    """Where that is no namespace's name it goes by the collection's, and every other namespace is there as before."""
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        await memory.remember("the first lake", namespace="mine")
        mine = await memory.client.get_collection("mine", embedding_function=None)
        odd = {**mine.metadata, "aiochroma:namespace": stated}
        await memory.client.create_collection("odd", metadata=odd, embedding_function=None)
        assert await memory.namespaces() == ["mine", "odd"]
        assert len(await memory.recall("lake")) == 1


async def test_vectors_of_another_length_are_another_embedders(path, embedder):
    """Whatever a collection says of its embedder: they are named, not compared, and replaced when asked to."""
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        await memory.remember("the first lake", namespace="mine")
        mine = await memory.client.get_collection("mine", embedding_function=None)
        told = {
            key: value
            for key, value in mine.metadata.items()
            if key in {"aiochroma:embedder", "aiochroma:fingerprint"}
        }
        other = await memory.client.create_collection("other", metadata=told, embedding_function=None)
        await other.add(ids=["a"], embeddings=[[0.5, 0.5, 0.5]], documents=["a lake of another program"])
        with pytest.raises(aiochroma.EmbedderMismatchError, match="3 dimensions"):
            await memory.recall("lake", namespaces="other")
        with pytest.raises(aiochroma.EmbedderMismatchError, match="3 dimensions"):
            await memory.remember("another lake", namespace="other")
        assert [hit.text for hit in await memory.recall("lake")] == ["the first lake"]
        assert (await memory.reembed()).embedded == {"other": 1}
        assert len(await memory.recall("lake")) == 2


async def test_closed_while_it_opens(path, embedder):
    """Whoever closes a memory that is just opening leaves no thread and no lock."""
    memory = aiochroma.Memory(path, embedder=embedder)
    opening = asyncio.ensure_future(memory.open())
    await asyncio.sleep(0)
    await memory.close()
    with pytest.raises(aiochroma.ClosedError, match="closed"):
        await opening
    assert [thread for thread in threading.enumerate() if thread.name.startswith("aiochroma-db")] == []


async def test_the_health_of_a_store_that_does_not_open(tmp_path, embedder):
    """A health check says that the store is unavailable, and why; it raises nothing, whatever the memory does else."""
    file = tmp_path / "file"
    file.write_text("not a directory")
    async with aiochroma.Memory(file, embedder=embedder, on_failure="degrade") as memory:
        state = await memory.health()
        assert (state.status, state.documents) == ("unavailable", None)
        assert "DatabasePathError" in state.error
    with pytest.raises(aiochroma.ClosedError):
        await memory.health()


WITHOUT_NETWORK = """
import asyncio, sys, aiochroma

async def main(path):
    async with aiochroma.Memory(path) as memory:
        await memory.remember_many(["My cat is called Miso.", "Penicillin gives me hives."])
        print((await memory.recall("what is my cat called?"))[0].text)

asyncio.run(main(sys.argv[1]))
"""


def test_nothing_needs_the_network(path):
    """In a process that has none, not even loopback, a memory with its own embedder opens, remembers and recalls."""
    prefix = ["unshare", "--user", "--map-current-user", "--net"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this user may not take a network away here")
    command = [*prefix, sys.executable, "-c", WITHOUT_NETWORK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * PATIENCE)
    assert done.stdout == "My cat is called Miso.\n", done.stderr


async def test_a_collection_that_says_it_was_replaced_is_not_believed(path, embedder):
    """A namespace goes on, and what is not ours is not deleted: only a run of ours that was interrupted leaves such a mark."""
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        kept = await memory.remember("the first lake", namespace="mine")
        mine = await memory.client.get_collection("mine", embedding_function=None)
        await mine.modify(metadata={**mine.metadata, "aiochroma:replaced": "mine"})
        await memory.client.create_collection(
            "theirs", metadata={"aiochroma:replaced": "theirs"}, embedding_function=None
        )
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        assert await memory.count("mine") == 1
        await memory.remember("another lake", namespace="mine")
        assert await memory.export(path.parent / "all.jsonl") == 2
        await memory.reembed()
        assert (await memory.get(kept, namespace="mine")).text == "the first lake"
        assert {each.name for each in await memory.client.list_collections()} == {"mine", "theirs"}
