"""Opening: one engine for everybody, and clear errors for what cannot be opened."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading

import pytest
from chromadb.errors import NotFoundError
from programs import MODE, PATIENCE, serving_threads

import aiochroma
from aiochroma import sync
from aiochroma.disk.ownership import acquire


async def test_a_relative_path_is_that_of_where_it_was_given(tmp_path, monkeypatch):
    """A daemon changes its working directory later; what was named before stays where it is, also at the next opening."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    memory, opening = aiochroma.Memory("memory", embedder="hashed"), aiochroma.AsyncPersistentClient("store")
    monkeypatch.chdir(tmp_path / "second")
    async with memory, opening:
        await memory.remember("The boat is in the shed.")
    monkeypatch.chdir(tmp_path)
    async with opening as client:
        assert await client.count_collections() == 0
    assert {entry.name for entry in (tmp_path / "first").iterdir()} == {"memory", "store"}
    assert list((tmp_path / "second").iterdir()) == []


async def test_many_tasks_and_threads_open_one_engine(bindings, tmp_path):
    """Opened from 32 tasks and threads at the same time a directory is opened once."""
    path = tmp_path / "store"
    seen = set()
    together = threading.Barrier(16)

    async def use():
        async with aiochroma.AsyncPersistentClient(path) as client:
            seen.add(id(client.session.connection.engine))
            collection = await client.get_or_create_collection("things", embedding_function=None)
            return await collection.count()

    def in_a_thread():
        together.wait(PATIENCE)
        return asyncio.run(use())

    async with aiochroma.AsyncPersistentClient(path):
        bindings.calls.clear()
        threads = [asyncio.to_thread(in_a_thread) for _ in range(16)]
        loop = asyncio.get_running_loop()
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(16) as pool:
            loop.set_default_executor(pool)
            counts = await asyncio.gather(*threads, *(use() for _ in range(16)))
        assert counts == [0] * 32
        assert len(serving_threads()) == 1
    assert len(seen) == 1
    assert "open" not in bindings.names


async def test_first_opening_from_many_tasks(bindings, tmp_path):
    """Nobody has it open yet, and 32 tasks ask at once: they all get the same engine."""
    clients = await asyncio.gather(*(aiochroma.AsyncPersistentClient(tmp_path) for _ in range(32)))
    assert len({id(client.session.connection.engine) for client in clients}) == 1
    assert len(serving_threads()) == 1
    await asyncio.gather(*(client.aclose() for client in clients))
    assert len(bindings.threads) == 1


async def test_spellings_share(tmp_path, monkeypatch):
    """However the path is spelled, links included, it is one database."""
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to("store")
    monkeypatch.chdir(tmp_path)
    spellings = ["store", "./store/", tmp_path / "store", "link", str(tmp_path / "link" / ".." / "store")]
    clients = [await aiochroma.AsyncPersistentClient(spelling) for spelling in spellings]
    await clients[0].create_collection("seen", embedding_function=None)
    for client in clients:
        assert [collection.name for collection in await client.list_collections()] == ["seen"]
    assert len(serving_threads()) == 1
    for client in clients:
        await client.aclose()


async def test_other_settings_conflict(tmp_path):
    """A second client with other settings is refused, as in Chroma; without any it shares."""
    from chromadb.config import Settings

    async with aiochroma.AsyncPersistentClient(tmp_path, Settings(allow_reset=True)):
        with pytest.raises(aiochroma.SettingsConflictError, match="settings") as caught:
            await aiochroma.AsyncPersistentClient(tmp_path, Settings(allow_reset=False))
        assert isinstance(caught.value, ValueError)
        async with aiochroma.AsyncPersistentClient(tmp_path, Settings(allow_reset=True)) as same:
            assert same.get_settings().allow_reset is True
        async with aiochroma.AsyncPersistentClient(tmp_path) as shared:
            assert shared.get_settings().allow_reset is True


async def test_the_callers_settings_are_not_changed(tmp_path):
    """One Settings object may be used for several databases."""
    from chromadb.config import Settings

    settings = Settings()
    before = settings.model_dump()
    async with (
        aiochroma.AsyncPersistentClient(tmp_path / "one", settings) as one,
        aiochroma.AsyncPersistentClient(tmp_path / "two", settings) as two,
    ):
        assert one.get_settings().persist_directory != two.get_settings().persist_directory
        assert one.get_settings().anonymized_telemetry is False
    assert settings.model_dump() == before


