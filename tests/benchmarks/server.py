"""Fan-outs over four collections of a Chroma server: aiochroma against Chroma's own asynchronous client.

Run: ``python tests/benchmarks/server.py [--seconds 3] [--rounds 3]``. Starts `chroma run` on a free port of this machine. A
fan-out asks one question of four collections (2000 records of 384 dimensions each, k = 5) and waits for the four answers.
The contenders take turns; printed is the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chromadb
import numpy as np

import aiochroma

DIMENSIONS, RECORDS, PLACES, RESULTS = 384, 2000, 4, 5
CALLERS = (1, 16, 64)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(directory, port):
    """Start a server and return its process when it answers."""
    chroma = str(Path(sys.executable).with_name("chroma"))
    command = [chroma, "run", "--path", directory, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return process
    process.kill()
    raise SystemExit("the server did not start")


async def fill(client, rng):
    for place in range(PLACES):
        collection = await client.create_collection(f"place-{place}", embedding_function=None)
        vectors = rng.normal(size=(RECORDS, DIMENSIONS)).astype(np.float32)
        ids = [f"{place}-{number}" for number in range(RECORDS)]
        await collection.upsert(ids=ids, embeddings=vectors, documents=[f"text of {id}" for id in ids])


async def fan_outs(collections, questions, callers, seconds):
    """Return fan-outs a second, and the median and 99th percentile of their times in milliseconds."""
    times = []
    until = time.perf_counter() + seconds

    async def caller(number):
        while (begun := time.perf_counter()) < until:
            number = (number + callers) % len(questions)
            question = [questions[number]]
            await asyncio.gather(
                *(
                    collection.query(query_embeddings=question, n_results=RESULTS)
                    for collection in collections
                )
            )
            times.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    elapsed = time.perf_counter() - begun
    p50, p99 = np.percentile(np.array(times) * 1000, [50, 99])
    return len(times) / elapsed, p50, p99


async def measure(port, seconds, rounds):
    rng = np.random.default_rng(11)
    questions = rng.normal(size=(512, DIMENSIONS)).astype(np.float32).tolist()
    async with aiochroma.AsyncHttpClient("127.0.0.1", port) as ours:
        await fill(ours, rng)
        theirs = await chromadb.AsyncHttpClient(host="127.0.0.1", port=port)
        contenders = {}
        for name, client in (("aiochroma.AsyncHttpClient", ours), ("chromadb.AsyncHttpClient", theirs)):
            contenders[name] = [
                await client.get_collection(f"place-{place}", embedding_function=None)
                for place in range(PLACES)
            ]
        await compare(contenders, questions[:16])
        results = {(name, callers): [] for name in contenders for callers in CALLERS}
        for _ in range(rounds):
            for callers in CALLERS:
                for name, collections in contenders.items():
                    results[name, callers].append(await fan_outs(collections, questions, callers, seconds))
    return results


async def compare(contenders, questions):
    """Both must give the same answers before their speed is compared."""
    for question in questions:
        answers = [
            [
                (await collection.query(query_embeddings=[question], n_results=RESULTS))["ids"]
                for collection in collections
            ]
            for collections in contenders.values()
        ]
        assert all(answer == answers[0] for answer in answers), "the contenders disagree"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number of callers, each round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        process = start(directory, port)
        try:
            results = asyncio.run(measure(port, arguments.seconds, arguments.rounds))
        finally:
            process.terminate()
            process.wait()
    print(
        f"{platform.python_implementation()} {sys.version.split()[0]}, chromadb {chromadb.__version__}, {platform.machine()}"
    )
    print("| callers | client                    | fan-outs/s | p50 ms | p99 ms |")
    print("|--------:|---------------------------|-----------:|-------:|-------:|")
    for callers in CALLERS:
        for name in {name for name, _ in results}:
            rate, p50, p99 = (
                statistics.median(column) for column in zip(*results[name, callers], strict=True)
            )
            print(f"| {callers:7} | {name:25} | {rate:10.0f} | {p50:6.1f} | {p99:6.1f} |")


if __name__ == "__main__":
    main()
