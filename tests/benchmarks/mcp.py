"""Sessions of the Model Context Protocol on one directory: the time of the first answer, and memory.

    python tests/benchmarks/mcp.py [--sessions 10] [--rounds 5] [--json FILE]

A session is started as a coding agent starts it, `aiochroma mcp --path DIR`; its first answer is that to `initialize`. Memory is
what a process alone would give back (USS), and its share of what is shared (PSS). At the end one session is killed while the
others are in the middle of calls. Linux only; needs the dependency groups `bench` and `frameworks`.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

import aiochroma
from aiochroma import sync

COMMAND = [sys.executable, "-m", "aiochroma", "mcp"]
TITLES = {
    "nothing": "nothing runs",
    "host": "beside a running host",
    "server": "beside other sessions",
}
CALLS = 20
HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "benchmark", "version": "1"},
}


class Session:
    """The client's end of a session."""

    def __init__(self, path, environment):
        begun = time.perf_counter()
        command = [*COMMAND, "--path", path, "--idle", "2"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._number = 0
        self.ask("initialize", HELLO)
        self.first_answer = time.perf_counter() - begun
        self._say({"jsonrpc": "2.0", "method": "notifications/initialized"})
        self.recall()
        self.first_recall = time.perf_counter() - begun

    def ask(self, method, params):
        self._number += 1
        self._say({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise ConnectionError("the session has ended")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                return answer["result"]

    def recall(self):
        result = self.ask("tools/call", {"name": "recall", "arguments": {"query": "the name of the cat"}})
        assert not result.get("isError"), result
        return result

    def _say(self, message):
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


def others(environment):
    """The processes in the background: a host and a server, by their command."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        for name, module in (("host", "-m aiochroma.host "), ("server", "-m aiochroma.mcp ")):
            if (
                module in words
                and process.environ().get("AIOCHROMA_RUNTIME_DIR") == environment["AIOCHROMA_RUNTIME_DIR"]
            ):
                found[name] = process
    return found


def megabytes(process):
    found = process.memory_full_info()
    return round(found.uss / 2**20, 1), round(found.pss / 2**20, 1)


def begin(what, path, environment, rounds):
    """Start sessions one after the other, each while nothing but ``what`` runs, and return the medians in seconds."""
    first, recalled = [], []
    for _ in range(rounds):
        session = Session(path, environment)
        first.append(session.first_answer)
        recalled.append(session.first_recall)
        session.close()
        if what != "server":
            wait_until(lambda: "server" not in others(environment))
        if what == "nothing":
            stop = [sys.executable, "-m", "aiochroma", "host", path, "--stop", "--force"]
            subprocess.run(stop, env=environment, stdout=subprocess.DEVNULL, check=True)
    times = statistics.median(first), statistics.median(recalled)
    print(f"{TITLES[what]:32}{times[0]:>10.2f} s{times[1]:>8.2f} s", flush=True)
    return times


def recall_often(session):
    """Return how many of the calls were answered."""
    return sum(session.recall() is not None for _ in range(CALLS))


def wait_until(holds):
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit, "what was started has not ended"
        time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    # As whoever installs the package has it, whatever this shell says of bytecode.
    compileall.compile_dir(Path(aiochroma.__file__).parent, quiet=1)
    with tempfile.TemporaryDirectory() as folder:
        runtime = Path(folder) / "run"
        runtime.mkdir(mode=0o700)
        environment = {**os.environ, "AIOCHROMA_RUNTIME_DIR": str(runtime)}
        os.environ.update(environment)
        path = str(Path(folder) / "memory")
        with sync.Memory(path) as memory:
            memory.remember_many([f"note {number} about tea and the cat" for number in range(1000)])
        print(f"{'first answer of a session':32}{'initialize':>12}{'recall':>10}")
        results = {"nothing": begin("nothing", path, environment, arguments.rounds)}
        with sync.Memory(path, process="shared", host_idle=1) as memory:
            memory.recall("cat")
            results["host"] = begin("host", path, environment, arguments.rounds)
            sessions = [Session(path, environment)]
            results["server"] = begin("server", path, environment, arguments.rounds)
            sessions += [Session(path, environment) for _ in range(arguments.sessions - 1)]
            used = [megabytes(psutil.Process(session.process.pid)) for session in sessions]
            background = {name: megabytes(process) for name, process in others(environment).items()}
            doomed = sessions.pop()
            with ThreadPoolExecutor(len(sessions)) as threads:
                calls = [threads.submit(recall_often, session) for session in sessions]
                doomed.process.kill()
                answered = sum(call.result() for call in calls)
            doomed.process.communicate()
            for session in sessions:
                session.close()
        wait_until(lambda: not others(environment))
    print(f"\n{'memory (MB)':32}{'alone':>12}{'share':>10}")
    rows = {f"each of {len(used)} sessions, at most": tuple(map(max, zip(*used, strict=True))), **background}
    for name, (uss, pss) in rows.items():
        print(f"{name:32}{uss:>12}{pss:>10}")
    print(
        f"\none session killed: {answered} of {CALLS * len(sessions)} calls of the other {len(sessions)} answered"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"first": results, "memory": rows, "answered": answered}))
    assert answered == CALLS * len(sessions)


if __name__ == "__main__":
    main()
