"""Listing a namespace in order, a page at a time, and looking up several memories at once."""

from __future__ import annotations

import asyncio

import pytest

import aiochroma
from aiochroma import InvalidInputError, sync


async def pages(memory, size, **arguments):
    """Return all texts, read a page at a time, and how many pages there were."""
    texts, after, count = [], None, 0
    while True:
        page = await memory.list(limit=size, after=after, **arguments)
        texts.extend(hit.text for hit in page)
        count += 1
        assert len(page) <= size
        if page.next is None:
            return texts, count
        after = page.next


@pytest.mark.parametrize("newest_first", [False, True])
async def test_pages_are_the_whole_in_order(memory, newest_first):
    """However large the pages are, together they are every memory once, in the order in which they were made."""
    expected = [f"fact {number}" for number in range(30)]
    await memory.remember_many(expected)
    await memory.remember("gone", expires_at=1.0)
    expected.reverse() if newest_first else None
    for size in (1, 7, 30, 31):
        texts, count = await pages(memory, size, newest_first=newest_first)
        assert texts == expected
        assert count == -(-30 // size)
    assert [hit.text for hit in await memory.list(newest_first=newest_first)] == expected
    assert [hit.text async for hit in memory.list(newest_first=newest_first)] == expected
    assert [hit.text async for hit in memory.list(newest_first=newest_first, limit=4)] == expected[:4]


async def test_a_page_goes_on_where_it_ended_whatever_happened_meanwhile(memory):
    """Forgetting and remembering between two pages neither repeats nor skips what was there all the time."""
    ids = await memory.remember_many(f"fact {number}" for number in range(6))
    first = await memory.list(limit=3)
    await memory.forget(ids[2])
    await memory.remember("later")
    rest = await memory.list(after=first.next)
    assert [hit.text for hit in rest] == ["fact 3", "fact 4", "fact 5", "later"]


@pytest.mark.parametrize(
    "other",
    [
        {"namespace": "work"},
        {"newest_first": True},
        {"where": {"kind": "note"}},
        {"where": {"kind": 1}},
        {"scope": "acme"},
        {"thread": "t"},
    ],
)
async def test_the_cursor_of_another_list_is_refused(memory, other):
    """It would skip or repeat memories without a word."""
    await memory.remember_many([f"fact {number}" for number in range(4)])
    page = await memory.list(limit=2)
    with pytest.raises(InvalidInputError, match="another list"):
        memory.list(after=page.next, **other)
    filtered = await memory.list(limit=2, where={"kind": {"$ne": "note"}}, since=0)
    rest = await memory.list(after=filtered.next, where={"kind": {"$ne": "note"}}, since=1.0)
    assert [hit.text for hit in rest] == ["fact 2", "fact 3"]


@pytest.mark.parametrize(
    "odd", ["", "[", "[1]", '["x", "y", "z"]', '[1e999, "a", "b"]', "[" * 100_000, "null", 7]
)
async def test_a_cursor_that_no_page_has_given_is_refused(memory, odd):
    """Whatever it is, the error is ours."""
    with pytest.raises(InvalidInputError, match="`after`"):
        memory.list(after=odd)


async def test_the_last_turns_of_a_conversation(memory):
    """A thread is listed by places, so by arrival and not by what a clock said."""
    messages = [
        {"role": "user", "content": "Hello", "name": "Ada", "created_at": 2e9},
        {"role": "assistant", "content": "Hello Ada", "created_at": 1e9},
        {"role": "user", "content": "Hello", "name": "Ada", "created_at": 1.5e9},
    ]
    ids = await memory.remember_messages(messages, thread="t", scope=("acme", "ada"))
    await memory.remember("Hello", thread="t", scope=("acme", "ben"))
    turns = await memory.list(scope=("acme", "ada"), thread="t", newest_first=True, limit=2)
    assert [(hit.id, hit.text) for hit in turns] == [(ids[2], "Hello"), (ids[1], "Hello Ada")]
    assert turns[0].metadata == {"role": "user", "name": "Ada"}
    assert turns[0].created_at.timestamp() == 1.5e9
    said, _ = await pages(memory, 1, scope=("acme", "ada"), thread="t")
    assert said == ["Hello", "Hello Ada", "Hello"]
    # The same messages are the same turns.
    assert await memory.remember_messages(messages, thread="t", scope=("acme", "ada")) == ids
    assert await memory.count() == 4


async def test_messages_of_chat_apis_are_taken_as_they_are(memory):
    """Texts of parts count; a tool's call and a picture say nothing; a message of nothing at all is refused."""
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is that?"}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
        {"role": "user", "content": [picture]},
        {"role": "assistant", "content": "Rain.", "refusal": None, "annotations": []},
    ]
    ids = await memory.remember_messages(messages, thread="t")
    turns = [(hit.id, hit.text, hit.metadata["role"]) async for hit in memory.list(thread="t")]
    said = [("What is that?", "user"), ("rain", "tool"), ("Rain.", "assistant")]
    assert turns == [(id, *one) for id, one in zip(ids, said, strict=True)]
    for odd in ({"role": "user", "content": None}, {"role": "user", "content": "hi", "mood": "good"}):
        with pytest.raises(InvalidInputError, match=r"messages\[0\]"):
            await memory.remember_messages([odd], thread="t")


