"""The README keeps its word: its examples run as they stand, and its two commands are what CI runs."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path

import pytest
from programs import printed_by

import aiochroma

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
RECIPES = (ROOT / "examples" / "README.md").read_text("utf-8")


def blocks(language, text=README):
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "program",
    [
        *(pytest.param(text, id=f"block-{n}") for n, text in enumerate(blocks("python"), 1)),
        *(pytest.param(text, id=f"recipe-{n}") for n, text in enumerate(blocks("python", RECIPES), 1)),
    ],
)
def test_every_python_example_runs_as_it_stands(tmp_path, program):
    """An example needs nothing but the package, and raises nothing."""
    printed_by("-W", "error::ResourceWarning", "-c", program, cwd=tmp_path)


def test_the_first_example_answers_its_question(tmp_path):
    """The first example prints the memory that was asked for."""
    assert "https://example.org/social/kestrelbuilder" in printed_by("-c", blocks("python")[0], cwd=tmp_path)


def test_there_are_two_commands_of_one_line():
    """The section has exactly two shell blocks, each of them one line that needs no other."""
    commands = blocks("sh")
    assert [command.count("\n") for command in commands] == [1, 1]
    assert commands[0].rstrip().endswith("aiochroma demo")
    assert commands[1].rstrip().endswith("pytest")


def test_ci_runs_the_second_command_as_printed():
    """CI takes the command from the README with this very program, so that the two cannot drift apart."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    [program] = re.findall(r"awk '(.*)' README\.md", script)
    finished = subprocess.run(
        ["awk", program, "README.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert finished.stdout == blocks("sh")[1]


def test_it_is_short_and_nothing_it_points_at_is_missing():
    """At most 180 lines; pictures and linked files are there, of every page that the repository has."""
    assert README.count("\n") <= 180
    pages = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    if not pages.stdout:
        pytest.skip("not in a clone")
    for page in map(ROOT.joinpath, pages.stdout.splitlines()):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), (page, target)


def test_every_method_of_a_memory_is_named():
    """Whoever reads the table knows all that a memory can do, and every option of a recall."""
    names = {name for name in dir(aiochroma.Memory) if not name.startswith("_")} - {"aclose"}
    names |= set(inspect.signature(aiochroma.Memory.recall).parameters) - {"self", "query"}
    assert [name for name in sorted(names) if not re.search(rf"`[^`]*\b{name}\b", README)] == []


def test_a_picture_fetches_nothing():
    """Whoever looks at the README's drawing asks nobody else for fonts."""
    drawing = ROOT / ".github" / "demo.svg"
    if not drawing.exists():
        pytest.skip("not in a clone")
    assert not re.search(r"url\(|@import|href=.http", drawing.read_text("utf-8").replace("url(#", ""))
