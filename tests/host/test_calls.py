"""Callers of a host: any loop, any thread, cancellation, deadlines, back-pressure, closing; as in one process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from programs import PATIENCE, until

import aiochroma
from aiochroma import sync
from aiochroma.core.stats import set_observer

VECTOR = [0.1, 0.2, 0.3, 0.4]


@pytest.fixture
def lock(path):
    """Hold SQLite's lock, so that every write waits in the host until it is released."""
    holders = []

    def hold():
        connection = sqlite3.connect(path / "chroma.sqlite3", isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        holders.append(connection)
        return lambda: connection.execute("ROLLBACK")

    yield hold
    for connection in holders:
        connection.close()


async def running(client, hosts, path, requests=1):
    """Wait until the host has so many requests of this client."""

    def there():
        status = hosts.status(path)
        return status and sum(each["requests"] for each in status["clients"]) >= requests

    await asyncio.to_thread(until, there, "the host has the requests")


async def test_a_large_write_and_a_large_read_are_whole(collection, vectors):
    """They travel in parts, in both directions."""
    embeddings = np.random.default_rng(0).random((3000, 64), dtype=np.float32)
    ids = [f"id{number}" for number in range(3000)]
    documents = [f"document {number} " * 20 for number in range(3000)]
    await collection.add(
        ids=ids, embeddings=embeddings, documents=documents, metadatas=[{"n": n} for n in range(3000)]
    )
    got = await collection.get(include=["embeddings", "documents", "metadatas"])
    order = np.argsort([int(id[2:]) for id in got["ids"]])
    assert [got["ids"][place] for place in order] == ids
    assert [got["documents"][place] for place in order] == documents
    assert np.array_equal(got["embeddings"][order].astype(np.float32), embeddings)


async def test_records_of_many_megabytes_travel(collection):
    """Larger than a frame may be."""
    texts, ids = ["ä" * 500_000] * 20, [str(number) for number in range(20)]
    await collection.add(ids=ids, embeddings=[VECTOR] * 20, documents=texts)
    assert (await collection.get(ids=ids))["documents"] == texts


async def test_small_reads_do_not_wait_for_a_large_write(collection, vectors):
    """Reads that are made while a long write is under way are answered before its end."""
    embeddings = np.random.default_rng(0).random((4000, 256), dtype=np.float32)
    write = asyncio.ensure_future(
        collection.add(ids=[f"id{number}" for number in range(4000)], embeddings=embeddings)
    )
    await asyncio.sleep(0)
    counts = 0
    while not write.done() and counts < 5:
        await collection.count()
        counts += 1
    assert counts == 5 or write.done()
    assert not write.done()
    await write
    assert await collection.count() == 4000


def run_on_uvloop(work):
    """Run a coroutine on a loop of uvloop."""
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


@pytest.mark.parametrize("run", [asyncio.run, run_on_uvloop], ids=["asyncio", "uvloop"])
def test_two_loops_and_three_threads_share_one_link(hosts, path, run):
    """One process has one link, whatever it calls from."""
    results = []

    async def on_loop(name):
        async with aiochroma.AsyncPersistentClient(path, process="shared") as client:
            collection = await client.get_or_create_collection("things", embedding_function=None)
            await asyncio.gather(
                *(collection.upsert(ids=[f"{name}{n}"], embeddings=[VECTOR]) for n in range(20))
            )
            results.append(name)

    def on_thread(name):
        with sync.PersistentClient(path, process="shared") as client:
            collection = client.get_or_create_collection("things", embedding_function=None)
            for number in range(20):
                collection.upsert(ids=[f"{name}{number}"], embeddings=[VECTOR])
            results.append(name)

    threads = [threading.Thread(target=run, args=(on_loop(name),)) for name in "ab"]
    threads += [threading.Thread(target=on_thread, args=(name,)) for name in "cde"]
    with sync.PersistentClient(path, process="shared") as client:
        for thread in threads:
            thread.start()
        names = []
        until(
            lambda: names.extend(t.name for t in threading.enumerate()) or len(results) == 5, "all are done"
        )
        for thread in threads:
            thread.join()
        assert len({name for name in names if name.startswith("aiochroma-link")}) == 1
        assert len(hosts.status(path)["clients"]) == 1
        assert client.get_collection("things", embedding_function=None).count() == 100


async def test_cancelled_in_the_host_never_runs(client, collection, hosts, path, lock):
    """Queued behind another one in the host and cancelled: it is not carried out. What had begun is."""
    release = lock()
    first = asyncio.ensure_future(collection.add(ids=["first"], embeddings=[VECTOR]))
    second = asyncio.ensure_future(collection.update(ids=["first"], metadatas=[{"n": 1}]))
    third = asyncio.ensure_future(collection.add(ids=["third"], embeddings=[VECTOR]))
    await running(client, hosts, path, 3)
    third.cancel()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.to_thread(
        until, lambda: sum(e["requests"] for e in hosts.status(path)["clients"]) <= 1, "they are withdrawn"
    )
    release()
    await second
    assert (await collection.get())["ids"] == ["first"]
    stats = client.stats()
    assert stats.abandoned == 1
    assert stats.cancelled == 1


async def test_the_deadline_says_whether_a_request_had_begun(client, collection, hosts, path, lock):
    """Never sent, queued in the host, running: `started` is right in each."""
    release = lock()
    blocking = asyncio.ensure_future(collection.add(ids=["a"], embeddings=[VECTOR]))
    await running(client, hosts, path)
    with pytest.raises(aiochroma.DeadlineExceededError) as queued, aiochroma.deadline(0.2):
        await collection.update(ids=["a"], metadatas=[{"never": 1}])
    assert queued.value.started is False
    release()
    await blocking
    assert (await collection.get())["metadatas"] == [None]
    os.kill(hosts.pid(path), signal.SIGSTOP)
    try:
        with pytest.raises(aiochroma.DeadlineExceededError) as unknown, aiochroma.deadline(0.2):
            await collection.count()
        # The host gives no verdict, so the safe answer is given.
        assert unknown.value.started is True
    finally:
        os.kill(hosts.pid(path), signal.SIGCONT)
    assert await collection.count() == 1


async def test_a_deadline_while_it_runs(client, collection, hosts, path, lock):
    """It had begun, says the error; and the write happens all the same, or says that it did not."""
    release = lock()
    with (
        pytest.raises((aiochroma.DeadlineExceededError, aiochroma.DatabaseLockedError)) as raised,
        aiochroma.deadline(2.0),
    ):
        await collection.add(ids=["a"], embeddings=[VECTOR])
    assert getattr(raised.value, "started", True) is True
    release()


def test_a_blocking_deadline_comes_in_time(hosts, path):
    """From a plain thread, with the host stopped."""
    with sync.PersistentClient(path, process="shared", timeout=30) as client:
        collection = client.create_collection("things", embedding_function=None)
        os.kill(hosts.pid(path), signal.SIGSTOP)
        try:
            with pytest.raises(aiochroma.DeadlineExceededError), aiochroma.deadline(0.1):
                collection.count()
        finally:
            os.kill(hosts.pid(path), signal.SIGCONT)
        assert collection.count() == 0


class Watching:
    """An observer of this process: notes which thread sends what, and stops the link's thread at an outcome."""

    def __init__(self):
        self.senders = []
        self.outcome, self.go_on = threading.Event(), threading.Event()

    def request(self, database, operation, context, waited, ran, merged, error):
        if operation == "get_version":
            self.outcome.set()
            assert self.go_on.wait(PATIENCE)

    def carrier(self, context):
        self.senders.append(threading.current_thread().name)
        return {}


@pytest.fixture
def watching():
    """Observe this process."""
    observer = Watching()
    set_observer(observer)
    yield observer
    observer.go_on.set()
    set_observer(None)


async def test_a_deadline_that_passes_in_the_moment_of_the_outcome(client, watching):
    """The caller is released all the same, and nothing is left pending."""
    with aiochroma.deadline(2.0):
        call = asyncio.ensure_future(client.session.submit("get_version"))
    await asyncio.to_thread(watching.outcome.wait, PATIENCE)
    await asyncio.to_thread(until, lambda: client.stats().abandoned, "the deadline has passed")
    watching.go_on.set()
    with pytest.raises(aiochroma.DeadlineExceededError) as raised:
        await call
    assert raised.value.started
    assert client.stats().pending == 0


async def test_long_texts_are_encoded_on_the_links_thread(collection, watching):
    """The event loop goes on meanwhile; short ones are sent at once."""
    await collection.upsert(ids=["short"], embeddings=[VECTOR], documents=["short"])
    await collection.upsert(ids=["a", "b"], embeddings=[VECTOR] * 2, documents=["long" * 200_000] * 2)
    assert watching.senders[0] == threading.current_thread().name
    assert watching.senders[-1].startswith("aiochroma-link")


async def test_the_links_thread_sleeps_while_the_host_reads_nothing(client, collection, hosts, path):
    """However much waits to be sent, nothing turns round meanwhile."""
    (link,) = [thread for thread in threading.enumerate() if thread.name.startswith("aiochroma-link")]

    def ticks():
        fields = Path(f"/proc/self/task/{link.native_id}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def sleeps():
        before = ticks()
        time.sleep(0.3)
        return ticks() == before

    os.kill(hosts.pid(path), signal.SIGSTOP)
    try:
        calls = [
            asyncio.ensure_future(
                collection.upsert(ids=[f"id{n}"], embeddings=[VECTOR], documents=["x" * 20_000])
            )
            for n in range(100)
        ]
        await asyncio.to_thread(until, sleeps, "the link's thread sleeps")
    finally:
        os.kill(hosts.pid(path), signal.SIGCONT)
    await asyncio.gather(*calls)


def test_a_blocking_call_on_the_links_thread_is_refused(hosts, path):
    """A log handler that asks the database would wait for itself, as on the thread of a database of this process."""
    met = []

    class Asking(logging.Handler):
        def emit(self, record):
            if not met:
                met.append(threading.current_thread().name)
                try:
                    client.count_collections()
                except aiochroma.BlockingCallError as error:
                    met.append(error)

    handler = Asking()
    logging.getLogger("aiochroma").addHandler(handler)
    try:
        with sync.PersistentClient(path, process="shared") as client:
            hosts.ended(hosts.kill(path))
            assert client.count_collections() == 0
    finally:
        logging.getLogger("aiochroma").removeHandler(handler)
    assert met[0].startswith("aiochroma-link")
    assert isinstance(met[1], aiochroma.BlockingCallError)


async def test_a_process_with_very_many_descriptors(opening, hosts, path):
    """As a service with more than a thousand connections has them: its host is reached, and found again."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        async with opening() as client:
            hosts.ended(hosts.kill(path))
            assert await client.count_collections() == 0
    finally:
        for descriptor in held:
            os.close(descriptor)


async def test_the_loop_does_not_wait_for_a_stopped_host(client, collection, hosts, path):
    """Thousands of requests are taken while the host stands still; the window holds and the rest waits here."""
    os.kill(hosts.pid(path), signal.SIGSTOP)
    try:
        calls = [
            asyncio.ensure_future(collection.upsert(ids=[f"id{n}"], embeddings=[VECTOR])) for n in range(2000)
        ]
        await asyncio.sleep(0.05)
        assert client.stats().pending == 2000
    finally:
        os.kill(hosts.pid(path), signal.SIGCONT)
    await asyncio.gather(*calls)
    assert await collection.count() == 2000


async def test_what_is_past_its_deadline_is_not_sent(client, collection, hosts, path):
    """The host stands still and cannot say whether it had begun: it is certain all the same, for a large write, too."""
    os.kill(hosts.pid(path), signal.SIGSTOP)
    try:
        for count in (1, 600):
            with aiochroma.deadline(0), pytest.raises(aiochroma.DeadlineExceededError) as raised:
                await collection.upsert(
                    ids=[f"id{number}" for number in range(count)], embeddings=[VECTOR] * count
                )
            assert not raised.value.started
    finally:
        os.kill(hosts.pid(path), signal.SIGCONT)
    assert await collection.count() == 0
    assert client.stats().pending == 0


async def test_the_queue_is_the_clients_own(opening, hosts, path):
    """`max_pending` bounds this client; a full queue needs no question to the host."""
    async with opening(max_pending=10, when_full="raise") as client:
        collection = await client.create_collection("things", embedding_function=None)
        os.kill(hosts.pid(path), signal.SIGSTOP)
        try:
            calls = [asyncio.ensure_future(collection.count()) for _ in range(10)]
            await asyncio.sleep(0)
            with pytest.raises(aiochroma.QueueFullError) as raised:
                await collection.count()
            assert raised.value.limit == 10
        finally:
            os.kill(hosts.pid(path), signal.SIGCONT)
        assert await asyncio.gather(*calls) == [0] * 10


async def test_a_client_has_so_many_requests_in_the_host_and_no_more(client, collection, hosts, path, lock):
    """The others stand in its own line, and go out as answers come."""
    release = lock()
    calls = [asyncio.ensure_future(collection.add(ids=[f"id{n}"], embeddings=[VECTOR])) for n in range(600)]
    await running(client, hosts, path, 256)
    assert client.stats().pending == 600
    assert [each["requests"] for each in hosts.status(path)["clients"]] == [256]
    release()
    await asyncio.gather(*calls)
    assert await collection.count() == 600


async def test_requests_of_one_turn_are_merged(client, collection):
    """What a loop asks for in one turn arrives together, so that the host makes few calls of it."""
    await collection.add(ids=["a", "b"], embeddings=[VECTOR, VECTOR])
    before = client.stats().calls
    await asyncio.gather(*(collection.query(query_embeddings=[VECTOR], n_results=1) for _ in range(64)))
    assert client.stats().calls - before <= 8


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_closing_serves_what_was_submitted(opening, hosts, path):
    """What was sent and what was not; then no thread and no descriptor is left."""
    before = descriptors()
    client = await opening()
    collection = await client.create_collection("things", embedding_function=None)
    calls = [
        asyncio.ensure_future(collection.upsert(ids=[f"id{n}"], embeddings=[VECTOR])) for n in range(600)
    ]
    await asyncio.sleep(0)
    await client.aclose()
    await asyncio.gather(*calls)
    assert descriptors() <= before + 1  # The event loop's own, at its first use of a thread.
    async with opening() as again:
        assert await (await again.get_collection("things", embedding_function=None)).count() == 600


async def test_events_of_the_host_are_logged_here(client, collection, hosts, path, lock, caplog):
    """A warning about a request of this client reaches this program's log."""
    release = lock()
    write = asyncio.ensure_future(collection.add(ids=["a"], embeddings=[VECTOR]))
    await asyncio.to_thread(
        until, lambda: "database.locked" in hosts.log(path), "the host has noticed the lock"
    )
    await asyncio.to_thread(
        until,
        lambda: "database.locked" in [getattr(each, "aiochroma_event", "") for each in caplog.records],
        "it is logged here",
    )
    release()
    await write


async def test_settings_that_differ_are_refused(opening, hosts):
    """As in one process: the error names the option."""
    async with opening(max_write_slice_ms=50):
        pass
    from chromadb.config import Settings

    async with opening(max_write_slice_ms=50):
        with pytest.raises(aiochroma.SettingsConflictError, match="max_write_slice_ms"):
            await opening(max_write_slice_ms=20)
        with pytest.raises(aiochroma.SettingsConflictError, match="settings"):
            await opening(settings=Settings(allow_reset=True))
