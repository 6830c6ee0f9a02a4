"""Many memories: in batches, ahead of the writer, after a crash, to a file and back."""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import os
import weakref
from pathlib import Path

import chromadb
import pytest
from chromadb.api.rust import RustBindingsAPI

import aiochroma
from aiochroma import InvalidInputError
from aiochroma.core.pacing import Pacing
from aiochroma.disk.preflight import preflight
from aiochroma.embedding.words import HashedEmbedder
from aiochroma.memory import transfer


def lines(file):
    """Return what a file of JSON lines holds, ordered by namespace and id."""
    entries = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
    return sorted(entries, key=lambda entry: (entry["namespace"], entry["id"]))


async def test_batches_are_written_in_order_and_reported(memory):
    """The ids come in order, progress counts what is in the database, an id that occurs twice counts last."""
    seen = []

    async def items():
        for number in range(600):
            yield f"fact {number}"
        yield {"text": "the last word", "id": "twice"}
        yield {"text": "the very last word", "id": "twice"}

    ids = await memory.remember_many(items(), progress=seen.append, thread="talk")
    assert seen == [256, 512, 602]
    assert len(ids) == 602
    assert await memory.count() == 601
    assert (await memory.get("twice")).text == "the very last word"
    hit = (await memory.recall("fact 300", k=1, window=1))[0]
    assert [one.text for one in (*hit.before, *hit.after)] == ["fact 299", "fact 301"]


@pytest.mark.this_process
async def test_opening_is_no_sign_of_somebody_else(path, letters, monkeypatch):
    """What a memory asks to open does not keep the slices of its first bulk write short, as anybody else's request would."""
    asked, wrote = set(), set()
    served_other, before_slice = Pacing.served_other, Pacing.before_slice

    def served(pacing, now):
        asked.add(id(pacing))
        served_other(pacing, now)

    def writes(pacing, *, telling):
        wrote.add(id(pacing))
        before_slice(pacing, telling=telling)

    monkeypatch.setattr(Pacing, "served_other", served)
    monkeypatch.setattr(Pacing, "before_slice", writes)
    async with aiochroma.Memory(path, embedder=letters()) as memory:
        await memory.remember_many(f"fact {number}" for number in range(300))
        assert wrote
        assert not asked & wrote
        await memory.recall("fact 1")
        assert asked & wrote


async def test_few_writes_are_left_to_the_log(path, letters):
    """Chroma's index on the disk has all but the last few hundred writes: those are read from the log again with every write."""
    async with aiochroma.Memory(path, embedder=letters()) as memory:
        await memory.remember_many(f"fact {number}" for number in range(300))
    [collection] = preflight(path).collections
    assert collection.persisted_sequence > collection.applied_sequence - 250


async def test_the_next_batch_is_embedded_while_one_is_written(path, letters):
    """Embedding of the second batch begins before the first one is acknowledged."""
    happened = []
    embedder = letters()
    embed = embedder.embed

    def noted(texts):
        happened.append("embed")
        return embed(texts)

    embedder.embed = noted
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        await memory.remember("a first one")
        happened.clear()
        await memory.remember_many(
            (f"fact {n}" for n in range(600)), progress=lambda _: happened.append("written")
        )
    assert happened[:2] == ["embed", "embed"]
    assert happened.count("written") == 3


async def test_no_more_than_three_batches_are_alive(path, letters, monkeypatch):
    """However many items there are, only those of the batches under way are held."""

    class Text(str):
        __slots__ = ("__weakref__",)

    alive = weakref.WeakSet()
    most = 0

    def items():
        nonlocal most
        for number in range(3000):
            text = Text(f"fact {number}")
            alive.add(text)
            most = max(most, len(alive))
            yield text

    async with aiochroma.Memory(path, embedder=letters()) as memory:
        # The cache of vectors is bounded in bytes, not empty; it is not what is measured here.
        monkeypatch.setattr("aiochroma.client.session.Session.embed", _uncached(letters()))
        await memory.remember_many(items())
    assert most <= 3 * 256 + 1


def _uncached(embedder):
    async def embed(session, function, texts, *, is_query, tokens=False):
        return list(embedder.embed(texts))

    return embed


