"""What runs in the child processes of the chaos runs.

`python chaos_program.py` is a nursery: it imports everything once, then forks a child for each JSON line on its standard
input, so that hundreds of children cost milliseconds each and not a second. (To fork after importing chromadb is safe; after
opening a database it is not, and the nursery opens none.)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
import zlib
from importlib import import_module
from pathlib import Path

import numpy as np

import aiochroma

DIMENSION = 32
COLLECTIONS = {"main": 40, "other": 100}
"""Name and after how many records Chroma rewrites the index: often, so that kills hit it."""

_PAGE = 500


def vector(record, version):
    """The vector of a record in one of its versions: deterministic, and far from all others."""
    return (
        np.random.default_rng(zlib.crc32(f"{record}@{version}".encode()))
        .standard_normal(DIMENSION)
        .astype("float32")
    )


def embed(texts):
    """Make the same vectors from the documents, which say which record and version they are."""
    return [vector(*text.rsplit("@", 1)) for text in texts]


class Diary:
    """Writes one JSON line at a time, in one piece, so that a kill leaves whole lines only."""

    def __init__(self, path):
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._number = 0

    def say(self, **entry):
        os.write(self._descriptor, json.dumps(entry).encode() + b"\n")

    def intend(self, collection, versions):
        self._number += 1
        self.say(kind="intended", number=self._number, collection=collection, versions=versions)
        return self._number


# -- the load ----------------------------------------------------------------------------------------------------------


class Writer:
    """Writes, rewrites, deletes and reads records of its own, one call at a time."""

    def __init__(self, name, collections, diary, generator):
        self.name = name
        self.collections = collections
        self.diary = diary
        self.generator = generator
        self.next = 0
        self.known = {collection: {} for collection in collections}
        self.errors = 0

    def adopt(self, collection, record, version):
        """Go on with a record that an earlier process wrote."""
        owner, number = record.split("-")
        if owner == self.name:
            self.next = max(self.next, int(number) + 1)
            self.known[collection][record] = version

    async def step(self):
        name = self.generator.choice(list(self.collections))
        dice = self.generator.random()
        known = self.known[name]
        some = self.generator.sample(sorted(known), min(len(known), self.generator.randint(1, 8)))
        if dice < 0.6 or not some:
            count = self.generator.randint(1, 30)
            await self.put(name, {f"{self.name}-{self.next + n}": 1 for n in range(count)})
            self.next += count
        elif dice < 0.8:
            await self.put(name, {record: known[record] + 1 for record in some})
        elif dice < 0.93:
            await self.write(name, dict.fromkeys(some, 0), lambda: self.collections[name].delete(ids=some))
        else:
            await self.collections[name].query(
                query_embeddings=[vector(some[0], known[some[0]])], n_results=3, include=["documents"]
            )

    async def put(self, name, versions):
        await self.write(
            name,
            versions,
            lambda: self.collections[name].upsert(
                ids=list(versions),
                embeddings=[vector(record, version) for record, version in versions.items()],
                documents=[f"{record}@{version}" for record, version in versions.items()],
                metadatas=[{"version": version} for version in versions.values()],
            ),
        )

    async def write(self, name, versions, call):
        number = self.diary.intend(name, versions)
        try:
            await call()
        except aiochroma.StoreUnavailableError as error:
            self.errors += 1
            self.diary.say(kind="refused", number=number, error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.02)
        except aiochroma.AiochromaError as error:
            self.errors += 1
            self.diary.say(kind="unknown", number=number, error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.02)
        else:
            self.diary.say(kind="done", number=number)
            for record, version in versions.items():
                if version:
                    self.known[name][record] = version
                else:
                    self.known[name].pop(record, None)


async def opened(directory, diary, **options):
    """Open as a user would; where vectors are reported as lost, embed the documents again as the message says."""
    try:
        return await aiochroma.AsyncPersistentClient(
            directory, lock_timeout=10, slow_request_ms=600_000, **options
        ), 0
    except aiochroma.DatabaseCorruptError as error:
        if "--fill-missing" not in str(error):
            raise
        from aiochroma.ops import doctor

        diary.say(kind="reported", error=str(error)[:300])
        report = await asyncio.to_thread(doctor, directory, reembed_missing=True, embedder=embed)
        client = await aiochroma.AsyncPersistentClient(directory, slow_request_ms=600_000, **options)
        return client, sum(report.filled.filled.values())


async def collections_of(client):
    return {
        name: await client.get_or_create_collection(
            name,
            embedding_function=None,
            configuration={"hnsw": {"sync_threshold": sync, "batch_size": sync}},
        )
        for name, sync in COLLECTIONS.items()
    }


async def examine(collections, expected, writers=()):
    """Compare what is there with what was acknowledged.

    `expected` has for each collection the acknowledged version of each record, and the versions that an unanswered call
    allows besides; version 0 means that the record is not there.
    """
    found = {"records": 0, "lost": [], "half": [], "ghosts": [], "unreachable": 0, "settled": {}}
    for name, collection in collections.items():
        acknowledged = expected.get("acknowledged", {}).get(name, {})
        allowed = expected.get("allowed", {}).get(name, {})
        actual = await versions_in(collection, found)
        found["records"] += len(actual)
        for record in {*acknowledged, *allowed}:
            version = actual.get(record, 0)
            if version != acknowledged.get(record, 0) and version not in allowed.get(record, []):
                found["lost"].append(f"{name}/{record}: {version} instead of {acknowledged.get(record, 0)}")
        found["ghosts"] += [
            f"{name}/{record}" for record in actual if record not in acknowledged and record not in allowed
        ]
        found["settled"][name] = actual
        for writer in writers:
            for record, version in actual.items():
                writer.adopt(name, record, version)
        if actual:
            found["unreachable"] += await unreachable(collection, actual)
    return found


async def versions_in(collection, found):
    actual = {}
    while True:
        page = await collection.get(
            limit=_PAGE, offset=len(actual), include=["documents", "metadatas", "embeddings"]
        )
        for record, document, metadata, embedding in zip(
            page["ids"], page["documents"], page["metadatas"], page["embeddings"], strict=True
        ):
            version = int((metadata or {}).get("version", -1))
            actual[record] = version
            if document != f"{record}@{version}" or not np.array_equal(embedding, vector(record, version)):
                found["half"].append(f"{collection.name}/{record}")
        if len(page["ids"]) < _PAGE:
            return actual


async def unreachable(collection, actual):
    """Count records that are not the nearest to their own vector."""
    some = sorted(actual)[:: max(1, len(actual) // 100)]
    answers = await collection.query(
        query_embeddings=[vector(record, actual[record]) for record in some], n_results=1, include=[]
    )
    return sum(ids != [record] for ids, record in zip(answers["ids"], some, strict=True))


async def load(
    directory, state, diary, seed=0, writers=3, durable=True, seconds=None, backups=None, sigterm=None, **_
):
    """Check what an earlier process left, then write and read without end, or for so many seconds."""
    begun = time.monotonic()
    client, embedded = await opened(directory, diary, durable=durable or None)
    collections = await collections_of(client)
    team = [Writer(f"w{n}", collections, diary, random.Random(f"{seed}/{n}")) for n in range(writers)]
    found = await examine(collections, json.loads(Path(state).read_text()), team)
    rebuilt = sum(entry.rebuilt for entry in client.recovery.collections)
    preflight = client.session.connection.engine.serving._opened[0].preflight.seconds
    diary.say(
        kind="checked",
        rebuilt=rebuilt,
        embedded=embedded,
        seconds=time.monotonic() - begun,
        preflight=preflight,
        **found,
    )
    until = None if seconds is None else time.monotonic() + seconds

    async def work(writer):
        while until is None or time.monotonic() < until:
            await writer.step()

    tasks = [asyncio.ensure_future(work(writer)) for writer in team]
    if sigterm is not None:
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, lambda: [task.cancel() for task in tasks]
        )
    if backups is not None:
        await back_up(client, diary, **backups)
        for task in tasks:
            task.cancel()
    await asyncio.wait(tasks)
    diary.say(
        kind="stopped", errors=[repr(t.exception()) for t in tasks if not t.cancelled() and t.exception()]
    )
    await client.aclose()
    diary.say(kind="closed")


async def back_up(client, diary, folder, count):
    for number in range(count):
        await asyncio.sleep(0.1)
        diary.say(kind="backing up", number=number)
        report = await client.backup(Path(folder) / str(number))
        diary.say(
            kind="backed up",
            number=number,
            path=report.path,
            paused=report.paused_ms,
            records=report.records,
            bytes=report.bytes,
        )


async def save(directory, target, diary, **_):
    """Open, back up, close."""
    async with aiochroma.AsyncPersistentClient(directory) as client:
        await client.backup(target)
    diary.say(kind="saved")


async def check(directory, state, diary, durable=True, **_):
    """Only check, then close."""
    client, embedded = await opened(directory, diary, durable=durable or None)
    found = await examine(await collections_of(client), json.loads(Path(state).read_text()))
    rebuilt = sum(entry.rebuilt for entry in client.recovery.collections)
    health = await client.health()
    diary.say(kind="checked", rebuilt=rebuilt, embedded=embedded, status=health.status, **found)
    await client.aclose()


async def attempt(directory, diary, **_):
    """Open a database that somebody else has open, as a careless second worker does."""
    begun = time.monotonic()
    try:
        client = await aiochroma.AsyncPersistentClient(directory)
    except aiochroma.DatabaseInUseError as error:
        diary.say(kind="refused", pid=error.pid, seconds=time.monotonic() - begun, message=str(error))
    else:
        diary.say(kind="opened")
        await client.aclose()


async def restart(directory, state, diary, number, ending, **_):
    """Open, add a record, and end: orderly, without closing, or killed."""
    client = await aiochroma.AsyncPersistentClient(directory, lock_timeout=10, durable=True)
    collections = await collections_of(client)
    writer = Writer(f"r{number}", collections, diary, random.Random(number))
    await writer.put("main", {f"r{number}-0": 1})
    if ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "close":
        await client.aclose()


def hold(directory, diary, seconds, statement="BEGIN IMMEDIATE", **_):
    """Hold SQLite's lock, as a database browser or a backup script does."""
    import sqlite3

    connection = sqlite3.connect(Path(directory) / "chroma.sqlite3", isolation_level=None)
    connection.execute(statement)
    diary.say(kind="holding")
    time.sleep(seconds)
    connection.execute("COMMIT")
    connection.close()
    diary.say(kind="released")


