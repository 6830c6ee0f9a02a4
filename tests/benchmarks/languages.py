"""Measure recall in inflected and compounding languages: ``python tests/benchmarks/languages.py``.

``languages.txt`` has 15 groups of seven facts, each with a question that uses other forms of its words. The facts of a group
tell of like things, and those of several groups of the same things in kindred languages, so that there is something to confuse
them with. All are remembered in one namespace, without an order. A hit at k is a question whose fact is among the first k.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aiochroma import Memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiochroma.records.spec import SearchMode

PROBE = Path(__file__).with_name("languages.txt")
MODES: tuple[SearchMode, ...] = ("text", "vector", "hybrid")


class Probe(NamedTuple):
    """A fact and a question about it."""

    group: str
    fact: str
    question: str


def load() -> list[Probe]:
    """Read the probe."""
    probes, group = [], ""
    for line in PROBE.read_text("utf-8").splitlines():
        if line.startswith("# "):
            group = line[2:]
        else:
            fact, question = line.split(" | ")
            probes.append(Probe(group, fact, question))
    return probes


async def measure(embedder: str, modes: Sequence[SearchMode]) -> dict[SearchMode, list[int | None]]:
    """Return for each mode the rank of each question's fact, from 0; None where it is not among the first five."""
    probes = load()
    ranks: dict[SearchMode, list[int | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with Memory(folder, embedder=embedder) as memory:
            await memory.remember_many([probe.fact for probe in probes], thread=False)
            for mode in modes:
                ranks[mode] = []
                for probe in probes:
                    found = [hit.text for hit in await memory.recall(probe.question, k=5, mode=mode)]
                    ranks[mode].append(found.index(probe.fact) if probe.fact in found else None)
    return ranks


def share(ranks: Sequence[int | None], k: int) -> float:
    """Return which share of the ranks is below k."""
    return statistics.fmean(rank is not None and rank < k for rank in ranks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(description="Recall in inflected and compounding languages.")
    parser.add_argument("--embedder", choices=("auto", "wordllama", "minilm", "hashed"), default="auto")
    parser.add_argument("--missed", action="store_true", help="show the questions whose fact is not found")
    options = parser.parse_args(arguments)
    probes = load()
    groups = list(dict.fromkeys(probe.group for probe in probes))
    ranks = asyncio.run(measure(options.embedder, MODES))
    print(f"{'hit@1 / hit@5':<42}" + "".join(f"{mode:>14}" for mode in MODES))
    for group in [*groups, "all"]:
        rows = [at for at, probe in enumerate(probes) if group in {"all", probe.group}]
        cells = ([ranks[mode][at] for at in rows] for mode in MODES)
        print(f"{group:<42}" + "".join(f"{share(cell, 1):>8.2f} /{share(cell, 5):.2f}" for cell in cells))
    if options.missed:
        for mode in ("text", "hybrid"):
            for probe, rank in zip(probes, ranks[mode], strict=True):
                if rank is None:
                    print(f"{mode}: {probe.question}  ({probe.fact})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
