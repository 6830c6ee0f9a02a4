"""The blocking clients: Chroma's own interface, any number of threads, never on an event loop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import chromadb
import numpy as np
import pytest
from chromadb.api import AdminAPI, ClientAPI
from chromadb.errors import NotFoundError
from programs import MODE, ChromaServer, serving_threads

import aiochroma
from aiochroma import sync


def vectors(count, seed=0):
    return np.random.default_rng(seed).random((count, 4), dtype=np.float32)


@pytest.fixture
def client(tmp_path):
    """A client of an empty database on disk."""
    with sync.PersistentClient(tmp_path / "store") as client:
        yield client


@pytest.mark.parametrize("name", ["PersistentClient", "EphemeralClient", "HttpClient"])
def test_they_are_called_as_chromas(name):
    """Each function has Chroma's name and Chroma's parameters in Chroma's order, then only keywords."""
    expected = list(inspect.signature(getattr(chromadb, name)).parameters.values())
    own = list(inspect.signature(getattr(sync, name)).parameters.values())
    assert [parameter.name for parameter in own[: len(expected)]] == [
        parameter.name for parameter in expected
    ]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in own[len(expected) :])


@pytest.mark.parametrize("name", ["PersistentClient", "EphemeralClient", "HttpClient", "connect"])
def test_they_take_what_the_asynchronous_ones_take(name):
    """Each function has the same parameters and defaults as its asynchronous sibling."""
    sibling = name if name == "connect" else f"Async{name}"
    own, other = inspect.signature(getattr(sync, name)), inspect.signature(getattr(aiochroma, sibling))
    assert own.parameters == other.parameters


def test_the_client_is_chromas(client):
    """The client is of Chroma's own class, so it has all of Chroma's members, and nothing else asks for another one."""
    assert isinstance(client, ClientAPI)
    assert isinstance(client.admin, AdminAPI)
    for interface, own in ((ClientAPI, client), (AdminAPI, client.admin)):
        assert [name for name in dir(interface) if not name.startswith("_") and not hasattr(own, name)] == []


def test_reads_and_writes(client):
    """The life of a collection, from making it to deleting it."""
    collection = client.create_collection("things", embedding_function=None, metadata={"kind": "test"})
    data = vectors(20)
    collection.add(
        ids=[str(i) for i in range(20)], embeddings=data, documents=[f"text {i}" for i in range(20)]
    )
    collection.update(ids=["3"], embeddings=data[3:4], documents=["another text"])
    collection.delete(ids=["19"])
    assert collection.count() == client.get_collection("things", embedding_function=None).count() == 19
    assert collection.get(ids=["3"])["documents"] == ["another text"]
    assert collection.query(query_embeddings=data[5:6], n_results=1)["ids"] == [["5"]]
    assert len(collection.peek(3)["ids"]) == 3
    assert [found.name for found in client.list_collections()] == ["things"]
    client.delete_collection("things")
    with pytest.raises(NotFoundError):
        client.get_collection("things")


def test_tenants_and_databases(client, tmp_path):
    """The administrator's calls work, and a client opens what was made; what is missing is Chroma's own error."""
    client.admin.create_tenant("acme")
    client.admin.create_database("notes", tenant="acme")
    with sync.PersistentClient(tmp_path / "store", tenant="acme", database="notes") as other:
        other.create_collection("things", embedding_function=None)
        assert client.list_collections() == []
    with pytest.raises(NotFoundError):
        sync.PersistentClient(tmp_path / "store", tenant="nobody")
    assert client.count_collections() == 0


def test_many_threads_share_one_client(client):
    """Any number of threads use one client and one DB thread; nothing is lost, and each gets its own answer."""
    collection = client.create_collection("things", embedding_function=None)
    data = vectors(16 * 25)

    def work(worker):
        for number in range(25 * worker, 25 * worker + 25):
            collection.add(ids=[str(number)], embeddings=data[number : number + 1])
            assert collection.get(ids=[str(number)])["ids"] == [str(number)]
            assert collection.query(query_embeddings=data[number : number + 1], n_results=1)["ids"] == [
                [str(number)]
            ]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert collection.count() == 16 * 25
    assert len(serving_threads()) == 1


def test_threads_that_open_at_the_same_moment(tmp_path):
    """However many threads open a directory at once, however they spell it, they share one thread, and all succeed."""
    paths = [tmp_path / "store", f"{tmp_path}/./store", f"{tmp_path}/x/../store"]
    gate = threading.Barrier(12)

    def work(worker):
        gate.wait()
        with sync.PersistentClient(paths[worker % 3]) as client:
            client.get_or_create_collection("things", embedding_function=None).upsert(
                ids=[str(worker)], embeddings=vectors(1, worker)
            )
            assert len(serving_threads()) == 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))
    assert serving_threads() == []
    with sync.PersistentClient(tmp_path / "store") as client:
        assert client.get_collection("things", embedding_function=None).count() == 12


