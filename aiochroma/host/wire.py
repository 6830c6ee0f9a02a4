"""What goes over the wire: values as MessagePack, and messages as frames of bytes. Knows neither sockets nor Chroma.

What the codec gives back is equal, in value and type, to what it was given. It is strict: a class that is neither plain nor
registered is refused before anything is sent, instead of silently becoming something else. Nothing that is decoded runs code:
a registered type is made by the function that was registered for it. numpy is imported when the first array comes.

A frame is a header (length of the body, kind, number) and a body. A message that is large, or that takes long to encode, is cut
into ``SEGMENT`` frames of one number, followed by the frame that says what it is. So small messages pass between the segments
of a large one, and neither side holds its interpreter for long.

``HELLO``, ``WELCOME``, ``REFUSED``, ``STATUS`` and ``STOP`` are JSON and never change, so that any two versions understand them.
The others are MessagePack.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import msgpack

from aiochroma._types import JsonObject, Vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "FRAME_LIMIT",
    "PROTOCOL",
    "Codec",
    "FrameKind",
    "Message",
    "MessageReader",
    "Plain",
    "ProtocolError",
    "frame",
    "json_frame",
]

_DEPTH = 32
"""How deep registered types may be nested in each other when they are decoded; each level takes room on the C stack."""

_MOST_ITEMS = 2**24
_SEGMENT_BYTES = 128 * 1024
_MOST_SEGMENT_BYTES = 2**20
_SEGMENT_DEPTH = 3
_CONTAINERS = frozenset({dict, list})

_TUPLE, _INTEGER, _ARRAY, _SCALAR, _UUID = range(1, 6)
_FIRST_FREE = 10
_NUMERIC = frozenset("fiub")
_NARROWED = "f8<f4"
_DTYPES = frozenset(
    f"{order}{kind}"
    for order, kinds in (
        ("<", ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")),
        ("|", ("b1", "i1", "u1")),
    )
    for kind in kinds
) | {_NARROWED}


Plain: TypeAlias = Any
"""A value that came over the wire: whoever reads it finds out whether it is what it should be."""


class Codec:
    """Encodes and decodes; one may be used by several threads at once.

    Further types are registered before the first use, on both sides alike.
    """

    def __init__(self) -> None:
        self._encoders: dict[type, tuple[int, Callable[[Any], bytes]]] = {
            tuple: (_TUPLE, lambda value: self.encode(list(value))),
            UUID: (_UUID, lambda value: value.bytes),
        }
        self._decoders: dict[int, Callable[[bytes, int], object]] = {
            _TUPLE: lambda data, depth: tuple(_list(self._unpack(data, depth))),
            _UUID: lambda data, _: UUID(bytes=data),
            _INTEGER: lambda data, _: int.from_bytes(data, "little", signed=True),
            _ARRAY: self._array,
            _SCALAR: lambda data, depth: self._array(data, depth)[()],
        }
        self._options_at: dict[int, JsonObject] = {}

    def register(
        self, code: int, kind: type, to_plain: Callable[[Any], Any], from_plain: Callable[[Any], Any]
    ) -> None:
        """Let a class travel.

        Args:
            code: Its number on the wire, from 10 to 127.
            kind: The class; instances of subclasses do not travel with it.
            to_plain: Returns plain data, or data of registered types.
            from_plain: Makes an instance of it again.
        """
        if not _FIRST_FREE <= code <= 127 or code in self._decoders or kind in self._encoders:
            raise ValueError(f"{kind.__qualname__} cannot be registered as {code}: one of them is taken.")
        self._encoders[kind] = (code, lambda value: self.encode(to_plain(value)))
        self._decoders[code] = lambda data, depth: from_plain(self._unpack(data, depth))

    # -- encoding --------------------------------------------------------------------------------------------------------

    def encode(self, value: object) -> bytes:
        """Return a value as bytes.

        Raises:
            TypeError: There is something in it that does not travel; the message names its class.
            ValueError: It is nested too deep.
        """
        packed: bytes = self._packer().pack(value)
        return packed

    def segments(self, value: object) -> Iterator[bytes]:
        """Yield the bytes of a large value, a segment at a time: between two segments other threads and messages have their turn.

        Raises:
            TypeError: As :meth:`encode`; segments may have been yielded before.
        """
        packer = self._packer(autoreset=False)
        yield from self._walk(packer, value, _SEGMENT_DEPTH)
        yield from _taken(packer)

    def _walk(self, packer: msgpack.Packer, value: object, depth: int) -> Iterator[bytes]:
        if depth and type(value) is dict:
            packer.pack_map_header(len(value))
            for key, item in value.items():
                packer.pack(key)
                yield from self._walk(packer, item, depth - 1)
        elif depth and type(value) is list:
            packer.pack_array_header(len(value))
            for item in value:
                if depth > 1 and type(item) in _CONTAINERS:
                    yield from self._walk(packer, item, depth - 1)
                    continue
                packer.pack(item)
                if len(packer.getbuffer()) > _SEGMENT_BYTES:
                    yield from _taken(packer)
        else:
            packer.pack(value)
            if len(packer.getbuffer()) > _SEGMENT_BYTES:
                yield from _taken(packer)

    def _packer(self, *, autoreset: bool = True) -> msgpack.Packer:
        return msgpack.Packer(
            default=self._default, strict_types=True, unicode_errors="surrogatepass", autoreset=autoreset
        )

    def _default(self, value: Any) -> object:
        kind = type(value)
        known = self._encoders.get(kind)
        if known is not None:
            return msgpack.ExtType(known[0], known[1](value))
        if kind is int:
            return msgpack.ExtType(
                _INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            )
        if kind.__module__ == "numpy" and hasattr(value, "dtype") and value.dtype.kind in _NUMERIC:
            return self._numpy(value)
        for plain in (str, int, float, bytes, list, dict):
            # As Chroma stores it: the value of a text that is also a member of an enumeration, and so on.
            if isinstance(value, plain):
                return _PLAIN[plain](value)
        raise TypeError(
            f"A value of the class {kind.__module__}.{kind.__qualname__} cannot be sent to another process: {value!r:.100}"
        )

    def _numpy(self, value: Vector) -> msgpack.ExtType:
        dtype = value.dtype.newbyteorder("<").str
        if dtype not in _DTYPES:
            raise TypeError(f"An array of type {value.dtype} cannot be sent to another process.")
        is_array = type(value).__name__ == "ndarray"
        return msgpack.ExtType(_ARRAY if is_array else _SCALAR, self._array_to_bytes(value))

    def _array_to_bytes(self, value: Vector) -> bytes:
        import numpy as np

        dtype = value.dtype.newbyteorder("<").str
        if dtype == "<f8" and value.shape:
            # Chroma's vectors are 32-bit numbers; they travel as such where nothing is lost.
            with np.errstate(over="ignore"):
                narrow = value.astype("<f4")
            if np.array_equal(narrow, value):
                return self.encode([_NARROWED, list(value.shape), narrow.tobytes()])
        return self.encode([dtype, list(value.shape), value.astype(dtype, copy=False).tobytes()])

    # -- decoding --------------------------------------------------------------------------------------------------------

    def decode(self, data: bytes) -> Plain:
        """Return the value that was encoded.

        Raises:
            ProtocolError: These are no such bytes.
        """
        try:
            return msgpack.unpackb(data, **self._options(0))
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever bytes make of msgpack and of the types
            raise ProtocolError(f"A message cannot be decoded: {type(error).__name__}: {error}") from None

    def decoding(self, limit: int) -> Decoding:
        """Begin to decode a message that comes in segments, of at most ``limit`` bytes."""
        return Decoding(msgpack.Unpacker(max_buffer_size=0, **self._options(0)), limit)

    def _unpack(self, data: bytes, depth: int) -> Plain:
        return msgpack.unpackb(data, **self._options(depth))

    def _options(self, depth: int) -> JsonObject:
        known = self._options_at.get(depth)
        if known is not None:
            return known

        def hook(code: int, data: bytes) -> object:
            decoder = self._decoders.get(code)
            if decoder is None or depth >= _DEPTH:
                raise ProtocolError(
                    f"A value of the unknown type {code} came, or one that is nested too deep."
                )
            return decoder(data, depth + 1)

        made = self._options_at[depth] = {
            "ext_hook": hook,
            "strict_map_key": False,
            "unicode_errors": "surrogatepass",
            "max_array_len": _MOST_ITEMS,
            "max_map_len": _MOST_ITEMS,
        }
        return made

    def _array(self, data: bytes, depth: int) -> Plain:
        import numpy as np

        dtype, shape, values = _list(self._unpack(data, depth))
        if dtype not in _DTYPES:
            raise ProtocolError(f"An array of the unknown type {dtype!r} came.")
        if dtype == _NARROWED:
            return np.frombuffer(values, "<f4").reshape(shape).astype(np.float64)
        return np.frombuffer(values, dtype).reshape(shape).copy()


class Decoding:
    """A value that is decoded as its bytes arrive."""

    def __init__(self, unpacker: msgpack.Unpacker, limit: int) -> None:
        self._unpacker = unpacker
        self._left = limit
        self._values: list[Plain] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            ProtocolError: They do not belong to one value, or are too many.
        """
        self._left -= len(data)
        if self._left < 0:
            raise ProtocolError("A message is too large.")
        try:
            self._unpacker.feed(data)
            self._values.extend(self._unpacker)
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever bytes make of msgpack and of the types
            raise ProtocolError(f"A message cannot be decoded: {type(error).__name__}: {error}") from None
        if len(self._values) > 1:
            raise ProtocolError("Two values came where one message was expected.")

    def value(self) -> Plain:
        """Return the value.

        Raises:
            ProtocolError: It is not complete.
        """
        if not self._values:
            raise ProtocolError("A message ended before its end.")
        return self._values[0]


