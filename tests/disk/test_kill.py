"""kill -9, aimed at the moments in which Chroma rewrites the files of an index."""

from __future__ import annotations

import random
import time

import pytest

from aiochroma.disk.layout import index_directories
from aiochroma.disk.preflight import preflight
from aiochroma.disk.recovery import recover

BASE = 2000
PLAN = {"main": {"count": BASE, "dimension": 128, "sync": 40}}


def kill_in_persist(child, directory, aim, generator):
    """Let a child add records, kill it while it persists, and return how many records it had acknowledged.

    Watching the files is the only way to hit the few milliseconds in which they are rewritten.
    """
    (index,) = index_directories(directory).values()
    process = child.start("ingest", directory, BASE)
    acknowledged = int(process.stdout.readline())
    header, id_map = index / "header.bin", index / "index_metadata.pickle"
    stop = time.monotonic() + 10
    if aim == "header":
        before = header.stat().st_mtime_ns
        while header.stat().st_mtime_ns == before and time.monotonic() < stop:
            pass
        end = time.monotonic() + generator.uniform(0, 0.0015)
        while time.monotonic() < end:
            pass
    else:
        size = id_map.stat().st_size
        while time.monotonic() < stop:
            now = id_map.stat().st_size
            if now < size:
                break
            size = now
    process.kill()
    lines = process.stdout.read().split()
    child.finish(process)
    return int(lines[-1]) if lines else acknowledged


def run_kills(seeds, child, root, count, *, durable, generator):
    """Kill, look, recover and check as often as told; returns a summary of each."""
    outcomes = []
    for number in range(count):
        directory = seeds.copy(root / str(number), durable=durable, wal=bool(number % 2), collections=PLAN)
        acknowledged = kill_in_persist(child, directory, ("header", "id map")[number // 2 % 2], generator)
        before = preflight(directory)
        assert not before.sqlite_problems
        outcomes.append((directory, acknowledged, before, recover(directory, before)))
    answers = child.check(*[directory for directory, *_ in outcomes])
    return [(*outcome, answers[outcome[0]]) for outcome in outcomes]


def assert_nothing_lost(outcomes, *, durable):
    for directory, acknowledged, before, recovery, answer in outcomes:
        assert "error" not in answer, (directory, answer, before.problems)
        main = answer["main"]
        missing = sum(len(ids) for ids in recovery.missing.values())
        assert main["count"] == main["documents"] + main["unreadable"]
        # The batch that was under way may be there, but then as a whole.
        assert main["count"] in {acknowledged, acknowledged + 40}
        assert main["wrong"] == 0
        assert main["unreadable"] == missing
        assert main["unreachable"] <= main["count"] // 50
        if durable:
            assert recovery.is_complete
        if not before.problems:
            assert recovery.collections == ()


@pytest.mark.parametrize("durable", [True, False], ids=["log kept", "log purged"])
def test_a_kill_in_the_middle_of_a_persist_loses_nothing_unnamed(seeds, child, tmp_path, durable):
    """Every acknowledged record is there with its vector, or (without a kept log only) named as missing."""
    generator = random.Random(1)
    outcomes = run_kills(seeds, child, tmp_path, 4, durable=durable, generator=generator)
    assert_nothing_lost(outcomes, durable=durable)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("durable", [True, False], ids=["log kept", "log purged"])
def test_many_kills_in_the_middle_of_a_persist(seeds, child, tmp_path, durable):
    """The same, a hundred times; prints how many indexes were broken and how many vectors were lost."""
    generator = random.Random()
    broken = lost = 0
    for batch in range(10):
        outcomes = run_kills(seeds, child, tmp_path / str(batch), 10, durable=durable, generator=generator)
        assert_nothing_lost(outcomes, durable=durable)
        broken += sum(bool(before.damaged) for _, _, before, _, _ in outcomes)
        lost += sum(len(ids) for *_, recovery, _ in outcomes for ids in recovery.missing.values())
    print(f"\n100 kills, {broken} broken indexes, {lost} vectors lost")