async def test_it_is_refused_where_an_event_loop_runs(tmp_path):
    """On a thread whose event loop would stand still nothing is opened, called or awaited; other threads may."""
    with pytest.raises(aiochroma.BlockingCallError, match="event loop"):
        sync.PersistentClient(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []
    client = await asyncio.to_thread(sync.PersistentClient, tmp_path / "store")
    for call in (
        client.heartbeat,
        client.health,
        client.list_collections,
        lambda: client.backup(tmp_path / "backup"),
    ):
        with pytest.raises(aiochroma.BlockingCallError, match="event loop"):
            call()
    with pytest.raises(aiochroma.BlockingCallError, match="event loop"):
        client.close()
    await asyncio.to_thread(client.close)
    assert serving_threads() == []


async def test_beside_asynchronous_clients(tmp_path):
    """Blocking and asynchronous clients of one directory share its thread and see each other's writes."""
    async with aiochroma.AsyncPersistentClient(tmp_path) as client:
        collection = await client.create_collection("things", embedding_function=None)

        def work():
            with sync.PersistentClient(tmp_path) as blocking:
                same = blocking.get_collection("things", embedding_function=None)
                same.add(ids=["a"], embeddings=vectors(1))
            return len(serving_threads())

        assert await asyncio.to_thread(work) == 1
        assert await collection.count() == 1


def test_closing(tmp_path):
    """Closing waits for the thread, may be repeated, and what is used afterwards says that it is closed."""
    client = sync.PersistentClient(tmp_path)
    collection = client.create_collection("things", embedding_function=None)
    assert "open" in repr(client)
    client.close()
    client.close()
    assert client.closed
    assert "closed" in repr(client)
    assert serving_threads() == []
    for call in (client.heartbeat, collection.count, client.__enter__):
        with pytest.raises(aiochroma.ClosedError, match="closed"):
            call()


def test_a_client_that_is_forgotten(tmp_path):
    """A client that is collected without having been closed warns, and its thread ends nevertheless."""
    forgotten = [sync.PersistentClient(tmp_path)]
    (thread,) = serving_threads()
    with pytest.warns(ResourceWarning, match="not closed"):
        forgotten.clear()
    thread.join(60)
    assert not thread.is_alive()


def test_a_collection_keeps_its_client_open(tmp_path):
    """A collection may outlive the variable that held its client."""
    collection = sync.PersistentClient(tmp_path).create_collection("things", embedding_function=None)
    gc.collect()
    collection.add(ids=["a"], embeddings=vectors(1))
    assert collection.count() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del collection
        gc.collect()


def test_deadlines(client):
    """A deadline that has passed is an error, and the call never ran."""
    with aiochroma.deadline(0), pytest.raises(aiochroma.DeadlineExceededError) as caught:
        client.create_collection("things", embedding_function=None)
    assert not caught.value.started
    assert client.count_collections() == 0


def test_health(client):
    """A health check tells what the asynchronous one tells."""
    client.create_collection("things", embedding_function=None).add(ids=["a", "b"], embeddings=vectors(2))
    state = client.health()
    assert (state.status, state.mode, state.documents, state.error) == ("ok", MODE, 2, None)
    assert state.owner["pid"]
    client.close()
    assert client.health().status == "unavailable"


def test_a_new_connection(client):
    """After the connection was reset the same client and its collections go on."""
    collection = client.create_collection("things", embedding_function=None)
    collection.add(ids=["a"], embeddings=vectors(1))
    client.reset_connection()
    assert collection.count() == 1


def test_backup_and_restore(client, tmp_path):
    """A backup taken while the database is open holds what was written, and rotation keeps as many as it should."""
    collection = client.create_collection("things", embedding_function=None)
    for number in range(3):
        collection.add(ids=[str(number)], embeddings=vectors(1, number))
        report = client.backup(tmp_path / "backups", keep=2)
        assert report.records == number + 1
    assert len(report.removed) == 1
    assert len(list((tmp_path / "backups").iterdir())) == 2
    with sync.PersistentClient(report.path) as restored:
        assert restored.get_collection("things", embedding_function=None).count() == 3
    with pytest.raises(aiochroma.BackupError):
        client.backup(tmp_path / "store" / "inside")


def test_in_memory():
    """The database in memory is shared by all clients of it, and has nothing to back up."""
    with sync.EphemeralClient() as one, sync.EphemeralClient() as two:
        one.create_collection("things", embedding_function=None)
        assert [collection.name for collection in two.list_collections()] == ["things"]
        with pytest.raises(aiochroma.BackupError, match="no files"):
            one.backup("anywhere")


def test_against_a_server(tmp_path, monkeypatch):
    """The same client talks to a Chroma server, named by arguments or by the environment."""
    with ChromaServer(tmp_path / "server", tmp_path / "server.log") as server:
        with sync.HttpClient("127.0.0.1", server.port) as client:
            client.create_collection("things", embedding_function=None).add(ids=["a"], embeddings=vectors(1))
            assert client.health().mode == "http"
        monkeypatch.setenv("CHROMA_MODE", "http")
        monkeypatch.setenv("CHROMA_HOST", "127.0.0.1")
        monkeypatch.setenv("CHROMA_PORT", str(server.port))
        with sync.connect() as client:
            assert client.get_collection("things", embedding_function=None).count() == 1


def test_wrong_arguments_are_said_at_once(tmp_path):
    """What is wrong with the arguments is an error before anything is opened or made."""
    with pytest.raises(aiochroma.InvalidInputError, match="timeout"):
        sync.PersistentClient(tmp_path / "store", timeout=-1)
    with pytest.raises(aiochroma.InvalidInputError, match="CHROMA_HOST"):
        sync.connect(mode="http")
    assert not (tmp_path / "store").exists()
