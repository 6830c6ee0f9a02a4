"""Many deaths of hosts and clients under a mixed load: ``python tests/host/deaths.py [--deaths 400] [--seed N]``.

Exit code 1 if an acknowledged record is lost, or if a request ran twice that may not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from host_support import Hosts
from programs import is_alive, state_of, until

import aiochroma

VECTOR = [0.1, 0.2, 0.3, 0.4]
EXPECTED = (aiochroma.StoreUnavailableError, aiochroma.OutcomeUnknownError)
"""What callers may get when something dies; nothing is acknowledged then."""


@dataclass
class Outcome:
    """What many deaths have led to.

    Attributes:
        deaths: How many there were, by kind.
        acknowledged: How many records were acknowledged to their callers.
        lost: Those of them that are not there.
        twice: What ran twice although it may not.
    """

    deaths: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)


class Writers:
    """Callers of this process: each writes, and asks for what may not run twice, one call after the other."""

    def __init__(self, client, collection):
        self.client = client
        self.collection = collection
        self.acknowledged = set()
        self.answers = 0
        self.ends = False

    async def run(self, name):
        for number in range(10**9):
            if self.ends:
                return
            try:
                await self.one(f"{name}-{number}", number % 8)
            except EXPECTED:
                pass
            else:
                self.answers += 1

    async def one(self, unique, kind):
        if kind == 0:
            await self.client.create_collection(f"created-{unique}", embedding_function=None)
        elif kind == 1:
            await self.collection.delete(where={"unique": unique})
        elif kind == 2:
            await self.collection.query(query_embeddings=[VECTOR], n_results=1)
        else:
            ids = [f"{unique}-{record}" for record in range(100 if kind == 3 else 1)]
            await self.collection.upsert(ids=ids, embeddings=[VECTOR] * len(ids))
            self.acknowledged.update(ids)


async def as_child(path, name):
    """Write from a process of its own, and say what was acknowledged."""
    async with aiochroma.AsyncPersistentClient(path, process="shared", slow_request_ms=600_000) as client:
        collection = await client.get_collection("things", embedding_function=None)
        for number in range(10**9):
            try:
                await collection.upsert(ids=[f"{name}-{number}"], embeddings=[VECTOR])
            except EXPECTED:
                continue
            os.write(1, f"{name}-{number}\n".encode())


class Child:
    """A client that will die."""

    def __init__(self, path, name, log):
        self.log = Path(log)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--child", str(path), name], stdout=out, stderr=subprocess.DEVNULL
            )

    def writes(self):
        return self.log.stat().st_size > 0

    def die(self, stopped):
        if stopped:
            self.process.send_signal(signal.SIGSTOP)
            until(lambda: state_of(self.process.pid) in {"T", "t"}, "it is stopped")
        self.process.kill()
        self.process.wait()

    def acknowledged(self):
        # The last line may have been cut by the death.
        return self.log.read_text().split("\n")[:-1]


async def run(folder, deaths, seed=0, writers=6):
    """Let hosts and clients die under load; return what came of it.

    Args:
        folder: An empty directory for everything. ``AIOCHROMA_RUNTIME_DIR`` must be set.
        deaths: How many processes are killed.
        seed: Decides who dies when.
        writers: How many callers this process has.
    """
    chosen, path, outcome = random.Random(seed), folder / "store", Outcome()
    journal = folder / "journal"
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("dying_host.py")}" "$@"\n'
    )
    python.chmod(0o700)
    os.environ.update(AIOCHROMA_HOST_PYTHON=str(python), DYING_HOST_JOURNAL=str(journal))
    hosts = Hosts(os.environ["AIOCHROMA_RUNTIME_DIR"])
    children = []
    async with aiochroma.AsyncPersistentClient(path, process="shared", slow_request_ms=600_000) as client:
        collection = await client.create_collection("things", embedding_function=None)
        load = Writers(client, collection)
        tasks = [asyncio.ensure_future(load.run(f"w{number}")) for number in range(writers)]
        for number in range(deaths):
            before = load.answers
            # A death may fall into the rewriting of an index of hundreds of thousands of records, which is mended then.
            await asyncio.to_thread(
                until, lambda before=before: load.answers > before + 10, "they go on", 900
            )
            if chosen.random() < 0.6:
                pid = await asyncio.to_thread(hosts.kill, path)
                await asyncio.to_thread(hosts.ended, pid)
                outcome.deaths["host killed"] += 1
            else:
                child = Child(path, f"child{number}", folder / f"child{number}")
                children.append(child)
                await asyncio.to_thread(until, child.writes, "it writes")
                stopped = chosen.random() < 0.5
                await asyncio.to_thread(child.die, stopped)
                outcome.deaths["client stopped and killed" if stopped else "client killed"] += 1
        load.ends = True
        await asyncio.gather(*tasks)
        there = set((await collection.get(include=[]))["ids"])
        last = hosts.pid(path)
    acknowledged = load.acknowledged.union(*(child.acknowledged() for child in children))
    outcome.acknowledged, outcome.lost = len(acknowledged), sorted(acknowledged - there)
    runs = Counter(line for line in journal.read_text().splitlines() if is_once(line))
    outcome.twice = [line for line, times in runs.items() if times > 1]
    if last is not None and is_alive(last):
        os.kill(last, signal.SIGKILL)
    return outcome


def is_once(line):
    return line.startswith(("create_collection created-", "_delete {"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deaths", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        asyncio.run(as_child(*given.child))
        return 0
    with tempfile.TemporaryDirectory(prefix="aio-") as folder:
        os.environ["AIOCHROMA_RUNTIME_DIR"] = str(Path(folder) / "run")
        outcome = asyncio.run(run(Path(folder), given.deaths, given.seed))
    print(f"{outcome.deaths.total()} deaths: {dict(outcome.deaths)}")
    print(f"{outcome.acknowledged} records acknowledged, {len(outcome.lost)} lost: {outcome.lost[:5]}")
    print(f"{len(outcome.twice)} requests ran twice that may not: {outcome.twice[:5]}")
    return int(bool(outcome.lost or outcome.twice))


if __name__ == "__main__":
    sys.exit(main())
