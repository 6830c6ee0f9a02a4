"""Memories made of messages by a function of the caller's."""

from __future__ import annotations

import asyncio

import pytest

import aiochroma
import aiochroma.sync

MESSAGES = [
    {"role": "user", "content": "Hi! My cat is called Miso, and I moved to Graz in May."},
    {"role": "assistant", "content": "Nice to meet you both."},
]


def facts(messages):
    """Take what the user says apart, as a language model would."""
    return [
        part.strip(" .")
        for message in messages
        if message["role"] == "user"
        for part in message["content"].removeprefix("Hi! ").split(", and")
    ]


async def facts_later(messages):
    await asyncio.sleep(0)
    return [{"text": fact, "metadata": {"kind": "fact"}} for fact in facts(messages)]


@pytest.fixture
async def memory(tmp_path):
    """An empty memory."""
    async with aiochroma.Memory(tmp_path, embedder="hashed") as memory:
        yield memory


@pytest.mark.parametrize("extract", [facts, facts_later, lambda messages: facts_later(messages)])
async def test_what_is_extracted_is_remembered_in_place_of_the_messages(memory, extract):
    """Its items belong to the scope, and are no turns of the conversation."""
    ids = await memory.remember_messages(MESSAGES, thread="t", scope="ann", extract=extract)
    kept = await memory.list(scope="ann")
    assert [hit.id for hit in kept] == ids
    assert [hit.text for hit in kept] == ["My cat is called Miso", "I moved to Graz in May"]
    assert [hit.thread for hit in kept] == [None, None]
    assert await memory.count() == 2


def test_extracting_without_an_event_loop(tmp_path):
    """The blocking memory takes the same function."""
    with aiochroma.sync.Memory(tmp_path, embedder="hashed") as memory:
        assert len(memory.remember_messages(MESSAGES, thread="t", extract=facts)) == 2


def _raising(messages):
    raise ConnectionError("the model does not answer")


@pytest.mark.parametrize(
    ("extract", "said"),
    [
        (_raising, "ConnectionError: the model does not answer"),
        (lambda messages: "one text", "str and no list"),
        (lambda messages: None, "NoneType"),
        (lambda messages: ["good", {"text": ""}], "item 1"),
    ],
)
async def test_an_extraction_that_fails_is_an_error_of_its_own(memory, extract, said):
    """The error says what was wrong with what the function did, and nothing is remembered."""
    with pytest.raises(aiochroma.ExtractFailedError, match=said):
        await memory.remember_messages(MESSAGES, thread="t", extract=extract)
    assert await memory.count() == 0


async def test_the_deadline_is_kept_by_a_function_that_does_not_return(memory):
    """The caller is released when its deadline passes, and told."""
    gate = asyncio.Event()

    async def hanging(messages):
        await gate.wait()

    with pytest.raises(aiochroma.ExtractFailedError, match="had not answered"), aiochroma.deadline(1.0):
        await memory.remember_messages(MESSAGES, thread="t", extract=hanging)


def test_what_is_asynchronous_is_refused_without_an_event_loop(tmp_path):
    """Also where a lambda hides it; the coroutine is not left behind."""
    with aiochroma.sync.Memory(tmp_path, embedder="hashed") as memory:
        with pytest.raises(aiochroma.ExtractFailedError, match="has no event loop"):
            memory.remember_messages(MESSAGES, thread="t", extract=lambda messages: facts_later(messages))
        assert memory.count() == 0
