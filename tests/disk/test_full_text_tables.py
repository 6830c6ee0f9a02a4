"""Chroma's full-text tables under another version of SQLite: derived, rebuilt when asked, never damage of the data."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("pysqlite3", reason="a second SQLite of at least 3.50: pip install pysqlite3-binary")

WRITE = """
import sys, chromadb
collection = chromadb.PersistentClient(sys.argv[1]).create_collection("notes", embedding_function=None)
collection.add(ids=["a", "b"], embeddings=[[1.0, 2.0], [2.0, 1.0]], documents=["before\\0behind the zero", "plain words"])
"""
LOOK = """
import asyncio, json, sys
from pathlib import Path
if sys.argv[2] == "new":
    import pysqlite3
    sys.modules["sqlite3"] = pysqlite3
import aiochroma
import aiochroma.sync
from aiochroma.disk.preflight import preflight

path = Path(sys.argv[1])

def look():
    report = preflight(path)
    return {"damage": report.sqlite_problems, "full_text": report.full_text_problems}

async def read():
    async with aiochroma.AsyncPersistentClient(path, durable=True) as client:
        collection = await client.get_collection("notes", embedding_function=None)
        found = await collection.get(include=["documents"])
        await client.backup(path.with_name(f"backup-{sys.argv[2]}"))
        return sorted(found["documents"])

before = look()
documents = asyncio.run(read())
asked, repaired = aiochroma.sync.doctor(path), aiochroma.sync.doctor(path, repair=True)
print(json.dumps({
    "before": before, "documents": documents, "code": asked.exit_code, "advice": asked.advice,
    "repaired": repaired.exit_code, "after": look(),
}))
"""


def run(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def database(tmp_path):
    """Chroma's own trigram index of a document with a NUL character, which newer versions of SQLite call malformed."""
    run(WRITE, tmp_path / "db")
    return tmp_path / "db"


def test_a_newer_sqlite_finds_fault_with_the_full_text_table_alone(database):
    """The database opens, is read and backed up; doctor says what is the matter, and its repair ends the complaint."""
    found = json.loads(run(LOOK, database, "new").splitlines()[-1])
    assert found["before"]["damage"] == []
    assert "FTS5" in found["before"]["full_text"][0]
    assert found["documents"] == ["before\0behind the zero", "plain words"]
    assert found["code"] == 1
    assert any("full-text" in line for line in found["advice"])
    assert found["repaired"] == 0
    assert found["after"] == {"damage": [], "full_text": []}


def test_both_versions_take_what_the_other_has_mended(database):
    """After a repair with the newer one the usual one finds nothing, and the other way round."""
    run(LOOK, database, "new")
    found = json.loads(run(LOOK, database, "usual").splitlines()[-1])
    assert found["before"] == {"damage": [], "full_text": []}
    assert found["code"] == 0


COMPLAINTS = {
    "malformed inverted index for FTS5 table main.embedding_fulltext_search": False,
    "unable to validate the inverted index for FTS5 table main.embedding_fulltext_search: SQL logic error": False,
    'malformed inverted index for FTS5 table "main"."embedding_fulltext_search"': False,
    "malformed inverted index for FTS5 table main.somebody_elses": True,
    "Tree 12 page 34: btreeInitPage() returns error code 11": True,
    "row 3 missing from index embedding_metadata_string_value": True,
    "wrong # of entries in index sqlite_autoindex_collections_1": True,
}


@pytest.mark.parametrize(("complaint", "is_damage"), COMPLAINTS.items())
def test_complaints_are_sorted_by_their_wording(database, complaint, is_damage):
    """What concerns the full-text table alone is told from damage, in the wordings of several versions."""
    from aiochroma.disk.layout import connect_read_only
    from aiochroma.disk.preflight import _Look

    with connect_read_only(database) as connection:
        damage, full_text = _Look(database, connection, thorough=False)._sorted_complaints([complaint])
    assert (len(damage), len(full_text)) == ((1, 0) if is_damage else (0, 1))
