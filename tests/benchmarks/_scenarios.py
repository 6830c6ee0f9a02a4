"""The scenarios: what is run, in which order, and what is aimed at.

Contenders take turns in short rounds; a figure is the median of its rounds (maxima and peaks: the largest).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from _workers import Worker

OTHERS = ("plain", "to_thread", "threads-4", "http")
ALL = (*OTHERS, "ours")
OUTSTANDING = ("to_thread", "ours")
LOAD = 0.7
"""Open-loop load, as a share of the best other contender's rate: the same for all."""

RECALL_PERIOD = 0.010

Row = dict[str, Any]
Bench = Callable[[str], Worker]


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        records: Records in each of the four collections.
        rounds: Rounds of reading.
        write_rounds: Rounds of writing.
        seconds: Length of a round of reading.
        lone_upserts: Upserts of a round with one caller. Rounds of writing have a count, so that all databases grow alike.
        upserts: The same with 64 callers.
        ingest_rounds: Rounds of the ingest.
        ingested: Records of one ingest.
        outstanding: Requests outstanding at once.
    """

    records: int
    rounds: int
    write_rounds: int
    seconds: float
    lone_upserts: int
    upserts: int
    ingest_rounds: int
    ingested: int = 5000
    outstanding: int = 10_000


SCALES = {
    "small": Scale(
        records=3000, rounds=3, write_rounds=3, seconds=0.5, lone_upserts=100, upserts=256, ingest_rounds=2
    ),
    "full": Scale(
        records=30_000, rounds=5, write_rounds=3, seconds=1.5, lone_upserts=256, upserts=1024, ingest_rounds=3
    ),
}


@dataclass(frozen=True)
class Aim:
    """A figure that is aimed at.

    Attributes:
        text: What it is.
        value: What was measured.
        limit: The aim.
        at_least: Whether more is better.
    """

    text: str
    value: float
    limit: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Report:
    """What came out of a scenario: one row for each contender."""

    name: str
    title: str
    rows: dict[str, Row]
    aims: list[Aim]
    notes: list[str] = field(default_factory=list)


def fan_out(name: str, bench: Bench, scale: Scale) -> Report:
    """Ask all four collections, with 1, 16 or 64 callers."""
    callers = int(name.rpartition("-")[2])
    rows, notes = _read_load(bench, ALL, "fan_out", callers, scale)
    if callers == 1:
        aims = [
            Aim(
                "p50 / p50 of chromadb on the loop",
                rows["ours"]["p50_ms"] / rows["plain"]["p50_ms"],
                1.1,
                False,
            )
        ]
    else:
        aims = [Aim("rate / best other", _ratio(rows, "ours"), {16: 2.0, 64: 3.0}[callers], True)]
    return Report(name, f"Fan-out over 4 collections, {_callers(callers)}", rows, aims, notes)


def recall(name: str, bench: Bench, scale: Scale) -> Report:
    """Recall from text."""
    callers = int(name.rpartition("-")[2])
    rows, notes = _read_load(bench, ("langchain", "memory"), "recall", callers, scale)
    aims = [Aim("rate / langchain-chroma", rows["memory"]["rate"] / rows["langchain"]["rate"], 4.0, True)]
    return Report(name, f"Recall from text over 4 namespaces, {_callers(callers)}", rows, aims, notes)


def upsert(name: str, bench: Bench, scale: Scale) -> Report:
    """Write single records into one collection."""
    callers = int(name.rpartition("-")[2])
    count = scale.lone_upserts if callers == 1 else scale.upserts
    closed = _in_turns(
        bench,
        ALL,
        scale.write_rounds,
        lambda worker: worker.run("closed", work="upsert", callers=callers, count=count),
    )
    rows, notes = {key: _row(results) for key, results in closed.items()}, []
    if callers > 1:
        notes = _add_open_loop(bench, rows, "upsert", callers, scale.write_rounds, max(1.0, scale.seconds))
    _add_ratios(rows)
    aims = [Aim("rate / best other", _ratio(rows, "ours"), {1: 1.8, 64: 12.0}[callers], True)]
    return Report(name, f"Single upserts, {_callers(callers)}", rows, aims, notes)


def ingest(name: str, bench: Bench, scale: Scale) -> Report:
    """Write many records in one call while recalls come due."""
    # The database of "plain-alone" is another copy: every ingest makes a database grow.
    # The recalls alone may be more than the HTTP client can do; recovering from that takes it so long that it has one round.
    results = _in_turns(
        bench,
        ("plain-alone", *ALL),
        scale.ingest_rounds,
        lambda worker: worker.run(
            "ingest", records=scale.ingested, period=None if worker.key == "plain-alone" else RECALL_PERIOD
        ),
        once=("http",),
    )
    rows = {key: _row(found) for key, found in results.items()}
    alone = rows["plain-alone"]["rate"]
    for row in rows.values():
        row["ratio"] = row["rate"] / alone
    for key in ("p50_ms", "p99_ms", "max_ms"):
        del rows["plain-alone"][key]
    ours = rows["ours"]
    aims = [
        Aim("p99 of a recall, ms", ours["p99_ms"], 60.0, False),
        Aim("p99 of the loop's stalls, ms", ours["stall_p99_ms"], 25.0, False),
        Aim("records/s / chromadb's alone", ours["ratio"], 0.5, True),
    ]
    spike = (
        f"The largest stall in aiochroma was {ours['stall_max_ms']:.0f} ms. Whoever writes, Chroma rewrites a collection's "
        "index files each time `sync_threshold` more records (default 1000) are in, inside that write and with the "
        "interpreter held; a larger `sync_threshold` makes it rarer."
    )
    notes = [
        spike,
        f"By time, a callback that came due at a random moment waited {ours['wait_p99_ms']:.0f} ms at p99.",
    ]
    title = f"Upsert of {scale.ingested:,} records in one call while a recall comes due every {RECALL_PERIOD * 1e3:.0f} ms"
    return Report(name, title, rows, aims, notes)


def outstanding(name: str, bench: Bench, scale: Scale) -> Report:
    """Compare very many requests outstanding with 64."""
    count = scale.outstanding
    rows: dict[str, Row] = {}
    for kind in ("get", "query"):
        # The other contender is there for comparison only, and takes long.
        keys = OUTSTANDING if kind == "get" else ("ours",)
        results = _in_turns(
            bench,
            keys,
            scale.rounds,
            lambda worker, kind=kind: worker.run("outstanding", kind=kind, count=count),
        )
        for key, found in results.items():
            row = _row(found)
            row["ratio"] = row["many_us"] / row["few_us"]
            rows[f"{key}:{kind}"] = row
    memory = {size: bench("ours").run("queued_bytes", count=size) for size in (count // 4, count)}
    for kind in ("get", "query"):
        rows[f"ours:{kind}"] |= {"bytes": memory[count][kind], "bytes_few": memory[count // 4][kind]}
    aims = [
        Aim(f"time per {kind} / with 64", rows[f"ours:{kind}"]["ratio"], 1.5, False)
        for kind in ("get", "query")
    ]
    aims += [Aim(f"bytes per queued {kind}", memory[count][kind], 2048.0, False) for kind in ("get", "query")]
    aims += [
        Aim(
            f"linear: bytes per {kind} / with {count // 4:,}",
            memory[count][kind] / memory[count // 4][kind],
            1.1,
            False,
        )
        for kind in ("get", "query")
    ]
    notes = [
        "Bytes are those of aiochroma: without the caller's task and without the id or the vector that was asked for."
    ]
    return Report(name, f"{count:,} requests outstanding at once", rows, aims, notes)


SCENARIOS: dict[str, Callable[[str, Bench, Scale], Report]] = {
    "fanout-1": fan_out,
    "fanout-16": fan_out,
    "fanout-64": fan_out,
    "recall-text-1": recall,
    "recall-text-16": recall,
    "outstanding-10000": outstanding,
    "upsert-1": upsert,
    "upsert-64": upsert,
    "ingest": ingest,
}
"""In this order: what changes the databases comes last."""


def needed(names: Sequence[str]) -> list[str]:
    """Return the workers that scenarios need; ``plain-alone`` is a second one of ``plain``."""
    keys: dict[str, None] = {}
    for name in names:
        if SCENARIOS[name] is recall:
            keys |= dict.fromkeys(("langchain", "memory"))
        elif SCENARIOS[name] is outstanding:
            keys |= dict.fromkeys(OUTSTANDING)
        else:
            keys |= dict.fromkeys(("plain-alone", *ALL) if SCENARIOS[name] is ingest else ALL)
    return list(keys)


def _read_load(
    bench: Bench, keys: Sequence[str], work: str, callers: int, scale: Scale
) -> tuple[dict[str, Row], list[str]]:
    closed = _in_turns(
        bench,
        keys,
        scale.rounds,
        lambda worker: worker.run("closed", work=work, callers=callers, seconds=scale.seconds),
    )
    rows, notes = {key: _row(results) for key, results in closed.items()}, []
    if callers > 1:
        notes = _add_open_loop(bench, rows, work, callers, scale.rounds, scale.seconds)
    _add_ratios(rows)
    return rows, notes


def _add_open_loop(
    bench: Bench, rows: dict[str, Row], work: str, callers: int, rounds: int, seconds: float
) -> list[str]:
    """Measure latencies and stalls again, under one load for all: rates come from the closed loop, the rest from here."""
    rate = LOAD * _best_other(rows)
    results = _in_turns(
        bench,
        list(rows),
        rounds,
        lambda worker: worker.run("open", work=work, callers=callers, rate=rate, seconds=seconds),
    )
    for key, found in results.items():
        row = _row(found)
        rows[key] |= {
            name: row[name] for name in row if name.endswith("_ms") or name in {"blocked", "unanswered"}
        }
    note = (
        f"Rate and processor time with {callers} callers, each asking again as soon as it is answered. Latencies and "
        f"stalls under one load for all, {rate:.0f} requests/s ({LOAD:.0%} of the best other rate), in bursts of "
        f"{callers}, counted from when a request was due; who cannot keep up with it has a queue that grows."
    )
    return [note]


def _in_turns(
    bench: Bench,
    keys: Sequence[str],
    rounds: int,
    run: Callable[[Any], dict[str, Any]],
    once: Sequence[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {key: [] for key in keys}
    for turn in range(rounds):
        first = turn % len(keys)
        for key in (*keys[first:], *keys[:first]):
            if turn == 0 or key not in once:
                results[key].append(run(bench(key)))
    return results


def _row(results: Sequence[dict[str, Any]]) -> Row:
    row: Row = {}
    for name in results[0]:
        values = [result[name] for result in results]
        row[name] = max(values) if "max" in name or "peak" in name else statistics.median(values)
    if "cpu_s" in row:
        row["cpu_ms"] = statistics.median(result["cpu_s"] / result["requests"] * 1e3 for result in results)
    row["spread"] = [
        min(result.get("rate", 0.0) for result in results),
        max(result.get("rate", 0.0) for result in results),
    ]
    return row


def _add_ratios(rows: dict[str, Row]) -> None:
    best = _best_other(rows)
    for row in rows.values():
        row["ratio"] = row["rate"] / best


def _best_other(rows: dict[str, Row]) -> float:
    return max(row["rate"] for key, row in rows.items() if key not in {"ours", "memory"})


def _ratio(rows: dict[str, Row], key: str) -> float:
    return float(rows[key]["rate"] / _best_other(rows))


def _callers(callers: int) -> str:
    return f"{callers} caller" + "s" * (callers > 1)
