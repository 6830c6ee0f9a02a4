"""Inject every fault and print one table: ``python tests/chaos/run.py [--long] [--only WORD] [--seed N]``.

The short run takes a minute or two, the long one about ten. Ends with 1 when a record was lost or a fault not survived.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time

import chaos_scenarios as scenarios


def plan(*, long):
    """Return the scenarios by name, in the number of a long or a short run."""

    def times(short, many):
        return many if long else short

    indexes = list(scenarios.INDEX_DAMAGES)
    damages = indexes if long else indexes[::7]
    own, unusable = list(scenarios.OWN_INDEX_DAMAGES), list(scenarios.IN_PLACE_OF_THE_INDEX)
    files = list(scenarios.SQLITE_DAMAGES)
    rows = {
        "kill": lambda stage: scenarios.kills(stage, times(4, 200), aim="anywhere"),
        "kill-persist": lambda stage: scenarios.kills(stage, times(6, 200), aim="persist"),
        "kill-persist-purged": lambda stage: scenarios.kills(
            stage, times(4, 60), aim="persist", durable=False
        ),
        "second-writer": lambda stage: scenarios.second_writers(stage, times(3, 50)),
        "restart": lambda stage: scenarios.restarts(stage, times(3, 100)),
        "lock": lambda stage: scenarios.foreign_locks(stage, times(2, 8), seconds=times(0.8, 5.0)),
        "index": lambda stage: scenarios.damaged_indexes(stage, damages, durable=True),
        "index-purged": lambda stage: scenarios.damaged_indexes(stage, damages, durable=False),
        "index-backup": lambda stage: scenarios.damaged_indexes_after_a_backup(stage, damages),
        "own-index": lambda stage: scenarios.damaged_own_indexes(
            stage, own if long else own[::4], unusable if long else unusable[:1]
        ),
        "between": lambda stage: scenarios.kills_between_the_writes(stage, times(2, 40)),
        "host": lambda stage: scenarios.deaths_around_a_host(stage, times(3, 30)),
        "sqlite": lambda stage: scenarios.damaged_sqlite(stage, files if long else files[1::6]),
        "backup": lambda stage: scenarios.backups(stage, times(1, 20)),
        "sigterm": lambda stage: scenarios.terminations(stage, times(2, 40)),
    }
    if scenarios.can_mount():
        rows["disk-full"] = lambda stage: scenarios.full_disks(stage, times(1, 20))
        if shutil.which("mkfs.ext4"):
            rows["disk-read-only"] = lambda stage: scenarios.read_only_disks(stage, times(1, 10))
    return rows


def table(rows):
    """Return the rows as text."""
    lines = [
        f"| {'fault':52} | injected | survived | lost | notes |",
        f"|{'-' * 54}|---------:|---------:|-----:|-------|",
    ]
    lines += [
        f"| {row.fault:52} | {row.injected:8} | {row.survived:8} | {row.lost:4} | {row.notes} |"
        for row in rows
    ]
    checked = sum(row.records for row in rows)
    unreachable = sum(row.unreachable for row in rows)
    lines.append("")
    lines.append(
        f"{checked} records were checked, each with its vector; {unreachable} of those that were searched for were not their own "
        "nearest neighbour (HNSW is approximate)."
    )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    rows = []
    print(f"seed {options.seed}", flush=True)
    for name, scenario in plan(long=options.long).items():
        if options.only not in name:
            continue
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="aiochroma-chaos-") as folder:
            stage = scenarios.Stage(folder, options.seed)
            try:
                rows.append(scenario(stage))
            finally:
                stage.close()
        row = rows[-1]
        print(
            f"{name}: {row.survived}/{row.injected}, {row.lost} lost, {time.monotonic() - begun:.1f} s",
            flush=True,
        )
        for failure in row.failures:
            print(f"    {failure}", flush=True)
    print()
    print(table(rows))
    return 0 if all(row.is_good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
