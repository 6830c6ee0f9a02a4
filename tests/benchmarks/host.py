"""A host beside the database in this process: one command, one run, the same data.

    python tests/benchmarks/host.py [--records 3000] [--rounds 1] [--json FILE]

Contenders take turns. Times are medians of the rounds; of a gap of the event loop only as much counts as this process used CPU in
it, so that other jobs of the machine do not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import aiochroma

DIMENSIONS = 384
COLLECTIONS = 4
CONTENDERS = ("this", "shared")
_RNG = np.random.default_rng(7)


def vectors(count):
    return _RNG.normal(size=(count, DIMENSIONS)).astype(np.float32)


class Stalls:
    """Measures for how long the event loop was kept from running by this process."""

    async def __aenter__(self):
        self.gaps = []
        self._task = asyncio.ensure_future(self._watch())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()

    async def _watch(self):
        while True:
            begun, used = time.perf_counter(), time.process_time()
            await asyncio.sleep(0.001)
            gap, cpu = time.perf_counter() - begun - 0.001, time.process_time() - used
            self.gaps.append(max(0.0, min(gap, cpu)) * 1000)

    @property
    def p99(self):
        return round(float(np.percentile(self.gaps or [0.0], 99)), 1)

    @property
    def max(self):
        return round(max(self.gaps or [0.0]), 1)


async def repeated(call, count):
    """Return the median and the p99 of a call, in milliseconds."""
    times = []
    for number in range(count):
        begun = time.perf_counter()
        await call(number)
        times.append((time.perf_counter() - begun) * 1000)
    return round(statistics.median(times), 2), round(float(np.percentile(times, 99)), 2)


async def rate(call, callers, each):
    """Return calls per second of so many callers, and this process's CPU for one of them, in milliseconds."""

    async def caller(number):
        for turn in range(each):
            await call(number * each + turn)

    begun, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(caller, range(callers)))
    count = callers * each
    return round(count / (time.perf_counter() - begun)), round((time.process_time() - used) * 1000 / count, 2)


