"""A host beside the database in this process, and beside what else there is: one command, one run, the same data.

    python tests/benchmarks/host.py [--records 3000 30000] [--rounds 5] [--every 10] [--only this shared] [--picture FILE.png]
    python tests/benchmarks/host.py --records 30000 --bulk-only        # bulk writing alone: host, in process, plain chromadb

Every row is a short burst, and the contenders take turns burst by burst: the machine is not the same a minute later. Figures
are medians of the rounds; a comparison is the median of the rounds' own quotients. Of a gap of the event loop only as much counts
as this process used CPU in it, so that other jobs of the machine do not. The longest stands there twice, the second time without
what Python's own full search for garbage took of it: that looks at whatever the program has imported, 90,000 objects with
chromadb, for some 50 ms; `gc.freeze()` after opening takes these out of it.

Every row is measured with the first number of records in each of four collections; the rows of bulk writing also with each
further number in the collection that is written to. What bulk writing is compared with is plain chromadb in a process of its own,
which writes the same to the same and nothing else.

Single writes go to a collection of their own, which begins with the same records for all. Each of them has Chroma read from its
log what the index file lacks, which is up to 1,000 records: 5 ms with none, 14 ms with 1,000. Where a collection of thousands
stands between the two depends on how its writing was cut, so there two contenders would not do the same.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from server import free_port, start

import aiochroma

DIMENSIONS = 384
COLLECTIONS = 4
IN_LOG = 450
"""Records of the collection for single writes: all in Chroma's log, and about as many as there are on average."""
CONTENDERS = {
    "this": "in process",
    "shared": "host",
    "to_thread": "asyncio.to_thread",
    "run, ours": "chroma run, our client",
    "run": "chroma run, chromadb's client",
    "plain": "plain chromadb, alone",
}
BESIDE = "bulk beside recalls"
RECALL = "Memory.recall over 4 namespaces, 16 callers, per s"
WRITERS = "upsert, 64 writers, per s"
CPU = "this process's CPU, ms each"
_RNG = np.random.default_rng(7)


def vectors(count):
    return _RNG.normal(size=(count, DIMENSIONS)).astype(np.float32)


# -- measuring ---------------------------------------------------------------------------------------------------------


class Stalls:
    """Measures for how long the event loop was kept from running by this process, with and without full searches for garbage.

    Those are Python's, and come when the whole program has made enough objects.
    """

    async def __aenter__(self):
        self.gaps, self.without_searches = [], []
        self._searching = self._begun = 0.0
        self._task = asyncio.ensure_future(self._watch())
        gc.callbacks.append(self._note_search)
        return self

    async def __aexit__(self, *_):
        gc.callbacks.remove(self._note_search)
        self._task.cancel()

    async def _watch(self):
        while True:
            begun, used, self._searching = time.perf_counter(), time.process_time(), 0.0
            await asyncio.sleep(0.001)
            gap, cpu = time.perf_counter() - begun - 0.001, time.process_time() - used
            stalled = max(0.0, min(gap, cpu))
            self.gaps.append(stalled * 1000)
            self.without_searches.append(max(0.0, stalled - self._searching) * 1000)

    def _note_search(self, phase, about):
        if about["generation"] < 2:
            return
        if phase == "start":
            self._begun = time.thread_time()
        else:
            self._searching += time.thread_time() - self._begun

    def into(self, found, row):
        found[f"{row}: loop stall p99, ms"] = round(float(np.percentile(self.gaps or [0.0], 99)), 1)
        found[f"{row}: loop stall max, ms"] = round(max(self.gaps or [0.0]), 1)
        found[f"{row}: the same without full searches for garbage, ms"] = round(
            max(self.without_searches or [0.0]), 1
        )


async def repeated(call, count):
    """Return the median time of a call, in milliseconds."""
    times = []
    for number in range(count):
        begun = time.perf_counter()
        await call(number)
        times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


async def rate(call, callers, each):
    """Return calls per second of several callers at once, and this process's CPU for one of them, in milliseconds."""

    async def caller(number):
        for turn in range(each):
            await call(number * each + turn)

    begun, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(caller, range(callers)))
    count = callers * each
    return round(count / (time.perf_counter() - begun)), round((time.process_time() - used) * 1000 / count, 2)


