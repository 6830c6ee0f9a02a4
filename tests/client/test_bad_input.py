"""Bad input: a clear error before anything is written, in short writes and in long ones."""

from __future__ import annotations

import numpy as np
import pytest
from chromadb.errors import DuplicateIDError

from aiochroma import InvalidInputError
from aiochroma.backend.limits import usual_question

LONG = 300
"""More records than one piece of writing has: the last may be wrong when the first are long written, unless found first."""


def records(count, **changes):
    rows = np.random.default_rng(1).random((count, 4)).tolist()
    arguments = {
        "ids": [f"id{number}" for number in range(count)],
        "embeddings": rows,
        "metadatas": [{"n": number} for number in range(count)],
        "documents": [f"text {number}" for number in range(count)],
    }
    for name, change in changes.items():
        change(arguments[name])
    return arguments


def last(value):
    def change(values):
        values[-1] = value

    return change


CASES = {
    "duplicate ids": ({"ids": last("id0")}, "id0"),
    "an id that is no string": ({"ids": last(7)}, "(?i)id"),
    "too few vectors": ({"embeddings": list.pop}, "(?i)embedding|length|unequal"),
    "too few documents": ({"documents": list.pop}, "(?i)document|length|unequal"),
    "too few metadatas": ({"metadatas": list.pop}, "(?i)metadata|length|unequal"),
    "other dimensions": ({"embeddings": last([1.0, 2.0])}, "(?i)dimension"),
    "NaN": ({"embeddings": last([1.0, 2.0, 3.0, float("nan")])}, "NaN"),
    "infinity": ({"embeddings": last([1.0, float("-inf"), 3.0, 4.0])}, "(?i)infinit"),
    "text in a vector": ({"embeddings": last([1.0, "x", 3.0, 4.0])}, "(?i)embedding|numeric|float"),
    "nested metadata": ({"metadatas": last({"a": {"b": 1}})}, "(?i)metadata"),
    "an object in metadata": ({"metadatas": last({"a": object()})}, "(?i)metadata"),
    "NUL in a document": (
        {"documents": last("text\0text")},
        r"documents\[\d+\] has a NUL character at position 4",
    ),
    "NUL in an id": ({"ids": last("a\0")}, r"ids\[\d+\] has a NUL character at position 1"),
    "NUL in metadata": ({"metadatas": last({"a": "b\0"})}, r"metadatas\[\d+\]\['a'\] has a NUL"),
    "NUL in a list of metadata": (
        {"metadatas": last({"a": ["b", "\0"]})},
        r"metadatas\[\d+\]\['a'\] has a NUL",
    ),
    "NUL in a key": ({"metadatas": last({"a\0": 1})}, r"A key of metadatas\[\d+\] has a NUL"),
    "half a surrogate pair": ({"documents": last("x\ud800")}, r"documents\[\d+\].*surrogate"),
    "more metadata than fits": (
        {"metadatas": last({f"k{number}": 1 for number in range(5461)})},
        r"metadatas\[\d+\] has 5,461 values.*5,460",
    ),
    "a longer list than fits": ({"metadatas": last({"a": [1] * 5461})}, r"metadatas\[\d+\] has 5,461 values"),
    "a document too long for others to wait": (
        {"documents": last("x" * 1_000_001)},
        r"documents\[\d+\] has 1,000,001 bytes, and may have 1,000,000",
    ),
    "a value too long for others to wait": (
        {"metadatas": last({"a": "ü" * 500_001})},
        r"metadatas\[\d+\]\['a'\] has 1,000,002 bytes, and may have 1,000,000",
    ),
    "values too long together": (
        {"metadatas": last({f"k{number}": "x" * 400_000 for number in range(3)})},
        r"metadatas\[\d+\] has 1,200,006 bytes",
    ),
    "an id too long for others to wait": ({"ids": last("x" * 1_000_001)}, r"ids\[\d+\] has 1,000,001 bytes"),
    "a number that is none": (
        {"metadatas": last({"a": float("nan")})},
        r"metadatas\[\d+\]\['a'\] has nan, which is not a finite number",
    ),
    "a list with an infinite number": (
        {"metadatas": last({"a": [1.0, float("-inf")]})},
        r"metadatas\[\d+\]\['a'\] has -inf, which is not a finite number",
    ),
    "an integer for which a float would be kept": (
        {"metadatas": last({"a": 2**63})},
        r"metadatas\[\d+\]\['a'\] has 9223372036854775808, which is not an integer of 64 bits",
    ),
    "a document that is no string": ({"documents": last(b"bytes")}, "(?i)document"),
}


