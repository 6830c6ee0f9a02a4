"""Measure what grows with a store: ``python tests/benchmarks/scale.py [--sizes 1000,10000,100000] [--only NAME ...]``.

Every figure is taken on stores of all sizes, in a process of its own, with plain chromadb beside where there is something to
compare: the same texts, vectors and metadata, written in the same run. Prints a table, and writes one chart (``--chart FILE``).
The row ``mixed`` takes ten minutes. Needs the dependency group ``bench``. About two minutes for each 10,000 records.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from _measuring import Ticker

from aiochroma import Memory, WordLlamaEmbedder
from aiochroma.backend.embedded import EmbeddedBackend

BATCH = 256
WORDS = 21
NAMESPACE = "large"
SMALL = "small"
MIXED_MINUTES = 10
QUESTION = "What did {name} say about the {noun} in {place}?"
NAMES = ("Ada", "Bruno", "Chen", "Dora", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas")
NOUNS = (
    "garden",
    "invoice",
    "router",
    "recipe",
    "telescope",
    "marathon",
    "kitten",
    "passport",
    "engine",
    "server",
)
PLACES = ("Lisbon", "Kyoto", "Oslo", "Nairobi", "Toronto", "Cusco", "Dublin", "Jaipur", "Tallinn", "Perth")

Row = dict[str, float]


def records(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Make texts of some twenty words with names, numbers and metadata, most of them in threads of twenty."""
    generator = random.Random(seed)
    syllables = ("ka", "lo", "mi", "ren", "tas", "vu", "sol", "del", "bra", "ni")
    words = [first + second for first in syllables for second in syllables] + [
        f"{first}{second}{third}" for first in syllables for second in syllables for third in syllables
    ]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    made = []
    for number in range(count):
        filling = " ".join(generator.choices(words, weights, k=WORDS - 8))
        text = (
            f"{generator.choice(NAMES)} said that the {generator.choice(NOUNS)} in {generator.choice(PLACES)} is "
            f"number {seed}-{number}: {filling}"
        )
        item: dict[str, Any] = {
            "text": text,
            "metadata": {"fifth": number % 5, "hundredth": number % 100, "rare": number % 10_000},
        }
        if number % 3:
            item["thread"] = f"thread-{seed}-{number // 20}"
        made.append(item)
    return made


def questions(count: int) -> list[str]:
    """Make questions, every one another."""
    generator = random.Random(7)
    return [
        QUESTION.format(
            name=generator.choice(NAMES),
            noun=generator.choice(NOUNS),
            place=f"{generator.choice(PLACES)} {number}",
        )
        for number in range(count)
    ]


