"""Programs of users pass the type checkers, and no exported name has a type that they do not know."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)  # A type checker reads all of Chroma.

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = sorted(str(path) for path in HERE.glob("*_api.py"))
MODULES = ["aiochroma", "aiochroma.sync", "aiochroma.fastapi", "aiochroma.streamlit"]

_EXTERNAL = ("Type of metaclass unknown", "Type of base class unknown", "partially unknown")
"""Chroma's own classes, and those of frameworks, are not typed through, so what is derived from them cannot be either."""
_VERIFY = ("--verifytypes", "aiochroma", "--ignoreexternal", "--outputjson")
_MADE = "could be inferred differently"
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


def test_every_exported_type_is_known(tmp_path):
    """A name that is exported, and each public member of it, has a complete type."""
    pytest.importorskip("pyright")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, *_VERIFY],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    exported, made = _exported()
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    mine = [each for each in symbols if _belongs(each["name"], exported)]
    assert len(mine) > 300
    complaints = [
        f"{each['name']}: {message}"
        for each in mine
        for message in (problem["message"] for problem in each["diagnostics"])
        if not any(part in message for part in _EXTERNAL)
        and not (_MADE in message and _belongs(each["name"], made))
    ]
    assert complaints == []


def _exported():
    """Return the exported names, as they are called where they are defined, and those of them that functions have made."""
    names, made = set(), set()
    for module in map(importlib.import_module, filter(_is_there, MODULES)):
        for name in module.__all__:
            value = getattr(module, name)
            where = {f"{module.__name__}.{name}"}
            if hasattr(value, "__qualname__"):
                where.add(f"{value.__module__}.{value.__qualname__}")
            names |= where
            for member, each in vars(value).items() if isinstance(value, type) else ():
                if hasattr(each, "__signature__"):
                    made |= {f"{prefix}.{member}" for prefix in where}
            if not isinstance(value, type) and hasattr(value, "__signature__"):
                made |= where
    return names, made


def _is_there(module):
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _belongs(name, names):
    return any(name == each or name.startswith(f"{each}.") for each in names)
