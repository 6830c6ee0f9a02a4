"""What the tests of hosts run: `python program.py COMMAND DIRECTORY ARGUMENTS...`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import aiochroma
from aiochroma import sync

VECTOR = [0.1, 0.2, 0.3, 0.4]


async def flood(path, count):
    async with aiochroma.AsyncPersistentClient(path, process="shared", slow_request_ms=600_000) as client:
        collection = await client.get_or_create_collection("things", embedding_function=None)
        calls = [
            asyncio.ensure_future(collection.upsert(ids=[f"flood{n}"], embeddings=[VECTOR]))
            for n in range(int(count))
        ]
        await asyncio.sleep(0)
        print("flooding", flush=True)
        await asyncio.gather(*calls)


async def read_and_stop(path, count):
    async with aiochroma.AsyncPersistentClient(path, process="shared", slow_request_ms=600_000) as client:
        collection = await client.get_collection("things", embedding_function=None)
        calls = [asyncio.ensure_future(collection.get(limit=100, offset=n)) for n in range(int(count))]
        for _ in range(10):
            # They go out at the end of the loop's turn.
            await asyncio.sleep(0)
        print("reading", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        results = await asyncio.gather(*calls)
        assert all(len(result["ids"]) == 100 for result in results)
    print("done", flush=True)


async def write(path, name, count):
    async with aiochroma.AsyncPersistentClient(path, process="shared", slow_request_ms=600_000) as client:
        collection = await client.get_or_create_collection("things", embedding_function=None)
        for number in range(int(count)):
            await collection.upsert(ids=[f"{name}-{number}"], embeddings=[VECTOR])
    print("done", flush=True)


def exit_in_flight(path):
    async def leave():
        client = await aiochroma.AsyncPersistentClient(path, process="shared", slow_request_ms=600_000)
        collection = await client.get_or_create_collection("things", embedding_function=None)
        calls = [
            asyncio.ensure_future(collection.upsert(ids=[f"id{n}"], embeddings=[VECTOR])) for n in range(300)
        ]
        await asyncio.sleep(0)
        print("submitted", flush=True)
        # The interpreter ends with all of this alive.
        global kept
        kept = client, calls
        os.kill(os.getpid(), 0)
        sys.exit()

    asyncio.run(leave())


def fork(path):
    client = sync.PersistentClient(path, process="shared", slow_request_ms=600_000)
    collection = client.get_or_create_collection("things", embedding_function=None)
    collection.upsert(ids=["parent"], embeddings=[VECTOR])
    child = os.fork()
    if not child:
        try:
            try:
                collection.count()
            except aiochroma.ForkedProcessError as error:
                print("child:", type(error).__name__, flush=True)
            with sync.PersistentClient(path, process="shared", slow_request_ms=600_000) as own:
                mine = own.get_collection("things", embedding_function=None)
                print("child:", mine.count(), flush=True)
                mine.upsert(ids=["child"], embeddings=[VECTOR])
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
    print("parent:", collection.count(), flush=True)
    client.close()


def outlived(path):
    with sync.PersistentClient(path, process="shared", host_idle=600):
        child = os.fork()
        if child:
            print(child, flush=True)
        signal.pause()


def stay(path):
    with sync.PersistentClient(path, process="shared"):
        print("here", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command in {"flood", "read_and_stop", "write"}:
        asyncio.run(globals()[command](*arguments))
    else:
        {"exit": exit_in_flight, "fork": fork, "outlived": outlived, "stay": stay}[command](*arguments)
