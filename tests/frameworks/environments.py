"""Run the tests of frameworks that bring packages the other tests must not see, each in an environment of its own.

    python tests/frameworks/environments.py                    # all of them
    python tests/frameworks/environments.py langchain          # one of them; what follows `--` goes to pytest

An environment lies over the one that runs this: what is installed there can be imported, and only what is new, or has to be of
another version, is installed beside it. It is made once, in a folder below the system's temporary one, or ``--cache``.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PROJECT = _HERE.parent.parent


@dataclass(frozen=True)
class Environment:
    """What is installed, which tests need it, and why the other tests shall not see it."""

    requirements: tuple[str, ...]
    tests: tuple[str, ...]
    reason: str


ENVIRONMENTS = {
    "langchain": Environment(
        ("langchain-tests>=1.1", "langchain-chroma>=1.0"),
        ("test_langchain_standard.py",),
        "langchain-tests needs pytest 9, Chroma's own suite a pytest before it; it brings seven plugins of pytest",
    ),
    "langgraph": Environment(
        ("langgraph>=1", "langmem>=0.0.29"),
        ("test_langgraph_graph.py",),
        "langmem brings the clients of two providers of language models",
    ),
    "pydantic-ai": Environment(
        ("pydantic-ai-slim>=1",), ("test_agents.py",), "large, and of use to one example"
    ),
    "adk": Environment(
        ("google-adk>=1.20",), ("test_agents.py",), "large, and needs an older OpenTelemetry than the others"
    ),
}


def main() -> int:
    """Run as the module's description says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--cache", default=Path(tempfile.gettempdir()) / "aiochroma-environments", type=Path)
    given = sys.argv[1:]
    ours, pytests = (
        (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    )
    arguments = parser.parse_args(ours)
    if unknown := set(arguments.names) - set(ENVIRONMENTS):
        parser.error(f"no such environment: {', '.join(sorted(unknown))}")
    failed = []
    for name in arguments.names or ENVIRONMENTS:
        environment = ENVIRONMENTS[name]
        print(f"-- {name}: {environment.reason}", flush=True)
        python = made(environment, arguments.cache / name)
        # Nothing collected (exit status 5) is a failure, too: the tests are skipped where their package is missing.
        command = [python, "-m", "pytest", "-q", *(_HERE / test for test in environment.tests), *pytests]
        if subprocess.run([str(part) for part in command], cwd=_PROJECT, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def made(environment: Environment, directory: Path) -> Path:
    """Return the environment's interpreter, making the environment where there is none yet."""
    below = [entry for entry in sys.path if entry.endswith("site-packages")]
    key = hashlib.sha256("\n".join([*environment.requirements, sys.version, *below]).encode()).hexdigest()
    python, stamp = directory / "bin" / "python", directory / "made-of"
    if stamp.exists() and stamp.read_text() == key:
        return python
    venv.create(directory, clear=True)
    (own,) = directory.glob("lib/python*/site-packages")
    # Not the folders alone: what is installed there may itself consist of path files.
    lines = [f"import site; site.addsitedir({entry!r})\n" for entry in below]
    (own / "environment_below.pth").write_text("".join(lines))
    install = [
        sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *environment.requirements
    ]  # fmt: skip
    subprocess.run(install, check=True)
    stamp.write_text(key)
    return python


if __name__ == "__main__":
    sys.exit(main())
