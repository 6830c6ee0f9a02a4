"""The package as it is installed: what it exports, what it imports, and what it ships."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import pkgutil
import re
import string
import sys
import types
from pathlib import Path

import pytest
from programs import printed_by

import aiochroma
from aiochroma import _distribution, _logging

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(aiochroma.__file__).parent

HEAVY = (
    "structlog",
    "rich",
    "chromadb",
    "chromadb_rust_bindings",
    "numpy",
    "onnxruntime",
    "wordllama",
    "tokenizers",
    "fastapi",
    "starlette",
    "streamlit",
    "pydantic",
    "httpx",
    "typer",
    "langchain_core",
    "langgraph",
)

LEAVES = {
    "fastapi",
    "streamlit",
    "langchain",
    "langgraph",
    "mcp",
    "ui",
    "cli",
    "__main__",
    "demo",
    "child",
}
"""Modules that need an optional package, or are programs."""


def modules():
    for found in pkgutil.walk_packages(aiochroma.__path__, "aiochroma."):
        if not LEAVES.intersection(found.name.split(".")):
            yield found.name


def test_import_is_light():
    """`import aiochroma` imports neither Chroma, nor numpy, nor any framework, and starts no thread."""
    loaded = printed_by("-c", "import sys, aiochroma; print(*sys.modules)").split()
    assert "aiochroma" in loaded
    assert [name for name in HEAVY if name in loaded] == []
    assert printed_by("-c", "import threading, aiochroma; print(threading.active_count())") == "1\n"


def test_opening_is_light_to_write_down():
    """Naming a client, a deadline or a memory does not import Chroma; only opening does."""
    code = (
        "import sys, aiochroma\n"
        "aiochroma.AsyncPersistentClient('./x'); aiochroma.AsyncEphemeralClient(); aiochroma.deadline(1)\n"
        "print(*sys.modules)"
    )
    assert not {"chromadb", "numpy"}.intersection(printed_by("-c", code).split())


def test_all_exports():
    """`__all__` is sorted, complete and true: every public name is in it, and everything in it is there."""
    assert list(aiochroma.__all__) == sorted(set(aiochroma.__all__))
    for name in aiochroma.__all__:
        assert getattr(aiochroma, name) is not None
    for name, module in aiochroma._LATE.items():
        assert getattr(aiochroma, name) is getattr(importlib.import_module(module), name)
    bound = {
        name
        for name, value in vars(aiochroma).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", "").split(".")[0] == "aiochroma"
    }
    assert bound | set(aiochroma._LATE) == set(aiochroma.__all__)


def test_absent_names_are_attribute_errors():
    """A name that is not there is an AttributeError that names package and name."""
    with pytest.raises(AttributeError, match=r"aiochroma.*nonsense"):
        _ = aiochroma.nonsense


def test_every_error_is_exported():
    """Whatever the library raises can be caught by a public name, and by the common base."""
    from aiochroma import _errors

    kinds = [kind for kind in vars(_errors).values() if isinstance(kind, type)]
    tree = [kind.__name__ for kind in kinds if issubclass(kind, _errors.AiochromaError)]
    assert len(tree) > 20
    for name in tree:
        error = getattr(aiochroma, name)
        assert issubclass(error, aiochroma.AiochromaError)
        assert name in _errors.__doc__ or name == "AiochromaError"


@pytest.mark.parametrize("name", list(modules()))
def test_every_module_says_what_it_exports(name):
    """Every module has a docstring, and an `__all__` in which every name exists."""
    module = importlib.import_module(name)
    assert module.__doc__
    if hasattr(module, "__path__") and not hasattr(module, "__all__"):
        return
    for exported in module.__all__:
        assert hasattr(module, exported)


def test_py_typed_shipped():
    """Type checkers see the annotations."""
    assert importlib.resources.files("aiochroma").joinpath("py.typed").is_file()


def test_version():
    """The version is that of the installed distribution."""
    assert aiochroma.__version__ == importlib.metadata.version("aiochroma-memory")


def test_licence_and_python():
    """The metadata names the licence and the oldest Python that is supported."""
    metadata = importlib.metadata.metadata("aiochroma-memory")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"


def test_missing_extra_message():
    """Where an optional package is absent the error names it and the extra that brings it."""
    code = (
        "import sys\n"
        "sys.modules['wordllama'] = None\n"
        "from aiochroma.embedding.words import WordLlamaEmbedder\n"
        "try: WordLlamaEmbedder()\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    message = printed_by("-c", code)
    assert message.startswith("MissingExtraError ")
    assert "wordllama" in message
    assert "[local]" in message


def test_one_name_in_every_hint():
    """Every line that installs this package, wherever it is written, names its distribution and an extra that exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == _distribution.DISTRIBUTION
    files = [
        file
        for folder in ("aiochroma", "examples", "tests")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in {".py", ".md", ".yaml"} or file.name == "Dockerfile"
    ]
    lines = [
        (file, line)
        for file in [*files, ROOT / "README.md"]
        for line in file.read_text(encoding="utf-8").splitlines()
        if "pip install" in line
    ]
    assert lines
    for file, line in lines:
        assert not re.search(r"(?<![\w./-])aiochroma(?![\w-])(\[|['\"`\s]*$)", line), f"{file}: {line}"
        for extras in re.findall(re.escape(_distribution.DISTRIBUTION) + r"\[([a-z,]+)\]", line):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), f"{file}: {line}"