async def test_ephemeral_clients_share(vectors):
    """All ephemeral clients of the process see one database, which the last one forgets."""
    async with aiochroma.AsyncEphemeralClient() as one, aiochroma.AsyncEphemeralClient() as two:
        collection = await one.create_collection("things", embedding_function=None)
        await collection.add(ids=["a"], embeddings=vectors(1))
        same = await two.get_collection("things", embedding_function=None)
        assert await same.count() == 1
        assert len(serving_threads()) == 1
    async with aiochroma.AsyncEphemeralClient() as later:
        assert await later.list_collections() == []


async def test_chromas_create(tmp_path):
    """`AsyncClient.create` opens what the settings describe."""
    from chromadb.config import Settings

    settings = Settings(is_persistent=True, persist_directory=str(tmp_path))
    client = await aiochroma.AsyncClient.create(settings=settings)
    try:
        assert client.get_settings().persist_directory == str(tmp_path.resolve())
    finally:
        await client.aclose()


@pytest.mark.this_process
async def test_plain_chromadb_in_this_process_is_refused(tmp_path, vectors):
    """A plain chromadb client that has the directory open is found, however it spelled the path, and named."""
    import chromadb

    plain = chromadb.PersistentClient(str(tmp_path / "store" / ".." / "store"))
    try:
        with pytest.raises(aiochroma.DatabaseInUseError, match="plain chromadb"):
            await aiochroma.AsyncPersistentClient(tmp_path / "store")
    finally:
        plain.close()
    async with aiochroma.AsyncPersistentClient(tmp_path / "store") as client:
        assert await client.list_collections() == []


async def test_a_file_is_not_a_database(tmp_path):
    """A path that is a file is refused, naming it, and the next opening elsewhere works."""
    path = tmp_path / "file"
    path.write_text("not a directory")
    with pytest.raises(aiochroma.DatabasePathError, match="file"):
        await aiochroma.AsyncPersistentClient(path)
    assert path.read_text() == "not a directory"
    with pytest.raises(aiochroma.DatabasePathError):
        await aiochroma.AsyncPersistentClient(path / "below")


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_senseless_time_out_is_refused(timeout):
    """At once, not at the first call."""
    with pytest.raises(aiochroma.InvalidInputError, match="timeout"):
        aiochroma.AsyncPersistentClient("x", timeout=timeout)


async def test_unknown_tenant_leaves_nothing_behind(tmp_path):
    """An opening that fails gives everything back."""
    with pytest.raises(Exception, match=r"tenant|[Nn]ot found"):
        await aiochroma.AsyncPersistentClient(tmp_path, tenant="strangers")
    async with aiochroma.AsyncPersistentClient(tmp_path) as client:
        assert client.session.connection.engine.leases == 1


@pytest.mark.this_process
async def test_the_error_of_an_opening_finds_nobody_at_the_files(tmp_path):
    """Whoever catches it asks the doctor, or opens it otherwise."""
    async with aiochroma.AsyncPersistentClient(tmp_path):
        pass
    for _ in range(3):
        with pytest.raises(NotFoundError, match="strangers"):
            await aiochroma.AsyncPersistentClient(tmp_path, database="strangers")
        acquire(tmp_path, create=False).release()
        with pytest.raises(NotFoundError, match="strangers"):
            await asyncio.to_thread(sync.PersistentClient, tmp_path, database="strangers")
        acquire(tmp_path, create=False).release()
    report = await aiochroma.doctor(tmp_path, repair=True)
    assert report.is_healthy


async def test_cancel_during_open_closes_the_resource(bindings, tmp_path):
    """Whoever gives up while a database opens leaves no handle and no thread."""
    opening = asyncio.ensure_future(aiochroma.AsyncPersistentClient(tmp_path).open())
    while not serving_threads():
        await asyncio.sleep(0)
    (thread,) = serving_threads()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await asyncio.to_thread(thread.join, PATIENCE)
    assert not thread.is_alive()
    names = [name for name, _ in bindings.calls]
    assert names.count("open") == names.count("close")
    async with aiochroma.AsyncPersistentClient(tmp_path) as client:
        assert await client.list_collections() == []


async def test_use_before_open(tmp_path):
    """What has not been awaited says so, instead of what it lacks."""
    with pytest.raises(AttributeError, match="not open yet"):
        aiochroma.AsyncPersistentClient(tmp_path).get_or_create_collection("things")


