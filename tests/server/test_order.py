"""Merging, order, cancellation and deadlines on a server, with requests held on their way."""

from __future__ import annotations

import asyncio

import orjson
import pytest

import aiochroma


async def in_thread(function, *arguments):
    return await asyncio.to_thread(function, *arguments)


@pytest.fixture
async def through(relay):
    """A client whose requests go through the relay, on a single connection."""
    async with aiochroma.AsyncHttpClient("127.0.0.1", relay.port, connections=1) as opened:
        yield opened


async def filled(client, name, count=50):
    collection = await client.create_collection(name, embedding_function=None)
    await collection.upsert(
        ids=[str(number) for number in range(count)],
        embeddings=[[float(number), 1.0] for number in range(count)],
        documents=[f"document {number}" for number in range(count)],
    )
    return collection


async def test_reads_that_wait_are_merged(through, relay, name):
    """What arrives while the connection is busy becomes one call, and each caller gets its own answer."""
    collection = await filled(through, name)
    relay.hold("query")
    first = asyncio.ensure_future(collection.query(query_embeddings=[[0.0, 1.0]], n_results=1))
    await in_thread(relay.wait_until_held, 1)
    others = [
        asyncio.ensure_future(collection.query(query_embeddings=[[float(number), 1.0]], n_results=1))
        for number in range(40)
    ]
    gets = [asyncio.ensure_future(collection.get(ids=[str(number), "none"])) for number in range(30)]
    counts = [asyncio.ensure_future(collection.count()) for _ in range(20)]
    await asyncio.sleep(0)
    relay.release()
    assert (await first)["ids"] == [["0"]]
    assert [(await other)["ids"] for other in others] == [[[str(number)]] for number in range(40)]
    assert [(await get)["documents"] for get in gets] == [[f"document {number}"] for number in range(30)]
    assert [await count for count in counts] == [50] * 20
    assert (relay.count("query"), relay.count("get"), relay.count("count")) == (2, 1, 1)