def test_the_other_project_is_told_apart():
    """Where only the other distribution called `aiochroma` is installed, the version says so and how to mend it."""
    code = (
        "import importlib.metadata as metadata\n"
        "def version(name):\n"
        "    if name == 'aiochroma': return '0.3.0'\n"
        "    raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "import aiochroma\n"
        "try:\n"
        "    aiochroma.__version__\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    said = printed_by("-c", code)
    assert "another project" in said
    assert f"pip install {_distribution.DISTRIBUTION}" in said


def test_every_warning_is_a_sentence():
    """Every event at WARNING or above has a sentence whose fields are values of the event."""
    found = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name, arguments = call.func, call.args
            if (
                arguments
                and isinstance(arguments[0], ast.Attribute)
                and ast.unparse(arguments[0]) == "log.warning"
            ):
                name, arguments = arguments[0], arguments[1:]  # Called in the context of a request.
            if ast.unparse(name) not in {"log.warning", "log.error"}:
                continue
            event = ast.literal_eval(arguments[0])
            found.add(event)
            fields = {
                field for _, field, _, _ in string.Formatter().parse(_logging.SENTENCES[event]) if field
            }
            assert fields <= {keyword.arg for keyword in call.keywords}, f"{file}: {event}"
    assert found == set(_logging.SENTENCES)


def test_a_busy_event_is_written_once(caplog):
    """Within ten seconds one line stands for all events of a kind about one database; the next says how many there were."""
    log = _logging.get_logger("aiochroma.test")
    for database in ("a 100% safe path", "another"):
        for _ in range(3):
            log.warning("database.moved", database=database)
    assert [record.getMessage() for record in caplog.records] == [
        f"aiochroma: the files of {database} were replaced while it was open; it was opened again"
        for database in ("a 100% safe path", "another")
    ]
    _logging._throttle._seen = {
        key: (-1e9, left_out) for key, (_, left_out) in _logging._throttle._seen.items()
    }
    log.warning("database.moved", database="another")
    assert caplog.records[-1].aiochroma_left_out == 2
    assert "2 more" in caplog.records[-1].getMessage()


def test_an_error_in_an_event_is_said_in_plain_words(caplog):
    """Neither the sentence nor the value has a representation with quotes in quotes; an error without a word is its kind."""
    log = _logging.get_logger("aiochroma.test")
    log.warning("memory.degraded", operation="recall", error=ValueError("the disk 'a' is full"))
    log.warning("memory.sweep_failed", error=TimeoutError())
    assert [record.getMessage() for record in caplog.records] == [
        "aiochroma: recall gave an empty result, because the store failed: ValueError: the disk 'a' is full",
        "aiochroma: expired memories were not swept: TimeoutError",
    ]
    assert caplog.records[0].aiochroma_error == "ValueError: the disk 'a' is full"
    calls = [
        f"{file}: {call}"
        for file in PACKAGE.rglob("*.py")
        for call in re.findall(r"log\.\w+\(.*", file.read_text(encoding="utf-8"))
        if "=repr(" in call
    ]
    assert calls == []
