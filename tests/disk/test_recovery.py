"""What happens to a database whose index files are damaged."""

from __future__ import annotations

import pytest
from damage import INDEX_DAMAGES

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
