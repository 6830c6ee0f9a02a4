"""An orchestrator of pipelines: a supervisor and a monitor in one process, each with "its own" client, and rapid restarts.

With plain chromadb this is where "attempt to write a readonly database" and lost vectors come from: two clients of one path in
one process, made and thrown away again and again. Here all clients of a directory, however its path is spelled, share one
thread; the last one to be closed ends it, and the next one to be opened waits until it has ended.

    python examples/pipelines.py --path ./pipelines
    python examples/pipelines.py --path ./pipelines --rounds 100
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from pathlib import Path

import aiochroma
from aiochroma import sync

PIPELINES = ("fetch", "clean", "summarise", "publish")


async def run_pipeline(memory: aiochroma.Memory, name: str, number: int) -> None:
    """One run of one pipeline: look up what is known, then note the result."""
    await memory.recall(f"what did {name} do?", namespaces={name: 3})
    # The id makes the run repeatable: after a crash the same run overwrites its own note instead of adding a second one.
    await memory.remember(
        f"Run {number} of {name} handled {7 * number} items.", namespace=name, id=f"run-{number}"
    )


async def supervise(path: Path, rounds: int) -> int:
    """Run all pipelines at the same time, round by round, each round with a client of its own; return the number of runs."""
    done = 0
    for number in range(rounds):
        async with aiochroma.Memory(path) as memory:
            await asyncio.gather(*(run_pipeline(memory, name, number) for name in PIPELINES))
            done += len(PIPELINES)
    return done


def monitor(path: Path, ended: threading.Event, looks: list[int]) -> None:
    """Look at the store every now and then, on a thread of its own, with a client of its own that it opens each time."""
    # Another spelling of the same directory: still one database thread.
    path = path.parent / "." / path.name
    while not ended.wait(0.05):
        with sync.Memory(path) as memory:
            health = memory.client.health()
            if health.status != "ok":
                print("monitor:", health.error)
            looks.append(health.documents or 0)


async def main(path: Path, rounds: int) -> None:
    ended, looks = threading.Event(), []
    watching = asyncio.create_task(asyncio.to_thread(monitor, path, ended, looks))
    try:
        done = await supervise(path, rounds)
    finally:
        ended.set()
        await watching

    async with aiochroma.Memory(path) as memory:
        # What a language model would be given, were one asked how the pipelines are doing.
        recalled = await memory.recall("how many items were handled?", namespaces=dict.fromkeys(PIPELINES, 2))
        print(recalled.as_context(max_chars=1000, template="- {text}"))
        print(
            f"{rounds} restarts, {done} runs noted, {await memory.count()} notes, {len(looks)} looks of the monitor,"
            f" growing: {looks == sorted(looks)}"
        )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--path", type=Path, default=Path("./pipelines"))
    arguments.add_argument("--rounds", type=int, default=20)
    given = arguments.parse_args()
    asyncio.run(main(given.path, given.rounds))
