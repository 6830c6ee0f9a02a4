"""How a question is answered: by meaning and by words, with thresholds, weights, neighbours and variety."""

from __future__ import annotations

import asyncio
import random

import pytest

import aiochroma
from aiochroma import InvalidInputError, NamespaceSearch
from aiochroma.records.record import collection_name


async def test_names_codes_and_numbers_are_found_by_their_words(memory):
    """The exact word wins over what is merely alike, and the score says so."""
    await memory.remember_many(f"The pin of room {number} is {number * 7919}" for number in range(300))
    for mode in ("hybrid", "text"):
        hit = (await memory.recall("which room has pin 1005713", k=1, mode=mode))[0]
        assert hit.text == "The pin of room 127 is 1005713"
        assert hit.explain["own_text"] > 0.5


async def test_a_threshold_spares_what_matches_by_text(memory):
    """A threshold is a distance: it cuts what is far, unless it holds a word of the question; without one k come back."""
    await memory.remember_many(["the harbour crane", "a bowl of soup", "crane", "violins at dusk"])
    assert len(await memory.recall("crane", k=4)) == 4
    near = await memory.recall("crane", k=4, max_distance=0.0001)
    assert {hit.text for hit in near} == {"the harbour crane", "crane"}
    assert [hit.text for hit in await memory.recall("crane", k=4, max_distance=0.0001, mode="vector")] == [
        "crane"
    ]
    assert len(await memory.recall("crane", k=4, max_distance="auto")) < 4


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
async def test_a_ranking_is_the_same_wherever_it_is_made(memory, mode):
    """A filter that everything passes changes nothing, although the ranking then comes after the reading; nor does company."""
    words = ["anchor", "boat", "crane", "dock", "eel", "ferry", "gull", "hull", "inlet", "jetty"]
    generator = random.Random(5)  # Different words in each, so that no two are equally good.
    texts = [f"{' '.join(generator.choices(words, k=4 + n % 5))} number {n}" for n in range(40)]
    await memory.remember_many({"text": text, "metadata": {"n": n}} for n, text in enumerate(texts))
    asked = [
        (f"{words[n]} {words[n + 1]} 1{n}", {"k": k, "max_distance": max_distance})
        for n in range(5)
        for k, max_distance in ((1, None), (7, "auto"), (7, 0.4))
    ]
    alone = [await memory.recall(question, mode=mode, **how) for question, how in asked]
    together = await asyncio.gather(*(memory.recall(question, mode=mode, **how) for question, how in asked))
    filtered = [
        await memory.recall(question, mode=mode, where={"n": {"$gte": 0}}, **how) for question, how in asked
    ]
    for one, other, third in zip(alone, together, filtered, strict=True):
        assert rounded(one) == rounded(other) == rounded(third)
    assert any(len(recall) == 7 for recall in alone)


def rounded(recall):
    """Return what matters of hits; merged searches may add up in another order."""
    return [(hit.id, hit.text, hit.metadata, round(hit.score, 5)) for hit in recall]


async def test_weights_and_filters_belong_to_a_namespace(memory):
    """Each namespace has its own k, filter, threshold and weight."""
    for name in ("one", "two"):
        await memory.remember_many(
            [{"text": f"apple {n} of {name}", "metadata": {"n": n}} for n in range(5)], namespace=name
        )
    recall = await memory.recall(
        "apple",
        namespaces={
            "one": NamespaceSearch(k=2, where={"n": {"$gte": 3}}),
            "two": NamespaceSearch(k=3, weight=5.0),
        },
    )
    assert [hit.namespace for hit in recall] == ["two"] * 3 + ["one"] * 2
    assert {hit.metadata["n"] for hit in recall if hit.namespace == "one"} == {3, 4}
    assert {hit.explain["weight"] for hit in recall if hit.namespace == "two"} == {5.0}