async def test_a_wrong_item_stops_after_the_batches_before_it(memory):
    """What came before the batch of a wrong item is written and reported; nothing after it."""
    seen = []
    items = [*(f"fact {n}" for n in range(300)), 7, *("x" * n for n in range(1, 300))]
    with pytest.raises(InvalidInputError, match=r"items\[300\]"):
        await memory.remember_many(items, progress=seen.append)
    assert seen == [256]
    assert await memory.count() == 256


async def test_a_cancelled_bulk_stops(memory):
    """Cancelling leaves whole batches, and the memory works on."""
    reached = asyncio.Event()

    async def items():
        number = 0
        while True:
            number += 1
            yield f"fact {number}"
            await asyncio.sleep(0)

    task = asyncio.create_task(memory.remember_many(items(), progress=lambda _: reached.set()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await memory.remember("afterwards")
    assert await memory.count() >= 257


async def test_a_killed_bulk_is_run_again_without_duplicates(path, child):
    """After kill -9 in the middle the same call completes, and every memory is there once."""
    process = child("in_bulk", 1000)
    assert int(process.stdout.readline()) == 256
    process.kill()
    process.wait()
    again = child("in_bulk", 1000)
    assert [int(line) for line in again.stdout][-1] == 1000
    assert again.wait() == 0
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        assert await memory.count() == 1000
        assert (await memory.recall("locker 777", k=1, mode="text"))[0].text.startswith("locker 777 ")


async def test_every_acknowledged_memory_is_found_by_its_words_after_a_kill(path, child):
    """After kill -9 in the middle of remembering, text search finds all that was acknowledged: the index is rebuilt."""
    process = child("one_by_one")
    for _ in range(40):
        last = int(process.stdout.readline())
    process.kill()
    last = max([last, *(int(line) for line in process.stdout.read().split("\n")[:-1])])
    process.wait()
    async with aiochroma.Memory(path, embedder=HashedEmbedder()) as memory:
        for number in range(last + 1):
            (hit, *_) = await memory.recall(f"code{number * 7919}", mode="text", k=1)
            assert hit.text == f"locker {number} opens with code{number * 7919}"


async def test_export_and_import_are_the_identity(path, tmp_path, embedder):
    """All namespaces, ids, texts, types of metadata, times, threads and pins come back, and a second export is equal."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    async with aiochroma.Memory(path, embedder=embedder) as memory:
        await memory.remember_many(
            [f"turn {n}" for n in range(600)], thread="talk", namespace="Gespräche / 会話"
        )
        metadata = {
            "text": "a\u2028b",
            "int": -5,
            "big": 2**62,
            "float": 1.0,
            "tiny": 1e-9,
            "yes": True,
            "ключ": "",
        }
        await memory.remember(
            "with everything\r\n\tand more\x85", metadata=metadata, ttl=3600, pinned=True, id="an id\n"
        )
        assert await memory.export(first) == 601
        assert await memory.export(tmp_path / "part.jsonl", namespaces="default") == 1
        original = await memory.get("an id\n")
    seen = []
    async with aiochroma.Memory(tmp_path / "copy", embedder=embedder) as memory:
        await memory.remember("in the way", id="an id\n", metadata={"gone": 1}, thread="t")
        assert await memory.import_(first, progress=lambda *step: seen.append(step)) == 601
        assert await memory.export(second) == 601
        assert await memory.get("an id\n") == original
        hit = (await memory.recall("turn 300", k=1, window=1))[0]
        assert [one.text for one in (*hit.before, *hit.after)] == ["turn 299", "turn 301"]
    size = first.stat().st_size
    assert seen[-1] == (601, size, size)
    assert seen == sorted(seen)
    assert lines(first) == lines(second)


async def test_csv_and_folders_are_remembered(memory, tmp_path):
    """Columns that mean nothing to a memory become metadata; a file's path is its id."""
    table = tmp_path / "table.csv"
    table.write_text(
        'text,id,namespace,pinned,position,kind\n"Hello, ""world""\nagain",a,,yes,,greeting\nBye,b,other,,2.5,\n'
    )
    assert await memory.import_(table, namespace="csv") == 2
    hit = await memory.get("a", namespace="csv")
    assert (hit.text, hit.pinned, hit.metadata) == ('Hello, "world"\nagain', True, {"kind": "greeting"})
    assert (await memory.get("b", namespace="other")).position == 2.5
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    (folder / "one.txt").write_text("first note")
    (folder / "sub" / "two.md").write_text("# second note")
    (folder / "blank.txt").write_text(" \n")
    (folder / "other.bin").write_bytes(b"\xff")
    assert await memory.import_(folder) == await memory.import_(folder) == 2
    assert (await memory.get("sub/two.md")).metadata == {"source": "sub/two.md"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "fine"}\n{"test": "x"}\n', "line 2 must have `text`"),
        ("a.jsonl", b'{"text": "a", "namespace": 5}\n', "namespace of a.jsonl line 1 "),
        ("a.jsonl", b"[1]\n", "item 0 must be an object"),
        ("a.jsonl", b'{"text": "\xff"}\n', "not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1.*surrogate"),
        ("a.jsonl", b'"fine"\n' + b"[" * 200_000, "a.jsonl line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a", "pinned": "no"}\n', "`pinned` of a.jsonl line 1.*'no'"),
        ("a.jsonl", b'"fine"\n"\xff"\n', "a.jsonl line 2 is not UTF-8"),
        ("a.csv", b"text\nfine\n\xff\n", "a.csv line 3 is not UTF-8"),
        ("a.csv", b"text,kind,kind\na,b,c\n", r"a.csv has more than one column of the name \['kind'\]"),
        ("a.csv", b"words\nx\n", "no column `text`"),
        ("a.csv", b"text,a\nx\n", "line 2 does not have one value"),
        ("a.csv", b"text,position\nx,soon\n", "`position` of a.csv line 2"),
        ("a.txt", b"text", "must be a folder"),
    ],
)
async def test_a_bad_file_is_named_with_its_line(memory, tmp_path, name, content, message):
    """What cannot be imported is said with file and line."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        await memory.import_(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'"one"\n"two"\n{"text": \n"four"\n'),
        ("a.jsonl", b'"one"\n{"text": "two", "namespace": "other"}\n\xff\n"four"\n'),
        ("a.csv", b"text,position\none,1\ntwo,2\nthree,soon\nfour,4\n"),
        ("a.csv", b"text\none\ntwo\n\xff\nfour\n"),
        ("a.csv", b'text\none\ntwo\n"thr"ee\nfour\n'),
    ],
)
async def test_what_came_before_a_bad_line_is_written(memory, tmp_path, name, content):
    """However few the lines are, those before the bad one are memories and were reported; none after it is."""
    (tmp_path / name).write_bytes(content)
    seen = []
    with pytest.raises(InvalidInputError, match=r"a\.(jsonl|csv)"):
        await memory.import_(tmp_path / name, progress=lambda count, *_: seen.append(count))
    assert seen[-1] == await memory.count() == 2
    found = {hit.text for hit in await memory.recall("one two three four", k=9)}
    assert found == {"one", "two"}


def test_what_came_before_a_bad_file_is_written(shared, fresh, tmp_path):
    """The files of a folder before one that is no text are memories, also without an event loop."""
    for name, content in (("1.txt", b"one"), ("2.md", b"two"), ("3.txt", b"\xff"), ("4.txt", b"four")):
        (tmp_path / name).write_bytes(content)
    namespace = fresh()
    with pytest.raises(InvalidInputError, match=r"3\.txt"):
        shared.import_(tmp_path, namespace=namespace)
    assert {hit.id for hit in shared.recall("one two four", namespaces=namespace)} == {"1.txt", "2.md"}


async def test_a_csv_field_may_be_long(memory, tmp_path):
    """A text longer than the csv module's own limit is remembered whole, and the limit is what it was."""
    limit, text = csv.field_size_limit(), "a long story " * 20_000
    assert len(text) > limit
    (tmp_path / "long.csv").write_text(f"id,text\nlong,{text}\n", "utf-8")
    assert await memory.import_(tmp_path / "long.csv") == 1
    assert (await memory.get("long")).text == text
    assert csv.field_size_limit() == limit


