"""The other end of the nursery: children, what they wrote down, and what a database has to hold after them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# For programs that use this folder alone, as the run of all faults does.
sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

from programs import is_alive

PROGRAM = Path(__file__).with_name("chaos_program.py")

_PATIENCE_SECONDS = 120.0
"""After this a child counts as hanging."""


class Nursery:
    """Starts children."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, work, **arguments):
        self._number += 1
        out = self.folder / f"{self._number}.jsonl"
        pid = self.ask({"work": work, "out": str(out), "arguments": arguments})
        return Child(self, pid, out)

    def ask(self, order):
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Child:
    """A process and its diary."""

    def __init__(self, nursery, pid, out):
        self._nursery = nursery
        self.pid = pid
        self._out = out
        self._status = None

    @property
    def entries(self):
        if not self._out.exists():
            return []
        # What follows the last line feed is a line that is being written, or was when the child was killed.
        lines = self._out.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def find(self, kind):
        return next((entry for entry in self.entries if entry["kind"] == kind), None)

    def wait_for(self, kind):
        """Wait until the child wrote an entry of this kind and return it; None when it ended or hangs without."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until:
            entry = self.find(kind)
            if entry is not None:
                return entry
            if self.find("failed") is not None or not is_alive(self.pid):
                return self.find(kind)
            time.sleep(0.003)
        return None

    def send(self, number):
        os.kill(self.pid, number)

    def kill(self):
        """End it at once."""
        if self._status is None:
            if is_alive(self.pid):
                self.send(signal.SIGKILL)
            self.wait()

    def wait(self):
        """Wait for its end; returns the exit code."""
        if self._status is None:
            self._status = self._nursery.ask({"wait": self.pid})
        return self._status

    def wait_patiently(self):
        """Wait for its end, but not for ever; a child that hangs is killed and has the exit code -9."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while is_alive(self.pid) and time.monotonic() < until:
            time.sleep(0.003)
        if is_alive(self.pid):
            self.send(signal.SIGKILL)
        return self.wait()

    def what_went_wrong(self):
        failed = self.find("failed") or {}
        errors = Path(f"{self._out}.err")
        return failed.get("error") or (errors.read_text()[-400:] if errors.exists() else "no trace")


class Ledger:
    """What has been acknowledged, and what calls without an answer may have changed."""

    def __init__(self, file):
        self.file = Path(file)
        self.acknowledged = {}
        self.allowed = {}
        self.save()

    def save(self):
        self.file.write_text(json.dumps({"acknowledged": self.acknowledged, "allowed": self.allowed}))

    def settle(self, found):
        """Go on from what a check found to be there."""
        self.acknowledged = {name: dict(versions) for name, versions in found["settled"].items()}
        self.allowed = {}

    def read(self, entries):
        """Add what a child intended and what it was told."""
        answers = {
            entry["number"]: entry["kind"]
            for entry in entries
            if entry["kind"] in {"done", "refused", "unknown"}
        }
        for entry in entries:
            if entry["kind"] != "intended":
                continue
            answer = answers.get(entry["number"])
            for record, version in entry["versions"].items():
                if answer == "done":
                    self.acknowledged.setdefault(entry["collection"], {})[record] = version
                    self.allowed.get(entry["collection"], {}).pop(record, None)
                elif answer != "refused":
                    self.allowed.setdefault(entry["collection"], {}).setdefault(record, []).append(version)
        self.save()

    @property
    def records(self):
        return sum(bool(version) for versions in self.acknowledged.values() for version in versions.values())
