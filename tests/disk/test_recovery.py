"""What happens to a database whose index files are damaged."""

from __future__ import annotations

import numpy as np
import pytest
from damage import INDEX_DAMAGES
from programs import printed_by

from aiochroma.disk.hnsw_files import map_elements, read_header
from aiochroma.disk.layout import index_directories
from aiochroma.disk.preflight import preflight
from aiochroma.disk.recovery import recover

COLLECTIONS = {"main": {"count": 1500}, "other": {"count": 1200, "space": "cosine", "dimension": 16}}
RECORDS = 1500

LOSSES = {
    "directory deleted": 1000,
    "id map deleted": 1000,
    "id map empty": 1000,
    "id map cut": 10,
    "vectors cut": 520,
    "vectors empty": 1000,
    "vectors flipped": 60,
}
"""How many vectors each damage may cost when the log was purged; the others cost none."""


def main_index(directory):
    """The index directory of the collection that is damaged."""
    (report,) = [one for one in preflight(directory).collections if one.name == "main"]
    return index_directories(directory)[report.vector_segment_id]


class Row:
    """One row of the corruption matrix, as far as it went without Chroma."""

    def __init__(self, directory, damage):
        self.directory = directory
        index = main_index(directory)
        damage(index)
        self.before = preflight(directory)
        self.recovery = recover(directory, self.before)


@pytest.fixture(scope="module", params=[True, False], ids=["log kept", "log purged"])
def matrix(request, seeds, child, tmp_path_factory):
    """Every damage on a copy of its own, recovered, and then opened by Chroma."""
    root = tmp_path_factory.mktemp("matrix")
    rows = {}
    for number, (name, damage) in enumerate(INDEX_DAMAGES.items()):
        directory = seeds.copy(root / str(number), durable=request.param, collections=COLLECTIONS)
        rows[name] = Row(directory, damage)
    answers = child.check(*[row.directory for row in rows.values()])
    for row in rows.values():
        row.answer = answers[row.directory]
        row.reopened = preflight(row.directory)
    return request.param, rows


@pytest.mark.parametrize("name", INDEX_DAMAGES)
def test_every_damage_is_found_before_chroma_opens(matrix, name):
    """Each row of the corruption matrix is reported, for the damaged collection only."""
    _, rows = matrix
    assert {report.name for report in rows[name].before.damaged} == {"main"}
    assert not rows[name].before.sqlite_problems


@pytest.mark.parametrize("name", INDEX_DAMAGES)
def test_recovery_brings_back_every_vector_or_names_it(matrix, name):
    """With the log kept nothing is lost; without it what is lost is named, id by id, and nothing else is lost."""
    kept, rows = matrix
    row = rows[name]
    assert "error" not in row.answer, row.answer
    allowed = 0 if kept else LOSSES.get(name, 0)
    missing = sum(len(ids) for ids in row.recovery.missing.values())
    assert missing <= allowed
    main = row.answer["main"]
    assert main["count"] == main["documents"] + main["unreadable"] == RECORDS
    assert main["unreadable"] == missing
    assert main["wrong"] == 0
    # A few records in a thousand are out of reach of HNSW's search in any database.
    assert main["unreachable"] <= 10
    other = row.answer["other"]
    assert other["count"] == other["documents"] == 1200
    assert other["unreadable"] == other["wrong"] == 0


@pytest.mark.parametrize("name", INDEX_DAMAGES)
def test_after_recovery_the_database_is_sound(matrix, name):
    """The next look finds nothing but the records that were named as missing."""
    _, rows = matrix
    row = rows[name]
    still = {report.collection_id: report.missing for report in row.reopened.damaged}
    assert still == row.recovery.missing
    assert not any(report.index_problems for report in row.reopened.collections)


@pytest.mark.parametrize("name", [name for name in INDEX_DAMAGES if name != "directory deleted"])
def test_broken_files_are_kept_aside(matrix, name):
    """Nothing is deleted: the broken files lie in the quarantine."""
    _, rows = matrix
    (entry,) = rows[name].recovery.collections
    assert entry.quarantine.is_dir()
    assert entry.quarantine.parent.parent == rows[name].directory


def _of_another_index(index):
    """The vectors change places, so that all else fits: what a file of another index of this size does."""
    elements = map_elements(index / "data_level0.bin", read_header(index, None), writable=True)
    elements["vector"][:] = np.roll(elements["vector"], 1, axis=0)
    elements.flush()


