"""Which releases of chromadb are known."""

from __future__ import annotations

import logging

import pytest

from aiochroma import _logging
from aiochroma.backend import importing


@pytest.mark.parametrize(
    ("version", "warns"), [("1.5.9", False), ("1.6.0", True), ("2.0.0", True), ("1.10.1.dev3", True)]
)
def test_a_newer_chromadb_is_warned_of_once(caplog, monkeypatch, version, warns):
    """One warning names the version; nothing is said of those that were tested."""
    monkeypatch.setattr("chromadb.__version__", version)
    importing._warn_of_untested.cache_clear()
    _logging._throttle.forget()
    with caplog.at_level(logging.WARNING, "aiochroma"):
        importing.import_chromadb()
        importing.import_chromadb()
    said = [record.getMessage() for record in caplog.records if version in record.getMessage()]
    assert len(said) == warns
