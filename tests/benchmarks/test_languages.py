"""Facts in inflected and compounding languages are found by questions that use other forms of their words."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def languages(monkeypatch):
    """The benchmark, which is no package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import languages

    return languages


async def test_other_forms_of_words_find_a_fact(languages):
    """Of the probe nearly every fact is among the first five, by words alone and together with static word vectors."""
    probes = languages.load()
    assert len({probe.group for probe in probes}) == 15
    ranks = await languages.measure("wordllama", ("text", "hybrid"))
    assert languages.share(ranks["text"], 5) >= 0.94
    assert languages.share(ranks["hybrid"], 5) >= 0.98


def test_the_benchmark_shows_each_group(languages, capsys):
    """A line for each group, and what was missed."""
    assert languages.main(["--embedder", "hashed", "--missed"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("German", "Turkish", "Identifiers", "all")) for line in shown) == 5
    assert any(line.startswith("text: ") for line in shown)