def rss_mb() -> float:
    """Return what this process holds in memory now, in megabytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def size_of(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def write_journals(directory: Path) -> None:
    """Bring the journals of databases that are closed into their files; Chroma closes its own some time after its client."""
    for file in directory.rglob("*.sqlite3"):
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


async def timed(work: Callable[[int], Awaitable[Any]], count: int, *, warm: int = 2) -> Row:
    """Call something one after the other; return median and largest wall time and the mean CPU time, in milliseconds."""
    for number in range(warm):
        await work(count + number)
    wall = []
    cpu = time.process_time()
    for number in range(count):
        begun = time.perf_counter()
        await work(number)
        wall.append(time.perf_counter() - begun)
    used = time.process_time() - cpu
    return {"p50_ms": statistics.median(wall) * 1e3, "max_ms": max(wall) * 1e3, "cpu_ms": used / count * 1e3}


async def longest_wait(
    probe: Callable[[int], Awaitable[Any]], work: Callable[[], Awaitable[Any]], every: float = 0.01
) -> Row:
    """Call a probe at a steady pace while something long runs; return its slowest answer and the loop's longest stall."""
    waits: list[float] = []
    done = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    async def one(number: int) -> None:
        begun = time.perf_counter()
        await probe(number)
        waits.append(time.perf_counter() - begun)

    async def probing() -> None:
        number = 0
        while not done.is_set():
            task = asyncio.create_task(one(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            await asyncio.sleep(every)

    async with Ticker() as ticker:
        prober = asyncio.create_task(probing())
        begun = time.perf_counter()
        await work()
        seconds = time.perf_counter() - begun
        done.set()
        await prober
        await asyncio.gather(*tasks)
    return {"wait_ms": max(waits) * 1e3, "stall_ms": ticker.summary()["stall_max_ms"], "seconds": seconds}


# -- stores ------------------------------------------------------------------------------------------------------------


async def build(directory: Path, size: int) -> Row:
    """Fill a store and plain chromadb with the same, a fifth in turn; a memory embeds its texts itself, plain gets vectors."""
    items = records(size)
    client, collection = _plain_collection(directory)
    ours, plain = [], []
    async with Memory(directory / "ours") as memory:
        for part in np.array_split(np.arange(size), 5):
            some = items[part[0] : part[-1] + 1]
            begun = time.perf_counter()
            for start in range(0, len(some), 5000):
                await memory.remember_many(some[start : start + 5000], namespace=NAMESPACE)
            ours.append(time.perf_counter() - begun)
            vectors = _vectors([item["text"] for item in some])
            begun = time.perf_counter()
            await asyncio.to_thread(_upsert, collection, some, vectors, int(part[0]))
            plain.append(time.perf_counter() - begun)
        await memory.remember_many(records(30, seed=2), namespace=SMALL)
    small = client.get_or_create_collection("small", embedding_function=None)
    some = records(30, seed=2)
    await asyncio.to_thread(_upsert, small, some, _vectors([item["text"] for item in some]))
    client.close()
    write_journals(directory)
    return {
        "records_per_s": size / sum(ours),
        "plain_records_per_s": size / sum(plain),
        "ratio": statistics.median(one / other for one, other in zip(plain, ours, strict=True)),
        "disk_kb": size_of(directory / "ours") / size / 1e3,
        "plain_disk_kb": size_of(directory / "plain") / size / 1e3,
    }


_embedder = cache(WordLlamaEmbedder)


def _vectors(texts: list[str]) -> np.ndarray:
    return _embedder().embed(texts)


def _plain_collection(directory: Path, name: str = "large") -> Any:
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(str(directory / "plain"), Settings(anonymized_telemetry=False))
    return client, client.get_or_create_collection(
        name, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )


def _upsert(collection: Any, items: list[dict[str, Any]], vectors: np.ndarray, first: int = 0) -> None:
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        collection.upsert(
            ids=[f"{first + start + n}" for n in range(len(batch))],
            embeddings=vectors[start : start + len(batch)],
            documents=[item["text"] for item in batch],
            metadatas=[item["metadata"] for item in batch],
        )


async def beside_plain(
    ours: Callable[[int], Awaitable[Any]], plain: Callable[[int], object], count: int
) -> Row:
    """Time calls of ours and of plain chromadb in four turns each; a row of ours, plain's medians, and the quotient of both."""
    found: dict[str, list[Row]] = {"ours": [], "plain": []}

    async def plainly(number: int) -> None:
        plain(number)

    for turn in range(4):
        for name, call in (("ours", ours), ("plain", plainly)):
            found[name].append(
                await timed(lambda n: call(n + turn * count), count // 4, warm=1 if turn else 3)  # noqa: B023
            )
    both = {
        name: {field: statistics.median(row[field] for row in rows) for field in rows[0]}
        for name, rows in found.items()
    }
    quotients = [
        one["p50_ms"] / other["p50_ms"] for one, other in zip(found["ours"], found["plain"], strict=True)
    ]
    return {
        **both["ours"],
        "plain_p50_ms": both["plain"]["p50_ms"],
        "plain_cpu_ms": both["plain"]["cpu_ms"],
        "against_plain": statistics.median(quotients),
    }


# -- figures: each is a coroutine function of a directory with ``ours`` and ``plain``, and its size ----------------------


async def small_write(directory: Path, size: int) -> Row:
    """One write into a namespace of 30 beside the large one; the loop's stall included."""
    client, small = _plain_collection(directory, "small")
    vector = _vectors(["A new fact of the small one."])
    async with Memory(directory / "ours") as memory:
        async with Ticker() as ticker:
            await timed(lambda n: memory.remember(f"An earlier fact, number {n}.", namespace=SMALL), 15)
        row = await beside_plain(
            lambda n: memory.remember(f"A new fact, number {n}, of the small one.", namespace=SMALL),
            lambda n: small.upsert(
                ids=[f"new-{n}"],
                embeddings=vector,
                documents=[f"A new fact, number {n}, of the small one."],
            ),
            16,
        )
    client.close()
    return {**row, "stall_ms": ticker.summary()["stall_max_ms"]}


async def scripts(directory: Path, size: int) -> Row:
    """One write of 300 characters after 200 others, in three scripts: Chroma looks at each that waits, again for each write."""
    row: Row = {}
    for script, (first, many) in {
        "latin": (ord("a"), 26),
        "chinese": (0x4E00, 4096),
        "emoji": (0x1F600, 64),
    }.items():
        generator = random.Random(1)
        texts = ["".join(chr(first + generator.randrange(many)) for _ in range(300)) for _ in range(300)]
        client, plain = _plain_collection(directory, script)
        vector = _vectors(["A new fact."])
        plain.upsert(
            ids=[f"earlier-{n}" for n in range(200)],
            embeddings=np.repeat(vector, 200, axis=0),
            documents=texts[:200],
        )
        async with Memory(directory / script) as memory:
            await memory.remember_many(texts[:200])
            found = await beside_plain(
                lambda n: memory.remember(texts[200 + n]),  # noqa: B023
                lambda n: plain.upsert(ids=[f"new-{n}"], embeddings=vector, documents=[texts[200 + n]]),  # noqa: B023
                24,
            )
        client.close()
        row |= {f"{script}_ms": found["p50_ms"], f"plain_{script}_ms": found["plain_p50_ms"]}
    return row


async def recall(directory: Path, size: int) -> Row:
    """Recall, hybrid, one caller; and plain Chroma's query with the same embedder."""
    asked = questions(128)
    client, large = _plain_collection(directory)
    async with Memory(directory / "ours") as memory:
        ours = await beside_plain(
            lambda n: memory.recall(asked[n % 128], namespaces=NAMESPACE),
            lambda n: large.query(query_embeddings=_vectors([asked[n % 128] + " "]), n_results=5),
            60,
        )
        window = await timed(
            lambda n: memory.recall(asked[n % 128] + "?", namespaces=NAMESPACE, window=2), 40
        )
        vectors = await memory.recall(asked[0], namespaces=NAMESPACE, mode="vector")
        assert vectors
        vector = await timed(
            lambda n: memory.recall(asked[n % 128] + "!", namespaces=NAMESPACE, mode="vector"), 40
        )
    client.close()
    return {**ours, "window_p50_ms": window["p50_ms"], "vector_p50_ms": vector["p50_ms"]}


async def filters(directory: Path, size: int) -> Row:
    """Recall with filters of different selectivity, against without."""
    asked = questions(64)
    wheres: dict[str, dict[str, Any]] = {
        "20 %": {"where": {"fifth": 3}},
        "1 %": {"where": {"hundredth": 3}},
        "0.01 %": {"where": {"rare": 3}},
        "none": {"where": {"rare": -1}},
        "80 %": {"where": {"fifth": {"$ne": 3}}},
        "since": {"since": time.time() - 60},
    }
    row: Row = {}
    async with Memory(directory / "ours") as memory:
        without = await timed(lambda n: memory.recall(asked[n % 64], namespaces=NAMESPACE), 24)
        for name, options in wheres.items():
            found = await timed(lambda n: memory.recall(asked[n % 64], namespaces=NAMESPACE, **options), 12)  # noqa: B023
            row[name] = found["p50_ms"] / without["p50_ms"]
    return {"unfiltered_ms": without["p50_ms"], **row, "worst": max(row.values())}


async def by_id(directory: Path, size: int) -> Row:
    """``update``, ``pin`` and ``forget`` by id: 64 callers against one."""
    async with Memory(directory / "ours") as memory:
        ids = await memory.remember_many(
            [f"A fact to change, {n}." for n in range(640)], namespace="changing"
        )
        changes: dict[str, Callable[[str, int], Awaitable[Any]]] = {
            "update": lambda key, n: memory.update(key, namespace="changing", metadata={"seen": n}),
            "pin": lambda key, n: memory.pin(key, namespace="changing"),
            "forget": lambda key, n: memory.forget(key, namespace="changing"),
        }
        row: Row = {}
        for name, change in changes.items():
            begun = time.perf_counter()
            for number in range(32):
                await change(ids[number], number)
            one = 32 / (time.perf_counter() - begun)
            begun = time.perf_counter()
            for start in range(64, 640, 64):
                await asyncio.gather(*(change(id, start) for id in ids[start : start + 64]))
            row[name] = 576 / (time.perf_counter() - begun) / one
        return row


async def counting(directory: Path, size: int) -> Row:
    """``count()``."""
    async with Memory(directory / "ours") as memory:
        return await timed(lambda _: memory.count(NAMESPACE), 20)


async def exporting(directory: Path, size: int) -> Row:
    """Export and import, microseconds for each record."""
    async with Memory(directory / "ours") as memory:
        begun = time.perf_counter()
        count = await memory.export(directory / "out.jsonl", namespaces=[NAMESPACE])
        return {"us_per_record": (time.perf_counter() - begun) / count * 1e6}


async def backing_up(directory: Path, size: int) -> Row:
    """Backup beside reads and beside writes."""
    asked = questions(64)
    async with Memory(directory / "ours") as memory:
        reads = await longest_wait(
            lambda n: memory.recall(asked[n % 64], namespaces=SMALL),
            lambda: memory.backup(directory / "copy-1"),
            0.05,
        )
        writes = await longest_wait(
            lambda n: memory.remember(f"Meanwhile, {n}.", namespace=SMALL),
            lambda: memory.backup(directory / "copy-2"),
            0.05,
        )
    return {"read_wait_ms": reads["wait_ms"], "write_wait_ms": writes["wait_ms"], "seconds": reads["seconds"]}


async def reindexing(directory: Path, size: int) -> Row:
    """The index of the large namespace is gone: the longest wait of a recall in the small one while it is made again."""
    for file in (directory / "ours").glob("aiochroma-*.sqlite3*"):
        if "history" not in file.name:
            file.unlink()
    asked = questions(64)
    async with Memory(directory / "ours") as memory:

        async def until_whole() -> None:
            while (await memory.recall(asked[0], namespaces=NAMESPACE)).indexing:
                await asyncio.sleep(0.05)

        return await longest_wait(lambda n: memory.recall(asked[n % 64], namespaces=SMALL), until_whole)


async def forgetting(directory: Path, size: int) -> Row:
    """Forget the large namespace: the longest wait of a recall in the small one. Plain Chroma deletes it in one piece."""
    asked = questions(64)
    async with Memory(directory / "ours") as memory:
        row = await longest_wait(
            lambda n: memory.recall(asked[n % 64], namespaces=SMALL),
            lambda: memory.forget_namespace(NAMESPACE),
        )
    client, large = _plain_collection(directory)
    large.query(query_embeddings=_vectors([asked[0]]), n_results=1)
    begun = time.perf_counter()
    client.delete_collection(large.name)
    row["plain_wait_ms"] = (time.perf_counter() - begun) * 1e3
    client.close()
    return row


# -- figures on stores of their own ---------------------------------------------------------------------------------------


async def many_namespaces(directory: Path, size: int) -> Row:
    """500 namespaces with the usual limit of 1,024 descriptors: a recall of all of them."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    async with Memory(directory / "many") as memory:
        for number in range(500):
            await memory.remember_many(
                [f"Fact {number} {n} of it." for n in range(5)], namespace=f"n{number}"
            )
        await memory.recall("a fact")
        opened = []
        reopen = EmbeddedBackend._reopen
        EmbeddedBackend._reopen = lambda backend: (opened.append(backend), reopen(backend))
        row = await timed(lambda n: memory.recall(f"fact {n}"), 4, warm=1)
        return {**row, "opened_anew": float(len(opened))}


async def twenty_namespaces(directory: Path, size: int) -> Row:
    """A recall over 20 namespaces of 500; and plain Chroma's query of 20 collections, one after the other."""
    asked = questions(128)
    plain = []
    async with Memory(directory / "twenty") as memory:
        for number in range(20):
            some = records(500, seed=number + 10)
            await memory.remember_many(some, namespace=f"n{number}")
            _, collection = _plain_collection(directory, f"twenty-{number}")
            _upsert(collection, some, _vectors([item["text"] for item in some]))
            plain.append(collection)

        def query(number: int) -> None:
            vector = _vectors([asked[number % 128] + " "])
            for collection in plain:
                collection.query(query_embeddings=vector, n_results=5)

        return await beside_plain(lambda n: memory.recall(asked[n % 128]), query, 24)


async def mixed(directory: Path, size: int) -> Row:
    """Ten minutes of mixed load over 2,000 memories that come and go: growth after the first minute."""
    asked = questions(128)
    rows: list[tuple[float, int]] = []
    async with Memory(directory / "mixed") as memory:
        alive = deque(await memory.remember_many(records(2000), namespace=NAMESPACE))
        begun = time.perf_counter()
        number = 0
        for minute in (1, MIXED_MINUTES):
            while time.perf_counter() - begun < minute * 60:
                number += 1
                text = f"What was said at moment {number} is about {asked[number % 128]}"
                alive.append(await memory.remember(text, namespace=NAMESPACE))
                await memory.forget(alive.popleft(), namespace=NAMESPACE)
                await memory.update(alive[number % 1000], namespace=NAMESPACE, metadata={"seen": number})
                await asyncio.gather(*(memory.recall(asked[(number + n) % 128]) for n in range(3)))
                await asyncio.sleep(0.05)
            rows.append((rss_mb(), size_of(directory / "mixed")))
        count = await memory.count(NAMESPACE)
    (early, small), (late, large) = rows
    return {
        "turns": float(number),
        "memories": float(count),
        "rss_mb": late,
        "rss_growth": late / early,
        "directory_growth": large / small,
    }


async def scopes(directory: Path, size: int) -> Row:
    """2,000 scopes of 50 memories: memory above an empty store, opening, and a recall in one of them."""
    path = directory / "scopes"
    if not path.exists():
        async with Memory(path) as memory:
            for start in range(0, 2000, 20):
                items = [
                    {
                        "text": f"Person {person} likes thing {n} very much.",
                        "scope": ("acme", f"user-{person}"),
                    }
                    for person in range(start, start + 20)
                    for n in range(50)
                ]
                await memory.remember_many(items)
        return json.loads(_in_a_process("scopes", directory, size))
    async with Memory(directory / "empty") as memory:
        await memory.remember("one")
        await memory.recall("one")
        empty = rss_mb()
    begun = time.perf_counter()
    async with Memory(path) as memory:
        await memory.recall("What does the person like?", scope=("acme", "user-7"))
        opening = time.perf_counter() - begun
        one = await timed(lambda n: memory.recall(f"What thing {n}?", scope=("acme", f"user-{n}")), 20)
        return {"rss_mb": rss_mb() - empty, "open_s": opening, **one}


STORES: dict[str, Callable[[Path, int], Awaitable[Row]]] = {
    "small_write": small_write,
    "recall": recall,
    "filters": filters,
    "by_id": by_id,
    "counting": counting,
    "exporting": exporting,
    "backing_up": backing_up,
    "reindexing": reindexing,
    "forgetting": forgetting,
}
OWN: dict[str, Callable[[Path, int], Awaitable[Row]]] = {
    "scripts": scripts,
    "twenty_namespaces": twenty_namespaces,
    "many_namespaces": many_namespaces,
    "scopes": scopes,
    "mixed": mixed,
}
FIGURES = {"build": build, **STORES, **OWN}


def _in_a_process(name: str, directory: Path, size: int) -> str:
    command = [sys.executable, __file__, "--figure", name, str(directory), str(size)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        return json.dumps({"error": finished.stderr.strip().splitlines()[-1]})
    return finished.stdout.splitlines()[-1]


def _shown(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:,.0f}"
        if isinstance(value, float) and abs(value) >= 100
        else f"{name} {value:.2f}"
        if isinstance(value, float)
        else f"{name} {value}"
        for name, value in row.items()
    )


PANELS = (
    ("Remembering many: records/s, more is better", "build", "records_per_s", "plain_records_per_s"),
    ("Recall; plain chromadb: a query by vector, ms", "recall", "p50_ms", "plain_p50_ms"),
    ("One write beside a large namespace, ms", "small_write", "p50_ms", "plain_p50_ms"),
    ("Deleting all of it: longest wait of a recall, ms", "forgetting", "wait_ms", "plain_wait_ms"),
    ("Disk per memory, kB", "build", "disk_kb", "plain_disk_kb"),
    ("A backup: longest wait of a recall, ms", "backing_up", "read_wait_ms", None),
)
"""What the chart shows: a title, a figure, and its fields for a memory and for plain chromadb."""


def _draw(results: dict[str, dict[int, Row]], target: Path) -> None:
    """Write the chart: a panel for each unit, bars from zero, a memory beside plain chromadb."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = [panel for panel in PANELS if panel[1] in results]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.6 * columns, 2.1 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, name, ours, plain) in zip(axes.flat, panels, strict=False):
        bars = []
        for size, row in results[name].items():
            for who, field, colour in (("aiochroma", ours, "#1b6ca8"), ("chromadb", plain, "#b8b8b8")):
                if field is not None and field in row:
                    bars.append((f"{who}, {size:,}", row[field], colour))
        names, values, colours = zip(*bars, strict=True)
        drawn = axis.barh(names, values, color=colours)
        labels = [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values]
        axis.bar_label(drawn, labels, padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1000,10000", help="numbers of records, separated by commas")
    parser.add_argument(
        "--only", nargs="*", choices=FIGURES, help="only these figures (the stores are built all the same)"
    )
    parser.add_argument("--chart", type=Path, help="write a chart to this PNG file")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--figure", nargs=3, metavar=("NAME", "DIRECTORY", "SIZE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.figure:
        name, directory, size = given.figure
        print(json.dumps(asyncio.run(FIGURES[name](Path(directory), int(size)))))
        return
    wanted = given.only or list(FIGURES)
    results: dict[str, dict[int, Row]] = {}
    sizes = [int(size) for size in given.sizes.split(",")]

    def note(name: str, size: int, row: Row) -> None:
        results.setdefault(name, {})[size] = row
        print(f"{name:>18} {size:>8,}: {_shown(row)}", flush=True)

    for size in sizes if set(wanted) & {"build", *STORES} else []:
        directory = Path(tempfile.mkdtemp(prefix="aiochroma-scale-"))
        try:
            note("build", size, json.loads(_in_a_process("build", directory, size)))
            for name in STORES:
                if name in wanted:
                    note(name, size, json.loads(_in_a_process(name, directory, size)))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    for name in OWN:
        if name in wanted:
            directory = Path(tempfile.mkdtemp(prefix="aiochroma-scale-"))
            try:
                note(name, 0, json.loads(_in_a_process(name, directory, 0)))
            finally:
                shutil.rmtree(directory, ignore_errors=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))
    if given.chart:
        _draw(results, given.chart)


if __name__ == "__main__":
    main()
