"""A process that remembers until it is killed, and says what was acknowledged."""

from __future__ import annotations

import asyncio
import sys

import aiochroma
from aiochroma.embedding.words import HashedEmbedder


def text(number):
    return f"locker {number} opens with code{number * 7919}"


async def one_by_one(path):
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        for number in range(1_000_000):
            await memory.remember(text(number))
            print(number, flush=True)


async def in_bulk(path, count):
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        await memory.remember_many(
            (text(number) for number in range(count)), progress=lambda done: print(done, flush=True)
        )


if __name__ == "__main__":
    directory, task, *rest = sys.argv[1:]
    asyncio.run(one_by_one(directory) if task == "one_by_one" else in_bulk(directory, int(rest[0])))