async def test_moments_as_other_programs_write_them(memory, tmp_path):
    """In a file a moment is seconds since 1970 or ISO 8601; what is neither is named."""
    at = "2026-05-01T12:00:00"
    lines = tmp_path / "in.jsonl"
    lines.write_text(
        "".join(f'{{"text": "{n}", "created_at": "{at}{zone}"}}\n' for n, zone in enumerate(("Z", "+02:00")))
    )
    table = tmp_path / "in.csv"
    table.write_text(f"text,created_at,expires_at\nthree,{at}+00:00,\nfour,1777636800,9999999999.5\n")
    assert await memory.import_(lines) == await memory.import_(table) == 2
    hits = {hit.text: hit for hit in await memory.list()}
    assert {text: hit.created_at.timestamp() for text, hit in hits.items()} == {
        "0": 1777636800,
        "1": 1777629600,
        "three": 1777636800,
        "four": 1777636800,
    }
    for text in ("yesterday", "12:00", "2026-13-01"):
        lines.write_text(f'{{"text": "x", "created_at": "{text}"}}\n')
        with pytest.raises(
            InvalidInputError, match=rf"`created_at` of in.jsonl line 1 must be seconds.*{text}"
        ):
            await memory.import_(lines)
    with pytest.raises(InvalidInputError, match=r"`created_at`.*must be a finite number, got '2026"):
        await memory.remember("x", created_at="2026-05-01T12:00:00Z")


