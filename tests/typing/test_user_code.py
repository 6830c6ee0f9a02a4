"""Code as users write it passes the type checkers, which know every type in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("*_api.py"))
CHECKERS = {
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--no-incremental"],
    "pyright": [shutil.which("pyright", path=str(Path(sys.executable).parent)) or "pyright"],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", CHECKERS)
def test_user_code_is_typed_through(checker):
    """Neither checker finds anything in it."""
    command = CHECKERS[checker]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{checker} is not installed")
    finished = subprocess.run([*command, *map(str, FILES)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
