"""Closing a client: at once, once, shared, awaited or not."""

from __future__ import annotations

import asyncio
import gc

import pytest
from programs import PATIENCE, serving_threads, until

import aiochroma
from aiochroma.client.session import LazyClient
from aiochroma.disk.layout import index_directories


async def test_thread_is_gone_when_aclose_returns(tmp_path):
    """The thread has ended, and the files are closed, when the await returns."""
    client = await aiochroma.AsyncPersistentClient(tmp_path)
    (thread,) = serving_threads()
    await client.aclose()
    assert not thread.is_alive()
    assert client.closed


async def test_close_without_await(tmp_path, vectors):
    """A plain `close()` begins at once and need not be awaited; awaited it ends with the thread."""
    client = await aiochroma.AsyncPersistentClient(tmp_path)
    collection = await client.create_collection("things", embedding_function=None)
    pending = asyncio.ensure_future(collection.add(ids=["a"], embeddings=vectors(1)))
    await asyncio.sleep(0)
    closing = client.close()
    assert client.closed
    with pytest.raises(aiochroma.ClosedError):
        await collection.count()
    await pending
    await closing
    assert serving_threads() == []


async def test_close_twice(tmp_path):
    """Closing again, in any way, changes nothing."""
    client = await aiochroma.AsyncPersistentClient(tmp_path)
    await asyncio.gather(*(client.aclose() for _ in range(10)))
    client.close()
    await client.close()
    await client.aclose()
    with pytest.raises(aiochroma.ClosedError):
        await client.heartbeat()


async def test_closing_one_client_leaves_the_others(tmp_path):
    """Clients are counted: the database stays open for those who have not closed."""
    one = await aiochroma.AsyncPersistentClient(tmp_path)
    two = await aiochroma.AsyncPersistentClient(tmp_path)
    await one.aclose()
    await one.aclose()
    assert await two.list_collections() == []
    with pytest.raises(aiochroma.ClosedError, match="client"):
        await one.list_collections()
    await two.aclose()
    assert serving_threads() == []


async def test_use_after_close(tmp_path, vectors):
    """Everything of a closed client says that it is closed; embedding is not even begun."""
    embedded = []

    def embed(texts):
        embedded.append(texts)
        return vectors(len(texts))

    client = await aiochroma.AsyncPersistentClient(tmp_path)
    collection = await client.create_collection("things", embedding_function=embed)
    await client.aclose()
    for attempt in (
        client.list_collections,
        client.heartbeat,
        collection.count,
        lambda: collection.add(ids=["a"], documents=["x"]),
        lambda: client.admin.create_tenant("x"),
    ):
        with pytest.raises(aiochroma.ClosedError, match="closed"):
            await attempt()
    assert embedded == []


async def test_reopen_refused(tmp_path):
    """A closed client cannot be entered again; a new one can be opened."""
    client = await aiochroma.AsyncPersistentClient(tmp_path)
    await client.aclose()
    with pytest.raises(aiochroma.ClosedError, match="closed"):
        async with client:
            pass
    opening = aiochroma.AsyncPersistentClient(tmp_path)
    for _ in range(2):
        async with opening as again:
            assert await again.list_collections() == []
    async with opening as outer, opening as inner:
        assert outer is not inner
    assert outer.closed
    assert inner.closed


async def test_rapid_restarts(tmp_path, vectors):
    """Closed and opened again at once, many times, nothing is lost and never two have it open."""
    for number in range(10):
        client = await aiochroma.AsyncPersistentClient(tmp_path)
        collection = await client.get_or_create_collection("things", embedding_function=None)
        await collection.add(ids=[f"id{number}"], embeddings=vectors(1))
        client.close()
    async with aiochroma.AsyncPersistentClient(tmp_path) as client:
        collection = await client.get_collection("things", embedding_function=None)
        assert await collection.count() == 10
        assert len(serving_threads()) == 1


async def test_collected_without_close_warns_and_stops(tmp_path):
    """A forgotten client warns and its thread ends; as long as one of its collections is used it stays open."""
    client = await aiochroma.AsyncPersistentClient(tmp_path)
    collection = await client.create_collection("things", embedding_function=None)
    (thread,) = serving_threads()
    del client
    gc.collect()
    assert await collection.count() == 0
    held = [collection]
    del collection
    with pytest.warns(ResourceWarning, match="not closed"):
        held.clear()
    await asyncio.to_thread(thread.join, PATIENCE)
    assert not thread.is_alive()


