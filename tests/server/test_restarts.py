"""What was read of a server's memories stays in a file for the next start, which reads what changed meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import sys
import threading
import time
from contextlib import asynccontextmanager, closing
from functools import partial

import numpy as np
import pytest
from programs import PATIENCE, Program

import aiochroma
from aiochroma.embedding.words import HashedEmbedder
from aiochroma.records import server_index
from aiochroma.records.record import UPDATED_AT, collection_name
from aiochroma.records.server_copy import Mark


@pytest.fixture
def namespace(name):
    return f"memories of {name}"


@pytest.fixture
def folder(tmp_path):
    """A folder for the file; not there yet."""
    return tmp_path / "not there" / "cache"


class Tokens(HashedEmbedder):
    """Gives the states of tokens as well, one for each word, and notes for which texts."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def embed_tokens(self, texts):
        self.texts += texts
        return [self.embed([text, *text.split()]) for text in texts]


@asynccontextmanager
async def opened(port, cache=None, embedder=None, **options):
    """A memory on a server, whose copy lies in a folder."""
    async with (
        await aiochroma.AsyncHttpClient("127.0.0.1", port, cache=cache, **options) as client,
        aiochroma.Memory(client=client, embedder=embedder or HashedEmbedder()) as memory,
    ):
        yield memory


@pytest.fixture
async def other(server):
    """A memory of another program on the same server."""
    async with opened(server.port) as memory:
        yield memory


async def texts(memory, query, namespace):
    recall = await memory.recall(query, namespaces=namespace, k=2000)
    assert recall.errors == {}
    return sorted(hit.text for hit in recall)


def read_of(relay):
    """How many records came through the relay with their vectors, since that was asked last."""
    asked = [json.loads(seen.body) for seen in relay.seen if seen.operation == "get"]
    relay.seen.clear()
    return sum(len(one["ids"]) for one in asked if "embeddings" in one["include"])


def file_in(folder):
    (file,) = folder.glob("*.sqlite3")
    return file


def bytes_in(folder):
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()))


async def upsert(memory, namespace, id, text, **metadata):
    """Write as a program does that knows nothing of memories."""
    collection = await memory.client.get_collection(collection_name(namespace), embedding_function=None)
    vector = np.asarray(HashedEmbedder().embed([text]))
    await collection.upsert(id, embeddings=vector, documents=text, metadatas=metadata or None)