# -- who is compared ---------------------------------------------------------------------------------------------------


class OnThreads:
    """A collection of plain chromadb whose calls run on the event loop's own pool of threads."""

    def __init__(self, collection):
        self._collection = collection

    def __getattr__(self, name):
        return partial(asyncio.to_thread, getattr(self._collection, name))


class Plain:
    """Plain chromadb alone in a process of its own: it writes the same to the same, with nothing else to do."""

    def __init__(self, path, records):
        command = [sys.executable, __file__, "--plain", str(path), str(records)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process.stdout.readline()

    async def bulk(self, count):
        return await asyncio.to_thread(self._bulk, count)

    async def filled(self, records):
        await asyncio.to_thread(self._bulk, -records)

    async def close(self):
        await asyncio.to_thread(self._process.communicate)

    def _bulk(self, count):
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def as_plain(path, records):
    """Serve a :class:`Plain`: what comes in is how many to write, or, below zero, how many there must be in all."""
    import chromadb

    collection = chromadb.PersistentClient(path).get_or_create_collection(
        "collection0", embedding_function=None
    )
    fill(collection, records)
    print("ready", flush=True)
    for burst, line in enumerate(sys.stdin):
        count, begun = int(line), time.perf_counter()
        if count < 0:
            fill(collection, -count)
        else:
            ids = [f"bulk{burst}-{number}" for number in range(count)]
            collection.upsert(
                ids=ids, embeddings=VECTORS[:count], documents=["a record of a bulk write"] * count
            )
        print(count / (time.perf_counter() - begun), flush=True)


def fill(collection, records):
    for batch in batches(collection.count(), records):
        collection.upsert(**batch)


async def filled(collections, records):
    """Write records until there are that many."""
    for collection in collections:
        for batch in batches(await collection.count(), records):
            await collection.upsert(**batch)


def batches(begin, records):
    for first in range(begin, records, 2500):
        end = min(records, first + 2500)
        yield {
            "ids": [f"id{number}" for number in range(first, end)],
            "embeddings": VECTORS[: end - first] + np.float32(0.01 * (first // 2500)),
            "documents": [f"document {number}" for number in range(first, end)],
        }


class Store:
    """A database with four collections of the same records, however it is reached."""

    every = 0.01
    """Seconds between the moments at which recalls come due."""

    def __init__(self, collections, client=None, close=None, memory=None):
        *self.collections, self.single = collections
        self.client = client
        self.memory = memory
        self._close = close
        self._numbers = itertools.count()

    def next(self):
        return next(self._numbers)

    async def close(self):
        if self.memory is not None:
            await self.memory.aclose()
        if self._close is not None:
            await self._close()

    async def empty(self, _number):
        await self.client.session.submit("get_max_batch_size")

    async def fan_out(self, number):
        query = QUERIES[number % len(QUERIES)][None]
        await asyncio.gather(*(each.query(query_embeddings=query, n_results=5) for each in self.collections))

    async def query(self, number):
        await self.collections[0].query(query_embeddings=QUERIES[number % len(QUERIES)][None], n_results=5)

    async def recall(self, number):
        await self.memory.recall(f"What about record {number}?", namespaces=NAMESPACES)

    async def upsert(self, number):
        await self.single.upsert(
            ids=[f"one{self.next()}"],
            embeddings=QUERIES[number % len(QUERIES)][None],
            documents=["a single record"],
        )

    async def bulk(self, count):
        ids = [f"bulk{self.next()}-{number}" for number in range(count)]
        begun = time.perf_counter()
        await self.collections[0].upsert(
            ids=ids, embeddings=VECTORS[:count], documents=["a record of a bulk write"] * count
        )
        return round(count / (time.perf_counter() - begun))

    async def bulk_beside_recalls(self, count):
        """Write while recalls come due; return records/s and how long the recalls took, in milliseconds."""
        speed = []

        async def write():
            speed.append(await self.bulk(count))

        waits = await self.recalls_when_due(write())
        return speed[0], waits

    async def recalls_when_due(self, meanwhile):
        """Return how long recalls took that came due while something else went on, in milliseconds.

        A recall waits from the moment at which it is due: a loop that was kept from starting it does not make it faster.
        """
        waits, calls = [], []

        async def one(number, due):
            await self.fan_out(number)
            waits.append((time.perf_counter() - due) * 1000)

        async def recalls():
            due = time.perf_counter()
            for number in range(10**6):
                calls.append(asyncio.ensure_future(one(number, due)))
                due += self.every
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

        reading = asyncio.ensure_future(recalls())
        await asyncio.sleep(0.5)
        waits.clear()
        await meanwhile
        reading.cancel()
        await asyncio.gather(*calls)
        return waits


async def opened(contender, folder, records):
    """Open a contender's database, with this many records in each of its collections."""
    path = folder / contender.replace(", ", "-")
    client, close = None, None
    if contender in {"this", "shared"}:
        client = await aiochroma.AsyncPersistentClient(
            path, process=contender, host_idle=0, slow_request_ms=10**6
        )
        close = client.aclose
    elif contender == "to_thread":
        import chromadb

        plain = chromadb.PersistentClient(str(path))
        collections = [
            OnThreads(plain.get_or_create_collection(name, embedding_function=None)) for name in NAMES
        ]
    else:
        port = free_port()
        server = start(str(path), port)
        if contender == "run":
            import chromadb

            client = await chromadb.AsyncHttpClient("127.0.0.1", port)

            async def close():
                server.terminate()
        else:
            client = await aiochroma.AsyncHttpClient("127.0.0.1", port, slow_request_ms=10**6)

            async def close():
                await client.aclose()
                server.terminate()

    if contender != "to_thread":
        collections = [await client.get_or_create_collection(name, embedding_function=None) for name in NAMES]
    await filled(collections[:-1], records)
    await filled(collections[-1:], min(records, IN_LOG))
    return Store(collections, client, close)


async def with_memory(store, contender, folder, records):
    """Open a memory with four namespaces beside a store."""
    memory = aiochroma.Memory(
        folder / f"memory-{contender}", process=contender, host_idle=0, slow_request_ms=10**6
    )
    await memory.open()
    for name in NAMESPACES:
        await memory.remember_many(
            [f"Note {number} of {name}: a record about subject {number % 97}." for number in range(records)],
            namespace=name,
        )
    store.memory = memory
    return store


# -- the rows ----------------------------------------------------------------------------------------------------------


async def empty(store):
    return {"empty request, 1 caller, us": round(await repeated(store.empty, 200) * 1000)}


async def empty_by_many(store):
    return {"empty request, 64 callers, us each": round(10**6 / (await rate(store.empty, 64, 20))[0])}


async def query(store):
    return {"query, 1 caller, ms": round(await repeated(store.query, 50), 2)}


async def fan_out(store):
    return {"fan-out x4, 1 caller, ms": round(await repeated(store.fan_out, 25), 2)}


async def by_many(call, row, callers, each):
    """Keep callers busy; return the rate, this process's CPU, and the stalls of its loop."""
    found = {}
    async with Stalls() as stalls:
        found[f"{row}, per s"], found[f"{row}: {CPU}"] = await rate(call, callers, each)
    stalls.into(found, row)
    return found


async def fan_out_by_16(store):
    return await by_many(store.fan_out, "fan-out x4, 16 callers", 16, 12)


async def fan_out_by_64(store):
    return await by_many(store.fan_out, "fan-out x4, 64 callers", 64, 4)


async def upsert(store):
    return {"upsert, 1 writer, per s": round(1000 / await repeated(store.upsert, 20))}


async def upsert_by_64(store):
    return await by_many(store.upsert, "upsert, 64 writers", 64, 6)


async def recall_by_16(store):
    return await by_many(store.recall, "Memory.recall over 4 namespaces, 16 callers", 16, 8)


async def bulk(store, count=0):
    found = {}
    if isinstance(store, Plain):
        return {"bulk, records/s": await store.bulk(count)}
    async with Stalls() as stalls:
        found["bulk, records/s"] = await store.bulk(count)
    stalls.into(found, "bulk")
    return found


async def bulk_beside_recalls(store, count=0):
    found = {}
    if isinstance(store, Plain):
        return {f"{BESIDE}, records/s": await store.bulk(count)}
    async with Stalls() as stalls:
        found[f"{BESIDE}, records/s"], waits = await store.bulk_beside_recalls(count)
    found[f"{BESIDE}: recall p50, ms"] = round(float(np.percentile(waits, 50)), 1)
    found[f"{BESIDE}: recall p99, ms"] = round(float(np.percentile(waits, 99)), 1)
    stalls.into(found, BESIDE)
    return found


async def recalls_alone(store):
    """Measure the recalls of the row of bulk writing without the bulk write."""
    waits = await store.recalls_when_due(asyncio.sleep(1.5))
    return {"recalls without bulk: recall p99, ms": round(float(np.percentile(waits, 99)), 1)}


async def in_turns(report, stores, row, rounds, prefix=""):
    """Measure a row, burst by burst, each contender in turn; the figures of the rounds go into the report."""
    for _ in range(rounds):
        for name, store in stores.items():
            for figure, value in (await row(store)).items():
                report.setdefault(prefix + figure, {}).setdefault(name, []).append(value)


def run(command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def first_answer(path, process):
    """Return the seconds from the opening to the first answer, in a process that has not imported chromadb."""
    code = (
        "import sys, time, aiochroma.sync as sync; b = time.perf_counter();"
        "c = sync.PersistentClient(sys.argv[1], process=sys.argv[2], host_idle=0); c.count_collections();"
        "print(time.perf_counter() - b); c.close()"
    )
    return float(run([sys.executable, "-c", code, str(path), process]))


def processes(folder, count, callers):
    """Return the fan-outs per second of each of several processes that share a host."""
    command = [sys.executable, __file__, "--client", str(folder), str(callers)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for each in running:
        assert each.stdout.readline() == "ready\n"
    for each in running:
        each.stdin.write("go\n")
        each.stdin.flush()
    return [float(each.communicate()[0]) for each in running]


async def as_client(folder, callers):
    store = await opened("shared", folder, 0)
    await store.fan_out(0)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print((await rate(store.fan_out, callers, 24))[0])
    await store.close()


async def measure(given):
    """Measure everything; return the rows: name, then contender, then the figures of the rounds."""
    folder = Path(tempfile.mkdtemp(prefix="aiochroma-host-"))
    records = given.records[0]
    only = given.only or (["this", "shared"] if given.bulk_only else CONTENDERS)
    names = [name for name in CONTENDERS if name != "plain" and name in only]
    # Of bulk writing alone, the size that counts is that of the collection that is written to.
    begin = min(records, 3000) if given.bulk_only else records
    stores = {name: await opened(name, folder, begin) for name in names}
    ours = {name: store for name, store in stores.items() if name in {"this", "shared"}}
    report = {}
    if not given.bulk_only:
        for row in (empty, empty_by_many):
            await in_turns(report, ours, row, given.rounds)
        for row in (query, fan_out, fan_out_by_16, fan_out_by_64, upsert, upsert_by_64):
            await in_turns(report, stores, row, given.rounds)
    await bulk_writing(report, stores, Plain(folder / "alone", begin), given)
    if not given.bulk_only:
        for name, store in ours.items():
            await with_memory(store, name, folder, min(records, 2000))
        await in_turns(report, ours, recall_by_16, given.rounds)
        if "shared" in stores:
            await shared_by_four(report, folder, given.rounds)
    for store in stores.values():
        await store.close()
    if not given.bulk_only:
        await first_answers(report, folder, ours, given.rounds)
    return report


async def bulk_writing(report, stores, plain, given):
    """Measure the rows of bulk writing with each number of records in the collection that is written to."""
    for records in given.records:
        first = records == given.records[0]
        # With many records, those whose engine is ours are of interest alone.
        chosen = {name: store for name, store in stores.items() if first or name in {"this", "shared"}}
        await plain.filled(records)
        for store in chosen.values():
            await filled(store.collections[:1], records)
        writing = {**chosen, "plain": plain}
        prefix = "" if first else f"[{records:,} records] "
        await in_turns(report, writing, partial(bulk, count=given.bulk), given.rounds, prefix)
        if first:
            await in_turns(report, stores, recalls_alone, given.rounds)
        await in_turns(report, writing, partial(bulk_beside_recalls, count=given.bulk), given.rounds, prefix)
    await plain.close()


async def first_answers(report, folder, ours, rounds):
    """Measure the start, as whoever installs the package has it, whatever this shell says of bytecode."""
    compileall.compile_dir(Path(aiochroma.__file__).parent, quiet=1)
    for _ in range(rounds):
        for name in ours:
            seconds = await asyncio.to_thread(first_answer, folder / name, name)
            report.setdefault("first answer, chromadb not loaded, s", {}).setdefault(name, []).append(seconds)


async def shared_by_four(report, folder, rounds):
    rows = {
        "fan-out x4, 1 process x 64 callers, per s": (1, 64, sum),
        "fan-out x4, 4 processes x 16 callers, per s": (4, 16, sum),
        "4 processes: slowest / fastest": (4, 16, lambda found: min(found) / max(found)),
    }
    for _ in range(rounds):
        taken = {}
        for row, (count, callers, figure) in rows.items():
            if (count, callers) not in taken:
                taken[count, callers] = await asyncio.to_thread(processes, folder, count, callers)
            report.setdefault(row, {}).setdefault("shared", []).append(figure(taken[count, callers]))


# -- aims, table, picture ----------------------------------------------------------------------------------------------


def aims(report):
    """Yield what is aimed at: its text, what was reached, and whether that is enough."""

    def figure(row, name="shared"):
        values = report.get(row, {}).get(name)
        return None if values is None else rounded(statistics.median(values))

    def against(row, other):
        """Return the median of the quotients of neighbours."""
        return quotient(report.get(row, {}).get("shared"), report.get(row, {}).get(other))

    for size in ("", *sorted({row[: row.index("]") + 2] for row in report if row.startswith("[")})):
        beside = f"{size}{BESIDE}, records/s"
        yield f"{size}bulk beside recalls / plain chromadb alone", against(beside, "plain"), 0.6, True
        yield f"{size}bulk alone / plain chromadb", against(f"{size}bulk, records/s", "plain"), 0.9, True
        for row, aim in (("recall p99, ms", 40), ("loop stall p99, ms", 5), ("loop stall max, ms", 15)):
            yield f"{size}{BESIDE}: {row}", figure(f"{size}{BESIDE}: {row}"), aim, False
    for callers in (16, 64):
        row = f"fan-out x4, {callers} callers"
        yield f"{row}, host / in process", against(f"{row}, per s", "this"), 0.95, True
        yield f"{row}, client's CPU, host / in process", against(f"{row}: {CPU}", "this"), 0.25, False
    yield "upsert, 1 writer, host / in process", against("upsert, 1 writer, per s", "this"), 0.9, True
    yield "upsert, 64 writers, host / in process", against(WRITERS, "this"), 1.1, True
    for other in ("to_thread", "run, ours", "run"):
        yield f"upsert, 64 writers, host / {CONTENDERS[other]}", against(WRITERS, other), 8, True
    yield "Memory.recall, 16 callers, host / in process", against(RECALL, "this"), 1.2, True
    four, one = (f"fan-out x4, {which} callers, per s" for which in ("4 processes x 16", "1 process x 64"))
    pair = (report.get(which, {}).get("shared") for which in (four, one))
    yield "4 processes x 16 / 1 process x 64", quotient(*pair), 1.0, True
    yield "slowest / fastest of 4", figure("4 processes: slowest / fastest"), 0.7, True
    for row, aim in (("empty request, 1 caller, us", 100), ("empty request, 64 callers, us each", 15)):
        here, there = report.get(row, {}).get("this"), report.get(row, {}).get("shared")
        more = None if here is None or there is None else differences(there, here)
        yield f"{row}, above in process", more, aim, False
    row = "first answer, chromadb not loaded, s"
    yield "first answer, host started / in process", against(row, "this"), 1.5, False


def quotient(above, below):
    """Return the median of the rounds' quotients."""
    if above is None or below is None:
        return None
    return round(statistics.median(one / other for one, other in zip(above, below, strict=True)), 2)


def differences(above, below):
    """Return the median of the rounds' differences."""
    return round(statistics.median(one - other for one, other in zip(above, below, strict=True)))


def rounded(value):
    return round(value) if value >= 100 else round(value, 2)


def table(report):
    """Return the rows, and the aims, as Markdown."""
    names = [name for name in CONTENDERS if any(name in row for row in report.values())]
    lines = [f"| | {' | '.join(CONTENDERS[name] for name in names)} |", f"|---|{'---:|' * len(names)}"]
    for row, values in report.items():
        figures = " | ".join(
            f"{rounded(statistics.median(values[name])):,}" if name in values else "" for name in names
        )
        lines.append(f"| {row} | {figures} |")
    lines += ["", "| aim | | reached | |", "|---|---:|---:|---|"]
    for text, value, aim, is_least in aims(report):
        if value is not None:
            met = value >= aim if is_least else value <= aim
            lines.append(
                f"| {text} | {'>=' if is_least else '<='} {aim} | {value} | {'yes' if met else 'no'} |"
            )
    return "\n".join(lines)


PANELS = {
    f"{BESIDE}: loop stall max, ms": "Beside a bulk write: longest silence of the event loop, ms",
    f"{BESIDE}: recall p99, ms": "Beside a bulk write: p99 of a question, ms",
    "fan-out x4, 16 callers, per s": "Questions to four collections, 16 callers, per second",
    WRITERS: "Single writes, 64 writers, per second",
}
"""What the picture shows, and what it is called there."""


def draw(report, caption, target):
    """Write a picture: a panel for each row, bars from zero, ours in another colour."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    titles = {
        **CONTENDERS,
        "this": "aiochroma",
        "to_thread": "chromadb in asyncio.to_thread",
        "shared": "aiochroma, owner process",
        "run, ours": "aiochroma's client of a server",
        "run": "chromadb's client of a server",
    }
    panels = [row for row in PANELS if row in report]
    figure, axes = plt.subplots(
        -(-len(panels) // 2), 2, figsize=(12, 2.2 * -(-len(panels) // 2)), squeeze=False
    )
    for axis, row in zip(axes.flat, panels, strict=False):
        values = {titles[name]: statistics.median(found) for name, found in report[row].items()}
        colours = ["#1b6ca8" if name.startswith("aiochroma") else "#b8b8b8" for name in values]
        bars = axis.barh(list(values), list(values.values()), color=colours)
        axis.bar_label(bars, [f"{rounded(value):,}" for value in values.values()], padding=3)
        axis.margins(x=0.15)
        axis.locator_params(axis="x", nbins=5)
        axis.invert_yaxis()
        axis.set_title(PANELS[row], fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.text(0.01, 0.005, caption, fontsize=8, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(target, dpi=110)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, nargs="+", default=[3000, 30000])
    parser.add_argument("--bulk", type=int, default=2500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=float, default=10, help="milliseconds between recalls that come due")
    parser.add_argument("--only", nargs="+", choices=[name for name in CONTENDERS if name != "plain"])
    parser.add_argument("--bulk-only", action="store_true", help="the rows of bulk writing alone")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--client", nargs=2, metavar=("FOLDER", "CALLERS"), help=argparse.SUPPRESS)
    parser.add_argument("--plain", nargs=2, metavar=("FOLDER", "RECORDS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        as_plain(given.plain[0], int(given.plain[1]))
        return
    if given.client:
        asyncio.run(as_client(Path(given.client[0]), int(given.client[1])))
        return
    Store.every = given.every / 1000
    before = os.getloadavg()[0]
    report = asyncio.run(measure(given))
    where = "in the collection written to" if given.bulk_only else f"in each of {COLLECTIONS} collections"
    caption = (
        f"{given.records[0]:,} records of {DIMENSIONS} dimensions {where}, bulk of {given.bulk:,}, "
        f"a recall every {given.every:g} ms; "
        f"{os.cpu_count()} cores, load {before:.1f} before"
    )
    print(caption, table(report), sep="\n\n")
    if given.picture:
        draw(report, caption, given.picture)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2))


QUERIES = vectors(64)
VECTORS = vectors(5000)
NAMES = [*(f"collection{number}" for number in range(COLLECTIONS)), "single-writes"]
NAMESPACES = [f"people-{number}" for number in range(COLLECTIONS)]

if __name__ == "__main__":
    main()
