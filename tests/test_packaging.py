"""The package as it is installed: what it exports, what it imports, and what it ships."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import pkgutil
import subprocess
import sys
import types

import pytest

import aiochroma

HEAVY = (  # `rich` is not among them: structlog imports it where it is installed.
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

LEAVES = {"fastapi", "streamlit", "langchain", "langgraph", "cli", "__main__", "demo", "_copy_child"}
"""Modules that need an optional package, or are programs."""


def modules():
    for found in pkgutil.walk_packages(aiochroma.__path__, "aiochroma."):
        if not LEAVES.intersection(found.name.split(".")):
            yield found.name


def in_a_process(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()


def test_import_is_light():
    """`import aiochroma` imports neither Chroma, nor numpy, nor any framework, and starts no thread."""
    loaded = in_a_process("import sys, aiochroma; print(*sys.modules)")
    assert "aiochroma" in loaded
    assert [name for name in HEAVY if name in loaded] == []
    assert in_a_process("import threading, aiochroma; print(threading.active_count())") == ["1"]


def test_opening_is_light_to_write_down():
    """Naming a client, a deadline or a memory does not import Chroma; only opening does."""
    code = (
        "import sys, aiochroma\n"
        "aiochroma.AsyncPersistentClient('./x'); aiochroma.AsyncEphemeralClient(); aiochroma.deadline(1)\n"
        "print(*sys.modules)"
    )
    assert not {"chromadb", "numpy"}.intersection(in_a_process(code))


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

    for name in _errors.__all__:
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
    assert aiochroma.__version__ == importlib.metadata.version("aiochroma")


def test_licence_and_python():
    """The metadata names the licence and the oldest Python that is supported."""
    metadata = importlib.metadata.metadata("aiochroma")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"


def test_missing_extra_message():
    """Where an optional package is absent the error names it and the extra that brings it."""
    code = (
        "import sys\n"
        "sys.modules['wordllama'] = None\n"
        "import aiochroma\n"
        "from aiochroma.embedding.wordllama import WordLlamaEmbedder\n"
        "try:\n"
        "    WordLlamaEmbedder()\n"
        "except aiochroma.MissingExtraError as error:\n"
        "    assert isinstance(error, ImportError)\n"
        "    print(error)"
    )
    message = in_a_process(code)
    assert any("wordllama" in word for word in message)
    assert any("local" in word for word in message)
