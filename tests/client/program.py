"""What the process tests run: `python program.py COMMAND DIRECTORY`."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
import warnings

import aiochroma

VECTOR = [0.1] * 64


async def opened(path):
    client = await aiochroma.AsyncPersistentClient(path, slow_request_ms=600_000)
    collection = await client.get_or_create_collection("things", embedding_function=None)
    await collection.upsert(ids=["first"], embeddings=[VECTOR])
    return client, collection


def exit_without_close(path):
    """Leave an idle client to the interpreter."""
    global kept
    kept = asyncio.run(opened(path))
    print("acknowledged")


def exit_during_calls(path):
    """Leave while the thread is inside one read after the other, for an event loop that nobody ends."""
    busy = threading.Event()

    async def ask():
        _, collection = await opened(path)
        await collection.add(ids=[f"id{n}" for n in range(500)], embeddings=[VECTOR] * 500)
        try:
            while True:
                await asyncio.gather(*(collection.query(query_embeddings=[VECTOR] * 32) for _ in range(8)))
                busy.set()
        except aiochroma.ClosedError:
            return

    threading.Thread(target=lambda: asyncio.run(ask()), daemon=True).start()
    assert busy.wait(60)
    print("acknowledged")


_tasks = []


def _spawn(coroutine):
    _tasks.append(asyncio.ensure_future(coroutine))


def exit_during_long_write(path):
    """Leave while a write of many pieces is under way."""
    global kept

    async def main():
        client, collection = await opened(path)
        count = 60_000
        _spawn(collection.add(ids=[f"id{n}" for n in range(count)], embeddings=[VECTOR] * count))
        while (await collection.count()) < 2:
            await asyncio.sleep(0)
        return client, collection

    kept = asyncio.run(main())
    print("acknowledged")


def exit_during_open(path):
    """Leave while the database is being opened."""

    async def main():
        task = asyncio.ensure_future(opened(path))
        while not any(thread.name.startswith("aiochroma-db") for thread in threading.enumerate()):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    print("acknowledged")


def exit_after_exception(path):
    """Leave with a traceback while a client is open."""
    global kept
    kept = asyncio.run(opened(path))
    print("acknowledged", flush=True)
    raise SystemExit(7)


def use_after_fork(path):
    """Use what the parent opened, and open afresh, in a forked child."""
    warnings.simplefilter("ignore", DeprecationWarning)
    client, collection = asyncio.run(opened(path))
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        asyncio.run(_in_the_child(client, collection, path))
        print("child done", flush=True)
        # An ordinary end, with all destructors, not os._exit.
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    print("child", os.waitstatus_to_exitcode(status))
    assert asyncio.run(collection.count()) == 1
    asyncio.run(client.aclose())
    print("parent fine")


async def _in_the_child(client, collection, path):
    async def embed(texts):
        raise AssertionError("nothing is embedded for a database that cannot be used")

    collection._embedding_function = embed
    attempts = {
        "count": lambda: collection.count(),
        "write": lambda: collection.add(ids=["x"], embeddings=[VECTOR]),
        "embed": lambda: collection.add(ids=["x"], documents=["x"]),
        "catalog": lambda: client.list_collections(),
        "fresh": lambda: aiochroma.AsyncPersistentClient(path).open(),
        "other": lambda: aiochroma.AsyncPersistentClient(path + "-other").open(),
        "ephemeral": lambda: aiochroma.AsyncEphemeralClient().open(),
    }
    for name, attempt in attempts.items():
        try:
            await asyncio.wait_for(attempt(), 20)
        except aiochroma.ForkedProcessError:
            print(name, "refused", flush=True)
    await asyncio.wait_for(client.aclose(), 20)


def fork_before_open(path):
    """Open for the first time in the forked child."""
    warnings.simplefilter("ignore", DeprecationWarning)
    child = os.fork()
    if child == 0:
        client, collection = asyncio.run(opened(path))
        print(asyncio.run(collection.count()), flush=True)
        asyncio.run(client.aclose())
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def wait_for_signal(path):
    """Keep writing until a signal ends the process."""

    async def main():
        _, collection = await opened(path)
        number = 0
        while True:
            await collection.upsert(ids=[f"id{number}"], embeddings=[VECTOR])
            number += 1
            if number == 5:
                print("ready", flush=True)

    asyncio.run(main())


if __name__ == "__main__":
    # Should it hang, it says where, and ends before whoever started it gives up (a forked child would wait for this for ever).
    if "fork" not in sys.argv[1]:
        faulthandler.dump_traceback_later(50, exit=True)
    globals()[sys.argv[1]](*sys.argv[2:])
