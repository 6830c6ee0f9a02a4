"""Run Chroma's own test suite, from its installed wheel, against this project's client, and count.

    python tests/parity/run.py                       # everything that applies; tens of minutes on two cores
    python tests/parity/run.py test_api api/         # the files whose path contains one of these
    python tests/parity/run.py --pickle test_api     # every request and result goes through pickle on its way
    python tests/parity/run.py --shared test_api     # a process of its own opens each directory (`process="shared"`)
    python tests/parity/run.py --compare             # afterwards run what failed on Chroma's own client too

Makes an environment of its own on first use (Chroma's tests need pytest before 9 and the server's dependencies), in a
folder below the system's temporary one, or ``--cache``; ``--python`` uses one that exists. Every test file runs in a process
of its own, so that a crash costs one file. No test is copied: ``plugin.py`` puts this project's client where Chroma's
fixtures make theirs, ``adapter.py`` makes it look synchronous, ``selection.py`` says what does not apply and why.

Three substitutions are made: the model that Chroma would download is a function that hashes; properties are tried on
``--examples`` examples (Chroma's ``fast`` profile has 50) from one fixed seed; settings that name Chroma's former
implementation in Python mean the one in Rust. Exit status 1 when a test fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from selection import reason_for

_HERE = Path(__file__).resolve().parent
_PROJECT = _HERE.parent.parent
_REQUIREMENTS = [
    "pytest<9",
    "hypothesis",
    "fastapi",
    "opentelemetry-instrumentation-fastapi",
    "psutil",
    "pandas",
    "pillow",
    "snowballstemmer",
]


def main() -> int:
    """Run as the module's description says."""
    arguments = _arguments()
    python = arguments.python or _environment(Path(arguments.cache))
    tests = _tests_of(python)
    files = [
        path
        for path in sorted(tests.rglob("test_*.py"))
        if not arguments.only or any(part in path.relative_to(tests).as_posix() for part in arguments.only)
    ]
    results: list[dict[str, str]] = []
    for path in files:
        file = path.relative_to(tests).as_posix()
        results += _left_out(path, file) or _run_file(python, tests, file, arguments)
    _print_table(results)
    if arguments.compare:
        _compare(python, tests, results, arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 1 if any(result["outcome"] == "failed" for result in results) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run Chroma's own tests against this project's client.")
    parser.add_argument("only", nargs="*", help="parts of paths below chromadb/test")
    parser.add_argument(
        "--compare", action="store_true", help="run failed tests on Chroma's own client as well"
    )
    parser.add_argument("--plain", action="store_true", help="run on Chroma's own client only")
    parser.add_argument("--pickle", action="store_true", help="send every request and result through pickle")
    parser.add_argument("--shared", action="store_true", help="open every directory through a host")
    parser.add_argument("--examples", type=int, default=25, help="examples of each property (default 25)")
    parser.add_argument("--file-seconds", type=float, default=900.0, help="limit for one file (default 900)")
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "aiochroma-parity"))
    parser.add_argument("--python", help="an interpreter that has everything installed")
    parser.add_argument("--json", help="write every outcome to this file")
    return parser.parse_args()


def _environment(cache: Path) -> str:
    """Make the environment if it is not there; return its interpreter."""
    home = cache / f"python{sys.version_info.major}.{sys.version_info.minor}"
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    complete = home / "complete"
    if not complete.exists():
        print(f"making an environment in {home} ...", flush=True)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *_REQUIREMENTS, "--editable", str(_PROJECT)],
            check=True,
        )
        # Imported by one test file, which never uses it; there are no wheels for the newest interpreters.
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "chroma-hnswlib"],
            check=False,
        )
        complete.touch()
    return str(python)