@pytest.mark.parametrize("count", [3, LONG])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["add", "upsert", "update"])
async def test_nothing_is_written(collection, method, case, count):
    """Whatever is wrong with the last record, none of the records is written."""
    changes, message = CASES[case]
    if method == "update":
        await collection.add(**records(1))
    with pytest.raises((ValueError, TypeError, Exception), match=message):
        await getattr(collection, method)(**records(count, **changes))
    found = await collection.get()
    if method == "update":
        assert found["documents"] == ["text 0"]
        assert found["metadatas"] == [{"n": 0}]
    else:
        assert found["ids"] == []


@pytest.mark.parametrize("count", [3, LONG])
async def test_dimensions_are_those_of_the_collection(collection, count):
    """Vectors of another length than the collection's are refused as a whole, and so are questions."""
    await collection.add(ids=["first"], embeddings=[[1.0, 2.0]])
    with pytest.raises(Exception, match=r"(?i)dimension"):
        await collection.add(**records(count))
    assert await collection.count() == 1
    with pytest.raises(Exception, match=r"(?i)dimension"):
        await collection.query(query_embeddings=[[1.0, 2.0, 3.0]])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"limit": "10"}, TypeError),
        ({"limit": -1}, (ValueError, OverflowError)),
        ({"limit": 1000, "offset": "x"}, TypeError),
        ({"ids": []}, ValueError),
        ({"ids": ["a", "a"]}, DuplicateIDError),
        ({"include": ["nonsense"]}, ValueError),
        ({"where": {"a": {"$nonsense": 1}}}, ValueError),
        ({"where_document": {"$nonsense": "x"}}, ValueError),
    ],
)
async def test_senseless_reads_hurt_nobody_else(client, collection, arguments, error):
    """A read that makes no sense is an error of its caller; the database serves the next."""
    await collection.add(**records(3))
    with pytest.raises(error):
        await collection.get(**arguments)
    assert await collection.count() == 3
    assert client.session.connection.engine.serving.thread.is_alive()


@pytest.mark.parametrize("count", [0, -1, 1.5, "3"])
async def test_senseless_n_results(collection, count):
    """Asking for fewer than one neighbour is an error."""
    await collection.add(**records(3))
    with pytest.raises((ValueError, TypeError)):
        await collection.query(query_embeddings=[[1.0, 2.0, 3.0, 4.0]], n_results=count)
    assert await collection.count() == 3


async def test_the_offending_vector_is_named(collection):
    """The message says which vector is wrong."""
    with pytest.raises(Exception, match=r"embeddings\[299\]"):
        await collection.add(**records(LONG, embeddings=last([1.0, 2.0, 3.0, float("nan")])))


async def test_a_limited_delete_deletes_no_more(collection):
    """A delete with a limit deletes so many, also when it names more ids than fit one piece of writing."""
    await collection.add(
        ids=[f"id{n}" for n in range(200)], embeddings=np.ones((200, 2)), metadatas=[{"k": 1}] * 200
    )
    result = await collection.delete(ids=[f"id{n}" for n in range(150)], where={"k": 1}, limit=5)
    assert result["deleted"] == 5
    assert await collection.count() == 195


async def test_as_much_metadata_as_fits(client, collection):
    """The largest record that Chroma can apply is written, read, and found again after reopening."""
    await collection.add(
        ids=["a"], embeddings=[[1.0, 2.0]], documents=["x"], metadatas=[{f"k{n}": n for n in range(5460)}]
    )
    await client.reset_connection()
    assert len((await collection.get(ids=["a"], where={"k7": 7}))["metadatas"][0]) == 5460


@pytest.mark.parametrize("neighbors", [0, 1, 16_385])
async def test_an_index_that_would_crash(client, neighbors):
    """Chroma's native code would end the process; it is refused wherever it is asked for."""
    for arguments in (
        {"configuration": {"hnsw": {"max_neighbors": neighbors}}},
        {"metadata": {"hnsw:M": neighbors}},
    ):
        for make in (client.create_collection, client.get_or_create_collection):
            with pytest.raises(InvalidInputError, match="max_neighbors"):
                await make("things", embedding_function=None, **arguments)
    assert await client.list_collections() == []


