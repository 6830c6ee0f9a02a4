"""Time and change: memories expire, are refreshed, updated, pinned, swept, forgotten, and leave a trail."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from datetime import datetime, timedelta, timezone

import pytest
from backends import failing_afterwards
from chromadb.errors import NotFoundError

import aiochroma
from aiochroma.memory import forgetting
from aiochroma.records.history import ChangeLog, Entry, database_key
from aiochroma.records.record import CREATED_AT


def past(seconds=60):
    """Return a moment that has passed."""
    return datetime.now(timezone.utc) - timedelta(seconds=seconds)


async def everything(memory, question):
    """Return what any way of asking finds."""
    found = set()
    for mode in ("hybrid", "vector", "text"):
        found |= {hit.text for hit in await memory.recall(question, mode=mode, k=100)}
    return found


async def test_an_expired_memory_is_never_returned_and_takes_no_place(memory):
    """What has expired is found by nothing, and k others are found in its stead."""
    for number in range(70):
        await memory.remember(f"apple number {number}", expires_at=past())
    for number in range(5):
        await memory.remember(f"apple and pear number {number}")
    expired = await memory.remember("apple number 0", expires_at=past())
    for mode in ("hybrid", "vector", "text"):
        hits = await memory.recall("apple number", k=5, mode=mode)
        assert len(hits) == 5
        assert all("pear" in hit.text for hit in hits)
    assert await memory.get(expired) is None
    assert await memory.update(expired, metadata={"a": 1}) is None
    assert await memory.pin(expired) is None
    assert not await memory.similar(expired)
    assert await memory.sweep() == 70
    assert await memory.count() == 5


async def test_an_expired_memory_is_nobodys_neighbour(memory):
    """What has expired is not shown around a hit; what stands beyond it is."""
    turns = ["the first turn", "something else", "a turn that expires", "something further"]
    await memory.remember_many(
        [
            {"text": text, "thread": "t", **({"expires_at": past()} if "expires" in text else {})}
            for text in turns
        ]
    )
    (hit,) = await memory.recall("something else", k=1, window=2)
    assert hit.text == turns[1]
    assert [one.text for one in (*hit.before, *hit.after)] == [turns[0], turns[3]]


async def test_an_expired_memory_may_be_remembered_anew(memory):
    """Remembering what has expired makes a new memory: nothing of the old one is left in it."""
    id = await memory.remember(
        "the code is 77", id="code", expires_at=past(), metadata={"old": True}, thread="t"
    )
    assert await memory.remember("the code is 77", id="code") == id
    hit = await memory.get(id)
    assert (hit.metadata, hit.expires_at, hit.thread) == ({}, None, None)
    assert await everything(memory, "code 77") == {"the code is 77"}
    await memory.remember("the code is 77", id="code", ttl=3600)
    assert (await memory.get(id)).expires_at is not None
    await memory.remember("the code is 77", id="code")
    assert (await memory.get(id)).expires_at is None


async def test_a_pinned_memory_neither_expires_nor_is_swept(memory):
    """Pinned it stays; unpinned it goes."""
    id = await memory.remember("keep me", expires_at=past(), pinned=True)
    assert await memory.sweep() == 0
    assert await everything(memory, "keep") == {"keep me"}
    assert await memory.pin(id, pinned=False)
    assert await everything(memory, "keep") == set()
    assert await memory.sweep(namespace="default") == 1


async def test_a_write_sweeps_in_passing(path, embedder):
    """With ``sweep_every`` a write deletes what has expired, in all namespaces, but not at every write."""
    async with aiochroma.Memory(path, embedder=embedder, sweep_every=3600) as memory:
        await memory.remember("one", expires_at=past(), namespace="a")
        assert await memory.count() == 0
        await memory.remember("two", expires_at=past(), namespace="a")
        assert await memory.count() == 1


async def test_a_write_succeeds_whatever_becomes_of_the_sweep(path, embedder, monkeypatch):
    """What a sweep in passing meets is not the write's failure."""

    async def fails(*_):
        raise NotFoundError("the namespace was deleted meanwhile")

    monkeypatch.setattr(forgetting, "sweep_expired", fails)
    async with aiochroma.Memory(path, embedder=embedder, sweep_every=0.001) as memory:
        assert await memory.remember("one")


