"""FastAPI under uvicorn and gunicorn, in processes of its own: shutdown under load, several workers, clients that hang up."""

from __future__ import annotations

import asyncio
import re
import signal
import tempfile
from pathlib import Path

import httpx
import pytest
from programs import PATIENCE, ChromaServer, Service, until

import aiochroma

pytest.importorskip("fastapi", reason="fastapi is not installed (extra `fastapi`)")

HERE = Path(__file__).parent
WORKERS = 4


@pytest.fixture
def serve(tmp_path):
    """Make a service of the application in `service.py`."""

    def make(*options, **environment):
        return Service("service:app", tmp_path / "service.log", *options, directory=HERE, **environment)

    return make


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def no_keeping_alive():
    """Every request on a connection of its own, so that all workers get some."""
    return httpx.AsyncClient(
        limits=httpx.Limits(max_keepalive_connections=0), timeout=PATIENCE, trust_env=False
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_what_was_accepted_is_there_after_a_shutdown_in_mid_load(serve, store, how):
    """Asked to end while writes are under way, the service completes what it answers, ends, and leaves it all behind."""
    accepted, refused = {}, []
    some = asyncio.Event()

    async def write(client, writer, service):
        for number in range(10_000):
            text = f"memory {number} of writer {writer}"
            try:
                answer = await client.post(f"{service.url}/memories", params={"text": text})
            except httpx.TransportError as error:
                refused.append(error)
                return
            assert answer.status_code == 200, answer.text
            accepted[answer.json()["id"]] = text
            if len(accepted) >= 50:
                some.set()

    with serve(CHROMA_DB_PATH=store) as service:
        await asyncio.to_thread(service.when_up, f"{service.url}/pid")
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            writers = [asyncio.ensure_future(write(client, writer, service)) for writer in range(16)]
            await asyncio.wait_for(some.wait(), PATIENCE)
            service.process.send_signal(how)
            await asyncio.gather(*writers)
        await asyncio.to_thread(service.process.wait, PATIENCE)
        assert "shutdown complete" in service.output()
        assert "Traceback" not in service.output()
    assert len(refused) == 16
    async with aiochroma.Memory(store) as memory:
        assert {id: hit.text for id in accepted if (hit := await memory.get(id))} == accepted


async def test_four_workers_share_a_server(serve, tmp_path):
    """Workers of one service use one Chroma server at the same time, and not one request fails."""
    server = ChromaServer(tmp_path / "server", tmp_path / "server.log")
    address = {"CHROMA_MODE": "http", "CHROMA_HOST": "127.0.0.1", "CHROMA_PORT": server.port}
    with server, serve("--workers", str(WORKERS), **address) as service:
        await asyncio.to_thread(service.when_up, f"{service.url}/pid")
        async with no_keeping_alive() as client:
            pids = set()

            async def use(number):
                answer = await client.post(
                    f"{service.url}/memories", params={"text": f"the number {number} is odd"}
                )
                assert answer.status_code == 200, answer.text
                pids.add(answer.json()["pid"])
                answer = await client.get(f"{service.url}/recall", params={"question": f"number {number}"})
                assert answer.status_code == 200, answer.text
                assert answer.json()["texts"]

            async def user(first):
                for number in range(first, first + 20):
                    await use(number)

            await asyncio.gather(*(user(20 * number) for number in range(8)))
            health = await client.get(f"{service.url}/health/chromadb")
        assert len(pids) > 1
        assert health.status_code == 200
        assert (health.json()["mode"], health.json()["documents"]) == ("http", 160)
        service.stop()
        assert "Traceback" not in service.output()


async def test_further_workers_on_a_directory_get_the_owners_error(serve, store):
    """One worker owns a directory; the others start, answer at once with an error that names it, and log that once."""
    remembered, owners, named, refused = set(), set(), set(), []

    async def use(client, service, number):
        health = await client.get(f"{service.url}/health/chromadb")
        if health.status_code == 503:
            assert "DatabaseInUseError" in health.json()["error"]
            assert int(health.headers["Retry-After"]) >= 1
            named.update(re.findall(r"in use by process (\d+)", health.json()["error"]))
        answer = await client.post(f"{service.url}/memories", params={"text": f"memory number {number}"})
        if answer.status_code == 200:
            remembered.add(answer.json()["id"])
            owners.add(str(answer.json()["pid"]))
        else:
            assert (answer.status_code, answer.json()["error"]) == (503, "DatabaseInUseError")
            refused.append(number)

    with serve("--workers", str(WORKERS), CHROMA_DB_PATH=store) as service:
        await asyncio.to_thread(service.when_up, f"{service.url}/pid")
        async with no_keeping_alive() as client:
            # Many at a time: of requests one after the other a single worker may get all.
            for first in range(0, 1600, 16):
                await asyncio.gather(*(use(client, service, number) for number in range(first, first + 16)))
                if len(remembered) >= 10 and len(refused) >= 10 and named:
                    break
        assert len(owners) == 1
        assert named == owners
        service.stop()
    lines = [line for line in service.output().splitlines() if "aiochroma: " in line]
    assert len(lines) == WORKERS - 1
    for line in lines:
        assert re.search(r"the worker (\d+) of this service has the store open", line)[1] in owners
        assert "CHROMA_PROCESS=shared" in line
        assert "run one worker" in line
    async with aiochroma.Memory(store) as memory:
        assert await memory.count() == len(remembered)
        assert [id for id in remembered if not await memory.get(id)] == []


@pytest.mark.parametrize(
    ("server", "options"),
    [
        ("uvicorn", ()),
        pytest.param("gunicorn", (), id="gunicorn, each worker imports the application"),
        pytest.param("gunicorn", ("--preload",), id="gunicorn, workers are forked after the import"),
    ],
)
async def test_workers_share_a_directory_through_its_host(serve, store, server, options):
    """`CHROMA_PROCESS=shared`: four workers on one directory, no error, and nothing lost."""
    if server == "gunicorn":
        pytest.importorskip("gunicorn", reason="gunicorn is not installed (group `frameworks`)")
        pytest.importorskip("uvicorn_worker", reason="uvicorn-worker is not installed (group `frameworks`)")
    with tempfile.TemporaryDirectory(prefix="aio-") as folder:
        shared = {"CHROMA_DB_PATH": store, "CHROMA_PROCESS": "shared", "AIOCHROMA_RUNTIME_DIR": folder}
        remembered, workers = set(), set()

        async def use(client, service, number):
            answer = await client.post(f"{service.url}/memories", params={"text": f"memory {number}"})
            assert answer.status_code == 200, answer.text
            remembered.add(answer.json()["id"])
            workers.add(answer.json()["pid"])

        with serve("--workers", str(WORKERS), *options, server=server, **shared) as service:
            await asyncio.to_thread(service.when_up, f"{service.url}/pid")
            async with no_keeping_alive() as client:
                for first in range(0, 320, 16):
                    await asyncio.gather(
                        *(use(client, service, number) for number in range(first, first + 16))
                    )
                health = await client.get(f"{service.url}/health/chromadb")
            assert len(workers) > 1
            assert (health.status_code, health.json()["documents"]) == (200, 320)
            service.stop()
            assert "Traceback" not in service.output()
        # The host has no clients any more, so it lets go.
        async with aiochroma.Memory(store, process="this") as memory:
            assert await memory.count() == len(remembered) == 320


async def test_a_service_takes_over_when_the_owner_ends(serve, store):
    """A service that finds its directory in use says so, and uses it as soon as the owner has let go."""
    async with aiochroma.Memory(store) as memory:
        await memory.remember("from the one before")
        with serve(CHROMA_DB_PATH=store) as service:
            health = await asyncio.to_thread(service.when_up, f"{service.url}/health/chromadb")
            assert health.status_code == 503
            await memory.aclose()
            health = await asyncio.to_thread(
                until, lambda: (answer := service.health()).status_code == 200 and answer, "a healthy service"
            )
            assert health.json()["documents"] == 1


async def test_a_service_starts_before_its_server(serve, tmp_path):
    """Where the Chroma server is late the service answers with 503 meanwhile, and works when the server is there."""
    server = ChromaServer(tmp_path / "server", tmp_path / "server.log")
    with serve(CHROMA_MODE="http", CHROMA_HOST="127.0.0.1", CHROMA_PORT=server.port) as service:
        health = await asyncio.to_thread(service.when_up, f"{service.url}/health/chromadb")
        assert health.status_code == 503
        assert health.json()["error"]
        with server:
            await asyncio.to_thread(until, lambda: service.health().status_code == 200, "a healthy service")


async def test_a_wrong_configuration_ends_the_service(serve):
    """What no waiting can mend stops the start, and the log lists what is wrong."""
    with serve(CHROMA_MODE="http", CHROMA_PORT="80000") as service:
        assert await asyncio.to_thread(service.process.wait, PATIENCE) != 0
        assert "CHROMA_HOST" in service.output()
        assert "CHROMA_PORT" in service.output()


async def test_a_client_that_hangs_up_cancels_its_handler(serve, store):
    """When the connection of a request is closed its handler is cancelled, and the service goes on."""
    with serve(CHROMA_DB_PATH=store) as service:
        await asyncio.to_thread(service.when_up, f"{service.url}/pid")
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await writer.drain()

        def seen(what):
            return httpx.get(f"{service.url}/seen", trust_env=False).json()[what] == 1

        await asyncio.to_thread(until, lambda: seen("started"), "the handler")
        writer.close()
        await asyncio.to_thread(until, lambda: seen("cancelled"), "the cancellation")
        assert service.health().status_code == 200
