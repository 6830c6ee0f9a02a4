"""What every test shares: nothing may be left behind; and what several folders use."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time

import numpy as np
import pytest
from host_nursery import HostNursery, open_through_hosts
from pickling import carry_by_pickle

from aiochroma import _logging
from aiochroma._waiting import THREAD_NAME

# A shell ignores them for what it starts in the background; programs that tests end would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # Still ignored here; what is started does not inherit a handler.
    signal.signal(signal.SIGHUP, lambda *_: None)

_LEAVE_SECONDS = 60.0
"""How long a thread that was told to end may take; only to tell slow from never."""


def _new_threads(before):
    """Return what came since, but for the two workers that the whole process shares."""
    return {
        thread for thread in set(threading.enumerate()) - before if not thread.name.startswith(THREAD_NAME)
    }


@pytest.fixture(autouse=True)
def every_event_is_logged():
    """Let no event be left out of the log because an earlier test had one like it."""
    _logging._throttle.forget()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """Fail a test that leaves a thread behind.

    Threads are awaited, not just looked at: anyio's workers, for one, end shortly after their event loop.
    """
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + _LEAVE_SECONDS
    for thread in _new_threads(before):
        thread.join(max(0.0, until - time.monotonic()))
    left = [thread.name for thread in _new_threads(before)]
    assert left == [], "the test left threads behind"


_THROUGH_HOSTS = os.environ.get("AIOCHROMA_TEST_PROCESS") == "shared"


def pytest_collection_modifyitems(items):
    """Skip what looks into a backend of this process, where suites run through hosts."""
    if _THROUGH_HOSTS:
        for item in items:
            if item.get_closest_marker("this_process") is not None or "bindings" in item.fixturenames:
                item.add_marker(
                    pytest.mark.skip(reason="looks into the backend, which is in another process")
                )


@pytest.fixture(scope="session")
def host_nursery():
    """Where hosts come from that have nothing to import any more."""
    nursery = HostNursery()
    yield nursery
    nursery.close()


@pytest.fixture(autouse=_THROUGH_HOSTS)
def every_directory_has_a_host(monkeypatch, host_nursery):
    """With ``AIOCHROMA_TEST_PROCESS=shared`` run a suite through hosts: each directory is opened by a process of its own."""
    with tempfile.TemporaryDirectory(prefix="aio-") as folder:
        monkeypatch.setenv("AIOCHROMA_RUNTIME_DIR", folder)
        end = open_through_hosts(host_nursery)
        yield
        end()


@pytest.fixture(autouse=os.environ.get("AIOCHROMA_TEST_PICKLE") == "1")
def everything_is_pickled():
    """With ``AIOCHROMA_TEST_PICKLE=1`` every request, result and error of a suite goes through pickle on its way."""
    end = carry_by_pickle()
    yield
    end()


@pytest.fixture
async def collection(client):
    """An empty collection of the folder's ``client``, without an embedding function."""
    return await client.create_collection("things", embedding_function=None)


@pytest.fixture
def vectors():
    """Return a number of different vectors of four dimensions."""

    def make(count, seed=0):
        return np.random.default_rng(seed).random((count, 4), dtype=np.float32)

    return make