async def test_an_update_changes_what_is_given_and_nothing_else(memory):
    """Text, metadata and expiry change one by one; the id and the birth stay; what was overwritten is not found."""
    id = await memory.remember("The office is in Vienna", metadata={"a": 1, "b": 2}, thread="t", position=5)
    born = (await memory.get(id)).created_at
    hit = await memory.update(id, metadata={"b": 3})
    assert (hit.text, hit.metadata) == ("The office is in Vienna", {"a": 1, "b": 3})
    hit = await memory.update(id, text="The office is in Graz", ttl=timedelta(days=1))
    assert hit == await memory.get(id)
    assert (hit.text, hit.created_at, hit.thread, hit.position) == ("The office is in Graz", born, "t", 5)
    assert hit.expires_at > datetime.now(timezone.utc)
    assert await everything(memory, "Vienna office") == {"The office is in Graz"}
    assert not await memory.recall("Vienna", mode="text")


async def test_forgetting_by_id_by_filter_and_altogether(memory):
    """Each way of forgetting says how many there were, and they are gone for every way of asking."""
    ids = await memory.remember_many(
        [{"text": f"note {n}", "metadata": {"even": n % 2 == 0}} for n in range(150)]
    )
    assert await memory.forget(ids[0]) == 1
    assert await memory.forget(ids[0]) == 0
    assert await memory.forget(where={"even": True}) == 74
    assert await memory.count() == 75
    assert "note 2" not in await everything(memory, "note 2")
    await memory.remember("elsewhere", namespace="other")
    assert await memory.forget_namespace("default") == 75
    assert await memory.namespaces() == ["other"]
    assert await everything(memory, "note") == {"elsewhere"}


async def test_forgetting_while_updating_leaves_nothing(memory):
    """An update that comes after forgetting does not bring a memory back."""
    for number in range(20):
        id = await memory.remember(f"secret {number}")
        await asyncio.gather(
            memory.forget(id), memory.update(id, text=f"secret {number} again"), memory.pin(id)
        )
        assert await memory.get(id) is None
    assert await memory.count() == 0


async def test_since_and_until_look_at_when_a_memory_was_made(memory):
    """A period leaves in what was first remembered within it."""
    await memory.remember_many(
        [{"text": f"day {n}", "created_at": datetime(2024, 5, n, tzinfo=timezone.utc)} for n in range(1, 29)]
    )
    first, last = (datetime(2024, 5, n, tzinfo=timezone.utc) for n in (10, 13))
    hits = await memory.recall("day", since=first, until=last, k=20)
    assert sorted(hit.text for hit in hits) == ["day 10", "day 11", "day 12"]
    assert len(await memory.recall("day", since=last.timestamp(), k=50)) == 16


async def test_a_half_life_prefers_the_recent(memory):
    """Of two memories that match alike the one refreshed lately comes first, if that is asked for."""
    old = time.time() - 100 * 86400
    await memory.remember_many(
        [{"text": "meeting room b", "created_at": old, "updated_at": old}, "meeting room c"]
    )
    plain = await memory.recall("meeting room b", k=2)
    recent = await memory.recall("meeting room", k=2, half_life=timedelta(days=1))
    assert plain[0].text == "meeting room b"
    assert recent[0].text == "meeting room c"
    assert recent[1].explain["recency"] < 0.6


@pytest.fixture
async def noted(path, embedder):
    """A memory that notes its changes."""
    async with aiochroma.Memory(path, embedder=embedder, history=True) as memory:
        yield memory


async def test_the_history_tells_what_was_there_before(noted, path, embedder):
    """Every kind of change is noted with what it replaced, newest first, and survives reopening."""
    id = await noted.remember("first text", metadata={"a": 1}, namespace="n")
    await noted.remember("first text", metadata={"a": 2}, namespace="n")
    await noted.update(id, text="second text", namespace="n")
    await noted.pin(id, namespace="n")
    await noted.pin(id, pinned=False, namespace="n")
    await noted.update(id, expires_at=past(), namespace="n")
    await noted.sweep()
    other = await noted.remember("other text", namespace="n")
    await noted.forget_namespace("n")
    await noted.aclose()
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        changes = await memory.history(id, namespace="n")
        assert [(change.action, change.text, change.metadata) for change in reversed(changes)] == [
            ("remember", None, None),
            ("refresh", "first text", {"a": 1}),
            ("update", "first text", {"a": 2}),
            ("pin", "second text", {"a": 2}),
            ("unpin", "second text", {"a": 2}),
            ("update", "second text", {"a": 2}),
            ("sweep", "second text", {"a": 2}),
        ]
        assert [change.at for change in changes] == sorted((change.at for change in changes), reverse=True)
        newest = await memory.history(limit=2)
        assert [(change.id, change.action) for change in newest] == [(other, "forget"), (other, "remember")]
        assert await memory.history(namespace="elsewhere") == []


