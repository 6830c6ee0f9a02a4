"""Programs of users pass the type checkers, and no exported name has a type that they do not know."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiochroma import sync
from aiochroma.client import client

pytestmark = pytest.mark.timeout(600)  # A type checker reads all of Chroma.

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = sorted(str(path) for path in HERE.glob("*_api.py"))

_CHROMAS = frozenset({"aiochroma.client.collection.Collection", "aiochroma.client.client.BlockingCollection"})
"""Their base classes are in a folder of Chroma's that is no package, which this check does not look into."""
_UNKNOWN_BASES = frozenset({"Type of metaclass unknown", "Type of base class unknown"})
_FOLLOWS = "partially unknown"
"""Said of every name whose type mentions another one with a complaint of its own."""
_MADE = ("could be inferred differently", "Ambiguous base class override")
"""Said of every name that is assigned what a function returns; the programs above check what both checkers infer."""


def _run(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_mypy_accepts_the_programs(tmp_path):
    """With --strict, as users of typed code run it."""
    pytest.importorskip("mypy")
    done = _run("mypy", "--strict", "--no-incremental", "--cache-dir", str(tmp_path), *PROGRAMS)
    assert done.returncode == 0, done.stdout


def test_pyright_accepts_the_programs():
    """The checker of most editors."""
    pytest.importorskip("pyright")
    done = _run("pyright", "--pythonpath", sys.executable, *PROGRAMS)
    assert done.returncode == 0, done.stdout


def test_every_public_type_is_known(tmp_path):
    """Every public name of every module, and each public member of it, has a complete type."""
    pytest.importorskip("pyright")
    # This check asks the interpreter that is found first where other packages are.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--verifytypes", "aiochroma", "--ignoreexternal", "--outputjson"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    names = {each["name"] for each in symbols}
    assert {"aiochroma.memory.memory.Memory.recall", "aiochroma.sync.Memory.recall"} <= names
    complaints = [
        f"{each['name']}: {problem['message']}"
        for each in symbols
        for problem in each["diagnostics"]
        if _FOLLOWS not in problem["message"]
        and not (problem["message"] in _UNKNOWN_BASES and _has_unseen_base(each["name"]))
        and not (any(words in problem["message"] for words in _MADE) and each["name"] in _made())
    ]
    assert complaints == []


def _has_unseen_base(name):
    """Tell whether a class is derived from one that the check cannot see: Chroma's collections, or a missing framework's."""
    try:
        importlib.import_module(name.rpartition(".")[0])
    except ImportError:
        return True
    return name in _CHROMAS


@functools.cache
def _made():
    """Return the names that functions have made: blocking forms, which have the signature of the asynchronous ones."""
    names = set()
    for module in (sync, client):
        for name, value in vars(module).items():
            if hasattr(value, "__signature__"):
                names.add(f"{module.__name__}.{name}")
            for member, each in vars(value).items() if isinstance(value, type) else ():
                if hasattr(each, "__signature__"):
                    names.add(f"{module.__name__}.{name}.{member}")
    return names
