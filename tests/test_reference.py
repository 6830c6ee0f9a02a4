"""The API reference: it can be built, and every public name is in it with its text."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from programs import printed_by, python

pytest.importorskip("pdoc")

SCRIPT = Path(__file__).with_name("reference.py")


def test_every_public_name_is_in_the_reference(tmp_path):
    """Each public module has a page, on which each of its public names has an entry of its own."""
    finished = python(SCRIPT, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "does not resolve" not in finished.stderr
    modules = [
        name
        for name in runpy.run_path(str(SCRIPT))["MODULES"]
        if f"{name} is left out" not in finished.stderr
    ]
    assert "aiochroma" in modules
    for name in modules:
        page = (tmp_path / Path(*name.split(".")).with_suffix(".html")).read_text("utf-8")
        entries = set(re.findall(r'<section id="([^".]+)">', page))
        public = printed_by("-c", f"import {name} as module; print(*module.__all__)").split()
        assert set(public) <= entries, (name, set(public) - entries)
