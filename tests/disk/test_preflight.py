"""What is found out about a database before Chroma opens it."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3

import pytest
from damage import SQLITE_DAMAGES
from programs import printed_by

import aiochroma.disk.preflight as preflight_module
from aiochroma import DatabaseCorruptError, DatabaseFormatError
from aiochroma.disk.id_map import IndexUnreadableError, read_id_map
from aiochroma.disk.layout import index_directories
from aiochroma.disk.preflight import preflight
from aiochroma.disk.recovery import complete_retained_log, quarantine_orphans, recover
from aiochroma.disk.sqlite_file import prepare

PLAIN = {"main": {"count": 300, "sync": 100}}
SQLITE = "chroma.sqlite3"

HEALTHY = {
    "pending log": {"collections": {"main": {"count": 1500}, "never-persisted": {"count": 30}}},
    "changes": {"collections": {"main": {"count": 900, "sync": 40, "changes": True}}},
    "cosine changes": {
        "collections": {"main": {"count": 900, "space": "cosine", "sync": 150, "changes": True}}
    },
    "write-ahead journal, killed": {"wal": True, "abandon": True, "collections": PLAIN},
    "rollback journal, killed": {"abandon": True, "collections": PLAIN},
    "durable": {"wal": True, "durable": True, "collections": {"main": {"count": 900, "changes": True}}},
    "one dimension": {"collections": {"main": {"count": 50, "dimension": 1, "sync": 20}}},
    "empty": {"collections": {"main": {"count": 0}}},
    "no collection": {"collections": {}},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_database_raises_no_alarm(seeds, tmp_path, name):
    """Nothing is reported of a database that Chroma left behind by itself, closed or killed."""
    report = preflight(seeds.copy(tmp_path / "db", **HEALTHY[name]))
    assert report.problems == ()
    assert report.damaged == ()
    assert report.notes == ()
    assert {one.name for one in report.collections} == set(HEALTHY[name]["collections"])
    assert all(one.surplus == 0 for one in report.collections)


def test_tenants_databases_and_deleted_collections_raise_no_alarm(tmp_path):
    """Collections are told apart by tenant and database, and what a deleted one left behind is only listed."""
    program = f"""
import chromadb
admin = chromadb.AdminClient(chromadb.Settings(is_persistent=True, persist_directory={str(tmp_path)!r}))
admin.create_tenant("tenant")
admin.create_database("database", "tenant")
for where in ({{}}, {{"tenant": "tenant", "database": "database"}}):
    client = chromadb.PersistentClient(path={str(tmp_path)!r}, **where)
    for name in ("same", "gone"):
        settings = {{"hnsw": {{"sync_threshold": 50, "batch_size": 50}}}}
        collection = client.create_collection(name, embedding_function=None, configuration=settings)
        collection.add(ids=[str(n) for n in range(120)], embeddings=[[n, 1.0, 2.0] for n in range(120)])
    client.delete_collection("gone")
"""
    printed_by("-c", program)
    report = preflight(tmp_path)
    assert report.problems == ()
    assert sorted(one.label for one in report.collections) == ["same", "tenant/database/same"]
    assert len(report.orphaned_directories) == 2
    holder = quarantine_orphans(tmp_path, report)
    assert sorted(entry.name for entry in holder.iterdir()) == sorted(report.orphaned_directories)
    assert preflight(tmp_path).orphaned_directories == ()


def test_nothing_is_changed_by_looking(seeds, tmp_path):
    """The files of a database are the same, byte for byte, after a look."""
    directory = seeds.copy(tmp_path / "db", collections=PLAIN)
    before = {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    preflight(directory)
    assert {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()} == before


def test_a_new_directory_is_new(tmp_path):
    """A missing directory, an empty one and one that was only prepared are all new, and sound."""
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    prepare(prepared)
    for directory in (tmp_path / "missing", tmp_path, prepared):
        report = preflight(directory)
        assert report.is_new
        assert report.problems == ()


@pytest.mark.parametrize("name", SQLITE_DAMAGES)
def test_a_damaged_sqlite_file_is_reported_and_never_touched(seeds, tmp_path, name):
    """Recovery refuses with the problems and what to do."""
    directory = seeds.copy(tmp_path / "db", collections=PLAIN)
    file = directory / SQLITE
    SQLITE_DAMAGES[name](file)
    before = file.read_bytes() if file.exists() else None
    report = preflight(directory)
    assert report.sqlite_problems
    with pytest.raises(DatabaseCorruptError, match="backup") as raised:
        recover(directory, report)
    assert raised.value.problems == report.sqlite_problems
    assert (file.read_bytes() if file.exists() else None) == before


def test_a_foreign_sqlite_file_is_not_a_chroma_database(tmp_path):
    """A SQLite file with somebody else's tables is refused."""
    connection = sqlite3.connect(tmp_path / SQLITE)
    connection.execute("CREATE TABLE other (x)")
    connection.close()
    assert "not a Chroma database" in preflight(tmp_path).sqlite_problems[0]