async def test_neighbours_lend_relevance_and_come_along(memory):
    """The answer beside the words of the question is found, and ``window`` brings the turns around a hit, in order."""
    turns = [
        "Where was the photograph taken?",
        "At the lake, early in the morning.",
        "Lovely colours!",
        "And now to dinner.",
    ]
    await memory.remember_many(turns, thread="talk")
    await memory.remember_many((f"unrelated remark {n}" for n in range(60)), thread="other talk")
    recall = await memory.recall("where was the photograph taken", k=2, window=2)
    hits = {hit.text: hit for hit in recall}
    assert set(hits) == set(turns[:2])
    assert [one.text for one in hits[turns[1]].before] == turns[:1]
    assert [one.text for one in hits[turns[1]].after] == turns[2:]


async def test_the_largest_window_brings_all_it_can(memory):
    """As many neighbours as may be asked for come along, in order, on both sides."""
    await memory.remember_many([f"turn {n}" for n in range(150)], thread="talk")
    (hit,) = await memory.recall("turn 75", k=1, window=50)
    assert [one.text for one in hit.before] == [f"turn {n}" for n in range(25, 75)]
    assert [one.text for one in hit.after] == [f"turn {n}" for n in range(76, 126)]


@pytest.mark.parametrize("mode", ["hybrid", "text"])
async def test_a_filter_that_everything_passes_changes_nothing(memory, mode):
    """Many texts cover the question alike: which of them are looked at does not depend on who filters."""
    await memory.remember_many(
        {
            "text": "kiwi" if n == 0 else f"kiwi is in note number {n} among other things",
            "metadata": {"all": 1},
        }
        for n in range(60)
    )
    plain = await memory.recall("kiwi", mode=mode)
    filtered = await memory.recall("kiwi", mode=mode, where={"all": 1})
    assert rounded(plain) == rounded(filtered)


async def test_a_namespace_that_goes_meanwhile_is_empty_not_an_error(memory):
    """Recalls that look twice, for variety or for neighbours, meet a namespace that is forgotten in between."""
    await memory.remember("stays", namespace="kept")
    for how in ({"diversity": 0.5}, {"window": 2}):
        for _ in range(20):
            await memory.remember_many([f"apple {n}" for n in range(5)], namespace="goes", thread="t")
            recall, _ = await asyncio.gather(
                memory.recall("apple", namespaces=["goes", "kept"], **how), memory.forget_namespace("goes")
            )
            assert recall.errors == {}
            assert {hit.namespace for hit in recall} >= {"kept"}


async def test_a_namespace_that_is_gone_costs_the_others_no_search_of_their_own(
    memory, path, embedder, monkeypatch
):
    """Those that were searched together with it are searched together once more."""
    names = [f"room {number}" for number in range(5)]
    async with aiochroma.Memory(path, embedder=embedder) as other:
        for name in names:
            await other.remember("An apple.", namespace=name)
        assert len(await other.recall("apple", namespaces=names)) == 5
        await memory.forget_namespace(names[2])
        searched = []
        submit_many = other._life.store.submit_many

        def watched(operations):
            searched.extend(
                len(more["collections"]) for name, more in operations if name == "search_memories"
            )
            return submit_many(operations)

        monkeypatch.setattr(other._life.store, "submit_many", watched)
        recall = await other.recall("apple", namespaces=names)
        assert sorted(hit.namespace for hit in recall) == [name for name in names if name != names[2]]
        assert recall.errors == {}
        assert searched == [5, 4]


async def test_what_another_program_writes_into_a_namespace_cannot_spoil_it(memory):
    """A thread that is no text and a position that is no number stand in no thread; everything is found."""
    await memory.remember("apple one", thread="t")
    place = await memory.client.get_collection(collection_name("default"))
    vector = (await place.get(include=["embeddings"]))["embeddings"][0]
    metadatas = [{"aiochroma:thread": 5, "aiochroma:position": "first"}, {"aiochroma:thread": True}]
    await place.add(
        ids=["x", "y"],
        embeddings=[vector, vector],
        documents=["apple two", "apple three"],
        metadatas=metadatas,
    )
    for mode in ("hybrid", "text"):
        found = await memory.recall("apple", mode=mode)
        assert {hit.text for hit in found} == {"apple one", "apple two", "apple three"}


