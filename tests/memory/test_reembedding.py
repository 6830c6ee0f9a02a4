"""Namespaces are embedded again with another embedder, beside whoever uses them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import aiochroma
import aiochroma.sync
from aiochroma.memory import reembedding

TEXTS = [f"note {number} about the harbour" for number in range(30)]


class Letters:
    """Counts letters, and keeps texts within a window of as many words."""

    max_distance = 0.5

    def __init__(self, dimensions, window=None):
        self.identity = f"letters-{dimensions}"
        self.dimensions = dimensions
        self.calls = 0
        self.fails_after = None
        if window is not None:
            self.window = window
            self.count_tokens = lambda text: len(text.split())

    def embed(self, texts):
        self.calls += 1
        if self.fails_after is not None and self.calls > self.fails_after:
            raise ConnectionError("the model is gone")
        rows = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for letter in text.lower():
                if letter.isalnum():
                    row[ord(letter) % self.dimensions] += 1.0
        return rows


async def _written(path, embedder, **options):
    async with aiochroma.Memory(path, embedder=embedder, **options) as memory:
        await memory.remember_many(TEXTS, namespace="work", scope="anna")
        await memory.remember(
            "a pinned one", namespace="private", pinned=True, metadata={"kind": "odd", "size": 0.1}
        )
        return await _all(memory)


async def _all(memory):
    return {
        (namespace, hit.id): (hit.text, hit.metadata, hit.created_at, hit.updated_at, hit.scope, hit.pinned)
        for namespace in await memory.namespaces()
        async for hit in memory.list(namespace)
    }


async def test_everything_is_as_it_was_but_the_vectors(tmp_path):
    """Texts, ids, metadata and dates stay; the new embedder finds them, the old one is refused and told what to do."""
    before = await _written(tmp_path, Letters(32))
    async with aiochroma.Memory(tmp_path, embedder=Letters(48)) as memory:
        with pytest.raises(aiochroma.EmbedderMismatchError, match="aiochroma reembed"):
            await memory.recall("note 7", namespaces="work")
        seen = []
        report = await memory.reembed(progress=lambda *step: seen.append(step))
        assert report.embedded == {"private": 1, "work": 30}
        assert report.is_complete
        assert seen == [("private", 1, 1), ("work", 30, 30)]
        assert await _all(memory) == before
        assert (await memory.recall(TEXTS[7], namespaces="work", mode="vector", k=1))[0].text == TEXTS[7]
        assert (await memory.recall("harbour", namespaces="work", mode="text", scope="anna")).hits
        assert (await memory.reembed()).unchanged == ("private", "work")
        assert len(await memory.client.list_collections()) == 2
    async with aiochroma.Memory(tmp_path, embedder=Letters(32)) as memory:
        with pytest.raises(aiochroma.EmbedderMismatchError):
            await memory.recall("note 7", namespaces="work")


async def test_the_old_embedder_finds_and_writes_until_the_new_one_takes_over(tmp_path, monkeypatch):
    """What is written, changed and forgotten meanwhile is in the copy as well."""
    monkeypatch.setattr(reembedding, "_PAGE", 10)
    await _written(tmp_path, Letters(32))
    async with (
        aiochroma.Memory(tmp_path, embedder=Letters(32)) as old,
        aiochroma.Memory(tmp_path, embedder=Letters(48)) as new,
    ):
        first = (await old.recall(TEXTS[0], namespaces="work", k=1, mode="vector"))[0].id
        done = []

        async def meanwhile():
            assert (await old.recall(TEXTS[3], namespaces="work", k=1, mode="vector"))[0].text == TEXTS[3]
            await old.remember("written meanwhile", namespace="work")
            await old.forget(first, namespace="work")
            done.append(True)

        def progress(name, number, total):
            if name == "work" and number == 10 and not done:
                waiting.append(asyncio.ensure_future(meanwhile()))

        waiting = []
        await new.reembed("work", progress=progress)
        await asyncio.gather(*waiting)
        assert done
        texts = [hit.text async for hit in new.list("work")]
        assert "written meanwhile" in texts
        assert TEXTS[0] not in texts
        assert len(texts) == 30


async def test_what_is_written_around_the_takeover_survives(tmp_path, monkeypatch):
    """What the old embedder still wrote is carried over; what the new one has written since then stays as it is."""
    words = "a violin was stolen in Prague. Jam is made of oranges."
    real = reembedding.take_over
    async with aiochroma.Memory(tmp_path, embedder=Letters(32)) as old:
        texts = {f"id{number}": text for number, text in enumerate(TEXTS)}
        await old.remember_many([{"id": id, "text": text} for id, text in texts.items()], namespace="work")
        plain = await old.client.get_collection("work", embedding_function=None)
        async with aiochroma.Memory(tmp_path, embedder=Letters(48, window=8)) as new:

            async def take_over(*arguments):
                await old.remember(f"The old one: {words}", id="from old", namespace="work")
                for id in ("id0", "id1", "id2"):
                    await old.update(id, text="old", namespace="work")
                await old.forget("id3", namespace="work")
                await plain.delete(ids=["id4"])  # Unlike a memory's own, it does not reach the copy.
                await real(*arguments)
                await new.remember(f"The new one: {words}", id="from new", namespace="work")
                for id in ("id1", "id4", "id5"):
                    await new.update(id, text="new", namespace="work")
                for id in ("id2", "id6"):
                    await new.forget(id, namespace="work")

            monkeypatch.setattr(reembedding, "take_over", take_over)
            _settle_soon(monkeypatch)
            await new.reembed("work")
            expected = texts | {"id0": "old", "id1": "new", "id4": "new", "id5": "new"}
            expected |= {"from old": f"The old one: {words}", "from new": f"The new one: {words}"}
            for id in ("id2", "id3", "id6"):
                del expected[id]
            assert {hit.id: hit.text async for hit in new.list("work")} == expected
            passage = "Prague. Jam is made of oranges."
            found = await new.recall(passage, namespaces="work", k=2, mode="vector")
            assert {(hit.id, hit.passage) for hit in found} == {("from old", passage), ("from new", passage)}


async def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """What was embedded before is not embedded again, and until the end the namespace is what it was."""
    monkeypatch.setattr(reembedding, "_PAGE", 10)
    before = await _written(tmp_path, Letters(32))
    failing = Letters(48)
    failing.fails_after = 3
    async with aiochroma.Memory(tmp_path, embedder=failing) as memory:
        with pytest.raises(aiochroma.EmbeddingFailedError):
            await memory.reembed("work")
    async with aiochroma.Memory(tmp_path, embedder=Letters(32)) as memory:
        assert await _all(memory) == before
        assert (await memory.recall(TEXTS[7], namespaces="work", mode="vector", k=1))[0].text == TEXTS[7]
    async with aiochroma.Memory(tmp_path, embedder=Letters(48)) as memory:
        report = await memory.reembed("work")
        assert 0 < report.embedded["work"] < 30
        assert (await memory.recall(TEXTS[7], namespaces="work", mode="vector", k=1))[0].text == TEXTS[7]


@pytest.mark.parametrize("changed", [1, 2, 3])
async def test_a_run_that_ended_between_the_names_is_finished_when_the_memory_opens(
    tmp_path, monkeypatch, changed
):
    """The namespace is there again, with the new vectors, and nothing of the old one is left after the next run."""
    pytest.importorskip("semantic_text_splitter")
    long = "The garden has apple trees. A violin was stolen in Prague. Jam is made of oranges."
    async with aiochroma.Memory(tmp_path, embedder=Letters(32, window=8)) as memory:
        await memory.remember(long, namespace="work")
    await _written(tmp_path, Letters(32, window=8))
    async with aiochroma.Memory(tmp_path, embedder=Letters(48, window=8)) as memory:
        store = memory._life.store
        real = store.submit_many

        async def killed(operations):
            if any(name == "_modify" for name, _ in operations):
                await real(operations[:changed])
                raise KeyboardInterrupt
            return await real(operations)

        monkeypatch.setattr(store, "submit_many", killed)
        with pytest.raises(KeyboardInterrupt):
            await memory.reembed("work")
    async with aiochroma.Memory(tmp_path, embedder=Letters(48, window=8)) as memory:
        assert (await memory.recall(TEXTS[7], namespaces="work", mode="vector", k=1))[0].text == TEXTS[7]
        await memory.reembed("work")
        passage = "A violin was stolen in Prague."
        assert (await memory.recall(passage, namespaces="work", mode="vector", k=1))[0].passage == passage
        names = sorted(one.name for one in await memory.client.list_collections())
        assert [name for name in names if not name.startswith("ns.chunks-")] == ["private", "work"]
        assert len(names) == 3


def _settle_soon(patched):
    """Have writes that a run holds up go on after three seconds, where its end is not to be waited for."""
    patched.setattr(reembedding, "SETTLING_SECONDS", 3.0)
    patched.setattr(reembedding, "_TAKING_OVER_SECONDS", 0.0)


async def _killed_before_the_names(path, monkeypatch):
    """Embed a namespace again, up to the moment at which its names are to be changed."""

    async def killed(*_):
        raise KeyboardInterrupt

    async with aiochroma.Memory(path, embedder=Letters(48)) as memory:
        with monkeypatch.context() as patched:
            patched.setattr(reembedding, "take_over", killed)
            _settle_soon(patched)
            with pytest.raises(KeyboardInterrupt):
                await memory.reembed("work")


async def test_what_was_written_after_an_interrupted_run_is_there_after_the_next(tmp_path, monkeypatch):
    """A copy that was complete once is compared again before it takes over, however late."""
    await _written(tmp_path, Letters(32))
    await _killed_before_the_names(tmp_path, monkeypatch)
    async with aiochroma.Memory(tmp_path, embedder=Letters(32)) as old:
        await old.remember("written a week later", namespace="work")
        await old.forget(scope="anna")
    async with aiochroma.Memory(tmp_path, embedder=Letters(48)) as new:
        await new.reembed("work")
        assert [hit.text async for hit in new.list("work")] == ["written a week later"]
        assert sorted(one.name for one in await new.client.list_collections()) == ["private", "work"]


async def test_what_was_forgotten_after_an_interrupted_run_stays_forgotten(tmp_path, monkeypatch):
    """A namespace goes with what a run has made of it, and an erased text is in no copy."""
    await _written(tmp_path, Letters(32))
    await _killed_before_the_names(tmp_path, monkeypatch)
    async with aiochroma.Memory(tmp_path, embedder=Letters(32)) as old:
        receipt = await old.erase(namespace="work", scope="anna")
        assert receipt.is_complete
        assert receipt.erased == len(TEXTS)
    await _written(tmp_path, Letters(32))
    await _killed_before_the_names(tmp_path, monkeypatch)
    async with aiochroma.Memory(tmp_path, embedder=Letters(32)) as old:
        assert await old.forget_namespace("work") == len(TEXTS)
    async with aiochroma.Memory(tmp_path, embedder=Letters(48)) as new:
        assert await new.namespaces() == ["private"]
        assert [one.name for one in await new.client.list_collections()] == ["private"]


async def test_a_run_that_ended_after_the_takeover_loses_nothing(tmp_path, monkeypatch):
    """What the old embedder wrote last comes into the namespace with the next run, where nothing newer is there."""
    await _written(tmp_path, Letters(32))
    real = reembedding.take_over
    async with (
        aiochroma.Memory(tmp_path, embedder=Letters(32)) as old,
        aiochroma.Memory(tmp_path, embedder=Letters(48)) as new,
    ):

        async def take_over(*arguments):
            await old.remember("written last", namespace="work")
            await old.remember("the former", id="changed", namespace="work")
            await real(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(reembedding, "take_over", take_over)
            _settle_soon(patched)
            with pytest.raises(KeyboardInterrupt):
                await new.reembed("work")
        await new.remember("the latter", id="changed", namespace="work")
        await new.reembed()
        texts = {hit.text async for hit in new.list("work")}
        assert texts == {*TEXTS, "written last", "the latter"}
        assert len(await new.client.list_collections()) == 2


async def test_a_namespace_that_is_written_to_without_pause_is_embedded_again(tmp_path, monkeypatch):
    """It takes over all the same; until then every write is kept, and from then on the old embedder is refused."""
    monkeypatch.setattr(reembedding, "_MOST_PASSES", 5)
    async with (
        aiochroma.Memory(tmp_path, embedder=Letters(32)) as old,
        aiochroma.Memory(tmp_path, embedder=Letters(48)) as new,
    ):
        await old.remember_many(TEXTS, namespace="work")
        written, pinned = [], []

        async def write():
            while True:
                id = await old.remember(f"written without pause {len(written)}", namespace="work")
                written.append(id)
                await old.pin(id, namespace="work")
                pinned.append(id)

        writing = asyncio.ensure_future(write())
        await new.reembed("work")
        with pytest.raises(aiochroma.EmbedderMismatchError):
            await writing
        hits = {hit.id: hit async for hit in new.list("work")}
        assert len(hits) == len(TEXTS) + len(written)
        assert all(hits[id].pinned for id in pinned)
        assert len(await new.client.list_collections()) == 1


async def test_long_texts_are_cut_as_the_new_embedder_needs_it(tmp_path):
    """Chunks are made, or taken away, and the passage is found."""
    long = "The garden has apple trees. A violin was stolen in Prague. Jam is made of oranges."
    async with aiochroma.Memory(tmp_path, embedder=Letters(32)) as memory:
        await memory.remember(long)
    for embedder, passage in ((Letters(48, window=8), "A violin was stolen in Prague."), (Letters(64), None)):
        async with aiochroma.Memory(tmp_path, embedder=embedder) as memory:
            await memory.reembed()
            hit = (await memory.recall("A violin was stolen in Prague.", k=1, mode="vector"))[0]
            assert (hit.text, hit.passage) == (long, passage)
            assert await memory.count() == 1


async def test_a_text_that_the_new_embedder_cannot_read_keeps_its_namespace_as_it_was(tmp_path):
    """Nothing is dropped: the memory is named, and the old embedder goes on."""
    async with aiochroma.Memory(
        tmp_path, embedder=lambda texts: [[1.0, float(len(text))] for text in texts]
    ) as memory:
        id = await memory.remember("?!")
        await memory.remember("words")
    async with aiochroma.Memory(tmp_path, embedder=Letters(48)) as memory:
        report = await memory.reembed()
        assert report.left == {"default": (id,)}
        assert not report.is_complete
        assert await memory.count() == 2
        with pytest.raises(aiochroma.EmbedderMismatchError):
            await memory.recall("words", namespaces="default")


def test_a_blocking_memory_does_it_too(tmp_path):
    """The same call, driven."""
    with aiochroma.sync.Memory(tmp_path, embedder=Letters(32)) as memory:
        memory.remember("hello there")
    with aiochroma.sync.Memory(tmp_path, embedder="hashed") as memory:
        assert memory.reembed().embedded == {"default": 1}
        assert memory.recall("hello")[0].text == "hello there"


class Gated(Letters):
    """Embeds questions of ``opened`` alone; until then it waits, and says so."""

    def __init__(self, dimensions):
        super().__init__(dimensions)
        self.reached, self.opened = threading.Event(), threading.Event()

    def embed(self, texts):
        self.reached.set()
        assert self.opened.wait(30)
        return super().embed(texts)


_RUN = "ns.reembedding.x"


async def test_two_runs_at_once_are_one(tmp_path):
    """The second is told who is at work and changes nothing; asked again afterwards it finds everything done."""
    before = await _written(tmp_path, Letters(32))
    slow = Gated(48)
    async with (
        aiochroma.Memory(tmp_path, embedder=slow) as first,
        aiochroma.Memory(tmp_path, embedder=Letters(48)) as second,
    ):
        running = asyncio.ensure_future(first.reembed())
        await asyncio.to_thread(slow.reached.wait)
        with pytest.raises(aiochroma.StoreUnavailableError, match=f"process {os.getpid()} .*Wait"):
            await second.reembed()
        slow.opened.set()
        assert (await running).embedded == {"private": 1, "work": 30}
        assert (await second.reembed()).unchanged == ("private", "work")
        assert await _all(second) == before
        assert len(await second.client.list_collections()) == 2


async def test_a_run_that_was_taken_to_be_dead_changes_nothing_more(tmp_path):
    """What another program has gone on with stays as that program leaves it."""
    before = await _written(tmp_path, Letters(32))
    slow = Gated(48)
    async with aiochroma.Memory(tmp_path, embedder=slow) as memory:
        running = asyncio.ensure_future(memory.reembed())
        await asyncio.to_thread(slow.reached.wait)
        run = await memory.client.get_collection(_RUN, embedding_function=None)
        await run.modify(metadata={**run.metadata, "aiochroma:run_mark": "another"})
        slow.opened.set()
        with pytest.raises(aiochroma.StoreUnavailableError, match="goes on where this one stopped"):
            await running
        assert await _all(memory) == before
    async with aiochroma.Memory(tmp_path, embedder=Letters(32)) as memory:
        assert (await memory.recall(TEXTS[7], namespaces="work", mode="vector", k=1))[0].text == TEXTS[7]


_KILLED = """
import asyncio, os, signal, sys
import aiochroma
import numpy as np

