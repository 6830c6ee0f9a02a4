"""A pytest plugin that runs Chroma's tests against this project's client; see ``run.py``.

Read from the environment: ``CHROMA_PARITY_REPORT`` (the file that one JSON line per test is appended to),
``CHROMA_PARITY_PLAIN`` (1 leaves Chroma's own client in place, to tell a difference from a test that fails anyway),
``CHROMA_PARITY_PICKLE`` (1 sends every request and result through pickle), ``CHROMA_PARITY_SHARED`` (1 has a process of its own
open each directory) and ``CHROMA_PARITY_EXAMPLES`` (how many examples of each property).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["CHROMA_RUST_BINDINGS_TEST_ONLY"] = "1"
os.environ["PROPERTY_TESTING_PRESET"] = "fast"

import adapter
import chromadb
import hypothesis
import numpy as np
import pytest
from chromadb.test import conftest
from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2
from selection import reason_for

_TESTS = Path(conftest.__file__).parent
_PLAIN = os.environ.get("CHROMA_PARITY_PLAIN") == "1"
_DIMENSIONS = 384


def _embed_offline(_: Any, input: list[str]) -> list[Any]:
    """Stand in for the model that Chroma would download: a vector of the same length, the same for the same text."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in input]
    return [np.random.default_rng(seed).standard_normal(_DIMENSIONS).astype(np.float32) for seed in seeds]


ONNXMiniLM_L6_V2.__call__ = _embed_offline  # type: ignore[method-assign]

hypothesis.settings.register_profile(
    "parity",
    hypothesis.settings.get_profile("fast"),
    max_examples=int(os.environ.get("CHROMA_PARITY_EXAMPLES", "25")),
    verbosity=hypothesis.Verbosity.normal,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    # Looking for the smallest example takes minutes with a database; the first one says what is wrong.
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("parity")

if not _PLAIN:
    chromadb.PersistentClient = adapter.PersistentClient
    chromadb.EphemeralClient = adapter.EphemeralClient
    chromadb.Client = adapter.ClientOfSettings
    sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
    if os.environ.get("CHROMA_PARITY_SHARED") == "1":
        from host_nursery import HostNursery, open_through_hosts

        # Not below the folder of the run: a socket's name has to be short.
        os.environ["AIOCHROMA_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="aio-", dir="/tmp")
        open_through_hosts(HostNursery())
    if os.environ.get("CHROMA_PARITY_PICKLE") == "1":
        from pickling import carry_by_pickle

        carry_by_pickle()


def _replace_names() -> None:
    """Put the stand-ins where Chroma's test modules have imported the originals by name."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not file or _TESTS not in Path(file).parents:
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and value in adapter.REPLACED:
                setattr(module, name, adapter.REPLACED[value])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not _PLAIN:
        _replace_names()
    for item in items:
        path = item.path.relative_to(_TESTS).as_posix()
        reason = reason_for(path, getattr(item, "originalname", None) or item.name)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Any:
    item.stash[_made_before] = adapter.clients_made()
    result = yield
    if not _PLAIN:
        adapter.close_everything()
    return result


_made_before = pytest.StashKey[int]()
_outcomes = pytest.StashKey[dict[str, Any]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    outcome = item.stash.setdefault(_outcomes, {"outcome": "passed", "reason": ""})
    if report.failed:
        outcome.update(outcome="failed", reason=_first_line(call))
    elif report.skipped and outcome["outcome"] == "passed":
        outcome.update(outcome="skipped", reason=_reason_of_skip(report))
    if report.when == "teardown":
        if (
            outcome["outcome"] == "passed"
            and not _PLAIN
            and adapter.clients_made() == item.stash[_made_before]
        ):
            outcome.update(outcome="skipped", reason="never opens a client: a unit test of Chroma's own code")
        _write(item, outcome)
    return report


def _write(item: pytest.Item, outcome: dict[str, Any]) -> None:
    target = os.environ.get("CHROMA_PARITY_REPORT")
    if target:
        line = {"file": item.path.relative_to(_TESTS).as_posix(), "test": item.name, **outcome}
        with Path(target).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def _first_line(call: pytest.CallInfo[None]) -> str:
    error = call.excinfo
    if error is None:
        return "failed"
    return (
        f"{error.typename}: {str(error.value).strip().splitlines()[0] if str(error.value).strip() else ''}"[
            :200
        ]
    )


def _reason_of_skip(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return getattr(report, "wasxfail", "") or "skipped"
