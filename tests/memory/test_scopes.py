"""Scopes and threads: two people who say the same are two people, and a repeated text is a new turn."""

from __future__ import annotations

import pytest

from aiochroma import InvalidInputError


async def test_two_people_who_say_the_same_have_two_memories(memory):
    """The derived id depends on scope and thread as well as on the text; without them it is that of the text."""
    text = "My cat is called Miso."
    ids = {
        await memory.remember(text),
        await memory.remember(text, scope="ada"),
        await memory.remember(text, scope=("ada", "work")),
        await memory.remember(text, scope="ada/work"),
        await memory.remember(text, scope="ben"),
        await memory.remember(text, thread="ada"),
    }
    assert len(ids) == await memory.count() == 6
    assert await memory.remember(text, scope=("ada", "work")) in ids
    hit = await memory.get(await memory.remember(text, scope=("ada", "a/b%")))
    assert hit.scope == ("ada", "a/b%")


async def test_a_repeated_text_is_a_new_turn_of_its_thread(memory):
    """ "Yes" said twice in a conversation is there twice, in order, unless it is to be refreshed or is the same moment."""
    turns = await memory.remember_many(["Are you there?", "yes", "And now?", "yes"], thread="t")
    turns.append(await memory.remember("yes", thread="t"))
    assert len(set(turns)) == 5
    hits = [await memory.get(id) for id in turns]
    assert [hit.text for hit in sorted(hits, key=lambda hit: hit.position)] == [hit.text for hit in hits]
    assert await memory.remember("yes", thread="t", dedupe=True) == turns[1]
    said = await memory.remember("yes", thread="t", created_at=1.5e9)
    assert await memory.remember("yes", thread="t", created_at=1.5e9) == said
    assert await memory.count() == 6


async def test_the_last_messages_may_be_remembered_again_and_again(memory):
    """Whatever part of a conversation is given, in whatever order, and whatever was forgotten: a moment is one memory."""
    said = [{"role": "user", "content": "ok", "created_at": 100.0 + n} for n in range(5)]
    ids = await memory.remember_messages([said[2]], thread="t")
    ids += await memory.remember_messages([said[0], said[1], said[2], said[2]], thread="t")
    assert ids[0] == ids[3] == ids[4]
    await memory.forget(ids[0])
    await memory.update(ids[1], ttl=0.001)
    for _ in range(2):
        await memory.remember_messages(said[1:], thread="t")
    page = await memory.list(thread="t")
    assert sorted(hit.created_at.timestamp() for hit in page) == [101, 102, 103, 104]


async def test_places_in_a_thread_follow_arrival_and_not_the_clock(memory):
    """What is said later stands behind, also when its moment is an earlier one; scopes have threads of their own."""
    for text, moment in (("first", 2e9), ("second", 1e9), ("third", 1.5e9)):
        await memory.remember(text, thread="t", scope="ada", created_at=moment)
    await memory.remember("foreign", thread="t", scope="ben")
    hit = (await memory.recall("second", k=1, window=2))[0]
    assert [one.text for one in (*hit.before, hit, *hit.after)] == ["first", "second", "third"]


@pytest.mark.parametrize("other", ["ada", "ben"])
async def test_what_one_person_says_lends_nothing_to_what_another_says(memory, other):
    """Memories without a thread that follow each other raise each other's rank within a scope, and no further."""
    await memory.remember("Where was the photograph taken?", scope="ada")
    await memory.remember("At the pier.", scope=other)
    recall = await memory.recall("where was the photograph taken", k=2)
    lent = {hit.text: hit.explain["text"] for hit in recall}
    assert (lent["At the pier."] > 0) is (other == "ada")


async def test_a_memory_that_gets_another_scope_leaves_the_former_one(memory):
    """Whoever asks for the scopes above the former one does not find it any more, and cannot forget it."""
    await memory.remember("Prefers tea.", id="drink", scope=("acme", "user-7"))
    await memory.remember("Prefers coffee.", id="drink", scope="beta")
    assert not await memory.recall("coffee", scope="acme")
    assert await memory.forget(scope="acme") == 0
    (hit,) = await memory.recall("coffee", scope="beta")
    assert hit.scope == ("beta",)


@pytest.mark.parametrize("scope", ["", (), ("a", ""), ("a",) * 9, 5, ("a", 5), "\ud800"])
async def test_a_scope_that_is_none_is_refused(memory, scope):
    """A scope is a text or a few texts."""
    with pytest.raises(InvalidInputError, match="`scope`"):
        await memory.remember("fact", scope=scope)