class Dying:
    identity, dimensions, max_distance = "letters-48", 48, 0.5

    def embed(self, texts):
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with aiochroma.Memory(sys.argv[1], embedder=Dying()) as memory:
        await memory.reembed()

asyncio.run(main())
"""


async def test_after_a_kill_the_next_run_begins_at_once(tmp_path):
    """A process of this machine that is gone holds nobody up."""
    await _written(tmp_path, Letters(32))
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", _KILLED, str(tmp_path)], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    async with aiochroma.Memory(tmp_path, embedder=Letters(48)) as memory:
        run = await memory.client.get_collection(_RUN, embedding_function=None)
        assert run.metadata["aiochroma:run_process"] != os.getpid()
        assert (await memory.reembed()).embedded == {"private": 1, "work": 30}
        assert len(await memory.client.list_collections()) == 2


@pytest.mark.parametrize(("silent", "refused"), [(60.0, True), (3600.0, False)])
async def test_a_run_on_another_machine_is_believed_for_a_while(tmp_path, silent, refused):
    """Nobody can ask whether its process lives: its last sign of life decides."""
    await _written(tmp_path, Letters(32))
    async with aiochroma.Memory(tmp_path, embedder=Letters(48)) as memory:
        sign = {"mark": "theirs", "process": 7, "machine": "elsewhere", "seen": time.time() - silent}
        await memory.client.create_collection(
            _RUN,
            metadata={f"aiochroma:run_{name}": value for name, value in sign.items()},
            embedding_function=None,
        )
        if refused:
            with pytest.raises(aiochroma.StoreUnavailableError, match="process 7 on 'elsewhere'"):
                await memory.reembed()
        else:
            assert (await memory.reembed()).embedded == {"private": 1, "work": 30}