async def test_a_list_passes_its_filters(memory):
    """Scope, thread, metadata and period leave in what passes all of them."""
    for number, scope in enumerate(["a", ("a", "b"), ("a", "c"), "ab", None]):
        await memory.remember(
            f"fact {number}", scope=scope, created_at=1e9 + number, metadata={"even": number % 2 == 0}
        )

    async def listed(**arguments):
        return [int(hit.text[-1]) for hit in await memory.list(**arguments)]

    assert await listed(scope="a") == [0, 1, 2]
    assert await listed(scope=("a", "b")) == [1]
    assert await listed(scope="a", where={"even": True}) == [0, 2]
    assert await listed(since=1e9 + 1, until=1e9 + 3) == [1, 2]
    assert await listed(thread="none") == await listed(namespace="nowhere") == []


async def test_several_are_looked_up_at_once(memory):
    """They come in the order of their ids, each once; what is not there is left out."""
    one, other = await memory.remember_many(["one", "other"])
    found = await memory.get_many([other, "nobody", one, other])
    assert [hit.id for hit in found] == [other, one]
    assert await memory.get_many([], namespace="nowhere") == []
    assert await memory.forget_many([one, "nobody", other]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "`limit`"),
        ({"after": "nonsense"}, "`after`"),
        ({"where": {"a": None}}, "'a'"),
        ({"scope": ""}, "`scope`"),
        ({"thread": 5}, "`thread`"),
        ({"namespace": " "}, "`namespace`"),
        ({"since": "yesterday"}, "`since`"),
    ],
)
async def test_a_list_that_cannot_be_is_refused_at_once(memory, arguments, message):
    """Wrong arguments are named before anything is awaited."""
    with pytest.raises(InvalidInputError, match=message):
        memory.list(**arguments)
    with pytest.raises(InvalidInputError, match=r"messages\[1\]"):
        await memory.remember_messages([{"role": "a", "content": "b"}, {"content": "c"}], thread="t")


def test_the_blocking_form_gives_a_page(path, embedder):
    """Without an event loop a list is a page at once."""
    with sync.Memory(path, embedder=embedder) as memory:
        memory.remember_many(["one", "two", "three"])
        page = memory.list(limit=2)
        assert [hit.text for hit in page] == ["one", "two"]
        assert [hit.text for hit in memory.list(after=page.next)] == ["three"]


async def assert_numbers(memory, moments):
    """Every call shows the numbers that were remembered, and each finds its memory."""
    ids = {hit.text: hit.id for hit in await memory.list()}
    few = list(ids.values())[:6]
    shown = [
        await memory.recall("message", k=64),
        await memory.get_many(ids.values()),
        await memory.list(),
        [await memory.get(id) for id in few],
        [await memory.update(id, metadata={"seen": True}) for id in few],
    ]
    for hits in shown:
        assert hits
        assert all(hit.metadata["ts"] == moments[hit.text] for hit in hits)
    for text, ts in list(moments.items())[:6]:
        for where in (
            {"ts": ts},
            {"ts": {"$in": [ts]}},
            {"$and": [{"ts": {"$gte": ts}}, {"ts": {"$lte": ts}}]},
        ):
            assert [hit.text for hit in await memory.recall("message", where=where)] == [text]


async def test_every_call_shows_the_same_number(path, embedder, tmp_path):
    """Chroma changes the last digit of some floats; here every call shows and finds what was given, with a new index, too."""
    moments = {f"message {number}": 1764111111 + number / 7 for number in range(64)}
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        await memory.remember_many({"text": text, "metadata": {"ts": ts}} for text, ts in moments.items())
        await assert_numbers(memory, moments)
        changed = moments["message 3"] = 0.1 + 1 / 3000
        (hit,) = await memory.recall("message", where={"ts": 1764111111 + 3 / 7})
        assert (await memory.update(hit.id, metadata={"ts": changed})).metadata["ts"] == changed
        await memory.export(tmp_path / "all.jsonl")
    (path / "aiochroma-text.sqlite3").unlink()
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        await assert_numbers(memory, moments)
        # What another program has written since counts.
        collection = await memory.client.get_collection("default", embedding_function=None)
        await collection.update(hit.id, metadatas={"ts": 2.5})
        assert (await memory.get(hit.id)).metadata["ts"] == 2.5
        assert await memory.forget(where={"ts": {"$gte": 0.0}}) == 64
        await memory.import_(tmp_path / "all.jsonl")
        await assert_numbers(memory, moments)


async def test_a_filtered_list_is_planned_as_any_other_read(memory, caplog):
    """A filter is a dictionary, which nothing may trip over: the requests of the database go on being merged."""
    await memory.remember_many([{"text": f"fact {number}", "metadata": {"n": number}} for number in range(4)])
    pages = await asyncio.gather(*(memory.list(where={"n": {"$gt": 1}}) for _ in range(5)))
    assert [[hit.text for hit in page] for page in pages] == [["fact 2", "fact 3"]] * 5
    assert not [record.message for record in caplog.records if "plan failed" in record.message]
