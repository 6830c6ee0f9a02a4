"""A resource that is not Chroma: it does what the request says, and notes what was done, on which thread."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from programs import PATIENCE

from aiochroma.core.calls import call
from aiochroma.core.request import Request
from aiochroma.core.worker import Worker


class Gate:
    """Something a request can be held at: it has `entered`, and goes on when it is opened."""

    def __init__(self):
        self.entered = threading.Event()
        self._opened = threading.Event()

    def open(self):
        self._opened.set()

    def __call__(self):
        self.entered.set()
        assert self._opened.wait(PATIENCE), "nobody opened the gate"


class FakeResource:
    """Carries out requests: `do` is called, or else `tag` is returned."""

    def __init__(self):
        self.calls = []
        self.threads = {threading.get_ident()}
        self.closed = False
        self.call_counts = []

    def execute(self, request, deadline=None):
        self.threads.add(threading.get_ident())
        self.calls.append(request.arguments.get("tag"))
        self.call_counts.append(request.operation)
        do = request.arguments.get("do")
        return request.arguments.get("tag") if do is None else do()

    def close(self):
        self.threads.add(threading.get_ident())
        self.closed = True


class Engine:
    """A serving thread over a fake resource."""

    def __init__(self, open_resource=None, **options):
        self.resource = None
        self._gates = []
        self._open_with = open_resource
        self.serving = Worker("the test database", self._open, **options)
        self.queue = self.serving.queue
        self.serving.start()

    def _open(self):
        resource = FakeResource() if self._open_with is None else self._open_with()
        self.resource = resource
        return resource

    def gate(self):
        gate = Gate()
        self._gates.append(gate)
        return gate

    def call(self, tag=None, do=None, *, operation="custom", deadline=None, when_full="wait", **more):
        """Return the coroutine of one request; without a known operation it is a barrier, so strictly in order."""
        return call(self.queue, request_of(tag, do, operation, **more), deadline, when_full=when_full)

    def task(self, *arguments, **named):
        return asyncio.get_running_loop().create_task(self.call(*arguments, **named))

    async def hold(self):
        """Occupy the thread; return the task that does and the gate that lets it go on."""
        gate = self.gate()
        task = self.task("holder", gate)
        await until(gate.entered.is_set)
        return task, gate

    def counts(self):
        return {**self.queue.counts, "pending": self.queue.pending}

    def stop(self):
        for gate in self._gates:
            gate.open()
        self.serving.close(drain=False)
        assert self.serving.join(PATIENCE), "the thread did not end"


def request_of(tag=None, do=None, operation="custom", **more):
    arguments = dict(more)
    if tag is not None:
        arguments["tag"] = tag
    if do is not None:
        arguments["do"] = do
    return Request(operation, arguments)


async def until(condition):
    """Wait for a condition that another thread brings about."""
    stop = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < stop, "it never happened"
        await asyncio.sleep(0)


@pytest.fixture
def engines():
    """Start serving threads over fake resources; all are stopped afterwards."""
    started = []

    def start(open_resource=None, **options):
        engine = Engine(open_resource, **options)
        started.append(engine)
        return engine

    yield start
    for engine in started:
        engine.stop()


@pytest.fixture
def engine(engines):
    """A serving thread over a fake resource."""
    return engines()


@pytest.fixture(name="until")
def _until():
    return until


@pytest.fixture(name="request_of")
def _request_of():
    return request_of


@pytest.fixture(name="fake_resource")
def _fake_resource():
    return FakeResource


@pytest.fixture
def elsewhere():
    """Run coroutines on event loops of other threads; errors come back."""
    threads = []

    def run(coroutine_function, new_loop=asyncio.new_event_loop):
        outcome = {}

        def body():
            loop = new_loop()
            try:
                outcome["result"] = loop.run_until_complete(coroutine_function())
            except BaseException as error:
                outcome["error"] = error
            finally:
                loop.run_until_complete(loop.shutdown_default_executor())
                loop.close()

        thread = threading.Thread(target=body, name="another event loop")
        thread.start()
        threads.append(thread)

        def join():
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the other event loop hangs"
            if "error" in outcome:
                raise outcome["error"]
            return outcome["result"]

        return join

    yield run
    for thread in threads:
        thread.join(PATIENCE)


@pytest.fixture
def logged(caplog):
    """Return the messages of the log lines of one event, which begin with its name."""

    def of(event):
        return [record.getMessage() for record in caplog.records if record.aiochroma_event == event]

    return of


@pytest.fixture
def structlog_events():
    """Configure structlog as a program would, and return the events that it gets."""
    import structlog

    events = []

    def keep(_logger, level, event):
        events.append({**event, "log_level": level})
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    yield events
    structlog.reset_defaults()