async def test_what_cannot_be_told_of_progress_is_refused(memory, tmp_path):
    """Before anything is done: found at the first batch, it would leave the rest undone."""
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n')
    for call in (
        lambda: memory.remember_many(["one"], progress=True),
        lambda: memory.import_(tmp_path / "in.jsonl", progress=1),
        lambda: memory.export(tmp_path / "out.jsonl", progress="bar"),
        lambda: memory.reembed(progress=[]),
        lambda: memory.compact(progress={}),
    ):
        with pytest.raises(aiochroma.InvalidInputError, match="`progress` must be a function"):
            await call()
    assert await memory.count() == 0
    assert not (tmp_path / "out.jsonl").exists()


async def test_an_export_never_replaces_the_database(memory, tmp_path):
    """Not by its own path, not through a link, and nothing is put among the files of an index."""
    await memory.remember("The lake is cold.")
    directory = Path(memory.client.session.describe().path)
    (tmp_path / "link.jsonl").symlink_to(directory / "chroma.sqlite3")
    before = sorted(entry.name for entry in directory.iterdir())
    index = next(entry for entry in directory.iterdir() if entry.is_dir())
    for target in (directory / "chroma.sqlite3", index / "new.jsonl", tmp_path / "link.jsonl"):
        with pytest.raises(aiochroma.InvalidInputError, match="belongs to the database"):
            await memory.export(target)
    assert sorted(entry.name for entry in directory.iterdir()) == before
    assert await memory.count() == 1


async def test_a_namespace_that_is_made_again_meanwhile_is_exported_as_it_is_then(
    memory, tmp_path, monkeypatch
):
    """Nothing of the former one is in the file, and nothing is counted twice."""
    monkeypatch.setattr(transfer, "_PAGE", 2)
    await memory.remember("first", namespace="before")
    await memory.remember_many(["one", "two", "three", "four"], namespace="notes")
    read = transfer.read_records
    calls = []

    async def read_records(store, namespace, ids):
        calls.append(namespace.name)
        if len(calls) == 3:
            await memory.forget_namespace("notes")
            await memory.remember("five", namespace="notes")
        return await read(store, namespace, ids)

    monkeypatch.setattr(transfer, "read_records", read_records)
    assert await memory.export(tmp_path / "all.jsonl") == 2
    lines = (tmp_path / "all.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["first", "five"]


async def test_an_export_that_fails_leaves_the_old_file(memory, tmp_path):
    """A file appears when it is complete, and nothing else is left; a place that cannot be written to is named."""
    await memory.remember("fact")
    file = tmp_path / "out.jsonl"
    file.write_text("old")
    await memory.client.create_collection("foreign")
    with pytest.raises(aiochroma.EmbedderMismatchError):
        await memory.export(file, namespaces=["default", "foreign"])
    assert file.read_text() == "old"
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InvalidInputError, match="cannot be written"):
        await memory.export(tmp_path / "folder.jsonl")
    assert list(tmp_path.glob("*.partial")) == []
    with pytest.raises(InvalidInputError, match="cannot be written"):
        await memory.export(tmp_path / "no" / "such" / "folder.jsonl")