async def locked(directory, diary, deadline, **_):
    """Write while another process holds the lock, with a ticker on the loop and a query beside."""
    client = await aiochroma.AsyncPersistentClient(directory, durable=True)
    collections = await collections_of(client)
    writer = Writer("k0", collections, diary, random.Random(0))
    ordinary = Ticker()
    for number in range(10):
        await writer.put("main", {f"k1-{number}": 1})
    await ordinary.stop()
    diary.say(kind="ready")
    while not Path(f"{directory}.held").exists():
        await asyncio.sleep(0.005)
    waiting = Ticker()
    begun = time.monotonic()
    with contextlib.suppress(aiochroma.DeadlineExceededError), aiochroma.deadline(deadline):
        await writer.put("main", {"k0-1": 1})
    await waiting.stop()
    first = time.monotonic() - begun
    await writer.put("main", {"k0-2": 1})
    diary.say(
        kind="measured", stall_ms=waiting.longest * 1000, ordinary_ms=ordinary.longest * 1000, first=first
    )
    diary.say(kind="checked", **await examine({"main": collections["main"]}, {}))
    await client.aclose()


class Ticker:
    """Measures for how long an event loop stands still; what other processes' use of the processors adds is left out."""

    def __init__(self):
        self.longest = 0.0
        self._over = False
        self._task = asyncio.ensure_future(self._tick())

    async def _tick(self):
        before, queued_before = time.perf_counter(), self._queued_seconds()
        while not self._over:
            await asyncio.sleep(0.001)
            now, queued = time.perf_counter(), self._queued_seconds()
            self.longest = max(self.longest, now - before - (queued - queued_before))
            before, queued_before = now, queued

    async def stop(self):
        self._over = True
        await self._task

    @staticmethod
    def _queued_seconds():
        """For how long this thread could have run and other processes had the processors."""
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


# -- the nursery -------------------------------------------------------------------------------------------------------


def child(order):
    """Do what an order says, within limits: a corrupt index can make native code fill memory and disk."""
    resource.setrlimit(resource.RLIMIT_AS, (14 << 30, 14 << 30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20, 256 << 20))
    diary = Diary(order["out"])
    try:
        work = globals()[order["work"]](diary=diary, **order["arguments"])
        if work is not None:
            asyncio.run(work)
    except BaseException as error:
        diary.say(kind="failed", error=f"{type(error).__name__}: {error}")
        raise


def nursery():
    # What a child would import first is imported here.
    for name in ("chromadb.api.async_client", "tenacity", "aiochroma.client.client", "aiochroma.ops"):
        import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
            continue
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            sys.stdin.close()
            with Path(order["out"] + ".err").open("w") as errors:
                os.dup2(errors.fileno(), 2)
                os.dup2(errors.fileno(), 1)
            child(order)
            sys.exit(0)
        print(json.dumps(pid), flush=True)


if __name__ == "__main__":
    nursery()