async def test_a_turn_that_is_remembered_again_keeps_its_place(memory):
    """Running a conversation in again does not reorder it; another thread takes a memory along."""
    turns = ["first turn", "second turn", "third turn"]
    ids = await memory.remember_many(turns, thread="talk")
    await memory.remember(turns[0], thread="talk", dedupe=True)
    await memory.remember(turns[1], id=ids[1])
    hit = (await memory.recall("second", k=1, window=1))[0]
    assert [one.text for one in (*hit.before, *hit.after)] == ["first turn", "third turn"]
    await memory.remember(turns[0], id=ids[0], thread="elsewhere")
    assert (await memory.get(ids[0])).thread == "elsewhere"
    assert not (await memory.recall("second", k=1, window=1))[0].before


async def test_diversity_prefers_what_adds_something(memory):
    """Of many that say the same, one is enough when variety is asked for."""
    await memory.remember_many([f"the train leaves at nine {'!' * n}" for n in range(1, 8)])
    await memory.remember("the train has a restaurant car")
    plain = await memory.recall("train at nine", k=2)
    varied = await memory.recall("train at nine", k=2, diversity=0.7)
    assert all("nine" in hit.text for hit in plain)
    assert any("restaurant" in hit.text for hit in varied)
    assert len(plain) == len(varied) == 2


@pytest.mark.parametrize("order", ["score", "newest", "oldest"])
async def test_a_context_is_never_cut_in_half(memory, order):
    """Within the limits every memory is there as a whole or not at all, the best ones first to be taken."""
    await memory.remember_many((f"apple story {n}: " + "word " * (n * 3) for n in range(12)), namespace="a")
    await memory.remember("apple pie", namespace="b")
    recall = await memory.recall("apple pie", k=12)
    texts = {hit.text for hit in recall}
    for limit in (1, 30, 120, 500, 10_000):
        for context in (
            recall.as_context(max_chars=limit, order=order, template="{text}|"),
            recall.as_context(max_tokens=limit, order=order, template="{text}|", count_tokens=len),
        ):
            assert len(context) <= limit
            told = [line[:-1] for line in context.split("\n") if line.endswith("|")]
            assert set(told) <= texts
    assert recall.as_context(heading=None).count("\n") == len(recall) - 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"heading": "{name}"},
        {"heading": "{"},
        {"heading": "{namespace.foo}"},
        {"heading": 5},
        {"template": "{"},
        {"template": "{}"},
        {"template": "{texts}"},
        {"template": "{metadata[kind]}"},
        {"template": "{text.foo}"},
        {"template": "{score:.2f}"},
        {"template": None},
    ],
)
async def test_a_context_that_cannot_be_written_is_refused(memory, arguments):
    """A template or a heading that names what there is not is an error that names it."""
    await memory.remember("a fact", metadata={"kind": "fact"})
    recall = await memory.recall("fact")
    with pytest.raises(InvalidInputError, match=f"`{next(iter(arguments))}`"):
        recall.as_context(**arguments)


async def test_a_question_is_embedded_once_for_all_namespaces(path, letters):
    """However many namespaces it is asked of, the embedder sees it one time."""
    asked, embedder = [], letters()
    embed = embedder.embed

    def noted(texts):
        asked.append(list(texts))
        return embed(texts)

    embedder.embed = noted
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        for name in ("one", "two", "three", "four"):
            await memory.remember(f"a fact of {name}", namespace=name)
        asked.clear()
        recall = await memory.recall("which fact?", namespaces={"one": 1, "two": 2, "three": 1, "four": 3})
        assert {hit.namespace for hit in recall} == {"one", "two", "three", "four"}
        assert asked == [["which fact?"]]
