"""When something dies: who gets what, and what is there afterwards."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from chromadb.errors import NotFoundError
from programs import printed_by, until

import aiochroma
from aiochroma.host.messages import make_codec, versions
from aiochroma.host.sockets import connect
from aiochroma.host.wire import FrameKind, frame, json_frame

VECTOR = [0.1, 0.2, 0.3, 0.4]
PROGRAM = Path(__file__).with_name("program.py")


@pytest.fixture
def program(hosts, path):
    """Start a program of its own; ended at the end of the test."""
    started = []

    def start(command, *arguments, **options):
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), command, str(path), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()


async def test_callers_do_not_notice_the_death_of_the_host(client, collection, hosts, path):
    """kill -9 under writers, a bulk write and readers: everyone goes on, and nothing acknowledged is lost."""
    acknowledged: list[str] = []
    answers: Counter[str] = Counter()
    stop = asyncio.Event()

    async def write(name, count):
        while not stop.is_set():
            ids = [f"{name}-{answers[name]}-{n}" for n in range(count)]
            await collection.upsert(ids=ids, embeddings=np.full((count, 4), 0.5, dtype=np.float32))
            acknowledged.extend(ids)
            answers[name] += 1

    async def read(name):
        while not stop.is_set():
            await collection.query(query_embeddings=[VECTOR], n_results=1)
            answers[name] += 1

    async def all_went_on():
        # Twice: what was under way at one death has had its answer before the next. In two deaths it would be under suspicion.
        before = Counter(answers)
        await asyncio.to_thread(
            until, lambda: all(answers[name] >= before[name] + 2 for name in names), "everyone goes on"
        )

    writers = {**{f"w{n}": 1 for n in range(10)}, "bulk": 300}
    readers = ["r0", "r1"]
    names = [*writers, *readers]
    tasks = [asyncio.ensure_future(write(name, count)) for name, count in writers.items()]
    tasks += [asyncio.ensure_future(read(name)) for name in readers]
    for _ in range(2):
        await all_went_on()
        pid = await asyncio.to_thread(hosts.kill, path)
        await asyncio.to_thread(hosts.ended, pid)
    await all_went_on()
    stop.set()
    await asyncio.gather(*tasks)
    there = set((await collection.get(include=[]))["ids"])
    assert set(acknowledged) <= there


async def test_a_host_is_killed_while_it_rewrites_an_index(opening, hosts, path):
    """In the moment in which its files change: no record is lost, and vectors that Chroma has lost are named."""
    async with opening(allow_missing_vectors=True) as client:
        acknowledged = await _killed_in_a_rewrite(client, hosts, path)
        collection = await client.get_collection("rewritten", embedding_function=None)
        there = set((await collection.get(include=[]))["ids"])
        missing = {id for ids in client.recovery.missing.values() for id in ids}
        assert acknowledged <= there
        assert missing <= there
        with_vectors = await collection.get(ids=sorted(there - missing), include=["embeddings"])
        assert len(with_vectors["embeddings"]) == len(there - missing)


async def _killed_in_a_rewrite(client, hosts, path):
    """Kill the host while its client writes; return the ids that were acknowledged."""
    hnsw = {"sync_threshold": 50, "batch_size": 50}
    collection = await client.create_collection(
        "rewritten", configuration={"hnsw": hnsw}, embedding_function=None
    )
    acknowledged, stop = set(), asyncio.Event()

    async def write():
        while not stop.is_set():
            ids = [f"{len(acknowledged)}-{n}" for n in range(50)]
            await collection.upsert(ids=ids, embeddings=np.random.rand(50, 4).astype("f4"))
            acknowledged.update(ids)

    def kill_in_a_rewrite():
        until(lambda: list(path.glob("*-*-*-*-*/header.bin")), "there is an index")
        before = _changed_at(path)
        while _changed_at(path) == before:
            pass
        return hosts.kill(path)

    writing = asyncio.ensure_future(write())
    await asyncio.to_thread(hosts.ended, await asyncio.to_thread(kill_in_a_rewrite))
    stop.set()
    await writing
    return acknowledged


def _changed_at(path):
    return [header.stat().st_mtime_ns for header in path.glob("*-*-*-*-*/header.bin") if header.exists()]


async def test_what_may_not_run_twice_is_not_sent_again(client, collection, hosts, path):
    """Its outcome is unknown, says the error; what may run twice is answered by the next host, in the old order."""
    await collection.add(ids=["a", "b"], embeddings=[VECTOR, VECTOR])
    os.kill(hosts.pid(path), signal.SIGSTOP)
    first = asyncio.ensure_future(collection.upsert(ids=["order"], embeddings=[VECTOR], documents=["first"]))
    deletion = asyncio.ensure_future(collection.delete(where={"n": 1}))
    creation = asyncio.ensure_future(client.create_collection("other", embedding_function=None))
    second = asyncio.ensure_future(
        collection.upsert(ids=["order"], embeddings=[VECTOR], documents=["second"])
    )
    count = asyncio.ensure_future(collection.count())
    await asyncio.sleep(0.05)
    hosts.kill(path)
    outcomes = await asyncio.gather(first, deletion, creation, second, count, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[1:3]] == [aiochroma.OutcomeUnknownError] * 2
    assert not any(isinstance(outcome, BaseException) for outcome in (outcomes[0], outcomes[3], outcomes[4]))
    assert (await collection.get(ids=["order"]))["documents"] == ["second"]


async def test_a_request_that_kills_hosts_is_not_sent_for_ever(dying_host, client, collection):
    """Under way in two deaths: its caller gets an error that names it and the log; others go on."""
    with pytest.raises(aiochroma.StoreUnavailableError, match=r"get_tenant.*both times.*aiochroma-host\.log"):
        await client.session.submit("get_tenant", name="poison")
    assert await collection.count() == 0
    assert dying_host().count("get_tenant poison") == 2


async def test_hosts_that_die_one_after_the_other_are_not_started_for_ever(dying_host, client, collection):
    """Five deaths within a minute: whoever waits gets an error with the log's path; the next request tries again."""
    outcomes = await asyncio.gather(
        *(client.session.submit("get_tenant", name="poison", n=n) for n in range(3)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [aiochroma.StoreUnavailableError] * 3
    with pytest.raises(aiochroma.StoreUnavailableError):
        await client.session.submit("get_tenant", name="poison", n=3)
    assert await collection.count() == 0


@pytest.mark.timeout(300)
async def test_nothing_runs_twice_that_may_not(dying_host, client, collection):
    """Random deaths among requests of all kinds: what may not be repeated ran once at most, the rest has its outcome."""
    kinds = ["_delete", "create_collection", "_upsert", "_count"]

    async def one(number):
        kind = kinds[number % len(kinds)]
        try:
            if kind == "_delete":
                await collection.delete(where={"number": number})
            elif kind == "create_collection":
                await client.create_collection(f"created{number}", embedding_function=None)
            elif kind == "_upsert":
                await collection.upsert(ids=[f"id{number}"], embeddings=[VECTOR])
            else:
                await collection.count()
        except aiochroma.AiochromaError as error:
            return kind, error
        return kind, None

    async def poison(number):
        await asyncio.sleep(0.4 * number)
        with pytest.raises(aiochroma.StoreUnavailableError):
            await client.session.submit("get_tenant", name="poison", n=number)

    outcomes, _ = await asyncio.gather(asyncio.gather(*map(one, range(400))), poison(0))
    allowed = {
        "_delete": {aiochroma.OutcomeUnknownError},
        "create_collection": {aiochroma.OutcomeUnknownError},
    }
    for kind, error in outcomes:
        assert error is None or type(error) in allowed.get(kind, {aiochroma.StoreUnavailableError}), (
            kind,
            error,
        )
    runs = [line for line in dying_host() if line.startswith(("_delete", "create_collection created"))]
    assert len(runs) == len(set(runs))


async def test_a_host_that_dies_while_it_opens_is_replaced(opening, hosts, path):
    """Between listening and being open."""
    async with opening() as client:
        await client.create_collection("things", embedding_function=None)
    await asyncio.to_thread(hosts.ended, hosts.kill(path))
    opened = asyncio.ensure_future(_opened(opening))
    pid = await asyncio.to_thread(until, lambda: hosts.pid(path), "the host has the lock")
    os.kill(pid, signal.SIGKILL)
    client = await opened
    try:
        assert len(await client.list_collections()) == 1
    finally:
        await client.aclose()


async def _opened(opening):
    return await opening()


async def test_a_killed_client_leaves_nothing_in_the_host(client, collection, hosts, path, program):
    """What it had queued never runs; the others notice nothing."""
    victim = program("flood", 3000)
    assert victim.stdout.readline() == "flooding\n"
    await asyncio.to_thread(until, lambda: len(hosts.status(path)["clients"]) == 2, "both are connected")
    victim.kill()
    victim.wait()
    await asyncio.to_thread(until, lambda: len(hosts.status(path)["clients"]) == 1, "it is gone")
    pending = await asyncio.to_thread(until, lambda: hosts.status(path), "an answer")
    assert pending["pending"] <= 300
    count = await collection.count()
    await asyncio.to_thread(until, lambda: hosts.status(path)["pending"] == 0, "nothing is left")
    assert await collection.count() - count <= 300


async def test_what_a_killed_client_had_in_the_host_never_runs(
    monkeypatch, tmp_path, dying_host, opening, hosts, path, program
):
    """Its requests had arrived and had not begun: the host lets go of them as soon as it is gone."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv("DYING_HOST_GATE", str(gate))
    async with opening() as client:
        victim = program("flood", 3000)
        assert victim.stdout.readline() == "flooding\n"
        held = asyncio.ensure_future(client.get_collection("gate"))
        await asyncio.to_thread(until, lambda: "get_collection gate" in dying_host(), "the host is held")
        await asyncio.to_thread(until, lambda: hosts.status(path)["pending"] > 200, "the victim waits")
        victim.kill()
        await asyncio.to_thread(until, lambda: len(hosts.status(path)["clients"]) == 1, "it is gone")
        gate.write_text("open")
        with pytest.raises(NotFoundError):
            await held
        await client.heartbeat()
    carried_out = dying_host()
    assert "_upsert " not in carried_out[carried_out.index("get_collection gate") :]


async def test_a_stopped_client_keeps_nobody_waiting(client, collection, hosts, path, program):
    """Its answers pile up, then it is sent away; when it wakes it connects again and goes on."""
    await collection.add(
        ids=[f"id{n}" for n in range(160)],
        embeddings=np.random.default_rng(0).random((160, 4), dtype=np.float32),
        documents=["x" * 20_000] * 160,
    )
    other = program("read_and_stop", 60)
    assert other.stdout.readline() == "reading\n"
    assert await asyncio.wait_for(collection.count(), 60) == 160
    await asyncio.to_thread(until, lambda: "host.dropped_client" in hosts.log(path), "it is sent away")
    other.send_signal(signal.SIGCONT)
    out, errors = await asyncio.to_thread(other.communicate)
    assert out == "done\n"
    assert errors.count("is reached again") == 1


async def test_a_cut_write_keeps_its_place_when_the_connection_is_lost(client, collection, hosts, path):
    """The host is the same one: what it had begun is before what is sent again, and that before what comes later."""
    pid, ids = hosts.pid(path), [f"id{n}" for n in range(1500)]
    records = {"ids": ids, "embeddings": np.random.default_rng(0).random((1500, 4), dtype=np.float32)}
    old = asyncio.ensure_future(collection.upsert(**records, documents=["old"] * 1500))
    while not await collection.count():
        assert not old.done()
    client.session.connection.engine.serving._state._socket.shutdown(socket.SHUT_RDWR)
    await collection.upsert(**records, documents=["new"] * 1500)
    await old
    assert set((await collection.get(include=["documents"]))["documents"]) == {"new"}
    assert hosts.pid(path) == pid


async def test_what_is_sent_again_keeps_its_place_before_what_was_not_sent(client, collection, hosts, path):
    """The last write of a record is the one that stays, whether all of its writes were sent when the host died, or some."""
    hosts.kill(path, signal.SIGSTOP)
    writes = [
        asyncio.ensure_future(
            collection.upsert(
                ids=["all" if number < 150 else "some"], embeddings=[VECTOR], documents=[f"version {number}"]
            )
        )
        for number in range(300)
    ]
    # More than a client may have in the host, so that some are sent and others are not.
    while client.stats().pending < len(writes):
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    hosts.kill(path)
    await asyncio.gather(*writes)
    found = await collection.get()
    assert dict(zip(found["ids"], found["documents"], strict=True)) == {
        "all": "version 149",
        "some": "version 299",
    }


async def test_nonsense_on_the_socket_harms_nobody(client, collection, hosts, path):
    """A connection that does not speak the protocol is closed, the others go on."""
    for nonsense in (b"GET / HTTP/1.1\r\n\r\n" * 3, frame(FrameKind.REQUEST, 1, b"x"), b"\0" * 100):
        with connect(path) as connection:
            connection.sendall(nonsense)
            connection.settimeout(30)
            assert connection.recv(100) == b""
    assert await collection.count() == 0


async def test_a_client_that_says_nonsense_of_itself_harms_nobody(client, collection, path):
    """What is well-formed and makes no sense ends its own connection, and no other."""
    hello = json_frame(FrameKind.HELLO, {**versions(), "pid": 1})
    endless = make_codec().encode(["heartbeat", {}, {}, False, False, 10**400, {}])
    for nonsense in (
        json_frame(FrameKind.HELLO, {**versions(), "pid": "one"}),
        json_frame(FrameKind.HELLO, {**versions(), "options": {"settings": {"is_persistent": []}}}),
        hello + frame(FrameKind.REQUEST, 1, endless),
    ):
        with connect(path) as connection:
            connection.sendall(nonsense)
            connection.settimeout(30)
            while connection.recv(4096):
                pass
    assert await collection.count() == 0


async def test_a_signal_in_the_middle_of_sending(dying_host, client, collection, hosts, path):
    """It comes on the thread that holds a client's lock: the host ends in order all the same, and callers go on."""
    with pytest.raises(NotFoundError):
        await client.session.submit("get_tenant", name="signal")
    pid = hosts.pid(path)
    with connect(path) as connected:
        connected.sendall(json_frame(FrameKind.HELLO, {**versions(), "pid": 1}))
        await asyncio.to_thread(hosts.ended, pid)
    assert await collection.count() == 0
    assert hosts.pid(path) != pid


async def test_the_end_of_a_host_is_waited_for_in_order(client, collection, hosts, path):
    """SIGTERM under load: what was acknowledged is there, what was not is served by the next host; no caller fails."""
    calls = [
        asyncio.ensure_future(collection.upsert(ids=[f"id{n}"], embeddings=[VECTOR])) for n in range(1500)
    ]
    await asyncio.sleep(0.05)
    pid = hosts.kill(path, signal.SIGTERM)
    await asyncio.gather(*calls)
    await asyncio.to_thread(hosts.ended, pid)
    assert await collection.count() == 1500
    assert hosts.pid(path) != pid


def test_exit_without_close_is_clean(program):
    """With requests in flight: rc 0 and no output."""
    process = program("exit")
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "submitted\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_end_of_a_process_is_seen_although_its_forked_child_lives_on(hosts, path, program):
    """The child holds no copy of the connection: what its parent had asked for is let go of."""
    parent = program("outlived")
    child = int(parent.stdout.readline())
    try:
        assert len(hosts.status(path)["clients"]) == 1
        parent.kill()
        until(lambda: hosts.status(path)["clients"] == [], "the host sees the end of the parent")
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_may_open_its_own(program, hosts, path):
    """The parent's handles raise in the child, new ones work, the parent goes on."""
    process = program("fork")
    out, errors = process.communicate(timeout=60)
    assert errors == ""
    assert out.splitlines() == ["child: ForkedProcessError", "child: 1", "parent: 2"]


@pytest.mark.timeout(300)
async def test_many_deaths_lose_nothing(hosts, tmp_path):
    """Hosts and clients are killed under a mixed load: nothing acknowledged is lost, nothing runs twice that may not."""
    shown = await asyncio.to_thread(
        printed_by, Path(__file__).with_name("deaths.py"), "--deaths", 4, "--seed", 3, patience=280
    )
    assert shown.startswith("4 deaths: ")
    assert re.search(r"^[1-9]\d* records acknowledged, 0 lost", shown, re.MULTILINE)
