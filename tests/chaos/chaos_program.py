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
from aiochroma.disk import retained_log

# Often, too.
retained_log._DUE_RECORDS = 40

DIMENSION = 32
COLLECTIONS = {"main": 40, "other": 100}
"""Name and after how many records Chroma rewrites the index: often, so that kills hit it."""
NOTES, TALK = "notes", "talk"
NAMESPACES = {NOTES: 40, TALK: 60}
"""The same of the namespaces of a memory: one whose memories have ids, and one of a conversation, whose turns have none."""

_PAGE = 500
_LOOKED_FOR = 25
"""So many memories of a namespace are looked for by their words and by their meaning."""


def vector(record, version):
    """The vector of a record in one of its versions: deterministic, and far from all others."""
    return (
        np.random.default_rng(zlib.crc32(f"{record}@{version}".encode()))
        .standard_normal(DIMENSION)
        .astype("float32")
    )


def embed(texts):
    """Make the same vectors from the documents, which say which record and version they are."""
    return [vector(*text.split()[0].rsplit("@", 1)) for text in texts]


def word(record, version):
    """A word that no other text has."""
    number, letters = zlib.crc32(f"word of {record}@{version}".encode()), ""
    while number:
        number, letter = divmod(number, 20)
        letters += "bcdfghjklmnpqrstvwxz"[letter] + "aeiou"[number % 5]
    return letters


def told(record, version):
    """The text of a memory in one of its versions."""
    return f"{record}@{version} {word(record, version)}"


class Marks:
    """Embeds what `told` and `embed` speak of."""

    identity = "chaos-marks"
    dimensions = DIMENSION
    max_distance = 0.5

    def embed(self, texts):
        return embed(texts)


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


