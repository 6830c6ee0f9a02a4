"""The examples, run as a reader would run them."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import python

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def examples():
    """The folder of the examples."""
    return EXAMPLES


@pytest.fixture
def run():
    """Run an example to its end, and return what it printed; it must not fail."""

    def run(name, *arguments, typed=""):
        done = python(EXAMPLES / name, *arguments, typed=typed)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return run
