"""Compare ways to use Chroma from an event loop, under load: ``python tests/benchmarks/load.py``.

Contenders: plain chromadb on the loop, ``asyncio.to_thread``, a pool of four threads, ``chromadb.AsyncHttpClient`` with a
``chroma run`` of its own, langchain-chroma's asynchronous methods (where texts are asked for), and aiochroma. All have the
same data in directories of their own, each runs in a process of its own, and they take turns. Before anything is timed, they
must give the same answers; after what writes, the same records.

Prints a table for each scenario, and writes tables, figures and a chart to a directory (``--out``). ``--scale small``: 3,000
records in each of four collections, about three minutes; ``full``: 30,000, about a quarter of an hour. Needs the dependency
group ``bench``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _chart import draw
from _contenders import CONTENDERS
from _data import Data, build, copy
from _scenarios import SCALES, SCENARIOS, Report, Scale, needed
from _workers import Worker

_COLUMNS = (
    ("rate", "per second", "{:,.0f}"),
    ("ratio", "ratio", "{:.2f}"),
    ("p50_ms", "p50 ms", "{:,.1f}"),
    ("p99_ms", "p99 ms", "{:,.1f}"),
    ("stall_p50_ms", "stall p50 ms", "{:,.1f}"),
    ("stall_p99_ms", "stall p99 ms", "{:,.1f}"),
    ("stall_max_ms", "stall max ms", "{:,.0f}"),
    ("unanswered", "unanswered", "{:,.0f}"),
    ("wait_p99_ms", "wait p99 ms", "{:,.1f}"),
    ("blocked", "blocked", "{:.0%}"),
    ("few_us", "us each, 64", "{:,.0f}"),
    ("many_us", "us each, all", "{:,.0f}"),
    ("bytes", "bytes queued", "{:,.0f}"),
    ("cpu_ms", "CPU ms", "{:.2f}"),
    ("peak_mb", "peak MB", "{:,.0f}"),
)
_LEGEND = (
    "`ratio`: rate to the best other contender's (ingest: to chromadb's without recalls; outstanding: time with all to "
    "time with 64). `stall`: how late a 1 ms ticker on the event loop was, each wake-up counted once; `wait`: how long a "
    "callback that comes due at a random moment waits; `blocked`: share of time in stalls over 2 ms. `CPU`: processor "
    "time per request (ingest: per record, the recalls' included), the server's included. `peak`: memory of the process, "
    "the server's included."
)


def main() -> None:
    arguments = _arguments()
    # So that being told to end also ends the workers and removes their databases.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    scale = SCALES[arguments.scale]
    names = [name for name in SCENARIOS if not arguments.scenario or name in arguments.scenario]
    begun = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aiochroma-load-")))
        workers = _start(folder, needed(names), scale, stack)
        reports = []
        for name in names:
            _say(f"{name} ...", begun)
            reports.append(SCENARIOS[name](name, workers.__getitem__, scale))
            print(f"\n{_markdown(reports[-1])}\n", flush=True)
        _compare_written(workers)
    _say("done", begun)
    _write(arguments.out, arguments.scale, scale, reports, time.monotonic() - begun)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="small", help="how much data, how many rounds")
    only = f"only these: {', '.join(SCENARIOS)}"
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, metavar="NAME", help=only)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark-results"), help="directory for tables and chart"
    )
    return parser.parse_args()


def _start(folder: Path, keys: list[str], scale: Scale, stack: ExitStack) -> dict[str, Worker]:
    """Build the data once, give each contender a copy, start them all, and see that they find the same."""
    data = Data(scale.records)
    begun = time.monotonic()
    workers: dict[str, Worker] = {}
    for kind, members in _by_kind(keys).items():
        _say(f"building the {kind} ...", begun)
        build(folder / kind, data, kind)
        for key in members:
            workers[key] = Worker(key, copy(folder / kind, folder / key), data)
            stack.callback(workers[key].close)
    for worker in workers.values():
        worker.wait()
    for members in _by_kind(keys).values():
        _compare_answers([workers[key] for key in members])
    _say("all contenders are open and give the same answers", begun)
    return workers


def _by_kind(keys: list[str]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for key in keys:
        kinds.setdefault("texts" if key in {"langchain", "memory"} else "vectors", []).append(key)
    return kinds


def _compare_answers(workers: list[Worker]) -> None:
    work = "recall" if workers[0].key in {"langchain", "memory"} else "fan_out"
    first, *rest = workers
    expected = first.run("answers", work=work, count=40)
    for worker in rest:
        if worker.run("answers", work=work, count=40) != expected:
            raise SystemExit(
                f"{worker.key} and {first.key} give different answers: they do not do the same work"
            )


def _compare_written(workers: dict[str, Worker]) -> None:
    """After the writing: all hold the same records. (``plain-alone`` took part in the ingest only.)"""
    writers = [
        worker
        for key, worker in workers.items()
        if key in {"plain", "to_thread", "threads-4", "http", "ours"}
    ]
    written = {worker.key: worker.run("written") for worker in writers}
    if len({json.dumps(records) for key, records in written.items()}) > 1:
        raise SystemExit(
            f"the contenders hold different records after writing: { ({k: len(v) for k, v in written.items()}) }"
        )


def _label(key: str) -> str:
    name, _, kind = key.partition(":")
    label = CONTENDERS[name.removesuffix("-alone")].label + (
        ", no recalls" if name.endswith("-alone") else ""
    )
    return f"{label}, {kind}" if kind else label


def _markdown(report: Report) -> str:
    columns = [column for column in _COLUMNS if any(column[0] in row for row in report.rows.values())]
    lines = [
        f"### {report.name}: {report.title}",
        "",
        f"| | {' | '.join(title for _, title, _ in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for key, row in report.rows.items():
        cells = [form.format(row[name]) if name in row else "" for name, _, form in columns]
        lines.append(f"| {_label(key)} | {' | '.join(cells)} |")
    lines.append("")
    for aim in report.aims:
        bound = "at least" if aim.at_least else "at most"
        lines.append(
            f"- {'met' if aim.met else 'MISSED'}: {aim.text} {aim.value:,.2f} (aim: {bound} {aim.limit:g})"
        )
    lines.extend(f"- {note}" for note in report.notes)
    return "\n".join(lines)


def _machine() -> str:
    return (
        f"{os.cpu_count()} CPUs ({platform.machine()}, {platform.system()}), "
        f"{platform.python_implementation()} {platform.python_version()}, chromadb {version('chromadb')}"
    )


def _write(folder: Path, name: str, scale: Scale, reports: list[Report], seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rounds = f"{scale.rounds} rounds of reading, {scale.write_rounds} of writing, {scale.ingest_rounds} of the ingest"
    facts = f"{_machine()}; 4 collections of {scale.records:,} records, 384 dimensions; medians of {rounds}"
    command = f"python tests/benchmarks/load.py {' '.join(sys.argv[1:])}".strip()
    head = f"## Under load ({name})\n\n{facts}; {seconds:.0f} s in all.\n\n    {command}\n\n{_LEGEND}\n"
    tables = "\n\n".join(_markdown(report) for report in reports)
    (folder / f"load-{name}.md").write_text(f"{head}\n{tables}\n", encoding="utf-8")
    figures: dict[str, Any] = {"machine": _machine(), "command": command, "scale": asdict(scale)}
    figures["scenarios"] = [asdict(report) for report in reports]
    (folder / f"load-{name}.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    draw(reports, _label, facts, folder / f"load-{name}.png")
    print(f"\n{facts}\n{_LEGEND}\nWritten: {folder}/load-{name}.md, .json, .png")


def _say(text: str, begun: float) -> None:
    print(f"[{time.monotonic() - begun:6.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