async def test_store_of_plain_chromadb(tmp_path, vectors):
    """A store written by plain chromadb opens and works unchanged, and plain chromadb reads what we write."""
    import chromadb

    data = vectors(30)
    ids = [f"id{number}" for number in range(30)]
    plain = chromadb.PersistentClient(str(tmp_path))
    theirs = plain.create_collection("things", metadata={"by": "chroma"}, embedding_function=None)
    theirs.add(
        ids=ids[:20], embeddings=data[:20], documents=ids[:20], metadatas=[{"n": n} for n in range(20)]
    )
    expected = theirs.query(query_embeddings=data[:3], n_results=5)
    plain.close()

    async with aiochroma.AsyncPersistentClient(tmp_path) as client:
        ours = await client.get_collection("things", embedding_function=None)
        assert ours.metadata == {"by": "chroma"}
        assert await ours.query(query_embeddings=data[:3], n_results=5) == expected
        await ours.add(ids=ids[20:], embeddings=data[20:])
        await ours.update(ids=["id0"], documents=["changed"], embeddings=data[:1])
        await ours.delete(ids=["id1"])

    plain = chromadb.PersistentClient(str(tmp_path))
    try:
        theirs = plain.get_collection("things", embedding_function=None)
        assert theirs.count() == 29
        assert theirs.get(ids=["id0"])["documents"] == ["changed"]
        assert theirs.get(ids=["id1"])["ids"] == []
        nearest = theirs.query(query_embeddings=data[20:], n_results=1)["ids"]
        assert nearest == [[id] for id in ids[20:]]
    finally:
        plain.close()


async def test_blocks_that_overlap_have_clients_of_their_own(tmp_path):
    """One opening may be entered by many tasks; the end of one's block closes only its own client."""
    store = aiochroma.AsyncPersistentClient(tmp_path)
    first_is_in, second_is_in, first_is_out = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def first():
        async with store as client:
            first_is_in.set()
            await second_is_in.wait()
        assert client.closed
        first_is_out.set()

    async def second():
        await first_is_in.wait()
        async with store as client:
            second_is_in.set()
            await first_is_out.wait()
            assert await client.count_collections() == 0
            async with store as inner:
                assert inner is not client
            assert inner.closed
            assert not client.closed
        assert client.closed

    await asyncio.gather(first(), second())
    assert serving_threads() == []


async def test_a_block_may_end_in_another_task(tmp_path):
    """As the blocks of test fixtures do: whose task has ended is closed, and not another one's client."""
    store = aiochroma.AsyncPersistentClient(tmp_path)
    entered = await asyncio.create_task(store.__aenter__())
    async with store as own:
        await asyncio.create_task(store.__aexit__(None, None, None))
        assert entered.closed
        assert not own.closed


def test_without_asyncio_the_error_says_so(tmp_path):
    """Under another event loop every call says at once that asyncio is needed, and nothing is opened."""

    async def elsewhere():
        with pytest.raises(aiochroma.EventLoopRequiredError, match="asyncio"):
            await aiochroma.AsyncPersistentClient(tmp_path / "store")
        with pytest.raises(aiochroma.EventLoopRequiredError, match="asyncio"):
            async with aiochroma.Memory(tmp_path / "store"):
                pass

    with pytest.raises(StopIteration):
        elsewhere().send(None)
    assert list(tmp_path.iterdir()) == []


async def test_under_trio_the_error_says_so(tmp_path):
    """The same with the real thing, where it is installed, for an open client, too."""
    trio = pytest.importorskip("trio")
    async with aiochroma.AsyncPersistentClient(tmp_path) as client:
        collection = await client.create_collection("things", embedding_function=None)

        async def elsewhere():
            for call in (
                client.heartbeat,
                client.health,
                client.list_collections,
                client.reset_connection,
                collection.count,
                lambda: collection.add(ids=["a"], embeddings=[[1.0, 2.0]]),
                lambda: client.backup(tmp_path / "backup"),
                client.close,
            ):
                with pytest.raises(aiochroma.EventLoopRequiredError, match="trio"):
                    await call()

        await asyncio.to_thread(trio.run, elsewhere)


async def test_a_copied_state_shares_its_client(tmp_path):
    """What a program's state refers to is not opened twice; it cannot be sent to another process, and the error says so."""
    async with aiochroma.AsyncPersistentClient(tmp_path) as client:
        collection = await client.create_collection("things", embedding_function=None)
        for copied in (
            copy.copy((client, collection)),
            copy.deepcopy({"state": (client, collection)})["state"],
        ):
            assert copied[0] is client
            assert await copied[1].count() == 0
        with pytest.raises(aiochroma.InvalidInputError, match="cannot be pickled"):
            pickle.dumps(client)
        with pytest.raises(aiochroma.InvalidInputError, match="cannot be pickled"):
            pickle.dumps(collection)


async def test_a_client_shows_what_it_is(tmp_path):
    """`repr` names the database, the mode and the state."""
    client = await aiochroma.AsyncPersistentClient(tmp_path)
    assert str(tmp_path) in repr(client)
    assert f"{MODE!r}, open" in repr(client)
    assert "things" in repr(await client.create_collection("things", embedding_function=None))
    await client.close()
    await client.aclose()
    assert repr(client).endswith("closed>")
