"""One engine per database: sharing, counting, closing and forgetting, without Chroma."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from programs import PATIENCE

from aiochroma import BlockingCallError, InvalidInputError, SettingsConflictError, StoreUnavailableError
from aiochroma._files import canonical_path
from aiochroma._waiting import drive
from aiochroma.client.session import Closing
from aiochroma.core import registry as _registry
from aiochroma.core.calls import call
from aiochroma.core.config import EngineOptions, Location
from aiochroma.core.registry import BackendWorker, Opener, acquire
from aiochroma.core.request import Request


class Opened:
    """Opens fake databases, and keeps count of them."""

    def __init__(self, resource_class):
        self.resource_class = resource_class
        self.resources = []
        self.open_at_once = []
        self.gate = threading.Event()
        self.gate.set()
        self.error = None

    def __call__(self, location, options):
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        resource = self.resource_class()
        self.resources.append(resource)
        self.open_at_once.append(sum(not each.closed for each in self.resources))
        return resource


@pytest.fixture
def opened(fake_resource):
    return Opened(fake_resource)


@pytest.fixture
def leases(opened):
    """Acquire leases of a fake database; all are released afterwards."""
    taken = []

    def take(name="x", **options):
        lease = acquire(Location("persistent", f"/fake/{name}"), EngineOptions(**options), Opener(opened))
        taken.append(lease)
        return lease

    yield take
    opened.gate.set()
    for lease in taken:
        lease.close()
    for lease in taken:
        assert lease.engine.serving.join(PATIENCE)


def ask(lease, tag="x", do=None):
    arguments = {"tag": tag} if do is None else {"tag": tag, "do": do}
    return call(lease.engine.serving.queue, Request("custom", arguments), None)


def engine_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("aiochroma-db:")]


async def test_everybody_shares_one_engine(leases, opened):
    """From many threads at once one engine is made, and it is opened once."""
    found = []
    barrier = threading.Barrier(16)

    def take():
        barrier.wait(PATIENCE)
        found.append(leases())

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, PATIENCE)
    assert len({id(lease.engine) for lease in found}) == 1
    assert await ask(found[0]) == "x"
    assert len(opened.resources) == 1
    assert [thread.name for thread in engine_threads()] == ["aiochroma-db:x"]


async def test_where_no_thread_can_be_started_nothing_is_left_behind(leases, monkeypatch):
    """It is an error that says so, and the next opening tries again."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(StoreUnavailableError, match="can't start new thread"):
            leases()
    assert await ask(leases()) == "x"