@pytest.mark.parametrize(
    "arguments",
    [{"ids": ["\ud800"]}, {"where": {"a": "\ud800"}}, {"where_document": {"$contains": "\ud800"}}],
)
async def test_what_is_no_text_is_our_error(collection, arguments):
    """Half a surrogate pair cannot be asked for; the codec's own error does not reach the caller."""
    with pytest.raises(InvalidInputError, match="surrogate"):
        await collection.get(**arguments)


@pytest.mark.parametrize(
    "uri", [5, "a\ud800", "a\0", "u" * 1_000_001], ids=["number", "surrogate", "NUL", "long"]
)
async def test_a_uri_that_is_no_text(client, collection, uri):
    """It is refused by name, and costs nobody else anything: requests are planned as before."""
    with pytest.raises(InvalidInputError, match=r"uris\[0\]"):
        await collection.add(ids=["a"], embeddings=[[1.0, 2.0]], uris=[uri])
    assert await collection.count() == 0


@pytest.mark.parametrize(
    "value",
    [["a", "list"], float("nan"), "\ud800", None, "x" * 1_000_001, -(2**63) - 1],
    ids=["list", "NaN", "surrogate", "None", "long", "large"],
)
async def test_metadata_that_no_collection_can_have(client, collection, value):
    """Chroma's native code would fail in the middle, or write another value; refused when it is made and when it is changed."""
    for call in (
        lambda: client.create_collection("things", metadata={"a": value}, embedding_function=None),
        lambda: client.get_or_create_collection("things", metadata={"a": value}, embedding_function=None),
        lambda: collection.modify(metadata={"a": value}),
    ):
        with pytest.raises(InvalidInputError, match="metadata"):
            await call()
    assert [one.name for one in await client.list_collections()] == [collection.name]
    assert "a" not in (collection.metadata or {})


async def test_a_filter_that_is_nested_too_deeply_is_our_error(collection):
    """Python's own error about its stack does not reach the caller."""
    where = {"n": 1}
    for _ in range(5_000):
        where = {"$and": [where, {"n": 1}]}
    with pytest.raises(InvalidInputError, match="nested too deeply"):
        await collection.get(where=where)


_ROWS = np.eye(2, 3, dtype=np.float32)
_USUAL = {"given": _ROWS, "n_results": 1, "include": ["documents"], "others": (None, None)}


@pytest.mark.parametrize(
    "unusual",
    [
        {"given": np.eye(2, 3)},
        {"given": _ROWS[0]},
        {"given": _ROWS[:0]},
        {"given": _ROWS[:, :0]},
        {"given": _ROWS * np.float32("nan")},
        {"given": [_ROWS[0], np.float32([0, "inf", 0])]},
        {"given": [_ROWS[0], _ROWS[1, :2]]},
        {"given": [np.float32(1)]},
        {"given": [np.array(1, np.float32)]},
        {"given": [_ROWS]},
        {"given": _ROWS.tolist()},
        {"given": _ROWS.view(np.recarray)},
        {"given": None},
        {"n_results": 0},
        {"n_results": True},
        {"n_results": np.int64(1)},
        {"include": ["data"]},
        {"include": ["nonsense"]},
        {"include": [["documents"]]},
        {"include": ("documents",)},
        {"others": (None, {})},
    ],
)
def test_chroma_looks_at_every_unusual_question(unusual):
    assert usual_question(**_USUAL) is not None
    assert usual_question(**{**_USUAL, **unusual}) is None


async def test_a_usual_question_is_answered_as_every_other(collection):
    await collection.add(ids=["a", "b"], embeddings=_ROWS, documents=["one", "two"])
    include = ["documents", "distances", "metadatas"]
    usual = await collection.query(query_embeddings=_ROWS, n_results=2)
    assert usual == await collection.query(query_embeddings=_ROWS.tolist(), n_results=2)
    assert usual == await collection.query(query_embeddings=list(_ROWS), n_results=2)
    own = await collection.query(query_embeddings=_ROWS, n_results=2, include=include)
    own["included"].append("mine")
    again = await collection.query(query_embeddings=_ROWS, n_results=2, include=include)
    assert (include, again["included"]) == (["documents", "distances", "metadatas"],) * 2