async def test_a_failing_member_fails_alone(through, relay, name):
    """If a merged call fails, only the guilty caller gets the error."""
    collection = await filled(through, name)

    def refuse_some(seen):
        bad = seen.operation == "query" and [13.0, 1.0] in orjson.loads(seen.body)["query_embeddings"]
        return (400, {}, b'{"error": "InvalidArgumentError", "message": "thirteen"}') if bad else None

    relay.rule = refuse_some
    relay.hold("count")
    busy = asyncio.ensure_future(collection.count())
    await in_thread(relay.wait_until_held, 1)
    queries = [
        collection.query(query_embeddings=[[float(number), 1.0]], n_results=1) for number in range(10, 16)
    ]
    together = asyncio.gather(*queries, return_exceptions=True)
    await asyncio.sleep(0)
    relay.release()
    outcomes = await together
    await busy
    assert [str(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == ["thirteen"]
    assert [outcome["ids"] for outcome in outcomes if isinstance(outcome, dict)] == [
        [[str(number)]] for number in (10, 11, 12, 14, 15)
    ]


async def test_collections_are_asked_at_the_same_time(relay, name):
    """Calls to different collections are under way at once, as many as there are connections."""
    async with aiochroma.AsyncHttpClient("127.0.0.1", relay.port, connections=3) as client:
        collections = [await filled(client, f"{name}-{place}") for place in range(4)]
        relay.hold("query")
        searches = [
            asyncio.ensure_future(collection.query(query_embeddings=[[1.0, 1.0]], n_results=1))
            for collection in collections
        ]
        await in_thread(relay.wait_until_held, 3)
        assert relay.in_flight == 3
        relay.release()
        assert [(await search)["ids"] for search in searches] == [[["1"]]] * 4


async def test_writes_to_a_collection_keep_their_order(relay, name):
    """Whatever number of connections: writes to one collection are never under way together, and the last one wins."""
    async with aiochroma.AsyncHttpClient("127.0.0.1", relay.port, connections=4) as client:
        collections = [await filled(client, f"{name}-{place}", 3) for place in range(2)]
        writes = [
            asyncio.ensure_future(
                collections[number % 2].upsert(
                    ids=[str(number % 3)], embeddings=[[0.0, 1.0]], documents=[f"write {number}"]
                )
            )
            for number in range(120)
        ]
        await asyncio.gather(*writes)
        for place, collection in enumerate(collections):
            got = await collection.get()
            documents = dict(zip(got["ids"], got["documents"], strict=True))
            last = {str(n % 3): f"write {n}" for n in range(120) if n % 2 == place}
            assert documents == last
    together = {path: most for path, (_, most) in relay.most_in_flight.items() if path.endswith("/upsert")}
    assert set(together.values()) == {1}


async def test_a_finished_write_is_seen(client, name):
    """A write that was awaited is visible to every later read, on whichever connection."""
    collection = await client.create_collection(name, embedding_function=None)
    for number in range(30):
        await collection.upsert(ids=[str(number)], embeddings=[[float(number), 1.0]])
        found = await asyncio.gather(
            *(collection.get(ids=[str(number)]) for _ in range(3)), collection.count()
        )
        assert [one["ids"] for one in found[:3]] == [[str(number)]] * 3
        assert found[3] == number + 1


async def test_a_barrier_waits_and_is_waited_for(relay, name):
    """Deleting a collection starts when everything before it is done, and nothing that came later passes it."""
    async with aiochroma.AsyncHttpClient("127.0.0.1", relay.port, connections=4) as client:
        kept, doomed = await filled(client, f"{name}-kept"), await filled(client, f"{name}-doomed")
        relay.hold("query")
        before = asyncio.ensure_future(doomed.query(query_embeddings=[[1.0, 1.0]], n_results=1))
        await in_thread(relay.wait_until_held, 1)
        deletion = asyncio.ensure_future(client.delete_collection(f"{name}-doomed"))
        after = asyncio.ensure_future(kept.count())
        assert await kept_out(relay, "count")
        relay.release()
        assert (await before)["ids"] == [["1"]]
        await deletion
        assert await after == 50
    order = [seen.method for seen in relay.seen if seen.method == "DELETE" or seen.operation == "count"]
    assert order == ["DELETE", "GET"]


async def kept_out(relay, operation):
    """Whether an operation has not come, after the loop and the threads had every chance to send it."""
    for _ in range(20):
        await asyncio.sleep(0.005)
    return relay.count(operation) == 0


async def test_cancelled_while_queued_is_never_sent(through, relay, name):
    """A call that is cancelled before its turn does not reach the server."""
    collection = await filled(through, name)
    relay.hold("count")
    busy = asyncio.ensure_future(collection.count())
    await in_thread(relay.wait_until_held, 1)
    queued = asyncio.ensure_future(collection.upsert(ids=["never"], embeddings=[[0.0, 0.0]]))
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    relay.release()
    assert await busy == 50
    assert await collection.count() == 50
    assert through.stats().cancelled == 1


async def test_cancelled_while_under_way_completes(through, relay, name):
    """A write that is under way releases its cancelled caller at once, and happens all the same."""
    collection = await filled(through, name)
    relay.hold("upsert")
    write = asyncio.ensure_future(collection.upsert(ids=["late"], embeddings=[[0.0, 0.0]]))
    await in_thread(relay.wait_until_held, 1)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    relay.release()
    assert (await collection.get(ids=["late"]))["ids"] == ["late"]


async def test_a_deadline_releases_the_caller(through, relay, name):
    """Past its deadline a call that was queued says that it never ran, one that was under way says that it began."""
    collection = await filled(through, name)
    relay.hold("query")
    with aiochroma.deadline(2.0):
        running = asyncio.ensure_future(collection.query(query_embeddings=[[1.0, 1.0]], n_results=1))
        await in_thread(relay.wait_until_held, 1)
        queued = asyncio.ensure_future(collection.upsert(ids=["x"], embeddings=[[1.0, 1.0]]))
        with pytest.raises((aiochroma.DeadlineExceededError, aiochroma.StoreUnavailableError)):
            await running
        with pytest.raises(aiochroma.DeadlineExceededError) as error:
            await queued
    assert not error.value.started
    # The connection is free again although the server has not answered: nobody waited for that read any more.
    assert await collection.count() == 50
    relay.release()


async def test_closing_serves_what_was_submitted(server, name):
    """What was submitted before `close` is still served; afterwards the client says that it is closed."""
    client = await aiochroma.AsyncHttpClient("127.0.0.1", server.port)
    collection = await filled(client, name)
    counts = [asyncio.ensure_future(collection.count()) for _ in range(5)]
    await asyncio.sleep(0)
    await client.aclose()
    assert [await count for count in counts] == [50] * 5
    with pytest.raises(aiochroma.ClosedError):
        await collection.count()


async def test_clients_of_one_configuration_share(server):
    """Equal clients share the connections, and the last one to close ends them."""
    first = await aiochroma.AsyncHttpClient("127.0.0.1", server.port, headers={"x-a": "1"})
    second = await aiochroma.AsyncHttpClient("127.0.0.1", server.port, headers={"X-A": "1"})
    assert first.session.connection.engine is second.session.connection.engine
    await first.aclose()
    assert await second.heartbeat() > 0
    await second.aclose()
    assert not second.session.connection.engine.serving.thread.is_alive()


async def test_other_options_conflict(server):
    """Opening a server again with other options says which ones."""
    async with aiochroma.AsyncHttpClient("127.0.0.1", server.port, connections=2):
        with pytest.raises(aiochroma.SettingsConflictError, match="connections"):
            await aiochroma.AsyncHttpClient("127.0.0.1", server.port, connections=3)
