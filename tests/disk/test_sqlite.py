"""Settings that are written before Chroma opens the file, and the log that is kept."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from aiochroma import DatabaseCorruptError, DatabaseLockedError
from aiochroma.disk import layout
from aiochroma.disk.preflight import preflight
from aiochroma.disk.recovery import recover
from aiochroma.disk.salvage import iter_log_vectors, trim_retained_log
from aiochroma.disk.sqlite_file import file_identity, prepare, vacuum, wait_until_closed

DURABLE = {"wal": True, "durable": True, "collections": {"main": {"count": 1500}, "other": {"count": 200}}}


def is_whole(answer, count):
    """Every record is there with its vector; of a hundred, one or two may be out of reach of HNSW's search."""
    return (
        answer["count"] == answer["documents"] == count
        and answer["unreadable"] == answer["wrong"] == 0
        and answer["unreachable"] <= count // 50
    )


def test_chroma_keeps_the_settings(seeds, child, tmp_path):
    """A database begun by `prepare` is still in write-ahead mode and keeps its log after Chroma has written it."""
    directory = seeds.copy(tmp_path / "db", **DURABLE)
    child.check(directory)
    report = preflight(directory, thorough=True)
    assert report.journal_mode == "wal"
    assert report.keeps_log
    assert report.log_rows >= 1700
    assert report.log_bytes >= 1700 * 32 * 4


def test_a_new_database_needs_two_rounds(tmp_path):
    """Without Chroma's tables `prepare` sets what it can, and says that it has to be called again."""
    assert not prepare(tmp_path)
    assert not prepare(tmp_path, keep_log=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["chroma.sqlite3"]


def test_the_log_is_indexed_by_collection_and_chroma_goes_on(seeds, child, tmp_path):
    """A write beside a large collection reads its own entries of the log; Chroma opens and writes the file as before."""
    directory = seeds.copy(tmp_path / "db", **DURABLE)
    assert prepare(directory, keep_log=True)
    with sqlite3.connect(directory / "chroma.sqlite3") as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM embeddings_queue WHERE topic = 'x' AND seq_id > 3 ORDER BY seq_id"
        ).fetchall()
    connection.close()
    assert "USING INDEX aiochroma_log_by_topic (topic=? AND seq_id>?)" in plan[0][-1]
    child.check(directory)
    assert not preflight(directory).problems
    assert prepare(directory, keep_log=True), "the index that is there is taken as it is"


def test_lists_without_a_record_leave_no_bytes(seeds, tmp_path):
    """Chroma leaves them where a collection is deleted; they go when a database is opened, beside those that stay."""
    directory = seeds.copy(tmp_path / "db", **DURABLE)
    with closing(sqlite3.connect(directory / "chroma.sqlite3")) as connection, connection:
        (living,) = connection.execute("SELECT max(id) FROM embeddings").fetchone()
        connection.executemany(
            "INSERT INTO embedding_metadata_array (id, key, string_value) VALUES (?, 'tags', ?)",
            [(living, "a tag that stays"), (living + 1, "a tag that goes")],
        )
    assert prepare(directory)
    content = b"".join(file.read_bytes() for file in directory.glob("chroma.sqlite3*"))
    assert b"a tag that stays" in content
    assert b"a tag that goes" not in content


def test_settings_can_be_taken_back(seeds, tmp_path):
    """Both settings can be changed either way, and None leaves the log's as it is."""
    directory = seeds.copy(tmp_path / "db", **DURABLE)
    assert prepare(directory, write_ahead=False)
    assert preflight(directory).journal_mode == "delete"
    assert preflight(directory).keeps_log
    assert prepare(directory, keep_log=False)
    assert preflight(directory).journal_mode == "wal"
    assert not preflight(directory).keeps_log


def test_a_lock_held_elsewhere_is_an_error_not_a_wait(seeds, child, tmp_path, monkeypatch):
    """Preparing a database whose lock a foreign process holds fails with a name for it."""
    monkeypatch.setattr(layout, "_SQLITE_BUSY_SECONDS", 0.1)
    directory = seeds.copy(tmp_path / "db", collections={})
    process = child.start("hold", directory, "BEGIN EXCLUSIVE")
    process.stdout.readline()
    try:
        with pytest.raises(DatabaseLockedError):
            prepare(directory)
    finally:
        child.finish(process)
    assert prepare(directory)


