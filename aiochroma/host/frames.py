"""Frames: how messages travel over a stream of bytes. Pure; knows neither sockets nor what is in a message.

A frame is a header (length of the body, kind, number) and a body. A message that is large, or that takes long to encode, is cut
into ``PART`` frames of one number, followed by the frame that says what it is. So small messages pass between the parts
of a large one, and neither side holds its interpreter for long.

``HELLO``, ``WELCOME``, ``REFUSED``, ``STATUS`` and ``STOP`` are JSON and never change, so that any two versions understand them.
The others are MessagePack.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiochroma.host.codec import Codec, Decoding

__all__ = [
    "FRAME_LIMIT",
    "MESSAGE_LIMIT",
    "PROTOCOL",
    "FrameKind",
    "MessageReader",
    "ProtocolError",
    "frame",
    "json_frame",
]

PROTOCOL = 1
"""Changes whenever one side would misunderstand the other."""

FRAME_LIMIT = 16 * 2**20
MESSAGE_LIMIT = 2**30
"""What all parts of one message may come to."""

_OPEN_MESSAGES = 4096
"""How many messages may be under way in parts at once."""

_HEADER = struct.Struct("<IBQ")


class ProtocolError(Exception):
    """What came over the connection is not what the other side may send; the connection is of no use any more."""


class FrameKind(IntEnum):
    """What a message is."""

    HELLO = 1
    """Client: protocol, versions, path, options, process."""
    WELCOME = 2
    """Host: process, since when, version."""
    REFUSED = 3
    """Host: why the client is not served."""
    OPENED = 4
    """Host: the database is open; its facts."""
    FAILED = 5
    """Host: the database cannot be opened; the error."""
    FACTS = 6
    """Host: the facts have changed."""
    GOING = 7
    """Host: it ends; what has been received is still served."""
    REQUEST = 8
    """Client: an operation to carry out."""
    PART = 9
    """Either: a piece of a large message."""
    CANCEL = 10
    """Client: a request is no longer awaited; true where the host is to say whether it had begun."""
    RESULT = 11
    """Host: a request's result."""
    ERROR = 12
    """Host: a request's error."""
    VERDICT = 13
    """Host: whether a cancelled request had begun; without a question: that a request will not run here."""
    EVENT = 14
    """Host: an event to log."""
    STATUS = 15
    """Either: the question what the host does, and the answer."""
    STOP = 16
    """Client: the host is asked to end; true to end even though clients are connected."""


_JSON = frozenset({FrameKind.HELLO, FrameKind.WELCOME, FrameKind.REFUSED, FrameKind.STATUS, FrameKind.STOP})


def frame(kind: FrameKind, number: int, body: bytes = b"") -> bytes:
    """Return a frame; ``number`` is the request's, or 0 where it is about none."""
    return _HEADER.pack(len(body), kind, number) + body


def json_frame(kind: FrameKind, value: object) -> bytes:
    """Return a message of those that never change."""
    return frame(kind, 0, json.dumps(value).encode())


class MessageReader:
    """Puts messages together from bytes as they arrive.

    Args:
        codec: Decodes MessagePack.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._buffer = bytearray()
        self._parts: dict[int, Decoding] = {}

    def feed(self, received: bytes) -> Iterator[tuple[FrameKind, int, Any]]:
        """Yield the messages that are complete now: kind, number, value.

        Raises:
            ProtocolError: It is not what the other side may send.
        """
        buffer = self._buffer
        buffer += received
        start, end = 0, len(buffer)
        try:
            while end - start >= _HEADER.size:
                length, kind, number = _HEADER.unpack_from(buffer, start)
                if length > FRAME_LIMIT:
                    raise ProtocolError(f"A frame of {length} bytes came; the limit is {FRAME_LIMIT}.")
                stop = start + _HEADER.size + length
                if stop > end:
                    break
                body = bytes(buffer[start + _HEADER.size : stop])
                start = stop
                message = self._message(kind, number, body)
                if message is not None:
                    yield message
        finally:
            del buffer[:start]

    def _message(self, code: int, number: int, body: bytes) -> tuple[FrameKind, int, Any] | None:
        try:
            kind = FrameKind(code)
        except ValueError:
            raise ProtocolError(f"A frame of the unknown kind {code} came.") from None
        if kind in _JSON:
            return kind, number, _from_json(body)
        decoding = self._parts.get(number)
        if kind is FrameKind.PART:
            if decoding is None:
                if len(self._parts) >= _OPEN_MESSAGES:
                    raise ProtocolError(f"More than {_OPEN_MESSAGES} messages came in parts at once.")
                decoding = self._parts[number] = self._codec.decoding(MESSAGE_LIMIT)
            decoding.feed(body)
            return None
        if decoding is None:
            return kind, number, self._codec.decode(body) if body else None
        if kind is FrameKind.CANCEL:
            # Its caller left while it was being sent: what has come of it is dropped.
            del self._parts[number]
            return kind, number, self._codec.decode(body) if body else None
        decoding.feed(body)
        del self._parts[number]
        return kind, number, decoding.value()


def _from_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"A message is not JSON: {error}") from None