async def test_a_change_that_fails_leaves_no_entry(noted):
    """What Chroma refuses is withdrawn from the history."""
    await noted.remember("a text")
    found = (await noted._life.store.find(["default"]))["default"]
    with pytest.raises(Exception, match="dimension"):
        await noted._life.store.submit(
            "remember",
            **found.collection,
            ids=["x"],
            embeddings=[[1.0]],
            documents=["d"],
            metadatas=[{CREATED_AT: 1.0}],
            uris=None,
            chunks=found.chunks,
            exact=False,
            dedupe=False,
            history_namespace="default",
        )
    assert [change.action for change in await noted.history()] == ["remember"]


def test_an_entry_that_is_withdrawn_is_overwritten_in_the_file(tmp_path):
    """The text of a change that did not happen is in no byte of the history, beside an entry that stays."""
    log = ChangeLog(tmp_path / "history.sqlite3")
    entries = [Entry(1.0, "update", "n", id, f"The word is {id}.", {"a": 1}) for id in ("stays", "withdrawn")]
    log.note("", entries[:1])
    log.withdraw(log.note("", entries[1:]))
    log.close()
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"The word is stays." in content
    assert b"The word is withdrawn." not in content


@pytest.mark.parametrize(
    "damage",
    ["metadata = '{'", "metadata = '7'", "at = 'odd'", "at = 1e300", "action = x'ff'", "text = x'ff'"],
)
async def test_a_damaged_entry_of_the_history_is_told(noted, path, damage):
    """What lies in the file is not trusted: it is named, and asking for other memories goes on."""
    await noted.remember("one", id="sound")
    await noted.remember("one", id="damaged")
    await noted.remember("one", id="damaged")
    with closing(sqlite3.connect(path / "aiochroma-history.sqlite3")) as file, file:
        file.execute(f"UPDATE changes SET {damage} WHERE id = 'damaged'")
    with pytest.raises(aiochroma.StoreUnavailableError, match=r"history.*Move the file away"):
        await noted.history("damaged")
    assert len(await noted.history("sound")) == 1


_EARLIER_HISTORY = """
CREATE TABLE changes (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, action TEXT NOT NULL, namespace TEXT NOT NULL, id TEXT NOT NULL,
    text TEXT, metadata TEXT);
CREATE INDEX changes_by_id ON changes (namespace, id);
INSERT INTO changes VALUES (1, 1763000000.5, 'remember', 'default', 'known', NULL, NULL);
INSERT INTO changes VALUES (2, 1763000001.5, 'update', 'default', 'known', 'the first text', '{"kind": "note"}');
"""
"""What a build wrote that did not yet tell Chroma databases apart."""


async def test_the_history_of_an_earlier_build_goes_on(path, embedder):
    """What is in it is read, and the next changes are noted in it; the former texts are the default database's."""
    path.mkdir()
    with closing(sqlite3.connect(path / "aiochroma-history.sqlite3")) as file:
        file.executescript(_EARLIER_HISTORY)
    for _ in range(2):
        async with aiochroma.Memory(path, embedder=embedder, history=True) as memory:
            await memory.remember("the second text", id="known")
            changes = await memory.history("known")
    assert [change.action for change in changes] == ["refresh", "remember", "update", "remember"]
    assert (changes[2].text, changes[2].metadata) == ("the first text", {"kind": "note"})
    elsewhere = {"tenant": "default_tenant", "database": "other"}
    with closing(ChangeLog(path / "aiochroma-history.sqlite3")) as log:
        assert log.read(database_key(**elsewhere), None, None, 10) == []


@pytest.mark.parametrize("earlier", [_EARLIER_HISTORY, ""])
@pytest.mark.parametrize("history", [True, False])
async def test_the_history_of_an_earlier_build_is_erased_from(path, embedder, earlier, history):
    """Or one whose program was killed before it had written anything; without the memory having opened it, too."""
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        await memory.remember("the second text", id="known")
    with closing(sqlite3.connect(path / "aiochroma-history.sqlite3")) as file:
        file.executescript(earlier)
    async with aiochroma.Memory(path, embedder=embedder, history=history) as memory:
        assert (await memory.erase("known")).is_complete
        assert await memory.history() == []
    assert b"the first text" not in (path / "aiochroma-history.sqlite3").read_bytes()
    assert (await aiochroma.erase(path)).is_complete


