"""The table of operations: complete, and consistent with what plan, backends and followers take from it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from chromadb.api import AsyncServerAPI, ServerAPI

import aiochroma
from aiochroma.core.operations import OPERATIONS, Effect, Lane, Merge, Repeat, Result, Space, operation_of
from aiochroma.disk.retained_log import LogState
from aiochroma.records.local_index import LocalIndex
from aiochroma.records.server_index import ServerIndex

ROOT = Path(aiochroma.__file__).parent


def test_every_operation_of_chroma_has_a_row():
    """A release of Chroma with further operations is noticed here, and not by users."""
    abstract = ServerAPI.__abstractmethods__ | AsyncServerAPI.__abstractmethods__
    assert abstract <= set(OPERATIONS)


def test_an_operation_without_a_row_is_a_barrier_of_which_nothing_is_assumed():
    """The strictest lane, no merging, no repetition, room on the disk needed."""
    row = operation_of("something new")
    assert (row.lane, row.merge, row.repeat) == (Lane.BARRIER, Merge.NONE, Repeat.NEVER)
    assert (row.space, row.paged, row.reads_first) == (Space.MUCH, False, False)


@pytest.mark.parametrize("row", OPERATIONS.values(), ids=lambda row: row.name)
def test_rows_make_sense(row):
    """Reads change nothing and may be repeated; what is cut or merged says along which arguments."""
    assert operation_of(row.name) is row
    if row.lane is Lane.READ:
        assert (row.effect, row.repeat, row.space) == (Effect.NONE, Repeat.ALWAYS, Space.NONE)
        assert not row.record_fields
    if row.lane is Lane.WRITE:
        # Without an effect: what is written stands beside the records, which stay as they are.
        assert row.effect in {Effect.WRITES, Effect.DELETES, Effect.NONE}
        assert "ids" in row.record_fields
    assert (row.merge is Merge.QUERIES) == bool(row.query_fields) == (row.result is Result.ROWS)
    assert set(row.vector_fields) <= {*row.record_fields, *row.query_fields}
    assert row.paged <= (row.result in {Result.RECORDS, Result.ROWS})


@pytest.mark.parametrize(
    ("name", "arguments", "may"),
    [
        ("_delete", {"ids": ["a"]}, True),
        ("_delete", {"ids": ["a"], "where": {"k": 1}}, False),
        ("_delete", {"where": {"k": 1}, "limit": 3}, False),
        ("create_collection", {"name": "x"}, False),
        ("create_collection", {"name": "x", "get_or_create": True}, True),
        ("_upsert", {"ids": ["a"]}, True),
        ("_query", {}, True),
        ("delete_collection", {"name": "x"}, False),
        ("forget_memories", {"ids": ["a"]}, False),
        ("something new", {}, False),
    ],
)
def test_what_may_be_repeated_after_it_may_have_happened(name, arguments, may):
    """Reads, and writes that name their records; not what has another result the second time."""
    assert operation_of(name).may_be_repeated(arguments) is may


def test_names_of_operations_are_compared_in_one_module():
    """Whoever needs to know something of an operation reads its row."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        if file.name == "operations.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            if not any(isinstance(side, ast.Attribute) and side.attr == "operation" for side in sides):
                continue
            found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_every_operation_that_is_added_to_chroma_has_a_row():
    """What the records of a memory offer is planned and repeated by its row."""
    offered = {*LocalIndex(None, None, LogState()).operations(), *ServerIndex(None).operations()}
    assert offered <= set(OPERATIONS)