def test_an_interrupt_while_its_thread_starts_leaves_no_database_open(opened, monkeypatch):
    """Ctrl-C in a notebook leaves no lease, and the next opening waits until the interrupted one has ended."""
    location, started = Location("persistent", "/notebook"), []

    def interrupted(serving):
        serving.thread.start()
        started.append(serving)
        raise KeyboardInterrupt

    opened.gate.clear()
    with monkeypatch.context() as patch:
        patch.setattr(BackendWorker, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            acquire(location, EngineOptions(), Opener(opened))
    lease = acquire(location, EngineOptions(), Opener(opened))
    opened.gate.set()
    assert drive(call(lease, Request("custom", {"tag": "asked"}))) == "asked"
    assert started[0].join(0)
    assert opened.open_at_once == [1, 1]
    lease.close()
    assert lease.join(PATIENCE)


async def test_different_databases_have_different_threads(leases, opened):
    """Two directories are served side by side."""
    one, two = leases("one"), leases("two")
    gate = threading.Event()
    held = asyncio.create_task(ask(one, do=lambda: gate.wait(PATIENCE)))
    assert await ask(two) == "x"
    gate.set()
    await held
    assert len(engine_threads()) == 2


async def test_the_last_release_closes(leases, opened):
    """A database stays open as long as anybody holds it."""
    first, second = leases(), leases()
    assert await ask(first) == "x"
    first.close()
    first.close()
    assert first.join(0), "others keep the database open, so there is nothing to wait for"
    await Closing(first)
    assert await ask(second) == "x"
    second.close()
    await Closing(second)
    assert opened.resources[0].closed
    assert engine_threads() == []


async def test_reopening_waits_for_the_end_of_the_closing(leases, opened, until):
    """Opened again while it still closes, a database is never open twice."""
    gate = threading.Event()
    first = leases()
    held = asyncio.create_task(ask(first, do=lambda: gate.wait(PATIENCE)))
    await until(lambda: opened.resources and opened.resources[0].calls)
    first.close()
    second = leases()
    assert second.engine is not first.engine
    answer = asyncio.create_task(ask(second, "second"))
    await asyncio.sleep(0)
    gate.set()
    assert await held is True
    assert await answer == "second"
    assert opened.open_at_once == [1, 1]


async def test_open_failure_is_not_remembered(leases, opened):
    """After a failure the next opening tries again."""
    opened.error = PermissionError("no entry")
    failed = leases()
    with pytest.raises(PermissionError):
        await ask(failed)
    failed.close()
    opened.error = None
    assert await ask(leases()) == "x"


async def test_other_settings_are_refused(leases):
    """What was opened with other settings is not silently shared; left out, they are those of the first."""
    leases(max_pending=5)
    with pytest.raises(SettingsConflictError, match="`max_pending`") as caught:
        leases(max_pending=6)
    assert isinstance(caught.value, ValueError)
    leases(max_pending=5)
    leases()


@pytest.mark.parametrize(
    "options", [{"max_pending": 0}, {"max_write_slice_ms": -1}, {"slow_request_ms": "soon"}]
)
def test_senseless_options_are_refused(options):
    """The message names the option."""
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        EngineOptions(**options)


@pytest.mark.parametrize("path", ["", "  ", "a\0b", None, 3, b"bytes"])
def test_senseless_paths_are_refused(path):
    """An empty path, or what is no path, is an error that names the argument."""
    with pytest.raises(InvalidInputError, match="path"):
        canonical_path(path)


def test_spellings_of_a_path(tmp_path, monkeypatch):
    """Relative, dotted, with a symbolic link or a home: one directory has one canonical path."""
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = [
        tmp_path / "store",
        "store",
        "./store/",
        "store/../store",
        "link",
        "~/store",
        f"{tmp_path}//store",
    ]
    assert {canonical_path(spelling) for spelling in spellings} == {str((tmp_path / "store").resolve())}


async def test_collected_without_close_warns_and_stops(opened, until):
    """A forgotten lease warns, and its thread ends although nobody asked."""
    leases = [acquire(Location("persistent", "/fake/forgotten"), EngineOptions(), Opener(opened))]
    serving = leases[0].engine.serving
    assert await ask(leases[0]) == "x"
    with pytest.warns(ResourceWarning, match="was not closed"):
        leases.clear()
    await until(lambda: not serving.thread.is_alive())
    assert opened.resources[0].closed


async def test_collected_while_others_hold_it(leases, opened):
    """A forgotten lease does not take the database from the others."""
    forgotten, kept = leases("y"), leases("y")
    gc.collect()
    assert await ask(forgotten) == "x"
    with pytest.warns(ResourceWarning):
        acquire(Location("persistent", "/fake/y"), EngineOptions(), Opener(opened))
    assert await ask(kept) == "x"
    forgotten.close()
    assert await ask(kept) == "x"
    assert not kept.engine.closing


async def test_close_all_closes_everything(leases, opened):
    """`close_all` begins to end every thread."""
    one, two = leases("one"), leases("two")
    assert await ask(one) == await ask(two) == "x"
    _registry.close_all()
    await Closing(one)
    await Closing(two)
    assert all(resource.closed for resource in opened.resources)


# -- closing as something to await -------------------------------------------------------------------------------------


async def test_thread_is_gone_when_aclose_returns(leases):
    """When the await returns the thread is not alive any more, at once."""
    for number in range(50):
        lease = leases(f"n{number}")
        lease.close()
        await Closing(lease)
        assert not lease.engine.serving.thread.is_alive()


async def test_close_does_not_block_the_loop(leases, until):
    """The event loop goes round while a call that takes long is drained."""
    lease = leases()
    gate = threading.Event()
    entered = threading.Event()

    def slow():
        entered.set()
        return gate.wait(PATIENCE)

    held = asyncio.create_task(ask(lease, do=slow))
    await until(entered.is_set)
    lease.close()
    closing = asyncio.ensure_future(_closed(lease))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not closing.done()
    # The loop has gone round a hundred times; only it can open the gate.
    gate.set()
    assert await held is True
    await closing
    assert not lease.engine.serving.thread.is_alive()


async def _closed(lease):
    await Closing(lease)


async def test_close_is_shielded(leases, until):
    """A cancelled closer still waits for the end of the thread, and then is cancelled."""
    lease = leases()
    gate = threading.Event()
    held = asyncio.create_task(ask(lease, do=lambda: gate.wait(PATIENCE)))
    await asyncio.sleep(0)
    lease.close()
    closing = asyncio.create_task(_closed(lease))
    await asyncio.sleep(0)
    for _ in range(3):
        closing.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not closing.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not lease.engine.serving.thread.is_alive()
    assert await held is True


async def test_concurrent_close(leases):
    """Many tasks may wait for one end, on this and other event loops."""
    lease = leases()
    await ask(lease)
    lease.close()
    elsewhere = asyncio.to_thread(asyncio.run, _closed(lease))
    await asyncio.gather(elsewhere, *(_closed(lease) for _ in range(20)))
    assert not lease.engine.serving.thread.is_alive()


async def test_sync_close_on_running_loop_refused(leases):
    """Blocking on a thread whose event loop runs would be a deadlock, and is refused."""
    lease = leases()
    lease.close()
    with pytest.raises(BlockingCallError, match="event loop") as caught:
        Closing(lease).wait()
    assert isinstance(caught.value, RuntimeError)


def test_sync_close_without_a_loop(leases):
    """Without an event loop `wait` blocks until the thread has ended."""
    lease = leases()
    assert Closing(lease).wait() is True
    lease.close()
    assert Closing(lease).wait(PATIENCE) is True
    assert not lease.engine.serving.thread.is_alive()


async def test_cancel_during_open_closes_the_resource(leases, opened, until):
    """Whoever gives up while a database opens leaves neither a handle nor a thread."""
    opened.gate.clear()
    lease = leases()
    opening = asyncio.create_task(ask(lease))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    lease.close()
    opened.gate.set()
    await Closing(lease)
    assert [resource.closed for resource in opened.resources] == [True]
    assert opened.resources[0].calls == []