def _norms(index, norms):
    file = index / "length.bin"
    file.write_bytes(np.resize(np.asarray(norms, dtype="<f4"), file.stat().st_size // 4).tobytes())


OTHER_VECTORS = {
    "vectors of another index": _of_another_index,
    "norms zeros": lambda index: _norms(index, [0.0]),
    "norms negative": lambda index: _norms(index, [1.0, -1.0]),
    "norms no numbers": lambda index: _norms(index, [np.nan]),
    "norms of another index": lambda index: _norms(index, np.arange(1.0, 2000.0)),
}
"""Chroma opens such an index without a word, and returns vectors that nobody has written."""


@pytest.mark.parametrize("name", OTHER_VECTORS)
def test_an_index_with_other_vectors_is_found_and_made_again(seeds, child, tmp_path, name):
    """Norms count with the cosine distance, and are looked at where the log cannot tell, too."""
    plan = {"main": {"count": 1500, "space": "cosine"}}
    directory = seeds.copy(tmp_path / "kept", durable=True, collections=plan)
    OTHER_VECTORS[name](main_index(directory))
    assert child.check(directory)[directory]["main"]["wrong"] > 900, "Chroma notices it by now"
    directory = seeds.copy(tmp_path / "mended", durable=True, collections=plan)
    OTHER_VECTORS[name](main_index(directory))
    found = preflight(directory)
    assert [report.name for report in found.damaged] == ["main"]
    assert recover(directory, found).is_complete
    main = child.check(directory)[directory]["main"]
    assert (main["documents"], main["wrong"], main["unreadable"]) == (1500, 0, 0)
    if not name.endswith("another index"):
        directory = seeds.copy(tmp_path / "purged", durable=False, collections=plan)
        OTHER_VECTORS[name](main_index(directory))
        assert recover(directory, preflight(directory)).is_complete


@pytest.mark.parametrize("name", ["norms zeros", "norms negative", "bytes behind the end"])
def test_what_chroma_never_reads_is_no_damage(seeds, child, tmp_path, name):
    """Norms without the cosine distance, and what follows the end of a file: all is found, read and written as ever."""
    directory = seeds.copy(tmp_path / "db", durable=True, collections={"main": {"count": 1500}})
    index = main_index(directory)
    if name in OTHER_VECTORS:
        OTHER_VECTORS[name](index)
    else:
        for file in ("data_level0.bin", "length.bin", "link_lists.bin"):
            content = (index / file).read_bytes()
            (index / file).write_bytes(content + content)
    assert preflight(directory, thorough=True).problems == ()
    main = child.check(directory)[directory]["main"]
    assert (main["documents"], main["wrong"], main["unreadable"]) == (1500, 0, 0)
    assert main["unreachable"] <= 10
    assert preflight(directory, thorough=True).problems == ()


def test_an_addition_that_was_ignored_is_not_taken_for_a_vector(seeds, tmp_path):
    """Chroma ignores the addition of a record that is there, and logs its vector; zeros and tiny vectors have no norm."""
    vectors = np.random.default_rng(1).standard_normal((100, 16)).astype("float32")
    vectors[0], vectors[1], vectors[2] = 0.0, 1e-30, 1e-21
    program = """
import sys
import chromadb, numpy as np

vectors = np.load(sys.argv[2])
client = chromadb.PersistentClient(sys.argv[1])
for space in ("l2", "cosine"):
    main = client.create_collection(
        f"in-{space}", embedding_function=None, configuration={"hnsw": {"space": space, "sync_threshold": 40, "batch_size": 40}}
    )
    ids = [f"r{n}" for n in range(100)]
    main.add(ids=ids, embeddings=vectors)
    main.add(ids=ids, embeddings=vectors[::-1] + 1)
    main.update(ids=ids[:30], embeddings=vectors[:30] + 1)
    main.update(ids=["nobody"], embeddings=vectors[:1] + 2)
    main.delete(ids=ids[30:40])
    main.add(ids=ids[35:40], embeddings=vectors[35:40] + 3)
client.close()
"""
    np.save(tmp_path / "vectors.npy", vectors)
    directory = seeds.copy(tmp_path / "db", durable=True, collections={})
    printed_by("-c", program, str(directory), str(tmp_path / "vectors.npy"))
    report = preflight(directory, thorough=True)
    assert {one.name: one.vectors > 0 for one in report.collections} == {"in-l2": True, "in-cosine": True}
    assert report.problems == ()
