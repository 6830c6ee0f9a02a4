"""Makes the modules of the chaos runs importable, and shares one nursery among the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """Where the scenarios play."""
    from chaos_scenarios import Stage

    stage = Stage(tmp_path_factory.mktemp("chaos"), seed=20_260)
    yield stage
    stage.close()