async def test_a_restart_reads_nothing_that_is_unchanged(relay, folder, namespace):
    """Neither what was there before nor, asked once more, what changed; the hits are the same."""
    async with opened(relay.port, folder) as memory:
        await memory.remember_many([f"apple {n}" for n in range(700)], namespace=namespace, thread="t")
        before = await memory.recall("apple 17", namespaces=namespace, window=1)
        assert read_of(relay) == 700
    async with opened(relay.port, folder) as memory:
        after = await memory.recall("apple 17", namespaces=namespace, window=1)
        assert relay.count("query") == 0
        assert read_of(relay) == 0
        assert list(after) == list(before)
        await memory.remember("apple pie", namespace=namespace)
        assert (await memory.recall("pie", namespaces=namespace))[0].text == "apple pie"
        assert read_of(relay) == 1
    assert stat.S_IMODE(file_in(folder).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_what_others_did_meanwhile_is_seen(relay, other, folder, namespace):
    """Whatever their clocks say, and though the number of memories is the same as before."""
    async with opened(relay.port, folder) as memory:
        ids = await memory.remember_many([f"apple {n}" for n in range(20)], namespace=namespace)
        assert len(await texts(memory, "apple", namespace)) == 20
    await other.forget(ids[0], namespace=namespace)
    await other.update(ids[1], text="apple changed", namespace=namespace)
    await upsert(other, namespace, "odd", "apple without a stamp")
    await upsert(other, namespace, ids[2], "apple behind", **{UPDATED_AT: time.time() - 1800})
    await upsert(other, namespace, ids[3], "apple ahead", **{UPDATED_AT: time.time() + 1800})
    wanted = ["changed", "without a stamp", "behind", "ahead", *range(4, 20)]
    relay.seen.clear()
    async with opened(relay.port, folder) as memory:
        assert await texts(memory, "apple", namespace) == sorted(f"apple {one}" for one in wanted)
        assert read_of(relay) == 4


async def test_a_server_that_was_put_back_is_noticed(relay, other, folder, namespace):
    """As by a restore: what was changed since then has its former stamp again. While it is followed, and at the next start."""
    long_ago = time.time() - 9000
    items = [{"text": f"apple {n}", "id": f"m{n}", "updated_at": long_ago} for n in range(4)]
    for is_followed in (True, False):
        async with opened(relay.port, folder) as memory:
            await memory.remember_many(items, namespace=namespace)
            await memory.update("m1", text="apple changed", namespace=namespace)
            assert "apple changed" in await texts(memory, "apple", namespace)
            if is_followed:
                await upsert(other, namespace, "m1", "apple 1", **{UPDATED_AT: long_ago})
                await other.forget("m3", namespace=namespace)
                assert await texts(memory, "apple", namespace) == [f"apple {n}" for n in range(3)]
    await upsert(other, namespace, "m1", "apple 1", **{UPDATED_AT: long_ago})
    async with opened(relay.port, folder) as memory:
        assert await texts(memory, "apple", namespace) == [f"apple {n}" for n in range(4)]
        relay.seen.clear()
        assert await texts(memory, "apple", namespace) == [f"apple {n}" for n in range(4)]
        assert read_of(relay) == 0


async def test_tokens_count_as_on_a_directory(relay, other, folder, namespace):
    """Codes of what it writes are kept, those of what others write are made beside its recalls; both stay for the next start."""
    items = [{"text": f"apple {'red' if n % 3 else 'green'} of {n}", "id": f"m{n}"} for n in range(50)]

    async def tokens(memory):
        found = await memory.recall("green apple", namespaces=namespace, k=50)
        return {hit.id: hit.explain.get("tokens") for hit in found}

    async with aiochroma.Memory(None, embedder=Tokens()) as memory:
        await memory.remember_many(items, namespace=namespace, thread="t")
        wanted = await tokens(memory)
    async with opened(relay.port, folder, Tokens()) as memory:
        await memory.remember_many(items[:10], namespace=namespace, thread="t")
        assert None not in (await tokens(memory)).values()
        await other.remember_many(items[10:], namespace=namespace, thread="t")
        end = time.monotonic() + PATIENCE
        while None in (found := await tokens(memory)).values() or len(found) < 50:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        assert found == pytest.approx(wanted, abs=1e-4)
    again = Tokens()
    async with opened(relay.port, folder, again) as memory:
        assert await tokens(memory) == found
        assert (await memory.reembed(namespace)).unchanged == (namespace,)
    assert again.texts == ["green apple"]


async def test_what_this_program_wrote_and_did_not_recall_is_seen(relay, folder, namespace):
    """Past the memory and without a stamp, or with the stamp of an import; in a later run as well, before any recall."""
    async with opened(relay.port, folder) as memory:
        await memory.remember_many(["apple", "pear", "plum"], namespace=namespace)
        ids = {hit.text: hit.id for hit in await memory.recall("apple", namespaces=namespace)}
        await upsert(memory, namespace, ids["apple"], "violin")
    async with opened(relay.port, folder) as memory:
        item = {"text": "cello", "id": ids["pear"], "updated_at": 1_700_000_000}
        await memory.remember_many([item], namespace=namespace)
        assert await memory.forget(ids["plum"], namespace=namespace) == 1
        await memory.recall("anything", namespaces="another")
    async with opened(relay.port, folder) as memory:
        assert await texts(memory, "violin cello", namespace) == ["cello", "violin"]


SCRIPT = """
import asyncio, sys
import aiochroma
from aiochroma.embedding.words import HashedEmbedder

async def main(port, cache, namespace, *forgotten):
    async with (
        await aiochroma.AsyncHttpClient("127.0.0.1", int(port), cache=cache) as client,
        aiochroma.Memory(client=client, embedder=HashedEmbedder()) as memory,
    ):
        found = await memory.recall("apple", namespaces=namespace)
        for id in forgotten:
            await memory.forget(id, namespace=namespace)
        print("found", len(found), flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def program(relay, folder, namespace, tmp_path):
    """Make a program that recalls, forgets some, and waits to be killed."""
    return lambda *forgotten: Program(
        [sys.executable, "-c", SCRIPT, relay.port, folder, namespace, *forgotten], tmp_path / "log"
    )


async def test_a_process_killed_while_it_reads_leaves_what_it_has_read(
    relay, other, folder, namespace, program
):
    """The next one reads the rest, and what changed since the first began."""
    ids = await other.remember_many([f"apple {n}" for n in range(1200)], namespace=namespace)
    read, held, goes_on = [], threading.Event(), threading.Event()

    def hold_third_page(seen):
        if b"embeddings" in seen.body:
            read.append(seen)
            if len(read) == 3:
                held.set()
                goes_on.wait(PATIENCE)

    relay.rule = hold_third_page
    with program() as started:
        assert held.wait(PATIENCE), started.output()
        started.kill()
    goes_on.set()
    await other.update(ids[0], text="changed apple", namespace=namespace)
    await other.forget(ids[1], namespace=namespace)
    relay.seen.clear()
    async with opened(relay.port, folder) as memory:
        wanted = sorted(["changed apple", *(f"apple {n}" for n in range(2, 1200))])
        assert await texts(memory, "apple", namespace) == wanted
    assert read_of(relay) == 201


async def test_a_killed_process_takes_nothing_along(relay, other, folder, namespace, program):
    """What it has forgotten is gone, from the file as well when the next one has closed it, and the rest is not read again."""
    ids = await other.remember_many(["apple one", "apple zyxwvutsr"], namespace=namespace)
    with program(ids[1]) as started:
        while "found 2" not in started.output():
            assert started.process.poll() is None, started.output()
        started.kill()
    relay.seen.clear()
    async with opened(relay.port, folder) as memory:
        assert await texts(memory, "apple", namespace) == ["apple one"]
        assert read_of(relay) == 0
    assert b"zyxwvutsr" not in bytes_in(folder)
    assert b"apple one" in bytes_in(folder)


async def test_what_is_forgotten_leaves_the_file(relay, other, folder, namespace):
    """By this program or by another, changed, or with its namespace, also while no program has the file."""
    async with opened(relay.port, folder) as memory:
        kept = await memory.remember("apple kept", namespace=namespace)
        secrets = [f"secret{word}" for word in ("forgotten", "changed", "others", "meanwhile", "expired")]
        ids = await memory.remember_many([f"apple {word}" for word in secrets], namespace=namespace)
        for place in ("gone", "later"):
            await memory.remember(f"apple secret{place}", namespace=f"{namespace} {place}")
            await memory.recall("apple", namespaces=f"{namespace} {place}")
        await memory.recall("apple", namespaces=namespace)
        await memory.forget(ids[0], namespace=namespace)
        await memory.update(ids[1], text="apple", namespace=namespace)
        await other.forget(ids[2], namespace=namespace)
        await memory.update(ids[4], expires_at=1, namespace=namespace)
        assert await memory.sweep(namespace=namespace) == 1
        await memory.forget_namespace(f"{namespace} gone")
        await memory.recall("apple", namespaces=namespace)
    lying = bytes_in(folder)
    assert [word for word in (*secrets, "secretgone") if word.encode() in lying] == ["secretmeanwhile"]
    assert b"secretlater" in lying
    await other.forget(ids[3], namespace=namespace)
    await other.forget_namespace(f"{namespace} later")
    async with opened(relay.port, folder) as memory:
        assert (await memory.recall("kept", namespaces=namespace))[0].id == kept
    assert b"secret" not in bytes_in(folder)


def _foreign(file):
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE holiday (photo BLOB)")
        connection.commit()


def _of_another_time(file):
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE namespaces SET watermark = '{}'")
        connection.commit()


def _torn(file):
    content = bytearray(file.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    file.write_bytes(content)


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "no database": lambda file: file.write_bytes(b"not a database" * 1000),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:20_000]),
    "torn": _torn,
    "a mark of nobody": _of_another_time,
    "gone": lambda file: file.unlink(),
    "foreign": lambda file: (file.unlink(), _foreign(file)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_file_that_is_damaged_or_foreign_is_made_again(relay, folder, namespace, damage):
    """Recalls find everything at once, and so does the run after it, from the file."""
    wanted = sorted(f"apple {n}" for n in range(50))
    async with opened(relay.port, folder) as memory:
        await memory.remember_many(wanted, namespace=namespace)
        await memory.recall("apple", namespaces=namespace)
    damage(file_in(folder))
    for _ in range(3):
        relay.seen.clear()
        async with opened(relay.port, folder) as memory:
            while (found := await memory.recall("apple", namespaces=namespace, k=100)).indexing:
                assert found.errors == {}
            assert sorted(hit.text for hit in found) == wanted
    assert read_of(relay) == 0


async def test_processes_at_once_do_each_other_no_harm(relay, other, folder, namespace):
    """One has the file, the other reads the server; both find what is there, and the file stays whole."""
    await other.remember_many(["apple one", "apple two"], namespace=namespace)
    async with (
        opened(relay.port, folder) as first,
        opened(relay.port, folder, headers={"x-other": "client"}) as second,
    ):
        for n, memory in enumerate((first, second, first)):
            assert len(await texts(memory, "apple", namespace)) == 2 + n
            await memory.remember(f"apple of {n}", namespace=namespace)
        wanted = await texts(first, "apple", namespace)
        assert await texts(second, "apple", namespace) == wanted
    relay.seen.clear()
    async with opened(relay.port, folder) as memory:
        assert await texts(memory, "apple", namespace) == wanted
        assert read_of(relay) == 0


async def test_the_file_is_bounded(relay, folder, name, monkeypatch):
    """What was not asked for since the start makes room for what is."""
    monkeypatch.setattr(server_index, "ServerIndex", partial(server_index.ServerIndex, most=20))
    for n in range(4):
        async with opened(relay.port, folder) as memory:
            await memory.remember_many([f"apple {i}" for i in range(15)], namespace=f"{name} {n}")
            assert len(await texts(memory, "apple", f"{name} {n}")) == 15
        with closing(sqlite3.connect(file_in(folder))) as connection:
            assert connection.execute("SELECT COUNT(*) FROM memories").fetchone() == (15,)


async def test_another_database_that_cannot_be_listed_is_no_reason_to_fail(relay, folder, namespace):
    """A proxy may let its callers see one database alone: what lies in the file of others stays, unread."""
    async with aiochroma.AsyncHttpClient("127.0.0.1", relay.port) as client:
        await client.admin.create_database(namespace.replace(" ", "-"))
    for database in ("default_database", namespace.replace(" ", "-")):
        async with opened(relay.port, folder, database=database) as memory:
            await memory.remember("apple", namespace=namespace)
            assert await texts(memory, "apple", namespace) == ["apple"]

    def deny(seen):
        denied = "/default_database/collections" in seen.path
        return (403, {"content-type": "application/json"}, b"{}") if denied else None

    relay.rule = deny
    relay.seen.clear()
    async with opened(relay.port, folder, database=namespace.replace(" ", "-")) as memory:
        assert await texts(memory, "apple", namespace) == ["apple"]
        assert read_of(relay) == 0
    relay.rule = lambda seen: None
    async with opened(relay.port, folder) as memory:
        assert await texts(memory, "apple", namespace) == ["apple"]
        assert read_of(relay) == 0


@pytest.mark.parametrize("cache", ["", "a\0b", 7])
def test_a_cache_that_is_no_path_is_refused(cache):
    with pytest.raises(aiochroma.InvalidInputError, match="cache"):
        aiochroma.AsyncHttpClient(cache=cache)


async def test_a_cache_that_cannot_be_made_is_refused(server, tmp_path):
    """It is a file, lies in one, or something else has its name: people have to see to it."""
    (tmp_path / "file").write_text("mine")
    async with opened(server.port, tmp_path / "own"):
        file = file_in(tmp_path / "own")
    file.unlink()
    file.mkdir()
    for cache in ("file", "file/below", "own"):
        with pytest.raises(aiochroma.InvalidInputError, match="folder in which this user may write"):
            await aiochroma.AsyncHttpClient("127.0.0.1", server.port, cache=tmp_path / cache)
    assert (tmp_path / "file").read_text() == "mine"


async def test_the_environment_may_name_the_cache(server, folder, namespace, monkeypatch):
    for variable, value in (("MODE", "http"), ("HOST", server.url), ("CACHE", str(folder))):
        monkeypatch.setenv(f"CHROMA_{variable}", value)
    async with aiochroma.Memory.from_env(embedder=HashedEmbedder()) as memory:
        await memory.remember("apple", namespace=namespace)
        await memory.recall("apple", namespaces=namespace)
    assert b"apple" in bytes_in(folder)


NOW = 1_700_000_000.0
GOOD = {"tenant": "t", "database": "d", "as_of": NOW - 5, "skew": 60.0, "read_at": NOW - 10}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "7",
        "{",
        "[" * 10_000,
        *(json.dumps({**GOOD, name: None}) for name in GOOD),
        *(json.dumps({**GOOD, **wrong}) for wrong in ({"as_of": NOW + 5}, {"read_at": NOW - 8 * 86_400})),
        *(
            json.dumps({**GOOD, **wrong})
            for wrong in ({"skew": float("nan")}, {"unread": [1]}, {"unread": 3})
        ),
        json.dumps({**GOOD, "more": 1}),
    ],
)
def test_marks_that_are_none_are_not_believed(text, monkeypatch):
    """Nor one of a clock that was ahead, or one that is older than a week."""
    monkeypatch.setattr(time, "time", lambda: NOW)
    assert Mark.of(json.dumps(GOOD)) is not None
    assert Mark.of(text) is None
