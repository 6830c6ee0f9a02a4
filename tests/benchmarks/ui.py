"""How long each view of the page takes: one command, one memory.

    python tests/benchmarks/ui.py [--memories 100000] [--rounds 3] [--json FILE]

The page's script is run by Streamlit's own test runner, without a browser, on a database that a host serves. Times are medians of
the rounds, in milliseconds; the first round opens the database and is left out. Needs the extra `ui`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from streamlit.testing.v1 import AppTest

from aiochroma import sync
from aiochroma.ui import PATH, TOKEN, WRITE

TOPICS = ("tea", "the bicycle", "the attic", "a meeting", "the invoice", "music", "the garden", "a train")


def fill(path, count):
    start = datetime.now(timezone.utc) - timedelta(days=90)
    items = (
        {
            "text": f"Note {number}: something about {TOPICS[number % len(TOPICS)]}, number {number * 7919 % 100_003}.",
            "created_at": start + timedelta(minutes=number % 129_600),
            "metadata": {"kind": TOPICS[number % 3]},
        }
        for number in range(count)
    )
    with sync.Memory(path) as memory:
        memory.remember_many(items)
        return memory.list(limit=1)[0].id


def view_of(page, name, known):
    """Choose a view and give it what it asks for; return how long the page took, in milliseconds."""
    begun = time.perf_counter()
    page.sidebar.radio(key="view").set_value(name).run(timeout=120)
    if name == "Recall":
        page.text_input[0].set_value("the invoice about tea")
    elif name == "Memory":
        page.text_input[0].set_value(known)
    if name in {"Recall", "Memory"}:
        begun = time.perf_counter()
        page.run(timeout=120)
    assert not page.exception, page.exception
    return (time.perf_counter() - begun) * 1000


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runtime = Path(folder) / "run"
        runtime.mkdir(mode=0o700)
        path = Path(folder) / "memory"
        known = fill(path, arguments.memories)
        os.environ.update({"AIOCHROMA_RUNTIME_DIR": str(runtime), PATH: str(path), TOKEN: "token", WRITE: ""})
        page = AppTest.from_file(str(Path(sync.__file__).parent / "ui" / "page.py"), default_timeout=120)
        page.query_params["token"] = "token"
        page.run()
        assert not page.exception, page.exception
        views = list(page.sidebar.radio(key="view").options)
        times = {name: [] for name in views}
        for _ in range(arguments.rounds + 1):
            for name in views:
                times[name].append(view_of(page, name, known))
        results = {name: round(statistics.median(taken[1:])) for name, taken in times.items()}
        with sync.Memory(path, process="shared", host_idle=0.1) as memory:
            memory.count()
    print(f"{arguments.memories} memories")
    for name, milliseconds in results.items():
        print(f"{name:20}{milliseconds:>8} ms")
    if arguments.json:
        arguments.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