class AbsentError(Exception):
    """There is no such memory, so nothing was changed."""


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
            await self.read(
                self.collections[name].query(
                    query_embeddings=[vector(some[0], known[some[0]])], n_results=3, include=["documents"]
                )
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

    async def read(self, question):
        try:
            await question
        except aiochroma.AiochromaError:
            self.errors += 1

    async def write(self, name, versions, call):
        number = self.diary.intend(name, versions)
        try:
            await call()
        except (aiochroma.StoreUnavailableError, AbsentError) as error:
            self.errors += 1
            self.diary.say(kind="refused", number=number, error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.02)
        except aiochroma.AiochromaError as error:
            self.errors += 1
            self.diary.say(kind="unknown", number=number, error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.02)
        else:
            self.diary.say(kind="done", number=number, writer=self.name)
            for record, version in versions.items():
                if version:
                    self.known[name][record] = version
                else:
                    self.known[name].pop(record, None)


class Teller(Writer):
    """Remembers, changes, forgets and recalls memories of its own, one call at a time, each with a deadline."""

    def __init__(self, name, memory, diary, generator):
        super().__init__(name, dict.fromkeys(NAMESPACES), diary, generator)
        self.memory = memory

    async def step(self):
        known, dice = self.known[NOTES], self.generator.random()
        some = self.generator.choice(sorted(known)) if known else None
        with aiochroma.deadline(self.generator.choice((0.05, 5.0, 5.0))):
            if some is None or dice < 0.25:
                versions = self.fresh(self.generator.randint(1, 20))
                items = [{"id": record, "text": told(record, 1)} for record in versions]
                await self.write(NOTES, versions, lambda: self.memory.remember_many(items, namespace=NOTES))
            elif dice < 0.35:
                (record,) = versions = self.fresh(1)
                await self.write(
                    NOTES, versions, lambda: self.memory.remember(told(record, 1), id=record, namespace=NOTES)
                )
            elif dice < 0.5:
                # Had it run twice it would be there twice.
                (record,) = versions = self.fresh(1)
                await self.write(
                    TALK,
                    versions,
                    lambda: self.memory.remember(told(record, 1), thread=self.name, namespace=TALK),
                )
            elif dice < 0.7:
                text = told(some, known[some] + 1)
                await self.write(
                    NOTES,
                    {some: known[some] + 1},
                    lambda: self.update(some, text),
                )
            elif dice < 0.85:
                await self.write(NOTES, {some: 0}, lambda: self.memory.forget(some, namespace=NOTES))
            else:
                await self.read(self.memory.recall(told(some, known[some]), namespaces=NOTES, k=3))

    async def update(self, record, text):
        if await self.memory.update(record, namespace=NOTES, text=text) is None:
            # A call without an answer has forgotten it.
            raise AbsentError(record)

    def fresh(self, count):
        """Return so many records that have not been used, in their first version."""
        self.next += count
        return {f"{self.name}-{number}": 1 for number in range(self.next - count, self.next)}


async def opened(directory, diary, **options):
    """Open as a user would; where vectors are reported as lost, embed the documents again as the message says."""
    try:
        return await aiochroma.AsyncPersistentClient(
            directory, lock_timeout=10, slow_request_ms=600_000, **options
        ), 0
    except aiochroma.DatabaseCorruptError as error:
        if "--reembed-missing" not in str(error):
            raise
        from aiochroma.ops import doctor

        diary.say(kind="reported", error=str(error)[:300])
        report = await doctor(directory, reembed_missing=True, embedder=Marks())
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


async def memory_of(client):
    """Return a memory on a client's database; its indexes are rewritten more often than a memory would have it."""
    for name, sync in NAMESPACES.items():
        await client.get_or_create_collection(
            name,
            embedding_function=None,
            configuration={"hnsw": {"space": "cosine", "sync_threshold": sync, "batch_size": sync}},
            metadata={
                "aiochroma:namespace": name,
                "aiochroma:embedder": Marks.identity,
                "aiochroma:dimensions": DIMENSION,
            },
        )
    memory = aiochroma.Memory(client=client, embedder=Marks(), history=True)
    return await memory.open()


async def examine(collections, expected, writers=(), memory=None):
    """Compare what is there with what was acknowledged.

    `expected` has for each collection the acknowledged version of each record, and the versions that an unanswered call
    allows besides; version 0 means that the record is not there.
    """
    found = {
        "records": 0,
        "lost": [],
        "half": [],
        "ghosts": [],
        "unreachable": 0,
        "explained": 0,
        "settled": {},
    }
    for name in [*collections, *(NAMESPACES if memory is not None else ())]:
        acknowledged = expected.get("acknowledged", {}).get(name, {})
        allowed = expected.get("allowed", {}).get(name, {})
        if name in collections:
            actual = await versions_in(collections[name], found)
            if actual:
                found["unreachable"] += await unreachable(collections[name], actual)
        else:
            actual = await memories_in(memory, name, found)
            gone = [record for record in acknowledged if record not in actual]
            await look_for_the_forgotten(memory, name, gone, found)
        found["records"] += len(actual)
        for record in {*acknowledged, *allowed}:
            version = actual.get(record, 0)
            if version != acknowledged.get(record, 0) and version not in allowed.get(record, []):
                found["lost"].append(f"{name}/{record}: {version} instead of {acknowledged.get(record, 0)}")
        found["ghosts"] += [
            f"{name}/{record}" for record in actual if record not in acknowledged and record not in allowed
        ]
        found["settled"][name] = actual
        for writer in [writer for writer in writers if name in writer.known]:
            for record, version in actual.items():
                writer.adopt(name, record, version)
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


async def memories_in(memory, namespace, found):
    """Read all memories of a namespace; look for some by their words and by their meaning, and for their history."""
    actual, ids = {}, {}
    async for hit in memory.list(namespace):
        record, version = hit.text.split()[0].rsplit("@", 1)
        if hit.text != told(record, version) or (namespace == NOTES and hit.id != record):
            found["half"].append(f"{namespace}/{hit.id}: {hit.text}")
        if record in actual:
            found["half"].append(f"{namespace}/{record}: remembered twice")
        actual[record], ids[record] = int(version), hit.id
    await asyncio.gather(
        *(
            look_for(memory, namespace, record, actual[record], ids[record], found)
            for record in some_of(actual)
        )
    )
    return actual


async def look_for(memory, namespace, record, version, id, found):
    """A memory is found by a word of its own and by its meaning, and each of its changes is in the history."""
    for mode, question in (("text", word(record, version)), ("vector", told(record, version))):
        recall = await recalled(memory, namespace, question, mode)
        texts = [hit.text for hit in recall]
        if mode == "text" and recall.errors:
            # The index cannot be used, and says so; what is near in meaning is found all the same.
            found["explained"] += 1
        elif texts[:1] != [told(record, version)]:
            found["half"].append(f"{namespace}/{record}@{version}: not found by {mode}, but {texts}")
    changes = await memory.history(id, namespace=namespace)
    if len(changes) < version:
        found["half"].append(f"{namespace}/{record}@{version}: {len(changes)} entries in the history")


async def look_for_the_forgotten(memory, namespace, gone, found):
    """What was forgotten is not found any more, by nothing that it said."""
    questions = [
        (record, mode, question)
        for record in some_of(gone)
        for mode, question in (("text", word(record, 1)), ("vector", told(record, 1)))
    ]
    recalls = await asyncio.gather(
        *(recalled(memory, namespace, question, mode) for _, mode, question in questions)
    )
    for (record, mode, _), recall in zip(questions, recalls, strict=True):
        found["half"] += [
            f"{namespace}/{record} was forgotten, and is found by {mode}"
            for hit in recall
            if hit.text.startswith(f"{record}@")
        ]


async def recalled(memory, namespace, question, mode):
    """Recall from a complete index."""
    until = time.monotonic() + 60
    while (recall := await memory.recall(question, namespaces=namespace, k=3, mode=mode)).indexing:
        if time.monotonic() > until:
            raise RuntimeError(f"the index of {namespace} never gets complete: {recall.indexing}")
        await asyncio.sleep(0.01)
    return recall


def some_of(records):
    return sorted(records)[:: max(1, len(records) // _LOOKED_FOR)]


async def unreachable(collection, actual):
    """Count records that are not the nearest to their own vector."""
    some = sorted(actual)[:: max(1, len(actual) // 100)]
    answers = await collection.query(
        query_embeddings=[vector(record, actual[record]) for record in some], n_results=1, include=[]
    )
    return sum(ids != [record] for ids, record in zip(answers["ids"], some, strict=True))


async def load(
    directory,
    state,
    diary,
    seed=0,
    writers=3,
    durable=True,
    seconds=None,
    least=0,
    backups=None,
    sigterm=None,
    process=None,
    names="wt",
    dies_after=None,
    **_,
):
    """Check what an earlier process left, then write and read, without end or for a given time and number of steps."""
    begun = time.monotonic()
    client, embedded = await opened(directory, diary, durable=durable or None, process=process)
    collections = await collections_of(client)
    memory = await memory_of(client)
    team = [
        Writer(f"{names[0]}{n}", collections, diary, random.Random(f"{seed}/{n}")) for n in range(writers)
    ]
    team += [Teller(f"{names[1]}{n}", memory, diary, random.Random(f"{seed}/t{n}")) for n in range(2)]
    found = await examine(collections, json.loads(Path(state).read_text()), team, memory)
    diary.say(
        kind="checked",
        rebuilt=rebuilt_by(client),
        embedded=embedded,
        seconds=time.monotonic() - begun,
        **found,
    )
    if dies_after is not None:
        die_between_the_writes(diary, dies_after)
    until = None if seconds is None else time.monotonic() + seconds

    async def work(writer):
        steps = 0
        while until is None or time.monotonic() < until or steps < least:
            steps += 1
            try:
                await writer.step()
            except Exception as error:
                diary.say(kind="crashed", error=f"{writer.name}: {type(error).__name__}: {error}")
                raise

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
    await client.aclose()
    diary.say(kind="closed")


def rebuilt_by(client):
    """How many indexes of Chroma were rebuilt when a client opened."""
    recovery = client.recovery
    return 0 if recovery is None else sum(entry.rebuilt for entry in recovery.collections)


def die_between_the_writes(diary, count):
    """Let this process be killed after so many writes, when Chroma has carried one out and our own index has not."""
    from aiochroma.text.index import TextIndex

    left = [count]

    def dying(method):
        def write(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                diary.say(kind="dying")
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*arguments, **options)

        return write

    TextIndex.upsert, TextIndex.delete = dying(TextIndex.upsert), dying(TextIndex.delete)


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
    collections, memory = await collections_of(client), await memory_of(client)
    found = await examine(collections, json.loads(Path(state).read_text()), memory=memory)
    health = await client.health()
    diary.say(kind="checked", rebuilt=rebuilt_by(client), embedded=embedded, status=health.status, **found)
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
