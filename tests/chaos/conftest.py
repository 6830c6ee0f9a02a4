"""One nursery for all chaos tests."""

from __future__ import annotations

import pytest
from chaos_scenarios import Stage


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """Where the scenarios play."""
    stage = Stage(tmp_path_factory.mktemp("chaos"), seed=20_260)
    yield stage
    stage.close()