_PLAIN: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__index__,
    float: float.__float__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    list: list.copy,
    dict: dict.copy,
}


def _taken(packer: msgpack.Packer) -> Iterator[bytes]:
    """Yield what has been packed so far."""
    data = packer.bytes()
    packer.reset()
    for start in range(0, len(data), _MOST_SEGMENT_BYTES):
        yield data[start : start + _MOST_SEGMENT_BYTES]


def _list(value: object) -> list[Plain]:
    if type(value) is not list:
        raise ProtocolError("A list was expected.")
    return value


PROTOCOL = 5
"""Changes whenever one side would misunderstand the other."""

FRAME_LIMIT = 16 * 2**20
MESSAGE_LIMIT = 2**30
"""What all segments of one message may come to."""

_OPEN_MESSAGES = 4096
"""How many messages may be under way in segments at once."""

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
    SEGMENT = 9
    """Either: a segment of a large message."""
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


Message: TypeAlias = tuple[FrameKind, int, Plain]
"""What a message is, the request that it is about (0: none), and what it says."""

_KINDS = {int(kind): kind for kind in FrameKind}
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
        self._segments: dict[int, Decoding] = {}

    def feed(self, received: bytes | memoryview) -> Iterator[Message]:
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

    def _message(self, code: int, number: int, body: bytes) -> Message | None:
        kind = _KINDS.get(code)
        if kind is None:
            raise ProtocolError(f"A frame of the unknown kind {code} came.")
        if kind in _JSON:
            return kind, number, _from_json(body)
        decoding = self._segments.get(number)
        if kind is FrameKind.SEGMENT:
            if decoding is None:
                if len(self._segments) >= _OPEN_MESSAGES:
                    raise ProtocolError(f"More than {_OPEN_MESSAGES} messages came in segments at once.")
                decoding = self._segments[number] = self._codec.decoding(MESSAGE_LIMIT)
            decoding.feed(body)
            return None
        if decoding is None:
            return kind, number, self._codec.decode(body) if body else None
        if kind is FrameKind.CANCEL:
            # Its caller left while it was being sent: what has come of it is dropped.
            del self._segments[number]
            return kind, number, self._codec.decode(body) if body else None
        decoding.feed(body)
        del self._segments[number]
        return kind, number, decoding.value()


def _from_json(body: bytes) -> Plain:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"A message is not JSON: {error}") from None