class Store:
    """A database with four collections of the same records."""

    def __init__(self, client, collections):
        self.client = client
        self.collections = collections
        self.fresh = 0

    async def fan_out(self, number):
        query = QUERIES[number % len(QUERIES)][None]
        await asyncio.gather(*(each.query(query_embeddings=query, n_results=5) for each in self.collections))

    async def query(self, number):
        await self.collections[0].query(query_embeddings=QUERIES[number % len(QUERIES)][None])

    async def upsert(self, number):
        self.fresh += 1
        await self.collections[0].upsert(
            ids=[f"one{self.fresh}"],
            embeddings=QUERIES[number % len(QUERIES)][None],
            documents=["a single record"],
        )

    async def bulk(self, count):
        self.fresh += 1
        ids = [f"bulk{self.fresh}-{number}" for number in range(count)]
        begun = time.perf_counter()
        await self.collections[0].upsert(
            ids=ids, embeddings=vectors(count), documents=["a record of a bulk write"] * count
        )
        return count / (time.perf_counter() - begun)

    async def bulk_beside_recalls(self, count):
        """Write while a recall comes due every 10 ms; return records/s and the recalls' p99 in milliseconds.

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
                due += 0.01
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

        reading = asyncio.ensure_future(recalls())
        speed = await self.bulk(count)
        reading.cancel()
        await asyncio.gather(*calls)
        return speed, float(np.percentile(waits, 99))


async def opened(path, process, records):
    client = await aiochroma.AsyncPersistentClient(path, process=process, host_idle=0, slow_request_ms=10**6)
    collections = [
        await client.get_or_create_collection(f"collection{n}", embedding_function=None)
        for n in range(COLLECTIONS)
    ]
    store = Store(client, collections)
    if await collections[0].count() < records:
        for collection in collections:
            await collection.add(
                ids=[f"id{n}" for n in range(records)],
                embeddings=vectors(records),
                documents=DOCUMENTS[:records],
            )
    return store


async def rows(store, bulk):
    """Measure every row for one contender, once."""
    found = {}
    found["empty, 1 caller, ms"] = (
        await repeated(lambda _: store.client.session.submit("get_max_batch_size"), 200)
    )[0]
    found["query, 1 caller, ms"] = (await repeated(lambda n: store.query(n), 100))[0]
    found["fan-out x4, 1 caller, ms"] = (await repeated(store.fan_out, 50))[0]
    for callers in (16, 64):
        async with Stalls() as stalls:
            speed, cpu = await rate(store.fan_out, callers, 512 // callers)
        found[f"fan-out x4, {callers} callers, per s"] = speed
        found[f"fan-out x4, {callers} callers, client CPU ms"] = cpu
        found[f"fan-out x4, {callers} callers, stall p99 ms"] = stalls.p99
    async with Stalls() as stalls:
        found["upsert, 64 writers, per s"], found["upsert, 64 writers, client CPU ms"] = await rate(
            store.upsert, 64, 8
        )
    found["upsert, 64 writers, stall p99 ms"] = stalls.p99
    async with Stalls() as stalls:
        found["bulk alone, records/s"] = round(await store.bulk(bulk))
    found["bulk alone, stall p99 ms"], found["bulk alone, stall max ms"] = stalls.p99, stalls.max
    async with Stalls() as stalls:
        speed, wait = await store.bulk_beside_recalls(bulk)
    found["bulk beside recalls, records/s"], found["bulk beside recalls, recall p99 ms"] = (
        round(speed),
        round(wait, 1),
    )
    found["bulk beside recalls, stall p99 ms"], found["bulk beside recalls, stall max ms"] = (
        stalls.p99,
        stalls.max,
    )
    return found


async def one_writer(stores, turns=10, each=10):
    """Return upserts per second of a single writer; in short turns, because the machine is not the same a second later."""
    times = {contender: [] for contender in stores}
    for _ in range(turns):
        for contender, store in stores.items():
            times[contender].append((await repeated(store.upsert, each))[0])
    return {contender: round(1000 / statistics.median(found)) for contender, found in times.items()}


def plain(path, records, bulk):
    """Return what plain chromadb writes per second with nothing else to do."""
    code = (
        "import chromadb, sys, time, numpy as np; path, records, bulk = sys.argv[1], *map(int, sys.argv[2:]);"
        "c = chromadb.PersistentClient(path).get_or_create_collection('collection0', embedding_function=None);"
        f"v = np.random.default_rng(1).normal(size=(max(records, bulk), {DIMENSIONS})).astype('f4');"
        "c.add(ids=[f'id{n}' for n in range(records)], embeddings=v[:records], documents=['x'] * records);"
        "t = time.perf_counter(); c.upsert(ids=[f'b{n}' for n in range(bulk)], embeddings=v[:bulk], documents=['x'] * bulk);"
        "print(bulk / (time.perf_counter() - t))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(records), str(bulk)],
        capture_output=True,
        text=True,
        check=True,
    )
    return round(float(done.stdout))


def processes(path, count, callers):
    """Return the fan-outs per second of each of several processes that share a host."""
    command = [sys.executable, __file__, "--client", str(path), str(callers)]
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


async def as_client(path, callers):
    store = await opened(path, "shared", 0)
    await store.fan_out(0)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print((await rate(store.fan_out, callers, 24))[0])
    await store.client.aclose()


async def measure(records, bulk, rounds):
    folder = Path(tempfile.mkdtemp(prefix="aiochroma-host-"))
    begun = {}
    stores = {}
    for contender in CONTENDERS:
        at = time.perf_counter()
        client = await aiochroma.AsyncPersistentClient(
            folder / contender, process=contender, host_idle=0, slow_request_ms=10**6
        )
        begun[contender] = round(time.perf_counter() - at, 2)
        stores[contender] = await opened(folder / contender, contender, records)
        await client.aclose()
    taken = {contender: [] for contender in CONTENDERS}
    for _ in range(rounds):
        for contender, store in stores.items():
            taken[contender].append(await rows(store, bulk))
    report = {
        name: {
            contender: statistics.median(each[name] for each in taken[contender]) for contender in CONTENDERS
        }
        for name in taken["this"][0]
    }
    report["upsert, 1 writer, per s"] = await one_writer(stores)
    alone = await asyncio.to_thread(plain, folder / "plain", records, bulk)
    report["plain chromadb, bulk alone, records/s"] = {"plain": alone}
    for count, callers in ((1, 64), (4, 16)):
        each = await asyncio.to_thread(processes, folder / "shared", count, callers)
        name = f"{count} processes x {callers} callers, fan-outs per s"
        report[name] = {"shared": round(sum(each)), "slowest / fastest": round(min(each) / max(each), 2)}
    report["opening, s (the second has chromadb imported)"] = begun
    for store in stores.values():
        await store.client.aclose()
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=3000)
    parser.add_argument("--bulk", type=int, default=2500)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json")
    parser.add_argument("--client", nargs=2, metavar=("PATH", "CALLERS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        asyncio.run(as_client(given.client[0], int(given.client[1])))
        return
    report = asyncio.run(measure(given.records, given.bulk, given.rounds))
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print(f"{given.records} records of {DIMENSIONS} dimensions in each of {COLLECTIONS} collections")
    for name, values in report.items():
        print(f"{name:52}", "  ".join(f"{key} {value}" for key, value in values.items()))
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=2))


QUERIES = vectors(64)
DOCUMENTS = [f"document {n}" for n in range(100_000)]

if __name__ == "__main__":
    main()