async def test_a_conversation_is_imported_whole_and_once(memory, tmp_path):
    """What is said twice in a thread is there twice, and importing the file again duplicates nothing."""
    file = tmp_path / "chat.csv"
    file.write_text('text,thread,scope\nyes,t,ada\nno,t,ada\nyes,t,ada\nyes,t,"ben"\nalone,,\n')
    for _ in range(2):
        assert await memory.import_(file) == 5
    assert await memory.count() == 5
    assert [hit.text for hit in await memory.list(scope="ada", thread="t")] == ["yes", "no", "yes"]
    await memory.export(tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {line.get("thread") for line in lines} == {"t", False}
    assert [line["scope"] for line in lines if "scope" in line].count(["ada"]) == 3


async def test_namespaces_that_alternate_are_written_in_batches(memory, tmp_path):
    """The rows of one namespace are gathered wherever they stand in the file."""
    file = tmp_path / "all.jsonl"
    rows = [{"text": f"fact {n}", "namespace": "ab"[n % 2]} for n in range(200)]
    file.write_text("\n".join(map(json.dumps, rows)))
    seen = []
    assert await memory.import_(file, progress=lambda *step: seen.append(step)) == 200
    size = file.stat().st_size
    # The bytes, too, are those of a namespace's own rows; what ends the last line is missing.
    assert seen == [(100, sum(len(json.dumps(row)) + 1 for row in rows[::2]), size), (200, size, size)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("many.jsonl", b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "\xc3\xbc"}\n'),
        ("many.json", b'[\n"a",\n  "b"\n]'),
        ("many.csv", b'text,kind\r\n"a\r\nb",x\r\nc,y\r\n'),
        ("folder", None),
    ],
)
async def test_the_progress_of_an_import_is_in_bytes(memory, tmp_path, name, content):
    """Of lines, of an array, of a table and of a folder: in the end everything has been read."""
    file, seen = tmp_path / name, []
    if content is None:
        file.mkdir()
        (file / "one.txt").write_text("a text")
        (file / "two.md").write_text("another text\n")
        size = 6 + 13
    else:
        file.write_bytes(content)
        size = len(content)
    assert await memory.import_(file, progress=lambda *step: seen.append(step)) == 2
    assert seen[-1][0] == 2
    # A mark of the byte order stands before the first line.
    assert seen[-1][2] - seen[-1][1] in (0, 3)
    assert seen[-1][2] == size


async def test_an_array_is_read_like_lines(tmp_path):
    """A file of JSON may hold one array, over any number of lines; a wrong item is named by its number."""
    file = tmp_path / "facts.json"
    file.write_text('[\n  {"text": "one", "namespace": "a"},\n  "two"\n]\n', encoding="utf-8")
    async with aiochroma.Memory(tmp_path / "store", embedder="hashed") as memory:
        assert await memory.import_(file) == 2
        assert [hit.text for hit in await memory.list("a")] == ["one"]
        file.write_text('["three", 4]', encoding="utf-8")
        with pytest.raises(InvalidInputError, match="item 1"):
            await memory.import_(file)
        assert sorted(hit.text for hit in await memory.list()) == ["three", "two"]
        file.write_text('["five"', encoding="utf-8")
        with pytest.raises(InvalidInputError, match="not JSON"):
            await memory.import_(file)