def test_a_damaged_file_is_not_prepared(tmp_path):
    """What is not a database stays what it is."""
    (tmp_path / "chroma.sqlite3").write_bytes(b"hello" * 1000)
    with pytest.raises(DatabaseCorruptError):
        prepare(tmp_path)
    assert (tmp_path / "chroma.sqlite3").read_bytes() == b"hello" * 1000


def test_a_trimmed_log_loses_nothing(seeds, child, tmp_path):
    """What the verified index holds may go from the log: Chroma still opens, and every vector is there."""
    directory = seeds.copy(tmp_path / "db", **DURABLE)
    before = preflight(directory, thorough=True)
    deleted = trim_retained_log(directory, before)
    assert deleted == 1000
    after = preflight(directory, thorough=True)
    assert after.problems == ()
    assert after.log_rows == before.log_rows - deleted
    assert vacuum(directory) > 0
    answer = child.check(directory)[directory]
    assert is_whole(answer["main"], 1500)
    assert is_whole(answer["other"], 200)
    assert preflight(directory).problems == ()


def test_the_newest_entry_of_the_log_survives_trimming(seeds, child, tmp_path):
    """Numbers of log entries are never used twice, or Chroma would ignore what is written under them."""
    directory = seeds.copy(tmp_path / "db", durable=True, collections={"main": {"count": 200, "sync": 100}})
    newest = "SELECT max(seq_id) FROM embeddings_queue"
    connection = sqlite3.connect(directory / "chroma.sqlite3")
    before = connection.execute(newest).fetchone()
    assert trim_retained_log(directory, preflight(directory)) == 199
    assert connection.execute(newest).fetchone() == before
    connection.close()
    assert child.check(directory)[directory]["main"]["count"] == 200
    assert preflight(directory).problems == ()


def test_after_trimming_the_broken_index_still_gives_its_vectors(seeds, child, tmp_path):
    """The two sources complete each other: the log its part, the intact part of the broken files the rest."""
    directory = seeds.copy(tmp_path / "db", **DURABLE)
    trim_retained_log(directory, preflight(directory))
    (main,) = [one for one in preflight(directory).collections if one.name == "main"]
    (directory / main.vector_segment_id / "header.bin").unlink()
    recovery = recover(directory, preflight(directory))
    assert recovery.is_complete
    assert recovery.collections[0].from_index == 1000
    assert child.check(directory)[directory]["main"]["wrong"] == 0


def test_vectors_can_be_read_from_the_log(seeds, tmp_path):
    """For each id the newest vector, and none for what was deleted."""
    plan = {"durable": True, "collections": {"main": {"count": 600, "changes": True}}}
    directory = seeds.copy(tmp_path / "db", **plan)
    (main,) = preflight(directory).collections
    found = dict(iter_log_vectors(directory, main.collection_id))
    assert len(found) == main.records == 600 - 80
    assert "r10" not in found
    for number in (80, 250, 401, 500):
        expected = np.random.default_rng(number).standard_normal(32).astype("float32")
        assert np.array_equal(found[f"r{number}"], expected)
    assert set(dict(iter_log_vectors(directory, main.collection_id, ["r300", "nobody"]))) == {"r300"}


def test_the_file_has_an_identity(tmp_path):
    """It changes when the file is replaced, and is None when there is none."""
    assert file_identity(tmp_path) is None
    prepare(tmp_path)
    first = file_identity(tmp_path)
    assert first == file_identity(tmp_path)
    shutil.copy(tmp_path / "chroma.sqlite3", tmp_path / "copy")
    (tmp_path / "copy").replace(tmp_path / "chroma.sqlite3")
    assert file_identity(tmp_path) != first


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells")
def test_open_descriptors_are_waited_for(tmp_path):
    """A file that this process has open is seen, and its closing too."""
    prepare(tmp_path)
    with (tmp_path / "chroma.sqlite3").open("rb"):
        assert not wait_until_closed(tmp_path, timeout_seconds=0.05)
    assert wait_until_closed(tmp_path)
