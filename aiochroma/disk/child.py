"""Runs a module of ours in a process of its own.

A child takes what may crash, what may hang, and what must not close a file that this process has open. It is isolated: nothing
is imported from the working directory, and no variable of the environment and no ``.env`` decides what it does. Its time is
limited.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ChildError", "run_child", "run_script"]

_START = (
    "import json, runpy, sys; paths, module = json.loads(sys.argv[1]), sys.argv[2];"
    " sys.path += [path for path in paths if path not in sys.path]; del sys.argv[:2];"
    " runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
_KEPT_VARIABLES = frozenset(
    {"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "TZ", "USERPROFILE"}
)


class ChildError(Exception):
    """A child did not do what it was started for.

    Attributes:
        code: Its exit code; negative for a signal, None when its time was over or it could not be started.
    """

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


def run_child(module: str, arguments: Sequence[str | os.PathLike[str]], *, seconds: float) -> str:
    """Run a module to its end and return what it printed.

    Args:
        module: Its full name.
        arguments: Its command line.
        seconds: It is ended after this many seconds.

    Raises:
        ChildError: It failed, crashed, or was not done in time; the message is its last line.
    """
    return _run(["-c", _START, json.dumps(_paths()), module], arguments, seconds)


def run_script(file: str, arguments: Sequence[str | os.PathLike[str]], *, seconds: float) -> str:
    """Run a script that imports nothing but the standard library; it starts ten times as fast as a module.

    Args:
        file: The script.
        arguments: Its command line.
        seconds: It is ended after this many seconds.

    Raises:
        ChildError: It failed, crashed, or was not done in time; the message is its last line.
    """
    return _run(["-S", file], arguments, seconds)


def _run(what: list[str], arguments: Sequence[str | os.PathLike[str]], seconds: float) -> str:
    command = [sys.executable, "-I", *what, *(str(argument) for argument in arguments)]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _KEPT_VARIABLES or name.startswith("LC_")
    }
    try:
        done = subprocess.run(  # noqa: S603 - our own code
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=seconds,
            env=environment,
            cwd=os.path.abspath(os.sep),  # noqa: PTH100 - a constant
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"it was not done within {seconds:.0f} s and was ended", None) from error
    except OSError as error:
        raise ChildError(
            f"no child process could be started ({sys.executable!r}): {error.strerror}", None
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
        raise ChildError(lines[-1], done.returncode)
    return done.stdout


def _paths() -> list[str]:
    """Return where this process imports from, the working directory left out.

    They come behind the child's own. Where the package itself lies in the working directory, that is among them: nothing else
    is asked for that is not found before it.
    """
    here = os.path.realpath(os.curdir)
    found = [
        path
        for path in sys.path
        if Path(path).is_absolute() and os.path.exists(path) and os.path.realpath(path) != here  # noqa: PTH110 - may be a zip
    ]
    return [*found, str(Path(__file__).resolve().parents[2])]
