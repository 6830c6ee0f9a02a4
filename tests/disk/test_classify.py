"""Chroma's errors, each produced for real, and what the table says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiochroma.backend.faults import FAULTS, FaultKind, WriteOutcome, classify

PROGRAM = Path(__file__).with_name("faults.py")


def can_mount():
    """Whether this user may mount a file system."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


# Fault -> (how it is produced, the call that fails, what helps, whether a write happened).
ROWS = {
    "replaced": ("replaced", "upsert", FaultKind.MOVED, WriteOutcome.NOT_WRITTEN),
    "moved": ("moved", "upsert", FaultKind.MOVED, WriteOutcome.NOT_WRITTEN),
    "cannot_open": ("cannot_open", "open", FaultKind.MOVED, WriteOutcome.NOT_WRITTEN),
    "read_only": ("read_only", "open", FaultKind.PERMANENT, WriteOutcome.NOT_WRITTEN),
    "disk_full": ("disk_full", "upsert", FaultKind.PERMANENT, WriteOutcome.UNKNOWN),
    "not_applied": ("not_applied", "upsert", FaultKind.MOVED, WriteOutcome.LOGGED),
    "not a database": ("not_a_database", "open", FaultKind.CORRUPT, WriteOutcome.NOT_WRITTEN),
    "malformed": ("malformed", "open", FaultKind.CORRUPT, WriteOutcome.NOT_WRITTEN),
    "index_unreadable": ("header_deleted", "count", FaultKind.CORRUPT, WriteOutcome.UNKNOWN),
    "index_unreadable, write": ("header_deleted", "upsert", FaultKind.CORRUPT, WriteOutcome.LOGGED),
    "id map": ("pickle_empty", "count", FaultKind.CORRUPT, WriteOutcome.UNKNOWN),
    "id map, write": ("pickle_empty", "upsert", FaultKind.CORRUPT, WriteOutcome.LOGGED),
    "index_incomplete, query": ("vectors_zeroed", "query", FaultKind.CORRUPT, WriteOutcome.UNKNOWN),
    "index_stale": ("stale", "query", FaultKind.MOVED, WriteOutcome.UNKNOWN),
    "other_version": ("other_version", "open", FaultKind.PERMANENT, WriteOutcome.UNKNOWN),
    "closed": ("closed", "count", FaultKind.PERMANENT, WriteOutcome.NOT_WRITTEN),
    "caller": ("caller", "upsert", FaultKind.PERMANENT, WriteOutcome.UNKNOWN),
}
NAMES = {
    "moved": "replaced",
    "not a database": "sqlite_damaged",
    "malformed": "sqlite_damaged",
    "id map": "index_unreadable",
    "caller": "unrecognised",
}
NEEDS_MOUNT = {"read_only", "disk_full", "not_applied"}


@pytest.fixture(scope="module")
def produced(seeds, tmp_path_factory):
    """The error of each call of each scenario, made by the real Chroma in child processes of their own."""
    root = tmp_path_factory.mktemp("faults")
    children = {}
    for scenario in sorted({row[0] for row in ROWS.values()}):
        directory = seeds.copy(root / scenario, collections={"main": {"count": 200, "sync": 100}})
        command = [sys.executable, str(PROGRAM), scenario, str(directory)]
        if scenario in NEEDS_MOUNT:
            if not can_mount():
                continue
            command = ["unshare", "--mount", *command]
        children[scenario] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if len(children) % 2 == 0:
            # No more children at once than the smallest of machines has processors.
            for child in children.values():
                child.wait(timeout=60)
    errors = {}
    for scenario, child in children.items():
        output, _ = child.communicate(timeout=60)
        for line in output.splitlines():
            call, name, text = json.loads(line)
            errors[scenario, call] = type(name, (Exception,), {})(text)
    return errors


@pytest.mark.parametrize("row", ROWS)
def test_a_real_error_is_recognised(produced, row):
    """Kind, outcome and name of the fault are right for an error that Chroma raised."""
    scenario, call, kind, outcome = ROWS[row]
    if scenario in NEEDS_MOUNT and not can_mount():
        pytest.skip("needs the right to mount a file system")
    fault = classify(produced[scenario, call])
    name = row.split(",")[0]
    assert fault.name == NAMES.get(name, name)
    assert fault.kind is kind
    assert fault.outcome is outcome
    assert fault.reopen_first == (scenario in {"disk_full", "not_applied"})


def test_a_failed_apply_to_the_index_is_recognised():
    """The text by which Chroma reports it, met when a disk fills up while an index is being persisted."""
    texts = {
        "Error in compaction: Failed to apply logs to the hnsw segment writer": WriteOutcome.LOGGED,
        "Error executing plan: Error sending backfill request to compactor: Failed to apply logs to the hnsw segment"
        " writer": WriteOutcome.UNKNOWN,
    }
    for text, outcome in texts.items():
        fault = classify(type("InternalError", (Exception,), {})(text))
        assert (fault.name, fault.kind, fault.outcome) == ("index_not_updated", FaultKind.CORRUPT, outcome)


@pytest.mark.parametrize(
    ("code", "name", "outcome"),
    [
        (5, "locked", WriteOutcome.NOT_WRITTEN),
        (6, "locked", WriteOutcome.NOT_WRITTEN),
        (517, "locked", WriteOutcome.NOT_WRITTEN),
        (1544, "read_only", WriteOutcome.NOT_WRITTEN),
        (522, "disk_error", WriteOutcome.UNKNOWN),
        (1034, "disk_error", WriteOutcome.UNKNOWN),
        (267, "sqlite_damaged", WriteOutcome.NOT_WRITTEN),
    ],
)
def test_codes_that_cannot_be_provoked_are_in_the_table(code, name, outcome):
    """Codes of SQLite that Chroma would show after a wait of 1000 s, or with a failing disk, extended ones included."""
    text = f"Query error: Database error: error returned from database: (code: {code}) something"
    fault = classify(type("InternalError", (Exception,), {})(text))
    assert fault.name == name
    assert fault.sqlite_code == code
    assert fault.outcome is outcome


def test_an_error_about_the_caller_is_never_a_fault_of_the_storage():
    """A message that quotes the caller's text cannot be mistaken, because its class is not one of the storage's."""
    error = type("NotFoundError", (Exception,), {})(
        "Collection [Error finding id (code: 1032)] does not exist"
    )
    assert classify(error).name == "unrecognised"


def test_every_row_helps_a_person():
    """Each fault has an explanation and advice, in sentences, and a name of its own."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert fault.explanation.endswith(".")
        assert fault.advice.endswith(".")
        assert bool(fault.codes) != bool(fault.pattern)