@pytest.mark.parametrize("name", ["one.jsonl", "one.csv", "one.json"])
async def test_an_import_may_be_cancelled_while_the_file_is_read(memory, tmp_path, name):
    """Whatever it is at, the caller gets his cancellation, and the next import reads as ever."""
    lines = [json.dumps({"text": f"fact {n}", "metadata": {"long": "x" * 2000}}) for n in range(4000)]
    files = {
        "jsonl": "\n".join(lines),
        "json": f"[{','.join(lines)}]",
        "csv": "text,long\n" + f"a,{'x' * 2000}\n" * 4000,
    }
    (tmp_path / name).write_text(files[name.partition(".")[2]])
    for seconds in (0.0, 0.001, 0.003, 0.01, 0.02):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(memory.import_(tmp_path / name), seconds)
    (tmp_path / "small.jsonl").write_text('{"text": "a kettle", "id": "kettle"}')
    assert await memory.import_(tmp_path / "small.jsonl") == 1
    assert (await memory.get("kettle")).text == "a kettle"


async def test_what_never_ends_is_not_imported(memory, tmp_path):
    """A pipe without a writer and a device would keep a worker thread of everybody's, and the end of the program, for ever."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    for name in ("pipe.jsonl", "device.csv"):
        with pytest.raises(InvalidInputError, match=f"{name}.*pipe or a device"):
            await memory.import_(tmp_path / name)


async def test_a_pipe_gets_the_whole_export(memory, tmp_path):
    """What cannot be written again from a place in the middle is written once."""
    await memory.remember_many(["a kettle", "a lamp"])
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert await memory.export(tmp_path / "pipe") == 2
        lines = os.read(reader, 100_000).splitlines()
    finally:
        os.close(reader)
    assert {json.loads(line)["text"] for line in lines} == {"a kettle", "a lamp"}


async def test_a_device_gets_the_whole_export(memory):
    """It has a place to write at, as a file has, and cannot be cut there."""
    await memory.remember_many(["a kettle", "a lamp"])
    assert await memory.export("/dev/null") == 2
    with pytest.raises(InvalidInputError, match="'/dev/full' cannot be written: No space left"):
        await memory.export("/dev/full")


async def test_an_export_can_be_imported_whatever_is_in_the_collection(path, tmp_path, caplog):
    """A record of another program without a text is left out and named; all others come back."""
    async with aiochroma.Memory(path, embedder="hashed") as memory:
        await memory.remember("a kettle")
        collection = await memory.client.get_collection("default")
        await collection.add(ids=["bare"], embeddings=[[0.1] * 512])
        await collection.add(ids=["blank"], embeddings=[[0.1] * 512], documents=[" "], metadatas=[{"k": 1}])
        assert await memory.export(tmp_path / "all.jsonl") == 1
    assert "bare" in caplog.text
    assert "blank" in caplog.text
    async with aiochroma.Memory(tmp_path / "copy", embedder="hashed") as memory:
        assert await memory.import_(tmp_path / "all.jsonl") == 1


async def test_an_export_with_what_other_programs_wrote_comes_back_whole(path, tmp_path):
    """Lists are metadata like any other, and only what no import takes is left out."""
    metadata = {"l": [1, 2], "tags": ["a", "b"], "f": [0.5], "b": [True, False], "plain": "x"}
    async with aiochroma.Memory(path, embedder="hashed") as memory:
        await memory.remember("a kettle")
        collection = await memory.client.get_collection("default")
        await collection.add(ids=["o"], embeddings=[[0.1] * 512], documents=["a lamp"], metadatas=[metadata])
        assert await memory.export(tmp_path / "all.jsonl") == 2
    async with aiochroma.Memory(tmp_path / "copy", embedder="hashed") as memory:
        assert await memory.import_(tmp_path / "all.jsonl") == 2
        assert (await memory.get("o")).metadata == metadata
        await memory.export(tmp_path / "again.jsonl")
    assert [entry["id"] for entry in lines(tmp_path / "again.jsonl")] == [
        entry["id"] for entry in lines(tmp_path / "all.jsonl")
    ]


async def test_what_no_import_takes_is_left_out_of_an_export_by_name(path, tmp_path, caplog):
    """A NUL character that plain Chroma has stored, for example; the log says in which record it is."""
    async with aiochroma.Memory(path, embedder="hashed") as memory:
        await memory.remember("a kettle")
    plain = chromadb.PersistentClient(str(path))
    odd = {"ids": ["odd"], "embeddings": [[0.1] * 512], "documents": ["a lamp"], "metadatas": [{"k": "\0"}]}
    plain.get_collection("default", embedding_function=None).add(**odd)
    plain.close()
    async with aiochroma.Memory(path, embedder="hashed") as memory:
        assert await memory.export(tmp_path / "all.jsonl") == 1
        assert "odd" in caplog.text
        assert "has a NUL character" in caplog.text
        assert await memory.import_(tmp_path / "all.jsonl") == 1


@pytest.mark.this_process
async def test_the_loop_goes_round_between_two_slices_of_writing(memory, monkeypatch):
    """Remembering, recalling and forgetting at once: a loop that is busy stands still for one short slice at a time."""
    turns, slices, over = 0, [], False
    for name in ("_upsert", "_delete"):
        native = getattr(RustBindingsAPI, name)

        def noted(self, *arguments, native=native, **named):
            ids = named.get("ids") or next(value for value in arguments if isinstance(value, list))
            result = native(self, *arguments, **named)
            slices.append((turns, len(ids)))
            return result

        monkeypatch.setattr(RustBindingsAPI, name, noted)

    async def busy():
        nonlocal turns
        while not over:
            turns += 1
            await asyncio.sleep(0)

    async def asks():
        while not over:
            await memory.recall("fact 7", k=2)

    await memory.remember_many(
        [{"text": f"old fact {n}", "thread": False} for n in range(300)], namespace="old"
    )
    slices.clear()
    others = [asyncio.ensure_future(busy()), asyncio.ensure_future(asks())]
    await asyncio.gather(
        memory.remember_many({"text": f"fact {n}", "thread": False} for n in range(1500)),
        memory.forget_namespace("old"),
        *(memory.remember(f"single fact {n}", namespace="single") for n in range(20)),
    )
    over = True
    await asyncio.gather(*others)
    written = sum(records for _, records in slices)
    assert written >= 1820
    assert max(records for _, records in slices) < written / 10
    stood = [before for (before, _), (after, _) in itertools.pairwise(slices) if after == before]
    assert len(stood) < len(slices) / 4, (len(stood), len(slices))


async def test_the_queue_of_a_memory_is_bounded(path, embedder):
    """However many tasks call at once, no more than `max_pending` requests are queued or at work; all are answered."""
    async with aiochroma.Memory(path, embedder=embedder, max_pending=10) as memory:
        await memory.remember("a kettle", id="k")
        stats, over = [], False

        async def looks():
            while not over:
                stats.append(memory.client.stats())
                await asyncio.sleep(0)

        looking = asyncio.ensure_future(looks())
        answers = await asyncio.gather(
            *(memory.recall("kettle") for _ in range(300)),
            *(memory.remember(f"note {n}") for n in range(100)),
            *(memory.get("k") for _ in range(300)),
        )
        over = True
        await looking
        assert len(answers) == 700
        assert await memory.count() == 101
        assert max(one.pending for one in stats) <= 10
        assert max(one.in_line for one in stats) > 0


async def test_what_is_said_again_is_imported_as_often(memory, tmp_path):
    """A text without an id that is repeated in its conversation replaces none that is there, in this file or before."""
    said = {n: "ok" if n % 100 == 0 else f"message {n}" for n in range(300)}
    rows = [{"text": text, "thread": "t", "created_at": 1000.0 + n} for n, text in said.items()]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    live = await memory.remember("ok", thread="t", created_at=5000)
    changed = await memory.remember("I live in Graz.")
    await memory.update(changed, text="I live in Vienna.")
    (tmp_path / "facts.json").write_text(json.dumps(["I live in Graz."]))
    for _ in range(2):
        assert await memory.import_(tmp_path / "chat.jsonl") == 300
        assert await memory.import_(tmp_path / "facts.json") == 1
        oks = [hit async for hit in memory.list(thread="t") if hit.text == "ok"]
        assert sorted(hit.created_at.timestamp() for hit in oks) == [1000, 1100, 1200, 5000]
        assert live in {hit.id for hit in oks}
        assert (await memory.get(changed)).text == "I live in Vienna."
        assert await memory.count() == 303
