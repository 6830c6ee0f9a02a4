"""Reads that Chroma does not take as they are, against a real database."""

from __future__ import annotations

import sys

import chromadb.errors
import pytest
from backends import backend_of

import aiochroma
from aiochroma.backend import chroma_records

MANY = 40


@pytest.fixture
async def collection(tmp_path, monkeypatch):
    """Forty records; a statement takes seven values."""
    monkeypatch.setattr(chroma_records, "_MOST_VARIABLES", 7)
    async with aiochroma.AsyncPersistentClient(tmp_path / "db") as client:
        made = await client.get_or_create_collection("notes", embedding_function=None)
        await made.upsert(
            ids=[f"id{number:02}" for number in range(MANY)],
            embeddings=[[1.0, float(number)] for number in range(MANY)],
            metadatas=[
                {"number": number, "kind": "even" if number % 2 == 0 else "odd"} for number in range(MANY)
            ],
            documents=[f"text {number}" for number in range(MANY)],
        )
        yield made


async def test_more_ids_than_a_statement_takes(collection):
    """A look-up with very many ids, known and unknown, finds those that are there, with all that was asked for."""
    ids = [f"id{number:02}" for number in range(30)]
    found = await collection.get(
        ids=[*ids, *(f"unknown{number}" for number in range(20))], include=["embeddings"]
    )
    assert found["ids"] == ids
    assert found["embeddings"].tolist() == [[1.0, float(number)] for number in range(30)]


async def test_more_values_in_a_filter_than_a_statement_takes(collection):
    """A very long `$in`, alone or beside other conditions, matches what a short one would."""
    values = [*range(100, 120), *range(25)]
    found = await collection.get(where={"number": {"$in": values}}, include=[])
    assert sorted(found["ids"]) == [f"id{number:02}" for number in range(25)]
    both = {"$and": [{"kind": "odd"}, {"number": {"$in": values}}]}
    found = await collection.get(where=both, include=["documents"])
    assert sorted(found["documents"]) == sorted(f"text {number}" for number in range(1, 25, 2))


@pytest.mark.parametrize(("limit", "offset"), [(10, None), (10, 20), (None, 22), (5, 24), (5, 99)])
async def test_limits_of_a_read_that_is_asked_in_several(collection, limit, offset):
    """Limit and offset count over the whole of it: pages neither overlap nor leave anything out."""
    where = {"number": {"$in": list(range(25))}}
    whole = (await collection.get(where=where, include=[]))["ids"]
    found = await collection.get(where=where, limit=limit, offset=offset, include=["metadatas"])
    start = offset or 0
    assert found["ids"] == whole[start : None if limit is None else start + limit]
    assert [f"id{entry['number']:02}" for entry in found["metadatas"]] == found["ids"]


async def test_more_hits_than_a_statement_takes(collection):
    """A search with many questions, or many results, returns all that was asked for of each hit."""
    include = ["documents", "metadatas", "distances", "embeddings"]
    found = await collection.query(
        query_embeddings=[[1.0, 1.0], [1.0, 38.0], [1.0, 20.0]], n_results=10, include=include
    )
    assert [row[0] for row in found["ids"]] == ["id01", "id38", "id20"]
    assert found["included"] == include
    for row, ids in enumerate(found["ids"]):
        assert len(set(ids)) == 10
        assert found["documents"][row] == [f"text {int(id[2:])}" for id in ids]
        assert [entry["number"] for entry in found["metadatas"][row]] == [int(id[2:]) for id in ids]
        assert [vector.tolist() for vector in found["embeddings"][row]] == [
            [1.0, float(id[2:])] for id in ids
        ]
        assert found["distances"][row] == sorted(found["distances"][row])
    many = await collection.query(query_embeddings=[[1.0, float(n % MANY)] for n in range(200)], n_results=1)
    assert many["ids"] == [[f"id{n % MANY:02}"] for n in range(200)]
    assert many["documents"] == [[f"text {n % MANY}"] for n in range(200)]


async def test_numbers_that_are_larger_than_chroma_takes_mean_all(collection):
    """`sys.maxsize` for all of them is what people write; a negative number is an error that names it."""
    whole = await collection.query(
        query_embeddings=[[1.0, 0.0]], n_results=sys.maxsize, include=["distances"]
    )
    assert len(whole["ids"][0]) == MANY
    assert len((await collection.get(limit=sys.maxsize, include=[]))["ids"]) == MANY
    assert (await collection.get(offset=2**63, include=[]))["ids"] == []
    assert [found.name for found in await collection._client.list_collections(limit=2**80)] == ["notes"]
    for call in (lambda: collection.get(limit=-1), lambda: collection._client.list_collections(offset=-5)):
        with pytest.raises(aiochroma.InvalidInputError, match="must not be negative"):
            await call()