def _tests_of(python: str) -> Path:
    """Return the folder of Chroma's tests in the environment's wheel."""
    found = subprocess.run(
        [python, "-c", "import chromadb, pathlib; print(pathlib.Path(chromadb.__file__).parent / 'test')"],
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(found.stdout.strip())


def _left_out(path: Path, file: str) -> list[dict[str, str]]:
    """Return the tests of a file that does not apply as a whole; many such files cannot even be imported here."""
    reason = reason_for(file, "")
    names = re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [_result(file, name, "skipped", reason) for name in names or ["(the file)"]] if reason else []


def _result(file: str, test: str, outcome: str, reason: str) -> dict[str, str]:
    return {"file": file, "test": test, "outcome": outcome, "reason": reason}


def _run_file(
    python: str,
    tests: Path,
    file: str,
    arguments: argparse.Namespace,
    *,
    plain: bool = False,
    names: Any = (),
) -> list[dict[str, str]]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        report = Path(folder) / "report.jsonl"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(_HERE), str(_PROJECT), os.environ.get("PYTHONPATH", "")]
            ).rstrip(os.pathsep),
            "CHROMA_PARITY_REPORT": str(report),
            "CHROMA_PARITY_PLAIN": "1" if plain or arguments.plain else "",
            "CHROMA_PARITY_PICKLE": "1" if arguments.pickle else "",
            "CHROMA_PARITY_SHARED": "1" if arguments.shared else "",
            "CHROMA_PARITY_EXAMPLES": str(arguments.examples),
            "TMPDIR": folder,
        }
        targets = [f"{tests / file}::{name}" for name in names] or [str(tests / file)]
        command = [python, "-m", "pytest", "-c", os.devnull, "--rootdir", str(tests), "-p", "plugin"]
        command += ["-p", "no:cacheprovider", "-q", "--tb=short", "--hypothesis-seed=0", *targets]
        ended = "the process ended without a report"
        log = Path(folder) / "log"
        with log.open("w") as stream:
            try:
                done = subprocess.run(
                    command,
                    cwd=folder,
                    env=environment,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    timeout=arguments.file_seconds,
                    check=False,
                )
                status = done.returncode
            except subprocess.TimeoutExpired:
                ended, status = f"not done after {arguments.file_seconds:.0f} s", -1
        lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
        results: list[dict[str, str]] = [json.loads(line) for line in lines]
        if status not in {0, 1, 5}:
            results.append(_result(file, "(the file)", "failed", ended))
        if not results:
            results.append(
                _result(file, "(the file)", "skipped", "a package that it is about is not installed")
            )
        if status not in {0, 5}:
            print(log.read_text(encoding="utf-8", errors="replace")[-20_000:])
    counts = Counter(result["outcome"] for result in results)
    print(f"{file}: {dict(counts)} in {time.monotonic() - began:.0f} s", flush=True)
    return results


def _compare(python: str, tests: Path, results: list[dict[str, str]], arguments: argparse.Namespace) -> None:
    """Run what failed on Chroma's own client, and say which of it fails there as well."""
    failed: dict[str, list[str]] = defaultdict(list)
    for result in results:
        if result["outcome"] == "failed" and result["test"] != "(the file)":
            failed[result["file"]].append(result["test"].removesuffix("[single-region]"))
    for file, names in failed.items():
        for result in _run_file(python, tests, file, arguments, plain=True, names=names):
            print(f"on Chroma's own client: {file}::{result['test']}: {result['outcome']} {result['reason']}")


def _print_table(results: list[dict[str, str]]) -> None:
    by_file: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        by_file[result["file"]][result["outcome"]] += 1
        if result["outcome"] == "skipped":
            reasons[result["file"]][result["reason"]] += 1
    width = max((len(file) for file in by_file), default=4)
    print(f"\n{'file':{width}}  passed  failed  not applicable")
    for file, counts in sorted(by_file.items()):
        why = "; ".join(f"{count}: {reason}" for reason, count in reasons[file].most_common())
        print(f"{file:{width}}  {counts['passed']:6}  {counts['failed']:6}  {counts['skipped']:6}  {why}")
    totals = Counter(result["outcome"] for result in results)
    print(f"{'all':{width}}  {totals['passed']:6}  {totals['failed']:6}  {totals['skipped']:6}")
    for result in results:
        if result["outcome"] == "failed":
            print(f"FAILED {result['file']}::{result['test']}: {result['reason']}")


if __name__ == "__main__":
    sys.exit(main())
