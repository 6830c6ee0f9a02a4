"""Real databases for the tests of the storage layer, built once and copied."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("program.py")


class Child:
    """Runs the test program in child processes."""

    def run(self, *arguments, timeout=100):
        """Run a command to its end and return its standard output."""
        done = subprocess.run(
            [sys.executable, str(PROGRAM), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *arguments):
        """Start a command that runs until it is killed or its standard input closes."""
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def finish(process):
        """Let a started command end by itself, which it does when its standard input closes."""
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()

    def check(self, *directories):
        """Open databases with Chroma and return what a user gets, by directory."""
        lines = self.run("check", *directories).splitlines()
        answers = {line["directory"]: line["answer"] for line in map(json.loads, lines)}
        return {directory: answers[str(directory)] for directory in directories}


def pytest_collection_modifyitems(config, items):
    """Leave the long runs out unless they were asked for with ``-m``."""
    if "long" not in (config.option.markexpr or ""):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long; ask for it with -m long"))


@pytest.fixture(scope="session")
def child():
    """Child processes with the real Chroma."""
    return Child()


class Seeds:
    """Databases by plan, built once a session; each `copy` is the caller's own."""

    def __init__(self, root, child):
        self._root = root
        self._child = child
        self._built = {}

    def copy(self, target, **plan):
        key = json.dumps(plan, sort_keys=True)
        if key not in self._built:
            directory = self._root / f"seed{len(self._built)}"
            self._child.run("build", directory, key)
            self._built[key] = directory
        return shutil.copytree(self._built[key], target)


@pytest.fixture(scope="session")
def seeds(tmp_path_factory, child):
    """Databases by plan."""
    return Seeds(tmp_path_factory.mktemp("seeds"), child)
