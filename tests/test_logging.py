"""What a log shows of names, ids and errors, which come from others: written out, not obeyed."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

import aiochroma
from aiochroma import _logging

_EVIL = "\x1b]0;owned\x07\x9b1m\x7f\u202e\r\naiochroma: all is well\u2028"
_SHOWN = r"\x1b]0;owned\x07\x9b1m\x7f\u202e\r\naiochroma: all is well\u2028"


@pytest.fixture
def log(monkeypatch):
    """A logger that has written nothing yet."""
    monkeypatch.setattr(_logging, "_throttle", _logging._Throttle())
    return _logging.get_logger("aiochroma.test")


@pytest.fixture
def console():
    """What structlog's renderer for terminals has written."""
    output = io.StringIO()
    structlog.configure(
        processors=[structlog.dev.ConsoleRenderer(colors=False)],
        logger_factory=structlog.PrintLoggerFactory(output),
    )
    yield output
    structlog.reset_defaults()


def _raised() -> ValueError:
    return ValueError(_EVIL)


@pytest.mark.parametrize(
    "value", [_EVIL, _raised(), [_EVIL], {_EVIL: 1}], ids=["text", "error", "list", "dict"]
)
def test_a_value_forges_no_line_and_moves_no_cursor(log, caplog, value):
    log.warning("recall.namespace_failed", namespace=_EVIL, error=value)
    log.error("an.event_without_a_sentence", path=value)
    for record in caplog.records:
        message = record.getMessage()
        assert message.isprintable()
        assert _SHOWN in message
        assert record.aiochroma_event in {"recall.namespace_failed", "an.event_without_a_sentence"}


def test_a_path_is_written_out_as_well(log, caplog, tmp_path):
    log.warning("backup.leftover_removed", path=tmp_path / _EVIL, hint="nobody needs it")
    [record] = caplog.records
    assert record.getMessage().isprintable()
    assert record.aiochroma_path == f"{tmp_path}/{_SHOWN}"


def test_a_traceback_keeps_its_lines_but_none_of_them_looks_like_the_logs(log, caplog):
    traceback = f'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: {_EVIL}\n'
    log.warning("mcp.session_failed", traceback=traceback)
    first, *others = caplog.records[0].getMessage().split("\n")
    assert first == "aiochroma: a session ended by an error:"
    assert [line[:4] for line in others] == ["    "] * len(others)
    assert '      File "x.py", line 1' in others
    assert "".join(others).isprintable()


def test_structlog_gets_values_that_any_renderer_may_print(log, console):
    """Its renderer for terminals prints a text without spaces as it is."""
    log.warning("recall.namespace_failed", namespace="\x1b[31m\u202e", error=ValueError("\x9b1m"))
    [line, end] = console.getvalue().split("\n")
    assert line.isprintable()
    assert r"\x1b[31m\u202e" in line
    assert end == ""


def test_what_is_harmless_stays_as_it_is(log):
    """Also backslashes, letters of every script and numbers, for a program that reads the values."""
    output = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory(output)
    )
    try:
        log.warning("x", path=r"C:\new", namespace="Zoë 漢字 🙂", count=3, ids=["a\n"])
    finally:
        structlog.reset_defaults()
    values = json.loads(output.getvalue())
    assert values == {"event": "x", "path": r"C:\new", "namespace": "Zoë 漢字 🙂", "count": 3, "ids": ["a\n"]}


async def test_the_name_of_a_namespace_is_written_out(tmp_path, caplog):
    """A program makes namespaces of what its users are called."""
    async with aiochroma.Memory(tmp_path / "memory", embedder="hashed") as memory:
        await memory.remember("a kettle", namespace=_EVIL)
        collection = await memory.client.get_collection((await memory.client.list_collections())[0].name)
        await collection.add(ids=[_EVIL], embeddings=[[0.1] * 512])
        with caplog.at_level(logging.WARNING):
            assert await memory.export(tmp_path / "all.jsonl", namespaces=[_EVIL]) == 1
    [record] = [record for record in caplog.records if record.name.startswith("aiochroma")]
    assert record.getMessage().isprintable()
    assert _SHOWN in record.getMessage()
