"""Act three: a process is killed in the middle of writing. What is left afterwards?

Run as ``python -m aiochroma.demo.crash DIRECTORY`` it is the process that is killed: it remembers one text after the other,
and prints the number of each that was acknowledged. With ``count`` behind it, it is the one that joins.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import dataclass

from aiochroma.disk.copying import interpreter, package_environment
from aiochroma.memory.memory import Memory

__all__ = ["Crash", "join_and_count", "kill_and_count"]

_NAMESPACE = "diary"


@dataclass(frozen=True)
class Crash:
    """What was counted.

    Attributes:
        acknowledged: How many texts the killed process had been told are safe.
        found: How many of these are there after opening again.
        seconds: How long opening again and counting took.
    """

    acknowledged: int
    found: int
    seconds: float


async def kill_and_count(directory: str, seconds: float) -> Crash:
    """Let a process remember for so long, kill it with SIGKILL, open its directory here, and count.

    Args:
        directory: An empty directory.
        seconds: How long it writes, from its first acknowledged text on.
    """
    acknowledged = await asyncio.to_thread(_write_and_kill, directory, seconds)
    begun = time.perf_counter()
    async with Memory(directory) as memory:
        hits = await asyncio.gather(
            *(memory.get(_id(number), namespace=_NAMESPACE) for number in acknowledged)
        )
    found = sum(
        hit is not None and hit.text == _text(number) for number, hit in zip(acknowledged, hits, strict=True)
    )
    return Crash(len(acknowledged), found, time.perf_counter() - begun)


async def join_and_count(directory: str) -> int:
    """Hold the memory open in this process, let another one join, and return how many texts that one counts."""
    async with Memory(directory, process="shared") as memory:
        await memory.count(_NAMESPACE)
        command = [*interpreter(), "-m", "aiochroma.demo.crash", directory, "count"]
        child = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, env=package_environment()
        )
        said, _ = await child.communicate()
        return int(said)


def _write_and_kill(directory: str, seconds: float) -> list[int]:
    command = [*interpreter(), "-m", "aiochroma.demo.crash", directory]
    environment = package_environment()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:  # noqa: S603 - ourselves
        assert process.stdout is not None
        acknowledged = []
        until = None
        for line in process.stdout:
            acknowledged.append(int(line))
            if until is None:
                until = time.monotonic() + seconds
            if time.monotonic() > until:
                break
        process.kill()
        # What it had said before it died counts as well; a half-written line does not.
        acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
    return acknowledged


def _id(number: int) -> str:
    return f"entry-{number}"


def _text(number: int) -> str:
    return f"On day {number} I wrote entry {number} of this diary."


async def _write(directory: str) -> None:
    """Remember with a few writers at once, for ever; print what is acknowledged."""
    async with Memory(directory) as memory:

        async def writer(start: int) -> None:
            number = start
            while True:
                await memory.remember(_text(number), id=_id(number), namespace=_NAMESPACE)
                print(number, flush=True)
                number += _WRITERS

        await asyncio.gather(*(writer(number) for number in range(_WRITERS)))


async def _count(directory: str) -> None:
    async with Memory(directory, process="shared") as memory:
        print(await memory.count(_NAMESPACE))


_WRITERS = 8

if __name__ == "__main__":
    asyncio.run(_count(sys.argv[1]) if sys.argv[2:] == ["count"] else _write(sys.argv[1]))
