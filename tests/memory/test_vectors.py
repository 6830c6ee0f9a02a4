"""Texts longer than the embedder reads: one memory, found by any part, whole again in every answer."""

from __future__ import annotations

import itertools
import sys
from string import ascii_lowercase

import pytest

import aiochroma
from aiochroma.memory.vectors import Splitter

pytest.importorskip("semantic_text_splitter")

SENTENCES = [
    "The garden has seventeen old apple trees.",
    "A violin was stolen in Vienna by a tall man.",
    "Jazz quizzes fizz with pizzazz, fuzzy and dizzy.",
    "Nothing else happened during the whole week.",
    "My mum makes marmalade and minestrone on Mondays.",
]
LONG = " ".join(SENTENCES)


@pytest.fixture
async def windowed(path, letters):
    """A memory whose embedder reads ten words."""
    embedder = letters(window=10)
    async with aiochroma.Memory(path, embedder=embedder, history=True) as memory:
        memory.reads = embedder
        yield memory


async def parts(memory):
    """Return how many parts are stored in all."""
    held = 0
    for entry in await memory.client.list_collections():
        if entry.name.startswith("ns.chunks-"):
            held += await (await memory.client.get_collection(entry.name, embedding_function=None)).count()
    return held


async def test_a_long_text_is_found_by_any_part_and_returned_once(windowed):
    """Each sentence finds the one memory, whose text is whole; the part that was found is named."""
    id = await windowed.remember(LONG, metadata={"kind": "diary"})
    await windowed.remember_many([f"short note {n}" for n in range(20)])
    for sentence in SENTENCES:
        for mode in ("vector", "hybrid"):
            recall = await windowed.recall(sentence, k=3, mode=mode)
            assert [hit.id for hit in recall].count(id) == 1
            assert (recall[0].id, recall[0].text, recall[0].passage) == (id, LONG, sentence)
            assert recall[0].distance == pytest.approx(0, abs=1e-5)
    assert recall.as_context(template="{passage}", heading=None).startswith(SENTENCES[-1])
    assert (await windowed.recall("marmalade", mode="text"))[0].id == id
    assert windowed.reads.longest <= 10
    assert await windowed.count() == 21
    assert await windowed.namespaces() == ["default"]


async def test_filters_and_expiry_hold_for_parts(windowed):
    """A memory that is filtered out or has expired is not found by its parts either."""
    id = await windowed.remember(LONG, metadata={"kind": "diary"})
    await windowed.remember("short", metadata={"kind": "note"})
    question = SENTENCES[2]
    assert [hit.text for hit in await windowed.recall(question, where={"kind": "note"})] == ["short"]
    assert (await windowed.recall(question, where={"kind": "diary"}))[0].id == id
    await windowed.update(id, expires_at=1)
    assert [hit.text for hit in await windowed.recall(question)] == ["short"]
    assert await windowed.sweep() == 1
    assert await parts(windowed) == 0


async def test_parts_live_and_die_with_their_memory(windowed):
    """Refreshing, updating and forgetting leave no part behind, and pinning loses none."""
    id = await windowed.remember(LONG)
    assert await parts(windowed) == 5
    await windowed.remember(LONG)
    assert await parts(windowed) == 5
    assert await windowed.pin(id)
    await windowed.update(id, metadata={"a": 1})
    assert (await windowed.recall(SENTENCES[1]))[0].passage == SENTENCES[1]
    await windowed.update(id, text=" ".join(SENTENCES[:2]))
    assert await parts(windowed) == 2
    assert (await windowed.recall(SENTENCES[2]))[0].distance > 0.05
    await windowed.update(id, text="short now")
    assert await parts(windowed) == 0
    await windowed.update(id, text=LONG)
    assert (await windowed.recall(SENTENCES[2]))[0].passage == SENTENCES[2]
    await windowed.remember("short again", id=id)
    assert await parts(windowed) == 0
    await windowed.remember(LONG, namespace="other")
    assert await windowed.forget(id) == 1
    assert await windowed.forget_namespace("other") == 1
    assert await parts(windowed) == 0


async def test_an_update_of_nothing_leaves_no_parts(windowed):
    """The parts are written before the memory is looked for; where there is none they go again."""
    await windowed.remember(LONG)
    assert await windowed.update("nobody", text=LONG) is None
    assert await parts(windowed) == 5


async def test_a_namespace_that_was_half_forgotten_can_be_forgotten(windowed, monkeypatch):
    """Forgetting ends in between: run again it leaves nothing, neither the memories nor the parts of long ones."""
    await windowed.remember(LONG)
    store, deleted = windowed._life.store, []
    submit = store.submit

    def submit_once(operation, **arguments):
        if operation == "delete_collection":
            deleted.append(arguments["name"])
            if len(deleted) == 2:
                raise RuntimeError("killed")
        return submit(operation, **arguments)

    with monkeypatch.context() as patched:
        patched.setattr(store, "submit", submit_once)
        with pytest.raises(RuntimeError, match="killed"):
            await windowed.forget_namespace("default")
    await windowed.forget_namespace("default")
    assert await windowed.client.list_collections() == []


