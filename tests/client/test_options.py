"""Openers take the options of the dataclasses, with the same defaults; what is wrong with one is said at once."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import aiochroma
from aiochroma import sync
from aiochroma.client import options

OPENERS = [
    (aiochroma.AsyncPersistentClient, sync.PersistentClient, options.PersistentOptions),
    (aiochroma.AsyncEphemeralClient, sync.EphemeralClient, options.EphemeralOptions),
    (aiochroma.AsyncHttpClient, sync.HttpClient, options.HttpOptions),
]


@pytest.mark.parametrize(("opener", "blocking", "kind"), OPENERS, ids=lambda each: each.__name__)
def test_an_opener_takes_the_fields_of_its_options(opener, blocking, kind):
    """Names and defaults are the same in the signature, in its blocking form and in the dataclass."""
    expected = {each.name: each.default for each in dataclasses.fields(kind)}
    for function in (opener, blocking):
        parameters = inspect.signature(function).parameters
        assert {name: parameter.default for name, parameter in parameters.items()} == expected
    assert inspect.signature(blocking).parameters == inspect.signature(opener).parameters


@pytest.mark.parametrize(("opener", "blocking", "kind"), OPENERS, ids=lambda each: each.__name__)
def test_every_option_is_documented_in_its_opener(opener, blocking, kind):
    """Each option has a line of its own where people look it up; the other two refer to it."""
    for option in dataclasses.fields(kind):
        assert f"    {option.name}: " in opener.__doc__, option.name
    assert opener.__name__ in blocking.__doc__
    assert f"aiochroma.{'Async' + blocking.__name__}" in kind.__doc__


def test_connect_takes_every_option():
    """What any client can be told, `connect` can be told, under the same name."""
    every = {each.name for _, _, kind in OPENERS for each in dataclasses.fields(kind)}
    assert set(options.ConnectOverrides.__annotations__) == {"mode", *every}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", 0),
        ("timeout", "5"),
        ("timeout", float("nan")),
        ("lock_timeout", -1),
        ("lock_timeout", None),
        ("host_idle", None),
        ("max_write_slice_ms", float("inf")),
        ("slow_request_ms", 10**400),
        ("when_full", "drop"),
        ("max_pending", 1.5),
        ("max_pending", float("inf")),
        ("max_pending", True),
        ("max_write_slice_ms", 0),
        ("slow_request_ms", float("nan")),
        ("vector_cache_mb", 0),
        ("vector_cache_mb", float("inf")),
        ("tenant", ""),
        ("database", 5),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path, name, value):
    """At once, not when the client is awaited."""
    with pytest.raises(aiochroma.InvalidInputError, match=f"`{name}`"):
        aiochroma.AsyncPersistentClient(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("connections", 0),
        ("attempts", 2.0),
        ("connect_timeout", -1),
        ("read_timeout", "1"),
        ("headers", 7),
        ("headers", ["x"]),
        ("auth_header", []),
    ],
)
def test_nonsense_for_a_server_is_refused_by_name(name, value):
    """The same for a server's own options."""
    with pytest.raises(aiochroma.InvalidInputError, match=f"`{name}`"):
        aiochroma.AsyncHttpClient("localhost", **{name: value})


@pytest.mark.parametrize("path", ["", " ", "a\0b", "\ud800", "~no-such-user-here/x", 5])
async def test_a_path_that_is_none(path):
    """It is our error, whatever the system would raise."""
    with pytest.raises(aiochroma.InvalidInputError, match="`path`"):
        await aiochroma.AsyncPersistentClient(path)


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, 10**400])
async def test_an_endless_limit_is_none(tmp_path, seconds):
    """Clocks of threads and loops do not overflow, with and without an event loop."""
    async with aiochroma.AsyncPersistentClient(tmp_path, timeout=seconds, lock_timeout=seconds) as client:
        assert await client.heartbeat() > 0
        with aiochroma.deadline(seconds):
            assert await client.count_collections() == 0


async def test_a_default_is_no_wish(tmp_path):
    """A second client that asks for nothing shares what is open; one that asks for something else is refused."""
    async with aiochroma.AsyncPersistentClient(tmp_path, max_pending=7):
        async with aiochroma.AsyncPersistentClient(tmp_path):
            pass
        with pytest.raises(aiochroma.SettingsConflictError, match="`max_pending`"):
            await aiochroma.AsyncPersistentClient(tmp_path, max_pending=8)


def test_secrets_are_not_shown():
    """Options may be printed."""
    shown = repr(options.HttpOptions(auth_token="hunter22", headers={"x-key": "swordfish"}))
    assert "hunter22" not in shown
    assert "swordfish" not in shown