async def test_a_history_without_a_number_for_another_entry(noted, path):
    """The largest number of SQLite is taken: the change is refused with the file's name, and not made."""
    known = await noted.remember("one")
    with closing(sqlite3.connect(path / "aiochroma-history.sqlite3")) as file, file:
        file.execute("UPDATE changes SET number = 9223372036854775807")
    with pytest.raises(aiochroma.StoreUnavailableError, match=r"history.*Move the file away"):
        await noted.forget(known)
    assert await noted.count() == 1


async def test_a_damaged_history_stops_the_change(path, embedder):
    """There is no change without an entry: over a damaged file writing is refused, reading goes on."""
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        await memory.remember("known")
    (path / "aiochroma-history.sqlite3").write_bytes(b"this is not a database" * 100)
    async with aiochroma.Memory(path, embedder=embedder, history=True) as memory:
        with pytest.raises(aiochroma.StoreUnavailableError, match="history"):
            await memory.remember("unknown")
        assert await everything(memory, "known") == {"known"}


async def test_a_changed_memory_is_not_overwritten_by_its_former_text(memory):
    """What was changed to another text keeps it, and its former text becomes a memory of its own, by any call."""
    passport = await memory.remember("I live in Rome", metadata={"a": 1})
    await memory.update(passport, text="The passport number is X123")
    rome = await memory.remember("I live in Rome", metadata={"b": 2})
    assert rome != passport
    assert await memory.remember("I live in Rome") == rome
    many = await memory.remember_many(["I live in Oslo", "I live in Rome", "I live in Rome"])
    assert many[1:] == [rome, rome]
    assert await memory.count() == 3
    kept = await memory.get(passport)
    assert (kept.text, kept.metadata) == ("The passport number is X123", {"a": 1})
    assert (await memory.get(rome)).text == "I live in Rome"
    # And so again, when that one was changed too; one that has expired is no obstacle.
    await memory.update(rome, text="I live in Turin")
    third = await memory.remember("I live in Rome")
    assert len({passport, rome, third}) == 3
    await memory.update(passport, expires_at=past())
    assert await memory.remember("I live in Rome") == passport


async def test_the_former_text_may_be_long(path, letters):
    """A long text whose id belongs to another text is found by its parts all the same."""
    pytest.importorskip("semantic_text_splitter")
    long = "Seventeen old apple trees. A violin from Vienna. Jazz quizzes fizz with pizzazz."
    async with aiochroma.Memory(path, embedder=letters(window=5)) as memory:
        changed = await memory.remember(long)
        await memory.update(changed, text="short")
        (again,) = await memory.remember_many([long])
        assert again != changed
        hit = (await memory.recall("Jazz quizzes fizz with pizzazz.", mode="vector"))[0]
        assert (hit.id, hit.text, hit.passage) == (again, long, "Jazz quizzes fizz with pizzazz.")


@pytest.mark.this_process
async def test_a_change_that_failed_and_happened_all_the_same_has_an_entry(noted):
    """Where Chroma has a change in its log when it reports an error, the entry stays."""
    id = await noted.remember("The key is under the mat.")
    fault = "Error in compaction: Error persisting hnsw index: No space left on device"
    with failing_afterwards(noted.client, "_update", fault), pytest.raises(aiochroma.AiochromaError):
        await noted.update(id, text="The key is in the shed.")
    assert (await noted.get(id)).text == "The key is in the shed."
    assert "update" in [change.action for change in await noted.history(id)]


async def test_the_history_of_a_database_is_its_own(path, embedder):
    """Of two databases in one directory neither shows the changes of the other."""
    async with aiochroma.AsyncPersistentClient(path) as root:
        await root.admin.create_database("south")
    async with (
        aiochroma.AsyncPersistentClient(path) as north,
        aiochroma.AsyncPersistentClient(path, database="south") as south,
        aiochroma.Memory(client=north, embedder=embedder, history=True) as of_north,
        aiochroma.Memory(client=south, embedder=embedder, history=True) as of_south,
    ):
        wage = await of_north.remember("Robin's salary is 61000.")
        await of_south.remember("The canteen opens at noon.")
        assert await of_south.history(wage) == []
        assert len(await of_south.history()) == len(await of_north.history()) == 1