async def test_close_from_a_plain_thread(tmp_path):
    """`close().wait()` blocks until the end, where no event loop runs; where one runs it is refused."""
    client = await aiochroma.AsyncPersistentClient(tmp_path)
    with pytest.raises(aiochroma.BlockingCallError, match="event loop"):
        client.close().wait()
    assert await asyncio.to_thread(client.close().wait, PATIENCE) is True
    assert serving_threads() == []


async def test_clear_system_cache_closes_everything(tmp_path):
    """As in Chroma's tests: afterwards the next client opens anew."""
    client = await aiochroma.AsyncPersistentClient(tmp_path)
    aiochroma.AsyncClient.clear_system_cache()
    async with aiochroma.AsyncPersistentClient(tmp_path) as again:
        assert await again.list_collections() == []
    await client.aclose()


async def test_an_error_in_the_block_is_not_hidden(tmp_path):
    """Leaving the block with an error closes, and passes the error on."""
    with pytest.raises(KeyError, match="mine"):
        async with aiochroma.AsyncPersistentClient(tmp_path):
            raise KeyError("mine")
    assert serving_threads() == []


async def test_deadlines_and_cancellation_reach_chroma(tmp_path, collection, client):
    """The client's time-out and a `deadline` block hold for calls into Chroma."""
    with aiochroma.deadline(0), pytest.raises(aiochroma.DeadlineExceededError) as caught:
        await collection.count()
    assert caught.value.started in {False, True}
    task = asyncio.ensure_future(collection.count())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await collection.count() == 0


async def test_a_lazy_client_that_is_closed_while_it_opens_stays_closed(tmp_path):
    """Neither the client nor its thread is left behind, and it may be opened again."""
    lazy = LazyClient(tmp_path)
    opening = asyncio.ensure_future(lazy.open())
    await asyncio.sleep(0)
    await lazy.close()
    with pytest.raises(aiochroma.ClosedError, match="while its client was opening"):
        await opening
    assert serving_threads() == []
    again = await lazy.open()
    await lazy.close()
    assert again.closed


async def test_a_lazy_client_that_is_closed_during_a_look_up_forgets_what_it_found(tmp_path):
    """Opened again, it looks the collection up with the new client."""
    lazy = LazyClient(tmp_path)
    await lazy.make_collection("notes", None)

    async def closed_meanwhile(_):
        await lazy.close()

    def count(collection):
        return collection.count()

    with pytest.raises(aiochroma.ClosedError):
        await lazy.on_collection("notes", count, absent=None, check=closed_meanwhile)
    assert await lazy.on_collection("notes", count, absent=None) == 0
    await lazy.close()


@pytest.mark.parametrize("process", ["this", "shared"])
async def test_a_deleted_collection_takes_its_index_along(tmp_path, process):
    """Chroma leaves the files of a deleted collection's index; what belonged to nobody before is left to `doctor`."""
    path = tmp_path / "store"
    stranger = path / "0b6e5a0e-6f0e-4d5e-9d3a-1c1f6f9b2a11"

    def indexes():
        return {name for name in index_directories(path) if name != stranger.name}

    async with aiochroma.AsyncPersistentClient(path, process=process, host_idle=0) as client:
        await client.get_or_create_collection("first")
        stranger.mkdir()
        hnsw = {"hnsw": {"sync_threshold": 4, "batch_size": 4}}
        for name in ("kept", "dropped"):
            collection = await client.create_collection(name, configuration=hnsw)
            await collection.add(ids=[str(number) for number in range(9)], embeddings=[[0.1, 0.2]] * 9)
            await collection.query(query_embeddings=[[0.1, 0.2]], n_results=1)
        assert len(indexes()) == 2
        await client.delete_collection("dropped")
    until(lambda: len(indexes()) == 1, "its index is gone")
    assert stranger.is_dir()
    async with aiochroma.AsyncPersistentClient(path, process=process, host_idle=0) as client:
        assert len((await (await client.get_collection("kept")).get())["ids"]) == 9