async def test_a_pattern_that_sqlite_does_not_take_is_refused_by_name(collection, caplog):
    """With its length and the most there is, before anything is looked for; the database is not blamed."""
    pattern = {"$or": [{"$contains": "text"}, {"$not_contains": "x" * 49_999}]}
    for call in (collection.get, collection.delete):
        with pytest.raises(
            aiochroma.InvalidInputError, match=r"where_document.*49,999 bytes, and may have 49,998"
        ):
            await call(where_document=pattern)
    found = await collection.get(where_document={"$not_contains": "x" * 49_998}, include=[])
    assert len(found["ids"]) == await collection.count() == MANY
    with pytest.raises(aiochroma.InvalidInputError, match="1,000,001 bytes"):
        await collection.get(where={"kind": "é" * 500_000 + "x"})


async def test_a_query_within_ids_that_are_gone(collection, caplog):
    """What was deleted since is left out, and an error if it was all; the database is neither blamed nor opened again."""
    await collection.delete(ids=["id02"])
    query = {
        "query_embeddings": [[1.0, 2.0], [1.0, 30.0]],
        "n_results": 2,
        "include": ["documents", "distances"],
    }
    found = await collection.query(ids=["id01", "id02", "id30", *(f"never{n}" for n in range(20))], **query)
    assert found["ids"] == [["id01", "id30"], ["id30", "id01"]]
    with pytest.raises(
        chromadb.errors.InvalidArgumentError, match=r"Error finding id id02: .* none of the 2 ids"
    ):
        await collection.query(ids=["id02", "never"], **query)
    assert not [record for record in caplog.records if "fault" in record.getMessage()]


async def test_a_native_panic_is_an_unavailable_store_and_the_thread_goes_on(collection):
    """A panic is no `Exception`; its caller gets an error of our tree, and the next call is served."""
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    backend = backend_of(collection._client)
    api = backend.api

    class Panicking:
        def __getattr__(self, name):
            return getattr(api, name)

        def _get(self, **_):
            raise panic("called `Result::unwrap()` on an `Err` value")

    backend.api = Panicking()
    with pytest.raises(aiochroma.StoreUnavailableError, match="native code") as caught:
        await collection.get(ids=["id01"])
    assert type(caught.value.__cause__) is panic
    assert (await collection.get(ids=["id01"], include=[]))["ids"] == ["id01"]


async def test_what_one_statement_does_not_take_is_refused_before_it_is_sent(tmp_path):
    """SQLite takes a limited number of values and conditions; the error says how many, and the database goes on."""
    numbers, ids = list(range(50_000)), [f"id{number}" for number in range(50_000)]
    async with aiochroma.AsyncPersistentClient(tmp_path / "db") as client:
        notes = await client.get_or_create_collection("notes", embedding_function=None)
        await notes.add(
            ids=["a", "b"],
            embeddings=[[1.0, 0.0], [0.0, 1.0]],
            metadatas=[{"n": 49_999, "k": "x"}, {"n": -1, "k": "y"}],
            documents=["one", "two"],
        )
        assert (await notes.get(where={"n": {"$in": numbers}}))["ids"] == ["a"]
        assert (await notes.get(where={"n": {"$in": numbers}}, ids=["b", *ids, "a"]))["ids"] == ["a"]
        assert (await notes.get(where={"$and": [{"k": "x"}, {"n": {"$in": numbers}}]}))["ids"] == ["a"]
        one = [[1.0, 0.0]]
        assert (await notes.query(query_embeddings=one, ids=[*ids, "b"]))["ids"] == [["b"]]
        too_much = {
            "too many values": [
                lambda: notes.get(where={"n": {"$nin": numbers}}),
                lambda: notes.get(where={"$or": [{"k": "y"}, {"n": {"$in": numbers}}]}),
                lambda: notes.query(query_embeddings=one, where={"n": {"$in": numbers}}),
                lambda: notes.delete(where={"n": {"$in": numbers}}),
            ],
            "12000 conditions": [
                lambda: notes.get(where={"$or": [{"n": number} for number in range(12_000)]}),
                lambda: notes.get(where_document={"$or": [{"$contains": id} for id in ids[:12_000]]}),
                lambda: notes.delete(where={"$and": [{"n": {"$ne": number}} for number in range(12_000)]}),
            ],
        }
        for message, calls in too_much.items():
            for call in calls:
                with pytest.raises(aiochroma.InvalidInputError, match=message):
                    await call()
        await notes.delete(ids=[*ids, "b"])
        assert (await notes.get())["ids"] == ["a"]


async def test_a_memory_refuses_a_filter_that_cannot_be_carried_out(tmp_path):
    """With the same error, whichever index answers."""
    async with aiochroma.Memory(tmp_path / "memory") as memory:
        await memory.remember("the key is under the mat", metadata={"n": 1})
        where = {"$or": [{"n": number} for number in range(12_000)]}
        for call in (lambda: memory.recall("key", where=where), lambda: memory.forget(where=where)):
            with pytest.raises(aiochroma.InvalidInputError, match="12000 conditions"):
                await call()
        assert len(await memory.recall("key")) == 1
