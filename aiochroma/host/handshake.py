"""The first words between a client and a host, and the questions that tools ask."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from aiochroma._errors import SettingsConflictError
from aiochroma._types import JsonObject
from aiochroma.host.frames import FrameKind, MessageReader, ProtocolError, json_frame
from aiochroma.host.messages import options_to_json, versions

if TYPE_CHECKING:
    import socket

    from aiochroma.core.config import EngineOptions, Location

__all__ = ["Message", "ask", "greet"]

_ANSWER_SECONDS = 15.0

Message = tuple[FrameKind, int, Any]


def greet(
    connected: socket.socket, reader: MessageReader, location: Location, options: EngineOptions
) -> tuple[dict[str, Any] | None, list[Message]]:
    """Say who we are and what we want.

    Returns:
        The host's welcome, and what came together with it; None instead of a welcome where the host goes, to make room for one
        of our version.

    Raises:
        SettingsConflictError: The host is of another version and has other clients, or serves with other options.
        ProtocolError: The answer is none.
        OSError: The connection ended.
    """
    hello = {**versions(), "pid": os.getpid(), "path": location.path, "options": options_to_json(options)}
    answer, *early = _exchange(connected, reader, json_frame(FrameKind.HELLO, hello))
    kind, _, value = answer
    if not isinstance(value, dict):
        raise ProtocolError("The host's answer cannot be read.")
    if kind is FrameKind.WELCOME:
        return value, early
    if kind is not FrameKind.REFUSED:
        raise ProtocolError(f"A message of the kind {kind.name} came instead of a welcome.")
    if value.get("reason") == "versions":
        if value.get("going"):
            return None, []
        raise SettingsConflictError(_other_version(location, value))
    names = ", ".join(f"`{name}`" for name in value.get("names") or ())
    raise SettingsConflictError(
        f"{location.name} is already open in the host process {value.get('pid')} with different {names}. Open it with the same "
        "ones, or leave them out to share what is open."
    )


def _other_version(location: Location, value: JsonObject) -> str:
    theirs, ours = value.get("mine") or {}, versions()
    different = ", ".join(
        f"{name} {theirs.get(name)} there and {ours[name]} here"
        for name in ours
        if theirs.get(name) != ours[name]
    )
    return (
        f"{location.name} is served by the host process {value.get('pid')}, which has {value.get('clients')} clients and another "
        f"version: {different}. Restart those programs with the same versions, or end the host with "
        f"`aiochroma host {location.path} --stop --force`."
    )


def ask(connected: socket.socket, kind: FrameKind, value: object = None) -> Message:
    """Ask a host something that needs no welcome, and return its answer.

    Raises:
        ProtocolError: The answer is none.
        OSError: The connection ended.
    """
    from aiochroma.host.codec import Codec

    return _exchange(connected, MessageReader(Codec()), json_frame(kind, value))[0]


def _exchange(connected: socket.socket, reader: MessageReader, question: bytes) -> list[Message]:
    """Send, and return the messages that come as the answer."""
    until = time.monotonic() + _ANSWER_SECONDS
    connected.settimeout(_ANSWER_SECONDS)
    connected.sendall(question)
    while time.monotonic() < until:
        data = connected.recv(65536)
        if not data:
            raise ConnectionResetError("the connection was closed")
        messages = list(reader.feed(data))
        if messages:
            return messages
    raise TimeoutError("no answer came")