async def test_another_memory_of_the_directory_sees_the_parts(windowed, path, letters):
    """Parts that somebody else writes are found at once, also where there were none before."""
    async with aiochroma.Memory(path, embedder=letters(window=10)) as other:
        await other.remember("short")
        assert len(await other.recall("short")) == 1
        await windowed.remember(LONG)
        assert (await other.recall(SENTENCES[2]))[0].passage == SENTENCES[2]


async def test_long_texts_have_neighbours_and_are_exported_whole(windowed, tmp_path, letters):
    """A long text stands in its thread like any other, and comes out of a file as it went in."""
    await windowed.remember_many(["before it", LONG, "after it"], thread="t")
    hit = (await windowed.recall(SENTENCES[2], window=1))[0]
    assert ([one.text for one in hit.before], hit.text, [one.text for one in hit.after]) == (
        ["before it"],
        LONG,
        ["after it"],
    )
    await windowed.export(tmp_path / "out.jsonl")
    async with aiochroma.Memory(tmp_path / "second", embedder=letters(window=10)) as other:
        await other.import_(tmp_path / "out.jsonl")
        assert (await other.recall(SENTENCES[2]))[0].passage == SENTENCES[2]
        assert await parts(other) == 5


async def test_a_long_question_is_read_to_its_end(windowed):
    """Nothing of a question is cut off either."""
    await windowed.remember(SENTENCES[2])
    await windowed.recall(LONG)
    assert windowed.reads.longest <= 10


async def test_split_chars_chooses_where_the_embedder_has_no_window(path, embedder):
    """Without a window texts are whole, unless a length is given."""
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        await memory.remember(LONG, namespace="whole")
        assert await parts(memory) == 0
    async with aiochroma.Memory(path, embedder=embedder, split_chars=60) as memory:
        await memory.remember(LONG)
        assert await parts(memory) == 5
        assert (await memory.recall("stolen violin", namespaces="default"))[0].passage == SENTENCES[1]


async def test_without_a_splitter_a_long_text_is_refused(windowed, monkeypatch):
    """Where the extra is missing, the message names it, nothing is written, and short texts are remembered."""
    monkeypatch.setitem(sys.modules, "semantic_text_splitter", None)
    with pytest.raises(aiochroma.MissingExtraError, match=r"aiochroma-memory\[long\]"):
        await windowed.remember(LONG)
    await windowed.remember("short")
    assert await windowed.count() == 1


@pytest.mark.parametrize("split_chars", [0, 31, True, "100", 2.5])
def test_a_bad_length_is_refused(split_chars, letters):
    """``split_chars`` is a number of characters in which a sentence has room."""
    from aiochroma.embedding.choice import adapted

    with pytest.raises(aiochroma.InvalidInputError, match="`split_chars`"):
        Splitter(adapted(letters()), split_chars)


def test_splitting_loses_nothing():
    """The parts of a text, put together, hold every letter of it in order, in any script."""
    from aiochroma.embedding.choice import EmbedderFunction

    splitter = Splitter(EmbedderFunction("x", None, None, None), 40)
    for text in (LONG, "日本語の文章です。" * 20, "x" * 500, "क्षेत्र में पानी है। " * 10, "😀👨‍👩‍👧 " * 30):
        (chunks,) = splitter.split([text]).values()
        assert "".join("".join(chunks).split()) == "".join(text.split())
        assert all(len(chunk) <= 40 for chunk in chunks)


@pytest.mark.parametrize("fate", ["there", "expired", "filtered"])
async def test_one_memory_of_many_parts_does_not_hide_the_others(path, letters, fate):
    """So many parts of one text may be the nearest, wanted or not: others are found by theirs all the same."""
    async with aiochroma.Memory(path, embedder=letters(window=4)) as memory:
        # Not all the same: between many equal vectors Chroma's graph loses its way.
        log = " ".join(
            f"zebra zebra zebra zebra{one}{other}!"
            for one, other in itertools.product(ascii_lowercase, ascii_lowercase[:12])
        )
        expires_at = 1 if fate == "expired" else None
        await memory.remember(log, id="log", expires_at=expires_at, metadata={"kind": "log"})
        await memory.remember(
            "zebra zebra lynx quokka. melon olive peach grape. lemon onion plum.", id="long"
        )
        await memory.remember("zoom lynx moose hippopotamus", id="short")
        where = {"kind": {"$ne": "log"}} if fate == "filtered" else None
        for mode in ("vector", "hybrid"):
            recall = await memory.recall("zebra zebra zebra zebra", k=3, mode=mode, where=where)
            found = {hit.id: hit for hit in recall}
            assert set(found) == {"long", "short"} | ({"log"} if fate == "there" else set())
            assert found["long"].passage == "zebra zebra lynx quokka."
            assert found["long"].distance < found["short"].distance