def test_a_newer_format_is_refused(seeds, tmp_path):
    """A migration that the installed Chroma does not have is an error, although Chroma itself would open it."""
    directory = seeds.copy(tmp_path / "db", collections={})
    connection = sqlite3.connect(directory / SQLITE)
    with connection:
        connection.execute("INSERT INTO migrations VALUES ('sysdb', 11, '00011-future.sqlite.sql', '', '')")
    with pytest.raises(DatabaseFormatError, match="00011-future"):
        preflight(directory)
    with connection:
        # A version beyond those known here, but one that the installed library does carry.
        connection.execute(
            "UPDATE migrations SET filename = '00010-collection-schema.sqlite.sql' WHERE version = 11"
        )
    connection.close()
    assert preflight(directory).problems == ()


def test_an_id_map_cannot_run_code(tmp_path):
    """A pickle that names a function is refused without calling it."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "called"),)

    (tmp_path / "index_metadata.pickle").write_bytes(pickle.dumps({"id_to_label": Evil()}))
    with pytest.raises(IndexUnreadableError, match="mkdir has no place in an id map"):
        read_id_map(tmp_path)
    assert not (tmp_path / "called").exists()


def test_links_are_sampled_above_the_limit_and_the_report_says_so(seeds, tmp_path, monkeypatch):
    """A bounded look still finds cut files, and tells that it was bounded."""
    monkeypatch.setattr(preflight_module, "LINK_CHECK_LIMIT", 100)
    directory = seeds.copy(tmp_path / "db", collections=PLAIN)
    report = preflight(directory)
    assert report.problems == ()
    assert report.notes == ("main: links of the index were sampled",)
    (index,) = index_directories(directory).values()
    os.truncate(index / "data_level0.bin", 1000)
    assert preflight(directory).damaged


def test_a_look_has_a_time_limit(seeds, tmp_path, monkeypatch):
    """SQLite's own check is stopped when its time is up, and the report says so instead of calling it damage."""
    directory = seeds.copy(tmp_path / "db", collections={"main": {"count": 2000, "dimension": 4}})
    monkeypatch.setattr(preflight_module, "_QUICK_SECONDS", 0.0)
    report = preflight(directory)
    assert report.problems == ()
    assert any("was stopped" in note for note in report.notes)


def test_vectors_missing_from_a_sound_index_are_named(seeds, child, tmp_path):
    """Records that a second writer's persist wiped out of the index are listed by id, and the rest is left alone."""
    directory = seeds.copy(tmp_path / "db", collections=PLAIN)
    connection = sqlite3.connect(directory / SQLITE)
    with connection:
        segment = connection.execute("SELECT id FROM segments WHERE scope = 'METADATA'").fetchone()[0]
        connection.execute(
            "INSERT INTO embeddings (segment_id, embedding_id, seq_id) VALUES (?, 'r7777', 150)", (segment,)
        )
    connection.close()
    (report,) = preflight(directory).damaged
    assert report.missing == ("r7777",)
    assert report.index_problems == ()
    recovery = recover(directory, preflight(directory))
    assert recovery.missing == {report.collection_id: ("r7777",)}
    assert not recovery.collections[0].rebuilt
    assert not recovery.is_complete
    answer = child.check(directory)[directory]["main"]
    assert (answer["count"], answer["unreadable"], answer["wrong"]) == (301, 1, 0)


def test_a_database_can_be_made_durable_later(seeds, child, tmp_path):
    """Once the log was completed from the sound index, a lost index comes back whole."""
    directory = seeds.copy(tmp_path / "db", collections={"main": {"count": 1500, "changes": True}})
    assert prepare(directory, keep_log=True)
    incomplete = complete_retained_log(directory, preflight(directory))
    report = preflight(directory, thorough=True)
    assert incomplete == ()
    assert report.log_rows >= 1500
    assert report.problems == ()
    assert report.keeps_log
    assert complete_retained_log(directory, report) == ()
    assert preflight(directory, thorough=True).log_rows == report.log_rows
    shutil.rmtree(directory / report.collections[0].vector_segment_id)
    recovery = recover(directory, preflight(directory))
    assert recovery.is_complete
    answer = child.check(directory)[directory]["main"]
    assert answer["count"] == report.collections[0].records
    assert answer["unreadable"] == answer["wrong"] == 0
