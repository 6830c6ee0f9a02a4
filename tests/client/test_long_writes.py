"""Writes larger than Chroma allows, writes that are cut, and writes that stop midway."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from chromadb.api.rust import RustBindingsAPI
from chromadb.errors import InvalidArgumentError

import aiochroma


async def test_more_records_than_chromas_maximum(client, collection):
    """A batch above Chroma's limit for one call is written completely, in the order given."""
    most = await client.get_max_batch_size()
    count = most + 39
    ids = [f"id{number}" for number in range(count)]
    data = np.random.default_rng(3).random((count, 4), dtype=np.float32)
    await collection.add(ids=ids, embeddings=data, metadatas=[{"n": number} for number in range(count)])
    assert await collection.count() == count
    found = await collection.get(include=["embeddings", "metadatas"])
    assert found["ids"] == ids
    assert [metadata["n"] for metadata in found["metadatas"]] == list(range(count))
    np.testing.assert_allclose(found["embeddings"], data, rtol=1e-6)
    await collection.delete(ids=ids[:most])
    assert await collection.count() == 39


async def test_reads_are_served_between_the_pieces(collection):
    """While a long write is under way others read, and see the pieces that are written."""
    count = 2000
    writing = asyncio.ensure_future(
        collection.add(
            ids=[f"id{n}" for n in range(count)], embeddings=np.random.default_rng(0).random((count, 64))
        )
    )
    seen = []
    while not writing.done():
        seen.append(await collection.count())
    await writing
    assert seen == sorted(seen)
    assert any(0 < number < count for number in seen)
    assert await collection.count() == count


async def test_a_large_read_is_a_picture_of_one_moment(collection, vectors):
    """A read that is paged sees no write that began after it, and misses none that was finished before."""
    ids = [f"id{n}" for n in range(1200)]
    await collection.add(ids=ids, embeddings=vectors(1200))
    reading = asyncio.ensure_future(collection.get(include=[]))
    await asyncio.sleep(0)
    deleting = asyncio.ensure_future(collection.delete(ids=ids[:600]))
    found = await reading
    await deleting
    assert found["ids"] == ids
    assert (await collection.get(include=[]))["ids"] == ids[600:]


async def test_a_write_that_stops_midway_says_how_far_it_came(bindings, client, vectors):
    """The error names what is in the database and what is not, and carries Chroma's own error."""
    collection = await client.create_collection("things", embedding_function=None)
    pieces = []

    def fail_at_the_third(name, *_):
        if name == "add":
            pieces.append(name)
            if len(pieces) == 3:
                raise OSError("the disk is full")

    bindings.proxy.fail = staticmethod(fail_at_the_third)
    ids = [f"id{n}" for n in range(500)]
    with pytest.raises(aiochroma.PartialWriteError, match="stopped after") as caught:
        await collection.add(ids=ids, embeddings=vectors(500))
    bindings.proxy.fail = None
    error = caught.value
    assert isinstance(error.__cause__, OSError)
    # The frames of the recorder hold Chroma's binding, and closing waits for the files to be closed.
    error.__cause__.__traceback__ = None
    assert error.applied + error.remaining == tuple(ids)
    assert error.applied
    assert error.remaining
    assert (await collection.get(include=[]))["ids"] == list(error.applied)
    await collection.add(ids=list(error.remaining), embeddings=vectors(len(error.remaining)))
    assert (await collection.get(include=[]))["ids"] == ids


async def test_a_cancelled_long_write_completes(collection, vectors):
    """Cancelled after it has begun a long write runs to its end, and writes that follow come after it."""
    ids = [f"id{n}" for n in range(1500)]
    writing = asyncio.ensure_future(collection.add(ids=ids, embeddings=vectors(1500)))
    while not await collection.count():
        pass
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await collection.delete(ids=["id1499"])
    assert (await collection.get(include=[]))["ids"] == ids[:-1]


async def test_writes_take_effect_in_the_order_in_which_they_were_submitted(collection, vectors):
    """Long and short writes to one collection, submitted together, end as if made one after another."""
    ids = [f"id{n}" for n in range(300)]
    writes = [
        collection.add(ids=ids, embeddings=vectors(300), documents=["first"] * 300),
        *(collection.upsert(ids=["id7"], embeddings=vectors(1), documents=[f"{n}"]) for n in range(20)),
        collection.update(ids=ids[:200], documents=["second"] * 200, embeddings=vectors(200)),
        collection.upsert(ids=["id7"], embeddings=vectors(1), documents=["last"]),
        collection.delete(ids=["id8"]),
    ]
    await asyncio.gather(*writes)
    found = await collection.get(ids=["id6", "id7", "id8", "id250"])
    documents = dict(zip(found["ids"], found["documents"], strict=True))
    assert documents == {"id6": "second", "id7": "last", "id250": "first"}


async def test_a_write_whose_texts_are_embedded_is_not_overtaken(client):
    """A later write waits while the texts of an earlier one are embedded, and not for one that was given up."""
    go_on = asyncio.Event()

    async def embed(texts):
        await go_on.wait()
        return [[1.0, 2.0] for _ in texts]

    collection = await client.create_collection("embedded", embedding_function=embed)
    first = asyncio.ensure_future(collection.upsert(ids=["a"], documents=["first"]))
    given_up = asyncio.ensure_future(collection.upsert(ids=["a"], documents=["given up"]))
    last = asyncio.ensure_future(collection.upsert(ids=["a"], documents=["last"], embeddings=[[3.0, 4.0]]))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    with aiochroma.deadline(0.05), pytest.raises(aiochroma.DeadlineExceededError) as caught:
        await collection.upsert(ids=["a"], documents=["late"], embeddings=[[5.0, 6.0]])
    assert caught.value.started is False
    assert (await collection.get())["documents"] == []
    assert not last.done()
    go_on.set()
    await asyncio.gather(first, last)
    assert (await collection.get())["documents"] == ["last"]


@pytest.mark.this_process
async def test_ids_that_have_no_record_do_not_reach_chroma(collection, monkeypatch, vectors):
    """Chroma takes as long for each of them as for a record; results and what is wrong with the others stay Chroma's."""
    given = {"_delete": [], "_update": []}
    for name, ids in given.items():
        native = getattr(RustBindingsAPI, name)

        def noted(self, *arguments, native=native, noted=ids, **named):
            noted += named["ids"]
            return native(self, *arguments, **named)

        monkeypatch.setattr(RustBindingsAPI, name, noted)
    unknown = [f"unknown{number}" for number in range(5000)]
    ids = [*unknown[:2500], "a", "b", *unknown[2500:]]
    await collection.add(ids=["a", "b", "c"], embeddings=vectors(3), metadatas=[{"n": 0}] * 3)
    await collection.update(ids=ids, metadatas=[{"n": number} for number in range(len(ids))])
    assert (await collection.get(ids=["a", "b", "c"]))["metadatas"] == [{"n": 2500}, {"n": 2501}, {"n": 0}]
    with pytest.raises(InvalidArgumentError, match="dimension"):
        await collection.update(ids=unknown, embeddings=[[1.0]] * len(unknown))
    assert await collection.delete(ids=ids) == {"deleted": len(ids)}
    assert (await collection.get())["ids"] == ["c"]
    assert {"a", "b"} <= set(given["_update"]) & set(given["_delete"])
    assert len(given["_update"]) + len(given["_delete"]) < len(ids) / 2
